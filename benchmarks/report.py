"""Run the variants of a benchmark in turns; compute medians and ratios; format the table and the JSON."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.helpers import HelperFailed
from benchmarks.registry import Benchmark, Metric, Metrics, Options, Variant

WIDTHS = (50, 12, 22, 30)


@dataclass(slots=True)
class Series:
    """The runs of one variant, in order of the rounds."""

    label: str
    floor: bool
    is_peer: bool = False
    """Whether it is another library, and not a floor."""
    failure: str = ""
    """Why it could not go on, if it is another library."""
    runs: list[Metrics] = field(default_factory=list)

    def values(self, key: str) -> list[float]:
        """Return one metric of each round in which this variant reported it."""
        return [run[key] for run in self.runs if key in run]


@dataclass(slots=True)
class Result:
    """A benchmark and the series of its variants; the first one is fleetlm."""

    benchmark: Benchmark
    series: list[Series]
    note: str = ""
    """What was left out of it, and why."""

    def ratio(self, floor: Series, key: str) -> float | None:
        """Return fleetlm / floor: the median of the ratios of each round, as both ran under the same load."""
        ratios = self.ratios(floor, key)
        return statistics.median(ratios) if ratios else None

    def ratios(self, floor: Series, key: str) -> list[float]:
        """Return fleetlm / floor in each round that has both."""
        ours = self.series[0]
        return [
            mine[key] / theirs[key]
            for mine, theirs in zip(ours.runs, floor.runs, strict=True)
            if key in mine and theirs.get(key)
        ]


def measure(
    benchmark: Benchmark,
    options: Options,
    progress: Callable[[str], None] = lambda _: None,
    limit_s: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Open all variants, run them in turns, and close them, also after a failure.

    A failure of another library ends only its own part, and the table names it. No round begins that would
    probably end after ``limit_s``, but for the first; if that takes longer, the other libraries that have not
    had their turn by then are left out.
    """
    began = clock()
    variants: Sequence[Variant] = benchmark.variants(options)
    series = [
        Series(variant.label, variant.floor, getattr(variant, "is_peer", False)) for variant in variants
    ]
    rounds = min(max(options.repeat, benchmark.least_rounds), benchmark.most_rounds)
    note, longest_s = "", 0.0
    with contextlib.ExitStack() as stack:
        for variant, its_series in zip(variants, series, strict=True):
            progress(f"{benchmark.name}: {variant.label} starts")
            stack.callback(variant.close)
            with _outliving(its_series):
                variant.open()
        for turn in range(rounds):
            turn_began = clock()
            if turn and turn_began - began + longest_s > limit_s:
                note = f"{turn} of {rounds} rounds: its {limit_s:.0f} s of the run were over"
                break
            for variant, its_series in zip(variants, series, strict=True):
                progress(f"{benchmark.name}: round {turn + 1} of {rounds}, {variant.label}")
                if its_series.is_peer and not turn and clock() - began > limit_s:
                    its_series.failure = its_series.failure or f"its part had no time left of {limit_s:.0f} s"
                metrics: Metrics = {}
                if not its_series.failure:
                    with _outliving(its_series):
                        metrics = variant.run()
                its_series.runs.append(metrics)
            longest_s = max(longest_s, clock() - turn_began)
    return Result(benchmark, series, note)


@contextlib.contextmanager
def _outliving(series: Series) -> Iterator[None]:
    """Note that another library has failed, instead of ending the run."""
    try:
        yield
    except HelperFailed as error:
        if not series.is_peer:
            raise
        series.failure = str(error)


def table(result: Result) -> str:
    """Format for each metric: each variant's median, its range, and fleetlm / this variant."""
    lines = [f"{result.benchmark.name}: {result.benchmark.title}"]
    for metric in result.benchmark.metrics:
        better = "more is better" if metric.more_is_better else "less is better"
        header = (f"  {metric.title}, {metric.unit} ({better})", "median", "min to max", "fleetlm / this")
        lines.append(_columns(*header))
        lines += [line for one in result.series if (line := _row(result, one, metric))]
    lines += [f"  {line}" for line in failures(result)]
    return "\n".join(lines)


def failures(result: Result) -> list[str]:
    """Return a line for each library that failed or was left out, and one for missing rounds."""
    lines = [f"{one.label} failed: {one.failure}" for one in result.series if one.failure]
    return [*lines, result.note] if result.note else lines


def _row(result: Result, series: Series, metric: Metric) -> str:
    found = cells(result, series, metric)
    return _columns(f"    {series.label}", *found) if found is not None else ""


def cells(result: Result, series: Series, metric: Metric) -> tuple[str, str, str] | None:
    """Return the median, the range and the ratio as texts; None if the variant does not have the metric."""
    values = [value * metric.scale for value in series.values(metric.key)]
    if not values:
        return None
    ratios = result.ratios(series, metric.key) if series is not result.series[0] else []
    return (
        format_figure(statistics.median(values)),
        f"{format_figure(min(values))} to {format_figure(max(values))}",
        format_ratio(ratios, is_fine=result.benchmark.is_fine),
    )


def _columns(first: str, *others: str) -> str:
    rest = "".join(text.rjust(width) for text, width in zip(others, WIDTHS[1:], strict=True))
    return f"{first.ljust(WIDTHS[0])}{rest}".rstrip()


def format_ratio(ratios: list[float], *, is_fine: bool = False) -> str:
    """Format the median of the ratios of the rounds; where it is fine, with its quartiles."""
    if not ratios:
        return ""
    if not is_fine or len(ratios) < 3:
        return f"{statistics.median(ratios):.2f} x"
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.3f} x ({low:.3f} to {high:.3f})"


def format_figure(value: float) -> str:
    """Format a figure with three significant digits and separated thousands."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def as_json(results: Sequence[Result], options: Options, machine: dict[str, Any]) -> dict[str, Any]:
    """Return everything that was measured, unscaled, with each run."""
    return {
        "machine": machine,
        "options": {"quick": options.quick, "loop": options.loop, "repeat": options.repeat},
        "benchmarks": [
            {
                "name": result.benchmark.name,
                "title": result.benchmark.title,
                "note": result.note,
                "metrics": [
                    {
                        "key": metric.key,
                        "title": metric.title,
                        "unit": metric.unit,
                        "scale": metric.scale,
                        "more_is_better": metric.more_is_better,
                    }
                    for metric in result.benchmark.metrics
                ],
                "variants": [_variant_json(result, series) for series in result.series],
            }
            for result in results
        ],
    }


def _variant_json(result: Result, series: Series) -> dict[str, Any]:
    keys = [metric.key for metric in result.benchmark.metrics if series.values(metric.key)]
    return {
        "label": series.label,
        "floor": series.floor,
        "runs": series.runs,
        "medians": {key: statistics.median(series.values(key)) for key in keys},
        "fleetlm_by_this": {key: result.ratio(series, key) for key in keys},
    }
