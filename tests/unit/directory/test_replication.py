from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from fleetlm.directory import replication
from fleetlm.directory.replication import FACTS_AT_ONCE, PAUSE_S, Replication
from fleetlm.errors import NoConnection
from fleetlm.ids import Pid
from fleetlm.messaging.turns import FREE
from fleetlm.testing.loop import run
from fleetlm.wire.codec import Codec
from fleetlm.wire.operations import Op
from tests.support.session_fakes import turns, virtual


class FakeSession:
    def __init__(self, name: str) -> None:
        self.name = name
        self.incarnation = 7
        self.told: list[Any] = []
        self.is_full = False
        self.closed = ""
        self.unknown_topics: frozenset[str] = frozenset()
        self.gate = asyncio.Event()

    async def room(self) -> None:
        while self.is_full and not self.closed:
            await self.gate.wait()
        if self.closed:
            raise NoConnection(self.name, self.closed)

    def signal(self, packed: bytes) -> None:
        self.told.append(Codec().unpack(packed))


class FakeTable:
    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.seen: list[Any] = []
        self.rows: dict[Any, Any] = {0: topic}

    def own_keys(self) -> Iterable[Any]:
        return self.rows.keys()

    def own_facts(self, keys: Iterable[Any]) -> Iterator[Any]:
        return (["has", self.rows[key]] for key in keys)

    def node_down(self, node: str) -> Iterator[None]:
        self.seen.append(node)
        yield

    def told(self, node: str, incarnation: int, fact: Any) -> None:
        self.seen.append((node, incarnation, fact))

    def exited(self, pid: Pid) -> None:
        self.seen.append(pid)

    def close(self) -> None:
        self.seen.append("closed")


def rig() -> tuple[Replication, FakeTable, FakeTable, dict[str, Any]]:
    sessions: dict[str, Any] = {"b": FakeSession("b"), "c": FakeSession("c")}
    tables, first, second = Replication(Codec(), sessions, FREE), FakeTable("first"), FakeTable("second")
    tables.add(first)
    tables.add(second)
    return tables, first, second, sessions


def test_a_change_is_told_to_every_connected_node() -> None:
    tables, _, _, sessions = rig()
    tables.tell("first", {"a": 1})
    assert [session.told for session in sessions.values()] == [[[Op.TABLE, "first", {"a": 1}]]] * 2


def test_a_node_that_comes_up_is_told_all() -> None:
    tables, _, _, sessions = rig()
    tables.node_up(sessions["b"])
    assert sessions["b"].told == [
        [Op.TABLE, "first", ["has", "first"]],
        [Op.TABLE, "second", ["has", "second"]],
    ]
    assert sessions["c"].told == []


def test_a_node_is_told_nothing_of_a_table_that_it_does_not_know() -> None:
    tables, first, _, sessions = rig()
    sessions["b"].unknown_topics = frozenset({"first"})
    for session in sessions.values():
        tables.node_up(session)
    tables.before_change("first", 0)
    tables.before_change("second", 0)
    tables.tell("first", 1)
    tables.tell("second", 2)
    tables.tell("first", 3, to="b")
    tables.tell("first", 4, to="c")
    assert {topic for _, topic, _ in sessions["b"].told} == {"second"}
    assert [fact for _, topic, fact in sessions["c"].told if topic == "first"] == [["has", "first"], 1, 4]
    tables.told(sessions["b"], "first", ["x"])  # What it says counts all the same.
    assert first.seen == [("b", 7, ["x"])]


def test_what_a_peer_says_goes_to_its_table() -> None:
    tables, first, second, sessions = rig()
    tables.told(sessions["b"], "second", ["x"])
    assert (first.seen, second.seen) == ([], [("b", 7, ["x"])])
    for topic in ("third", 3, ["first"]):
        with pytest.raises(ValueError, match="not known to this version"):
            tables.told(sessions["b"], topic, [])


def test_deaths_concern_every_table() -> None:
    tables, first, second, _ = rig()
    pid = Pid("a", 1, 1)
    tables.exited(pid)
    assert [*tables.node_down("b")] == [None, None]
    tables.close()
    assert first.seen == second.seen == [pid, "b", "closed"]


@virtual
async def test_facts_wait_for_a_full_window_in_their_order_and_for_it_alone() -> None:
    tables, _, _, sessions = rig()
    slow, quick = sessions["b"], sessions["c"]
    slow.is_full = True
    for number in range(3):
        tables.tell("first", number)
    await turns()
    assert slow.told == []
    assert [fact for _, _, fact in quick.told] == [0, 1, 2]
    slow.is_full = False
    tables.tell("first", 3)  # It does not overtake those that wait.
    slow.gate.set()
    await turns()
    tables.tell("first", 4)
    assert [fact for _, _, fact in slow.told] == [0, 1, 2, 3, 4]
    assert not tables._behind
    assert not tables._tasks


