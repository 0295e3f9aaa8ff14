"""The window of a destination process: what one node has sent it and it has not taken yet.

Both sides count. The sender counts what it sends to each pid or name, and lets senders wait at the
limit; the receiver counts what it has got for each and not told to be taken, and holds a peer that
goes beyond the limit for a bad one. So a slow process fills its own window and stops nobody else.

A message counts 1, and 1 more for each `UNIT_BYTES`, so that a window is a bound on memory as well: of
4,096 units 64 MiB. A message may go while the window is not full, so one large message may exceed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING

import msgpack

from fleetlm.wire.frames import Op

if TYPE_CHECKING:
    from fleetlm.messaging.mailbox import Key, Mailbox

UNIT_BYTES = 16 * 1024
"""Bytes of a message that count as much as a message of their own."""
MAX_UNTOLD = 4_096
"""Destinations of which something was taken and not told: bounds the tables of both sides."""
MAX_SWEPT = 16_384
"""Mailboxes looked at in one tick: some 20 ms."""
TOLD_SHARE = 8
"""What was taken is told for every eighth of a window: rarely enough to cost nothing."""

_pack: Callable[[int], bytes] = msgpack.Packer().pack
_ARRAY = 0x90
"""msgpack: an array of so many items, up to fifteen."""
_HEAVY = bytes((_ARRAY + 4,)) + _pack(int(Op.HEAVY))


def units(size_bytes: int, limit: int) -> int:
    """What a packed message counts; never more than a whole window."""
    return min(limit, 1 + size_bytes // UNIT_BYTES)


def weighed(packed: bytes, count: int) -> bytes:
    """A packed ``[to, payload]`` or ``[CALL, ...]`` that says what it counts."""
    if packed[0] == _ARRAY + 2:
        return _HEAVY + packed[1:] + _pack(count)
    return bytes((packed[0] + 1,)) + packed[1:] + _pack(count)


class SendWindows:
    """The sender's side of one connection."""

    __slots__ = ("_waiters", "held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: dict[Key, int] = {}
        """Units sent and not known to be taken; whoever sends counts."""
        self._waiters: dict[Key, dict[asyncio.Future[None], None]] = {}

    def full(self, key: Key) -> bool:
        """Whether a sender to this process should wait."""
        return self.held.get(key, 0) >= self.limit

    def sent(self, key: Key, count: int) -> None:
        """Count a message that has been sent."""
        self.held[key] = self.held.get(key, 0) + count

    def taken(self, key: Key, count: int) -> None:
        """The receiver says so. Raises: ValueError for more than was sent."""
        left = self.held.get(key, 0) - count
        if left < 0 or count < 1:
            raise ValueError(f"{count} messages taken that were not sent")
        if left:
            self.held[key] = left
        else:
            del self.held[key]
        waiters = self._waiters.get(key)
        if waiters and left < self.limit:
            # One that is woken may fail: when nothing is held no further TAKEN would wake the others.
            _wake(list(waiters)[: self.limit - left] if left else waiters)

    async def wait(self, key: Key) -> None:
        """Return when something may have changed; in the order of those who wait."""
        waiters = self._waiters.setdefault(key, {})
        waiter = asyncio.get_running_loop().create_future()
        waiters[waiter] = None
        try:
            await waiter
        finally:
            del waiters[waiter]
            if not waiters and self._waiters.get(key) is waiters:
                del self._waiters[key]

    def close(self) -> None:
        """The connection is over: nobody waits any more."""
        self.held.clear()
        for waiters in self._waiters.values():
            _wake(waiters)


class ReceiveWindows:
    """The receiver's side of one connection.

    Args:
        limit: units for each destination, as the sender has it.
        tell: sends ``(key, units)`` to the peer.
    """

    __slots__ = ("_boxes", "_tell", "_untold", "held", "limit", "step")

    def __init__(self, limit: int, tell: Callable[[Key, int], None]) -> None:
        self.limit = limit
        self.step = max(1, limit // TOLD_SHARE)
        self.held: dict[Key, int] = {}
        """Units received and not told to be taken."""
        self._tell = tell
        self._untold: dict[Key, int] = {}
        self._boxes: dict[Mailbox, None] = {}

    def received(self, key: Key, count: int, box: Mailbox | None, weight: int = 1) -> None:
        """So many messages have come, each of ``weight`` units, and were appended to ``box``.

        Without a box nobody is there to take them, so that they are taken already.

        Raises:
            ValueError: the peer ignores its window.
        """
        before = self.held.get(key, 0)
        if before + count > self.limit:
            raise ValueError(f"more than {self.limit:,} messages that were not taken, without credit")
        self.held[key] = before + count * weight
        if box is None:
            self.took(key, count * weight)
            return
        self._boxes[box] = None
        box.arrived(self, key, count, weight)

    def took(self, key: Key, count: int) -> None:
        """So many units have left a mailbox."""
        self._untold[key] = now = self._untold.get(key, 0) + count
        if now >= self.step:
            self._tell_one(key)
        elif len(self._untold) > MAX_UNTOLD:
            self.tell_all()

    def sweep(self) -> None:
        """Tell what little was taken of mailboxes that have become quiet; once for every tick.

        Of many mailboxes some at a time, in turns: a tick must not hold up the loop.
        """
        for box in list(islice(self._boxes, MAX_SWEPT)):
            box.settle()
            del self._boxes[box]
            if box.has_of(self):
                self._boxes[box] = None
        self.tell_all()

    def tell_all(self) -> None:
        """Tell all that was taken."""
        for key in list(self._untold):
            self._tell_one(key)

    def _tell_one(self, key: Key) -> None:
        count = self._untold.pop(key)
        left = self.held[key] - count
        if left:
            self.held[key] = left
        else:
            del self.held[key]
        self._tell(key, count)


def _wake(waiters: Iterable[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
