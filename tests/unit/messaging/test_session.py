from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest
from hypothesis import given, strategies as st

from fleetlm.call import Call
from fleetlm.errors import MessageTooLarge, NoConnection, NodeLost, NotSerializable, RemoteError
from fleetlm.messaging.byte_windows import LEAST_MARKED_BYTES, MAX_MARKS, ByteWindow
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, run
from fleetlm.wire import operations
from fleetlm.wire.failures import FailureKind
from fleetlm.wire.frames import CHUNK_HEAD, HEADER, HEADER_BYTES, Kind
from fleetlm.wire.operations import Op
from tests.support.session_fakes import EPOCH_HERE, HERE, MARK_BYTES, THERE, Pair, Side, turns, virtual

KIB = 1024
SMALL = Settings(
    window_bytes=64 * KIB,
    chunk_bytes=4 * KIB,
    bulk_window_bytes=8 * KIB,
    batch_bytes=2 * KIB,
    batch_messages=8,
    max_message_bytes=1024 * KIB,
)


def kinds(side: Side) -> list[int]:
    return [frame[0] for _, frame in side.transport.frames]


# Batches.


@virtual
async def test_messages_of_one_turn_leave_in_one_frame() -> None:
    pair = Pair()
    box = pair.there.box("echo")
    for number in range(3):
        pair.here.send("echo", number)
    assert pair.here.transport.frames == []
    assert pair.here.dirty == [pair.here.session]
    pair.here.flush()
    ((channel, frame),) = pair.here.transport.frames
    assert channel == 7
    assert HEADER.unpack_from(frame) == (Kind.BATCH, EPOCH_HERE, 1)
    pair.settle()
    assert list(box.queue) == [0, 1, 2]
    assert pair.here.session.messages_sent == pair.there.session.messages_received == 3


@virtual
async def test_a_batch_leaves_at_once_when_it_is_large_enough() -> None:
    side = Side(HERE, THERE, SMALL)
    for number in range(7):
        side.send("echo", number)
    assert not side.session.must_yield()
    assert side.transport.frames == []
    side.send("echo", 7)
    assert side.session.must_yield()
    assert len(side.transport.frames) == 1
    side.send("echo", b"x" * 2 * KIB)
    assert side.session.must_yield()
    assert len(side.transport.frames) == 2
    side.flush()
    assert len(side.transport.frames) == 2


@virtual
async def test_a_packed_message_may_be_changed_afterwards() -> None:
    pair = Pair()
    box = pair.there.box("echo")
    message = [1]
    pair.here.send("echo", message)
    message.append(2)
    pair.settle()
    assert list(box.queue) == [[1]]


@virtual
async def test_sending_on_a_broken_channel_reports_the_loss_and_never_raises() -> None:
    side = Side(HERE, THERE, SMALL)
    side.transport.broken = True
    side.send("echo", 1)
    side.flush()
    assert side.lost == ["connection closed: sending failed"]


@virtual
async def test_no_amount_that_can_be_kept_ends_a_connection() -> None:
    side = Side(HERE, THERE, SMALL)
    for _ in range(400):
        side.session.append(b"\xc4\xff" + b"x" * 1023)
    assert side.session.in_flight > 5 * SMALL.window_bytes
    assert not side.lost


# Large messages.


@virtual
async def test_a_large_message_goes_in_chunks_and_arrives_whole() -> None:
    pair = Pair(SMALL)
    box = pair.there.box("echo")
    pair.here.send("echo", b"x" * 100 * KIB)
    pair.here.flush()
    assert set(kinds(pair.here)) == {Kind.CHUNK}, "marks stand in the heads of chunks"
    assert (
        max(len(frame) for _, frame in pair.here.transport.frames) == 4 * KIB + HEADER_BYTES + CHUNK_HEAD.size
    )
    assert pair.here.session.byte_window._sent_chunk_bytes <= SMALL.bulk_window_bytes + 5 * KIB
    pair.settle()
    assert list(box.queue) == [b"x" * 100 * KIB]
    assert pair.here.session.lanes.waiting_bytes == 0


