"""Supervisors while their children start, on virtual time: they answer, end in time, and limit an init."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

import pytest

from fleetlm import Actor, Child, Node, Pid, Process, ProcessExit, RemoteError, Supervisor, handler
from fleetlm.core.restarts import Strategy
from fleetlm.processes.local import _ENDS_PER_TURN
from fleetlm.supervisor import STARTS_PER_TURN
from fleetlm.testing import SimCluster, run


class Gates:
    """Which children may leave their init, and what they did."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.log: list[str] = []

    def take(self) -> list[str]:
        taken, self.log = self.log, []
        return taken

    def child(self, name: str, **options: Any) -> Child:
        return Child(name, Gated, (self, name), register=name, **options)


class Gated(Actor):
    """A child whose init waits until it may go on."""

    def __init__(self, gates: Gates, name: str) -> None:
        self.gates, self.name = gates, name

    async def init(self) -> None:
        self.gates.log.append(f"?{self.name}")
        while self.name not in self.gates.open:
            await asyncio.sleep(0.1)
        self.gates.log.append(f"+{self.name}")

    async def terminate(self, _reason: Any) -> None:
        self.gates.log.append(f"-{self.name}")

    @handler
    async def leave(self) -> None:
        raise ProcessExit("left")


def story(told: Any) -> None:
    async def main() -> None:
        async with SimCluster(seed=5) as cluster:
            (node,) = await cluster.start(1)
            await told(node)

    run(main())


def states(node: Node, top: Pid) -> list[str]:
    return [f"{child.id}: {child.state}" for child in node.supervisors()[top]]


async def leave(node: Node, name: str) -> None:
    await node.ref(Gated, name).cast(Gated.leave)
    await asyncio.sleep(0.05)


def test_a_supervisor_answers_and_restarts_other_children_while_an_init_hangs() -> None:
    async def told(node: Node) -> None:
        gates = Gates()
        gates.open = {"a", "c"}
        top = node.spawn(Supervisor([gates.child("a"), gates.child("b"), gates.child("c")]))
        await asyncio.sleep(0.5)
        assert states(node, top) == ["a: waiting", "b: starting", "c: queued"]
        assert [info.state for info in node.processes() if info.name == "b"] == ["starting"]
        children = await node.call(top, "which_children", timeout=0.1)
        assert [pid is not None for pid in children.values()] == [True, True, False]
        await leave(node, "a")
        assert gates.take() == ["?a", "+a", "?b", "-a", "?a", "+a"]
        gates.open.add("b")
        await asyncio.sleep(0.5)
        assert gates.take() == ["+b", "?c", "+c"]
        assert states(node, top) == ["a: waiting", "b: waiting", "c: waiting"]

    story(told)


def test_a_supervisor_that_is_told_to_end_does_not_wait_for_an_init(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def told(node: Node) -> None:
        gates = Gates()
        gates.open = {"a"}
        node.spawn(Supervisor([gates.child("a"), gates.child("b"), gates.child("c")]), name="top")
        await asyncio.sleep(2)
        began = asyncio.get_running_loop().time()
        await node.stop()
        assert asyncio.get_running_loop().time() - began < 0.5
        assert gates.take() == ["?a", "+a", "?b", "-a"]

    story(told)
    assert "supervisor top ends b, whose init is not done after 2 s" in caplog.text


def test_an_init_that_takes_longer_than_its_deadline_counts_as_a_failed_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def told(node: Node) -> None:
        gates = Gates()
        top = node.spawn(Supervisor([gates.child("a", init_s=9.0)], max_restarts=1, period_s=60), name="top")
        await asyncio.sleep(8.9)
        assert gates.take() == ["?a"]
        await asyncio.sleep(0.2)
        assert gates.take() == ["?a"]
        await node.join(top, 20)
        assert node.processes() == []

    story(told)
    slow = "supervisor top: init of a (Gated, <fleetlm@10.0.0.1"
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith(slow) and "is not done after 5 s; it has 9 s" in line for line in lines) == 2
    late = [
        line for line in lines if line.startswith(slow) and "was not done within 9 s and is killed" in line
    ]
    assert len(late) == 2
    assert "Child.init_s and Settings.init_s" in late[0]
    assert lines[-1] == (
        "supervisor top gave up: more than 1 restarts in 60 s, the last of a (init was not done within 9 s)"
    )


def test_an_init_without_a_deadline_may_take_as_long_as_it_needs(caplog: pytest.LogCaptureFixture) -> None:
    async def told(node: Node) -> None:
        gates = Gates()
        top = node.spawn(Supervisor([gates.child("a", init_s=math.inf), gates.child("b")]))
        await asyncio.sleep(100)
        gates.open = {"a"}
        await asyncio.sleep(1)
        assert states(node, top) == ["a: waiting", "b: starting"]
        await asyncio.sleep(60)
        assert gates.take() == ["?a", "+a", "?b", "?b"], "b has the deadline of the settings"

    story(told)
    assert caplog.text.count("init of a ") == 1
    assert "it has no deadline" in caplog.text


@pytest.mark.parametrize("init_s", [0, -1.0, math.nan])
def test_a_deadline_that_is_no_time_is_refused(init_s: float) -> None:
    with pytest.raises(ValueError, match="init_s"):
        Child("a", Gated, init_s=init_s)


