"""Soak runs (see soak.py) of more seeds, in their own module for a second test worker."""

from __future__ import annotations

import pytest

from tests.sim.seeded import most_are_long, named
from tests.sim.soak import blocks, play_all, play_all_short


@pytest.mark.deadline(60)
@pytest.mark.parametrize("seeds", most_are_long(blocks(range(126, 252), 7), 2), ids=named)
def test_soak(seeds: range) -> None:
    play_all_short(seeds)


@pytest.mark.long
@pytest.mark.parametrize("seeds", blocks(range(252, 652), 50), ids=named)
def test_many_more(seeds: range) -> None:
    play_all(seeds)