def test_a_peer_that_does_not_keep_up_with_changes_is_given_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replication, "MAX_FACTS_BEHIND", 5)

    async def main() -> None:
        tables, _, _, sessions = rig()
        slow: Any = sessions["b"]
        reasons: list[str] = []
        slow.is_full = True
        slow.give_up = reasons.append
        for number in range(9):
            tables.tell("first", number)
        assert reasons == ["5 changes of tables wait for it, which it does not take"]
        slow.is_full = False
        slow.gate.set()
        await turns()
        assert not tables._behind

    run(main())


@virtual
async def test_what_waits_for_a_link_that_ends_is_dropped() -> None:
    tables, _, _, sessions = rig()
    slow = sessions["b"]
    slow.is_full = True
    tables.tell("first", 1)
    await turns()
    slow.closed = "gone"
    slow.gate.set()
    await turns()
    assert (slow.told, tables._behind, tables._tasks) == ([], {}, set())
    tables.tell("first", 2)
    assert not tables._tasks
    slow.closed = ""
    tables.tell("first", 3)
    tables.close()
    await turns()
    assert not tables._tasks


# ── a snapshot that takes time ───────────────────────────────────────────────────────────────────


def facts(session: Any) -> list[Any]:
    return [fact for _, _, fact in session.told]


@virtual
async def test_a_long_snapshot_leaves_fact_by_fact_and_a_short_one_at_once() -> None:
    tables, first, _, sessions = rig()
    first.rows = dict.fromkeys(range(50), "row")
    tables.node_up(sessions["b"])
    tables.node_up(sessions["c"])
    for count in range(FACTS_AT_ONCE, 51):
        assert len(sessions["b"].told) == len(sessions["c"].told) == count
        await asyncio.sleep(PAUSE_S * 1.001)
    assert facts(sessions["b"]) == facts(sessions["c"]) == [["has", "row"]] * 50 + [["has", "second"]]
    await asyncio.sleep(PAUSE_S * 2)
    assert (tables._snapshots, tables._tasks) == ({}, set())


@virtual
async def test_a_row_that_changes_is_sent_first_where_it_was_not_sent() -> None:
    tables, first, _, sessions = rig()
    first.rows = {key: key for key in range(10)}
    tables.node_up(sessions["b"])
    sessions["c"].told = ["connected before"]
    tables.before_change("first", 9)
    del first.rows[9]
    tables.tell("first", ["gone", 9])
    assert facts(sessions["b"]) == [["has", key] for key in range(FACTS_AT_ONCE)] + [["has", 9], ["gone", 9]]
    assert len(sessions["c"].told) == 2
    tables.before_change("first", 0)
    tables.tell("first", ["gone", 0])
    await asyncio.sleep(1_000 * PAUSE_S)
    assert facts(sessions["b"])[FACTS_AT_ONCE + 2 :] == [
        ["gone", 0], *(["has", key] for key in range(FACTS_AT_ONCE, 9)), ["has", "second"]
    ]  # fmt: skip


@virtual
async def test_a_snapshot_waits_for_the_window_and_for_the_changes_that_wait() -> None:
    tables, first, _, sessions = rig()
    first.rows = {key: key for key in range(5)}
    slow = sessions["b"]
    tables.node_up(slow)
    slow.is_full = True
    await asyncio.sleep(100 * PAUSE_S)
    tables.before_change("first", 4)
    tables.tell("first", ["gone", 4])
    await asyncio.sleep(100 * PAUSE_S)
    assert len(slow.told) == FACTS_AT_ONCE
    slow.is_full = False
    slow.gate.set()
    await asyncio.sleep(100 * PAUSE_S)
    assert facts(slow)[FACTS_AT_ONCE:] == [
        ["has", 4], ["gone", 4], *(["has", key] for key in range(FACTS_AT_ONCE, 4)), ["has", "second"]
    ]  # fmt: skip
    assert (tables._behind, tables._snapshots, tables._tasks) == ({}, {}, set())


@virtual
async def test_a_snapshot_ends_with_its_session_and_with_the_node() -> None:
    tables, first, _, sessions = rig()
    first.rows = {key: key for key in range(50)}
    lost, up = sessions["b"], sessions["c"]
    tables.node_up(lost)
    tables.node_up(up)
    lost.closed = "gone"
    await asyncio.sleep(5 * PAUSE_S)
    assert len(lost.told) == FACTS_AT_ONCE < len(up.told)
    assert [*tables._snapshots] == [up]
    sessions["b"] = again = FakeSession("b")
    tables.node_up(sessions["b"])
    tables.before_change("first", 49)
    assert facts(again)[-1] == facts(up)[-1] == ["has", 49]
    tables.close()
    sent = len(up.told)
    await asyncio.sleep(1_000 * PAUSE_S)
    tables.before_change("first", 48)
    assert (len(up.told), tables._snapshots, tables._tasks) == (sent, {}, set())
