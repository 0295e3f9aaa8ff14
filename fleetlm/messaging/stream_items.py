"""The consumer's end of a stream: items in order, a window, one end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


class ConsumerEnd:
    """Takes what comes for one stream. To a session it looks like the future of a call.

    The producer may send ``window`` items more than were consumed; what was consumed is told for every
    half of it.

    Args:
        window: items.
        more: tells the producer that it may send so many items besides.
    """

    __slots__ = ("_ended", "_error", "_items", "_more", "_untold", "_waiter", "_window")

    def __init__(self, window: int, more: Callable[[int], None]) -> None:
        self._window = window
        self._more = more
        self._items: deque[Any] = deque()
        self._untold = 0
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: BaseException | None = None

    def put(self, item: Any) -> None:
        """An item has come. Raises: ValueError, the producer ignores the window."""
        if self._ended:
            return
        if len(self._items) + self._untold >= self._window:
            raise ValueError(f"more than {self._window} items of a stream without credit")
        self._items.append(item)
        self._wake()

    def done(self) -> bool:
        """Whether it has ended: nothing more is taken."""
        return self._ended

    def set_result(self, _value: object) -> None:
        """The producer has come to its end."""
        self._end(None)

    def set_exception(self, error: BaseException) -> None:
        """It failed, or was lost; what has come before can still be read."""
        self._end(error)

    def __bool__(self) -> bool:
        """Whether an item can be taken."""
        return bool(self._items)

    def take(self) -> Any:
        """The next item."""
        item = self._items.popleft()
        self._untold += 1
        if self._untold * 2 >= self._window and not self._ended:
            untold, self._untold = self._untold, 0
            self._more(untold)
        return item

    async def wait(self) -> bool:
        """Wait for an item. False: there is none any more. Raises: FleetError, why there is none."""
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._ended:
                return False
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return True

    def _end(self, error: BaseException | None) -> None:
        if not self._ended:
            self._ended = True
            self._error = error
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
