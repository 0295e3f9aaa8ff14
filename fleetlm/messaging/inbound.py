"""What comes over a link: decode a batch once, append to mailboxes, wake each process at most once.

A bad message costs what it must: a type that this side does not know costs that message (its sender
is told), anything that breaks the protocol costs the connection, never another's.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.actors.handlers import Invoke
from fleetlm.call import Call, FailureKind, failure
from fleetlm.errors import RemoteError
from fleetlm.messaging.stream_items import Inlet
from fleetlm.messaging.windows import units
from fleetlm.wire.codec import BadData, unreadable_in
from fleetlm.wire.extensions import SHORT
from fleetlm.wire.frames import HEADER_BYTES, BadFrame, Kind, Op, read_header, read_peers

if TYPE_CHECKING:
    from fleetlm.messaging.mailbox import Mailbox
    from fleetlm.messaging.session import Link
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

    def ticked(self, link: Link, lag_ms: int, draining: bool) -> None:
        """The peer's loop is alive."""

    def told_of(self, names: list[str]) -> None:
        """The peer named these nodes as connected to it."""

    def signalled(self, link: Link, signal: Any) -> None:
        """A link, monitor or exit signal. Raises: ValueError for one that is none."""

    def told_table(self, link: Link, topic: Any, fact: Any) -> None:
        """What the peer says of itself. Raises: ValueError, TypeError for nonsense."""

    def asked(self, link: Link, verb: str, argument: Any, call: Call) -> None:
        """The peer asks the node itself: a name, a ping. Answers the call."""


