"""Large messages in chunks, so that heartbeats and small messages do not wait behind them.

**Sending.** A message above `Settings.chunk_bytes` is a *transfer* and waits in the *lane* of its sender.
Lanes take turns, one chunk each, as long as less than `Settings.bulk_window_bytes` of chunks are in flight;
small messages of other senders pass between the chunks. Messages from one sender to one receiver arrive in
the order sent, so whatever the same sender sends later queues in its lane too, and the lane is gone when it
is empty.

A lane outlives its sender: a process that has ended may still have messages there, and its exit signals
must not overtake them. `Lanes.ended` therefore keeps the number of the ended process until its lane is
empty.

Answers to the peer's requests have a lane for each request (`AnswerLane`). Small ones wait there too, while
the window of the connection is full; their bytes are counted apart.

**Receiving.** `Reassembly` puts chunks together by the number of their transfer. All unfinished transfers
of one connection together may claim `Settings.max_message_bytes`. The sender knows that limit from the
handshake and does not begin a transfer beyond it; a peer that does so nevertheless breaks the protocol
(`BadFrame`). One transfer may always be begun, so that none waits for ever.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Hashable
from typing import NamedTuple

from fleetlm.wire.frames import CHUNK_HEAD, BadFrame

MAX_TRANSFERS = 16_384
"""Unfinished transfers of one connection; a peer that never ends what it begins must not fill memory."""


class AnswerLane(NamedTuple):
    """The sender of the answers to one request of the peer: its items in order, and then its end."""

    ref: int


class Transfer:
    """One large message that is being sent."""

    __slots__ = ("number", "offset", "units", "view")

    def __init__(self, packed: bytes, units: int) -> None:
        self.number: int = -1  # until its first chunk is sent
        self.units: int = units
        self.view: memoryview[int] = memoryview(packed)
        self.offset: int = 0


class Lanes:
    """The large messages that wait to be sent on one connection, and the messages that queue behind them.

    Args:
        chunk_bytes: bytes of a chunk; a longer message is a transfer.
        unfinished_bytes: bytes of unfinished transfers that the receiver accepts; see `Reassembly`.
        answer_limit_bytes: bytes of answers from which on these lanes are behind.
    """

    def __init__(
        self, chunk_bytes: int, unfinished_bytes: int = sys.maxsize, answer_limit_bytes: int = sys.maxsize
    ) -> None:
        self.chunk_bytes = chunk_bytes
        self.waiting_bytes: int = 0
        """Bytes of all lanes that were not sent yet; 0 means that there is no lane."""
        self.answer_bytes: int = 0
        """Those of them in the lanes of answers."""
        self.is_behind: bool = False
        """Whether ``answer_limit_bytes`` of answers wait."""
        self._answer_limit_bytes = answer_limit_bytes
        self._unfinished_bytes = unfinished_bytes
        self._begun_bytes = 0
        self._lanes: dict[Hashable, deque[bytes | Transfer]] = {}
        self._turns: deque[Hashable] = deque()
        """Senders whose lane begins with a large message, the next one first."""
        self._small_turns: deque[Hashable] = deque()
        """Senders whose lane begins with a small one."""
        self._is_turn_of_small = True
        self._next_number = 0
        self._ended: dict[Hashable, int] = {}
        """Processes that have ended and still have a lane: the number of each sender, and the reverse."""
        self._ended_as: dict[int, Hashable] = {}

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def add(self, sender: Hashable, packed: bytes, units: int = 1) -> None:
        """Queue a message in its sender's lane: a large one, or one that must not overtake a large one.

        Args:
            sender: whose messages stay in order.
            packed: one item of a batch.
            units: what it counts in the window of its process; the chunks of a large one say it.
        """
        item: bytes | Transfer = packed
        if len(packed) > self.chunk_bytes:
            item = Transfer(packed, units)
        self._count(sender, len(packed))
        lane = self._lanes.get(sender)
        if lane is None:
            lane = self._lanes[sender] = deque([item])
            self._line_up(sender, lane)
        else:
            lane.append(item)

    def has(self, sender: Hashable) -> bool:
        """Whether messages of this sender must queue."""
        return sender in self._lanes

    def senders(self) -> list[Hashable]:
        """Return the senders that have a lane, without the answers to requests of the peer."""
        return [sender for sender in self._lanes if type(sender) is not AnswerLane]

    def ended(self, sender: Hashable, number: int) -> None:
        """Note that a process has ended; its number stays known until its lane is empty."""
        if sender in self._lanes:
            self._ended[sender] = number
            self._ended_as[number] = sender

    def of_ended(self, number: int) -> Hashable | None:
        """Return the sender that was this ended process, if it still has a lane."""
        return self._ended_as.get(number)

    def next(self, *, may_send_chunk: bool = True) -> bytes | tuple[bytes, memoryview] | None:
        """Take what goes next: small messages and chunks in turns.

        Returns:
            A small message; or a chunk, as its head and its bytes; or None if the receiver can take none now.
        """
        chunk = None
        if may_send_chunk and not (self._is_turn_of_small and self._small_turns):
            chunk = self._next_chunk()
        if chunk is not None or not self._small_turns:
            self._is_turn_of_small = True
            return chunk
        self._is_turn_of_small = False
        sender = self._small_turns.popleft()
        lane = self._lanes[sender]
        item = lane.popleft()
        assert isinstance(item, bytes)
        self._count(sender, -len(item))
        self._end_turn(sender, lane)
        return item

    def _next_chunk(self) -> tuple[bytes, memoryview] | None:
        """Take the next chunk of the first transfer that the receiver can take."""
        for _ in range(len(self._turns)):
            sender = self._turns.popleft()
            lane = self._lanes[sender]
            item = lane[0]
            if isinstance(item, Transfer) and (item.number >= 0 or self._begin(item)):
                piece = self._cut(item, lane)
                self._count(sender, -len(piece))
                self._end_turn(sender, lane)
                return CHUNK_HEAD.pack(item.number, item.units, len(item.view)), piece
            self._turns.append(sender)
        return None

    def _begin(self, item: Transfer) -> bool:
        """Give a transfer its number. Returns False if the receiver would hold too much unfinished."""
        total_bytes = len(item.view)
        if self._begun_bytes and self._begun_bytes + total_bytes > self._unfinished_bytes:
            return False
        self._begun_bytes += total_bytes
        item.number = self._next_number
        self._next_number = (self._next_number + 1) & 0xFFFFFFFF
        return True

    def _cut(self, item: Transfer, lane: deque[bytes | Transfer]) -> memoryview:
        """Cut the next chunk off a transfer, and take the transfer out of its lane with the last one."""
        piece = item.view[item.offset : item.offset + self.chunk_bytes]
        item.offset += len(piece)
        if item.offset == len(item.view):
            self._begun_bytes -= len(item.view)
            lane.popleft()
        return piece

    def clear(self) -> None:
        """Drop everything: the connection is over."""
        self._lanes.clear()
        self._turns.clear()
        self._small_turns.clear()
        self._ended.clear()
        self._ended_as.clear()
        self.waiting_bytes = self.answer_bytes = self._begun_bytes = 0
        self.is_behind = False

    def _end_turn(self, sender: Hashable, lane: deque[bytes | Transfer]) -> None:
        """Put a sender at the end of the turns, or forget it with its empty lane."""
        if lane:
            self._line_up(sender, lane)
            return
        del self._lanes[sender]
        if sender in self._ended:
            del self._ended_as[self._ended.pop(sender)]

    def _line_up(self, sender: Hashable, lane: deque[bytes | Transfer]) -> None:
        """Put a sender at the end of the turns of what its lane begins with."""
        (self._small_turns if isinstance(lane[0], bytes) else self._turns).append(sender)

    def _count(self, sender: Hashable, size_bytes: int) -> None:
        self.waiting_bytes += size_bytes
        if type(sender) is AnswerLane:
            self.answer_bytes += size_bytes
            self.is_behind = self.answer_bytes >= self._answer_limit_bytes


class Reassembly:
    """The unfinished transfers that come in on one connection.

    Args:
        limit_bytes: the bytes that all unfinished transfers together may claim.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._claimed_bytes = 0
        self._unfinished: dict[int, tuple[int, int, bytearray]] = {}
        """The units, the size and what has come of each."""

    def add(self, body: memoryview) -> tuple[memoryview, int] | None:
        """Take the body of a CHUNK: its head, and a piece of a message.

        Returns:
            The whole message and its units with its last chunk, else None.

        Raises:
            BadFrame: the chunk fits no message, or the unfinished ones would be too large.
        """
        if len(body) <= CHUNK_HEAD.size:
            raise BadFrame("a chunk without its head or without bytes")
        number, units, total_bytes = CHUNK_HEAD.unpack_from(body)
        piece = body[CHUNK_HEAD.size :]
        known = self._unfinished.get(number)
        if known is None:
            if total_bytes > self._limit_bytes - self._claimed_bytes:
                raise BadFrame(f"large messages of more than {self._limit_bytes:,} bytes at a time")
            if len(self._unfinished) >= MAX_TRANSFERS:
                raise BadFrame(f"more than {MAX_TRANSFERS:,} large messages at a time")
            self._claimed_bytes += total_bytes
            known = (units, total_bytes, bytearray())
        claimed_units, claimed_bytes, whole = known
        have_bytes = len(whole) + len(piece)
        if (units, total_bytes) != (claimed_units, claimed_bytes) or have_bytes > total_bytes:
            raise BadFrame("a chunk that does not fit its message")
        whole += piece  # Joining all chunks at the end would hold up the event loop.
        if have_bytes < total_bytes:
            self._unfinished[number] = (units, total_bytes, whole)
            return None
        self._unfinished.pop(number, None)
        self._claimed_bytes -= total_bytes
        return memoryview(whole), units
