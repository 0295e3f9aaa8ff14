"""A request to an entity beside the same request to an actor: what finding the node of a key costs."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import fleetlm_node, measures
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import Mode, Session
from benchmarks.measures import PAYLOAD, rate_key
from benchmarks.registry import Benchmark, Metric, Options, Variant

if TYPE_CHECKING:
    from fleetlm import Node

OUTSTANDING = 100
KEYS = 64
ENTITY, ACTOR = "entity", "actor"


def variants(options: Options) -> list[Variant]:
    """Entities with so many keys, and as many actors with names, on one other node."""
    return _modes(options, server="entities:server", driver="entities:client", servers=1)


def local_variants(options: Options) -> list[Variant]:
    """The same on the node that asks."""
    return _modes(options, server="start_programs:bare", driver="entities:alone", servers=0)


def _modes(options: Options, *, server: str, driver: str, servers: int) -> list[Variant]:
    session = Session(
        "nodes",
        floor=False,
        server=server,
        driver=driver,
        config={
            "loop": options.loop,
            "sequential": options.size(2_000, 500),
            "outstanding": options.size(40_000, 10_000),
            "at_once": [OUTSTANDING],
        },
        servers=servers,
    )
    return [
        Mode(f"fleetlm, {KEYS} entities ({options.loop})", session, ENTITY),
        Mode(f"fleetlm, {KEYS} actors by name", session, ACTOR, floor=True),
    ]


def why_not(_options: Options) -> str:
    """Return why entities cannot be measured."""
    return "" if importlib.util.find_spec("fleetlm.entities") else "this fleetlm has no entities"


METRICS = [
    Metric("p50_s", "request, round trip p50", "µs", more_is_better=False, scale=1e6),
    Metric(
        rate_key(OUTSTANDING),
        f"{OUTSTANDING} requests outstanding",
        "thousand/s",
        more_is_better=True,
        scale=1e-3,
    ),
]
BENCHMARK = Benchmark(
    "entities",
    f"requests of 64 bytes to entities and to actors, one at a time and {OUTSTANDING} outstanding",
    METRICS,
    variants,
    share=1,
    least_rounds=5,
    why_not=why_not,
)
LOCAL = Benchmark(
    "entities-here",
    f"requests of 64 bytes to entities and actors of the same node, and {OUTSTANDING} outstanding",
    METRICS,
    local_variants,
    share=1,
    least_rounds=5,
    why_not=why_not,
)


def server(parent: Parent, config: dict[str, Any]) -> None:
    """Run the node with the entities and the actors."""

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            await serve(node)
            parent.report(ready=True)
            await parent.wait_until_closed()

    run_loop(main(), config["loop"])


def client(parent: Parent, config: dict[str, Any]) -> None:
    """Run the node that asks; a command says whom."""

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            (peer,) = await fleetlm_node.peers(node, config)
            await ask(parent, config, node, peer)

    run_loop(main(), config["loop"])


def alone(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node that serves and asks; a command says whom."""

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            await serve(node)
            await ask(parent, config, node, node.name)

    run_loop(main(), config["loop"])


async def serve(node: Node) -> None:
    """Host the entities, and run the actors."""
    from benchmarks.entity_echo import EchoActor, EchoEntity  # noqa: PLC0415  there may be no entities

    for number in range(KEYS):
        node.spawn(EchoActor, name=f"echo{number}")
    await node.entities.host(EchoEntity, "echoes")


async def ask(parent: Parent, config: dict[str, Any], node: Node, peer: str) -> None:
    """Ask entities or actors, whichever a command says, until there is none."""
    from benchmarks.entity_echo import EchoActor, EchoEntity  # noqa: PLC0415

    entities = node.entities.ref(EchoEntity, "echoes")
    calls: dict[str, list[measures.Call]] = {ENTITY: [], ACTOR: []}
    for number in range(KEYS):
        entity, actor = entities[f"key{number}"], node.ref(EchoActor, f"echo{number}", at=peer)
        calls[ENTITY].append(partial(entity.call, EchoEntity.echo, PAYLOAD))
        calls[ACTOR].append(partial(actor.call, EchoActor.echo, PAYLOAD))
        await entity.within(fleetlm_node.READY_TIMEOUT_S).call(EchoEntity.echo, PAYLOAD)
    parent.report(ready=True)
    while what := await parent.read_command():
        parent.report(**await measures.calls(in_turn(calls[what]), config))


def in_turn(calls: list[measures.Call]) -> measures.Call:
    """Return a call that makes each of these in turn."""
    number = -1

    def call() -> Any:
        nonlocal number
        number = (number + 1) % len(calls)
        return calls[number]()

    return call
