"""Large messages in chunks, so that heartbeats and small messages do not wait behind them.

**Sending.** A message above `Settings.large_bytes` is a *transfer* and waits in the *lane* of its sender.
Its chunks have up to `Settings.chunk_bytes`, and more where no small messages pass them
(`messaging.byte_windows`); they are slices of the message and of its blobs, and are lent to the transport.
Lanes take turns, one chunk each, as long as less than `Settings.bulk_window_bytes` of chunks are in flight;
small messages of other senders pass between the chunks. Messages from one sender to one receiver arrive in
the order sent, so whatever the same sender sends later queues in its lane too, and the lane is gone when it
is empty.

A lane outlives its sender: a process that has ended may still have messages there, and its exit signals
must not overtake them. `Lanes.ended` therefore keeps the number of the ended process until its lane is
empty.

Answers to the peer's requests have a lane for each request (`AnswerLane`). Small ones wait there too, while
the window of the connection is full; their bytes are counted apart.

**Receiving.** `Reassembly` puts chunks together by the number of their transfer: the envelope and each blob
in a buffer of its own (`wire.blobs`). All unfinished transfers of one connection together may claim
`Settings.max_message_bytes`. The sender knows that limit from the handshake and does not begin a transfer
beyond it; a peer that does so nevertheless breaks the protocol (`BadFrame`). One transfer may always be
begun, so that none waits for ever.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Hashable

from fleetlm.records import Row
from fleetlm.wire.blobs import MAX_BLOBS, MIN_BLOB_BYTES, Hold, Packed, Parcel
from fleetlm.wire.frames import CHUNK_HEAD, HEADER_BYTES, BadFrame, Chunk, read_chunk

MAX_TRANSFERS = 16_384
"""Unfinished transfers of one connection; a peer that never ends what it begins must not fill memory."""


class AnswerLane(Row):
    """The sender of the answers to one request of the peer: its items in order, and then its end."""

    ref: int
    has_run: bool = True
    """False if the only answer says that the request was not taken, or that nothing of it has run."""


LEAD_BYTES = 16 * 1024
"""An envelope of up to this size shares a frame with the first slice of a blob: copying it costs less."""
_NOTHING = memoryview(b"")


class Transfer:
    """One large message that is being sent.

    Attributes:
        number: of the transfer; -1 until its first chunk is sent.
        total_bytes: of everything.
        left_bytes: what was not sent yet.
    """

    __slots__ = ("_blob_sizes", "_segments", "_units", "left_bytes", "number", "total_bytes")

    def __init__(self, packed: Packed, units: int) -> None:
        self.number: int = -1
        self.total_bytes: int = len(packed)
        self.left_bytes: int = self.total_bytes
        self._units = units
        if isinstance(packed, Parcel):
            self._blob_sizes = tuple(map(len, packed.blobs))
            segments = [packed.envelope, *packed.blobs]
        else:
            self._blob_sizes = ()
            segments = [packed]
        self._segments: deque[memoryview] = deque(memoryview(segment) for segment in segments)

    def cut(self, most_bytes: int) -> tuple[Chunk, memoryview]:
        """Take off the next chunk, of up to ``most_bytes``.

        Returns:
            The chunk, and the piece that goes on behind it: a slice of what is sent, which is not copied.
        """
        blob_sizes, self._blob_sizes = self._blob_sizes, ()
        lead = _NOTHING
        segments = self._segments
        if len(segments) > 1 and len(segments[0]) <= min(LEAD_BYTES, most_bytes // 2):
            lead = segments.popleft()
        segment = segments[0]
        piece = segment[: most_bytes - len(lead)]
        if len(piece) == len(segment):
            segments.popleft()
        else:
            segments[0] = segment[len(piece) :]
        self.left_bytes -= len(lead) + len(piece)
        return Chunk(self.number, self._units, 0, self.total_bytes, blob_sizes, lead), piece


class Lanes:
    """The large messages that wait to be sent on one connection, and the messages that queue behind them.

    Args:
        large_bytes: a longer message is a transfer.
        unfinished_bytes: bytes of unfinished transfers that the receiver accepts; see `Reassembly`.
        answer_limit_bytes: bytes of answers from which on these lanes are behind.
    """

    def __init__(
        self, large_bytes: int, unfinished_bytes: int = sys.maxsize, answer_limit_bytes: int = sys.maxsize
    ) -> None:
        self._large_bytes = large_bytes
        self.waiting_bytes: int = 0
        """Bytes of all lanes that were not sent yet; 0 means that there is no lane."""
        self.answer_bytes: int = 0
        """Those of them in the lanes of answers."""
        self.is_behind: bool = False
        """Whether ``answer_limit_bytes`` of answers wait."""
        self._is_held = False
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

    @property
    def is_sending(self) -> bool:
        """Whether something waits that is to be sent."""
        return bool(self._lanes) and not self._is_held

    def hold(self) -> None:
        """Send nothing more of what waits here: the session is about to end."""
        self._is_held = True

    def add(self, sender: Hashable, packed: Packed, units: int = 1) -> None:
        """Queue a message in its sender's lane: a large one, or one that must not overtake a large one.

        Args:
            sender: whose messages stay in order.
            packed: one item of a batch.
            units: what it counts in the window of its process; the chunks of a large one say it.
        """
        is_large = isinstance(packed, Parcel) or len(packed) > self._large_bytes
        item: bytes | Transfer = Transfer(packed, units) if is_large else packed  # type: ignore[assignment]
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

    def taken_requests(self) -> set[int]:
        """Return the refs of the requests of the peer that have run and whose answers wait here."""
        return {lane.ref for lane in self._lanes if type(lane) is AnswerLane and lane.has_run}

    def ended(self, sender: Hashable, number: int) -> None:
        """Note that a process has ended; its number stays known until its lane is empty."""
        if sender in self._lanes:
            self._ended[sender] = number
            self._ended_as[number] = sender

    def of_ended(self, number: int) -> Hashable | None:
        """Return the sender that was this ended process, if it still has a lane."""
        return self._ended_as.get(number)

    def next(self, chunk_bytes: int) -> bytes | tuple[Chunk, memoryview] | None:
        """Take what goes next: small messages and chunks in turns.

        Args:
            chunk_bytes: the most that a chunk may have; 0 if none may be sent now.

        Returns:
            A small message; or a chunk, as `Transfer.cut` does; or None if the receiver can take none now, or
            everything is held.
        """
        if self._is_held:
            return None
        chunk = None
        if chunk_bytes and not (self._is_turn_of_small and self._small_turns):
            chunk = self._next_chunk(chunk_bytes)
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

    def _next_chunk(self, chunk_bytes: int) -> tuple[Chunk, memoryview] | None:
        """Take the next chunk of the first transfer that the receiver can take."""
        for _ in range(len(self._turns)):
            sender = self._turns.popleft()
            lane = self._lanes[sender]
            item = lane[0]
            if isinstance(item, Transfer) and (item.number >= 0 or self._begin(item)):
                left_bytes = item.left_bytes
                chunk = item.cut(chunk_bytes)
                self._count(sender, item.left_bytes - left_bytes)
                if not item.left_bytes:
                    self._begun_bytes -= item.total_bytes
                    lane.popleft()
                self._end_turn(sender, lane)
                return chunk
            self._turns.append(sender)
        return None

    def _begin(self, item: Transfer) -> bool:
        """Give a transfer its number. Returns False if the receiver would hold too much unfinished."""
        total_bytes = item.total_bytes
        if self._begun_bytes and self._begun_bytes + total_bytes > self._unfinished_bytes:
            return False
        self._begun_bytes += total_bytes
        item.number = self._next_number
        self._next_number = (self._next_number + 1) & 0xFFFFFFFF
        return True

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


class Whole(Row):
    """A large message that has come."""

    envelope: bytes
    blobs: tuple[Hold, ...]
    total_bytes: int
    units: int
    """What it counts in the window of its process, as its sender says."""


class _Unfinished:
    """A large message of which a part has come."""

    __slots__ = ("_blob_sizes", "_filled", "_first", "_hold", "left_bytes", "total_bytes", "units")

    def __init__(self, units: int, total_bytes: int, blob_sizes: tuple[int, ...]) -> None:
        self.units: int = units
        self.total_bytes: int = total_bytes
        self.left_bytes: int = total_bytes
        self._blob_sizes = blob_sizes
        self._hold = Hold(total_bytes - sum(blob_sizes))
        self._filled: list[Hold] = []
        self._first: Hold | None = None
        """The hold of the first blob, if a part of it is received before the envelope is taken."""

    def first_room(self, size_bytes: int) -> memoryview:
        """Return the memory of the first piece of the first blob. The envelope is filled before it."""
        self._first = Hold(self._blob_sizes[0])
        return self._first.room(size_bytes)

    def room(self, size_bytes: int) -> memoryview | None:
        """Return the memory of the next piece, or None if it does not lie in one buffer."""
        return self._hold.room(size_bytes) if 0 < size_bytes <= self._hold.left_bytes else None

    def fill(self, piece: memoryview) -> None:
        """Append a piece, which must not be longer than what is left. Raises: ValueError, as `Hold.fill`."""
        self.left_bytes -= len(piece)
        while piece:
            hold, rest = self._hold, _NOTHING
            if len(piece) > hold.left_bytes:
                piece, rest = piece[: hold.left_bytes], piece[hold.left_bytes :]
            hold.fill(piece)
            piece = rest
            if not hold.left_bytes:
                self._filled.append(hold)
                if len(self._filled) <= len(self._blob_sizes):
                    first, self._first = self._first, None
                    self._hold = first or Hold(self._blob_sizes[len(self._filled) - 1])

    def whole(self) -> Whole:
        """Return what has come; nothing must be left."""
        envelope, *blobs = self._filled
        return Whole(envelope.to_bytes(), tuple(blobs), self.total_bytes, self.units)


class Reassembly:
    """The unfinished transfers that come in on one connection.

    Args:
        limit_bytes: the bytes that all unfinished transfers together may claim.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._claimed_bytes = 0
        self._unfinished: dict[int, _Unfinished] = {}
        self._expected: tuple[tuple[object, ...], _Unfinished] | None = None
        """The message whose first chunk is being received, behind all fields of that chunk but its piece."""

    def room_for(self, body: memoryview, size_bytes: int) -> memoryview | None:
        """Return the memory for the end of a CHUNK that has not come whole, as `room` and `first_room` do.

        Args:
            body: what has come of the body of the frame.
            size_bytes: of the whole frame.
        """
        if len(body) < CHUNK_HEAD.size:
            return None
        number, *_, blobs = CHUNK_HEAD.unpack_from(body)
        if not blobs:
            return self.room(number, size_bytes - HEADER_BYTES - CHUNK_HEAD.size)
        try:
            chunk = read_chunk(body)
        except BadFrame:  # The sizes of its blobs have not come.
            return None
        return self.first_room(chunk, size_bytes - chunk.overhead_bytes)

    def first_room(self, chunk: Chunk, size_bytes: int) -> memoryview | None:
        """Return the memory in which the end of a first chunk may be received: that of the first blob.

        `add` takes it as the tail then. Until that the message counts nothing: one at a time is expected.

        Args:
            chunk: what has come of the first chunk of a message.
            size_bytes: of the content in the whole chunk.

        Returns:
            None if the chunk does not end in the first blob, or its envelope has not come whole, or if `add`
            would refuse it.
        """
        self._expected = None
        sizes = chunk.blob_sizes
        envelope_bytes = chunk.total_bytes - sum(sizes)
        blob_bytes = size_bytes - envelope_bytes
        if not (0 < envelope_bytes <= len(chunk.piece) and 0 < blob_bytes <= sizes[0]):
            return None
        try:
            self._check_first(chunk)
        except BadFrame:
            return None
        unfinished = _Unfinished(chunk.units, chunk.total_bytes, sizes)
        self._expected = chunk[:-1], unfinished
        return unfinished.first_room(blob_bytes)

    def room(self, number: int, size_bytes: int) -> memoryview | None:
        """Return the memory in which the next chunk may be received; `add` takes it as the tail then.

        Args:
            number: of the transfer.
            size_bytes: of the chunk's piece.

        Returns:
            None for the first chunk of a transfer, and for one that does not fit into one buffer.
        """
        known = self._unfinished.get(number)
        return None if known is None else known.room(size_bytes)

    def add(self, chunk: Chunk, tail: memoryview = _NOTHING) -> Whole | None:
        """Take a chunk.

        Args:
            chunk: the chunk.
            tail: what goes on behind its piece.

        Returns:
            The whole message with its last chunk, else None.

        Raises:
            BadFrame: the chunk fits no message, or the unfinished ones would be too large.
        """
        number, size_bytes = chunk.number, len(chunk.piece) + len(tail)
        if not size_bytes:
            raise BadFrame("a chunk without bytes")
        known = self._unfinished.get(number)
        if known is None:
            known = self._begin(chunk)
        elif chunk.blob_sizes:
            raise BadFrame("a chunk that tells sizes of blobs, and is not the first one")
        claimed = (known.units, known.total_bytes)
        if (chunk.units, chunk.total_bytes) != claimed or size_bytes > known.left_bytes:
            raise BadFrame("a chunk that does not fit its message")
        try:
            known.fill(chunk.piece)
            known.fill(tail)
        except ValueError as error:
            raise BadFrame(str(error)) from None
        if known.left_bytes:
            self._unfinished[number] = known
            return None
        self._unfinished.pop(number, None)
        self._claimed_bytes -= known.total_bytes
        return known.whole()

    def _begin(self, chunk: Chunk) -> _Unfinished:
        """Take the first chunk of a message. Raises: BadFrame."""
        self._check_first(chunk)
        self._claimed_bytes += chunk.total_bytes
        expected, self._expected = self._expected, None
        if expected is not None and expected[0] == chunk[:-1]:
            return expected[1]
        return _Unfinished(chunk.units, chunk.total_bytes, chunk.blob_sizes)

    def _check_first(self, chunk: Chunk) -> None:
        """Check the first chunk of a message. Raises: BadFrame."""
        total_bytes, sizes = chunk.total_bytes, chunk.blob_sizes
        if total_bytes > self._limit_bytes - self._claimed_bytes:
            raise BadFrame(f"large messages of more than {self._limit_bytes:,} bytes at a time")
        if len(self._unfinished) >= MAX_TRANSFERS:
            raise BadFrame(f"more than {MAX_TRANSFERS:,} large messages at a time")
        if sizes and (sum(sizes) >= total_bytes or min(sizes) < MIN_BLOB_BYTES or len(sizes) > MAX_BLOBS):
            raise BadFrame("a large message with blobs that no node sends")
