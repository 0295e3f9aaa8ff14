"""The drain of a node: tells the peers, refuses new work, waits for what has begun, and reports.

Theory of operation. `core.draining` describes the steps. `Draining` performs them: it sends the notices and
takes those of the peers, keeps ``Session.refuses`` right, and publishes the events. There is at most one
`_Run` at a time. Its task goes through the steps; callers of `drain` wait for that task, and a further caller
joins it and sets its time. `undrain` marks the run as undone and lets it end with its report; a drain that
comes right after begins a new one. The last run, that of `Node.stop`, cannot be undone.

What is waited for (`runtime.unfinished`) is looked up when the drain is announced. Requests of other nodes
that come later are, once new work is refused, part of work in flight, so all of them are waited for. Calls of
this node to itself may be steady, and are served: after the first wait the run ends in the first moment
without any, or `LATER_S` later.

At the end of the time streams end with `Draining`, and so do calls that no process has taken. What runs then
goes on until the node stops, and the report names it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

from fleetlm.core.draining import OwnDrain, Step, checked_source, checked_step
from fleetlm.errors import Draining as IsDraining
from fleetlm.messages import NodeDraining, NodeUndrained
from fleetlm.messaging.deadline import SERVING
from fleetlm.runtime.events import ChangeSignal
from fleetlm.runtime.info import DrainReport
from fleetlm.runtime.unfinished import describe
from fleetlm.wire import operations
from fleetlm.wire.operations import MAX_TIMEOUT_MS

if TYPE_CHECKING:
    from fleetlm.call import Call
    from fleetlm.core.topology import Topology
    from fleetlm.messaging.in_flight import InFlight
    from fleetlm.messaging.session import Session
    from fleetlm.processes.context import NodeContext
    from fleetlm.processes.running import RunningProcess
    from fleetlm.runtime.events import EventHub
    from fleetlm.runtime.unfinished import Left, Unfinished
    from fleetlm.wire.operations import DrainNotice

log: logging.Logger = logging.getLogger("fleetlm")

DrainSource = Literal["api", "signal", "remote"]

LOOK_S = 0.01
"""Seconds between two looks at what is open: too short to delay a stop that anybody notices."""
LATER_S = 1.0
"""Seconds for a moment without open calls among those that this node's processes make to each other."""
PATIENCE_S = 1.0
"""Seconds after which the log says what a node that drains still waits for."""
SAME_TIME_S = 0.5
"""A peer's time for finishing that differs by less has not changed; messages travel for a while."""


class _Run:
    """One drain, from its first caller to its report."""

    def __init__(self, now: float) -> None:
        self.began = now
        self.is_undone = False
        self.is_logged = False
        self.refused = 0
        self.found = 0
        self.besides: set[RunningProcess | Call] = set()
        """Who waits for the drain itself, and must not be waited for."""
        self.task: asyncio.Task[DrainReport] | None = None


