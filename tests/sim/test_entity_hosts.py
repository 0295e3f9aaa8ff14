"""Hosts of entities: when they take what looks free, how they bear faults, and who may host at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleetlm import EntityRefs, Node, NoProcess, NotAllowed, NotOwner, handler
from fleetlm.entities import kinds, settling
from fleetlm.entities.settling import Settling
from fleetlm.runtime import assembly
from fleetlm.setting_parsers import RIGHTS
from fleetlm.testing import Fleet
from fleetlm.testing.sim_dns import Reply
from tests.sim.test_entities import Session, hosts, key_on


class Slow(Session):
    """Takes long to be saved, where its lines say so."""

    async def save(self) -> Any:
        if self.lines[-1:] == ["endless"]:
            await asyncio.sleep(1_000)
        return self.lines

    @handler
    async def forget(self) -> None:
        self.lines = self.lines[:-1]


def hosting_of(node: Node) -> Any:
    return node.entities._hostings()[0]


# When shards that look free are free.


async def one_owner(fleet: Fleet) -> tuple[Node, EntityRefs[Session]]:
    """Start a node that owns everything, and has a session with an acknowledged append."""
    (owner,) = await fleet.start(1)
    await owner.entities.host(Session, "s", shards=8, rebalance_s=1e9)
    refs = owner.entities.ref(Session, "s")
    assert await refs["a"].call(Session.append, "acknowledged") == 1
    return owner, refs


async def check_that_nothing_is_taken(fleet: Fleet, late: Node, refs: EntityRefs[Session]) -> None:
    """Host on a node that is not connected yet, and ask there for the session, until it has met the owner."""
    await late.entities.host(Session, "s", shards=8, rebalance_s=1e9)
    answer = asyncio.create_task(late.entities.ref(Session, "s")["a"].within(60).call(Session.append, "late"))
    while not answer.done():
        assert not hosting_of(late).table.own("s").claims
        await fleet.sleep(0.01)
    assert await answer == 2
    assert await refs["a"].call(Session.read) == ["acknowledged", "late"]
    assert fleet.now > 5


async def test_a_host_that_is_slow_to_connect_takes_nothing_that_has_an_owner(fleet: Fleet) -> None:
    _, refs = await one_owner(fleet)
    (late,) = await fleet.start(1, wait=False)
    fleet.slow(late, 800)
    await check_that_nothing_is_taken(fleet, late, refs)


async def test_a_host_whose_discovery_is_slow_takes_nothing_that_has_an_owner(fleet: Fleet) -> None:
    _, refs = await one_owner(fleet)
    fleet.dns.script(Reply.ALL, delay_s=(6.0, 6.0))
    (late,) = await fleet.start(1, wait=False)
    await check_that_nothing_is_taken(fleet, late, refs)


async def test_a_host_whose_first_lookups_fail_takes_nothing_that_has_an_owner(fleet: Fleet) -> None:
    _, refs = await one_owner(fleet)
    fleet.dns.script(Reply.SERVFAIL)
    (late,) = await fleet.start(1, wait=False)
    asyncio.get_running_loop().call_later(6, fleet.dns.heal)
    await check_that_nothing_is_taken(fleet, late, refs)


async def test_the_shards_of_a_node_whose_loop_stands_still_are_not_taken(fleet: Fleet) -> None:
    """It is connected, and has not told what it owns."""
    owner, refs = await one_owner(fleet)
    (late,) = await fleet.start(1, wait=False)
    await fleet.until(lambda: owner.name in late.list())
    fleet.network.trace = None
    late_settling: Settling = late._parts.replicated_shards.settling
    late_settling.node_up(owner.name)  # As if its rows were still to come.
    fleet.stall(owner)
    hosted = late.entities.host(Session, "s", shards=8, rebalance_s=1e9)
    await hosted
    hosting_of(late).table._kinds["s"].owners.clear()
    await fleet.sleep(6)
    assert not hosting_of(late).table.own("s").claims
    fleet.unstall(owner)
    await fleet.sleep(2)
    assert owner.name not in late_settling._unheard
    assert await refs["a"].call(Session.read) == ["acknowledged"]


async def test_a_node_that_meets_nobody_serves_after_a_while(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    await one_owner(fleet)
    fleet.dns.script(Reply.SERVFAIL)
    (late,) = await fleet.start(1, wait=False)
    fleet.partition([late])
    await late.entities.host(Session, "s", shards=8)
    began = fleet.now
    assert await late.entities.ref(Session, "s")["a"].within(60).call(Session.append, "x") == 1
    assert settling.LIMIT_S < fleet.now - began < settling.LIMIT_S + 5
    assert "though discovery has not answered" in caplog.text


async def test_a_node_that_cannot_reach_another_one_serves_after_two_dials(fleet: Fleet) -> None:
    (first,) = await fleet.start(1)
    await fleet.crash(first, stale=True)
    (node,) = await fleet.start(1)
    await node.entities.host(Session, "s", shards=8)
    assert await node.entities.ref(Session, "s")["a"].within(5).call(Session.append, "x") == 1


async def test_what_a_lost_node_had_is_taken_over_at_once(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2)
    key = key_on(refs, nodes[1])
    await fleet.sleep(10)
    await fleet.crash(nodes[1])
    began = fleet.now
    await fleet.until(lambda: nodes[1].name not in nodes[0].list())
    assert await refs[key].call(Session.append, "x") == 1
    assert fleet.now - began < 1


# Faults of hosts and entities.


@pytest.mark.parametrize("how", ["idle", "move"])
async def test_a_save_that_does_not_end_is_given_up_and_named(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    idle_s = 3.0 if how == "idle" else 600.0
    nodes, _ = await hosts(fleet, 1)
    two = nodes[0]
    await two.entities.host(Slow, "t", shards=1, idle_s=idle_s, handoff_s=2.0, rebalance_s=1e9)
    refs = two.entities.ref(Slow, "t")
    assert await refs["a"].call(Slow.append, "endless") == 1
    if how == "move":
        await nodes[1].entities.host(Slow, "t", shards=1, rebalance_s=1e9)
        await fleet.sleep(0.1)
        with pytest.raises(ValueError, match=r"not done in time|cannot be saved"):
            await refs.move(0, nodes[1].name)
    else:
        await fleet.sleep(3.5)
    began = fleet.now
    assert await refs["a"].within(5).call(Slow.append, "endless") == 2
    assert fleet.now - began < 2.5
    assert "t/a cannot be saved, and goes on: save() did not end within 2 s" in caplog.text
    failures = caplog.text.count("did not end within")
    await fleet.sleep(3.0)
    assert caplog.text.count("did not end within") <= failures + 1  # It is not tried in each look.
    await refs["a"].within(5).call(Slow.append, "done")
    if how == "move":
        await refs.move(0, nodes[1].name)
    assert await refs["a"].within(5).call(Slow.read) == ["endless", "endless", "done"]


async def test_a_host_process_that_is_killed_is_started_anew(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    nodes, refs = await hosts(fleet, 2)
    one = nodes[1]
    key = key_on(refs, one)
    await refs[key].call(Session.append, "x")
    first = hosting_of(one)
    nodes[0].exit(first.process.pid, "kill")
    await fleet.until(lambda: one.entities._hosted.get("s") not in (None, first))
    assert await refs[key].within(10).call(Session.append, "y") == 1
    await fleet.until(lambda: len(refs.shards()) == 8)
    assert "the host of s has ended ('killed'), with what lived here: it is started anew" in caplog.text
    assert first.process.pid not in {each.pid for each in one.processes()}
    assert not first.seats


async def test_a_kind_whose_host_ends_again_and_again_is_given_up_and_others_serve(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    nodes, refs = await hosts(fleet, 2)
    one, two = nodes[1:]
    for _ in range(kinds.MAX_RESTARTS + 1):
        hosting = hosting_of(one)
        nodes[0].exit(hosting.process.pid, "kill")
        await fleet.until(lambda: one.entities._hosted.get("s") is not hosting)  # noqa: B023
    assert "It is hosted here no more: others take it over" in caplog.text
    assert one.entities._hosted == {}
    await fleet.until(lambda: set(refs.shards().values()) == {two.name} and len(refs.shards()) == 8)
    assert await refs["a"].call(Session.append, "x") == 1
    await one.entities.host(Session, "s", shards=8)  # As a program may try again.


async def test_a_request_that_the_host_cannot_serve_costs_itself_alone(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nodes, refs = await hosts(fleet, 1)
    await refs["a"].call(Session.append, "x")
    hosting = hosting_of(nodes[1])

    def fails(*_: Any) -> None:
        raise LookupError("a fault of its own")

    monkeypatch.setattr(hosting, "_find", fails)
    with pytest.raises(Exception, match="a fault of its own"):
        await refs["b"].call(Session.append, "x")
    assert "could not serve a request, and goes on" in caplog.text
    monkeypatch.undo()
    assert await refs["a"].call(Session.append, "y") == 2
    assert hosting_of(nodes[1]) is hosting


async def test_a_kind_that_is_given_up_and_a_node_that_stops_start_nothing_anew(fleet: Fleet) -> None:
    nodes, _ = await hosts(fleet, 2)
    assert await nodes[1].entities.unhost("s")
    await fleet.sleep(1)
    assert nodes[1].entities._hosted == {}
    await fleet.stop(nodes[2])
    assert nodes[2].entities._hosted == {}


# Who may host, and who may ask.


@pytest.mark.parametrize("missing", ["call", "register"])
async def test_a_node_that_denies_what_hosts_need_hosts_nothing_and_asks_as_before(
    fleet: Fleet, missing: str
) -> None:
    nodes, refs = await hosts(fleet, 1)
    (limited,) = await fleet.start(1, peers_may=frozenset(RIGHTS) - {missing})
    with pytest.raises(ValueError, match=rf"its Settings\.peers_may has no '{missing}'"):
        await limited.entities.host(Session, "s", shards=8)
    assert limited.entities._hosted == {}
    assert await limited.entities.ref(Session, "s")["a"].call(Session.append, "x") == 1
    await fleet.stop(nodes[1], drain_s=0.0)
    assert limited.entities.ref(Session, "s").where("a") is None
    with pytest.raises(NotOwner):
        await refs["a"].within(1).call(Session.append, "x")


async def test_a_node_that_may_not_be_called_serves_no_entity_to_others(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it hosts against the rule: neither requests nor the messages between hosts come through."""
    (limited,) = await fleet.start(1, peers_may=frozenset(RIGHTS) - {"call"})
    with monkeypatch.context() as patch:
        patch.setattr(limited._parts.context.settings.__class__, "peers_may", frozenset(RIGHTS))
        await limited.entities.host(Session, "s", shards=8)
    await fleet.sleep(5)
    (other,) = await fleet.start(1)
    refs = other.entities.ref(Session, "s")
    await fleet.until(lambda: refs.where("a") == limited.name)
    with pytest.raises(NotAllowed):
        await refs["a"].call(Session.append, "x")
    pid = refs._calls.shards.table.hosts("s")[limited.name].pid
    for message in (["take", 0, 1 << 50, 1, 1, None, False, True, []], ["state", 0, 1 << 50, []], ["list"]):
        with pytest.raises((NotAllowed, NoProcess)):
            await other.call(pid, message)


async def test_a_node_without_these_tables_is_not_disturbed_by_them(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, refs = await hosts(fleet, 2)
    await refs["a"].call(Session.append, "x")
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "TABLES", ())  # As a build before them says in its HELLO.
        (old,) = await fleet.start(1)
    nodes[1].groups.join("g", nodes[1].spawn(idle), meta={"a": 1})
    report = await nodes[1].drain(10)
    assert report.was_clean
    await fleet.sleep(5)
    assert {peer.connection.ups for peer in old._parts.kernel.topology.peers.values()} == {1}
    assert set(old.list()) == {node.name for node in nodes}
    assert old.entities.ref(Session, "s").where("a") is None
    assert old._parts.replicated_shards.table.kinds() == []
    assert old.groups.members("g")
    assert await refs["a"].call(Session.append, "y") == 2


async def idle(process: Any) -> None:
    await process.mailbox.get()
