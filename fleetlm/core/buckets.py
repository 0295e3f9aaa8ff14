"""A token bucket: how often something may happen, without a clock of its own."""

from __future__ import annotations

_ROUNDING = 1e-9
"""Tokens that are forgiven, so that `Bucket.take` agrees with the time that `Bucket.ready_at` named."""


class Bucket:
    """Allows ``burst`` events at once and ``rate`` events a second in the long run.

    Source: the token bucket of RFC 2697.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> bool:
        """Take a token. Returns False if there is none, and changes nothing then."""
        self._fill(now)
        if self._tokens < 1 - _ROUNDING:
            return False
        self._tokens -= 1
        return True

    def give(self, now: float, tokens: float) -> None:
        """Put tokens in, as many as there is room for."""
        self._fill(now)
        self._tokens = min(self._burst, self._tokens + tokens)

    def ready_at(self, now: float) -> float:
        """Return when there is a token: ``now``, or later."""
        self._fill(now)
        return now + max(0.0, 1 - self._tokens) / self._rate

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = max(now, self._at)
