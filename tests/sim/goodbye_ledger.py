"""Nodes that leave under load, and a ledger of what every request came to and whether it ran.

One run: four nodes call each other, by calls, actors, streams, multicalls, casts and large messages, and
one after the other stops and starts again, or disconnects another one; sometimes two at a time. Each
request has a number. Handlers write it into the ledger when they begin, and callers write its outcome.

Nothing crashes and no path is cut, so no request may be left in doubt: if it was not answered, it has not
run. Nodes that leave without a drain, or disconnect, cut what runs, and do not wait for their own requests;
of those requests, and of no others, the caller hears that they may have run. (Of handlers in tasks of their
own it hears so also if they were about to begin, and a stream that was cut ends with `Draining` after the
items that came.)
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fleetlm import (
    Actor,
    Address,
    Call,
    Draining,
    FleetError,
    Node,
    NodeStopped,
    NotDelivered,
    OutcomeUnknown,
    Process,
    handler,
)
from fleetlm.testing import SimCluster
from tests.sim.seeded import ONE_PORT

IPS = tuple(f"10.0.0.{number}" for number in range(1, 5))
LARGE = b"x" * 600_000
"""A message that travels in chunks."""


class Ledger:
    """What happened to each request of a run."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.began: Counter[int] = Counter()
        self.outcomes: dict[int, object] = {}
        self.is_busy = False
        """Whether nodes ask; they rest while nodes come back."""
        self.plain: set[int] = set()
        """The requests to plain processes, which begin what they take at once."""
        self.streams: set[int] = set()
        self.many: set[int] = set()
        """Requests to several processes at once."""
        self.own: set[int] = set()
        """Requests of nodes that ended the connection while they were open."""
        self.cuts = False
        """Whether nodes leave without a drain, or disconnect others, so that requests that run are cut."""

    def breaches(self) -> list[str]:
        """Say what is wrong."""
        wrong = []
        for number, outcome in self.outcomes.items():
            began = self.began[number]
            may_be_cut = began or number not in self.plain or number in self.own
            was_cut = isinstance(outcome, OutcomeUnknown) and may_be_cut
            if began > 1 and number not in self.many:
                wrong.append(f"{number} ran {began} times")
            elif self.cuts and (was_cut or (isinstance(outcome, Draining) and number in self.streams)):
                continue
            elif isinstance(outcome, NotDelivered) and began:
                wrong.append(f"{number} ran, and its caller got {outcome!r}")
            elif isinstance(outcome, OutcomeUnknown):
                wrong.append(f"{number} is in doubt, began {began}: {outcome!r}")
        return wrong


def services(ledger: Ledger, rng: random.Random) -> tuple[Callable[..., Any], type[Actor]]:
    """The processes of each node: a plain one, and an actor with concurrent handlers."""

    async def plain(process: Process) -> None:
        async for call in process.mailbox:
            if isinstance(call, Call):
                ledger.began[call.message[0]] += 1
                await asyncio.sleep(rng.choice((0.0, 0.001, 0.02)))
                call.reply(LARGE if rng.random() < 0.02 else "done")

    class Model(Actor):
        @handler(concurrent=True)
        async def work(self, number: int) -> str:
            ledger.began[number] += 1
            await asyncio.sleep(rng.choice((0.0, 0.002, 0.05)))
            return "done"

        @handler(concurrent=True)
        async def tokens(self, number: int) -> AsyncIterator[int]:
            ledger.began[number] += 1
            for nth in range(20):
                await asyncio.sleep(0.002)
                yield nth

    return plain, Model


