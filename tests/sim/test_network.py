from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from fleetlm.errors import StartFailed
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, run
from fleetlm.testing.network import SimNetwork, SimTransport
from fleetlm.transport.interface import Transport
from tests.sim.world import (
    CHANNEL,
    PORT,
    SETTINGS,
    A,
    B,
    C,
    Peer,
    World,
    simulated,
)


def test_it_is_a_transport() -> None:
    def wanted(transport: Transport) -> Transport:
        return transport

    async def main() -> None:
        loop = SimLoop.current()
        wanted(SimTransport(SimNetwork(loop, loop.rng)))

    run(main())


# Dialling.


@simulated
async def test_a_dial_opens_a_channel_and_the_listener_meets_a_source_with_its_first_frame(
    world: World,
) -> None:
    a, b = await world.peer(A), await world.peer(B)
    a.dial(B)
    assert a.facts == []
    await asyncio.sleep(1)
    assert a.facts == [("channel_opened", CHANNEL)]
    assert b.facts == []
    assert a.send(b"one")
    assert a.send(b"two")
    await asyncio.sleep(1)
    ((source, ip),) = b.told("source_met")
    assert ip == A
    assert b.facts == [
        ("source_met", source, A),
        ("frame_arrived", source, b"one"),
        ("frame_arrived", source, b"two"),
    ]


@simulated
async def test_every_dial_is_another_source(world: World) -> None:
    a, b = await world.peer(A), await world.peer(B)
    for channel in range(5):
        a.dial(B, channel)
    await asyncio.sleep(1)
    for channel in range(5):
        assert a.send(b"hello", channel=channel)
    await asyncio.sleep(1)
    assert len({source for source, _ in b.told("source_met")}) == 5


@simulated
async def test_a_node_can_dial_itself(world: World) -> None:
    a = await world.peer(A)
    a.dial(A)
    await asyncio.sleep(1)
    assert a.send(b"1")
    await asyncio.sleep(1)
    assert a.numbers == [1]
    world.network.crash(A)
    assert not a.send(b"2")


@simulated
async def test_a_source_that_is_disconnected_is_not_heard_any_more_and_ends(world: World) -> None:
    a, b = await world.pair()
    ((source, _),) = b.told("source_met")
    b.use(b.transport.admit, source)
    b.use(b.transport.disconnect, source, 2.0)
    b.use(b.transport.disconnect, b"nobody")
    a.send_numbers(range(3))
    await asyncio.sleep(1)
    assert b.told("source_lost") == []
    await asyncio.sleep(2)
    assert b.told("source_lost") == [(source,)]
    assert not a.send(b"anybody?")
    assert b.numbers == [-1]


@simulated
async def test_a_stranger_that_is_disconnected_is_gone(world: World) -> None:
    b = await world.peer(B)
    b.use(world.network.inject, B, b"mallory", b"garbage")
    await asyncio.sleep(1)
    b.use(b.transport.disconnect, b"mallory")
    await asyncio.sleep(1)
    assert b.told("source_lost") == [(b"mallory",)]


@simulated
async def test_a_dial_to_an_address_without_a_listener_is_refused(world: World) -> None:
    a = await world.peer(A)
    a.dial(B)
    assert not a.send(b"too early")
    await asyncio.sleep(1)
    assert a.facts == [("channel_lost", CHANNEL, "connection refused")]
    assert a.at("channel_lost") < 0.01
    assert not a.send(b"too late")


@simulated
async def test_a_dial_finds_the_listener_of_the_time_when_it_arrives(world: World) -> None:
    world.network.set_latency(A, B, 0.5, 0.5)
    a = await world.peer(A)
    a.dial(B)
    await asyncio.sleep(0.4)
    await world.peer(B)
    await asyncio.sleep(1)
    assert a.facts == [("channel_opened", CHANNEL)]


@pytest.mark.parametrize("ailment", ["partition", "one way", "other way", "frozen", "dark", "slow"])
def test_a_dial_that_is_not_answered_times_out(ailment: str) -> None:
    @simulated
    async def scenario(world: World) -> None:
        a, b = await world.peer(A), await world.peer(B)
        network = world.network
        ail: dict[str, Callable[[], None]] = {
            "partition": lambda: network.partition([A], [B]),
            "one way": lambda: network.partition_one_way([A], [B]),
            "other way": lambda: network.partition_one_way([B], [A]),
            "frozen": lambda: network.freeze(B),
            "dark": lambda: network.crash(B, silent=True),
            "slow": lambda: network.set_latency(A, B, 60, 60),
        }
        ail[ailment]()
        a.dial(B)
        await asyncio.sleep(70)
        assert a.facts == [("channel_lost", CHANNEL, "connect timeout")]
        assert a.times == [SETTINGS.connect_timeout_s]
        assert b.facts == []

    scenario()


