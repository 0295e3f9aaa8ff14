"""What overviews say together: how fast counters grow between the last two parts of a node. Pure.

A node makes a part at most twice a second, so the same part may come several times; it counts once. A node
that has restarted begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleetlm.records import Record

Part = Mapping[str, Any]
Overview = Mapping[str, Any]

_SHORTEST_S = 0.1
"""Seconds between two parts below which no rate is computed: clocks of computers may be set."""


class _Counts(Record):
    """What a part counts, and when."""

    incarnation: int
    wall_ms: int
    counts: dict[tuple[str, ...], int]


class History:
    """The last overview, and what each node in it had counted before.

    Attributes:
        overview: the last one; empty before the first.
    """

    def __init__(self) -> None:
        self.overview: Overview = {"asked": "", "wall_ms": 0, "nodes": {}}
        self._counts: dict[str, tuple[_Counts | None, _Counts]] = {}
        """Node → what it had counted in the part before its last one, and in that."""

    @property
    def asked(self) -> str:
        """The node that was asked."""
        return str(self.overview["asked"])

    @property
    def parts(self) -> Mapping[str, Part]:
        """The parts of all nodes by name; one that has ``error`` has told nothing."""
        parts: Mapping[str, Part] = self.overview["nodes"]
        return parts

    def add(self, overview: Overview) -> None:
        """Take the next overview."""
        self.overview = overview
        counts: dict[str, tuple[_Counts | None, _Counts]] = {}
        for name, part in self.parts.items():
            before, last = self._counts.get(name, (None, None))
            if "error" in part:
                if last is not None:
                    counts[name] = before, last
            elif last is None or last.incarnation != part["incarnation"]:
                counts[name] = None, _count(part)
            elif last.wall_ms == part["wall_ms"]:
                counts[name] = before, last
            else:
                counts[name] = last, _count(part)
        self._counts = counts

    def rate(self, node: str, *what: str) -> float | None:
        """Return how much a count grows in a second; None if that is not known.

        Args:
            node: the name of the node that counts.
            *what: as `_count` names it.
        """
        before, now = self._counts.get(node, (None, None))
        if before is None or now is None or "error" in self.parts[node]:
            return None
        seconds = (now.wall_ms - before.wall_ms) / 1000
        earlier, later = before.counts.get(what), now.counts.get(what)
        if seconds < _SHORTEST_S or earlier is None or later is None or later < earlier:
            return None
        return (later - earlier) / seconds


def _count(part: Part) -> _Counts:
    """Return all that is counted in a part, by what it is, and whose."""
    counts: dict[tuple[str, ...], int] = {
        ("counters", name): count for name, count in part["counters"].items()
    }
    for row in part["peers"]:
        for name in ("messages_sent", "messages_received", "bytes_sent", "bytes_received"):
            counts["peers", row["name"], name] = row[name]
    for kind, row in part.get("kinds", {}).items():
        counts["kinds", kind, "activated"] = row["activated"]
    for row in part["processes"]["shown"]:
        counts["processes", row["pid"]] = row["taken"]
    return _Counts(part["incarnation"], part["wall_ms"], counts)
