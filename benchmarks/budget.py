"""The time of a whole run, divided among its parts, so that a run ends when it should.

Each part gets its share of the time that is left when it begins. One that needs less leaves more to those
that follow; one that needs more ends before the round that would take longer, but not before its first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from benchmarks.registry import Benchmark


class Budget:
    """The time that a run may take.

    Args:
        seconds: of the whole run; infinite for no limit.
        benchmarks: its parts, in their order.
        clock: returns seconds.
    """

    def __init__(
        self, seconds: float, benchmarks: Sequence[Benchmark], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._ends_at = clock() + seconds
        self._shares = [benchmark.share for benchmark in benchmarks]

    def next_limit_s(self) -> float:
        """Return the seconds for the part that begins now: none are left if it is 0.

        Call it once for each part, in their order.
        """
        left_s = max(0.0, self._ends_at - self._clock())
        all_shares = sum(self._shares)
        share = self._shares.pop(0)
        return left_s if math.isinf(left_s) else left_s * share / all_shares
