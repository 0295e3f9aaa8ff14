"""Small calls while large messages travel on the same connection."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks import fleetlm_node
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import ServersAndDriver
from benchmarks.measures import MIB, PAYLOAD, percentiles
from benchmarks.registry import Benchmark, Metric, Options, Variant
from benchmarks.ways import fleetlm_ways

LARGE_BYTES = 16 * MIB
PAUSE_S = 0.002
"""Between two small calls, so that they measure the waiting and do not add to it."""


def variants(options: Options) -> list[Variant]:
    """The small calls alone, and beside calls of 16 MiB."""
    config = {"loop": options.loop, "seconds": options.size(4, 2)}
    return [
        *(
            ServersAndDriver(
                way.label,
                floor=False,
                server="bulk:fleetlm_server",
                driver="beside:client",
                config=config | way.config | {"large": True},
            )
            for way in fleetlm_ways(options)
        ),
        ServersAndDriver(
            f"the same calls alone ({options.loop})",
            floor=True,
            server="bulk:fleetlm_server",
            driver="beside:client",
            config=config | {"large": False},
        ),
    ]


BENCHMARK = Benchmark(
    "beside",
    "64-byte calls beside calls of 16 MiB on the same connection",
    [
        Metric("p50_s", "small call p50", "ms", more_is_better=False, scale=1e3),
        Metric("p99_s", "small call p99", "ms", more_is_better=False, scale=1e3),
        Metric("large", "large calls", "MB/s", more_is_better=True, scale=1e-6),
    ],
    variants,
)


def client(parent: Parent, config: dict[str, Any]) -> None:
    """Make both kinds of calls for some seconds."""

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            (peer,) = await fleetlm_node.peers(node, config)
            to, payload, moved = ("measure", peer), bytes(LARGE_BYTES), 0

            async def call_large() -> None:
                nonlocal moved
                while True:
                    moved += await node.call(to, payload, timeout=60)

            parent.report(ready=True)
            while await parent.read_command():
                moved, times = 0, []
                large = asyncio.create_task(call_large()) if config["large"] else None
                started = time.perf_counter()
                while time.perf_counter() - started < config["seconds"]:
                    sent = time.perf_counter()
                    await node.call(to, PAYLOAD, timeout=60)
                    times.append(time.perf_counter() - sent)
                    await asyncio.sleep(PAUSE_S)
                took_s = time.perf_counter() - started
                metrics = percentiles(times)
                if large is not None:
                    metrics["large"] = moved / took_s
                    large.cancel()
                    await asyncio.wait([large])
                parent.report(**metrics)

    run_loop(main(), config["loop"])
