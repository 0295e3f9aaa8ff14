"""What comes over a session: decode a batch once, append to mailboxes, wake each process at most once.

A bad message costs what it must: a type that this side does not know costs that message (its sender
is told), anything that breaks the protocol costs the connection, never another's.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.call import Call
from fleetlm.errors import RemoteError
from fleetlm.messaging.stream_items import ConsumerEnd
from fleetlm.messaging.windows import units
from fleetlm.wire.codec import BadData, unreadable_in
from fleetlm.wire.extensions import SHORT
from fleetlm.wire.failures import FailureKind, error_of_failure
from fleetlm.wire.frames import HEADER_BYTES, BadFrame, Kind, Op, read_header, read_peers
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.messaging.mailbox import Mailbox
    from fleetlm.messaging.session import Session
    from fleetlm.wire.codec import Codec

log = logging.getLogger("fleetlm")

_NOBODY = object()
MAX_TIMEOUT_MS = 86_400_000
"""A day: a longer deadline from a peer is cut to it."""
MAX_STREAM_WINDOW = 65_536
"""Items: what a peer may let us send it at a time."""
_COUNT_END = 1 << 64
"""Of refs, bytes and milliseconds: what can be written on the wire, and in a log."""
_NONSENSE = (TypeError, ValueError, LookupError, ArithmeticError)
"""What Python says of values of the wrong type or size: a signalling NaN raises when it is compared."""


class Office(Protocol):
    """What the node does for a peer that asks."""

    def ticked(self, session: Session, lag_ms: int, draining: bool) -> None:
        """The peer's loop is alive."""

    def told_of(self, names: list[str]) -> None:
        """The peer named these nodes as connected to it."""

    def signalled(self, session: Session, signal: Any) -> None:
        """A session, monitor or exit signal. Raises: ValueError for one that is none."""

    def told_table(self, session: Session, topic: Any, fact: Any) -> None:
        """What the peer says of itself. Raises: ValueError, TypeError for nonsense."""

    def asked(self, session: Session, verb: str, argument: Any, call: Call) -> None:
        """The peer asks the node itself: a name, a ping. Answers the call."""


