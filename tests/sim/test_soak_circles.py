"""Soak runs of actors that feed themselves, cast and call in circles, and end in every way.

`make test-long` runs many more. Replay a seed with ``python -m tests.sim.soak_circles SEED``.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.seeded import named, play_each
from tests.sim.soak_circles import ENDS, play

SEEDS = range(12)
MORE = [range(at, at + 100) for at in range(12, 1_212, 100)]
REPLAY = "python -m tests.sim.soak_circles {seed}"
HAPPENS = (
    "cast: done", "call: done", "call: WouldBlock", "call: NoProcess", "feed: done", "feed: NoProcess",
    *(f"end: {how}" for how in ENDS),
)  # fmt: skip
"""What a block of seeds must contain; without it the runs would prove little."""


def test_whatever_actors_do_to_each_other_everything_ends_and_nothing_is_left() -> None:
    counts: Counter[str] = Counter()
    for more in play_each(play, SEEDS, REPLAY):
        counts += more
    assert [what for what in HAPPENS if not counts[what]] == []


def test_a_seed_runs_the_same_course_again() -> None:
    assert play(3) == play(3)


@pytest.mark.long
@pytest.mark.parametrize("seeds", MORE, ids=named)
def test_many_more(seeds: range) -> None:
    play_each(play, seeds, REPLAY)
