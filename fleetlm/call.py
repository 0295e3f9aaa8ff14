"""A request as the process that serves it sees it."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from fleetlm.errors import AlreadyRegistered, Draining, FleetError, NoFactory, NoProcess
from fleetlm.texts import text_of
from fleetlm.wire.failures import FailureKind


class Caller(Protocol):
    """Where the outcome of a request goes: back over a connection, or to a future of this node."""

    def replied(self, ref: int, value: Any) -> None:
        """It ran. Raises: NotSerializable, MessageTooLarge; the caller has then no outcome yet."""

    def failed(self, ref: int, kind: FailureKind, details: list[str]) -> None:
        """It has no reply. Never raises."""

    async def item(self, ref: int, value: Any) -> None:
        """Send an item of a stream. Raises: as `replied`; the stream goes on."""

    def forget(self, ref: int) -> None:
        """Nobody waits for it any more."""


class Call:
    """A request in a mailbox.

    Reply exactly once, now or later, from any task of the node::

        match message:
            case Call(message=("add", a, b)):
                message.reply(a + b)

    A call that asks for a stream takes items before its reply, which ends it::

                for token in tokens:
                    if not await message.put(token):
                        break
                message.reply()

    A process that ends with calls unanswered answers them: `NoProcess` for what it never took,
    `ProcessDown` for what it took.
    """

    __match_args__ = ("message",)
    __slots__ = ("_caller", "_clock", "_done", "_on_done", "_producer", "_ref", "deadline", "message")

    def __init__(
        self,
        message: Any,
        caller: Caller,
        ref: int,
        deadline: float,
        clock: Callable[[], float],
        window: int = 0,
    ) -> None:
        self.message: Any = message
        self.deadline: float = deadline
        """On the loop's clock (seconds): after it nobody waits."""
        self._caller = caller
        self._ref = ref
        self._clock = clock
        self._done = False
        self._on_done: Callable[[Call], None] | None = None
        self._producer = _ProducerEnd(window) if window else None

    def __repr__(self) -> str:
        return f"Call({self.message!r})"

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; pass it on to calls made for this one."""
        return max(0.0, self.deadline - self._clock())

    @property
    def open(self) -> bool:
        """Whether it has been neither answered nor given up; its deadline may have passed."""
        return not self._done

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits: not answered, not given up, not expired."""
        return not self._done and self._clock() < self.deadline

    def reply(self, value: Any = None) -> None:
        """Send the result. A second answer, or one that nobody waits for, goes nowhere.

        Raises:
            NotSerializable: the value cannot travel; the caller is told (`RemoteError`) all the same.
            MessageTooLarge: likewise.
        """
        if self._finish():
            try:
                self._caller.replied(self._ref, value)
            except FleetError as error:
                self._send_error(error)
                raise

    @property
    def streaming(self) -> bool:
        """Whether it asks for a stream of items rather than for one reply."""
        return self._producer is not None

    async def put(self, item: Any) -> bool:
        """Send an item of a stream; waits while the consumer's window is full.

        Returns:
            False when nobody wants items any more: the consumer has stopped or died, the deadline has
            passed, or the stream has been ended here.

        Raises:
            TypeError: this call does not ask for a stream.
            NotSerializable, MessageTooLarge: the item cannot travel; the stream goes on without it.
        """
        producer = self._producer
        if producer is None:
            raise TypeError("this call asks for one reply, not for a stream")
        while producer.credit <= 0 and not self._done:
            await producer.changed()
        if not self.wanted:
            self.abandon()
            return False
        producer.credit -= 1
        try:
            await self._caller.item(self._ref, item)
        except BaseException:
            producer.more(1)  # It has not left, so nobody will give this credit back.
            raise
        return not self._done

    def more(self, count: int) -> None:
        """The consumer may be sent so many items besides. Raises: ValueError, if it is no stream."""
        if self._producer is None:
            raise ValueError("credit for a call that is no stream")
        self._producer.more(count)

    def fail(self, error: BaseException) -> None:
        """Let the call raise `RemoteError` at the caller: type name, text and traceback as text."""
        if self._finish():
            self._send_error(error)

    def refuse(self, error: AlreadyRegistered | Draining | NoFactory | NoProcess) -> None:
        """Let the caller raise this error itself: for the node, which knows that nothing has run."""
        if self._finish():
            match error:
                case AlreadyRegistered(name=name, owner=owner):
                    self._caller.failed(self._ref, FailureKind.NAME_TAKEN, [name, str(owner)])
                case Draining(node=node):
                    self._caller.failed(self._ref, FailureKind.DRAINING, [node])
                case NoFactory(node=node, factory=factory):
                    self._caller.failed(self._ref, FailureKind.NO_FACTORY, [node, factory])
                case NoProcess(target=target):
                    self._caller.failed(self._ref, FailureKind.NO_PROCESS, [str(target)])

    def watch(self, on_done: Callable[[Call], None]) -> None:
        """Tell ``on_done`` when this call needs no answer any more, or when another watches.

        The process that took it last answers for it: a call may be passed on within a node.
        """
        former, self._on_done = self._on_done, on_done
        if former is not None:
            former(self)

    def abandon(self) -> None:
        """Its caller has gone, or its deadline has passed: no answer is needed."""
        if self._finish():
            self._caller.forget(self._ref)

    def no_process(self, target: str) -> None:
        """Nobody took it."""
        if self._finish():
            self._caller.failed(self._ref, FailureKind.NO_PROCESS, [target])

    def process_down(self, target: str, reason: str) -> None:
        """Who took it has ended."""
        if self._finish():
            self._caller.failed(self._ref, FailureKind.PROCESS_DOWN, [target, reason])

    def no_handler(self, target: str, why: str) -> None:
        """Who took it cannot run it, and has not."""
        if self._finish():
            self._caller.failed(self._ref, FailureKind.NO_HANDLER, [target, why])

    def _send_error(self, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        self._caller.failed(self._ref, FailureKind.RAISED, [type(error).__name__, text_of(error), text])

    def _finish(self) -> bool:
        if self._done:
            return False
        self._done = True
        if self._producer is not None:
            self._producer.wake()
        if self._on_done is not None:
            self._on_done(self)
        return True


class _ProducerEnd:
    """The producer's end of a stream: how many items it may send, and the tasks that wait for more credit."""

    __slots__ = ("_waiters", "credit")

    def __init__(self, window: int) -> None:
        self.credit = window
        """Items that may be sent now."""
        self._waiters: dict[asyncio.Future[None], None] = {}
        """Several, where several tasks produce items of one stream."""

    def more(self, count: int) -> None:
        """Add the credit for items that the consumer has taken."""
        self.credit += count
        self.wake()

    def wake(self) -> None:
        """Wake every producing task: there is credit, or the stream has ended."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self) -> None:
        """Return when credit has come or the stream has ended; the caller looks which."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            del self._waiters[waiter]
