"""The receiving side of all sessions: decode each batch once, and put its messages into mailboxes.

`Inbound.frame` takes the BATCH and CHUNK frames of a session, which the driver routes to it straight from
the transport. `wire.operations` describes the messages inside them.

- The frame's number is checked first (`core.halves.Incoming.accept`). A gap or a frame of an earlier dial
  raises `BadFrame`, and the driver ends the session.
- One-way messages, calls and replies are nearly all of the traffic, and `_deliver` takes them apart itself.
  One-way messages and calls of one unit that stand next to each other for the same process form a *run*:
  one look-up of the mailbox, one wake-up of the process and one entry in the receive window serve the whole
  run. Any other operation but a reply ends the run, because it may change which process has a name. A call
  that cannot go straight into a mailbox takes the slow way, as other operations do (`_call`).
- Every message that is counted by its sender's window is counted here too. A message that cannot be read,
  or for which there is no process, counts as taken at once, so that the sender's window opens again.
- Answers (REPLY, ITEM, FAILURE) go to the future or `ConsumerEnd` that waits under their ref. An answer
  for which nothing waits any more is dropped.

A frame may hold more than a turn of the event loop should take. `Inbound.frame` then returns what is left
of it, for the next turns (`messaging.backlog`).

Faults cost as little as possible. A value inside a message that this node cannot rebuild (a type that is
not registered here) costs that message: a caller gets `Undecodable`, a one-way message is counted in
`unreadable`. Anything that breaks the protocol raises `BadFrame` and costs that session, never another.
Nothing but `BadFrame` is raised for what a peer sends.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from operator import length_hint
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.call import Call
from fleetlm.messaging.backlog import Rest
from fleetlm.messaging.beside import (
    MOST_STEPS_ON_LOOP,
    Unpacked,
    takes_long,
    unpack,
    unpack_batch,
    unpack_long_batch,
)
from fleetlm.messaging.carrying import CARRYING
from fleetlm.messaging.stream_items import ConsumerEnd
from fleetlm.messaging.unreadable import UnreadableMessages
from fleetlm.messaging.windows import (
    LEAST_WEIGHED_BYTES,
    LEAST_WEIGHED_VALUES,
    UNIT_BYTES,
    check_units,
)
from fleetlm.settings import MAX_BATCH_MESSAGES
from fleetlm.taps import Taps
from fleetlm.texts import SHORT, text_of
from fleetlm.wire import operations
from fleetlm.wire.codec import BadData
from fleetlm.wire.decoder import TooManySteps
from fleetlm.wire.failures import FailureKind, error_of_failure
from fleetlm.wire.frames import HEADER, HEADER_BYTES, BadFrame, Kind, read_chunk
from fleetlm.wire.invocation import Invoke
from fleetlm.wire.operations import (
    COUNT_END,
    MAX_TIMEOUT_MS,
    NONSENSE,
    Op,
    checked_destination,
)
from fleetlm.wire.sliced_batch import array_head
from fleetlm.wire.weights import VALUE_BYTES, Scale

if TYPE_CHECKING:
    import asyncio

    from fleetlm.messaging.chunks import Whole
    from fleetlm.messaging.mailbox import Mailbox
    from fleetlm.messaging.session import Session
    from fleetlm.wire.codec import Codec
    from fleetlm.wire.operations import DrainNotice

log: logging.Logger = logging.getLogger("fleetlm")

SLICE_MESSAGES = 256
"""Messages of a frame after which the clock is looked at: a fraction of a millisecond for most."""
QUEUED_PART = 0.5
"""How long a turn for queued frames lasts, as a part of `Settings.inbound_turn_s`. A call of another peer
waits for one of them, and half of a millisecond costs the queues little."""
LONG_BATCHES = 16
"""Batches that are read in slices after one that took long: who sends such a batch sends more."""
MUCH_LEFT = 0.75
"""A batch takes long also if more than this part of it is left after its first turn. Its messages wait for
many turns then, and if they are unpacked, the collector of cyclic garbage visits them again and again.
Messages for mailboxes do not take so long."""
CHECK_BITS = 24
"""A batch is weighed with a probability of its weight by two to this power; see `windows`."""
_SHORT_BYTES = MAX_BATCH_MESSAGES
"""A shorter frame cannot hold too many messages, each of which has a byte at least. A copy costs less than a
view."""
_BATCH = Kind.BATCH
_unpack_header = HEADER.unpack_from
_NO_TAIL = memoryview(b"")
_REPLY, _ITEM, _HANDLE, _CALLS = Op.REPLY, Op.ITEM, Op.HANDLE, (Op.CALL, Op.HANDLE)
_KEYS = (str, int)
"""Types of what names a process."""
_NO_RUN = object()
"""Stands for "no run yet" and equals no destination: the next one-way message begins a run."""


def _never(_session: Session, _unpack: Callable[[], Unpacked]) -> None:
    raise NotImplementedError("the driver sets it")


class PeerService(Protocol):
    """What the node itself does with a peer's operations; `runtime.requests.PeerRequests` implements it."""

    def ticked(self, session: Session, lag_ms: int) -> None:
        """The peer's event loop is alive, and runs ``lag_ms`` late."""

    def told_drain(self, session: Session, notice: DrainNotice) -> None:
        """Take a step of the peer's drain. Raises: ValueError for one that there is not."""

    def heard_drain(self, session: Session, number: int, count: int) -> None:
        """The peer has acknowledged a step of this node's drain. Raises: ValueError for nonsense."""

    def refused(self, call: Call) -> None:
        """Refuse new work of a peer, since this node drains."""

    def not_reached(self, to: int | str, call: Call) -> None:
        """Refuse a call for which there is no process, or none that other nodes may reach."""

    def told_of(self, names: list[str], teller: str) -> None:
        """The peer is connected to the nodes of these names."""

    def signalled(self, session: Session, signal: Any) -> None:
        """Take a link, monitor or exit signal. Raises: ValueError or TypeError for a malformed one."""

    def told_table(self, session: Session, topic: Any, fact: Any) -> bool | None:
        """Take a fact about the peer's processes, or a part of it. Returns True if it is to be told again.

        Raises:
            ValueError, TypeError: it is malformed.
        """

    def asked(self, session: Session, verb: str, argument: Any, call: Call) -> None:
        """Answer a request to the node itself, through ``call``."""


