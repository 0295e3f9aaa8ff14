"""Which children a supervisor restarts, after what pause, and when it gives up.

Pure decisions; `fleetlm.supervisor` performs them. Exit reasons of the cluster (`is_of_the_cluster`) are
treated apart everywhere: the loss of a node, or of a name to a node that meets this one again, is not a
fault of the child, and must not make supervisors on all other nodes give up.

Source: OTP supervisor.erl; differs: reasons of the cluster, and a pause between restarts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Reversible
from typing import Any, Literal, get_args

from fleetlm.messages import NameLost

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
Restart = Literal["permanent", "transient", "temporary"]

STRATEGIES = get_args(Strategy)
RESTARTS = get_args(Restart)
PEER_LOSS = "noconnection"
"""The exit reason of a child that was linked to a process on a node that was lost."""
MAX_DOUBLINGS = 64
"""Doublings of a pause: far beyond any ``max_s``, and 2**64 still fits a float."""


def is_of_the_cluster(reason: Any) -> bool:
    """Return whether a child ended because a node was lost, or because its name went to another node."""
    return reason == PEER_LOSS or isinstance(reason, NameLost)


def wants_restart(restart: Restart, reason: Any) -> bool:
    """Return whether a child with this restart type is started again after it ended for ``reason``.

    A transient child is not restarted after ``"normal"``, ``"shutdown"`` or ``("shutdown", why)``.
    """
    if restart == "transient":
        return not is_clean(reason)
    return restart == "permanent"


def is_clean(reason: Any) -> bool:
    """Return whether ``reason`` is that of a process that ended on purpose."""
    match reason:
        case "normal" | "shutdown" | ("shutdown", _):
            return True
    return False


def affected(strategy: Strategy, start_order: Reversible[str], failed: str) -> list[str]:
    """Return the children that are restarted when ``failed`` ends, in the order of their start.

    It takes as many steps as it returns names, whatever the number of children.
    """
    if strategy == "one_for_one":
        return [failed]
    names = []
    for name in reversed(start_order):
        names.append(name)
        if strategy == "rest_for_one" and name == failed:
            break
    names.reverse()
    return names


class Intensity:
    """Counts restarts, and says when there are more than ``max_restarts`` within ``period_s`` seconds.

    Source: OTP supervisor.erl, add_restart/1; differs: restarts for reasons of the cluster do not count.
    """

    def __init__(self, max_restarts: int, period_s: float) -> None:
        self.max_restarts = max_restarts
        self.period_s = period_s
        self._restarts: deque[float] = deque()

    def allows(self, now: float, reason: Any) -> bool:
        """Count a restart. Return False if the supervisor must give up."""
        if is_of_the_cluster(reason):
            return True
        self._restarts.append(now)
        while self._restarts[0] < now - self.period_s:
            self._restarts.popleft()
        return len(self._restarts) <= self.max_restarts


class Backoff:
    """The pause before a restart: none at first, then ``min_s``, doubling up to ``max_s``; in seconds.

    A child that ran for longer than twice ``max_s`` begins without a pause again. After a reason of the
    cluster the pause is at least ``min_s``, so that a child linked to a lost node does not restart in a
    tight loop.
    """

    def __init__(self, min_s: float, max_s: float) -> None:
        self.min_s = min_s
        self.max_s = max_s
        self._failures: dict[str, tuple[int, float]] = {}

    def pause_s(self, name: str, now: float, reason: Any) -> float:
        """Count a failure of child ``name``, and return the seconds to wait before it is started again."""
        failures, last = self._failures.get(name, (0, now))
        if now - last > 2 * self.max_s:
            failures = 0
        pause_s = (
            0.0 if failures == 0 else min(self.max_s, self.min_s * 2.0 ** min(failures - 1, MAX_DOUBLINGS))
        )
        self._failures[name] = (failures + 1, now + pause_s)
        return max(pause_s, self.min_s) if is_of_the_cluster(reason) else pause_s

    def forget(self, name: str) -> None:
        """Child ``name`` was removed."""
        self._failures.pop(name, None)
