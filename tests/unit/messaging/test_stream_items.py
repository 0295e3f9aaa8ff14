from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleetlm.call import Call, _ProducerEnd
from fleetlm.errors import NodeLost, RemoteError
from fleetlm.messaging.stream_items import ConsumerEnd
from fleetlm.testing.loop import SimLoop
from fleetlm.wire.frames import BadFrame
from fleetlm.wire.operations import Op
from tests.support.session_fakes import Pair, Side, turns, virtual


def inlet(window: int = 4, told: list[int] | None = None) -> ConsumerEnd:
    return ConsumerEnd(window, ([] if told is None else told).append)


@virtual
async def test_items_come_in_order_and_then_the_end() -> None:
    end = inlet()
    end.put(1)
    end.put(2)
    end.set_result(None)
    assert end.done()
    got = []
    while await end.wait():
        got.append(end.take())
    assert got == [1, 2]
    assert not await end.wait()


@virtual
async def test_what_came_before_an_error_can_still_be_read() -> None:
    end = inlet()
    end.put(1)
    end.set_exception(NodeLost("n", "gone"))
    end.set_result(None)
    end.put(2)
    assert await end.wait()
    assert end.take() == 1
    for _ in range(2):
        with pytest.raises(NodeLost):
            await end.wait()


@virtual
async def test_a_waiting_consumer_is_woken() -> None:
    end = inlet()
    for wake in (lambda: end.put(1), lambda: end.set_result(None)):
        waiting = asyncio.ensure_future(end.wait())
        await turns()
        assert not waiting.done()
        wake()
        await turns()
        assert waiting.done()
        if end.items:
            end.take()


@virtual
async def test_what_was_consumed_is_told_for_every_half_of_the_window() -> None:
    told: list[int] = []
    end = inlet(4, told)
    for item in range(4):
        end.put(item)
    for expected in ([], [2], [2], [2, 2]):
        end.take()
        assert told == expected
    end.put(4)
    end.put(5)
    end.set_result(None)
    end.take()
    end.take()
    assert told == [2, 2]  # No further item will be sent.


def test_a_producer_beyond_its_window_is_refused() -> None:
    end = inlet(2)
    end.put(1)
    end.put(2)
    with pytest.raises(ValueError, match="more than 2 units"):
        end.put(3)


# The producer's call.