@virtual
async def test_a_small_message_of_another_sender_passes_a_large_one() -> None:
    pair = Pair(SMALL)
    box = pair.there.box("echo")
    pair.here.send("echo", b"x" * 50 * KIB, "a")
    pair.here.flush()
    pair.here.send("echo", "small", "b")
    pair.settle()
    assert [message[:5] for message in box.queue] == ["small", b"xxxxx"]


def largest_chunk(side: Side) -> int:
    """The content of the largest chunk that was sent since the last question."""
    sizes = [len(frame) for _, frame in side.transport.frames if frame[0] == Kind.CHUNK]
    side.transport.frames.clear()
    return max(sizes) - HEADER_BYTES - CHUNK_HEAD.size


@virtual
async def test_chunks_are_large_unless_small_messages_or_answers_pass_them() -> None:
    side = Side(HERE, THERE, SMALL.replace(window_bytes=256 * KIB, bulk_window_bytes=64 * KIB))
    window = side.session.byte_window

    def go_on() -> int:
        side.session.credited(window._marks[-1][0])
        side.flush()
        return largest_chunk(side)

    side.send("echo", b"x" * 900 * KIB, "a")
    side.flush()
    side.transport.frames.clear()  # The first chunk has the sizes of blobs, too.
    side.session.control(operations.heard(1, 1))  # The node's own messages do not count.
    for _ in range(3):
        assert go_on() == 16 * KIB
    side.send("echo", "small", "b")
    assert go_on() == 4 * KIB
    await asyncio.sleep(0.06)
    assert go_on() == 16 * KIB
    side.session.requests[1] = Call("asked", side.session, 1, 1e9, SimLoop.current().time)
    side.session.replied(1, "small")
    assert go_on() == 4 * KIB


@virtual
async def test_a_small_message_of_the_same_sender_does_not() -> None:
    pair = Pair(SMALL)
    box = pair.there.box("echo")
    pair.here.send("echo", 1, "a")
    pair.here.send("echo", b"x" * 50 * KIB, "a")
    pair.here.send("echo", 2, "a")
    pair.here.flush()
    pair.here.send("echo", 3, "a")
    pair.settle()
    pair.here.send("echo", 4, "a")
    pair.settle()
    assert [m if isinstance(m, int) else "large" for m in box.queue] == [1, "large", 2, 3, 4]


@virtual
async def test_the_default_sender_is_the_current_task() -> None:
    pair = Pair(SMALL)
    box = pair.there.box("echo")

    async def other() -> None:
        pair.here.send("echo", "other")

    pair.here.send("echo", b"x" * 50 * KIB)
    pair.here.send("echo", "mine")
    await asyncio.create_task(other())
    pair.settle()
    assert [m if isinstance(m, str) else "large" for m in box.queue] == ["other", "large", "mine"]


@virtual
async def test_many_small_messages_behind_a_large_one_leave_in_batches_of_the_usual_size() -> None:
    pair = Pair(SMALL.replace(window_bytes=1024 * KIB))
    box = pair.there.box("echo")
    pair.here.send("echo", b"x" * 5 * KIB, "a")
    for _ in range(100):
        pair.here.send("echo", b"y" * KIB, "a")
    pair.here.flush()
    batches = [frame for _, frame in pair.here.transport.frames if frame[0] == Kind.BATCH]
    assert len(batches) == 51, "one of them is a mark"
    assert max(map(len, batches)) <= SMALL.batch_bytes + 2 * KIB
    pair.settle()
    assert len(box) == 101


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
def test_a_message_beyond_the_limit_of_either_is_refused(busy: bool, theirs: bool) -> None:
    async def main() -> None:
        low = SMALL.replace(max_message_bytes=3 * KIB)
        side = Side(HERE, THERE, SMALL if theirs else low, low if theirs else SMALL)
        if busy:
            side.session.lanes.add("a", b"x" * 5 * KIB)
        with pytest.raises(MessageTooLarge) as caught:
            side.send("echo", b"x" * 3 * KIB)
        assert caught.value.limit_bytes == 3 * KIB
        before = side.session.in_flight
        side.session.control([int(Op.TICK), 0, False])
        assert side.session.in_flight == before + 4
        side.session.lanes.clear()

    run(main())


