"""One message to eight processes on four other nodes, until all have replied."""

from __future__ import annotations

import time
from typing import Any

import zmq

from benchmarks import raw
from benchmarks.calls import percentiles
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import ServersAndDriver
from benchmarks.registry import Benchmark, Metric, Options, Variant

PAYLOAD = bytes(64)
NODES = 4
NAMES = ("left", "right")
"""Names of the processes on each node."""


def variants(options: Options) -> list[Variant]:
    """`Node.multicall` of fleetlm; the same over four blocking DEALERs."""
    config = {"loop": options.loop, "count": options.size(3_000, 1_000)}
    return [
        ServersAndDriver(
            f"fleetlm, multicall ({options.loop})",
            floor=False,
            server="fan_out:fleetlm_server",
            driver="fan_out:fleetlm_client",
            config=config,
            servers=NODES,
        ),
        ServersAndDriver(
            "pyzmq, blocking",
            floor=True,
            server="calls:blocking_server",
            driver="fan_out:blocking_client",
            config=config,
            servers=NODES,
        ),
    ]


BENCHMARK = Benchmark(
    "fan-out",
    f"one 64-byte message to {NODES * len(NAMES)} processes on {NODES} nodes, all replies",
    [
        Metric("p50_s", "all replies, p50", "µs", more_is_better=False, scale=1e6),
        Metric("p99_s", "all replies, p99", "µs", more_is_better=False, scale=1e6),
        Metric("rate", "fan-outs", "per second", more_is_better=True),
    ],
    variants,
)


def fleetlm_server(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node with two processes that echo."""
    from benchmarks import fleetlm_node  # noqa: PLC0415  a floor's process must not import fleetlm
    from fleetlm import Process  # noqa: PLC0415

    async def echo(process: Process) -> None:
        async for call in process.mailbox:
            call.reply(call.message)

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            for name in NAMES:
                node.spawn(echo, name=name)
            parent.report(ready=True)
            await parent.wait_until_closed()

    run_loop(main(), config["loop"])


def fleetlm_client(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node that calls all processes."""
    from benchmarks import fleetlm_node  # noqa: PLC0415

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            targets = [(name, peer) for peer in await fleetlm_node.peers(node, config) for name in NAMES]
            parent.report(ready=True)
            while await parent.read_command():
                times = []
                for _ in range(config["count"]):
                    started = time.perf_counter()
                    replies = await node.multicall(targets, PAYLOAD)
                    times.append(time.perf_counter() - started)
                    assert replies == [PAYLOAD] * len(targets)
                parent.report(rate=len(times) / sum(times), **percentiles(times))

    run_loop(main(), config["loop"])


def blocking_client(parent: Parent, config: dict[str, Any]) -> None:
    """Use one DEALER for each server, with two messages and two replies on each."""
    context: zmq.Context[Any] = zmq.Context()
    socks = [raw.dealer(context, config["port"], ip) for ip in config["ips"][1:]]
    parent.report(ready=True)
    for _ in parent.read_commands():
        times = []
        for _ in range(config["count"]):
            started = time.perf_counter()
            for sock in socks:
                for _ in NAMES:
                    sock.send(PAYLOAD)
            for sock in socks:
                for _ in NAMES:
                    sock.recv()
            times.append(time.perf_counter() - started)
        parent.report(rate=len(times) / sum(times), **percentiles(times))
    context.destroy(0)
