"""The time from starting a process until its node is ready, and its memory then."""

from __future__ import annotations

import sys

from benchmarks.helpers import Launch
from benchmarks.registry import Benchmark, Metric, Options, Variant

QUERY = {"DNS_CLUSTER_QUERY": "127.0.0.1", "FLEETLM_NODE_IP": "127.0.0.1", "FLEETLM_REMOTE": "off"}


def variants(options: Options) -> list[Variant]:
    """A program that embeds a node; ``fleetlm start``; the libraries of both; Python alone."""
    del options
    start = (
        sys.executable,
        "-m",
        "fleetlm",
        "start",
        "--log-level",
        "error",
        "benchmarks.start_programs:ready",
    )
    return [
        Launch("fleetlm, embedded", floor=False, target="start_programs:embedded", config={"env": QUERY}),
        Launch(
            "fleetlm start", floor=False, target="start_programs:ready", config={"env": QUERY}, command=start
        ),
        Launch("asyncio + msgpack + ROUTER", floor=True, target="start_programs:parts", config={}),
        Launch("Python alone", floor=True, target="start_programs:bare", config={}),
    ]


BENCHMARK = Benchmark(
    "start",
    "a node, from the start of its process until it is ready",
    [
        Metric("start_s", "start", "ms", more_is_better=False, scale=1e3),
        Metric("rss_bytes", "resident memory", "MiB", more_is_better=False, scale=1 / 1024 / 1024),
    ],
    variants,
)