class Load:
    """The calls of one node, as long as it lives."""

    def __init__(self, node: Node, model: Any, ledger: Ledger, rng: random.Random) -> None:
        self.node = node
        self.model = model
        self.ledger = ledger
        self.rng = rng
        self.tasks: set[asyncio.Task[None]] = set()
        self.open: set[int] = set()
        self.is_over = False

    def ref(self, name: str) -> Any:
        return self.node.ref(self.model, "model", at=name).within(60)

    async def run(self) -> None:
        while not self.is_over:
            await asyncio.sleep(self.rng.uniform(0.0, 0.008))
            names = self.node.list()
            if names and self.ledger.is_busy and not self.is_over:
                ask = self.rng.choice(
                    (self.call, self.call, self.work, self.stream, self.multicall, self.cast)
                )
                task = asyncio.create_task(ask(self.rng.choice(names)))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)

    async def settle(self) -> None:
        """Ask no more, and wait for all outcomes."""
        self.is_over = True
        await asyncio.gather(*self.tasks)

    async def note(self, number: int, request: Coroutine[Any, Any, Any]) -> None:
        self.open.add(number)
        try:
            outcome = await request
        except FleetError as error:
            outcome = error
        self.open.remove(number)
        assert number not in self.ledger.outcomes
        self.ledger.outcomes[number] = outcome

    async def call(self, name: str) -> None:
        number = next(self.ledger.numbers)
        self.ledger.plain.add(number)
        filler = LARGE if self.rng.random() < 0.02 else b""
        await self.note(number, self.node.call(("plain", name), (number, filler), timeout=60))

    async def work(self, name: str) -> None:
        number = next(self.ledger.numbers)
        await self.note(number, self.ref(name).call(self.model.work, number))

    async def stream(self, name: str) -> None:
        number = next(self.ledger.numbers)
        self.ledger.streams.add(number)

        async def consume() -> list[int]:
            items = [item async for item in self.ref(name).stream(self.model.tokens, number)]
            assert items == list(range(20))
            return items

        await self.note(number, consume())

    async def multicall(self, _name: str) -> None:
        number = next(self.ledger.numbers)
        self.ledger.many.add(number)
        targets = [Address("plain", name) for name in self.node.list()]
        try:
            results = await self.node.multicall(targets, (number, b""), timeout=60)
        except NodeStopped:
            return
        ran = self.ledger.began[number]
        refused = sum(isinstance(result, NotDelivered) for result in results)
        unknown = [result for result in results if isinstance(result, OutcomeUnknown)]
        self.ledger.outcomes[number] = unknown[0] if unknown else "done"
        assert unknown or ran == len(targets) - refused, (results, ran)

    async def cast(self, name: str) -> None:
        try:
            await self.node.send(("plain", name), "cast")
        except FleetError:
            return


async def story(seed: int, *, cuts: bool) -> Ledger:
    """Run a cluster whose nodes leave under load, with a drain or without one."""
    rng = random.Random(seed)
    ledger = Ledger()
    ledger.cuts = cuts
    plain, model = services(ledger, rng)
    loads: dict[str, Load] = {}
    running: list[asyncio.Task[None]] = []

    async def start(cluster: SimCluster, ip: str) -> None:
        node = await cluster.start_at(ip)
        node.spawn(plain, name="plain")
        node.spawn(model, name="model")
        loads[ip] = Load(node, model, ledger, rng)
        running.append(asyncio.create_task(loads[ip].run()))

    async with SimCluster(seed=seed, settings=ONE_PORT) as cluster:
        for ip in IPS:
            await start(cluster, ip)
        await cluster.mesh(timeout=30)
        for _ in range(2):
            ledger.is_busy = True
            await asyncio.sleep(rng.uniform(0.05, 0.3))
            if cuts and rng.random() < 0.5:
                await disconnect(*rng.sample(list(loads.values()), 2))
            leaving = rng.sample(IPS, rng.choice((1, 1, 2)))
            drain_s = 0.0 if cuts else None
            await asyncio.gather(*(leave(cluster, loads[ip], rng, drain_s) for ip in leaving))
            ledger.is_busy = False
            for ip in leaving:
                await start(cluster, ip)
            await cluster.mesh(timeout=30)
        for load in loads.values():
            await load.settle()
        await asyncio.gather(*running)
    return ledger


async def leave(cluster: SimCluster, load: Load, rng: random.Random, drain_s: float | None) -> None:
    """Stop a node, which asks nothing more of others once it stops."""
    load.is_over = True
    await asyncio.sleep(rng.uniform(0.0, 0.01))
    load.ledger.own |= load.open
    await cluster.stop(load.node, drain_s=drain_s)
    await load.settle()


async def disconnect(here: Load, there: Load) -> None:
    """Disconnect two nodes under load, and connect them again."""
    here.ledger.own |= here.open
    here.node.disconnect(there.node.name)
    await asyncio.sleep(0.05)
    await here.node.connect(there.node.name, 30)
