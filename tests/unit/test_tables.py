from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from fleetlm.core.codec import Codec
from fleetlm.core.frames import Op
from fleetlm.ids import Pid
from fleetlm.tables import Tables


class FakeLink:
    def __init__(self, name: str) -> None:
        self.name = name
        self.incarnation = 7
        self.told: list[Any] = []

    def signal(self, packed: bytes) -> None:
        self.told.append(Codec().unpack(packed))


class FakeTable:
    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.seen: list[Any] = []

    def own_facts(self) -> Iterable[Any]:
        return [["has", self.topic]]

    def node_down(self, node: str) -> None:
        self.seen.append(node)

    def told(self, node: str, incarnation: int, fact: Any) -> None:
        self.seen.append((node, incarnation, fact))

    def exited(self, pid: Pid) -> None:
        self.seen.append(pid)

    def close(self) -> None:
        self.seen.append("closed")


def rig() -> tuple[Tables, FakeTable, FakeTable, dict[str, Any]]:
    links: dict[str, Any] = {"b": FakeLink("b"), "c": FakeLink("c")}
    tables, first, second = Tables(Codec(), links), FakeTable("first"), FakeTable("second")
    tables.add(first)
    tables.add(second)
    return tables, first, second, links


def test_a_change_is_told_to_every_connected_node() -> None:
    tables, _, _, links = rig()
    tables.tell("first", {"a": 1})
    assert [link.told for link in links.values()] == [[[Op.TABLE, "first", {"a": 1}]]] * 2


def test_a_node_that_comes_up_is_told_all() -> None:
    tables, _, _, links = rig()
    tables.node_up(links["b"])
    assert links["b"].told == [
        [Op.TABLE, "first", ["has", "first"]],
        [Op.TABLE, "second", ["has", "second"]],
    ]
    assert links["c"].told == []


def test_what_a_peer_says_goes_to_its_table() -> None:
    tables, first, second, links = rig()
    tables.told(links["b"], "second", ["x"])
    assert (first.seen, second.seen) == ([], [("b", 7, ["x"])])
    for topic in ("third", 3, ["first"]):
        with pytest.raises(ValueError, match="not known to this version"):
            tables.told(links["b"], topic, [])


def test_deaths_concern_every_table() -> None:
    tables, first, second, _ = rig()
    pid = Pid("a", 1, 1)
    tables.exited(pid)
    tables.node_down("b")
    tables.close()
    assert first.seen == second.seen == [pid, "b", "closed"]
