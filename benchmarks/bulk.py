"""Calls with a large message; the reply is its length."""

from __future__ import annotations

import time
from typing import Any

import zmq

from benchmarks import raw
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import Session
from benchmarks.registry import Benchmark, Metric, Options, Variant

MIB = 1024 * 1024
SIZES_MIB = (1, 16)


def variants(options: Options) -> list[Variant]:
    """Ours; pyzmq without copies, blocking."""
    config = {"loop": options.loop, "total_mib": options.size(512, 128)}
    return [
        Session(
            f"fleetlm ({options.loop})",
            floor=False,
            server="bulk:our_server",
            driver="bulk:our_client",
            config=config,
        ),
        Session(
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


def our_server(parent: Parent, config: dict[str, Any]) -> None:
    """A node with a process that tells lengths."""
    from benchmarks import ours  # noqa: PLC0415  a floor's process must not hold fleetlm
    from fleetlm import Process  # noqa: PLC0415

    async def measure(process: Process) -> None:
        async for call in process.mailbox:
            call.reply(len(call.message))

    async def main() -> None:
        async with ours.start(config) as node:
            node.spawn(measure, name="measure")
            parent.say(ready=True)
            await parent.gone()

    run_loop(main(), config["loop"])


def our_client(parent: Parent, config: dict[str, Any]) -> None:
    """A node that calls."""
    from benchmarks import ours  # noqa: PLC0415

    async def main() -> None:
        async with ours.start(config) as node:
            (peer,) = await ours.peers(node, config)
            parent.say(ready=True)
            while await parent.command():
                rates = {}
                for size in SIZES_MIB:
                    payload = bytes(size * MIB)
                    count = max(1, config["total_mib"] // size)
                    started = time.perf_counter()
                    for _ in range(count):
                        assert await node.call(("measure", peer), payload, timeout=30) == len(payload)
                    took_s = time.perf_counter() - started
                    rates[f"mib_{size}"] = count * len(payload) / took_s
                parent.say(**rates)

    run_loop(main(), config["loop"])


def raw_server(parent: Parent, config: dict[str, Any]) -> None:
    """A ROUTER that tells lengths."""
    sock, _context = raw.router(config["port"], config["ips"][1])
    raw.exit_with(parent)
    while True:
        identity = sock.recv()
        frame = sock.recv(copy=False)
        size = len(frame.buffer)
        del frame
        sock.send_multipart([identity, b"%d" % size])


def raw_client(parent: Parent, config: dict[str, Any]) -> None:
    """A DEALER that lends its buffers."""
    context: zmq.Context[Any] = zmq.Context()
    sock = raw.dealer(context, config["port"], config["ips"][1])
    parent.say(ready=True)
    for _ in parent.commands():
        rates = {}
        for size in SIZES_MIB:
            payload = bytes(size * MIB)
            count = max(1, config["total_mib"] // size)
            started = time.perf_counter()
            for _ in range(count):
                sock.send(payload, copy=False)
                assert int(sock.recv()) == len(payload)
            rates[f"mib_{size}"] = count * len(payload) / (time.perf_counter() - started)
        parent.say(**rates)
    context.destroy(0)
