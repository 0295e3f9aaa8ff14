"""A node that leaves lets its peers take what it has sent them."""

from __future__ import annotations

import asyncio

from fleetlm.call import Call
from fleetlm.messaging.deliveries import SILENT_TICKS, delivered
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop
from tests.support.session_fakes import Pair, virtual

SETTINGS = Settings()
SMALL_CHUNKS = Settings(chunk_bytes=1_000, bulk_window_bytes=4_000, max_frame_bytes=64_000)


def leaving(pair: Pair, most_s: float = 60.0) -> asyncio.Task[int]:
    """Wait for the deliveries of one side."""
    loop = SimLoop.current()
    pair.here.session.peer.last_heard = loop.time()
    return loop.create_task(delivered([pair.here.session], SETTINGS, loop.time() + most_s))


def send(pair: Pair, size_bytes: int = 5_000) -> None:
    pair.there.box("sink")
    pair.here.send("sink", bytes(size_bytes))


@virtual
async def test_it_lasts_until_the_peer_has_taken_what_was_sent_before() -> None:
    pair = Pair()
    send(pair)
    waits = leaving(pair)
    await asyncio.sleep(1.0)
    assert not waits.done()
    pair.settle()
    began = SimLoop.current().time()
    await waits
    assert SimLoop.current().time() - began < 0.1
    assert pair.there.boxes["sink"].queue


@virtual
async def test_what_is_sent_meanwhile_is_not_waited_for() -> None:
    pair = Pair()
    send(pair)
    waits = leaving(pair)
    await asyncio.sleep(0.1)
    frames = pair.here.transport.take()
    send(pair)
    pair.here.flush()
    pair.there.receive(frames)
    pair.there.flush()
    pair.here.receive(pair.there.transport.take())
    await asyncio.sleep(0.1)
    assert waits.done()
    assert pair.here.session.byte_window.in_flight_bytes >= 5_000


@virtual
async def test_a_mark_whose_credit_may_come_with_a_later_tick_is_not_enough() -> None:
    pair = Pair()
    send(pair)
    pair.here.flush()
    pair.here.session.mark(at_once=False)
    waits = leaving(pair)
    await asyncio.sleep(0.1)
    pair.settle()
    await asyncio.sleep(0.1)
    assert waits.done()


@virtual
async def test_next_to_nothing_in_flight_is_not_waited_for() -> None:
    pair = Pair()
    send(pair, 100)
    await leaving(pair)
    assert SimLoop.current().time() == 0.0
    assert not pair.here.transport.take(), "nothing but what the program has sent"


@virtual
async def test_a_silent_peer_is_not_waited_for() -> None:
    pair = Pair()
    send(pair)
    await leaving(pair)
    assert SimLoop.current().time() < SILENT_TICKS * SETTINGS.tick_s + 0.1
    assert SimLoop.current().time() + SETTINGS.goodbye_flush_s < 2.0


@virtual
async def test_a_peer_that_ticks_is_waited_for_as_long_as_there_is_time() -> None:
    pair = Pair()
    send(pair)
    waits = leaving(pair, most_s=5.0)
    while not waits.done():
        pair.here.session.peer.last_heard = SimLoop.current().time()
        await asyncio.sleep(0.1)
    assert 4.9 < SimLoop.current().time() < 5.2


@virtual
async def test_a_session_that_ends_is_not_waited_for() -> None:
    pair = Pair()
    send(pair)
    waits = leaving(pair)
    await asyncio.sleep(0.1)
    pair.here.session.close("connection closed")
    await asyncio.sleep(0.1)
    assert waits.done()


def answer(pair: Pair, size_bytes: int) -> None:
    """Reply to a request of the peer with more than the window of chunks takes."""
    session = pair.here.session
    session.requests[1] = Call("?", session, 1, 60.0, SimLoop.current().time)
    session.requests[1].reply(bytes(size_bytes))
    pair.here.flush()
    assert session.lanes


@virtual
async def test_large_answers_are_waited_for_as_long_as_they_leave() -> None:
    pair = Pair(SMALL_CHUNKS)
    answered = pair.there.session.calls[1] = SimLoop.current().create_future()
    answer(pair, 20_000)
    waits = leaving(pair)
    await asyncio.sleep(0.1)
    pair.settle()
    await asyncio.sleep(0.1)
    pair.settle()  # the mark behind all of it
    assert await waits == 0
    assert len(await answered) == 20_000
    assert SimLoop.current().time() < 1.0


@virtual
async def test_the_rest_of_large_answers_is_held_back_when_half_of_the_time_is_over() -> None:
    """Otherwise each credit would put more of them before the goodbye."""
    pair = Pair(SMALL_CHUNKS)
    answer(pair, 20_000)
    waits = leaving(pair, most_s=4.0)
    while SimLoop.current().time() < 2.1:
        pair.here.session.peer.last_heard = SimLoop.current().time()
        await asyncio.sleep(0.1)
    assert not waits.done()
    pair.settle()
    assert await waits == 1
    assert SimLoop.current().time() < 2.3
    pair.here.session.settle()
    assert pair.here.session.lanes.taken_requests() == {1}
    pair.there.receive(pair.here.transport.take())
    assert pair.there.session.settlement.unanswered == set(), "request 1 is not open there"
