"""What a process owns besides its mailbox and ends with it: timers, and tasks that work for it.

**Timers** put a message into the mailbox of their own process, so that order, and the rule that a process
does one thing after the other, hold for them too. They hold no task. The message comes past the limit of the
mailbox, as signals do: the process cannot wait for itself, and `Settings.max_timers` bounds them.

A repeated timer (`RepeatedTimer`) counts its times from the moment it was set, ``start + n * interval``, so
late ticks do not shift later ones. It has at most one message in the mailbox. A tick that finds the former
message still waiting is left out, so a slow process gets fewer messages and no backlog. Whether the former
one was taken is a comparison of positions, `Mailbox.taken`. After the loop was blocked, the times that have
passed are left out in the same way.

**Tasks** (`Owned.create_task`) are as much a part of the process as its own function. A task that raises
ends the process, whether somebody awaits it or not: as in `asyncio.TaskGroup`, nobody has to think of looking
at the result. `ProcessExit` ends it with that reason. When the process ends for any cause, its tasks are
cancelled and have `Settings.terminate_s` seconds to clean up (`Owned.end_tasks`); an actor's ``terminate``
runs after them. A kill cancels them and waits for nothing.

Source: erlang:send_after/3 and timer:send_interval/2; differs: timers end with their process, and a repeated
one never piles up, as Go's time.Ticker. asyncio.TaskGroup for tasks; differs: the group is the process.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from fleetlm.messaging.deadline import SERVING
from fleetlm.processes.boundary import ORDERS, Contained, error_of, exit_in, is_from_signal, original
from fleetlm.seconds import check_seconds
from fleetlm.texts import loggable

if TYPE_CHECKING:
    from fleetlm.processes.running import RunningProcess

log: logging.Logger = logging.getLogger("fleetlm")

T = TypeVar("T")

_NO_CONTEXT = contextvars.Context()
"""For callbacks that need no context variables: otherwise each would hold a copy of its creator's."""


class Timer:
    """A message that a process gets later, once. Made by `Process.send_after`."""

    __slots__ = ("_handle", "_message", "_owned")

    def __init__(self, owned: Owned, message: Any) -> None:
        self._owned = owned
        self._message = message
        self._handle: asyncio.TimerHandle | None = None

    @property
    def active(self) -> bool:
        """Whether a message is still to come."""
        return self._handle is not None

    def cancel(self) -> bool:
        """Stop this timer. A message that waits in the mailbox already stays there.

        Returns:
            False if it was not active: it was cancelled, it has sent its only message, or its process ended.
        """
        if self._handle is None:
            return False
        self._handle.cancel()
        self._end()
        return True

    def _set(self, when: float) -> None:
        self._handle = self._owned.loop.call_at(when, self._fire, context=_NO_CONTEXT)

    def _fire(self) -> None:
        message = self._message
        self._end()
        self._owned.process.mailbox.put(message)

    def _end(self) -> None:
        self._handle = None
        self._message = None
        self._owned.timers.pop(self, None)


class RepeatedTimer(Timer):
    """A message that a process gets again and again. Made by `Process.send_every`."""

    __slots__ = ("_count", "_interval_s", "_last", "_start")

    def __init__(self, owned: Owned, message: Any, interval_s: float) -> None:
        super().__init__(owned, message)
        self._interval_s = interval_s
        self._start = owned.loop.time()
        self._count = 1
        """Intervals from the start to the next tick."""
        self._last = -1
        """Position of the last message among all that ever came to the mailbox."""
        self._set(self._start + interval_s)

    def _fire(self) -> None:
        mailbox = self._owned.process.mailbox
        if self._last < mailbox.taken:
            self._last = mailbox.taken + len(mailbox)
            mailbox.put(self._message)
        passed = math.floor((self._owned.loop.time() - self._start) / self._interval_s)
        self._count = max(self._count, passed) + 1
        self._set(self._start + self._count * self._interval_s)


