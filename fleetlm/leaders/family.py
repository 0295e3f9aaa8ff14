"""The processes of a singleton on this node: its runs, and what they have spawned with a link.

A run has ended when its task has ended, and those of its family. A process that was killed is gone at once,
but its clean-up may go on; so the tasks are what counts (`Family.left`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleetlm.ids import Pid
    from fleetlm.processes.local import LocalProcesses


class Family:
    """What runs, or has run, of one singleton on this node.

    Args:
        local: the processes of the node.
    """

    def __init__(self, local: LocalProcesses) -> None:
        self._local = local
        self._pids: set[Pid] = set()
        """The runs and their descendants, as far as `_look` has seen them."""
        self._tasks: set[asyncio.Task[Any]] = set()
        """Their tasks that have not ended."""
        self.root: Pid | None = None
        """The run that was started last."""

    def started(self, pid: Pid) -> None:
        """Note a new run."""
        self.root = pid
        self._pids.add(pid)
        self._look()

    def left(self) -> set[asyncio.Task[Any]]:
        """Return the tasks that have not ended."""
        self._look()
        return self._tasks

    def kill(self, reason: str) -> None:
        """End every process of the family at once. Their clean-up may go on; see `left`."""
        self._look()
        for pid in [*self._pids]:
            process = self._local.process(pid)
            if process is not None:
                self._local.stop_process(pid.number, reason, at_once=True)

    async def ended(self, timeout_s: float) -> bool:
        """Wait until every process of the family has ended. Returns False if that took too long."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while left := self.left():
            now = loop.time()
            if now >= until:
                return False
            await asyncio.wait(left, timeout=until - now)
        return True

    def _look(self) -> None:
        """Add descendants that were spawned meanwhile, and drop tasks that have ended."""
        pids, tasks = self._pids, self._tasks
        if pids:
            for process in self._local.every():  # Parents come before their children.
                if process.pid in pids or process.parent in pids:
                    pids.add(process.pid)
                    if process._task is not None:  # noqa: SLF001  # the runtime's half
                        tasks.add(process._task)  # noqa: SLF001
        tasks.difference_update([task for task in tasks if task.done()])
        if not tasks:
            pids.clear()
