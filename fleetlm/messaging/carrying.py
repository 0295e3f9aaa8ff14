"""What travels with a request besides its message: context variables that a program names, and its trace.

Theory of operation. A program names variables with `carry`; `fleetlm.tracing` adds a `Tracer` for a node.
`CARRYING` knows both, once for the whole program, and ``CARRYING.is_active`` is all that a request looks at
while there is neither.

Otherwise the sending side (`messaging.request_context`) packs the values that the caller's
context has at the moment into a carrier (`wire.carriers`), and sends the request together with it. A node
that does not know carriers gets the request without. Requests to processes of the own node take the same
way, so that what works on one node works between two.

The serving side (`ActorRun`) sets the variables in the context of the handler, a copy of the actor's own.
Tasks that the handler starts inherit it, as do `run_blocking` and what the handler asks of other actors. A
variable that a caller has not set keeps the value that it has in the actor's own context. A program that
takes calls from a mailbox itself enters the context of each with `carried`.

Nothing here makes a request fail. A value that cannot travel is left out, and logged once for its variable.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Awaitable, Iterator, Mapping
from contextvars import Context, ContextVar, Token
from typing import TYPE_CHECKING, Any, Final, Protocol

from fleetlm.records import Row
from fleetlm.texts import SHORT
from fleetlm.wire.carriers import MAX_NAME_CHARS, Value, may_travel, pack_carrier, size_of, unpack_carrier
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.call import Call
    from fleetlm.ids import Pid
    from fleetlm.messaging.targets import Target

log: logging.Logger = logging.getLogger("fleetlm")

MAX_CARRIED: Final = 8
"""Context variables that a program may name: each costs every request while it is set."""
MAX_CARRIED_BYTES: Final = 256
"""Bytes of the value of one."""


class Asked(Protocol):
    """The caller's side of one traced request, from before it is sent until its outcome."""

    def inject(self, values: dict[str, Value], /) -> None:
        """Add what the other side needs in order to continue the trace."""

    def end(
        self, error: BaseException | None = None, items: int | None = None, is_whole: bool = True
    ) -> None:
        """Note the outcome. The first one counts.

        Args:
            error: what the caller gets instead of a result; None: a result.
            items: how many items of a stream came; None for what is no stream.
            is_whole: False for a stream that its consumer has given up.
        """


class Served(Row):
    """A request that a process serves, for `Tracer.serve`."""

    pid: Pid
    """The process that serves it."""
    name: str | None
    """The name of the process, or None."""
    runs: str
    """What the process runs: the name of the actor's class."""
    message: Any
    """An `Invoke`, or the message of a call to a process that is no handler's."""
    call: Call | None
    """None for a cast."""
    values: Mapping[str, Value]
    """The carrier that came; empty if none did."""
    came: float
    """When it came to this node, on the loop's clock in seconds; -inf if that is not known."""


class Tracer(Protocol):
    """Follows the requests of one node; `fleetlm.tracing` implements it."""

    def ask(self, verb: str, to: Target | None, message: Any, count: int = 1, /) -> Asked:
        """A request is about to be sent.

        Args:
            verb: ``call``, ``cast``, ``stream``, ``multicall`` or ``broadcast``.
            to: the process; None for a request to several.
            message: an `Invoke` or a plain message.
            count: the processes that are asked.
        """

    def serve(self, work: Awaitable[Any], served: Served, /) -> Awaitable[Any]:
        """Return what does the same as ``work``, the run of a handler, and traces it."""


class Handling(Row):
    """The handler that runs in a context, for logs."""

    pid: Pid
    runs: str
    handler: str


HANDLING: Final[ContextVar[Handling | None]] = ContextVar("fleetlm_handling", default=None)
"""Set while `Carrying.label_handlers` holds; tasks and threads that a handler starts inherit it."""


