"""When a process tries to write to a file to which others write as well: the waits before each attempt.

SQLite keeps no queue of the processes that wait for its lock. Each of them looks again and again, in the end
every 0.1 s, while the one that has just written goes on at once. So a process can miss every gap between the
writes of the others until its time is over. Here everybody gives way instead:

* A process that has met others a moment ago waits for `GIVE_WAY_S` after each of its transactions.
* Those that wait look several times while that lasts. The longer a process has waited, the more often it
  looks, so it wins against those that have just come.
* A process that has met nobody waits for nothing.
"""

from __future__ import annotations

import math

GIVE_WAY_S = 0.005
"""Seconds in which those that wait get the file. What is asked for meanwhile joins the next transaction."""
LOOK_MIN_S = 0.0005
"""Seconds between two looks of a process that has waited for long; one costs some 0.03 ms of CPU."""
MET_S = 1.0
"""Seconds for which a process remembers that others write as well."""


class Turns:
    """The waits of one open file.

    Args:
        busy_s: seconds that one transaction may wait.
    """

    def __init__(self, busy_s: float) -> None:
        self._busy_s = busy_s
        self._met_at = -math.inf
        self._ended_at = -math.inf

    def first_pause_s(self, now: float) -> float:
        """Return the seconds before the first attempt of a transaction."""
        if now - self._met_at > MET_S:
            return 0.0
        return max(0.0, self._ended_at + GIVE_WAY_S - now)

    def next_pause_s(self, began_at: float, now: float) -> float | None:
        """Return the seconds before another attempt, since others have the file; None: the time is over.

        Args:
            began_at: when the first attempt was made.
            now: on the same clock.
        """
        self._met_at = now
        left = began_at + self._busy_s - now
        if left <= 0:
            return None
        return min(left, LOOK_MIN_S + (GIVE_WAY_S - LOOK_MIN_S) * (left / self._busy_s) ** 4)

    def ended(self, now: float) -> None:
        """Note that a transaction of this process has ended."""
        self._ended_at = now
