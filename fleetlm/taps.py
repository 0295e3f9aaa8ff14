"""Where the parts of a node say what happens, if anybody wants to know it.

Each attribute of `Taps` stands for one kind of event of `fleetlm.telemetry`. It is None while nobody wants
events of that kind, and the part where it happens looks at nothing else::

    if (told := self._taps.message_dropped) is not None:
        told("no_process", 1, to, session.name)

Otherwise it is a function of the fields of the event, in their order; `call_ended` and `handler_ended` have
the weight of their sample behind them. No event is built here: `telemetry`
makes an object of the fields for observers, and `metrics` counts the fields as they are.

This module stands by itself, so that a node that nobody observes does not import `telemetry`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from fleetlm.errors import FleetError

if TYPE_CHECKING:
    from fleetlm.ids import Pid

    Target = Pid | str | tuple[str, str]

_OUTCOMES = (
    "ok cancelled CallTimeout Draining Expired InitFailed InvalidName MessageTooLarge NoConnection NoFactory "
    "NoHandler NoMember NoProcess NodeLost NodeStopped NotAllowed NotLoaded NotOwner NotSerializable "
    "NotStored ProcessDown ProcessExit RemoteError StreamIdle Undecodable WorkerDied WorkerNotStarted "
    "WouldBlock other"
)
OUTCOMES: Final[tuple[str, ...]] = tuple(_OUTCOMES.split())
"""How a call or a handler may end: well, by its cancellation, with an error of fleetlm, or with another."""


SAMPLES: Final = 128
"""Calls, and runs of handlers, that are measured in one tick until fewer are: half a millisecond of work."""


class Sampler:
    """Chooses which calls, or which runs of handlers, are measured.

    To measure one takes a microsecond or two, a third of a fast call. So a busy node measures each second,
    fourth or eighth one, by its number, which is blind to what the program does. One that is measured stands
    for those between, which is its weight. After each `SAMPLES` in one tick a quarter as many are measured,
    so that a sudden load costs little, and with each tick that needed few of them twice as many. Observers
    want each of them.
    """

    __slots__ = ("_measured", "is_exact", "mask", "nth")

    def __init__(self) -> None:
        self.is_exact: bool = False
        """Whether each one is chosen."""
        self.nth: int = 0
        """How many there were; `pick` counts, and so do its copies on the road of a call."""
        self.mask: int = 0
        """One is measured whose number has none of these bits."""
        self._measured = 0

    def pick(self) -> int:
        """Count one. Returns its weight if it is to be measured, else 0."""
        self.nth += 1
        return 0 if self.nth & self.mask else self.weigh()

    def weigh(self) -> int:
        """Return the weight of one that is measured."""
        weight = self.mask + 1
        self._measured += 1
        if self._measured >= SAMPLES and not self.is_exact:
            self._measured = 0
            self.mask = 4 * self.mask + 3
        return weight

    def tick(self) -> None:
        """Adapt to how many were measured since the last tick."""
        if self.is_exact:
            self.mask = 0
        elif self._measured < SAMPLES // 2:
            self.mask >>= 1
        self._measured = 0


class Taps:
    """What is wanted of one node, by kinds of events; `telemetry.Telemetry` sets the attributes.

    Attributes:
        calls: chooses calls to be told of; None while ``call_started`` and ``call_ended`` are not wanted.
        handlers: likewise for runs of handlers, and ``handler_ended``.
        session_ended: gets the `Session` that ends, with its counts; it is no event.
    """

    __slots__ = (
        "call_ended", "call_started", "calls", "child_restarted", "handler_ended", "handlers",
        "message_dropped", "session_down", "session_ended", "session_up", "supervisor_gave_up", "window_full",
        "window_opened",
    )  # fmt: skip

    def __init__(self) -> None:
        self.calls: Sampler | None = None
        self.handlers: Sampler | None = None
        self.call_started: Callable[[Target, str], None] | None = None
        self.call_ended: Callable[[Target, str, str, float, int], None] | None = None
        self.handler_ended: Callable[[str, str, str, float, float | None, int], None] | None = None
        self.message_dropped: Callable[[str, int, Target, str], None] | None = None
        self.window_full: Callable[[Target, str], None] | None = None
        self.window_opened: Callable[[Target, str, float], None] | None = None
        self.child_restarted: Callable[[str, str, str], None] | None = None
        self.supervisor_gave_up: Callable[[str, str], None] | None = None
        self.session_up: Callable[[str, int, str], None] | None = None
        self.session_ended: Callable[[Any], None] | None = None
        self.session_down: Callable[[str, int, str, str, float], None] | None = None

    def tick(self) -> None:
        """Adapt what is measured to what the node does; called in every tick."""
        for sampler in (self.calls, self.handlers):
            if sampler is not None:
                sampler.tick()


def outcome_of(error: BaseException) -> str:
    """Return which of `OUTCOMES` an exception is."""
    name = type(error).__name__
    if isinstance(error, FleetError):
        return name if name in OUTCOMES else "other"
    return "cancelled" if name == "CancelledError" else "other"
