"""When to ask DNS next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

    from fleetlm.settings import Settings


class PollSchedule:
    """Start-to-start delays between lookups, in seconds.

    Fast while no peer was ever seen (a headless service names only ready pods, so NXDOMAIN is normal
    at first), then the interval, each ±`Settings.poll_jitter`: nodes that started together drift apart.
    """

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._fast_s = settings.fast_poll_s

    def next_delay_s(self, *, met_anybody: bool) -> float:
        """How long after the start of the last lookup the next one starts."""
        interval_s = self._settings.poll_interval_s
        delay_s = interval_s if met_anybody else min(self._fast_s, interval_s)
        self._fast_s = min(self._fast_s * 2, interval_s)
        jitter = self._settings.poll_jitter
        return delay_s * self._rng.uniform(1 - jitter, 1 + jitter)

    def soonest_s(self) -> float:
        """The least distance between two lookups when a lost connection asks for one at once."""
        return min(self._settings.fast_poll_s, self._settings.poll_interval_s)
