"""The cost of a typed handler of an actor compared with a plain process, for calls and streams."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from benchmarks import fleetlm_node, measures, peers
from benchmarks.calls import OUTSTANDING
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import ServersAndDriver
from benchmarks.measures import PAYLOAD, percentiles, rate_key
from benchmarks.registry import Benchmark, Metric, Options, Variant
from fleetlm import Actor, Call, Node, Process, handler


def variants(options: Options) -> list[Variant]:
    """A handler called by typed reference; a process function that replies itself."""
    config = {
        "loop": options.loop,
        "sequential": options.size(2_000, 500),
        "outstanding": options.size(40_000, 10_000),
        "items": options.size(100_000, 30_000),
    }
    return [
        ServersAndDriver(
            f"{label} ({options.loop})",
            floor=kind == "plain",
            server=f"actors:{kind}_server",
            driver=f"actors:{kind}_client",
            config=config,
        )
        for label, kind in (
            ("fleetlm actor, typed reference", "actor"),
            ("fleetlm process, by hand", "plain"),
        )
    ] + [*peers.variants(options, "actors", {**config, "at_once": [OUTSTANDING]})]


BENCHMARK = Benchmark(
    "actors",
    f"an actor beside a plain process: 64-byte calls, {OUTSTANDING} outstanding, and a stream",
    [
        Metric("p50_s", "call, round trip p50", "µs", more_is_better=False, scale=1e6),
        Metric("first_s", "first item p50", "µs", more_is_better=False, scale=1e6),
        Metric(
            rate_key(OUTSTANDING),
            f"{OUTSTANDING} calls outstanding",
            "thousand/s",
            more_is_better=True,
            scale=1e-3,
        ),
        Metric("items", "items of one stream", "thousand/s", more_is_better=True, scale=1e-3),
    ],
    variants,
)


class Echo(Actor):
    """An actor that echoes and streams."""

    @handler
    async def echo(self, payload: bytes) -> bytes:
        """Reply with the payload."""
        return payload

    @handler
    async def items(self, count: int) -> AsyncIterator[bytes]:
        """Stream ``count`` items."""
        for _ in range(count):
            yield PAYLOAD


async def plain(process: Process) -> None:
    """Do the same in a process function."""
    async for message in process.mailbox:
        match message:
            case Call(message=bytes(payload)):
                message.reply(payload)
            case Call(message=int(count)):
                for _ in range(count):
                    await message.put(PAYLOAD)
                message.reply()


def actor_server(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node with the actor."""
    _serve(parent, config, Echo)


def plain_server(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node with the plain process."""
    _serve(parent, config, plain)


def _serve(parent: Parent, config: dict[str, Any], function: Any) -> None:
    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            node.spawn(function, name="echo")
            parent.report(ready=True)
            await parent.wait_until_closed()

    run_loop(main(), config["loop"])


def actor_client(parent: Parent, config: dict[str, Any]) -> None:
    """Call the actor by typed reference."""

    def use(node: Node, peer: str) -> tuple[Any, Any]:
        ref = node.ref(Echo, "echo", at=peer)
        return (lambda: ref.call(Echo.echo, PAYLOAD)), (lambda count: ref.stream(Echo.items, count))

    _drive(parent, config, use)


def plain_client(parent: Parent, config: dict[str, Any]) -> None:
    """Call the plain process."""

    def use(node: Node, peer: str) -> tuple[Any, Any]:
        to = ("echo", peer)
        return (lambda: node.call(to, PAYLOAD)), (lambda count: node.stream(to, count))

    _drive(parent, config, use)


def _drive(parent: Parent, config: dict[str, Any], use: Callable[[Node, str], tuple[Any, Any]]) -> None:
    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            (peer,) = await fleetlm_node.peers(node, config)
            call, stream = use(node, peer)
            parent.report(ready=True)
            while await parent.read_command():
                parent.report(**await _measure(config, call, stream))

    run_loop(main(), config["loop"])


async def _measure(
    config: dict[str, Any], call: Callable[[], Awaitable[object]], stream: Callable[[int], Any]
) -> dict[str, float]:
    times, firsts = await measures.one_at_a_time(call, config["sequential"]), []
    for _ in range(config["sequential"]):
        started = time.perf_counter()
        async with aclosing(stream(1)) as items:
            await anext(items)
            firsts.append(time.perf_counter() - started)
    rate = await measures.at_once(call, OUTSTANDING, config["outstanding"])
    started = time.perf_counter()
    async for _ in stream(config["items"]):
        pass
    per_s = config["items"] / (time.perf_counter() - started)
    return {
        "p50_s": percentiles(times)["p50_s"],
        "first_s": percentiles(firsts)["p50_s"],
        rate_key(OUTSTANDING): rate,
        "items": per_s,
    }
