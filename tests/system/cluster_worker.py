"""A program with one or several nodes that takes commands and reports as JSON lines.

It imports everything, reports ``{"kind": "waiting"}`` and starts its nodes on command, so that a test can
have one ready to replace a killed one within milliseconds. Each node runs

* ``echo``, which replies to a call with its message;
* ``sink``, which checks that numbered messages arrive in order and without a gap;
* ``slow``, which never replies.

Times are `time.monotonic`, which is the same in all processes of a machine.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import fleetlm
import fleetlm.discovery.dns
import fleetlm.transport.zeromq  # both imported here, since a node imports them only when it starts
from fleetlm import Call, FleetError, Node, NodeUp, Process, Settings
from fleetlm.messages import NodeDown
from fleetlm.wire.codec import Codec

MAX_ODDITIES = 20


def report(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def resident_kib(field: str = "VmRSS") -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))


class Sink:
    """Receives numbered messages ``[stream, number, meant_for, padding]``, and notes what is wrong."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.next: dict[str, int] = {}
        self.oddities: list[str] = []
        self.sizes: list[int] = []

    async def run(self, process: Process) -> None:
        async for message in process.mailbox:
            stream, number, meant_for, padding = message
            expected = self.next.get(stream, 0)
            if number != expected and len(self.oddities) < MAX_ODDITIES:
                self.oddities.append(f"{stream}: {number} in the place of {expected}")
            if meant_for not in (None, self.incarnation) and len(self.oddities) < MAX_ODDITIES:
                self.oddities.append(f"{stream}: {number} was meant for {meant_for:x}")
            self.next[stream] = number + 1
            if len(self.sizes) < 1_000:
                self.sizes.append(len(padding))


async def echo(process: Process) -> None:
    async for message in process.mailbox:
        if isinstance(message, Call):
            message.reply(message.message)


async def slow(process: Process) -> None:
    async for _ in process.mailbox:
        pass


