"""The nouns of the remote shell, on a node that only answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

import fleetlm
from fleetlm.facade import GroupNoun, NodeNoun, ProcessNoun, facts, namespace, plain
from fleetlm.ids import Pid
from tests.unit.console_fakes import OTHER, FakeNode, node_info

COOKIE = "a-secret-of-enough-characters"


def nouns(node: FakeNode) -> tuple[NodeNoun, ProcessNoun]:
    names = namespace(node)  # type: ignore[arg-type]
    return names["Node"], names["Process"]


def test_the_namespace_holds_what_the_help_promises() -> None:
    node = FakeNode()
    names = namespace(node)  # type: ignore[arg-type]
    assert names["node"] is node
    assert names["fleetlm"] is fleetlm
    assert names["asyncio"] is asyncio
    assert {"Node", "Process"} <= names.keys()
    assert "_" not in names
    assert namespace(node) is not names  # type: ignore[arg-type]  # a session's names are its own


def test_node_says_what_the_node_says() -> None:
    node = FakeNode()
    noun, _ = nouns(node)
    assert noun.self() == "fleetlm@127.0.0.1"
    assert noun.list() == [OTHER]
    assert noun.list("known", "dns") == [OTHER]
    assert node.told == [(), ("known", "dns")]
    assert noun.info() == node.info()
    assert noun.info(OTHER) == node.info(OTHER)
    assert noun.info("fleetlm@127.0.0.9") is None
    assert noun.disconnect(OTHER) is True


async def test_what_asks_other_nodes_is_awaitable() -> None:
    node = FakeNode()
    noun, _ = nouns(node)
    assert await noun.ping(OTHER) == "pong"
    assert await noun.ping("fleetlm@127.0.0.9", timeout=0.5) == "pang"
    assert await noun.connect(OTHER, timeout=2) is True
    assert [told[2] for told in node.told] == [5.0, 0.5, 2]


def test_processes_are_listed_in_the_order_in_which_they_started() -> None:
    node = FakeNode()
    _, noun = nouns(node)
    assert noun.list() == node.pids


@pytest.mark.parametrize("process", [Pid("fleetlm@127.0.0.1", 5, 1), 1, "sessions"])
def test_a_process_is_found_by_pid_number_and_name(process: Any) -> None:
    node = FakeNode()
    _, noun = nouns(node)
    assert noun.info(process) == node.process_info(node.pids[0])


@pytest.mark.parametrize("process", [Pid("fleetlm@127.0.0.1", 4, 1), 99, "nobody"])
def test_a_process_that_is_not_there_is_none(process: Any) -> None:
    _, noun = nouns(FakeNode())
    assert noun.info(process) is None


def test_whereis_and_registered() -> None:
    node = FakeNode()
    _, noun = nouns(node)
    assert noun.whereis("sessions") == node.pids[0]
    assert noun.whereis("nobody") is None
    assert noun.registered() == {"sessions": node.pids[0]}


class FakeRegistry:
    def __init__(self, pid: Pid) -> None:
        self.pid = pid

    def list(self) -> dict[str, Pid]:
        return {"leader": self.pid}

    def whereis(self, name: str) -> Pid | None:
        return self.list().get(name)

    def lookup(self, name: str) -> Any:
        return (name, self.pid) if name == "leader" else None


def test_the_names_of_the_cluster() -> None:
    node: Any = FakeNode()
    pid = Pid(OTHER, 7, 3)
    node.registry = FakeRegistry(pid)
    noun = namespace(node)["Registry"]
    assert noun.list() == {"leader": pid}
    assert (noun.whereis("leader"), noun.whereis("nobody")) == (pid, None)
    assert (noun.lookup("leader"), noun.lookup("nobody")) == (("leader", pid), None)


def test_groups_say_who_is_in_them() -> None:
    node = FakeNode()
    noun = namespace(node)["Group"]  # type: ignore[arg-type]
    assert isinstance(noun, GroupNoun)
    assert noun.list() == ["workers"]
    assert noun.members("workers") == [node.pids[0], Pid(OTHER, 7, 1)]
    assert noun.local_members("workers") == [node.pids[0]]
    assert noun.members("nobody") == []


def test_the_nouns_tell_what_they_can() -> None:
    node: Any = FakeNode()
    for noun in (*nouns(node), namespace(node)["Registry"], namespace(node)["Group"]):
        methods = [name for name in dir(type(noun)) if not name.startswith("_")]
        kind = type(noun).__name__.removesuffix("Noun")
        assert all(f"{kind}.{name}(" in repr(noun) for name in methods)


def test_facts_are_json_and_hold_no_secret() -> None:
    node = FakeNode(cookie=COOKIE, dns_server=("127.0.0.1", 5353))
    told = json.loads(json.dumps(facts(node)))  # type: ignore[arg-type]
    assert COOKIE not in json.dumps(told)
    assert told["cookie"] is True
    assert told["settings"]["FLEETLM_COOKIE"] == "(set)"
    assert told["own_ip"] == "127.0.0.1"
    assert told["dns_server"] == ["127.0.0.1", 5353]
    assert told["info"]["peers"][0]["name"] == OTHER


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        ((1, 2.5, "x"), [1, 2.5, "x"]),
        ({1: {"a": (2,)}}, {"1": {"a": [2]}}),
        (Pid("a@127.0.0.1", 2, 3), {"node": "a@127.0.0.1", "incarnation": 2, "number": 3}),
        (1 + 2j, "(1+2j)"),
        (Pid, "<class 'fleetlm.ids.Pid'>"),
    ],
)
def test_plain_values(value: Any, expected: Any) -> None:
    assert plain(value) == expected


def test_plain_goes_all_the_way_down() -> None:
    told = plain(node_info())
    assert told["peers"][0]["up_for_s"] == 12.5
    assert told["observed_ips"] == []
