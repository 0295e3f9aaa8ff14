"""A stream as a program holds it, over a source that the test fills by hand."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import pytest

from fleetlm import Stream
from fleetlm.messaging.stream_items import TELL_AFTER_S, ConsumerEnd
from fleetlm.testing.loop import SimLoop
from tests.support.session_fakes import turns, virtual


class Items(ConsumerEnd):
    """A source that counts how often it was closed."""

    def __init__(self) -> None:
        super().__init__(8, lambda _: None)
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        super().close()


def made() -> tuple[Items, Stream[Any]]:
    items = Items()
    return items, Stream(items, SimLoop.current())


@virtual
async def test_a_wait_that_times_out_takes_nothing() -> None:
    items, stream = made()
    for number in range(3):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.1)
        items.put(number)
        assert await asyncio.wait_for(anext(stream), 0.1) == number
    items.set_result(None)
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


@virtual
async def test_an_item_that_comes_with_the_cancellation_is_for_the_next_wait() -> None:
    items, stream = made()
    waiting = asyncio.ensure_future(anext(stream))
    await turns()
    items.put("item")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await anext(stream) == "item"


@virtual
async def test_an_error_is_raised_at_each_further_wait() -> None:
    items, stream = made()
    items.put(1)
    items.set_exception(ValueError("broken"))
    assert await anext(stream) == 1
    for _ in range(3):
        with pytest.raises(ValueError, match="broken") as raised:
            await anext(stream)
    assert len(list(raised.traceback)) < 10, "the traceback must not grow with each wait"


@virtual
async def test_a_second_task_that_waits_is_refused_and_the_first_one_goes_on() -> None:
    items, stream = made()
    first = asyncio.ensure_future(anext(stream))
    await turns()
    with pytest.raises(RuntimeError, match="another task waits for an item of this stream"):
        await anext(stream)
    items.put("item")
    assert await first == "item"


@virtual
async def test_closing_ends_a_wait_in_another_task_regularly() -> None:
    items, stream = made()
    waiting = asyncio.ensure_future(anext(stream, "end"))
    await turns()
    items.put("dropped")
    await stream.aclose()
    await stream.aclose()
    assert await waiting == "end"
    assert await anext(stream, "end") == "end"


@virtual
async def test_the_end_of_the_block_closes_it_and_so_does_aclosing() -> None:
    for block in (contextlib.aclosing, lambda stream: stream):
        items, stream = made()
        items.put(1)
        async with block(stream):
            assert await anext(stream) == 1
            assert not items.closed
        assert items.closed == 1


@virtual
async def test_a_stream_that_is_dropped_is_closed_by_the_loop_from_whichever_thread_collects_it() -> None:
    items, stream = made()
    items.put(1)
    async for _ in stream:
        break
    del stream
    assert items.closed == 0, "it is closed in a later turn"
    await turns()
    assert items.closed == 1
    items, stream = made()
    cycle: list[Any] = [stream]
    cycle.append(cycle)
    del cycle, stream
    collecting = threading.Thread(target=gc.collect)
    collecting.start()
    collecting.join()
    await turns()
    assert items.closed == 1


@virtual
async def test_a_task_that_was_cancelled_in_its_loop_does_not_keep_the_stream() -> None:
    items = Items()

    async def consume() -> None:
        async for _ in Stream(items, SimLoop.current()):
            pass

    consuming = asyncio.ensure_future(consume())
    await turns()
    consuming.cancel()
    await asyncio.wait([consuming])
    await turns()
    assert consuming.cancelled()
    assert items.closed == 1


KEPT: list[BaseException] = []


class Response:
    """Sends a stream to a client, as Starlette's StreamingResponse does."""

    def __init__(self, body: AsyncIterable[Any], *, is_read: bool) -> None:
        self._body = body
        self._is_read = is_read

    async def send(self) -> None:
        async for _ in self._body:
            if not self._is_read:
                await asyncio.sleep(1_000)

    async def run(self) -> None:
        try:
            await self.send()
        except asyncio.CancelledError as error:
            KEPT.append(error)  # The task groups of anyio keep it in a cycle of references.
            raise


