"""The consumer's end of a stream.

Items come in order, and one end comes after them: ``set_result`` when the producer has returned, or
``set_exception`` with the reason. Items that came before the end can still be taken; a consumer that gives
the stream up (`close`) drops them.

**Credit.** An item counts units, as a message does (`messaging.windows`): 1, and 1 more for each
`UNIT_BYTES`, at most the whole window. The producer may send while the units that were sent and not given
back are below the window, so one large item may exceed it. The consumer gives back every half of a window
that it has taken, so that the producer has the other half to send while the credit travels, and what is less
than that after `TELL_AFTER_S`, so that a slow consumer does not look like one that has stopped. After the
end it gives none back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

TELL_AFTER_S: Final = 1.0
"""Seconds after which the producer is told of items that were taken, however few: often enough for any idle
limit, and rarely enough to cost nothing."""


class ConsumerEnd:
    """Holds what has come of one stream. A session treats it as it does the future of a call (`Waiting`).

    Args:
        window: units that the producer may send ahead.
        more: allows the producer to send this many further units; see `begin`.
        on_end: called once, when the stream ends in any way; see `begin`.
    """

    __slots__ = (
        "_ended", "_error", "_held_units", "_more", "_on_end", "_teller", "_untold_units", "_waiter",
        "_window", "items",
    )  # fmt: skip

    def __init__(
        self, window: int, more: Callable[[int], None] | None = None, on_end: Callable[[], None] | None = None
    ) -> None:
        self._window = window
        self._more = more
        self._on_end = on_end
        self.items: deque[tuple[Any, int]] = deque()
        """The items that came and can be taken, each with its units."""
        self._held_units = 0
        self._untold_units = 0
        """Units that were taken and not given back yet."""
        self._teller: asyncio.TimerHandle | None = None
        """The timer that gives back what is less than half a window."""
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: BaseException | None = None

    def begin(self, more: Callable[[int], None], on_end: Callable[[], None]) -> None:
        """Take both functions, where they are known only once the stream has been asked for."""
        self._more = more
        self._on_end = on_end
        if self._ended:  # It was given up while its request waited for room.
            self._tell_end()

    def put(self, item: Any, units: int = 1) -> None:
        """Add an item that has come; after the end it is dropped. Raises: ValueError beyond the window."""
        if self._ended:
            return
        if self._held_units + self._untold_units >= self._window:
            raise ValueError(f"items of more than {self._window} units of a stream without credit")
        units = min(units, self._window)
        self._held_units += units
        self.items.append((item, units))
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

    def close(self) -> None:
        """Give the stream up and drop what has come; `wait` finds the end that came before, or an end now."""
        self.items.clear()
        self._end(None)

    def take(self) -> Any:
        """Take the next item, which must have come, and give its units back now or a little later."""
        item, units = self.items.popleft()
        self._held_units -= units
        self._untold_units += units
        if self._untold_units * 2 >= self._window:
            self._tell()
        elif self._teller is None and not self._ended:
            self._teller = asyncio.get_running_loop().call_later(TELL_AFTER_S, self._tell_late)
        return item

    async def wait(self) -> bool:
        """Wait for an item; a cancelled wait takes nothing.

        Returns:
            True if one can be taken; False if the stream has ended regularly.

        Raises:
            FleetError: why the stream has ended.
        """
        while not self.items:
            if self._error is not None:
                raise self._error.with_traceback(None)  # It may be raised many times.
            if self._ended:
                return False
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return True

    def _end(self, error: BaseException | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._error = error
        if self._teller is not None:
            self._teller.cancel()
            self._teller = None
        self._tell_end()
        self._wake()

    def _tell_end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    def _tell(self) -> None:
        """Give back the units that were taken."""
        if self._untold_units and not self._ended and self._more is not None:
            units, self._untold_units = self._untold_units, 0
            self._more(units)

    def _tell_late(self) -> None:
        self._teller = None
        self._tell()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