class Owned:
    """The timers and tasks of one process. Made when the process first asks for one of them.

    Args:
        process: the process.
        loop: the loop that runs it.
        max_timers: limit of active timers.
    """

    __slots__ = ("_max_timers", "loop", "process", "tasks", "timers")

    def __init__(self, process: RunningProcess, loop: asyncio.AbstractEventLoop, max_timers: int) -> None:
        self.process: RunningProcess = process
        self.loop: asyncio.AbstractEventLoop = loop
        self.timers: dict[Timer, None] = {}
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self._max_timers = max_timers

    # Timers.

    def send_after(self, delay_s: float, message: Any) -> Timer:
        """See `Process.send_after`."""
        check_seconds(delay_s, "delay_s", least=0, finite=True)
        timer = self._add(Timer(self, message))
        timer._set(self.loop.time() + delay_s)
        return timer

    def send_every(self, interval_s: float, message: Any) -> Timer:
        """See `Process.send_every`."""
        check_seconds(interval_s, "interval_s", above=0, finite=True)
        return self._add(RepeatedTimer(self, message, interval_s))

    def _add(self, timer: Timer) -> Timer:
        if len(self.timers) >= self._max_timers or self.process._is_gone:
            timer.cancel()
            if self.process._is_gone:
                raise RuntimeError(f"process {self.process.pid} has ended, so it takes no timer")
            raise RuntimeError(
                f"process {self.process.name or self.process.pid} has {len(self.timers):,} timers already "
                "(Settings.max_timers): cancel those that are not needed, or use one send_every"
            )
        self.timers[timer] = None
        return timer

    # Tasks.

    def create_task(self, coroutine: Coroutine[Any, Any, T], name: str | None) -> asyncio.Task[T]:
        """See `Process.create_task`."""
        process = self.process
        if process._is_gone or process._is_ending:
            coroutine.close()
            raise RuntimeError(f"process {process.name or process.pid} is ending, so it starts no task")
        context = contextvars.copy_context()
        context.run(SERVING.set, None)  # It works for the process, not for the call that is being served.
        shown = name or getattr(coroutine, "__qualname__", type(coroutine).__qualname__)
        task = self.loop.create_task(
            _contained(coroutine), name=f"{shown} of {process.pid.number}", context=context
        )
        self.tasks[task] = None
        task.add_done_callback(self._handle_task_end, context=_NO_CONTEXT)
        return task

    def _handle_task_end(self, task: asyncio.Task[Any]) -> None:
        """Forget a task; end the process if the task has failed."""
        self.tasks.pop(task, None)
        process = self.process
        if task.cancelled() and task.cancelling():
            return
        error = error_of(task)  # A `CancelledError` of what the task awaited, or what it raised.
        if error is None:
            return
        leaving = exit_in(error)
        if leaving is not None:
            process._end_with(leaving.reason)
        elif process._is_gone or process._is_ending or process._is_closing:
            log.warning(
                "%s raised while its process ended", task.get_name(), exc_info=loggable(original(error))
            )
        else:
            process._crash(error, task.get_name())

    async def end_tasks(self, limit_s: float) -> None:
        """Cancel the tasks and wait until they have ended, at most ``limit_s`` seconds."""
        if not self.tasks:
            return
        for task in self.tasks:
            task.cancel()
        _, stuck = await asyncio.wait(self.tasks, timeout=limit_s)
        if stuck:
            log.warning(
                "%d task(s) of %s ignore their cancellation and are left behind: %s",
                len(stuck), self.process.name or self.process.pid,
                ", ".join(sorted(task.get_name() for task in stuck)[:10]),
            )  # fmt: skip

    def close(self) -> None:
        """The process is gone: cancel what is left."""
        for timer in list(self.timers):
            timer.cancel()
        for task in list(self.tasks):
            task.cancel()


async def _contained(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine; a SystemExit in it fails the task, not the event loop."""
    try:
        return await coroutine
    except ORDERS as error:
        if is_from_signal(error):
            raise
        raise Contained(error) from error
