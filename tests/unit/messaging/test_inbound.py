from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import dataclass
from typing import Any
from unittest.mock import ANY

import msgpack
import pytest
from hypothesis import given, strategies as st

from fleetlm.call import Call
from fleetlm.errors import NoProcess, RemoteError, Undecodable, WouldBlock
from fleetlm.messages import MessageTypes
from fleetlm.messaging.mailbox import Mailbox
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, run
from fleetlm.wire.codec import Codec
from fleetlm.wire.extensions import Ext
from fleetlm.wire.failures import FailureKind, error_of_failure
from fleetlm.wire.frames import CHUNK_HEAD, HEADER_BYTES, BadFrame, Kind, header
from fleetlm.wire.invocation import Invoke
from fleetlm.wire.operations import Op
from tests.support.session_fakes import EPOCH_HERE, EPOCH_THERE, HERE, Pair, Side, virtual


def frame(side: Side, *messages: Any, kind: int = Kind.BATCH, body: bytes | None = None) -> None:
    """Give this side one frame, as its peer would send it."""
    epoch = EPOCH_HERE if side.session.name == HERE else EPOCH_THERE
    data = msgpack.packb(list(messages)) if body is None else body
    side.inbound.frame(side.session, header(kind, epoch, side.session.incoming.seq) + data)


def sent(side: Side) -> list[Any]:
    """The messages that this side has sent."""
    side.flush()
    return [message for data in side.transport.take() for message in msgpack.unpackb(data[HEADER_BYTES:])]


def future(side: Side, ref: int) -> Any:
    made = side.session.calls[ref] = SimLoop.current().create_future()
    return made


@virtual
async def test_one_way_messages_go_to_names_and_numbers() -> None:
    side = Pair().there
    box = side.box("echo")
    side.boxes[4] = box
    frame(side, ["echo", "a"], [4, "b"])
    assert list(box.queue) == ["a", "b"]
    assert side.session.messages_received == 2
    assert side.session.peer.last_heard == SimLoop.current().time()


@virtual
async def test_the_end_of_a_chunk_has_room_where_the_message_has_begun() -> None:
    side = Pair().there
    head = CHUNK_HEAD.pack(1, 1, 0, 3_000, 0)
    frame(side, kind=Kind.CHUNK, body=head + bytes(1_000))
    start = header(Kind.CHUNK, EPOCH_THERE, side.session.incoming.seq) + head
    size_bytes = len(start) + 1_500

    def room(start: bytes) -> int | None:
        found = side.inbound.room(side.session, start, size_bytes)
        return None if found is None else len(found)

    assert room(start[:-1]) is None  # Not all of the head has come.
    assert room(b"\xff" + start[1:]) is None
    assert room(start[: -len(head)] + CHUNK_HEAD.pack(1, 1, 0, 3_000, 1)) is None  # Without the blob's size.
    assert room(start[: -len(head)] + CHUNK_HEAD.pack(2, 1, 0, 3_000, 0)) is None
    assert room(start + bytes(500)) == 1_500


@virtual
async def test_the_first_blob_of_a_message_has_room_as_soon_as_its_envelope_has_come() -> None:
    side = Pair().there
    head = header(Kind.CHUNK, EPOCH_THERE, 1) + CHUNK_HEAD.pack(1, 1, 0, 2_008, 1)
    head += (2_000).to_bytes(8, "big")
    size_bytes = len(head) + 8 + 1_500
    assert side.inbound.room(side.session, head[:-1], size_bytes) is None
    assert side.inbound.room(side.session, head + b"envelop", size_bytes) is None
    room = side.inbound.room(side.session, head + b"envelope" + bytes(100), size_bytes)
    assert room is not None
    assert len(room) == 1_500


@virtual
async def test_a_message_without_a_receiver_is_counted_and_the_next_delivered() -> None:
    side = Pair().there
    box = side.box("echo")
    frame(side, ["nobody", 1], ["echo", 2])
    assert side.inbound.undelivered == 1
    assert list(box.queue) == [2]


