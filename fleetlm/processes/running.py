"""The runtime's half of a process; programs hold its subclass, `fleetlm.process.Process`.

A process is a task, a mailbox and a pid. Its states, each left once and in this order:

* **starting**: `LocalProcesses.spawn` has made it and its task has not run yet. Its name, its mailbox,
  links and monitors hold already, so a message or an exit signal that comes now finds it.
* **running**: its function runs. `LocalProcesses.process` finds it.
* **ending**: it was told to end by an exit signal, by the stop of the node, or by itself (`_end_with`).
  The first reason counts. Its task has been cancelled once; a second cancellation would cut its
  clean-up short, so only a kill cancels again. A process whose function returns or raises skips this
  state. An actor that runs ``terminate`` is also *closing*: its reason is decided, even where no
  signal came, and a later exit signal does not cancel the clean-up.
* **gone**: `LocalProcesses` has removed it. It has no name, no mailbox that can be found, no links;
  linked and monitoring processes have been told (`LocalProcesses` says in which order). Normally its
  task ended first. A killed process is removed at once, and its task may still clean up; ``_is_gone``
  is then true.

Calls: a process answers for every call that it takes from its mailbox, from `_accept_call` until the call
has been answered, given up by its caller, or taken by another process. When it ends, `_mark_gone` answers
what is left, so no caller waits for a process that is gone: `NoProcess` for calls that it never took (they
did not run), `ProcessDown` for calls that it took (they may have run).

Names: attributes that a program may use are public, since `Process` shows them. All others begin with an
underscore; the packages `processes` and `actors` use them nevertheless.

Everything here happens on the node's event loop, so there are no locks.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Container
from typing import Any, Protocol

from fleetlm.call import Call
from fleetlm.ids import Pid
from fleetlm.messaging.mailbox import Mailbox
from fleetlm.messaging.turns import Turns
from fleetlm.messaging.waits import Wait
from fleetlm.processes.boundary import crash_of, exit_in, original
from fleetlm.processes.info import ChildInfo, ProcessInfo
from fleetlm.texts import loggable, text_of
from fleetlm.wire.invocation import Invoke

log: logging.Logger = logging.getLogger("fleetlm")


class ProcessObject(Protocol):
    """An object that is a process function, such as an `Actor`."""

    def __call__(self, process: Any, /) -> Awaitable[object]:
        """Run as this `Process`."""


class AnyFunction(Protocol):
    """A function of which a type checker knows no parameters: ``Callable[..., Awaitable[object]]``.

    A function with known parameters has none of this name, so it does not fit here, and its arguments are
    checked.
    """

    def __call__(self, *, no_parameter_has_this_name: Any) -> Awaitable[object]:
        """Run as a process."""


class Attached(Protocol):
    """The timers and tasks that end with a process; `processes.owned` implements it."""

    @property
    def tasks(self) -> Container[asyncio.Task[Any]]:
        """The tasks that have not ended."""

    async def end_tasks(self, limit_s: float) -> None:
        """Cancel the tasks and wait until they have ended, at most ``limit_s`` seconds."""

    def close(self) -> None:
        """Cancel everything at once: the process is gone."""


class Children(Protocol):
    """The children of a supervisor, which it shows without being asked, since it may be busy."""

    @property
    def count(self) -> int:
        """How many children there are, those that do not run included."""

    @property
    def restarts(self) -> int:
        """How often a child has been restarted so far."""

    def infos(self, most: int | None = None) -> list[ChildInfo]:
        """Return snapshots of the first ``most`` children in the order of their start; None: of all."""


ProcessFunction = Callable[..., Awaitable[object]] | type[ProcessObject]
"""What `Node.spawn` runs: a coroutine function whose first argument is its `Process`, or a class whose
objects are such functions; each process makes an object of its own."""


def plain_class(function: Any) -> Any:
    """Return the class below a generic alias, ``Cache`` for ``Cache[int]``, and anything else as it is."""
    origin = getattr(function, "__origin__", None)
    return origin if isinstance(origin, type) else function


class RunningProcess(ABC):
    """One process of this node, as the runtime sees it."""

    __slots__ = (
        "_beside", "_calls", "_children", "_exit_reason", "_gave_up", "_is_closing", "_is_ending",
        "_is_gone", "_is_starting", "_must_finish", "_on_answered", "_owned", "_task", "_waits_for",
        "mailbox", "parent", "pid", "runs",
    )  # fmt: skip

    def __init__(self, pid: Pid, runs: str, mailbox_limit: int, turns: Turns) -> None:
        self.pid: Pid = pid
        self.parent: Pid | None = None
        """The process that spawned it with `Process.spawn_link` or `Process.spawn_link_at`."""
        self.runs: str = runs
        """Qualified name of the function that it runs."""
        self.mailbox: Mailbox = Mailbox(mailbox_limit, self, turns)
        self._waits_for: Wait | None = None
        """What its task waits for: a reply, or room for a message."""
        self._beside: Container[asyncio.Task[None]] | None = None
        """Set by an actor: the tasks of its concurrent handlers."""
        self._task: asyncio.Task[Any] | None = None
        """The task that runs it; None only while it is being spawned."""
        self._is_starting = False
        """Whether it is an actor whose init is not done."""
        self._is_ending = False
        """Whether it was told to end."""
        self._exit_reason: Any = None
        """Why it was told to end; once it is gone, why it has ended."""
        self._is_closing = False
        """Whether its reason is decided and it cleans up, so that only ``"kill"`` cuts it short."""
        self._must_finish = False
        """Whether it does something that only ``"kill"`` interrupts; the end waits until it is done."""
        self._is_gone = False
        """Whether it has been removed; its task may still run."""
        self._calls: dict[Call, None] | None = None
        """Calls that it took and has not answered yet; None until the first one."""
        self._on_answered: Callable[[Call], None] | None = None
        """Set by an actor: called with each call that it took and that needs no answer any more."""
        self._owned: Attached | None = None
        """Its timers and tasks; None until it has the first one."""
        self._children: Children | None = None
        """Set by a supervisor: its children."""
        self._gave_up = ""
        """Set by a supervisor that gives up: why."""

    @property
    @abstractmethod
    def name(self) -> str | None:
        """The name under which this process is registered on its node, or None."""

    def info(self) -> ProcessInfo:
        """Return a snapshot of this process."""
        mailbox = self.mailbox
        return ProcessInfo(
            self.pid, self.name, self.runs, len(mailbox), mailbox.taken, len(self._calls or ()),
            "ending" if self._is_ending
            else "starting" if self._is_starting
            else "waiting" if mailbox.waited_for
            else "running",
            "" if self._waits_for is None else self._waits_for.describe(asyncio.get_running_loop().time()),
        )  # fmt: skip

    @abstractmethod
    def _note_wait(self, call: Call, now: float) -> None:
        """Implement `mailbox.Owner`: a call has waited in the mailbox for half of its time or all of it."""

    @abstractmethod
    def _note_left(self, messages: int) -> None:
        """Note that this process ends and has not taken so many messages."""

    def _has_task(self, task: asyncio.Task[Any] | None) -> bool:
        """Implement `mailbox.Owner`: whether this task works for this process."""
        if task is None:
            return False
        owned = () if self._owned is None else self._owned.tasks
        return task is self._task or task in (self._beside or ()) or task in owned

    @property
    def _is_stuck_in(self) -> Wait | None:
        """What this process waits for, if nothing takes its messages meanwhile."""
        return None if self.mailbox.waited_for else self._waits_for

    def _end_with(self, reason: Any, *, again: bool = False) -> None:
        """Tell this process to end, by cancelling its task. The first reason counts.

        Does nothing to a process that is ending or closing already, unless ``again`` is true: then its
        task is cancelled once more, which cuts its clean-up short. What must finish is cancelled only so.
        """
        if (self._is_ending or self._is_closing) and not again:
            return
        if not self._is_ending:
            self._is_ending = True
            self._exit_reason = reason
        if self._task is not None and (again or not self._must_finish):
            self._task.cancel()

    def _park(self, reason: Any) -> bool:
        """Tell this process to end, and leave its cancellation to `_cancel_parked`; no message wakes it.

        Returns:
            False, and nothing was done, if it does not wait for a message, or is ending already.
        """
        if self._is_ending or self._is_closing or not self.mailbox.park():
            return False
        self._is_ending = True
        self._exit_reason = reason
        return True

    def _cancel_parked(self) -> None:
        """Cancel this process, unless something else has ended it since it was parked."""
        if self._task is not None and not self._is_closing and not self._is_gone:
            self._task.cancel()

    def _crash(self, error: BaseException, what: str) -> None:
        """End this process because a part of it, ``what``, has raised; log the exception."""
        log.error(
            "process %s (%s) crashed: %s raised", self.name or self.pid, self.runs, what,
            exc_info=loggable(original(error)),
        )  # fmt: skip
        self._end_with(exit_reason(self, error))

    @property
    def _open_calls(self) -> int:
        """How many calls it has taken and not answered yet."""
        return len(self._calls or ())

    def _mark_gone(self, reason: Any) -> None:
        """Mark this process as gone and answer every call that it leaves behind."""
        self._is_gone = True
        if self._owned is not None:
            self._owned.close()
        messages, taken = self.mailbox.close(), self._calls
        self._calls = None
        if not messages and not taken:
            return
        shown, why = str(self.pid), text_of(reason)
        if messages:
            self._note_left(len(messages))
        for message in messages:
            if type(message) is Call:
                message.no_process(shown)
        for call in taken or ():
            call.process_down(shown, why)

    def _accept_call(self, call: Call) -> bool:
        """Implement `mailbox.Owner`: answer for this call from here on, or refuse it and return False.

        A request for a handler is refused if this process is not an actor.
        """
        if self._on_answered is None and type(call.message) is Invoke:
            call.no_handler(str(self.name or self.pid), f"{self.runs} is not an actor")
            return False
        if self._calls is None:
            self._calls = {}
        self._calls[call] = None
        if call._on_done is None:  # `Call.watch` inline.
            call._on_done = self._forget_call
        else:
            call.watch(self._forget_call)
        if call._producer is not None:
            call.pause_with(self.mailbox.turns.pause)
        return True

    def _forget_call(self, call: Call) -> None:
        """Stop answering for a call that has been answered, given up or taken by another process."""
        if self._calls is not None:
            self._calls.pop(call, None)
        if self._on_answered is not None:
            self._on_answered(call)


def exit_reason(process: RunningProcess, error: BaseException | None) -> Any:
    """Return the exit reason of a process whose function raised ``error`` or returned (None).

    A reason that the process was told counts before everything else.
    """
    if process._is_ending:
        return process._exit_reason
    if error is None:
        return "normal"
    leaving = exit_in(error)
    return crash_of(error, process._task) if leaving is None else leaving.reason
