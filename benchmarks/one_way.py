"""One-way messages of 64 bytes between two processes, until a receiver has counted them all."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import zmq

from benchmarks import raw
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import Session
from benchmarks.registry import Benchmark, Metric, Options, Variant

PAYLOAD = bytes(64)
END = b"end"


def variants(options: Options) -> list[Variant]:
    """Ours; a frame for each message, read on the same loop in two ways, and by a blocking reader."""
    config: dict[str, Any] = {"loop": options.loop, "count": options.size(300_000, 100_000)}
    whole = {**config, "whole": True}
    parts = {**config, "whole": False}
    return [
        Session(
            f"fleetlm ({options.loop})",
            floor=False,
            server="one_way:our_receiver",
            driver="one_way:our_sender",
            config=config,
        ),
        Session(
            f"pyzmq, recv_multipart ({options.loop})",
            floor=True,
            server="one_way:loop_receiver",
            driver="one_way:raw_sender",
            config=whole,
        ),
        Session(
            f"pyzmq, recv twice ({options.loop})",
            floor=True,
            server="one_way:loop_receiver",
            driver="one_way:raw_sender",
            config=parts,
        ),
        Session(
            "pyzmq, recv twice, blocking",
            floor=True,
            server="one_way:blocking_receiver",
            driver="one_way:raw_sender",
            config=parts,
        ),
    ]


BENCHMARK = Benchmark(
    "one-way",
    "64-byte messages from one process to another, until received",
    [
        Metric("rate", "messages", "thousand/s", more_is_better=True, scale=1e-3),
        Metric("send_s", "sending thread, a message", "ns CPU", more_is_better=False, scale=1e9),
        Metric("receive_s", "receiving thread, a message", "ns CPU", more_is_better=False, scale=1e9),
    ],
    variants,
)


class Run:
    """What one run took, and what of it the sending thread worked."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._started = time.perf_counter()
        self._clock = time.thread_time()
        self._sending_s = 0.0

    def sent(self) -> None:
        """All are handed over."""
        self._sending_s = time.thread_time() - self._clock

    def counted(self, received: int, receiving_s: float) -> dict[str, float]:
        """All have arrived."""
        took_s = time.perf_counter() - self._started
        if received != self._count:
            raise RuntimeError(f"{received} of {self._count} messages arrived")
        return {
            "rate": self._count / took_s,
            "send_s": self._sending_s / self._count,
            "receive_s": receiving_s / self._count,
        }


class Counter:
    """Counts for a floor, and tells the sender."""

    def __init__(self, sock: raw.Socket) -> None:
        self.count = 0
        self._sock = sock
        self._clock = time.thread_time()

    def tell(self, sender: bytes) -> None:
        """How many, and the seconds that this thread has worked for them."""
        receiving_s = time.thread_time() - self._clock
        self._sock.send_multipart([sender, b"%d %f" % (self.count, receiving_s)])
        self.count = 0
        self._clock = time.thread_time()


def our_receiver(parent: Parent, config: dict[str, Any]) -> None:
    """A node with a process that counts."""
    from benchmarks import ours  # noqa: PLC0415  a floor's process must not hold fleetlm
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
        async with ours.start(config) as node:
            node.spawn(counter, name="counter")
            parent.say(ready=True)
            await parent.gone()

    run_loop(main(), config["loop"])


def our_sender(parent: Parent, config: dict[str, Any]) -> None:
    """A node with a process that hears the count."""
    from benchmarks import ours  # noqa: PLC0415
    from fleetlm import Process  # noqa: PLC0415

    async def main() -> None:
        counted: asyncio.Queue[tuple[int, float]] = asyncio.Queue()

        async def hear(process: Process) -> None:
            async for message in process.mailbox:
                counted.put_nowait(message)

        async with ours.start(config) as node:
            me = node.spawn(hear)
            (peer,) = await ours.peers(node, config)
            to, count, send = ("counter", peer), config["count"], node.send
            parent.say(ready=True)
            while await parent.command():
                run = Run(count)
                for _ in range(count):
                    await send(to, PAYLOAD)
                run.sent()
                await send(to, ("end", me))
                parent.say(**run.counted(*await counted.get()))

    run_loop(main(), config["loop"])


def raw_sender(parent: Parent, config: dict[str, Any]) -> None:
    """A DEALER that sends each message as a frame, without a loop."""
    context: zmq.Context[Any] = zmq.Context()
    sock = raw.dealer(context, config["port"], config["ips"][1])
    count, send = config["count"], sock.send
    parent.say(ready=True)
    for _ in parent.commands():
        run = Run(count)
        for _ in range(count):
            send(PAYLOAD)
        run.sent()
        send(END)
        received, receiving_s = sock.recv().split()
        parent.say(**run.counted(int(received), float(receiving_s)))
    context.destroy(0)


def loop_receiver(parent: Parent, config: dict[str, Any]) -> None:
    """A ROUTER read by its descriptor on the event loop."""

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
                    counter.tell(identity)

        def drain_whole() -> None:
            while True:
                identity, message = receive_whole(raw.NOBLOCK)
                if message != END:
                    counter.count += 1
                else:
                    counter.tell(identity)

        reader = raw.FdReader(sock, drain_whole if config["whole"] else drain)
        parent.say(ready=True)
        await parent.gone()
        reader.close()
        context.destroy(0)

    run_loop(main(), config["loop"])


def blocking_receiver(parent: Parent, config: dict[str, Any]) -> None:
    """A ROUTER read in a loop of blocking receives."""
    sock, _context = raw.router(config["port"], config["ips"][1])
    receive, counter = sock.recv, Counter(sock)
    raw.exit_with(parent)
    while True:
        identity = receive()
        if receive() != END:
            counter.count += 1
        else:
            counter.tell(identity)
