"""Local roads of simulated nodes: when a half changes over, and what a fault of either road does."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fleetlm import Node, Process
from fleetlm.core.connection import Connection
from fleetlm.errors import Draining, NodeLost
from fleetlm.testing import SimCluster, run
from fleetlm.testing.cluster import SETTINGS
from fleetlm.testing.loop import SimLoop
from fleetlm.testing.network import SimNetwork
from tests.sim.world import World, simulated

A, B = "10.0.0.1", "10.0.0.2"
TICKET, OTHER = b"t" * 16, b"o" * 16


def roads(*nodes: Node) -> list[str]:
    """The road of each row of these nodes' tables."""
    return [row.road for node in nodes for row in node.info().peers]


def on_one_machine(
    story: Callable[[SimCluster, Node, Node], Coroutine[object, object, None]], **changes: Any
) -> None:
    """Run a story with two connected nodes of one machine, for a few seeds."""
    for seed in range(4):

        async def main(seed: int = seed) -> None:
            async with SimCluster(seed) as cluster:
                cluster.network.share_machine(A, B)
                one, two = await cluster.start_at(A), await cluster.start_at(B, **changes)
                await cluster.mesh(10)
                await story(cluster, one, two)

        run(main())


async def count(me: Process, got: list[object]) -> None:
    while True:
        got.append(await me.receive())


# ── nodes ────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_sent_while_the_roads_change_arrives_once_and_in_order() -> None:
    async def main(seed: int) -> None:
        async with SimCluster(seed) as cluster:
            cluster.network.share_machine(A, B)
            one, two = await cluster.start_at(A), await cluster.start_at(B)
            got: list[object] = []
            two.spawn(count, got, name="sink")
            while not one.list():
                await asyncio.sleep(0.00005)
            seen = set()
            for number in range(400):
                await one.send(("sink", two.name), number)
                seen |= set(roads(one))
                if number % 5 == 0:
                    await asyncio.sleep(0.0001)
            await asyncio.sleep(1)
            assert seen == {"zeromq", "local"}
            assert roads(one, two) == ["local", "local"]
            assert got == list(range(400))

    for seed in range(4):
        run(main(seed))


def test_nodes_of_two_machines_and_nodes_that_are_told_so_use_the_network() -> None:
    async def stay(_cluster: SimCluster, one: Node, two: Node) -> None:
        await asyncio.sleep(2)
        assert roads(one, two) == ["zeromq", "zeromq"]

    on_one_machine(stay, local_road=False)

    async def apart() -> None:
        async with SimCluster(1) as cluster:
            nodes = await cluster.start(2)
            await cluster.mesh(10)
            await asyncio.sleep(2)
            assert roads(*nodes) == ["zeromq", "zeromq"]

    run(apart())


def test_a_road_that_fails_ends_the_connection_and_the_next_one_does_without() -> None:
    async def story(cluster: SimCluster, one: Node, two: Node) -> None:
        async def wait(me: Process) -> None:
            async for _ in me.mailbox:
                await asyncio.sleep(60)

        two.spawn(wait, name="busy")
        await asyncio.sleep(0.1)
        assert roads(one, two) == ["local", "local"]
        call = asyncio.create_task(one.call(("busy", two.name), "?", timeout=30))
        await asyncio.sleep(0.1)
        cluster.network.break_road(A, B)
        async with asyncio.timeout(5):
            with pytest.raises(NodeLost):
                await call
        await cluster.mesh(10)
        await asyncio.sleep(1)
        assert roads(one, two) == ["zeromq", "zeromq"]
        assert await one.ping(two.name) == "pong"

    on_one_machine(story)


def test_a_connection_that_had_settled_gets_its_local_road_back() -> None:
    async def story(cluster: SimCluster, one: Node, two: Node) -> None:
        await asyncio.sleep(120)
        cluster.network.break_road(B, A)
        await asyncio.sleep(1)
        await cluster.mesh(10)
        await asyncio.sleep(1)
        assert roads(one, two) == ["local", "local"]

    on_one_machine(story)


def test_heartbeats_still_decide_who_is_alive() -> None:
    """A partition leaves the local roads: what keeps two nodes connected is the network alone."""

    async def story(cluster: SimCluster, one: Node, two: Node) -> None:
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        cluster.partition(A, B)
        assert await one.ping(two.name, timeout=0.5) == "pong", "the local road works"
        async with asyncio.timeout(60):
            while one.list():
                await asyncio.sleep(0.1)
        took_s = asyncio.get_running_loop().time() - began
        assert SETTINGS.node_timeout_s <= took_s <= SETTINGS.longest_silence_s + 0.2
        cluster.heal()
        await cluster.mesh(60)

    on_one_machine(story)


