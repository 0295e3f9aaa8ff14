"""The time from killing a node until its peers know, and until an open call of theirs has failed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from benchmarks import fleetlm_node, peers
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import Command, Helper, Helpers
from benchmarks.registry import Benchmark, Metric, Metrics, Options, Variant
from fleetlm import NodeDown, Process
from fleetlm.errors import FleetError

PEERS = 8


class KilledNode(Helpers):
    """A variant whose run starts nodes, kills one with SIGKILL, and asks the others when they knew."""

    def __init__(
        self, label: str, *, floor: bool, target: str, config: dict[str, Any], command: Command | None = None
    ) -> None:
        super().__init__(label, floor=floor, config=config, command=command)
        self._target = target

    def run(self) -> Metrics:
        """Kill one node, and return how long the last of the others took to know."""
        try:
            victim, *others = self.start_members(self._target, PEERS + 1)
            killed_at = time.clock_gettime(time.CLOCK_MONOTONIC)
            os.kill(victim.os_pid, signal.SIGKILL)
            facts = [helper.receive() for helper in others]
            return {
                "known_s": max(fact["down_at"] for fact in facts) - killed_at,
                "failed_s": max(fact["failed_at"] for fact in facts) - killed_at,
            }
        finally:
            self.close()


class FirstByte:
    """The floor: when the kernel tells one connected socket that the killed process is gone."""

    label, floor = "a connected socket sees the end", True

    def open(self) -> None:
        """Do nothing: each run starts a new process."""

    def run(self) -> Metrics:
        """Kill a process, and wait for the end of its pipe."""
        helper = Helper("start_programs:bare", {})
        try:
            helper.receive()
            started = time.perf_counter()
            os.kill(helper.os_pid, signal.SIGKILL)
            helper.wait_for_end()
            return {"known_s": time.perf_counter() - started}
        finally:
            helper.close()

    def close(self) -> None:
        """Do nothing."""


def variants(options: Options) -> list[Variant]:
    """Eight nodes and the one that is killed; one pipe; the peers."""
    config = {"loop": options.loop}
    return [
        KilledNode(f"fleetlm ({options.loop})", floor=False, target="crash:node", config=config),
        FirstByte(),
        *(
            KilledNode(label, floor=True, target="crash_node", config=config, command=peer.command)
            for peer, label in peers.able(options, "crash")
        ),
    ]


BENCHMARK = Benchmark(
    "crash",
    f"a node is killed with SIGKILL, {PEERS} peers notice",
    [
        Metric("known_s", "until the last peer knows", "ms", more_is_better=False, scale=1e3),
        Metric("failed_s", "until the last open call has failed", "ms", more_is_better=False, scale=1e3),
    ],
    variants,
)


def node(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node; all but the first call a process of the first that never replies."""

    async def never(process: Process) -> None:
        async for _ in process.mailbox:
            pass

    async def main() -> None:
        async with fleetlm_node.start(config) as own:
            parent.report(started=True)
            own.spawn(never, name="never")
            await fleetlm_node.peers(own, config)
            if config["index"] == 0:
                parent.report(ready=True)
                await parent.wait_until_closed()
                return
            victim = own.name.replace(config["ips"][config["index"]], config["ips"][0])
            down_at = 0.0
            call = asyncio.create_task(_failed_at(own, victim))
            events = own.events()
            await asyncio.sleep(0)
            parent.report(ready=True)
            async for event in events:
                if isinstance(event, NodeDown) and event.node == victim:
                    down_at = time.clock_gettime(time.CLOCK_MONOTONIC)
                    break
            parent.report(down_at=down_at, failed_at=await call)
            await parent.wait_until_closed()

    async def _failed_at(own: Any, victim: str) -> float:
        try:
            await own.call(("never", victim), None, timeout=60)
        except FleetError:
            return time.clock_gettime(time.CLOCK_MONOTONIC)
        raise RuntimeError("a process that never replies has replied")

    run_loop(main(), config["loop"])
