"""Metrics of a node for Prometheus, with `prometheus-client` (``pip install 'fleetlm[metrics]'``).

    metrics = NodeMetrics(node)
    ...
    body = metrics.render()            # what GET /metrics answers
    NodeMetrics(node, REGISTRY)        # or among the program's own metrics

The ops listener (``FLEETLM_OPS``) does this by itself. Nothing else of fleetlm imports this package.

* `counts`: what is counted while things happen: histograms, and sums for each label.
* `labels`: which values a label may have, so that there is no end of series in no case.
* `reading`: what a node shows at one moment, taken on its event loop in bounded time.
* `series`: the table of all series, with their names, labels and descriptions.
* `node_metrics`: the collector, which asks the node from any thread.
"""

from __future__ import annotations

from fleetlm.metrics.node_metrics import NodeMetrics
from fleetlm.metrics.series import SERIES, Series

__all__ = ["SERIES", "NodeMetrics", "Series"]
