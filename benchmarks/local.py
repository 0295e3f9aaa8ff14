"""Messages and calls between two processes of one node, beside asyncio's own queue and a coroutine."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks import fleetlm_node, peers
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import ServersAndDriver
from benchmarks.measures import PAYLOAD, one_at_a_time, percentiles
from benchmarks.registry import Benchmark, Metric, Metrics, Options, Variant
from fleetlm import Process

HOW_MANY_AHEAD = 1_000
"""Messages that the sender of the floor may be ahead, as a mailbox bounds it too."""


def variants(options: Options) -> list[Variant]:
    """A node with two processes; two tasks and `asyncio.Queue`; the peers."""
    config = {
        "loop": options.loop,
        "count": options.size(200_000, 50_000),
        "sequential": options.size(10_000, 3_000),
    }
    return [
        ServersAndDriver(
            label, floor=floor, server="start_programs:bare", driver=f"local:{kind}", config=config, servers=0
        )
        for label, kind, floor in (
            (f"fleetlm ({options.loop})", "fleetlm_node_alone", False),
            (f"asyncio.Queue and a future ({options.loop})", "bare_tasks", True),
        )
    ] + [*peers.variants(options, "local", config, servers=0)]


BENCHMARK = Benchmark(
    "local",
    "two processes of one node: messages of 64 bytes, and calls one at a time",
    [
        Metric("rate", "messages", "thousand/s", more_is_better=True, scale=1e-3),
        Metric("p50_s", "call, round trip p50", "µs", more_is_better=False, scale=1e6),
    ],
    variants,
)


def fleetlm_node_alone(parent: Parent, config: dict[str, Any]) -> None:
    """Measure on a node without peers."""

    async def main() -> None:
        all_came = asyncio.Event()

        async def count(process: Process) -> None:
            seen = 0
            async for _ in process.mailbox:
                seen += 1
                if seen % config["count"] == 0:
                    all_came.set()

        async def echo(process: Process) -> None:
            async for call in process.mailbox:
                call.reply(call.message)

        async with fleetlm_node.start(config) as node:
            node.spawn(count, name="count")
            node.spawn(echo, name="echo")
            parent.report(ready=True)
            while await parent.read_command():
                all_came.clear()
                started = time.perf_counter()
                for _ in range(config["count"]):
                    await node.send("count", PAYLOAD)
                await all_came.wait()
                rate = config["count"] / (time.perf_counter() - started)
                times = await one_at_a_time(lambda: node.call("echo", PAYLOAD), config["sequential"])
                parent.report(**_metrics(rate, times))

    run_loop(main(), config["loop"])


def bare_tasks(parent: Parent, config: dict[str, Any]) -> None:
    """Measure a queue, and a queue with a future for the reply."""

    async def main() -> None:
        queue: asyncio.Queue[bytes] = asyncio.Queue(HOW_MANY_AHEAD)
        calls: asyncio.Queue[tuple[bytes, asyncio.Future[bytes]]] = asyncio.Queue(HOW_MANY_AHEAD)

        async def count() -> None:
            for _ in range(config["count"]):
                await queue.get()

        async def echo() -> None:
            while True:
                payload, reply = await calls.get()
                reply.set_result(payload)

        async def call() -> bytes:
            reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            await calls.put((PAYLOAD, reply))
            return await reply

        echoing = asyncio.create_task(echo())
        parent.report(ready=True)
        while await parent.read_command():
            counting = asyncio.create_task(count())
            started = time.perf_counter()
            for _ in range(config["count"]):
                await queue.put(PAYLOAD)
            await counting
            rate = config["count"] / (time.perf_counter() - started)
            parent.report(**_metrics(rate, await one_at_a_time(call, config["sequential"])))
        echoing.cancel()

    run_loop(main(), config["loop"])


def _metrics(rate: float, times: list[float]) -> Metrics:
    return {"rate": rate, "p50_s": percentiles(times)["p50_s"]}
