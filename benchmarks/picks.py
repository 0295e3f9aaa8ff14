"""How long it takes to pick a member of a process group, by its rule and by the size of the group.

In the modes with churn a member leaves and joins again before each tenth pick, so that whatever is kept of
the members must change all the time. That is counted, too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

from benchmarks import fleetlm_node
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import Mode, Session
from benchmarks.registry import Benchmark, Metric, Options, Variant
from fleetlm import Node, Process

SIZES = (8, 100, 1_000, 10_000)
MODELS = 10
"""Values of the meta by which ``where`` chooses: it finds a tenth of the members."""
NOT_NEW_S = 1e-6
"""`Settings.newcomer_s`: what is picked by load is compared like this after the first seconds of a member."""
BETWEEN_CLOCKS = 10
"""Picks between two looks at the clock."""
BY_LOAD, TWO_CHOICES, WHERE, KEY, FLOOR = "least_loaded", "two_choices", "where", "key", "floor"
CHURN = "+churn"
"""Behind the name of a rule: members come and go."""


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
        Mode("fleetlm, by='key', members come and go", session, KEY + CHURN),
        Mode("fleetlm, by='least_loaded', members come and go", session, BY_LOAD + CHURN),
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
    """Let so many processes join a group, each with a meta, and another one without, which has churn."""
    for number in range(size):
        pid = node.spawn(idle)
        node.groups.join(group, pid, meta={"model": f"model-{number % MODELS}"})
        node.groups.join(group + CHURN, pid)


def nothing() -> None:
    """Change nothing."""


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


def churn(node: Node, group: str) -> Callable[[], None]:
    """Return what lets a member leave a group and join it again, another one each time."""
    turns = cycle(node.groups.members(group))

    def change() -> None:
        pid = next(turns)
        node.groups.leave(group, pid)
        node.groups.join(group, pid)

    return change


def seconds_each(pick: Callable[[], object], seconds: float, change: Callable[[], None] = nothing) -> float:
    """Pick for so long, with a change before each `BETWEEN_CLOCKS` picks; return how long one pick takes."""
    count, started = 0, time.perf_counter()
    while (took_s := time.perf_counter() - started) < seconds:
        change()
        for _ in range(BETWEEN_CLOCKS):
            pick()
        count += BETWEEN_CLOCKS
    return took_s / count


def members(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node with groups of each size; a command is the name of a rule."""

    async def main() -> None:
        settings = {"newcomer_s": NOT_NEW_S, "max_memberships": 4 * sum(config["members"])}
        async with fleetlm_node.start(config | {"settings": settings}) as node:
            for size in config["members"]:
                fill(node, f"group-{size}", size)
            parent.report(ready=True)
            while command := await parent.read_command():
                rule, has_churn = command.removesuffix(CHURN), command.endswith(CHURN)
                found = {}
                for size in config["members"]:
                    group = f"group-{size}{CHURN if has_churn else ''}"
                    change = churn(node, group) if has_churn else nothing
                    found[f"pick_{size}_s"] = seconds_each(
                        picks(node, group)[rule], config["seconds"], change
                    )
                parent.report(**found)

    run_loop(main(), config["loop"])
