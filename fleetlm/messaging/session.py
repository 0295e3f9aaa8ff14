"""The road of one connection: messages out in batches, a window, and what is asked of the peer.

A message makes no object of its own here: it is packed at once (so that the sender may change it
afterwards), its bytes join the batch, and one flush per turn of the loop makes one ZeroMQ message of
the batch. There is no Nagle-like delay: a lone message leaves in the same turn.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import msgpack

from fleetlm.call import Call
from fleetlm.errors import MessageTooLarge, NoConnection, NodeLost
from fleetlm.messaging.chunks import Lanes, Reassembly
from fleetlm.messaging.windows import UNIT_BYTES, ReceiveWindows, SendWindows, units, weighed
from fleetlm.wire.failures import FailureKind
from fleetlm.wire.frames import Kind, Op

if TYPE_CHECKING:
    from fleetlm.core.connection import Incoming, Outgoing
    from fleetlm.core.topology import Peer
    from fleetlm.messaging.mailbox import Key
    from fleetlm.messaging.targets import Waiting
    from fleetlm.settings import Settings
    from fleetlm.transport.interface import Transport
    from fleetlm.wire.codec import Codec

_ARRAY32 = b"\xdd"
"""msgpack: an array whose length is in the next four bytes."""
_CREDIT_SHARE = 8
"""Credit is told for every eighth of a window: rarely enough to cost nothing, often enough to flow."""
_HARD_LIMIT = 4
"""Windows in flight at which a peer that takes nothing is cut: replies do not wait, so they end here."""

_MIN_WINDOW_BYTES = 64 * 1024
_FAILURE_CHARACTERS = 65_536
"""Of each text of a failure: a traceback of any sensible depth."""

_pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True).pack


class Session:
    """What `Up` made of a connection; over with the matching `Down`."""

    __slots__ = (
        "_acked",
        "_acked_bulk",
        "_batch",
        "_batch_bytes",
        "_batch_limit",
        "_batch_limit_bytes",
        "_codec",
        "_flush_soon",
        "_limit_bytes",
        "_limits",
        "_lost",
        "_sent",
        "_sent_bulk",
        "_told",
        "_told_bulk",
        "_transport",
        "_waiters",
        "arrivals",
        "calls",
        "closed",
        "held",
        "incarnation",
        "incoming",
        "lanes",
        "name",
        "open_calls",
        "outgoing",
        "peer",
        "plain_bytes",
        "reassembly",
        "received",
        "requests",
        "sent",
        "slow",
        "small_bytes",
        "taken",
        "taken_bulk",
        "window",
        "window_bytes",
        "windows",
    )

    def __init__(
        self,
        peer: Peer,
        outgoing: Outgoing,
        incoming: Incoming,
        settings: Settings,
        codec: Codec,
        transport: Transport,
        flush_soon: Callable[[Session], None],
        lost: Callable[[Session, str], None],
    ) -> None:
        self.peer = peer
        self.name = peer.connection.name
        self.incarnation = peer.connection.incarnation
        self.outgoing = outgoing
        self.incoming = incoming
        self.closed = ""
        """Why it is over, or empty."""
        self.slow = False
        """Whether a sender must look closer: the window is full, lanes are in use, or it is over."""
        self.calls: dict[int, Waiting] = {}
        """Requests of this node that wait for the peer, by ref."""
        self.requests: dict[int, Call] = {}
        """Requests of the peer that are open here, by its ref."""
        self._limit_bytes = min(settings.max_message_bytes, incoming.hello.max_message_bytes)
        self.lanes = Lanes(settings.chunk_bytes, self._limit_bytes)
        self.reassembly = Reassembly(settings.max_message_bytes)
        limit = min(settings.mailbox_limit, incoming.hello.mailbox_limit)
        self.windows = windows = SendWindows(limit)
        """Of the peer's processes; who sends counts."""
        self.held, self.window = windows.held, limit
        """The same at hand: every message looks there."""
        self.arrivals = ReceiveWindows(limit, self._tell_taken)
        """Of this node's processes, as far as the peer sends to them."""
        self.open_calls: dict[Key, int] = {}
        """Calls of this node that wait for a process of the peer."""
        self.window_bytes = max(_MIN_WINDOW_BYTES, min(settings.window_bytes, incoming.hello.window_bytes))
        self.sent = 0
        """Messages handed to ZeroMQ, and received: for people."""
        self.received = 0
        self.taken = 0
        """Bytes of the peer that were decoded, and those of them in chunks."""
        self.taken_bulk = 0
        self._limits = settings
        self.small_bytes = min(settings.chunk_bytes, self._limit_bytes)
        self.plain_bytes = min(UNIT_BYTES, self.small_bytes + 1)
        """From here on a message counts more than one, or travels in pieces."""
        self._codec = codec
        self._transport = transport
        self._flush_soon = flush_soon
        self._lost = lost
        self._batch: list[bytes] = [b""]
        self._batch_bytes = 0
        self._batch_limit = settings.batch_messages
        self._batch_limit_bytes = settings.batch_bytes
        self._sent = self._acked = self._told = 0
        self._sent_bulk = self._acked_bulk = self._told_bulk = 0
        self._waiters: dict[asyncio.Future[None], None] = {}

    # Out.

    def _review(self) -> None:
        self.slow = bool(self.closed or self.lanes or self._sent - self._acked >= self.window_bytes)

    @property
    def in_flight(self) -> int:
        """Bytes that the peer has not taken yet, those that wait here included."""
        return self._sent - self._acked + self._batch_bytes + self.lanes.waiting_bytes

    @property
    def full(self) -> bool:
        """Whether a sender that can wait should.

        What waits in lanes holds up those who have one: a large message must not delay anybody else.
        """
        if self._sent - self._acked + self._batch_bytes >= self.window_bytes:
            return True
        lanes = self.lanes  # `crowded` by hand: this is asked for every message
        return lanes.waiting_bytes >= self.window_bytes and lanes.has(asyncio.current_task())

    @property
    def crowded(self) -> bool:
        """Whether a large message of anybody should wait for those before it."""
        return self.lanes.waiting_bytes >= self.window_bytes

    async def room(self, size: int = 0, key: Key | None = None) -> None:
        """Return when there is room, for a message of that size and to that process if they are known.

        Raises:
            NoConnection: the connection ended first.
        """
        large = size > self.small_bytes
        while not self.closed:
            if key is not None and self.windows.full(key):
                await self.windows.wait(key)
            elif self.full or (large and self.crowded):
                waiter = asyncio.get_running_loop().create_future()
                self._waiters[waiter] = None
                try:
                    await waiter
                finally:
                    self._waiters.pop(waiter, None)
            else:
                return
        raise NoConnection(self.name, self.closed)

    def append(self, packed: bytes, sender: Hashable = None) -> bool:
        """Put a packed message on the road.

        Args:
            packed: one item of a batch.
            sender: whose messages must stay in order; default: the current task.

        Returns:
            Whether a batch or a large message is on its way already: a sender in a tight loop should
            let the loop turn.

        Raises:
            NoConnection: the connection is over; nothing was sent.
            MessageTooLarge: beyond what this node or the peer takes; nothing was sent.
        """
        size = len(packed)
        if self.slow or size > self.small_bytes:
            return self._append_slowly(packed, size, sender)
        # `_to_batch` by hand: this is what every message costs.
        batch = self._batch
        batch.append(packed)
        bytes_before = self._batch_bytes
        self._batch_bytes = bytes_now = bytes_before + size
        if not bytes_before:
            self._flush_soon(self)
        if bytes_now < self._batch_limit_bytes and len(batch) <= self._batch_limit:
            return False
        self._flush_batch()
        return True

    def _append_slowly(self, packed: bytes, size: int, sender: Hashable) -> bool:
        if self.closed:
            raise NoConnection(self.name, self.closed)
        if (size > self.small_bytes or self.lanes) and self._to_lane(packed, size, sender):
            return True
        return self._to_batch(packed, size)

    def must_yield(self) -> bool:
        """Whether nothing waits for the end of the turn, as a batch has just left inline."""
        return not self._batch_bytes

    def flush(self) -> None:
        """Once per turn of the loop, if anything was appended: batch first, then pieces."""
        if self.closed:
            return
        if self._batch_bytes:
            self._flush_batch()
        if self.lanes:
            self._pump()

    def control(self, message: list[object], after: Hashable = None) -> None:
        """Append a message of the runtime's own: it waits for no window, has no limit, never raises.

        Args:
            message: one item of a batch, of a size that fits a frame.
            after: a sender whose messages it must not overtake; default: it may overtake all.
        """
        self.signal(_pack(message), after)

    def signal(self, packed: bytes, after: Hashable = None) -> None:
        """As `control`, for what is packed already."""
        if self.closed:
            return
        if after is not None and self.lanes.has(after):
            self.lanes.add(after, packed)
            return
        self._to_batch(packed, len(packed))

    def _to_batch(self, packed: bytes, size: int) -> bool:
        """Returns whether the batch was full and has left."""
        batch = self._batch
        batch.append(packed)
        bytes_before = self._batch_bytes
        self._batch_bytes = bytes_now = bytes_before + size
        if not bytes_before:
            self._flush_soon(self)
        if bytes_now < self._batch_limit_bytes and len(batch) <= self._batch_limit:
            return False
        self._flush_batch()
        return True

    def _to_lane(self, packed: bytes, size: int, sender: Hashable) -> bool:
        if sender is None:
            sender = asyncio.current_task()
        if size > self._limit_bytes:
            raise MessageTooLarge(size, self._limit_bytes)
        if size <= self._limits.chunk_bytes and not self.lanes.has(sender):
            return False
        if not self.lanes and not self._batch_bytes:
            self._flush_soon(self)
        self.lanes.add(sender, packed)
        self._review()
        if self.lanes.waiting_bytes > _HARD_LIMIT * self.window_bytes + self._limit_bytes:
            self._lost(self, f"it took nothing of {self.in_flight:,} bytes")
        return True

    def _flush_batch(self) -> None:
        batch = self._batch
        count = len(batch) - 1
        batch[0] = self.outgoing.header(Kind.BATCH) + _ARRAY32 + count.to_bytes(4, "big")
        frame = b"".join(batch)
        self._batch = [b""]
        self._batch_bytes = 0
        self.sent += count
        self._put((frame,), len(frame))

    def _pump(self) -> None:
        """Send pieces while the bulk window has room."""
        limit = self._limits.bulk_window_bytes
        while self.lanes and self._sent_bulk - self._acked_bulk < limit:
            item = self.lanes.next()
            if item is None:
                break
            if isinstance(item, bytes):
                self._to_batch(item, len(item))
                continue
            if self._batch_bytes:
                self._flush_batch()  # What the same sender sent before must not be overtaken.
            head, piece = item
            size = len(head) + len(piece)
            self._sent_bulk += size
            self._put((self.outgoing.header(Kind.CHUNK) + head, piece), size)
        if self._batch_bytes:
            self._flush_batch()
        self._review()

    def _put(self, parts: tuple[bytes | memoryview, ...], size: int) -> None:
        self._sent += size
        self._review()
        if not self._transport.send(self.outgoing.channel, parts):
            self._lost(self, "connection closed: sending failed")
        elif self._sent - self._acked > _HARD_LIMIT * self.window_bytes:
            self._lost(self, f"it took nothing of {self.in_flight:,} bytes")

    # Credit.

    def credited(self, total: int, bulk: int) -> None:
        """The peer has taken so many bytes in all. Raises: ValueError for more than was sent."""
        if not self._acked <= total <= self._sent or not self._acked_bulk <= bulk <= self._sent_bulk:
            raise ValueError(f"credit for {total} of {self._sent} bytes")
        self._acked = total
        self._acked_bulk = bulk
        self._review()
        if self.lanes:
            self._flush_soon(self)
        if self._waiters and not self.full:
            self._wake_waiters()

    def took(self, size: int, *, bulk: bool = False) -> None:
        """A frame of the peer was decoded: tell it so from time to time."""
        self.taken += size
        if bulk:
            self.taken_bulk += size
        due_bulk = self.taken_bulk - self._told_bulk >= self._limits.bulk_window_bytes // _CREDIT_SHARE
        if due_bulk or self.taken - self._told >= self.window_bytes // _CREDIT_SHARE:
            self.tell_credit()

    def tell_credit(self) -> None:
        """Tell what was taken from the network, unless it is told already."""
        if self.taken == self._told and self.taken_bulk == self._told_bulk:
            return
        self._told = self.taken
        self._told_bulk = self.taken_bulk
        self.control([int(Op.CREDIT), self.taken, self.taken_bulk])

    def weighed(self, packed: bytes) -> tuple[bytes, int]:
        """A packed one-way message or call of more than one unit as it travels, and its units."""
        size = len(packed)
        weight = units(size, self.windows.limit)
        if size <= self.small_bytes and weight > 1:  # In pieces, its receiver sees by itself what it counts.
            packed = weighed(packed, weight)
        return packed, weight

    def _tell_taken(self, key: Key, count: int) -> None:
        self.control([int(Op.TAKEN), key, count])

    def called(self, key: Key) -> None:
        """A call to this process is open."""
        self.open_calls[key] = self.open_calls.get(key, 0) + 1

    def called_back(self, key: Key) -> None:
        """It is not, any more."""
        left = self.open_calls.get(key, 0) - 1
        if left > 0:
            self.open_calls[key] = left
        else:
            self.open_calls.pop(key, None)

    def load(self, key: Key) -> int:
        """What this node asks of a process of the peer: messages that wait there, and open calls."""
        return self.windows.held.get(key, 0) + self.open_calls.get(key, 0)

    # The peer's requests: `Caller` for each `Call` that came over this session.

    def replied(self, ref: int, value: Any) -> None:
        """Send a result. Raises: NotSerializable, MessageTooLarge."""
        if not self.closed:
            self.append(self._codec.pack([int(Op.REPLY), ref, value], value), ("reply", ref))
        self.requests.pop(ref, None)

    def failed(self, ref: int, kind: FailureKind, details: list[str]) -> None:
        """Say why there is no result, or no further item."""
        self.requests.pop(ref, None)
        texts = [_sendable(text[:_FAILURE_CHARACTERS]) for text in details]
        self.control([int(Op.FAILURE), ref, int(kind), texts], ("reply", ref))

    async def item(self, ref: int, value: Any) -> None:
        """Send an item of a stream. Raises: NotSerializable, MessageTooLarge."""
        packed = self._codec.pack([int(Op.ITEM), ref, value], value)
        if self.full or (len(packed) > self.small_bytes and self.crowded):
            with contextlib.suppress(NoConnection):
                await self.room(len(packed))
        if not self.closed and ref in self.requests:
            self.append(packed, ("reply", ref))

    def forget(self, ref: int) -> None:
        """A request needs no answer."""
        self.requests.pop(ref, None)

    def sweep(self) -> None:
        """Forget requests of the peer whose deadline has passed: it has given them up itself.

        And tell what was taken from mailboxes, even where it is little.
        """
        for call in [call for call in self.requests.values() if not call.wanted]:
            call.abandon()
        self.arrivals.sweep()

    # The end.

    def close(self, reason: str) -> None:
        """The connection is over: whoever waits hears it now."""
        self.closed = reason or "closed"
        self.slow = True
        self.windows.close()
        self.open_calls.clear()
        self._batch = [b""]
        self._batch_bytes = 0
        self.lanes.clear()
        self._wake_waiters()
        calls, self.calls = self.calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(NodeLost(self.name, reason))
        requests, self.requests = self.requests, {}
        for call in requests.values():
            call.abandon()

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def _sendable(text: str) -> str:
    """Text with lone surrogates, as in the file names of an OSError, made fit to travel."""
    return text.encode("utf-8", "backslashreplace").decode()
