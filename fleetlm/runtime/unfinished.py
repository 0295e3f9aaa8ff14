"""What a node that drains has begun and not finished: requests, blocking functions, messages that are served.

Theory of operation. `Unfinished.look` finds what is open at one moment; `Left` then tells what of it has not
ended. What is open:

* Calls and streams that a process of this node has taken, or that wait in its mailbox.
* Calls and streams of this node to others: the outcome would be lost, and the other node's work with it.
* Functions in threads and worker processes.
* Messages and casts that have no caller (`_Busy`). An actor is done with them when it waits for its next
  message. A plain process cannot be told from one that reads its mailbox once and then goes its own way, so
  it is waited for only while it takes messages. A process that has never read its mailbox, or a supervisor,
  is not waited for: nothing says that it ever takes what lies there.
* Large messages, which leave in pieces.

What these ask of other processes of this node is included, since they are open until they have their answers.
The process that waits for its own node to drain is left out, and so is the call that it serves.

The look is spread over turns of the loop. Afterwards only what was found is looked at.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fleetlm.actors.between import BetweenHandlers
from fleetlm.call import Call
from fleetlm.messaging.stream_items import ConsumerEnd
from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from fleetlm.errors import Draining
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.messaging.targets import Waiting
    from fleetlm.processes.context import NodeContext
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.processes.running import RunningProcess

MESSAGES_PER_TURN = 1_024
"""Processes and messages that are looked at in one turn of the loop."""
MAX_NAMES = 5
"""Functions that one line of a log or a report names."""


class Unfinished:
    """Looks for what this node has begun."""

    def __init__(
        self,
        context: NodeContext,
        local: LocalProcesses,
        open_jobs: Callable[[], list[tuple[asyncio.Future[Any], str]]],
        outbound: Outbound,
    ) -> None:
        self._sessions = context.sessions
        self._quiet_s = context.settings.drain_quiet_s
        self._loop = context.loop
        self._local = local
        self._open_jobs = open_jobs
        self._outbound = outbound

    def asker(self, task: asyncio.Task[Any] | None) -> RunningProcess | None:
        """Return the process of this node that a task works for, or None."""
        process = self._local.of_task(task)
        if process is not None or task is None:
            return process
        return next((each for each in self._local.every() if task in _handlers_of(each)), None)

    async def look(self, besides: set[RunningProcess | Call], before: Left | None = None) -> Left:
        """Find what is open now.

        Args:
            besides: processes and calls that are left out.
            before: what was found before. A plain process that has taken nothing since then is left out.
        """
        left = Left(self._has_messages)
        seen = {} if before is None else before.seen
        looked_at = 0
        for process in self._local.every():
            for call in self._local.unanswered(process):
                if call not in besides and call.wanted:
                    kind = "stream(s)" if call.streaming else "call(s)"
                    calls = left.local if call.is_from(self._outbound) else left.remote
                    calls.append((call, f"{kind} of {process.runs}"))
            left.seen[process] = process.mailbox.taken
            is_new = _is_actor(process) or len(process.mailbox) or left.seen[process] != seen.get(process)
            if is_new and process not in besides and _is_busy(process):
                busy = _Busy(process, self._quiet_s, self._loop.time)
                if busy.messages or _is_actor(process):
                    left.busy.append(busy)
            looked_at += 1 + len(process.mailbox)
            if looked_at >= MESSAGES_PER_TURN:
                looked_at = 0
                await asyncio.sleep(0)
        for name, session in self._sessions.items():
            for waiting in session.calls.values():
                kind = "stream(s) from" if isinstance(waiting, ConsumerEnd) else "call(s) to"
                left.asked.append((waiting, f"{kind} {name}"))
        left.jobs = [(job, f"blocking function(s): {name}") for job, name in self._open_jobs()]
        left.count_found()
        return left

    def _has_messages(self) -> bool:
        """Whether large messages, which leave in pieces, are on their way out."""
        return any(session.lanes for session in self._sessions.values())


class Left:
    """What was found, and what is left of it. Each list is looked at from its end, which shrinks.

    Attributes:
        remote: calls and streams of other nodes, each with what it is.
        local: those of this node to its own processes.
        asked: what this node has asked of others.
        jobs: blocking functions.
        busy: processes that serve messages without a caller.
        seen: each process, with how many messages it had taken.
        found: requests that were found.
    """

    def __init__(self, has_messages: Callable[[], bool]) -> None:
        self.remote: list[tuple[Call, str]] = []
        self.local: list[tuple[Call, str]] = []
        self.asked: list[tuple[Waiting, str]] = []
        self.jobs: list[tuple[asyncio.Future[Any], str]] = []
        self.busy: list[_Busy] = []
        self.seen: dict[RunningProcess, int] = {}
        self.found: int = 0
        self._has_messages = has_messages

    def count_found(self) -> None:
        """Count what has been found."""
        requests = len(self.remote) + len(self.local) + len(self.asked) + len(self.jobs)
        self.found = requests + sum(each.messages for each in self.busy)

    def is_done(self) -> bool:
        """Whether all of it has ended."""
        if self.has_remote():
            return False
        while self.local and not self.local[-1][0].wanted:
            self.local.pop()
        for futures in (self.asked, self.jobs):
            while futures and futures[-1][0].done():
                futures.pop()
        while self.busy and self.busy[-1].is_done():
            self.busy.pop()
        return not (self.local or self.asked or self.jobs or self.busy or self._has_messages())

    def has_remote(self) -> bool:
        """Whether requests of other nodes are open."""
        calls = self.remote
        while calls and not calls[-1][0].wanted:
            calls.pop()
        return bool(calls)

    def refuse_untaken(self, error: Draining) -> int:
        """Refuse the calls and streams that no process has taken; return how many there were."""
        refused = 0
        for call, _ in self.remote + self.local:
            if call.wanted and not call.is_taken:
                call.refuse(error)
                refused += 1
        return refused

    def end_streams(self, error: Draining) -> None:
        """End the streams that processes of this node produce, after what they have sent."""
        for call, _ in self.remote + self.local:
            if call.streaming and call.wanted:
                call.refuse(error)

    def count(self) -> Counter[str]:
        """Return what has not ended, each with how often."""
        counts = Counter(what for call, what in self.remote + self.local if call.wanted)
        counts.update(what for future, what in [*self.asked, *self.jobs] if not future.done())
        for busy in self.busy:
            if not busy.is_done() and busy.messages:
                counts[f"message(s) of {busy.process.runs}"] += busy.left()
        return counts

    def __str__(self) -> str:
        parts = describe(self.count())
        if self._has_messages():
            parts = (*parts, "large messages that are being sent")
        return "; ".join(parts) or "nothing any more"


class _Busy:
    """A process that has messages without a caller to serve, those that it had when it was found.

    Attributes:
        process: the process.
        messages: how many there were, the one that it works on included.
    """

    def __init__(self, process: RunningProcess, quiet_s: float, clock: Callable[[], float]) -> None:
        box = process.mailbox
        self.process = process
        self._until = box.taken + len(box)
        self._clock = clock
        self._quiet_s = quiet_s
        self._taken = box.taken
        self._taken_at = clock()
        self._tasks: list[asyncio.Task[Any]] | None = None
        """The tasks of its concurrent handlers, once it has taken all messages."""
        at_work = len(_handlers_of(process)) + (not box.waited_for)
        calls = len(process._calls or ())  # noqa: SLF001  # the runtime's half of a process
        waiting = sum(type(each) is not Call and not isinstance(each, BetweenHandlers) for each in box.queue)
        self.messages = waiting + max(0, at_work - calls)

    def is_done(self) -> bool:
        """Whether all of them are done, as far as can be told; calls that came between them included."""
        process, box = self.process, self.process.mailbox
        if process._is_gone:  # noqa: SLF001  # as above
            return True
        if box.taken != self._taken:
            self._taken, self._taken_at = box.taken, self._clock()
        if not _is_actor(process) and self._clock() - self._taken_at > self._quiet_s:
            return True
        if box.taken < self._until or (box.taken == self._until and not box.waited_for):
            return False
        if self._tasks is None:
            self._tasks = _handlers_of(process)
        self._tasks = [task for task in self._tasks if not task.done()]
        return not self._tasks

    def left(self) -> int:
        """Return how many of them are not done, if not all are; at least one."""
        at_work = 1 if self._tasks is None else len(self._tasks)
        return max(1, min(self.messages, self._until - self.process.mailbox.taken + at_work))


def describe(counts: Counter[str]) -> tuple[str, ...]:
    """Return counted things in words, the most frequent first."""
    shown = tuple(
        f"{count} {SHORT.repr(what).strip(chr(39))}" for what, count in counts.most_common(MAX_NAMES)
    )
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(MAX_NAMES))
    return (*shown, f"{rest} more") if rest else shown


def _is_actor(process: RunningProcess) -> bool:
    return process._on_answered is not None  # noqa: SLF001  # set by actors only


def _handlers_of(process: RunningProcess) -> list[asyncio.Task[Any]]:
    """Return the tasks of an actor's concurrent handlers."""
    tasks: Any = process._beside or ()  # noqa: SLF001  # of an actor a dict
    return list(tasks)


def _is_busy(process: RunningProcess) -> bool:
    """Whether a process has messages to serve, as far as can be told."""
    box = process.mailbox
    if process._children is not None:  # noqa: SLF001  # a supervisor serves its children, not messages
        return False
    if _is_actor(process):
        works = not box.waited_for and not process._is_starting  # noqa: SLF001
        return bool(works or len(box) or process._beside)  # noqa: SLF001
    return box.taken > 0 and (len(box) > 0 or not box.waited_for)
