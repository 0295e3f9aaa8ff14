"""A drain with what the program does around it: its hooks, and actors that hand over.

Theory of operation. `runtime.draining` is the drain that the cluster sees. `Leaving` puts it between the
hooks of the program, in this order:

1. the hooks ``before_drain``; peers know of nothing yet, and everything is served;
2. the drain is announced, and processes of this node that want to know are told (`DrainListeners`); from
   here on all go on at the same time: the drain, the actors' ``on_drain``, and the handoff of entities;
3. when all are done, or the time is over, the hooks ``after_drain``.

All of it has one deadline, so that the time of a leave can be computed. The hooks after it have at least
`Settings.terminate_s`, as supervision trees have, or the drain's time if that is less.

Each phase runs once for a drain, whoever asks for it and however often: a further caller, such as the stop
of a node that drains, joins in. `undrain` begins a new count, ends the hooks of ``before_drain`` that still
run, and runs those of ``after_undrain``. Every drain is a task of its own: a caller that is cancelled
cancels nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.core.draining import SOURCES
from fleetlm.messages import NodeDraining, NodeUndrained
from fleetlm.messaging.deliveries import delivered
from fleetlm.runtime.info import DrainReport
from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from fleetlm.processes.context import NodeContext
    from fleetlm.processes.drain_listeners import DrainListeners
    from fleetlm.runtime.draining import Draining, DrainSource
    from fleetlm.runtime.hooks import LeavingHooks, Phase


log: logging.Logger = logging.getLogger("fleetlm")
MAX_UNMOVED = 100
"""Entities that a report names."""


class Evacuee(Protocol):
    """What is handed over to other nodes before this one leaves."""

    async def evacuate(self, until: float) -> tuple[str, ...]:
        """Hand everything over until that time of the loop. Returns the names of what is still here."""


class Leaving:
    """Drains one node, with its hooks."""

    def __init__(
        self,
        context: NodeContext,
        draining: Draining,
        hooks: LeavingHooks,
        listeners: DrainListeners,
        evacuee: Evacuee,
    ) -> None:
        self._context = context
        self._draining = draining
        self._hooks = hooks
        self._listeners = listeners
        self._evacuee = evacuee
        self._loop = asyncio.get_running_loop()
        self._phases: dict[Phase, asyncio.Task[None]] = {}
        """The phases that this drain has begun."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_told = False
        """Whether processes have been told of this drain."""
        self._is_last = False
        """Whether the node stops, so that nothing can be undone. `Draining` learns it after the hooks:
        until then a drain that began before it keeps its time."""
        self.report: DrainReport | None = None
        """How the last drain has ended."""

    @property
    def is_active(self) -> bool:
        """Whether this node drains, or its hooks before the drain run."""
        return bool(self._draining.own.step or self._phases)

    async def drain(
        self,
        timeout_s: float,
        reason: str,
        source: DrainSource,
        *,
        asked_by: asyncio.Task[Any] | None = None,
        is_last: bool = False,
    ) -> DrainReport:
        """See `Node.drain`, and `Draining.drain` for the arguments."""
        if source not in SOURCES:
            raise ValueError(f"source is {SHORT.repr(source)}, not one of {', '.join(SOURCES)}")
        self._is_last = self._is_last or is_last
        asked_by = asked_by or asyncio.current_task()
        until = self._loop.time() + timeout_s
        drain = self._drain(until, timeout_s, reason, source, asked_by, is_last)
        return await asyncio.shield(self._keep(drain))

    def undrain(self) -> bool:
        """See `Node.undrain`."""
        if self._is_last or not self.is_active:
            return False
        before = self._phases.get("before_drain")
        if before is not None:
            before.cancel()
        was_told = self._is_told
        self._phases.clear()
        self._is_told = False
        self._draining.undrain()
        if was_told:
            _ = self._keep(self._listeners.tell(NodeUndrained(self._context.name)))
        if self._hooks.has("after_undrain"):
            _ = self._keep(self._hooks.run("after_undrain", float("inf")))
        return True

    async def before_stop(self, timeout_s: float, until: float) -> None:
        """Run the last hooks, when the processes of this node have ended."""
        await self._hooks.run("before_stop", self._loop.time() + self.late_s(timeout_s, until))

    async def last_frames(self, until: float) -> DrainReport | None:
        """Let the peers take what was sent to them; see `messaging.deliveries`.

        Returns:
            The report, in which requests are cut whose answers could not be sent.
        """
        settings, report = self._context.settings, self.report
        until = max(until, self._loop.time() + settings.goodbye_flush_s)
        unsent = await delivered(list(self._context.sessions.values()), settings, until)
        if unsent and report is not None:
            what = f"{unsent} answer(s) that could not be sent in time"
            log.warning("node %s leaves with %s", self._context.name, what)
            finished, cut_what = max(0, report.finished - unsent), (*report.cut_what, what)
            cut = report.cut + unsent
            self.report = report.__replace__(finished=finished, cut=cut, cut_what=cut_what)
        return self.report

    def late_s(self, timeout_s: float, until: float) -> float:
        """Return the seconds of what follows a drain: what is left of its time, or a little of its own."""
        return max(until - self._loop.time(), min(timeout_s, self._context.settings.terminate_s))

    async def _drain(
        self,
        until: float,
        timeout_s: float,
        reason: str,
        source: DrainSource,
        asked_by: asyncio.Task[Any] | None,
        is_last: bool,
    ) -> DrainReport:
        began = self._loop.time()
        if not await self._run_phase("before_drain", until):
            seconds = self._loop.time() - began
            return DrainReport(self._context.name, source, reason, seconds, 0, 0, 0, (), (), was_undone=True)
        left_s = max(0.0, until - self._loop.time())
        drain = self._draining.drain(left_s, reason, source, asked_by=asked_by, is_last=is_last)
        self._draining.is_handing_over = True
        draining = self._keep(drain)
        await asyncio.sleep(0)  # It announces the drain in its first turn, and looks what is open later.
        if not self._is_told and until > self._loop.time():  # Else there is no time to hand over.
            self._is_told = True
            await self._listeners.tell(NodeDraining(self._context.name, until, source))
        try:
            unmoved = await self._evacuee.evacuate(until)
        finally:
            self._draining.is_handing_over = False
        report: DrainReport = await draining
        if unmoved and not report.was_undone:
            report = dataclasses.replace(report, unmoved=unmoved[:MAX_UNMOVED], unmoved_count=len(unmoved))
        if not report.was_undone:
            await self._run_phase("after_drain", self._loop.time() + self.late_s(timeout_s, until))
        self.report = report
        return report

    async def _run_phase(self, phase: Phase, until: float) -> bool:
        """Run the hooks of a phase, or wait for the run of another caller. Returns False if it was undone."""
        task = self._phases.get(phase)
        if task is None:
            if not self._hooks.has(phase):
                return True
            task = self._phases[phase] = self._keep(self._hooks.run(phase, until))
        await asyncio.wait({task})
        return self._phases.get(phase) is task

    def _keep(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run a coroutine as a task of its own, held until it ends."""
        task = self._loop.create_task(coroutine, name=f"{self._context.name} drains")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
