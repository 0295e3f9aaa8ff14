"""Entities with a store: what is acknowledged is stored, and what is stored is what the next owner loads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleetlm import (
    Entity,
    EntityRefs,
    Fence,
    MemoryStore,
    Node,
    NotDelivered,
    NotLoaded,
    NotStored,
    OutcomeUnknown,
    ProcessExit,
    Quorum,
    RemoteError,
    Stored,
    StoreFailed,
    handler,
)
from fleetlm.entities.keeping import PAUSE_S
from fleetlm.testing import Fleet
from tests.sim.seeded import most_are_long, run_worlds
from tests.sim.store_world import StoreWorld


class Lines(Entity):
    """Keeps lines."""

    async def load(self, state: Any) -> None:
        self.lines: list[str] = list(state or ())

    async def save(self) -> Any:
        if "unsaveable" in self.lines:
            raise ValueError("no")
        return self.lines or None

    @handler
    async def append(self, line: str) -> int:
        self.lines.append(line)
        return len(self.lines)

    @handler
    async def read(self) -> list[str]:
        return list(self.lines)

    @handler
    async def slow(self, line: str, seconds: float) -> int:
        self.lines.append(line)
        await asyncio.sleep(seconds)
        return len(self.lines)

    @handler
    async def clear(self) -> None:
        self.lines = []

    @handler
    async def fail(self, line: str) -> None:
        self.lines.append(line)
        raise ValueError(line)

    @handler
    async def crash(self, line: str) -> None:
        self.lines.append(line)
        raise ProcessExit("broken")

    @handler
    async def facts(self) -> tuple[str, bool, int]:
        return self.node.name, self.restarted, self.epoch

    @handler
    async def each(self, line: str) -> AsyncIterator[str]:
        for known in [*self.lines, line]:
            yield known
        self.lines.append(line)

    @handler
    async def forever(self, line: str) -> AsyncIterator[int]:
        self.lines.append(line)
        while True:
            yield len(self.lines)
            await asyncio.sleep(0.01)

    @handler
    async def rest(self) -> None:
        self.passivate()


async def hosts(
    fleet: Fleet, count: int, store: MemoryStore, durable: Any = "write", **options: Any
) -> tuple[list[Node], EntityRefs[Lines]]:
    """Start nodes that host lines, each with an access of its own to the store; references of the first."""
    nodes = await fleet.start(count)
    for node in nodes:
        given: dict[str, Any] = {"shards": 4, "rebalance_s": 0.0, "store": store, **options}
        await node.entities.host(Lines, "lines", durable=durable, **given)
    refs = nodes[0].entities.ref(Lines, "lines")
    await fleet.until(lambda: len(set(refs.shards().values())) == min(count, 4) and len(refs.shards()) == 4)
    return nodes, refs


def stored(store: MemoryStore, node: Node) -> dict[str, Any]:
    """What is stored, as values."""
    codec = node.entities._codec
    return {key: codec.unpack(state) for key, state in store.states("lines").items()}


def cut_off(node: Node) -> None:
    """Let a node reach the store no more."""
    keeps = node.entities._hostings()[0].keeps
    assert keeps is not None
    assert isinstance(keeps.store, MemoryStore)
    keeps.store = keeps.store.another()
    keeps.store.is_down = True


async def crash(fleet: Fleet, node: Node, other: Node) -> None:
    """End a node as SIGKILL does: what it still asks of the store goes nowhere."""
    cut_off(node)
    await fleet.crash(node)
    await fleet.until(lambda: node.name not in other.list(), timeout=60)


async def collect(stream: AsyncIterator[Any], items: list[Any]) -> None:
    """Add the items of a stream one by one, so that those before an error are kept."""
    async for item in stream:
        items += [item]


def key_on(refs: EntityRefs[Lines], node: Node) -> str:
    return next(key for key in (f"k{n}" for n in range(99)) if refs.where(key) == node.name)


async def test_a_result_leaves_after_its_state_is_stored(fleet: Fleet) -> None:
    store = MemoryStore(latency_s=(0.5, 0.5))
    (node,), refs = await hosts(fleet, 1, store)
    call = asyncio.create_task(refs["a"].call(Lines.append, "x"))
    await fleet.sleep(0.9)
    assert not call.done()
    assert await call == 1
    assert stored(store, node) == {"a": ["x"]}
    began = fleet.now
    assert await refs["a"].call(Lines.read) == ["x"]
    assert fleet.now - began < 0.1, "what has not changed is not stored again"


async def test_what_was_acknowledged_outlives_the_node(fleet: Fleet) -> None:
    store = MemoryStore()
    nodes, refs = await hosts(fleet, 3, store)
    victim = nodes[1]
    key = key_on(refs, victim)
    for number in range(3):
        assert await refs[key].call(Lines.append, f"{number}") == number + 1
    before = await refs[key].call(Lines.facts)
    await crash(fleet, victim, nodes[0])
    assert await refs[key].within(30).call(Lines.append, "3") == 4
    where, restarted, epoch = await refs[key].call(Lines.facts)
    assert (where != victim.name, restarted, epoch > before[2]) == (True, False, True)


async def test_a_quorum_and_a_store_lose_nothing_with_a_node(fleet: Fleet) -> None:
    store = MemoryStore()
    nodes = await fleet.start(3)
    for node in nodes:
        await node.entities.host(
            Lines, "lines", shards=4, rebalance_s=0.0, store=store, durable=60.0, safety=Quorum(3, 4.0)
        )
    refs = nodes[0].entities.ref(Lines, "lines")
    await fleet.until(lambda: len(set(refs.shards().values())) == 3, timeout=60)
    key = key_on(refs, nodes[1])
    assert await refs[key].within(30).call(Lines.append, "x") == 1
    await refs[key].call(Lines.rest)
    await fleet.until(lambda: stored(store, nodes[0]) == {key: ["x"]})
    assert await refs[key].within(30).call(Lines.append, "lost") == 2
    await crash(fleet, nodes[1], nodes[0])
    assert await refs[key].within(60).call(Lines.append, "y") == 2
    assert (await refs[key].call(Lines.facts))[1]
    assert await refs[key].call(Lines.read) == ["x", "y"]


async def test_a_handoff_moves_no_states(fleet: Fleet) -> None:
    store = MemoryStore()
    (one, two), refs = await hosts(fleet, 2, store)
    key = key_on(refs, one)
    assert await refs[key].call(Lines.append, "x") == 1
    store.is_down = True
    assert (await one.drain(20)).was_clean
    assert not one.entities._hostings()[0].kept
    assert not two.entities._hostings()[0].kept
    store.is_down = False
    there = two.entities.ref(Lines, "lines")
    assert await there[key].call(Lines.append, "y") == 2
    assert await there[key].call(Lines.facts) == (two.name, False, there.epoch(key))


async def test_a_write_that_fails_is_told_and_the_entity_goes_back(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    (node,), refs = await hosts(fleet, 1, store)
    assert await refs["a"].call(Lines.append, "x") == 1
    store.is_down = True
    with pytest.raises(NotStored, match=r"handler of lines/a has run.*MemoryStore.*it is down") as failure:
        await refs["a"].call(Lines.append, "y")
    assert isinstance(failure.value, OutcomeUnknown)
    for _ in range(3):
        with pytest.raises(
            NotLoaded, match=r"lines/a did not get the request.*MemoryStore.*it is down"
        ) as no:
            await refs["a"].call(Lines.read)
        assert isinstance(no.value, NotDelivered)
    store.is_down = False
    await fleet.sleep(PAUSE_S)
    assert await refs["a"].call(Lines.read) == ["x"]
    lines = [each.getMessage() for each in caplog.records if "store" in each.getMessage()]
    assert len(lines) == 2, lines
    assert "works again" in lines[1]
    assert stored(store, node) == {"a": ["x"]}


async def test_a_full_disk_that_can_be_read_is_one_trouble(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request loads what is stored, since the write before it failed."""
    store = MemoryStore()
    _, refs = await hosts(fleet, 1, store)
    assert await refs["a"].call(Lines.append, "x") == 1

    async def save_nothing(*_: Any, **__: Any) -> int:
        raise StoreFailed("disk", "it is full")

    monkeypatch.setattr(store, "save", save_nothing)
    for _ in range(5):
        with pytest.raises(NotStored):
            await refs["a"].call(Lines.append, "y")
        await fleet.sleep(2 * PAUSE_S)
        assert await refs["a"].call(Lines.read) == ["x"]
    lines = [each.getMessage() for each in caplog.records if "store" in each.getMessage()]
    assert len(lines) == 1, lines
    monkeypatch.undo()
    assert await refs["a"].call(Lines.append, "z") == 2
    assert "works again" in caplog.records[-1].getMessage()