@virtual
async def test_the_error_of_a_cancelled_task_does_not_keep_the_stream_whoever_keeps_the_error() -> None:
    for is_read in (True, False):
        items, stream = made()
        items.put(1)
        sending = asyncio.ensure_future(Response(stream, is_read=is_read).run())
        del stream
        await turns()
        sending.cancel()
        await asyncio.wait([sending])
        await turns()
        assert items.closed == 1, is_read
        assert KEPT.pop().__traceback__ is not None


@virtual
async def test_nor_does_it_keep_a_stream_that_a_generator_of_the_program_reads() -> None:
    async def relay(items: Stream[int]) -> AsyncIterator[str]:
        async for item in items:
            yield str(item)

    items, stream = made()
    items.put(1)
    response = Response(relay(stream), is_read=True)
    sending = asyncio.ensure_future(response.run())
    del response, stream
    await turns()
    sending.cancel()
    await asyncio.wait([sending])
    await turns()
    assert items.closed == 1
    assert KEPT.pop().__traceback__ is not None


@virtual
async def test_a_task_that_is_cancelled_leaves_a_stream_to_whoever_else_has_it() -> None:
    items, stream = made()
    items.put(1)
    got: list[int] = []

    async def read() -> None:
        got.extend([item async for item in stream])  # A cancelled loop gives it nothing.

    for _ in range(2):
        reading = asyncio.ensure_future(read())
        await turns()
        reading.cancel()
        await asyncio.wait([reading])
        await turns()
    items.put(2)
    assert (got, await anext(stream), items.closed) == ([], 2, 0)


@virtual
async def test_a_task_that_goes_on_after_its_cancellation_keeps_its_variables() -> None:
    items, stream = made()
    seen = []

    async def read(text: str) -> None:
        try:
            async for _ in stream:
                pass
        except asyncio.CancelledError:
            await asyncio.sleep(1)
            seen.append(text)
            raise

    reading = asyncio.ensure_future(read("text"))
    await turns()
    reading.cancel()
    await asyncio.wait([reading])
    assert seen == ["text"]
    async with asyncio.timeout(1):
        with contextlib.suppress(asyncio.CancelledError):
            await read("again")
    assert seen == ["text", "again"]
    items.put(3)
    assert await anext(stream) == 3


@virtual
async def test_a_stream_that_has_ended_costs_nothing_when_it_is_dropped() -> None:
    items, stream = made()
    items.set_result(None)
    assert [item async for item in stream] == []
    del stream
    await turns()
    assert items.closed == 0


# Credit of the consumer's end.


@virtual
async def test_a_slow_consumer_gives_back_what_it_took_after_a_second() -> None:
    told: list[int] = []
    end = ConsumerEnd(64, told.append)
    for number in range(3):
        end.put(number)
        end.take()
    assert not told
    await asyncio.sleep(TELL_AFTER_S + 0.1)
    assert told == [3]
    end.put(3)
    end.take()
    end.set_result(None)
    await asyncio.sleep(TELL_AFTER_S + 0.1)
    assert told == [3], "after the end no further item will come"


@virtual
async def test_large_items_use_up_the_window() -> None:
    told: list[int] = []
    end = ConsumerEnd(64, told.append)
    end.put("large", 1_000)
    with pytest.raises(ValueError, match="more than 64 units"):
        end.put("next")
    assert end.take() == "large"
    assert told == [64], "an item counts at most a window"
    end.put("small", 40)
    end.put("large", 40)  # One item may exceed the window.
    with pytest.raises(ValueError, match="more than 64 units"):
        end.put("next")


@virtual
async def test_the_iterator_of_a_loop_closes_its_stream_too() -> None:
    items, stream = made()
    items.put(1)
    loop = aiter(stream)
    assert await anext(loop) == 1
    await loop.aclose()  # type: ignore[attr-defined]  # as `contextlib.aclosing(aiter(...))` does
    assert items.closed == 1
    del loop, stream
    gc.collect()
    assert items.closed == 1
