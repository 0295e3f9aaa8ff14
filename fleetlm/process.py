"""A process: a coroutine with a mailbox and a pid."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleetlm.call import Call
from fleetlm.mailbox import Mailbox

if TYPE_CHECKING:
    from fleetlm.ids import Pid
    from fleetlm.node import Node

ProcessFunction = Callable[..., Awaitable[object]]
"""What `Node.spawn` runs: a coroutine function whose first argument is its `Process`."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """What `Node.processes()` tells of one process."""

    pid: Pid
    name: str | None
    runs: str
    """Qualified name of the function."""
    mailbox: int
    """Messages waiting."""
    taken: int
    """Messages taken so far."""
    open_calls: int
    """Calls taken and not answered yet."""


class Process:
    """What a process function gets as its first argument."""

    __slots__ = ("_calls", "_task", "mailbox", "node", "pid", "runs")

    def __init__(self, node: Node, pid: Pid, runs: str, mailbox_limit: int) -> None:
        self.node = node
        self.pid = pid
        self.runs = runs
        self.mailbox = Mailbox(mailbox_limit, self._took)
        self._calls: dict[Call, None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str | None:
        """The name it is registered under, or None."""
        return self.node.name_of(self.pid)

    async def receive(self, timeout: float | None = None) -> Any:
        """The next message; see `Mailbox.get`."""
        return await self.mailbox.get(timeout)

    def info(self) -> ProcessInfo:
        """A snapshot for people."""
        return ProcessInfo(
            self.pid, self.name, self.runs, len(self.mailbox), self.mailbox.taken, len(self._calls or ())
        )

    def run(self, task: asyncio.Task[None]) -> None:
        """Bind the task that runs this process."""
        self._task = task

    def cancel(self) -> None:
        """Ask it to end: its coroutine gets `asyncio.CancelledError` where it waits."""
        if self._task is not None:
            self._task.cancel()

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task that runs it."""
        return self._task

    @property
    def open_calls(self) -> int:
        """Calls that it took and did not answer yet."""
        return len(self._calls or ())

    def ended(self, reason: str) -> None:
        """Answer every call that it leaves behind."""
        shown = str(self.pid)
        for message in self.mailbox.close():
            if type(message) is Call:
                message.no_process(shown)
        taken, self._calls = self._calls, None
        for call in taken or ():
            call.process_down(shown, reason)

    def _took(self, call: Call) -> None:
        if self._calls is None:
            self._calls = {}
        self._calls[call] = None
        call.watch(self._answered)

    def _answered(self, call: Call) -> None:
        if self._calls is not None:
            self._calls.pop(call, None)