@virtual
async def test_a_peer_that_takes_no_message_at_all_still_gets_ticks() -> None:
    side = Side(HERE, THERE, SMALL, SMALL.replace(max_message_bytes=1))
    side.session.control([int(Op.TICK), 0, False])
    side.flush()
    assert kinds(side) == [Kind.BATCH]


# The window.


@virtual
async def test_bytes_in_flight_go_back_to_nothing() -> None:
    pair = Pair(SMALL)
    pair.there.box("echo")
    pair.here.send("echo", b"x" * 3 * KIB)
    pair.here.send("echo", b"x" * 30 * KIB, "a")
    assert pair.here.session.in_flight > 33 * KIB
    pair.settle()
    pair.credit()
    assert pair.here.session.in_flight <= MARK_BYTES


@virtual
async def test_a_full_window_makes_senders_wait_until_credit_comes() -> None:
    pair = Pair(SMALL)
    pair.there.box("echo")
    await pair.here.session.room()
    while not pair.here.session.is_full:
        pair.here.send("echo", b"x" * KIB)
    waiting = asyncio.ensure_future(pair.here.session.room())
    await turns()
    assert not waiting.done()
    pair.settle()
    await waiting
    assert not pair.here.session.is_full


@virtual
async def test_a_session_is_slow_only_while_a_window_is_full_or_lanes_are_used() -> None:
    pair = Pair(SMALL)
    pair.there.box("echo")
    session = pair.here.session
    pair.here.send("echo", 1)
    pair.settle()
    assert not session.is_slow
    while not session.is_full:
        pair.here.send("echo", b"x" * KIB)
    pair.here.flush()
    assert session.is_slow
    pair.settle()
    pair.credit()
    assert not session.is_slow
    pair.here.send("echo", b"x" * 30 * KIB, "a")
    assert session.is_slow, "what a sender of something large sends next must queue"
    pair.settle()
    assert not session.is_slow
    session.close("over")
    assert session.is_slow


@virtual
async def test_senders_that_gave_up_leave_nothing_behind() -> None:
    side = Side(HERE, THERE, SMALL)
    while not side.session.is_full:
        side.send("echo", b"x" * KIB)
    for _ in range(100):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await side.session.room()
    assert not side.session.byte_window._waiters


@virtual
async def test_a_waiting_sender_is_told_that_the_session_has_ended() -> None:
    side = Side(HERE, THERE, SMALL)
    while not side.session.is_full:
        side.send("echo", b"x" * KIB)
    waiting = asyncio.ensure_future(side.session.room())
    await turns()
    side.session.close("")
    with pytest.raises(NoConnection):
        await waiting
    with pytest.raises(NoConnection, match="closed"):
        side.send("echo", 1)


@virtual
async def test_credit_without_the_number_of_a_mark_is_refused() -> None:
    side = Side(HERE, THERE, SMALL)
    side.send("echo", b"x" * 100)
    side.flush()
    before = side.session.in_flight
    for guess in (0, before, 1 << 63):
        with pytest.raises(ValueError, match="has not taken"):
            side.session.credited(guess)
    assert side.session.in_flight == before


@virtual
async def test_a_mark_is_credited_once_and_with_it_all_that_came_before() -> None:
    window = ByteWindow(64 * KIB, 8 * KIB)
    window.sent(100)
    first = window.mark(at_once=True)
    assert first is not None
    assert window.mark(at_once=True) is None, "nothing was sent since"
    window.sent(50)
    second = window.mark(at_once=True)
    window.sent(7)
    assert second is not None
    window.credited(second)
    assert (window.in_flight_bytes, window.taken_bytes) == (7, 150)
    for former in (first, second):
        with pytest.raises(ValueError, match="has not taken"):
            window.credited(former)
    assert window.in_flight_bytes == 7


