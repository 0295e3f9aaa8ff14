"""How long a test may take: seconds of a quiet machine, stretched where the machine is busy."""

from __future__ import annotations

import os

LEAST = 2.0
"""The one-minute load rises late in a burst of work, so limits are stretched on a quiet machine too."""
MOST = 10.0
"""Beyond this a machine is too busy to tell a slow test from one that hangs."""


def slowness(least: float) -> float:
    """Return the load of the last minute for each core, between ``least`` and `MOST`."""
    return min(MOST, max(least, os.getloadavg()[0] / (os.cpu_count() or 1)))


def allowed_s(seconds: float) -> float:
    """Return the upper bound of a measured time: as given, and more where the machine has too much to do."""
    return seconds * slowness(1.0)


def stretched(seconds: float) -> float:
    """Return a limit in seconds for the machine as busy as it is now.

    Args:
        seconds: the limit on a machine that runs nothing else.
    """
    return seconds * slowness(LEAST)
