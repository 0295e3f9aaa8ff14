"""Nodes with many rows that meet, on virtual time: changes, losses and a stop in the middle of a snapshot."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from fleetlm import Down, Node, Pid, Process
from fleetlm.directory import replication
from fleetlm.testing import SimCluster, run

MEMBERS = 5_000
NAMES = 800
PAUSE_S = 1.0
"""Longer than in earnest, so that much happens in the middle."""


@pytest.fixture(autouse=True)
def _snapshots_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replication, "PAUSE_S", PAUSE_S)


async def idle(process: Process) -> None:
    await asyncio.get_running_loop().create_future()


async def fill(node: Node) -> list[Pid]:
    """Make as many rows as take some 25 facts."""
    pids = [node.spawn(idle) for _ in range(MEMBERS)]
    node.groups.join("models", *pids)
    for number, pid in enumerate(pids[:NAMES]):
        await node.registry.register(f"name {number}", pid)
    return pids


def view(node: Node) -> tuple[dict[str, list[Pid]], dict[str, Pid]]:
    return {group: node.groups.members(group) for group in node.groups.list()}, node.registry.list()


def is_sending(node: Node) -> bool:
    return bool(node._parts.replication._snapshots)


def story(told: Any) -> None:
    async def main() -> None:
        async with SimCluster(seed=7) as cluster:
            (node,) = await cluster.start(1)
            await told(cluster, node, await fill(node))

    run(main())


def test_a_node_that_joins_sees_the_rows_grow_and_the_changes_of_rows_it_has_not_got() -> None:
    async def told(cluster: SimCluster, node: Node, pids: list[Pid]) -> None:
        rng = random.Random(1)
        others = await cluster.start(2)
        await cluster.mesh(timeout=10)
        await asyncio.sleep(2 * PAUSE_S)
        counts = []
        while is_sending(node):
            counts.append(len(others[0].groups.members("models")))
            pid = pids.pop(rng.randrange(len(pids)))
            node.groups.join("models", pid)
            node.groups.leave("models", pid)
            node.exit(pid, "kill")
            late = node.spawn(idle)
            node.groups.join("late", late)
            await node.registry.register("last", late)
            await node.registry.unregister("last")
            await asyncio.sleep(PAUSE_S)
        assert len(counts) > 15
        assert 0 < counts[0] < counts[len(counts) // 2] < MEMBERS
        await asyncio.sleep(60)
        for other in others:
            assert view(other) == view(node)
        assert len(node.groups.members("models")) == len(pids)

    story(told)


def test_a_down_never_comes_before_the_end_of_a_row_and_the_row_never_comes_back() -> None:
    async def told(cluster: SimCluster, node: Node, pids: list[Pid]) -> None:
        (other,) = await cluster.start(1)
        await cluster.mesh(timeout=10)
        found: list[int] = []

        async def watcher(process: Process) -> None:
            last = pids[-1]
            process.monitor(last)
            process.exit(last, "kill")
            assert isinstance(await process.receive(), Down)
            found.append(other.groups.members("models").count(last))

        assert is_sending(node)
        other.spawn(watcher)
        await asyncio.sleep(60)
        assert found == [0]
        assert view(other) == view(node)
        assert len(other.groups.members("models")) == MEMBERS - 1

    story(told)


def test_a_connection_that_ends_in_the_middle_begins_again() -> None:
    async def told(cluster: SimCluster, node: Node, pids: list[Pid]) -> None:
        (other,) = await cluster.start(1)
        await cluster.mesh(timeout=10)
        assert is_sending(node)
        cluster.partition([node], [other])
        await asyncio.sleep(20)
        assert not is_sending(node)
        assert other.groups.members("models") == []
        assert other.registry.list() == {}
        node.groups.leave("models", *pids[: MEMBERS // 2])
        cluster.heal()
        await other.connect(node.name, timeout=60)
        await asyncio.sleep(60)
        assert view(other) == view(node)

    story(told)


def test_a_node_that_stops_in_the_middle_leaves_nothing_behind() -> None:
    async def told(cluster: SimCluster, node: Node, pids: list[Pid]) -> None:
        (other,) = await cluster.start(1)
        await cluster.mesh(timeout=10)
        assert is_sending(node)
        await node.stop()
        await asyncio.sleep(2)
        assert other.groups.members("models") == []
        assert other.registry.list() == {}

    story(told)
