"""What becomes of open requests when a session ends in order.

The node that ends it says, as its last message (SETTLED), which requests of the peer it has taken and will
not answer. All its other answers have come before that, and it takes nothing afterwards. So whatever else
is open at the peer was never taken, and fails with `NoConnection`, which is a `NotDelivered`; the requests
that were named fail with `NodeLost`. Without such a message, as after a crash, nothing is known, and all of
them do. Many requests need several messages, each of which says how many follow: nothing is known either
until the last one has come.

An answer that still waits in a lane when the session ends is dropped. Its request has been taken and is named
too, unless the answer says that nothing has run (`AnswerLane`).

A request whose deadline has passed is dropped without an answer, since its caller has stopped waiting and
sends a CANCEL. A caller that was frozen has not, and must not hear that its request was never taken: until
the CANCEL comes, such a request counts as taken.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

from fleetlm.errors import FleetError, NoConnection, NodeLost
from fleetlm.wire import operations
from fleetlm.wire.operations import MAX_UNANSWERED

if TYPE_CHECKING:
    from fleetlm.call import Call


class Settlement:
    """What one node has to say of the peer's requests, and what the peer has said of this node's.

    Args:
        max_expired: expired requests that are remembered. As many as one peer may have open: one that is
            frozen cancels none of them, and sends no others. With more, nothing is said at the end.

    Attributes:
        expired: requests of the peer that expired here unanswered and that it has not cancelled yet.
        unanswered: requests of this node that the peer took and will not answer, once it has said so.
    """

    __slots__ = ("_max_expired", "_named", "expired", "unanswered")

    def __init__(self, max_expired: int) -> None:
        self._max_expired = max_expired
        self.expired: set[int] = set()
        self._named: set[int] = set()
        """What the peer has named so far: of the requests that are open here, so that it fills no memory."""
        self.unanswered: set[int] | None = None

    def note_expired(self, ref: int) -> None:
        """Remember a request that was dropped unanswered."""
        if len(self.expired) <= self._max_expired:
            self.expired.add(ref)

    def last_messages(self, requests: dict[int, Call], dropped: set[int]) -> list[list[Any]]:
        """Build the SETTLED, in as many messages as it needs; none if not all that expired is known.

        Args:
            requests: those of the peer that are open.
            dropped: those that were taken and whose answers will not leave.
        """
        if len(self.expired) > self._max_expired:
            return []
        taken = sorted(self.expired | dropped | {ref for ref, call in requests.items() if call.is_taken})
        starts = range(0, max(1, len(taken)), MAX_UNANSWERED)
        parts = [taken[start : start + MAX_UNANSWERED] for start in starts]
        return [
            operations.settled(part, left)
            for part, left in zip(parts, reversed(range(len(parts))), strict=True)
        ]

    def told(self, refs: list[int], left: int, calls: Container[int]) -> None:
        """Take a SETTLED of the peer.

        Args:
            refs: requests that it has taken and does not answer.
            left: how many such messages follow.
            calls: the requests of this node that are open.
        """
        self._named.update(ref for ref in refs if ref in calls)
        if not left:
            self.unanswered = self._named

    def error(self, ref: int, node: str, reason: str) -> FleetError:
        """Return the outcome of a request of this node that is open when the session has ended."""
        if self.unanswered is None or ref in self.unanswered:
            return NodeLost(node, reason)
        return NoConnection(node, f"{reason}. It had not taken the request")
