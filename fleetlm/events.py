"""nodeup and nodedown for those who want to hear them.

A subscription starts with a `NodeUp` for every node that is connected at that moment; every later
change follows, with no gap between and strictly alternating for each node. Source: Erlang's
net_kernel:monitor_nodes/2; differs: the snapshot.
"""

from __future__ import annotations

import asyncio
from collections import deque

from fleetlm.messages import NodeDown, NodeUp

Event = NodeUp | NodeDown


class Subscription:
    """An async iterator of events; ends when the node stops or `close` is called.

    A subscriber that does not read keeps at most `limit` events; then what it has not read is
    replaced by the difference to the present, so that it still ends up with the truth.
    """

    def __init__(self, hub: EventHub, limit: int) -> None:
        self._hub = hub
        self._limit = limit
        self._queue: deque[Event] = deque()
        self._told: dict[str, NodeUp] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            if self._waiter is not None and not self._waiter.done():
                raise RuntimeError("two tasks wait for one subscription; each needs its own")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        event = self._queue.popleft()
        if isinstance(event, NodeUp):
            self._told[event.node] = event
        else:
            self._told.pop(event.node, None)
        return event

    def close(self) -> None:
        """Hear no more; what is queued can still be read."""
        self._closed = True
        self._hub.forget(self)
        self._wake()

    def publish(self, event: Event, current: dict[str, NodeUp]) -> None:
        """Queue an event; the node's business."""
        self._queue.append(event)
        if len(self._queue) > self._limit:
            self._queue = deque(_difference(self._told, current))
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EventHub:
    """The connected nodes, and who wants to hear of changes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._current: dict[str, NodeUp] = {}
        self._subscriptions: dict[Subscription, None] = {}
        self._closed = False

    def subscribe(self) -> Subscription:
        """A subscription that starts with the present; one that has ended once the node has stopped."""
        subscription = Subscription(self, self._limit)
        self._subscriptions[subscription] = None
        for event in list(self._current.values()):
            subscription.publish(event, self._current)
        if self._closed:
            subscription.close()
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Drop a subscription."""
        self._subscriptions.pop(subscription, None)

    def up(self, event: NodeUp) -> None:
        """A connection became usable."""
        self._current[event.node] = event
        self._publish(event)

    def down(self, event: NodeDown) -> None:
        """A connection ended."""
        self._current.pop(event.node, None)
        self._publish(event)

    def close(self) -> None:
        """The node stops: every iteration ends after what is queued."""
        self._closed = True
        for subscription in list(self._subscriptions):
            subscription.close()

    def _publish(self, event: Event) -> None:
        for subscription in list(self._subscriptions):
            subscription.publish(event, self._current)


def _difference(told: dict[str, NodeUp], current: dict[str, NodeUp]) -> list[Event]:
    """What leads from what a subscriber knows to what is."""
    gone: list[Event] = [
        NodeDown(up.node, up.incarnation, "missed: this subscriber reads too slowly")
        for name, up in told.items()
        if name not in current or current[name].incarnation != up.incarnation
    ]
    come = [
        up for name, up in current.items() if name not in told or told[name].incarnation != up.incarnation
    ]
    return gone + come
