"""The one entity of a singleton: begins its runs, restarts them with pauses, and ends them for a handover.

The function of the program runs as a process of its own, which the entity monitors. So the entity answers
while the function is busy, and what ends the one does not end the other:

* The run ends or crashes: the next one begins after a pause, under a higher epoch. After too many crashes
  another node gets the singleton (`run_restarts`).
* The shard is handed over: `save` asks the run to end, and returns when it has ended with all that it has
  spawned. If it does not end in time it is killed; if it has still not ended, since it ignores its
  cancellation, `save` raises, and the shard stays on this node.
* The lease is over, or another node's claim wins: `offering.Offering` kills the run before anything else.
* The entity itself ends: the next one kills what it finds of a former run, and waits for its end.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.actors.handlers import handler
from fleetlm.entity import Entity
from fleetlm.errors import NodeStopped
from fleetlm.ids import Pid, Ref
from fleetlm.messages import Down
from fleetlm.texts import text_of

if TYPE_CHECKING:
    from fleetlm.leaders.family import Family
    from fleetlm.leaders.plan import Plan
    from fleetlm.leaders.run_restarts import RunRestarts

log: logging.Logger = logging.getLogger("fleetlm")

FENCED = "fenced"
"""The exit reason of a run whose node does not own the singleton any more."""
KILL_S = 1.0
"""Seconds that a killed run has to end."""
LOOK_S = 0.1
"""Seconds between two looks whether a former run has ended."""
STUCK_LOG_S = 30.0
"""Seconds between two log lines about a run that does not end."""
TERMINATE_SHARE = 0.8
"""How much of the time for its clean-up this entity gives the run before it kills it."""


class Offered(Protocol):
    """A singleton that this node offers; `offering.Offering` implements it."""

    plan: Plan
    family: Family
    restarts: RunRestarts

    def began(self, pid: Pid, epoch: int) -> None:
        """Note that a run has begun."""

    async def raise_epoch(self) -> bool:
        """Have an epoch under which nothing has run. Returns False if the shard is not this node's now."""

    def give_up(self) -> None:
        """Hand the singleton to a node on which it has not failed lately, if there is one."""


class StillRuns(Exception):  # it is a state, which `save` reports
    """A run has not ended, so its singleton must not begin elsewhere."""


class _Begin:
    """A message to the entity itself: begin a run, unless one runs."""


class Leader(Entity):
    """See the module.

    Args:
        offering: the singleton on this node.
    """

    def __init__(self, offering: Offered) -> None:
        self._offering = offering
        self._pid: Pid | None = None
        self._ref: Ref | None = None
        self._stuck_since: float | None = None
        self._said_at = 0.0

    async def load(self, state: Any) -> None:
        """Begin a run, after the end of what is left of a former one."""
        plan, family = self._offering.plan, self._offering.family
        if plan.memory is not None:
            plan.memory.load(state)
        family.kill(FENCED)
        self.send_after(max(0.0, self._offering.restarts.next_at - self._now()), _Begin())

    async def save(self) -> Any:
        """End the run, and return what the next owner must know. Raises: StillRuns."""
        plan, family = self._offering.plan, self._offering.family
        if self._pid is not None:
            self.node.exit(self._pid, "shutdown")
        if not await family.ended(plan.end_s):
            log.warning(
                "the singleton %s has not ended %g s after it was asked to, and is killed",
                plan.name, plan.end_s,
            )  # fmt: skip
            family.kill("killed")
            if not await family.ended(KILL_S):
                raise StillRuns(
                    f"the singleton {plan.name} ignores its cancellation: it stays on this node until it ends"
                )
        return None if plan.memory is None else plan.memory.save()

    async def terminate(self, reason: Any) -> None:
        """End the run, since this node offers the singleton no more, or stops."""
        family = self._offering.family
        if reason != FENCED and self._pid is not None:
            self.node.exit(self._pid, "shutdown")
            await family.ended(self.node.settings.terminate_s * TERMINATE_SHARE)
        family.kill(FENCED if reason == FENCED else "killed")

    async def handle_info(self, message: Any) -> None:
        """Begin a run, or note that one has ended."""
        if type(message) is _Begin:
            await self._begin()
        elif type(message) is Down and message.ref == self._ref:
            self._pid = None
            if message.reason != FENCED:  # Else this entity ends, too.
                self._ended(message.reason)
        else:
            await super().handle_info(message)

    @handler
    async def whom(self) -> Any:
        """Return the pid of the run, and the epoch of this node; None: none runs just now."""
        return None if self._pid is None else [self._pid, self.epoch]

    async def _begin(self) -> None:
        offering = self._offering
        if self._pid is not None:
            return
        if offering.family.left():
            self._wait_for_former()
            return
        self._stuck_since = None
        if not await offering.raise_epoch():
            self.send_after(LOOK_S, _Begin())
            return
        plan = offering.plan
        try:
            self._pid = self.node.spawn(plan.function, *plan.args)
        except NodeStopped:
            return
        offering.began(self._pid, self.epoch)
        self._ref = self.process.monitor(self._pid)
        log.info("the singleton %s runs here (epoch %d)", plan.name, self.epoch)

    def _wait_for_former(self) -> None:
        now = self._now()
        if self._stuck_since is None:
            self._stuck_since = self._said_at = now
        elif now - self._said_at >= STUCK_LOG_S:
            self._said_at = now
            log.error(
                "the singleton %s cannot begin: a former run ignores its cancellation since %.0f s",
                self._offering.plan.name, now - self._stuck_since,
            )  # fmt: skip
        self.send_after(LOOK_S, _Begin())

    def _ended(self, reason: Any) -> None:
        """Begin the next run after a pause."""
        name, restarts, now = self._offering.plan.name, self._offering.restarts, self._now()
        has_failed_too_often = restarts.ended(now, reason)
        pause_s = restarts.next_at - now
        log.warning("the singleton %s has ended (%s) and begins anew in %g s", name, text_of(reason), pause_s)
        self.send_after(pause_s, _Begin())
        if has_failed_too_often:
            self._offering.give_up()

    def _now(self) -> float:
        return self.process._services.loop.time()  # noqa: SLF001  # this is a part of the runtime
