from __future__ import annotations

import asyncio
from collections.abc import Callable

from fleetlm.testing.loop import run
from tests.sim.world import (
    EARLIEST_S,
    LATEST_S,
    SETTINGS,
    A,
    B,
    C,
    World,
    simulated,
)

# Crashes.


@simulated
async def test_a_crash_is_heard_at_once_after_a_prefix_of_what_was_sent(world: World) -> None:
    a, b = await world.pair()
    b.dial(A)
    await asyncio.sleep(1)
    a.send_numbers(range(50))
    crashed_s = world.loop.time()
    world.network.crash(A)
    await asyncio.sleep(1)
    assert b.numbers == list(range(-1, len(b.numbers) - 1))
    assert b.facts[-1][0] == "source_lost"
    assert b.at("source_lost") - crashed_s < 0.01
    assert not b.send(b"x")
    assert b.told("channel_lost") == []  # ZeroMQ does not tell
    assert not a.send(b"x")
    assert len(a.facts) == 1
    b.dial(A, 7)
    await asyncio.sleep(1)
    assert b.facts[-1] == ("channel_lost", 7, "connection refused")


def test_a_crash_takes_a_suffix_of_any_length() -> None:
    arrived = set()

    async def main() -> None:
        world = World()
        a, b = await world.pair()
        a.send_numbers(range(3))
        world.network.crash(A)
        await asyncio.sleep(1)
        arrived.add(len(b.numbers) - 1)
        await world.close()

    for seed in range(40):
        run(main(), seed=seed)
    assert arrived == {0, 1, 2, 3}


@simulated
async def test_a_power_loss_is_heard_by_heartbeat(world: World) -> None:
    a, b = await world.pair()
    b.dial(A)
    await asyncio.sleep(1)
    crashed_s = world.loop.time()
    world.network.crash(A, silent=True)
    await asyncio.sleep(EARLIEST_S * 0.99)
    assert b.told("source_lost") == []
    assert b.send(b"into the void")
    await asyncio.sleep(LATEST_S)
    assert EARLIEST_S <= b.at("source_lost") - crashed_s <= LATEST_S
    assert not b.send(b"x")
    assert len(a.facts) == 1


@simulated
async def test_a_newcomer_on_the_same_address_gets_nothing_of_the_former(world: World) -> None:
    a, b = await world.pair()
    a.send_numbers(range(50))
    silent = bool(world.loop.rng.randrange(2))
    world.network.crash(B, silent=silent)
    newcomer = await world.peer(B)
    a.send(b"51")
    await asyncio.sleep(20)
    assert newcomer.facts == []
    assert b.numbers == [-1]
    assert not a.send(b"52")
    a.dial(B, 2)
    await asyncio.sleep(1)
    a.send_numbers(range(1), 2)
    await asyncio.sleep(1)
    assert newcomer.numbers == [0]


@simulated
async def test_a_newcomer_makes_peers_of_a_dead_machine_find_out_sooner(world: World) -> None:
    a, b = await world.pair()
    b.dial(A)
    await asyncio.sleep(1)
    world.network.crash(A, silent=True)
    await world.peer(A)
    await asyncio.sleep(SETTINGS.heartbeat_interval_s)
    assert len(b.told("source_lost")) == 1
    assert not b.send(b"x")
    assert len(a.facts) == 1


@simulated
async def test_a_broken_connection_ends_alone(world: World) -> None:
    a, b = await world.pair()
    b.dial(A)
    await asyncio.sleep(1)
    a.send_numbers(range(30))
    world.network.break_connection(A, B)
    assert not a.send(b"x")
    await asyncio.sleep(1)
    assert b.numbers == list(range(-1, len(b.numbers) - 1))
    assert b.facts[-1][0] == "source_lost"
    assert b.send(b"1")
    a.dial(B, 5)
    world.network.break_connection(A, B)
    await asyncio.sleep(1)
    assert a.told("channel_lost") == [(5, "connection reset")]


# Partitions.


@simulated
async def test_a_short_partition_only_delays(world: World) -> None:
    a, b = await world.pair()
    a.send_numbers(range(10))
    world.network.partition([A], [B])
    a.send_numbers(range(10, 20))
    await asyncio.sleep(EARLIEST_S * 0.9)
    assert b.numbers == [-1]
    world.network.heal()
    a.send_numbers(range(20, 30))
    await asyncio.sleep(60)
    assert b.numbers == list(range(-1, 30))
    assert b.told("source_lost") == []
    assert a.send(b"30")


