"""When a supervisor restarts what, and when it gives up. Source: OTP supervisor.erl."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

from fleetlm.messages import NameLost

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
Restart = Literal["permanent", "transient", "temporary"]

STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one")
RESTARTS = ("permanent", "transient", "temporary")
PEER_LOSS = "noconnection"
"""The reason of a child that was linked to a process on a lost node: nobody's mistake here."""
MOST_DOUBLINGS = 64
"""Of a pause: beyond any bound, and a float still holds it. A peer may stay away for a week."""


def is_of_the_cluster(reason: Any) -> bool:
    """Whether a child ended for what happened between nodes: one was lost, or two have met again."""
    return reason == PEER_LOSS or isinstance(reason, NameLost)


def wants_restart(restart: Restart, reason: Any) -> bool:
    """Whether a child of that kind is started again after it ended for that reason.

    A transient one stays away after ``"normal"``, ``"shutdown"`` and ``("shutdown", why)``.
    """
    if restart == "transient":
        return not is_clean(reason)
    return restart == "permanent"


def is_clean(reason: Any) -> bool:
    """Whether a process that ended for that reason meant to."""
    match reason:
        case "normal" | "shutdown" | ("shutdown", _):
            return True
    return False


def affected(strategy: Strategy, start_order: Sequence[str], failed: str) -> list[str]:
    """Who ends and starts anew when ``failed`` does, in the order in which they were started."""
    if strategy == "one_for_one":
        return [failed]
    if strategy == "one_for_all":
        return list(start_order)
    return list(start_order[start_order.index(failed) :])


class Intensity:
    """More than ``max_restarts`` within ``period_s`` seconds are one too many.

    The loss of a peer does not count, nor that of a name to a peer: a node that goes away, or comes
    back, must not take the supervisors of all others with it. Source: OTP supervisor.erl,
    add_restart/1; differs in that.
    """

    def __init__(self, max_restarts: int, period_s: float) -> None:
        self.max_restarts = max_restarts
        self.period_s = period_s
        self._restarts: deque[float] = deque()

    def allows(self, now: float, reason: Any) -> bool:
        """Count a restart. False: give up."""
        if is_of_the_cluster(reason):
            return True
        self._restarts.append(now)
        while self._restarts[0] < now - self.period_s:
            self._restarts.popleft()
        return len(self._restarts) <= self.max_restarts


class Backoff:
    """A pause before a restart: none at first, then doubling from ``min_s`` to ``max_s``.

    A child that lived for longer than twice ``max_s`` starts from none again. Peer loss, and a name that
    was lost, always have the first pause, so that links to a lost node do not spin.
    """

    def __init__(self, min_s: float, max_s: float) -> None:
        self.min_s = min_s
        self.max_s = max_s
        self._failures: dict[str, tuple[int, float]] = {}

    def pause_s(self, name: str, now: float, reason: Any) -> float:
        """Seconds to wait before ``name`` is started again."""
        failures, last = self._failures.get(name, (0, now))
        if now - last > 2 * self.max_s:
            failures = 0
        pause_s = (
            0.0 if failures == 0 else min(self.max_s, self.min_s * 2.0 ** min(failures - 1, MOST_DOUBLINGS))
        )
        self._failures[name] = (failures + 1, now + pause_s)
        return max(pause_s, self.min_s) if is_of_the_cluster(reason) else pause_s

    def forget(self, name: str) -> None:
        """There is no such child any more."""
        self._failures.pop(name, None)
