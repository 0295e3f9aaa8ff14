"""Bar charts as SVG, which a browser shows in the colours of the reader's scheme."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from benchmarks.registry import Metric
from benchmarks.report import Result, Series, format_figure

WIDTH, LABELS_WIDTH, FIGURE_WIDTH = 760, 300, 90
BAR_HEIGHT, GAP, TOP, BOTTOM = 20, 8, 34, 10
MOST_OVER_OURS = 12.0
"""A bar that is longer than this many of fleetlm's is cut, or the others would be too short to be seen."""
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f } .title { font-weight: 600 } .figure { fill: #57606a }
.ours { fill: #0969da } .other { fill: #8c959f } .floor { fill: #d0d7de } .spread { stroke: #24292f }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .figure { fill: #8d96a0 } .ours { fill: #4493f8 }
.other { fill: #768390 } .floor { fill: #444c56 } .spread { stroke: #e6edf3 } }
"""


def chart(result: Result, metric: Metric) -> str | None:
    """Return the chart of a metric: a bar for each variant, with a line from its lowest to its highest round.

    Returns:
        None if fewer than two variants have the metric: there is nothing to compare.
    """
    shown = [series for series in result.series if series.values(metric.key)]
    if len(shown) < 2:
        return None
    longest = _longest(shown, metric)
    scale = (WIDTH - LABELS_WIDTH - FIGURE_WIDTH) / longest
    better = "more is better" if metric.more_is_better else "less is better"
    title = f"{metric.title}, {metric.unit} ({better})"
    height = TOP + len(shown) * (BAR_HEIGHT + GAP) + BOTTOM
    rows = [
        row
        for number, series in enumerate(shown)
        for row in _bar(series, metric, TOP + number * (BAR_HEIGHT + GAP), scale, longest)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"',
            f'  viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
            f"<style>{_STYLE}</style>",
            f'<text class="title" x="0" y="18">{escape(title)}</text>',
            *rows,
            "</svg>\n",
        ]
    )


def _longest(shown: Sequence[Series], metric: Metric) -> float:
    """Return the value of the longest bar."""
    highest = max(max(series.values(metric.key)) for series in shown)
    ours = statistics.median(shown[0].values(metric.key))
    return min(highest, ours * MOST_OVER_OURS) or 1.0


def _bar(series: Series, metric: Metric, top: int, scale: float, longest: float) -> list[str]:
    values = series.values(metric.key)
    median, middle = statistics.median(values), top + BAR_HEIGHT / 2
    length = min(median, longest) * scale
    low, high = (min(value, longest) * scale + LABELS_WIDTH for value in (min(values), max(values)))
    kind = "floor" if series.floor and not series.is_peer else "other" if series.is_peer else "ours"
    figure = format_figure(median * metric.scale) + (" →" if median > longest else "")
    bar = f'x="{LABELS_WIDTH}" y="{top}" width="{max(length, 1):.1f}" height="{BAR_HEIGHT}" rx="2"'
    baseline, behind = f"{middle + 4:.0f}", f"{max(LABELS_WIDTH + length, high) + 6:.0f}"
    return [
        f'<text x="{LABELS_WIDTH - 8}" y="{baseline}" text-anchor="end">{escape(series.label)}</text>',
        f'<rect class="{kind}" {bar}/>',
        f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
        f'<text class="figure" x="{behind}" y="{baseline}">{figure}</text>',
    ]