@simulated
async def test_a_long_partition_ends_both_ends_by_their_heartbeats(world: World) -> None:
    a, b = await world.pair()
    world.network.partition([A])
    a.send_numbers(range(10))
    cut_s = world.loop.time()
    await asyncio.sleep(LATEST_S + 0.01)
    assert EARLIEST_S <= b.at("source_lost") - cut_s <= LATEST_S
    assert not a.send(b"x")
    assert len(a.facts) == 1
    world.network.heal()
    await asyncio.sleep(20)
    assert b.numbers == [-1]
    assert len(b.told("source_lost")) == 1
    a.dial(B, 2)
    await asyncio.sleep(1)
    assert a.send(b"1", channel=2)


def test_the_ends_find_out_each_for_itself() -> None:
    orders = set()

    async def main() -> None:
        world = World()
        a, b = await world.pair()
        world.network.partition([A], [B])
        while a.send(b"1") and not b.told("source_lost"):
            await asyncio.sleep(0.05)
        orders.add(bool(b.told("source_lost")))
        await world.close()

    for seed in range(20):
        run(main(), seed=seed)
    assert orders == {True, False}


@simulated
async def test_a_cut_one_way_ends_connections_in_both_directions(world: World) -> None:
    a, b = await world.pair()
    b.dial(A)
    await asyncio.sleep(1)
    world.network.partition_one_way([B], [A])
    await asyncio.sleep(EARLIEST_S * 0.99)
    assert a.send(b"1")
    assert b.send(b"1")
    await asyncio.sleep(LATEST_S)
    assert not a.send(b"2")
    assert not b.send(b"2")
    assert b.numbers == [-1]
    assert len(b.told("source_lost")) == 1


@simulated
async def test_a_cut_one_way_lets_arrive_what_is_on_its_way_the_other_way(world: World) -> None:
    a, b = await world.pair()
    a.send_numbers(range(5))
    world.network.partition_one_way([B], [A])
    a.send_numbers(range(5, 10))
    await asyncio.sleep(1)
    assert b.numbers == list(range(-1, 5))
    world.network.heal()
    await asyncio.sleep(1)
    assert b.numbers == list(range(-1, 10))


@simulated
async def test_partitions_of_groups(world: World) -> None:
    a, b = await world.pair()
    c = await world.peer(C)
    c.dial(A, 1)
    c.dial(B, 2)
    await asyncio.sleep(1)
    world.network.partition([A, B])  # from all others
    assert world.network.blocked(C, A)
    assert world.network.blocked(A, C)
    assert not world.network.blocked(A, B)
    assert not world.network.blocked(A, A)
    await asyncio.sleep(LATEST_S + 1)
    assert a.send(b"0")
    assert not c.send(b"0", channel=1)
    assert not c.send(b"0", channel=2)
    await asyncio.sleep(1)
    assert b.numbers == [-1, 0]


# Nodes that stop.


@simulated
async def test_a_frozen_node_is_given_up_and_learns_of_it_after_its_frames(world: World) -> None:
    a, b = await world.pair()
    b.dial(A)
    await asyncio.sleep(1)
    assert b.send(b"-1")
    await asyncio.sleep(1)
    world.network.freeze(B)
    frozen_s, facts = world.loop.time(), len(b.facts)
    a.send_numbers(range(10))
    assert b.send(b"held")
    await asyncio.sleep(LATEST_S + 0.1)
    assert EARLIEST_S <= a.at("source_lost") - frozen_s <= LATEST_S
    assert not a.send(b"x")
    assert a.numbers == [-1]
    assert len(b.facts) == facts
    world.network.thaw(B)
    await asyncio.sleep(1)
    news = b.facts[facts:]
    assert [fact[0] for fact in news] == ["frame_arrived"] * 10 + ["source_lost"]
    assert b.numbers == list(range(-1, 10))
    assert not b.send(b"x")
    assert a.numbers == [-1]


@simulated
async def test_a_short_freeze_only_delays(world: World) -> None:
    a, b = await world.pair()
    b.dial(A)
    await asyncio.sleep(1)
    world.network.freeze(B)
    a.send_numbers(range(10))
    b.send_numbers(range(10))
    await asyncio.sleep(EARLIEST_S * 0.9)
    assert a.numbers == []
    assert b.numbers == [-1]
    world.network.thaw(B)
    await asyncio.sleep(30)
    assert a.numbers == list(range(10))
    assert b.numbers == list(range(-1, 10))
    assert a.told("source_lost") == b.told("source_lost") == []


@simulated
async def test_a_stalled_node_loses_nothing_and_is_not_given_up(world: World) -> None:
    a, b = await world.pair()
    b.dial(A)
    await asyncio.sleep(1)
    world.network.stall(B)
    a.send_numbers(range(10))
    b.send_numbers(range(10))
    a.dial(B, 2)
    await asyncio.sleep(100)
    assert a.numbers == []
    assert b.numbers == [-1]
    assert a.told("source_lost") == []
    assert a.told("channel_opened") == [(1,), (2,)]  # ZeroMQ's own thread answers
    world.network.unstall(B)
    await asyncio.sleep(1)
    assert a.numbers == list(range(10))
    assert b.numbers == list(range(-1, 10))


