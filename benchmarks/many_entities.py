"""A great number of entities on one node: what one takes to begin, to be asked, and to be saved and ended.

The requests come from the node itself, so that the CPU of the program is that of the entities. The floor are
actors, which are spawned before their first request, and end in the place of a passivation.
"""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks import fleetlm_node
from benchmarks.entities import why_not
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import Launch, rss_bytes
from benchmarks.measures import at_once
from benchmarks.registry import Benchmark, Metric, Metrics, Options, Variant

COUNT = 100_000
OUTSTANDING = 100
WITHIN_S = 60.0
"""Seconds for a request: the collector of garbage may stop a process with so many objects for one."""
Ask = Callable[[int], Awaitable[object]]


def variants(options: Options) -> list[Variant]:
    """So many entities, and as many actors."""
    config = {"loop": options.loop, "count": options.size(COUNT, COUNT // 10)}
    return [
        Launch(
            f"fleetlm, entities ({options.loop})", floor=False, target="many_entities:entities", config=config
        ),
        Launch("fleetlm, actors", floor=True, target="many_entities:actors", config=config),
    ]


BENCHMARK = Benchmark(
    "many-entities",
    f"{COUNT:,} entities on one node, each asked by that node, and {OUTSTANDING} requests outstanding",
    [
        Metric("bytes_each", "memory of one that lives", "bytes", more_is_better=False),
        Metric(
            "most_bytes", "most memory of the program at any time", "MB", more_is_better=False, scale=1e-6
        ),
        Metric("begin_s", "first request", "µs CPU", more_is_better=False, scale=1e6),
        Metric("again_s", "another one", "µs CPU", more_is_better=False, scale=1e6),
        Metric("end_s", "last request, saved, ended", "µs CPU", more_is_better=False, scale=1e6),
        Metric("revive_s", "first request from what was saved", "µs CPU", more_is_better=False, scale=1e6),
    ],
    variants,
    share=2,
    why_not=why_not,
)


def entities(parent: Parent, config: dict[str, Any]) -> None:
    """Measure entities."""

    async def main() -> None:
        from benchmarks.entity_echo import CountEntity  # noqa: PLC0415  there may be no entities

        async with fleetlm_node.start(alone(config)) as node:
            refs = await node.entities.host(CountEntity, "counts", live=2 * config["count"])
            await refs["first"].within(fleetlm_node.READY_TIMEOUT_S).call(CountEntity.add)
            held = [refs[f"key{number}"].within(WITHIN_S) for number in range(config["count"])]
            add, rest = CountEntity.add, CountEntity.rest
            facts = await begun(lambda number: held[number].call(add), config["count"])
            facts["again_s"] = await cpu_each(lambda number: held[number].call(add), config["count"])
            facts["end_s"] = await cpu_each(lambda number: held[number].call(rest), config["count"])
            facts["revive_s"] = await cpu_each(lambda number: held[number].call(add), config["count"])
            counted = await held[0].call(add)
            assert counted == 5, counted
            parent.report(**facts, most_bytes=most_bytes())
            await parent.wait_until_closed()
            os._exit(0)  # Ending all of them is not measured.

    run_loop(main(), config["loop"])


def actors(parent: Parent, config: dict[str, Any]) -> None:
    """Measure actors, which do not come back."""

    async def main() -> None:
        from benchmarks.entity_echo import CountActor  # noqa: PLC0415

        async with fleetlm_node.start(alone(config)) as node:
            held = [node.ref(CountActor, "")] * config["count"]
            add, rest = CountActor.add, CountActor.rest

            async def begin(number: int) -> None:
                held[number] = (await node.start_actor(CountActor, timeout=WITHIN_S)).within(WITHIN_S)
                await held[number].call(add)

            facts = await begun(begin, config["count"])
            facts["again_s"] = await cpu_each(lambda number: held[number].call(add), config["count"])
            facts["end_s"] = await cpu_each(lambda number: held[number].call(rest), config["count"])
            parent.report(**facts, most_bytes=most_bytes())
            await parent.wait_until_closed()
            os._exit(0)

    run_loop(main(), config["loop"])


def most_bytes() -> int:
    """Return the most memory that this program has had. Source: getrusage(2), in KiB on Linux."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def alone(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a node without peers."""
    return {**config, "ips": ["127.0.0.1"], "index": 0}


async def begun(ask: Ask, count: int) -> Metrics:
    """Ask each for the first time, and measure that."""
    before = rss_bytes(os.getpid())
    begin_s = await cpu_each(ask, count)
    gc.collect()
    return {"begin_s": begin_s, "bytes_each": (rss_bytes(os.getpid()) - before) / count}


async def cpu_each(ask: Ask, count: int) -> float:
    """Ask each once, and return the seconds of CPU that one took."""
    numbers = iter(range(count))
    started = time.process_time()
    await at_once(lambda: ask(next(numbers)), OUTSTANDING, count)
    return (time.process_time() - started) / count
