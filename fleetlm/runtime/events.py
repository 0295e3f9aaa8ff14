"""Changes of the cluster for the program: nodeup and nodedown events, and a signal that something changed.

A subscription starts with a `NodeUp` for every node that is connected at that moment; every later
change follows, with no gap in between, and for each node the two alternate strictly. Source: Erlang's
net_kernel:monitor_nodes/2; differs: it gives no snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from fleetlm.directory.subscriptions import Feed
from fleetlm.messages import NodeDown, NodeUp

Event = NodeUp | NodeDown


class EventHub(Feed[Event]):
    """The connected nodes, and the subscribers to nodeup and nodedown."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit, _key, _gone, _undo)

    def up(self, event: NodeUp) -> None:
        """Publish that a node is connected."""
        self.publish(event)

    def down(self, event: NodeDown) -> None:
        """Publish that a node is not connected any more."""
        self.publish(event)


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
    return event.node


def _gone(event: Event) -> bool:
    return isinstance(event, NodeDown)


def _undo(event: Event) -> Event:
    return NodeDown(event.node, event.incarnation, "missed: this subscriber reads too slowly")
