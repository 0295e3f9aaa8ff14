"""Supervisors: processes that start other processes, and restart them when they fail.

    tree = Supervisor(
        [Child("cache", cache), Child("pool", Supervisor([Child("w1", worker), Child("w2", worker)]))],
        strategy="rest_for_one",
    )
    node.spawn(tree, name="root")

A supervisor is an ordinary process that traps exits. It takes one message at a time and waits for nothing
but the end of children that it ends itself, so it answers and can be told to end while children start.

Starting. Children start one after the other, since later ones may need those before them: a `_Row` is a
list of children and starts the next one when the init of the one before is done. Its messages to the
supervisor are the row itself ("go on"), `_InitDone` and `_InitClock` ("look how long this init takes"). A
child is in at most one row. The first row has all children; each restart is a row of its own.

A child is running (it has a pid), in a row, in both while it is in its init, or neither: it ended and is
not to be restarted, or was ended by a call. Messages may be out of date when they are taken. Each such
case is settled where it arises:

* *A child that the supervisor ends itself* must not be restarted: `_end_one` forgets its pid first, and an
  `Exit` with a pid that no child has does nothing.
* *A child that is started or ended by something else than its row*: `_leave_row` takes it out, and the row
  passes over it. A row that waited for its init goes on.
* *A child whose init fails* has ended like any other: its `Exit` leads to a restart. One that a call added
  (``start_child``) is forgotten instead, and the caller is told.
* *A child whose init takes longer than its deadline* is killed, which counts as an init that failed.
* *Exit signals of other processes*: the parent's and a node's end the supervisor, all others do nothing.

Source: OTP supervisor.erl for strategies, restart types, intensity, shutdown in reverse order; differs: a
plain process function has no init to wait for; an actor whose init fails counts as a child that ended, and
an init has a deadline; a supervisor answers while its children start; there is a back-off; the loss of a
peer does not count against the intensity.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

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
from fleetlm.processes.functions import process_function
from fleetlm.processes.info import ChildInfo
from fleetlm.processes.running import ProcessFunction
from fleetlm.records import Record
from fleetlm.seconds import check_pauses, check_seconds, check_timeout
from fleetlm.texts import text_of

log: logging.Logger = logging.getLogger("fleetlm")

SLOW_INIT_S = 5.0
"""Seconds after which an init that is not done is logged, once: a model may load for minutes, or hang."""
STARTS_PER_TURN = 64
"""Children that a supervisor starts before the loop goes on with other work: a few milliseconds' worth."""
SHUTDOWN_S = 5.0
"""Seconds that a child has to end if its `Child` does not say. Source: OTP supervisor.erl, for a worker."""
KILL_WAIT_S = 1.0
"""Seconds that a supervisor waits for the clean-up of a killed child. Then it goes on without waiting."""


MAX_NAMES_LOGGED = 8
"""Names of children in one log line."""


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
        init_s: seconds that an actor's ``init`` may take. One that takes longer is logged and killed, which
            counts as an ``init`` that failed. ``math.inf``: as long as it takes; None: `Settings.init_s`.
        local: no other node reaches it; see `Node.spawn`.

    Raises:
        ValueError: ``restart`` is not one of the three, ``init_s`` is not positive, or ``shutdown_s`` is
            negative.
        TypeError: ``function`` is none that a process can run (`Node.spawn`), or an object of an `Actor`,
            which runs only once.
    """

    name: str
    function: ProcessFunction
    args: tuple[Any, ...] = ()
    restart: Restart = "permanent"
    shutdown_s: float | None = None
    register: str | None = None
    init_s: float | None = None
    local: bool = False

    __fleetlm_local__: ClassVar[bool] = True
    """A child holds a function, so it is for supervisors of its own node and never encoded."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "function", process_function(self.function))
        if self.restart not in RESTARTS:
            raise ValueError(f"child {self.name!r}: unknown restart {self.restart!r}; use one of {RESTARTS}")
        check_timeout(self.init_s, f"child {self.name!r}: init_s", above=0)
        check_timeout(self.shutdown_s, f"child {self.name!r}: shutdown_s", least=0)
        if isinstance(self.function, Actor):
            cls = type(self.function).__qualname__
            raise TypeError(f"an actor object runs once: Child({self.name!r}, {cls}, args=(...))")


