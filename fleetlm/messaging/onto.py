"""How one message gets onto a link: its window, its size, its place among those of its sender."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable
from typing import TYPE_CHECKING

from fleetlm.errors import InvalidName, NoConnection
from fleetlm.wire.extensions import SHORT

if TYPE_CHECKING:
    from fleetlm.messaging.session import Link


def waiting(link: Link, key: int | str) -> int:
    """Units of this node that a process has not taken yet. Raises: InvalidName for what names no process."""
    return link.held.get(key) or first(key)


def first(key: object) -> int:
    """The first message to a process that nothing waits for: what names it is looked at. Returns 0."""
    if type(key) is not str and type(key) is not int:
        raise InvalidName(SHORT.repr(key), "a process is named by a text, or given as a Pid")
    return 0


def is_full(link: Link, key: int | str, size: int) -> bool:
    """Whether a message of that size would have to wait."""
    return link.full or link.windows.full(key) or (size > link.small_bytes and link.crowded)


def append(link: Link, key: int | str, packed: bytes, sender: Hashable = None) -> bool:
    """Send a message of any size to a process and count it. Returns, raises: as `Link.append`."""
    weight = 1
    if len(packed) >= link.plain_bytes:
        packed, weight = link.weighed(packed)
    must_yield = link.append(packed, sender)
    link.windows.sent(key, weight)
    return must_yield


def put(link: Link, key: int | str, packed: bytes, sender: Hashable = None) -> int:
    """How many were sent: one, or none if the connection is over."""
    try:
        append(link, key, packed, sender)
    except NoConnection:
        return 0
    return 1


async def put_later(link: Link, key: int | str, packed: bytes, sender: Hashable) -> int:
    """As `put`, once there is room; from a task that acts for ``sender``."""
    with contextlib.suppress(NoConnection):
        await link.room(link.small_bytes + 1, key)  # As for a large one: the sender may have a lane.
    return put(link, key, packed, sender)
