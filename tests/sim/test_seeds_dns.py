"""The seeds of test_seeds.py in which the name server fails or a stranger is hostile."""

from __future__ import annotations

import pytest

from tests.sim.chaos import Kind, blocks, play_all
from tests.sim.seeded import most_are_long, named


@pytest.mark.parametrize("seeds", most_are_long(blocks(range(180), Kind.DNS, 5), 3), ids=named)
def test_dns_faults_alone_never_cause_a_nodedown(seeds: list[int]) -> None:
    for report in play_all(seeds):
        assert report.nodedowns == 0


@pytest.mark.parametrize("seeds", most_are_long(blocks(range(180), Kind.HOSTILE, 4), 2), ids=named)
def test_a_cluster_outlives_garbage(seeds: list[int]) -> None:
    play_all(seeds)