@dataclass(eq=False, slots=True)
class _ChildState:
    """One child of a running supervisor."""

    spec: Child
    pid: Pid | None = None
    """None while it does not run."""
    row: _Row | None = None
    """The row that will start it, or that waits for its init; None: it is not to be started."""
    init_began: float | None = None
    """When its init began, on the loop's clock; None: it is not in its init."""
    clock: asyncio.TimerHandle | None = None
    """Sends the next `_InitClock`."""
    too_late: str = ""
    """Why it was killed in its init, as its exit reason; empty: it was not."""
    asked: Call | None = None
    """The call that started it and is answered when its init is done."""
    is_new: bool = False
    """Whether ``asked`` added it, so that it is forgotten if it cannot be started."""
    restarts: int = 0
    """How often it was restarted."""


@dataclass(eq=False, slots=True)
class _Row:
    """Children that start one after the other. As a message to the supervisor itself: go on."""

    names: deque[str]
    """Those that are still to be started; one whose `_ChildState.row` is another one is passed over."""
    left: int
    """How many of them are to be started, the one in its init included."""
    timer: asyncio.TimerHandle | None = None
    """Runs during the pause before the first one."""
    starting: _ChildState | None = None
    """The child whose init must end before the next one is started."""


class _InitDone(Record):
    """A message to the supervisor itself: the init of this process is done."""

    pid: Pid


class _InitClock(Record):
    """A message to the supervisor itself: look how long the init of this process takes."""

    pid: Pid


