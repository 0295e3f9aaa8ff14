from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from fleetlm.directory.replication import Replication
from fleetlm.errors import NoConnection
from fleetlm.ids import Pid
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

    def own_facts(self) -> Iterable[Any]:
        return [["has", self.topic]]

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
    tables, first, second = Replication(Codec(), sessions), FakeTable("first"), FakeTable("second")
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
