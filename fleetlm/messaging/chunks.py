"""Large messages in pieces, so that nothing waits behind them.

Sending: a message above `Settings.chunk_bytes` gets a *lane*. Lanes take turns, a piece each, while
`Settings.bulk_window_bytes` are in flight; small messages of everybody else pass between the pieces.
What the same sender sends later queues in its lane, since from one sender to one receiver messages
arrive in the order sent.

Receiving: pieces are put together by transfer number, within `Settings.max_message_bytes` for all
unfinished transfers of one connection.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Hashable

from fleetlm.wire.frames import CHUNK_HEAD, BadFrame

MAX_TRANSFERS = 16_384
"""Unfinished large messages of one connection: a peer that never ends them must not fill memory."""


class Transfer:
    """One large message on its way out."""

    __slots__ = ("number", "offset", "view")

    def __init__(self, packed: bytes) -> None:
        self.number: int = -1  # given with the first piece
        self.view: memoryview[int] = memoryview(packed)
        self.offset: int = 0


class Lanes:
    """What waits to be sent in pieces, and what waits behind it."""

    def __init__(self, chunk_bytes: int, unfinished_bytes: int = sys.maxsize) -> None:
        self.chunk_bytes = chunk_bytes
        self.waiting_bytes: int = 0
        self._unfinished_bytes = unfinished_bytes
        """What the receiver takes of messages that are begun and not done: see `Reassembly`."""
        self._begun_bytes = 0
        self._lanes: dict[Hashable, deque[bytes | Transfer]] = {}
        self._turns: deque[Hashable] = deque()
        self._next_number = 0
        self._ended: dict[Hashable, int] = {}
        """Senders that have ended, and as whom they were known."""
        self._ended_as: dict[int, Hashable] = {}

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def add(self, sender: Hashable, packed: bytes) -> None:
        """Queue a message of this sender: a large one, or one behind a large one."""
        item: bytes | Transfer = packed
        if len(packed) > self.chunk_bytes:
            item = Transfer(packed)
        self.waiting_bytes += len(packed)
        lane = self._lanes.get(sender)
        if lane is None:
            self._lanes[sender] = deque([item])
            self._turns.append(sender)
        else:
            lane.append(item)

    def has(self, sender: Hashable) -> bool:
        """Whether this sender's messages must queue."""
        return sender in self._lanes

    def ended(self, sender: Hashable, number: int) -> None:
        """This process has ended; what it has sent still leaves, and its number stays known so long."""
        if sender in self._lanes:
            self._ended[sender] = number
            self._ended_as[number] = sender

    def of_ended(self, number: int) -> Hashable | None:
        """The sender that was this process, if something of it still waits here."""
        return self._ended_as.get(number)

    def next(self) -> bytes | tuple[bytes, memoryview] | None:
        """What goes next: a small message, a piece (its head and its bytes), or None."""
        for _ in range(len(self._turns)):
            sender = self._turns.popleft()
            lane = self._lanes[sender]
            item = lane[0]
            if isinstance(item, bytes):
                self.waiting_bytes -= len(item)
                lane.popleft()
                self._another_turn(sender, lane)
                return item
            if item.number >= 0 or self._begin(item):
                piece = self._piece(item, lane)
                self._another_turn(sender, lane)
                return CHUNK_HEAD.pack(item.number, len(item.view)), piece
            self._turns.append(sender)
        return None

    def _begin(self, item: Transfer) -> bool:
        """Give a message its number, unless the receiver might have to hold too much at a time."""
        total_bytes = len(item.view)
        if self._begun_bytes and self._begun_bytes + total_bytes > self._unfinished_bytes:
            return False
        self._begun_bytes += total_bytes
        item.number = self._next_number
        self._next_number = (self._next_number + 1) & 0xFFFFFFFF
        return True

    def _piece(self, item: Transfer, lane: deque[bytes | Transfer]) -> memoryview:
        piece = item.view[item.offset : item.offset + self.chunk_bytes]
        item.offset += len(piece)
        self.waiting_bytes -= len(piece)
        if item.offset == len(item.view):
            self._begun_bytes -= len(item.view)
            lane.popleft()
        return piece

    def clear(self) -> None:
        """The connection is over."""
        self._lanes.clear()
        self._turns.clear()
        self._ended.clear()
        self._ended_as.clear()
        self.waiting_bytes = self._begun_bytes = 0

    def _another_turn(self, sender: Hashable, lane: deque[bytes | Transfer]) -> None:
        if lane:
            self._turns.append(sender)
            return
        del self._lanes[sender]
        if sender in self._ended:
            del self._ended_as[self._ended.pop(sender)]


class Reassembly:
    """Large messages on their way in, of one connection."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._claimed_bytes = 0
        self._unfinished: dict[int, tuple[int, bytearray]] = {}

    def add(self, head: bytes, piece: bytes) -> memoryview | None:
        """Take a piece. Returns the whole message with its last one. Raises: BadFrame."""
        if len(head) != CHUNK_HEAD.size or not piece:
            raise BadFrame("a chunk without its head or without bytes")
        number, total_bytes = CHUNK_HEAD.unpack(head)
        known = self._unfinished.get(number)
        if known is None:
            if total_bytes > self._limit_bytes - self._claimed_bytes:
                raise BadFrame(f"large messages of more than {self._limit_bytes:,} bytes at a time")
            if len(self._unfinished) >= MAX_TRANSFERS:
                raise BadFrame(f"more than {MAX_TRANSFERS:,} large messages at a time")
            self._claimed_bytes += total_bytes
            known = (total_bytes, bytearray())
        claimed_bytes, whole = known
        have_bytes = len(whole) + len(piece)
        if total_bytes != claimed_bytes or have_bytes > total_bytes:
            raise BadFrame("a chunk that does not fit its message")
        whole += piece  # now, not at the end: that would hold up the loop for a long while
        if have_bytes < total_bytes:
            self._unfinished[number] = (total_bytes, whole)
            return None
        self._unfinished.pop(number, None)
        self._claimed_bytes -= total_bytes
        return memoryview(whole)