class Supervisor:
    """A process function that supervises children; spawn it, or make it the function of a `Child`.

    It answers calls from any node: ``"which_children"`` (name → pid or None), ``"count_children"``, and
    ``("terminate_child" | "restart_child" | "delete_child", name)``; from its own node also
    ``("start_child", Child(...))``. It answers while its children start, too; a call that starts a child
    is answered when the init of the child is done.

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
        ValueError: two children have one name, the strategy is unknown, or a time is out of its range.
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
        check_seconds(period_s, "period_s", above=0)
        check_pauses(backoff_s, "backoff_s")
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
        self._by_pid: dict[Pid, _ChildState] = {}
        """The children that run."""
        self._intensity = Intensity(plan.max_restarts, plan.period_s)
        self._backoff = Backoff(*plan.backoff_s)
        self._loop = asyncio.get_running_loop()
        self._init_s = process.node.settings.init_s
        self.restarts = 0
        process._children = self  # noqa: SLF001  # for `Node.supervisors`
        self._taps = process._services.taps  # noqa: SLF001  # the supervisor is part of the runtime

    @property
    def count(self) -> int:
        """Implement `Children`."""
        return len(self._children)

    def infos(self, most: int | None = None) -> list[ChildInfo]:
        """Implement `Children`; see `Node.supervisors`."""
        return [self._describe(name, child) for name, child in islice(self._children.items(), most)]

    def _describe(self, name: str, child: _ChildState) -> ChildInfo:
        spec, pid = child.spec, child.pid
        info = None if pid is None else self._process.node.process_info(pid)
        if info is not None:
            state = info.state if child.init_began is None else "starting"
            return ChildInfo(name, pid, info.runs, spec.restart, state, child.restarts)
        runs = _get_function_name(spec)
        if child.row is None:
            return ChildInfo(name, None, runs, spec.restart, "not running", child.restarts)
        timer = child.row.timer
        pausing = timer is not None and timer.when() > self._loop.time()
        return ChildInfo(
            name, None, runs, spec.restart, "restarting" if pausing else "queued", child.restarts
        )

    async def run(self) -> None:
        """Start the children, take messages until something ends the supervisor, and end the children."""
        process = self._process
        process.trap_exit = True
        try:
            first = self._make_row(self._children)
            self._go_on(first, is_first=True)
            async for message in process.mailbox:
                match message:
                    case Exit(pid=pid, reason=reason):
                        await self._take_exit(pid, reason)
                    case _Row():
                        self._go_on(message, is_first=message is first)
                    case _InitDone(pid):
                        self._take_init_done(pid)
                    case _InitClock(pid):
                        self._check_init(pid)
                    case Call(message=request):
                        await self._answer(message, request)
        finally:
            await self._end(list(self._children))

    # Starting.

    def _make_row(self, names: Iterable[str]) -> _Row:
        """Take these children out of their rows and into a new one. `_go_on` begins to start them."""
        row = _Row(deque(names), 0)
        row.left = len(row.names)
        for name in row.names:
            child = self._children[name]
            if child.row is not None:
                self._leave_row(child)
            child.row = row
        return row

    def _leave_row(self, child: _ChildState) -> _Row | None:
        """Take a child out of its row: it was started, it has ended, or something else starts or ends it.

        Returns:
            The row, if it waited for the init of this child, and so must go on.
        """
        row, child.row, child.init_began = child.row, None, None
        if child.clock is not None:
            child.clock.cancel()
            child.clock = None
        if row is None:
            return None
        row.left -= 1
        if row.left == 0 and row.timer is not None:
            row.timer.cancel()
        if row.starting is not child:
            return None
        row.starting = None
        return row

    def _go_on(self, row: _Row, *, is_first: bool = False) -> None:
        """Start the next children of a row, up to one whose init must be waited for.

        If one cannot be started, it and the rest are tried again after a pause.

        Raises:
            AlreadyRegistered: the name of a child of the first row has an owner.
        """
        for _ in range(STARTS_PER_TURN):
            if row.starting is not None or not row.names:
                return
            name = row.names.popleft()
            child = self._children.get(name)
            if child is None or child.row is not row:
                continue
            try:
                self._start(child, row)
            except FleetError as error:
                if is_first:
                    raise
                if self._refuse(child, error):
                    continue
                log.warning("supervisor %s cannot start %s: %s", self._get_name(), name, error)
                pause_s = max(self._plan.backoff_s[0], self._backoff.pause_s(name, self._loop.time(), error))
                row.names.appendleft(name)
                row.timer = self._loop.call_later(pause_s, self._process.mailbox.put, row)
                return
        self._loop.call_soon(self._process.mailbox.put, row)

    def _start(self, child: _ChildState, row: _Row) -> None:
        """Start a child, and let its row wait for the init of an actor, since later children may need it.

        Raises:
            AlreadyRegistered: another process has its name.
        """
        spec = child.spec
        function: Any = spec.function
        is_actor = isinstance(function, type) and issubclass(function, Actor)
        if is_actor:
            ready: asyncio.Future[bool] = self._loop.create_future()
            ready.add_done_callback(lambda ready: self._tell_init_done(ready, pid))
            function = Starting(function, ready)
        options: dict[str, Any] = {"name": spec.register, "local": spec.local}
        child.pid = pid = self._process.spawn_link(function, *spec.args, **options)
        self._by_pid[pid] = child
        if is_actor:
            row.starting = child
            child.init_began, child.too_late = self._loop.time(), ""
            self._set_clock(child, min(SLOW_INIT_S, self._get_init_s(child)))
        else:
            self._leave_row(child)
            self._confirm(child)

    def _tell_init_done(self, ready: asyncio.Future[bool], pid: Pid) -> None:
        """Tell the supervisor that an init is done. It hears of one that failed by an `Exit`."""
        if not ready.cancelled() and ready.result():
            self._process.mailbox.put(_InitDone(pid))

    def _take_init_done(self, pid: Pid) -> None:
        """Let the row of a child whose init is done go on."""
        child = self._by_pid.get(pid)
        if child is not None and child.init_began is not None:
            row = self._leave_row(child)
            self._confirm(child)
            if row is not None:
                self._go_on(row)

    def _get_init_s(self, child: _ChildState) -> float:
        """Return the seconds that the init of a child may take."""
        return self._init_s if child.spec.init_s is None else child.spec.init_s

    def _set_clock(self, child: _ChildState, delay_s: float) -> None:
        """Look again after ``delay_s`` seconds how long the init of a child takes."""
        assert child.pid is not None, "it is in its init"
        child.clock = self._loop.call_later(delay_s, self._process.mailbox.put, _InitClock(child.pid))

    def _check_init(self, pid: Pid) -> None:
        """Log an init that takes long; kill a child whose init has not ended by its deadline."""
        child = self._by_pid.get(pid)
        if child is None or child.init_began is None:
            return
        took_s, limit_s = self._loop.time() - child.init_began, self._get_init_s(child)
        what = f"init of {child.spec.name} ({_get_function_name(child.spec)}, {pid})"
        cure = "Child.init_s and Settings.init_s set this deadline"
        if took_s < limit_s - 0.001:  # A timer may fire a little early.
            ends = "it has no deadline" if limit_s == math.inf else f"it has {limit_s:g} s"
            log.warning(
                "supervisor %s: %s is not done after %.3g s; %s. The children after it start when it is done",
                self._get_name(), what, took_s, ends,
            )  # fmt: skip
            if limit_s != math.inf:
                self._set_clock(child, limit_s - took_s)
            return
        log.error("supervisor %s: %s was not done within %g s and is killed; %s",
                  self._get_name(), what, limit_s, cure)  # fmt: skip
        child.too_late = f"init was not done within {limit_s:g} s"
        self._process.exit(pid, "kill")

    def _confirm(self, child: _ChildState) -> None:
        """Answer the call that started a child, if one did."""
        call, child.asked, child.is_new = child.asked, None, False
        if call is not None:
            call.reply(child.pid)

    def _refuse(self, child: _ChildState, error: FleetError) -> bool:
        """Fail the call that started a child, if one did. Returns whether the child is forgotten."""
        call, child.asked = child.asked, None
        if call is not None:
            call.fail(error)
        if child.is_new:
            self._leave_row(child)
            self._remove(child)
        return child.is_new

    # Ends of children, and restarts.

    async def _take_exit(self, pid: Pid, reason: Any) -> None:
        """Handle an exit signal: of a child that ended, of the parent or a node, or of another process."""
        child = self._by_pid.pop(pid, None)
        if child is None:
            if pid.number == 0 or pid == self._process.parent:
                raise ProcessExit(reason)
            return
        child.pid = None
        if child.init_began is not None:
            reason = child.too_late or reason
        row = self._leave_row(child)
        if not self._refuse(child, InitFailed(child.spec.name, reason)):
            if wants_restart(child.spec.restart, reason):
                await self._restart(child.spec.name, reason)
            elif child.spec.restart == "temporary":
                self._remove(child)
        if row is not None:
            self._go_on(row)

    async def _restart(self, name: str, reason: Any) -> None:
        """Restart a child that ended, and others as the strategy says, or give up. Raises: ProcessExit."""
        me, now = self._get_name(), self._loop.time()
        if not self._intensity.allows(now, reason):
            why = (
                f"supervisor {me} gave up: more than {self._plan.max_restarts} restarts in "
                f"{self._plan.period_s:g} s, the last of {name} ({text_of(reason)})"
            )
            log.error("%s", why)
            if self._taps.supervisor_gave_up is not None:
                self._taps.supervisor_gave_up(me, why)
            self._process._gave_up = why  # noqa: SLF001  # the node of a root may stop
            raise ProcessExit("shutdown")
        names = affected(self._plan.strategy, self._children, name)
        pause_s = self._backoff.pause_s(name, now, reason)
        log.info(
            "supervisor %s: %s ended (%s); starting %s in %.3g s",
            me, name, text_of(reason), _list(names), pause_s,
        )  # fmt: skip
        await self._end([other for other in names if other != name])
        self._count_restarts(me, names, name, text_of(reason))
        row = self._make_row(each for each in names if each in self._children)
        if pause_s:
            row.timer = self._loop.call_later(pause_s, self._process.mailbox.put, row)
        else:
            self._go_on(row)

    def _count_restarts(self, me: str, names: list[str], ended: str, reason: str) -> None:
        """Count and tell that children are started again with one that ended; temporary ones are gone."""
        for child in filter(None, map(self._children.get, names)):
            child.restarts += 1
            self.restarts += 1
            if self._taps.child_restarted is not None:
                name = child.spec.name
                self._taps.child_restarted(me, name, reason if name == ended else f"restarted with {ended}")

    def _remove(self, child: _ChildState) -> None:
        """Forget a child for good."""
        name = child.spec.name
        if self._children.get(name) is child:
            del self._children[name]
            self._backoff.forget(name)

    async def _end(self, names: list[str]) -> None:
        """End these children in reverse order, and forget temporary ones."""
        for name in reversed(names):
            child = self._children[name]
            await self._end_one(child)
            if child.spec.restart == "temporary":
                self._remove(child)

    async def _end_one(self, child: _ChildState) -> None:
        """Tell a child to end, wait for it, and kill it if its time is up. Its `Exit` will do nothing."""
        began = child.init_began
        row = self._leave_row(child)
        if row is not None:
            self._process.mailbox.put(row)
        pid, child.pid = child.pid, None
        if pid is None:
            return
        del self._by_pid[pid]
        if began is not None:
            log.info(
                "supervisor %s ends %s, whose init is not done after %.3g s",
                self._get_name(), child.spec.name, self._loop.time() - began,
            )  # fmt: skip
            self._refuse(child, InitFailed(child.spec.name, "it was ended before its init was done"))
        node, process, shutdown_s = self._process.node, self._process, _get_shutdown_s(child.spec)
        process.unlink(pid)
        if shutdown_s != 0:
            process.exit(pid, "shutdown")
            if await node.join(pid, shutdown_s):
                return
        process.exit(pid, "kill")
        await node.join(pid, KILL_WAIT_S)

    # Calls.

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
                self._start_for(call, self._children[name])
            case ("delete_child", str(name)) if name in self._children and not self._children[name].pid:
                self._leave_row(self._children[name])
                self._remove(self._children[name])
                call.reply(True)
            case ("start_child", Child() as spec) if spec.name not in self._children:
                self._children[spec.name] = child = _ChildState(spec, is_new=True)
                self._start_for(call, child)
            case _:
                call.fail(InvalidName(repr(request)[:200], self._explain(request)))

    def _start_for(self, call: Call, child: _ChildState) -> None:
        """Start a child for a call, which is answered when its init is done; or at once if it runs."""
        if child.pid is not None:
            call.reply(child.pid)
            return
        child.asked = call
        self._go_on(self._make_row([child.spec.name]))

    def _explain(self, request: Any) -> str:
        """Say why a request cannot be done."""
        match request:
            case ("terminate_child" | "restart_child", str()):
                return "there is no such child"
            case ("delete_child", str(name)):
                return "it runs; terminate it first" if name in self._children else "there is no such child"
            case ("start_child", Child(name=name)):
                child = self._children[name]
                if child.pid is None:
                    return "a child of that name exists; restart or delete it"
                return "it runs already" if child.init_began is None else "it is in its init already"
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

    def _get_name(self) -> str:
        return str(self._process.name or self._process.pid)


def _get_function_name(spec: Child) -> str:
    name: str = getattr(spec.function, "__qualname__", type(spec.function).__qualname__)
    return name


def _list(names: list[str]) -> str:
    """Name the first few children, for a log line."""
    rest = len(names) - MAX_NAMES_LOGGED
    return ", ".join(names[:MAX_NAMES_LOGGED]) + (f" and {rest} more" if rest > 0 else "")


def _get_shutdown_s(spec: Child) -> float | None:
    """Return the seconds that a child has to end; None: as long as it takes."""
    if spec.shutdown_s is None:
        return None if isinstance(spec.function, Supervisor) else SHUTDOWN_S
    return None if spec.shutdown_s == math.inf else spec.shutdown_s
