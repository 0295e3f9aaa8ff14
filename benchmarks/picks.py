"""How long it takes to pick a member of a process group, by its rule and by the size of the group."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import fleetlm_node
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import Mode, Session
from benchmarks.registry import Benchmark, Metric, Options, Variant
from fleetlm import Node, Process

SIZES = (10, 100, 10_000)
MODELS = 10
"""Values of the meta by which ``where`` chooses: it finds a tenth of the members."""
NOT_NEW_S = 1e-6
"""`Settings.newcomer_s`: what is picked by load is compared like this after the first seconds of a member."""
BETWEEN_CLOCKS = 10
"""Picks between two looks at the clock."""
BY_LOAD, TWO_CHOICES, WHERE, KEY, FLOOR = "least_loaded", "two_choices", "where", "key", "floor"


def variants(options: Options) -> list[Variant]:
    """The rules that look at loads and metas, one with a key, and `random.choice`."""
    session = Session(
        "one node",
        floor=False,
        server="start_programs:bare",
        driver="picks:members",
        config={"loop": options.loop, "seconds": options.size(10, 3) / 10, "members": SIZES},
        servers=0,
    )
    return [
        Mode("fleetlm, by='least_loaded'", session, BY_LOAD),
        Mode("fleetlm, by='two_choices'", session, TWO_CHOICES),
        Mode("fleetlm, where= fits a tenth", session, WHERE),
        Mode("fleetlm, by='key'", session, KEY),
        Mode("random.choice of a list", session, FLOOR, floor=True),
    ]


BENCHMARK = Benchmark(
    "picks",
    "picking one member of a process group, all of them on this node",
    [Metric(f"pick_{size}_s", f"{size:,} members", "µs", more_is_better=False, scale=1e6) for size in SIZES],
    variants,
    share=1,
)


async def idle(process: Process) -> None:
    """Wait for a message that never comes."""
    await process.receive()


def fill(node: Node, group: str, size: int) -> None:
    """Let so many processes join a group, each with a meta."""
    for number in range(size):
        node.groups.join(group, node.spawn(idle), meta={"model": f"model-{number % MODELS}"})


def picks(node: Node, group: str) -> dict[str, Callable[[], object]]:
    """Return what each command does once."""
    pick, listed = node.groups.pick, node.groups.members(group)
    return {
        BY_LOAD: partial(pick, group, "least_loaded"),
        TWO_CHOICES: partial(pick, group, "two_choices"),
        WHERE: partial(pick, group, where={"model": "model-3"}),
        KEY: partial(pick, group, "key", "session-4711"),
        FLOOR: partial(random.choice, listed),
    }


def seconds_each(pick: Callable[[], object], seconds: float) -> float:
    """Pick for so long, and return how long one pick takes."""
    count, started = 0, time.perf_counter()
    while (took_s := time.perf_counter() - started) < seconds:
        for _ in range(BETWEEN_CLOCKS):
            pick()
        count += BETWEEN_CLOCKS
    return took_s / count


def members(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node with groups of each size; a command is the name of a rule."""

    async def main() -> None:
        settings = {"newcomer_s": NOT_NEW_S, "max_memberships": 2 * sum(config["members"])}
        async with fleetlm_node.start(config | {"settings": settings}) as node:
            for size in config["members"]:
                fill(node, f"group-{size}", size)
            parent.report(ready=True)
            while rule := await parent.read_command():
                parent.report(
                    **{
                        f"pick_{size}_s": seconds_each(picks(node, f"group-{size}")[rule], config["seconds"])
                        for size in config["members"]
                    }
                )

    run_loop(main(), config["loop"])
