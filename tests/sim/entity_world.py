"""Clusters that host entities while nodes come, drain, leave and fail: what must hold, whatever happens.

The wall clocks of the nodes are wrong by up to a day, and others after each start. Callers on all nodes
append to a few sessions. Each append has a name of its own, and is in the ledger with where it ran and what
its caller got.

What must hold in every story:

1. An append runs at most once; one that its caller was told was not delivered never runs; one that was
   acknowledged has run.
2. A session runs one handler at a time on a node, and its epoch there never falls.
3. In the end, when everything has healed, every node names the same owner for each shard, no host has more
   than its share, all nodes append to the same copy of each session, and nothing is left over.

Without faults (nodes join, drain, leave in order and come back):

4. No session lives twice at any moment, and its epoch grows from one life to the next.
5. No call fails, and no acknowledged append is missing in the end, unless a drain report has named its
   session.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fleetlm import Entity, EntityRefs, FleetError, Node, NotDelivered, Pid, handler
from fleetlm.entities.hosting import Hosting
from fleetlm.runtime.info import DrainReport
from fleetlm.testing import SimCluster
from tests.sim.disturbed import Disturbed
from tests.sim.seeded import ONE_PORT

KEYS = [f"s{number}" for number in range(6)]
SHARDS = 8
LONG_S = 120.0
REST_S = 90.0
"""Seconds in which all come to rest: a shard that could not be balanced is tried again within a minute."""
CALM, STORMY = ("join", "drain", "restart", "move"), (
    "partition", "one way", "freeze", "stall", "crash",
)  # fmt: skip


@dataclass
class Append:
    """One append to a session."""

    key: str
    is_cast: bool
    ran: list[tuple[str, int]] = field(default_factory=list)
    """Node and epoch of each run."""
    outcome: object = None

    was_left_behind: bool = False
    """Whether the node that asked was stopped meanwhile."""


@dataclass
class Ledger:
    """Everything that happened."""

    appends: dict[str, Append] = field(default_factory=dict)
    lives: dict[str, list[tuple[Pid, int]]] = field(default_factory=dict)
    """Key → process and epoch of each life, in the order of their begins."""
    alive: dict[str, list[str]] = field(default_factory=dict)
    """Key → nodes on which it lives."""
    twice: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def check_outcomes(self, *, faults: bool) -> None:
        """Look whether each append ran as its caller was told; ``faults``: whether calls may fail."""
        for name, entry in self.appends.items():
            told = f"append {name} to {entry.key}: ran {entry.ran}, came to {entry.outcome!r}"
            assert len(entry.ran) <= 1, told
            if isinstance(entry.outcome, NotDelivered):
                assert not entry.ran, told
            if type(entry.outcome) is int:
                assert entry.ran, told
            assert entry.outcome is not None, told
            if not (faults or entry.was_left_behind):
                assert not isinstance(entry.outcome, FleetError), told
                assert entry.ran, told
        for key, lives in self.lives.items():
            last: dict[int, int] = {}
            for pid, epoch in lives:
                assert epoch >= last.get(pid.incarnation, 0), f"{key}: {lives}"
                last[pid.incarnation] = epoch

    def check_calm(self, final: dict[str, list[str]], unmoved: set[str]) -> None:
        """Look at what must hold where nothing has failed.

        Args:
            final: what each session has in the end.
            unmoved: what drains could not move, as they have reported it.
        """
        assert not self.twice, self.twice
        for key, lives in self.lives.items():
            for (pid, epoch), (later, later_epoch) in itertools.pairwise(lives):
                moved = pid.node != later.node
                grows = later_epoch > epoch if moved else later_epoch >= epoch
                assert grows, f"{key}: {lives}"
        for name, entry in self.appends.items():
            if f"sessions/{entry.key}" not in unmoved and not entry.was_left_behind:
                assert name in final[entry.key], f"append {name} to {entry.key} is lost"


class Session(Entity):
    """Keeps what was appended."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.names: list[str] = []
        self.at_work = False

    async def load(self, state: Any) -> None:
        ledger, here = self.ledger, self.node.name
        alive = ledger.alive.setdefault(self.key, [])
        if alive:
            ledger.twice.append(f"{self.key} lives on {alive} and begins on {here}")
        alive.append(here)
        ledger.lives.setdefault(self.key, []).append((self.pid, self.epoch))
        self.names = list(state or ())

    async def save(self) -> Any:
        await asyncio.sleep(0.001)
        return self.names

    async def terminate(self, reason: Any) -> None:
        self.ledger.alive[self.key].remove(self.node.name)

    @handler
    async def append(self, name: str, pause_s: float) -> int:
        if self.at_work:
            self.ledger.faults.append(f"{self.key} runs two handlers at once")
        self.at_work = True
        self.ledger.appends[name].ran.append((self.node.name, self.epoch))
        self.names.append(name)
        try:
            await asyncio.sleep(pause_s)
        finally:
            self.at_work = False
        return len(self.names)

    @handler
    async def everything(self) -> list[str]:
        return self.names


