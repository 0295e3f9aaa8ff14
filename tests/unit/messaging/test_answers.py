"""Answers above the window of their connection, and peers that take nothing."""

from __future__ import annotations

import asyncio

import pytest

from fleetlm.call import Call
from fleetlm.errors import MessageTooLarge, RemoteError
from fleetlm.messaging.byte_windows import MAX_WINDOWS_WITHOUT_CREDIT, ByteWindow, Stall
from fleetlm.messaging.session import MAX_URGENT_BYTES
from fleetlm.messaging.stream_items import ConsumerEnd
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop
from fleetlm.wire import operations
from fleetlm.wire.operations import Op
from tests.support.session_fakes import Pair, virtual

KIB = 1024
SMALL = Settings(
    window_bytes=64 * KIB,
    chunk_bytes=4 * KIB,
    bulk_window_bytes=8 * KIB,
    batch_bytes=2 * KIB,
    batch_messages=8,
    max_message_bytes=1024 * KIB,
    reply_queue_bytes=200 * KIB,
)


def asked(pair: Pair, count: int, stream_window: int = 0) -> tuple[list[asyncio.Future[bytes]], list[Call]]:
    """Calls from here to there that have arrived, and what waits for them here."""
    session, codec = pair.here.session, pair.here.codec
    box = pair.there.boxes.get("echo") or pair.there.box("echo")
    futures = []
    for ref in range(1, count + 1):
        future = session.calls[ref] = SimLoop.current().create_future()
        futures.append(future)
        session.append(codec.pack_value([int(Op.CALL), "echo", None, ref, 60_000, 0]))
    pair.settle()
    calls = list(box.queue)
    box.queue.clear()
    return futures, calls


@virtual
async def test_a_burst_of_answers_keeps_to_the_window_and_all_arrive() -> None:
    pair = Pair(SMALL)
    futures, calls = asked(pair, 400)
    for number, call in enumerate(calls):
        if number % 10 == 3:
            call.fail(ValueError("no"))
        else:
            call.reply(bytes(20 * KIB if number % 7 == 0 else KIB))
    session = pair.there.session
    assert session.byte_window.in_flight_bytes < SMALL.window_bytes + 4 * KIB
    assert session.lanes.answer_bytes > 400 * KIB
    assert session.is_behind
    pair.settle()
    assert not pair.there.lost
    assert not session.is_behind
    assert session.lanes.answer_bytes == session.lanes.waiting_bytes == 0
    for number, future in enumerate(futures):
        if number % 10 == 3:
            assert isinstance(future.exception(), RemoteError)
        else:
            assert len(future.result()) == (20 * KIB if number % 7 == 0 else KIB)


@virtual
async def test_a_process_that_waits_for_a_session_that_is_behind_goes_on_with_it() -> None:
    pair = Pair(SMALL)
    _, calls = asked(pair, 300)
    session = pair.there.session
    for call in calls[:-1]:
        call.reply(bytes(KIB))
    assert session.is_behind
    waiting = asyncio.ensure_future(session.caught_up())
    await asyncio.sleep(1)
    assert not waiting.done()
    pair.settle()
    await asyncio.wait_for(waiting, 1)
    assert not session.is_behind


@virtual
async def test_the_end_of_the_connection_ends_the_wait_too() -> None:
    pair = Pair(SMALL)
    _, calls = asked(pair, 300)
    for call in calls[:-1]:
        call.reply(bytes(KIB))
    waiting = asyncio.ensure_future(pair.there.session.caught_up())
    await asyncio.sleep(1)
    pair.there.session.close("cut")
    await asyncio.wait_for(waiting, 1)


@virtual
async def test_small_messages_of_others_pass_answers_and_chunks_get_their_turns() -> None:
    pair = Pair(SMALL)
    futures, calls = asked(pair, 300)
    box = pair.here.box("other")
    for call in calls:
        call.reply(bytes(KIB))
    pair.there.send("other", "small", "task")
    pair.there.send("other", bytes(100 * KIB), "bulk")
    pair.settle()
    assert [len(message) for message in box.queue] == [5, 100 * KIB]
    assert all(future.done() for future in futures)


@virtual
async def test_the_items_of_a_stream_and_its_end_keep_their_order_above_the_window() -> None:
    pair = Pair(SMALL)
    session = pair.here.session
    end = session.calls[1_000] = ConsumerEnd(64, lambda units: session.control(operations.more(1_000, units)))
    pair.there.box("echo")
    session.append(pair.here.codec.pack_value(operations.stream("echo", None, 1_000, 0, 64, 0, 0, 1)))
    _, calls = asked(pair, 200)
    stream, calls = calls[0], calls[1:]
    for call in calls:
        call.reply(bytes(KIB))

    async def produce() -> None:
        for number in range(10):
            assert await stream.put([number, bytes(10 * KIB if number % 3 == 0 else 10)])
        stream.reply()

    producing = asyncio.ensure_future(produce())
    while not producing.done():
        await asyncio.sleep(0)
        pair.settle()
    pair.settle()
    assert [end.take()[0] for _ in range(10)] == list(range(10))
    assert not await end.wait()


@virtual
async def test_an_answer_that_is_too_large_is_refused_and_its_caller_told() -> None:
    pair = Pair(SMALL)
    (future,), (call,) = asked(pair, 1)
    with pytest.raises(MessageTooLarge):
        call.reply(bytes(2048 * KIB))
    pair.settle()
    assert "MessageTooLarge" in str(future.exception())


# Peers that take nothing.


