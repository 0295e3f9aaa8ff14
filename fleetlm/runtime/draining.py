"""What a node that leaves finishes first: open calls and streams, blocking functions, large messages.

Theory of operation. `Draining.finish` looks once for what is open when the node begins to leave, and waits
for that: calls and streams that a process has taken or that wait in its mailbox, and functions in threads and
worker processes. What these ask of other processes of this node is included, since they are open until they
have their answers. A message without a caller is not waited for: nothing says whether it will ever be taken,
and a process that reads none would keep its node for the whole time.

Calls that come later are served as long as the node is there. While peers still send, there may be one open
at any moment, so they cannot be waited for without end: after the first wait, the node leaves in the first
moment without an open call, or `LATER_S` later.

The look is spread over turns of the loop, and afterwards only what was found is looked at, every `LOOK_S`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from fleetlm.blocking.pools import Blocking
    from fleetlm.call import Call
    from fleetlm.processes.context import NodeContext
    from fleetlm.processes.local import LocalProcesses

log: logging.Logger = logging.getLogger("fleetlm")

LOOK_S = 0.01
"""Seconds between two looks at what is open: too short to delay a stop that anybody notices."""
LATER_S = 1.0
"""Seconds for a moment without open calls among those that came after the node began to leave."""
PATIENCE_S = 1.0
"""Seconds after which the log says what a node that leaves still waits for."""
MESSAGES_PER_TURN = 1_024
"""Processes and messages that are looked at in one turn of the loop, while calls are searched for."""
MAX_NAMES = 5
"""Functions that one log line names."""


class Draining:
    """Waits for what a node has begun."""

    def __init__(self, context: NodeContext, local: LocalProcesses, blocking: Blocking) -> None:
        self._name = context.name
        self._sessions = context.sessions
        self._local = local
        self._blocking = blocking
        self._loop = asyncio.get_running_loop()
        self._is_logged = False

    async def finish(self, limit_s: float) -> None:
        """Return when what this node has begun is done, or after ``limit_s`` seconds."""
        now = self._loop.time()
        until, warn_at = now + limit_s, now + PATIENCE_S
        if not await self._finish_open(until, warn_at, limit_s):
            return
        later = min(until, self._loop.time() + LATER_S)
        while self._loop.time() < later:
            if not await self._finish_open(later, warn_at, limit_s):
                return

    async def _finish_open(self, until: float, warn_at: float, limit_s: float) -> bool:
        """Wait for what is open now, until that time at most. Returns whether anything was."""
        left = _Left(await self._find_calls(), self._blocking.open_jobs(), self._has_messages)
        if left.is_done():
            return False
        while not left.is_done():
            now = self._loop.time()
            if now >= until:
                if now - until < limit_s and self._is_logged:
                    log.warning("node %s leaves without waiting any longer for %s", self._name, left)
                return True
            if now >= warn_at and not self._is_logged:
                self._is_logged = True
                log.info(
                    "node %s finishes what it has begun before it leaves, for at most %g s "
                    "(FLEETLM_DRAIN_MS): %s", self._name, limit_s, left,
                )  # fmt: skip
            await asyncio.sleep(min(LOOK_S, until - now))
        return True

    async def _find_calls(self) -> list[tuple[Call, str]]:
        """Return the open calls of this node's processes, each with the function of its process."""
        found: list[tuple[Call, str]] = []
        looked_at = 0
        for process in self._local.every():
            found += ((call, process.runs) for call in self._local.unanswered(process))
            looked_at += 1 + len(process.mailbox)
            if looked_at >= MESSAGES_PER_TURN:
                looked_at = 0
                await asyncio.sleep(0)
        return found

    def _has_messages(self) -> bool:
        """Whether large messages, which leave in pieces, are on their way out."""
        return any(session.lanes for session in self._sessions.values())


class _Left:
    """What is still to be waited for. Each list is looked at from its end, which shrinks."""

    def __init__(
        self,
        calls: list[tuple[Call, str]],
        jobs: list[tuple[asyncio.Future[Any], str]],
        has_messages: Callable[[], bool],
    ) -> None:
        self._calls = calls
        self._jobs = jobs
        self._has_messages = has_messages

    def is_done(self) -> bool:
        calls, jobs = self._calls, self._jobs
        while calls and not calls[-1][0].wanted:
            calls.pop()
        while jobs and jobs[-1][0].done():
            jobs.pop()
        return not (calls or jobs or self._has_messages())

    def __str__(self) -> str:
        parts = []
        calls = [runs for call, runs in self._calls if call.wanted]
        jobs = [name for future, name in self._jobs if not future.done()]
        if calls:
            parts.append(f"{len(calls)} call(s) of {_name_most(calls)}")
        if jobs:
            parts.append(f"{len(jobs)} blocking function(s): {_name_most(jobs)}")
        if self._has_messages():
            parts.append("large messages that are being sent")
        return "; ".join(parts) or "nothing any more"


def _name_most(names: list[str]) -> str:
    counts = Counter(names).most_common(MAX_NAMES)
    rest = len(set(names)) - len(counts)
    return ", ".join(SHORT.repr(name).strip("'") for name, _ in counts) + (
        f" and {rest} more" if rest else ""
    )
