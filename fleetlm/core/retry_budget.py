"""How often a node may repeat requests, and how long it pauses before it does.

**The budget.** Repetitions make a failing service fail longer: three attempts of each caller are three
times the load, just when there is less to carry it. So a node has a bucket of tokens. Each call puts a
fraction of a token in, and each repetition takes a whole one out; an empty bucket lets no request be
repeated. After a start, n calls are thus repeated at most ``n * ratio + reserve`` times, however many of them
fail. The *reserve* is in the bucket from the start, and comes back one by one with time, so that a program
that calls rarely may repeat, too.

**The pause.** Before the n-th repetition at the same place it is random between 0 and a ceiling that doubles:
callers that failed together do not come back together.

Source: Finagle's RetryBudget (a ratio, a minimum for each second, tokens that expire); gRPC A6, retry
throttling, which counts successes against failures instead; "Exponential Backoff and Jitter" of the AWS
Architecture Blog, full jitter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

REFILL_S = 10.0
"""Seconds in which the reserve gains one token: a repetition every 10 s is no storm, whoever calls."""
_CLOSE = 1e-6
"""Ten times 0.1 is a little less than 1 in binary fractions."""
_MAX_DOUBLINGS = 32
"""No ceiling needs more, and a larger power of two would not be a float."""


class RetryBudget:
    """The repetitions that one node may make.

    Args:
        ratio: of a token that each call puts in; see `Settings.retry_ratio`.
        reserve: tokens at the start, and to which it refills by itself; see `Settings.retry_reserve`.
        limit: tokens that it holds at most; see `Settings.retry_saved`.
    """

    __slots__ = ("_at", "_limit", "_ratio", "_reserve", "_tokens")

    def __init__(self, ratio: float, reserve: int, limit: int) -> None:
        self._ratio = ratio
        self._reserve = min(reserve, limit)
        self._limit = limit
        self._tokens: float = self._reserve
        self._at: float | None = None
        """When the reserve was refilled last."""

    def called(self) -> None:
        """A request was made for the first time."""
        self._tokens = min(self._limit, self._tokens + self._ratio)

    def left(self, now: float) -> int:
        """Return how many requests may be repeated now."""
        self._refill(now)
        return int(self._tokens + _CLOSE)

    def take(self, now: float) -> bool:
        """Take the token for one repetition. Returns False if there is none."""
        if self.left(now) < 1:
            return False
        self._tokens -= 1
        return True

    def _refill(self, now: float) -> None:
        if self._at is not None and self._tokens < self._reserve:
            self._tokens = min(self._reserve, self._tokens + (now - self._at) / REFILL_S)
        self._at = now


def pause_s(rng: random.Random, pauses: int, min_s: float, max_s: float) -> float:
    """Return the seconds of a pause, after as many others; its ceiling is between ``min_s`` and ``max_s``."""
    return rng.uniform(0.0, min(max_s, min_s * 2.0 ** min(pauses, _MAX_DOUBLINGS)))
