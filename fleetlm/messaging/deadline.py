"""The deadline that travels: a request made while a call is served gets at most what that call has left."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from fleetlm.errors import Expired

if TYPE_CHECKING:
    from fleetlm.call import Call

SERVING: ContextVar[Call | None] = ContextVar("fleetlm_serving", default=None)
"""The call that an actor serves in this context. Tasks that a handler starts inherit it."""


def within_deadline(timeout_s: float) -> float:
    """Return the shorter of a timeout and what is left of the call that is being served, if there is one.

    A call that has been answered or given up does not count any more, so a task that a handler leaves behind
    gets the time that it asks for.

    Source: Go's context.WithTimeout, gRPC's deadline propagation; OTP leaves it to the program.

    Args:
        timeout_s: seconds.

    Raises:
        Expired: nothing is left of the call that is being served.
    """
    call = SERVING.get()
    if call is None or not call.open:
        return timeout_s
    left_s = call.remaining_s
    if left_s <= 0:
        raise Expired
    return min(timeout_s, left_s)
