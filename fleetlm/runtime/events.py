"""Changes of the cluster for the program: nodes that come, drain and go, and a signal that something changed.

A subscription starts with a `NodeUp` for every node that is connected at that moment, and a `NodeDraining`
for every one that drains; every later change follows, with no gap in between. For each node `NodeUp` and
`NodeDown` alternate strictly. A `NodeDown` also ends the node's drain, without a `NodeUndrained`. Source:
Erlang's net_kernel:monitor_nodes/2; differs: it gives no snapshot.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from fleetlm.directory.subscriptions import Feed
from fleetlm.messages import NodeDown, NodeDraining, NodeUndrained, NodeUp

MAX_RECENT = 100
"""Events that are kept for people who look later."""

Event = NodeUp | NodeDown | NodeDraining | NodeUndrained


class EventHub(Feed[Event]):
    """The connected nodes, those that drain, and the subscribers to their changes."""

    def __init__(self, limit: int, note: Callable[[Event], None] = lambda _: None) -> None:
        """Args: ``limit``: of a subscription; ``note``: called with each event, before the subscribers."""
        super().__init__(limit, _key, _gone, _undo, _ends, is_single=True)
        self._note = note

    def publish(self, event: Event) -> None:
        """Record an event, and tell every subscriber."""
        self._note(event)
        super().publish(event)

    def up(self, event: NodeUp) -> None:
        """Publish that a node is connected."""
        self.publish(event)

    def down(self, event: NodeDown) -> None:
        """Publish that a node is not connected any more."""
        self.publish(event)


class RecentEvents:
    """The last events, for people: for each its time, its kind and a text.

    Args:
        wall_ms: returns the milliseconds of the wall clock.
    """

    def __init__(self, wall_ms: Callable[[], int]) -> None:
        self._wall_ms = wall_ms
        self._events: deque[tuple[int, Event]] = deque(maxlen=MAX_RECENT)

    def note(self, event: Event) -> None:
        """Keep an event, and drop the oldest one if there are too many."""
        self._events.append((self._wall_ms(), event))

    def rows(self) -> list[dict[str, Any]]:
        """Return the events in JSON types, the oldest first."""
        return [
            {"wall_ms": at_ms, "kind": type(event).__name__, "text": _describe(event)}
            for at_ms, event in self._events
        ]


class ChangeSignal:
    """Wakes every coroutine that waits for something to change; each looks again and may wait again."""

    def __init__(self) -> None:
        self._change = asyncio.Event()

    def announce(self) -> None:
        """Wake every coroutine that waits now."""
        change, self._change = self._change, asyncio.Event()
        change.set()

    async def wait(self) -> None:
        """Return at the next `announce`."""
        await self._change.wait()


def _key(event: Event) -> Hashable:
    return event.node, isinstance(event, NodeDraining | NodeUndrained)


def _gone(event: Event) -> bool:
    return isinstance(event, NodeDown | NodeUndrained)


def _ends(event: Event) -> Hashable:
    """A node that is gone does not drain any more."""
    return (event.node, True) if isinstance(event, NodeDown) else None


def _undo(event: Event) -> Event:
    if not isinstance(event, NodeUp | NodeDown):
        return NodeUndrained(event.name)
    return NodeDown(event.node, event.incarnation, "missed: this subscriber reads too slowly")


def _describe(event: Event) -> str:
    match event:
        case NodeDown(node, _, reason):
            return f"{node}: {reason}"
        case NodeDraining(node, _, source):
            return f"{node}, asked by {source}"
    return event.node
