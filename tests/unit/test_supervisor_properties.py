"""Trees of supervisors against a model without tasks: who is started and ended, in which order, and when.

Real processes on virtual time. The model is OTP's rules in plain recursion: a child is up or not, a
restart is due or not. Each supervisor's children start and end in the order that the model says, and
what it tells of them is what there is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from fleetlm import Child, Down, Node, Pid, Process, ProcessExit, RemoteError, Supervisor
from fleetlm.core.restarts import RESTARTS, STRATEGIES, Restart, Strategy
from fleetlm.processes.running import RunningProcess
from fleetlm.testing import Fleet, SimCluster, run

PERIOD_S = 5.0
BACKOFF_S = (0.25, 2.0)
CLEAN = ("normal", "shutdown", ("shutdown", "why"))


@dataclass(frozen=True)
class Plan:
    """A child, and of a supervisor its children."""

    restart: Restart
    strategy: Strategy | None = None
    most: int = 0
    children: tuple[Plan, ...] = ()


LEAF = st.builds(Plan, st.sampled_from(RESTARTS))


def supervisors(children: st.SearchStrategy[Plan]) -> st.SearchStrategy[Plan]:
    return st.builds(
        Plan,
        st.sampled_from(RESTARTS),
        st.sampled_from(STRATEGIES),
        st.sampled_from([0, 1, 2, 9, 9]),
        st.lists(children, min_size=1, max_size=4).map(tuple),
    )


plans = supervisors(LEAF | supervisors(LEAF))
reasons = st.sampled_from(["boom", "boom", *CLEAN, "killed", "noconnection", "noconnection"])
which = st.integers(0, 30)
waits_s = st.sampled_from([0.13, 0.13, 1.1, 7.3])
"""Such that nothing is due at the moment of a step."""
steps = st.lists(
    st.tuples(st.just("exit"), which, reasons, waits_s)
    | st.tuples(st.just("together"), st.permutations(range(4)), reasons, waits_s)
    | st.tuples(st.sampled_from(["terminate", "restart", "delete", "start"]), which, which, waits_s),
    min_size=1,
    max_size=12,
)


# ── the model ────────────────────────────────────────────────────────────────────────────────────


@dataclass(eq=False)
class Kid:
    """One child of a supervisor, or the top."""

    path: str
    plan: Plan
    up: bool = False
    unheard: bool = False
    """It has ended by itself, and its supervisor has not taken the signal yet."""
    kids: dict[str, Kid] = field(default_factory=dict)
    restarts: list[float] = field(default_factory=list)
    failures: dict[str, tuple[int, float]] = field(default_factory=dict)
    due: list[tuple[float, list[str]]] = field(default_factory=list)

    def living(self) -> Iterator[Kid]:
        if self.up:
            yield self
            for kid in self.kids.values():
                yield from kid.living()


class Model:
    def __init__(self, plan: Plan) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.parent: dict[Kid, Kid] = {}
        self.fresh: list[Kid] = []
        """Supervisors that have been spawned and did not run yet."""
        self.top = Kid("top", plan)
        self.start(self.top)
        self.run_fresh()

    def start(self, kid: Kid) -> None:
        kid.up, kid.unheard = True, False
        kid.kids, kid.restarts, kid.failures, kid.due = {}, [], {}, []
        self.log.append(f"+{kid.path}")
        if kid.plan.strategy is not None:
            self.fresh.append(kid)

    def run_fresh(self) -> None:
        while self.fresh:
            kid = self.fresh.pop(0)
            for nth, plan in enumerate(kid.plan.children):
                self.add(kid, str(nth), plan)

    def add(self, kid: Kid, name: str, plan: Plan) -> None:
        child = kid.kids[name] = Kid(f"{kid.path}.{name}", plan)
        self.parent[child] = kid
        self.start(child)

    def end(self, kid: Kid) -> None:
        kid.unheard = False
        if kid.up:
            if kid in self.fresh:
                self.fresh.remove(kid)
            self.run_fresh()  # Whoever waits for an end lets the others run.
            self.end_all(kid, list(kid.kids))
            self.gone(kid)

    def gone(self, kid: Kid) -> None:
        kid.up = False
        self.log.append(f"-{kid.path}")

    def end_all(self, supervisor: Kid, names: list[str]) -> None:
        for name in reversed(names):
            self.forget(supervisor, name)
            self.end(supervisor.kids[name])
            if supervisor.kids[name].plan.restart == "temporary":
                del supervisor.kids[name]

    def forget(self, supervisor: Kid, name: str) -> None:
        """It is not due any more; those that it was to be started with still are."""
        supervisor.due = [(at, [each for each in names if each != name]) for at, names in supervisor.due]

    def exits(self, kids: list[Kid], reason: Any) -> None:
        """These end by themselves, one after the other, before any supervisor is told."""
        for kid in kids:
            self.end_all(kid, list(kid.kids))
            self.gone(kid)
            kid.unheard = True
        for kid in kids:
            if kid.unheard and kid is not self.top and self.parent[kid].up:
                self.heard(self.parent[kid], kid, reason)
        self.run_fresh()

    def heard(self, supervisor: Kid, kid: Kid, reason: Any) -> None:
        kid.unheard = False
        restart, name = kid.plan.restart, kid.path.rpartition(".")[2]
        if restart == "temporary":
            del supervisor.kids[name]
        elif restart == "permanent" or reason not in CLEAN:
            self.failed(supervisor, name, reason)

    def failed(self, supervisor: Kid, name: str, reason: Any) -> None:
        plan, lost = supervisor.plan, reason == "noconnection"
        if not lost:
            supervisor.restarts.append(self.now)
            if len([at for at in supervisor.restarts if at >= self.now - PERIOD_S]) > plan.most:
                self.exits([supervisor], "shutdown")
                return
        order = list(supervisor.kids)
        first = {"one_for_all": 0, "rest_for_one": order.index(name)}.get(plan.strategy or "")
        names = [name] if first is None else order[first:]
        times, started = supervisor.failures.get(name, (0, self.now))
        times = 0 if self.now - started > 2 * BACKOFF_S[1] else times
        pause_s = min(BACKOFF_S[1], BACKOFF_S[0] * 2 ** (times - 1)) if times else 0.0
        supervisor.failures[name] = (times + 1, self.now + pause_s)
        self.forget(supervisor, name)
        self.end_all(supervisor, [each for each in names if each != name])
        names = [each for each in names if each in supervisor.kids]
        if pause_s or lost:
            supervisor.due.append((self.now + max(pause_s, BACKOFF_S[0] * lost), names))
        else:
            self.start_again(supervisor, names)

    def start_again(self, supervisor: Kid, names: list[str]) -> None:
        for name in names:
            if name in supervisor.kids and not supervisor.kids[name].up:
                self.forget(supervisor, name)
                self.start(supervisor.kids[name])

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            dues = [(at, kid.path, kid) for kid in self.top.living() for at, _ in kid.due if at <= until]
            if not dues:
                break
            self.now, _, kid = min(dues, key=lambda each: each[:2])
            names = next(names for at, names in kid.due if at == self.now)
            kid.due.remove((self.now, names))
            self.start_again(kid, names)
            self.run_fresh()
        self.now = until

    def ask(self, supervisor: Kid, verb: str, name: str) -> bool:
        """Whether it does what it is asked."""
        known = supervisor.kids.get(name)
        match verb:
            case "start" if known is None:
                self.add(supervisor, name, Plan("permanent"))
            case "terminate" if known is not None:
                self.end_all(supervisor, [name])
            case "restart" if known is not None:
                self.start_again(supervisor, [name])
            case "delete" if known is not None and not known.up:
                self.forget(supervisor, name)
                del supervisor.kids[name]
                supervisor.failures.pop(name, None)
            case _:
                return False
        self.run_fresh()
        return True


# ── the real thing ───────────────────────────────────────────────────────────────────────────────


class Real:
    """The same tree of processes, and what they do."""

    def __init__(self, node: Node, plan: Plan) -> None:
        self.node = node
        self.log: list[str] = []
        self.pids: dict[str, Pid] = {}
        self.paths: dict[Pid, str] = {}
        self.end: Any = None
        local = node._local
        tell = local._on_exited

        def on_exited(process: RunningProcess, reason: Any) -> None:
            if process.pid in self.paths:
                self.log.append(f"-{self.paths[process.pid]}")
            tell(process, reason)

        run_process = local._run

        def spawned(function: Any, process: Any, args: Any) -> Coroutine[Any, Any, None]:
            """Called before it runs: one that is ended before it does has been started all the same."""
            path = function.path if isinstance(function, Branch) else args[0] if args else None
            if path is not None and not isinstance(path, Supervisor):
                self.log.append(f"+{path}")
                self.pids[path] = process.pid
                self.paths[process.pid] = path
            return run_process(function, process, args)

        local._on_exited = on_exited
        local._run = spawned
        self.watcher = node.spawn(self.watch, self.child("top", plan).function)

    def child(self, path: str, plan: Plan) -> Child:
        name = path.rpartition(".")[2]
        if plan.strategy is None:
            return Child(name, self.leaf, (path,), restart=plan.restart)
        return Child(name, Branch(self, path, plan), restart=plan.restart)

    async def leaf(self, process: Process, path: str) -> None:
        raise ProcessExit(await process.receive())

    async def watch(self, process: Process, tree: Any) -> None:
        process.spawn_monitor(tree)
        down = await process.receive()
        assert isinstance(down, Down)
        self.end = down.reason

    async def ask(self, supervisor: Kid, verb: str, name: str) -> bool:
        plan = Plan("permanent")
        what = self.child(f"{supervisor.path}.{name}", plan) if verb == "start" else name
        try:
            answer = await self.node.call(self.pids[supervisor.path], (f"{verb}_child", what))
        except RemoteError:
            return False
        pid = self.pids.get(f"{supervisor.path}.{name}")
        assert answer == (True if verb in ("terminate", "delete") else pid)
        return True

    async def agrees(self, model: Model) -> None:
        """What happened is what should have, and each supervisor says what is."""
        for path in {"", *(entry[1:].rpartition(".")[0] for entry in self.log + model.log)}:
            mine, theirs = (
                [entry for entry in log if entry[1:].rpartition(".")[0] == path]
                for log in (self.log, model.log)
            )
            assert mine == theirs
        ends = [[entry for entry in log if entry[0] == "-"] for log in (self.log, model.log)]
        assert ends[0] == ends[1]
        self.log.clear()
        model.log.clear()
        living = list(model.top.living())
        expected = {self.pids[kid.path] for kid in living} | ({self.watcher} if living else set())
        assert {info.pid for info in self.node.processes()} == expected
        for kid in living:
            if kid.plan.strategy is not None:
                await self.tells(kid)

    async def tells(self, supervisor: Kid) -> None:
        top, kids = self.pids[supervisor.path], supervisor.kids
        told = await self.node.call(top, "which_children")
        assert list(told) == list(kids)
        assert told == {name: self.pids[kid.path] if kid.up else None for name, kid in kids.items()}
        branches = sum(kid.plan.strategy is not None for kid in kids.values())
        assert await self.node.call(top, "count_children") == {
            "specs": len(kids), "active": sum(kid.up for kid in kids.values()),
            "supervisors": branches, "workers": len(kids) - branches,
        }  # fmt: skip


class Branch(Supervisor):
    def __init__(self, real: Real, path: str, plan: Plan) -> None:
        children = [real.child(f"{path}.{nth}", child) for nth, child in enumerate(plan.children)]
        assert plan.strategy is not None
        super().__init__(
            children,
            strategy=plan.strategy,
            max_restarts=plan.most,
            period_s=PERIOD_S,
            backoff_s=BACKOFF_S,
        )
        self.path = path


async def take(real: Real, model: Model, step: tuple[Any, ...]) -> None:
    """Do one step in both worlds."""
    verb, first, second, wait_s = step
    living = list(model.top.living())
    branches = [kid for kid in living if kid.plan.strategy is not None]
    if verb == "exit":
        kids = [living[first % len(living)]]
    elif verb == "together":
        kids = list(branches[sum(first[:2]) % len(branches)].kids.values())
        kids = [kids[nth] for nth in first[:3] if nth < len(kids)]
        kids = [kid for kid in kids if kid.up and kid.plan.strategy is None]
    else:
        supervisor, name = branches[first % len(branches)], str(second % 5)
        down = [(kid, each) for kid in branches for each, child in kid.kids.items() if not child.up]
        if down and second % 4:  # Mostly who waits for its restart.
            supervisor, name = down[first % len(down)]
        assert await real.ask(supervisor, verb, name) == model.ask(supervisor, verb, name)
        kids = []
    for kid in kids:
        if kid.plan.strategy is None:
            real.node.send_nowait(real.pids[kid.path], second)
        else:
            real.node.exit(real.pids[kid.path], second)
    model.exits(kids, second)
    await asyncio.sleep(wait_s)
    model.wait(wait_s)
    await real.agrees(model)


@pytest.mark.deadline(60)
@settings(max_examples=90)
@given(plans, steps)
def test_a_tree_does_what_the_model_says(plan: Plan, steps: list[tuple[Any, ...]]) -> None:
    async def main() -> None:
        async with SimCluster(seed=1) as cluster:
            (node,) = await cluster.start(1)
            real, model = Real(node, plan), Model(plan)
            for step in steps:
                await asyncio.sleep(0.01)
                model.wait(0.01)
                await real.agrees(model)
                await take(real, model, step)
                if not model.top.up:
                    break
            if model.top.up:
                node.exit(real.pids["top"], "enough")
                model.exits([model.top], "enough")
                await asyncio.sleep(0.01)
                await real.agrees(model)
                assert real.end == "enough"
            assert real.end is not None
            assert node.processes() == []
            await asyncio.sleep(60)
            assert real.log == [], "nothing is started by a supervisor that has ended"

    logging.disable(logging.CRITICAL)
    run(main())


# ── what these have found ────────────────────────────────────────────────────────────────────────


async def until_told(process: Process) -> None:
    raise ProcessExit(await process.receive())


async def slow_to_end(process: Process) -> None:
    try:
        await process.receive()
    finally:
        await asyncio.sleep(3)


def paused(strategy: Strategy, *others: Child) -> Supervisor:
    children = [Child(name, until_told, register=name) for name in ("a", "b", "c")]
    return Supervisor([*others, *children], strategy=strategy, backoff_s=(1.0, 1.0))


async def who_runs(node: Node) -> list[str]:
    return [name for name, pid in (await node.call("top", "which_children")).items() if pid is not None]


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_who_is_terminated_during_a_pause_stays_away_and_the_others_come_back(
    fleet: Fleet, strategy: Strategy
) -> None:
    (node,) = await fleet.start(1)
    node.spawn(paused(strategy), name="top")
    await asyncio.sleep(0.1)
    node.send_nowait("b", "noconnection")
    await asyncio.sleep(0.1)
    assert await node.call("top", ("terminate_child", "b")) is True
    await asyncio.sleep(2)
    assert await who_runs(node) == ["a", "c"]


async def test_who_is_terminated_stays_away_although_its_pause_is_over_already(fleet: Fleet) -> None:
    """The supervisor waits for the end of another child when the pause ends."""
    (node,) = await fleet.start(1)
    node.spawn(paused("one_for_one", Child("slow", slow_to_end)), name="top")
    await asyncio.sleep(0.1)
    node.send_nowait("b", "noconnection")
    await asyncio.sleep(0.1)
    slow = asyncio.create_task(node.call("top", ("terminate_child", "slow")))
    await asyncio.sleep(0.1)
    assert await node.call("top", ("terminate_child", "b")) is True
    assert await slow is True
    assert await who_runs(node) == ["a", "c"]
    await asyncio.sleep(2)
    assert await who_runs(node) == ["a", "c"]


async def test_who_is_restarted_during_a_pause_has_its_next_pause_in_full(fleet: Fleet) -> None:
    (node,) = await fleet.start(1)
    node.spawn(paused("one_for_one"), name="top")
    await asyncio.sleep(0.1)
    node.send_nowait("a", "noconnection")
    await asyncio.sleep(0.9)
    await node.call("top", ("restart_child", "a"))
    node.send_nowait("a", "noconnection")
    await asyncio.sleep(0.5)
    assert await who_runs(node) == ["b", "c"]
    await asyncio.sleep(0.6)
    assert await who_runs(node) == ["a", "b", "c"]


async def test_a_child_that_was_deleted_leaves_no_history(fleet: Fleet) -> None:
    (node,) = await fleet.start(1)
    node.spawn(paused("one_for_one"), name="top")
    await asyncio.sleep(0.1)
    node.send_nowait("a", "boom")
    await asyncio.sleep(0.1)
    await node.call("top", ("terminate_child", "a"))
    await node.call("top", ("delete_child", "a"))
    await node.call("top", ("start_child", Child("a", until_told, register="a")))
    node.send_nowait("a", "boom")
    await asyncio.sleep(0.1)
    assert await who_runs(node) == ["b", "c", "a"], "no pause: it is another child's first failure"