def in_flight(size_bytes: int = 1) -> ByteWindow:
    window = ByteWindow(64 * KIB, 8 * KIB)
    send(window, size_bytes)
    return window


def send(window: ByteWindow, size_bytes: int) -> None:
    window.sent(size_bytes)
    assert window.mark(at_once=False) is not None


def take(window: ByteWindow) -> None:
    mark, *_ = window._marks[-1]
    window.credited(mark)


def test_a_peer_that_ticks_and_takes_nothing_is_noticed_after_the_set_time_and_not_before() -> None:
    window = in_flight()
    stall = Stall(window, 30.0, 3.0)
    assert [stall.ticked(now) for now in (100.0, 101.0, 102.0)] == [0, 1, 2]
    for second in range(103, 132):
        assert stall.ticked(second) == second - 100
    take(window)
    assert stall.ticked(132.0) == 0
    send(window, 5)
    assert [stall.ticked(now) for now in (133.0, 134.0)] == [0, 1], "it had nothing to take before"


def test_a_peer_that_takes_a_little_is_slow_and_not_stalled() -> None:
    window = in_flight(1_000)
    stall = Stall(window, 30.0, 3.0)
    for second in range(500):
        if second % 20 == 0:
            take(window)
            send(window, 1_000)
        assert stall.ticked(float(second)) < 25


def test_what_no_mark_stands_behind_cannot_be_proved_to_be_taken() -> None:
    window = ByteWindow(64 * KIB, 8 * KIB)
    stall = Stall(window, 30.0, 3.0)
    window.sent(60)
    assert [stall.ticked(float(second)) for second in range(100)] == [0.0] * 100


def test_a_pause_of_the_peers_loop_begins_the_measurement_anew() -> None:
    stall = Stall(in_flight(), 30.0, 3.0)
    for second in range(20):
        stall.ticked(float(second))
    assert stall.ticked(19.0 + 500) == 0, "its loop was busy for 500 s, and takes everything now"
    assert stall.ticked(520.0) == 1


@virtual
async def test_only_a_peer_that_is_alive_and_takes_nothing_is_cut() -> None:
    pair = Pair(SMALL)
    session = pair.there.session
    _, calls = asked(pair, 100)
    for call in calls:
        call.reply(bytes(KIB))
    for _ in range(5):
        await asyncio.sleep(100)
        session.peer_ticked(SimLoop.current().time())
    assert not pair.there.lost, "its ticks have long pauses: its loop is busy"
    for _ in range(int(SMALL.no_credit_s) + 3):
        await asyncio.sleep(1)
        session.peer_ticked(SimLoop.current().time())
    (why,) = set(pair.there.lost[:1])
    assert "bytes for 60 s, though its loop runs" in why


@virtual
async def test_a_peer_that_asks_on_and_on_and_takes_no_answer_is_cut() -> None:
    pair = Pair(SMALL)
    codec, session = pair.here.codec, pair.here.session
    requests = 0
    while not pair.there.lost:
        requests += 1
        session.append(codec.pack_value([int(Op.CALL), "nobody", b"", requests, 60_000, 0]))
        pair.here.flush()
        pair.there.receive(pair.here.transport.take())  # Nothing is received here: no credit is given.
        assert requests < 100_000
    assert "bytes and took nothing of" in pair.there.lost[0]
    sent_bytes = session.byte_window.in_flight_bytes
    assert sent_bytes > MAX_WINDOWS_WITHOUT_CREDIT * SMALL.window_bytes


@virtual
async def test_failures_of_the_node_itself_wait_in_no_lane_and_are_bounded() -> None:
    pair = Pair(SMALL.replace(max_unread_bytes=192 * KIB))
    session = pair.there.session
    pair.here.session.byte_window.most_bytes = 1 << 40  # A peer that keeps to no bound itself.
    ref = 0
    while not pair.there.lost:
        ref += 1
        pair.here.session.append(pair.here.codec.pack_value([int(Op.CALL), "nobody", b"", ref, 60_000, 0]))
        pair.here.flush()
        pair.there.receive(pair.here.transport.take())
        pair.there.flush()
        assert not session.lanes, "a lane for each would cost a hundred times the failure"
        assert ref < 100_000
    assert session.byte_window.in_flight_bytes <= 196 * KIB


@virtual
async def test_a_long_answer_of_the_node_waits_for_room_and_a_short_one_does_not() -> None:
    pair = Pair(SMALL)
    session = pair.there.session
    _, calls = asked(pair, 100)
    for call in calls:
        call.reply(bytes(KIB))
    assert session.is_full
    for size, waits in ((100, False), (2 * MAX_URGENT_BYTES, True)):
        before = session.lanes.waiting_bytes
        session.urgent_ref = 7_000 + size
        session.replied(session.urgent_ref, bytes(size))
        session.urgent_ref = None
        assert (session.lanes.waiting_bytes > before) is waits


@virtual
async def test_questions_to_the_node_are_refused_while_many_answers_wait() -> None:
    pair = Pair(SMALL.replace(reply_queue_bytes=8 * KIB))
    session = pair.there.session
    _, calls = asked(pair, 200)
    for call in calls:
        call.reply(bytes(KIB))
    assert session.is_behind
    future = pair.here.session.calls[9_000] = asyncio.get_running_loop().create_future()
    pair.here.session.append(pair.here.codec.pack_value([int(Op.REQUEST), "registered", None, 9_000]))
    pair.settle()
    assert pair.there.service.questions == []
    assert "bytes of answers wait" in str(future.exception())
