"""The processes of this node: tasks with mailboxes, their names, and what is left when they end."""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import TYPE_CHECKING, Any

from fleetlm.core.processes import ProcessTable
from fleetlm.errors import ProcessExit
from fleetlm.messages import Crash
from fleetlm.process import Process, ProcessFunction, ProcessInfo

if TYPE_CHECKING:
    from fleetlm.ids import Pid
    from fleetlm.mailbox import Mailbox
    from fleetlm.node import Node
    from fleetlm.signals import Signals

log = logging.getLogger("fleetlm")

MAX_TRACEBACK_CHARS = 16_384
"""Of a crash's traceback, from its end: it travels to whoever links or monitors."""


class LocalProcesses:
    """Spawns, names and buries."""

    signals: Signals
    """Set by the node, before anything is spawned."""

    def __init__(self, node: Node, name: str, incarnation: int, mailbox_limit: int) -> None:
        self.table = ProcessTable(name, incarnation)
        self.boxes: dict[int | str, Mailbox] = {}
        """Number or name → mailbox: one look-up for each message that arrives."""
        self._node = node
        self._mailbox_limit = mailbox_limit
        self._processes: dict[int, Process] = {}
        self._tasks: dict[asyncio.Task[None], int] = {}

    def spawn(self, function: ProcessFunction, args: tuple[Any, ...], name: str | None) -> Pid:
        """Start a process. Raises: AlreadyRegistered, InvalidName; nothing was started."""
        pid = self.table.spawned(name)
        runs = getattr(function, "__qualname__", type(function).__qualname__)
        process = Process(self._node, self.signals, pid, runs, self._mailbox_limit)
        self._processes[pid.number] = process
        self.boxes[pid.number] = process.mailbox
        if name is not None:
            self.boxes[name] = process.mailbox
        run = self._run(process, function, args)
        task = asyncio.get_running_loop().create_task(run, name=f"fleetlm {name or runs} {pid.number}")
        self._tasks[task] = pid.number
        task.add_done_callback(lambda done: self._ended(process, done))
        process.run(task)
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
        return next((task for task, number in self._tasks.items() if number == pid.number), None)

    def info(self) -> list[ProcessInfo]:
        """All processes, by number."""
        return [process.info() for process in self._processes.values()]

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

    async def stop(self) -> None:
        """End every process with reason ``"shutdown"`` and wait for its end."""
        while self._tasks:
            tasks = list(self._tasks)
            for process in list(self._processes.values()):
                process.end_with("shutdown")
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1.0)
            stuck = [task for task in tasks if not task.done()]
            if stuck:
                log.warning("%d process(es) ignore their cancellation and are left behind", len(stuck))
                return

    async def _run(self, process: Process, function: ProcessFunction, args: tuple[Any, ...]) -> None:
        await function(process, *args)

    def _ended(self, process: Process, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if process.pid.number not in self._processes:
            return  # Killed: it has been buried before its task ended.
        if error is not None and not isinstance(error, ProcessExit):
            log.error("process %s (%s) crashed", process.name or process.pid, process.runs, exc_info=error)
        self._bury(process, _reason(process, task.cancelled(), error))

    def _bury(self, process: Process, reason: Any) -> None:
        number = process.pid.number
        name = self.table.exited(number)
        del self._processes[number]
        self.boxes.pop(number, None)
        if name is not None:
            self.boxes.pop(name, None)
        process.ended(str(reason))
        self.signals.exited(process, reason)


def _reason(process: Process, cancelled: bool, error: BaseException | None) -> Any:
    if process.ending:
        return process.exit_reason
    if cancelled:
        return "killed"
    if error is None:
        return "normal"
    if isinstance(error, ProcessExit):
        return error.reason
    text = "".join(traceback.format_exception(error))[-MAX_TRACEBACK_CHARS:]
    return Crash(type(error).__name__, str(error), text)
