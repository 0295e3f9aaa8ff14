"""Soak runs of actors that feed themselves, cast and call in circles, and end in every way.

`tests/long` runs many more. Replay a seed with ``python -m tests.sim.soak_circles SEED SEED+1``.
"""

from __future__ import annotations

from collections import Counter

from tests.sim.soak_circles import ENDS, play

SEEDS = range(12)
HAPPENS = (
    "cast: done", "call: done", "call: WouldBlock", "call: NoProcess", "feed: done", "feed: NoProcess",
    *(f"end: {how}" for how in ENDS),
)  # fmt: skip
"""What a block of seeds must contain; without it the runs would prove little."""


def test_whatever_actors_do_to_each_other_everything_ends_and_nothing_is_left() -> None:
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        try:
            counts += play(seed)
        except BaseException as error:
            error.add_note(f"replay: python -m tests.sim.soak_circles {seed} {seed + 1}")
            raise
    assert [what for what in HAPPENS if not counts[what]] == []


def test_a_seed_runs_the_same_course_again() -> None:
    assert play(3) == play(3)
