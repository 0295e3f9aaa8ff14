"""A node that leaves under load leaves no request in doubt, whether it drains or not."""

from __future__ import annotations

import pytest

from fleetlm.testing import run
from tests.sim.goodbye_ledger import story

SEEDS = 3
MANY = 203
"""Each seed is played twice; a run takes a third of a second."""


def play(seed: int, *, cuts: bool) -> None:
    ledger = run(story(seed, cuts=cuts))
    breaches = ledger.breaches()
    assert not breaches, (seed, cuts, len(ledger.outcomes), breaches[:5])
    assert len(ledger.outcomes) > 100


@pytest.mark.parametrize("cuts", [False, True], ids=["drained", "cut"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_request_is_in_doubt_when_nodes_leave(seed: int, cuts: bool) -> None:
    play(seed, cuts=cuts)


@pytest.mark.long
@pytest.mark.parametrize("cuts", [False, True], ids=["drained", "cut"])
@pytest.mark.parametrize("first", range(SEEDS, MANY, 10))
def test_no_request_is_in_doubt_in_many_more_runs(first: int, cuts: bool) -> None:
    for seed in range(first, first + 10):
        play(seed, cuts=cuts)