class Flood:
    """Sends numbered messages to the sink of another node as fast as that node takes them."""

    def __init__(self, node: Node, to: str, stream: str, size: int) -> None:
        self.node, self.to, self.stream, self.size = node, to, stream, size
        self.sent = 0
        self.longest_wait_s = 0.0
        self.error: FleetError | None = None
        self._stopping = False
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop sending. A send that has begun is finished, so that the count is right."""
        self._stopping = True
        await self._task

    async def _run(self) -> None:
        padding = b"x" * self.size
        try:
            while not self._stopping:
                began = time.monotonic()
                await self.node.send(("sink", self.to), [self.stream, self.sent, None, padding])
                self.sent += 1
                self.longest_wait_s = max(self.longest_wait_s, time.monotonic() - began)
        except FleetError as error:
            self.error = error


class Host:
    """The commands: each method is one; its arguments are those of the JSON object."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.sinks: dict[str, Sink] = {}
        self.floods: dict[str, Flood] = {}
        self.ended = asyncio.Event()
        self._watchers: list[asyncio.Task[None]] = []

    @property
    def node(self) -> Node:
        return next(iter(self.nodes.values()))

    async def start(self, ips: list[str]) -> dict[str, Any]:
        """Start one node for each address. Returns their incarnations, and the time when all listened."""
        for ip in ips:
            settings = Settings.from_env({**os.environ, "FLEETLM_NODE_IP": ip})
            node = await Node.start(settings)
            self.nodes[node.name] = node
            sink = self.sinks[node.name] = Sink(node.incarnation)
            node.spawn(echo, name="echo")
            node.spawn(slow, name="slow")
            node.spawn(sink.run, name="sink")
            self._watchers.append(asyncio.create_task(self._watch(node)))
        at = time.monotonic()
        return {"at": at, "nodes": {node.name: node.incarnation for node in self.nodes.values()}}

    async def _watch(self, node: Node) -> None:
        async for event in node.events():
            if not isinstance(event, NodeUp | NodeDown):
                continue
            up = isinstance(event, NodeUp)
            report(
                kind="up" if up else "down",
                on=node.name,
                node=event.node,
                incarnation=event.incarnation,
                reason="" if isinstance(event, NodeUp) else event.reason,
                at=time.monotonic(),
            )

    async def meshed(self, others: int, timeout: float) -> float:
        """Wait until every node here is connected with ``others`` nodes. Returns that time."""
        await asyncio.gather(*(node.ready(others, timeout) for node in self.nodes.values()))
        return time.monotonic()

    async def list(self, selectors: list[str] | None = None) -> dict[str, list[str]]:
        return {node.name: node.list(*selectors or ()) for node in self.nodes.values()}

    async def peer(self, name: str) -> dict[str, Any] | None:
        row = self.node.info(name)
        if not isinstance(row, fleetlm.PeerInfo):
            return None
        return {"status": row.status, "last_error": row.last_error, "connections": row.connections}

    async def call(self, to: str, name: str, message: Any, timeout: float = 5.0) -> dict[str, Any]:
        began = time.monotonic()
        try:
            reply = await self.node.call((name, to), message, timeout)
        except FleetError as error:
            return {"error": type(error).__name__, "text": str(error), "s": time.monotonic() - began}
        return {"reply": reply, "s": time.monotonic() - began}

    async def round_trips(self, to: str, count: int, pause: float = 0.0) -> list[float]:  # type: ignore[valid-type]
        """Make ``count`` small calls. Returns the seconds of each."""
        taken = []
        for number in range(count):
            began = time.perf_counter()
            await self.node.call(("echo", to), number, 30.0)
            taken.append(time.perf_counter() - began)
            if pause:
                await asyncio.sleep(pause)
        return taken

    async def bulk(self, to: str, size: int, count: int, stream: str) -> float:
        """Send a large message and then a small one, ``count`` times. Returns the seconds taken."""
        padding = bytes(size)
        began = time.perf_counter()
        for number in range(count):
            await self.node.send(("sink", to), [stream, 2 * number, None, padding])
            await self.node.send(("sink", to), [stream, 2 * number + 1, None, b""])
        await self.node.call(("echo", to), "done", 60.0)
        return time.perf_counter() - began

    async def copying(self, size: int) -> float:
        """Measure packing and unpacking a message of that size. Returns the worst of three, in seconds."""
        codec, padding = Codec(), bytes(size)
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            codec.unpack(codec.pack_whole(["sink", padding], padding))
            taken.append(time.perf_counter() - began)
        return max(taken)

    async def flood(self, to: str, stream: str, size: int) -> None:
        self.floods[stream] = Flood(self.node, to, stream, size)

    async def flooded(self, stream: str, stop: bool = True) -> dict[str, Any]:
        flood = self.floods[stream]
        if stop:
            await flood.stop()
        error = type(flood.error).__name__ if flood.error else None
        return {"sent": flood.sent, "longest_wait_s": flood.longest_wait_s, "error": error}

    async def sunk(self, on: str | None = None) -> dict[str, Any]:
        sink = self.sinks[on or self.node.name]
        return {"next": sink.next, "oddities": sink.oddities, "sizes": sink.sizes}

    async def hold_gil(self, seconds: float) -> dict[str, float]:
        """Hold the GIL, so that no Python code runs in this process on any thread."""
        report(kind="holding", at=time.monotonic())
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))
        return {"ended": time.monotonic()}

    async def reconnect(self, count: int) -> dict[str, int]:
        """Disconnect and connect the first two nodes of this process, ``count`` times."""
        a, b = list(self.nodes.values())[:2]
        for _ in range(count):
            if not a.disconnect(b.name):
                raise AssertionError("it was not connected")
            while a.name in b._driver.sessions:
                await asyncio.sleep(0)
            if not await a.connect(b.name, 10.0):
                raise AssertionError(f"not connected again: {a.info(b.name)}")
        gc.collect()
        return {"files": open_files(), "resident_kib": resident_kib()}

    async def reconnected_by(self, name: str) -> bool:
        """Disconnect one peer and connect it again."""
        return self.node.disconnect(name) and await self.node.connect(name, 10.0)

    async def footprint(self) -> dict[str, int]:
        return {"files": open_files(), "resident_kib": resident_kib(), "peak_kib": resident_kib("VmHWM")}

    async def dns(self, host: str, name: str, addresses: list[str]) -> str:  # type: ignore[valid-type]
        """Serve this DNS name until the program ends. Returns the server's address."""
        from fleetlm.testing.dns_server import DnsServer

        server = DnsServer(host)
        await server.__aenter__()
        server.set(name, addresses)
        return server.address

    async def stop(self) -> float:
        began = time.monotonic()
        for node in self.nodes.values():
            await node.stop()
        self.ended.set()
        return time.monotonic() - began


async def serve() -> None:
    host = Host()
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    report(kind="waiting", pid=os.getpid())
    answering: set[asyncio.Task[None]] = set()
    ended = asyncio.create_task(host.ended.wait())
    while True:
        reading = asyncio.create_task(stdin.readline())
        await asyncio.wait({reading, ended}, return_when=asyncio.FIRST_COMPLETED)
        line = reading.result() if reading.done() else b""
        if not line:
            reading.cancel()
            break
        task = asyncio.create_task(answer(host, json.loads(line)))
        answering.add(task)
        task.add_done_callback(answering.discard)
    if answering:
        await asyncio.wait(answering, timeout=1.0)
    os._exit(0)  # the test has ended, or needs nothing more


async def answer(host: Host, request: dict[str, Any]) -> None:
    command: Callable[..., Coroutine[Any, Any, Any]] = getattr(host, request["do"])
    try:
        value = await command(**request["with"])
    except Exception as error:  # noqa: BLE001  the error is the answer
        report(kind="answer", to=request["number"], error=f"{type(error).__name__}: {error}")
    else:
        report(kind="answer", to=request["number"], value=value)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    factory = None
    if options.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
