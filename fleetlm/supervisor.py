"""Supervisors: processes that start other processes, and restart them when they fail.

    tree = Supervisor(
        [Child("cache", cache), Child("pool", Supervisor([Child("w1", worker), Child("w2", worker)]))],
        strategy="rest_for_one",
    )
    node.spawn(tree, name="root")

A supervisor is an ordinary process that traps exits. It takes one message at a time: the `Exit` of a child,
a `_StartAgain` that its own timer sent, or a `Call`. While it waits for a child (its init, its end), other
messages wait in the mailbox. So there is no concurrency inside a supervisor, but messages may be out of
date when they are taken. Each such case is settled where it arises:

* *A child that the supervisor ends itself* must not be restarted: `_end_one` unlinks it first and takes an
  `Exit` that has come already out of the mailbox.
* *A restart that is due when something else starts or ends the child*: `_forget_restart` takes the child
  out of the pending `_StartAgain`; others that were due with it stay. A message without names does nothing.
* *A child whose init fails* has ended like any other; its `Exit` waits in the mailbox and leads to a restart.
  Only where a call started it (``start_child``) is the `Exit` taken out, since the caller is told.
* *Exit signals of other processes*: the parent's and a node's end the supervisor, all others do nothing.

A child is running (it has a pid), due (a `_StartAgain` has its name), or neither: it ended and is not to
be restarted, or was ended by a call.

Source: OTP supervisor.erl for strategies, restart types, intensity, shutdown in reverse order; differs: a
plain process function has no init to wait for; an actor whose init fails counts as a child that ended;
there is a back-off; the loss of a peer does not count against the intensity.
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
from fleetlm.texts import text_of

log: logging.Logger = logging.getLogger("fleetlm")

SHUTDOWN_S = 5.0
"""Seconds that a child has to end if its `Child` does not say. Source: OTP supervisor.erl, for a worker."""
KILL_WAIT_S = 1.0
"""Seconds that a supervisor waits for the clean-up of a killed child. Then it goes on without waiting."""


@dataclass(frozen=True)
class Child:
    """How a supervisor starts a child, and what it does when the child ends.

    Attributes:
        name: its id among the children of its supervisor.
        function: a process function, a `Supervisor`, or the class of an `Actor`.
        args: passed to the function after its `Process`, or to the actor's constructor.
        restart: ``permanent`` (always restarted), ``transient`` (unless it ended with ``"normal"``,
            ``"shutdown"`` or ``("shutdown", why)``) or ``temporary`` (never).
        shutdown_s: seconds that it has to end before it is killed; 0: killed at once; ``math.inf``: as
            long as it takes; None: 5 s; for a supervisor as long as it takes.
        register: the name under which it is registered on its node, each time it is started.

    Raises:
        ValueError: ``restart`` is not one of the three.
        TypeError: ``function`` is an object of an `Actor`, which runs only once.
    """

    name: str
    function: ProcessFunction
    args: tuple[Any, ...] = ()
    restart: Restart = "permanent"
    shutdown_s: float | None = None
    register: str | None = None

    def __post_init__(self) -> None:
        if self.restart not in RESTARTS:
            raise ValueError(f"child {self.name!r}: unknown restart {self.restart!r}; use one of {RESTARTS}")
        if isinstance(self.function, Actor):
            cls = type(self.function).__qualname__
            raise TypeError(f"an actor object runs once: Child({self.name!r}, {cls}, args=(...))")


@dataclass(eq=False, slots=True)
class _StartAgain:
    """A message to the supervisor itself, after a pause: start these children."""

    names: list[str]
    """Children that are still to be started, in order. `_forget_restart` removes names."""
    timer: asyncio.TimerHandle | None = None


@dataclass
class _ChildState:
    """One child of a running supervisor."""

    spec: Child
    pid: Pid | None = None
    """None while it does not run."""
    due: _StartAgain | None = None
    """The message that will start it again, or None."""


class Supervisor:
    """A process function that supervises children; spawn it, or make it the function of a `Child`.

    It answers calls from any node: ``"which_children"`` (name → pid or None), ``"count_children"``, and
    ``("terminate_child" | "restart_child" | "delete_child", name)``; from its own node also
    ``("start_child", Child(...))``.

    An exit signal from its parent (which spawned it with `Process.spawn_link`) or from a node (`Node.exit`)
    ends it: it ends its children first, in reverse order. Exit signals from other processes do nothing,
    even if they are linked to it.

    Args:
        children: started in this order.
        strategy: which children are restarted beside one that failed: ``"one_for_one"``: none,
            ``"one_for_all"``: all, ``"rest_for_one"``: those that were started after it.
        max_restarts: more restarts than these within ``period_s`` seconds end the supervisor, with
            ``"shutdown"``.
        period_s: see ``max_restarts``.
        backoff_s: the shortest and the longest pause before a restart, in seconds. The first restart of a
            child has no pause, unless it ended because a node or a cluster-wide name was lost.

    Attributes:
        specs: the children as they were given; the other arguments are attributes of the same name.

    Raises:
        ValueError: two children have one name, or the strategy is unknown.
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
            raise ValueError(f"unknown strategy {strategy!r}; use one of {STRATEGIES}")
        names = [child.name for child in children or ()]
        if len(set(names)) != len(names):
            raise ValueError(f"two children have one name: {sorted(names)}")
        self.specs: list[Child] = list(children or ())
        self.strategy = strategy
        self.max_restarts = max_restarts
        self.period_s = period_s
        self.backoff_s = backoff_s

    async def __call__(self, process: Process) -> None:
        """Supervise until an exit signal or too many restarts. One object may run as several supervisors."""
        await _SupervisorRun(self, process).run()


