"""Cluster-wide names where some nodes are not connected to each other although both are to others."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fleetlm import AlreadyRegistered, Node, Process, Settings
from fleetlm.testing import SimCluster, run

SETTINGS = Settings(dns_query="cluster.test")
CUT_S = SETTINGS.longest_silence_s + 1


async def leader(process: Process) -> None:
    """Hold the name, or stand by for it."""
    registry = process.node.registry
    with contextlib.closing(registry.watch("leader")) as changes:
        while registry.whereis("leader") != process.pid:
            try:
                await registry.register("leader", process.pid, process.node.name)
            except AlreadyRegistered:
                await anext(changes)
    await asyncio.Event().wait()


async def keep_leading(node: Node) -> None:
    """Start another process for the name whenever one has ended, as a supervisor does."""
    while True:
        await node.join(node.spawn(leader))


def leading(nodes: list[Node]) -> list[str]:
    """The nodes whose own process holds the name, as they see it."""
    return [
        node.name
        for node in nodes
        if (pid := node.registry.whereis("leader")) is not None and pid.node == node.name
    ]


@pytest.mark.parametrize("seed", range(4))
def test_with_one_pair_of_four_nodes_cut_only_one_process_holds_a_name(seed: int) -> None:
    async def main() -> None:
        async with SimCluster(seed=seed, settings=SETTINGS) as cluster:
            nodes = await cluster.start(4)
            one, two, *_ = nodes
            await cluster.mesh(timeout=30)
            cluster.partition([one], [two])
            await asyncio.sleep(CUT_S)
            assert two.name not in one.list()
            tasks = [asyncio.create_task(keep_leading(node)) for node in (one, two)]
            await asyncio.sleep(5)
            (first,) = leading(nodes)
            assert {node.registry.whereis("leader").node for node in nodes} == {first}  # type: ignore[union-attr]
            assert all(node.registry.lookup("leader").meta == first for node in nodes)  # type: ignore[union-attr]
            await asyncio.sleep(60)
            assert leading(nodes) == [first], "it does not go to and fro"
            winner = one if first == one.name else two
            tasks[0 if winner is one else 1].cancel()
            pid = winner.registry.whereis("leader")
            assert pid is not None
            winner.exit(pid, "kill")
            await asyncio.sleep(5)
            (second,) = leading(nodes)
            assert second == (two.name if winner is one else one.name), "the other one stood by"
            cluster.heal()
            await cluster.mesh(timeout=60)
            await asyncio.sleep(5)
            assert leading(nodes) == [second]
            for task in tasks:
                task.cancel()

    run(main(), seed=seed)


def test_two_holders_remain_where_no_node_sees_both() -> None:
    """The limit of what is promised: at the two ends of a chain of four nodes both claims hold."""

    async def main() -> None:
        async with SimCluster(seed=1, settings=SETTINGS) as cluster:
            one, two, three, four = nodes = await cluster.start(4)
            await cluster.mesh(timeout=30)
            for left, right in ((one, three), (one, four), (two, four)):
                cluster.partition([left], [right])
            await asyncio.sleep(CUT_S)
            tasks = [asyncio.create_task(keep_leading(node)) for node in (one, four)]
            await asyncio.sleep(30)
            assert leading(nodes) == [one.name, four.name]
            assert two.registry.resolve_name("leader").node == one.name
            assert three.registry.resolve_name("leader").node == four.name
            cluster.heal()
            await cluster.mesh(timeout=60)
            await asyncio.sleep(5)
            assert len(leading(nodes)) == 1
            for task in tasks:
                task.cancel()

    run(main(), seed=1)
