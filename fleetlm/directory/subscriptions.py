"""Subscriptions to things that come and go: connected nodes, members of groups, cluster-wide names.

Theory of operation. An *event* says that a thing has come or that it has gone. A `Feed` keeps the
*present*: one event for each thing that has come and not gone, in the order in which they came (a thing
may come several times, as a process may join a group twice). A `Subscription` is a queue of events for
one reader. It starts with the present and gets every later change, so a reader that applies the events
one by one always has a state that was true at some moment, and misses nothing in between. Taking the
snapshot and subscribing happen in one turn of the event loop; there is no gap to lose an event in.

A reader that is too slow must not make the queue grow without bound. So each subscription remembers what
its reader knows: the present as it was after the last event that was read. When the queue becomes longer
than the limit, it is replaced by the difference between that and the feed's present: first the events
that undo what is no longer there (`Feed.undo` makes them), then what has come. The reader loses
intermediate changes, never the outcome. The difference may itself be longer than the limit, because the
present is; the bound is then twice its length, so that a long present is not computed anew at each event.

The present of a node with large tables is large, and Python's garbage collector visits each event in it. So a
feed may keep something in place of its events that the collector leaves out (`Feed.pack`), such as tuples of
texts and numbers, and make events of them for those who subscribe.

When the node stops, the feed is closed: each subscription ends after what is queued.

Everything happens on the node's event loop, so there are no locks: on another loop nothing would wake the
reader, and it is refused. One task reads a subscription.
"""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar

from fleetlm.messaging.own_loop import check_loop

E = TypeVar("E")


