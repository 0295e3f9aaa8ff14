"""Where the parts of a node say what happens, if anybody wants to know it.

Each attribute of `Taps` stands for one kind of event of `fleetlm.telemetry`. It is None while nobody wants
events of that kind, and the part where it happens looks at nothing else::

    if (told := self._taps.message_dropped) is not None:
        told("no_process", 1, to, session.name)

Otherwise it is a function of the fields of the event, in their order. No event is built here: `telemetry`
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
    "NoHandler NoMember NoProcess NodeLost NodeStopped NotAllowed NotSerializable ProcessDown ProcessExit "
    "RemoteError StreamIdle Undecodable WorkerDied WorkerNotStarted WouldBlock other"
)
OUTCOMES: Final[tuple[str, ...]] = tuple(_OUTCOMES.split())
"""How a call or a handler may end: well, by its cancellation, with an error of fleetlm, or with another."""


class Taps:
    """What is wanted of one node, by kinds of events; `telemetry.Telemetry` sets the attributes.

    Attributes:
        calls: whether ``call_started`` or ``call_ended`` is wanted, so that a call asks once.
        session_ended: gets the `Session` that ends, with its counts; it is no event.
    """

    __slots__ = (
        "call_ended", "call_started", "calls", "child_restarted", "handler_ended", "message_dropped",
        "session_down", "session_ended", "session_up", "supervisor_gave_up", "window_full", "window_opened",
    )  # fmt: skip

    def __init__(self) -> None:
        self.calls: bool = False
        self.call_started: Callable[[Target, str], None] | None = None
        self.call_ended: Callable[[Target, str, str, float], None] | None = None
        self.handler_ended: Callable[[str, str, str, float, float | None], None] | None = None
        self.message_dropped: Callable[[str, int, Target, str], None] | None = None
        self.window_full: Callable[[Target, str], None] | None = None
        self.window_opened: Callable[[Target, str, float], None] | None = None
        self.child_restarted: Callable[[str, str, str], None] | None = None
        self.supervisor_gave_up: Callable[[str, str], None] | None = None
        self.session_up: Callable[[str, int, str], None] | None = None
        self.session_ended: Callable[[Any], None] | None = None
        self.session_down: Callable[[str, int, str, str, float], None] | None = None


def outcome_of(error: BaseException) -> str:
    """Return which of `OUTCOMES` an exception is."""
    name = type(error).__name__
    if isinstance(error, FleetError):
        return name if name in OUTCOMES else "other"
    return "cancelled" if name == "CancelledError" else "other"
