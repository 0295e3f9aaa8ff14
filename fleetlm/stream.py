"""A stream: items that come one after the other, for ``async for``.

It is an object and not an async generator, because a generator that is cancelled while it waits is closed
for good: after ``asyncio.wait_for(anext(items), 1)`` had timed out, the next item would be a regular end.

Theory of operation. A `Stream` is what the program holds. Behind it stands a `Source`, which holds what has
come and knows how the stream is given up: the consumer's end of a stream of messages
(`messaging.streams`), or a generator that runs in a thread (`blocking.generators`). The runtime refers to
the source only, so that a stream that the program drops is collected and closes its source. An item leaves
the source after the wait and without another ``await``, so a wait that is cancelled has taken nothing.

``async for`` iterates over a `_Loop`, which Python drops at the moment in which the loop is left. That tells
a stream that is forgotten from one that is kept. A task that is cancelled leaves its frames to the traceback
of its CancelledError. A framework that keeps the error in a cycle of references keeps the stream with it,
until the garbage collector runs, while the producer works for a client that has gone: the task groups of
anyio do so, and Starlette's ``StreamingResponse`` uses them. So the variables of a task that left the loop
and was cancelled are cleared as soon as it has ended. Whoever else refers to the stream still has it.

Source: an asyncio.StreamReader, whose reads may be cancelled and repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sized
from types import FrameType, TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

T_co = TypeVar("T_co", covariant=True)


class Source(Protocol):
    """Where the items of a stream come from. All methods are called on the loop."""

    @property
    def items(self) -> Sized:
        """What has come and can be taken now; always the same object."""

    @property
    def take(self) -> Callable[[], Any]:
        """Takes the next item, which must have come."""

    async def wait(self) -> bool:
        """Wait for an item; begin the stream if it has not begun. A cancelled wait changes nothing.

        Returns:
            True if an item can be taken; False if the stream has ended regularly or was closed.

        Raises:
            Exception: why the stream has ended, at each call.
        """

    def close(self) -> None:
        """Give the stream up and drop what has come; a task that waits is woken. Idempotent."""


class _State:
    """What a stream and the loops over it share."""

    __slots__ = ("is_open", "is_waited_for")

    def __init__(self) -> None:
        self.is_open: bool = True
        self.is_waited_for: bool = False


class _Items(Generic[T_co]):
    """How an item is taken, for a stream and for the loops over it alike: a loop costs an item nothing."""

    __slots__ = ("_items", "_pause", "_source", "_state", "_take")

    def __init__(self, source: Source, pause: Callable[[], Awaitable[None]] | None, state: _State) -> None:
        self._source = source
        self._items = source.items
        self._take = source.take
        self._pause = pause
        """Lets others have their turn, where there is an item each time."""
        self._state = state

    async def __anext__(self) -> T_co:
        """Return the next item.

        Raises:
            StopAsyncIteration: the stream has ended regularly, or was closed.
            RuntimeError: another task waits for an item of this stream; nothing changed.
        """
        if self._pause is not None:
            try:
                await self._pause()
            except BaseException:
                del self  # As below.
                raise
        if not self._items:
            state = self._state
            if state.is_waited_for:
                raise RuntimeError("another task waits for an item of this stream; one at a time may")
            state.is_waited_for = True
            try:
                has_item = await self._source.wait()
            except BaseException:
                state.is_waited_for = False
                # A traceback keeps this frame, and a cancelled task keeps its traceback. Neither may keep
                # the stream: its consumer may be gone for good.
                del self
                raise
            state.is_waited_for = False
            if not has_item:
                state.is_open = False
                raise StopAsyncIteration
        item: T_co = self._take()
        return item


class Stream(_Items[T_co]):
    """Items that come one after the other. Made by `Node.stream`, `ActorRef.stream`, `Node.stream_blocking`.

    ::

        async for token in ref.stream(Model.complete, prompt): ...

        async with ref.stream(Model.complete, prompt) as tokens:
            first = await asyncio.wait_for(anext(tokens), 1.0)

    The stream begins when its first item is waited for. A wait that is cancelled or times out takes nothing:
    the next one gets the next item. Items that came before an error are handed on first; then each wait
    raises that error.

    A stream is given up by `aclose`, by the end of ``async with``, or when the program drops the object; its
    producer is cancelled then. A task that is cancelled drops what it alone refers to. One task may wait for
    an item at a time.
    """

    __slots__ = ("_loop",)

    def __init__(
        self,
        source: Source,
        loop: asyncio.AbstractEventLoop,
        pause: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(source, pause, _State())
        self._loop = loop

    def __aiter__(self) -> AsyncIterator[T_co]:
        if not self._state.is_open:
            return self
        return _Loop(self, self._source, self._pause, self._state)

    async def aclose(self) -> None:
        """Give the stream up. A task that waits for an item gets the regular end. Idempotent."""
        self._state.is_open = False
        self._source.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # The collector may run in any thread, so the source is closed in a later turn of the loop.
        if self._state.is_open and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # The loop has been closed just now.
                self._loop.call_soon_threadsafe(self._source.close)


class _Loop(_Items[T_co]):
    """The iterator of one ``async for``: lives until the loop is left, in whichever way."""

    __slots__ = ("_stream",)

    def __init__(
        self,
        stream: Stream[T_co],
        source: Source,
        pause: Callable[[], Awaitable[None]] | None,
        state: _State,
    ) -> None:
        super().__init__(source, pause, state)
        self._stream = stream  # Else it would be dropped, and its source closed.

    def __aiter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        """Give the stream up, as `Stream.aclose` does: who calls ``aiter`` may have this object only."""
        await self._stream.aclose()

    def __del__(self) -> None:
        if not self._state.is_open:
            return
        try:
            task = asyncio.current_task()
        except RuntimeError:  # The collector runs in another thread, or the loop has ended.
            return
        if task is not None and task.cancelling():
            frames = _find_frames(task)
            if frames:
                task.get_loop().call_soon(_forget, task, frames)


def _find_frames(task: asyncio.Task[Any]) -> list[FrameType]:
    """Return the frames of the running task; none if its first coroutine is not one of Python's.

    Frames of coroutines and asynchronous generators only: the others are not part of the task.
    """
    outermost = getattr(task.get_coro(), "cr_frame", None)
    frames = []
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # the only way to the running frames
    while frame is not None and outermost is not None:
        if frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            frames.append(frame)
        if frame is outermost:
            return frames
        frame = frame.f_back
    return []


def _forget(task: asyncio.Task[Any], frames: list[FrameType]) -> None:
    """Clear the variables of a task if it ended, cancelled, in the turn in which it left the loop."""
    if task.cancelled():
        for frame in frames:
            with contextlib.suppress(RuntimeError):  # It runs: a task within the task has taken it over.
                frame.clear()
