"""Finds circles of processes that wait for each other, across nodes, and opens them.

``a`` calls ``b``, whose handler calls ``a``: both would wait until a deadline passes. Two processes that send
to each other while both mailboxes are full would wait likewise. Nothing in a single wait shows that, so
a wait that is older than `waits.LOOK_S` is *followed*: from its process to the target, from there to what the
target waits for, and so on. A step to another node is a request to that node (the verb ``waits``), which
follows further. If the way comes back to the process where it began, there is a circle, and the node of that
process opens it:

* the last step is a call that still waits in the mailbox: it is refused with `WouldBlock`, which says that
  it has not run and names the circle;
* the last step waits for room: the mailbox lets further messages in (`Mailbox.relieve`), up to a bound.
  Beyond it the senders get `WouldBlock` at their deadline. The processes of the circle send before others
  for `FAVOUR_S`, so that the new room is theirs.

**No false circle.** A step counts only if it is there when it is looked at, and the target of a call looks
whether it still has the call open. A process counts as waiting only for what its main task waits for, and
only while no other task takes its messages. The first wait must still be there when the answer has come.

Following costs nothing while nothing waits long. Each wait is followed again after twice the time each time,
and a node follows at most `MAX_FOLLOWED` at once.

Source: K. M. Chandy, J. Misra, L. M. Haas, "Distributed deadlock detection", 1983 (edge chasing); differs:
the probe is a request, so its way back confirms each step. Orleans lets a call chain enter an actor
again; here such a call is refused, because one handler at a time is promised.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeGuard

from fleetlm.errors import FleetError
from fleetlm.messaging.mailbox import Mailbox
from fleetlm.messaging.waits import LOOK_S, Wait, WaitsFor, show_process
from fleetlm.messaging.windows import NODE
from fleetlm.processes.running import RunningProcess

if TYPE_CHECKING:
    from fleetlm.call import Call
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.messaging.session import Session
    from fleetlm.processes.local import LocalProcesses

log: logging.Logger = logging.getLogger("fleetlm")

MAX_FOLLOWED = 16
"""Waits of one node that are followed at once: each costs a request to another node."""
FAVOUR_S = 2.0
"""Seconds for which a process in a circle sends before others. Nobody else gets room there meanwhile."""
MAX_STEPS = 16
"""Processes of a circle that is found; longer ones end with the deadline of a call."""
MAX_STEP_CHARS = 512
"""Characters of one process as people read it: a name of 255 and its node are shorter."""
MAX_COMPLAINTS = 1_000
"""Pairs of waiter and target that are logged, each once."""
_ASK_S = 2.0
"""Seconds for another node to follow a wait further."""

Path = list[str]
"""The processes of a circle, as people read them; empty: there is none."""


class Circles:
    """Follows what waits on one node.

    Args:
        local: the processes of this node.
        outbound: asks other nodes.
        stalled_after_s: seconds after which a wait for room is logged.
    """

    def __init__(self, local: LocalProcesses, outbound: Outbound, stalled_after_s: float) -> None:
        self._local = local
        self._outbound = outbound
        self._stalled_after_s = stalled_after_s
        self._loop = outbound.waits.loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._complaints: set[tuple[str, str]] = set()

    def look(self, waits: list[Wait]) -> None:
        """Follow those of these waits whose time has come, and log those that have lasted."""
        now = self._loop.time()
        for wait in waits:
            if now - wait.since < LOOK_S * 2**wait.looks or len(self._tasks) >= MAX_FOLLOWED:
                continue
            wait.looks += 1
            if wait.process is not None and len(wait.process.mailbox):
                self._run(self._follow_first(wait))
            else:
                self._log_if_stalled(wait, [])

    def asked(self, session: Session, argument: Any, call: Call) -> None:
        """Answer a node that follows a wait to a process here: with the circle, or with an empty list."""
        match argument:
            case [int() | str() as key, int(ref), path] if path and _is_path(path):
                if len(self._tasks) < MAX_FOLLOWED:
                    self._run(self._answer(session, key, ref, path, call))
                    return
        call.reply([])

    async def stop(self) -> None:
        """End what still follows."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _run(self, work: Any) -> None:
        task = self._loop.create_task(work, name="circles")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, session: Session, key: int | str, ref: int, path: Path, call: Call) -> None:
        request = session.requests.get(ref)
        box = self._local.reachable.get(key)
        found: Path = []
        if box is not None and (not ref or request is not None):
            found = await self._step(box, request, path)
        call.reply(found)

    async def _follow_first(self, wait: Wait) -> None:
        assert wait.process is not None
        path = await self._follow(wait, [show_process(wait.process)])
        if self._outbound.waits.is_open(wait):
            self._log_if_stalled(wait, path)

    async def _follow(self, wait: Wait, path: Path) -> Path:
        """Follow a wait of a process of this node; ``path`` ends with that process."""
        found = await self._follow_on(wait, path)
        if found and wait.what is WaitsFor.ROOM:
            self._favour(wait)
        return found

    async def _follow_on(self, wait: Wait, path: Path) -> Path:
        if isinstance(wait.where, Mailbox):
            return await self._step(wait.where, wait.call, path)
        if wait.key is NODE or wait.where.closed:
            return []
        try:
            found = await self._outbound.ask(wait.where.name, "waits", [wait.key, wait.ref, path], _ASK_S)
        except FleetError:  # The node has gone, or is of a version that does not know the question.
            return []
        return found if _is_path(found) and self._outbound.waits.is_open(wait) else []

    async def _step(self, box: Mailbox, request: Call | None, path: Path) -> Path:
        """Go on from the process with this mailbox; ``path`` waits for its reply to ``request`` or room."""
        process = box.owner
        wait = process._is_stuck_in if isinstance(process, RunningProcess) else None
        if wait is None:
            return []
        assert isinstance(process, RunningProcess)
        here = show_process(process)
        if here == path[0]:
            self._open(process, request, path)
            return path
        if here in path or len(path) >= MAX_STEPS:
            return []  # A circle further on; whoever is in it finds it.
        return await self._follow(wait, [*path, here])

    def _open(self, process: RunningProcess, request: Call | None, path: Path) -> None:
        """Open a circle that ends at this process: with a request that waits here, or with a full mailbox."""
        if request is None:
            self._loop.call_later(LOOK_S, self._relieve, process)
        elif not request.is_taken:
            chain = " waits for ".join(path)
            request.would_block(path[0], f"it is part of a circle: {chain} waits for the reply to this call")

    @staticmethod
    def _relieve(process: RunningProcess) -> None:
        """Let more in, now that the processes of the circle come first, if it still is one."""
        if process._is_stuck_in is not None:
            process.mailbox.relieve()

    def _favour(self, wait: Wait) -> None:
        """Let a process that waits for room in a circle send before others for a while."""
        process, where, key = wait.process, wait.where, wait.key
        task = process._task if isinstance(process, RunningProcess) else None
        if task is None:
            return
        if isinstance(where, Mailbox):
            where.favour(task)
            self._loop.call_later(FAVOUR_S, where.unfavour, task)
        elif key is not NODE:
            where.windows.favour(key, task)
            self._loop.call_later(FAVOUR_S, where.windows.unfavour, key, task)

    def _log_if_stalled(self, wait: Wait, path: Path) -> None:
        now = self._loop.time()
        if wait.what is not WaitsFor.ROOM or wait.is_logged or now - wait.since < self._stalled_after_s:
            return
        wait.is_logged = True
        pair = (wait.waiter, str(wait.to))
        if pair in self._complaints or len(self._complaints) >= MAX_COMPLAINTS:
            return
        self._complaints.add(pair)
        circle = f"; they wait in a circle: {' waits for '.join([*path, path[0]])}" if path else ""
        log.warning("%s waits for %s: %s%s", wait.waiter, wait.describe(now), self._why(wait), circle)

    def _why(self, wait: Wait) -> str:
        if isinstance(wait.where, Mailbox):
            return f"{len(wait.where):,} messages wait in that mailbox and its process takes none"
        if wait.key is NODE or (obstacle := wait.where.obstacle(wait.key)) is None:
            return "it has room now"
        return wait.where.explain(obstacle, wait.key)


def _is_path(found: Any) -> TypeGuard[Path]:
    """Whether what a peer sent is a path that is not longer than one can be: it gets into errors and logs."""
    return (
        isinstance(found, list)
        and len(found) <= MAX_STEPS
        and all(isinstance(step, str) and len(step) <= MAX_STEP_CHARS for step in found)
    )
