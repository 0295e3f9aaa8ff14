"""The consumer's end of a stream.

Items come in order, and one end comes after them: ``set_result`` when the producer has returned, or
``set_exception`` with the reason. Items that came before the end can still be taken. The producer may send
``window`` items more than were taken. The consumer gives credit for every half of a window that it has
taken, so that the producer has the other half to send while the credit travels. After the end it gives none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


class ConsumerEnd:
    """Holds what has come of one stream. A session treats it as it does the future of a call (`Waiting`).

    Args:
        window: items that the producer may send ahead.
        more: allows the producer to send this many further items.
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
        """Add an item that has come; after the end it is dropped. Raises: ValueError beyond the window."""
        if self._ended:
            return
        if len(self._items) + self._untold >= self._window:
            raise ValueError(f"more than {self._window} items of a stream without credit")
        self._items.append(item)
        self._wake()

    def done(self) -> bool:
        """Whether the stream has ended, so that no further item is accepted."""
        return self._ended

    def set_result(self, _value: object) -> None:
        """End the stream regularly."""
        self._end(None)

    def set_exception(self, error: BaseException) -> None:
        """End the stream with an error, which `wait` raises after the items that came before."""
        self._end(error)

    def __bool__(self) -> bool:
        """Whether an item can be taken now."""
        return bool(self._items)

    def take(self) -> Any:
        """Take the next item, which must have come; give credit for every half of a window that was taken."""
        item = self._items.popleft()
        self._untold += 1
        if self._untold * 2 >= self._window and not self._ended:
            untold, self._untold = self._untold, 0
            self._more(untold)
        return item

    async def wait(self) -> bool:
        """Wait for an item.

        Returns:
            True if one can be taken; False if the stream has ended regularly.

        Raises:
            FleetError: why the stream has ended.
        """
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