class Inbound:
    """The receiving side of all sessions of a node.

    Args:
        boxes: the mailboxes that other nodes may reach, by number and by name.
        codec: decodes batches and large messages.
        service: performs the operations that concern the node itself.
        clock: the loop's time in seconds.
        max_peers: names taken from one PEERS message.
        max_open_calls: requests of one peer that may be open here; further ones fail with `WouldBlock`.
        turn_s: seconds of a turn, in which frames are taken.
        taps: told of messages that are dropped; default: nobody.

    Attributes:
        unpack_beside: calls a function beside the loop, and then `take_unpacked` with its result.
        turn_s: as the argument.
        until: when the present turn is over, on the clock of the system.
        pause_s: seconds for which the rest of the node comes first after a turn, if it has work to do.
        still_served: numbers of processes that get new work while this node drains, since they refuse by
            themselves what they do not take.
        undelivered: one-way messages for which there was no process.
    """

    def __init__(
        self,
        boxes: dict[int | str, Mailbox],
        codec: Codec,
        service: PeerService,
        clock: Callable[[], float],
        max_peers: int,
        max_open_calls: int = 65_536,
        turn_s: float = math.inf,
        taps: Taps | None = None,
    ) -> None:
        self._boxes = boxes
        self._codec = codec
        self._service = service
        self._clock = clock
        self._max_peers = max_peers
        self._max_open_calls = max_open_calls
        self.unpack_beside: Callable[[Session, Callable[[], Unpacked]], None] = _never
        self.turn_s: float = turn_s
        self.pause_s: float = 0.0 if turn_s == math.inf else turn_s
        self._taps = Taps() if taps is None else taps
        self.until: float = math.inf
        self._is_late = False
        """Whether an operation has found that the turn is over."""
        self._again: list[Any] = []
        """The operation that was performed in part only when the turn was over, if there is one."""
        self.still_served: set[int | str] = set()
        self.undelivered: int = 0
        self._unreadable = UnreadableMessages(self._taps)
        self._scale = Scale()
        self._unclaimed: list[Any] = []
        """Collects a run of messages for a process that does not exist, so that the run can be counted."""

    @property
    def unreadable(self) -> int:
        """Messages with a value that could not be rebuilt here."""
        return self._unreadable.count

    def begin_turn(self) -> None:
        """Note that a turn begins in which queued frames are taken."""
        self.until = monotonic() + QUEUED_PART * self.turn_s

    def is_over(self) -> bool:
        """Whether the time of the turn is over."""
        return monotonic() >= self.until

    def frame(self, session: Session, frame: bytes, tail: memoryview | None = None) -> Rest | None:
        """Take a BATCH or a CHUNK frame of a session.

        Args:
            session: the session that it came over.
            frame: the whole frame, or its first part.
            tail: the second part of a CHUNK.

        Returns:
            What `go_on` must deliver before the next frame of this session is taken, since the turn is over;
            None if nothing is left.

        Raises:
            BadFrame: the peer broke the protocol, or a frame was lost; the session must go down.
        """
        if len(frame) < HEADER_BYTES:
            raise BadFrame(f"{len(frame)} bytes are too few for a frame")
        kind, epoch, seq = _unpack_header(frame)
        incoming = session.incoming
        if seq != incoming.seq or epoch != incoming.epoch:
            incoming.accept(epoch, seq)  # It raises.
        incoming.seq = seq + 1
        session.peer.last_heard = self._clock()
        if kind == _BATCH and tail is None:
            try:
                messages = self._read_batch(session, frame)
            except TooManySteps:
                return self.go_on(session, Rest(self._read_slices(session, frame)))
        elif kind == Kind.CHUNK:
            messages = self._read_chunk(session, memoryview(frame)[HEADER_BYTES:], tail)
        else:
            raise BadFrame(f"kind {kind} does not carry messages")
        session.messages_received += len(messages)
        if len(messages) > SLICE_MESSAGES:
            return self._begin(session, messages)
        unread = iter(messages)  # As `go_on`, for one slice.
        self._is_late = False
        self._deliver(session, unread)
        left = self._left(unread) if self._is_late else None
        return Rest((left,)) if left else None

    def _begin(self, session: Session, messages: list[Any]) -> Rest | None:
        """Deliver the messages of a long frame. Returns and raises: as `frame`."""
        starts = iter(range(0, len(messages), SLICE_MESSAGES))
        slices = (messages[start : start + SLICE_MESSAGES] for start in starts)
        rest = self.go_on(session, Rest(slices))
        if rest is not None and length_hint(starts) * SLICE_MESSAGES > MUCH_LEFT * len(messages):
            session.long_batches = LONG_BATCHES
        return rest

    def take_unpacked(self, session: Session, unpacked: asyncio.Future[Unpacked]) -> Rest | None:
        """Deliver what was unpacked beside the loop. Returns and raises: as `frame`."""
        try:
            messages, failures = unpacked.result()
        except BadData as error:
            raise BadFrame(f"a large message or batch that cannot be read: {error}") from None
        if failures:
            messages = self._unreadable.drop(session, messages)
        session.messages_received += len(messages)
        return self._begin(session, messages)

    def go_on(self, session: Session, rest: Rest) -> Rest | None:
        """Deliver what is left of a frame. Returns and raises: as `frame`."""
        for messages in rest:
            unread = iter(messages)
            self._is_late = False
            self._deliver(session, unread)
            if self._is_late or monotonic() >= self.until:
                if left := self._left(unread):
                    return rest.put_back(left)
                following = next(rest, None)
                return None if following is None else rest.put_back(following)
        return None

    def _left(self, unread: Iterator[Any]) -> list[Any]:
        """Return the messages of a slice that are left for another turn."""
        again, self._again = self._again, []
        return [*again, *unread]

    def _read_batch(self, session: Session, frame: bytes) -> list[Any]:
        """Decode the messages of a BATCH. Returns those that can be read.

        Raises:
            TooManySteps: it takes long, so that `_read_slices` should do it.
            BadFrame: the peer broke the protocol.
        """
        codec, credit, size_bytes = self._codec, session.byte_credit, len(frame)
        is_short = size_bytes <= _SHORT_BYTES
        if session.long_batches and not is_short:
            session.long_batches -= 1
            raise TooManySteps
        failures = codec.failures
        body: bytes | memoryview
        try:
            if is_short:
                body = frame[HEADER_BYTES:]
                messages = codec.unpack_batch(body, MOST_STEPS_ON_LOOP)
            else:
                body = memoryview(frame)[HEADER_BYTES:]
                messages = unpack_long_batch(codec, body)
        except TooManySteps:
            session.long_batches = LONG_BATCHES
            raise
        except BadData as error:
            raise BadFrame(f"a batch that cannot be read: {error}") from None
        if codec.values >= LEAST_WEIGHED_VALUES or size_bytes >= UNIT_BYTES:
            self._check_units(session, messages, body, codec.values)
        if codec.failures != failures:
            messages = self._unreadable.drop(session, messages)
        credit.taken_bytes += size_bytes  # `ByteCredit.took` inline.
        if credit.taken_bytes >= credit.look_at_bytes:
            credit.look()
        return messages

    def _read_slices(self, session: Session, frame: bytes) -> Iterator[list[Any]]:
        """Yield the messages of a BATCH that takes long, a few at a time; those that can be read.

        What cannot be read in slices is unpacked beside the loop, and delivered by `take_unpacked`.

        Raises:
            BadFrame: the peer broke the protocol. What was yielded before has been delivered.
        """
        session.byte_credit.took(len(frame))
        batch, failures = self._codec.sliced_batch(memoryview(frame)[HEADER_BYTES:]), 0
        try:
            for messages, packed in batch.slices():
                if batch.count > MAX_BATCH_MESSAGES:
                    raise BadFrame(f"a batch of {batch.count:,} messages")
                if batch.values >= LEAST_WEIGHED_VALUES or len(packed) >= UNIT_BYTES:
                    body = array_head(len(messages)) + packed
                    self._check_units(session, messages, body, batch.values)
                if batch.failures != failures:
                    failures = batch.failures
                    messages = self._unreadable.drop(session, messages)  # noqa: PLW2901  what is left of them
                session.messages_received += len(messages)
                yield messages
        except TooManySteps:
            rest = partial(unpack_batch, self._codec, memoryview(batch.rest), session.arrivals.limit)
            self.unpack_beside(session, rest)
        except BadData as error:
            raise BadFrame(f"a batch that cannot be read: {error}") from None

    def _read_chunk(self, session: Session, body: memoryview, tail: memoryview | None) -> list[Any]:
        """Take a CHUNK. Returns the message if it is whole now, and can be read here and now."""
        whole = self._take_chunk(session, body, tail)
        if whole is None:
            return []
        if takes_long(whole):
            self.unpack_beside(session, partial(unpack, self._codec, whole, session.arrivals.limit))
            return []
        return self._read_large(session, whole)

    def _check_units(
        self, session: Session, messages: list[Any], body: bytes | memoryview, values: int
    ) -> None:
        """Weigh the messages of a batch, now and then. Raises: BadFrame: one counts less than it must."""
        weight = len(body) + VALUE_BYTES * values  # Roughly.
        if session.byte_window.draw(CHECK_BITS) < weight:
            weights = self._scale.weights(body, LEAST_WEIGHED_BYTES)
            try:
                check_units(messages, weights, session.arrivals.limit)
            except ValueError as error:
                raise BadFrame(str(error)) from None

    def _take_chunk(self, session: Session, body: memoryview, tail: memoryview | None) -> Whole | None:
        """Take a CHUNK. Returns the message if it is the last one of it."""
        chunk, tail = read_chunk(body), _NO_TAIL if tail is None else tail
        size_bytes = HEADER_BYTES + len(body) + len(tail)
        whole = session.reassembly.add(chunk, tail)
        credit = session.byte_credit
        credit.took(size_bytes)
        if chunk.mark:
            credit.marked(chunk.mark, at_once=True)
        return whole

    def room(self, session: Session, start: bytes, size_bytes: int) -> memoryview | None:
        """Return the memory for the end of a frame that has not come whole; see `Listener.room`."""
        if start[0] != Kind.CHUNK:
            return None
        return session.reassembly.room_for(memoryview(start)[HEADER_BYTES:], size_bytes)

    def _read_large(self, session: Session, whole: Whole) -> list[Any]:
        """Decode a message whose last CHUNK has come. Returns nothing if it cannot be read."""
        failures = self._codec.failures
        try:
            message = self._codec.unpack(whole.envelope, whole.blobs)
        except BadData as error:
            raise BadFrame(f"a large message that cannot be read: {error}") from None
        messages = [operations.with_units(message, whole.units)]
        weight = self._scale.weight(whole.envelope) + whole.total_bytes - len(whole.envelope)
        try:
            check_units(messages, [weight], session.arrivals.limit)
        except ValueError as error:
            raise BadFrame(str(error)) from None
        if self._codec.failures != failures:
            messages = self._unreadable.drop(session, messages)
        return messages

    def _deliver(  # noqa: C901, PLR0912, PLR0915  # each helper would cost every message a call
        self, session: Session, messages: Iterator[Any]
    ) -> None:
        """Put messages and calls into mailboxes, run by run, and perform the operations between them.

        It returns early, behind an operation, where the time of the turn is over.

        Raises:
            BadFrame: a message breaks the protocol; those before it have been delivered.
        """
        run: Any = _NO_RUN
        box: Mailbox | None = None
        queue: deque[Any] | list[Any] = self._unclaimed
        before = 0
        now = 0.0
        try:
            for message in messages:
                if len(message) == 2:
                    to, payload = message  # `operations.read_one_way` inline.
                    if to == run:
                        queue.append(payload)
                        continue
                    found = self._boxes.get(checked_destination(to))  # Before it is compared with the next.
                else:
                    operation = message[0]
                    if operation == _REPLY:
                        _, ref, value = message  # `operations.read_answer` inline.
                        future = session.calls.pop(ref, None)
                        if future is not None and not future.done():
                            future.set_result(value)
                        continue
                    to, found = message[1], None
                    if operation in _CALLS and len(message) == 6 and type(to) in _KEYS:
                        found = self._boxes.get(to)
                    now = now or self._clock()
                    if found is None or (payload := self._open_small(session, message, now)) is None:
                        if run is not _NO_RUN:
                            self._count_arrivals(session, run, len(queue) - before, box)
                            run, box = _NO_RUN, None
                        self._perform(session, message)
                        if self._is_late:
                            return
                        continue
                    if found is box and to == run:
                        queue.append(payload)
                        continue
                if run is not _NO_RUN:
                    self._count_arrivals(session, run, len(queue) - before, box)
                run, box = to, found
                if box is None:
                    queue, before = self._unclaimed, 0
                    queue.append(payload)
                else:
                    box.put(payload)
                    queue = box.queue
                    before = len(queue) - 1
            if box is not None:
                session.arrivals.received(run, len(queue) - before, box)
            elif run is not _NO_RUN:
                self._count_arrivals(session, run, len(queue), None)
        except NONSENSE as error:
            raise BadFrame(f"a malformed message: {text_of(error)}") from error
        finally:
            self._unclaimed.clear()

    def _open_small(self, session: Session, message: list[Any], now: float) -> Call | None:
        """Enter a CALL or HANDLE of one unit as open, unless it takes the slow way. Raises as `_perform`."""
        requests = session.requests
        if session.refuses or len(requests) >= self._max_open_calls:
            return None
        operation, _, payload, ref, timeout_ms, in_flight = message  # `operations.read_call` inline.
        if not (type(ref) is type(timeout_ms) is type(in_flight) is int) or not (
            0 <= ref < COUNT_END and 0 <= timeout_ms < COUNT_END and 0 <= in_flight < COUNT_END
        ):
            raise ValueError(f"a call with {SHORT.repr([ref, timeout_ms, in_flight])}")
        if operation == _HANDLE:
            payload = Invoke.of(payload)
        if ref in requests:
            raise ValueError(f"request {ref} is open already")
        deadline = now + (min(MAX_TIMEOUT_MS, timeout_ms)) / 1000
        began = -math.inf if in_flight else now
        call = requests[ref] = Call(payload, session, ref, deadline, self._clock, 0, math.inf, began)
        return call

    def _count_arrivals(
        self, session: Session, to: Any, count: int, box: Mailbox | None, weight: int = 1
    ) -> None:
        """Enter ``count`` messages of ``weight`` units each into the receive window of ``to``."""
        if box is None:
            self.undelivered += count
            if self._taps.message_dropped is not None:
                self._taps.message_dropped("no_process", count, to, session.name)
            self._unclaimed.clear()
        session.arrivals.received(to, count, box, weight)

    def _perform(self, session: Session, message: list[Any]) -> None:
        """Perform an operation: the frequent ones here, the others in `_perform_rare`.

        Raises:
            TypeError, ValueError, LookupError, ArithmeticError: the message is malformed.
        """
        operation = message[0]
        if operation == _ITEM:
            ref, value, weight = operations.read_item(message)
            consumer = session.calls.get(ref)
            if isinstance(consumer, ConsumerEnd):
                consumer.put(value, weight)
        elif operation in _CALLS:
            self._call(session, message)
        elif operation == Op.CREDIT:
            session.credited(operations.read_credit(message))
        elif operation == Op.TICK:
            session.peer_ticked(self._clock())
            self._service.ticked(session, operations.read_tick(message))
        elif operation == Op.FAILURE:
            ref, kind, texts = operations.read_failure(message)
            error = error_of_failure(kind, texts)  # Before the pop: if it raises, the session fails the call.
            future = session.calls.pop(ref, None)
            if future is not None and not future.done():
                future.set_exception(error)
        else:
            self._perform_rare(session, message)

    def _perform_rare(self, session: Session, message: list[Any]) -> None:
        """Perform an operation that is not among those of `_perform`, and look whether the turn is over.

        These may be costly, so that a few of them take a turn. A peer may choose the refs of all its open
        requests so that finding one takes 0.1 ms. Raises as `_perform` does.
        """
        operation = message[0]
        if operation in (Op.HEAVY, Op.CAST):
            self._deliver_heavy(session, message)
        elif operation == Op.TAKEN:
            session.windows.taken(*operations.read_taken(message))
        elif operation == Op.MARK:
            number, at_once = operations.read_mark(message)
            session.byte_credit.marked(number, at_once=at_once)
        elif operation in (Op.STREAM, Op.YIELD):
            self._call(session, message)
        elif operation == Op.CANCEL:
            session.cancelled(operations.read_cancel(message))
        elif operation == Op.MORE:
            ref, weight = operations.read_more(message)
            request = session.requests.get(ref)
            if request is not None:
                request.more(weight)
        else:
            self._perform_for_node(session, message)
        self._is_late = monotonic() >= self.until

    def _perform_for_node(self, session: Session, message: list[Any]) -> None:
        """Perform an operation that concerns the node itself. Raises as `_perform` does."""
        operation = message[0]
        if operation == Op.REQUEST:
            self._ask_node(session, *operations.read_request(message))
        elif operation == Op.SIGNAL:
            self._service.signalled(session, operations.read_signal(message))
        elif operation == Op.TABLE:
            topic, fact = operations.read_table(message)
            while self._service.told_table(session, topic, fact):
                if monotonic() >= self.until:
                    self._again = [message]
                    break
        elif operation in (Op.DRAIN, Op.HEARD, Op.SETTLED):
            self._perform_leaving(session, message)
        elif operation == Op.PEERS:
            self._take_peers(session, message)
        else:
            raise ValueError(f"operation {SHORT.repr(operation)} is not known to this version")

    def _perform_leaving(self, session: Session, message: list[Any]) -> None:
        """Take what a node says that leaves, or what is said to one. Raises as `_perform` does."""
        operation = message[0]
        if operation == Op.DRAIN:
            self._service.told_drain(session, operations.read_drain(message))
        elif operation == Op.HEARD:
            self._service.heard_drain(session, *operations.read_heard(message))
        else:
            session.settlement.told(*operations.read_settled(message), session.calls)

    def _ask_node(self, session: Session, verb: Any, argument: Any, ref: int) -> None:
        """Let the node itself answer a request, unless too many are open, or too many answers wait."""
        session.urgent_ref = ref
        if len(session.requests) >= self._max_open_calls:
            self._refuse(session, ref, "the node itself")
        elif session.is_behind:
            why = f"{session.lanes.answer_bytes:,} bytes of answers wait for this node there"
            session.failed(ref, FailureKind.TOO_MANY, ["the node itself", why])
        else:
            request = self._open(session, argument, ref, MAX_TIMEOUT_MS, in_flight=False)
            request.watch(_ignore)  # It is taken now.
            self._service.asked(session, verb, argument, request)
        session.urgent_ref = None

    def _refuse(self, session: Session, ref: int, to: str) -> None:
        """Refuse a request, since too many of this peer are open."""
        why = f"{self._max_open_calls:,} calls of this node are open there already"
        session.failed(ref, FailureKind.TOO_MANY, [to, why])

    def _take_peers(self, session: Session, message: list[Any]) -> None:
        """Pass on the names of nodes, but not too often: reading them costs time, and they come again."""
        if session.peer.peers_left > 0:
            session.peer.peers_left -= 1
            self._service.told_of(operations.read_peers(message, self._max_peers), session.name)

    def _deliver_heavy(self, session: Session, message: list[Any]) -> None:
        """Deliver a one-way message that says how many units it counts."""
        to, payload, weight = operations.read_heavy(message, session.arrivals.limit)
        box = self._boxes.get(to)
        if CARRYING.is_served and type(payload) is Invoke and payload.carrier is not None:
            payload.came = self._clock()
        if box is not None:
            box.put(payload)
        self._count_arrivals(session, to, 1, box, weight)

    def _call(self, session: Session, message: list[Any]) -> None:
        """Put a call or a request for a stream into the mailbox of its process, or send a failure."""
        limit = session.arrivals.limit
        if message[0] in (Op.STREAM, Op.YIELD):
            asked = operations.read_stream(message, limit)
            to, payload, ref, timeout_ms, window, idle_ms, in_flight, weight = asked
        else:
            to, payload, ref, timeout_ms, in_flight, weight = operations.read_call(message, limit)
            window = idle_ms = 0
        if len(session.requests) >= self._max_open_calls:
            session.urgent_ref = ref
            self._refuse(session, ref, str(to))
            session.urgent_ref = None
            session.arrivals.received(to, 1, None, weight)
            return
        call = self._open(session, payload, ref, timeout_ms, in_flight, window, idle_ms)
        box = self._boxes.get(to)
        if session.refuses and not in_flight and to not in self.still_served:
            box = None
            self._service.refused(call)
        elif box is None:
            session.urgent_ref = ref
            self._service.not_reached(to, call)
            session.urgent_ref = None
        else:
            box.put(call)
        session.arrivals.received(to, 1, box, weight)

    def _open(
        self, session: Session, payload: Any, ref: int, timeout_ms: int, in_flight: bool, window: int = 0,
        idle_ms: int = 0,
    ) -> Call:  # fmt: skip
        """Enter a request of the peer as open.

        Raises:
            ValueError: a request with that ref is open already.
        """
        if ref in session.requests:
            raise ValueError(f"request {ref} is open already")
        now = self._clock()
        deadline = now + min(timeout_ms, MAX_TIMEOUT_MS) / 1000
        if window and not timeout_ms:
            deadline = math.inf
        idle_s = min(idle_ms, MAX_TIMEOUT_MS) / 1000 if idle_ms else math.inf
        began = -math.inf if in_flight else now
        call = Call(payload, session, ref, deadline, self._clock, window, idle_s, began)
        session.requests[ref] = call
        return call


def _ignore(_call: Call) -> None:
    """Do nothing when a request to the node itself is over."""
