"""A request as the process that serves it sees it.

A `Call` is open until it ends, exactly once: by a reply, by a failure, or because no answer is needed any
more. The first end counts; later answers are dropped. Its `Caller` carries the outcome: a session sends it
back over the connection, and the sending side of this node sets a future. The process that took the call
last watches it (`Call.watch`), so that a process that ends can answer the calls it has taken.

A call for a stream also has a `_ProducerEnd`: the credit for items, and the tasks that wait for credit or
for the end. They wait no longer than the idle limit of the stream, which came with the request.
"""

from __future__ import annotations

import asyncio
import logging
import math
from asyncio import _get_running_loop
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from fleetlm.errors import (
    AlreadyRegistered,
    Draining,
    FleetError,
    MessageTooLarge,
    NoFactory,
    NoProcess,
    NotAllowed,
    NotLoaded,
    NotOwner,
    NotStored,
)
from fleetlm.texts import SHORT, text_of, traceback_of
from fleetlm.wire.failures import FailureKind, texts_of_outcome
from fleetlm.wire.invocation import Invoke

log: logging.Logger = logging.getLogger("fleetlm")


class TooLargeForPeer(MessageTooLarge):
    """A message is larger than the other node takes, and not larger than this node sends.

    A caller is told, and a broadcast passes that node over. The process that answers or broadcasts is not at
    fault and goes on: otherwise a node could end processes of others by saying that it takes next to nothing.
    """


class Caller(Protocol):
    """Where the outcome of a request goes: back over a connection, or to a future of this node."""

    def replied(self, ref: int, value: Any) -> None:
        """Give the caller a result. Raises: NotSerializable, MessageTooLarge; no outcome was sent then."""

    def failed(self, ref: int, kind: FailureKind, details: list[str]) -> None:
        """Give the caller the reason why there is no reply. Never raises."""

    def packed_item(self, ref: int, value: Any, window: int, /) -> tuple[Any, int]:
        """Prepare an item of a stream.

        Returns:
            What `item` takes, and the units that it counts in a window of ``window`` units.

        Raises:
            NotSerializable: the stream goes on.
        """

    @property
    def is_behind(self) -> bool:
        """Whether so many answers wait for this caller that no further call of it should be served now."""

    async def caught_up(self) -> None:
        """Return when it is not behind any more."""

    async def item(self, ref: int, packed: Any, timeout_s: float, /) -> None:
        """Send an item of a stream, waiting for room if need be.

        Raises:
            MessageTooLarge: the stream goes on.
            TimeoutError: there was no room for ``timeout_s`` seconds.
        """

    def forget(self, ref: int) -> None:
        """Drop a request that needs no answer any more."""


