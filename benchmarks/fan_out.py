"""One message to eight processes on four other nodes, and all their replies."""

from __future__ import annotations

import time
from typing import Any

import zmq

from benchmarks import raw
from benchmarks.calls import percentiles
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import Session
from benchmarks.registry import Benchmark, Metric, Options, Variant

PAYLOAD = bytes(64)
NODES = 4
EACH = ("left", "right")
"""The processes of each node."""


def variants(options: Options) -> list[Variant]:
    """Ours with multicall; the same over four DEALERs without a loop."""
    config = {"loop": options.loop, "count": options.size(3_000, 1_000)}
    return [
        Session(
            f"fleetlm, multicall ({options.loop})",
            floor=False,
            server="fan_out:our_server",
            driver="fan_out:our_client",
            config=config,
            servers=NODES,
        ),
        Session(
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
    f"one 64-byte message to {NODES * len(EACH)} processes on {NODES} nodes, all replies",
    [
        Metric("p50_s", "all replies, p50", "µs", more_is_better=False, scale=1e6),
        Metric("p99_s", "all replies, p99", "µs", more_is_better=False, scale=1e6),
        Metric("rate", "fan-outs", "per second", more_is_better=True),
    ],
    variants,
)


def our_server(parent: Parent, config: dict[str, Any]) -> None:
    """A node with two processes that echo."""
    from benchmarks import ours  # noqa: PLC0415  a floor's process must not hold fleetlm
    from fleetlm import Process  # noqa: PLC0415

    async def echo(process: Process) -> None:
        async for call in process.mailbox:
            call.reply(call.message)

    async def main() -> None:
        async with ours.start(config) as node:
            for name in EACH:
                node.spawn(echo, name=name)
            parent.say(ready=True)
            await parent.gone()

    run_loop(main(), config["loop"])


def our_client(parent: Parent, config: dict[str, Any]) -> None:
    """A node that asks all."""
    from benchmarks import ours  # noqa: PLC0415

    async def main() -> None:
        async with ours.start(config) as node:
            targets = [(name, peer) for peer in await ours.peers(node, config) for name in EACH]
            parent.say(ready=True)
            while await parent.command():
                times = []
                for _ in range(config["count"]):
                    started = time.perf_counter()
                    replies = await node.multicall(targets, PAYLOAD)
                    times.append(time.perf_counter() - started)
                    assert replies == [PAYLOAD] * len(targets)
                parent.say(rate=len(times) / sum(times), **percentiles(times))

    run_loop(main(), config["loop"])


def blocking_client(parent: Parent, config: dict[str, Any]) -> None:
    """A DEALER for each server; two messages and two replies on each."""
    context: zmq.Context[Any] = zmq.Context()
    socks = [raw.dealer(context, config["port"], ip) for ip in config["ips"][1:]]
    parent.say(ready=True)
    for _ in parent.commands():
        times = []
        for _ in range(config["count"]):
            started = time.perf_counter()
            for sock in socks:
                for _ in EACH:
                    sock.send(PAYLOAD)
            for sock in socks:
                for _ in EACH:
                    sock.recv()
            times.append(time.perf_counter() - started)
        parent.say(rate=len(times) / sum(times), **percentiles(times))
    context.destroy(0)
