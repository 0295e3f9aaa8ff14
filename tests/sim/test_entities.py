"""Keyed entities on whole nodes: what a program sees, and seeded stories of nodes that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import pytest

import fleetlm
from fleetlm import (
    Actor,
    CallTimeout,
    Entity,
    EntityRefs,
    Node,
    NoHandler,
    NoProcess,
    NotOwner,
    NotSerializable,
    ProcessDown,
    RemoteError,
    WouldBlock,
    handler,
)
from fleetlm.core.draining import Step
from fleetlm.core.shard_table import EPOCH_END, Claim
from fleetlm.messaging.carrying import CARRYING
from fleetlm.telemetry import CallEnded
from fleetlm.testing import Fleet
from fleetlm.wire.invocation import Invoke
from tests.sim.entity_world import World
from tests.sim.seeded import most_are_long, run_worlds


class Session(Entity):
    """Keeps lines; its class attributes are what happened."""

    ended: dict[str, list[Any]]

    def __init__(self, events: list[str] | None = None) -> None:
        self.events: list[str] = [] if events is None else events
        self.lines: list[str] = []

    async def load(self, state: Any) -> None:
        if self.key == "unloadable":
            raise ValueError("no")
        self.events.append(f"load {self.key}")
        self.lines = list(state or ())

    async def save(self) -> Any:
        if "unsaveable" in self.lines:
            raise ValueError("no")
        return self.lines or None

    async def terminate(self, reason: Any) -> None:
        self.events.append(f"{reason} {self.key}")

    async def merge(self, other: Any) -> None:
        self.lines = sorted({*self.lines, *other})

    @handler
    async def append(self, line: str) -> int:
        self.lines.append(line)
        return len(self.lines)

    @handler
    async def read(self) -> list[str]:
        return self.lines

    @handler
    async def slow(self, seconds: float, line: str) -> int:
        await asyncio.sleep(seconds)
        return await self.append(line)

    @handler
    async def facts(self) -> tuple[str, str, str, bool]:
        return self.kind, self.key, self.node.name, self.restarted

    @handler
    async def token(self) -> int:
        return self.epoch

    @handler
    async def each(self) -> AsyncIterator[str]:
        for line in self.lines:
            yield line

    @handler
    async def ask(self, key: str, line: str, pause_s: float = 0.0) -> int:
        await asyncio.sleep(pause_s)
        return await self.node.entities.ref(Session, "s")[key].within(3).call(Session.append, line)

    @handler
    async def crash(self) -> None:
        raise fleetlm.ProcessExit("broken")

    @handler
    async def rest(self) -> None:
        self.passivate()

    @handler(local=True)
    async def inside(self) -> int:
        return 1


class Plain(Session):
    """Does not merge."""

    merge = Entity.merge


async def hosts(fleet: Fleet, count: int, **options: Any) -> tuple[list[Node], EntityRefs[Session]]:
    """Start nodes that host sessions and one that does not, which gets the references."""
    nodes = await fleet.start(count + 1)
    for node in nodes[1:]:
        await node.entities.host(Session, "s", **{"shards": 8, "rebalance_s": 0.0, **options})
    refs = nodes[0].entities.ref(Session, "s")
    await fleet.until(lambda: is_even(refs, nodes, -(-8 // count)))
    return nodes, refs


def by_node(refs: EntityRefs[Session], nodes: list[Node]) -> dict[str, list[int]]:
    return {node.name: [s for s, owner in refs.shards().items() if owner == node.name] for node in nodes}


def is_even(refs: EntityRefs[Session], nodes: list[Node], most: int) -> bool:
    owned = by_node(refs, nodes[1:])
    return len(refs.shards()) == 8 and max(map(len, owned.values())) <= most


def node_of(nodes: list[Node], name: str | None) -> Node:
    return next(node for node in nodes if node.name == name)


def key_on(refs: EntityRefs[Session], node: Node, but: str = "") -> str:
    """Return a key that a node owns."""
    return next(k for k in (f"k{n}" for n in range(99)) if refs.where(k) == node.name and k != but)


async def test_an_entity_lives_where_its_key_belongs_and_is_found_from_everywhere(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2)
    for node in nodes:
        for key in ("a", "b", "c"):
            assert await node.entities.ref(Session, "s")[key].within(2).call(Session.append, "x")
    assert await refs["a"].call(Session.append, line="y") == 4
    assert await refs["a"].call(Session.facts) == ("s", "a", refs.where("a"), False)
    assert await refs["a"].call(Session.token) == refs.epoch("a") > 1_600_000_000_000
    assert [line async for line in refs["a"].stream(Session.each)] == ["x", "x", "x", "y"]
    await refs["a"].cast(Session.append, "z")
    assert await refs["a"].call(Session.read) == ["x", "x", "x", "y", "z"]
    assert await refs.list() == ["a", "b", "c"]
    owner = node_of(nodes, refs.where("a"))
    assert "a" in await owner.entities.ref(Session, "s").list(local=True)
    assert await refs.list(local=True) == []
    assert nodes[0].entities.kinds() == ["s"]
    assert repr(refs["a"].within(2)) == "<EntityRef Session s/a within 2 s>"
    assert repr(refs) == "<EntityRefs Session of 's'>"


async def test_errors_of_requests_are_those_of_actors(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 1)
    with pytest.raises(NotSerializable, match=r"argument 1 of Session\.append"):
        await refs["a"].call(Session.append, object())  # type: ignore[arg-type]
    with pytest.raises(RemoteError, match="TypeError"):
        await refs["a"].call(Session.ask, "b", 7, "no number")  # type: ignore[arg-type]
    with pytest.raises(NoHandler, match="missing"):
        await refs["a"].call(Session.append)  # type: ignore[call-arg]
    with pytest.raises(fleetlm.NotAllowed):
        await refs["a"].call(Session.inside)
    assert await nodes[1].entities.ref(Session, "s")["a"].call(Session.inside) == 1
    with pytest.raises(CallTimeout):
        await refs["a"].within(0.1).call(Session.slow, 5, "x")
    assert await refs["a"].call(Session.read) == []  # It was cancelled.
    with pytest.raises(TypeError, match="not a handler"):
        await refs["a"].call(Session.load, 1)
    with pytest.raises(TypeError, match="is a str"):
        refs[1]  # type: ignore[index]
    with pytest.raises(fleetlm.InvalidName):
        refs[""]
    with pytest.raises(NoHandler, match="is not a handler that returns"):
        await refs["a"].cast(Session.each)  # type: ignore[arg-type]
    with pytest.raises(NoHandler):
        await nodes[0].call(nodes[0]._parts.replicated_shards.table.hosts("s")[nodes[1].name].pid, "nonsense")


async def test_without_an_owner_a_request_waits_and_then_says_that_it_has_not_run(fleet: Fleet) -> None:
    (node,) = await fleet.start(1)
    refs = node.entities.ref(Session, "s")
    with pytest.raises(NotOwner, match="is there a connected node that hosts 's'"):
        await refs["a"].within(1).call(Session.append, "x")
    with pytest.raises(NotOwner):
        async with refs["a"].within(1).stream(Session.each) as stream:
            await anext(stream)
    with pytest.raises(NotOwner):
        refs.shard("a")
    with pytest.raises(NotOwner):
        await refs.move(9, node.name)
    assert refs.where("a") is None
    waiting = [asyncio.create_task(refs["a"].call(Session.append, f"{n}")) for n in range(20)]
    await asyncio.sleep(0.3)
    await node.entities.host(Session, "s", settle_s=0.2)
    assert await asyncio.gather(*waiting) == list(range(1, 21))  # In their order.
    assert await refs["a"].call(Session.read) == [f"{n}" for n in range(20)]


async def test_a_drain_moves_everything_and_nobody_notices_but_for_a_pause(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2)
    keys = [f"k{number}" for number in range(30)]
    for key in keys:
        assert await refs[key].call(Session.append, "before") == 1
    epochs = {key: refs.epoch(key) for key in keys}
    leaving = nodes[1]
    moved = [key for key in keys if refs.where(key) == leaving.name]
    assert moved
    slow = asyncio.create_task(refs[moved[0]].call(Session.slow, 2, "slow"))
    await asyncio.sleep(0.1)
    during = [asyncio.create_task(refs[key].call(Session.append, "during")) for key in keys]
    report = await leaving.drain(20)
    assert (report.unmoved, report.unmoved_count, report.was_clean) == ((), 0, True)
    assert await slow == 2
    assert await asyncio.gather(*during) == [3 if key == moved[0] else 2 for key in keys]
    assert {refs.where(key) for key in keys} == {nodes[2].name}
    assert all((refs.epoch(key) > epochs[key]) is (key in moved) for key in keys)
    assert await refs[moved[0]].call(Session.facts) == ("s", moved[0], nodes[2].name, False)
    await fleet.crash(leaving)
    assert await refs[moved[0]].call(Session.read) == ["before", "slow", "during"]


async def test_a_host_that_drains_serves_what_it_has_not_handed_over_yet(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetlm.entities.handoff.MOVES_AT_ONCE", 1)
    nodes, refs = await hosts(fleet, 2)
    front, leaving, other = nodes
    host = leaving._parts.replicated_shards.table.hosts("s")[leaving.name].pid
    shards = {refs.shard(key): key for key in (f"k{n}" for n in range(99)) if refs.where(key) == leaving.name}
    (_, first), *later = sorted(shards.items())
    slow = asyncio.create_task(refs[first].call(Session.slow, 3, "slow"))
    await asyncio.sleep(0.1)
    draining = asyncio.create_task(leaving.drain(20))
    await asyncio.sleep(0.5)
    assert front._parts.context.drain_step(leaving.name) is Step.REFUSING
    with pytest.raises(fleetlm.Draining):
        await front.call(host, "other new work")
    began = asyncio.get_running_loop().time()
    for _, key in later:
        assert (await refs[key].call(Session.facts))[2] == leaving.name
        assert [line async for line in refs[key].stream(Session.each)] == []
    assert asyncio.get_running_loop().time() - began < 0.5
    waiting = asyncio.create_task(refs[first].call(Session.append, "more"))
    assert await slow == 1
    assert await waiting == 2
    assert (await draining).was_clean
    assert {refs.where(key) for key in shards.values()} == {other.name}
    route: Any = [first, 1, 0, "read"]
    with pytest.raises(NotOwner, match=f"{other.name} owns it"):  # Nothing is left to be served.
        await front.call(host, Invoke(route, (), {}))


async def test_what_a_drain_cannot_move_is_named(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 1, rebalance_s=1e9)
    await refs["a"].call(Session.append, "x")
    report = await nodes[1].drain(60)
    assert report.seconds < 5  # It does not wait in vain.
    assert (report.unmoved, report.unmoved_count, report.was_clean) == (("s/a",), 1, False)
    assert "1 entities not moved (s/a)" in str(report)
    assert nodes[1].undrain()
    assert await refs["a"].call(Session.append, "y") == 2

    (fresh,) = await fleet.start(1)
    await fresh.entities.host(Session, "s", shards=8)
    stuck = asyncio.create_task(refs["a"].within(60).call(Session.slow, 30, "z"))
    await asyncio.sleep(0.1)
    report = await nodes[1].drain(4)
    assert report.unmoved == ("s/a",)
    assert report.cut == 1
    nodes[1].undrain()
    assert await stuck == 3


async def test_an_entity_that_cannot_be_saved_stays(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    nodes, refs = await hosts(fleet, 2)
    key = key_on(refs, nodes[1])
    await refs[key].call(Session.append, "unsaveable")
    with pytest.raises(ValueError, match=r"stays on .* cannot be saved"):
        await refs.move(refs.shard(key), nodes[2].name)
    assert "cannot be saved, and goes on" in caplog.text
    assert await refs[key].call(Session.append, "more") == 2
    assert refs.where(key) == nodes[1].name


async def test_a_host_that_joins_takes_its_share_and_no_more(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2)
    for number in range(20):
        await refs[f"k{number}"].call(Session.append, "x")
    before = refs.shards()
    (fresh,) = await fleet.start(1)
    await fresh.entities.host(Session, "s", shards=8)
    await fleet.until(lambda: len(by_node(refs, [fresh])[fresh.name]) == 2)
    await asyncio.sleep(5)
    after = refs.shards()
    moved = [shard for shard in before if before[shard] != after[shard]]
    assert len(moved) == 2
    assert {after[shard] for shard in moved} == {fresh.name}
    assert [await refs[f"k{number}"].call(Session.append, "x") for number in range(20)] == [2] * 20

    await fleet.crash(fresh)
    await fleet.until(lambda: fresh.name not in nodes[0].list() and len(refs.shards()) == 8)
    assert {shard for shard in before if refs.shards()[shard] != after[shard]} == set(moved)


async def test_an_operator_moves_a_shard(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2, rebalance_s=1e9)
    key = key_on(refs, nodes[1])
    await refs[key].call(Session.append, "x")
    await refs.move(refs.shard(key), nodes[2].name)
    await fleet.until(lambda: refs.where(key) == nodes[2].name)
    await refs.move(refs.shard(key), nodes[2].name)
    assert await refs[key].call(Session.append, "y") == 2
    with pytest.raises(ValueError, match="does not host"):
        await refs.move(refs.shard(key), "fleetlm@10.9.9.9")
    for wrong in (-1, 8):
        with pytest.raises(ValueError, match="a shard of 's' is a number from 0 to 7"):
            await refs.move(wrong, nodes[1].name)


async def test_a_large_shard_moves_in_parts(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2, shards=8)
    keys = [f"k{number}" for number in range(40)]
    for key in keys:
        await refs[key].call(Session.append, key * 5_000)
    report = await nodes[1].drain(30)
    assert report.was_clean
    for key in keys:
        assert await refs[key].call(Session.read) == [key * 5_000]


async def test_after_a_crash_of_its_node_an_entity_begins_anew_and_knows(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2)
    lost, stays = key_on(refs, nodes[1]), key_on(refs, nodes[2])
    for key in (lost, stays):
        await refs[key].call(Session.append, "x")
    epoch = refs.epoch(lost)
    await fleet.crash(nodes[1])
    await fleet.until(lambda: nodes[1].name not in nodes[0].list())
    assert await refs[lost].call(Session.append, "y") == 1
    assert refs.epoch(lost) > epoch
    assert await refs[lost].call(Session.facts) == ("s", lost, nodes[2].name, True)
    assert await refs[stays].call(Session.append, "y") == 2
    assert (await refs[stays].call(Session.facts))[3] is False


async def test_an_entity_that_crashes_begins_anew_from_what_it_has_saved(fleet: Fleet) -> None:
    _, refs = await hosts(fleet, 1)
    await refs["a"].call(Session.append, "saved")
    await refs["a"].call(Session.rest)
    await refs["a"].call(Session.append, "lost")
    calls: list[asyncio.Task[Any]] = [asyncio.create_task(refs["a"].call(Session.slow, 1, "lost"))]
    await asyncio.sleep(0.1)
    calls += [asyncio.create_task(refs["a"].call(Session.crash))]
    calls += [asyncio.create_task(refs["a"].call(Session.append, f"{n}")) for n in range(3)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[0] == 3
    assert isinstance(results[1], ProcessDown)
    assert results[2:] == [2, 3, 4]
    assert await refs["a"].call(Session.read) == ["saved", "0", "1", "2"]
    assert (await refs["a"].call(Session.facts))[3] is True
    await refs["a"].call(Session.rest)
    assert (await refs["a"].call(Session.facts))[3] is False


async def test_an_entity_that_cannot_load_fails_its_requests(fleet: Fleet) -> None:
    _, refs = await hosts(fleet, 1)
    results = await asyncio.gather(
        *(refs["unloadable"].call(Session.append, "x") for _ in range(3)), return_exceptions=True
    )
    assert [type(each) for each in results] == [NoProcess] * 3
    assert await refs.list() == []


async def test_an_idle_entity_is_saved_and_ended_until_its_next_request(fleet: Fleet) -> None:
    events: list[str] = []
    nodes, refs = await hosts(fleet, 1, idle_s=5.0, args=(events,), remember=["always"])
    await fleet.until(lambda: events == ["load always"])
    await refs["a"].call(Session.append, "x")
    await refs["empty"].call(Session.read)
    await asyncio.sleep(4)
    await refs["a"].call(Session.append, "y")
    await asyncio.sleep(4)
    assert "passivated a" not in events
    await asyncio.sleep(4)
    assert events[-1] == "passivated a"
    assert await refs.list() == ["a", "always"]
    assert await refs["a"].call(Session.append, "z") == 3
    assert not (await refs["a"].call(Session.facts))[3]
    assert nodes[1].entities._hostings()[0].kept_bytes > 0


async def test_requests_that_come_while_an_entity_is_being_saved_are_served_by_the_next(fleet: Fleet) -> None:
    _, refs = await hosts(fleet, 1)
    await refs["a"].call(Session.append, "x")
    calls = [
        refs["a"].call(Session.rest),
        refs["a"].cast(Session.append, "1"),
        refs["a"].call(Session.slow, 1, "2"),
        refs["a"].cast(Session.append, "3"),
        refs["a"].call(Session.append, "4"),
    ]
    await asyncio.gather(*calls)
    assert sorted(await refs["a"].call(Session.read)) == ["1", "2", "3", "4", "x"]


async def test_so_many_live_at_a_time_and_those_without_requests_give_way(fleet: Fleet) -> None:
    events: list[str] = []
    _, refs = await hosts(fleet, 1, live=10, args=(events,))
    for number in range(40):
        await refs[f"k{number}"].call(Session.append, "x")
    assert events.count("passivated k0") == 1
    assert "passivated k39" not in events
    assert [await refs[f"k{number}"].call(Session.append, "x") for number in range(40)] == [2] * 40
    busy = [asyncio.create_task(refs[f"b{number}"].call(Session.slow, 9, "x")) for number in range(30)]
    results = await asyncio.gather(*busy, return_exceptions=True)
    refused = [each for each in results if isinstance(each, WouldBlock)]
    assert len(refused) >= 10
    assert "all are at work" in str(refused[0])


async def test_so_many_states_are_kept(fleet: Fleet) -> None:
    _, refs = await hosts(fleet, 1, kept_bytes=1_000)
    await refs["a"].call(Session.append, "x" * 1_000)
    await refs["a"].call(Session.rest)
    await refs["a"].call(Session.read)
    with pytest.raises(WouldBlock, match="bytes of states"):
        await refs["b"].call(Session.read)
    assert await refs["a"].call(Session.append, "y") == 2


async def test_a_full_mailbox_refuses(fleet: Fleet) -> None:
    nodes = await fleet.start(1, mailbox_limit=16)
    refs = await nodes[0].entities.host(Session, "s")
    (other,) = await fleet.start(1)
    calls = [other.entities.ref(Session, "s")["a"].call(Session.slow, 0.1, "x") for _ in range(40)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [each for each in results if isinstance(each, WouldBlock)]
    assert len(refused) + len(await refs["a"].call(Session.read)) == 40
    assert refused


async def test_entities_ask_each_other_even_while_their_shard_moves(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2, handoff_s=20.0)
    key = key_on(refs, nodes[1])
    shard = refs.shard(key)
    mate = next(k for k in (f"m{n}" for n in range(999)) if refs.shard(k) == shard)
    asking = asyncio.create_task(refs[key].within(30).call(Session.ask, mate, "x", 1.0))
    await asyncio.sleep(0.1)
    await refs.move(shard, nodes[2].name)
    assert await asking == 1
    await fleet.until(lambda: refs.where(key) == nodes[2].name)
    assert await refs[mate].call(Session.read) == ["x"]
    with pytest.raises(RemoteError, match="it is the caller itself"):
        await refs[key].call(Session.ask, key, "x")


async def test_a_request_under_another_epoch_is_refused_before_it_runs(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2, rebalance_s=1e9)
    key = key_on(refs, nodes[1])
    await refs[key].call(Session.append, "x")
    old = refs._calls.shards.table.owner("s", refs.shard(key))
    assert old is not None
    await refs.move(refs.shard(key), nodes[2].name)
    now = nodes[0]._parts.replicated_shards.table.owner("s", refs.shard(key))
    assert now is not None
    for owner, epoch in ((old, old.epoch), (old, old.epoch + 1), (now, old.epoch), (now, now.epoch + 1)):
        route: Any = [key, epoch, 0, "append"]
        request = Invoke(route, ("y",), {})
        with pytest.raises(NotOwner) as caught:
            await nodes[0]._outbound.call(owner.pid, request)
        assert caught.value.owner == nodes[2].name
    assert await refs[key].call(Session.read) == ["x"]


async def test_a_shard_that_stays_after_all_has_a_new_epoch(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2, handoff_s=1.0)
    key = key_on(refs, nodes[1])
    slow = asyncio.create_task(refs[key].call(Session.slow, 3, "slow"))
    await asyncio.sleep(0.1)
    epoch = refs.epoch(key)
    moving = asyncio.create_task(refs.move(refs.shard(key), nodes[2].name))
    await asyncio.sleep(0.1)
    waiting = asyncio.create_task(refs[key].call(Session.append, "waits"))
    with pytest.raises(ValueError, match="not done in time"):
        await moving
    await fleet.until(lambda: refs.epoch(key) > epoch)
    assert (await slow, await waiting) == (1, 2)


async def test_a_host_takes_no_shard_under_an_epoch_that_is_over(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2, rebalance_s=1e9)
    key = key_on(refs, nodes[1])
    shard = refs.shard(key)
    tables = [node._parts.replicated_shards.table for node in nodes]
    target = tables[0].hosts("s")[nodes[2].name].pid
    old = tables[0].owner("s", shard)
    assert old is not None
    for epoch, term in ((old.epoch, old.epoch - 1), (old.epoch - 1, 1), (old.epoch + 1, 0)):
        take = ["take", shard, epoch, term, 1, None, False, True, [[key, b"\xc0", False]]]
        assert await nodes[0].call(target, take) == old.epoch
    assert await nodes[0].call(target, ["take", 99, old.epoch + 1, 1, 1, None, False, True, []]) == 1
    assert await nodes[0].call(target, ["take", shard, old.epoch + 1, 1, 1, None, False, True, ["nonsense"]])
    assert await nodes[0].call(target, ["state", shard, old.epoch, []]) is False
    assert await nodes[0].call(target, ["offer", key, b"\xc0"]) is False
    assert refs.where(key) == nodes[1].name

    tables[2].heard_of("s", shard, old.epoch + 100)  # Of an owner that the present one never met.
    with pytest.raises(ValueError, match="does not take it now"):
        await refs.move(shard, nodes[2].name)
    await refs.move(shard, nodes[2].name)
    await fleet.until(lambda: refs.where(key) == nodes[2].name)
    assert refs.epoch(key) > old.epoch + 100


async def test_so_many_shards_move_at_a_time(fleet: Fleet) -> None:
    nodes = await fleet.start(2)
    for node in nodes:
        await node.entities.host(Session, "s", shards=64, rebalance_s=0.0)
    refs = nodes[0].entities.ref(Session, "s")
    await fleet.until(lambda: len(by_node(refs, nodes)[nodes[1].name]) == 32)
    handoff: Any = nodes[1].entities._hostings()[0].handoff
    most = 0
    drain = asyncio.create_task(nodes[1].drain(10))
    while not drain.done():
        most = max(most, len(handoff._moving))
        await asyncio.sleep(0.0001)
    assert (most, set(refs.shards().values())) == (8, {nodes[0].name})


async def test_a_winner_takes_an_epoch_above_that_of_the_loser(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2)
    one, two = nodes[1], nodes[2]
    key = key_on(refs, one)
    ours = one.entities.ref(Session, "s")
    for _ in range(3):
        fleet.partition([one])
        await fleet.until(lambda: refs.where(key) == two.name)
        assert refs.epoch(key) > ours.epoch(key)
        theirs = refs.epoch(key)
        fleet.heal()
        await fleet.until(lambda: refs.where(key) == one.name)
        await fleet.until(lambda: refs.epoch(key) == ours.epoch(key) > theirs)  # noqa: B023


async def test_a_new_request_goes_behind_those_that_wait(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, refs = await hosts(fleet, 2)
    key = key_on(refs, nodes[1])
    slow = asyncio.create_task(refs[key].call(Session.slow, 0.5, "0"))
    await asyncio.sleep(0.1)
    calls = [asyncio.create_task(refs[key].call(Session.append, f"{n}")) for n in range(1, 4)]
    await asyncio.sleep(0.1)
    moving = asyncio.create_task(refs.move(refs.shard(key), nodes[2].name))
    shards = nodes[0]._parts.replicated_shards
    await fleet.until(lambda: len(shards._waiting.get(("s", refs.shard(key)), ())) == 3)
    later: list[asyncio.Task[int]] = []
    perform = shards.perform

    def ask_first(effects: Any) -> None:  # In the moment in which the news comes, before those that wait run.
        later.append(asyncio.create_task(refs[key].call(Session.append, f"{len(later) + 4}")))
        perform(effects)

    monkeypatch.setattr(shards, "perform", ask_first)
    await moving
    await asyncio.gather(slow, *calls)
    await asyncio.gather(*later)
    lines = await refs[key].call(Session.read)
    assert lines[:5] == ["0", "1", "2", "3", "4"]


async def test_after_a_partition_one_side_wins_and_merges_what_the_other_has(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2)
    one, two = nodes[1], nodes[2]
    key = key_on(refs, one)
    await refs[key].call(Session.append, "before")
    fleet.partition([one])
    await fleet.until(lambda: refs.where(key) == two.name)
    ours = one.entities.ref(Session, "s")
    assert await ours[key].call(Session.append, "on the one side") == 2
    assert await refs[key].call(Session.append, "on the other side") == 1
    fleet.heal()
    await fleet.until(lambda: refs.where(key) == one.name and two.name in one.list())
    await asyncio.sleep(5)
    lines = await refs[key].call(Session.read)
    assert lines == ["before", "on the one side", "on the other side"]
    assert await two.entities.ref(Session, "s")[key].call(Session.append, "after") == 4


async def test_a_state_is_offered_again_while_the_winner_saves_that_entity(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2)
    one, two = nodes[1:]
    key = key_on(refs, one)
    await refs[key].call(Session.append, "before")
    fleet.partition([one])
    await fleet.until(lambda: refs.where(key) == two.name)
    await refs[key].call(Session.append, "other")
    slow = asyncio.create_task(one.entities.ref(Session, "s")[key].within(60).call(Session.slow, 20, "slow"))
    await asyncio.sleep(0.1)
    seat = one.entities._hostings()[0].seats[key]
    outcome = seat.close()
    fleet.heal()
    await fleet.until(lambda: refs.where(key) == one.name and two.name in one.list())
    await asyncio.sleep(0.2)
    slow.cancel()
    await outcome
    await asyncio.sleep(5)
    assert await refs[key].call(Session.read) == ["before", "other"]


async def test_without_merge_what_the_loser_has_is_dropped(fleet: Fleet) -> None:
    events: list[str] = []
    nodes = await fleet.start(2)
    for node in nodes:
        await node.entities.host(Plain, "s", shards=8, args=(events,), rebalance_s=0.0)
    one, two = nodes
    refs, ours = (node.entities.ref(Plain, "s") for node in (two, one))
    await fleet.until(lambda: len(by_node(refs, nodes)[two.name]) == 4)
    key = key_on(refs, one)
    await refs[key].call(Session.append, "before")
    fleet.partition([one])
    await fleet.until(lambda: refs.where(key) == two.name)
    await refs[key].call(Session.append, "on the other side")
    fleet.heal()
    await fleet.until(lambda: f"fenced {key}" in events)
    await fleet.until(lambda: ours.where(key) == refs.where(key) == one.name)
    assert await refs[key].call(Session.read) == ["before"]


async def test_a_kind_can_be_given_up_and_hosted_again(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2)
    await refs["a"].call(Session.append, "x")
    assert await nodes[1].entities.unhost("s")
    assert not await nodes[1].entities.unhost("s")
    await fleet.until(lambda: set(refs.shards().values()) == {nodes[2].name} and len(refs.shards()) == 8)
    await nodes[1].entities.host(Session, "s", shards=8, rebalance_s=0.0)
    await fleet.until(lambda: len(by_node(refs, nodes)[nodes[1].name]) == 4)
    assert await refs["b"].call(Session.append, "x") == 1


async def test_malformed_requests_and_states_do_not_end_the_host(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 1)
    await refs["a"].call(Session.append, "x")
    owner = refs._calls.shards.table.owner("s", refs.shard("a"))
    assert owner is not None
    routes: list[Any] = ["abcd", ["a"], [["a"], owner.epoch, 0, "append"]]
    routes += [["a", owner.epoch, mode, "append"] for mode in ("x", None, True)]
    routes += [["a", owner.epoch, 0, name] for name in (7, ["append"], None)]
    for route in routes:
        with pytest.raises(NoHandler, match="does not name an entity"):
            await nodes[0]._outbound.call(owner.pid, Invoke(route, ("y",), {}))
    assert await nodes[0].call(owner.pid, ["offer", "a", b"\xc1"]) is False
    assert await nodes[0].call(owner.pid, ["offer", "a", b"\x07"]) is True  # `merge` raises a TypeError.
    for shard, epoch in ((99, owner.epoch + 9), (-1, owner.epoch + 9), (0, 1 << 70)):
        assert await nodes[0].call(owner.pid, ["state", shard, epoch, []]) is False
    assert await refs["a"].call(Session.append, "y") == 2


async def test_the_last_epoch_that_a_peer_may_tell_does_no_harm(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2)
    key = key_on(refs, nodes[1])
    shard = refs.shard(key)
    shards = nodes[2]._parts.replicated_shards
    shards.perform(shards.table.claim("s", {shard: Claim(EPOCH_END - 1, 1)}))
    await fleet.until(lambda: refs.where(key) == nodes[2].name)
    with pytest.raises(ValueError, match="does not take it now"):
        await refs.move(shard, nodes[1].name)
    assert await refs[key].call(Session.append, "x") == 1
    await fleet.stop(nodes[2])
    assert await refs[key].within(5).call(Session.append, "x") == 1
    assert refs.where(key) == nodes[1].name
    assert nodes[0].list() == [nodes[1].name]


async def test_a_request_that_was_refused_late_has_only_what_is_left_of_its_time(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2, handoff_s=20.0)
    key = key_on(refs, nodes[1])
    slow = asyncio.create_task(refs[key].call(Session.slow, 1.5, "0"))
    await asyncio.sleep(0.1)
    until = fleet.now + 2
    call = asyncio.create_task(refs[key].within(2).call(Session.slow, 1.9, "1"))
    await asyncio.sleep(1.2)
    await refs.move(refs.shard(key), nodes[2].name)
    with pytest.raises(CallTimeout):
        await call
    assert fleet.now < until + 0.1
    assert await slow == 1


@pytest.mark.parametrize("actor", [Session, Plain])
async def test_a_former_life_does_not_mix_into_a_shard_that_comes_back(
    fleet: Fleet, actor: type[Session]
) -> None:
    nodes = await fleet.start(3)
    for node in nodes[1:]:
        await node.entities.host(actor, "s", shards=8, rebalance_s=1e9)
    caller, one, two = nodes
    refs, theirs = (node.entities.ref(Session, "s") for node in (caller, two))
    await fleet.until(lambda: len(refs.shards()) == 8)
    key = key_on(refs, one)
    await refs[key].call(Session.append, "before")
    fleet.partition([two])
    await fleet.until(lambda: theirs.where(key) == two.name)
    slow = asyncio.create_task(theirs[key].within(120).call(Session.slow, 20, "fork"))
    await asyncio.sleep(1)
    fleet.heal()
    await fleet.until(lambda: theirs.where(key) == refs.where(key) == one.name)
    assert await refs[key].call(Session.append, "acknowledged") == 2
    with pytest.raises(ValueError, match="does not take it now"):
        await refs.move(refs.shard(key), two.name)
    await slow
    assert await theirs.list(local=True) == []
    await refs.move(refs.shard(key), two.name)
    assert await refs[key].call(Session.read) == ["before", "acknowledged"]


async def test_a_handler_that_does_not_end_keeps_its_shard_served_while_it_cannot_be_balanced(
    fleet: Fleet,
) -> None:
    nodes, refs = await hosts(fleet, 1)
    busy = [asyncio.create_task(refs[f"k{n}"].within(600).call(Session.slow, 120, "x")) for n in range(40)]
    assert len({refs.shard(f"k{n}") for n in range(40)}) == 8
    (fresh,) = await fleet.start(1)
    await fresh.entities.host(Session, "s", shards=8, rebalance_s=0.0)
    served = []
    for _ in range(60):
        await asyncio.sleep(1)
        for n in range(8):
            try:
                await refs[f"m{n}"].within(0.1).call(Session.append, "x")
            except NotOwner:
                served.append(False)
            else:
                served.append(True)
    assert sum(served) > 0.85 * len(served)
    await asyncio.gather(*busy)
    await fleet.until(lambda: is_even(refs, [*nodes, fresh], 4), timeout=90)


async def test_what_travels_with_requests_and_what_is_told_of_them_is_as_with_actors(
    fleet: Fleet, request: pytest.FixtureRequest
) -> None:
    variable: ContextVar[str] = ContextVar("entity-request")
    fleetlm.carry(variable)
    request.addfinalizer(lambda: CARRYING.remove("entity-request"))

    class Seen(Session):
        @handler
        async def see(self) -> str:
            self.lines.append(variable.get("none"))
            return variable.get("none")

    nodes = await fleet.start(2)
    await nodes[1].entities.host(Seen, "s", shards=8)
    calls: list[Any] = []
    for node in nodes:
        node.telemetry.attach(calls.append, kinds={CallEnded})
        ref = node.entities.ref(Seen, "s")["a"]
        variable.set(node.name)
        assert await ref.call(Seen.see) == node.name
        await ref.cast(Seen.see)
    assert await ref.call(Session.read) == [nodes[0].name] * 2 + [nodes[1].name] * 2
    assert [each.handler for each in calls] == ["see", "see"] * 2  # That of "read" comes later.


async def test_what_cannot_be_hosted_is_refused(fleet: Fleet) -> None:
    nodes, _ = await hosts(fleet, 1)

    class Broad(Entity):
        @handler(concurrent=True)
        async def beside(self) -> None: ...

    host: Any = nodes[1].entities.host
    for actor, kind, options, error, text in (
        (Broad, "t", {}, TypeError, "is concurrent"),
        (Actor, "t", {}, TypeError, "not a subclass of Entity"),
        (Session, "s", {"shards": 8}, ValueError, "already"),
        (Session, "t", {"shards": 0}, ValueError, "shards"),
        (Session, "t", {"idle_s": -1}, ValueError, "seconds"),
        (Session, "t", {"live": 0}, ValueError, "at least one"),
        (Session, "", {}, fleetlm.InvalidName, "name"),
        (Session, "t", {"remember": [""]}, fleetlm.InvalidName, "key"),
    ):
        with pytest.raises(error, match=text):
            await host(actor, kind, **options)
    with pytest.raises(ValueError, match="other nodes have cut 's' into 8"):
        await nodes[0].entities.host(Session, "s", shards=16)
    with pytest.raises(TypeError, match="prepares itself in load"):

        class Wrong(Entity):
            async def init(self) -> None: ...

    assert nodes[0].entities.kinds() == ["s"]
    for number in range(64):
        await nodes[0].entities.host(Session, f"t{number}", shards=1)
    with pytest.raises(ValueError, match="at most 64 kinds"):
        await nodes[0].entities.host(Session, "s", shards=8)
    await nodes[0].stop()
    with pytest.raises(fleetlm.NodeStopped):
        await nodes[0].entities.host(Session, "s")
    with pytest.raises(fleetlm.NodeStopped):
        await nodes[0].entities.ref(Session, "s")["a"].call(Session.read)


@pytest.mark.parametrize("first", most_are_long(range(0, 100, 2), 1))
def test_no_acknowledged_append_is_lost_while_nodes_come_and_leave_in_order(first: int) -> None:
    run_worlds(lambda seed: World(seed, faults=False), range(first, first + 2))


@pytest.mark.parametrize("first", most_are_long(range(0, 100, 2), 1))
def test_an_append_runs_at_most_once_and_in_the_end_all_agree_whatever_fails(first: int) -> None:
    run_worlds(lambda seed: World(seed, faults=True), range(first, first + 2))