@virtual
async def test_a_call_waits_in_the_mailbox_with_its_deadline() -> None:
    side = Pair().there
    box = side.box("echo")
    frame(side, [Op.CALL, "echo", ("hi",), 7, 1500, 0])
    call = await box.get()
    assert isinstance(call, Call)
    assert call.message == ["hi"]
    assert call.remaining_s == 1.5
    assert side.session.requests == {7: call}


@virtual
async def test_messages_and_calls_in_a_row_for_one_process_are_counted_and_announced_once() -> None:
    side = Pair().there
    counted: list[tuple[Any, int]] = []
    arrivals = side.session.arrivals
    echo, other = side.box("echo"), side.box("other")
    announced: list[Mailbox] = []
    put = Mailbox.put

    def announce(box: Mailbox, message: Any) -> None:
        announced.append(box)
        put(box, message)

    received = type(arrivals).received

    def count(windows: Any, key: Any, number: int, *rest: Any) -> None:
        counted.append((key, number))
        received(windows, key, number, *rest)

    waiting = future(side, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(arrivals), "received", count)
        patch.setattr(Mailbox, "put", announce)
        frame(
            side,
            [Op.CALL, "echo", 1, 1, 1000, 0],
            ["echo", 2],
            [Op.HANDLE, "echo", ["do", [3], {}], 2, 1000, 0],
            [Op.REPLY, 3, "yes"],
            ["echo", 4],
            [Op.CALL, "other", 5, 4, 1000, 0],
            [Op.CALL, "nobody", 6, 5, 1000, 0],
            [Op.CALL, "other", 7, 6, 1000, 1],
            [Op.TICK, 1, None],
            ["other", 8],
        )
    assert waiting.result() == "yes"
    assert counted == [("echo", 4), ("other", 1), ("nobody", 1), ("other", 1), ("other", 1)]
    assert announced == [echo, other, other, other]
    call, two, request, four = echo.queue
    assert (call.message, two, request.message, four) == (1, 2, Invoke("do", (3,), {}), 4)
    assert request.message.is_from_peer
    assert [getattr(each, "message", each) for each in other.queue] == [5, 7, 8]
    assert other.queue[0].began == 0.0
    assert other.queue[1].began == -math.inf, "on behalf of work in flight"
    assert set(side.session.requests) == {1, 2, 4, 6}


@virtual
async def test_a_call_in_a_row_that_breaks_the_protocol_leaves_those_before_it_counted() -> None:
    for bad in ([1, -1, 0], [1, 1000, -1], [True, 1000, 0], [1, 1e3, 0], [7, 1000, 0]):
        side = Pair().there
        box = side.box("echo")
        with pytest.raises(BadFrame):
            frame(side, ["echo", 0], [Op.CALL, "echo", 1, 7, 1000, 0], [Op.CALL, "echo", 2, *bad])
        assert len(box.queue) == 2
        assert set(side.session.requests) == {7}


@virtual
async def test_a_deadline_beyond_a_day_is_cut() -> None:
    side = Pair().there
    box = side.box("echo")
    frame(side, [Op.CALL, "echo", 1, 7, 1 << 60, 0])
    assert box.queue[0].remaining_s == 86_400


@virtual
async def test_a_call_to_a_process_that_does_not_exist_is_answered() -> None:
    pair = Pair()
    caller = future(pair.here, 7)
    frame(pair.there, [Op.CALL, "nobody", 1, 7, 1000, 0])
    pair.settle()
    assert isinstance(caller.exception(), NoProcess)
    assert not pair.there.session.requests


@virtual
async def test_cancel_abandons_its_call_and_an_unknown_ref_is_passed_over() -> None:
    side = Pair().there
    box = side.box("echo")
    frame(side, [Op.CALL, "echo", 1, 7, 1000, 0], [Op.CANCEL, 7, None], [Op.CANCEL, 8, None])
    assert not box.queue[0].wanted
    assert not side.session.requests


