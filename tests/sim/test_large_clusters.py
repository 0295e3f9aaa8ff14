"""Large clusters find themselves through a name server that names 8 nodes at a time."""

from __future__ import annotations

import logging

import pytest

from fleetlm.testing import Reply, SimCluster, run

SAMPLE = 8


async def mesh(nodes: int) -> None:
    logging.getLogger("fleetlm").setLevel(logging.ERROR)
    async with SimCluster(seed=nodes) as cluster:
        cluster.dns.script(Reply.SAMPLE, count=SAMPLE)
        started = await cluster.start(nodes)
        took_s = await cluster.mesh(timeout=60)
        assert took_s <= 10
        names = sorted(node.name for node in started)
        for node in started:
            assert sorted([*node.list(), node.name]) == names
        # Each pair needs two dials, one a direction, and each node looks for others on the ports of its own
        # address; more are attempts that came to nothing.
        own_ports = len(started[0].settings.all_ports) - 1
        dials = cluster.network.counters.dials - nodes * own_ports
        assert dials <= 1.1 * nodes * (nodes - 1)


@pytest.mark.deadline(60)
def test_nodes_from_a_sample_of_8_find_each_other() -> None:
    run(mesh(40))


@pytest.mark.long
@pytest.mark.deadline(300)
def test_300_nodes_from_a_sample_of_8_find_each_other() -> None:
    """They have 44,850 connections, which take most of a minute of CPU."""
    run(mesh(300))
