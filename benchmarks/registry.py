"""What a benchmark is: a name, what it measures, and the variants that it compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    quick: bool = False
    loop: str = "uvloop"
    repeat: int = 5

    def size(self, normal: int, quick: int) -> int:
        """How much work one run does."""
        return quick if self.quick else normal


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a run."""

    key: str
    title: str
    unit: str
    more_is_better: bool
    scale: float = 1.0
    """A figure is multiplied by it for the table."""


class Variant(Protocol):
    """One way to do the work. Opened once, run several times in turns with the others, closed."""

    label: str
    floor: bool

    def open(self) -> None:
        """Start what it needs."""

    def run(self) -> Metrics:
        """Do the work once."""

    def close(self) -> None:
        """End every process that `open` and `run` started. Called also after a failure."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A comparison."""

    name: str
    title: str
    metrics: Sequence[Metric]
    variants: Callable[[Options], Sequence[Variant]]
