"""What people see of keyed entities: in the remote shell, the doctor, overviews and metrics."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleetlm import Entity, MemoryStore, Node, NotLoaded, Quorum, StoreInfo
from fleetlm.cli.doctor.entity_checks import judge_kinds
from fleetlm.entities.info import KindInfo
from fleetlm.metrics import NodeMetrics
from fleetlm.metrics.reading import HANDOFF_ENDS
from fleetlm.remote.evaluator import as_json
from fleetlm.remote.facts import node_facts
from fleetlm.remote.namespace import EntitiesNoun, make_namespace
from fleetlm.testing import Fleet
from tests.sim.test_entities import Plain, Session, by_node, hosts, key_on, node_of
from tests.sim.test_metrics import Scrape


def noun_of(node: Node) -> EntitiesNoun:
    noun: EntitiesNoun = make_namespace(node)["Entities"]
    return noun


def info_of(node: Node, kind: str = "s") -> KindInfo:
    return next(each for each in node.entities.info() if each.kind == kind)


def own_of(node: Node) -> Any:
    own = info_of(node).hosted
    assert own is not None
    return own


async def test_the_remote_shell_names_kinds_hosts_shards_and_keys(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2)
    for number in range(6):
        await refs[f"k{number}"].call(Session.append, "x")
    front, noun = nodes[0], noun_of(nodes[0])
    assert repr(noun_of(front).kinds()) == (
        "kind  shards  no owner  hosts  owned here  moving  alive  kept bytes  safety  stored\n"
        "s          8         0      2           0       0      0           0  -       -"
    )
    there = repr(noun_of(nodes[1]).kinds()).splitlines()[1].split()
    assert there[:6] == ["s", "8", "0", "2", "4", "0"]
    assert there[-2:] == ["available", "-"]
    assert as_json(noun.kinds())[0]["kind"] == "s"
    assert noun.hosts("s") == {node.name: 4 for node in nodes[1:]}
    assert noun.shards("s") == refs.shards()
    assert noun.shard("s", "k1") == refs.shard("k1")
    assert noun.where("s", "k1") == refs.where("k1")
    assert await noun.list("s") == [f"k{number}" for number in range(6)]
    assert await noun.list("s", local=True) == []
    both = [await noun_of(node).list("s", local=True) for node in nodes[1:]]
    assert sorted(both[0] + both[1]) == [f"k{number}" for number in range(6)]
    for verb in ("kinds", "hosts", "where", "shard", "list", "shards", "move"):
        assert f"Entities.{verb}(" in repr(noun)


async def test_the_remote_shell_moves_a_shard(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2, rebalance_s=1_000.0)
    key = key_on(refs, nodes[1])
    await refs[key].call(Session.append, "x")
    noun, shard = noun_of(nodes[0]), refs.shard(key)
    assert await noun.move("s", shard, nodes[2].name) == nodes[2].name
    assert noun.where("s", key) == nodes[2].name
    assert await refs[key].call(Session.append, "y") == 2
    with pytest.raises(ValueError, match="does not host"):
        await noun.move("s", shard, nodes[0].name)
    for wrong in (-1, 4_000):
        with pytest.raises(ValueError, match="a number from 0 to 7"):
            await noun.move("s", wrong, nodes[1].name)


async def test_a_kind_that_nobody_hosts_is_an_error_that_names_the_others(fleet: Fleet) -> None:
    (lone,) = await fleet.start(1)
    assert repr(noun_of(lone).kinds()) == "(no kinds of entities)"
    with pytest.raises(ValueError, match="no connected node hosts 's'; no kind is known"):
        noun_of(lone).where("s", "k")
    await lone.entities.host(Plain, "carts", shards=8)
    with pytest.raises(ValueError, match="no connected node hosts 's'; these are known: carts"):
        noun_of(lone).list("s")


async def test_what_happens_to_entities_is_counted(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2, rebalance_s=1_000.0)
    keys = [key_on(refs, nodes[1]), key_on(refs, nodes[2])]
    for key in keys:
        await refs[key].call(Session.append, "x")
    one, two = own_of(nodes[1]), own_of(nodes[2])
    assert (one.runs, one.owned, one.alive, one.activated, one.moving) == ("Session", 4, 1, 1, 0)
    assert (two.owned, two.alive, two.live, two.max_kept_bytes) == (4, 1, 100_000, 256 * 1024 * 1024)
    slow = asyncio.create_task(refs[keys[0]].call(Session.slow, 1.0, "y"))
    await fleet.sleep(0.1)
    moving = asyncio.create_task(refs.move(refs.shard(keys[0]), nodes[2].name))
    await fleet.sleep(0.1)
    assert own_of(nodes[1]).moving == 1
    await moving
    await slow
    assert await refs[keys[0]].call(Session.read) == ["x", "y"]
    await fleet.until(lambda: own_of(nodes[1]).moving == 0)
    one, two = own_of(nodes[1]), own_of(nodes[2])
    assert (one.owned, one.handed_over, one.taken, one.stayed) == (3, 1, 0, 0)
    assert (two.owned, two.handed_over, two.taken, two.activated) == (5, 0, 1, 2)
    assert two.kept_bytes > 0
    await refs[keys[1]].call(Session.append, "unsaveable")
    with pytest.raises(ValueError, match="cannot be saved"):
        await refs.move(refs.shard(keys[1]), nodes[1].name)
    assert own_of(nodes[2]).stayed == 1


async def test_entities_that_are_fenced_are_counted(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2)
    alone, other = nodes[1:]
    key = key_on(refs, alone)
    await refs[key].call(Session.append, "x")
    fleet.partition([alone])
    await fleet.until(lambda: alone.name not in other.list(), timeout=60)
    await fleet.until(lambda: refs.where(key) == other.name, timeout=60)
    mine, theirs = key_on(refs, other, key), alone.entities.ref(Session, "s")
    await fleet.until(lambda: theirs.where(mine) == alone.name, timeout=60)
    await theirs[mine].call(Session.append, "y")
    await refs[mine].call(Session.append, "z")
    fleet.heal()
    await fleet.until(lambda: own_of(alone).fenced + own_of(other).fenced >= 1, timeout=60)
    await fleet.until(lambda: len({node.entities.ref(Session, "s").where(mine) for node in nodes}) == 1)


async def test_hosts_that_disagree_and_shards_without_an_owner_are_seen(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    fleet.partition([one])
    await fleet.until(lambda: not one.list() and not two.list(), timeout=60)
    await one.entities.host(Plain, "s", shards=8)
    await two.entities.host(Plain, "s", shards=4)
    fleet.heal()
    await fleet.until(lambda: bool(one.list() and two.list()), timeout=60)
    await fleet.until(lambda: len(info_of(one).differing) == len(info_of(two).differing) == 1)
    await fleet.until(lambda: info_of(one).unowned == 0, timeout=60)
    assert (info_of(one).shards, info_of(one).hosts, info_of(one).differing) == (8, 2, {two.name: 4})
    assert (info_of(two).shards, info_of(two).differing) == (4, {one.name: 8})
    found = judge_kinds(node_facts(one)["kinds"])
    assert [each.level for each in found] == ["fail"]
    await one.entities.unhost("s")
    await fleet.until(lambda: info_of(one).shards == 4 and not info_of(two).differing)
    assert info_of(one).hosted is None
    assert judge_kinds(node_facts(one)["kinds"])[0].level == "ok"
    assert info_of(one).unowned == 0
    table = two._parts.replicated_shards
    table.perform(table.table.drop("s", [0, 2]))
    assert info_of(two).unowned == len(table.table.unowned("s")) == 2
    assert judge_kinds(node_facts(two)["kinds"])[0].level == "warn"
    await fleet.until(lambda: info_of(two).unowned == 0)


async def test_a_quorum_that_is_lost_is_seen(fleet: Fleet) -> None:
    nodes = await fleet.start(3)
    for node in nodes:
        await node.entities.host(Plain, "s", shards=8, safety=Quorum(3, 4.0))
    await fleet.until(lambda: all(own_of(node).quorum.holds for node in nodes), timeout=60)
    assert own_of(nodes[0]).quorum.seen == 3
    assert "quorum: 3 of 3" in repr(noun_of(nodes[0]).kinds())
    fleet.partition([nodes[0]])
    await fleet.until(lambda: not own_of(nodes[0]).quorum.holds, timeout=60)
    assert own_of(nodes[0]).quorum.seen == 1
    assert "quorum: 1 of 3, lost" in repr(noun_of(nodes[0]).kinds())
    levels = {each.level for each in judge_kinds(node_facts(nodes[0])["kinds"])}
    assert "fail" in levels
    assert own_of(nodes[1]).quorum.holds
    part = (await nodes[0].overview())["nodes"][nodes[0].name]
    assert part["kinds"]["s"]["quorum"] == {"expected": 3, "seen": 1, "holds": False}


async def test_a_store_that_fails_is_seen(fleet: Fleet) -> None:
    (node,) = await fleet.start(1)
    store = MemoryStore()
    refs = await node.entities.host(Session, "s", shards=2, store=store, durable=5.0)
    await refs["a"].call(Session.append, "x")
    assert own_of(node).store == StoreInfo(repr(store), "within 5 s", 0, fails=False)
    store.is_down = True
    with pytest.raises(NotLoaded):
        await refs["b"].call(Session.read)
    shown = own_of(node).store
    assert (shown.fails, shown.failures) == (True, 1)
    assert repr(noun_of(node).kinds()).endswith("available  within 5 s, fails")
    assert "fail" in {each.level for each in judge_kinds(node_facts(node)["kinds"])}
    assert (await node.overview())["nodes"][node.name]["kinds"]["s"]["store"]["fails"] is True
    with NodeMetrics(node) as metrics:
        assert Scrape(metrics)("entity_store_failures_total", kind="s") == 1
    store.is_down = False
    await fleet.sleep(10)
    assert await refs["b"].call(Session.read) == []
    assert own_of(node).store.fails is False
    assert own_of(node).store.failures >= 1


async def test_an_overview_shows_each_kind_as_each_node_sees_it(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2)
    key = key_on(refs, nodes[1])
    await refs[key].call(Session.append, "x")
    parts = (await nodes[0].overview())["nodes"]
    mine, theirs = parts[nodes[0].name]["kinds"]["s"], parts[nodes[1].name]["kinds"]["s"]
    assert (mine["is_hosted"], mine["shards"], mine["hosts"], mine["owned"], mine["runs"]) == (
        *(False, 8, 2, 0, ""),
    )  # fmt: skip
    assert (theirs["is_hosted"], theirs["owned"], theirs["alive"], theirs["activated"]) == (True, 4, 1, 1)
    assert (theirs["runs"], theirs["quorum"], theirs["unowned"]) == ("Session", None, 0)
    assert parts[nodes[0].name]["left_out"].get("kinds", 0) == 0


async def test_the_metrics_of_a_host_count_its_kinds(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 2, rebalance_s=1_000.0)
    key = key_on(refs, nodes[1])
    await refs[key].call(Session.append, "x")
    await nodes[1].entities.host(Plain, "carts", shards=4, safety=Quorum(3))
    with NodeMetrics(nodes[0]) as none, NodeMetrics(nodes[1]) as some:
        assert list(Scrape(none).labels("entities")) == []
        scrape = Scrape(some)
        kinds = {frozenset(labels.items()) for labels in scrape.labels("entities")}
        assert kinds == {frozenset({("kind", "carts")}), frozenset({("kind", "s")})}
        assert (scrape("entities", kind="s"), scrape("entity_shards", kind="s")) == (1, 4)
        assert scrape("entities_activated_total", kind="s") == 1
        assert scrape("entity_shards_unowned", kind="carts") == 4
        assert list(scrape.labels("entity_quorum")) == [{"kind": "carts"}]
        assert scrape("entity_quorum", kind="carts") == 0
        await refs.move(refs.shard(key), nodes[2].name)
        await fleet.until(lambda: own_of(nodes[1]).handed_over == 1)
        again = Scrape(some)
        ends = [again("entity_handoffs_total", kind="s", end=end) for end in HANDOFF_ENDS]
        assert ends == [1, 0, 0]
        assert (again("entities", kind="s"), again("entity_kept_bytes", kind="s")) == (0, 0)
        assert again("entities_fenced_total", kind="s") == again("entity_shards_moving", kind="s") == 0


async def test_of_very_many_kinds_those_of_this_node_are_shown(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    for number in range(4):
        await two.entities.host(Plain, f"a{number}", shards=1)
    await one.entities.host(Plain, "z", shards=1)
    await fleet.until(lambda: len(one.entities.kinds()) == 5)
    assert [each.kind for each in one.entities.info(2)] == ["a0", "z"]
    assert [each.kind for each in one.entities.info()] == ["a0", "a1", "a2", "a3", "z"]


async def test_the_shell_asks_for_kinds_of_any_class(fleet: Fleet) -> None:
    nodes, refs = await hosts(fleet, 1)
    assert node_of(nodes, refs.where("a")).entities.ref(Entity, "s").where("a") == nodes[1].name
    assert by_node(refs, nodes)[nodes[1].name] == list(range(8))


async def test_a_node_without_entities_is_looked_at_without_their_code(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    with NodeMetrics(one) as metrics:
        assert list(Scrape(metrics).labels("entities")) == []
    assert (await one.overview())["nodes"][one.name]["kinds"] == {}
    assert node_facts(one)["kinds"] == []
    assert "entities" not in vars(one._parts)
    await two.entities.host(Plain, "s", shards=1)
    await fleet.until(lambda: bool(node_facts(one)["kinds"]))
