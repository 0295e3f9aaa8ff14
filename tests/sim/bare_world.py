"""Clusters of bare nodes that host entities and offer a singleton, while everything happens to them.

The stories are those of `entity_world`, `quorum_world` and `leader_world`, without the way of their messages:
`bare_node` says what is the library's own. A story takes some milliseconds in place of a second, so that
thousands of them fit into a run of the tests. Nodes join, drain, leave in order, come back, and shards are
moved; with faults, nodes also crash, freeze, and are cut off, in one direction, too. Each node has a clock of
its own, up to 4 % faster or slower than the true time, and a wall clock that is wrong by up to a day.

What must hold is what these modules say, and in each story:

* What an append has come to is true, it ran at most once, and after it none ran under a lower epoch, where
  entities do not live twice.
* In a story without faults, and with a quorum whatever happens: no entity and no run of the singleton begins
  while another one lives on a node that runs; with a quorum, after each event no shard is served by two
  nodes, each judged by its own clock.
* Without faults: a node that joins a quiet cluster gets at most its share of the shards, and nothing else
  moves; when one leaves, nothing moves but what it had.
* In the end all agree, and nothing is left over.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import random
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from fleetlm import Quorum, handler
from fleetlm.entities import hosting
from fleetlm.entities.entity_ref import EntityRefs
from fleetlm.entities.hosting import Hosting
from fleetlm.leaders.plan import kind_of
from tests.sim import leader_world
from tests.sim.bare_loops import NodeLoop, TrueTime
from tests.sim.bare_network import Network
from tests.sim.bare_node import BareNode
from tests.sim.entity_world import (
    CALM,
    STORMY,
    Append,
    Appending,
    Ledger,
    Session,
    check_nothing_is_left,
    ignoring,
    is_at_rest,
)  # fmt: skip

EXPECTED = 5
KEYS = [f"s{number}" for number in range(5)]
LONG_S = 120.0
WALL_MS = 1_700_000_000_000
SPEED = (0.96, 1.04)
BOSS = kind_of("boss")
END_S = 180.0
"""Seconds for everything to end and to agree: a shard that could not be balanced is tried again within one
minute."""
REVIEW_S = 1.0
"""Seconds between two looks of a host where nothing happens. They would be most of a story."""
WORK_S = 0.5
"""Seconds between two things that a run of the singleton does, on the clock of its node."""
LONG_CUT_S = 11.0
"""Seconds in which the others take over from a node that they have lost."""
THAWED_S = 0.5
"""Seconds after a thaw in which what the lease has killed may still clean up."""


class Watched(Session):
    """Looks whether another one lives, and that epochs do not fall."""

    ledger: BareLedger

    async def load(self, state: Any) -> None:
        self.ledger.began(self)
        self.names = list(state or ())

    async def terminate(self, reason: Any) -> None:
        """Nothing: a killed entity has no such call."""

    @handler
    async def append(self, name: str, pause_s: float) -> int:
        self.ledger.accepted(self)
        return await super().append(name, pause_s)

    @handler
    async def everything(self) -> list[str]:
        return [*self.names]


class BareLedger(Ledger):
    """Everything that happened to the sessions.

    Args:
        is_strict: whether no entity may ever live twice.
    """

    def __init__(self, *, is_strict: bool) -> None:
        super().__init__()
        self.is_strict = is_strict
        self.living: dict[str, list[tuple[BareNode, Any]]] = {}
        self.highest: dict[str, int] = {}

    def began(self, session: Watched) -> None:
        """Note that a session begins to live."""
        here: Any = session.node
        key, pid = session.key, session.pid
        alive = [
            (node, other)
            for node, other in self.living.get(key, ())
            if not node.loop.is_dead and node is not here and node.local.process(other) is not None
        ]
        awake = [node for node, _ in alive if not node.loop.is_frozen]
        if self.is_strict and awake:
            self.twice.append(f"{key} lives on {awake[0]} and begins on {here}")
        self.living[key] = [*alive, (here, pid)]
        self.lives.setdefault(key, []).append((pid, session.epoch))

    def accepted(self, session: Watched) -> None:
        """Note that a session begins an append."""
        key, epoch = session.key, session.epoch
        highest = self.highest.get(key, 0)
        shard = session.node.entities.ref(Watched, "sessions").shard(key)
        is_lower = self.is_strict and epoch < highest
        if is_lower and not may_have_forgotten(session.node, "sessions", shard, highest):
            self.faults.append(f"{key} appends under {epoch}, and has under {highest}")
        self.highest[key] = epoch


def may_have_forgotten(node: Any, kind: str, shard: int, epoch: int) -> bool:
    """Whether a majority of the members have never heard of an epoch.

    Members that start anew one after the other, while nobody can own a shard, remember nothing of it. Then
    epochs begin with the wall clock again, which may have been set back.
    """
    tables = [each.shards.table for each in node.network.nodes.values()]
    unaware = sum(table.seen(kind, shard) < epoch for table in tables)
    return unaware > node.network.members // 2 > 0


class BossLedger(leader_world.Ledger):
    """The runs of the singleton; what stands still on a frozen node does not go on."""

    def began(self, node: Any, epoch: int) -> leader_world.Run:
        still = [run for run in self.runs if run.goes_on and run.node is not node and stands_still(run)]
        for run in still:
            run.goes_on = False
        self.runs = [
            run
            for run in self.runs
            if run.goes_on or run.epoch < epoch or not may_have_forgotten(node, BOSS, 0, run.epoch)
        ]
        made = super().began(node, epoch)
        for run in still:
            run.goes_on = True
        return made

    def acted(self, run: leader_world.Run, epoch: int) -> None:
        super().acted(run, epoch)
        for other in self.runs:
            if self.is_strict and other is not run and other.goes_on and not stands_still(other):
                self.wrong.append(f"a run on {run.node} acts while one on {other.node} goes on")


def stands_still(run: leader_world.Run) -> bool:
    """Whether the node of a run is frozen, or has just thawed."""
    node: Any = run.node
    return node.loop.is_frozen or node.network.times.now < node.thawed_at + THAWED_S


class Placed(BareNode):
    """A node that knows what was done to it."""

    thawed_at = -1.0
    hosts_since = math.inf

    def describe(self) -> str:
        """Return its name and how it is."""
        what = ("drains" * bool(self.step), "is frozen" * self.loop.is_frozen)
        return " ".join([self.name, *filter(None, what)])


class BareWorld(Appending):
    """One run of a seed.

    Args:
        seed: decides everything.
        safety: of the entities, and of the singleton.
        faults: whether crashes, freezes and cuts happen.
    """

    def __init__(self, seed: int, safety: Literal["available", "quorum"], *, faults: bool) -> None:
        self.rng = rng = random.Random(f"bare {safety} {faults} {seed}")
        self.faults = faults
        self.has_quorum = safety == "quorum"
        self.times = TrueTime()
        self.network = Network(self.times, rng, (0.0002, rng.choice([0.001, 0.02])))
        self.safety: Any = Quorum(EXPECTED, rng.choice([4.0, 8.0, 8.0, 8.0])) if self.has_quorum else safety
        self.network.members = EXPECTED if self.has_quorum else 0
        self.ledger: BareLedger = BareLedger(is_strict=self.has_quorum or not faults)
        self.bosses = BossLedger(is_strict=self.has_quorum or not faults)
        self.keys = KEYS
        self.has_boss = rng.random() < 0.25
        self.crash_soon = False
        self.shards = rng.choice([1, 4, 8])
        self.idle_s = rng.choice([0.5, 600.0])
        self.tasks: list[tuple[BareNode, asyncio.Task[Any]]] = []
        self.reports: list[tuple[str, ...]] = []
        self.serving: dict[str, set[tuple[str, int]]] = {}
        self.wrong: list[str] = []
        self.final: dict[str, list[str]] = {}
        self.names = 0
        self.moved = 0
        """How many measured changes there were; see `measured`."""

    # A story.

    def play(self, steps: int = 12) -> None:
        """Play a story, and check what must hold."""
        rng = self.rng
        usual, vars(hosting)["REVIEW_S"] = hosting.REVIEW_S, REVIEW_S
        try:
            least = 2 if not self.has_quorum else 3 if self.faults else 4
            for _ in range(rng.randint(least, 4)):
                node: Placed = self.start()
                if self.has_quorum or len(self.network.nodes) < 3 or rng.random() < 0.8:
                    self.host(node)
                self.wait(rng.choice([0.0, 0.0, 0.3, 3.0]))
            self.wait(rng.choice([3.0, 10.0]))
            for _ in range(steps):
                self.step()
                self.check_now()
            self.settle()
            self.check_end()
        finally:
            vars(hosting)["REVIEW_S"] = usual
            for node in self.nodes():
                self.end(node)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.times.run_until(self.times.now + seconds)

    def until(self, is_so: Callable[[], bool], within_s: float, pause_s: float = 0.5) -> bool:
        """Let time pass until something is so. Returns whether it came."""
        until = self.times.now + within_s
        while not is_so():
            if self.times.now >= until:
                return False
            self.wait(pause_s)
        return True

    # Nodes.

    def nodes(self) -> list[Placed]:
        """The nodes that run."""
        return [node for node in self.network.nodes.values() if isinstance(node, Placed)]

    def hosts(self) -> list[Placed]:
        """The nodes that host the sessions, without those that drain."""
        return [each for each in self.nodes() if self.is_host(each) and not each.is_draining]

    @staticmethod
    def is_host(node: BareNode) -> bool:
        return "sessions" in node.entities._hosted

    def start(self, name: str = "") -> Placed:
        """Start a node, under a new name if none is given."""
        rng = self.rng
        self.names += not name
        name = name or f"fleetlm@10.0.0.{self.names}"
        loop = NodeLoop(self.times, rng.uniform(0, 1e6), rng.uniform(*SPEED), lambda: self.look(name))
        clock_s = rng.choice([0.0, rng.uniform(-86_400, 86_400)])
        wall_ms = WALL_MS + int((self.times.now + clock_s) * 1000)
        self.count += 1
        life, known = self.count, [*self.network.nodes]
        node = loop.within(lambda: Placed(name, life, loop, self.network, wall_ms, known))
        self.network.add(node)
        return node

    def host(self, node: Placed) -> None:
        """Have a node host the sessions, and offer the singleton."""
        node.hosts_since = self.times.now
        self.run(node, node.entities.host(Watched, "sessions", **self.how(node)))
        if self.has_boss:
            node.loop.within(lambda: self.offer(node))

    def how(self, node: BareNode) -> dict[str, Any]:
        """How a node hosts the sessions: the arguments of `Entities.host`."""
        del node
        return {
            "args": (self.ledger,), "shards": self.shards, "idle_s": self.idle_s, "handoff_s": 5,
            "settle_s": 2.0, "rebalance_s": 2.0, "safety": self.safety,
        }  # fmt: skip

    def offer(self, node: BareNode) -> None:
        """Offer the singleton on a node."""
        boss = leader_world.boss_of(self, self.bosses, WORK_S)
        node.singletons._offer("boss", boss, (), self.safety, 3.0, 2.0, (3, 60.0, (0.1, 1.0)))

    def run(self, node: BareNode, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something on a node."""
        return node.loop.within(lambda: node.loop.create_task(work))

    def refs(self, node: BareNode) -> EntityRefs[Watched]:
        return node.entities.ref(Watched, "sessions")

    def is_leaving(self, node: BareNode) -> bool:
        return node.is_leaving

    def end(self, node: Any) -> None:
        """End a node at once; nothing that it does while it ends reaches anybody."""
        self.network.quiet(node)
        self.network.remove(node)
        for end in [*node.sessions.values()]:
            end.is_up = False
        self.serving.pop(node.name, None)
        self.bosses.gone(node)
        node.loop.is_frozen = False
        node.requests.stopped = "has died"
        for process in node.local.every():
            process._end_with("shutdown", again=True)
        node.loop.end()

    # What happens.

    def step(self) -> None:
        """Do something, and wait for a moment."""
        rng = self.rng
        chance = rng.random()
        if chance < 0.4:
            self.change(rng.choice(CALM))
        elif chance < 0.65 and self.faults:
            if rng.random() < 0.5:
                self.append_some()  # What waits in a mailbox then must not run after the end of a lease.
                self.wait(0.05)
            self.change(rng.choice(STORMY))
            self.wait(rng.choice([0.0, 0.0, LONG_CUT_S]))
        else:
            self.append_some()
        if self.has_boss and rng.random() < 0.1:
            self.crash_soon = True
        self.wait(rng.choice([0.0, 0.001, 0.01, 0.1, 1.0, 3.0]))

    def append_some(self) -> None:
        """Append to some sessions from nodes that run."""
        awake = [node for node in self.nodes() if not node.loop.is_frozen]
        for _ in range(self.rng.randint(1, 5) if awake else 0):
            node = self.rng.choice(awake)
            self.tasks.append((node, self.run(node, self.append(node))))

    def change(self, what: str) -> None:
        """Let something happen to the cluster."""
        rng = self.rng
        if not self.faults:
            self.until(self.is_meshed, 60)  # A node that leaves must know the host that has just come.
        node = rng.choice(self.nodes())
        others = [each for each in self.hosts() if each is not node]
        if node.loop.is_frozen and what not in {"crash", "partition", "one way", "join"}:
            self.calm_down()
            return
        is_measured = not self.faults and rng.random() < 0.3
        match what:
            case "join" if len(self.nodes()) < EXPECTED:
                self.measured(is_measured, lambda: self.host(self.start()), None)
            case "drain" if others:
                if node.is_draining:
                    node.loop.within(node.undrain)
                else:
                    self.tasks.append((node, self.run(node, self.drain(node))))
                    self.wait(0.001)  # It is announced, so the next drain leaves a host.
            case "restart" if others and self.may_stop(node):
                was_host = self.is_host(node)
                self.measured(is_measured, lambda: self.stop(node), node)
                again = self.start(node.name)
                if was_host:
                    self.host(again)
            case "move" if others:
                move = self.refs(node).move(rng.randrange(self.shards), rng.choice(others).name)
                self.tasks.append((node, self.run(node, ignoring(move))))
            case "crash" if others:
                self.crash(node)
                if rng.random() < 0.8:
                    self.host(self.start(node.name))
            case "partition" | "one way" | "freeze" | "stall":
                self.disturb(what, node)
            case _:
                return

    def may_stop(self, node: BareNode) -> bool:
        """Whether enough members are left when a node stops, for a quorum in a story without faults."""
        if self.faults or not self.has_quorum:
            return True
        old = self.times.now - 1.5 * self.safety.lease_s
        voters = [each for each in self.nodes() if each.hosts_since < old and each is not node]
        return len(voters) > EXPECTED // 2

    def measured(self, is_measured: bool, change: Callable[[], None], leaver: BareNode | None) -> None:
        """Let a node join, or leave, and look what has moved once all is quiet, if it is to be measured."""
        if not is_measured or not self.until(self.is_quiet, 90):
            change()
            return
        before, hosts = self.owners(), len(self.hosts())
        is_host = leaver is not None and self.is_host(leaver)
        change()
        assert self.until(self.is_quiet, 90), self.owners()
        moved = {shard for shard, owner in self.owners().items() if owner != before[shard]}
        if leaver is None:
            assert len(moved) <= -(-self.shards // (hosts + 1)), (before, self.owners())
        else:
            had = {shard for shard, owner in before.items() if owner == leaver.name}
            assert moved == (had if is_host else set()), (leaver.name, before, self.owners())
        self.moved += 1

    def owners(self) -> dict[int, str]:
        """Who owns each shard, as the first node sees it."""
        return self.refs(self.nodes()[0]).shards()

    def is_meshed(self) -> bool:
        """Whether all nodes are connected, and know which of them drain."""
        return all(
            len(node.sessions) == len(self.nodes()) - 1
            and all(end.drain_step == end.peer.step for end in node.sessions.values())
            for node in self.nodes()
        )

    def is_quiet(self) -> bool:
        """Whether all nodes agree, each host has its share, and nothing moves."""
        if not (self.is_meshed() and all(task.done() for _, task in self.tasks)):
            return False
        if self.has_quorum and any(self.left_s(node) < self.safety.lease_s / 2 for node in self.hosts()):
            return False  # It may still lose what it has, for a disturbance that is over.
        owners = [self.refs(node).shards() for node in self.nodes()]
        return is_at_rest(self.nodes(), self.hosts(), owners, self.shards)

    @staticmethod
    def left_s(node: BareNode) -> float:
        """Seconds that the leases of a node last, at least."""
        guards: list[Any] = [host.majority for host in node.entities._hostings()]
        return min(guard._lease.until - guard._loop.time() for guard in guards)

    def stop(self, node: BareNode) -> None:
        """Drain a node and stop it, as a program does that is told to end."""
        self.do(node, self.leave(node), 2 * LONG_S)
        self.end(node)

    async def leave(self, node: BareNode) -> None:
        await self.drain(node)
        await node.stop()

    async def drain(self, node: BareNode) -> None:
        self.reports.append(await node.drain(20.0 if self.faults else LONG_S))

    def crash(self, node: BareNode) -> None:
        """Kill the process of a node, or its whole machine."""
        sessions = [*node.sessions.values()]
        self.end(node)
        if self.rng.random() < 0.5:  # The system says that the process has gone.
            for end in sessions:
                other = end.other
                self.times.at(
                    self.times.now + 0.01, other.node.loop, other.down, "it has died", rank=other.rank
                )

    def disturb(self, what: str, node: Placed) -> None:
        """Let one disturbance begin, after the end of the one before."""
        self.calm_down()
        others = [each.name for each in self.nodes() if each is not node]
        match what:
            case "partition":
                side = [node.name, *self.rng.sample(others, self.rng.randint(0, len(others) // 2))]
                for one in side:
                    for other in others:
                        if other not in side:
                            self.network.cut(one, other)
                            self.network.cut(other, one)
            case "one way" if others:
                self.network.cut(node.name, self.rng.choice(others))
            case "stall":  # It hears nothing, and is heard.
                for other in others:
                    self.network.cut(other, node.name)
            case "freeze":
                node.loop.freeze()
                self.network.quiet(node)
            case _:
                return

    def calm_down(self) -> None:
        """End every disturbance."""
        self.network.heal()
        for node in self.nodes():
            if node.loop.is_frozen:
                node.thawed_at = self.times.now
                node.loop.thaw(self.rng.choice([self.rng.shuffle, lambda _: None]))

    def do(self, node: BareNode, work: Coroutine[Any, Any, Any], within_s: float = 60.0) -> Any:
        """Have a node do something, and wait for the end."""
        task = self.run(node, work)
        assert self.until(task.done, within_s, 0.02), f"{work} has not ended in {within_s:g} s"
        return task.result()

    # What must hold.

    def look(self, name: str) -> None:
        """Look what a node serves, after something has happened there."""
        node = self.network.nodes.get(name)
        if not self.has_quorum or node is None:
            return
        mine: set[tuple[str, int]] = set()
        for here in node.entities._hosted.values():
            mine.update((here.kind, shard) for shard in self.served(here))
        self.serving[name] = mine
        if not mine:
            return
        for other, theirs in self.serving.items():
            if other != name and not theirs.isdisjoint(mine):
                for there in self.network.nodes[other].entities._hostings():
                    both = {shard for shard in self.served(there) if (there.kind, shard) in mine}
                    if both:
                        self.wrong.append(f"{self.times.now:.3f}: {other} and {name} serve {both}")

    def served(self, host: Hosting) -> list[int]:
        """The shards that a host serves now, by its own clock."""
        own = host.table.own(host.kind)
        if own is None or host.is_closed:
            return []
        return [shard for shard in own.claims if host.serves(shard, is_inner=True)]

    def check_now(self) -> None:
        """Look at what must hold at each time."""
        assert not self.wrong, self.wrong[:5]
        assert not self.ledger.faults, self.ledger.faults
        assert not self.ledger.twice, self.ledger.twice
        assert not self.bosses.wrong, self.bosses.wrong

    def settle(self) -> None:
        """Let everything heal and end."""
        self.calm_down()
        self.crash_soon = False
        assert self.until(lambda: all(task.done() for _, task in self.tasks), 2 * LONG_S), self.tasks
        for node, task in self.tasks:
            if not (task.cancelled() or node.loop.is_dead):
                task.result()
        for node in self.nodes():
            node.loop.within(node.undrain)
        least = EXPECTED // 2 + 1 if self.has_quorum else 1
        while len(self.hosts()) < least:
            self.host(self.start())
        assert self.until(self.is_quiet, END_S), (self.times.now, self.owners())
        if self.has_boss:
            assert self.until(lambda: sum(run.goes_on for run in self.bosses.runs) == 1, 30)

    def check_end(self) -> None:
        """Look at what must hold when all is quiet."""
        ledger, nodes = self.ledger, self.nodes()
        self.check_now()
        ledger.check_outcomes(faults=self.faults)
        for key in KEYS:
            names = self.do(nodes[0], self.refs(nodes[0])[key].call(Watched.everything))
            for number, node in enumerate(nodes, 1):
                name = f"end {key} {node.name}"
                ledger.appends[name] = Append(key, is_cast=False)
                count = self.do(node, self.refs(node)[key].call(Watched.append, name, 0.0))
                assert count == len(names) + number, key
            self.final[key] = names
        self.check_now()
        for node in nodes:
            assert not node.shards._waiting, node.name
            if not self.has_quorum:  # Else there are beats at each time.
                left = [node.requests._here, *(end.asked or end.serving for end in node.sessions.values())]
                assert not any(left), (node.name, left)
            for host in node.entities._hostings():
                check_nothing_is_left(host)
        if not self.faults:
            ledger.appends = {name: each for name, each in ledger.appends.items() if name.isdigit()}
            ledger.check_calm(self.final, {name for report in self.reports for name in report})
        if self.has_boss:
            self.check_boss()

    def check_boss(self) -> None:
        """Look at the singleton when all is quiet."""
        (run,) = [run for run in self.bosses.runs if run.goes_on]
        assert {node.singletons.where("boss") for node in self.nodes()} == {run.node.name}


class _Trace(logging.Handler):
    """Prints what the nodes log, with the true time."""

    def __init__(self, world: BareWorld) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{self._world.times.now:9.3f}   {record.getMessage()}")


def main(kind: type[BareWorld]) -> None:
    """Play one seed and print its course."""
    parser = argparse.ArgumentParser(description=kind.__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("safety", choices=["available", "quorum"])
    parser.add_argument("--calm", action="store_true", help="without faults")
    options = parser.parse_args()
    world = kind(options.seed, options.safety, faults=not options.calm)
    change = world.change

    def traced(what: str) -> None:
        print(f"{world.times.now:9.3f} {what} {[each.describe() for each in world.nodes()]}")
        change(what)

    vars(world)["change"] = traced
    log = logging.getLogger("fleetlm")
    log.setLevel(logging.INFO)
    log.handlers, log.propagate = [_Trace(world)], False
    world.play()
    print(f"{world.times.now:9.3f} all that must hold holds")


def play(
    seed: int, safety: Literal["available", "quorum"], *, faults: bool, kind: type[BareWorld] | None = None
) -> BareWorld:
    """Play one seed. Raises: AssertionError: something did not hold that must."""
    world = (kind or BareWorld)(seed, safety, faults=faults)
    try:
        world.play()
    except AssertionError as error:
        error.add_note(
            f"replay: python -m {type(world).__module__} {seed} {safety}{'' if faults else ' --calm'}"
        )
        raise
    return world


if __name__ == "__main__":
    main(BareWorld)
