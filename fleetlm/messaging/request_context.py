"""What a node sends besides a message, and the trace of its requests, where `CARRYING` is active.

`Node.call`, `ActorSender`, `Streams`, `Multicall` and `FanOut` come here only then. A traced request is an
`Asked` from before it is sent until its outcome: a block for calls and casts, a `TracedConsumerEnd` for
streams.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from fleetlm.errors import FleetError
from fleetlm.messaging.carrying import CARRYING
from fleetlm.messaging.stream_items import ConsumerEnd
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.messaging.carrying import Asked, Tracer
    from fleetlm.messaging.mailbox import Key
    from fleetlm.messaging.session import Session
    from fleetlm.messaging.targets import Target

_UNTRACED: AbstractContextManager[None] = nullcontext()


class RequestContext:
    """The sending side of one node.

    Args:
        name: of the node.
        incarnation: of the node.
        route: `Outbound.route`.
        clock: the loop's time in seconds.
    """

    __slots__ = ("_clock", "_incarnation", "_name", "_route")

    def __init__(
        self,
        name: str,
        incarnation: int,
        route: Callable[[Target], tuple[Session | None, Key]],
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._name = name
        self._incarnation = incarnation
        self._route = route

    @property
    def _tracer(self) -> Tracer | None:
        return CARRYING.tracer_of(self._name, self._incarnation)

    async def ask(
        self,
        verb: str,
        ask: Callable[[Target, Any, float | None], Coroutine[Any, Any, Any]],
        to: Target,
        message: Any,
        timeout_s: float | None,
    ) -> Any:
        """Await ``ask`` with the message and its carrier, and trace that. Returns and raises: as ``ask``."""
        with self.asked(verb, to, message) as asked:
            return await ask(to, self.carrying(to, message, asked), timeout_s)

    def ask_now(self, verb: str, ask: Callable[[Target, Any], None], to: Target, message: Any) -> None:
        """Do as `ask` for a function that does not wait."""
        with self.asked(verb, to, message) as asked:
            ask(to, self.carrying(to, message, asked))

    def asked(
        self, verb: str, to: Target | None, message: Any, count: int = 1
    ) -> AbstractContextManager[Asked | None]:
        """Trace a request while the block runs, if this node is traced. See `Tracer.ask`."""
        tracer = self._tracer
        return _UNTRACED if tracer is None else _until_outcome(tracer.ask(verb, to, message, count))

    def carrying(self, to: Target, message: Any, asked: Asked | None) -> Any:
        """Return a message with its carrier, if it has one and the node of ``to`` takes carriers."""
        carrier = CARRYING.pack(asked) if self.is_able(to) else None
        if carrier is None:
            return message
        request = Invoke.carrying(message, carrier)
        request.came = self._clock()  # For a process of this node.
        return request

    def is_able(self, to: Target) -> bool:
        """Whether the node of a process takes carriers; False where a request cannot be sent at all."""
        try:
            session, _ = self._route(to)
        except FleetError:  # Sending raises it again.
            return False
        return session is None or session.carries

    # Streams.

    def consumer(self, window: int) -> ConsumerEnd:
        """Make the consumer's end of a stream, which is traced if this node is."""
        return ConsumerEnd(window) if self._tracer is None else TracedConsumerEnd(window)

    def begin_stream(self, to: Target, message: Any, consumer: ConsumerEnd) -> Any:
        """Begin to trace a stream that is asked for now. Returns the message with its carrier."""
        tracer, asked = self._tracer, None
        if tracer is not None and isinstance(consumer, TracedConsumerEnd):
            asked = consumer.asked = tracer.ask("stream", to, message)
        return self.carrying(to, message, asked)


class TracedConsumerEnd(ConsumerEnd):
    """Tells the tracer how a stream has ended, and how many items came.

    Attributes:
        asked: set when the stream is asked for.
    """

    __slots__ = ("_came", "asked")

    def __init__(self, window: int) -> None:
        super().__init__(window)
        self._came = 0
        self.asked: Asked | None = None

    def put(self, item: Any, units: int = 1) -> None:
        """See `ConsumerEnd.put`."""
        super().put(item, units)
        self._came += not self.done()

    def set_result(self, value: object) -> None:
        """See `ConsumerEnd.set_result`."""
        super().set_result(value)
        self.end_trace(None)

    def set_exception(self, error: BaseException) -> None:
        """See `ConsumerEnd.set_exception`."""
        super().set_exception(error)
        self.end_trace(error)

    def close(self) -> None:
        """See `ConsumerEnd.close`."""
        super().close()
        self.end_trace(None, is_whole=False)

    def end_trace(self, error: BaseException | None, *, is_whole: bool = True) -> None:
        """Tell the outcome of the stream; only the first one counts."""
        asked, self.asked = self.asked, None
        if asked is not None:
            asked.end(error, self._came, is_whole)


def end_stream(consumer: ConsumerEnd, error: BaseException) -> None:
    """End the trace of a stream that could not be asked for."""
    if isinstance(consumer, TracedConsumerEnd):
        consumer.end_trace(error)


@contextlib.contextmanager
def _until_outcome(asked: Asked) -> Iterator[Asked]:
    """Tell what the block raises, or that it raises nothing, as the outcome of a request."""
    try:
        yield asked
    except BaseException as error:
        asked.end(error)
        raise
    asked.end()