class Consumer:
    """A caller that notes what it is sent."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.ends: list[Any] = []

    is_behind = False

    async def caught_up(self) -> None: ...

    def packed_item(self, ref: int, value: Any, window: int) -> tuple[Any, int]:
        return value, min(window, value) if isinstance(value, int) and value > 100 else 1

    async def item(self, ref: int, packed: Any, timeout_s: float) -> None:
        self.items.append(packed)

    def replied(self, ref: int, value: Any) -> None:
        self.ends.append(value)

    def failed(self, ref: int, kind: Any, details: list[str]) -> None:
        self.ends.append(details[0])

    def forget(self, ref: int) -> None:
        self.ends.append("forgotten")


def asked(consumer: Consumer, window: int, deadline: float = 5.0) -> Call:
    return Call("prompt", consumer, 1, deadline, SimLoop.current().time, window)


@virtual
async def test_credit_wakes_a_producer() -> None:
    producer = _ProducerEnd(0)
    waiting = asyncio.ensure_future(producer.changed())
    await turns()
    producer.more(3)
    await waiting
    assert producer.credit == 3
    producer.wake()  # No task waits: nothing happens.


@virtual
async def test_a_producer_waits_for_credit_and_goes_on_with_it() -> None:
    consumer = Consumer()
    call = asked(consumer, 2)
    assert call.streaming

    async def produce() -> None:
        for item in range(5):
            assert await call.put(item)
        call.reply()

    producing = asyncio.ensure_future(produce())
    await turns()
    assert consumer.items == [0, 1]
    call.more(1)
    await turns()
    assert consumer.items == [0, 1, 2]
    call.more(2)
    with pytest.raises(ValueError, match="items that were not sent"):
        call.more(1)  # Two may be sent ahead, and none of them was taken yet.
    await producing
    assert (consumer.items, consumer.ends) == ([0, 1, 2, 3, 4], [None])


@virtual
async def test_a_producer_is_told_that_no_further_item_is_wanted() -> None:
    consumer = Consumer()
    call = asked(consumer, 1)
    assert await call.put(1)
    putting = asyncio.ensure_future(call.put(2))
    await turns()
    call.abandon()
    assert await putting is False
    assert await call.put(3) is False
    assert (consumer.items, consumer.ends) == ([1], ["forgotten"])


@virtual
async def test_after_the_deadline_no_further_item_is_wanted() -> None:
    consumer = Consumer()
    call = asked(consumer, 10, deadline=1.0)
    assert await call.put(1)
    await asyncio.sleep(2)
    assert await call.put(2) is False
    assert consumer.ends == ["forgotten"]


@virtual
async def test_a_plain_call_takes_no_items() -> None:
    call = asked(Consumer(), 0)
    assert not call.streaming
    with pytest.raises(TypeError, match="one reply"):
        await call.put(1)
    with pytest.raises(ValueError, match="does not ask for a stream"):
        call.more(1)


# On the wire.


def stream(pair: Pair, window: int = 4, ref: int = 1) -> tuple[ConsumerEnd, Call]:
    """An open stream from there to here."""
    session = pair.here.session
    end = ConsumerEnd(window, lambda count: session.control([int(Op.MORE), ref, count]))
    session.calls[ref] = end
    session.append(pair.here.codec.pack_value([int(Op.STREAM), "model", "prompt", ref, 0, window, 0, 0, 1]))
    box = pair.there.boxes.get("model") or pair.there.box("model")
    pair.settle()
    call = box.queue.pop()
    assert isinstance(call, Call)
    return end, call


@virtual
async def test_items_credit_and_the_end_travel() -> None:
    pair = Pair()
    end, call = stream(pair, window=2)
    assert (call.message, call.deadline) == ("prompt", float("inf"))

    async def produce() -> None:
        for item in range(6):
            assert await call.put([item, b"x" * 300_000 if item == 2 else b""])
        call.reply()

    producing = asyncio.ensure_future(produce())
    got = []
    for _ in range(40):
        await turns()
        pair.settle()
        while end.items:
            got.append(end.take()[0])
    await producing
    assert got == [0, 1, 2, 3, 4, 5]
    assert end.done()
    assert not await end.wait()
    assert not pair.here.session.calls
    assert not pair.there.session.requests


@virtual
async def test_an_error_does_not_overtake_a_large_item() -> None:
    pair = Pair()
    end, call = stream(pair)
    await call.put(b"x" * 1_000_000)
    call.fail(KeyError("k"))
    pair.settle()
    assert len(end.take()) == 1_000_000
    with pytest.raises(RemoteError, match="KeyError"):
        await end.wait()


@virtual
async def test_cancel_reaches_the_producer_and_late_items_are_dropped() -> None:
    pair = Pair()
    end, call = stream(pair)
    await call.put(1)
    del pair.here.session.calls[1]
    pair.here.session.control([int(Op.CANCEL), 1, None])
    pair.settle()
    assert not end.items
    assert await call.put(2) is False
    pair.settle()


@virtual
async def test_an_item_that_cannot_be_read_ends_the_stream() -> None:
    pair = Pair()
    end, call = stream(pair)
    pair.here.codec._readers.clear()
    await call.put((1, {2}))
    pair.settle()
    with pytest.raises(RemoteError, match="could not be read"):
        await end.wait()


@virtual
async def test_the_end_of_the_connection_ends_both_sides() -> None:
    pair = Pair()
    end, call = stream(pair)
    await call.put(1)
    pair.settle()
    pair.here.session.close("cut")
    pair.there.session.close("cut")
    assert end.take() == 1
    with pytest.raises(NodeLost):
        await end.wait()
    assert await call.put(2) is False


def breaks(side: Side, *messages: list[Any]) -> None:
    other = Pair().there
    with pytest.raises(BadFrame):
        other.inbound._deliver(side.session, iter(messages))


@virtual
async def test_a_hostile_producer_or_consumer_is_cut() -> None:
    pair = Pair()
    stream(pair, window=1)
    breaks(pair.here, [Op.ITEM, 1, "a"], [Op.ITEM, 1, "b"])
    for window in (0, -1, 65_537, "4", None):
        breaks(pair.there, [Op.STREAM, "model", "p", 7, 0, window, 0, 0, 1])
    breaks(pair.there, [Op.STREAM, "model", "p", 7, 0, 4])
    breaks(pair.there, [Op.STREAM, "model", "p", 7, 0, 4, -1, 0, 1])
    breaks(pair.there, [Op.MORE, 1, "much"])
