"""How one message gets onto a session: its window, its size, its place among those of its sender."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable
from typing import TYPE_CHECKING

from fleetlm.errors import InvalidName, NoConnection
from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from fleetlm.messaging.session import Session


def waiting(session: Session, key: int | str) -> int:
    """Units of this node that a process has not taken yet. Raises: InvalidName for what names no process."""
    return session.held.get(key) or first(key)


def first(key: object) -> int:
    """The first message to a process that nothing waits for: what names it is looked at. Returns 0."""
    if type(key) is not str and type(key) is not int:
        raise InvalidName(SHORT.repr(key), "a process is named by a text, or given as a Pid")
    return 0


def is_full(session: Session, key: int | str, size: int) -> bool:
    """Whether a message of that size would have to wait."""
    return session.full or session.windows.full(key) or (size > session.small_bytes and session.crowded)


def append(session: Session, key: int | str, packed: bytes, sender: Hashable = None) -> bool:
    """Send a message of any size to a process and count it. Returns, raises: as `Session.append`."""
    weight = 1
    if len(packed) >= session.plain_bytes:
        packed, weight = session.weighed(packed)
    must_yield = session.append(packed, sender)
    session.windows.sent(key, weight)
    return must_yield


def put(session: Session, key: int | str, packed: bytes, sender: Hashable = None) -> int:
    """How many were sent: one, or none if the connection is over."""
    try:
        append(session, key, packed, sender)
    except NoConnection:
        return 0
    return 1


async def put_later(session: Session, key: int | str, packed: bytes, sender: Hashable) -> int:
    """As `put`, once there is room; from a task that acts for ``sender``."""
    with contextlib.suppress(NoConnection):
        await session.room(session.small_bytes + 1, key)  # As for a large one: the sender may have a lane.
    return put(session, key, packed, sender)
