"""Calls with a large message; the reply is its length."""

from __future__ import annotations

import time
from typing import Any

import zmq

from benchmarks import raw
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import ServersAndDriver
from benchmarks.registry import Benchmark, Metric, Options, Variant

MIB = 1024 * 1024
SIZES_MIB = (1, 16)


def variants(options: Options) -> list[Variant]:
    """Compare fleetlm with blocking pyzmq that does not copy."""
    config = {"loop": options.loop, "total_mib": options.size(512, 128)}
    return [
        ServersAndDriver(
            f"fleetlm ({options.loop})",
            floor=False,
            server="bulk:fleetlm_server",
            driver="bulk:fleetlm_client",
            config=config,
        ),
        ServersAndDriver(
            "pyzmq, copy=False, blocking",
            floor=True,
            server="bulk:raw_server",
            driver="bulk:raw_client",
            config=config,
        ),
    ]


BENCHMARK = Benchmark(
    "bulk",
    "calls with a large message, one at a time",
    [Metric(f"mib_{size}", f"{size} MiB", "MB/s", more_is_better=True, scale=1e-6) for size in SIZES_MIB],
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
                rates = {}
                for size in SIZES_MIB:
                    payload = bytes(size * MIB)
                    count = max(1, config["total_mib"] // size)
                    started = time.perf_counter()
                    for _ in range(count):
                        assert await node.call(("measure", peer), payload, timeout=30) == len(payload)
                    took_s = time.perf_counter() - started
                    rates[f"mib_{size}"] = count * len(payload) / took_s
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
        for size in SIZES_MIB:
            payload = bytes(size * MIB)
            count = max(1, config["total_mib"] // size)
            started = time.perf_counter()
            for _ in range(count):
                sock.send(payload, copy=False)
                assert int(sock.recv()) == len(payload)
            rates[f"mib_{size}"] = count * len(payload) / (time.perf_counter() - started)
        parent.report(**rates)
    context.destroy(0)
