"""Process groups on whole nodes: the API, and seeded scenarios with invariants."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from fleetlm import (
    Call,
    Down,
    InvalidName,
    Joined,
    Left,
    Node,
    NodeDown,
    NodeStopped,
    NoMember,
    NoProcess,
    NotSerializable,
    Pid,
    Process,
    ProcessExit,
    TooManyMemberships,
)
from fleetlm.core import group_table
from fleetlm.directory import replication
from fleetlm.directory.subscriptions import Subscription
from fleetlm.testing import SimCluster, run
from fleetlm.testing.cluster import SETTINGS
from fleetlm.wire.blobs import Packed
from fleetlm.wire.codec import Codec
from tests.sim.seeded import ONE_PORT, most_are_long, run_stories

KIB = 1024


async def idle(process: Process) -> None:
    await asyncio.get_running_loop().create_future()


async def keeper(process: Process, kept: list[Any]) -> None:
    while True:
        kept.append(await process.receive())


def story(count: int, **settings: Any) -> Any:
    """Run a test on connected nodes."""

    def wrap(play: Any) -> Any:
        def test() -> None:
            async def main() -> None:
                async with SimCluster(seed=21, settings=SETTINGS.replace(debug=False)) as cluster:
                    nodes = await cluster.start(count, **settings)
                    await cluster.mesh(timeout=10)
                    await play(cluster, *nodes)

            run(main())

        test.__name__ = play.__name__
        return test

    return wrap


def queued(subscription: Subscription[Any]) -> list[Any]:
    return list(subscription._queue)


# Members.


@story(3)
async def test_members_are_seen_everywhere(cluster: SimCluster, a: Node, b: Node, c: Node) -> None:
    here, there = a.spawn(idle), b.spawn(idle)
    a.groups.join("workers", here)
    b.groups.join("workers", there, there)
    b.groups.join("others", there)
    assert a.groups.members("workers") == [here]
    await asyncio.sleep(1)
    for node in (a, b, c):
        assert node.groups.members("workers") == [here, there, there]
        assert node.groups.list() == ["others", "workers"]
    assert [node.groups.local_members("workers") for node in (a, b, c)] == [[here], [there, there], []]

    assert b.groups.leave("workers", there) is True
    assert b.groups.leave("others", there, there) is False
    assert a.groups.leave("workers", there) is False
    assert c.groups.leave("workers", here) is False
    late = (await cluster.start())[0]
    await cluster.mesh(timeout=10)
    await asyncio.sleep(1)
    for node in (a, b, c, late):
        assert node.groups.members("workers") == [here, there]
        assert node.groups.list() == ["workers"]


@story(2)
async def test_only_living_processes_of_the_node_join(cluster: SimCluster, a: Node, b: Node) -> None:
    here, there, gone = a.spawn(idle), b.spawn(idle), a.spawn(idle)
    a.exit(gone)
    await asyncio.sleep(1)
    for stranger in (there, gone, Pid(a.name, a.incarnation + 1, here.number)):
        with pytest.raises(NoProcess):
            a.groups.join("g", here, stranger)
    with pytest.raises(InvalidName):
        a.groups.join("", here)
    await asyncio.sleep(1)
    assert a.groups.members("g") == b.groups.members("g") == []


@story(2)
async def test_at_a_down_the_group_no_longer_has_the_process(cluster: SimCluster, a: Node, b: Node) -> None:
    found: list[Any] = []

    async def watcher(process: Process, pid: Pid) -> None:
        process.monitor(pid)
        down = await process.receive()
        assert isinstance(down, Down)
        found.append((process.node.name, process.node.groups.members("g")))

    async def ends(process: Process) -> None:
        process.node.groups.join("g", process.pid, process.pid)
        await process.receive()
        raise ProcessExit("bad")

    pid = a.spawn(ends)
    for node in (a, b):
        node.spawn(watcher, pid)
    await asyncio.sleep(1)
    changes = b.groups.watch("g")
    assert b.groups.members("g") == [pid, pid]
    await b.send(pid, "go")
    await asyncio.sleep(1)
    assert sorted(found) == [(a.name, []), (b.name, [])]
    assert queued(changes) == [Joined("g", pid)] * 2 + [Left("g", pid, "exited")] * 2


@story(2)
async def test_a_lost_node_takes_its_members_and_brings_them_back(
    cluster: SimCluster, a: Node, b: Node
) -> None:
    here, there = a.spawn(idle), b.spawn(idle)
    a.groups.join("g", here)
    b.groups.join("g", there)
    await asyncio.sleep(1)
    nodes, changes = a.events(), a.groups.watch()
    await anext(nodes)  # Its NodeUp.
    cluster.partition([a])
    assert isinstance(await anext(nodes), NodeDown)
    assert a.groups.members("g") == [here]
    b.groups.leave("g", there)
    b.groups.join("h", there)
    await asyncio.sleep(30)
    assert (b.groups.members("g"), b.groups.members("h")) == ([], [there])
    cluster.heal()
    await cluster.mesh(timeout=60)
    await asyncio.sleep(1)
    for node in (a, b):
        assert (node.groups.members("g"), node.groups.members("h")) == ([here], [there])
    assert queued(changes) == [
        Joined("g", here),
        Joined("g", there),
        Left("g", there, "noconnection"),
        Joined("h", there),
    ]


@story(2)
async def test_a_subscription_starts_with_the_present_and_ends_with_the_node(
    cluster: SimCluster, a: Node, b: Node
) -> None:
    one, two = b.spawn(idle), b.spawn(idle)
    b.groups.join("g", one)
    b.groups.join("h", one)
    await asyncio.sleep(1)
    every, only = a.groups.watch(), a.groups.watch("g")
    b.groups.join("g", two)
    b.groups.leave("g", one)
    await asyncio.sleep(1)
    about_g = [Joined("g", one), Joined("g", two), Left("g", one, "left")]
    assert queued(only) == about_g
    assert queued(every) == [about_g[0], Joined("h", one), *about_g[1:]]
    only.close()
    await b.stop()
    await a.stop()
    assert [change async for change in only] == about_g
    assert [type(change) for change in [change async for change in every][4:]] == [Left, Left]
    assert [change async for change in a.groups.watch()] == []


# Limits and hostile peers.


@story(2)
async def test_many_memberships_travel_in_pieces(cluster: SimCluster, a: Node, b: Node) -> None:
    pid = a.spawn(idle)
    for number in range(1_000):
        a.groups.join(f"{number:04}" + "x" * 200, pid)
    a.groups.join("many", *[pid] * 1_000)
    await asyncio.sleep(1)
    assert len(b.groups.list()) == 1_001
    late = (await cluster.start())[0]
    await cluster.mesh(timeout=10)
    await asyncio.sleep(1)
    assert late.groups.list() == a.groups.list()
    assert late.groups.members("many") == [pid] * 1_000
    assert all(info.connections == 1 for info in a.info().peers)


def test_a_peer_with_more_memberships_than_allowed_is_cut_and_told_why() -> None:
    async def main() -> None:
        async with SimCluster(seed=1) as cluster:
            a = (await cluster.start(max_memberships=2))[0]
            b = (await cluster.start())[0]
            await cluster.mesh(timeout=10)
            here, there = a.spawn(idle), b.spawn(idle)
            a.groups.join("g", here, here)
            with pytest.raises(TooManyMemberships):
                a.groups.join("g", here)
            b.groups.join("g", there, there)
            await asyncio.sleep(1)
            assert a.groups.members("g") == [here, here, there, there]
            events = a.events()
            await anext(events)
            b.groups.join("g", there)
            down = await anext(events)
            assert "more than 2 memberships" in down.reason  # type: ignore[union-attr]
            assert "Settings.max_memberships" in down.reason  # type: ignore[union-attr]
            assert a.groups.members("g") == [here, here]
            b.groups.leave("g", there)
            await cluster.mesh(timeout=60)
            await asyncio.sleep(1)
            assert a.groups.members("g") == [here, here, there, there]

    run(main())


@pytest.mark.parametrize(
    "fact", [["join", {"g": [0]}], ["join", {"": [1]}], ["leave", {"g": [77]}], ["exit", 77], None, {"a": 1}]
)
def test_a_peer_that_sends_nonsense_is_disconnected_and_changes_nothing(fact: Any) -> None:
    @story(2)
    async def play(cluster: SimCluster, a: Node, b: Node) -> None:
        pid = b.spawn(idle)
        b.groups.join("g", pid)
        await asyncio.sleep(1)
        events = a.events()
        await anext(events)
        b._parts.replication.tell("groups", fact)
        down = await anext(events)
        assert "a malformed message" in down.reason  # type: ignore[union-attr]
        assert a.groups.list() == []
        await cluster.mesh(timeout=60)
        await asyncio.sleep(1)
        assert a.groups.members("g") == [pid]

    play()


# Broadcast.


@story(3)
async def test_a_broadcast_reaches_every_member_once_and_is_encoded_once(
    cluster: SimCluster, a: Node, b: Node, c: Node
) -> None:
    kept: list[list[Any]] = []
    for node in (a, b, b, c):
        kept.append([])
        pid = node.spawn(keeper, kept[-1])
        node.groups.join("g", pid, pid)
    await asyncio.sleep(1)
    packed: list[Any] = []

    class Counting(Codec):
        def pack_part(self, value: Any) -> Packed:
            packed.append(value)
            return super().pack_part(value)

    a._outbound._codec = Counting()
    message = {"tokens": (1, 2)}
    assert await a.groups.broadcast("g", message) == 4
    await asyncio.sleep(1)
    assert kept == [[message]] * 4
    assert packed.count(message) == 1
    assert kept[0][0] is message, "on this node the object itself arrives"
    assert await a.groups.broadcast("g", "here", local_only=True) == 1
    assert packed.count(message) == 1
    assert await c.groups.broadcast("nobody", message) == 0
    await asyncio.sleep(1)
    assert [each[1:] for each in kept] == [["here"], [], [], []]


@story(2, debug=True)
async def test_while_debugging_members_here_get_a_copy(cluster: SimCluster, a: Node, b: Node) -> None:
    kept: list[Any] = []
    a.groups.join("g", a.spawn(keeper, kept))
    message = [1]
    assert await a.groups.broadcast("g", message) == 1
    await asyncio.sleep(1)
    assert kept == [[1]]
    assert kept[0] is not message
    with pytest.raises(NotSerializable):
        await a.groups.broadcast("g", object())


@story(2)
async def test_a_message_that_cannot_be_packed_reaches_no_member(
    cluster: SimCluster, a: Node, b: Node
) -> None:
    kept: list[Any] = []
    for node in (a, b):
        node.groups.join("g", node.spawn(keeper, kept))
    await asyncio.sleep(1)
    with pytest.raises(NotSerializable):
        await a.groups.broadcast("g", object())
    await asyncio.sleep(1)
    assert kept == []
    await a.stop()
    with pytest.raises(NodeStopped):
        await a.groups.broadcast("g", 1)


@story(2, mailbox_limit=2)
async def test_a_broadcast_waits_for_the_slow_ones_last_and_for_each_alone(
    cluster: SimCluster, a: Node, b: Node
) -> None:
    kept: list[Any] = []
    stuck, slow, ends = a.spawn(idle), a.spawn(idle), a.spawn(idle)
    a.groups.join("g", stuck, slow, ends, a.spawn(keeper, kept))
    b.groups.join("g", b.spawn(keeper, kept))
    await asyncio.sleep(1)
    for pid in (stuck, slow, ends):
        a.send_nowait(pid, 1)
        a.send_nowait(pid, 2)
    sending = asyncio.ensure_future(a.groups.broadcast("g", "all"))
    await asyncio.sleep(1)
    assert kept == ["all", "all"]
    box = a._local.boxes[slow.number]
    assert [await box.get(), await box.get()] == [1, 2]
    await asyncio.sleep(1)
    assert list(box.queue) == ["all"], "one that is stuck holds up no other"
    assert not sending.done()
    a.exit(ends, "kill")
    await asyncio.sleep(1)
    assert not sending.done()
    box = a._local.boxes[stuck.number]
    assert [await box.get(), await box.get(), await box.get()] == [1, 2, "all"]
    assert await sending == 4


@story(2, mailbox_limit=2)
async def test_a_broadcast_that_is_given_up_leaves_nothing_behind(
    cluster: SimCluster, a: Node, b: Node
) -> None:
    stuck = a.spawn(idle)
    a.groups.join("g", stuck)
    for _ in range(2):
        assert await a.groups.broadcast("g", 1) == 1
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await a.groups.broadcast("g", 2)
    box = a._local.boxes[stuck.number]
    assert [await box.get(), await box.get()] == [1, 1]
    await asyncio.sleep(1)
    assert len(box) == 0
    assert len(asyncio.all_tasks()) < 30


@story(3)
async def test_members_of_a_node_that_goes_meanwhile_are_not_counted(
    cluster: SimCluster, a: Node, b: Node, c: Node
) -> None:
    kept: list[Any] = []
    for node in (b, c):
        node.groups.join("g", node.spawn(keeper, kept))
    await asyncio.sleep(1)
    cluster.stall(b)
    link = a._driver.sessions[b.name]
    while not link.is_full:
        a.send_nowait(("nobody", b.name), b"x" * 60 * KIB)
    sending = asyncio.ensure_future(a.groups.broadcast("g", "all"))
    await asyncio.sleep(1)
    assert kept == ["all"]
    assert not sending.done()
    await cluster.crash(b)
    assert await sending == 1


@pytest.mark.parametrize("first", most_are_long(range(0, 20, 5), 1))
def test_without_faults_each_member_gets_each_broadcast_once_and_in_order(first: int) -> None:
    for seed in range(first, first + 5):

        async def play(seed: int = seed) -> None:
            rng = random.Random(seed)
            settings = {
                "mailbox_limit": rng.choice((1, 3, 100)),
                "window_bytes": 64 * KIB,
                "chunk_bytes": 4 * KIB,
                "bulk_window_bytes": 8 * KIB,
            }
            got: dict[Pid, list[tuple[int, int]]] = {}

            async def member(process: Process, pace_s: float) -> None:
                mine = got[process.pid] = []
                process.node.groups.join("g", process.pid)
                async for source, number, _ in process.mailbox:
                    mine.append((source, number))
                    await asyncio.sleep(pace_s)

            async def source(node: Node, name: int) -> None:
                for number in range(25):
                    size = rng.choice((10, 100, 3 * KIB, 20 * KIB))
                    assert await node.groups.broadcast("g", (name, number, b"x" * size)) == len(got)
                    await asyncio.sleep(rng.choice((0, 0, 0.001, 0.1)))

            async with SimCluster(seed=seed, settings=ONE_PORT) as cluster:
                nodes = await cluster.start(3, **settings)
                await cluster.mesh(timeout=10)
                for _ in range(8):
                    rng.choice(nodes).spawn(member, rng.choice((0.0, 0.0, 0.01, 0.5)))
                await asyncio.sleep(1)
                await asyncio.gather(*(source(nodes[name % 3], name) for name in range(4)))
                await asyncio.sleep(60)
                for mine in got.values():
                    assert len(mine) == 4 * 25
                    for name in range(4):
                        assert [n for source, n in mine if source == name] == list(range(25))

        run(play(), seed=seed)


# Picking.


@story(3)
async def test_all_nodes_find_the_same_member_for_a_key(
    cluster: SimCluster, a: Node, b: Node, c: Node
) -> None:
    for node in (a, b, c):
        with pytest.raises(NoMember):
            node.groups.pick("g")
        node.groups.join("g", node.spawn(idle), node.spawn(idle))
    await asyncio.sleep(1)
    keys = [f"session {number}" for number in range(100)]
    found = [[node.groups.pick("g", by="key", key=key) for key in keys] for node in (a, b, c)]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 6
    turns = [a.groups.pick("g", by="round_robin") for _ in range(12)]
    assert set(Counter(turns).values()) == {2}
    assert len({a.groups.pick("g") for _ in range(100)}) == 6
    for pid in b.groups.local_members("g"):
        b.exit(pid)
    await asyncio.sleep(1)
    for key, before in zip(keys, found[0], strict=True):
        assert before.node == b.name or a.groups.pick("g", by="key", key=key) == before


@story(2)
async def test_a_group_that_empties_is_forgotten(cluster: SimCluster, a: Node, b: Node) -> None:
    pid = a.spawn(idle)
    for number in range(50):
        a.groups.join(f"g{number}", pid)
        a.groups.pick(f"g{number}", by="round_robin")
    assert len(a.groups._replicated.picker._last) == 50
    a.exit(pid)
    await asyncio.sleep(1)
    for node in (a, b):
        table = node.groups._table
        assert [table._groups, node.groups._replicated.picker._last, node.groups.list()] == [{}, {}, []]
        assert not list(node.groups._replicated.feed.present)
        assert not any([*said] or said.count for said in table._said.values())


@story(2)
async def test_the_least_loaded_member_is_picked(cluster: SimCluster, a: Node, b: Node) -> None:
    async def taker(process: Process) -> None:
        assert isinstance(await process.receive(), Call)
        await asyncio.get_running_loop().create_future()

    asked, waiting, free = a.spawn(taker), a.spawn(idle), a.spawn(idle)
    a.groups.join("g", asked, waiting)
    call = asyncio.ensure_future(a.call(asked, "work", timeout=1_000))
    a.send_nowait(waiting, 1)
    a.send_nowait(waiting, 2)
    await asyncio.sleep(1)
    assert {a.groups.pick("g", by="least_loaded") for _ in range(20)} == {asked}
    a.send_nowait(asked, 1)
    assert {a.groups.pick("g", by="least_loaded") for _ in range(20)} == {asked, waiting}
    a.groups.join("g", free)
    assert {a.groups.pick("g", by="least_loaded") for _ in range(20)} == {free}
    assert b.groups.pick("g", by="least_loaded") in (asked, waiting, free)
    call.cancel()


@story(2)
async def test_members_of_a_node_that_leaves_are_picked_last(cluster: SimCluster, a: Node, b: Node) -> None:
    async def busy(process: Process) -> None:
        call = await process.receive()
        await asyncio.sleep(10)
        call.reply("done")

    here, there = a.spawn(idle), b.spawn(busy)
    a.groups.join("g", here)
    b.groups.join("g", there)
    b.groups.join("only", there)
    call = asyncio.ensure_future(a.call(there, "work", timeout=60))
    await asyncio.sleep(1)
    leaving = asyncio.ensure_future(b.stop(drain_s=30))
    await asyncio.sleep(3)
    for node in (a, b):
        for by in ("random", "round_robin", "least_loaded"):
            assert {node.groups.pick("g", by=by) for _ in range(20)} == {here}
        assert {node.groups.pick("g", by="key", key=key) for key in range(20)} == {here}
        assert node.groups.pick("only") == there
    assert await call == "done"
    await leaving
    assert a.groups.members("g") == [here]


# Seeded stories.


class Story:
    """Processes join, leave and end while nodes crash and are partitioned; subscribers count changes."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.cluster = SimCluster(seed=seed, settings=ONE_PORT)
        self.limit = self.rng.choice((4, 1_000))
        self.readers: list[tuple[Node, str | None, Counter[tuple[str, Pid]], asyncio.Task[None]]] = []

    def nodes(self) -> list[Node]:
        return list(self.cluster.nodes.values())

    def read(self, node: Node) -> None:
        """Subscribers to all groups and to one; slow ones miss events and must still end with the truth."""
        for group in (None, "a"):
            for pause_s in (0.0, 3.0):
                heard: Counter[tuple[str, Pid]] = Counter()
                reading = self._count(node.groups.watch(group), heard, pause_s)
                self.readers.append((node, group, heard, asyncio.ensure_future(reading)))

    async def _count(self, changes: Subscription[Any], heard: Counter[Any], pause_s: float) -> None:
        async for change in changes:
            key = (change.group, change.pid)
            heard[key] += 1 if isinstance(change, Joined) else -1
            assert heard[key] >= 0, f"{change} without having joined"
            if pause_s and not changes._queue:
                await asyncio.sleep(pause_s)

    async def begin(self, node: Node) -> None:
        self.read(node)
        for _ in range(3):
            self.join(node)

    def join(self, node: Node) -> None:
        group = self.rng.choice("aaabc")
        pids = [info.pid for info in node.processes()]
        pid = self.rng.choice([node.spawn(keeper, []), *pids])
        node.groups.join(group, *[pid] * self.rng.randint(1, 2))

    async def step(self) -> None:
        rng, cluster = self.rng, self.cluster
        node = rng.choice(self.nodes())
        pids = [info.pid for info in node.processes()]
        pick = rng.random()
        if pick < 0.05:
            await self.begin(await cluster.restart(node))
        elif pick < 0.10:
            cluster.partition([node])
        elif pick < 0.15:
            cluster.heal()
        elif pick < 0.18:
            node.disconnect(rng.choice(node.list() or [node.name]))
        elif pick < 0.45:
            self.join(node)
        elif pick < 0.65 and pids:
            node.groups.leave(rng.choice("abc"), rng.choice(pids))
        elif pick < 0.8 and pids:
            node.exit(rng.choice(pids), rng.choice(("bad", "kill")))
        elif node.groups.members("a"):
            pid = node.groups.pick("a", by=rng.choice(("random", "round_robin", "least_loaded")))
            assert pid in node.groups.members("a")
            async with asyncio.timeout(100):
                await node.groups.broadcast("a", "x")
        self.check_connected()
        await asyncio.sleep(rng.choice([0.0, 0.001, 0.05, 1.0, 12.0]))

    def check_connected(self) -> None:
        for node in self.nodes():
            for group in node.groups.list():
                for pid in node.groups.members(group):
                    assert (
                        pid.node == node.name
                        or node._driver.sessions[pid.node].incarnation == pid.incarnation
                    )

    async def play(self) -> None:
        async with self.cluster as cluster:
            for node in await cluster.start(self.rng.randint(2, 4), events_limit=self.limit):
                await self.begin(node)
            for _ in range(40):
                await self.step()
            cluster.heal()
            for one in self.nodes():
                for other in self.nodes():
                    await one.connect(other.name, timeout=60)
            await cluster.mesh(timeout=120)
            await asyncio.sleep(30)
            self.check()
        for _, _, _, reading in self.readers:
            await reading

    def check(self) -> None:
        truth = Counter(
            (group, pid)
            for node in self.nodes()
            for group in node.groups.list()
            for pid in node.groups.local_members(group)
        )
        for node in self.nodes():
            seen = Counter((group, pid) for group in node.groups.list() for pid in node.groups.members(group))
            assert seen == truth
        for node, only, heard, _ in self.readers:
            if node in self.nodes():
                assert +heard == Counter({key: n for key, n in truth.items() if only in (None, key[0])})
        alive = {info.pid for node in self.nodes() for info in node.processes()}
        assert {pid for _, pid in truth} <= alive


@pytest.mark.parametrize("first", most_are_long([0, 30, 10, 20, 40, 50], 2))
def test_all_views_converge_and_every_subscriber_learns_the_truth(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if first >= 30:  # Snapshots take long: much changes, ends and is lost meanwhile.
        monkeypatch.setattr(replication, "FACTS_AT_ONCE", 0)
        monkeypatch.setattr(replication, "PAUSE_S", 0.05)
        monkeypatch.setattr(group_table, "MAX_PIECE_MEMBERSHIPS", 2)

    async def play(seed: int) -> None:
        await Story(seed).play()

    run_stories(play, range(first, first + 10))