@virtual
async def test_marks_are_random_and_of_one_length() -> None:
    window = ByteWindow(64 * KIB, 8 * KIB)
    marks = set()
    for _ in range(100):
        window.sent(1)
        marks.add(window.mark(at_once=True))
    assert len(marks) == 100
    assert {len(msgpack.packb(mark)) for mark in marks} == {9}


@virtual
async def test_a_peer_that_gives_no_credit_leaves_a_bounded_number_of_marks() -> None:
    window = ByteWindow(64 * KIB, 8 * KIB)
    marks = []
    for _ in range(3 * MAX_MARKS):
        window.sent(1)
        marks.append(window.mark(at_once=True))
    open_marks = [mark for mark in marks if mark is not None]
    assert len(open_marks) == len(window._marks) == MAX_MARKS
    window.credited(open_marks[-1])
    assert window.mark(at_once=True) is not None, "when it takes everything in the end, it goes on"


@virtual
async def test_a_mark_follows_every_eighth_of_a_window_and_is_answered_at_once() -> None:
    pair = Pair(SMALL)
    pair.there.box("echo")
    for _ in range(8):
        pair.here.send("echo", b"x" * (KIB - 1))
        pair.here.flush()
    pair.settle()
    assert pair.here.session.byte_window.taken_bytes > 8 * KIB
    frames = len(pair.there.transport.frames)
    pair.there.session.byte_credit.tell()
    pair.there.flush()
    assert len(pair.there.transport.frames) == frames, "no mark is told twice"


@virtual
async def test_what_is_less_than_a_step_is_marked_with_a_tick_and_told_with_the_next() -> None:
    pair = Pair(SMALL)
    pair.there.box("echo")
    pair.here.send("echo", bytes(LEAST_MARKED_BYTES))
    pair.settle()
    pair.here.session.sweep()
    pair.settle()
    assert pair.here.session.byte_window.taken_bytes == 0
    pair.there.session.sweep()
    pair.settle()
    assert pair.here.session.byte_window.taken_bytes > 0


@virtual
async def test_idle_nodes_exchange_no_marks_for_their_ticks() -> None:
    pair = Pair(SMALL)
    for _ in range(5):
        for side in (pair.here, pair.there):
            side.session.sweep()
            side.session.control(operations.tick(0))
        pair.settle()
    assert not pair.here.session.byte_window.awaits_credit
    assert 0 < pair.here.session.byte_window.in_flight_bytes < LEAST_MARKED_BYTES


@virtual
async def test_a_peer_that_takes_nothing_of_what_cannot_wait_is_disconnected() -> None:
    side = Side(HERE, THERE, SMALL.replace(max_unread_bytes=192 * KIB))
    number = 0
    while not side.lost and number < 1_000:
        side.session.control(["x" * KIB, number])
        side.flush()
        number += 1
    assert "too much to keep" in side.lost[0]
    kept = sum(len(frame) for _, frame in side.transport.frames)
    assert 180 * KIB < kept <= 192 * KIB


sizes = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12 * KIB), st.booleans()), max_size=25)


@given(sizes)
def test_the_byte_window_adds_up_for_all_sequences_of_messages(steps: list[tuple[int, int, bool]]) -> None:
    async def main() -> None:
        pair = Pair(SMALL)
        box = pair.there.box("echo")
        sent: dict[int, list[int]] = {}
        for serial, (sender, size, move) in enumerate(steps):
            pair.here.send("echo", [sender, serial, b"x" * size], f"sender {sender}")
            sent.setdefault(sender, []).append(serial)
            assert pair.here.session.in_flight >= 0
            if move:
                pair.here.flush()
                pair.there.receive(pair.here.transport.take())
                pair.there.flush()
                pair.here.receive(pair.there.transport.take())
                assert pair.here.session.in_flight >= 0
        pair.settle()
        pair.credit()
        assert pair.here.session.in_flight <= MARK_BYTES
        assert pair.here.session.lanes.waiting_bytes == 0
        arrived: dict[int, list[int]] = {}
        for sender, serial, _ in box.queue:
            arrived.setdefault(sender, []).append(serial)
        assert arrived == sent

    run(main())


