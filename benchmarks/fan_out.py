"""One message to processes on other nodes, until all have replied."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import zmq

from benchmarks import measures, peers, raw
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import ServersAndDriver
from benchmarks.measures import PAYLOAD, percentiles
from benchmarks.registry import Benchmark, Metric, Options, Variant
from benchmarks.ways import fleetlm_ways

LEAST = 40
"""Fan-outs of a run: fewer would have no percentiles."""
FEW_NODES = 4
"""With more nodes, only the two roads are compared: each way has as many processes of its own as nodes."""


def variants(options: Options, nodes: int, each: int) -> list[Variant]:
    """`Node.multicall` of fleetlm; the same over blocking DEALERs; the peers."""
    count = options.size(24_000, 8_000) // (nodes * each)
    config = {"loop": options.loop, "count": max(LEAST, count), "each": each}
    ways = fleetlm_ways(options, ", multicall")
    return [
        *(
            ServersAndDriver(
                way.label,
                floor=False,
                server="fan_out:fleetlm_server",
                driver="fan_out:fleetlm_client",
                config=config | way.config,
                servers=nodes,
            )
            for way in (ways if nodes <= FEW_NODES else ways[:2])
        ),
        ServersAndDriver(
            "pyzmq, blocking",
            floor=True,
            server="calls:blocking_server",
            driver="fan_out:blocking_client",
            config=config,
            servers=nodes,
        ),
        *peers.variants(options, "fan-out", config, nodes),
    ]


def _benchmark(name: str, nodes: int, each: int, most_rounds: int = 1_000) -> Benchmark:
    return Benchmark(
        name,
        f"one 64-byte message to {nodes * each} processes on {nodes} nodes, all replies",
        [
            Metric("p50_s", "all replies, p50", "µs", more_is_better=False, scale=1e6),
            Metric("p99_s", "all replies, p99", "µs", more_is_better=False, scale=1e6),
            Metric("rate", "fan-outs", "per second", more_is_better=True),
        ],
        partial(variants, nodes=nodes, each=each),
        most_rounds=most_rounds,
        share=2 if nodes <= FEW_NODES else 3,  # Dozens of processes have to start.
    )


BENCHMARK = _benchmark("fan-out", 4, 2)
BENCHMARK_64 = _benchmark("fan-out-64", 8, 8)
BENCHMARK_512 = _benchmark("fan-out-512", 8, 64, most_rounds=3)


def fleetlm_server(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node with processes that echo."""
    from benchmarks import fleetlm_node  # noqa: PLC0415  a floor's process must not import fleetlm
    from fleetlm import Process  # noqa: PLC0415

    async def echo(process: Process) -> None:
        async for call in process.mailbox:
            call.reply(call.message)

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            for number in range(config["each"]):
                node.spawn(echo, name=f"echo{number}")
            parent.report(ready=True)
            await parent.wait_until_closed()

    run_loop(main(), config["loop"])


def fleetlm_client(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node that calls all processes."""
    from benchmarks import fleetlm_node  # noqa: PLC0415

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            nodes = await fleetlm_node.peers(node, config)
            targets = [(f"echo{number}", peer) for peer in nodes for number in range(config["each"])]
            parent.report(ready=True)
            while await parent.read_command():
                parent.report(**await measures.fan_outs(lambda: node.multicall(targets, PAYLOAD), config))

    run_loop(main(), config["loop"])


def blocking_client(parent: Parent, config: dict[str, Any]) -> None:
    """Use one DEALER for each server, with as many messages and replies on each as it has processes."""
    context: zmq.Context[Any] = zmq.Context()
    socks = [raw.dealer(context, config["port"], ip) for ip in config["ips"][1:]]
    parent.report(ready=True)
    for _ in parent.read_commands():
        times = []
        for _ in range(config["count"]):
            started = time.perf_counter()
            for sock in socks:
                for _ in range(config["each"]):
                    sock.send(PAYLOAD)
            for sock in socks:
                for _ in range(config["each"]):
                    sock.recv()
            times.append(time.perf_counter() - started)
        parent.report(rate=len(times) / sum(times), **percentiles(times))
    context.destroy(0)
