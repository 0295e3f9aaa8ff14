"""Changes for those who want to hear them: the present first, then every change, with no gap between.

A feed is of things that come and go: connected nodes, members of groups, names. An event says that one
has *come* or has *gone*; what has come and not gone is the present.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

E = TypeVar("E")


class Subscription(Generic[E]):
    """An async iterator of events; ends when the node stops or `close` is called.

    A subscriber that does not read keeps at most ``limit`` events; then what it has not read is
    replaced by the difference to the present, so that it still ends up with the truth.
    """

    def __init__(self, feed: Feed[E], wants: Callable[[E], bool]) -> None:
        self._feed = feed
        self._wants = wants
        self._queue: deque[E] = deque()
        self._most = feed.limit
        """Events that may wait: more than the limit only where the present itself is longer."""
        self._told = _Present(feed)
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def __aiter__(self) -> Subscription[E]:
        return self

    async def __anext__(self) -> E:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            if self._waiter is not None and not self._waiter.done():
                raise RuntimeError("two tasks wait for one subscription; each needs its own")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        event = self._queue.popleft()
        self._told.add(event)
        return event

    def close(self) -> None:
        """Hear no more; what is queued can still be read."""
        self._closed = True
        self._feed.forget(self)
        self._wake()

    def publish(self, event: E) -> None:
        """Queue an event; the node's business."""
        if not self._wants(event):
            return
        self._queue.append(event)
        if len(self._queue) > self._most:
            self.catch_up()
        self._wake()

    def catch_up(self) -> None:
        """Replace what is queued by the difference to the present; the node's business."""
        self._queue = deque(self._told.difference(filter(self._wants, self._feed.present)))
        self._most = max(self._feed.limit, 2 * len(self._queue))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Feed(Generic[E]):
    """The present, and who wants to hear of changes.

    Args:
        limit: events kept for a subscriber that does not read.
        key: of what an event is about; the same for its coming and its going.
        gone: whether an event is a going.
        undo: the event that says that what came with this one has gone, for those who missed it.
    """

    def __init__(
        self,
        limit: int,
        key: Callable[[E], Hashable],
        gone: Callable[[E], bool],
        undo: Callable[[E], E],
    ) -> None:
        self.limit = limit
        self.key = key
        self.gone = gone
        self.undo = undo
        self._present = _Present(self)
        self._subscriptions: dict[Subscription[E], None] = {}
        self._closed = False

    @property
    def present(self) -> Iterable[E]:
        """The comings of all that has not gone, in their order."""
        return self._present.events()

    def subscribe(self, wants: Callable[[E], bool] = lambda _: True) -> Subscription[E]:
        """A subscription that starts with the present; one that has ended once the node has stopped.

        Args:
            wants: whether an event interests the subscriber.
        """
        subscription = Subscription(self, wants)
        self._subscriptions[subscription] = None
        subscription.catch_up()
        if self._closed:
            subscription.close()
        return subscription

    def forget(self, subscription: Subscription[E]) -> None:
        """Drop a subscription."""
        self._subscriptions.pop(subscription, None)

    def publish(self, event: E) -> None:
        """Something has come or gone."""
        self._present.add(event)
        for subscription in list(self._subscriptions):
            subscription.publish(event)

    def close(self) -> None:
        """The node stops: every iteration ends after what is queued."""
        self._closed = True
        for subscription in list(self._subscriptions):
            subscription.close()


class _Present(Generic[E]):
    """What has come and not gone; a thing may come several times."""

    def __init__(self, feed: Feed[E]) -> None:
        self._feed = feed
        self._came: dict[Hashable, list[E]] = {}

    def add(self, event: E) -> None:
        key = self._feed.key(event)
        if not self._feed.gone(event):
            self._came.setdefault(key, []).append(event)
            return
        came = self._came.get(key)
        if came:
            came.pop()
            if not came:
                del self._came[key]

    def events(self) -> list[E]:
        return [event for came in self._came.values() for event in came]

    def difference(self, now: Iterable[E]) -> list[E]:
        """What leads from here to there: all that has gone, then all that has come."""
        left = {key: list(came) for key, came in self._came.items()}
        come = []
        for event in now:
            known = left.get(self._feed.key(event), ())
            if event in known:
                left[self._feed.key(event)].remove(event)
            else:
                come.append(event)
        return [self._feed.undo(event) for came in left.values() for event in came] + come