@pytest.mark.parametrize("ailment", ["partition", "frozen", "dark"])
def test_a_dial_that_is_answered_in_time_is_none_the_worse(ailment: str) -> None:
    @simulated
    async def scenario(world: World) -> None:
        a = await world.peer(A)
        network = world.network
        if ailment == "dark":
            network.crash(B, silent=True)
        else:
            await world.peer(B)
            (network.freeze(B) if ailment == "frozen" else network.partition([A]))
        a.dial(B)
        await asyncio.sleep(2)
        if ailment == "dark":
            await world.peer(B)
        elif ailment == "frozen":
            network.thaw(B)
        else:
            network.heal()
        await asyncio.sleep(0.5)
        assert a.facts == [("channel_opened", CHANNEL)]

    scenario()


@simulated
async def test_a_dial_is_lost_when_the_listener_goes_before_it_is_open(world: World) -> None:
    world.network.set_latency(B, A, 1, 1)
    a, b = await world.peer(A), await world.peer(B)
    a.dial(B)
    await asyncio.sleep(0.5)
    world.network.set_latency(B, A, 0, 0)
    await b.transport.close()
    await asyncio.sleep(5)
    # What was under way first arrives first: the channel opens, and has ended.
    assert a.facts == [("channel_opened", CHANNEL)]
    assert not a.send(b"x")


@simulated
async def test_the_address_must_be_free(world: World) -> None:
    a = await world.peer(A)
    with pytest.raises(StartFailed, match=r"10\.0\.0\.1:4370.*in use"):
        await Peer(world.network, A).start()
    with pytest.raises(RuntimeError, match="started once"):
        await a.start()
    await a.transport.close()
    await world.peer(A)


@simulated
async def test_misuse_raises(world: World) -> None:
    a, _ = await world.pair()
    with pytest.raises(ValueError, match="channel 1 is in use"):
        a.transport.dial(CHANNEL, C, PORT)
    fresh = SimTransport(world.network)
    with pytest.raises(RuntimeError, match="not been started"):
        fresh.dial(1, A, PORT)
    assert not fresh.send(1, b"")
    await fresh.close()
    with pytest.raises(ValueError, match="no open channel"):
        world.network.drop_frame(B, A)
    with pytest.raises(ValueError, match="latency"):
        world.network.set_latency(A, B, 2, 1)
    with pytest.raises(ValueError, match="latency"):
        world.network.slow(A, 0)


# Cookies.

SECRET, OTHER = (
    SETTINGS.replace(cookie="s good cookie 7f3a91c"),
    SETTINGS.replace(cookie="o other one 7f3a91c"),
)


@pytest.mark.parametrize(
    ("mine", "theirs", "reason", "their_reason"),
    [
        (SECRET, OTHER, "the other node has another cookie", "the other node has another cookie"),
        (SECRET, SETTINGS, "the other has none", "this node has no cookie"),
        (SETTINGS, SECRET, "this node has no cookie", "the other has none"),
    ],
)
def test_different_cookies_do_not_connect(
    mine: Settings, theirs: Settings, reason: str, their_reason: str
) -> None:
    @simulated
    async def scenario(world: World) -> None:
        a, b = await world.peer(A, mine), await world.peer(B, theirs)
        a.dial(B)
        await asyncio.sleep(5)
        ((fact, channel, text),) = a.facts
        assert (fact, channel) == ("channel_lost", CHANNEL)
        assert text.startswith("authentication failed: ")
        assert reason in text
        ((fact, ip, text),) = b.facts
        assert (fact, ip) == ("stranger_refused", A)
        assert their_reason in text
        assert not a.send(b"x")

    scenario()


@simulated
async def test_the_same_cookie_connects(world: World) -> None:
    a, _ = await world.peer(A, SECRET), await world.peer(B, SECRET)
    assert a.transport.cookie == SECRET.cookie
    a.dial(B)
    await asyncio.sleep(1)
    assert a.facts == [("channel_opened", CHANNEL)]


# Frames.


@simulated
async def test_frames_of_a_channel_keep_their_order_whatever_their_latency(world: World) -> None:
    a, b = await world.pair()
    world.network.set_latency(A, B, 0, 2)
    for number in range(200):
        a.send_numbers(range(number, number + 1))
        await asyncio.sleep(0.01)
    await asyncio.sleep(5)
    assert b.numbers == list(range(-1, 200))


def test_frames_of_different_channels_race() -> None:
    firsts = set()

    async def main() -> None:
        world = World()
        a, b = await world.peer(A), await world.peer(B)
        a.dial(B, 1)
        a.dial(B, 2)
        await asyncio.sleep(1)
        assert a.send(b"1", channel=1)
        assert a.send(b"2", channel=2)
        await asyncio.sleep(1)
        firsts.add(b.numbers[0])
        await world.close()

    for seed in range(20):
        run(main(), seed=seed)
    assert firsts == {1, 2}


