"""A stream: items that come one after the other, for ``async for``.

It is an object and not an async generator, because a generator that is cancelled while it waits is closed
for good: after ``asyncio.wait_for(anext(items), 1)`` had timed out, the next item would be a regular end.

Theory of operation. A `Stream` is what the program holds. Behind it stands a `Source`, which holds what has
come and knows how the stream is given up: the consumer's end of a stream of messages
(`messaging.streams`), or a generator that runs in a thread (`blocking.generators`). The runtime refers to
the source only, so that a stream that the program drops is collected and closes its source. An item leaves
the source after the wait and without another ``await``, so a wait that is cancelled has taken nothing.

Source: an asyncio.StreamReader, whose reads may be cancelled and repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sized
from types import TracebackType
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


class Stream(Generic[T_co]):
    """Items that come one after the other. Made by `Node.stream`, `ActorRef.stream`, `Node.stream_blocking`.

    ::

        async for token in ref.stream(Model.complete, prompt): ...

        async with ref.stream(Model.complete, prompt) as tokens:
            first = await asyncio.wait_for(anext(tokens), 1.0)

    The stream begins when its first item is waited for. A wait that is cancelled or times out takes nothing:
    the next one gets the next item. Items that came before an error are handed on first; then each wait
    raises that error.

    A stream is given up by `aclose`, by the end of ``async with``, or when the program drops the object; its
    producer is cancelled then. One task may wait for an item at a time.
    """

    __slots__ = ("_is_open", "_is_waited_for", "_items", "_loop", "_pause", "_source", "_take")

    def __init__(
        self,
        source: Source,
        loop: asyncio.AbstractEventLoop,
        pause: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._source = source
        self._items = source.items
        self._take = source.take
        self._loop = loop
        self._pause = pause
        """Lets others have their turn, where there is an item each time."""
        self._is_waited_for = False
        self._is_open = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        """Return the next item.

        Raises:
            StopAsyncIteration: the stream has ended regularly, or was closed.
            RuntimeError: another task waits for an item of this stream; nothing changed.
        """
        if self._pause is not None:
            await self._pause()
        if not self._items:
            if self._is_waited_for:
                raise RuntimeError("another task waits for an item of this stream; one at a time may")
            self._is_waited_for = True
            try:
                has_item = await self._source.wait()
            except BaseException:
                self._is_waited_for = False
                # A traceback keeps this frame, and a cancelled task keeps its traceback. Neither may keep
                # the stream: its consumer may be gone for good.
                del self
                raise
            self._is_waited_for = False
            if not has_item:
                self._is_open = False
                raise StopAsyncIteration
        item: T_co = self._take()
        return item

    async def aclose(self) -> None:
        """Give the stream up. A task that waits for an item gets the regular end. Idempotent."""
        self._is_open = False
        self._source.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # The collector may run in any thread, so the source is closed in a later turn of the loop.
        if self._is_open and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # The loop has been closed just now.
                self._loop.call_soon_threadsafe(self._source.close)
