"""Calls with a large message; the reply is its length."""

from __future__ import annotations

import os
import time
from typing import Any

import zmq

from benchmarks import measures, peers, raw
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import ServersAndDriver
from benchmarks.measures import MIB, SIZES
from benchmarks.registry import Benchmark, Metric, Options, Variant
from benchmarks.ways import fleetlm_ways

SMALL_SIZES = ("kib_64", "mib_1", "mib_16")


def variants(options: Options) -> list[Variant]:
    """Compare fleetlm with blocking pyzmq that does not copy, and with the peers."""
    config = {
        "loop": options.loop,
        "total_mib": options.size(512, 128),
        "sizes": SMALL_SIZES if options.quick else tuple(SIZES),
        "settings": {"max_message_bytes": 2 * max(SIZES.values())},
    }
    floor = ServersAndDriver(
        "pyzmq, copy=False, blocking",
        floor=True,
        server="bulk:raw_server",
        driver="bulk:raw_client",
        config=config,
    )
    return [
        *(
            ServersAndDriver(
                way.label,
                floor=False,
                server="bulk:fleetlm_server",
                driver="bulk:fleetlm_client",
                config=config
                | way.config
                | {"settings": config["settings"] | way.config.get("settings", {})},
            )
            for way in fleetlm_ways(options)
        ),
        floor,
        *peers.variants(options, "bulk", config),
    ]


BENCHMARK = Benchmark(
    "bulk",
    "calls with a large message, one at a time",
    [
        Metric(
            key,
            f"{size // 1024:,} KiB" if size < MIB else f"{size // MIB} MiB",
            "MB/s",
            more_is_better=True,
            scale=1e-6,
        )
        for key, size in SIZES.items()
    ],
    variants,
)


def fleetlm_server(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node with a process that replies with the length."""
    from benchmarks import fleetlm_node  # noqa: PLC0415  a floor's process must not import fleetlm
    from fleetlm import Process  # noqa: PLC0415

    async def measure(process: Process) -> None:
        async for call in process.mailbox:
            call.reply(len(call.message))

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            node.spawn(measure, name="measure")
            parent.report(ready=True)
            await parent.wait_until_closed()

    run_loop(main(), config["loop"])


def fleetlm_client(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node that calls."""
    from benchmarks import fleetlm_node  # noqa: PLC0415

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            (peer,) = await fleetlm_node.peers(node, config)
            parent.report(ready=True)
            while await parent.read_command():
                rates = await measures.bulk(
                    lambda payload: node.call(("measure", peer), payload, timeout=60), config
                )
                parent.report(**rates)

    run_loop(main(), config["loop"])


def raw_server(parent: Parent, config: dict[str, Any]) -> None:
    """Run a ROUTER that replies with the length."""
    sock, _context = raw.router(config["port"], config["ips"][1])
    raw.exit_with_parent(parent)
    while True:
        identity = sock.recv()
        frame = sock.recv(copy=False)
        size = len(frame.buffer)
        del frame
        sock.send_multipart([identity, b"%d" % size])


def raw_client(parent: Parent, config: dict[str, Any]) -> None:
    """Run a DEALER that sends without copying."""
    context: zmq.Context[Any] = zmq.Context()
    sock = raw.dealer(context, config["port"], config["ips"][1])
    parent.report(ready=True)
    for _ in parent.read_commands():
        rates = {}
        for key in config["sizes"]:
            payload = os.urandom(SIZES[key])
            count = max(1, min(1_000, config["total_mib"] * MIB // len(payload)))
            started = time.perf_counter()
            for _ in range(count):
                sock.send(payload, copy=False)
                assert int(sock.recv()) == len(payload)
            rates[key] = count * len(payload) / (time.perf_counter() - started)
        parent.report(**rates)
    context.destroy(0)
