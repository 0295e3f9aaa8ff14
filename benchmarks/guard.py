"""A guard against lost speed: ratios to the floors of the same run, with generous margins.

Absolute figures of two machines cannot be compared, and those of one shared machine differ by a factor
of two from hour to hour. The ratios to a floor that takes turns with fleetlm differ by about a fifth,
and by more where other work runs on the same cores. `LEAST` has half the rate that an idle machine
shows, and two to three times the time: it finds a change that makes a road twice as slow, and does not
fail for noise.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report import Result

LEAST: dict[str, list[tuple[str, str, float]]] = {
    "one-way": [("rate", "pyzmq, recv_multipart", 1.0)],
    "calls": [("p50_s", "pyzmq, FD reader", 3.5), ("rate_100", "pyzmq, FD reader", 0.2)],
    "fan-out": [("p50_s", "pyzmq, blocking", 6.0)],
    "local": [("rate", "asyncio.Queue", 0.2)],
}
"""For each benchmark: the metric, how the label of the floor begins, and the ratio "fleetlm / floor". A rate
must not be below it, and a time not above."""


def complaints(results: Sequence[Result]) -> list[str]:
    """Return a sentence for each ratio that is worse than it may be."""
    found = []
    for result in results:
        metrics = {metric.key: metric for metric in result.benchmark.metrics}
        for key, label, bound in LEAST.get(result.benchmark.name, ()):
            metric = metrics[key]
            floor = next(series for series in result.series if series.label.startswith(label))
            ratio = result.ratio(floor, key)
            if ratio is None or (ratio < bound if metric.more_is_better else ratio > bound):
                limit = f"{'below' if metric.more_is_better else 'above'} {bound:g}"
                shown = "missing" if ratio is None else f"{ratio:.2f}"
                name = f"{result.benchmark.name}: {metric.title}"
                found.append(f"{name}: fleetlm / {floor.label} is {shown}, {limit}")
    return found
