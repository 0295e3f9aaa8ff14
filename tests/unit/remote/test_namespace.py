"""The names of the remote shell, on a fake node and on a real one."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import Any

import pytest

import fleetlm
from fleetlm.ids import Pid
from fleetlm.node import Node
from fleetlm.process import Process
from fleetlm.remote.evaluator import as_json, format_value
from fleetlm.remote.facts import plain
from fleetlm.remote.namespace import (
    Branch,
    GroupNoun,
    NodeNoun,
    ProcessNoun,
    SupervisorNoun,
    Trees,
    make_namespace,
)
from fleetlm.supervisor import Child, Supervisor
from fleetlm.testing import SimCluster, run
from tests.support.remote_fakes import OTHER, FakeNode


def nouns(node: FakeNode) -> tuple[NodeNoun, ProcessNoun]:
    names = make_namespace(node)  # type: ignore[arg-type]
    return names["Node"], names["Process"]


def test_the_namespace_holds_what_the_help_promises() -> None:
    node = FakeNode()
    names = make_namespace(node)  # type: ignore[arg-type]
    assert names["node"] is node
    assert names["fleetlm"] is fleetlm
    assert names["asyncio"] is asyncio
    assert {"Node", "Process", "Supervisor"} <= names.keys()
    assert "_" not in names
    assert make_namespace(node) is not names  # a session's names are its own


def test_the_noun_node_returns_what_the_node_returns() -> None:
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


async def test_methods_that_contact_other_nodes_return_awaitables() -> None:
    node = FakeNode()
    noun, _ = nouns(node)
    assert await noun.ping(OTHER) == "pong"
    assert await noun.ping("fleetlm@127.0.0.9", timeout=0.5) == "pang"
    assert await noun.connect(OTHER, timeout=2) is True
    assert [told[2] for told in node.told] == [5.0, 0.5, 2]


def test_processes_are_listed_in_the_order_in_which_they_started() -> None:
    node = FakeNode()
    _, noun = nouns(node)
    assert [info.pid for info in noun.list()] == node.pids


def test_processes_read_as_a_table_and_are_plain_rows_for_programs() -> None:
    _, noun = nouns(FakeNode())
    listed = noun.list()
    table = """\
pid  name      runs          mailbox  taken  calls  state
  1  sessions  sessions.run        0      0      0  waiting
  2  sessions  sessions.run        0      0      0  waiting"""
    assert repr(listed) == table
    assert format_value(listed, 80) == format_value(listed, 0) == table
    assert as_json(listed) == [plain(info) for info in listed]
    assert as_json(listed)[0]["pid"]["number"] == 1
    listed.clear()
    assert repr(listed) == "(no processes)"


def test_processes_that_wait_for_others_have_one_more_column() -> None:
    node = FakeNode()
    _, noun = nouns(node)
    listed = noun.list()
    listed[1] = dataclasses.replace(listed[1], state="running", waits_for="room at 'b' for 3.2 s")
    head, first, second = repr(listed).splitlines()
    assert head.endswith("  state    waits for")
    assert first.endswith("  waiting  -")
    assert second.endswith("  running  room at 'b' for 3.2 s")


def test_a_table_stays_a_table_whatever_is_in_it() -> None:
    node = FakeNode()
    _, noun = nouns(node)
    listed = noun.list()
    listed[0] = dataclasses.replace(listed[0], name="n" * 255, runs="a\nb", mailbox=123_456)
    listed[1] = dataclasses.replace(listed[1], name=None)
    head, first, second = repr(listed).splitlines()
    assert "n" * 47 + "…  'a\\nb'" in first
    assert second.split()[:2] == ["2", "-"]
    assert head.index("state") == first.index("waiting") == second.index("waiting")


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
    noun = make_namespace(node)["Registry"]
    assert noun.list() == {"leader": pid}
    assert (noun.whereis("leader"), noun.whereis("nobody")) == (pid, None)
    assert (noun.lookup("leader"), noun.lookup("nobody")) == (("leader", pid), None)


def test_groups_and_their_members() -> None:
    node = FakeNode()
    noun = make_namespace(node)["Group"]  # type: ignore[arg-type]
    assert isinstance(noun, GroupNoun)
    assert noun.list() == ["workers"]
    assert noun.members("workers") == [node.pids[0], Pid(OTHER, 7, 1)]
    assert noun.local_members("workers") == [node.pids[0]]
    assert noun.members("nobody") == []


def test_the_repr_of_a_noun_lists_its_methods() -> None:
    node: Any = FakeNode()
    for noun in (
        *nouns(node),
        make_namespace(node)["Registry"],
        make_namespace(node)["Group"],
        SupervisorNoun(node),
    ):
        methods = [name for name in dir(type(noun)) if not name.startswith("_")]
        kind = type(noun).__name__.removesuffix("Noun")
        assert all(f"{kind}.{name}(" in repr(noun) for name in methods)


# On a real node.


async def worker(process: Process) -> None:
    async for message in process.mailbox:
        match message:
            case "busy":
                await asyncio.sleep(1000)
            case "crash":
                raise ValueError("boom")


async def stubborn(process: Process) -> None:
    """Needs 100 seconds to end."""
    try:
        await process.receive()
    finally:
        await asyncio.sleep(100)


def on_a_node(story: Any) -> None:
    async def main() -> None:
        async with SimCluster(seed=2) as cluster:
            (node,) = await cluster.start(1)
            await story(node, make_namespace(node))

    logging.disable(logging.CRITICAL)
    try:
        run(main())
    finally:
        logging.disable(logging.NOTSET)


def test_the_state_of_a_process() -> None:
    async def story(node: Node, names: dict[str, Any]) -> None:
        pid, slow = node.spawn(worker, name="w"), node.spawn(stubborn)
        listed = names["Process"].list

        def states() -> list[str]:
            return [info.state for info in listed()]

        assert states() == ["running", "running"], "they have not begun"
        await asyncio.sleep(1)
        assert states() == ["waiting", "waiting"]
        await node.send(pid, "busy")
        assert states()[0] == "running"
        await asyncio.sleep(1)
        await node.send(pid, "later")
        assert states()[0] == "running"
        assert (listed()[0].mailbox, listed()[0].taken) == (1, 1)
        node.exit(slow)
        assert states() == ["running", "ending"]
        await asyncio.sleep(1)
        assert states() == ["running", "ending"]
        node.exit(pid)
        await asyncio.sleep(1000)
        assert listed() == []

    on_a_node(story)


def tree() -> Supervisor:
    pool = Supervisor([Child("w1", worker, register="w1"), Child("w2", worker, restart="transient")])
    return Supervisor(
        [Child("cache", worker), Child("pool", pool, shutdown_s=None), Child("slow", stubborn)],
        strategy="rest_for_one",
    )


def test_the_tree_of_supervisors() -> None:
    async def story(node: Node, names: dict[str, Any]) -> None:
        noun = names["Supervisor"]
        assert repr(noun.tree()) == "(no supervisors)"
        top = node.spawn(tree(), name="top")
        node.spawn(worker)
        lone = node.spawn(Supervisor([]))
        await asyncio.sleep(1)
        drawing = """\