class Call:
    """A request in a mailbox.

    Reply once, now or later, from any task of the node::

        match message:
            case Call(message=("add", a, b)):
                message.reply(a + b)

    A call that asks for a stream takes items before its reply, and the reply ends the stream::

        for token in tokens:
            if not await message.put(token):
                break
        message.reply()

    When a process ends, the runtime answers its open calls: with `NoProcess` if the process never took the
    call, with `ProcessDown` if it took the call.

    Attributes:
        message: what the caller sent.
        deadline: on the loop's clock, in seconds; the caller does not wait any longer.
        began: when it came, on the same clock; ``-math.inf`` if it is made on behalf of work that was in
            flight before. See `messaging.in_flight`.
    """

    __match_args__ = ("message",)
    __slots__ = (
        "_caller",
        "_carrier",
        "_clock",
        "_done",
        "_on_done",
        "_producer",
        "_ref",
        "began",
        "deadline",
        "message",
    )

    def __init__(
        self,
        message: Any,
        caller: Caller,
        ref: int,
        deadline: float,
        clock: Callable[[], float],
        window: int = 0,
        idle_s: float = math.inf,
        began: float = math.inf,
    ) -> None:
        if type(message) is Invoke and message.carrier is not None:
            self._carrier: bytes = message.carrier  # Not set otherwise, since that would cost every call.
            if not message.handler:
                message = message.args[0]
        self.message: Any = message
        self.deadline: float = deadline
        self.began: float = began
        self._caller = caller
        self._ref = ref
        self._clock = clock
        self._done = False
        self._on_done: Callable[[Call], None] | None = None
        self._producer = _ProducerEnd(window, idle_s) if window else None

    def __repr__(self) -> str:
        return f"Call({SHORT.repr(self.message)})"

    @property
    def carrier(self) -> bytes | None:
        """What came of its caller's context, packed, or None; see `fleetlm.carried`."""
        return getattr(self, "_carrier", None)

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline, at least 0; pass them on to calls that are made for this one."""
        return max(0.0, self.deadline - self._clock())

    @property
    def open(self) -> bool:
        """Whether the call has been neither answered nor given up; its deadline may have passed."""
        return not self._done

    @property
    def wanted(self) -> bool:
        """Whether the caller still waits: the call is not answered, not given up, and not expired."""
        return not self._done and self._clock() < self.deadline

    def reply(self, value: Any = None) -> None:
        """Send the result. If the call has been answered or given up before, nothing happens.

        From another thread or event loop, such as the callback thread of an inference engine, the result is
        handed to the node's loop. It is sent at once, in the order of such calls; a result that cannot travel
        is then logged instead of raised. Do not change the value afterwards.

        A result that is only larger than the caller's node takes (`Settings.max_message_bytes` there) becomes
        a `RemoteError` at the caller, and raises nothing here.

        Raises:
            NotSerializable: the value cannot travel; the caller gets a `RemoteError` that says so.
            MessageTooLarge: likewise.
        """
        running = _get_running_loop()  # The usual case first: the node's loop, whose clock this call has.
        if running is None or running is not getattr(self._clock, "__self__", None):
            loop = self._find_loop()
            if loop is not None and loop is not running and loop.is_running():
                loop.call_soon_threadsafe(self._reply_for_thread, value)
                return
        if not self._done:  # `_finish` inline.
            self._done = True
            if self._producer is not None:
                self._producer.wake()
            if self._on_done is not None:
                self._on_done(self)
            try:
                self._caller.replied(self._ref, value)
            except TooLargeForPeer as error:
                self._send_error(error)
            except FleetError as error:
                self._send_error(error)
                raise

    def _reply_for_thread(self, value: Any) -> None:
        try:
            self.reply(value)
        except FleetError as error:
            log.warning("a reply that another thread gave cannot be sent; its caller was told: %s", error)

    def _find_loop(self) -> asyncio.AbstractEventLoop | None:
        """Return the node's loop, whose clock this call has."""
        loop = getattr(self._clock, "__self__", None)
        return loop if isinstance(loop, asyncio.AbstractEventLoop) else None

    @property
    def streaming(self) -> bool:
        """Whether the caller asks for a stream of items instead of one reply."""
        return self._producer is not None

    @property
    def items_sent(self) -> int:
        """Items that were sent of the stream that this call asks for; 0 for other calls."""
        return 0 if self._producer is None else self._producer.sent

    async def put(self, item: Any) -> bool:
        """Send an item of a stream; wait while the consumer's window is full.

        A consumer that takes nothing for the idle limit of the stream gets `StreamIdle`, and the stream has
        ended: a consumer that stopped reading must not keep an actor from its other callers.

        Returns:
            False when no further item is wanted: the consumer has stopped, ended or taken nothing for too
            long, the deadline has passed, the item is larger than the consumer's node takes, or the stream
            has been ended here.

        Raises:
            TypeError: this call does not ask for a stream.
            NotSerializable, MessageTooLarge: the item cannot travel; the stream goes on without it.
        """
        producer = self._producer
        if producer is None:
            raise TypeError("this call asks for one reply, not for a stream")
        running = _get_running_loop()  # As in `reply`.
        if (
            (running is None or running is not getattr(self._clock, "__self__", None))
            and (loop := self._find_loop()) is not None
            and loop is not running
        ):
            raise RuntimeError(
                "Call.put was called on another event loop than the node's, and nothing was sent. From a "
                "thread, use `Node.stream_blocking` in the process, or `node.sync` for other requests"
            )
        if producer.pause is not None:
            await producer.pause()
        if self._done or self._clock() >= self.deadline:
            self.abandon()
            return False
        packed, units = self._caller.packed_item(self._ref, item, producer.window)
        try:
            if producer.credit <= 0:
                await producer.wait_for_credit(self)
                if not self._is_still_wanted():
                    return False
            producer.credit -= units
            producer.sent += 1
            try:
                await self._caller.item(self._ref, packed, producer.idle_s)
            except BaseException:
                producer.sent -= 1
                producer.more(units)  # It was not sent, so the consumer will not give its credit back.
                raise
        except TooLargeForPeer as error:
            if self._finish():
                self._send_error(error)
        except TimeoutError:
            if self._finish():
                self._caller.failed(self._ref, FailureKind.UNREAD, [])
        return not self._done

    def more(self, units: int) -> None:
        """Add credit for items that the consumer has taken.

        Raises:
            ValueError: this is not a stream, or the consumer cannot have taken so much; nothing changed.
        """
        producer = self._producer
        if producer is None:
            raise ValueError("credit for a call that does not ask for a stream")
        if producer.credit + units > producer.window:
            raise ValueError(f"credit for {units:,} units of items that were not sent")
        producer.more(units)

    def fail(self, error: BaseException) -> None:
        """Raise `RemoteError` at the caller, with the type name, the text and the traceback as text.

        An outcome of a request that the serving process made itself goes along as `RemoteError.cause`.
        """
        if _get_running_loop() is not (loop := self._find_loop()) and loop is not None and loop.is_running():
            loop.call_soon_threadsafe(self.fail, error)  # As `reply` does.
        elif self._finish():
            self._send_error(error)

    def refuse(
        self,
        error: AlreadyRegistered
        | Draining
        | NoFactory
        | NoProcess
        | NotAllowed
        | NotLoaded
        | NotOwner
        | NotStored,
    ) -> None:
        """Raise this error itself at the caller. For the runtime, where it knows what has run."""
        if self._finish():
            match error:
                case AlreadyRegistered(name=name, owner=owner):
                    self._caller.failed(self._ref, FailureKind.NAME_TAKEN, [name, str(owner)])
                case Draining(node=node, retry_after=after, has_begun=begun):
                    self._caller.failed(self._ref, FailureKind.DRAINING, [node, f"{after:.3f}", str(begun)])
                case NoFactory(node=node, factory=factory):
                    self._caller.failed(self._ref, FailureKind.NO_FACTORY, [node, factory])
                case NotAllowed(node=node, why=why):
                    self._caller.failed(self._ref, FailureKind.NOT_ALLOWED, [node, why])
                case NotOwner(target=target, owner=owner, epoch=epoch):
                    self._caller.failed(self._ref, FailureKind.NOT_OWNER, [target, owner, str(epoch)])
                case NoProcess(target=target):
                    self._caller.failed(self._ref, FailureKind.NO_PROCESS, [str(target)])
                case NotLoaded(target=target, why=why):
                    self._caller.failed(self._ref, FailureKind.NOT_LOADED, [target, why])
                case NotStored(target=target, why=why):
                    self._caller.failed(self._ref, FailureKind.NOT_STORED, [target, why])

    def watch(self, on_done: Callable[[Call], None]) -> None:
        """Call ``on_done`` when this call needs no answer any more, or when another process watches it.

        A call may be passed on within a node; the process that took it last answers for it.
        """
        former, self._on_done = self._on_done, on_done
        if former is not None:
            former(self)

    def pause_with(self, pause: Callable[[], Awaitable[None]]) -> None:
        """Let ``pause`` run before each item, so that a producer that never waits does not stop the loop."""
        if self._producer is not None:
            self._producer.pause = pause

    def abandon(self) -> None:
        """End the call without an answer: its caller has gone, or its deadline has passed."""
        if self._finish():
            self._caller.forget(self._ref)

    def no_process(self, target: str) -> None:
        """Raise `NoProcess` at the caller: the process never took the call."""
        if self._finish():
            self._caller.failed(self._ref, FailureKind.NO_PROCESS, [target])

    def process_down(self, target: str, reason: str) -> None:
        """Raise `ProcessDown` at the caller: the process took the call and has ended."""
        if self._finish():
            self._caller.failed(self._ref, FailureKind.PROCESS_DOWN, [target, reason])

    @property
    def origin(self) -> tuple[str, int] | None:
        """The node that sent it, and its incarnation; None: this node did."""
        return getattr(self._caller, "origin", None)

    def is_from(self, caller: Caller) -> bool:
        """Whether its outcome goes to this caller."""
        return self._caller is caller

    @property
    def is_taken(self) -> bool:
        """Whether a process has taken it from its mailbox, or it is over."""
        return self._done or self._on_done is not None

    def would_block(self, target: str, why: str) -> None:
        """Raise `WouldBlock` at the caller: no process has taken the call, and none would."""
        if self._finish():
            self._caller.failed(self._ref, FailureKind.TOO_MANY, [target, why])

    def no_handler(self, target: str, why: str) -> None:
        """Raise `NoHandler` at the caller: the actor has no handler for the call, and nothing has run."""
        if self._finish():
            self._caller.failed(self._ref, FailureKind.NO_HANDLER, [target, why])

    def _send_error(self, error: BaseException) -> None:
        texts = [type(error).__name__, text_of(error), traceback_of(error), *texts_of_outcome(error)]
        self._caller.failed(self._ref, FailureKind.RAISED, texts)

    def _is_still_wanted(self) -> bool:
        """Whether the caller still waits; a call whose deadline has passed is abandoned."""
        if self.wanted:
            return True
        self.abandon()
        return False

    def _finish(self) -> bool:
        """End the call, wake its producers, and call `watch`'s callback. Returns False if it ended before."""
        if self._done:
            return False
        self._done = True
        if self._producer is not None:
            self._producer.wake()
        if self._on_done is not None:
            self._on_done(self)
        return True