# Requests of the peer.


def request(side: Side, ref: int = 1, deadline: float = 5.0) -> Call:
    call = side.session.requests[ref] = Call("work", side.session, ref, deadline, SimLoop.current().time)
    return call


def outcome(pair: Pair, ref: int = 1) -> asyncio.Future[Any]:
    future = pair.here.session.calls[ref] = SimLoop.current().create_future()
    return future


@virtual
async def test_a_reply_reaches_the_caller() -> None:
    pair = Pair()
    future = outcome(pair)
    request(pair.there).reply({"a": (1, 2)})
    pair.settle()
    assert future.result() == {"a": (1, 2)}
    assert not pair.there.session.requests
    assert not pair.here.session.calls


@virtual
async def test_a_failure_reaches_the_caller() -> None:
    pair = Pair()
    future = outcome(pair)
    request(pair.there).fail(KeyError("x"))
    pair.settle()
    with pytest.raises(RemoteError, match="KeyError: 'x'"):
        future.result()
    assert not pair.there.session.requests


@virtual
async def test_a_failure_with_text_that_is_not_unicode_reaches_the_caller() -> None:
    pair = Pair()
    future = outcome(pair)
    request(pair.there).fail(OSError("no such file: a\udcff"))
    pair.settle()
    with pytest.raises(RemoteError, match=r"no such file: a\\udcff"):
        future.result()


@virtual
async def test_an_endless_error_text_is_cut() -> None:
    pair = Pair()
    future = outcome(pair)
    request(pair.there).fail(ValueError("x" * 10_000_000))
    pair.there.flush()
    (_, frame), *_ = pair.there.transport.frames
    assert len(frame) < Settings().max_frame_bytes
    pair.settle()
    assert isinstance(future.exception(), RemoteError)


@virtual
async def test_a_reply_that_cannot_travel_becomes_an_error_at_the_caller() -> None:
    pair = Pair()
    future = outcome(pair)
    with pytest.raises(NotSerializable):
        request(pair.there).reply(object())
    pair.settle()
    with pytest.raises(RemoteError, match="NotSerializable"):
        future.result()


@virtual
async def test_a_sweep_forgets_what_expired() -> None:
    side = Side(HERE, THERE, SMALL)
    expired, alive = request(side, 1, 1.0), request(side, 2, 3.0)
    await asyncio.sleep(2)
    side.session.sweep()
    assert list(side.session.requests) == [2]
    assert not expired.wanted
    assert alive.wanted


# The end.


@virtual
async def test_the_end_reaches_callers_and_handlers() -> None:
    side = Side(HERE, THERE, SMALL)
    future = side.session.calls[1] = SimLoop.current().create_future()
    asked = request(side)
    side.send("echo", b"x" * 10 * KIB)
    side.send("echo", 1)
    side.session.close("it broke")
    with pytest.raises(NodeLost, match="it broke"):
        future.result()
    assert not asked.wanted
    assert (side.session.calls, side.session.requests) == ({}, {})
    side.flush()
    asked.reply(1)
    side.session.failed(1, FailureKind.RAISED, ["late"])
    side.session.control([int(Op.TICK), 0, False])
    side.session.byte_credit.tell()
    assert side.transport.frames == []


@virtual
async def test_frames_are_numbered_without_a_gap() -> None:
    pair = Pair(SMALL)
    for number in range(40):
        pair.here.send("echo", b"x" * (number * 200), number % 3)
        pair.here.flush()
    numbers = [HEADER.unpack_from(frame)[2] for _, frame in pair.here.transport.frames]
    assert numbers == list(range(1, len(numbers) + 1))
    assert all(len(frame) >= HEADER_BYTES for _, frame in pair.here.transport.frames)


# What leaves before the end of the turn.


def frames_of(side: Any) -> list[list[Any]]:
    """The batches that have left, without a flush."""
    return [msgpack.unpackb(data[HEADER_BYTES:]) for data in side.transport.take()]


