"""What becomes of open requests when a session ends in order.

The node that ends it says, as its last message (SETTLED), which requests of the peer it has taken and will
not answer. All its other answers have come before that, and it takes nothing afterwards. So whatever else
is open at the peer was never taken, and fails with `NoConnection`, which is a `NotDelivered`; the requests
that were named fail with `NodeLost`. Without such a message, as after a crash, nothing is known, and all of
them do.

An answer that still waits in a lane when the session ends is dropped. Its request has been taken and is named
too, unless the answer says that nothing has run (`AnswerLane`).

A request whose deadline has passed is dropped without an answer, since its caller has stopped waiting and
sends a CANCEL. A caller that was frozen has not, and must not hear that its request was never taken: until
the CANCEL comes, such a request counts as taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleetlm.errors import FleetError, NoConnection, NodeLost
from fleetlm.wire import operations
from fleetlm.wire.operations import MAX_UNANSWERED

if TYPE_CHECKING:
    from fleetlm.call import Call


class Settlement:
    """What one node has to say of the peer's requests, and what the peer has said of this node's.

    Attributes:
        expired: requests of the peer that expired here unanswered and that it has not cancelled yet.
        unanswered: requests of this node that the peer took and will not answer, once it has said so.
    """

    __slots__ = ("expired", "unanswered")

    def __init__(self) -> None:
        self.expired: set[int] = set()
        self.unanswered: frozenset[int] | None = None

    def note_expired(self, ref: int) -> None:
        """Remember a request that was dropped unanswered; with too many, nothing is said at the end."""
        if len(self.expired) <= MAX_UNANSWERED:
            self.expired.add(ref)

    def last_message(self, requests: dict[int, Call], dropped: set[int]) -> list[Any] | None:
        """Build the SETTLED; None if it would name too many requests.

        Args:
            requests: those of the peer that are open.
            dropped: those that were taken and whose answers will not leave.
        """
        taken = self.expired | dropped | {ref for ref, call in requests.items() if call.is_taken}
        return operations.settled([*taken]) if len(taken) <= MAX_UNANSWERED else None

    def error(self, ref: int, node: str, reason: str) -> FleetError:
        """Return the outcome of a request of this node that is open when the session has ended."""
        if self.unanswered is None or ref in self.unanswered:
            return NodeLost(node, reason)
        return NoConnection(node, f"{reason}. It had not taken the request")
