"""nodeup and nodedown for those who want to hear them.

A subscription starts with a `NodeUp` for every node that is connected at that moment; every later
change follows, with no gap between and strictly alternating for each node. Source: Erlang's
net_kernel:monitor_nodes/2; differs: the snapshot.
"""

from __future__ import annotations

from collections.abc import Hashable

from fleetlm.directory.subscriptions import Feed
from fleetlm.messages import NodeDown, NodeUp

Event = NodeUp | NodeDown


class EventHub(Feed[Event]):
    """The connected nodes, and who wants to hear of changes."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit, _key, _gone, _undo)

    def up(self, event: NodeUp) -> None:
        """A connection became usable."""
        self.publish(event)

    def down(self, event: NodeDown) -> None:
        """A connection ended."""
        self.publish(event)


def _key(event: Event) -> Hashable:
    return event.node


def _gone(event: Event) -> bool:
    return isinstance(event, NodeDown)


def _undo(event: Event) -> Event:
    return NodeDown(event.node, event.incarnation, "missed: this subscriber reads too slowly")