class Carrying:
    """The variables that a program has named, and the tracers of its nodes."""

    __slots__ = ("_complaints", "_is_labelling", "_tracers", "is_active", "is_served", "variables")

    def __init__(self) -> None:
        self.is_active: bool = False
        """Whether there is any variable or tracer, so that requests take something along."""
        self.is_served: bool = False
        """Whether `serve` has anything to do: there is a variable or tracer, or handlers are labelled."""
        self._is_labelling = False
        self.variables: dict[str, ContextVar[Any]] = {}
        """By the name under which each travels. Not changed in place: other threads go through it to log."""
        self._tracers: dict[tuple[str, int], Tracer] = {}
        """By name and incarnation of their nodes."""
        self._complaints: set[str] = set()

    def add(self, variable: ContextVar[Any], name: str) -> None:
        """Let a variable travel. Raises: as `carry`."""
        if not isinstance(variable, ContextVar):
            raise TypeError(f"{SHORT.repr(variable)} is not a contextvars.ContextVar")
        if not may_travel(name, 0) or not name.isprintable():
            raise ValueError(
                f"{SHORT.repr(name)} is not a name of 1 to {MAX_NAME_CHARS} printable ASCII characters"
            )
        former = self.variables.get(name)
        if former is not None and former is not variable:
            raise ValueError(f"the name {name!r} is that of another context variable already")
        if former is None and len(self.variables) >= MAX_CARRIED:
            raise ValueError(f"{MAX_CARRIED} context variables travel already, and no more can")
        self.variables = {**self.variables, name: variable}
        self._update()

    def remove(self, name: str) -> None:
        """Let the variable of this name travel no more."""
        self.variables = {key: each for key, each in self.variables.items() if key != name}
        self._update()

    def trace(self, node: str, incarnation: int, tracer: Tracer) -> None:
        """Trace the requests of a node of this program. Raises: ValueError: it is traced already."""
        if (node, incarnation) in self._tracers:
            raise ValueError(f"{node} is traced already")
        self._tracers[node, incarnation] = tracer
        self._update()

    def untrace(self, node: str, incarnation: int) -> None:
        """Stop tracing the requests of a node; nothing happens if it is not traced."""
        self._tracers.pop((node, incarnation), None)
        self._update()

    def _update(self) -> None:
        self.is_active = bool(self.variables or self._tracers)
        self.is_served = self.is_active or self._is_labelling

    def label_handlers(self, *, on: bool = True) -> None:
        """Let `HANDLING` say from now on which handler runs."""
        self._is_labelling = on
        self._update()

    def tracer_of(self, node: str, incarnation: int) -> Tracer | None:
        """Return the tracer of a node of this program, or None."""
        return self._tracers.get((node, incarnation))

    def pack(self, asked: Asked | None) -> bytes | None:
        """Pack what the current context has to carry, and what continues the trace; None for nothing."""
        values = self.values()
        if asked is not None:
            asked.inject(values)
        return pack_carrier(values) if values else None

    def values(self) -> dict[str, Value]:
        """Return the values of the current context that travel, by name."""
        found = {}
        for name, variable in self.variables.items():
            value = variable.get(None)
            if value is None:
                continue
            if self._fits(name, value):
                found[name] = value
            elif name not in self._complaints:
                self._complaints.add(name)
                log.warning(
                    "the context variable %r does not travel with its present value %s: only a str, int or "
                    "bytes of up to %d bytes does",
                    name, SHORT.repr(value), MAX_CARRIED_BYTES,
                )  # fmt: skip
        return found

    @staticmethod
    def _fits(name: str, value: Any) -> bool:
        return may_travel(name, value) and (type(value) is int or size_of(value) <= MAX_CARRIED_BYTES)

    def restore(self, values: Mapping[str, Value]) -> list[tuple[ContextVar[Any], Token[Any]]]:
        """Set the named variables in the current context. Returns what takes that back."""
        return [
            (variable, variable.set(values[name]))
            for name, variable in self.variables.items()
            if name in values and self._fits(name, values[name])
        ]

    def serve(
        self, context: Context, work: Awaitable[Any], pid: Pid, name: str | None, runs: str, message: Any,
        call: Call | None, carrier: bytes | None,
    ) -> Awaitable[Any]:  # fmt: skip
        """Prepare the context in which a handler is to run, and return what is to run there.

        Args:
            context: that of the handler alone.
            work: the run of the handler.
            pid: see `Served`, as for the following ones.
            name: of the process.
            runs: the actor's class.
            message: the request.
            call: None for a cast.
            carrier: what came with the request.
        """
        values = unpack_carrier(carrier) if carrier else {}
        if values and self.variables:
            context.run(self.restore, values)
        if self._is_labelling:
            handler = message.handler if type(message) is Invoke else "handle_info"
            context.run(HANDLING.set, Handling(pid, runs, handler))
        tracer = self._tracers.get((pid.node, pid.incarnation))
        if tracer is None:
            return work
        came = -math.inf if carrier is None else message.came if call is None else call.began
        return tracer.serve(work, Served(pid, name, runs, message, call, values, came))


CARRYING: Final = Carrying()
"""Once for the whole program: a context variable belongs to no node."""


def carry(variable: ContextVar[Any], name: str | None = None) -> None:
    """Let a context variable travel with calls, casts and streams, to other nodes and on this one.

    ::

        request_id: ContextVar[str] = ContextVar("request-id")
        fleetlm.carry(request_id)

    Call it once, where the variable is defined, in the programs of all nodes: a node sets, and passes on,
    only the variables that its own program names. What a caller has set when it asks is then set while the
    handler runs, in what the handler calls, and in the tasks and threads that it starts.

    Values are a str, an int, or bytes of up to 256 bytes; others stay behind, with a warning in the log.
    Peers can set these variables to any such value, so do not decide about rights by them.

    Args:
        variable: a variable; its default does not travel.
        name: under which it travels, the same on all nodes; default: the variable's own.

    Raises:
        TypeError: ``variable`` is not a context variable.
        ValueError: the name is not one, it is another variable's, or eight variables travel already.
    """
    CARRYING.add(
        variable, name if name is not None or not isinstance(variable, ContextVar) else variable.name
    )


@contextlib.contextmanager
def carried(call: Call) -> Iterator[None]:
    """Set what came with a call that a process has taken from its mailbox itself; no handler needs this.

    ::

        async for message in process.mailbox:
            match message:
                case Call(message=("add", a, b)):
                    with fleetlm.carried(message):
                        message.reply(add(a, b))

    After the block the variables have their former values.
    """
    tokens = CARRYING.restore(unpack_carrier(call.carrier) if call.carrier else {})
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)
