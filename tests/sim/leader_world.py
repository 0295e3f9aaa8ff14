"""Clusters that offer a singleton and a cron job while nodes come, drain, leave and fail.

All nodes run on one loop, so an instant is an instant. A run goes on from the first line of its function to
its last one, its clean-up included. What must hold:

1. With a quorum, and in stories without faults: no run begins while another one goes on anywhere.
2. Likewise: each run has a higher epoch than the one that began before, and acts under its own.
3. Likewise: no slot of the cron job begins twice, and they begin in their order, though clocks differ.
4. Always: on one node the first two hold, whatever happens.
5. Always: in the end, when everything has healed, one run goes on, all nodes name its node, the job has
   begun a slot lately, and nothing is left over.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from fleetlm import CronSlot, FleetError, Node, Process, Quorum
from fleetlm.leaders.offering import Offering
from fleetlm.testing import SimCluster
from tests.sim.disturbed import Disturbed
from tests.sim.seeded import ONE_PORT

EXPECTED = 5
LONG_S = 120.0
SLOT_S = 2.0
REST_S = 75.0
"""Seconds in which all come to rest: a job whose clock is behind waits for the last slot of a clock that was
ahead."""
CALM = ("join", "drain", "restart", "withdraw", "crash the run")
STORMY = ("partition", "one way", "freeze", "stall", "crash", "kill the run")


@dataclass
class Run:
    """One run of the singleton."""

    node: Node
    incarnation: int
    epoch: int
    goes_on: bool = True


@dataclass
class Ledger:
    """Everything that happened."""

    is_strict: bool
    runs: list[Run] = field(default_factory=list)
    slots: list[CronSlot] = field(default_factory=list)
    ticked_at: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def began(self, node: Node, epoch: int) -> Run:
        """Note a run, and what it contradicts."""
        for other in self.runs:
            if other.goes_on and (self.is_strict or other.incarnation == node.incarnation):
                self.wrong.append(f"a run on {node.name} begins while one on {other.node.name} goes on")
            if other.epoch >= epoch and (self.is_strict or other.incarnation == node.incarnation):
                self.wrong.append(f"epoch {epoch} on {node.name} is not above {other.epoch}")
        run = Run(node, node.incarnation, epoch)
        self.runs.append(run)
        return run

    def acted(self, run: Run, epoch: int) -> None:
        """Note that a run does something."""
        if self.is_strict and epoch != run.epoch:
            self.wrong.append(f"a run under epoch {run.epoch} acts under {epoch}")
        if epoch < run.epoch:
            self.wrong.append(f"the epoch of a run falls from {run.epoch} to {epoch}")

    def ticked(self, slot: CronSlot) -> None:
        """Note that a slot of the cron job begins."""
        if self.is_strict and any(each.at >= slot.at for each in self.slots):
            self.wrong.append(f"the slot {slot.at} begins after {self.slots[-1].at}")
        self.slots.append(slot)
        self.ticked_at = asyncio.get_running_loop().time()

    def gone(self, node: Node) -> None:
        """A node has crashed: nothing on it goes on."""
        for run in self.runs:
            if run.incarnation == node.incarnation:
                run.goes_on = False


class Leading(Protocol):
    """What a singleton asks of its world."""

    rng: random.Random
    crash_soon: bool


def boss_of(world: Leading, ledger: Ledger, work_s: float) -> Callable[[Process], Coroutine[Any, Any, None]]:
    """Return the singleton of a world.

    Args:
        world: decides whether it fails.
        ledger: of its runs.
        work_s: seconds between two things that a run does.
    """
    rng = world.rng

    async def boss(process: Process) -> None:
        run, reads_epoch = ledger.began(process.node, process.epoch), rng.random() < 0.5
        try:
            while True:
                await asyncio.sleep(work_s)
                if reads_epoch:  # Else nothing but the kill ends a run that must not go on.
                    ledger.acted(run, process.epoch)
                if world.crash_soon:
                    world.crash_soon = False
                    raise ValueError("as the story wants it")
        finally:
            try:
                await asyncio.sleep(rng.choice([0.0, 0.01, 0.2]))
            finally:
                run.goes_on = False

    return boss


class LeaderWorld(Disturbed):
    """One run of a seed.

    Args:
        seed: decides everything.
        safety: of the singleton and of the job.
        faults: whether partitions, freezes, stalls and crashes happen.
    """

    def __init__(self, seed: int, safety: Literal["available", "quorum"], *, faults: bool) -> None:
        self.rng = random.Random(f"leaders {seed}")
        self.faults = faults
        self.has_quorum = safety == "quorum"
        lease_s = self.rng.choice([4.0, 8.0])
        self.safety: Literal["available"] | Quorum = (
            Quorum(EXPECTED, lease_s) if self.has_quorum else "available"
        )
        self.cluster = SimCluster(
            seed=seed, settings=ONE_PORT, latency_s=(0.0002, self.rng.choice([0.001, 0.02]))
        )
        self.ledger = Ledger(is_strict=self.has_quorum or not faults)
        self.tasks: list[asyncio.Task[Any]] = []
        self.crash_soon = False
        self.count = 0

    async def play(self, steps: int = 15) -> None:
        """Play a story, and check what must hold."""
        async with self.cluster:
            for _ in range(self.rng.randint(3, 4)):
                await self.join()
            await self.cluster.mesh(timeout=60)
            await asyncio.sleep(self.rng.choice([0.0, 4.0, 15.0]))
            for _ in range(steps):
                await self.step()
                assert not self.ledger.wrong, self.ledger.wrong
            await self.settle()
            self.check_end()

    async def join(self, ip: str = "") -> None:
        """Start a node whose clock is wrong, at a new address if none is given."""
        self.count += 1
        clock_s = self.rng.choice([-15.0, 0.0, 15.0])
        self.offer(await self.cluster.start_at(ip or f"10.0.0.{self.count}", clock_s=clock_s))

    def offer(self, node: Node) -> None:
        """Offer the singleton and the job on a node."""
        ledger, rng, boss = self.ledger, self.rng, boss_of(self, self.ledger, 0.1)

        async def tick(slot: CronSlot) -> None:
            ledger.ticked(slot)
            await asyncio.sleep(rng.choice([0.0, 0.0, 0.5, 3.0]))

        node.singleton("boss", boss, safety=self.safety, end_s=2.0, backoff_s=(0.1, 1.0))
        node.cron("tick", SLOT_S, tick, missed=rng.choice(["once", "skip"]), safety=self.safety, end_s=1.0)

    def home(self) -> Node:
        """A node that believes to have the cron job, or any."""
        nodes = self.nodes()
        having = [node for node in nodes if node.singletons.where("cron:tick") == node.name]
        return self.rng.choice(having or nodes)

    def offers(self) -> list[Node]:
        """The nodes that offer the singleton and do not drain."""
        return [each for each in self.nodes() if offering(each) is not None and not each.is_draining]

    async def step(self) -> None:
        """Do something, and wait for a moment."""
        rng = self.rng
        await self.change(rng.choice(STORMY if self.faults and rng.random() < 0.5 else CALM))
        await asyncio.sleep(rng.choice([0.0, 0.01, 0.3, 3.0, 10.0]))

    async def change(self, what: str) -> None:  # a table of what can happen
        if not self.faults:
            await self.cluster.mesh(timeout=60)  # A node that leaves must know the one that has just come.
        node = self.rng.choice([self.rng.choice(self.nodes()), self.home()])
        others = [each for each in self.offers() if each is not node]
        match what:
            case "join" if len(self.nodes()) < EXPECTED:
                await self.join()
            case "drain" if others and not node.is_draining:
                self.tasks.append(asyncio.create_task(self.drain(node)))
                await asyncio.sleep(0.001)  # It is announced, so the next one leaves a node.
            case "drain" if node.is_draining:
                node.undrain()
            case "restart" if others:
                await self.cluster.stop(node, drain_s=LONG_S)
                await self.join(self.cluster.ip_of(node.name))
            case "withdraw" if others and offering(node) is not None:
                await node.singletons.withdraw("boss", LONG_S)
                await node.singletons.withdraw("cron:tick", LONG_S)
                self.offer(node)
            case "crash the run":
                self.crash_soon = True
            case "kill the run":
                pid = None if (here := offering(node)) is None else here.family.root
                if pid is not None:
                    node.exit(pid, "kill")
            case "crash":
                ip = self.cluster.ip_of(node.name)
                await self.crash(node)
                await self.join(ip)
            case "partition" | "one way" | "freeze" | "stall":
                self.disturb(what, node)
            case _:
                return

    async def crash(self, node: Node) -> None:
        crashing = asyncio.create_task(self.cluster.crash(node))
        await asyncio.sleep(0)
        self.ledger.gone(node)
        await crashing

    async def drain(self, node: Node) -> None:
        try:
            await node.drain(LONG_S)
        except FleetError:
            return  # It was stopped just before.

    async def settle(self) -> None:
        """Let everything heal."""
        self.calm_down()
        self.crash_soon = False
        for node in self.nodes():
            node.undrain()
        await asyncio.wait_for(asyncio.gather(*self.tasks), 600)
        while len(self.nodes()) < EXPECTED // 2 + 1:
            await self.join()
        await self.cluster.mesh(timeout=300)
        until = self.cluster.loop.time() + REST_S
        await asyncio.sleep(10)
        while self.cluster.loop.time() < until and not self.is_at_rest():
            await asyncio.sleep(1)

    def is_at_rest(self) -> bool:
        """Whether one run goes on, all nodes agree, and the job has begun a slot lately."""
        runs = [run for run in self.ledger.runs if run.goes_on]
        where = {(node.singletons.where("boss"), node.singletons.where("cron:tick")) for node in self.nodes()}
        late_s = self.cluster.loop.time() - self.ledger.ticked_at
        return (
            len(runs) == 1
            and len(where) == 1
            and late_s < 2 * SLOT_S
            and not any(here.handoff.moving for node in self.nodes() if (here := offering(node)) is not None)
        )

    def check_end(self) -> None:
        ledger, nodes = self.ledger, self.nodes()
        assert not ledger.wrong, ledger.wrong
        (run,) = [run for run in ledger.runs if run.goes_on]
        assert {node.singletons.where("boss") for node in nodes} == {run.node.name}
        assert len({node.singletons.where("cron:tick") for node in nodes}) == 1
        assert self.cluster.loop.time() - ledger.ticked_at < 10, "the cron job has stopped"
        for node in nodes:
            here = offering(node)
            if here is None:
                continue
            assert bool(here.family.left()) is (node is run.node)
            handoff: Any = here.handoff
            assert not any((handoff._moving, handoff._staged, handoff._tasks, handoff._sealed))


def offering(node: Node) -> Offering | None:
    """Return the singleton as a node offers it, or None."""
    return node.singletons._offering("boss")
