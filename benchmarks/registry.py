"""The type of a benchmark: its name, its metrics and the variants that it compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line."""

    quick: bool = False
    loop: str = "uvloop"
    repeat: int = 5
    peers: frozenset[str] = frozenset()
    """Names, in lower case, of the other libraries to measure in the same run."""
    ways: bool = False
    """Whether fleetlm is also measured on the other event loop, with a cookie, and so on."""
    against: Path | None = None
    """A checkout of another commit, with which ``metrics`` compares this one."""

    def size(self, normal: int, quick: int) -> int:
        """Return the amount of work of one run."""
        return quick if self.quick else normal


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a run."""

    key: str
    title: str
    unit: str
    more_is_better: bool
    scale: float = 1.0
    """The factor from a figure to the table's unit."""


class Variant(Protocol):
    """One way to do the work. It is opened once, run several times in turns with the others, and closed."""

    label: str
    floor: bool

    def open(self) -> None:
        """Start the processes that it needs."""

    def run(self) -> Metrics:
        """Do the work once."""

    def close(self) -> None:
        """End every process that `open` and `run` started. Called also after a failure."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A comparison of variants; the first variant is fleetlm."""

    name: str
    title: str
    metrics: Sequence[Metric]
    variants: Callable[[Options], Sequence[Variant]]
    most_rounds: int = 1_000
    """For one whose rounds take minutes."""
    least_rounds: int = 1
    """For one that looks for small differences, with rounds of a second."""
    is_fine: bool = False
    """Likewise: ratios are shown with three digits, and with the quartiles of the rounds."""
    share: float = 2
    """Its share of the time of a whole run, compared with the shares of the others (`benchmarks.budget`)."""
    why_not: Callable[[Options], str] = lambda _: ""
    """Returns why it cannot be measured here, or nothing."""
