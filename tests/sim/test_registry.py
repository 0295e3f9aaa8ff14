"""Cluster-wide names on whole nodes: one holder after a partition heals, and each loser gets a message."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

import fleetlm
from fleetlm import (
    Actor,
    AlreadyRegistered,
    Call,
    Child,
    Claim,
    Exit,
    FleetError,
    InvalidName,
    MessageTooLarge,
    NameLost,
    NoConnection,
    Node,
    NodeStopped,
    NoProcess,
    NotSerializable,
    Pid,
    Process,
    Registered,
    RemoteError,
    Supervisor,
    TooManyNames,
    Unregistered,
    handler,
)
from fleetlm.core import name_table
from fleetlm.directory import replication
from fleetlm.directory.registry import Event
from fleetlm.testing import SimCluster, run
from tests.sim.fleet import reason_of
from tests.sim.seeded import ONE_PORT, most_are_long

SETTLE_S = 1.0


def story(told: Any, count: int = 1, seed: int = 5, **settings: Any) -> None:
    async def main() -> None:
        async with SimCluster(seed) as cluster:
            nodes = await cluster.start(count, **settings)
            await cluster.mesh(timeout=10)
            await told(cluster, *nodes)

    logging.disable(logging.CRITICAL)
    run(main(), seed=seed)


async def idle(process: Process) -> None:
    async for _ in process.mailbox:
        pass


def keeper(into: list[Any], *, trap: bool = False) -> Any:
    """A process that keeps its messages."""

    async def keep(process: Process) -> None:
        process.trap_exit = trap
        async for message in process.mailbox:
            into.append(message)  # noqa: PERF401  # it never ends, and is looked at meanwhile

    return keep


def read(subscription: fleetlm.directory.subscriptions.Subscription[Event]) -> list[Event]:
    """Return the changes until now."""
    return list(subscription._queue)


# One node.


def test_a_name_is_there_at_once_and_goes_with_its_process() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        registry = node.registry
        pid = node.spawn(idle)
        await registry.register("b", pid, {"zone": 1})
        await registry.register("a", pid)
        assert registry.whereis("b") == registry.resolve_name("b") == pid
        claim = registry.lookup("b")
        assert isinstance(claim, Claim)
        assert (claim.pid, claim.meta) == (pid, {"zone": 1})
        assert list(registry.list()) == ["a", "b"]
        assert node.registered() == {}, "names of a node are others"
        assert await registry.unregister("a") is True
        assert await registry.unregister("a") is False
        node.exit(pid)
        await node.join(pid)
        assert registry.list() == {}
        assert registry.whereis("b") is registry.lookup("b") is None
        with pytest.raises(NoProcess, match="'b'"):
            registry.resolve_name("b")

    story(told)


def test_the_clock_of_a_claim_runs_with_the_nodes() -> None:
    async def told(cluster: SimCluster, node: Node) -> None:
        await asyncio.sleep(100)
        await node.registry.register("x", node.spawn(idle))
        claim = node.registry.lookup("x")
        assert claim is not None
        assert abs(claim.since_ms - cluster._wall_ms - cluster.loop.time() * 1000) <= 2

    story(told)


def test_what_cannot_be_registered() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        registry = node.registry
        pid, other, dead = (node.spawn(idle) for _ in range(3))
        node.exit(dead)
        await node.join(dead)
        await registry.register("x", pid)
        with pytest.raises(AlreadyRegistered) as caught:
            await registry.register("x", other)
        assert caught.value.owner == pid
        former = Pid(node.name, node.incarnation - 1, pid.number)
        for nobody in (dead, former):
            with pytest.raises(NoProcess):
                await registry.register("y", nobody)
        with pytest.raises(InvalidName):
            await registry.register("", pid)
        with pytest.raises(InvalidName):
            await registry.wait_for("")
        with pytest.raises(NotSerializable):
            await registry.register("y", pid, object())
        with pytest.raises(MessageTooLarge, match=r"Settings\.max_meta_bytes"):
            await registry.register("y", pid, "m" * 5_000)
        with pytest.raises(ValueError, match="on_loss"):
            await registry.register("y", pid, on_loss="ignore")  # type: ignore[arg-type]
        await registry.register("y", pid)
        with pytest.raises(TooManyNames):
            await registry.register("z", pid)
        assert list(registry.list()) == ["x", "y"]

    story(told, max_cluster_names=2)


def test_watching_begins_with_the_present_and_alternates() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        registry = node.registry
        pid, other = node.spawn(idle), node.spawn(idle)
        await registry.register("x", pid, 1)
        everything, only_y = registry.watch(), registry.watch("y")
        await registry.register("x", pid, 2)
        await registry.register("x", pid, 2)
        await registry.unregister("x")
        await registry.register("y", other)
        assert read(everything) == [
            Registered("x", pid, 1),
            Unregistered("x", pid, "changed"),
            Registered("x", pid, 2),
            Unregistered("x", pid, "unregistered"),
            Registered("y", other, None),
        ]
        assert read(only_y) == [Registered("y", other, None)]
        await node.stop()
        assert [event async for event in only_y][1:] == [Unregistered("y", other, "exited")]
        assert [event async for event in registry.watch()] == []

    async def main() -> None:
        cluster = SimCluster(5)
        [node] = await cluster.start()
        await told(cluster, node)

    run(main())


def test_a_slow_subscriber_still_ends_with_the_truth() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        changes, pid = node.registry.watch("x"), node.spawn(idle)
        for meta in range(20):
            await node.registry.register("x", pid, meta)
        assert len(read(changes)) <= 4
        assert read(changes)[-1] == Registered("x", pid, 19)

    story(told, events_limit=4)


def test_waiting_for_a_name() -> None:
    async def told(cluster: SimCluster, one: Node, two: Node) -> None:
        for timeout in (0.0, 2.0):
            began = cluster.loop.time()
            with pytest.raises(TimeoutError):
                await one.registry.wait_for("x", timeout)
            assert cluster.loop.time() - began == pytest.approx(timeout)
        assert one._parts.replicated_names._waiters == {}
        waiting = [asyncio.create_task(one.registry.wait_for("x", 30)) for _ in range(3)]
        await asyncio.sleep(1)
        waiting[0].cancel()
        pid = two.spawn(idle)
        await two.registry.register("x", pid)
        assert await asyncio.gather(*waiting[1:]) == [pid, pid]
        assert one._parts.replicated_names._waiters == {}
        assert await one.registry.wait_for("x", 0.0) == pid
        ever = asyncio.create_task(one.registry.wait_for("never"))
        await asyncio.sleep(1)
        await cluster.stop(one)
        with pytest.raises(NodeStopped):
            await ever
        for request in (
            one.registry.wait_for("x"), one.registry.register("x", pid), one.registry.unregister("x")
        ):  # fmt: skip
            with pytest.raises(NodeStopped):
                await request

    story(told, 2)


# Between nodes.


def test_a_name_of_a_process_elsewhere_is_asked_for_there() -> None:
    async def told(cluster: SimCluster, one: Node, two: Node, three: Node) -> None:
        pid, other = two.spawn(idle), two.spawn(idle)
        await one.registry.register("x", pid, {"n": (1,)})
        for node in (one, two):
            assert node.registry.whereis("x") == pid, "seen by who asked, as soon as it is answered"
        await asyncio.sleep(SETTLE_S)
        claim = three.registry.lookup("x")
        assert claim is not None
        assert (claim.pid, claim.meta) == (pid, {"n": (1,)})
        with pytest.raises(AlreadyRegistered) as taken:
            await three.registry.register("x", other)
        assert taken.value.owner == pid
        with pytest.raises(AlreadyRegistered):
            await three.registry.register("x", three.spawn(idle))
        with pytest.raises(NoProcess):
            await one.registry.register("y", Pid(two.name, two.incarnation, 99))
        with pytest.raises(NoProcess):
            await one.registry.register("y", Pid(two.name, 7, pid.number))
        with pytest.raises(NoConnection):
            await one.registry.register("y", Pid("n@10.9.9.9", 7, 1))
        await one.registry.register("y", other)
        with pytest.raises(TooManyNames) as full:
            await one.registry.register("z", other)
        assert full.value.node == two.name
        assert await three.registry.unregister("x") is True
        assert three.registry.whereis("x") is None
        assert two.registry.list() == {"y": other}
        assert await one._outbound.ask(two.name, "disclaim", ["y", pid], 5) is False
        for argument in (["", pid, b"\xc0", "exit"], ["w", pid, b"\xc0" * 70_000, "exit"]):
            with pytest.raises(RemoteError):
                await one._outbound.ask(two.name, "claim", argument, 5)
        assert cluster.meshed()

    story(told, 3, max_cluster_names=4)


def test_a_meta_that_is_none_costs_the_connection_and_no_more() -> None:
    async def told(cluster: SimCluster, one: Node, two: Node) -> None:
        pid = two.spawn(idle)
        with pytest.raises(fleetlm.NodeLost):
            await one._outbound.ask(two.name, "claim", ["x", pid, b"\xc1", "exit"], 5)
        one._parts.replication.tell("names", ["has", [["x", -1, b"\xc0", 5]]])
        await cluster.mesh(timeout=60)
        assert two.registry.list() == {}

    story(told, 2)


def test_names_of_a_node_that_is_lost_are_free_and_those_of_the_next_incarnation_are_others() -> None:
    async def told(cluster: SimCluster, one: Node, two: Node) -> None:
        pid = two.spawn(idle)
        await two.registry.register("x", pid)
        await asyncio.sleep(SETTLE_S)
        changes = one.registry.watch("x")
        two = await cluster.restart(two)
        await cluster.mesh(timeout=30)
        assert one.registry.list() == two.registry.list() == {}
        fresh = two.spawn(idle)
        await two.registry.register("x", fresh)
        await asyncio.sleep(SETTLE_S)
        assert read(changes) == [
            Registered("x", pid, None),
            Unregistered("x", pid, "noconnection"),
            Registered("x", fresh, None),
        ]

    story(told, 2)


def test_a_node_that_stops_gives_its_names_up_before_it_goes() -> None:
    async def told(cluster: SimCluster, one: Node, two: Node) -> None:
        pid = two.spawn(idle)
        await two.registry.register("x", pid)
        await asyncio.sleep(SETTLE_S)
        changes = one.registry.watch()
        await cluster.stop(two)
        await asyncio.sleep(SETTLE_S)
        assert [event.reason for event in read(changes) if isinstance(event, Unregistered)] == ["exited"]

    story(told, 2)


def test_many_names_reach_a_node_that_comes_later() -> None:
    async def told(cluster: SimCluster, one: Node) -> None:
        pid = one.spawn(idle)
        for number in range(1_500):
            await one.registry.register(f"session {number}", pid, "m" * 200)
        [two] = await cluster.start()
        await cluster.mesh(timeout=10)
        await asyncio.sleep(SETTLE_S)
        assert len(two.registry.list()) == 1_500
        assert two.registry.list() == one.registry.list()

    story(told)


@pytest.mark.parametrize("order", [0, 1])
def test_two_sides_of_a_partition_agree_on_the_older_one_and_the_other_one_ends(order: int) -> None:
    async def told(cluster: SimCluster, *nodes: Node) -> None:
        cluster.partition(nodes[:2])
        await asyncio.sleep(20)
        first, second = (nodes[0], nodes[2]) if order else (nodes[2], nodes[0])
        old, young = first.spawn(idle), second.spawn(idle)
        await first.registry.register("x", old, "old")
        await asyncio.sleep(1)
        await second.registry.register("x", young, "young")
        await second.registry.register("second name", young)
        ends = asyncio.create_task(reason_of(second, young))
        await asyncio.sleep(1)
        assert {node.registry.whereis("x") for node in nodes} == {old, young}
        cluster.heal()
        await cluster.mesh(timeout=60)
        await asyncio.sleep(SETTLE_S)
        assert await ends == NameLost("x", old)
        assert [node.registry.list() for node in nodes] == [{"x": old}] * 4

    story(told, 4)


def test_what_the_loser_of_a_name_gets() -> None:
    async def told(cluster: SimCluster, one: Node, two: Node) -> None:
        asked: list[Any] = []
        trapped: list[Any] = []
        message, trap = two.spawn(keeper(asked)), two.spawn(keeper(trapped, trap=True))
        cluster.partition([one])
        await asyncio.sleep(20)
        winner = one.spawn(idle)
        for name in ("x", "y"):
            await one.registry.register(name, winner)
        await asyncio.sleep(1)
        await two.registry.register("x", message, on_loss="message")
        await two.registry.register("y", trap)
        cluster.heal()
        await cluster.mesh(timeout=60)
        await asyncio.sleep(SETTLE_S)
        assert asked == [NameLost("x", winner)]
        assert trapped == [Exit(Pid(two.name, two.incarnation, 0), NameLost("y", winner))]
        assert two.process_info(message) is not None
        assert two.process_info(trap) is not None
        assert str(NameLost("x", winner)) == f"it lost the name 'x' to {winner}"

    story(told, 2)


def test_a_program_may_decide_otherwise() -> None:
    calls: list[tuple[Claim, Claim]] = []

    def most_links(first: Claim, second: Claim) -> Claim:
        calls.append((first, second))
        return max(first, second, key=lambda claim: claim.meta["sessions"])

    async def told(cluster: SimCluster, one: Node, two: Node) -> None:
        for node in (one, two):
            node.registry.resolve = most_links
            assert node.registry.resolve is most_links
        cluster.partition([one])
        await asyncio.sleep(20)
        few, many = one.spawn(idle), two.spawn(idle)
        await one.registry.register("x", few, {"sessions": 1})
        await asyncio.sleep(1)
        await two.registry.register("x", many, {"sessions": 9})
        cluster.heal()
        await cluster.mesh(timeout=60)
        await asyncio.sleep(SETTLE_S)
        assert one.registry.list() == two.registry.list() == {"x": many}
        assert {(first.pid, second.pid) for first, second in calls} == {(few, many)}

    story(told, 2)


@pytest.mark.parametrize("wrong", ["raises", "returns a copy", "returns nothing"])
def test_a_rule_that_fails_is_no_rule(wrong: str, caplog: pytest.LogCaptureFixture) -> None:
    def resolve(first: Claim, second: Claim) -> Any:
        if wrong == "raises":
            raise ZeroDivisionError
        return Claim("x", second.pid, None, 0) if "copy" in wrong else None

    async def main() -> None:
        async with SimCluster(5) as cluster:
            one, two = await cluster.start(2)
            old, young = one.spawn(idle), two.spawn(idle)
            for node, pid in ((one, old), (two, young)):
                node.registry.resolve = resolve
                await node.registry.register("x", pid)
                await asyncio.sleep(0.001)
            await cluster.mesh(timeout=30)
            await asyncio.sleep(SETTLE_S)
            assert one.registry.list() == two.registry.list() == {"x": old}

    logging.disable(logging.NOTSET)
    with caplog.at_level(logging.ERROR, "fleetlm"):
        run(main())
    assert "for the name 'x'" in caplog.text


def test_a_meta_of_a_type_that_is_not_known_here_is_shown_as_none() -> None:
    @fleetlm.message("test.registry.meta")
    @dataclass(frozen=True)
    class Meta:
        zone: str

    async def told(_: SimCluster, one: Node, two: Node) -> None:
        codec = two.registry._replicated._codec
        codec._types = fleetlm.messages.MessageTypes()
        pid = one.spawn(idle)
        await one.registry.register("x", pid, Meta("a"))
        await asyncio.sleep(SETTLE_S)
        claim = two.registry.lookup("x")
        assert claim is not None
        assert (claim.pid, claim.meta) == (pid, None)
        await one.registry.unregister("x")
        await asyncio.sleep(SETTLE_S)
        assert two.registry.list() == {}

    story(told, 2)


# Supervised.


async def leader(process: Process, name: str) -> None:
    """The example in the documentation of `Registry`."""
    registry = process.node.registry
    with contextlib.closing(registry.watch(name)) as changes:
        while registry.whereis(name) != process.pid:
            try:
                await registry.register(name, process.pid)
            except AlreadyRegistered:
                await anext(changes)
    async for message in process.mailbox:
        if isinstance(message, Call):
            message.reply(process.node.name)


def test_standbys_take_over_and_a_healed_partition_gives_up_no_supervisor() -> None:
    """Losing five names at once exceeds the intensity, but names lost to a peer do not count."""
    names = [f"leader {number}" for number in range(5)]

    def holders(nodes: list[Node]) -> list[dict[str, Pid]]:
        return [node.registry.list() for node in nodes]

    async def told(cluster: SimCluster, *started: Node) -> None:
        nodes = list(started)
        for node in nodes:
            children = [Child(name, leader, (name,)) for name in names]
            node.spawn(Supervisor(children, max_restarts=1), name="top")
        await asyncio.sleep(10)
        held = nodes[0].registry.list()
        assert list(held) == names
        assert holders(nodes) == [held] * 4
        for name, pid in held.items():
            assert await nodes[-1].call(pid, name) == pid.node
        for _ in range(3):
            cluster.partition(nodes[:2], nodes[2:])
            await asyncio.sleep(30)
            assert nodes[0].registry.list() != nodes[-1].registry.list()
            assert all(list(seen) == names for seen in holders(nodes)), "each side has its own leaders"
            cluster.heal()
            await cluster.mesh(timeout=60)
            await asyncio.sleep(30)
            assert holders(nodes) == [held] * 4, "the older ones stay"
        gone = held[names[0]].node
        await cluster.crash(gone)
        await asyncio.sleep(30)
        left = list(cluster.nodes.values())
        now = left[0].registry.list()
        assert holders(left) == [now] * 3
        assert list(now) == names
        assert gone not in {pid.node for pid in now.values()}
        for node in left:
            assert (await node.call("top", "count_children"))["active"] == 5

    story(told, 4)


# Anything may happen.

NAMES = ["a", "b", "c"]


@dataclass
class Player:
    """A process that registers names."""

    node: Node
    pid: Pid
    hears: str
    got: list[Any]
    ended: list[Any]


class Course:
    """One seed: competing claims, ends and partitions; then all faults end, and all is checked."""

    def __init__(self, seed: int, cluster: SimCluster) -> None:
        self.rng = random.Random(f"{seed} names")
        self.cluster = cluster
        self.players: list[Player] = []
        self.views: dict[Node, dict[str, Any]] = {}
        self.tasks: dict[Node, asyncio.Task[None]] = {}
        self.claims: Counter[tuple[str, Pid]] = Counter()

    def met(self, node: Node) -> None:
        view = self.views[node] = {}
        changes = node.registry.watch()

        async def follow() -> None:
            async for event in changes:
                if isinstance(event, Registered):
                    assert event.name not in view
                    view[event.name] = (event.pid, event.meta)
                else:
                    assert view.pop(event.name)[0] == event.pid

        self.tasks[node] = asyncio.create_task(follow())

    def player(self, node: Node) -> Player:
        mine = [p for p in self.players if p.node is node and not p.ended]
        if mine and self.rng.random() < 0.7:
            return self.rng.choice(mine)
        hears = self.rng.choice(["exit", "trap", "message"])
        got: list[Any] = []
        pid = node.spawn(keeper(got, trap=hears == "trap"))
        player = Player(node, pid, hears, got, [])
        self.players.append(player)

        async def watch(process: Process) -> None:
            process.monitor(pid)
            player.ended.append((await process.receive()).reason)

        node.spawn(watch)
        return player

    async def register(self) -> None:
        nodes = list(self.cluster.nodes.values())
        asked, player = self.rng.choice(nodes), self.player(self.rng.choice(nodes))
        if self.rng.random() < 0.7:
            asked = player.node
        name, meta = self.rng.choice(NAMES), self.rng.randrange(3)
        on_loss: Any = "message" if player.hears == "message" else "exit"
        try:
            await asked.registry.register(name, player.pid, meta, on_loss=on_loss, timeout=1.0)
        except FleetError as error:
            if isinstance(error, fleetlm.OutcomeUnknown):
                self.claims[name, player.pid] += 1  # It may have been registered.
        else:
            self.claims[name, player.pid] += 1

    async def unregister(self) -> None:
        node = self.rng.choice(list(self.cluster.nodes.values()))
        with contextlib.suppress(FleetError):
            await node.registry.unregister(self.rng.choice(NAMES), timeout=1.0)

    def end_one(self) -> None:
        alive = [player for player in self.players if not player.ended]
        if alive:
            player = self.rng.choice(alive)
            player.node.exit(player.pid, "kill" if player.hears == "trap" else "bad")

    def partition(self) -> None:
        known = list(self.cluster.nodes)
        self.cluster.partition(self.rng.sample(known, self.rng.randint(1, len(known) - 1)))

    def break_one(self) -> None:
        one, two = self.rng.sample(list(self.cluster.nodes), 2)
        self.cluster.network.break_connection(one, two)

    async def restart(self) -> None:
        ip = self.rng.choice(list(self.cluster.nodes))
        gone = self.cluster.nodes[ip]
        self.met(await self.cluster.restart(ip, clock_s=self.rng.choice((0.0, -3600.0, 3600.0))))
        self.players = [player for player in self.players if player.node is not gone]
        await self.tasks.pop(gone)
        assert self.views.pop(gone) == {}

    async def play(self) -> None:
        for node in await self.cluster.start(self.rng.randint(2, 4)):
            self.met(node)
        steps = [
            (10, self.register), (2, self.unregister), (2, self.end_one), (2, self.partition),
            (2, self.cluster.heal), (1, self.break_one), (1, self.restart),
        ]  # fmt: skip
        for _ in range(self.rng.randint(15, 40)):
            await asyncio.sleep(self.rng.choice((0.0, 0.0, 0.0005, 0.3, 4.0)))
            [(_, step)] = self.rng.choices(steps, [weight for weight, _ in steps])
            done: Any = step()
            if asyncio.iscoroutine(done):
                await done
        self.cluster.heal()
        await self.cluster.mesh(timeout=90)
        await asyncio.sleep(5)
        self.reckon()

    def reckon(self) -> None:
        nodes = list(self.cluster.nodes.values())
        owners = nodes[0].registry.list()
        for node in nodes:
            assert node.registry.list() == owners
            held = {name: node.registry.lookup(name) for name in owners}
            assert self.views[node] == {n: (c.pid, c.meta) for n, c in held.items() if c is not None}
        own = sum(node.registry._table.counts()[0] for node in nodes)
        assert own == len(owners), "no claim is left that does not hold"
        by_pid = {player.pid: player for player in self.players}
        for name, pid in owners.items():
            assert self.claims[name, pid], f"{name} of {pid} was never registered"
            assert by_pid[pid].ended == [], "who holds a name lives"
        for player in self.players:
            lost = [loss.name for loss in map(_loss, player.got) if loss is not None]
            for name, times in Counter(lost).items():
                assert times <= self.claims[name, player.pid], "told once for each claim"
            assert player.hears != "exit" or not lost
            if player.ended and isinstance(player.ended[0], NameLost):
                assert player.hears == "exit"
                assert self.claims[player.ended[0].name, player.pid]
        self.lost = sum(
            bool(player.got) or isinstance(_first(player.ended), NameLost) for player in self.players
        )


def _first(reasons: list[Any]) -> Any:
    return reasons[0] if reasons else None


def _loss(message: Any) -> NameLost | None:
    if isinstance(message, Exit):
        message = message.reason
    return message if isinstance(message, NameLost) else None


def play(seed: int) -> int:
    """Count the processes that lost a name."""
    lost = 0

    async def main() -> None:
        nonlocal lost
        settings = ONE_PORT.replace(poll_interval_s=1.0, node_timeout_s=2.0, backoff_max_s=2.0)
        async with SimCluster(seed, settings=settings) as cluster:
            course = Course(seed, cluster)
            try:
                await course.play()
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise
            lost = course.lost
        for task in course.tasks.values():
            await task
        assert all(view == {} for view in course.views.values())

    logging.disable(logging.CRITICAL)
    run(main(), seed=seed, limit_s=2_000)
    return lost


@pytest.mark.parametrize("first", most_are_long([0, 10, 60, 20, 30, 40, 50, 70], 2))
def test_one_holder_after_everything(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if first >= 60:  # Snapshots take long: much changes, ends and is lost meanwhile.
        monkeypatch.setattr(replication, "FACTS_AT_ONCE", 0)
        monkeypatch.setattr(replication, "PAUSE_S", 0.05)
        monkeypatch.setattr(name_table, "MAX_PIECE_CLAIMS", 1)
    lost = sum(play(seed) for seed in range(first, first + 10))
    assert lost >= 3, "the courses have conflicts in them"


class Leader(Actor):
    @handler
    async def where(self) -> str:
        return self.node.name


def test_a_reference_by_name_follows_the_name() -> None:
    async def told(cluster: SimCluster, a: Node, b: Node) -> None:
        leader = a.registry.ref(Leader, "leader")
        with pytest.raises(NoProcess):
            await leader.call(Leader.where)
        for node in (a, b):
            pid = node.spawn(Leader)
            await node.registry.register("leader", pid)
            await asyncio.sleep(SETTLE_S)
            assert await leader.call(Leader.where) == node.name
            node.exit(pid)
            await asyncio.sleep(SETTLE_S)

    story(told, count=2)