class Appending:
    """What worlds of sessions have in common: a node appends to them.

    Attributes:
        keys: of the sessions.
        count: how many appends there were.
    """

    rng: random.Random
    faults: bool
    ledger: Ledger
    keys: Sequence[str] = KEYS
    count = 0

    def refs(self, node: Any) -> EntityRefs[Any]:
        """References to sessions, as a node makes them."""
        return node.entities.ref(Session, "sessions")

    def is_leaving(self, node: Any) -> bool:
        """Whether a node is being stopped."""
        return bool(node._stopping)

    async def append(self, node: Any) -> None:
        """Append to a session, once or several times in a row."""
        rng, key = self.rng, self.rng.choice(self.keys)
        for _ in range(rng.randint(1, 3)):
            self.count += 1
            name = f"{self.count}"
            entry = self.ledger.appends[name] = Append(key, rng.random() < 0.2)
            ref = self.refs(node)[key].within(60 if not self.faults else rng.choice([1, 5, 60]))
            pause_s = rng.choice([0.0, 0.002, 0.3, 2.0])
            try:
                if entry.is_cast:
                    await ref.cast(Session.append, name, pause_s)
                    entry.outcome = "accepted"
                else:
                    entry.outcome = await ref.call(Session.append, name, pause_s)
            except FleetError as error:
                entry.outcome = error
                entry.was_left_behind = self.is_leaving(node)
                return
            except asyncio.CancelledError:  # Its node has ended.
                entry.outcome = "nobody knows"
                entry.was_left_behind = True
                raise


class World(Disturbed, Appending):
    """One run of a seed.

    Args:
        seed: decides everything.
        faults: whether partitions, freezes, stalls and crashes happen.
    """

    def __init__(self, seed: int, *, faults: bool) -> None:
        self.rng = random.Random(f"entities {seed}")
        self.faults = faults
        latency_s = (0.0002, self.rng.choice([0.001, 0.02]))
        self.cluster = SimCluster(seed=seed, settings=ONE_PORT, latency_s=latency_s)
        self.ledger = Ledger()
        self.callers: list[asyncio.Task[Any]] = []
        self.drains: list[asyncio.Task[Any]] = []
        self.reports: list[DrainReport] = []
        self.idle_s = self.rng.choice([0.2, 2.0, 600.0])
        self.final: dict[str, list[str]] = {}
        """Key → what the session has in the end."""

    async def play(self, steps: int = 25) -> None:
        """Play a story, and check what must hold."""
        async with self.cluster:
            least, most = self.first_hosts()
            nodes = [
                (await self.cluster.start(clock_s=self.clock_s()))[0]
                for _ in range(self.rng.randint(least, most))
            ]
            for node in nodes[: self.rng.randint(least, len(nodes))]:
                await self.host(node)
                await asyncio.sleep(self.rng.choice([0, 0, 0.3, 3]))
            await self.cluster.mesh(timeout=60)
            await asyncio.sleep(2)
            for _ in range(steps):
                await self.step()
            await self.settle()
            await self.check()

    def first_hosts(self) -> tuple[int, int]:
        """Return how many hosts there are in the beginning, at least and at most."""
        return 2, 4

    def clock_s(self) -> float:
        """Return by how much the wall clock of a node that starts is wrong, in seconds."""
        return self.rng.choice([0.0, self.rng.uniform(-86_400, 86_400)])

    async def wait(self, seconds: float) -> None:
        """Let some time pass."""
        await asyncio.sleep(seconds)

    def hosts(self) -> list[Node]:
        """The nodes that host sessions, without those that drain."""
        return [each for each in self.nodes() if self.is_host(each) and not each.is_draining]

    def is_host(self, node: Node) -> bool:
        return bool(node.entities._hosted)

    async def host(self, node: Node) -> None:
        await node.entities.host(
            Session, "sessions", args=(self.ledger,), shards=SHARDS, idle_s=self.idle_s, handoff_s=5
        )

    async def step(self) -> None:
        """Do something, and wait for a moment."""
        rng = self.rng
        chance = rng.random()
        if chance < 0.3:
            await self.change(rng.choice(CALM))
        elif chance < 0.5 and self.faults:
            await self.change(rng.choice(STORMY))
        else:
            for _ in range(rng.randint(1, 8)):
                self.callers.append(asyncio.create_task(self.append(rng.choice(self.nodes()))))
        await asyncio.sleep(rng.choice([0.0, 0.001, 0.01, 0.1, 1.0, 3.0]))

    async def change(self, what: str) -> None:
        rng = self.rng
        if not self.faults:
            await self.cluster.mesh(timeout=60)  # A node that leaves must know the host that has just come.
        node = rng.choice(self.nodes())
        others = [each for each in self.hosts() if each is not node]
        match what:
            case "join" if len(self.nodes()) < 5:
                (fresh,) = await self.cluster.start(clock_s=self.clock_s())
                await self.host(fresh)
            case "drain" if others:
                if node.is_draining:
                    node.undrain()
                else:
                    self.drains.append(asyncio.create_task(self.drain(node)))
                    await asyncio.sleep(0.001)  # It is announced, so the next drain leaves a host.
            case "restart" if others:
                was_host = self.is_host(node)
                await self.cluster.stop(node, drain_s=LONG_S)
                if node.drain_report is not None:
                    self.reports.append(node.drain_report)
                again = await self.cluster.start_at(self.cluster.ip_of(node.name), clock_s=self.clock_s())
                if was_host:
                    await self.host(again)
            case "move" if others:
                shard = rng.randrange(SHARDS)
                move = self.refs(node).move(shard, rng.choice(others).name)
                self.drains.append(asyncio.create_task(ignoring(move)))
            case "crash" if others:
                ip = self.cluster.ip_of(node.name)
                for alive in self.ledger.alive.values():
                    while node.name in alive:
                        alive.remove(node.name)
                await self.crash(node)
                if rng.random() < 0.8:
                    await self.host(await self.cluster.start_at(ip, clock_s=self.clock_s()))
            case "partition" | "one way" | "freeze" | "stall":
                self.disturb(what, node)
            case _:
                return

    async def crash(self, node: Node) -> None:
        await self.cluster.crash(node)

    async def drain(self, node: Node) -> None:
        try:
            self.reports.append(await node.drain(LONG_S))
        except FleetError:
            return  # The node was stopped just before.

    async def settle(self) -> None:
        """Let everything heal and end."""
        self.calm_down()
        await asyncio.wait_for(asyncio.gather(*self.callers), 600)
        await asyncio.wait_for(asyncio.gather(*self.drains), 600)
        for node in self.nodes():
            node.undrain()
        await self.cluster.mesh(timeout=300)
        await self.rest()

    async def rest(self) -> None:
        """Wait until all nodes agree and nothing moves, but not for ever: `check` says what is wrong then."""
        until = self.cluster.loop.time() + REST_S
        await asyncio.sleep(3)
        while self.cluster.loop.time() < until and not self.is_at_rest():
            await asyncio.sleep(1)

    def is_at_rest(self) -> bool:
        """See `is_at_rest`."""
        owners = [self.refs(node).shards() for node in self.nodes()]
        return is_at_rest(self.nodes(), self.hosts(), owners, SHARDS)

    async def check(self) -> None:
        ledger = self.ledger
        assert not ledger.faults, ledger.faults
        ledger.check_outcomes(faults=self.faults)
        await self.check_end()
        self.final = {key: await self.refs(self.nodes()[0])[key].call(Session.everything) for key in KEYS}
        if not self.faults:
            ledger.check_calm(self.final, {name for report in self.reports for name in report.unmoved})

    async def check_end(self) -> None:
        nodes, hosts = self.nodes(), self.hosts()
        owners = self.refs(nodes[0]).shards()
        assert sorted(owners) == list(range(SHARDS)), owners
        for node in nodes:
            assert self.refs(node).shards() == owners, node.name
        counts = [sum(owner == host.name for owner in owners.values()) for host in hosts]
        assert max(counts) - min(counts) <= 1, owners
        for key in KEYS:
            first = len(await self.refs(nodes[0])[key].call(Session.everything))
            for number, node in enumerate(nodes, 1):
                name = f"end {key} {node.name}"
                self.ledger.appends[name] = Append(key, is_cast=False)
                assert await self.refs(node)[key].call(Session.append, name, 0.0) == first + number, key
        for node in nodes:
            assert not node._parts.replicated_shards._waiting, node.name
            for hosting in node.entities._hostings():
                check_nothing_is_left(hosting)