@virtual
async def test_replies_and_failures_reach_their_futures_and_late_ones_are_passed_over() -> None:
    side = Pair().there
    good, bad = future(side, 1), future(side, 2)
    frame(
        side,
        [Op.REPLY, 1, "yes"],
        [Op.FAILURE, 2, int(FailureKind.RAISED), ["E", "no", ""]],
        [Op.REPLY, 1, "again"],
        [Op.FAILURE, 9, int(FailureKind.RAISED), []],
    )
    assert good.result() == "yes"
    assert isinstance(bad.exception(), RemoteError)


@virtual
async def test_a_future_that_was_cancelled_does_not_mind() -> None:
    side = Pair().there
    future(side, 1).cancel()
    future(side, 2).cancel()
    frame(side, [Op.REPLY, 1, "yes"], [Op.FAILURE, 2, 1, ["x"]])


@virtual
async def test_ticks_peers_and_requests_go_to_the_office() -> None:
    side = Pair().there
    names = ["fleetlm@10.0.0.3", "not a node", 5, "fleetlm@::0:1"]
    frame(side, [Op.TICK, 12, None], [Op.PEERS, names, None], [Op.REQUEST, "whereis", "x", 3])
    assert side.service.ticks == [12]
    assert side.service.named == ["fleetlm@10.0.0.3", "not a node", "fleetlm@::0:1"]  # the kernel judges them
    assert side.service.questions == [("whereis", "x")]
    assert sent(side) == [[Op.REPLY, 3, "answer"]]
    frame(side, [Op.PEERS, [f"fleetlm@10.1.0.{n}" for n in range(200)], None])
    assert len(side.service.named) == 3 + 8


# What a peer must not send.


@pytest.mark.parametrize(
    "message",
    [
        5,
        None,
        [],
        [1],
        [[], 1],
        [{}, 1],
        [0, 1, 2],
        [99, 1, 2],
        ["CALL", 1, 2],
        [Op.CALL, "echo", 1, 7, 0],
        [Op.CALL, "echo", 1, 7, 1, "no"],
        [Op.CALL, "echo", 1, 7, -1, 0],
        [Op.CALL, "echo", 1, 7, "soon", 0],
        [Op.CALL, "echo", 1, -7, 1, 0],
        [Op.CALL, "echo", 1, [], 1, 0],
        [Op.CALL, [], 1, 7, 1, 0],
        [Op.REPLY, 1, 2, 3],
        [Op.REPLY, [], 1],
        [Op.FAILURE, 1, 99, []],
        [Op.FAILURE, 1, 1, "text"],
        [Op.FAILURE, 1, 1, [5]],
        [Op.CANCEL, [], None],
        [Op.REQUEST, "x", 1, "ref"],
        [Op.CREDIT, 1 << 40, 0],
        [Op.CREDIT, 0, 1 << 40],
        [Op.CREDIT, -1, 0],
        [Op.CREDIT, "all", 0],
        [Op.CREDIT, 0.0, 0],
        [Op.TICK, -1, False],
        [Op.TICK, True, False],
        [Op.PEERS, "names", None],
    ],
    ids=repr,
)
def test_a_malformed_message_ends_the_session_and_nothing_else(message: Any) -> None:
    async def main() -> None:
        side = Pair().there
        box = side.box("echo")
        future(side, 1).cancel()
        frame(side, [Op.CALL, "echo", "open", 1, 1000, 0], ["echo", "before"])
        with pytest.raises(BadFrame):
            frame(side, message, ["echo", "after"])
        assert box.queue[1] == "before"
        assert "after" not in box.queue

    run(main())


BIG = msgpack.ExtType(Ext.BIG_INT, (1 << 80).to_bytes(11, "big"))
HUGE = msgpack.ExtType(Ext.BIG_INT, b"\x7f" + bytes(4096))
NOT_COMPARABLE = msgpack.ExtType(Ext.DECIMAL, b"sNaN")
UNKNOWN = msgpack.ExtType(99, b"")


