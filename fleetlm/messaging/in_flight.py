"""Which requests are made on behalf of work in flight, so that a node that drains serves them.

A node that drains refuses new work. Work that began before must be able to end, though it needs that node: a
handler of A calls B, which drains, and B's handler calls back to A, or goes on to C, whose handler calls B.
Two nodes that drain and call each other would else wait for each other, or fail what they have begun.

So each request says whether it is made on behalf of work in flight. Its sender knows:

* A request that serves a call (`deadline.SERVING`) is, if that call is: it came with this mark, or it came
  before the sender learned that a node drains, or the sender drains itself. What a draining node serves was
  accepted by it, so all of it is work in flight.
* A request that waited for room is, if it was begun before the sender learned of the drain.

New work for a node that has said that it refuses such is refused here already (`InFlight.admit`). A request
to a keyed entity is not: the entities of a node that drains are served there until they have been handed
over, one shard after the other, and the host of their kind refuses what it does not own any more.

A call that arrives soon after the notice may have been on its way before, from a node that did not know of
the drain; so for `TRANSIT_S` seconds what arrives counts as begun before. Such a call may be a new one,
which costs nothing but a moment's more work.

Only a call that is open counts: a task that a handler has left behind starts new work, as any other task
does. When several nodes drain, the time at which the last one told counts for all of them: a little too much
is served, never too little. When none drains, nothing is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from fleetlm.core.draining import Step
from fleetlm.errors import Draining
from fleetlm.messaging.deadline import SERVING
from fleetlm.wire import operations
from fleetlm.wire.blobs import Packed, Parcel
from fleetlm.wire.invocation import is_for_entity

if TYPE_CHECKING:
    from fleetlm.messaging.session import Session

TRANSIT_S = 1.0
"""Seconds that a call may have been on its way: longer than messages travel, and than a short freeze of the
node that gets it, whose notices and calls arrive together."""


def unsent(node: str, left_s: float) -> Draining:
    """Return the error of new work that is not sent to a node which drains for these seconds at most."""
    error = Draining(node, max(0.0, left_s))
    error.was_sent = False
    return error


class InFlight:
    """Knows since when nodes drain.

    Args:
        clock: returns the time of the loop, in seconds.

    Attributes:
        is_watched: whether any node drains, this one included; else no request is looked at.
    """

    __slots__ = ("_clock", "_is_own", "_since", "is_watched")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.is_watched: bool = False
        self._since = -math.inf
        self._is_own = False

    def changed(self, *, is_own: bool, peers_since: Iterable[float]) -> None:
        """Note which drains there are.

        Args:
            is_own: whether this node drains.
            peers_since: for each peer that drains, when its last notice came, on the loop's clock.
        """
        self._is_own = is_own
        self._since = max(peers_since, default=-math.inf)
        self.is_watched = is_own or self._since > -math.inf

    def covers(self, began: float) -> bool:
        """Whether a request that was begun at this time is made on behalf of work in flight."""
        if began < self._since:
            return True
        call = SERVING.get()
        return call is not None and call.open and (self._is_own or call.began < self._since + TRANSIT_S)

    def admit(self, session: Session, began: float, message: Any = None) -> int:
        """Return the mark of a request to another node: 1 on behalf of work in flight, or else 0.

        Args:
            session: to that node.
            began: when the request was begun, on the loop's clock.
            message: the request.

        Raises:
            Draining: it is new work, and that node has said that it refuses such. It is not sent: a request
                that is on its way when the node says goodbye could not be told from one that it has taken.
        """
        if not self.is_watched:
            return 0
        if self.covers(began):
            return 1
        peer = session.peer
        if peer.drain_step is Step.REFUSING and not is_for_entity(message):
            raise unsent(session.name, peer.drain_until - self._clock())
        return 0

    def mark(self, packed: Packed, began: float) -> Packed:
        """Return a packed request that has waited for room since it was packed, with its mark."""
        is_covered = self.is_watched and self.covers(began)
        if not is_covered:
            return packed
        if isinstance(packed, Parcel):
            return Parcel(operations.set_in_flight(packed.envelope), packed.blobs)
        return operations.set_in_flight(packed)