def is_at_rest(nodes: Sequence[Any], hosts: Sequence[Any], owners: list[dict[int, str]], shards: int) -> bool:
    """Whether all agree, each host has its share, nothing moves, and no entity has work.

    Args:
        nodes: all nodes.
        hosts: those that have shards.
        owners: who owns each shard, as each node sees it.
        shards: how many there are.
    """
    if not hosts or len(owners[0]) < shards or any(each != owners[0] for each in owners):
        return False
    counts = [sum(owner == host.name for owner in owners[0].values()) for host in hosts]
    return (
        sum(counts) == shards
        and max(counts) - min(counts) <= 1
        and all(
            not host.handoff.moving and all(seat.is_idle for seat in host.seats.values())
            for node in nodes
            for host in node.entities._hostings()
        )
    )


def check_nothing_is_left(hosting: Hosting) -> None:
    """Look whether a host is at rest, and has nothing of shards that it does not own."""
    handoff: Any = hosting.handoff
    left = (handoff._moving, handoff._staged, handoff._tasks, handoff._sealed)
    assert not any(left), left
    assert hosting.kept_bytes == sum(
        len(key) + len(kept.packed or b"") + 64
        for each in hosting.kept.values()
        for key, kept in each.items()
    )
    own = hosting.table.own(hosting.kind)
    assert own is not None
    assert hosting.kept.keys() | hosting.in_shard.keys() <= own.claims.keys()


async def ignoring(work: Any) -> None:
    """Wait for something that may fail."""
    try:
        await work
    except (FleetError, ValueError):
        return