@virtual
async def test_a_lone_call_leaves_at_once_and_further_ones_share_a_frame() -> None:
    here = Pair().here
    session, call = here.session, msgpack.packb([Op.CALL, "echo", 1, 7, 1000, 0])
    session.append_call(call, None)
    assert [len(batch) for batch in frames_of(here)] == [1]
    session.calls[7] = SimLoop.current().create_future()
    session.append_call(call, None)
    session.append_call(call, None)
    assert frames_of(here) == []
    here.flush()
    assert [len(batch) for batch in frames_of(here)] == [2]
    session.calls.clear()
    session.append_call(call, None)
    assert frames_of(here) == [], "the frame before held more: there is load"
    here.flush()
    session.append_call(call, None)
    assert [len(batch) for batch in frames_of(here)] == [1, 1]


@virtual
async def test_what_was_appended_before_a_lone_call_leaves_before_it() -> None:
    here = Pair().here
    here.session.append(msgpack.packb(["echo", 1]))
    here.session.append_call(msgpack.packb([Op.CALL, "echo", 2, 7, 1000, 0]), None)
    assert frames_of(here) == [[["echo", 1], [Op.CALL, "echo", 2, 7, 1000, 0]]]
    here.flush()
    assert frames_of(here) == []


@virtual
async def test_a_reply_after_which_nothing_is_open_leaves_at_once() -> None:
    pair = Pair()
    side, box = pair.there, pair.there.box("echo")
    for _ in range(2):  # Also after a frame of several replies.
        for ref in (1, 2, 3):
            pair.here.session.append(msgpack.packb([Op.CALL, "echo", ref, ref, 1000, 0]))
        pair.settle()
        first, second, third = [await box.get() for _ in range(3)]
        first.reply("a")
        second.reply("b")
        assert frames_of(side) == []
        third.reply("c")
        assert frames_of(side) == [[[Op.REPLY, 1, "a"], [Op.REPLY, 2, "b"], [Op.REPLY, 3, "c"]]]
        assert not side.session.requests
        side.flush()
        assert frames_of(side) == []


@virtual
async def test_of_many_calls_some_leave_before_the_turn_is_over() -> None:
    here = Pair(Settings(batch_calls=4)).here
    for ref in range(1, 12):
        here.session.append_call(msgpack.packb([Op.CALL, "echo", ref, ref, 1000, 0]), None)
        here.session.calls[ref] = SimLoop.current().create_future()
    lengths = [len(batch) for batch in frames_of(here)]
    assert lengths == [1, 4, 4]  # The first one was alone.
    here.flush()
    assert [len(batch) for batch in frames_of(here)] == [2]


@virtual
async def test_of_many_replies_some_leave_before_the_turn_is_over() -> None:
    pair = Pair(Settings(batch_calls=4))
    there, box = pair.there, pair.there.box("echo")
    for ref in range(11):
        pair.here.session.append(msgpack.packb([Op.CALL, "echo", ref, ref, 1000, 0]))
    pair.settle()
    for _ in range(11):
        (await box.get()).reply("done")
    assert [len(batch) for batch in frames_of(there)] == [4, 4, 3]  # Nothing is open behind the last one.


@virtual
async def test_one_way_messages_leave_at_the_end_of_the_turn_however_many_they_are() -> None:
    here = Pair(Settings(batch_calls=4)).here
    for number in range(100):
        here.session.append(msgpack.packb(["echo", number]))
    assert frames_of(here) == []
    here.flush()
    assert [len(batch) for batch in frames_of(here)] == [100]


@virtual
async def test_a_session_that_is_full_or_over_sends_nothing_at_once() -> None:
    here = Pair().here
    session = here.session
    session.byte_window.in_flight_bytes = session.byte_window.limit_bytes
    session._update_is_slow()
    session.append_call(msgpack.packb([Op.CALL, "echo", 1, 7, 1000, 0]), None)
    session.flush_batch()
    assert frames_of(here) == []
    session.close("over")
    with pytest.raises(NoConnection):
        session.append_call(b"\x93\x01\x02\x03", None)
