"""OpenTelemetry traces of calls, casts and streams across nodes: the extra ``fleetlm[tracing]``.

::

    async with fleetlm.Node.start() as node:
        fleetlm.tracing.instrument(node)

Each request then has two spans, in one trace with what its caller does:

===========  =======================  ==========  ==========================  =========
request      asking side              kind        serving side                kind
===========  =======================  ==========  ==========================  =========
call         ``Sessions/append``      client      ``Sessions/append``         server
stream       the same, to its end     client      the same, to its end        server
multicall    one for all processes    client      one for each process        server
cast         ``send Sessions/append`` producer    ``process Sessions/append`` consumer
broadcast    one for all processes    producer    one for each process        consumer
===========  =======================  ==========  ==========================  =========

The span of the serving side is the current one while the handler runs, in the tasks that it starts, and in
its `run_blocking`, so that spans of other libraries become its children. How long the request lay in the
mailbox is its attribute ``fleetlm.mailbox.wait``, in seconds. Attributes follow OpenTelemetry's semantic
conventions for RPC and messaging where these have one; the others begin with ``fleetlm.``.

The context travels as the propagator of the program writes it (``OTEL_PROPAGATORS``; by default W3C's
``traceparent`` and ``baggage``), in a carrier of at most 4 KiB (`wire.carriers`). Nodes that are not
instrumented, or run a version that does not know carriers, end a trace and harm nothing.

Only `opentelemetry-api` is imported. What becomes of spans is the business of the SDK that a program sets up.

Source: OpenTelemetry's semantic conventions for RPC and messaging spans; differs: a cast's consumer span is a
child of its producer span, not only linked to it, since a cast has one receiver.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import weakref
from collections.abc import Awaitable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from fleetlm import __version__
from fleetlm.errors import NotDelivered, OutcomeUnknown, ProcessExit, RemoteError
from fleetlm.ids import Pid
from fleetlm.messaging.carrying import CARRYING
from fleetlm.names import NodeName
from fleetlm.texts import loggable, text_of, traceback_of
from fleetlm.wire.carriers import unpack_carrier
from fleetlm.wire.invocation import Invoke

try:
    from opentelemetry import context as contexts, propagate, trace
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ImportError as _error:
    raise ImportError("fleetlm.tracing needs opentelemetry-api: pip install 'fleetlm[tracing]'") from _error

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, TracerProvider
    from opentelemetry.util.types import AttributeValue

    from fleetlm.call import Call
    from fleetlm.messaging.carrying import Served
    from fleetlm.messaging.targets import Target
    from fleetlm.node import Node
    from fleetlm.wire.carriers import Value

SYSTEM: Final = "fleetlm"
"""The value of ``rpc.system`` and ``messaging.system``."""
MAX_DESCRIPTION_CHARS: Final = 200
"""Longer texts of errors are cut in the status of a span; its exception event has the whole text."""
_FROM: Final = "fleetlm.from"
"""The name in the carrier for the node that asks."""
_ONE_WAY: Final = ("cast", "broadcast")
_MAX_COMPLAINTS: Final = 16
"""Kinds of failures of propagators and of the SDK that are logged."""
_COMPLAINTS: Final[set[tuple[str, type]]] = set()

log: logging.Logger = logging.getLogger("fleetlm")


def instrument(node: Node, tracer_provider: TracerProvider | None = None) -> Instrumentation:
    """Trace what a node asks and serves, until the returned handle is told to stop or the node is gone.

    Args:
        node: a node of this program.
        tracer_provider: makes the spans; default: the program's own (`trace.get_tracer_provider`).

    Raises:
        ValueError: the node is traced already.
    """
    provider = trace.get_tracer_provider() if tracer_provider is None else tracer_provider
    tracer = _NodeTracer(node.name, provider.get_tracer("fleetlm", __version__))
    CARRYING.trace(node.name, node.incarnation, tracer)
    return Instrumentation(node)


def context_of(call: Call) -> Context:
    """Return the OpenTelemetry context that came with a call which a process takes from its mailbox itself.

    ::

        case Call(message=("add", a, b)):
            with tracer.start_as_current_span("add", fleetlm.tracing.context_of(message)):
                message.reply(a + b)

    Handlers of actors need no such thing. Without a context of the caller the result is an empty one.
    """
    return _extract(unpack_carrier(call.carrier) if call.carrier else {})


class Instrumentation:
    """Keeps a node traced; made by `instrument`, and a context manager that stops at its end."""

    __slots__ = ("__weakref__", "_finalizer")

    def __init__(self, node: Node) -> None:
        self._finalizer = weakref.finalize(node, CARRYING.untrace, node.name, node.incarnation)
        self._finalizer.atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.uninstrument()

    def uninstrument(self) -> None:
        """Trace no further request of the node; spans that are open end with their requests. Idempotent."""
        self._finalizer()


class _NodeTracer:
    """Makes the spans of one node; implements `carrying.Tracer`."""

    def __init__(self, name: str, tracer: trace.Tracer) -> None:
        self._name = name
        self._tracer = tracer

    def ask(self, verb: str, to: Target | None, message: Any, count: int = 1) -> _Asked:
        """See `carrying.Tracer`."""
        service, method = _service_of(message)
        name = f"{service}/{method}" if service else method or verb
        attributes: dict[str, AttributeValue] = {"fleetlm.node": self._name, "fleetlm.verb": verb}
        if to is None:
            attributes["fleetlm.targets"] = count
        else:
            attributes |= self._peer_of(to)
        attributes |= _rpc(service, method)
        if verb not in _ONE_WAY:
            return _Asked(
                self._name, self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
            )
        attributes |= {
            "messaging.system": SYSTEM,
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": _destination_of(to),
        }
        if to is None:
            attributes["messaging.batch.message_count"] = count
        return _Asked(
            self._name, self._tracer.start_span(f"send {name}", kind=SpanKind.PRODUCER, attributes=attributes)
        )

    def serve(self, work: Awaitable[Any], served: Served) -> Awaitable[Any]:
        """See `carrying.Tracer`."""
        running: Any = self._serve(work, served)
        running.__name__ = _method_of(served)  # For what shows which coroutines run.
        return running  # type: ignore[no-any-return]

    async def _serve(self, work: Awaitable[Any], served: Served) -> Any:
        context = _extract(served.values)
        span = self._tracer.start_span(
            _serving_name(served),
            context=context,
            kind=SpanKind.CONSUMER if served.call is None else SpanKind.SERVER,
            attributes=self._serving_attributes(served),
        )
        contexts.attach(trace.set_span_in_context(span, context))  # The handler has a context of its own.
        try:
            result = await work
        except BaseException as error:
            _end(span, error, _items_sent(served.call))
            raise
        _end(span, None, _items_sent(served.call))
        return result

    def _serving_attributes(self, served: Served) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {
            "fleetlm.node": self._name,
            "fleetlm.process": str(served.pid),
            **_rpc(served.runs, _method_of(served)),
        }
        if served.name is not None:
            attributes["fleetlm.process.name"] = served.name
        peer = served.values.get(_FROM)
        if type(peer) is str:
            attributes |= _address("client", peer)
        if served.came > -math.inf:
            waited_s = asyncio.get_running_loop().time() - served.came
            attributes["fleetlm.mailbox.wait"] = round(max(0.0, waited_s), 6)
        if served.call is None:
            attributes |= {
                "messaging.system": SYSTEM,
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": served.name or served.runs,
            }
        return attributes

    def _peer_of(self, to: Target) -> dict[str, AttributeValue]:
        if isinstance(to, Pid):
            return _address("server", to.node)
        if isinstance(to, str):
            return {**_address("server", self._name), "fleetlm.process.name": to}
        return {**_address("server", to[1]), "fleetlm.process.name": to[0]}


class _Asked:
    """The span of the asking side; implements `carrying.Asked`."""

    __slots__ = ("_node", "_span")

    def __init__(self, node: str, span: Span) -> None:
        self._node = node
        self._span = span

    def inject(self, values: dict[str, Value]) -> None:
        """See `carrying.Asked`."""
        try:
            propagate.inject(values, trace.set_span_in_context(self._span))
        except Exception as error:  # noqa: BLE001  # a propagator is not part of fleetlm
            _complain("the context of a trace could not be written", error)
        if values:
            values[_FROM] = self._node

    def end(
        self, error: BaseException | None = None, items: int | None = None, is_whole: bool = True
    ) -> None:
        """See `carrying.Asked`."""
        if not is_whole:
            self._span.set_attribute("fleetlm.outcome", "given up")
        _end(self._span, error, items, is_whole)


def _end(span: Span, error: BaseException | None, items: int | None, is_whole: bool = True) -> None:
    """Note the outcome of a request, and end its span. Never raises: the request has its outcome."""
    try:
        if span.is_recording():
            _note_outcome(span, error, items, is_whole)
        span.end()
    except Exception as failure:  # noqa: BLE001  # of the program's exception, or of the SDK
        _complain("a span could not be ended", failure)


def _note_outcome(span: Span, error: BaseException | None, items: int | None, is_whole: bool) -> None:
    """Set the attributes, the event and the status that say how a request has ended."""
    if items is not None:
        span.set_attribute("fleetlm.stream.items", items)
    if is_whole:
        span.set_attribute("fleetlm.outcome", _outcome(error))
    if error is not None and not isinstance(error, asyncio.CancelledError | GeneratorExit | ProcessExit):
        # Not `record_exception`, which raises where the text of an exception cannot be made.
        kind = type(error)
        texts = {
            "exception.type": f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."),
            "exception.message": text_of(error),
            "exception.stacktrace": traceback_of(error),
        }
        span.add_event("exception", texts)
        span.set_attribute("error.type", _type_of(error))
        span.set_status(Status(StatusCode.ERROR, text_of(error)[:MAX_DESCRIPTION_CHARS]))


def _outcome(error: BaseException | None) -> str:
    """Return the outcome of a request, one of a few words, by what its caller may do."""
    if error is None:
        return "ok"
    if isinstance(error, NotDelivered):
        return "not delivered"
    if isinstance(error, OutcomeUnknown):
        return "unknown"
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    return "exited" if isinstance(error, ProcessExit) else "raised"


def _type_of(error: BaseException) -> str:
    """Return the class of an error; of what a remote handler has raised, the class there."""
    return error.type_name if isinstance(error, RemoteError) else type(error).__qualname__


def _extract(values: Mapping[str, Value]) -> Context:
    """Return the context in a carrier, which is not that of the actor that serves the request."""
    texts = {name: value for name, value in values.items() if type(value) is str}
    try:
        return propagate.extract(texts, contexts.Context())
    except Exception as error:  # noqa: BLE001  # a propagator is not part of fleetlm, and peers send anything
        _complain("the context of a trace could not be read", error)
        return contexts.Context()


def _complain(what: str, error: Exception) -> None:
    """Log a failure of a propagator or of the SDK, once for each kind, since each request may cause it."""
    kind = what, type(error)
    if kind not in _COMPLAINTS and len(_COMPLAINTS) < _MAX_COMPLAINTS:
        _COMPLAINTS.add(kind)
        log.warning("%s; this is logged once", what, exc_info=loggable(error))


def _service_of(message: Any) -> tuple[str, str]:
    """Return actor and handler of a request. Plain messages have neither: they may hold anything."""
    if type(message) is not Invoke:
        return "", ""
    return "" if message.actor is None else message.actor.__qualname__, message.name


def _rpc(service: str, method: str) -> dict[str, AttributeValue]:
    named = {"rpc.service": service, "rpc.method": method}
    return {"rpc.system": SYSTEM, **{key: text for key, text in named.items() if text}}


def _method_of(served: Served) -> str:
    return served.message.handler if type(served.message) is Invoke else "handle_info"


def _serving_name(served: Served) -> str:
    name = f"{served.runs}/{_method_of(served)}"
    return f"process {name}" if served.call is None else name


def _items_sent(call: Call | None) -> int | None:
    return call.items_sent if call is not None and call.streaming else None


def _destination_of(to: Target | None) -> str:
    """Return the name of a process where it has one: a pid is another one after each start."""
    if isinstance(to, Pid) or to is None:
        return "actor"
    return to if isinstance(to, str) else to[0]


def _address(side: str, node: str) -> dict[str, AttributeValue]:
    """Return the attributes of the node at the other end; ``side`` is what it is in this request."""
    found: dict[str, AttributeValue] = {"fleetlm.peer": node}
    with contextlib.suppress(ValueError):  # A program may have written a name wrong, and is told of it.
        name = NodeName.parse(node)
        found[f"{side}.address"] = name.ip
        if name.port is not None:
            found[f"{side}.port"] = name.port
    return found
