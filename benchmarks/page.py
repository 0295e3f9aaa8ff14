"""`REPORT.md` and its charts, rendered from one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import charts, machine, report
from benchmarks.registry import Options
from benchmarks.report import Result

INTRODUCTION = """# Benchmarks

`make bench` has written this page; do not edit it. Everything on it comes from one run, in which the variants
took turns, on loopback. A figure is the median over the rounds, with the lowest and the highest round beside
it. "fleetlm / this" is the median of the ratios of each round. **Compare ratios**: figures of two machines
differ, and so do those of two hours on a shared machine.

Blue bars are fleetlm, grey ones are other libraries, and light ones are floors: the least that the work takes
with plain sockets and without a runtime. A bar that would be too long is cut and marked with an arrow.
What was tried to make fleetlm faster, and what came of it, is in [NOTES.md](NOTES.md).
"""


def write(
    folder: Path, results: Sequence[Result], options: Options, known: dict[str, Any], notes: Sequence[str]
) -> Path:
    """Write the page and its charts.

    Args:
        folder: where ``REPORT.md`` and the folder ``charts`` go; charts of an earlier run are removed.
        results: of this run.
        options: of this run.
        known: `machine.facts`.
        notes: lines about what was left out.

    Returns:
        The path of the page.
    """
    drawings = folder / "charts"
    drawings.mkdir(parents=True, exist_ok=True)
    for old in drawings.glob("*.svg"):
        old.unlink()
    parts = [INTRODUCTION, _conditions(options, known, notes), _contents(results)]
    for result in results:
        parts.append(f"## {result.benchmark.name}: {result.benchmark.title}\n")
        for metric in result.benchmark.metrics:
            drawing = charts.chart(result, metric)
            if drawing is not None:
                name = f"{result.benchmark.name}-{metric.key}.svg".replace("_", "-")
                (drawings / name).write_text(drawing, encoding="utf-8")
                parts.append(f"![{metric.title}](charts/{name})\n")
        parts.append(_table(result))
    page = folder / "REPORT.md"
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


def _contents(results: Sequence[Result]) -> str:
    lines = [f"- {result.benchmark.name}: {result.benchmark.title}" for result in results]
    return "\n".join(["## Parts\n", *lines, ""])


def _conditions(options: Options, known: dict[str, Any], notes: Sequence[str]) -> str:
    return "\n".join(
        [
            "## Conditions\n",
            *(f"- {line}" for line in machine.summary(known).splitlines()),
            f"- measured at {known['when']}, {options.repeat} rounds unless a part says otherwise; the event",
            f"  loop is {options.loop}",
            "- repeat it: `make bench`, or one part of it: `python -m benchmarks NAME --peers all`; other",
            "  libraries take part where they are installed, with the interpreter in `BENCH_PYTHON_<NAME>`",
            "  if that is set",
            *(f"- {note}" for note in notes),
            "",
        ]
    )


def _table(result: Result) -> str:
    lines = ["| | | median | lowest to highest | fleetlm / this |", "|---|---|---|---|---|"]
    for metric in result.benchmark.metrics:
        title = f"{metric.title}, {metric.unit}"
        for series in result.series:
            cells = report.cells(result, series, metric)
            if cells is not None:
                lines.append(f"| {title} | {series.label} | {' | '.join(cells)} |")
                title = ""
    return "\n".join([*lines, "", *(f"{line}\n" for line in report.failures(result))])
