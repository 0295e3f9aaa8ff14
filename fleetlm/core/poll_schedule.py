"""When to ask DNS again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

    from fleetlm.settings import Settings


class PollSchedule:
    """The delays between lookups, in seconds from the start of one to the start of the next.

    While no peer has ever been seen, the delay begins at `Settings.fast_poll_s` and doubles up to the
    interval: a headless service names only pods that are ready, so NXDOMAIN is normal at first. After that
    the delay is the interval. Each delay varies by ±`Settings.poll_jitter`, so that nodes that started
    together drift apart.
    """

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._fast_s = settings.fast_poll_s

    def next_delay_s(self, *, has_met_peer: bool) -> float:
        """Draw the delay between the starts of the last lookup and the next one."""
        interval_s = self._settings.poll_interval_s
        delay_s = interval_s if has_met_peer else min(self._fast_s, interval_s)
        self._fast_s = min(self._fast_s * 2, interval_s)
        jitter = self._settings.poll_jitter
        return delay_s * self._rng.uniform(1 - jitter, 1 + jitter)

    def soonest_s(self) -> float:
        """Return the shortest delay between two lookups, for when a lost connection asks for one at once."""
        return min(self._settings.fast_poll_s, self._settings.poll_interval_s)
