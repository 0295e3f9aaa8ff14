"""Clusters whose nodes drain, undo it and stop while they call each other: what must hold, whatever happens.

A *chain* is a call that leads over several nodes: each handler sleeps, calls the next one, and returns where
it ran. Each of its hops is in the ledger, with whether it ran and what its caller got. Chains are begun by
callers that behave well: they pick the first node among the members of a group, or they name one.

What must hold:

1. A hop that a node which did not know of the drain has begun is never refused with `Draining`, unless the
   time of the drain is over before a process has taken it.
2. A hop that its caller was told was not delivered never runs, and none runs twice.
3. Without faults a chain that was begun before its node knew of any drain is refused nowhere.
4. Each drain ends in time, and without faults nothing is cut where there is time enough.
5. In the end, when nothing drains any more, each node serves each other one, and none is listed.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

from fleetlm import Actor, Draining, FleetError, Node, NotDelivered, handler
from fleetlm.runtime.info import DrainReport
from fleetlm.testing import SimCluster
from tests.sim.disturbed import Disturbed
from tests.sim.seeded import ONE_PORT

GROUP = "service"
LONG_S = 120.0
FAULTS = ("partition", "one way", "freeze", "stall")


@dataclass
class Hop:
    """One call of a chain."""

    at: str
    knew: bool
    """Whether its caller's node had been told that ``at`` drains."""
    ran: int = 0
    outcome: object = None


@dataclass
class Ledger:
    """Everything that was called."""

    hops: dict[str, Hop] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)
    """Chains that were begun before their node knew of any drain. One that has just connected does not count:
    it learns of drains that all others have known for long with the first frames."""


