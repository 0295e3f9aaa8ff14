"""What comes over a link: decode a batch once, append to mailboxes, wake each process at most once.

A bad message costs what it must: a type that this side does not know costs that message (its sender
is told), anything that breaks the protocol costs the connection, never another's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.call import Call, FailureKind, failure
from fleetlm.core.codec import BadData, unreadable_in
from fleetlm.core.ext import SHORT
from fleetlm.core.frames import HEADER_BYTES, BadFrame, Kind, Op, read_header, read_peers
from fleetlm.errors import RemoteError

if TYPE_CHECKING:
    from fleetlm.core.codec import Codec
    from fleetlm.link import Link
    from fleetlm.mailbox import Mailbox

log = logging.getLogger("fleetlm")

_NOBODY = object()
MAX_TIMEOUT_MS = 86_400_000
"""A day: a longer deadline from a peer is cut to it."""
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
        if link.choked and messages:
            waiting = sum(1 for message in messages if len(message) == 2 or message[0] == Op.CALL)
            if link.overdraws(len(body) * waiting // len(messages)):
                raise BadFrame("it goes on sending into a full mailbox, without credit")

    def _large(self, link: Link, whole: memoryview) -> None:
        failures = self._codec.failures
        try:
            message = self._codec.unpack(whole)
        except BadData as error:
            raise BadFrame(f"a large message that cannot be read: {error}") from None
        messages = [message]
        if self._codec.failures != failures:
            messages = self._sorted_out(link, messages)
        self._deliver(link, messages)
        if link.choked and len(message) == 2 and link.overdraws(len(whole), large=True):
            raise BadFrame("it goes on sending into a full mailbox, without credit")

    def _deliver(self, link: Link, messages: list[Any]) -> None:
        """One look-up, one wake-up and one look at the limit for each run of messages to a process."""
        link.received += len(messages)
        run: object = _NOBODY
        box: Mailbox | None = None
        put: Callable[[Any], None] = self._undeliverable
        try:
            for message in messages:
                if len(message) != 2:
                    self._operation(link, message)
                    run = _NOBODY  # it may have changed who has which name
                    continue
                to, payload = message
                if to != run:
                    if box is not None and len(box.queue) > box.limit:
                        link.choke(box)
                    run, box = to, self._boxes.get(to)
                    put = self._undeliverable if box is None else box.queue.append
                    if box is not None:
                        box.put(payload)
                        continue
                put(payload)
        except _NONSENSE as error:
            raise BadFrame(f"a message that is none: {error}") from error
        if box is not None and len(box.queue) > box.limit:
            link.choke(box)

    def _undeliverable(self, _payload: Any) -> None:
        self.undelivered += 1

    def _operation(self, link: Link, message: list[Any]) -> None:
        """Everything but a one-way message. Raises: one of _NONSENSE."""
        operation = message[0]
        if operation == Op.REPLY:
            _, ref, value = message
            future = link.calls.pop(ref, None)
            if future is not None and not future.done():
                future.set_result(value)
        elif operation == Op.CALL:
            self._call(link, message)
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
            self._request(link, message)

    def _request(self, link: Link, message: list[Any]) -> None:
        """What the node itself is told or asked. Raises: TypeError, ValueError, LookupError."""
        operation = message[0]
        if operation == Op.REQUEST:
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
        _, to, payload, ref, timeout_ms = message
        if len(link.requests) >= self._max_open_calls:
            why = f"{self._max_open_calls:,} calls of this node are open there already"
            link.failed(_count(ref), FailureKind.TOO_MANY, [str(to), why])
            return
        call = self._opened(link, payload, ref, timeout_ms)
        box = self._boxes.get(to)
        if box is None:
            call.no_process(str(to))
            return
        box.put(call)
        if len(box.queue) > box.limit:
            link.choke(box)

    def _opened(self, link: Link, payload: Any, ref: Any, timeout_ms: Any) -> Call:
        if _count(ref) in link.requests:
            raise ValueError(f"request {ref} is open already")
        deadline = self._clock() + min(_count(timeout_ms), MAX_TIMEOUT_MS) / 1000
        call = Call(payload, link, ref, deadline, self._clock)
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
            case [Op.CALL, to, _, ref, _]:
                link.failed(_count(ref), FailureKind.UNDECODABLE, [str(to), found.why])
            case [Op.REPLY, int(ref), _]:
                future = link.calls.pop(ref, None)
                if future is not None and not future.done():
                    why = f"the reply of {link.name} could not be read: {found.why}"
                    future.set_exception(RemoteError("Undecodable", why))
        return False


def _count(item: Any) -> int:
    if type(item) is not int or not 0 <= item < _COUNT_END:
        raise ValueError(f"{SHORT.repr(item)} is no count")
    return item
