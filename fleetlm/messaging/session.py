"""A session: everything that two nodes exchange over one connection, from its `Up` to its `Down`.

**Batching.** A message makes no object of its own here. It is packed before it is appended, so the sender
may change it afterwards. Its bytes join the batch of this turn of the event loop, and the `Flusher` makes
one frame of the batch at the end of the turn; a batch that reaches `Settings.batch_bytes` or
`Settings.batch_messages` leaves at once.

**Ordering.** Messages of one sender arrive in the order sent. A message above `Settings.large_bytes`
travels in chunks, and waits for its turns in the lane of its sender (`Lanes`); whatever the same sender
appends later queues behind it, and small messages of other senders pass it. The sender is the current task,
unless the caller names another one: a task may send in the place of another task, and the reply and the
items of one request share an `AnswerLane`.

**Credit.** Two windows make senders wait; `messaging.windows` explains them. `obstacle` is the one place
that checks them, `admit` the one place that counts a message, `room` waits. Runtime messages (`control`,
`signal`) wait for no window.

**Answers.** Replies and failures, whose senders cannot wait, queue in lanes while the window of the
connection is full. With `Settings.reply_queue_bytes` in that queue this session is *behind*, and a process
that is about to take another call of the peer waits until it is not (`Mailbox`). So the queue holds at most
that many bytes and the answers to calls that had been taken before: one answer of a process that answers
each call before it takes the next, those of the concurrent handlers of an actor, and all answers of a
process that collects calls. Items of streams wait for room themselves.

**A peer that takes nothing.** An amount that can be kept proves nothing: a loop that is busy for some seconds
takes nothing, and then everything. Beyond `Settings.max_unread_bytes` a connection ends. Before that it ends
if the peer's loop is alive and takes nothing of what is in flight: by its ticks, for `Settings.no_credit_s`;
or by what it sends (`Stall`).

**The end in order.** `settle` says, as the last message, which requests of the peer stay unanswered, so that
all others are known to be not taken (`messaging.settling`). Those count whose answers wait in lanes and will
not leave any more.

**Who owns what.** The driver makes and closes sessions. `Outbound` and `Streams` keep in ``calls`` what
waits for the peer, by ref; `Inbound` takes it out when the outcome comes. `Inbound` keeps in ``requests``
what the peer has asked of processes here; each `Call` takes itself out through this session, which is its
`Caller`.

Races. Sending may find the transport broken in the middle of a program's send: the driver is told
(``lost``) and closes the session in a later turn, so that no session ends in the middle of a send. Until
then appended messages are lost, and their callers get `NodeLost`. A waiting sender wakes to `NoConnection`:
its message has not been appended. A closed session is never opened again; the next `Up` makes a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import msgpack

from fleetlm.call import Call, TooLargeForPeer
from fleetlm.errors import MessageTooLarge, NoConnection
from fleetlm.messaging.byte_windows import (
    MAX_WINDOWS_WITHOUT_CREDIT,
    TOLD_SHARE,
    ByteCredit,
    ByteWindow,
    Stall,
)
from fleetlm.messaging.chunks import AnswerLane, Lanes, Reassembly
from fleetlm.messaging.frame_sizes import FrameSizes, frame_sizes
from fleetlm.messaging.settling import Settlement
from fleetlm.messaging.windows import (
    LIGHT_BYTES,
    NODE,
    UNIT_BYTES,
    NodeKey,
    Obstacle,
    ReceiveWindows,
    SendWindows,
    check_new_key,
    weighed,
)
from fleetlm.wire import operations
from fleetlm.wire.blobs import Packed, Parcel
from fleetlm.wire.carriers import is_known_to
from fleetlm.wire.failures import FailureKind, may_have_run
from fleetlm.wire.frames import Chunk, Kind
from fleetlm.wire.rights import check_right, denied_in
from fleetlm.wire.table_topics import unknown_in

if TYPE_CHECKING:
    from fleetlm.core.halves import Incoming, Outgoing
    from fleetlm.core.topology import Peer
    from fleetlm.messaging.mailbox import Key
    from fleetlm.messaging.targets import Waiting
    from fleetlm.setting_parsers import Right
    from fleetlm.settings import Settings
    from fleetlm.transport.interface import Transport
    from fleetlm.wire.codec import Codec

_REPLY = operations.Op.REPLY
SENDING_FAILED = "connection closed: sending failed"
"""Why a session is lost whose channel has ended; the peer may have ended it in order."""
_MIN_WINDOW_BYTES = 64 * 1024
"""The smallest window of a connection: a peer that announces less would make every message wait."""
MAX_URGENT_BYTES = 4_096
"""Answers of the node itself that wait for no window are not larger."""
_MAX_FAILURE_TEXT_CHARS = 65_536
"""Longer texts in a failure are cut. Tracebacks of sensible depth fit."""

_pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True).pack


class Session:
    """The exchange of messages with one peer, from `Up` to the matching `Down`.

    Args:
        peer: the node at the other end.
        outgoing: this node's half of the connection, which numbers its frames.
        incoming: the peer's half, with its HELLO.
        settings: this node's; where the HELLO announces a lower limit, the lower one holds.
        codec: packs replies and items.
        transport: takes the frames.
        flush_soon: called when there is something to flush at the end of the turn.
        lost: called with a reason when the connection must end.
    """

    __slots__ = (
        "_batch", "_batch_bytes", "_batch_calls", "_batch_limit", "_batch_limit_bytes", "_codec",
        "_flush_soon", "_last_count", "_limit_bytes", "_lost", "_own_limit_bytes", "_stall", "_transport",
        "arrivals", "byte_credit", "byte_window", "calls", "carries", "closed", "denied", "has_ticked",
        "held", "held_limit", "incarnation", "incoming", "is_behind", "is_slow", "lanes", "light_bytes",
        "long_batches", "messages_received", "messages_sent", "name", "open_calls", "outgoing", "peer",
        "plain_bytes", "reassembly", "refuses", "requests", "settlement", "small_bytes", "unknown_topics",
        "up_at", "urgent_ref", "windows",
    )  # fmt: skip

    def __init__(  # noqa: PLR0915  # one statement for each attribute
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
        hello = incoming.hello
        self.peer: Peer = peer
        self.name: str = peer.connection.name
        self.incarnation: int = peer.connection.incarnation
        self.outgoing: Outgoing = outgoing
        self.incoming: Incoming = incoming
        self.up_at: float = asyncio.get_running_loop().time()
        self.closed: str = ""
        """Why the session is over; empty while it is not."""
        self.has_ticked: bool = False
        """Whether this node has sent a tick."""
        self.is_slow: bool = False
        """Whether sends leave the fast path: the window is full, lanes are in use, or the session is over."""
        self.long_batches: int = 0
        """So many of the peer's next batches probably take long to read: see `messaging.inbound`."""
        self.is_behind: bool = False
        """See `Caller`: whether `Lanes.is_behind`, since each call that a process takes asks for it."""
        self.calls: dict[int, Waiting] = {}
        """Requests of this node that wait for the peer, by ref."""
        self.requests: dict[int, Call] = {}
        """Requests of the peer that are open here, by its ref."""
        self.settlement: Settlement = Settlement(settings.max_open_calls)
        self.refuses: bool = False
        """Whether new work of the peer is refused, since this node drains and the peer knows."""
        self.urgent_ref: int | None = None
        """The request of the peer that this node itself answers at the moment. A small answer waits for no
        window: the signals that follow do not either, and the end of a process must not overtake the answer
        that names it."""
        self._own_limit_bytes, theirs = settings.max_message_bytes, hello.max_message_bytes
        self._limit_bytes = min(self._own_limit_bytes, theirs)
        sizes: FrameSizes = frame_sizes(settings, hello.max_frame_bytes)
        self.small_bytes: int = min(sizes.small_bytes, self._limit_bytes)
        """A longer message travels in chunks, or is too large. One with blobs beside it is always longer."""
        self.lanes: Lanes = Lanes(self.small_bytes, self._limit_bytes, settings.reply_queue_bytes)
        self.reassembly: Reassembly = Reassembly(settings.max_message_bytes)
        window_bytes = max(_MIN_WINDOW_BYTES, min(settings.window_bytes, hello.window_bytes))
        self.byte_window: ByteWindow = ByteWindow(
            window_bytes,
            settings.bulk_window_bytes,
            settings.max_unread_bytes,
            sizes.chunk_bytes,
            asyncio.get_running_loop().time,
            sizes.alone_chunk_bytes,
        )
        self._stall = Stall(self.byte_window, settings.no_credit_s, settings.busy_after_s)
        self.byte_credit: ByteCredit = ByteCredit(
            window_bytes // TOLD_SHARE, self._tell_credit, self._check_that_it_takes
        )
        limit = min(settings.mailbox_limit, hello.mailbox_limit)
        self.denied: frozenset[Right] = denied_in(hello.features)  # What the peer lets no other node do.
        self.carries: bool = is_known_to(hello.features)
        """Whether the peer takes requests with carriers."""
        self.unknown_topics: frozenset[str] = unknown_in(hello.features)
        """Replicated tables that the peer does not know."""
        self.windows: SendWindows = SendWindows(limit)
        """The windows of the peer's processes."""
        self.held: dict[Key, int] = self.windows.held
        self.held_limit: int = 0 if "call" in self.denied else limit
        """``windows.held`` and its limit once more, because every message reads them. 0 if the peer takes no
        messages for its processes: so `obstacle` finds that out without a question for each message."""
        self.arrivals: ReceiveWindows = ReceiveWindows(
            limit, self._tell_taken, settings.max_links_and_monitors
        )
        """The windows of this node's processes for messages of the peer."""
        self.open_calls: dict[Key, int] = {}
        """Calls of this node that wait for a process of the peer; `admit` adds to it."""
        self.messages_sent: int = 0
        self.messages_received: int = 0
        """Messages handed to the transport, and messages decoded; shown by `Node.info`."""
        self.plain_bytes: int = min(UNIT_BYTES, self.small_bytes + 1)
        """A message that weighs less counts one unit and travels in a batch."""
        self.light_bytes: int = min(LIGHT_BYTES, self.small_bytes + 1)
        self._codec, self._transport, self._flush_soon, self._lost = codec, transport, flush_soon, lost
        self._batch: list[bytes] = [b""]
        """The packed messages of this turn; the first place is for the frame's header."""
        self._batch_bytes = self._last_count = 0  # Of these; and how many messages the last BATCH held.
        self._batch_limit, self._batch_limit_bytes = settings.batch_messages, sizes.batch_bytes
        self._batch_calls = settings.batch_calls

    @property
    def origin(self) -> tuple[str, int]:
        """Whose requests come over it; see `Call.origin`."""
        return self.name, self.incarnation

    # Windows.

    @property
    def in_flight(self) -> int:
        """Bytes that the peer has not taken yet, those that wait here included."""
        return self.byte_window.in_flight_bytes + self._batch_bytes + self.lanes.waiting_bytes

    @property
    def is_full(self) -> bool:
        """Whether a small message of the current task has to wait, whichever process it is for."""
        return self.obstacle(NODE) is not None

    def obstacle(self, key: Key | NodeKey, size_bytes: int = 0, sender: Hashable = None) -> Obstacle | None:
        """Look at every window, in one order; `Outbound.send` and `Outbound.call` copy the first two.

        Lanes that hold a whole window make all large messages wait, and the small ones of senders that have a
        lane: a large message must not delay the small ones of other senders.

        Args:
            key: the process; `NODE` for a request to the node itself.
            size_bytes: of the packed message; 0 if it is not known to be large.
            sender: whose messages must stay in order; default: the current task.

        Returns:
            What keeps the message from being sent now, or None.

        Raises:
            InvalidName: ``key`` does not name a process.
            NotAllowed: the peer takes no messages for its processes.
        """
        if key is not NODE:
            held = self.held.get(key)
            if held is None:
                held = check_new_key(key)
            if held >= self.held_limit:
                check_right(self.name, self.denied, "call")
                return Obstacle.PROCESS
        window, lanes = self.byte_window, self.lanes
        if window.in_flight_bytes + self._batch_bytes >= window.limit_bytes:
            return Obstacle.CONNECTION
        if lanes.waiting_bytes >= window.full_bytes and (
            size_bytes > self.small_bytes or lanes.has(asyncio.current_task() if sender is None else sender)
        ):
            return Obstacle.LANES
        return None

    def explain(self, obstacle: Obstacle, key: Key) -> str:
        """Return the reason for a `WouldBlock`."""
        if obstacle is Obstacle.PROCESS:
            return f"{self.held.get(key, 0):,} messages of this node wait there"
        if obstacle is Obstacle.CONNECTION:
            return f"{self.in_flight:,} bytes are in flight to {self.name}"
        return f"large messages of {self.lanes.waiting_bytes:,} bytes wait for {self.name}"

    async def room(self, key: Key | NodeKey = NODE, size_bytes: int = 0, sender: Hashable = None) -> None:
        """Return when `obstacle` finds none for the same arguments.

        Raises:
            NoConnection: the connection ended first.
            InvalidName, NotAllowed: as `obstacle`.
        """
        while not self.closed:
            obstacle = self.obstacle(key, size_bytes, sender)
            if obstacle is None:
                return
            if obstacle is Obstacle.PROCESS and key is not NODE:
                await self.windows.wait(key)
            elif obstacle is Obstacle.CONNECTION:
                await self.byte_window.wait_for_room(size_bytes)
            else:
                await self.byte_window.wait()
        raise NoConnection(self.name, self.closed)

    def admit(
        self,
        key: Key | NodeKey,
        packed: Packed,
        sender: Hashable = None,
        *,
        extra_bytes: int = 0,
        is_call: bool = False,
    ) -> Obstacle | None:
        """Send a message if no window is full, and count it.

        `Outbound.send` and `Outbound.call` have copies of this for small messages.

        Args:
            key: the process; `NODE` for a request to the node itself, which no process's window holds up.
            packed: one item of a batch; where it needs to, it is made to say how many units it counts.
            sender: whose messages must stay in order; default: the current task.
            extra_bytes: `Codec.extra_bytes` of the message.
            is_call: whether it is an open call of this node until `call_ended`.

        Returns:
            None if it was sent; else what kept it, and nothing was sent or counted.

        Raises:
            NoConnection, MessageTooLarge: as `append`; nothing was sent or counted.
            InvalidName, NotAllowed: as `obstacle`.
        """
        size = len(packed)
        held = self.held
        is_small = size + extra_bytes < self.plain_bytes
        if key is NODE or not is_small or self.is_slow or held.get(key, self.held_limit) >= self.held_limit:
            # None when the session is over: `append` raises then.
            obstacle = self.obstacle(key, size, sender)
            if obstacle is not None:
                return obstacle
            if key is NODE:
                self.append(packed, sender)
                return None
        weight = 1
        if not is_small:
            packed, weight = weighed(packed, extra_bytes, self.held_limit, self.small_bytes)
        self.append(packed, sender, weight)
        held[key] = held.get(key, 0) + weight
        if is_call:
            self.open_calls[key] = self.open_calls.get(key, 0) + 1
        return None

    def call_ended(self, key: Key) -> None:
        """Note that a call to this process has its outcome, or that its caller has stopped waiting."""
        left = self.open_calls.get(key, 0) - 1
        if left > 0:
            self.open_calls[key] = left
        else:
            self.open_calls.pop(key, None)

    def load(self, key: Key) -> int:
        """Return this node's load on a process of the peer: units that wait there, plus open calls."""
        return self.held.get(key, 0) + self.open_calls.get(key, 0)

    def credited(self, mark: int) -> None:
        """Take a CREDIT: the peer has taken everything before this mark.

        Raises:
            ValueError: there is no such mark; nothing changed.
        """
        window = self.byte_window
        window.credited(mark)
        if window.is_mark_due:  # The window may have shrunk, and nothing more is sent until there is credit.
            self.mark(at_once=True)
        self._stall.progressed(self.byte_credit.taken_bytes)
        self._update_is_slow()
        if self.lanes:
            self._flush_soon(self)
        if window.in_flight_bytes + self._batch_bytes < window.limit_bytes:
            window.wake()

    def _tell_credit(self, mark: int) -> None:
        self.control(operations.credit(mark))

    def _check_that_it_takes(self) -> None:
        """Notice a peer that sends on and on and takes nothing itself."""
        received_bytes = self._stall.received(self.byte_credit.taken_bytes)
        if received_bytes > MAX_WINDOWS_WITHOUT_CREDIT * self.byte_window.full_bytes:
            self._lost(self, f"it sent {received_bytes:,} bytes and took nothing of {self.in_flight:,} bytes")

    def give_up(self, reason: str) -> None:
        """End the connection in a later turn, since the peer does not keep up."""
        self._lost(self, reason)

    def mark(self, *, at_once: bool = False) -> None:
        """Mark what was sent until now, unless that was done; the peer's credit for it follows."""
        mark = self.byte_window.mark(at_once=at_once)
        if mark is not None:
            self.control(operations.mark(mark, int(at_once)))

    def _tell_taken(self, key: Key, count: int) -> None:
        self.control(operations.taken(key, count))

    def _update_is_slow(self) -> None:
        window, lanes = self.byte_window, self.lanes
        self.is_slow = bool(self.closed or lanes or window.in_flight_bytes >= window.limit_bytes)
        self.is_behind = lanes.is_behind

    # Sending.

    def append(self, packed: Packed, sender: Hashable = None, units: int = 1) -> bool:
        """Append a packed message to the batch or a lane. Checks no window and counts nothing: see `admit`.

        Args:
            packed: one item of a batch.
            sender: whose messages must stay in order; default: the current task.
            units: what it counts; the receiver is told if it travels in chunks.

        Returns:
            Whether the batch has just left, or the message went to a lane: a sender in a tight loop should
            let the event loop turn.

        Raises:
            NoConnection: the session is over; nothing was sent.
            MessageTooLarge: beyond what this node or the peer takes; nothing was sent.
        """
        size = len(packed)
        if self.is_slow or size > self.small_bytes:
            return self._append_slowly(packed, size, sender, units)
        # A copy of `_to_batch`, because every message passes here; a test holds it to the original.
        batch = self._batch
        batch.append(packed)  # type: ignore[arg-type]  # A `Parcel` is always large.
        bytes_before = self._batch_bytes
        self._batch_bytes = bytes_now = bytes_before + size
        if not bytes_before:
            self._flush_soon(self)
        if bytes_now < self._batch_limit_bytes and len(batch) <= self._batch_limit:
            return False
        self._flush_batch()
        return True

    def append_call(self, packed: Packed, sender: Hashable) -> None:
        """Append a small packed call; a lone one leaves at once. Raises: as `append`.

        A call is lone if no other waits for the peer, and the last frame held no more than one message. So a
        program that makes one call after the other does not wait for the end of the turn, and under load
        calls share a frame. Of many calls some leave before the others (`Settings.batch_calls`).
        """
        if self.calls or self.is_slow or self._last_count > 1:
            self.append(packed, sender)
            if len(self._batch) > self._batch_calls and not self.is_slow:
                self._flush_batch()
        else:
            self._batch.append(packed)  # type: ignore[arg-type]  # As in `append`.
            self._flush_batch()

    def flush_batch(self) -> None:
        """Send the batch now: who calls this knows that nothing more is to come."""
        if self._batch_bytes and not self.is_slow:
            self._flush_batch()

    def must_yield(self) -> bool:
        """Whether a task that has just sent should let the event loop turn: see `append`."""
        if not self._batch_bytes:
            return True
        lanes = self.lanes
        return bool(lanes.waiting_bytes) and lanes.has(asyncio.current_task())

    def control(self, message: list[object], after: Hashable = None) -> None:
        """Append a message of the runtime's own. It waits for no window, has no size limit and never raises.

        Args:
            message: one item of a batch, of a size that fits a frame.
            after: a sender whose messages it must not overtake; default: it may overtake all.
        """
        self.signal(_pack(message), after)

    def signal(self, packed: bytes, after: Hashable = None) -> None:
        """Do as `control` for a message that is packed already."""
        if self.closed:
            return
        if after is not None and self.lanes.has(after):
            self.lanes.add(after, packed)
            return
        self._to_batch(packed, len(packed))

    def acknowledge(self, number: int) -> None:
        """Acknowledge a DRAIN, behind every request that waits here to be sent: once in each lane of them."""
        senders = self.lanes.senders()
        for sender in senders:
            self.control(operations.heard(number, len(senders)), after=sender)
        if not senders:
            self.control(operations.heard(number, 1))

    def flush(self) -> None:
        """Send the batch, then chunks; the `Flusher` calls it once per turn if anything was appended."""
        if self.closed:
            return
        if self._batch_bytes:
            self._flush_batch()
        if self.lanes:
            self._flush_lanes()

    def _append_slowly(self, packed: Packed, size: int, sender: Hashable, units: int) -> bool:
        """Append a message that is large, or while lanes are in use, or when the session is over."""
        if self.closed:
            raise NoConnection(self.name, self.closed)
        if self.lanes or size > self.small_bytes:
            if sender is None:
                sender = asyncio.current_task()
            if size > self._limit_bytes:
                raise self._too_large(size)
            if size > self.small_bytes or self.lanes.has(sender):
                self._queue(packed, sender, units)
                return True
            self.byte_window.passed()
        assert isinstance(packed, bytes)
        return self._to_batch(packed, size)

    def _to_batch(self, packed: bytes, size: int) -> bool:
        """Append to the batch; `append` has a copy. Returns whether the batch was full and has left."""
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

    def _queue(self, packed: Packed, sender: Hashable, units: int) -> None:
        """Queue a message in the sender's lane."""
        if not self.lanes and not self._batch_bytes:
            self._flush_soon(self)
        self.lanes.add(sender, packed, units)
        self._update_is_slow()

    def _answer(self, packed: Packed, lane: AnswerLane, units: int = 1) -> None:
        """Send an answer to a request of the peer, or queue it while the window of the connection is full."""
        size = len(packed)
        window = self.byte_window
        if isinstance(packed, Parcel) or size > self.small_bytes:
            self._queue(packed, lane, units)
        elif not self.is_slow:
            self.append(packed)
        elif lane.ref == self.urgent_ref and size <= MAX_URGENT_BYTES:
            self._to_batch(packed, size)
        elif window.in_flight_bytes + self._batch_bytes >= window.limit_bytes or self.lanes.has(lane):
            self._queue(packed, lane, units)
        else:
            if self.lanes:
                window.passed()
            self._to_batch(packed, size)

    def _flush_batch(self) -> None:
        """Send the batch as one frame, and a mark behind it where one is due; begin a new batch."""
        batch, outgoing, window = self._batch, self.outgoing, self.byte_window
        count = len(batch) - 1
        batch[0] = outgoing.batch_header(count)
        frame = b"".join(batch)
        self._batch = [b""]
        self._batch_bytes = 0
        self._last_count = count
        self.messages_sent += count
        if window.sent(len(frame)) or self.is_slow:
            if self._send(frame) and window.is_mark_due:
                self.mark(at_once=True)
        elif not self._transport.send(outgoing.channel, frame):  # As `_send`, if the window is not full.
            self._lost(self, SENDING_FAILED)

    def _flush_lanes(self) -> None:
        """Send what waits in lanes while the window has room, and chunks while their own window has it."""
        window, was_behind = self.byte_window, self.lanes.is_behind
        while self.lanes and window.in_flight_bytes + self._batch_bytes < window.limit_bytes:
            item = self.lanes.next(window.chunk_bytes)
            if item is None:
                break
            if isinstance(item, bytes):
                self._to_batch(item, len(item))
                continue
            while self._batch_bytes:  # Neither messages nor marks may be overtaken; a batch may leave a mark.
                self._flush_batch()
            self._send_chunk(*item)
        if self._batch_bytes:
            self._flush_batch()
        self._update_is_slow()
        if was_behind and not self.lanes.is_behind:
            window.wake()

    def _send_chunk(self, chunk: Chunk, tail: memoryview) -> None:
        """Send a chunk, with a mark for everything until its end where one is due."""
        window = self.byte_window
        size_bytes = chunk.overhead_bytes + len(chunk.piece) + len(tail)
        window.sent_chunk(size_bytes)
        window.sent(size_bytes)
        if window.is_mark_due:
            chunk = chunk._replace(mark=window.mark(at_once=True) or 0)
        self._send(chunk.pack(self.outgoing.header(Kind.CHUNK)), tail)

    def _send(self, frame: bytes, tail: memoryview | None = None) -> bool:
        """Hand a frame that was counted to the transport; a broken channel ends the connection."""
        window = self.byte_window
        self._update_is_slow()
        if window.in_flight_bytes > window.most_bytes:
            self._lost(self, f"it has not taken {window.in_flight_bytes:,} bytes, which is too much to keep")
        elif self._transport.send(self.outgoing.channel, frame, tail):
            return True
        else:
            self._lost(self, SENDING_FAILED)
        return False

    # `Caller` for the requests of the peer.

    def replied(self, ref: int, value: Any) -> None:
        """Send a result. Raises: NotSerializable, MessageTooLarge, TooLargeForPeer."""
        requests = self.requests
        if not self.closed:
            packed = self._codec.pack([_REPLY, ref, value], value)  # `operations.reply` inline.
            size = len(packed)
            if self.is_slow or size > self.small_bytes:
                if size > self._limit_bytes:
                    raise self._too_large(size)
                self._answer(packed, AnswerLane(ref))
            elif len(requests) > 1:
                self.append(packed)
                if len(self._batch) > self._batch_calls:
                    self._flush_batch()
            else:  # Nothing else of the peer is being served: nothing could join it at the end of the turn.
                self._batch.append(packed)  # type: ignore[arg-type]  # As in `append`.
                self._flush_batch()
        requests.pop(ref, None)

    def failed(self, ref: int, kind: FailureKind, details: list[str]) -> None:
        """Say why there is no result, or no further item."""
        self.requests.pop(ref, None)
        texts = [_escape_surrogates(text[:_MAX_FAILURE_TEXT_CHARS]) for text in details]
        if not self.closed:
            lane = AnswerLane(ref)
            if not self.lanes.has(lane):
                lane = AnswerLane(ref, may_have_run(kind, texts))
            self._answer(_pack(operations.failure(ref, kind, texts)), lane)

    def packed_item(self, ref: int, value: Any, window: int) -> tuple[tuple[Packed, int], int]:
        """Pack an item of a stream, and weigh it. Raises: NotSerializable."""
        packed = self._codec.pack(operations.item(ref, value), value)
        extra_bytes = self._codec.extra_bytes
        if len(packed) + extra_bytes < self.plain_bytes:
            return (packed, 1), 1
        packed, count = weighed(packed, extra_bytes, self.windows.limit, self.small_bytes)
        return (packed, count), min(count, window)

    async def item(self, ref: int, weighed_item: tuple[Packed, int], timeout_s: float) -> None:
        """Send an item of a stream. Raises: MessageTooLarge, TooLargeForPeer, TimeoutError."""
        packed, count = weighed_item
        if len(packed) > self._limit_bytes:
            raise self._too_large(len(packed))
        lane = AnswerLane(ref)
        if self.obstacle(NODE, len(packed), lane) is not None:
            with contextlib.suppress(NoConnection):
                async with asyncio.timeout(None if timeout_s == math.inf else timeout_s):
                    await self.room(NODE, len(packed), lane)
        if not self.closed and ref in self.requests:
            self._answer(packed, lane, count)

    def _too_large(self, size_bytes: int) -> MessageTooLarge:
        """Make the error for a message that is too large for this node, or for the peer alone."""
        if size_bytes > self._own_limit_bytes:
            return MessageTooLarge(size_bytes, self._own_limit_bytes)
        return TooLargeForPeer(size_bytes, self._limit_bytes, f"Settings.max_message_bytes of {self.name}")

    async def caught_up(self) -> None:
        """Return when this session is not behind any more, or is over."""
        while self.is_behind:
            await self.byte_window.wait()

    def forget(self, ref: int) -> None:
        """Close a request that needs no answer, since its deadline has passed."""
        if self.requests.pop(ref, None) is not None:
            self.settlement.note_expired(ref)

    def cancelled(self, ref: int) -> None:
        """Take a CANCEL: the peer waits for no answer any more."""
        call = self.requests.pop(ref, None)
        if call is not None:
            call.abandon()
        self.settlement.expired.discard(ref)

    # Upkeep and end.

    def peer_ticked(self, now: float) -> None:
        """Note that the peer's loop is alive; end the connection if it has taken nothing for too long."""
        stalled_s = self._stall.ticked(now)
        if stalled_s >= self._stall.after_s:
            why = f"it took nothing of {self.in_flight:,} bytes for {stalled_s:.0f} s, though its loop runs"
            self._lost(self, why)

    def sweep(self) -> None:
        """Drop expired requests of the peer, and tell it what was taken here; mark what was sent to it.

        The peer gives up an expired request itself, so no answer is sent. Called once in every tick.
        """
        for call in [call for call in self.requests.values() if not call.wanted]:
            call.abandon()
        self.arrivals.sweep()
        if self.byte_window.is_mark_worthwhile:
            self.mark()
        self.byte_credit.tell()

    def settle(self) -> None:
        """Send what waits, then say which requests of the peer stay unanswered. Take nothing afterwards."""
        if self.lanes:
            self.flush()
        for last in self.settlement.last_messages(self.requests, self.lanes.taken_requests()):
            self.control(last)
        if self._batch_bytes:
            self._flush_batch()

    def close(self, reason: str) -> None:
        """End the session: waiting senders get `NoConnection`; handlers are cancelled.

        Callers get `NodeLost`; `NoConnection` if the peer has said that it did not take their request.
        """
        self.closed = reason or "closed"
        self.is_slow = True
        self.windows.close()
        self.open_calls.clear()
        self._batch = [b""]
        self._batch_bytes = 0
        self.lanes.clear()
        self.is_behind = False
        self.byte_window.close()
        calls, self.calls = self.calls, {}
        for ref, future in calls.items():
            if not future.done():
                future.set_exception(self.settlement.error(ref, self.name, reason))
        requests, self.requests = self.requests, {}
        for call in requests.values():
            call.abandon()


def _escape_surrogates(text: str) -> str:
    """Escape lone surrogates, as in the file names of an OSError, since they cannot travel."""
    return text.encode("utf-8", "backslashreplace").decode()