class Subscription(Generic[E]):
    """An async iterator of events; it ends when the node stops, or after `close`.

    ::

        with contextlib.closing(node.events()) as events:
            async for event in events: ...

    A subscriber that does not read keeps at most `Settings.events_limit` events. Beyond that, the events
    that it has not read are replaced by the difference to the present, so it still ends with a correct view.

    Raises:
        RuntimeError: when it is iterated by a second task while a first one waits; each task needs a
            subscription of its own. Also when it is made or iterated on another event loop than the node's.
    """

    def __init__(self, feed: Feed[E], is_wanted: Callable[[E], bool]) -> None:
        self._feed = feed
        self._is_wanted = is_wanted
        self._queue: deque[E] = deque()
        self._max_queued = feed.limit
        """Events that may wait: more than the limit only where the present itself is longer."""
        self._known = _Present(feed)
        """The present as the reader knows it, after the last event that it took."""
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def __aiter__(self) -> Subscription[E]:
        return self

    async def __anext__(self) -> E:
        self._feed.check_loop()
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            if self._waiter is not None and not self._waiter.done():
                raise RuntimeError("two tasks wait for one subscription; each needs its own")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        event = self._queue.popleft()
        self._known.add(event)
        return event

    def close(self) -> None:
        """Take no more events. What is queued can still be read; then the iteration ends."""
        self._closed = True
        self._feed.forget(self)
        self._wake()

    def _publish(self, event: E) -> None:
        """Queue an event, if the subscriber wants it, and wake the reader. Called by the feed."""
        if not self._is_wanted(event):
            return
        self._queue.append(event)
        if len(self._queue) > self._max_queued:
            self._catch_up()
        self._wake()

    def _catch_up(self) -> None:
        """Replace what is queued by the difference between what the reader knows and the present."""
        self._queue = deque(self._known.difference(filter(self._is_wanted, self._feed.present)))
        self._max_queued = max(self._feed.limit, 2 * len(self._queue))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Feed(Generic[E]):
    """The present of one kind of thing, and the subscriptions to its changes.

    Args:
        limit: events kept for a subscriber that does not read.
        key: returns what an event is about; both events of a thing, that it came and went, have the same key.
        gone: whether an event says that something has gone.
        undo: returns the event which says that the thing that came with this one has gone, for
            subscribers that missed the real one.
        ends: returns what an event says to have gone besides, without an event of its own.
        is_single: whether a thing that comes once more has not come twice but has changed.
        pack: returns what is kept of an event that something has come; equal for equal events.
        unpack: makes the event of that again.
    """

    def __init__(
        self,
        limit: int,
        key: Callable[[E], Hashable],
        gone: Callable[[E], bool],
        undo: Callable[[E], E],
        ends: Callable[[E], Hashable] = lambda _: None,
        *,
        is_single: bool = False,
        pack: Callable[[E], Any] = lambda event: event,
        unpack: Callable[[Any], E] = lambda event: event,
    ) -> None:
        self.limit = limit
        self.key = key
        self.gone = gone
        self.undo = undo
        self.ends = ends
        self.is_single = is_single
        self.pack = pack
        self.unpack = unpack
        self._present = _Present(self)
        self._subscriptions: dict[Subscription[E], None] = {}
        self._closed = False
        self._loop = _get_running_loop()
        """The node's loop; None for a feed that was made without one."""

    @property
    def present(self) -> Iterable[E]:
        """One event for each thing that has come and not gone, in the order of their coming."""
        return self._present.events()

    def subscribe(self, is_wanted: Callable[[E], bool] = lambda _: True) -> Subscription[E]:
        """Return a subscription that starts with the present; after `close`, one that has ended.

        Args:
            is_wanted: whether an event interests the subscriber.

        Raises:
            RuntimeError: on another loop than the feed's.
        """
        self.check_loop()
        subscription = Subscription(self, is_wanted)
        self._subscriptions[subscription] = None
        subscription._catch_up()  # noqa: SLF001  # the other half of this module
        if self._closed:
            subscription.close()
        return subscription

    def check_loop(self) -> None:
        """Raise RuntimeError on another loop than the feed's."""
        if self._loop is not None:
            check_loop(self._loop, "A method that subscribes or takes an event")

    def forget(self, subscription: Subscription[E]) -> None:
        """Drop a subscription."""
        self._subscriptions.pop(subscription, None)

    def publish(self, event: E) -> None:
        """Record that something has come or gone, and tell every subscriber."""
        self._present.add(event)
        for subscription in list(self._subscriptions):
            subscription._publish(event)  # noqa: SLF001  # the other half of this module

    def close(self) -> None:
        """End every subscription, now and from here on. Called when the node stops: nothing is present."""
        self._closed = True
        self._present = _Present(self)
        for subscription in list(self._subscriptions):
            subscription.close()


class _Present(Generic[E]):
    """What has come and not gone; a thing may come several times."""

    def __init__(self, feed: Feed[E]) -> None:
        self._feed = feed
        self._came: dict[Hashable, tuple[Any, ...]] = {}
        """What has come, packed, by its key: tuples, since the collector of garbage leaves out those without
        objects in them."""

    def add(self, event: E) -> None:
        """Apply an event. An event that a thing has gone which is not there changes nothing."""
        feed, came = self._feed, self._came
        key = feed.key(event)
        came.pop(feed.ends(event), None)
        if not feed.gone(event):
            if feed.is_single:
                came.pop(key, None)
            came[key] = (*came.get(key, ()), feed.pack(event))
            return
        left = came.get(key, ())[:-1]
        if left:
            came[key] = left
        else:
            came.pop(key, None)

    def events(self) -> list[E]:
        unpack = self._feed.unpack
        return [unpack(packed) for came in self._came.values() for packed in came]

    def difference(self, now: Iterable[E]) -> list[E]:
        """Return the events that lead from this present to ``now``: what has gone, then what has come."""
        feed = self._feed
        left = {key: list(came) for key, came in self._came.items()}
        come = []
        for event in now:
            known, packed = left.get(feed.key(event), []), feed.pack(event)
            if packed in known:
                known.remove(packed)
            else:
                come.append(event)
        return [feed.undo(feed.unpack(packed)) for came in left.values() for packed in came] + come
