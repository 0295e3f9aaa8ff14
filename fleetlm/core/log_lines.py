"""Decides which log lines are written, so that nobody can fill a disk by what makes a node log.

Each kind of line has a token bucket. `BURST_LINES` of a kind may come at once, as when a large cluster
starts; further ones are written at `LINES_PER_S`, and the others are counted. Every `SUMMARY_S` seconds one
line says how many of a kind were left out.

A kind is a place in the code, not a text: texts contain what peers say, so there would be no end of kinds.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from fleetlm.core.buckets import Bucket
from fleetlm.records import Row

BURST_LINES: Final = 100
"""Lines of one kind that may come at once: a program's worst moment is still in the log."""
LINES_PER_S: Final = 1.0
"""Lines of one kind from then on: some 20 MB a day, if somebody keeps at it."""
SUMMARY_S: Final = 10.0
"""Seconds between two lines that say how many of one kind were left out."""
MAX_KINDS: Final = 512
"""Kinds that are remembered. The code has fewer; the one that came longest ago is forgotten first."""


class LeftOut(Row):
    """Lines of one kind that were not written.

    Attributes:
        kind: the kind.
        lines: how many.
        seconds: since the first of them.
    """

    kind: Hashable
    lines: int
    seconds: float


class _Kind:
    __slots__ = ("bucket", "left_out", "since")

    def __init__(self, bucket: Bucket, now: float) -> None:
        self.bucket = bucket
        self.left_out = 0
        self.since = now


class LogLines:
    """The buckets of one process, or of one thing that it logs.

    Args:
        lines_per_s: lines of one kind in the long run.
        burst_lines: lines of one kind that may come at once.
    """

    def __init__(self, lines_per_s: float = LINES_PER_S, burst_lines: float = BURST_LINES) -> None:
        self._rate = lines_per_s, burst_lines
        self._kinds: dict[Hashable, _Kind] = {}

    def admit(self, kind: Hashable, now: float) -> bool:
        """Whether a line of this kind is to be written. ``now`` is in seconds, of any clock."""
        known = self._kinds.pop(kind, None)
        if known is None:
            known = _Kind(Bucket(*self._rate, now), now)
            if len(self._kinds) >= MAX_KINDS:
                del self._kinds[next(iter(self._kinds))]
        self._kinds[kind] = known
        if known.bucket.take(now):
            return True
        if not known.left_out:
            known.since = now
        known.left_out += 1
        return False

    def admit_with_rest(self, kind: Hashable, now: float) -> int | None:
        """Do as `admit`, for lines that say themselves how many were left out before them.

        Returns:
            How many since the last line of this kind; None if this one is to be left out, too.
        """
        if not self.admit(kind, now):
            return None
        known = self._kinds[kind]
        left_out, known.left_out = known.left_out, 0
        return left_out

    def take_left_out(self, now: float, least_s: float = SUMMARY_S) -> list[LeftOut]:
        """Return what was left out, by kind, where the first line of it is ``least_s`` old; count anew."""
        found = []
        for kind, known in self._kinds.items():
            if known.left_out and now - known.since >= least_s:
                found.append(LeftOut(kind, known.left_out, now - known.since))
                known.left_out = 0
        return found
