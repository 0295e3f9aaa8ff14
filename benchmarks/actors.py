"""The cost of a typed handler of an actor compared with a plain process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import fleetlm_node, measures, peers
from benchmarks.calls import OUTSTANDING
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import ServersAndDriver
from benchmarks.measures import PAYLOAD, rate_key
from benchmarks.registry import Benchmark, Metric, Options, Variant
from fleetlm import Actor, Node, Process, handler


def variants(options: Options) -> list[Variant]:
    """A handler called by typed reference; a process function that replies itself."""
    config = {
        "loop": options.loop,
        "sequential": options.size(2_000, 500),
        "outstanding": options.size(40_000, 10_000),
        "at_once": [OUTSTANDING],
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
    ] + [*peers.variants(options, "actors", config)]


BENCHMARK = Benchmark(
    "actors",
    f"an actor beside a plain process: 64-byte calls, one at a time and {OUTSTANDING} outstanding",
    [
        Metric("p50_s", "call, round trip p50", "µs", more_is_better=False, scale=1e6),
        Metric(
            rate_key(OUTSTANDING),
            f"{OUTSTANDING} calls outstanding",
            "thousand/s",
            more_is_better=True,
            scale=1e-3,
        ),
    ],
    variants,
)


class Echo(Actor):
    """An actor that echoes."""

    @handler
    async def echo(self, payload: bytes) -> bytes:
        """Reply with the payload."""
        return payload


async def plain(process: Process) -> None:
    """Do the same in a process function."""
    async for call in process.mailbox:
        call.reply(call.message)


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

    def use(node: Node, peer: str) -> measures.Call:
        ref = node.ref(Echo, "echo", at=peer)
        return lambda: ref.call(Echo.echo, PAYLOAD)

    _drive(parent, config, use)


def plain_client(parent: Parent, config: dict[str, Any]) -> None:
    """Call the plain process."""

    def use(node: Node, peer: str) -> measures.Call:
        to = ("echo", peer)
        return lambda: node.call(to, PAYLOAD)

    _drive(parent, config, use)


def _drive(parent: Parent, config: dict[str, Any], use: Callable[[Node, str], measures.Call]) -> None:
    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            (peer,) = await fleetlm_node.peers(node, config)
            call = use(node, peer)
            parent.report(ready=True)
            while await parent.read_command():
                parent.report(**await measures.calls(call, config))

    run_loop(main(), config["loop"])
