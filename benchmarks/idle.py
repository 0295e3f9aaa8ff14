"""The CPU time of connected nodes that have nothing to do, each in a process of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import zmq

from benchmarks import fleetlm_node, peers, raw
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import Command, Helpers
from benchmarks.registry import Benchmark, Metric, Metrics, Options, Variant

MEMBERS = (8, 64)
"""Few nodes and many, since what a node has to do when idle grows with the number of its peers."""
WINDOW_S, WINDOW_QUICK_S = 20, 8
SETTLE_S = 5.0
"""Seconds between the last connection and the measurement: what follows a connection is over by then."""
HEARTBEAT_MS = 2_000
"""Of the floor: what a node uses by default."""


class IdleNodes(Helpers):
    """A variant of processes that connect to each other, wait, and then measure their own CPU time."""

    def __init__(
        self,
        label: str,
        *,
        floor: bool,
        target: str,
        config: dict[str, Any],
        members: Sequence[int] = MEMBERS,
        command: Command | None = None,
    ) -> None:
        super().__init__(label, floor=floor, config=config, command=command)
        self._target = target
        self._members = members

    def run(self) -> Metrics:
        """Return what one process takes on average, for each number of members."""
        return {key: value for members in self._members for key, value in self._idle(members).items()}

    def _idle(self, members: int) -> Metrics:
        try:
            helpers = self.start_members(self._target, members)
            time.sleep(SETTLE_S)
            for helper in helpers:
                helper.send("measure")
            found = [helper.receive() for helper in helpers]
            names = [name for name in ("total_s", "main_s") if name in found[0]]
            return {f"{name}_{members}": sum(each[name] for each in found) / len(found) for name in names}
        finally:
            self.close()


def variants(options: Options) -> list[Variant]:
    """Nodes; sockets that are connected as theirs are, with heartbeats and nothing else; the peers."""
    config = {"loop": options.loop, "window_s": options.size(WINDOW_S, WINDOW_QUICK_S)}
    return [
        IdleNodes(f"fleetlm ({options.loop})", floor=False, target="idle:node", config=config),
        IdleNodes(
            "pyzmq, ROUTERs and DEALERs, heartbeats alone", floor=True, target="idle:sockets", config=config
        ),
        *(
            IdleNodes(label, floor=True, target="idle_node", config=config, command=peer.command)
            for peer, label in peers.able(options, "idle")
        ),
    ]


BENCHMARK = Benchmark(
    "idle",
    "connected nodes with nothing to do, one in each process: CPU time of each in a minute",
    [
        Metric(f"{name}_{members}", f"{title}, {members} nodes", "s/min", more_is_better=False)
        for members in MEMBERS
        for name, title in (("total_s", "all threads"), ("main_s", "the loop's thread"))
    ],
    variants,
    most_rounds=1,
    share=10,
)


async def _measure(parent: Parent, window_s: float) -> None:
    parent.report(ready=True)
    await parent.read_command()
    began, main, total = time.monotonic(), time.thread_time(), time.process_time()
    await asyncio.sleep(window_s)
    a_minute = 60.0 / (time.monotonic() - began)
    main_s, total_s = (time.thread_time() - main) * a_minute, (time.process_time() - total) * a_minute
    parent.report(main_s=main_s, total_s=total_s)
    await parent.wait_until_closed()


def node(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node."""

    async def main() -> None:
        async with fleetlm_node.start(config) as own:
            parent.report(started=True)
            await own.ready(len(config["ips"]) - 1, timeout=120)
            await _measure(parent, config["window_s"])

    run_loop(main(), config["loop"])


def sockets(parent: Parent, config: dict[str, Any]) -> None:
    """Use a ROUTER, and a DEALER for each other process."""

    async def main() -> None:
        own = config["ips"][config["index"]]
        router, context = raw.router(config["port"], own)
        parent.report(started=True)
        dealers = []
        for ip in config["ips"]:
            if ip != own:
                dealers.append(context.socket(zmq.DEALER))
                dealers[-1].set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
                dealers[-1].connect(f"tcp://{ip}:{config['port']}")
        await _measure(parent, config["window_s"])
        del router
        context.destroy(0)

    run_loop(main(), config["loop"])
