"""The records of keyed entities on real nodes, and what they must say.

Each run of a node writes one file of JSON lines: ``[seconds on the monotonic clock, what, key, request,
detail]``. All nodes are on one machine, so that they have this clock in common.

=========  ===================================================================================
asked      a request begins
ok         it has ended; the detail is the number that it got
unknown    it has ended with an `OutcomeUnknown`; the detail is the error
refused    it has ended with a `NotDelivered`
failed     it has ended with another error
begin      an entity has begun to live; the detail is its epoch
run        a handler has run, on any node; the detail is the epoch of the entity
lines      what a session has in the end; the detail is the list of its requests
=========  ===================================================================================
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

SUFFIX = ".jsonl"
READY_SUFFIX = ".ready"
"""A run of a node makes a file of its name with this ending when it begins its work."""
DONE_SUFFIX = ".done"
"""A client makes one with this ending when all of its requests have ended, and it has read all sessions."""
QUIET = "quiet"
"""A file of this name ends the clients."""
UNKNOWN, REFUSED = "unknown", "refused"
MAX_SHOWN = 8


class Run(NamedTuple):
    """A handler of an entity has run."""

    at: float
    node: str
    request: str
    epoch: int


def line(what: str, key: str = "", request: str = "", detail: Any = None) -> bytes:
    """Make a record."""
    return (json.dumps([round(time.monotonic(), 5), what, key, request, detail]) + "\n").encode()


@dataclass
class Account:
    """What all runs of all nodes did.

    Attributes:
        asked: request → when it began.
        took: request → seconds from then until it had ended well.
        numbers: key → request → the number that it got.
        ended: outcome → the requests that ended with it, each with its error.
        runs: key → where and when a handler ran.
        begins: key → where and when an entity began to live.
        lines: key → the requests that the session has in the end, in its order.
    """

    asked: dict[str, float] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    ended: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    runs: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    begins: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    lines: dict[str, list[str]] = field(default_factory=dict)

    def take_all(self, records: Iterable[tuple[str, list[Any]]]) -> Self:
        """Take records, each with the run of a node that wrote it. Returns itself."""
        for run, record in records:
            self.take(run, *record)
        return self

    def take(self, node: str, at: float, what: str, key: str, request: str, detail: Any) -> None:
        """Take one record of a node."""
        match what:
            case "asked":
                self.asked[request] = at
            case "ok":
                self.took[request] = at - self.asked[request]
                self.numbers[key][request] = detail
            case "begin":
                self.begins[key].append(Run(at, node, request, detail))
            case "run":
                self.runs[key].append(Run(at, node, request, detail))
            case "lines":
                self.lines[key] = detail
            case _:
                self.ended[what][request] = detail

    def complaints(self, *may_end: str) -> list[str]:
        """Return what is wrong, each with a few examples; nothing if all is right.

        Args:
            *may_end: outcomes that a request may have beside "ok". `UNKNOWN`: nodes were killed or frozen;
                such a request is in its session once or not at all. `REFUSED`: nobody served for a while.
        """
        wrong: dict[str, list[str]] = {
            f"requests were {what}": [f"{request}: {why}" for request, why in requests.items()]
            for what, requests in self.ended.items()
            if what not in may_end
        }
        wrong |= {
            "requests ran more than once": self._ran_twice(),
            "requests are in the session and were not asked for": self._unasked(),
            "sessions have other lines than their callers were told": self._contradictions(),
            "sessions ran under a former epoch again": self.relapses(),
        }
        if UNKNOWN not in may_end:
            wrong["sessions have gaps in their numbers"] = [
                key for key, given in self.numbers.items() if sorted(given.values()) != _from_one(given)
            ]
            wrong["requests have no outcome"] = [each for each in self.asked if not self._has_ended(each)]
        return [
            f"{len(found)} {what}: {'; '.join(found[:MAX_SHOWN])}" for what, found in wrong.items() if found
        ]

    def relapses(self) -> list[str]:
        """Return the sessions that ran under an epoch after another one had run under a higher one."""
        return [key for key, runs in self.runs.items() if not _grows(run.epoch for run in sorted(runs))]

    def pause_s(self, share: float) -> float:
        """Return the time within which that share of the requests ended."""
        times = sorted(self.took.values())
        return times[min(len(times) - 1, int(share * len(times)))]

    def _has_ended(self, request: str) -> bool:
        return request in self.took or any(request in requests for requests in self.ended.values())

    def _ran_twice(self) -> list[str]:
        counts = Counter(run.request for runs in self.runs.values() for run in runs)
        return [request for request, count in counts.items() if count > 1]

    def _unasked(self) -> list[str]:
        return [each for lines in self.lines.values() for each in lines if each not in self.asked]

    def _contradictions(self) -> list[str]:
        """Return the sessions in which a line is missing that was acknowledged, is elsewhere, or is twice."""
        found = []
        for key in self.numbers | self.lines:
            lines = self.lines.get(key)
            if lines is None:
                found.append(f"{key} was not read")
            elif len(set(lines)) < len(lines):
                found.append(f"{key} has a line twice")
            else:
                missing = [
                    f"{request} at {number}"
                    for request, number in self.numbers[key].items()
                    if lines[number - 1 : number] != [request]
                ]
                if missing:
                    found.append(f"{key} of {len(lines)} lines lacks {', '.join(missing[:3])}")
        return found


def _from_one(given: dict[str, int]) -> list[int]:
    return list(range(1, len(given) + 1))


def _grows(epochs: Iterable[int]) -> bool:
    highest = 0
    for epoch in epochs:
        if epoch < highest:
            return False
        highest = epoch
    return True