def test_a_node_whose_loop_stands_still_is_busy_and_stays_connected() -> None:
    async def story(cluster: SimCluster, one: Node, two: Node) -> None:
        await asyncio.sleep(1)
        cluster.stall(B)
        await asyncio.sleep(20)
        assert [(row.status, row.road) for row in one.info().peers] == [("busy", "local")]
        cluster.unstall(B)
        await asyncio.sleep(2)
        assert [(row.status, row.connections) for row in one.info().peers] == [("up", 1)]
        assert await one.ping(two.name) == "pong"

    on_one_machine(story)


def test_a_neighbour_is_busy_as_soon_without_frames_that_say_so() -> None:
    """Both nodes look at each other's ticks; no frame travels while nothing happens."""

    async def story(cluster: SimCluster, one: Node, two: Node) -> None:
        await asyncio.sleep(30)
        settings, loop = cluster.settings, asyncio.get_running_loop()
        sent = cluster.network.counters.frames_sent
        await asyncio.sleep(2.5 * settings.tick_s)
        assert cluster.network.counters.frames_sent - sent <= 2, "they tell each other of nodes now and then"
        began = loop.time()
        cluster.stall(B)
        async with asyncio.timeout(60):
            while not one.list("busy"):
                await asyncio.sleep(0.01)
        silent_s = loop.time() - began
        assert settings.busy_after_s - settings.tick_s <= silent_s <= settings.busy_after_s + settings.tick_s
        cluster.unstall(B)
        await asyncio.sleep(2 * settings.tick_s)
        assert one.list("busy") == []

    on_one_machine(story)


def test_a_goodbye_over_the_local_road_is_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def story(cluster: SimCluster, _one: Node, two: Node) -> None:
        await asyncio.sleep(1)
        caplog.clear()
        await cluster.stop(B)
        await asyncio.sleep(0.1)
        assert f"nodedown {two.name}: left: " in caplog.text

    on_one_machine(story)


def slow_threads(monkeypatch: pytest.MonkeyPatch, delay_s: float) -> None:
    """Let what is done beside the loop take so many virtual seconds."""
    original = SimLoop.run_in_executor

    def slowly(
        loop: SimLoop, executor: object, work: Callable[..., Any], *args: object
    ) -> asyncio.Future[Any]:
        done = loop.create_future()

        def end() -> None:
            original(loop, executor, work, *args).add_done_callback(lambda got: done.set_result(got.result()))

        loop.call_later(delay_s, end)
        return done

    monkeypatch.setattr(SimLoop, "run_in_executor", slowly)


