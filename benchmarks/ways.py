"""The ways in which a benchmark runs fleetlm: the roads between two nodes, the event loops, the cookie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.registry import Options

COOKIE = "benchmark-7f3c9a51d0e84b26"
"""Only for benchmarks, which bind to loopback."""


@dataclass(frozen=True)
class Way:
    """One of them.

    Attributes:
        label: as in the tables.
        config: what a helper process needs to know of it.
    """

    label: str
    config: dict[str, Any]


def fleetlm_ways(options: Options, what: str = "") -> list[Way]:
    """Return the usual way first; the others only where they were asked for (``options.ways``)."""
    first = Way(_label(what, options.loop), {})
    if not options.ways:
        return [first]
    other = "asyncio" if options.loop == "uvloop" else "uvloop"
    return [
        first,
        Way(_label(what, options.loop, "over ZeroMQ"), {"settings": {"local_road": False}}),
        Way(_label(what, other), {"loop": other}),
        Way(_label(what, options.loop, "with a cookie"), {"settings": {"cookie": COOKIE}}),
    ]


def _label(what: str, *marks: str) -> str:
    return f"fleetlm{what} ({', '.join(marks)})"
