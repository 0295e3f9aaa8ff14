"""Calls with a reply: one at a time, and many outstanding."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import zmq

from benchmarks import measures, peers, raw
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import ServersAndDriver
from benchmarks.measures import OUTSTANDING as OUTSTANDINGS, PAYLOAD, percentiles, rate_key
from benchmarks.registry import Benchmark, Metric, Options, Variant
from benchmarks.ways import fleetlm_ways

OUTSTANDING = 100
"""Calls without a reply yet at a time, for the floors."""


def variants(options: Options) -> list[Variant]:
    """Compare fleetlm with an echo that reads its socket on the loop, a blocking one, and the peers."""
    config = {
        "loop": options.loop,
        "sequential": options.size(3_000, 1_000),
        "outstanding": options.size(50_000, 20_000),
        "at_once": OUTSTANDINGS,
    }
    floors = ((f"pyzmq, FD reader ({options.loop})", "loop"), ("pyzmq, blocking", "blocking"))
    return [
        *(
            ServersAndDriver(
                way.label,
                floor=False,
                server="calls:fleetlm_server",
                driver="calls:fleetlm_client",
                config=config | way.config,
            )
            for way in fleetlm_ways(options)
        ),
        *(
            ServersAndDriver(
                label, floor=True, server=f"calls:{kind}_server", driver=f"calls:{kind}_client", config=config
            )
            for label, kind in floors
        ),
        *peers.variants(options, "calls", config),
    ]


BENCHMARK = Benchmark(
    "calls",
    "64-byte calls with 64-byte replies: one at a time, and with 10, 100 and 1,000 outstanding",
    [
        Metric("p50_s", "round trip p50", "µs", more_is_better=False, scale=1e6),
        Metric("p99_s", "round trip p99", "µs", more_is_better=False, scale=1e6),
        *(
            Metric(rate_key(count), f"{count:,} outstanding", "thousand/s", more_is_better=True, scale=1e-3)
            for count in OUTSTANDINGS
        ),
    ],
    variants,
)


def fleetlm_server(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node with a process that echoes."""
    from benchmarks import fleetlm_node  # noqa: PLC0415  a floor's process must not import fleetlm
    from fleetlm import Process  # noqa: PLC0415

    async def echo(process: Process) -> None:
        async for call in process.mailbox:
            call.reply(call.message)

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            node.spawn(echo, name="echo")
            parent.report(ready=True)
            await parent.wait_until_closed()

    run_loop(main(), config["loop"])


def fleetlm_client(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node that calls."""
    from benchmarks import fleetlm_node  # noqa: PLC0415

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            (peer,) = await fleetlm_node.peers(node, config)
            to, call = ("echo", peer), node.call
            parent.report(ready=True)
            while await parent.read_command():
                parent.report(**await measures.calls(lambda: call(to, PAYLOAD), config))

    run_loop(main(), config["loop"])


def loop_server(parent: Parent, config: dict[str, Any]) -> None:
    """Run a ROUTER on the loop that echoes."""

    async def main() -> None:
        sock, context = raw.router(config["port"], config["ips"][1])
        recv, send = sock.recv, sock.send
        more = int(zmq.SNDMORE)

        def drain() -> None:
            while True:
                identity = recv(raw.NOBLOCK)
                payload = recv(raw.NOBLOCK)
                send(identity, more)
                send(payload)

        reader = raw.FdReader(sock, drain)
        parent.report(ready=True)
        await parent.wait_until_closed()
        reader.close()
        context.destroy(0)

    run_loop(main(), config["loop"])


class LoopClient:
    """A DEALER on the loop: one call with a future, or many calls without futures."""

    def __init__(self, sock: raw.Socket) -> None:
        self._sock = sock
        self._answer: asyncio.Future[bytes] | None = None
        self._to_send = self._to_receive = 0
        self._done = asyncio.Event()
        self.reader = raw.FdReader(sock, self._drain)

    async def call(self, payload: bytes) -> bytes:
        """Send one call and wait for its reply."""
        self._answer = asyncio.get_running_loop().create_future()
        self._sock.send(payload)
        self.reader.check()
        return await self._answer

    async def many(self, count: int) -> None:
        """Keep `OUTSTANDING` calls outstanding until ``count`` replies have come."""
        self._answer = None
        self._to_receive = count
        self._to_send = count - OUTSTANDING
        self._done.clear()
        for _ in range(OUTSTANDING):
            self._sock.send(PAYLOAD)
        self.reader.check()
        await self._done.wait()

    def _drain(self) -> None:
        recv, send = self._sock.recv, self._sock.send
        while True:
            payload = recv(raw.NOBLOCK)
            if self._answer is not None:
                self._answer.set_result(payload)
                continue
            self._to_receive -= 1
            if self._to_send > 0:
                self._to_send -= 1
                send(PAYLOAD)
            elif self._to_receive == 0:
                self._done.set()


def loop_client(parent: Parent, config: dict[str, Any]) -> None:
    """Run calls over `LoopClient`."""

    async def main() -> None:
        context: zmq.Context[Any] = zmq.Context()
        client = LoopClient(raw.dealer(context, config["port"], config["ips"][1]))
        await client.call(PAYLOAD)
        parent.report(ready=True)
        while await parent.read_command():
            times = []
            for _ in range(config["sequential"]):
                started = time.perf_counter()
                await client.call(PAYLOAD)
                times.append(time.perf_counter() - started)
            started = time.perf_counter()
            await client.many(config["outstanding"])
            rate = config["outstanding"] / (time.perf_counter() - started)
            parent.report(**{rate_key(OUTSTANDING): rate}, **percentiles(times))
        client.reader.close()
        context.destroy(0)

    run_loop(main(), config["loop"])


def blocking_server(parent: Parent, config: dict[str, Any]) -> None:
    """Run a ROUTER with blocking receives that echoes."""
    sock, _context = raw.router(config["port"], config["ips"][config["index"]])
    recv, send = sock.recv, sock.send
    more = int(zmq.SNDMORE)
    raw.exit_with_parent(parent)
    while True:
        identity = recv()
        payload = recv()
        send(identity, more)
        send(payload)


def blocking_client(parent: Parent, config: dict[str, Any]) -> None:
    """Run calls over a blocking DEALER."""
    context: zmq.Context[Any] = zmq.Context()
    sock = raw.dealer(context, config["port"], config["ips"][1])
    send, recv = sock.send, sock.recv
    parent.report(ready=True)
    for _ in parent.read_commands():
        times = []
        for _ in range(config["sequential"]):
            started = time.perf_counter()
            send(PAYLOAD)
            recv()
            times.append(time.perf_counter() - started)
        count = config["outstanding"]
        started = time.perf_counter()
        for _ in range(OUTSTANDING):
            send(PAYLOAD)
        for _ in range(count - OUTSTANDING):
            recv()
            send(PAYLOAD)
        for _ in range(OUTSTANDING):
            recv()
        rate = count / (time.perf_counter() - started)
        parent.report(**{rate_key(OUTSTANDING): rate}, **percentiles(times))
    context.destroy(0)
