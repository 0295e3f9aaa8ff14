"""A stream that may be begun anew elsewhere, as long as none of its items has come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING, Any

from fleetlm.errors import FleetError, NotDelivered, OutcomeUnknown

if TYPE_CHECKING:
    from fleetlm.stream import Source


class RepeatedSource(ABC):
    """Implements `stream.Source` on the sources that `open` returns, one after the other.

    After the first item no other source is opened: the program has seen a part of an answer that would begin
    anew there.
    """

    __slots__ = ("_failure", "_has_item", "_is_closed", "_next", "_source", "items", "take")

    def __init__(self) -> None:
        self._source: Source | None = None
        """The stream that is read now; None until the first item is waited for, and after a failure."""
        self._has_item = False
        self._is_closed = False
        self._failure: FleetError | None = None
        self._next: deque[Any] = deque()
        """The next item, for a moment: the others stay with their source, which gives the producer credit."""
        self.items: Sized = self._next
        self.take: Callable[[], Any] = self._next.popleft

    @abstractmethod
    async def open(self) -> Source:
        """Return the stream to read next. Raises: NotDelivered: there is nobody to ask."""

    @abstractmethod
    async def goes_on(self, error: NotDelivered | OutcomeUnknown) -> bool:
        """Return whether to open another stream after a failure, when it is time to."""

    async def wait(self) -> bool:
        """See `Source`."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        while not self._is_closed:
            try:
                source = self._source or await self._begin()
                if not await source.wait():
                    return False
                self._has_item = True
                self._next.append(source.take())
            except (NotDelivered, OutcomeUnknown) as error:
                if self._has_item or self._is_closed:
                    raise
                self._source = None
                if not await self.goes_on(error):
                    self._failure = error
                    raise
            else:
                return True
        return False

    async def _begin(self) -> Source:
        source = self._source = await self.open()
        if self._is_closed:  # Meanwhile.
            source.close()
        return source

    def close(self) -> None:
        """See `Source`."""
        self._is_closed = True
        self._next.clear()
        if self._source is not None:
            self._source.close()
