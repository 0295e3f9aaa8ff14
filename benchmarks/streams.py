"""Streams: how soon the first item comes, and how fast many small ones and some larger ones follow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import zmq

from benchmarks import raw
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import ServersAndDriver
from benchmarks.measures import MIB, PAYLOAD, percentiles
from benchmarks.registry import Benchmark, Metric, Metrics, Options, Variant
from benchmarks.ways import fleetlm_ways

LARGE_ITEM_BYTES = MIB // 4


def variants(options: Options) -> list[Variant]:
    """A handler that yields; a process function that puts by hand; frames that nobody holds back."""
    config = {
        "loop": options.loop,
        "sequential": options.size(2_000, 500),
        "items": options.size(100_000, 30_000),
        "large_items": options.size(1_000, 300),
    }
    by_hand = ServersAndDriver(
        f"fleetlm process, by hand ({options.loop})",
        floor=True,
        server="streams:plain_server",
        driver="streams:plain_client",
        config=config,
    )
    floor = ServersAndDriver(
        f"pyzmq, FD reader, no credit ({options.loop})",
        floor=True,
        server="streams:raw_server",
        driver="streams:raw_client",
        config=config,
    )
    return [
        *(
            ServersAndDriver(
                way.label,
                floor=False,
                server="streams:actor_server",
                driver="streams:actor_client",
                config=config | way.config,
            )
            for way in fleetlm_ways(options, ", handler of an actor")
        ),
        by_hand,
        floor,
    ]


BENCHMARK = Benchmark(
    "streams",
    "a stream from another node: its first item, items of 64 bytes, items of 256 KiB",
    [
        Metric("first_s", "first item p50", "µs", more_is_better=False, scale=1e6),
        Metric("items", "items of 64 bytes", "thousand/s", more_is_better=True, scale=1e-3),
        Metric("bytes", "items of 256 KiB", "MB/s", more_is_better=True, scale=1e-6),
    ],
    variants,
)

Stream = Callable[[int, int], AsyncIterator[object]]
"""Returns a stream of so many items of so many bytes."""


async def measure(stream: Stream, config: dict[str, Any]) -> Metrics:
    """Measure all three."""
    firsts = []
    for _ in range(config["sequential"]):
        started = time.perf_counter()
        async with aclosing(stream(1, len(PAYLOAD))) as items:  # type: ignore[type-var]  # a stream has aclose
            await anext(items)
            firsts.append(time.perf_counter() - started)
    small_s = await _seconds(stream(config["items"], len(PAYLOAD)), config["items"])
    large_s = await _seconds(stream(config["large_items"], LARGE_ITEM_BYTES), config["large_items"])
    return {
        "first_s": percentiles(firsts)["p50_s"],
        "items": config["items"] / small_s,
        "bytes": config["large_items"] * LARGE_ITEM_BYTES / large_s,
    }


async def _seconds(stream: AsyncIterator[object], expected: int) -> float:
    started, count = time.perf_counter(), 0
    async for _ in stream:
        count += 1
    if count != expected:
        raise RuntimeError(f"{count} of {expected} items arrived")
    return time.perf_counter() - started


def actor_server(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node with an actor that streams."""
    from benchmarks.stream_actor import Items  # noqa: PLC0415  a floor's process must not import fleetlm

    _serve(parent, config, Items)


def plain_server(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node with a process that puts each item itself."""
    from fleetlm import Process  # noqa: PLC0415

    async def plain(process: Process) -> None:
        async for call in process.mailbox:
            count, size = call.message
            item = bytes(size)
            for _ in range(count):
                await call.put(item)
            call.reply()

    _serve(parent, config, plain)


def _serve(parent: Parent, config: dict[str, Any], function: Any) -> None:
    from benchmarks import fleetlm_node  # noqa: PLC0415

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            node.spawn(function, name="items")
            parent.report(ready=True)
            await parent.wait_until_closed()

    run_loop(main(), config["loop"])


def actor_client(parent: Parent, config: dict[str, Any]) -> None:
    """Ask the actor by typed reference."""
    from benchmarks.stream_actor import Items  # noqa: PLC0415

    def use(node: Any, peer: str) -> Stream:
        ref = node.ref(Items, "items", at=peer)
        return lambda count, size: ref.stream(Items.items, count, size)

    _drive(parent, config, use)


def plain_client(parent: Parent, config: dict[str, Any]) -> None:
    """Ask the plain process."""

    def use(node: Any, peer: str) -> Stream:
        return lambda count, size: node.stream(("items", peer), (count, size))

    _drive(parent, config, use)


def _drive(parent: Parent, config: dict[str, Any], use: Callable[[Any, str], Stream]) -> None:
    from benchmarks import fleetlm_node  # noqa: PLC0415

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            (peer,) = await fleetlm_node.peers(node, config)
            stream = use(node, peer)
            parent.report(ready=True)
            while await parent.read_command():
                parent.report(**await measure(stream, config))

    run_loop(main(), config["loop"])


def raw_server(parent: Parent, config: dict[str, Any]) -> None:
    """Run a ROUTER that sends as many frames as it is asked for, as fast as it can."""
    sock, _context = raw.router(config["port"], config["ips"][1])
    more = int(zmq.SNDMORE)
    raw.exit_with_parent(parent)
    while True:
        identity = sock.recv()
        count, size = map(int, sock.recv().split())
        item = bytes(size)
        for _ in range(count):
            sock.send(identity, more)
            sock.send(item)


def raw_client(parent: Parent, config: dict[str, Any]) -> None:
    """Ask it from a DEALER on the loop, and count what comes."""

    async def main() -> None:
        context: zmq.Context[Any] = zmq.Context()
        sock = raw.dealer(context, config["port"], config["ips"][1])
        missing, all_came = 0, asyncio.Event()

        def drain() -> None:
            nonlocal missing
            while True:
                sock.recv(raw.NOBLOCK)
                missing -= 1
                if missing == 0:
                    all_came.set()

        reader = raw.FdReader(sock, drain)

        async def seconds(count: int, size: int) -> float:
            nonlocal missing
            missing = count
            all_came.clear()
            started = time.perf_counter()
            sock.send(b"%d %d" % (count, size))
            reader.check()
            await all_came.wait()
            return time.perf_counter() - started

        parent.report(ready=True)
        while await parent.read_command():
            firsts = [await seconds(1, len(PAYLOAD)) for _ in range(config["sequential"])]
            small_s = await seconds(config["items"], len(PAYLOAD))
            large_s = await seconds(config["large_items"], LARGE_ITEM_BYTES)
            parent.report(
                first_s=percentiles(firsts)["p50_s"],
                items=config["items"] / small_s,
                bytes=config["large_items"] * LARGE_ITEM_BYTES / large_s,
            )
        reader.close()
        context.destroy(0)

    run_loop(main(), config["loop"])
