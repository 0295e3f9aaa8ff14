"""When a node knows which shards are free: not before it has heard of the shards of all the others.

A shard of which no owner is known here looks free. A host that claimed it too early would begin its entities
anew, although another node has them; when the two meet, one loses what it did meanwhile. So at the start of a
node nothing is claimed until

* discovery has given its first answer, if there is one;
* each node that is known, from whatever source, is connected, or could not be reached twice;
* each connected node has told of its shards. They leave before anything else over a session, so its first
  tick comes after them;
* and ``settle_s`` has passed since then, for what is not known of yet: answers of DNS that name a part of the
  nodes, and hosts that start at the same time.

A node that looks for no others, and knows of none, waits for nothing. No other one waits for longer than
`LIMIT_S`, so that a name server that never answers does not keep a program from serving; the log says what it
has not waited for. Later in its life only one rule holds, that for nodes that are connected and have not told
yet: what a node takes over from one that it has lost must not wait for anything.

What no rule can know: nodes that cannot reach each other at all. `docs/entities.md` says what happens then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

log: logging.Logger = logging.getLogger("fleetlm")

LIMIT_S = 15.0
"""Seconds for all nodes to be met: some three dials that nobody answers. A connected node has as long to tell
of its shards."""


class Outlook(Protocol):
    """Knows which nodes there are."""

    def awaited(self) -> str:
        """Return what must come before this node can know its peers, for people; empty: nothing."""

    def is_alone(self) -> bool:
        """Whether this node looks for no other, and knows of none."""


class Settling:
    """Whether a node has heard of the shards of all others.

    Args:
        time: the loop's clock.
        outlook: knows which nodes there are.

    Attributes:
        last_up: when a session came up last, on the loop's clock.
    """

    def __init__(self, time: Callable[[], float], outlook: Outlook) -> None:
        self._time = time
        self._outlook = outlook
        self._began_at = time()
        self._met_at: float | None = None
        """When this node had met all others for the first time."""
        self._unheard: dict[str, float] = {}
        """Connected node that may not have told of its shards yet → since when it is connected."""
        self.last_up: float = self._began_at

    def node_up(self, node: str) -> None:
        """A session has come up."""
        self.last_up = self._unheard[node] = self._time()

    def ticked(self, node: str) -> None:
        """A connected node has ticked, so all that it had said before has come."""
        self._unheard.pop(node, None)

    def node_down(self, node: str) -> None:
        """A session has ended."""
        self._unheard.pop(node, None)

    def is_over(self, since: float, settle_s: float) -> bool:
        """Whether shards that look free are free.

        Args:
            since: when the kind was hosted here first, on the loop's clock.
            settle_s: see the module.
        """
        now = self._time()
        if self._met_at is None:
            awaited = self._outlook.awaited()
            if awaited and now < self._began_at + LIMIT_S:
                return False
            if awaited:
                log.warning("shards that look free are claimed after %g s, though %s", LIMIT_S, awaited)
            self._met_at = now
        if self._outlook.is_alone():
            return True
        if any(now < at + LIMIT_S for at in self._unheard.values()):
            return False
        return now - max(since, self._met_at) >= settle_s
