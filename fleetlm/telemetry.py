"""Telemetry: what happens on a node, for programs that measure it.

    def observe(event: Event) -> None:
        statsd.timing(f"calls.{event.outcome}", event.seconds)

    watching = node.telemetry.attach(observe, kinds={CallEnded})
    ...
    watching.detach()

**What costs what.** A kind of event that nobody wants is not built: the place where it happens looks at one
attribute (`fleetlm.taps`). There is no event for a one-way message that is sent or delivered, since nothing
may cost something for each of them; `fleetlm.metrics` and `Node.info` count them.

**When observers run.** On the event loop of the node, in the turn of the loop after the event, one event
after the other in their order. So an observer may use the node, and nothing that it does changes what it
hears of. It must not block. What it raises is logged once for each attachment, and harms neither the node
nor other observers. At most `MAX_WAITING` events wait; further ones are dropped and counted
(`Telemetry.lost`), so that an observer that is too slow does not fill the memory.

Some fields have few values, which `OUTCOMES`, `DROPS` and `ENDS` list, so that they can be labels of a
metric. A name or a text of another node has no bound.

Source: Erlang's telemetry library, whose handlers are detached when they raise; differs: they stay, since an
observer that fails for one event in a thousand is better than none.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from fleetlm.records import Record
from fleetlm.taps import OUTCOMES as _OUTCOMES, Sampler

if TYPE_CHECKING:
    from fleetlm.taps import Taps, Target

OUTCOMES: Final[tuple[str, ...]] = _OUTCOMES
"""How a call or a handler may end: ``"ok"``, ``"cancelled"``, the class of an error of fleetlm, such as
``"CallTimeout"``, or ``"other"``."""
DROPS: Final = ("no_process", "unreadable", "expired", "process_ended", "no_handler")
"""Why a message may be dropped: its receiver does not exist; it has a type that this node does not know; the
deadline of its caller had passed when it was taken; its receiver ended and had not taken it; the actor has no
handler for a cast, or one with other arguments."""
ENDS: Final = (
    "lost", "silent", "left", "stopping", "requested", "restarted", "redialled", "protocol_error",
    "ended_by_peer", "overloaded", "forgotten",
)  # fmt: skip
"""Why a session may end. ``lost``: the connection was closed; ``silent``: likewise, and nothing had been read
for a while; ``left``: the peer has stopped; ``stopping``: this node stops; ``requested``: `Node.disconnect`;
``restarted``: the peer is another incarnation; ``redialled``: it regarded the session as over;
``protocol_error``: the peer broke the protocol; ``ended_by_peer``: the peer says that this node did;
``overloaded``: the peer took too little of what was sent; ``forgotten``: DNS names the peer no more."""

MAX_WAITING: Final = 10_000
"""Events that wait for the observers: what a busy node causes in some turns of the loop."""
DELIVERED_PER_TURN: Final = 500
"""Events that are handed out in one turn of the loop, so that observers do not stop it."""
MAX_OBSERVERS: Final = 64
"""Observers of one node. A program that attaches more has forgotten to detach them."""


class CallStarted(Record):
    """A process, or code beside processes, has begun a call. `CallEnded` follows.

    Attributes:
        to: the pid, name or ``(name, node)`` that is called.
        handler: the handler of an actor; empty for another message.
    """

    to: Target
    handler: str


class CallEnded(Record):
    """A call of this node has its outcome.

    Attributes:
        to: the pid, name or ``(name, node)`` that was called.
        handler: the handler of an actor; empty for another message.
        outcome: one of `OUTCOMES`: ``"ok"``, ``"cancelled"``, or the class of the error, such as
            ``"CallTimeout"``.
        seconds: from the call to its outcome.
    """

    to: Target
    handler: str
    outcome: str
    seconds: float


class HandlerEnded(Record):
    """A handler of an actor of this node has ended.

    Attributes:
        actor: the qualified name of the class.
        handler: the name of the handler; ``"handle_info"`` for a message that is no request.
        outcome: one of `OUTCOMES`; ``"other"`` if it raised something of its own.
        seconds: that it ran, its waits included; for a stream until the last item.
        queued_s: seconds before it from the arrival of the call; None for casts and other messages, and where
            it is not known.
    """

    actor: str
    handler: str
    outcome: str
    seconds: float
    queued_s: float | None


class MessageDropped(Record):
    """Messages have reached this node, and no process will see them.

    Attributes:
        why: one of `DROPS`.
        count: how many.
        to: the process as the sender named it, or its pid.
        node: the node that sent them; empty: this one, or it is not known any more.
    """

    why: str
    count: int
    to: Target
    node: str


class WindowFull(Record):
    """A sender on this node begins to wait, since its receiver does not keep up. `WindowOpened` follows.

    Attributes:
        to: the process to which it sends.
        node: the node of that process; empty: this one.
    """

    to: Target
    node: str


class WindowOpened(Record):
    """A sender on this node has waited for room, and goes on or gives up.

    Attributes:
        to: the process to which it sends.
        node: the node of that process; empty: this one.
        seconds: that it has waited.
    """

    to: Target
    node: str
    seconds: float


class ChildRestarted(Record):
    """A supervisor of this node restarts a child, perhaps after a pause.

    There is one such event for each child that is restarted, also for those that its strategy ends and
    restarts together with the one that has ended by itself.

    Attributes:
        supervisor: its name, or its pid as text.
        child: the name of the child.
        reason: why the child has ended, as text; ``restarted with NAME`` if it was ended for another one.
    """

    supervisor: str
    child: str
    reason: str


class SupervisorGaveUp(Record):
    """A supervisor of this node ends, since its children ended too often.

    Attributes:
        supervisor: its name, or its pid as text.
        reason: what happened, as text.
    """

    supervisor: str
    reason: str


class SessionUp(Record):
    """A node is connected; `Node.events` tells the same to a program that works with nodes.

    Attributes:
        node: its name.
        incarnation: of its start.
        after: one of `ENDS`, why the former session with this name has ended; empty: it is the first one.
    """

    node: str
    incarnation: int
    after: str


class SessionDown(Record):
    """A node is not connected any more.

    Attributes:
        node: its name.
        incarnation: of its start.
        kind: one of `ENDS`.
        reason: the reason in words, as in `NodeDown`.
        seconds: that it was connected.
    """

    node: str
    incarnation: int
    kind: str
    reason: str
    seconds: float


Event = (
    CallStarted
    | CallEnded
    | HandlerEnded
    | MessageDropped
    | WindowFull
    | WindowOpened
    | ChildRestarted
    | SupervisorGaveUp
    | SessionUp
    | SessionDown
)
"""What an observer is called with."""
Kind = type[Event]

_TAPS: Final[dict[Any, str]] = {
    CallStarted: "call_started",
    CallEnded: "call_ended",
    HandlerEnded: "handler_ended",
    MessageDropped: "message_dropped",
    WindowFull: "window_full",
    WindowOpened: "window_opened",
    ChildRestarted: "child_restarted",
    SupervisorGaveUp: "supervisor_gave_up",
    SessionUp: "session_up",
    SessionDown: "session_down",
}
"""Each kind of event with the attribute of `Taps` where it happens."""
KINDS: Final[frozenset[Kind]] = frozenset(_TAPS)
"""All kinds of events."""
SESSION_ENDED: Final[Any] = object()
"""For `Telemetry.listen` only: gets the session that ends, with its counts."""
_TAPS[SESSION_ENDED] = "session_ended"


class Attachment:
    """One observer that is attached. At the end of a ``with`` block it is detached.

    Attributes:
        failures: how often the observer has raised.
    """

    __slots__ = ("_detach", "_observer", "failures", "kinds")

    def __init__(
        self,
        observer: Callable[[Any], object],
        kinds: frozenset[Kind],
        detach: Callable[[Attachment], None],
    ) -> None:
        self.kinds: frozenset[Kind] = kinds
        self.failures: int = 0
        self._observer = observer
        self._detach = detach

    def __repr__(self) -> str:
        kinds = ", ".join(sorted(kind.__name__ for kind in self.kinds))
        return f"<{getattr(self._observer, '__qualname__', self._observer)!s} observes {kinds}>"

    def detach(self) -> None:
        """Let the observer hear of nothing any more, also of what has happened already. Idempotent."""
        self._detach(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()


class Telemetry:
    """The observers of one node: what `Node.telemetry` returns.

    Attributes:
        lost: events that were dropped because `MAX_WAITING` waited.

    Args:
        taps: where the parts of the node look.
        soon: calls a function in a later turn of the loop.
        complain: logs that an observer has raised.
        check_loop: raises RuntimeError on another event loop or in another thread; it gets what was called.
    """

    def __init__(
        self,
        taps: Taps,
        soon: Callable[[Callable[[], None]], object],
        complain: Callable[[Attachment, Exception], None],
        check_loop: Callable[[str], None],
    ) -> None:
        self.lost: int = 0
        self._taps = taps
        self._soon = soon
        self._complain = complain
        self._check_loop = check_loop
        self._attached: dict[Attachment, None] = {}
        self._listeners: dict[Any, list[Callable[..., None]]] = {}
        """What is called with the fields of events: that of the observers, then those of `listen`."""
        self._waiting: deque[Event] = deque()
        self._will_deliver = False

    def attach(self, observer: Callable[[Any], object], kinds: Iterable[Kind] | None = None) -> Attachment:
        """Call ``observer`` with each event of these kinds from now on.

        Args:
            observer: a plain function of one event. It runs on the node's event loop and must not block.
            kinds: classes of events; None: all of them.

        Returns:
            The attachment, whose `Attachment.detach` ends it. The end of the node ends it, too.

        Raises:
            TypeError: ``observer`` cannot be called, or is a coroutine function; or one of ``kinds`` is no
                class of events.
            ValueError: there are no ``kinds``, or `MAX_OBSERVERS` observers are attached already.
            RuntimeError: this is not the node's event loop.
        """
        self._check_loop("Telemetry.attach")
        wanted = KINDS if kinds is None else frozenset(kinds)
        is_function: bool = callable(observer)  # A program without type checker may give anything.
        if not is_function or inspect.iscoroutinefunction(observer):
            raise TypeError(f"an observer is a plain function of one event, not {observer!r}")
        unknown = [kind for kind in wanted if kind not in KINDS]
        if unknown:
            names = ", ".join(sorted(kind.__name__ for kind in KINDS))
            raise TypeError(f"{unknown[0]!r} is no kind of event; there are {names}")
        if not wanted:
            raise ValueError("an observer without kinds would hear of nothing")
        if len(self._attached) >= MAX_OBSERVERS:
            raise ValueError(f"{MAX_OBSERVERS} observers are attached already; detach those that are done")
        attachment = Attachment(observer, wanted, self._detach)
        self._attached[attachment] = None
        self._update(wanted)
        return attachment

    def listen(self, listeners: Mapping[Any, Callable[..., None]]) -> Callable[[], None]:
        """Call functions with the fields of events, at once and without an event: for `fleetlm.metrics`.

        Such a function runs in the middle of what happens. It must be quick, must use nothing of the node,
        and must never raise.

        Returns:
            What ends it.
        """
        self._check_loop("Telemetry.listen")
        for kind, listener in listeners.items():
            self._listeners.setdefault(kind, []).append(listener)
        self._update(listeners)

        def end() -> None:
            for kind, listener in listeners.items():
                if listener in self._listeners.get(kind, ()):
                    self._listeners[kind].remove(listener)
            self._update(listeners)

        return end

    def _detach(self, attachment: Attachment) -> None:
        if attachment in self._attached:
            del self._attached[attachment]
            self._update(attachment.kinds)

    def _update(self, kinds: Iterable[Any]) -> None:
        """Set the taps of these kinds."""
        for kind in kinds:
            functions = list(self._listeners.get(kind, ()))
            if any(kind in attachment.kinds for attachment in self._attached):
                functions.append(self._make_poster(kind))
            setattr(self._taps, _TAPS[kind], _join(functions))
        self._taps.calls = self._choose(self._taps.calls, CallStarted, CallEnded)
        self._taps.handlers = self._choose(self._taps.handlers, HandlerEnded)

    def _choose(self, sampler: Sampler | None, *kinds: Kind) -> Sampler | None:
        """Return what chooses events of these kinds; None if nobody wants them."""
        if all(getattr(self._taps, _TAPS[kind]) is None for kind in kinds):
            return None
        sampler = sampler or Sampler()
        sampler.is_exact = any(kind in each.kinds for kind in kinds for each in self._attached)
        if sampler.is_exact:
            sampler.tick()
        return sampler

    def _make_poster(self, kind: Kind) -> Callable[..., None]:
        """Return what makes an event of its fields, and lets it wait for the observers."""
        size = len(kind.__match_args__)

        def post(*fields: Any) -> None:
            waiting = self._waiting
            if len(waiting) >= MAX_WAITING:
                self.lost += 1
                return
            waiting.append(kind(*fields[:size]))
            if not self._will_deliver:
                self._will_deliver = True
                self._soon(self._deliver)

        return post

    def _deliver(self) -> None:
        """Hand out what waits, up to `DELIVERED_PER_TURN`."""
        waiting = self._waiting
        try:
            for _ in range(min(len(waiting), DELIVERED_PER_TURN)):
                event = waiting.popleft()
                kind = type(event)
                for attachment in list(self._attached):
                    if kind in attachment.kinds and attachment in self._attached:
                        self._call(attachment, event)
        finally:  # An observer may raise SystemExit, which ends the loop.
            self._will_deliver = bool(waiting)
            if waiting:
                self._soon(self._deliver)

    def _call(self, attachment: Attachment, event: Event) -> None:
        try:
            attachment._observer(event)  # noqa: SLF001  # same module
        except Exception as error:  # noqa: BLE001  # whatever an observer raises
            attachment.failures += 1
            if attachment.failures == 1:
                self._complain(attachment, error)


def _join(functions: list[Callable[..., None]]) -> Callable[..., None] | None:
    """Return one function that calls all of these; None for none."""
    if len(functions) <= 1:
        return functions[0] if functions else None

    def call_each(*fields: Any) -> None:
        for function in functions:
            function(*fields)

    return call_each