@simulated
async def test_latency_is_drawn_from_its_range(world: World) -> None:
    a, b = await world.pair()
    world.network.set_latency(A, B, 0.1, 0.3)
    sent_s = world.loop.time()
    a.send_numbers(range(1))
    await asyncio.sleep(1)
    assert 0.1 <= b.at("frame_arrived") - sent_s <= 0.301


@simulated
async def test_a_slow_host_is_slow_in_both_directions_until_it_is_not(world: World) -> None:
    a, b = await world.pair()
    world.network.set_latency(A, B, 0.01, 0.01)
    for slow in (A, B):
        world.network.slow(slow, 50)
        sent_s = world.loop.time()
        a.send_numbers(range(1))
        await asyncio.sleep(1)
        assert b.at("frame_arrived") - sent_s == pytest.approx(0.5, abs=0.001)
        world.network.slow(slow, 1)
    sent_s = world.loop.time()
    a.send_numbers(range(1))
    await asyncio.sleep(1)
    assert b.at("frame_arrived") - sent_s == pytest.approx(0.01, abs=0.001)


@simulated
async def test_an_answer_comes_back_on_the_channel(world: World) -> None:
    a, b = await world.pair()
    ((source, _),) = b.told("source_met")
    b.use(b.transport.answer, source, b"welcome")
    b.use(b.transport.answer, b"nobody", b"welcome")
    await asyncio.sleep(1)
    assert a.told("channel_answered") == [(CHANNEL, b"welcome")]
    a.use(a.transport.hang_up, CHANNEL)
    b.use(b.transport.answer, source, b"too late")
    await asyncio.sleep(1)
    assert len(a.facts) == 2


# Hanging up and closing.


@simulated
async def test_with_a_flush_what_was_sent_arrives_before_the_end(world: World) -> None:
    a, b = await world.pair()
    a.send_numbers(range(50))
    a.use(a.transport.hang_up, CHANNEL, 0.5)
    a.use(a.transport.hang_up, CHANNEL, 0.5)
    assert not a.send(b"51")
    await asyncio.sleep(1)
    assert b.numbers == list(range(-1, 50))
    assert b.facts[-1][0] == "source_lost"
    assert len(a.facts) == 1


@simulated
async def test_without_a_flush_it_is_lost(world: World) -> None:
    a, b = await world.pair()
    a.send_numbers(range(50))
    a.use(a.transport.hang_up, CHANNEL)
    await asyncio.sleep(1)
    assert b.numbers == [-1]
    assert b.facts[-1][0] == "source_lost"


@simulated
async def test_a_flush_has_its_time(world: World) -> None:
    a, b = await world.pair()
    world.network.partition([A], [B])
    a.send_numbers(range(50))
    a.use(a.transport.hang_up, CHANNEL, 0.5)
    started_s = world.loop.time()
    await a.transport.close()
    assert world.loop.time() - started_s == 0.5
    world.network.heal()
    await asyncio.sleep(1)
    assert b.numbers == [-1]
    assert b.facts[-1][0] == "source_lost"


@simulated
async def test_hanging_up_a_dial_in_progress_says_nothing(world: World) -> None:
    a, b = await world.peer(A), await world.peer(B)
    for channel in range(20):
        a.dial(B, channel)
    await asyncio.sleep(0.001)
    opened = len(a.facts)
    for channel in range(20):
        a.use(a.transport.hang_up, channel)
    await asyncio.sleep(10)
    assert len(a.facts) == opened
    assert b.facts == []


@simulated
async def test_close_keeps_receiving_until_the_peers_have_hung_up(world: World) -> None:
    hangs_up = world.loop.rng.random() < 0.5
    a, b = await world.pair()
    b.dial(A)
    await asyncio.sleep(1)
    b.send(b"x")
    await asyncio.sleep(1)
    a.send_numbers(range(20))
    a.use(a.transport.hang_up, CHANNEL, 0.5)
    if hangs_up:
        world.loop.call_later(0.1, b.use, b.transport.hang_up, CHANNEL)
    started_s = world.loop.time()
    await a.transport.close()
    assert world.loop.time() - started_s == pytest.approx(0.1 if hangs_up else 0.5, abs=0.02)
    await asyncio.sleep(1)
    assert b.numbers == list(range(-1, 20))


@simulated
async def test_close_flushes_what_was_hung_up_and_ends_the_rest(world: World) -> None:
    a, b = await world.pair()
    b.dial(A)
    a.dial(C, 2)
    c = await world.peer(C)
    await asyncio.sleep(1)
    a.send_numbers(range(20))
    a.send_numbers(range(20), 2)
    a.use(a.transport.hang_up, CHANNEL, 0.5)
    started_s = world.loop.time()
    await a.transport.close()
    assert world.loop.time() - started_s < 0.01
    await asyncio.sleep(1)
    assert b.numbers == list(range(-1, 20))
    assert b.facts[-1][0] == "source_lost"
    assert c.facts == []
    assert not b.send(b"x")
    a.dial(B, 9)
    await asyncio.sleep(5)
    assert a.facts == [("channel_opened", 1), ("channel_opened", 2)]