class Draining:
    """Drains this node, and knows which peers drain.

    Args:
        context: the node.
        topology: the table of peers, which shows whether this node drains.
        events: gets `NodeDraining` and `NodeUndrained`.
        in_flight: is told which drains there are.
        unfinished: looks for what this node has begun.
    """

    def __init__(
        self,
        context: NodeContext,
        topology: Topology,
        events: EventHub,
        in_flight: InFlight,
        unfinished: Unfinished,
    ) -> None:
        self.own: OwnDrain = OwnDrain()
        self._noticed: dict[str, float] = {}
        """Peer that drains → when its last notice came; the newest is last. A whole cluster may leave at
        once, so nothing here looks at every peer for the notice of each."""
        self._name = context.name
        self._settings = context.settings
        self._sessions = context.sessions
        self._loop = context.loop
        self._topology = topology
        self._events = events
        self._in_flight = in_flight
        self._unfinished = unfinished
        self._run: _Run | None = None
        self._is_last = False
        """Whether the node stops after this drain, so that it cannot be undone."""
        self.is_handing_over: bool = False
        """Whether entities are being handed over, and are served here until then."""
        self._changes = ChangeSignal()

    # What the program asks for.

    async def drain(
        self,
        timeout_s: float,
        reason: str,
        source: DrainSource,
        *,
        asked_by: asyncio.Task[Any] | None = None,
        is_last: bool = False,
    ) -> DrainReport:
        """See `Node.drain`; its arguments have been checked.

        Args:
            timeout_s: seconds for all of it.
            reason: for people.
            source: who asks.
            asked_by: the task that asks; default: the current one.
            is_last: the node stops afterwards, so that the drain cannot be undone.
        """
        now = self._loop.time()
        self._is_last = self._is_last or is_last
        run = self._run
        if run is None or run.task is None or run.task.done():
            run = self._run = _Run(now)
        asker = self._unfinished.asker(asked_by or asyncio.current_task())
        run.besides |= {each for each in (asker, SERVING.get()) if each is not None}
        if is_last or not self._is_last:  # A node that stops keeps its time.
            self._announce(now + min(timeout_s, MAX_TIMEOUT_MS / 1000), source, reason)
        if run.task is None:
            run.task = self._loop.create_task(self._go(run), name=f"{self._name} drains")
        return await asyncio.shield(run.task)

    def undrain(self) -> bool:
        """See `Node.undrain`."""
        if self._is_last or not self.own.step:
            return False
        if self._run is not None:
            self._run.is_undone = True
            self._run = None
        self.own.undo()
        self._tell_peers()
        self._events.publish(NodeUndrained(self._name))
        log.info("node %s does not drain any more, and takes work as before", self._name)
        return True

    async def look(self) -> Left:
        """Return what is open now, for people."""
        besides: set[RunningProcess | Call] = set() if self._run is None else self._run.besides
        return await self._unfinished.look(besides)

    def refusal(self) -> IsDraining:
        """Return the error for new work."""
        now = self._loop.time()
        return IsDraining(self._name, max(self._settings.tick_s, self.own.retry_after(now)))

    # Facts from sessions.

    def node_up(self, session: Session) -> None:
        """A session has come up: say that this node drains, before anything else is sent."""
        self.own.peer_up(session.name)
        if self.own.step:
            self._tell(session)

    def node_down(self, name: str) -> None:
        """A session has ended."""
        self.own.peer_down(name)
        if self._noticed.pop(name, None) is not None:
            self._note_drains()
        self._changes.announce()

    def told(self, session: Session, notice: DrainNotice) -> None:
        """Take a notice of a peer. Raises: ValueError for a step that there is not."""
        step, source = checked_step(notice.step), checked_source(notice.source)
        peer, now = session.peer, self._loop.time()
        before, until_before = peer.drain_step, peer.drain_until
        peer.drain_step = step
        peer.drain_until = now + min(notice.left_ms, MAX_TIMEOUT_MS) / 1000
        self._noticed.pop(session.name, None)
        if step:
            self._noticed[session.name] = now
        self._note_drains()
        if not step:
            if before:
                log.info("%s does not drain any more", session.name)
                self._events.publish(NodeUndrained(session.name))
            return
        if not before or abs(peer.drain_until - until_before) > SAME_TIME_S:
            left_s = peer.drain_until - now
            log.info("%s drains, for at most %.3g s (%s)", session.name, left_s, source)
            self._events.publish(NodeDraining(session.name, peer.drain_until, source))
        if not before:
            session.acknowledge(notice.number)

    def heard(self, session: Session, number: int, count: int) -> None:
        """A peer has acknowledged a notice of this node. Raises: ValueError for nonsense."""
        self.own.heard(session.name, number, count)
        session.refuses = self.own.refuses(session.name)
        self._changes.announce()

    def refuse_call(self, call: Call) -> None:
        """Refuse new work of a peer."""
        if self._run is not None:
            self._run.refused += 1
        call.refuse(self.refusal())

    # Steps.

    def _announce(self, until: float, source: str, reason: str) -> None:
        """Tell the peers and the program that this node drains, or that it has another time now."""
        own, now = self.own, self._loop.time()
        if not own.step:
            why = f" ({source}: {reason})" if reason else f" ({source})"
            log.info("node %s drains, for at most %.3g s%s", self._name, until - now, why)
        own.announce(until, source, reason, self._sessions)
        self._tell_peers()
        self._events.publish(NodeDraining(self._name, until, source))
        self._changes.announce()

    def _tell_peers(self) -> None:
        """Send each peer where this node is with draining, and act accordingly."""
        self._topology.is_draining = bool(self.own.step)
        for name, session in self._sessions.items():
            session.refuses = self.own.refuses(name)
            self._tell(session)
        self._note_drains()

    def _tell(self, session: Session) -> None:
        own = self.own
        left_ms = int(own.retry_after(self._loop.time()) * 1000)
        session.control(operations.drain(own.number, int(own.step), left_ms, own.source))

    def _note_drains(self) -> None:
        last = next(reversed(self._noticed.values()), None)
        self._in_flight.changed(is_own=bool(self.own.step), peers_since=() if last is None else (last,))

    async def _go(self, run: _Run) -> DrainReport:
        """Take the steps of one drain."""
        left = await self._unfinished.look(run.besides)
        run.found = left.found
        await self._wait_until_heard(run)
        unheard = tuple(self.own.unheard())
        if not run.is_undone and self.own.step is Step.ANNOUNCED:
            self.own.refuse()
            self._tell_peers()
            if unheard:
                log.info(
                    "%d peer(s) have not acknowledged that node %s drains, and are served until they do: %s",
                    len(unheard), self._name, ", ".join(unheard[:5]),
                )  # fmt: skip
        first = left
        left = await self._finish(run, left)
        finished = run.found - left.count().total()
        cut: Counter[str] = Counter()
        if not run.is_undone and self._loop.time() >= self.own.until:
            cut = await self._cut(run, first)
        return DrainReport(
            node=self._name,
            source=self.own.source,
            reason=self.own.reason,
            seconds=self._loop.time() - run.began,
            finished=max(0, finished),
            refused=run.refused,
            cut=cut.total(),
            cut_what=describe(cut),
            unheard=unheard,
            was_undone=run.is_undone,
        )

    async def _wait_until_heard(self, run: _Run) -> None:
        """Return when each peer has acknowledged, or has had the time for it."""
        limit = self._loop.time() + self._settings.drain_ack_s
        while self.own.unheard() and not run.is_undone:
            until = min(limit, self.own.until)
            if self._loop.time() >= until:
                return
            try:
                async with asyncio.timeout_at(until):
                    await self._changes.wait()
            except TimeoutError:
                continue

    async def _finish(self, run: _Run, left: Left) -> Left:
        """Wait until everything has ended, or the time is over. Returns what was waited for last."""
        await self._wait_for(run, left, math.inf)
        while (  # noqa: ASYNC110  # as everything here that may be undone, or get less time
            self.is_handing_over and not run.is_undone and self._loop.time() < self.own.until
        ):
            await asyncio.sleep(LOOK_S)
        later = self._loop.time() + LATER_S
        while not run.is_undone and self._loop.time() < self.own.until:
            left = await self._unfinished.look(run.besides, left)
            run.found += left.found
            if left.is_done() or not await self._wait_for(run, left, later):
                break
        return left

    async def _wait_for(self, run: _Run, left: Left, later: float) -> bool:
        """Wait for what is left; its own only until ``later``. Returns if it is done."""
        while not left.is_done():
            now, until = self._loop.time(), self.own.until
            if run.is_undone or now >= until or (now >= later and not left.has_remote()):
                return False
            if now - run.began >= PATIENCE_S and not run.is_logged:
                run.is_logged = True
                leaves = "before it leaves, " if self._is_last else ""
                log.info(
                    "node %s finishes what it has begun %sfor at most %.3g s (FLEETLM_DRAIN_MS): %s",
                    self._name, leaves, until - run.began, left,
                )  # fmt: skip
            await asyncio.sleep(min(LOOK_S, until - now))
        return True

    async def _cut(self, run: _Run, first: Left) -> Counter[str]:
        """End what can be ended at the end of the time. Returns what was cut."""
        left = await self._unfinished.look(run.besides, first)
        error = self.refusal()
        run.refused += left.refuse_untaken(error)
        cut = left.count()
        if cut and self.own.until > run.began:
            verb = "leaves without waiting" if self._is_last else "has drained and does not wait"
            log.warning("node %s %s any longer for %s", self._name, verb, left)
        left.end_streams(IsDraining(error.node, error.retry_after, has_begun=True))
        return cut