@pytest.mark.parametrize(
    "messages",
    [
        [[Op.CALL, "nobody", 1, BIG, 1000, 0]],
        [[Op.REQUEST, "nonsense", 1, BIG]],
        [[Op.CALL, "echo", UNKNOWN, BIG, 1000, 0]],
        [[Op.CALL, HUGE, UNKNOWN, 5, 1000, 0]],
        [[Op.CALL, HUGE, 1, 5, 1000, 0]],
        [[Op.TICK, HUGE, False]],
        [[Op.CREDIT, HUGE, None]],
        [[Op.MARK, HUGE, 0]],
        [[Op.MARK, 1, -1]],
        [[Op.MARK, True, 0]],
        [[Op.MARK, 1.0, 0]],
        [[Op.CREDIT, 1 << 63, None]],
        [[HUGE, 1, 2]],
        [[NOT_COMPARABLE, 1, 2]],
        [["echo", "a"], [4, "b"], [NOT_COMPARABLE, "c"]],
    ],
    ids=[
        "ref",
        "ref asked",
        "ref unread",
        "to unread",
        "to",
        "lag",
        "credit",
        "mark",
        "mark negative",
        "mark bool",
        "mark float",
        "credit unknown",
        "op",
        "op nan",
        "to nan",
    ],
)
def test_numbers_that_cannot_be_used_end_the_session(messages: list[Any]) -> None:
    """A number that msgpack cannot write, that Python does not print, or that raises when compared."""

    async def main() -> None:
        side = Pair().there
        side.box("echo")
        side.boxes[4] = side.box("four")
        with pytest.raises(BadFrame):
            frame(side, *messages)
        assert side.service.ticks == []

    run(main())


@pytest.mark.parametrize(
    "message",
    [[Op.TICK, "x" * 100_000, False], ["x" * 100_000, 1, 2], [Op.FAILURE, 1, "x" * 100_000, []]],
    ids=["tick", "operation", "failure"],
)
def test_what_breaks_the_link_is_quoted_in_short(message: Any) -> None:
    async def main() -> None:
        with pytest.raises(BadFrame) as caught:
            frame(Pair().there, message)
        assert len(str(caught.value)) < 200

    run(main())


@virtual
async def test_a_ref_that_is_open_already_ends_the_session() -> None:
    side = Pair().there
    side.box("echo")
    call = [Op.CALL, "echo", 1, 7, 1000, 0]
    with pytest.raises(BadFrame, match="request 7 is open already"):
        frame(side, call, call)


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x93\x01", b"\x90\x90", b"\x05", b"\xdd\xff\xff\xff\xff"])
def test_a_body_that_is_not_a_batch_ends_the_session(body: bytes) -> None:
    async def main() -> None:
        with pytest.raises(BadFrame):
            frame(Pair().there, body=body)

    run(main())


@virtual
async def test_a_gap_another_epoch_or_a_repeated_frame_ends_the_session() -> None:
    for epoch, seq in [(EPOCH_HERE, 2), (EPOCH_HERE, 0), (EPOCH_HERE + 1, 1)]:
        side = Pair().there
        with pytest.raises(BadFrame, match="something was lost"):
            side.inbound.frame(side.session, header(Kind.BATCH, epoch, seq) + b"\x90")


@virtual
async def test_frames_of_the_wrong_shape_break_the_link() -> None:
    head = header(Kind.CHUNK, EPOCH_HERE, 1)
    for data in [
        b"",
        b"\x03",
        head,
        head + b"abc",
        head + CHUNK_HEAD.pack(1, 1, 0, 3, 0),
        head + CHUNK_HEAD.pack(1, 1, 0, 1 << 50, 0) + b"abc",
        head + CHUNK_HEAD.pack(1, 1, 0, 3, 0) + b"\xc1\xc1\xc1",
        header(Kind.HELLO, EPOCH_HERE, 1),
    ]:
        side = Pair().there
        with pytest.raises(BadFrame):
            side.inbound.frame(side.session, data)


