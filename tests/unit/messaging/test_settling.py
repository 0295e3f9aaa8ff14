"""The end of a session in order: what the peer hears of its open requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleetlm.call import Call
from fleetlm.errors import Draining, NoConnection, NodeLost
from fleetlm.messaging.chunks import AnswerLane
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop
from fleetlm.wire import operations
from fleetlm.wire.failures import FailureKind
from fleetlm.wire.operations import MAX_UNANSWERED, Op
from tests.support.session_fakes import THERE, Pair, virtual

SMALL_CHUNKS = Settings(chunk_bytes=1_000, bulk_window_bytes=4_000, max_frame_bytes=64_000)


def ask(pair: Pair, ref: int, timeout_ms: int = 5_000) -> asyncio.Future[Any]:
    """Call the process "sink" of the other node, as `Outbound` does."""
    side = pair.here
    future = side.session.calls[ref] = SimLoop.current().create_future()
    packed = side.codec.pack_whole(operations.call("sink", "?", ref, timeout_ms), "?")
    assert side.session.admit("sink", packed, "caller", is_call=True) is None
    return future


def leave(pair: Pair) -> None:
    """Let the other node end the session in order."""
    pair.there.session.settle()
    pair.here.receive(pair.there.transport.take())
    pair.there.session.close("shutdown")
    pair.here.session.close("left: shutdown")


@virtual
async def test_a_request_that_no_process_took_is_not_delivered_and_one_that_runs_is_in_doubt() -> None:
    pair = Pair()
    box = pair.there.box("sink")
    runs, waits = ask(pair, 1), ask(pair, 2)
    pair.settle()
    call = await box.get()
    call.watch(lambda _: None)
    on_its_way = ask(pair, 3)
    leave(pair)
    with pytest.raises(NodeLost, match="left: shutdown"):
        await runs
    for asked in (waits, on_its_way):
        with pytest.raises(NoConnection, match=r"left: shutdown\. It had not taken the request"):
            await asked
    assert not any(each.wanted for each in box.queue), "what was not taken never runs"


@virtual
async def test_an_answer_comes_before_the_end() -> None:
    pair = Pair()
    box = pair.there.box("sink")
    asked = ask(pair, 1)
    pair.settle()
    (await box.get()).reply("in time")
    leave(pair)
    assert await asked == "in time"


@virtual
async def test_an_answer_that_does_not_leave_any_more_puts_its_own_request_in_doubt_and_no_other() -> None:
    pair = Pair(SMALL_CHUNKS)
    box = pair.there.box("sink")
    answered, waits = ask(pair, 1), ask(pair, 2)
    pair.settle()
    (await box.get()).reply(b"x" * 50_000)
    pair.there.flush()
    assert pair.there.session.lanes, "the window holds a part of the answer"
    on_its_way = ask(pair, 3)
    leave(pair)
    with pytest.raises(NodeLost):
        await answered
    for asked in (waits, on_its_way):
        with pytest.raises(NoConnection, match="had not taken the request"):
            await asked


@virtual
async def test_a_large_message_that_does_not_leave_any_more_puts_no_request_of_the_peer_in_doubt() -> None:
    pair = Pair(SMALL_CHUNKS)
    pair.there.box("sink")
    asked = ask(pair, 1)
    pair.settle()
    pair.there.send("elsewhere", b"x" * 50_000, "its own")
    leave(pair)
    with pytest.raises(NoConnection, match="had not taken the request"):
        await asked


@virtual
async def test_nothing_follows_the_last_message() -> None:
    pair = Pair(SMALL_CHUNKS)
    pair.there.send("elsewhere", b"x" * 50_000, "its own")
    pair.there.session.settle()
    pair.here.receive(pair.there.transport.take()[:-1])
    assert pair.here.session.settlement.unanswered is None
    pair.there.flush()
    assert pair.there.transport.frames == []


@virtual
async def test_a_refusal_that_does_not_leave_any_more_still_means_that_nothing_has_run() -> None:
    pair = Pair(SMALL_CHUNKS)
    box = pair.there.box("sink")
    refused, failed, runs, cut, answered = (ask(pair, ref) for ref in range(1, 6))
    pair.settle()
    session = pair.there.session
    while not session.is_full:
        pair.there.send("elsewhere", bytes(500))
    session.flush()
    (await box.get()).no_process("sink")
    (await box.get()).fail(ValueError("it ran"))
    (await box.get()).watch(lambda _: None)
    call = await box.get()
    call.refuse(Draining(THERE, 1.0, has_begun=True))
    (await box.get()).reply(b"x" * 5_000)
    session.failed(5, FailureKind.NO_HANDLER, [])
    assert not session.lanes.has(AnswerLane(5, has_run=False)), "the answers to one request share a lane"
    assert session.lanes.taken_requests() == {2, 4, 5}
    assert session.lanes.has(AnswerLane(1, has_run=False))
    leave(pair)
    with pytest.raises(NoConnection):
        await refused
    for asked in (failed, runs, cut, answered):
        with pytest.raises(NodeLost):
            await asked


@virtual
async def test_without_a_word_of_the_peer_every_open_request_is_in_doubt() -> None:
    pair = Pair()
    asked = ask(pair, 1)
    pair.here.session.close("connection closed")
    with pytest.raises(NodeLost):
        await asked


@virtual
async def test_a_request_that_expired_there_is_in_doubt_until_its_caller_has_given_it_up() -> None:
    pair = Pair()
    box = pair.there.box("sink")
    asked = ask(pair, 1, timeout_ms=50)
    pair.settle()
    (await box.get()).watch(lambda _: None)
    await asyncio.sleep(0.1)
    pair.there.session.sweep()
    session = pair.there.session
    assert (session.requests, session.settlement.expired) == ({}, {1})
    pair.here.session.control(operations.cancel(2))  # of another request
    pair.settle()
    assert session.settlement.expired == {1}
    leave(pair)
    with pytest.raises(NodeLost):
        await asked


@virtual
async def test_a_cancel_ends_the_memory_of_an_expired_request() -> None:
    pair = Pair()
    pair.there.box("sink")
    ask(pair, 1, timeout_ms=50)
    pair.settle()
    await asyncio.sleep(0.1)
    pair.there.session.sweep()
    pair.here.session.control(operations.cancel(1))
    pair.settle()
    assert pair.there.session.settlement.expired == set()


@virtual
async def test_more_requests_are_settled_than_fit_one_message() -> None:
    pair = Pair(Settings(mailbox_limit=20_000))
    box = pair.there.box("sink")
    taken = 2 * MAX_UNANSWERED + 5
    asked = []
    for ref in range(1, taken + 11):
        asked.append(ask(pair, ref))
        if ref % 1_000 == 0:
            pair.credit()
    pair.settle()
    for _ in range(taken):
        (await box.get()).watch(lambda _: None)
    leave(pair)
    for each in asked[:taken]:
        assert isinstance(each.exception(), NodeLost)
    for each in asked[taken:]:
        assert isinstance(each.exception(), NoConnection)


@virtual
async def test_every_request_is_in_doubt_until_the_last_part_has_come() -> None:
    pair = Pair()
    session = pair.here.session
    named, waits = ask(pair, 1), ask(pair, 2)
    session.settlement.told([1], 1, session.calls)
    assert session.settlement.unanswered is None
    session.close("connection closed")
    for asked in (named, waits):
        with pytest.raises(NodeLost):
            await asked


@virtual
async def test_a_peer_that_names_requests_that_are_not_open_fills_no_memory() -> None:
    pair = Pair()
    session = pair.here.session
    asked = ask(pair, 7)
    for part in range(5):
        session.settlement.told([7, *range(part * 1_000 + 10, part * 1_000 + 1_000)], 9, session.calls)
    session.settlement.told([], 0, session.calls)
    assert session.settlement.unanswered == {7}
    session.close("left: shutdown")
    with pytest.raises(NodeLost):
        await asked


@virtual
async def test_a_peer_that_never_gives_up_requests_fills_no_memory() -> None:
    pair = Pair(Settings(max_open_calls=100))
    session = pair.there.session
    for ref in range(110):
        session.requests[ref] = Call("?", session, ref, 0.0, SimLoop.current().time)
    session.sweep()
    assert len(session.settlement.expired) == 101
    asked = ask(pair, 1)
    leave(pair)
    with pytest.raises(NodeLost):
        await asked


@virtual
async def test_a_request_to_the_node_itself_is_taken_when_it_comes() -> None:
    pair = Pair()
    pair.there.service.asked = lambda *_: None  # It takes its time.
    side = pair.here
    asked = side.session.calls[7] = SimLoop.current().create_future()
    side.session.append(side.codec.pack_whole(operations.request("spawn", None, 7), None))
    pair.settle()
    leave(pair)
    with pytest.raises(NodeLost):
        await asked


def test_nonsense_is_not_a_last_word() -> None:
    for refs in (None, [-1], ["1"], list(range(MAX_UNANSWERED + 1))):
        with pytest.raises((TypeError, ValueError)):
            operations.read_settled([Op.SETTLED, refs, None])
