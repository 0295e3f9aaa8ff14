"""Bounds how often something happens, since the listener and the node share the interpreter's lock."""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class Pace:
    """A rate with a burst. Whoever is above it waits for its turn.

    Args:
        per_s: how often a second.
        burst: how often at once.
    """

    __slots__ = ("_ahead_s", "_next", "_step_s")

    def __init__(self, per_s: float, burst: int) -> None:
        self._step_s = 1 / per_s
        self._ahead_s = burst / per_s
        self._next = 0.0

    def delay_s(self, now: float) -> float:
        """Take a turn, and return the seconds until it comes."""
        self._next = max(self._next, now - self._ahead_s) + self._step_s
        return max(0.0, self._next - now)

    def is_ahead(self, now: float, most_s: float) -> bool:
        """Whether a turn that is taken now would come later than that."""
        return self._next + self._step_s - now > most_s

    async def take(self) -> None:
        """Take a turn, and wait for it."""
        delay_s = self.delay_s(asyncio.get_running_loop().time())
        if delay_s > 0:
            await asyncio.sleep(delay_s)


class Paces:
    """A pace for each address, so that one address that asks too often delays no other.

    Args:
        per_s: how often a second, for each.
        burst: how often at once, for each.
        most_s: a turn that would come later than this, in seconds, is not taken: turns of clients that have
            gone meanwhile must not pile up.
        addresses: how many are remembered; those that asked longest ago are forgotten.
    """

    def __init__(self, per_s: float, burst: int, most_s: float, addresses: int = 256) -> None:
        self._per_s, self._burst, self._most_s, self._addresses = per_s, burst, most_s, addresses
        self._paces: OrderedDict[str, Pace] = OrderedDict()

    async def take(self, address: str) -> bool:
        """Take a turn of an address, and wait for it. Returns False at once if it would come too late."""
        pace = self._paces.get(address)
        if pace is None:
            pace = self._paces[address] = Pace(self._per_s, self._burst)
            if len(self._paces) > self._addresses:
                self._paces.popitem(last=False)
        self._paces.move_to_end(address)
        if pace.is_ahead(asyncio.get_running_loop().time(), self._most_s):
            return False
        await pace.take()
        return True
