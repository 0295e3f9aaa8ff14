"""The processes of this node: tasks with mailboxes, their names, and what is left when they end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from fleetlm.core.processes import ProcessTable
from fleetlm.process import Process, ProcessFunction, ProcessInfo

if TYPE_CHECKING:
    from fleetlm.ids import Pid
    from fleetlm.mailbox import Mailbox
    from fleetlm.node import Node

log = logging.getLogger("fleetlm")


class LocalProcesses:
    """Spawns, names and buries."""

    def __init__(self, node: Node, name: str, incarnation: int, mailbox_limit: int) -> None:
        self.table = ProcessTable(name, incarnation)
        self.boxes: dict[int | str, Mailbox] = {}
        """Number or name → mailbox: one look-up for each message that arrives."""
        self._node = node
        self._mailbox_limit = mailbox_limit
        self._processes: dict[int, Process] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}

    def spawn(self, function: ProcessFunction, args: tuple[Any, ...], name: str | None) -> Pid:
        """Start a process. Raises: AlreadyRegistered, InvalidName; nothing was started."""
        pid = self.table.spawned(name)
        runs = getattr(function, "__qualname__", type(function).__qualname__)
        process = Process(self._node, pid, runs, self._mailbox_limit)
        self._processes[pid.number] = process
        self.boxes[pid.number] = process.mailbox
        if name is not None:
            self.boxes[name] = process.mailbox
        run = self._run(process, function, args)
        task = asyncio.get_running_loop().create_task(run, name=f"fleetlm {name or runs} {pid.number}")
        self._tasks[task] = None
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

    def process(self, pid: Pid) -> Process | None:
        """A living process of this node."""
        known = self._processes.get(pid.number)
        return known if known is not None and known.pid == pid else None

    def info(self) -> list[ProcessInfo]:
        """All processes, by number."""
        return [process.info() for process in self._processes.values()]

    @property
    def open_calls(self) -> int:
        """Calls that processes took and did not answer yet, and those that still wait."""
        return sum(p.open_calls + len(p.mailbox) for p in self._processes.values())

    async def stop(self) -> None:
        """Cancel every process and wait for its end."""
        while self._tasks:
            tasks = list(self._tasks)
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
        pid = process.pid
        name = self.table.exited(pid.number)
        del self._processes[pid.number]
        self.boxes.pop(pid.number, None)
        if name is not None:
            self.boxes.pop(name, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("process %s (%s) crashed", name or pid, process.runs, exc_info=error)
        reason = "cancelled" if task.cancelled() else "normal"
        process.ended(reason if error is None else f"{type(error).__name__}: {error}")
