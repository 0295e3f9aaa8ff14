"""Nodes drain, undo it and stop while they call each other."""

from __future__ import annotations

import pytest

from tests.sim.drains import World
from tests.sim.seeded import most_are_long, run_worlds

BLOCK = 4


def play(first: int, *, faults: bool, count: int = BLOCK) -> None:
    run_worlds(lambda seed: World(seed, faults=faults), range(first, first + count))


@pytest.mark.parametrize("first", most_are_long(range(0, 20, BLOCK), 2))
def test_nothing_that_was_begun_before_is_refused(first: int) -> None:
    play(first, faults=False)


@pytest.mark.parametrize("first", most_are_long(range(0, 20, BLOCK), 2))
def test_what_was_refused_never_runs_whatever_the_network_does(first: int) -> None:
    play(first, faults=True)


@pytest.mark.long
@pytest.mark.parametrize("first", range(1_000, 1_600, 100))
@pytest.mark.parametrize("faults", [False, True])
def test_the_same_a_thousand_times(first: int, faults: bool) -> None:
    play(first, faults=faults, count=50)