@given(st.binary(max_size=80), st.sampled_from((Kind.BATCH, Kind.CHUNK)))
def test_garbage_is_a_bad_frame_or_a_message_and_never_another_error(body: bytes, kind: int) -> None:
    async def main() -> None:
        side = Pair().there
        side.box("echo")
        with contextlib.suppress(BadFrame):
            side.inbound.frame(side.session, header(kind, EPOCH_HERE, 1) + body)
        assert side.session.in_flight >= 0

    run(main())


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 12)
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)


@given(st.lists(st.lists(values, max_size=6), max_size=4))
def test_well_formed_nonsense_is_a_bad_frame_or_a_message(messages: list[Any]) -> None:
    async def main() -> None:
        side = Pair().there
        side.box("echo")
        future(side, 1)
        with contextlib.suppress(BadFrame):
            frame(side, *messages)
        for call in side.session.calls.values():
            call.cancel()  # type: ignore[attr-defined]

    run(main())


# What this side cannot rebuild.


@dataclass
class Known:
    x: int


def strange_pair() -> Pair:
    """``here`` knows a type that ``there`` does not."""
    types = MessageTypes()
    types.register("known.here", Known)
    pair = Pair()
    pair.here.codec = Codec(types)
    return pair


@virtual
async def test_an_unknown_tag_costs_that_message_only() -> None:
    pair = strange_pair()
    box = pair.there.box("echo")
    for message in (1, Known(2), [Known(3)], 4):
        pair.here.send("echo", message)
    pair.settle()
    assert list(box.queue) == [1, 4]
    assert pair.there.inbound.unreadable == 2


@virtual
async def test_a_call_with_an_unknown_tag_is_answered() -> None:
    pair = strange_pair()
    box = pair.there.box("echo")
    caller = future(pair.here, 3)
    pair.here.session.append(pair.here.codec.pack_whole([int(Op.CALL), "echo", m := Known(1), 3, 1000, 0], m))
    pair.here.send("echo", "next")
    pair.settle()
    assert isinstance(caller.exception(), Undecodable)
    assert "known.here" in str(caller.exception())
    assert list(box.queue) == ["next"]


@virtual
async def test_a_large_message_with_an_unknown_tag_costs_that_message_only() -> None:
    pair = strange_pair()
    box = pair.there.box("echo")
    pair.here.send("echo", [Known(1), b"x" * 600_000])
    pair.here.send("echo", "next")
    pair.settle()
    assert list(box.queue) == ["next"]
    assert pair.there.inbound.unreadable == 1


@virtual
async def test_a_reply_with_an_unknown_tag_is_an_error_at_the_caller() -> None:
    pair = strange_pair()
    caller = future(pair.there, 3)
    pair.here.session.append(pair.here.codec.pack_whole([int(Op.REPLY), 3, m := Known(1)], m))
    pair.settle()
    with pytest.raises(RemoteError, match=r"Undecodable.*could not be read"):
        caller.result()


@virtual
async def test_an_unreadable_request_to_a_node_is_answered() -> None:
    pair = Pair()
    asked = future(pair.here, 1)
    frame(pair.there, [Op.REQUEST, "spawn", ["f", UNKNOWN], 1])
    pair.settle()
    assert pair.there.service.questions == []
    error = asked.exception()
    assert isinstance(error, Undecodable)
    assert (error.target, pair.there.inbound.unreadable) == ("spawn", 1)


def test_unreadable_messages_are_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        pair = strange_pair()
        pair.there.box("echo")
        for _ in range(150):
            pair.here.send("echo", Known(1))
        pair.settle()

    with caplog.at_level(logging.WARNING):
        run(main())
    assert [record.args[-1] for record in caplog.records] == [1, 10, 100]  # type: ignore[index]


@virtual
async def test_calls_beyond_the_limit_of_open_calls_fail_and_never_run() -> None:
    side = Pair().there
    side.inbound._max_open_calls = 2
    box = side.box("slow")
    frame(side, *[[Op.CALL, "slow", None, ref, 1000, 0] for ref in (1, 2, 3)])
    assert len(box) == 2
    assert sent(side) == [[Op.FAILURE, 3, FailureKind.TOO_MANY, ["slow", ANY]]]
    error = error_of_failure(FailureKind.TOO_MANY, ["slow", "many"])
    assert isinstance(error, WouldBlock)
    (await box.get()).reply("done")
    frame(side, [Op.CALL, "slow", None, 4, 1000, 0])
    assert len(box) == 2


