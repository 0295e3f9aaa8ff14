"""Supervisors: processes that start others, and start them again when they fail.

    tree = Supervisor(
        [Child("cache", cache), Child("pool", Supervisor([Child("w1", worker), Child("w2", worker)]))],
        strategy="rest_for_one",
    )
    node.spawn(tree, name="root")

Source: OTP supervisor.erl, strategies, restart types, intensity, shutdown in reverse order; differs:
a process function has no init to wait for, an actor whose init fails has ended like any other, an
optional back-off, and the loss of a peer does not count against the intensity.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Any

from fleetlm.actor import Actor
from fleetlm.actors.starting import Starting
from fleetlm.call import Call
from fleetlm.core.restarts import (
    RESTARTS,
    STRATEGIES,
    Backoff,
    Intensity,
    Restart,
    Strategy,
    affected,
    wants_restart,
)
from fleetlm.errors import FleetError, InitFailed, InvalidName, ProcessExit
from fleetlm.ids import Pid
from fleetlm.messages import Exit
from fleetlm.process import Process
from fleetlm.processes.info import ChildInfo
from fleetlm.processes.running import ProcessFunction

log = logging.getLogger("fleetlm")

SHUTDOWN_S = 5.0
"""For a child whose spec says nothing. Source: OTP supervisor.erl, for a worker."""
KILL_WAIT_S = 1.0
"""For the clean-up of a child that was killed; then it is left to itself."""


@dataclass(frozen=True)
class Child:
    """How to start a child, and what to do when it ends.

    Attributes:
        name: its id among the children of its supervisor.
        function: a process function, a `Supervisor`, or the class of an `Actor`.
        args: passed to it after its `Process`.
        restart: ``permanent`` (always), ``transient`` (unless it ended with ``"normal"``,
            ``"shutdown"`` or ``("shutdown", why)``) or ``temporary`` (never).
        shutdown_s: seconds that it has to end before it is killed; 0: killed at once; ``math.inf``:
            as long as it takes; None: 5 s, and for a supervisor as long as it takes.
        register: the name under which it is registered on its node, each time it is started.
    """

    name: str
    function: ProcessFunction
    args: tuple[Any, ...] = ()
    restart: Restart = "permanent"
    shutdown_s: float | None = None
    register: str | None = None

    def __post_init__(self) -> None:
        if self.restart not in RESTARTS:
            raise ValueError(f"restart of child {self.name!r} is {self.restart!r}: one of {RESTARTS}")
        if isinstance(self.function, Actor):
            cls = type(self.function).__qualname__
            raise TypeError(f"an actor object runs once: Child({self.name!r}, {cls}, args=(...))")


@dataclass(eq=False, slots=True)
class _StartAgain:
    """To the supervisor itself, after a pause."""

    names: list[str]
    """Those that are still to be started by this one, in order; none of them: it comes too late."""
    timer: asyncio.TimerHandle | None = None


@dataclass
class _Running:
    spec: Child
    pid: Pid | None = None
    due: _StartAgain | None = None


class Supervisor:
    """A process function that supervises; spawn it, or make it the function of a `Child`.

    It answers calls from any node: ``"which_children"`` (name → pid or None), ``"count_children"``,
    and ``("terminate_child" | "restart_child" | "delete_child", name)``. An exit signal of its parent
    (whose `Process.spawn_link` started it) or of a node (`Node.exit`) ends it, and with it, in reverse
    order, its children. Those of others, whoever may have linked to it, do nothing.

    Args:
        children: started in this order.
        strategy: who else is restarted with a child that failed: nobody, all, or those after it.
        max_restarts: more than so many within ``period_s`` seconds end the supervisor.
        backoff_s: pauses before restarts, least and greatest; (0.25, 15) by default, and none before
            the first restart of a child.

    Raises:
        ValueError: two children of one name, or an unknown strategy.
    """

    def __init__(
        self,
        children: list[Child] | None = None,
        *,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        period_s: float = 5.0,
        backoff_s: tuple[float, float] = (0.25, 15.0),
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy is {strategy!r}: one of {STRATEGIES}")
        names = [child.name for child in children or ()]
        if len(set(names)) != len(names):
            raise ValueError(f"two children have one name: {sorted(names)}")
        self.specs = list(children or ())
        self.strategy = strategy
        self.max_restarts = max_restarts
        self.period_s = period_s
        self.backoff_s = backoff_s

    async def __call__(self, process: Process) -> None:
        """Supervise until told to end. One object may run as several supervisors."""
        await _Run(self, process).run()


class _Run:
    """One life of a supervisor."""

    def __init__(self, plan: Supervisor, process: Process) -> None:
        self._plan = plan
        self._process = process
        self._children = {spec.name: _Running(spec) for spec in plan.specs}
        self._intensity = Intensity(plan.max_restarts, plan.period_s)
        self._backoff = Backoff(*plan.backoff_s)
        self._loop = asyncio.get_running_loop()
        process._children = self.children  # noqa: SLF001  # for `Node.supervisors`

    def children(self) -> list[ChildInfo]:
        """See `Node.supervisors`."""
        return [self._told(name, child) for name, child in self._children.items()]

    def _told(self, name: str, child: _Running) -> ChildInfo:
        spec, pid = child.spec, child.pid
        info = None if pid is None else self._process.node.process_info(pid)
        if info is not None:
            return ChildInfo(name, pid, info.runs, spec.restart, info.state)
        runs = getattr(spec.function, "__qualname__", type(spec.function).__qualname__)
        timer = None if child.due is None else child.due.timer
        pausing = timer is not None and timer.when() > self._loop.time()
        return ChildInfo(name, None, runs, spec.restart, "restarting" if pausing else "not running")

    async def run(self) -> None:
        process = self._process
        process.trap_exit = True
        try:
            for child in list(self._children.values()):
                await self._start(child)
            async for message in process.mailbox:
                match message:
                    case Exit(pid=pid, reason=reason):
                        await self._exited(pid, reason)
                    case _StartAgain(names=names):
                        await self._start_again(list(names))
                    case Call(message=request):
                        await self._asked(message, request)
        finally:
            await self._end(list(self._children))

    async def _start(self, child: _Running) -> bool:
        """Start a child, and wait for the init of an actor: those after it may need it.

        Returns:
            False for one that failed in its init: its exit signal waits in the mailbox, as of any other.

        Raises:
            AlreadyRegistered: its name belongs to somebody else.
        """
        spec = child.spec
        function: Any = spec.function
        ready: asyncio.Future[bool] | None = None
        if isinstance(function, type) and issubclass(function, Actor):
            ready = self._loop.create_future()
            function = Starting(function, ready)
        child.pid = pid = self._process.spawn_link(function, *spec.args, name=spec.register)
        if ready is None or await ready:
            return True
        await self._process.node.join(pid)
        return False

    async def _exited(self, pid: Pid, reason: Any) -> None:
        name = next((name for name, child in self._children.items() if child.pid == pid), None)
        if name is None:
            if pid.number == 0 or pid == self._process.parent:
                raise ProcessExit(reason)
            return
        child = self._children[name]
        child.pid = None
        if not wants_restart(child.spec.restart, reason):
            if child.spec.restart == "temporary":
                del self._children[name]
            return
        await self._failed(name, reason)

    async def _failed(self, name: str, reason: Any) -> None:
        me = self._process.name or self._process.pid
        now = self._loop.time()
        if not self._intensity.allows(now, reason):
            log.error(
                "supervisor %s gives up: more than %d restarts in %g s, the last of %s (%s)",
                me, self._plan.max_restarts, self._plan.period_s, name, reason,
            )  # fmt: skip
            raise ProcessExit("shutdown")
        names = affected(self._plan.strategy, list(self._children), name)
        pause_s = self._backoff.pause_s(name, now, reason)
        log.info("supervisor %s: %s ended (%s); starting %s in %.3g s", me, name, reason, names, pause_s)
        await self._end([other for other in names if other != name])
        names = [each for each in names if each in self._children]
        if pause_s:
            self._start_later(names, pause_s)
        else:
            await self._start_again(names)

    def _start_later(self, names: list[str], pause_s: float) -> None:
        again = _StartAgain(names)
        again.timer = self._loop.call_later(pause_s, self._process.mailbox.put, again)
        for name in names:
            self._children[name].due = again

    def _not_due(self, name: str) -> None:
        """It is started now, or not at all; those that were due with it still are."""
        child = self._children[name]
        again, child.due = child.due, None
        if again is None:
            return
        again.names.remove(name)
        if not again.names and again.timer is not None:
            again.timer.cancel()

    async def _start_again(self, names: list[str]) -> None:
        for name in names:
            self._not_due(name)
            child = self._children[name]
            if child.pid is not None:
                continue
            try:
                await self._start(child)
            except FleetError as error:
                log.warning("supervisor %s cannot start %s: %s", self._process.pid, name, error)
                pause_s = max(self._plan.backoff_s[0], self._backoff.pause_s(name, self._loop.time(), error))
                rest = names[names.index(name) :]
                for each in rest:
                    self._not_due(each)
                self._start_later(rest, pause_s)
                return

    async def _end(self, names: list[str]) -> None:
        """End these children in reverse order; temporary ones are forgotten."""
        for name in reversed(names):
            child = self._children[name]
            self._not_due(name)
            await self._end_one(child)
            if child.spec.restart == "temporary":
                del self._children[name]

    async def _end_one(self, child: _Running) -> None:
        pid, child.pid = child.pid, None
        if pid is None:
            return
        node, process, shutdown_s = self._process.node, self._process, _shutdown_s(child.spec)
        process.unlink(pid)
        process.mailbox.discard(lambda message: isinstance(message, Exit) and message.pid == pid)
        if shutdown_s != 0:
            process.exit(pid, "shutdown")
            if await node.join(pid, shutdown_s):
                return
        process.exit(pid, "kill")
        await node.join(pid, KILL_WAIT_S)

    async def _asked(self, call: Call, request: Any) -> None:
        match request:
            case "which_children":
                call.reply({name: child.pid for name, child in self._children.items()})
            case "count_children":
                call.reply(self._counts())
            case ("terminate_child", str(name)) if name in self._children:
                await self._end([name])
                call.reply(True)
            case ("restart_child", str(name)) if name in self._children:
                await self._start_again([name])
                call.reply(self._children[name].pid)
            case ("delete_child", str(name)) if name in self._children and not self._children[name].pid:
                self._not_due(name)
                self._backoff.forget(name)
                del self._children[name]
                call.reply(True)
            case ("start_child", Child() as spec) if spec.name not in self._children:
                await self._start_another(call, _Running(spec))
            case _:
                call.fail(InvalidName(repr(request)[:200], self._why_not(request)))

    async def _start_another(self, call: Call, child: _Running) -> None:
        name = child.spec.name
        self._children[name] = child
        try:
            if await self._start(child):
                call.reply(child.pid)
                return
            exits = self._process.mailbox.discard(
                lambda each: isinstance(each, Exit) and each.pid == child.pid
            )
            raise InitFailed(name, next((each.reason for each in exits), "it has ended"))
        except FleetError as error:
            del self._children[name]
            call.fail(error)

    def _why_not(self, request: Any) -> str:
        match request:
            case ("terminate_child" | "restart_child", str()):
                return "there is no such child"
            case ("delete_child", str(name)):
                return "it runs; terminate it first" if name in self._children else "there is no such child"
            case ("start_child", Child(name=name)):
                runs = self._children[name].pid is not None
                return "it runs already" if runs else "there is one that does not run; restart or delete it"
        return "a supervisor does not answer that"

    def _counts(self) -> dict[str, int]:
        children = list(self._children.values())
        supervisors = sum(isinstance(child.spec.function, Supervisor) for child in children)
        return {
            "specs": len(children),
            "active": sum(child.pid is not None for child in children),
            "supervisors": supervisors,
            "workers": len(children) - supervisors,
        }


def _shutdown_s(spec: Child) -> float | None:
    """Seconds, or None for ever."""
    if spec.shutdown_s is None:
        return None if isinstance(spec.function, Supervisor) else SHUTDOWN_S
    return None if spec.shutdown_s == math.inf else spec.shutdown_s
