"""The restarts of a singleton on one node: the pause before each, and when there are too many of them.

A run that ends again and again may fail for a reason of its node: a full disk, a file that is missing. So the
node gives the singleton to another one, which has its own count. A node that has given up a moment ago is not
asked to take it. So a singleton that fails on every node goes round once in `STAND_BACK_S` at most, and the
pauses of a supervisor lie between two attempts on one node. It is never without a node: where no other one
takes it, it stays.

The counts outlive the entity of the singleton, and the host process: see `offering`.
"""

from __future__ import annotations

import math
from typing import Any

from fleetlm.core.restarts import Backoff, Intensity, is_clean

STAND_BACK_S = 60.0
"""Seconds for which a node that has given a singleton up is not asked to take it back."""
_RUN = "run"


class RunRestarts:
    """Counts the ends of runs on this node.

    Args:
        max_restarts: see `Node.singleton`.
        period_s: likewise.
        backoff_s: likewise.
    """

    def __init__(self, max_restarts: int, period_s: float, backoff_s: tuple[float, float]) -> None:
        self._intensity = Intensity(max_restarts, period_s)
        self._backoff = Backoff(*backoff_s)
        self._gave_up_at = -math.inf
        self.next_at: float = -math.inf
        """When the next run may begin, on the loop's clock."""

    def ended(self, now: float, reason: Any) -> bool:
        """Note that a run has ended, and set `next_at`. Returns whether this node is to give it up."""
        self.next_at = now + self._backoff.pause_s(_RUN, now, reason)
        if is_clean(reason) or self._intensity.allows(now, reason):
            return False
        self._gave_up_at = now
        return True

    def stands_back(self, now: float) -> bool:
        """Whether this node has given up a moment ago."""
        return now - self._gave_up_at < STAND_BACK_S
