"""The processes of this node: tasks with mailboxes, their names, and what is left when they end."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from fleetlm.core.process_table import ProcessTable
from fleetlm.errors import ProcessExit
from fleetlm.messages import Crash
from fleetlm.messaging.deadline import SERVING
from fleetlm.process import ChildInfo, Process, ProcessFunction, ProcessInfo
from fleetlm.texts import text_of

if TYPE_CHECKING:
    from fleetlm.ids import Pid
    from fleetlm.messaging.mailbox import Mailbox
    from fleetlm.node import Node
    from fleetlm.process import ProcessObject
    from fleetlm.processes.signals import Signals

log = logging.getLogger("fleetlm")

_NO_CONTEXT = contextvars.Context()
"""For callbacks that need none: each would hold a copy of its own."""
MAX_TRACEBACK_CHARS = 16_384
"""Of a crash's traceback, from its end: it travels to whoever links or monitors."""


class LocalProcesses:
    """Spawns, names and buries."""

    signals: Signals
    """Set by the node, before anything is spawned."""
    on_exited: Callable[[Pid], None] = staticmethod(lambda _: None)
    """Called with the pid of a process that is no more, before anybody else hears of it."""

    def __init__(self, node: Node, name: str, incarnation: int, mailbox_limit: int) -> None:
        self.table = ProcessTable(name, incarnation)
        self.boxes: dict[int | str, Mailbox] = {}
        """Number or name → mailbox: one look-up for each message that arrives."""
        self._node = node
        self._mailbox_limit = mailbox_limit
        self._processes: dict[int, Process] = {}
        self._tasks: dict[asyncio.Task[Any], Process] = {}
        self._on_end = self._ended

    def spawn(self, function: ProcessFunction, args: tuple[Any, ...], name: str | None) -> Pid:
        """Start a process. Raises: AlreadyRegistered, InvalidName; nothing was started."""
        loop = asyncio.get_running_loop()  # First: in a thread without one nothing must be entered.
        pid = self.table.spawned(name)
        runs = getattr(function, "__qualname__", type(function).__qualname__)
        process = Process(self._node, self.signals, pid, runs, self._mailbox_limit)
        self._processes[pid.number] = process
        self.boxes[pid.number] = process.mailbox
        if name is not None:
            self.boxes[name] = process.mailbox
        context = None
        if SERVING.get() is not None:  # What it asks for is not part of the call that spawned it.
            context = contextvars.copy_context()
            context.run(SERVING.set, None)
        course = _course(function, process, args)
        task = loop.create_task(course, name=name or runs, context=context)
        self._tasks[task] = process
        task.add_done_callback(self._on_end, context=_NO_CONTEXT)
        process.task = task
        return pid

    def register(self, name: str, pid: Pid) -> None:
        """Name a process. Raises: as `ProcessTable.register`."""
        self.table.register(name, pid)
        self.boxes[name] = self.boxes[pid.number]

    def unregister(self, name: str) -> bool:
        """Take a name away; False if nobody had it."""
        self.boxes.pop(name, None)
        return self.table.unregister(name)

    def alive(self, number: int) -> bool:
        """Whether that number is a process of this node."""
        return number in self._processes

    def by_number(self, number: int) -> Process | None:
        """A living process of this node."""
        return self._processes.get(number)

    def process(self, pid: Pid) -> Process | None:
        """A living process of this node."""
        known = self._processes.get(pid.number)
        return known if known is not None and known.pid == pid else None

    def task_of(self, pid: Pid) -> asyncio.Task[None] | None:
        """What still runs of a process of this node, a killed one's clean-up included."""
        if pid.incarnation != self.table.incarnation or pid.node != self.table.node:
            return None
        process = self._processes.get(pid.number)
        if process is not None:
            return process.task
        return next((task for task, other in self._tasks.items() if other.pid == pid), None)

    def info(self) -> list[ProcessInfo]:
        """All processes, by number."""
        return [process.info() for process in self._processes.values()]

    def supervisors(self) -> dict[Pid, list[ChildInfo]]:
        """Each supervisor and its children, by number."""
        every = self._processes.values()
        return {process.pid: process.children() for process in every if process.children is not None}

    @property
    def open_calls(self) -> int:
        """Calls that processes took and did not answer yet, and those that still wait."""
        return sum(p.open_calls + len(p.mailbox) for p in self._processes.values())

    def stop_process(self, number: int, reason: Any, *, at_once: bool = False) -> None:
        """Let a process end with this reason, unless another one is ending it already.

        Its coroutine gets `asyncio.CancelledError` where it waits. ``at_once`` buries it before its
        clean-up has run: that is what cannot be trapped.
        """
        process = self._processes.get(number)
        if process is None:
            return
        process.end_with(reason, again=at_once)
        if at_once:
            self._bury(process, reason)

    async def stop(self, trees_s: float = 0.0) -> None:
        """End every process with reason ``"shutdown"`` and wait for its end.

        Supervision trees first, the last one first, each child in its turn and within its deadline, as long
        as ``trees_s`` seconds last; then all that is left at a time. Source: OTP init:stop/0.
        """
        await self._end_trees(trees_s)
        while self._tasks:
            tasks = list(self._tasks)
            for process in list(self._processes.values()):
                process.end_with("shutdown")
            living = {process.task for process in self._processes.values()}
            for task in tasks:
                if task not in living:  # Killed, and not done with it.
                    task.cancel()
            await asyncio.wait(tasks, timeout=1.0)
            if any(process.closing for process in self._processes.values()):
                await asyncio.wait(tasks, timeout=self._node.settings.terminate_s)
            stuck = [task for task in tasks if not task.done()]
            if stuck:
                log.warning("%d process(es) ignore their cancellation and are left behind", len(stuck))
                return

    async def _end_trees(self, limit_s: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        node = self.table.pid(0)
        every = reversed(self._processes.values())
        for root in [process for process in every if process.children and process.parent is None]:
            if root.task is not None and loop.time() < until:
                self.signals.exit(node, root.pid, "shutdown")
                await asyncio.wait({root.task}, timeout=until - loop.time())

    def _ended(self, task: asyncio.Task[Any]) -> None:
        process = self._tasks.pop(task)
        error = None if task.cancelled() else task.exception()
        if process.pid.number not in self._processes:
            return  # Killed: it has been buried before its task ended.
        if error is not None and not isinstance(error, ProcessExit):
            log.error("process %s (%s) crashed", process.name or process.pid, process.runs, exc_info=error)
        self._bury(process, exit_reason(process, task.cancelled(), error))

    def _bury(self, process: Process, reason: Any) -> None:
        number = process.pid.number
        process.exit_reason = reason
        name = self.table.exited(number)
        del self._processes[number]
        self.boxes.pop(number, None)
        if name is not None:
            self.boxes.pop(name, None)
        process.ended(text_of(reason))
        self.on_exited(process.pid)
        self.signals.exited(process, reason)


def _course(
    function: ProcessFunction, process: Process, args: tuple[Any, ...]
) -> Coroutine[Any, Any, object]:
    """What the task of a process runs: the function's own coroutine, where it is one.

    A layer around it would cost each process 250 bytes.
    """
    if isinstance(function, type):
        return _made(function, process, args)
    try:
        course = function(process, *args)
    except Exception as error:  # noqa: BLE001  # wrong arguments, say: it is the process that crashes
        return _raising(error)
    return course if isinstance(course, CoroutineType) else _awaiting(course)


async def _made(cls: type[ProcessObject], process: Process, args: tuple[Any, ...]) -> None:
    await cls(*args)(process)


async def _awaiting(course: Awaitable[object]) -> None:
    await course


async def _raising(error: Exception) -> None:
    raise error


def exit_reason(process: Process, cancelled: bool, error: BaseException | None) -> Any:
    """For what a process has ended, or ends."""
    if process.ending:
        return process.exit_reason
    if cancelled:
        return "killed"
    if error is None:
        return "normal"
    if isinstance(error, ProcessExit):
        return error.reason
    text = "".join(traceback.format_exception(error))[-MAX_TRACEBACK_CHARS:]
    return Crash(type(error).__name__, text_of(error), text)
