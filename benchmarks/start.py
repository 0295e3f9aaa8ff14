"""The time from starting a process until its node is ready, and its memory then."""

from __future__ import annotations

import importlib.util
import sys

from benchmarks import peers
from benchmarks.helpers import Launch, free_port
from benchmarks.peers import with_erlang
from benchmarks.registry import Benchmark, Metric, Options, Variant

QUERY = {"DNS_CLUSTER_QUERY": "127.0.0.1", "FLEETLM_NODE_IP": "127.0.0.1", "FLEETLM_REMOTE": "off"}


EXTRAS = {
    "metrics": ("with_metrics", "prometheus_client"),
    "tracing": ("with_tracing", "opentelemetry"),
    "the ops listener": ("with_ops", "uvicorn"),
}
"""What a program may use beside the node: its name, the function of `start_programs`, and the package that it
needs."""


def variants(options: Options) -> list[Variant]:
    """A program that embeds a node, without extras and with; ``fleetlm start``; floors; the peers."""
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
        *(
            Launch(
                f"fleetlm, embedded, with {what}",
                floor=False,
                target=f"start_programs:{function}",
                config={"env": QUERY},
            )
            for what, (function, package) in EXTRAS.items()
            if importlib.util.find_spec(package)
        ),
        Launch("asyncio + msgpack + ROUTER", floor=True, target="start_programs:parts", config={}),
        Launch("Python alone", floor=True, target="start_programs:bare", config={}),
        *(
            Launch(
                f"{label}, a distributed node",
                floor=True,
                target="start",
                config={},
                command=with_erlang.start_command(free_port(["127.0.0.1"])),
                is_peer=True,
            )
            for peer, label in peers.able(options, "start")
            if peer.name == "Erlang"
        ),
    ]


def why_not(_options: Options) -> str:
    """Return why a start cannot be measured."""
    return "PYTHONDONTWRITEBYTECODE is set" if sys.dont_write_bytecode else ""


BENCHMARK = Benchmark(
    "start",
    "a node, from the start of its process until it is ready, and what extras add",
    [
        Metric("start_s", "start", "ms", more_is_better=False, scale=1e3),
        Metric("rss_bytes", "resident memory", "MiB", more_is_better=False, scale=1 / 1024 / 1024),
    ],
    variants,
    why_not=why_not,
)