def test_the_last_words_of_a_node_that_leaves_wait_behind_the_change_of_roads(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The announcement queues behind a large message, until its sender has left on its local road."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("fleetlm.testing.hosts.LATENCY_S", (0.05, 0.06))  # Nodes agree on a road so late.
    slow_threads(monkeypatch, 5.0)
    large = [bytes(200)] * 2_000

    async def main(seed: int) -> None:
        async with SimCluster(seed) as cluster:
            cluster.network.share_machine(A, B)
            got: list[object] = []

            async def deaf(_me: Process) -> None:
                await asyncio.sleep(1_000)

            one, two = await cluster.start_at(A), await cluster.start_at(B)
            two.spawn(count, got, name="sink")
            one.spawn(deaf, name="deaf")
            while not (one.list() and two.list()):
                await asyncio.sleep(0.001)
            assert roads(one) == ["zeromq"]
            await one.send(("sink", two.name), large)
            asked = asyncio.create_task(two.call(("deaf", one.name), "?", timeout=60))
            await asyncio.sleep(0.5)
            for number in range(100):
                await one.send(("sink", two.name), number)
            await asyncio.sleep(0.1)
            assert roads(one) == ["local"]
            assert got == [], "the large message is being unpacked"
            await cluster.stop(A, drain_s=0.0)
            assert got == []
            with pytest.raises(Draining, match="takes no new work"):
                await asked
            assert got == [large, *range(100)]
            assert f"nodedown {one.name}: left: " in caplog.text
            assert "protocol error" not in caplog.text

    for seed in range(4):
        caplog.clear()
        run(main(seed))


@pytest.mark.parametrize("halt", ["stall", "freeze"])
def test_the_last_words_of_a_node_are_read_by_one_that_stood_still_when_it_left(
    halt: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had let its neighbour in at its local road, and has not read that it changed over."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("fleetlm.testing.hosts.LATENCY_S", (0.05, 0.06))

    async def main(seed: int) -> None:
        async with SimCluster(seed) as cluster:
            cluster.network.share_machine(A, B)
            got: list[object] = []
            one, two = await cluster.start_at(A), await cluster.start_at(B)
            two.spawn(count, got, name="sink")
            while not (one.list() and two.list()):
                await asyncio.sleep(0.001)
            getattr(cluster, halt)(B)
            await asyncio.sleep(0.2)
            assert roads(one) == ["local"]
            for number in range(100):
                await one.send(("sink", two.name), number)
            await cluster.stop(A, drain_s=0.0)
            await asyncio.sleep(0.01)  # Less than a tick, with which it finds out that nobody is there.
            assert got == []
            getattr(cluster, {"stall": "unstall", "freeze": "thaw"}[halt])(B)
            await asyncio.sleep(0.1)
            assert got == list(range(100))
            assert f"nodedown {one.name}: left: " in caplog.text
            assert "protocol error" not in caplog.text

    for seed in range(4):
        caplog.clear()
        run(main(seed))


def test_what_follows_a_change_that_was_not_announced_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MOVED the receiver does not read the local road."""
    original = Connection.road_opened

    def silently(connection: Connection) -> list[object]:
        return original(connection)[1:]  # type: ignore[return-value]

    monkeypatch.setattr(Connection, "road_opened", silently)

    async def story(_cluster: SimCluster, one: Node, two: Node) -> None:
        got: list[object] = []
        sink = two.spawn(count, got, name="sink")
        await asyncio.sleep(0.5)
        await one.send(sink, "lost")
        await asyncio.sleep(1)
        assert got == []

    on_one_machine(story)


# ── the network alone ────────────────────────────────────────────────────────────────────────────


@simulated
async def test_frames_wait_on_the_local_road_until_it_is_followed(world: World) -> None:
    world.network.share_machine(A, B)
    first, second = await world.pair()
    ((source, _),) = second.told("source_met")
    assert not second.use(second.transport.follow_road, source), "nobody was let in"
    first.use(first.transport.open_road, 1, second.transport.road, TICKET)
    await asyncio.sleep(0.1)
    assert first.told("road_opened") == []
    second.use(second.transport.expect_road, source, TICKET)
    await asyncio.sleep(0.1)
    assert first.told("road_opened") == [(1,)]
    first.use(first.transport.take_road, 1)
    first.send_numbers(range(20))
    await asyncio.sleep(1)
    assert second.numbers == [-1]
    assert second.use(second.transport.follow_road, source)
    first.send_numbers(range(20, 40))
    await asyncio.sleep(1)
    assert second.numbers == list(range(-1, 40))


@simulated
async def test_another_ticket_another_number_or_another_machine_opens_no_road(world: World) -> None:
    first, second = await world.pair()
    ((source, _),) = second.told("source_met")
    second.use(second.transport.expect_road, source, TICKET)
    first.use(first.transport.open_road, 1, second.transport.road, TICKET)
    await asyncio.sleep(0.1)
    world.network.share_machine(A, B)
    first.use(first.transport.open_road, 1, second.transport.road + 1, TICKET)
    second.use(second.transport.expect_road, source, TICKET)
    first.use(first.transport.open_road, 1, second.transport.road, OTHER)
    await asyncio.sleep(0.1)
    assert first.told("road_opened") == []
    first.use(first.transport.take_road, 1)
    assert not first.send(b"1")


@simulated
async def test_a_broken_road_loses_a_suffix_and_then_the_source(world: World) -> None:
    world.network.share_machine(A, B)
    first, second = await world.pair()
    ((source, _),) = second.told("source_met")
    second.use(second.transport.expect_road, source, TICKET)
    first.use(first.transport.open_road, 1, second.transport.road, TICKET)
    await asyncio.sleep(0.1)
    first.use(first.transport.take_road, 1)
    second.use(second.transport.follow_road, source)
    first.send_numbers(range(50))
    world.network.break_road(A, B)
    assert not first.send(b"50")
    await asyncio.sleep(1)
    assert second.numbers == list(range(-1, len(second.numbers) - 1))
    assert second.told("source_lost") == [(source,)]


def test_addresses_that_share_no_machine_are_of_two() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        network = SimNetwork(loop, random.Random(1))
        assert network.is_one_machine(A, A)
        assert not network.is_one_machine(A, B)
        network.share_machine(A, B)
        network.share_machine("10.0.0.3", "10.0.0.4")
        assert network.is_one_machine(A, B)
        assert not network.is_one_machine(B, "10.0.0.3")

    run(main())
