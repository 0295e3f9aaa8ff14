"""Before a node says goodbye, its peers take what it has sent them.

The goodbye, and what is said with it (`messaging.settling`), leave behind everything that was sent before,
and have `Settings.goodbye_flush_s`. On a slow path, or to a busy peer, megabytes of answers may be in front
of them. All of that would be lost then, and callers could not know whether they were served. So a node that
leaves first lets each peer prove that it has taken what was sent until now, by a mark
(`messaging.byte_windows`). A peer that is silent meanwhile is dead or stands still, and is not waited for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fleetlm.messaging.byte_windows import LEAST_MARKED_BYTES
from fleetlm.wire import operations

if TYPE_CHECKING:
    from fleetlm.messaging.session import Session
    from fleetlm.settings import Settings

POLL_S = 0.005
"""Seconds between two looks: too short to delay a stop that anybody notices."""
SILENT_TICKS = 1.25
"""A peer that was not heard for so many tick intervals is silent. With the time for the goodbye, a node that
leaves dead peers is gone within two seconds."""
PATIENCE_S = 0.2
"""Seconds for a peer that was silent before, since in a large cluster nodes tick less often."""


async def delivered(sessions: Sequence[Session], settings: Settings, until: float) -> int:
    """Return when each peer has taken what was sent to it, or is silent; at the latest at ``until``.

    Large messages, which leave in pieces, have half of the time. What is left of them is held back then,
    so that the goodbye does not have to wait behind it.

    Args:
        sessions: the node's. Those with next to nothing in flight are passed over.
        settings: the node's.
        until: a time of the running loop.

    Returns:
        How many requests have run whose answers do not leave any more.
    """
    waiting = dict.fromkeys((each for each in sessions if each.in_flight >= LEAST_MARKED_BYTES), math.inf)
    silent_s = SILENT_TICKS * settings.tick_s
    half = (asyncio.get_running_loop().time() + until) / 2
    await _wait(waiting, silent_s, half)
    held = [each for each in sessions if each.lanes]
    for session in held:
        session.lanes.hold()
    await _wait(waiting, silent_s, until)
    return sum(len(each.lanes.taken_requests()) for each in held)


async def _wait(waiting: dict[Session, float], silent_s: float, until: float) -> None:
    """Wait until each peer has taken all that is not held back, or is silent, and remove these.

    Args:
        waiting: the sessions, each with the bytes that the peer must have taken, once that is known.
        silent_s: seconds after which a peer is silent.
        until: when to stop waiting.
    """
    clock = asyncio.get_running_loop().time
    patient_until = clock() + PATIENCE_S
    while waiting and (now := clock()) < until:
        for session, sent_bytes in list(waiting.items()):
            is_silent = now > max(patient_until, session.peer.last_heard + silent_s)
            if session.closed or is_silent or session.byte_window.taken_bytes >= sent_bytes:
                del waiting[session]
            elif sent_bytes == math.inf and not session.lanes.is_sending:
                waiting[session] = _mark(session)
        if waiting:
            await asyncio.sleep(POLL_S)


def _mark(session: Session) -> int:
    """Ask for credit for all that was sent, at once; return how many bytes that is.

    A mark that waits for its credit already may get it with a later tick only, so something is put between.
    """
    session.control(operations.tick(0))
    session.flush()
    session.mark(at_once=True)
    sent_bytes = session.byte_window.sent_bytes
    session.flush()
    return sent_bytes