class Inbound:
    """The receiving side of all sessions of a node."""

    def __init__(
        self,
        boxes: dict[int | str, Mailbox],
        codec: Codec,
        office: Office,
        clock: Callable[[], float],
        max_peers: int,
        max_open_calls: int = 65_536,
    ) -> None:
        self._boxes = boxes
        self._codec = codec
        self._office = office
        self._clock = clock
        self._max_peers = max_peers
        self._max_open_calls = max_open_calls
        self.undelivered = 0
        """One-way messages for which there was no process, and those that could not be read."""
        self.unreadable = 0
        self._unclaimed: list[Any] = []
        """Of the run that is being taken."""

    def frame(self, session: Session, frame: bytes, extra: bytes | None) -> None:
        """Take a BATCH or a CHUNK of a session. Raises: BadFrame, and the session must go down."""
        kind, epoch, seq = read_header(frame)
        session.incoming.accept(epoch, seq)
        session.peer.last_heard = self._clock()
        if kind == Kind.BATCH and extra is None:
            self._batch(session, memoryview(frame)[HEADER_BYTES:])
            session.byte_credit.took(len(frame))
        elif kind == Kind.CHUNK and extra is not None:
            head = frame[HEADER_BYTES:]
            whole = session.reassembly.add(head, extra)
            session.byte_credit.took(len(head) + len(extra), in_chunk=True)
            if whole is not None:
                self._large(session, whole)
        else:
            raise BadFrame(f"kind {kind} with {'no' if extra is None else 'a'} second part")

    def _batch(self, session: Session, body: bytes | memoryview) -> None:
        failures = self._codec.failures
        try:
            messages = self._codec.unpack_batch(body)
        except BadData as error:
            raise BadFrame(f"a batch that cannot be read: {error}") from None
        if self._codec.failures != failures:
            messages = self._sorted_out(session, messages)
        self._deliver(session, messages)

    def _large(self, session: Session, whole: memoryview) -> None:
        failures = self._codec.failures
        try:
            message = self._codec.unpack(whole)
        except BadData as error:
            raise BadFrame(f"a large message that cannot be read: {error}") from None
        messages = [_weighed(message, len(whole), session)]
        if self._codec.failures != failures:
            messages = self._sorted_out(session, messages)
        self._deliver(session, messages)

    def _deliver(self, session: Session, messages: list[Any]) -> None:
        """One look-up, one wake-up and one entry in the window for each run of messages to a process."""
        session.messages_received += len(messages)
        run: Any = _NOBODY
        box: Mailbox | None = None
        queue: deque[Any] | list[Any] = self._unclaimed
        before = 0
        try:
            for message in messages:
                if len(message) != 2:
                    if run is not _NOBODY:
                        self._arrived(session, run, len(queue) - before, box)
                        run = _NOBODY  # the operation may change who has which name
                    self._operation(session, message)
                    continue
                to, payload = message
                if to == run:
                    queue.append(payload)
                    continue
                if run is not _NOBODY:
                    self._arrived(session, run, len(queue) - before, box)
                run, box = to, self._boxes.get(to)
                if box is None:
                    queue, before = self._unclaimed, 0
                    queue.append(payload)
                else:
                    queue = box.queue
                    before = len(queue)
                    box.put(payload)
            if run is not _NOBODY:
                self._arrived(session, run, len(queue) - before, box)
        except _NONSENSE as error:
            raise BadFrame(f"a message that is none: {error}") from error
        finally:
            self._unclaimed.clear()

    def _arrived(self, session: Session, to: Any, count: int, box: Mailbox | None, weight: int = 1) -> None:
        if box is None:
            self.undelivered += count
            self._unclaimed.clear()
        session.arrivals.received(_key(to), count, box, weight)

    def _heavy(self, session: Session, message: list[Any]) -> None:
        """A one-way message that says what it counts."""
        operation, to, payload, weight = message
        if operation == Op.CAST:
            payload = Invoke.of(payload)
        box = self._boxes.get(to)
        if box is not None:
            box.put(payload)
        self._arrived(session, to, 1, box, _weight(session, weight))

    def _operation(self, session: Session, message: list[Any]) -> None:
        """Everything but a one-way message. Raises: one of _NONSENSE."""
        operation = message[0]
        if operation == Op.REPLY:
            _, ref, value = message
            future = session.calls.pop(ref, None)
            if future is not None and not future.done():
                future.set_result(value)
        elif operation in (Op.CALL, Op.HANDLE):
            self._call(session, message)
        elif operation == Op.ITEM:
            _, ref, value = message
            inlet = session.calls.get(ref)
            if isinstance(inlet, ConsumerEnd):
                inlet.put(value)
        elif operation == Op.CREDIT:
            _, total, bulk = message
            session.credited(_count(total), _count(bulk))
        elif operation == Op.TICK:
            _, lag_ms, draining = message
            self._office.ticked(session, _count(lag_ms), bool(draining))
        elif operation == Op.FAILURE:
            _, ref, kind, details = message
            error = error_of_failure(kind, details)  # First: nonsense ends the session, and so this call.
            future = session.calls.pop(ref, None)
            if future is not None and not future.done():
                future.set_exception(error)
        elif operation == Op.CANCEL:
            call = session.requests.pop(message[1], None)
            if call is not None:
                call.abandon()
        else:
            self._rarer(session, message)

    def _rarer(self, session: Session, message: list[Any]) -> None:
        """What comes less often. Raises: one of _NONSENSE."""
        operation = message[0]
        if operation in (Op.HEAVY, Op.CAST):
            self._heavy(session, message)
        elif operation == Op.TAKEN:
            _, to, count = message
            session.windows.taken(to, _count(count))
        elif operation in (Op.STREAM, Op.YIELD):
            self._call(session, message)
        elif operation == Op.MORE:
            _, ref, more = message
            request = session.requests.get(ref)
            _count(more)
            if request is not None:
                request.more(more)
        elif operation == Op.REQUEST:
            _, verb, argument, ref = message
            request = self._opened(session, argument, ref, MAX_TIMEOUT_MS)
            self._office.asked(session, verb, argument, request)
        elif operation == Op.SIGNAL:
            _, signal, _ = message
            self._office.signalled(session, signal)
        elif operation == Op.TABLE:
            _, topic, fact = message
            self._office.told_table(session, topic, fact)
        elif operation == Op.PEERS:
            self._office.told_of(read_peers(message[1], self._max_peers))
        else:
            raise ValueError(f"operation {SHORT.repr(operation)} is not known to this version")

    def _call(self, session: Session, message: list[Any]) -> None:
        window = weight = 0
        operation = message[0]
        if operation in (Op.STREAM, Op.YIELD):
            _, to, payload, ref, timeout_ms, window, weight = message
            if not 1 <= _count(window) <= MAX_STREAM_WINDOW:
                raise ValueError(f"a stream with a window of {SHORT.repr(window)}")
        else:
            _, to, payload, ref, timeout_ms = message[:5]
            weight = 1
            if len(message) > 5:
                (weight,) = message[5:]
        if operation in (Op.HANDLE, Op.YIELD):
            payload = Invoke.of(payload)
        if len(session.requests) >= self._max_open_calls:
            why = f"{self._max_open_calls:,} calls of this node are open there already"
            session.failed(_count(ref), FailureKind.TOO_MANY, [str(to), why])
            session.arrivals.received(_key(to), 1, None, _weight(session, weight))
            return
        call = self._opened(session, payload, ref, timeout_ms, window)
        box = self._boxes.get(to)
        if box is None:
            call.no_process(str(to))
        else:
            box.put(call)
        session.arrivals.received(_key(to), 1, box, _weight(session, weight))

    def _opened(self, session: Session, payload: Any, ref: Any, timeout_ms: Any, window: int = 0) -> Call:
        if _count(ref) in session.requests:
            raise ValueError(f"request {ref} is open already")
        deadline = self._clock() + min(_count(timeout_ms), MAX_TIMEOUT_MS) / 1000
        if window and not timeout_ms:
            deadline = math.inf
        call = Call(payload, session, ref, deadline, self._clock, window)
        session.requests[ref] = call
        return call

    def _sorted_out(self, session: Session, messages: list[Any]) -> list[Any]:
        try:
            return [message for message in messages if self._readable(session, message)]
        except _NONSENSE as error:
            raise BadFrame(f"a message that is none: {error}") from error

    def _readable(self, session: Session, message: Any) -> bool:
        """Sort out a message with something in it that this side cannot rebuild; tell its sender."""
        found = unreadable_in(message)
        if found is None:
            return True
        self.unreadable += 1
        if self.unreadable in (1, 10, 100) or self.unreadable % 1000 == 0:
            log.warning(
                "a message from %s could not be read (%s); %d so far",
                session.name,
                found.why,
                self.unreadable,
            )
        match message:
            case [Op.CALL | Op.HANDLE, to, _, ref, _, *rest]:
                self._unread(session, to, rest[0] if rest else 1)
                session.failed(_count(ref), FailureKind.UNDECODABLE, [str(to), found.why])
            case [Op.STREAM | Op.YIELD, to, _, ref, _, _, weight]:
                self._unread(session, to, weight)
                session.failed(_count(ref), FailureKind.UNDECODABLE, [str(to), found.why])
            case [Op.REQUEST, verb, _, ref]:
                session.failed(_count(ref), FailureKind.UNDECODABLE, [str(verb), found.why])
            case [Op.HEAVY | Op.CAST, to, _, weight]:
                self._unread(session, to, weight)
            case [to, _]:
                self._unread(session, to, 1)
            case [Op.ITEM | Op.REPLY as operation, int(ref), _]:
                future = session.calls.pop(ref, None)
                if future is not None and operation == Op.ITEM:
                    session.control([int(Op.CANCEL), ref, None])  # Its producer would wait for ever.
                if future is not None and not future.done():
                    why = f"the reply of {session.name} could not be read: {found.why}"
                    future.set_exception(RemoteError("Undecodable", why))
        return False

    def _unread(self, session: Session, to: Any, weight: Any) -> None:
        """A message that no mailbox gets has left its window all the same."""
        session.arrivals.received(_key(to), 1, None, _weight(session, weight))


def _key(to: Any) -> int | str:
    if type(to) is not int and type(to) is not str:
        raise ValueError(f"{SHORT.repr(to)} is no process")
    return to


def _weighed(message: Any, size: int, session: Session) -> Any:
    """A message that came in pieces, with what it counts for its size."""
    weight = units(size, session.arrivals.limit)
    match message:
        case [to, payload]:
            return [Op.HEAVY, to, payload, weight]
        case [Op.CALL | Op.HANDLE, _, _, _, _]:
            return [*message, weight]
        case [Op.STREAM | Op.YIELD | Op.CAST, *request, _]:
            return [message[0], *request, weight]
    return message


def _weight(session: Session, weight: Any) -> int:
    if not 1 <= _count(weight) <= session.arrivals.limit:
        raise ValueError(f"a message cannot count {SHORT.repr(weight)}")
    return int(weight)


def _count(item: Any) -> int:
    if type(item) is not int or not 0 <= item < _COUNT_END:
        raise ValueError(f"{SHORT.repr(item)} is no count")
    return item