class Inbound:
    """The receiving side of all links of a node."""

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

    def frame(self, link: Link, frame: bytes, extra: bytes | None) -> None:
        """Take a BATCH or a CHUNK of a link. Raises: BadFrame, and the link must go down."""
        kind, epoch, seq = read_header(frame)
        link.incoming.accept(epoch, seq)
        link.peer.last_heard = self._clock()
        if kind == Kind.BATCH and extra is None:
            self._batch(link, memoryview(frame)[HEADER_BYTES:])
            link.took(len(frame))
        elif kind == Kind.CHUNK and extra is not None:
            head = frame[HEADER_BYTES:]
            whole = link.reassembly.add(head, extra)
            link.took(len(head) + len(extra), bulk=True)
            if whole is not None:
                self._large(link, whole)
        else:
            raise BadFrame(f"kind {kind} with {'no' if extra is None else 'a'} second part")

    def _batch(self, link: Link, body: bytes | memoryview) -> None:
        failures = self._codec.failures
        try:
            messages = self._codec.unpack_batch(body)
        except BadData as error:
            raise BadFrame(f"a batch that cannot be read: {error}") from None
        if self._codec.failures != failures:
            messages = self._sorted_out(link, messages)
        self._deliver(link, messages)

    def _large(self, link: Link, whole: memoryview) -> None:
        failures = self._codec.failures
        try:
            message = self._codec.unpack(whole)
        except BadData as error:
            raise BadFrame(f"a large message that cannot be read: {error}") from None
        messages = [_weighed(message, len(whole), link)]
        if self._codec.failures != failures:
            messages = self._sorted_out(link, messages)
        self._deliver(link, messages)

    def _deliver(self, link: Link, messages: list[Any]) -> None:
        """One look-up, one wake-up and one entry in the window for each run of messages to a process."""
        link.received += len(messages)
        run: Any = _NOBODY
        box: Mailbox | None = None
        queue: deque[Any] | list[Any] = self._unclaimed
        before = 0
        try:
            for message in messages:
                if len(message) != 2:
                    if run is not _NOBODY:
                        self._arrived(link, run, len(queue) - before, box)
                        run = _NOBODY  # the operation may change who has which name
                    self._operation(link, message)
                    continue
                to, payload = message
                if to == run:
                    queue.append(payload)
                    continue
                if run is not _NOBODY:
                    self._arrived(link, run, len(queue) - before, box)
                run, box = to, self._boxes.get(to)
                if box is None:
                    queue, before = self._unclaimed, 0
                    queue.append(payload)
                else:
                    queue = box.queue
                    before = len(queue)
                    box.put(payload)
            if run is not _NOBODY:
                self._arrived(link, run, len(queue) - before, box)
        except _NONSENSE as error:
            raise BadFrame(f"a message that is none: {error}") from error
        finally:
            self._unclaimed.clear()

    def _arrived(self, link: Link, to: Any, count: int, box: Mailbox | None, weight: int = 1) -> None:
        if box is None:
            self.undelivered += count
            self._unclaimed.clear()
        link.arrivals.received(_key(to), count, box, weight)

    def _heavy(self, link: Link, message: list[Any]) -> None:
        """A one-way message that says what it counts."""
        operation, to, payload, weight = message
        if operation == Op.CAST:
            payload = Invoke.of(payload)
        box = self._boxes.get(to)
        if box is not None:
            box.put(payload)
        self._arrived(link, to, 1, box, _weight(link, weight))

    def _operation(self, link: Link, message: list[Any]) -> None:
        """Everything but a one-way message. Raises: one of _NONSENSE."""
        operation = message[0]
        if operation == Op.REPLY:
            _, ref, value = message
            future = link.calls.pop(ref, None)
            if future is not None and not future.done():
                future.set_result(value)
        elif operation in (Op.CALL, Op.HANDLE):
            self._call(link, message)
        elif operation == Op.ITEM:
            _, ref, value = message
            inlet = link.calls.get(ref)
            if isinstance(inlet, Inlet):
                inlet.put(value)
        elif operation == Op.CREDIT:
            _, total, bulk = message
            link.credited(_count(total), _count(bulk))
        elif operation == Op.TICK:
            _, lag_ms, draining = message
            self._office.ticked(link, _count(lag_ms), bool(draining))
        elif operation == Op.FAILURE:
            _, ref, kind, details = message
            error = failure(kind, details)  # First: nonsense ends the link, and so this call.
            future = link.calls.pop(ref, None)
            if future is not None and not future.done():
                future.set_exception(error)
        elif operation == Op.CANCEL:
            call = link.requests.pop(message[1], None)
            if call is not None:
                call.abandon()
        else:
            self._rarer(link, message)

    def _rarer(self, link: Link, message: list[Any]) -> None:
        """What comes less often. Raises: one of _NONSENSE."""
        operation = message[0]
        if operation in (Op.HEAVY, Op.CAST):
            self._heavy(link, message)
        elif operation == Op.TAKEN:
            _, to, count = message
            link.windows.taken(to, _count(count))
        elif operation in (Op.STREAM, Op.YIELD):
            self._call(link, message)
        elif operation == Op.MORE:
            _, ref, more = message
            request = link.requests.get(ref)
            _count(more)
            if request is not None:
                request.more(more)
        elif operation == Op.REQUEST:
            _, verb, argument, ref = message
            request = self._opened(link, argument, ref, MAX_TIMEOUT_MS)
            self._office.asked(link, verb, argument, request)
        elif operation == Op.SIGNAL:
            _, signal, _ = message
            self._office.signalled(link, signal)
        elif operation == Op.TABLE:
            _, topic, fact = message
            self._office.told_table(link, topic, fact)
        elif operation == Op.PEERS:
            self._office.told_of(read_peers(message[1], self._max_peers))
        else:
            raise ValueError(f"operation {SHORT.repr(operation)} is not known to this version")

    def _call(self, link: Link, message: list[Any]) -> None:
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
        if len(link.requests) >= self._max_open_calls:
            why = f"{self._max_open_calls:,} calls of this node are open there already"
            link.failed(_count(ref), FailureKind.TOO_MANY, [str(to), why])
            link.arrivals.received(_key(to), 1, None, _weight(link, weight))
            return
        call = self._opened(link, payload, ref, timeout_ms, window)
        box = self._boxes.get(to)
        if box is None:
            call.no_process(str(to))
        else:
            box.put(call)
        link.arrivals.received(_key(to), 1, box, _weight(link, weight))

    def _opened(self, link: Link, payload: Any, ref: Any, timeout_ms: Any, window: int = 0) -> Call:
        if _count(ref) in link.requests:
            raise ValueError(f"request {ref} is open already")
        deadline = self._clock() + min(_count(timeout_ms), MAX_TIMEOUT_MS) / 1000
        if window and not timeout_ms:
            deadline = math.inf
        call = Call(payload, link, ref, deadline, self._clock, window)
        link.requests[ref] = call
        return call

    def _sorted_out(self, link: Link, messages: list[Any]) -> list[Any]:
        try:
            return [message for message in messages if self._readable(link, message)]
        except _NONSENSE as error:
            raise BadFrame(f"a message that is none: {error}") from error

    def _readable(self, link: Link, message: Any) -> bool:
        """Sort out a message with something in it that this side cannot rebuild; tell its sender."""
        found = unreadable_in(message)
        if found is None:
            return True
        self.unreadable += 1
        if self.unreadable in (1, 10, 100) or self.unreadable % 1000 == 0:
            log.warning(
                "a message from %s could not be read (%s); %d so far", link.name, found.why, self.unreadable
            )
        match message:
            case [Op.CALL | Op.HANDLE, to, _, ref, _, *rest]:
                self._unread(link, to, rest[0] if rest else 1)
                link.failed(_count(ref), FailureKind.UNDECODABLE, [str(to), found.why])
            case [Op.STREAM | Op.YIELD, to, _, ref, _, _, weight]:
                self._unread(link, to, weight)
                link.failed(_count(ref), FailureKind.UNDECODABLE, [str(to), found.why])
            case [Op.REQUEST, verb, _, ref]:
                link.failed(_count(ref), FailureKind.UNDECODABLE, [str(verb), found.why])
            case [Op.HEAVY | Op.CAST, to, _, weight]:
                self._unread(link, to, weight)
            case [to, _]:
                self._unread(link, to, 1)
            case [Op.ITEM | Op.REPLY as operation, int(ref), _]:
                future = link.calls.pop(ref, None)
                if future is not None and operation == Op.ITEM:
                    link.control([int(Op.CANCEL), ref, None])  # Its producer would wait for ever.
                if future is not None and not future.done():
                    why = f"the reply of {link.name} could not be read: {found.why}"
                    future.set_exception(RemoteError("Undecodable", why))
        return False

    def _unread(self, link: Link, to: Any, weight: Any) -> None:
        """A message that no mailbox gets has left its window all the same."""
        link.arrivals.received(_key(to), 1, None, _weight(link, weight))


def _key(to: Any) -> int | str:
    if type(to) is not int and type(to) is not str:
        raise ValueError(f"{SHORT.repr(to)} is no process")
    return to


def _weighed(message: Any, size: int, link: Link) -> Any:
    """A message that came in pieces, with what it counts for its size."""
    weight = units(size, link.arrivals.limit)
    match message:
        case [to, payload]:
            return [Op.HEAVY, to, payload, weight]
        case [Op.CALL | Op.HANDLE, _, _, _, _]:
            return [*message, weight]
        case [Op.STREAM | Op.YIELD | Op.CAST, *request, _]:
            return [message[0], *request, weight]
    return message


def _weight(link: Link, weight: Any) -> int:
    if not 1 <= _count(weight) <= link.arrivals.limit:
        raise ValueError(f"a message cannot count {SHORT.repr(weight)}")
    return int(weight)


def _count(item: Any) -> int:
    if type(item) is not int or not 0 <= item < _COUNT_END:
        raise ValueError(f"{SHORT.repr(item)} is no count")
    return item