# A node that drains.


@virtual
async def test_new_work_is_refused_before_it_is_delivered_once_the_peer_knows() -> None:
    side = Pair().there
    box = side.box("echo")
    frame(side, [Op.CALL, "echo", "before", 1, 1000, 0])
    side.session.refuses = True
    frame(
        side,
        [Op.CALL, "echo", "new", 2, 1000, 0],
        [Op.HANDLE, "nobody", ["f", [], {}], 3, 1000, 0],
        [Op.STREAM, "echo", "new", 4, 0, 64, 0, 0, 1],
        [Op.YIELD, "echo", ["f", [], {}], 5, 0, 64, 0, 0, 1],
        [Op.CALL, "echo", "in flight", 6, 1000, 1],
        [Op.STREAM, "echo", "in flight too", 7, 0, 64, 0, 1, 1],
        ["echo", "message"],
        [Op.CAST, "echo", ["f", [], {}], 1],
    )
    assert [type(each) for each in box.queue] == [Call, Call, Call, str, Invoke]
    assert [call.message for call in list(box.queue)[:3]] == ["before", "in flight", "in flight too"]
    assert [call.began for call in list(box.queue)[:3]] == [SimLoop.current().time(), -math.inf, -math.inf]
    refused = [message[1:3] for message in sent(side) if message[0] == Op.FAILURE]
    assert refused == [[ref, FailureKind.DRAINING] for ref in (2, 3, 4, 5)]
    assert sorted(side.session.requests) == [1, 6, 7]


@virtual
async def test_a_process_that_hands_over_gets_new_work_until_it_is_done() -> None:
    side = Pair().there
    box = side.box("host")
    side.session.refuses = True
    side.inbound.still_served.add("host")
    frame(
        side,
        [Op.HANDLE, "host", ["f", [], {}], 1, 1000, 0],
        [Op.YIELD, "host", ["f", [], {}], 2, 0, 64, 0, 0, 1],
    )
    side.inbound.still_served.clear()
    frame(side, [Op.HANDLE, "host", ["f", [], {}], 3, 1000, 0])
    assert len(box) == 2
    assert sorted(side.session.requests) == [1, 2]


@virtual
async def test_what_is_refused_opens_its_senders_window_again() -> None:
    pair = Pair()
    pair.there.box("echo")
    pair.there.session.refuses = True
    session = pair.here.session
    for ref in range(10):
        packed = pair.here.codec.pack_value([int(Op.CALL), "echo", "x", ref, 1000, 0])
        assert session.admit("echo", packed) is None
    assert session.held["echo"] == 10
    pair.settle()
    pair.there.session.sweep()
    pair.settle()
    assert session.held.get("echo", 0) == 0


@virtual
async def test_the_steps_of_a_drain_and_their_acknowledgements_go_to_the_office() -> None:
    side = Pair().there
    frame(side, [Op.DRAIN, 3, [1, 25_000, "signal"]], [Op.HEARD, 2, 1])
    assert side.service.questions == [("drain", (3, 1, 25_000, "signal")), ("heard", (2, 1))]


@virtual
async def test_a_drain_is_acknowledged_behind_each_request_that_waits() -> None:
    pair = Pair(Settings(chunk_bytes=4_096, bulk_window_bytes=8_192))
    session = pair.here.session
    session.acknowledge(7)
    pair.settle()
    assert pair.there.service.questions == [("heard", (7, 1))]
    box = pair.there.box("echo")
    for sender in ("a", "b"):
        packed = pair.here.codec.pack_value(["echo", sender.encode() * 20_000])
        session.append(packed, sender, units=2)
    session.acknowledge(8)
    for _ in range(4):
        pair.settle()
        heard = pair.there.service.questions.count(("heard", (8, 2)))
        assert heard <= len(box.queue)
    assert (heard, len(box.queue)) == (2, 2)
