"""Processes of a node: the rate at which they start, and the memory of an idle one."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from typing import Any

from benchmarks import peers
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import Launch, rss_bytes
from benchmarks.registry import Benchmark, Metric, Options, Variant


def variants(options: Options) -> list[Variant]:
    """Compare a process with a bare task, a task with a deque, a task with an asyncio.Queue, and peers."""
    config = {"loop": options.loop, "count": options.size(50_000, 20_000)}
    return [
        Launch(label, floor=floor, target=f"spawn:{target}", config=config)
        for label, floor, target in (
            (f"fleetlm ({options.loop})", False, "fleetlm_processes"),
            (f"bare task ({options.loop})", True, "bare_tasks"),
            (f"task and deque ({options.loop})", True, "tasks_with_deques"),
            (f"task and asyncio.Queue ({options.loop})", True, "tasks_with_queues"),
        )
    ] + [*peers.variants(options, "spawn", config, servers=0)]


BENCHMARK = Benchmark(
    "spawn",
    "idle processes of one node, until each waits for its first message",
    [
        Metric("rate", "spawns", "thousand/s", more_is_better=True, scale=1e-3),
        Metric("bytes_each", "memory of an idle process", "bytes", more_is_better=False),
    ],
    variants,
)


class Meter:
    """Measures time and memory from its construction to `report`."""

    def __init__(self, parent: Parent, count: int) -> None:
        self._parent = parent
        self._count = count
        self._rss = rss_bytes(os.getpid())
        self._started = time.perf_counter()

    def report(self) -> None:
        """Report the metrics when all processes wait."""
        took_s = time.perf_counter() - self._started
        grown = rss_bytes(os.getpid()) - self._rss
        self._parent.report(rate=self._count / took_s, bytes_each=grown / self._count)


def fleetlm_processes(parent: Parent, config: dict[str, Any]) -> None:
    """Spawn processes on a node without a cluster."""
    from benchmarks import fleetlm_node  # noqa: PLC0415  a floor's process must not import fleetlm
    from fleetlm import Node, Process  # noqa: PLC0415

    waiting = 0

    async def idle(process: Process) -> None:
        nonlocal waiting
        waiting += 1
        await process.receive()

    async def main() -> None:
        settings = fleetlm_node.settings(["127.0.0.1"], "127.0.0.1", config["port"])
        async with Node.start(settings) as node:
            meter = Meter(parent, config["count"])
            for _ in range(config["count"]):
                node.spawn(idle)
            while waiting < config["count"]:
                await asyncio.sleep(0)
            meter.report()
            await parent.wait_until_closed()
            os._exit(0)  # ending fifty thousand processes one by one is not measured

    run_loop(main(), config["loop"])


def bare_tasks(parent: Parent, config: dict[str, Any]) -> None:
    """Start tasks that wait for a future and do nothing else."""
    held: list[asyncio.Future[None]] = []

    async def idle() -> None:
        future = asyncio.get_running_loop().create_future()
        held.append(future)
        await future

    _run_floor(parent, config, idle, lambda: len(held))


def tasks_with_deques(parent: Parent, config: dict[str, Any]) -> None:
    """Start the least that a process consists of: a task, a deque and a future to wait for."""
    held: list[tuple[deque[object], asyncio.Future[None]]] = []

    async def idle() -> None:
        entry = (deque[object](), asyncio.get_running_loop().create_future())
        held.append(entry)
        await entry[1]

    _run_floor(parent, config, idle, lambda: len(held))


def tasks_with_queues(parent: Parent, config: dict[str, Any]) -> None:
    """Start tasks with a queue, as is usual in plain asyncio."""
    held: list[asyncio.Queue[object]] = []

    async def idle() -> None:
        queue: asyncio.Queue[object] = asyncio.Queue()
        held.append(queue)
        await queue.get()

    _run_floor(parent, config, idle, lambda: len(held))


def _run_floor(parent: Parent, config: dict[str, Any], idle: Any, waiting: Any) -> None:
    async def main() -> None:
        meter = Meter(parent, config["count"])
        tasks = [asyncio.create_task(idle()) for _ in range(config["count"])]
        while waiting() < len(tasks):
            await asyncio.sleep(0)
        meter.report()
        await parent.wait_until_closed()
        os._exit(0)

    run_loop(main(), config["loop"])