class _ProducerEnd:
    """The producer's end of a stream: how much it may send, and the tasks that wait for more credit.

    Args:
        window: units of items that the producer may send ahead of its consumer.
        idle_s: seconds that it waits for its consumer.
    """

    __slots__ = ("_waiters", "credit", "idle_s", "pause", "sent", "window")

    def __init__(self, window: int, idle_s: float = math.inf) -> None:
        self.window = window
        self.idle_s = idle_s
        self.sent = 0
        """Items that were sent."""
        self.pause: Callable[[], Awaitable[None]] | None = None
        """Lets others have their turn, where there is credit each time; set by the process that produces."""
        self.credit = window
        """Units that may be sent now. A large item may take it below 0."""
        self._waiters: dict[asyncio.Future[None], None] = {}
        """What producing tasks wait for; several if several tasks produce items of one stream."""

    def more(self, units: int) -> None:
        """Add the credit for items that the consumer has taken."""
        self.credit += units
        self.wake()

    def wake(self) -> None:
        """Wake every producing task: there is credit, or the stream has ended."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_for_credit(self, call: Call) -> None:
        """Return when there is credit, or the stream has ended. Raises: TimeoutError at the idle limit."""
        async with asyncio.timeout(None if self.idle_s == math.inf else self.idle_s):
            while self.credit <= 0 and call.open:
                await self.changed()

    async def changed(self) -> None:
        """Return when credit has come or the stream has ended; the caller checks which of the two."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            del self._waiters[waiter]