top  <1>  Supervisor  waiting
├─ cache  <4>  worker  permanent  waiting
├─ pool  <5>  Supervisor  permanent  waiting
│  ├─ w1  <7>  worker  permanent  waiting
│  └─ w2  <8>  worker  transient  waiting
└─ slow  <6>  stubborn  permanent  waiting
-  <3>  Supervisor  waiting"""
        assert repr(noun.tree()) == drawing
        assert format_value(noun.tree(), 80) == drawing
        for who in ("top", top, 1):
            assert repr(noun.tree(who)) == drawing.rpartition("\n")[0]
        assert noun.tree(lone) == Trees([Branch(None, lone, "Supervisor", None, "waiting")])
        (root, _) = as_json(noun.tree())
        assert (root["id"], root["restart"], root["pid"]["number"]) == ("top", None, 1)
        assert [child["id"] for child in root["children"][1]["children"]] == ["w1", "w2"]
        for nobody in ("nobody", 99, 2, Pid(node.name, 1, 1)):
            with pytest.raises(ValueError, match="not a supervisor of"):
                noun.tree(nobody)

    on_a_node(story)


def test_the_tree_while_children_end_and_come_back() -> None:
    async def story(node: Node, names: dict[str, Any]) -> None:
        noun = names["Supervisor"]
        node.spawn(tree(), name="top")
        await asyncio.sleep(1)

        def states() -> list[tuple[str | None, str]]:
            (pool,) = [child for child in noun.tree("top")[0].children if child.id == "pool"]
            return [(child.id, child.state) for child in pool.children]

        for _ in range(2):  # The second time in a row it pauses first.
            await node.send("w1", "crash")
            await asyncio.sleep(0.001)
        assert states() == [("w1", "restarting"), ("w2", "waiting")]
        assert noun.tree("top")[0].children[1].children[0].pid is None
        await asyncio.sleep(20)
        pool = noun.tree("top")[0].children[1].pid
        await node.send("w1", "busy")
        await node.call(pool, ("terminate_child", "w2"))
        assert states() == [("w1", "running"), ("w2", "not running")]

    on_a_node(story)


def test_a_supervisor_that_is_busy_is_shown_all_the_same() -> None:
    async def story(node: Node, names: dict[str, Any]) -> None:
        node.spawn(Supervisor([Child("slow", stubborn, shutdown_s=50.0)]), name="top")
        await asyncio.sleep(1)
        ending = asyncio.create_task(node.call("top", ("terminate_child", "slow"), timeout=200))
        await asyncio.sleep(1)
        (top,) = names["Supervisor"].tree()
        assert top.state == "running"
        assert [(child.id, child.state) for child in top.children] == [("slow", "not running")]
        assert await ending is True

    on_a_node(story)
