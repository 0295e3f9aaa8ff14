"""What is counted while things happen, as the functions that `telemetry.Telemetry.listen` calls.

Each runs in the middle of a call or a handler, on the node's event loop. So it costs a look-up, a search
among 16 numbers and two additions, and makes no object. Nothing here is locked: `reading` copies the counts
on the same loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from fleetlm import telemetry
from fleetlm.metrics.labels import MAX_ACTORS, MAX_HANDLERS, OTHER

if TYPE_CHECKING:
    from fleetlm.taps import Target
    from fleetlm.telemetry import Kind

BOUNDS_S: Final = (
    *(0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0),
)
"""Upper bounds of the buckets of all histograms, in seconds: from a call within a host to a long stream."""
_INF = (float("inf"),)
MAX_CLOCKS: Final = 4_096
"""Nodes with a clock of full windows: four times as many as `Settings.max_peers` allows by default."""


class Histogram:
    """How often something took how long.

    Attributes:
        counts: by bucket, one more than there are bounds; not cumulative.
        sum_s: of all, in seconds.
    """

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts: list[int] = [0] * (len(BOUNDS_S) + 1)
        self.sum_s: float = 0.0

    def observe(self, seconds: float, weight: int = 1) -> None:
        """Count ``weight`` things that took so long."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += weight
        self.sum_s += seconds * weight

    def copy(self) -> Histogram:
        """Return a copy that does not change."""
        other = Histogram()
        other.counts, other.sum_s = self.counts.copy(), self.sum_s
        return other

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative counts with their bounds, as prometheus-client takes them."""
        total, found = 0, []
        for bound, count in zip(BOUNDS_S + _INF, self.counts, strict=True):
            total += count
            found.append(("+Inf" if bound == _INF[0] else repr(bound), float(total)))
        return found


class FullClock:
    """For how long senders have waited for room towards one node.

    Attributes:
        waiting: senders that wait now.
        total_s: seconds in which at least one waited, without the present time.
    """

    __slots__ = ("_since", "total_s", "waiting")

    def __init__(self) -> None:
        self.waiting: int = 0
        self.total_s: float = 0.0
        self._since = 0.0

    def begin(self, now: float) -> None:
        """A sender begins to wait."""
        if not self.waiting:
            self._since = now
        self.waiting += 1

    def end(self, now: float) -> None:
        """A sender goes on. One that began before anybody counted is left out."""
        if self.waiting:
            self.waiting -= 1
            if not self.waiting:
                self.total_s += now - self._since

    def seconds(self, now: float) -> float:
        """Return the seconds until now in which at least one sender waited."""
        return self.total_s + (now - self._since if self.waiting else 0.0)


class Counts:
    """The counts of one node, since its `NodeMetrics` was made.

    Args:
        clock: seconds of the node's event loop.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.calls: dict[str, Histogram] = {}
        """By outcome."""
        self.handlers: dict[tuple[str, str], Histogram] = {}
        """By actor and handler."""
        self.queues: dict[str, Histogram] = {}
        """By actor."""
        self.drops: dict[str, int] = {}
        """Messages by reason."""
        self.full: dict[str, FullClock] = {}
        """By node; this one is the empty text."""
        self.restarts: int = 0
        self.gave_up: int = 0

    def listeners(self) -> dict[Kind, Callable[..., None]]:
        """Return what is to be called with the fields of each kind of event."""
        return {
            telemetry.CallEnded: self._on_call_ended,
            telemetry.HandlerEnded: self._on_handler_ended,
            telemetry.MessageDropped: self._on_message_dropped,
            telemetry.WindowFull: self._on_window_full,
            telemetry.WindowOpened: self._on_window_opened,
            telemetry.ChildRestarted: self._on_child_restarted,
            telemetry.SupervisorGaveUp: self._on_supervisor_gave_up,
        }

    def _on_call_ended(self, _to: Target, _handler: str, outcome: str, seconds: float, weight: int) -> None:
        found = self.calls.get(outcome)
        if found is None:
            found = self.calls[outcome] = Histogram()
        found.observe(seconds, weight)

    def _on_handler_ended(
        self, actor: str, handler: str, _outcome: str, seconds: float, queued_s: float | None, weight: int
    ) -> None:
        handlers = self.handlers
        found = handlers.get((actor, handler))
        if found is None:
            found = _add(handlers, (actor, handler), (OTHER, OTHER), MAX_HANDLERS)
        found.observe(seconds, weight)
        if queued_s is not None:
            queue = self.queues.get(actor)
            if queue is None:
                queue = _add(self.queues, actor, OTHER, MAX_ACTORS)
            queue.observe(queued_s, weight)

    def _on_message_dropped(self, why: str, count: int, _to: Target, _node: str) -> None:
        self.drops[why] = self.drops.get(why, 0) + count

    def _on_window_full(self, _to: Target, node: str) -> None:
        clock = self.full.get(node)
        if clock is None:
            if (
                len(self.full) >= MAX_CLOCKS
            ):  # Nobody scrapes, or those of nodes that are gone would be dropped.
                self.full = {name: each for name, each in self.full.items() if each.waiting}
            clock = self.full[node] = FullClock()
        clock.begin(self._clock())

    def _on_window_opened(self, _to: Target, node: str, _seconds: float) -> None:
        clock = self.full.get(node)
        if clock is not None:
            clock.end(self._clock())

    def _on_child_restarted(self, _supervisor: str, _child: str, _reason: str) -> None:
        self.restarts += 1

    def _on_supervisor_gave_up(self, _supervisor: str, _reason: str) -> None:
        self.gave_up += 1


def _add(histograms: dict[Any, Histogram], key: Any, other: Any, limit: int) -> Histogram:
    """Return a new histogram for a key, or the one for all others if there are too many."""
    if len(histograms) >= limit:
        key = other
    return histograms.setdefault(key, Histogram())
