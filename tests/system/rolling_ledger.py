"""The records of the rolling restarts, and what they must say.

Each run of a node writes one file of JSON lines: ``[seconds since the epoch, what, request, detail]``.

========  =====================================================================================
ready     the node has met all others and begins its work
quiet     a caller has ended, with all of its requests
asked     a request begins
ok        it has ended with the right answer; for a stream: with every item once and in order
wrong     it has ended with another answer
unknown   it has ended with an `OutcomeUnknown`
failed    it has ended with another error
run       a process has begun to serve it
========  =====================================================================================
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

SUFFIX = ".jsonl"
QUIET = "quiet"
"""A file of this name ends the callers."""
OUTCOMES = ("ok", "wrong", "unknown", "failed")
MAX_SHOWN = 10


def line(what: str, request: str, detail: str = "") -> bytes:
    """Make a record."""
    return (json.dumps([round(time.time(), 4), what, request, detail]) + "\n").encode()


@dataclass
class Account:
    """What all runs of all nodes did.

    Attributes:
        asked: the requests that began.
        outcomes: request → what it ended with.
        ran: request → how often a process began to serve it.
        details: request → the words of its error.
        ready: how many runs of nodes have met all others.
        quiet: how many callers have ended.
    """

    asked: set[str] = field(default_factory=set)
    outcomes: dict[str, list[str]] = field(default_factory=dict)
    ran: Counter[str] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)
    ready: int = 0
    quiet: int = 0

    def take_all(self, records: Iterable[tuple[str, list[Any]]]) -> Self:
        """Take records, each with the run of a node that wrote it. Returns itself."""
        for _, record in records:
            self.take(*record)
        return self

    def take(self, _at: float, what: str, request: str, detail: str) -> None:
        """Take one record."""
        if what == "asked":
            self.asked.add(request)
        elif what == "run":
            self.ran[request] += 1
        elif what == "ready":
            self.ready += 1
        elif what == "quiet":
            self.quiet += 1
        else:
            self.outcomes.setdefault(request, []).append(what)
            if detail:
                self.details[request] = detail

    def ended(self, *outcomes: str) -> list[str]:
        """Return the requests that ended with one of these outcomes."""
        return [request for request, ends in self.outcomes.items() if any(end in outcomes for end in ends)]

    def kinds(self) -> Counter[str]:
        """Return how many requests of each kind ended well."""
        return Counter(request.partition("-")[0] for request in self.ended("ok"))

    def complaints(self, *, after_kill: bool = False) -> list[str]:
        """Return what is wrong, each with a few examples; nothing if all is right.

        Args:
            after_kill: nodes were killed: what they were asking has no outcome, and what they were running
                may have the outcome "unknown". Nothing else may differ.
        """
        wrong = {
            "failed or ended with a wrong answer": self.ended("failed", "wrong"),
            "had more than one outcome": [
                request for request, ends in self.outcomes.items() if len(ends) > 1
            ],
            "ran more than once": [request for request, count in self.ran.items() if count > 1],
            "had an answer and never ran": [request for request in self.ended("ok") if not self.ran[request]],
            "ran and were not asked for": [request for request in self.ran if request not in self.asked],
        }
        if not after_kill:
            wrong["may have run (OutcomeUnknown)"] = self.ended("unknown")
            wrong["have no outcome"] = [request for request in self.asked if request not in self.outcomes]
        return [
            f"{len(found)} requests {what}: {self._show(found)}" for what, found in wrong.items() if found
        ]

    def _show(self, requests: list[str]) -> str:
        return "; ".join(
            f"{request} (ran {self.ran[request]} times) {self.details.get(request, '')}"
            for request in requests[:MAX_SHOWN]
        )
