"""The deadline that travels: what is asked while a call is served has no longer than that call."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from fleetlm.errors import Expired

if TYPE_CHECKING:
    from fleetlm.call import Call

SERVING: ContextVar[Call | None] = ContextVar("fleetlm_serving", default=None)
"""The call that an actor serves in this context. Tasks that a handler starts have a copy of it."""


def within_deadline(timeout_s: float) -> float:
    """The shorter of a time-out and what is left of the call being served, if one is.

    Once that call has been answered or given up it counts no more, so a task that a handler leaves
    behind has the time that it asks for.

    Source: Go's context.WithTimeout, gRPC's deadline propagation; OTP leaves it to the program.

    Raises:
        Expired: nothing is left.
    """
    call = SERVING.get()
    if call is None or not call.open:
        return timeout_s
    left_s = call.remaining_s
    if left_s <= 0:
        raise Expired
    return min(timeout_s, left_s)
