"""One-way messages of 64 bytes between two processes, until the receiver has counted all of them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import zmq

from benchmarks import peers, raw
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import ServersAndDriver
from benchmarks.registry import Benchmark, Metric, Options, Variant
from benchmarks.ways import fleetlm_ways

PAYLOAD = bytes(64)
END = b"end"


def variants(options: Options) -> list[Variant]:
    """Compare fleetlm with pyzmq, one frame per message, read on the loop in two ways and blocking."""
    config: dict[str, Any] = {"loop": options.loop, "count": options.size(300_000, 100_000)}
    whole = {**config, "whole": True}
    parts = {**config, "whole": False}
    return [
        *(
            ServersAndDriver(
                way.label,
                floor=False,
                server="one_way:fleetlm_receiver",
                driver="one_way:fleetlm_sender",
                config=config | way.config,
            )
            for way in fleetlm_ways(options)
        ),
        ServersAndDriver(
            f"pyzmq, recv_multipart ({options.loop})",
            floor=True,
            server="one_way:loop_receiver",
            driver="one_way:raw_sender",
            config=whole,
        ),
        ServersAndDriver(
            f"pyzmq, recv twice ({options.loop})",
            floor=True,
            server="one_way:loop_receiver",
            driver="one_way:raw_sender",
            config=parts,
        ),
        ServersAndDriver(
            "pyzmq, recv twice, blocking",
            floor=True,
            server="one_way:blocking_receiver",
            driver="one_way:raw_sender",
            config=parts,
        ),
        *peers.variants(options, "one-way", config),
    ]


BENCHMARK = Benchmark(
    "one-way",
    "64-byte messages from one process to another, until received",
    [
        Metric("rate", "messages", "thousand/s", more_is_better=True, scale=1e-3),
        Metric("send_s", "sending thread, per message", "ns CPU", more_is_better=False, scale=1e9),
        Metric("receive_s", "receiving thread, per message", "ns CPU", more_is_better=False, scale=1e9),
    ],
    variants,
)


class Timing:
    """The time of one run, and the CPU time of the sending thread."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._started = time.perf_counter()
        self._clock = time.thread_time()
        self._sending_s = 0.0

    def sent(self) -> None:
        """Note that all messages were handed to the transport."""
        self._sending_s = time.thread_time() - self._clock

    def counted(self, received: int, receiving_s: float) -> dict[str, float]:
        """Return the metrics when all messages have arrived. Raises: RuntimeError if some are missing."""
        took_s = time.perf_counter() - self._started
        if received != self._count:
            raise RuntimeError(f"{received} of {self._count} messages arrived")
        return {
            "rate": self._count / took_s,
            "send_s": self._sending_s / self._count,
            "receive_s": receiving_s / self._count,
        }


class Counter:
    """Counts the messages of a floor and reports to the sender."""

    def __init__(self, sock: raw.Socket) -> None:
        self.count = 0
        self._sock = sock
        self._clock = time.thread_time()

    def report_to(self, sender: bytes) -> None:
        """Send the count and this thread's CPU seconds to the sender, and start anew."""
        receiving_s = time.thread_time() - self._clock
        self._sock.send_multipart([sender, b"%d %f" % (self.count, receiving_s)])
        self.count = 0
        self._clock = time.thread_time()


def fleetlm_receiver(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node with a process that counts."""
    from benchmarks import fleetlm_node  # noqa: PLC0415  a floor's process must not import fleetlm
    from fleetlm import Process  # noqa: PLC0415

    async def counter(process: Process) -> None:
        count, clock = 0, time.thread_time()
        async for message in process.mailbox:
            if message.__class__ is bytes:
                count += 1
            else:
                _, sender = message
                await process.node.send(sender, (count, time.thread_time() - clock))
                count, clock = 0, time.thread_time()

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            node.spawn(counter, name="counter")
            parent.report(ready=True)
            await parent.wait_until_closed()

    run_loop(main(), config["loop"])


def fleetlm_sender(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node that sends, with a process that receives the count."""
    from benchmarks import fleetlm_node  # noqa: PLC0415
    from fleetlm import Process  # noqa: PLC0415

    async def main() -> None:
        counted: asyncio.Queue[tuple[int, float]] = asyncio.Queue()

        async def collect(process: Process) -> None:
            async for message in process.mailbox:
                counted.put_nowait(message)

        async with fleetlm_node.start(config) as node:
            me = node.spawn(collect)
            (peer,) = await fleetlm_node.peers(node, config)
            to, count, send = ("counter", peer), config["count"], node.send
            parent.report(ready=True)
            while await parent.read_command():
                run = Timing(count)
                for _ in range(count):
                    await send(to, PAYLOAD)
                run.sent()
                await send(to, ("end", me))
                parent.report(**run.counted(*await counted.get()))

    run_loop(main(), config["loop"])


def raw_sender(parent: Parent, config: dict[str, Any]) -> None:
    """Send each message as one frame from a blocking DEALER."""
    context: zmq.Context[Any] = zmq.Context()
    sock = raw.dealer(context, config["port"], config["ips"][1])
    count, send = config["count"], sock.send
    parent.report(ready=True)
    for _ in parent.read_commands():
        run = Timing(count)
        for _ in range(count):
            send(PAYLOAD)
        run.sent()
        send(END)
        received, receiving_s = sock.recv().split()
        parent.report(**run.counted(int(received), float(receiving_s)))
    context.destroy(0)


def loop_receiver(parent: Parent, config: dict[str, Any]) -> None:
    """Read a ROUTER through its descriptor on the event loop."""

    async def main() -> None:
        sock, context = raw.router(config["port"], config["ips"][1])
        receive, counter = sock.recv, Counter(sock)
        receive_whole = sock.recv_multipart

        def drain() -> None:
            while True:
                identity = receive(raw.NOBLOCK)
                if receive(raw.NOBLOCK) != END:
                    counter.count += 1
                else:
                    counter.report_to(identity)

        def drain_whole() -> None:
            while True:
                identity, message = receive_whole(raw.NOBLOCK)
                if message != END:
                    counter.count += 1
                else:
                    counter.report_to(identity)

        reader = raw.FdReader(sock, drain_whole if config["whole"] else drain)
        parent.report(ready=True)
        await parent.wait_until_closed()
        reader.close()
        context.destroy(0)

    run_loop(main(), config["loop"])


def blocking_receiver(parent: Parent, config: dict[str, Any]) -> None:
    """Read a ROUTER with blocking receives."""
    sock, _context = raw.router(config["port"], config["ips"][1])
    receive, counter = sock.recv, Counter(sock)
    raw.exit_with_parent(parent)
    while True:
        identity = receive()
        if receive() != END:
            counter.count += 1
        else:
            counter.report_to(identity)