async def test_a_store_that_fails_now_and_then_is_told_of_once_a_second_at_most(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    _, refs = await hosts(fleet, 1, store)
    for _ in range(10):
        store.is_down = True
        with pytest.raises((NotStored, NotLoaded)):
            await refs["a"].call(Lines.append, "y")
        store.is_down = False
        await refs["a"].call(Lines.append, "x")
    lines = [each.getMessage() for each in caplog.records if "store" in each.getMessage()]
    assert len(lines) == 1, lines


async def test_a_lost_answer_is_told_as_one_and_the_next_request_finds_what_is_stored(fleet: Fleet) -> None:
    store = MemoryStore()
    _, refs = await hosts(fleet, 1, store)
    assert await refs["a"].call(Lines.append, "x") == 1
    store.lost_answers = 1.0
    with pytest.raises(NotStored):
        await refs["a"].call(Lines.append, "y")
    store.lost_answers = 0.0
    assert await refs["a"].call(Lines.read) == ["x", "y"]


async def test_a_silent_store_stops_neither_the_node_nor_other_entities(fleet: Fleet) -> None:
    store = MemoryStore()
    _, refs = await hosts(fleet, 1, store, store_s=1.5)
    for key in "ab":
        assert await refs[key].call(Lines.append, "x") == 1
    store.is_down = store.is_silent = True
    began = fleet.now
    stuck = asyncio.gather(
        refs["a"].call(Lines.append, "y"), refs["c"].call(Lines.append, "y"), return_exceptions=True
    )
    for _ in range(10):
        assert await refs["b"].call(Lines.read) == ["x"]
        await fleet.sleep(0.1)
    written, loaded = await stuck
    assert isinstance(written, NotStored)
    assert "has not answered within 1.5 s" in str(written)
    assert isinstance(loaded, NotLoaded)
    assert fleet.now - began < 3.5
    store.is_down = store.is_silent = False
    assert await refs["c"].call(Lines.append, "z") == 1
    assert await refs["a"].call(Lines.read) == ["x"]


async def test_an_exception_leaves_after_the_store_too(fleet: Fleet) -> None:
    store = MemoryStore()
    (node,), refs = await hosts(fleet, 1, store)
    with pytest.raises(RemoteError, match="x"):
        await refs["a"].call(Lines.fail, "x")
    assert stored(store, node) == {"a": ["x"]}
    store.is_down = True
    with pytest.raises(NotStored):
        await refs["a"].call(Lines.fail, "y")


async def test_a_stream_sends_its_items_at_once_and_its_end_after_the_store(fleet: Fleet) -> None:
    store = MemoryStore()
    (node,), refs = await hosts(fleet, 1, store)
    assert [item async for item in refs["a"].stream(Lines.each, "x")] == ["x"]
    assert stored(store, node) == {"a": ["x"]}
    store.is_down = True
    items: list[str] = []
    with pytest.raises(NotStored):
        await collect(refs["a"].stream(Lines.each, "y"), items)
    assert items == ["x", "y"]
    store.is_down = False
    async with refs["a"].stream(Lines.forever, "z") as stream:
        async for item in stream:
            assert item == 2
            break
    assert await refs["a"].call(Lines.read) == ["x", "z"], "its consumer has gone"
    assert stored(store, node) == {"a": ["x", "z"]}


async def test_a_state_that_cannot_be_saved_is_told(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    _, refs = await hosts(fleet, 1, MemoryStore())
    assert await refs["a"].call(Lines.append, "x") == 1
    with pytest.raises(NotStored, match="ValueError: no"):
        await refs["a"].call(Lines.append, "unsaveable")
    assert await refs["a"].call(Lines.read) == ["x"]
    assert "is made again" in caplog.text


async def test_a_state_of_none_is_dropped(fleet: Fleet) -> None:
    store = MemoryStore()
    (node,), refs = await hosts(fleet, 1, store)
    assert await refs["a"].call(Lines.append, "x") == 1
    await refs["a"].call(Lines.clear)
    assert stored(store, node) == {}
    assert await refs["a"].call(Lines.append, "y") == 1
    assert stored(store, node) == {"a": ["y"]}


async def test_a_caller_that_gives_up_leaves_a_write_that_goes_on(fleet: Fleet) -> None:
    store = MemoryStore(latency_s=(0.5, 0.5))
    (node,), refs = await hosts(fleet, 1, store)
    assert await refs["a"].within(5).call(Lines.append, "x") == 1
    with pytest.raises(OutcomeUnknown):
        await refs["a"].within(0.2).call(Lines.append, "y")
    assert await refs["a"].within(5).call(Lines.append, "z") == 3
    assert stored(store, node) == {"a": ["x", "y", "z"]}


async def test_what_a_cancelled_handler_has_changed_is_stored_with_the_next_result(fleet: Fleet) -> None:
    store = MemoryStore()
    (node,), refs = await hosts(fleet, 1, store)
    with pytest.raises(OutcomeUnknown):
        await refs["a"].within(0.2).call(Lines.slow, "x", 5)
    assert await refs["a"].call(Lines.read) == ["x"]
    assert stored(store, node) == {"a": ["x"]}


async def test_a_crash_goes_back_to_what_is_stored(fleet: Fleet) -> None:
    store = MemoryStore()
    _, refs = await hosts(fleet, 1, store)
    assert await refs["a"].call(Lines.append, "x") == 1
    with pytest.raises(OutcomeUnknown):
        await refs["a"].call(Lines.crash, "y")
    assert await refs["a"].call(Lines.read) == ["x"]
    assert not (await refs["a"].call(Lines.facts))[1]


async def test_a_cast_is_acknowledged_when_the_entity_is_loaded(fleet: Fleet) -> None:
    store = MemoryStore(latency_s=(0.4, 0.4))
    (node,), refs = await hosts(fleet, 1, store)
    began = fleet.now
    await refs["a"].cast(Lines.append, "x")
    assert fleet.now - began >= 0.39
    await fleet.until(lambda: stored(store, node) == {"a": ["x"]})
    await refs["a"].cast(Lines.append, "y")
    store.is_down = True
    with pytest.raises(NotLoaded):
        await refs["b"].cast(Lines.append, "x")


async def test_the_owner_of_the_highest_epoch_alone_writes(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process takes the shard over in the store, of which the cluster knows nothing."""
    store = MemoryStore()
    (node,), refs = await hosts(fleet, 1, store)
    assert await refs["a"].call(Lines.append, "x") == 1
    later = Fence(refs.shard("a"), refs.epoch("a") + 5)
    assert (await store.load("lines", "a", later)).version == 1
    with pytest.raises(NotStored, match="a later owner has come"):
        await refs["a"].call(Lines.append, "y")
    with pytest.raises(NotLoaded, match="a later owner has come"):
        await refs["a"].call(Lines.append, "y")
    assert "served by another node" in caplog.text
    await fleet.sleep(6)
    assert await refs["a"].call(Lines.append, "z") == 2, "it takes the shard back after a while"
    assert refs.epoch("a") > later.epoch
    assert stored(store, node) == {"a": ["x", "z"]}


async def test_a_store_from_before_with_higher_epochs_is_served_at_once(fleet: Fleet) -> None:
    """The whole cluster starts anew, and its clock has gone back."""
    store = MemoryStore()
    for shard in range(4):
        await store.load("lines", "x", Fence(shard, 1 << 62))
    _, refs = await hosts(fleet, 1, store)
    assert await refs["a"].call(Lines.append, "x") == 1
    assert refs.epoch("a") > 1 << 62


async def test_seconds_bound_what_a_crash_can_cost(fleet: Fleet) -> None:
    store = MemoryStore()
    nodes, refs = await hosts(fleet, 2, store, 2.0)
    key = key_on(refs, nodes[1])
    began = fleet.now
    assert await refs[key].call(Lines.append, "x") == 1
    assert stored(store, nodes[0]) == {}
    await fleet.until(lambda: stored(store, nodes[0]) == {key: ["x"]})
    assert 1.9 < fleet.now - began < 2.5
    assert await refs[key].call(Lines.append, "lost") == 2
    await crash(fleet, nodes[1], nodes[0])
    assert await refs[key].within(30).call(Lines.read) == ["x"]
    assert (await refs[key].call(Lines.facts))[1], "something may be missing"


async def test_seconds_hold_while_requests_keep_coming(fleet: Fleet) -> None:
    store = MemoryStore(latency_s=(0.3, 0.3))
    (node,), refs = await hosts(fleet, 1, store, 1.0)
    callers = [asyncio.create_task(refs["a"].within(60).call(Lines.slow, f"{n}", 0.25)) for n in range(24)]
    behind = 0
    for _ in range(40):
        await fleet.sleep(0.1)
        count = sum(call.done() for call in callers)
        behind = max(behind, count - len(stored(store, node).get("a", ())))
    await asyncio.gather(*callers)
    assert behind <= 8, "what was done in two seconds"


async def test_seconds_try_again_after_a_failure(fleet: Fleet) -> None:
    store = MemoryStore()
    (node,), refs = await hosts(fleet, 1, store, 0.5)
    assert await refs["a"].call(Lines.append, "x") == 1
    store.lost_answers = 1.0
    await fleet.sleep(1.2)
    assert await refs["a"].call(Lines.append, "y") == 2, "requests are served meanwhile"
    store.lost_answers = 0.0
    await fleet.until(lambda: stored(store, node) == {"a": ["x", "y"]}, timeout=3)
    assert await refs["a"].call(Lines.append, "z") == 3


async def test_seconds_end_an_entity_that_another_owner_has_overtaken(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    (node,), refs = await hosts(fleet, 1, store, 0.5)
    assert await refs["a"].call(Lines.append, "x") == 1
    await fleet.until(lambda: stored(store, node) == {"a": ["x"]})
    later = Fence(refs.shard("a"), refs.epoch("a") + 5)
    theirs = node.entities._codec.pack_value(["theirs"])
    assert await store.save("lines", "a", later, theirs, expected=1) == 2
    assert await refs["a"].call(Lines.append, "y") == 2
    await fleet.sleep(1)
    assert "the entity lines/a ends, and what it has not stored is lost" in caplog.text
    with pytest.raises(NotLoaded):
        await refs["a"].call(Lines.read)
    await fleet.sleep(6)
    assert await refs["a"].call(Lines.read) == ["theirs"]
    assert (await refs["a"].call(Lines.facts))[1]


async def test_seconds_pass_over_a_state_that_cannot_be_saved(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    (node,), refs = await hosts(fleet, 1, store, 0.5)
    assert await refs["a"].call(Lines.append, "unsaveable") == 1
    await fleet.sleep(0.7)
    assert "the entity lines/a cannot be saved, and goes on" in caplog.text
    await refs["a"].call(Lines.clear)
    assert await refs["a"].call(Lines.append, "x") == 1
    await fleet.until(lambda: stored(store, node) == {"a": ["x"]}, timeout=2)


async def test_what_casts_lose_is_told_once(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    _, refs = await hosts(fleet, 1, store)
    for key in "ab":
        assert await refs[key].call(Lines.append, "x") == 1
    store.is_down = True
    for key in "ab":
        await refs[key].cast(Lines.append, "y")
    await fleet.sleep(0.1)
    assert caplog.text.count("what a cast to lines/") == 1
    store.is_down = False
    assert [await refs[key].call(Lines.read) for key in "ab"] == [["x"], ["x"]]
    await fleet.sleep(PAUSE_S)
    assert await refs["a"].call(Lines.append, "z") == 2
    assert "2 operations have failed and what 2 casts had changed was lost" in caplog.text


class Stubborn(MemoryStore):
    """Does not end an operation that is cancelled."""

    is_stuck = False

    async def save(self, kind: str, key: str, fence: Fence, state: bytes, *, expected: int) -> int:
        for _ in range(4 * self.is_stuck):
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                continue
        return await super().save(kind, key, fence, state, expected=expected)


async def test_a_write_that_does_not_end_holds_its_own_key_alone(fleet: Fleet) -> None:
    store = Stubborn()
    _, refs = await hosts(fleet, 1, store)
    assert await refs["a"].call(Lines.append, "x") == 1
    store.is_stuck = True
    with pytest.raises(NotStored, match="has not answered within 2 s"):
        await refs["a"].call(Lines.append, "y")
    with pytest.raises(NotLoaded, match="has not answered within 2 s"):
        await refs["a"].call(Lines.read)
    store.is_stuck = False
    assert await refs["b"].call(Lines.append, "x") == 1
    await fleet.sleep(25)
    assert await refs["a"].call(Lines.read) == ["x", "y"], "it was stored late"


@pytest.mark.parametrize("durable", [60.0, "passivate"])
async def test_what_passivates_or_moves_is_stored(fleet: Fleet, durable: Any) -> None:
    store = MemoryStore()
    (one, two), refs = await hosts(fleet, 2, store, durable, rebalance_s=1e9)
    key = key_on(refs, one)
    assert await refs[key].call(Lines.append, "x") == 1
    assert stored(store, one) == {}
    await refs[key].call(Lines.rest)
    await fleet.until(lambda: stored(store, one) == {key: ["x"]})
    assert await refs[key].call(Lines.append, "y") == 2
    assert not (await refs[key].call(Lines.facts))[1]
    await refs.move(refs.shard(key), two.name)
    assert stored(store, one) == {key: ["x", "y"]}
    assert await refs[key].call(Lines.facts) == (two.name, False, refs.epoch(key))


async def test_a_store_that_fails_keeps_what_is_not_stored_where_it_is(fleet: Fleet) -> None:
    store = MemoryStore()
    (one, two), refs = await hosts(fleet, 2, store, "passivate", idle_s=1.0)
    key = key_on(refs, one)
    assert await refs[key].call(Lines.append, "x") == 1
    store.is_down = True
    await fleet.sleep(5)
    with pytest.raises(ValueError, match="cannot be saved"):
        await refs.move(refs.shard(key), two.name)
    assert await refs[key].call(Lines.append, "y") == 2
    store.is_down = False
    await fleet.until(lambda: stored(store, one) == {key: ["x", "y"]}, timeout=10)


async def test_the_last_host_stores_everything_as_it_leaves(fleet: Fleet) -> None:
    store = MemoryStore()
    (node,), refs = await hosts(fleet, 1, store, "passivate")
    assert await refs["a"].call(Lines.append, "x") == 1
    report = await node.drain(10)
    assert report.unmoved == ()
    assert stored(store, node) == {"a": ["x"]}


@pytest.mark.parametrize("durable", [1.0, "passivate", "write"])
@pytest.mark.parametrize("is_crash", [False, True])
async def test_the_loss_of_all_nodes_is_remembered_by_the_store(
    fleet: Fleet, durable: Any, is_crash: bool
) -> None:
    store = MemoryStore()
    (one,), refs = await hosts(fleet, 1, store, durable)
    assert not (await refs["a"].call(Lines.facts))[1], "of a new cluster"
    assert await refs["a"].call(Lines.append, "x") == 1
    await refs["a"].call(Lines.rest)
    await fleet.sleep(0.1)
    assert await refs["a"].call(Lines.append, "y") == 2
    if is_crash:
        cut_off(one)
        await fleet.crash(one)
    else:
        await fleet.stop(one)
    _, refs = await hosts(fleet, 1, store, durable)
    assert await refs["a"].call(Lines.read) == (["x"] if is_crash and durable != "write" else ["x", "y"])
    assert (await refs["a"].call(Lines.facts))[1] == (is_crash and durable != "write")


async def test_a_kind_that_is_hosted_no_more_is_stored_first(fleet: Fleet) -> None:
    store = MemoryStore()
    (node,), refs = await hosts(fleet, 1, store, "passivate")
    assert await refs["a"].call(Lines.append, "x") == 1
    assert await node.entities.unhost("lines")
    assert stored(store, node) == {"a": ["x"]}


async def test_the_loser_of_a_partition_hands_over_what_the_winner_has_not_loaded(fleet: Fleet) -> None:
    store = MemoryStore()
    nodes, _ = await hosts(fleet, 2, store, "passivate")
    theirs = {node: node.entities.ref(Lines, "lines") for node in nodes}
    key = key_on(theirs[nodes[0]], nodes[0])
    fleet.partition([nodes[0]])
    await fleet.until(lambda: theirs[nodes[1]].where(key) == nodes[1].name, timeout=60)
    assert await theirs[nodes[1]][key].call(Lines.append, "x") == 1
    fleet.heal()
    await fleet.until(lambda: theirs[nodes[1]].where(key) == nodes[0].name, timeout=60)
    assert await theirs[nodes[0]][key].call(Lines.read) == ["x"]


async def test_the_winner_of_a_partition_reads_what_the_loser_has_stored(fleet: Fleet) -> None:
    nodes, _ = await hosts(fleet, 2, MemoryStore(), "write")
    theirs = {node: node.entities.ref(Lines, "lines") for node in nodes}
    key = key_on(theirs[nodes[0]], nodes[0])
    assert await theirs[nodes[0]][key].call(Lines.append, "before") == 1
    fleet.partition([nodes[0]])
    await fleet.until(lambda: theirs[nodes[1]].where(key) == nodes[1].name, timeout=60)
    assert await theirs[nodes[1]][key].call(Lines.append, "there") == 2
    assert await theirs[nodes[0]][key].call(Lines.read) == ["before"]  # It has heard of nothing yet.
    fleet.heal()
    await fleet.until(lambda: theirs[nodes[1]].where(key) == nodes[0].name, timeout=60)
    assert await theirs[nodes[1]][key].call(Lines.read) == ["before", "there"]
    assert await theirs[nodes[0]][key].call(Lines.append, "after") == 3


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"durable": "write"}, ValueError),
        ({"store": "sessions.db"}, TypeError),
        ({"store": MemoryStore(), "durable": "always"}, ValueError),
        ({"store": MemoryStore(), "durable": 0}, ValueError),
        ({"store": MemoryStore(), "durable": float("inf")}, ValueError),
        ({"store": MemoryStore(), "store_s": 0}, ValueError),
    ],
    ids=str,
)
async def test_options_that_make_no_sense_are_refused(
    fleet: Fleet, options: dict[str, Any], error: type[Exception]
) -> None:
    (node,) = await fleet.start(1)
    with pytest.raises(error):
        await node.entities.host(Lines, "lines", **options)
    assert node.entities.kinds() == []


class Odd(MemoryStore):
    """Raises what no store should."""

    async def load(self, kind: str, key: str, fence: Fence) -> Stored:
        if key == "odd":
            raise OSError("the cable is out")
        if key == "late":
            raise asyncio.CancelledError
        return await super().load(kind, key, fence)


async def test_whatever_a_store_raises_is_told(fleet: Fleet) -> None:
    _, refs = await hosts(fleet, 1, Odd())
    with pytest.raises(NotLoaded, match=r"OSError: the cable is out"):
        await refs["odd"].call(Lines.append, "x")
    with pytest.raises(NotLoaded, match="has not answered"):
        await refs["late"].call(Lines.append, "x")
    with pytest.raises(NotLoaded, match="InvalidName"):
        await refs["a\0b"].call(Lines.append, "x")
    assert await refs["a"].call(Lines.append, "x") == 1


def test_a_failure_names_its_store() -> None:
    assert str(StoreFailed("x.db", "why")) == "the store x.db failed: why"


# Stories.


@pytest.mark.parametrize("first", most_are_long(range(0, 80, 2), 1))
def test_with_a_store_no_acknowledged_append_is_lost_whatever_fails(first: int) -> None:
    run_worlds(lambda seed: StoreWorld(seed, faults=True), range(first, first + 2))


@pytest.mark.parametrize("first", most_are_long(range(0, 40, 2), 1))
def test_with_a_store_nothing_fails_while_nodes_come_and_leave_in_order(first: int) -> None:
    run_worlds(lambda seed: StoreWorld(seed, faults=False), range(first, first + 2))


@pytest.mark.long
@pytest.mark.parametrize("durable", [0.5, "passivate"])
@pytest.mark.parametrize("faults", [False, True])
@pytest.mark.parametrize("first", range(0, 16, 4))
def test_stories_of_states_that_are_stored_later(first: int, faults: bool, durable: Any) -> None:
    run_worlds(lambda seed: StoreWorld(seed, faults=faults, durable=durable), range(first, first + 4))
