"""Processes of a node: how fast they start, and the memory that an idle one holds."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from typing import Any

from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import Launch, rss_bytes
from benchmarks.registry import Benchmark, Metric, Options, Variant


def variants(options: Options) -> list[Variant]:
    """Ours; a bare asyncio task; one with a deque; one with an asyncio.Queue."""
    config = {"loop": options.loop, "count": options.size(50_000, 20_000)}
    return [
        Launch(label, floor=floor, target=f"spawn:{target}", config=config)
        for label, floor, target in (
            (f"fleetlm ({options.loop})", False, "our_processes"),
            (f"bare task ({options.loop})", True, "bare_tasks"),
            (f"task and deque ({options.loop})", True, "tasks_with_deques"),
            (f"task and asyncio.Queue ({options.loop})", True, "tasks_with_queues"),
        )
    ]


BENCHMARK = Benchmark(
    "spawn",
    "idle processes of one node, until each waits for its first message",
    [
        Metric("rate", "spawns", "thousand/s", more_is_better=True, scale=1e-3),
        Metric("bytes_each", "memory of an idle one", "bytes", more_is_better=False),
    ],
    variants,
)


class Meter:
    """Time and memory between its making and `say`."""

    def __init__(self, parent: Parent, count: int) -> None:
        self._parent = parent
        self._count = count
        self._rss = rss_bytes(os.getpid())
        self._started = time.perf_counter()

    def say(self) -> None:
        """All of them wait."""
        took_s = time.perf_counter() - self._started
        grown = rss_bytes(os.getpid()) - self._rss
        self._parent.say(rate=self._count / took_s, bytes_each=grown / self._count)


def our_processes(parent: Parent, config: dict[str, Any]) -> None:
    """Spawned on a node without a cluster."""
    from benchmarks import ours  # noqa: PLC0415  a floor's process must not hold fleetlm
    from fleetlm import Node, Process  # noqa: PLC0415

    waiting = 0

    async def idle(process: Process) -> None:
        nonlocal waiting
        waiting += 1
        await process.receive()

    async def main() -> None:
        settings = ours.settings(["127.0.0.1"], "127.0.0.1", config["port"])
        async with Node.start(settings) as node:
            meter = Meter(parent, config["count"])
            for _ in range(config["count"]):
                node.spawn(idle)
            while waiting < config["count"]:
                await asyncio.sleep(0)
            meter.say()
            await parent.gone()
            os._exit(0)  # ending fifty thousand processes one by one is not what is measured

    run_loop(main(), config["loop"])


def bare_tasks(parent: Parent, config: dict[str, Any]) -> None:
    """A task that waits for a future, and nothing else."""
    held: list[asyncio.Future[None]] = []

    async def idle() -> None:
        future = asyncio.get_running_loop().create_future()
        held.append(future)
        await future

    _run_floor(parent, config, idle, lambda: len(held))


def tasks_with_deques(parent: Parent, config: dict[str, Any]) -> None:
    """What a process is made of at least: a task, a deque and a future to wait for."""
    held: list[tuple[deque[object], asyncio.Future[None]]] = []

    async def idle() -> None:
        entry = (deque[object](), asyncio.get_running_loop().create_future())
        held.append(entry)
        await entry[1]

    _run_floor(parent, config, idle, lambda: len(held))


def tasks_with_queues(parent: Parent, config: dict[str, Any]) -> None:
    """The usual way in plain asyncio."""
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
        meter.say()
        await parent.gone()
        os._exit(0)

    run_loop(main(), config["loop"])
