"""Supervisors on virtual time: which children restart, in which order, and when a supervisor gives up."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from typing import Any

import pytest

from fleetlm import (
    Actor,
    Child,
    InvalidName,
    Node,
    Pid,
    Process,
    ProcessExit,
    RemoteError,
    Supervisor,
    handler,
)
from fleetlm.core.restarts import Strategy
from fleetlm.testing import SimCluster, run
from tests.sim.fleet import reason_of


class Log(list[str]):
    """The actions of children, in order."""

    async def child(self, process: Process, name: str) -> None:
        self.append(f"+{name}")
        try:
            async for message in process.mailbox:
                match message:
                    case ("exit", reason):
                        raise ProcessExit(reason)
                    case "crash":
                        raise ValueError(name)
        finally:
            self.append(f"-{name}")

    async def stubborn(self, process: Process, name: str) -> None:
        self.append(f"+{name}")
        process.trap_exit = True
        while True:
            await process.receive()

    def specs(self, *names: str, **options: Any) -> list[Child]:
        return [Child(name, self.child, (name,), register=name, **options) for name in names]

    def take(self) -> list[str]:
        taken, self[:] = list(self), []
        return taken


def story(told: Any, count: int = 1) -> None:
    async def main() -> None:
        async with SimCluster(seed=5) as cluster:
            nodes = await cluster.start(count)
            await cluster.mesh(timeout=10)
            await told(cluster, *nodes)

    logging.disable(logging.CRITICAL)
    run(main())


@pytest.mark.parametrize(
    ("strategy", "happens"),
    [
        ("one_for_one", ["-b", "+b"]),
        ("one_for_all", ["-b", "-c", "-a", "+a", "+b", "+c"]),
        ("rest_for_one", ["-b", "-c", "+b", "+c"]),
    ],
)
def test_the_order_of_restarts(strategy: Strategy, happens: list[str]) -> None:
    async def told(_: SimCluster, node: Node) -> None:
        log = Log()
        node.spawn(Supervisor(log.specs("a", "b", "c"), strategy=strategy), name="top")
        await asyncio.sleep(0.1)
        assert log.take() == ["+a", "+b", "+c"]
        before = await node.call("top", "which_children")
        await node.send("b", "crash")
        await asyncio.sleep(0.1)
        assert log.take() == happens
        after = await node.call("top", "which_children")
        assert list(after) == ["a", "b", "c"]
        assert {name for name in after if after[name] != before[name]} == {item[1] for item in happens}

    story(told)


@pytest.mark.parametrize(
    ("restart", "order", "left"),
    [
        ("permanent", ("exit", "normal"), {"a": True}),
        ("transient", ("exit", "normal"), {"a": False}),
        ("transient", ("exit", "shutdown"), {"a": False}),
        ("transient", ("exit", ("shutdown", "why")), {"a": False}),
        ("transient", ("exit", ("broken", "why")), {"a": True}),
        ("transient", "crash", {"a": True}),
        ("temporary", "crash", {}),
    ],
)
def test_which_children_come_back(restart: Any, order: Any, left: dict[str, bool]) -> None:
    async def told(_: SimCluster, node: Node) -> None:
        log = Log()
        node.spawn(Supervisor(log.specs("a", restart=restart)), name="top")
        await asyncio.sleep(0.1)
        await node.send("a", order)
        await asyncio.sleep(0.1)
        children = await node.call("top", "which_children")
        assert {name: pid is not None for name, pid in children.items()} == left

    story(told)


def test_too_many_restarts_end_the_supervisor_and_all_its_children_in_reverse_order() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        log = Log()
        plan = Supervisor(log.specs("a", "b", "c"), max_restarts=2, period_s=5, backoff_s=(0.001, 0.001))
        pid = node.spawn(plan)
        reason = asyncio.create_task(reason_of(node, pid))
        for _crash in range(3):
            await asyncio.sleep(0.1)
            log.clear()
            await node.send("b", "crash")
        assert await reason == "shutdown"
        assert log == ["-b", "-c", "-a"]
        assert node.registered() == {}

    story(told)


def test_few_restarts_over_a_long_time_are_fine() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        log = Log()
        pid = node.spawn(Supervisor(log.specs("a"), max_restarts=1, period_s=5))
        for _crash in range(10):
            await asyncio.sleep(60)
            await node.send("a", "crash")
        await asyncio.sleep(60)
        assert node.process_info(pid) is not None
        assert log.count("+a") == 11

    story(told)


def test_a_child_that_keeps_failing_waits_longer_and_longer() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        starts: list[float] = []

        async def broken(_process: Process) -> None:
            starts.append(asyncio.get_running_loop().time())
            raise ValueError("broken")

        node.spawn(Supervisor([Child("x", broken)], max_restarts=1_000, backoff_s=(1.0, 8.0)))
        await asyncio.sleep(40)
        gaps = [round(b - a) for a, b in itertools.pairwise(starts)]
        assert gaps[:6] == [0, 1, 2, 4, 8, 8]

    story(told)


def test_a_child_that_does_not_end_in_time_is_killed() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        log = Log()
        pid = node.spawn(
            Supervisor([Child("s", log.stubborn, ("s",), shutdown_s=2.0), *log.specs("a")]), name="top"
        )
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        node.exit(pid, "shutdown")
        assert await reason_of(node, pid) == "shutdown"
        took_s = asyncio.get_running_loop().time() - began
        assert 2.0 <= took_s < 2.5
        assert node.processes() == []

    story(told)


def test_a_tree_ends_from_its_leaves_and_a_branch_that_gives_up_is_restarted() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        log = Log()
        branch = Supervisor(log.specs("x", "y"), max_restarts=0)
        tree = Supervisor([*log.specs("a"), Child("branch", branch, shutdown_s=None)])
        pid = node.spawn(tree, name="top")
        await asyncio.sleep(0.1)
        assert await node.call("top", "count_children") == {
            "specs": 2, "active": 2, "supervisors": 1, "workers": 1,
        }  # fmt: skip
        assert log.take() == ["+a", "+x", "+y"]
        await node.send("x", "crash")
        await asyncio.sleep(0.1)
        assert log.take() == ["-x", "-y", "+x", "+y"]
        node.exit(pid)
        await asyncio.sleep(0.1)
        assert log.take() == ["-y", "-x", "-a"]
        assert node.processes() == []

    story(told)


def test_only_its_parent_or_a_node_ends_a_supervisor() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        log = Log()
        pids: list[Pid] = []

        async def parent(process: Process) -> None:
            pids.append(process.spawn_link(Supervisor(log.specs("a")), name="top"))
            await process.receive()
            process.exit(pids[0], "enough")
            await process.receive()

        async def stranger(process: Process, reason: str) -> None:
            process.link(pids[0])
            process.exit(pids[0], "shutdown")
            raise ProcessExit(reason)

        above = node.spawn(parent)
        await asyncio.sleep(0.1)
        for reason in ("normal", "boom"):
            node.spawn(stranger, reason)
            await asyncio.sleep(0.1)
        assert log == ["+a"]
        reason = asyncio.create_task(reason_of(node, pids[0]))  # type: ignore[assignment]
        await asyncio.sleep(0.1)
        await node.send(above, "end it")
        assert await reason == "enough"  # type: ignore[misc]
        assert log == ["+a", "-a"]

    story(told)


def test_a_nested_supervisor_has_the_time_that_its_children_need() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        log = Log()

        async def slow(process: Process) -> None:
            try:
                await process.receive()
            finally:
                await asyncio.sleep(20)
                log.append("done")

        def nested(shutdown_s: float | None) -> Supervisor:
            inner = Supervisor([Child("slow", slow, shutdown_s=math.inf)])
            return Supervisor([Child("inner", inner, shutdown_s=shutdown_s)])

        for shutdown_s, left in ((None, ["done"]), (2.0, [])):
            pid = node.spawn(nested(shutdown_s))
            await asyncio.sleep(0.1)
            node.exit(pid, "shutdown")
            assert await reason_of(node, pid) == "shutdown"
            assert log.take() == left
        await asyncio.sleep(30)

    story(told)


def test_a_worker_has_five_seconds_by_default() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        pid = node.spawn(Supervisor([Child("s", Log().stubborn, ("s",))]))
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        node.exit(pid, "shutdown")
        assert await reason_of(node, pid) == "shutdown"
        assert 5.0 <= asyncio.get_running_loop().time() - began < 5.5

    story(told)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (("terminate_child", "nobody"), "there is no such child"),
        (("restart_child", "nobody"), "there is no such child"),
        (("delete_child", "nobody"), "there is no such child"),
        (("delete_child", "a"), "it runs; terminate it first"),
        (("start_child", Child("a", Log().child, ("a",))), "it runs already"),
        (("start_child", Child("z", Log().child, ("z",))), "a child of that name exists"),
        ("make_coffee", "a supervisor does not answer that request"),
    ],
)
def test_a_supervisor_says_why_it_will_not(request_: Any, sentence: str) -> None:
    async def told(_: SimCluster, node: Node) -> None:
        log = Log()
        node.spawn(Supervisor(log.specs("a", "z")), name="top")
        await node.call("top", ("terminate_child", "z"))
        with pytest.raises(RemoteError, match=sentence) as caught:
            await node.call("top", request_)
        assert caught.value.type_name == InvalidName.__name__

    story(told)


def test_a_killed_supervisor_takes_its_children_along() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        log = Log()
        pid = node.spawn(Supervisor(log.specs("a", "b")))
        await asyncio.sleep(0.1)
        node.exit(pid, "kill")
        await asyncio.sleep(0.1)
        assert node.processes() == []

    story(told)


def test_children_come_and_go_on_request_from_any_node() -> None:
    async def told(_: SimCluster, node: Node, other: Node) -> None:
        log = Log()
        node.spawn(Supervisor(log.specs("a")), name="top")
        await asyncio.sleep(0.1)
        top = ("top", node.name)
        pid = await node.call("top", ("start_child", log.specs("b")[0]))
        assert await other.call(top, "which_children") == {"a": await node.whereis("a"), "b": pid}
        assert await other.call(top, ("terminate_child", "b")) is True
        assert await other.call(top, "count_children") == {
            "specs": 2, "active": 1, "supervisors": 0, "workers": 2,
        }  # fmt: skip
        again = await other.call(top, ("restart_child", "b"))
        assert again not in (None, pid)
        assert await other.call(top, ("restart_child", "b")) == again, "it runs already"
        assert log.count("+b") == 2
        with pytest.raises(RemoteError, match="it runs"):
            await other.call(top, ("delete_child", "b"))
        await other.call(top, ("terminate_child", "b"))
        assert await other.call(top, ("delete_child", "b")) is True
        with pytest.raises(RemoteError) as caught:
            await other.call(top, ("delete_child", "b"))
        assert caught.value.type_name == InvalidName.__name__
        with pytest.raises(RemoteError):
            await node.call("top", ("start_child", log.specs("a")[0]))

    story(told, 2)


def test_a_lost_peer_restarts_the_linked_children_and_does_not_count() -> None:
    async def told(cluster: SimCluster, node: Node, other: Node) -> None:
        starts: list[str] = []

        async def bound(process: Process, target: Pid) -> None:
            starts.append("start")
            process.link(target)
            await process.receive()

        async def remote(process: Process) -> None:
            process.trap_exit = True
            while True:
                await process.receive()

        targets = [other.spawn(remote) for _ in range(10)]
        children = [Child(f"c{n}", bound, (target,)) for n, target in enumerate(targets)]
        pid = node.spawn(Supervisor(children, max_restarts=1))
        await asyncio.sleep(1)
        cluster.partition([node])
        await asyncio.sleep(60)
        assert node.process_info(pid) is not None
        assert 20 <= len(starts) < 150, "it does not spin"
        cluster.heal()
        await cluster.mesh(timeout=60)
        await asyncio.sleep(30)
        assert (await node.call(pid, "count_children"))["active"] == 10

    story(told, 2)


def test_a_name_that_is_taken_is_tried_again() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        log = Log()
        node.spawn(Supervisor(log.specs("a"), backoff_s=(1.0, 1.0)), name="top")
        await asyncio.sleep(0.1)
        node.exit(await node.whereis("a") or pytest.fail("no a"), "bad")
        squatter = node.spawn(log.child, "squatter", name="other")
        await asyncio.sleep(0.1)
        a = await node.whereis("a")
        assert a is not None
        await node.unregister("a")
        await node.unregister("other")
        await node.register("a", squatter)
        node.exit(a, "bad")
        await asyncio.sleep(5)
        assert (await node.call("top", "which_children"))["a"] is None
        node.exit(squatter)
        await asyncio.sleep(5)
        assert (await node.call("top", "which_children"))["a"] == await node.whereis("a") is not None

    story(told)


def test_wrong_plans_are_refused_where_they_are_written() -> None:
    async def nothing(_process: Process) -> None: ...

    with pytest.raises(ValueError, match="two children"):
        Supervisor([Child("a", nothing), Child("a", nothing)])
    with pytest.raises(ValueError, match="strategy"):
        Supervisor(strategy="one_for_none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="restart"):
        Child("a", nothing, restart="always")  # type: ignore[arg-type]


def test_a_node_that_stops_ends_its_trees_first_in_reverse_order() -> None:
    async def told(cluster: SimCluster, node: Node) -> None:
        log = Log()

        async def slow(process: Process, name: str) -> None:
            log.append(f"+{name}")
            try:
                await process.receive()
            finally:
                await asyncio.sleep(1)
                log.append(f"-{name}")

        first = Supervisor([Child(name, slow, (name,)) for name in ("a", "b")])
        second = Supervisor([Child("inner", Supervisor([Child("c", slow, ("c",))])), *log.specs("d")])
        node.spawn(first)
        node.spawn(second)
        node.spawn(log.child, "alone")
        await asyncio.sleep(1)
        log.take()
        await cluster.stop(node)
        assert log.take() == ["-d", "-c", "-b", "-a", "-alone"]

    story(told)


def test_a_tree_that_takes_too_long_does_not_keep_its_node() -> None:
    async def told(cluster: SimCluster, node: Node) -> None:
        log = Log()
        node.spawn(Supervisor([Child("s", log.stubborn, ("s",), shutdown_s=math.inf), *log.specs("a")]))
        await asyncio.sleep(1)
        log.take()
        began = asyncio.get_running_loop().time()
        await cluster.stop(node, drain_s=3.0)
        assert log.take() == ["-a"]
        assert 3.0 <= asyncio.get_running_loop().time() - began < 8.0

    story(told)


class Slow(Actor):
    """A child whose init takes a second, or fails."""

    def __init__(self, log: Log, name: str, failures: list[str]) -> None:
        self.log, self.name, self.failures = log, name, failures

    async def init(self) -> None:
        self.log.append(f"?{self.name}")
        await asyncio.sleep(1)
        if self.failures:
            raise ValueError(self.failures.pop())
        self.log.append(f"+{self.name}")

    @handler
    async def crash(self) -> None:
        raise ProcessExit("crash")

    async def terminate(self, reason: Any) -> None:
        self.log.append(f"-{self.name}")


def test_an_actors_init_is_waited_for_before_the_next_child_is_started() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        log = Log()
        specs = [
            Child("a", Slow, (log, "a", []), register="a"),
            *log.specs("b"),
            Child("c", Slow, (log, "c", [])),
        ]
        node.spawn(Supervisor(specs, strategy="rest_for_one"))
        await asyncio.sleep(1.5)
        assert log.take() == ["?a", "+a", "+b", "?c"]
        await asyncio.sleep(1)
        assert log.take() == ["+c"]
        await node.ref(Slow, "a").cast(Slow.crash)
        await asyncio.sleep(3)
        assert log.take() == ["-a", "-c", "-b", "?a", "+a", "+b", "?c", "+c"]

    story(told)


def test_an_init_that_fails_is_tried_again_and_counts() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        log = Log()
        tree = Supervisor([Child("a", Slow, (log, "a", ["first", "second"])), *log.specs("b")])
        pid = node.spawn(tree)
        await asyncio.sleep(5)
        assert log.take() == ["?a", "?a", "+b", "?a", "+a"], "b starts when the first init of a has failed"
        node.exit(pid)
        assert await reason_of(node, pid) == "shutdown"
        pid = node.spawn(Supervisor([Child("a", Slow, (log, "a", ["never"] * 9))], backoff_s=(0.0, 0.0)))
        assert await reason_of(node, pid) == "shutdown"
        assert log.take()[-4:] == ["?a"] * 4

    story(told)


def test_a_child_added_later_whose_init_fails_is_not_kept() -> None:
    async def told(_: SimCluster, node: Node) -> None:
        log = Log()
        pid = node.spawn(Supervisor())
        spec = Child("a", Slow, (log, "a", ["no"]))
        with pytest.raises(RemoteError, match="InitFailed: a did not start: ValueError: no"):
            await node.call(pid, ("start_child", spec))
        assert await node.call(pid, "which_children") == {}
        child = await node.call(pid, ("start_child", spec))
        assert await node.call(pid, "which_children") == {"a": child}
        assert log.take() == ["?a", "?a", "+a"]

    story(told)