class Service(Actor):
    """Serves chains; some in turns, some at a time."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    @handler
    async def serve(self, name: str, path: list[tuple[str, float]]) -> list[str]:
        return await self.go_on(name, path)

    @handler(concurrent=True)
    async def serve_beside(self, name: str, path: list[tuple[str, float]]) -> list[str]:
        return await self.go_on(name, path)

    async def go_on(self, name: str, path: list[tuple[str, float]]) -> list[str]:
        self.ledger.hops[name].ran += 1
        here = self.node.name
        (_, pause_s), *rest = path
        await asyncio.sleep(pause_s)
        if not rest:
            return [here]
        return [here, *await hop(self.ledger, self.node, name + ".", rest, beside=True)]


async def hop(
    ledger: Ledger,
    node: Node,
    name: str,
    path: list[tuple[str, float]],
    *,
    beside: bool,
    timeout_s: float = 60.0,
) -> list[str]:
    """Call the first node of a path, and note the outcome."""
    at = path[0][0]
    entry = ledger.hops[name] = Hop(at, at in node.list("draining") and at != node.name)
    method = Service.serve_beside if beside else Service.serve
    ref = node.ref(Service, "beside" if beside else "service", at=at).within(60)
    try:
        result = await ref.call(method, name, path)
    except FleetError as error:
        entry.outcome = error
        raise
    except asyncio.CancelledError as error:
        entry.outcome = error
        raise
    entry.outcome = result
    return result


class World(Disturbed):
    """One run of a seed.

    Args:
        seed: decides everything.
        faults: whether partitions, freezes and stalls happen.
    """

    def __init__(self, seed: int, *, faults: bool) -> None:
        self.rng = random.Random(f"drains {seed}")
        self.faults = faults
        self.is_patient = self.rng.random() < 0.7
        """Whether drains have time enough for everything."""
        latency_s = (0.0002, self.rng.choice([0.001, 0.02] if not faults else [0.001, 0.02, 0.3]))
        self.cluster = SimCluster(seed=seed, settings=ONE_PORT, latency_s=latency_s)
        self.ledger = Ledger()
        self.chains: list[asyncio.Task[Any]] = []
        self.drains: list[asyncio.Task[Any]] = []
        self.reports: list[DrainReport] = []
        self.count = 0

    async def play(self, steps: int = 30) -> None:
        """Play a story, and check what must hold."""
        async with self.cluster:
            for node in await self.cluster.start(self.rng.randint(2, 4)):
                self.prepare(node)
            await self.cluster.mesh(timeout=60)
            await asyncio.sleep(2)
            for _ in range(steps):
                await self.step()
            await self.settle()
            self.check()

    def prepare(self, node: Node) -> None:
        node.groups.join(GROUP, node.spawn(Service, self.ledger, name="service"))
        node.spawn(Service, self.ledger, name="beside")

    async def step(self) -> None:
        """Do something, and wait for a moment."""
        rng, node = self.rng, self.rng.choice(self.nodes())
        chance = rng.random()
        if chance < 0.25:
            await self.drain_or_undrain(node)
        elif chance < 0.32 and len(self.nodes()) > 1:
            await self.restart(node)
        elif chance < 0.45 and self.faults:
            self.disturb(rng.choice([*FAULTS, ""]), node)
        else:
            for _ in range(rng.randint(1, 6)):
                self.chains.append(asyncio.create_task(self.chain(rng.choice(self.nodes()))))
        await asyncio.sleep(rng.choice([0.0, 0.001, 0.01, 0.1, 1.0, 3.0]))

    async def drain_or_undrain(self, node: Node) -> None:
        if node.is_draining and self.rng.random() < 0.6:
            node.undrain()
            return
        self.drains.append(asyncio.create_task(self.drain(node)))
        if self.rng.random() < 0.3:  # Two at a time.
            self.drains.append(asyncio.create_task(self.drain(self.rng.choice(self.nodes()))))

    def time_s(self) -> float:
        return LONG_S if self.is_patient else self.rng.choice([0.0, 0.5, 5.0])

    async def drain(self, node: Node) -> None:
        try:
            self.reports.append(await node.drain(self.time_s()))
        except FleetError:
            return  # The node was stopped just before.

    async def restart(self, node: Node) -> None:
        """Stop a node in order, and start it again at the same address."""
        await self.cluster.stop(node, drain_s=self.time_s())
        self.prepare(await self.cluster.start_at(self.cluster.ip_of(node.name)))

    async def chain(self, node: Node) -> None:
        """Begin a chain at a node."""
        rng = self.rng
        self.count += 1
        name = f"{self.count}"
        names = [each.name for each in self.nodes()]
        path = [(rng.choice(names), rng.choice([0.0, 0.002, 0.3, 2.0])) for _ in range(rng.randint(1, 4))]
        try:
            if rng.random() < 0.5:
                path[0] = (node.groups.pick(GROUP).node, path[0][1])
            is_informed = node.info().uptime_s > 3 and len(node.list()) == len(names) - 1
            if is_informed and not node.list("draining"):
                self.ledger.fresh.add(name)
            await hop(self.ledger, node, name, path, beside=rng.random() < 0.7)
        except FleetError:
            return

    async def settle(self) -> None:
        """Let everything heal and end."""
        self.cluster.heal()
        for node in self.nodes():
            self.cluster.thaw(node)
            self.cluster.unstall(node)
        await asyncio.wait_for(asyncio.gather(*self.chains), 600)
        await asyncio.wait_for(asyncio.gather(*self.drains), 600)
        for node in self.nodes():
            node.undrain()
        await self.cluster.mesh(timeout=300)
        await asyncio.sleep(5)
        for one in self.nodes():
            assert one.list("draining") == [], one.name
            for other in self.nodes():
                await hop(self.ledger, one, f"end {one.name} {other.name}", [(other.name, 0.0)], beside=True)

    def check(self) -> None:
        for name, entry in self.ledger.hops.items():
            told = f"hop {name} to {entry.at}: ran {entry.ran} time(s), came to {entry.outcome!r}"
            assert entry.ran <= 1, told
            if isinstance(entry.outcome, NotDelivered):
                assert entry.ran == 0, told
            if isinstance(entry.outcome, Draining) and self.is_patient:
                assert entry.knew, f"{told}, though its caller did not know"
                if not self.faults:
                    assert name.rstrip(".") not in self.ledger.fresh, f"{told}, though its chain is older"
        for report in self.reports:
            assert report.seconds <= 3 * LONG_S, report  # A further drain may prolong it.
            if self.is_patient and not self.faults:
                assert not report.cut, report