@simulated
async def test_a_node_that_is_frozen_and_stalled_waits_for_both(world: World) -> None:
    a, b = await world.pair()
    world.network.stall(B)
    world.network.freeze(B)
    a.send_numbers(range(3))
    await asyncio.sleep(1)
    world.network.thaw(B)
    await asyncio.sleep(1)
    assert b.numbers == [-1]
    world.network.unstall(B)
    await asyncio.sleep(1)
    assert b.numbers == [-1, 0, 1, 2]


@simulated
async def test_a_frozen_node_can_crash(world: World) -> None:
    a, b = await world.pair()
    b.dial(A)
    await asyncio.sleep(1)
    assert b.send(b"-1")
    await asyncio.sleep(1)
    world.network.freeze(B)
    a.send_numbers(range(3))
    await asyncio.sleep(1)
    world.network.crash(B)
    await asyncio.sleep(1)
    assert len(a.told("source_lost")) == 1
    assert b.numbers == [-1]
    newcomer = await world.peer(B)
    a.dial(B, 2)
    await asyncio.sleep(1)
    a.send_numbers(range(1), 2)
    await asyncio.sleep(1)
    assert newcomer.numbers == [0]


# Faults and strangers.


@simulated
async def test_a_dropped_frame_leaves_a_gap(world: World) -> None:
    a, b = await world.pair()
    world.network.drop_frame(A, B, skip=2)
    a.send_numbers(range(6))
    await asyncio.sleep(1)
    assert b.numbers == [-1, 0, 1, 3, 4, 5]


@simulated
async def test_a_corrupted_frame_differs_by_a_bit(world: World) -> None:
    a, b = await world.pair()
    world.network.corrupt_frame(A, B, skip=1)
    for _ in range(3):
        a.send(b"abcdef")
    world.network.corrupt_frame(A, B)
    a.send(b"")
    await asyncio.sleep(1)
    frames = [frame for _, frame in b.told("frame_arrived")[1:]]
    assert frames[0] == frames[2] == b"abcdef"
    difference = int.from_bytes(frames[1], "big") ^ int.from_bytes(b"abcdef", "big")
    assert difference.bit_count() == 1
    assert len(frames[1]) == 6
    assert frames[3] == b"\x00"


@simulated
async def test_strangers_come_say_something_and_go(world: World) -> None:
    b = await world.peer(B)
    network = world.network
    b.use(network.inject, B, b"mallory", b"garbage")
    await asyncio.sleep(1)
    b.use(network.inject, B, b"mallory", b"again")
    await asyncio.sleep(1)
    b.use(network.eject, B, b"mallory")
    b.use(network.eject, B, b"nobody")
    await asyncio.sleep(1)
    b.use(lambda: network.knock(B, "no ZeroMQ", from_ip=C))
    network.inject(A, b"mallory", b"to nobody")
    await asyncio.sleep(1)
    assert b.facts == [
        ("source_met", b"mallory", "192.0.2.66"),
        ("frame_arrived", b"mallory", b"garbage"),
        ("frame_arrived", b"mallory", b"again"),
        ("source_lost", b"mallory"),
        ("stranger_refused", C, "no ZeroMQ"),
    ]


@simulated
async def test_a_peer_can_go_mad(world: World) -> None:
    _, b = await world.pair()
    ((source, _),) = b.told("source_met")
    world.network.inject(B, source, b"666")
    await asyncio.sleep(1)
    assert b.numbers == [-1, 666]
    assert len(b.told("source_met")) == 1


@simulated
async def test_what_happened_is_counted(world: World) -> None:
    a, b = await world.pair()
    a.send(b"12345678")
    ((source, _),) = b.told("source_met")
    b.transport.answer(source, b"x")
    await asyncio.sleep(1)
    counters = world.network.counters
    assert (counters.dials, counters.opened, counters.answers_sent) == (1, 1, 1)
    assert (counters.frames_sent, counters.frames_delivered, counters.bytes_sent) == (2, 2, 10)


@simulated
async def test_nothing_is_kept_of_connections_that_ended(world: World) -> None:
    a, _ = await world.pair()
    faults: list[Callable[[], None]] = [
        lambda: world.network.break_connection(A, B),
        lambda: world.network.partition([A]),
        lambda: world.network.freeze(B),
        lambda: a.transport.hang_up(channel, 0.1),
    ]
    for channel, fault in enumerate(faults * 3, 100):
        a.dial(B, channel)
        await asyncio.sleep(1)
        a.send(b"1", channel=channel)
        fault()
        await asyncio.sleep(20)
        world.network.heal()
        world.network.thaw(B)
        await asyncio.sleep(1)
    for host in (world.network.host(A), world.network.host(B)):
        assert len(host.connections) == 0
    assert world.network.wheel._ticks == {}
