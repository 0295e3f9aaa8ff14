"""How busy processes are, for people: found by looking at them. They note nothing for this.

So it is not known when a handler has begun. The time for which a process has been busy begins when the oldest
call that it serves *came*. For another handler of an actor it begins when somebody first saw it there. For
any other process only the time is known for which it waits for a reply, or for room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from fleetlm.processes.running import Children, RunningProcess
from fleetlm.wire.invocation import Invoke

Seen = tuple[int, float]
"""How many messages a process had taken when it was first seen so, and when that was."""


def select_busy(processes: Iterable[RunningProcess]) -> list[RunningProcess]:
    """Return those that have messages or calls, or that do anything but wait for a message.

    One that a message has just woken counts as waiting, and has that message. Takes a tenth of a microsecond
    for each.
    """
    return [
        process
        for process in processes
        if (process.mailbox.queue or process._calls or process.mailbox._waiter is None)
        and not process._is_gone
    ]


def select_supervisors(processes: Iterable[RunningProcess]) -> list[RunningProcess]:
    """Return those that supervise others."""
    return [process for process in processes if process._children is not None and not process._is_gone]


def children_of(process: RunningProcess | None) -> Children | None:
    """Return the children of a supervisor; None for any other process, and for one that is gone."""
    return None if process is None or process._is_gone else process._children


def is_gone(process: RunningProcess) -> bool:
    """Whether a process has ended."""
    return process._is_gone


def busy_s(process: RunningProcess, now: float, seen: Seen | None) -> float:
    """Return for how many seconds a process has been busy, as far as that is known; else 0.

    Args:
        process: any.
        now: the loop's time.
        seen: None if nobody has looked at it before.
    """
    for call in process._calls or ():
        if math.isfinite(call.began):
            return max(0.0, now - call.began)
    wait = process._waits_for
    if not process._calls:
        if process.mailbox.waited_for:
            return 0.0
        if process._on_answered is None:  # It is no actor, so it may do something or nothing.
            return 0.0 if wait is None else max(0.0, now - wait.since)
    since = now if seen is None or seen[0] != process.mailbox.taken else seen[1]
    return max(0.0, now - (since if wait is None else min(since, wait.since)))


def handler_of(process: RunningProcess, name_in: Callable[[Any], str]) -> str:
    """Return the name of the handler that an actor runs, the oldest of several; empty if it runs none.

    Args:
        process: any.
        name_in: finds the handler of a cast in the coroutine of the actor's task (`actors.serving`).
    """
    if process._is_starting:
        return "init"
    for call in process._calls or ():
        request = call.message
        return request.handler if type(request) is Invoke and type(request.handler) is str else ""
    if process._on_answered is None or process.mailbox.waited_for or process._task is None:
        return ""  # It is no actor, or it takes the next message.
    return name_in(process._task.get_coro())
