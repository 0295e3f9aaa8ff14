"""Entities with a quorum: only a side that sees more than half of the hosts serves."""

from __future__ import annotations

import asyncio

import pytest

from fleetlm import EntityRefs, Node, NotOwner, ProcessDown, Quorum, RemoteError
from fleetlm.entities.handoff import Handoff
from fleetlm.entities.majority import Majority
from fleetlm.testing import Fleet
from fleetlm.wire.invocation import to_host
from tests.sim import quorum_members
from tests.sim.quorum_world import QuorumWorld
from tests.sim.seeded import most_are_long, run_worlds
from tests.sim.test_entities import Session, key_on
from tests.sim.vote_mutants import VOTE_MUTANTS

LEASE_S = 4.0


async def hosts(fleet: Fleet, count: int, expected: int) -> tuple[list[Node], EntityRefs[Session]]:
    """Start hosts, and wait until every shard has an owner, if that can be."""
    nodes = await fleet.start(count)
    for node in nodes:
        await node.entities.host(
            Session, "s", shards=8, rebalance_s=0.0, safety=Quorum(expected, LEASE_S), handoff_s=1.0
        )
    refs = nodes[0].entities.ref(Session, "s")
    if count > expected // 2:
        await fleet.until(lambda: len(refs.shards()) == 8, timeout=60)
        await fleet.sleep(5)
    return nodes, refs


def refs_of(node: Node) -> EntityRefs[Session]:
    return node.entities.ref(Session, "s")


def is_alive(node: Node, key: str) -> bool:
    return key in node.entities._hostings()[0].seats


async def test_nothing_is_served_before_the_members_are_old_enough_and_enough(fleet: Fleet) -> None:
    _, refs = await hosts(fleet, 1, 3)
    with pytest.raises(NotOwner):
        await refs["a"].within(20).call(Session.append, "x")
    began = fleet.now
    (second,) = await fleet.start(1)
    await second.entities.host(Session, "s", shards=8, safety=Quorum(3, LEASE_S))
    assert await refs["a"].within(60).call(Session.append, "x") == 1
    assert fleet.now - began > LEASE_S * 1.25
    assert await refs_of(second)["a"].call(Session.append, "x") == 2


async def test_one_node_may_be_enough(fleet: Fleet) -> None:
    _, refs = await hosts(fleet, 1, 1)
    assert await refs["a"].call(Session.append, "x") == 1


async def test_a_minority_stops_and_the_majority_goes_on_after_it(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 3, 3)
    alone, *others = nodes
    theirs = refs_of(others[0])
    key = key_on(refs, alone)
    assert await refs[key].call(Session.append, "x") == 1
    stuck = asyncio.create_task(refs[key].within(60).call(Session.slow, 50, "y"))
    await fleet.sleep(0.1)
    cut_at = fleet.now
    fleet.partition([alone])
    with pytest.raises(ProcessDown, match="fenced"):
        await stuck
    ended_at = fleet.now
    assert ended_at - cut_at <= LEASE_S
    assert alone.entities._hostings()[0].seats == {}
    with pytest.raises(NotOwner):
        await refs[key].within(5).call(Session.append, "y")
    await fleet.until(lambda: alone.name not in others[0].list(), timeout=60)
    assert await theirs[key].within(60).call(Session.append, "z") == 1
    assert (await theirs[key].call(Session.facts))[3]
    fleet.heal()
    await fleet.until(lambda: len(refs.shards()) == 8, timeout=60)
    assert await refs[key].call(Session.read) == ["z"]


async def test_the_others_begin_only_when_the_one_has_stopped(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 3, 3)
    alone, *others = nodes
    key = key_on(refs, alone)
    await refs[key].call(Session.append, "x")
    fleet.freeze(alone)
    while any(alone.name in each.list() for each in others):
        await fleet.sleep(0.01)
        assert not (is_alive(alone, key) and any(is_alive(each, key) for each in others))
    began = asyncio.create_task(refs_of(others[0])[key].within(60).call(Session.append, "z"))
    while not began.done():
        await fleet.sleep(0.01)
        assert not (is_alive(alone, key) and any(is_alive(each, key) for each in others))
    assert await began == 1
    fleet.thaw(alone)
    await fleet.sleep(5)
    assert await refs[key].within(60).call(Session.read) == ["z"]