@pytest.mark.parametrize(
    ("strategy", "happens"),
    [
        ("one_for_one", ["-a", "?a", "+a"]),
        ("rest_for_one", ["-a", "?a", "+a", "?b"]),
        ("one_for_all", ["-a", "-z", "?z", "+z", "?a", "+a", "?b"]),
    ],
)
def test_the_children_that_a_strategy_restarts_leave_the_row_that_would_start_them(
    strategy: Strategy, happens: list[str]
) -> None:
    async def told(node: Node) -> None:
        gates = Gates()
        gates.open = {"z", "a"}
        specs = [gates.child(name) for name in "zabc"]
        top = node.spawn(Supervisor(specs, strategy=strategy))
        await asyncio.sleep(0.5)
        gates.take()
        await leave(node, "a")
        assert gates.take() == happens
        assert states(node, top) == ["z: waiting", "a: waiting", "b: starting", "c: queued"]
        gates.open |= {"b", "c"}
        await asyncio.sleep(0.5)
        assert gates.take() == ["+b", "?c", "+c"]

    story(told)


def test_a_row_goes_on_when_the_child_in_its_init_is_terminated_by_a_call() -> None:
    async def told(node: Node) -> None:
        gates = Gates()
        gates.open = {"c"}
        top = node.spawn(Supervisor([gates.child("b"), gates.child("c")]))
        await asyncio.sleep(0.5)
        assert await node.call(top, ("terminate_child", "b")) is True
        await asyncio.sleep(0.1)
        assert gates.take() == ["?b", "?c", "+c"]
        assert states(node, top) == ["b: not running", "c: waiting"]

    story(told)


def test_a_call_that_starts_a_child_is_answered_when_its_init_is_done() -> None:
    async def told(node: Node) -> None:
        gates = Gates()
        top = node.spawn(Supervisor())
        starting = asyncio.create_task(node.call(top, ("start_child", gates.child("a"))))
        await asyncio.sleep(1)
        assert states(node, top) == ["a: starting"]
        with pytest.raises(RemoteError, match="it is in its init already"):
            await node.call(top, ("start_child", gates.child("a")))
        assert not starting.done()
        gates.open = {"a"}
        assert await starting == await node.whereis("a")

        late = asyncio.create_task(node.call(top, ("start_child", gates.child("b", init_s=2.0))))
        with pytest.raises(RemoteError, match="b did not start: init was not done within 2 s"):
            await late
        ended = asyncio.create_task(node.call(top, ("start_child", gates.child("c"))))
        await asyncio.sleep(0.2)
        await node.call(top, ("terminate_child", "c"))
        with pytest.raises(RemoteError, match="c did not start: it was ended before its init was done"):
            await ended
        assert list(await node.call(top, "which_children")) == ["a"]

        await node.call(top, ("terminate_child", "a"))
        gates.open = set()
        again = asyncio.create_task(node.call(top, ("restart_child", "a")))
        await asyncio.sleep(1)
        assert not again.done()
        gates.open = {"a"}
        assert await again == await node.whereis("a")

    story(told)


async def idle(process: Process) -> None:
    await process.receive()


def test_many_children_start_and_end_some_in_each_turn_of_the_loop() -> None:
    count = 1_000

    async def told(node: Node) -> None:
        local = node._local

        async def most_in_a_turn(left: int) -> int:
            """Let turns of the loop pass until there are so many processes. Returns the greatest change."""
            most = 0
            for _ in range(20 * count):
                before = len(local._processes)
                if before == left:
                    return most
                await asyncio.sleep(0)
                most = max(most, abs(len(local._processes) - before))
            pytest.fail(f"{len(local._processes)} processes, not {left}")

        specs = [Child(f"c{nth}", idle, restart="transient") for nth in range(count)]
        top = node.spawn(Supervisor(specs), name="top")
        assert await most_in_a_turn(count + 1) <= STARTS_PER_TURN
        pids = [pid for pid in (await node.call(top, "which_children")).values() if pid is not None]
        for pid in reversed(pids):
            node.exit(pid)
        assert await most_in_a_turn(1) <= _ENDS_PER_TURN
        assert (await node.call(top, "count_children"))["active"] == 0

        node.exit(top)
        await node.join(top)
        for _ in range(count):
            node.spawn(idle)
        await asyncio.sleep(0)
        stopping = asyncio.create_task(local.stop())
        assert await most_in_a_turn(0) <= _ENDS_PER_TURN
        await stopping

    story(told)


def test_an_exit_is_not_compared_with_every_child(monkeypatch: pytest.MonkeyPatch) -> None:
    count, compared = 500, 0
    equal = Pid.__eq__

    def counting(self: Pid, other: object) -> bool:
        nonlocal compared
        compared += 1
        return equal(self, other)

    async def told(node: Node) -> None:
        top = node.spawn(Supervisor([Child(f"c{nth}", idle, restart="temporary") for nth in range(count)]))
        await asyncio.sleep(1)
        pids = [pid for pid in (await node.call(top, "which_children")).values() if pid is not None]
        monkeypatch.setattr(Pid, "__eq__", counting)
        for pid in reversed(pids):
            node.exit(pid)
        await asyncio.sleep(1)
        monkeypatch.setattr(Pid, "__eq__", equal)
        assert await node.call(top, "which_children") == {}

    story(told)
    assert 0 < compared < 20 * count
