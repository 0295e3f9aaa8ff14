"""Nodes that share an address: how they find each other, and what a port is not."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from fleetlm import NoConnection, NoProcess, Pid, Process, Settings, StartFailed
from fleetlm.testing import Reply, SimCluster, run
from fleetlm.testing.cluster import SETTINGS

A, B = "10.0.0.1", "10.0.0.2"


async def collect(me: Process, got: list[object]) -> None:
    while True:
        got.append(await me.receive())


async def time_to_mesh(count: int, hosts: int) -> tuple[float, int, int]:
    """Virtual seconds, dials and frames until so many nodes on so many addresses are connected."""
    async with SimCluster(5) as cluster:
        await cluster.start(count, hosts=hosts)
        took_s = await cluster.mesh(30)
        counters = cluster.network.counters
        return took_s, counters.opened, counters.frames_sent


@pytest.mark.parametrize(("count", "hosts"), [(8, 1), (16, 4), pytest.param(32, 4, marks=pytest.mark.long)])
def test_nodes_on_one_address_connect_as_fast_as_on_many(count: int, hosts: int) -> None:
    async def main() -> None:
        apart_s, opened_apart, frames_apart = await time_to_mesh(count, count)
        together_s, opened, frames = await time_to_mesh(count, hosts)
        assert together_s <= 2 * apart_s + 0.1
        assert opened <= 2 * opened_apart, "connections that were made"
        assert frames <= 2 * frames_apart

    run(main())


def test_the_names_say_the_ports_and_the_first_one_has_none() -> None:
    async def main() -> None:
        async with SimCluster(1) as cluster:
            nodes = await cluster.start(3, hosts=1)
            assert [node.name for node in nodes] == [f"fleetlm@{A}", f"fleetlm@{A}:4371", f"fleetlm@{A}:4372"]
            await cluster.mesh(10)
            one, two, three = nodes
            assert one.list() == [two.name, three.name]
            await asyncio.sleep(6)  # Another lookup, now that they are known.
            assert two.list("dns") == [one.name, three.name], "DNS names their host"
            assert await one.connect(f"fleetlm@{A}:4370"), "its own name with the port written out"
            assert await two.ping(f"fleetlm@{A}:4370") == "pong"

    run(main())


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"node_basename": "api"}, f"api@{B}", "one DNS_CLUSTER_NODE_BASENAME"),
        ({"node_ports": (4380, 4390)}, f"fleetlm@{B}:4380", "FLEETLM_NODE_PORT to ranges with the same"),
    ],
)
def test_a_node_of_another_basename_or_base_port_is_refused_in_words_that_say_what_to_do(
    changes: dict[str, Any], name: str, words: str
) -> None:
    async def main() -> None:
        async with SimCluster(1) as cluster:
            one = await cluster.start_at(A)
            await cluster.start_at(B, **changes)
            assert not await one.connect(name, timeout=3)
            assert [words in row.last_error for row in one.info().peers if row.name == name] == [True]

    run(main())


def test_a_slot_is_taken_or_the_node_does_not_start() -> None:
    async def main() -> None:
        async with SimCluster(1) as cluster:
            rank = await cluster.start_at(A, node_slot=3)
            assert rank.name == f"fleetlm@{A}:4373"
            with pytest.raises(StartFailed, match="4373"):
                await cluster.start_at(A, node_slot=3)
            for _ in range(15):
                await cluster.start_at(A)
            with pytest.raises(StartFailed, match="4370-4385"):
                await cluster.start_at(A)

    run(main())


def test_a_host_whose_first_port_is_empty_is_found_quietly(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with SimCluster(2) as cluster:
            ranks = [await cluster.start_at(A, node_slot=slot) for slot in (2, 3)]
            await cluster.mesh(10)
            caplog.clear()
            alone = await cluster.start_at(B)
            assert await cluster.mesh(10) < 5
            await asyncio.sleep(5)
            assert alone.list("known") == [*sorted(node.name for node in ranks), alone.name]
            assert "4371" not in caplog.text
            assert all(row.status == "up" for row in alone.info().peers), "no row of an empty port"

    caplog.set_level(logging.INFO)
    run(main())


@pytest.mark.parametrize("reply", [Reply.TIMEOUT, Reply.SERVFAIL, Reply.EMPTY])
def test_the_nodes_of_one_host_find_each_other_without_dns(reply: Reply) -> None:
    async def main() -> None:
        async with SimCluster(3) as cluster:
            cluster.dns.script(reply)
            await cluster.start(4, hosts=1)
            assert await cluster.mesh(5) < 2

    run(main())


def test_another_process_that_takes_the_port_is_another_incarnation() -> None:
    async def main() -> None:
        async with SimCluster(4) as cluster:
            one, rank = await cluster.start(2, hosts=1)
            await cluster.mesh(10)
            old: Pid = rank.spawn(collect, [], name="box")
            await cluster.crash(rank)
            await asyncio.sleep(0.01)
            successor = await cluster.start_at(A)
            assert successor.name == rank.name
            got: list[object] = []
            successor.spawn(collect, got, name="box")
            with pytest.raises((NoConnection, NoProcess)):
                await one.send(old, "for the former one")
            await cluster.mesh(10)
            with pytest.raises(NoProcess):
                await one.send(old, "for the former one, too late")
            await one.send(("box", successor.name), "for the new one")
            await asyncio.sleep(1)
            assert got == ["for the new one"]
            await cluster.mesh(10)

    run(main())


def test_ranks_that_have_ended_are_forgotten_while_their_host_lives() -> None:
    async def main() -> None:
        async with SimCluster(6) as cluster:
            nodes = await cluster.start(4, hosts=1)
            far = await cluster.start_at(B)
            await cluster.mesh(10)
            for node in nodes[:2]:
                await cluster.crash(node)
            await asyncio.sleep(90)
            assert far.list("known") == [nodes[2].name, nodes[3].name, far.name]
            assert cluster.meshed()

    run(main())


def test_a_node_with_one_port_and_nodes_with_a_range_are_one_cluster() -> None:
    async def main() -> None:
        async with SimCluster(7) as cluster:
            await cluster.start_at(A, node_ports=(4370, 4370))
            for _ in range(3):
                await cluster.start_at(B)
            assert await cluster.mesh(10) < 5

    run(main())


def test_nodes_whose_base_ports_differ_are_named_on_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with SimCluster(8, settings=SETTINGS.replace(debug=False)) as cluster:
            one = await cluster.start_at(A)
            other = await cluster.start_at(B, node_ports=(4372, 4375))
            await asyncio.sleep(5)
            assert one.list() == other.list() == []

    caplog.set_level(logging.INFO)
    run(main())
    told = [r.getMessage() for r in caplog.records if "other_base_port" in r.getMessage()]
    assert any(": refused it: " in text for text in told)
    assert any("refused by " in text for text in told)
    assert "ranges with the same first port on all nodes" in told[0]


def test_without_a_query_a_node_looks_for_nobody() -> None:
    assert not Settings(node_ip="127.0.0.1").clustering


@pytest.mark.parametrize("ailment", ["frozen", "stalled"])
def test_one_process_of_a_host_may_stand_still_alone(ailment: str) -> None:
    async def main() -> None:
        async with SimCluster(6) as cluster:
            one, mate = await cluster.start(2, hosts=1)
            other = await cluster.start_at(B)
            await cluster.mesh(10)
            if ailment == "frozen":
                cluster.freeze(mate)
            else:
                cluster.stall(mate)
            await asyncio.sleep(cluster.settings.longest_silence_s)
            assert await one.ping(other.name) == "pong"
            assert await other.ping(one.name) == "pong"
            stays = [mate.name] if ailment == "stalled" else []
            assert one.list() == sorted([*stays, other.name])
            assert other.list("busy") == stays
            assert await other.ping(mate.name, timeout=1) == "pang"
            cluster.thaw(mate)
            cluster.unstall(mate)
            await cluster.mesh(30)
            assert await other.ping(mate.name) == "pong"

    run(main())


def test_a_host_may_stand_still_as_a_whole() -> None:
    async def main() -> None:
        async with SimCluster(7) as cluster:
            await cluster.start(3, hosts=1)
            other = await cluster.start_at(B)
            await cluster.mesh(10)
            cluster.network.freeze(A)
            late = asyncio.ensure_future(cluster.start_at(A))
            await asyncio.sleep(2 * cluster.settings.longest_silence_s)
            assert other.list() == []
            cluster.heal()
            await late
            await cluster.mesh(60)
            assert len(other.list()) == 4

    run(main())


def test_nodes_of_a_host_that_stood_still_when_others_started_there_are_found_by_them() -> None:
    async def main() -> None:
        async with SimCluster(8) as cluster:
            old = [await cluster.start_at(A, node_slot=slot) for slot in (1, 2)]
            await cluster.mesh(10)
            await asyncio.sleep(60)
            for node in old:
                cluster.stall(node)
            new = [await cluster.start_at(A, node_slot=slot) for slot in (0, 3)]
            await asyncio.sleep(8)
            assert new[0].list() == [new[1].name], "the old ones do not answer"
            assert new[0].list("known") == [node.name for node in new]
            for node in old:
                cluster.unstall(node)
            await cluster.mesh(60)

    run(main())