async def test_drains_and_moves_carry_the_state_along(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 3, 3)
    keys = [f"k{number}" for number in range(20)]
    for key in keys:
        await refs[key].call(Session.append, "x")
    leaving = nodes[1]
    epochs = {key: refs.epoch(key) for key in keys}
    moved = [key for key in keys if refs.where(key) == leaving.name]
    report = await leaving.drain(30)
    assert report.was_clean
    assert [await refs[key].call(Session.append, "y") for key in keys] == [2] * 20
    assert all((refs.epoch(key) > epochs[key]) is (key in moved) for key in keys)
    leaving.undrain()
    await fleet.until(lambda: leaving.name in refs.shards().values(), timeout=60)
    assert [await refs[key].call(Session.append, "z") for key in keys] == [3] * 20


async def test_a_shard_that_cannot_be_handed_over_goes_on_where_it_is(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 3, 3)
    key = key_on(refs, nodes[1])
    epoch = refs.epoch(key)
    slow = asyncio.create_task(refs[key].call(Session.slow, 3, "slow"))
    await fleet.sleep(0.1)
    with pytest.raises(ValueError, match="not done in time"):
        await refs.move(refs.shard(key), nodes[2].name)
    assert await slow == 1
    assert await refs[key].call(Session.append, "y") == 2
    assert refs.where(key) == nodes[1].name
    assert refs.epoch(key) > epoch