class _SupervisorRun:
    """One run of a supervisor."""

    def __init__(self, plan: Supervisor, process: Process) -> None:
        self._plan = plan
        self._process = process
        self._children = {spec.name: _ChildState(spec) for spec in plan.specs}
        self._intensity = Intensity(plan.max_restarts, plan.period_s)
        self._backoff = Backoff(*plan.backoff_s)
        self._loop = asyncio.get_running_loop()
        process._children = self.children  # noqa: SLF001  # for `Node.supervisors`

    def children(self) -> list[ChildInfo]:
        """See `Node.supervisors`."""
        return [self._describe(name, child) for name, child in self._children.items()]

    def _describe(self, name: str, child: _ChildState) -> ChildInfo:
        spec, pid = child.spec, child.pid
        info = None if pid is None else self._process.node.process_info(pid)
        if info is not None:
            return ChildInfo(name, pid, info.runs, spec.restart, info.state)
        runs = getattr(spec.function, "__qualname__", type(spec.function).__qualname__)
        timer = None if child.due is None else child.due.timer
        pausing = timer is not None and timer.when() > self._loop.time()
        return ChildInfo(name, None, runs, spec.restart, "restarting" if pausing else "not running")

    async def run(self) -> None:
        """Start the children, take messages until something ends the supervisor, and end the children."""
        process = self._process
        process.trap_exit = True
        try:
            for child in list(self._children.values()):
                await self._start(child)
            async for message in process.mailbox:
                match message:
                    case Exit(pid=pid, reason=reason):
                        await self._take_exit(pid, reason)
                    case _StartAgain(names=names):
                        await self._start_again(list(names))
                    case Call(message=request):
                        await self._answer(message, request)
        finally:
            await self._end(list(self._children))

    async def _start(self, child: _ChildState) -> bool:
        """Start a child, and wait for the init of an actor, since later children may need it.

        Returns:
            False if its init failed; its `Exit` waits in the mailbox, as that of any child that ended.

        Raises:
            AlreadyRegistered: another process has its name.
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

    async def _take_exit(self, pid: Pid, reason: Any) -> None:
        """Handle an exit signal: of a child that ended, of the parent or a node, or of another process."""
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
        await self._restart(name, reason)

    async def _restart(self, name: str, reason: Any) -> None:
        """Restart a child that ended, and others as the strategy says, or give up. Raises: ProcessExit."""
        me = self._process.name or self._process.pid
        now = self._loop.time()
        if not self._intensity.allows(now, reason):
            log.error(
                "supervisor %s gives up: more than %d restarts in %g s, the last of %s (%s)",
                me, self._plan.max_restarts, self._plan.period_s, name, text_of(reason),
            )  # fmt: skip
            raise ProcessExit("shutdown")
        names = affected(self._plan.strategy, list(self._children), name)
        pause_s = self._backoff.pause_s(name, now, reason)
        why = text_of(reason)
        log.info("supervisor %s: %s ended (%s); starting %s in %.3g s", me, name, why, names, pause_s)
        await self._end([other for other in names if other != name])
        names = [each for each in names if each in self._children]
        if pause_s:
            self._start_later(names, pause_s)
        else:
            await self._start_again(names)

    def _start_later(self, names: list[str], pause_s: float) -> None:
        """Let these children be started after a pause."""
        again = _StartAgain(names)
        again.timer = self._loop.call_later(pause_s, self._process.mailbox.put, again)
        for name in names:
            self._children[name].due = again

    def _forget_restart(self, name: str) -> None:
        """Cancel the restart of a child that is due; others that are due with it stay so."""
        child = self._children[name]
        again, child.due = child.due, None
        if again is None:
            return
        again.names.remove(name)
        if not again.names and again.timer is not None:
            again.timer.cancel()

    async def _start_again(self, names: list[str]) -> None:
        """Start these children unless they run; if one cannot, try it and the rest again after a pause."""
        for name in names:
            self._forget_restart(name)
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
                    self._forget_restart(each)
                self._start_later(rest, pause_s)
                return

    async def _end(self, names: list[str]) -> None:
        """End these children in reverse order, and forget temporary ones."""
        for name in reversed(names):
            child = self._children[name]
            self._forget_restart(name)
            await self._end_one(child)
            if child.spec.restart == "temporary":
                del self._children[name]

    async def _end_one(self, child: _ChildState) -> None:
        """Tell a child to end, wait for it, and kill it if its time is up. No `Exit` of it arrives."""
        pid, child.pid = child.pid, None
        if pid is None:
            return
        node, process, shutdown_s = self._process.node, self._process, _get_shutdown_s(child.spec)
        process.unlink(pid)
        process.mailbox.discard(lambda message: isinstance(message, Exit) and message.pid == pid)
        if shutdown_s != 0:
            process.exit(pid, "shutdown")
            if await node.join(pid, shutdown_s):
                return
        process.exit(pid, "kill")
        await node.join(pid, KILL_WAIT_S)

    async def _answer(self, call: Call, request: Any) -> None:
        """Do what a call asks for, and answer it."""
        match request:
            case "which_children":
                call.reply({name: child.pid for name, child in self._children.items()})
            case "count_children":
                call.reply(self._count())
            case ("terminate_child", str(name)) if name in self._children:
                await self._end([name])
                call.reply(True)
            case ("restart_child", str(name)) if name in self._children:
                await self._start_again([name])
                call.reply(self._children[name].pid)
            case ("delete_child", str(name)) if name in self._children and not self._children[name].pid:
                self._forget_restart(name)
                self._backoff.forget(name)
                del self._children[name]
                call.reply(True)
            case ("start_child", Child() as spec) if spec.name not in self._children:
                await self._start_another(call, _ChildState(spec))
            case _:
                call.fail(InvalidName(repr(request)[:200], self._explain(request)))

    async def _start_another(self, call: Call, child: _ChildState) -> None:
        """Start a child for a call; if that fails, forget the child and fail the call."""
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

    def _explain(self, request: Any) -> str:
        """Say why a request cannot be done."""
        match request:
            case ("terminate_child" | "restart_child", str()):
                return "there is no such child"
            case ("delete_child", str(name)):
                return "it runs; terminate it first" if name in self._children else "there is no such child"
            case ("start_child", Child(name=name)):
                runs = self._children[name].pid is not None
                return "it runs already" if runs else "a child of that name exists; restart or delete it"
        return "a supervisor does not answer that request"

    def _count(self) -> dict[str, int]:
        children = list(self._children.values())
        supervisors = sum(isinstance(child.spec.function, Supervisor) for child in children)
        return {
            "specs": len(children),
            "active": sum(child.pid is not None for child in children),
            "supervisors": supervisors,
            "workers": len(children) - supervisors,
        }


def _get_shutdown_s(spec: Child) -> float | None:
    """Return the seconds that a child has to end; None: as long as it takes."""
    if spec.shutdown_s is None:
        return None if isinstance(spec.function, Supervisor) else SHUTDOWN_S
    return None if spec.shutdown_s == math.inf else spec.shutdown_s
