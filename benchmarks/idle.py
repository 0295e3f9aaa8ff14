"""The CPU time of connected nodes that have nothing to do, each in a process of its own."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import zmq

from benchmarks import fleetlm_node, raw
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import Helper, free_port
from benchmarks.registry import Benchmark, Metric, Metrics, Options, Variant

MEMBERS, MEMBERS_QUICK = 32, 8
WINDOW_S, WINDOW_QUICK_S = 20, 4
SETTLE_S = 5.0
"""Seconds between the last connection and the measurement: what follows a connection is over by then."""
HEARTBEAT_MS = 2_000
"""Of the floor: what a node uses by default."""


class IdleNodes:
    """A variant of processes that connect to each other, wait, and then measure their own CPU time."""

    def __init__(self, label: str, *, floor: bool, target: str, config: dict[str, Any], members: int) -> None:
        self.label = label
        self.floor = floor
        self._target = target
        self._config = config
        self._members = members
        self._helpers: list[Helper] = []

    def open(self) -> None:
        """Do nothing: each run starts new processes."""

    def run(self) -> Metrics:
        """Return what one process takes on average."""
        ips = [f"127.0.0.{number + 1}" for number in range(self._members)]
        shared = {**self._config, "ips": ips, "port": free_port(ips)}
        try:
            self._helpers = [Helper(self._target, {**shared, "index": index}) for index in range(len(ips))]
            for helper in self._helpers:
                helper.receive()
            time.sleep(SETTLE_S)
            for helper in self._helpers:
                helper.send("measure")
            found = [helper.receive() for helper in self._helpers]
            names = ("main_s", "rest_s", "total_s")
            return {name: sum(each[name] for each in found) / len(found) for name in names}
        finally:
            self.close()

    def close(self) -> None:
        """End all processes."""
        for helper in self._helpers:
            helper.close()
        self._helpers.clear()


def variants(options: Options) -> list[Variant]:
    """Nodes; and sockets that are connected as theirs are, with heartbeats and nothing else."""
    members = options.size(MEMBERS, MEMBERS_QUICK)
    config = {"loop": options.loop, "window_s": options.size(WINDOW_S, WINDOW_QUICK_S)}
    return [
        IdleNodes(
            f"fleetlm, {members} nodes ({options.loop})",
            floor=False,
            target="idle:node",
            config=config,
            members=members,
        ),
        IdleNodes(
            f"pyzmq, {members} ROUTERs and their DEALERs, heartbeats alone",
            floor=True,
            target="idle:sockets",
            config=config,
            members=members,
        ),
    ]


BENCHMARK = Benchmark(
    "idle",
    "connected nodes with nothing to do: CPU time of each in a minute",
    [
        Metric("total_s", "all threads", "s/min", more_is_better=False, scale=1.0),
        Metric("main_s", "the loop's thread", "s/min", more_is_better=False, scale=1.0),
        Metric("rest_s", "other threads", "s/min", more_is_better=False, scale=1.0),
    ],
    variants,
)


async def _measure(parent: Parent, window_s: float) -> None:
    parent.report(ready=True)
    await parent.read_command()
    began, main, total = time.monotonic(), time.thread_time(), time.process_time()
    await asyncio.sleep(window_s)
    a_minute = 60.0 / (time.monotonic() - began)
    main_s, total_s = (time.thread_time() - main) * a_minute, (time.process_time() - total) * a_minute
    parent.report(main_s=main_s, rest_s=total_s - main_s, total_s=total_s)
    await parent.wait_until_closed()


def node(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node."""

    async def main() -> None:
        async with fleetlm_node.start(config) as own:
            await own.ready(len(config["ips"]) - 1, timeout=120)
            await _measure(parent, config["window_s"])

    run_loop(main(), config["loop"])


def sockets(parent: Parent, config: dict[str, Any]) -> None:
    """Use a ROUTER, and a DEALER for each other process."""

    async def main() -> None:
        own = config["ips"][config["index"]]
        router, context = raw.router(config["port"], own)
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