async def test_more_hosts_than_expected_are_reported(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    await hosts(fleet, 2, 1)
    assert "its quorum expects 1" in caplog.text


async def test_nonsense_for_a_member_is_refused(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 1, 1)
    pid = refs._calls.shards.table.hosts("s")[nodes[0].name].pid
    beat, grant = ["beat", "a", 1, 1, 1], ["grant", "a", 1, 1, 1]
    wrong: list[list[object]] = [
        ["beat"], [*beat, [["x", 1]], []], [*beat, [[1, 1 << 63]], []], [*beat, [[99, 1]], []],
        [*beat, [], [-1]], [*beat, [[1]], []], ["beat", 1, 1, 1, 1, [], []], [*grant, [[1]]],
        [*grant, [[1, 1, 1, "a"]]], [*grant, [[1, 1, 1, ["a", 1]]]], [*grant, [[True, 1, 1, None]]],
    ]  # fmt: skip
    for message in wrong:
        with pytest.raises(RemoteError, match="ValueError"):
            await nodes[0].call(pid, message)
    assert await refs["a"].call(Session.append, "x") == 1
    with pytest.raises(TypeError, match="safety is"):
        await nodes[0].entities.host(Session, "t", safety="both")  # type: ignore[arg-type]


async def test_a_member_that_speaks_in_the_name_of_another_one_is_refused_and_logged_once(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    nodes, refs = await hosts(fleet, 3, 3)
    key, shard = key_on(refs, nodes[1]), refs.shard(key_on(refs, nodes[1]))
    assert await refs[key].call(Session.append, "x") == 1
    pids = {node.name: node.entities._hostings()[0].table.hosts("s")[node.name].pid for node in nodes}
    owner, host = pids[nodes[1].name], pids[nodes[0].name]
    other = pids[nodes[2].name]
    for member in ([owner.node, owner.incarnation, owner.number], [other.node, 1, other.number],
                   [other.node, other.incarnation, 1 << 20]):  # fmt: skip
        for message in (
            ["beat", *member, 1 << 40, [], []],
            ["grant", *member, 1 << 40, [[shard, 1, 0, None]]],
        ):
            with pytest.raises(RemoteError, match="is not the host of 's'"):
                await nodes[2].call(host, to_host(message))
    assert caplog.text.count("in the name of") == 1
    await fleet.sleep(LEASE_S * 2)
    assert refs.where(key) == nodes[1].name
    assert await refs[key].call(Session.append, "y") == 2


@pytest.mark.parametrize("first", most_are_long(range(40), 1))
def test_no_entity_lives_twice_at_any_instant_whatever_fails(first: int) -> None:
    run_worlds(QuorumWorld, [first])


@pytest.mark.parametrize("first", most_are_long(range(0, 3_000, 200), 1))
def test_no_two_members_serve_a_shard_at_an_instant_by_their_votes_and_leases_alone(first: int) -> None:
    acquired = sum(quorum_members.play(seed) for seed in range(first, first + 200))
    assert acquired > 600


@pytest.mark.parametrize("rule", VOTE_MUTANTS)
def test_each_rule_is_needed(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    """Most of the other rules have their tests in tests/unit/core/test_quorum.py."""
    monkeypatch.setattr(*VOTE_MUTANTS[rule])
    with pytest.raises(AssertionError, match=r"is served by|serves a former life"):
        sum(quorum_members.play(seed) for seed in range(600))


async def test_an_owner_that_was_frozen_serves_nothing_by_its_clock_before_any_timer_has_run(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, refs = await hosts(fleet, 3, 3)
    alone, *others = nodes
    key = key_on(refs, alone)
    idle = key_on(refs, alone, but=key)
    for each in (key, idle):
        assert await refs[each].call(Session.append, "before") == 1
    guard = alone.entities._hostings()[0].majority
    assert isinstance(guard, Majority)
    monkeypatch.setattr(guard, "_end_of_lease", lambda: None)
    slow = asyncio.create_task(refs[key].within(60).call(Session.slow, LEASE_S + 1, "slow"))
    await fleet.sleep(0.1)
    queued = asyncio.create_task(refs[key].within(60).call(Session.append, "queued"))
    await fleet.sleep(0.1)
    fleet.freeze(alone)
    assert await slow == 2  # It had begun before.
    with pytest.raises(ProcessDown, match="fenced"):  # It was in the mailbox before.
        await queued
    theirs = refs_of(others[0])
    await fleet.until(lambda: theirs.where(idle) in [each.name for each in others], timeout=60)
    assert await theirs[idle].call(Session.append, "there") == 1
    fleet.thaw(alone)
    assert is_alive(alone, idle)
    with pytest.raises(NotOwner):
        await refs[idle].within(0.001).call(Session.append, "late")
    monkeypatch.undo()
    await fleet.until(lambda: refs.where(idle) == theirs.where(idle) != alone.name, timeout=60)
    assert await refs[idle].call(Session.read) == ["there"]


async def test_an_entity_that_is_fenced_in_its_first_turn_leaves_nothing(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 1, 1)
    hosting = nodes[0].entities._hostings()[0]
    shard = refs.shard("a")
    assert hosting._activate(None, "a", shard) is not None
    hosting.fence([shard], "a test wants it")
    assert (hosting.seats, hosting.in_shard) == ({}, {})
    await fleet.sleep(1)
    assert hosting.kept == {}
    assert await refs["a"].within(20).call(Session.append, "x") == 1


async def test_an_owner_takes_a_higher_epoch_that_it_has_heard_of_from_a_majority(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 3, 3)
    key = key_on(refs, nodes[1])
    assert await refs[key].call(Session.append, "x") == 1
    shard, epoch = refs.shard(key), refs.epoch(key)
    hosting = nodes[1].entities._hostings()[0]
    hosting.table.heard_of("s", shard, epoch + 1_000)  # As a store may tell.
    hosting.review_soon()
    await fleet.until(lambda: refs.epoch(key) > epoch + 1_000)
    assert await refs[key].call(Session.append, "y") == 2
    assert refs.where(key) == nodes[1].name


async def test_hosts_that_start_with_clocks_that_were_set_back_get_growing_epochs(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 3, 3)
    key = key_on(refs, nodes[1])
    await refs[key].call(Session.append, "x")
    epoch = refs.epoch(key)
    for node in nodes:
        again = await fleet.restart(node, clock_s=-86_400)
        await again.entities.host(Session, "s", shards=8, safety=Quorum(3, LEASE_S))
        await fleet.until(lambda: len(refs_of(again).shards()) == 8, timeout=60)  # noqa: B023
        await fleet.sleep(LEASE_S * 2)
    refs = refs_of(again)
    assert await refs[key].within(60).call(Session.append, "y") == 1
    assert refs.epoch(key) > epoch


async def test_a_shard_that_is_handed_over_and_has_ended_here_is_named_in_no_beat(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 3, 3)
    shard = refs.shard(key_on(refs, nodes[0]))
    hosting = nodes[0].entities._hostings()[0]
    guard, handoff = hosting.majority, hosting.handoff
    assert isinstance(guard, Majority)
    assert isinstance(handoff, Handoff)
    assert shard in guard._claims()
    handoff._sealed.add(shard)  # Else the member that grants it to another node answers with a conflict.
    assert shard not in guard._claims()
    handoff._sealed.discard(shard)
