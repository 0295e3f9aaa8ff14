"""What arrives one after the other, for threads: events and the items of streams.

Theory of operation. A thread asks the loop for the next one and waits. The loop takes it from its source and
puts it where the thread finds it (`Arrivals._take`), also if the thread has given up meanwhile: a wait that
times out or is interrupted loses nothing, since the next wait finds what came first.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from fleetlm.errors import NodeStopped

if TYPE_CHECKING:
    from fleetlm.directory.subscriptions import Subscription
    from fleetlm.messaging.targets import Target
    from fleetlm.runtime.thread_requests import ThreadRequests
    from fleetlm.stream import Stream

E = TypeVar("E")
_END: Any = object()


class Arrivals(Generic[E]):
    """The base of what threads iterate over. One thread at a time may wait.

    Args:
        verb: names the wait in errors.
        to: the target of the requests, for errors.
        requests: run on the node's loop.
    """

    def __init__(self, verb: str, to: Target, requests: ThreadRequests) -> None:
        self._verb = verb
        self._to = to
        self._requests = requests
        self._arrived: deque[Any] = deque()
        """What the loop has taken and no thread has got yet."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def close(self) -> None:
        """Take no more. Idempotent."""
        raise NotImplementedError

    def _source(self) -> AsyncIterator[E] | None:
        """Return where the next one comes from; None if nothing comes any more. Called on the loop."""
        raise NotImplementedError

    def _wait(self, timeout_s: float | None) -> Any:
        """Return the next one, or `_END`. Raises: TimeoutError, and as `ThreadRequests.run`."""
        take = functools.partial(self._take, timeout_s)
        self._requests.run(self._verb, self._to, take, timeout_s)
        return self._arrived.popleft()

    async def _take(self, timeout_s: float | None) -> None:
        """Move the next one to where the thread finds it."""
        if self._arrived:
            return
        async with asyncio.timeout(timeout_s):
            source = self._source()
            arrived = _END if source is None else await anext(source, _END)
        self._arrived.append(arrived)


class SyncSubscription(Arrivals[E]):
    """`Subscription` for threads: an iterator of events; it ends when the node stops, or after `close`.

    ::

        with node.sync.events() as events:
            for event in events: ...                # waits without limit for each event
            event = events.get(timeout=1)           # or for a second

    One thread reads a subscription at a time. A wait that ends early, for whatever reason, loses no event.
    """

    def __init__(self, events: Subscription[E], node: str, requests: ThreadRequests) -> None:
        super().__init__("get", node, requests)
        self._events = events

    def __next__(self) -> E:
        try:
            event: E = self._next(None)
        except NodeStopped:
            raise StopIteration from None
        if event is _END:
            raise StopIteration
        return event

    def get(self, timeout: float | None = None) -> E:
        """Return the next event.

        Args:
            timeout: seconds to wait for it; None waits without limit.

        Raises:
            TimeoutError: there was none in time.
            NodeStopped: the node has been stopped.
            ValueError: this subscription has been closed.
        """
        event: E = self._next(timeout)
        if event is _END:
            raise ValueError("this subscription has been closed: subscribe again")
        return event

    def close(self) -> None:
        """Take no more events; the iteration ends, in this thread or another one. Idempotent."""
        try:
            self._requests.run_now("close", self._to, self._events.close)
        except NodeStopped:
            return  # The node closes its subscriptions itself.

    def _source(self) -> AsyncIterator[E]:
        return self._events

    def _next(self, timeout_s: float | None) -> Any:
        """Return the next event, or `_END` after `close`. Raises: TimeoutError, NodeStopped."""
        event = self._wait(timeout_s)
        if event is _END:
            self._requests.check_running()
        return event


class SyncStream(Arrivals[E]):
    """`Stream` for threads. Made by `SyncNode.stream` and `SyncRef.stream`; for one thread at a time.

    ::

        for token in ref.stream(Model.complete, prompt): ...

        with ref.stream(Model.complete, prompt) as tokens:
            first = tokens.get(timeout=1)

    A wait that ends early, for whatever reason, loses no item: the next one gets it. The stream is given up
    by `close`, by the end of ``with``, or when the program drops it.
    """

    def __init__(self, stream: Callable[[], Stream[E]], to: Target, requests: ThreadRequests) -> None:
        super().__init__("stream", to, requests)
        self._make = stream
        self._stream: Stream[E] | None = None
        """Made on the loop, where the first item is waited for."""
        self._is_closed = False

    def __next__(self) -> E:
        return self.get()

    def get(self, timeout: float | None = None) -> E:
        """Return the next item.

        Args:
            timeout: seconds to wait for it; None waits as long as the stream's own limits allow.

        Raises:
            StopIteration: the stream has ended regularly, or was closed.
            TimeoutError: there was none in time.
            FleetError: as `Node.stream` and `SyncNode`, after the items that came before.
        """
        item: E = self._wait(timeout)
        if item is _END:
            raise StopIteration
        return item

    def close(self) -> None:
        """Give the stream up; its producer is cancelled. Idempotent."""
        self._requests.run_soon(self._close)

    def _source(self) -> AsyncIterator[E] | None:
        if self._stream is None and not self._is_closed:
            self._stream = self._make()
        return None if self._is_closed else self._stream

    async def _close(self) -> None:
        self._is_closed = True
        self._arrived.clear()
        if self._stream is not None:
            await self._stream.aclose()
