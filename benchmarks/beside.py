"""Small calls while large messages travel on the same connection."""

from __future__ import annotations

from typing import Any

from benchmarks import fleetlm_node, measures, peers
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import ServersAndDriver
from benchmarks.registry import Benchmark, Metric, Options, Variant
from benchmarks.ways import fleetlm_ways


def variants(options: Options) -> list[Variant]:
    """Beside calls of 16 MiB, and alone; the peers beside calls of 16 MiB."""
    config = {"loop": options.loop, "seconds": options.size(4, 2)}
    return [
        *(
            ServersAndDriver(
                way.label,
                floor=False,
                server="bulk:fleetlm_server",
                driver="beside:client",
                config=config | way.config | {"large": True},
            )
            for way in fleetlm_ways(options)
        ),
        ServersAndDriver(
            f"the same calls alone ({options.loop})",
            floor=True,
            server="bulk:fleetlm_server",
            driver="beside:client",
            config=config | {"large": False},
        ),
        *peers.variants(options, "beside", config | {"large": True}),
    ]


BENCHMARK = Benchmark(
    "beside",
    "64-byte calls beside calls of 16 MiB on the same connection",
    [
        Metric("p50_s", "small call p50", "ms", more_is_better=False, scale=1e3),
        Metric("p99_s", "small call p99", "ms", more_is_better=False, scale=1e3),
        Metric("large", "large calls", "MB/s", more_is_better=True, scale=1e-6),
    ],
    variants,
)


def client(parent: Parent, config: dict[str, Any]) -> None:
    """Make both kinds of calls for some seconds."""

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            (peer,) = await fleetlm_node.peers(node, config)
            to = ("measure", peer)
            parent.report(ready=True)
            while await parent.read_command():
                parent.report(
                    **await measures.beside(lambda payload: node.call(to, payload, timeout=60), config)
                )

    run_loop(main(), config["loop"])
