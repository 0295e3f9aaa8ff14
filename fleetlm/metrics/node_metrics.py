"""The collector of a node's metrics.

Prometheus scrapes from any thread: the ops listener from the node's event loop, `prometheus_client`'s own
server from a thread of its own. Everything of the node belongs to its loop. So a scrape from elsewhere asks
the loop for a reading, and waits for `ANSWER_S` at most. A loop that is held up, or has ended, does not hold
up the scrape: it gets the last reading, with ``fleetlm_scrape_stale`` 1, which is what an operator must see
of such a node. Scrapes that come at the same time share one question.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Self

from fleetlm.metrics.counts import Counts, Histogram
from fleetlm.metrics.reading import Reader, Reading
from fleetlm.metrics.series import SERIES, Series
from fleetlm.node import parts_of
from fleetlm.telemetry import SESSION_ENDED

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
except ImportError as _error:
    raise ImportError("fleetlm.metrics needs prometheus-client: pip install 'fleetlm[metrics]'") from _error

if TYPE_CHECKING:
    from types import TracebackType

    from fleetlm.node import Node

ANSWER_S: Final = 1.0
"""Seconds that a scrape from another thread waits for the node's loop. Prometheus itself waits for 10."""


class NodeMetrics:
    """The metrics of one node: a collector in a registry of `prometheus_client`.

    It counts from now on; the sums of sessions that are open count from their begin. Make it on the node's
    event loop. One node's metrics can be in several registries; two nodes of a program need one registry
    each, since their series have the same names.

    Args:
        node: the node.
        registry: where to register; default: a registry of its own, for `render`.

    Attributes:
        registry: the registry.
        content_type: of what `render` returns.

    Raises:
        RuntimeError: this is not the node's event loop.
        ValueError: the registry has the metrics of another node already.
    """

    content_type: str = CONTENT_TYPE_LATEST

    def __init__(self, node: Node, registry: CollectorRegistry | None = None) -> None:
        parts = parts_of(node)
        counts = Counts(parts.context.loop.time)
        self._loop = parts.context.loop
        self._reader = Reader(node, parts, counts)
        self._end = node.telemetry.listen(counts.listeners() | {SESSION_ENDED: self._reader.session_ended})
        self._last: Reading = {}
        self._lock = threading.Lock()
        self._asked: Future[Reading] | None = None
        self.registry: CollectorRegistry = CollectorRegistry() if registry is None else registry
        try:
            self.registry.register(self)
        except ValueError:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Count no more, and leave the registry. Idempotent. The end of the node needs no such call."""
        self._end()
        try:
            self.registry.unregister(self)
        except KeyError:
            return  # It has left already.

    def render(self) -> bytes:
        """Return everything in the registry in Prometheus' text format, for an answer with `content_type`."""
        return generate_latest(self.registry)

    def describe(self) -> Iterator[Metric]:
        """Yield the families without values: the registry looks for names that are there already."""
        for series in SERIES:
            yield _make_family(series)

    def collect(self) -> Iterator[Metric]:
        """Yield the families of one reading. See `prometheus_client.registry.Collector`."""
        reading, is_stale = self._read()
        for series in SERIES:
            family = _make_family(series)
            if series.name == "fleetlm_scrape_stale":
                family.add_metric((), float(is_stale))
            for labels, value in reading.get(series.name, ()):
                if isinstance(value, Histogram):
                    family.add_metric(labels, value.buckets(), value.sum_s)
                else:
                    family.add_metric(labels, value)
            yield family

    def _read(self) -> tuple[Reading, bool]:
        """Return a reading, and whether it is an old one."""
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            self._last = self._reader.read()
            return self._last, False
        with self._lock:
            asked = self._asked
            if asked is None or asked.done():
                asked = self._asked = Future()
                try:
                    self._loop.call_soon_threadsafe(self._answer, asked)
                except RuntimeError:  # The loop is closed.
                    asked.cancel()
        if not asked.cancelled():
            try:
                return asked.result(ANSWER_S), False
            except TimeoutError:
                pass
        return self._last, True

    def _answer(self, asked: Future[Reading]) -> None:
        try:
            self._last = self._reader.read()
        except Exception as error:  # noqa: BLE001  # it belongs to who has asked
            asked.set_exception(error)
        else:
            asked.set_result(self._last)


def _make_family(series: Series) -> Any:
    """Return the family of a series, without values; each kind takes its values in a way of its own."""
    if series.type == "counter":
        name = series.name.removesuffix("_total")
        return CounterMetricFamily(name, series.help, labels=series.labels)
    if series.type == "gauge":
        return GaugeMetricFamily(series.name, series.help, labels=series.labels)
    return HistogramMetricFamily(series.name, series.help, labels=series.labels)
