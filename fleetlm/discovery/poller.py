"""Asks the discovery again and again, whatever happens. It cannot die and it cannot block the node."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.core.poll_schedule import PollSchedule

if TYPE_CHECKING:
    import random

    from fleetlm.discovery.interface import Discovery
    from fleetlm.settings import Settings

log = logging.getLogger("fleetlm")

LOOKUP_LIMIT_S = 60.0
"""For one lookup of a discovery that has no limit of its own; DNS has one well below."""


class Poller:
    """One task, one lookup at a time."""

    def __init__(
        self,
        discovery: Discovery,
        settings: Settings,
        rng: random.Random,
        on_answer: Callable[[Answer], None],
        has_met_peer: Callable[[], bool],
    ) -> None:
        self._discovery = discovery
        self._schedule = PollSchedule(settings, rng)
        self._on_answer = on_answer
        self._has_met_peer = has_met_peer
        self._kicked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.polls = 0
        self.last_answer: Answer | None = None
        self.last_answer_at: float | None = None
        """On the loop's clock, in seconds."""

    def start(self, first: Answer | None) -> None:
        """Go on from what the decision of the own address has found already, if it has."""
        self._task = asyncio.get_running_loop().create_task(self._run(first), name="fleetlm poller")

    def kick(self) -> None:
        """A connection was lost: ask at once, though not more often than the fast interval."""
        self._kicked.set()

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self, first: Answer | None) -> None:
        loop = asyncio.get_running_loop()
        if first is not None:
            self._use_answer(first)
        while True:
            started = loop.time()
            self._use_answer(await self._lookup())
            until = started + self._schedule.next_delay_s(met_anybody=self._has_met_peer())
            await self._wait_for_next_poll(started + self._schedule.soonest_s(), until)

    async def _lookup(self) -> Answer:
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(LOOKUP_LIMIT_S):
                return await self._discovery.lookup()
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            detail = "the lookup was cancelled from inside"  # By a task of its own, not by `stop`.
            log.warning("discovery: %s; it is asked again at the next poll", detail)
        except Exception as error:
            log.exception("discovery raised; it is asked again at the next poll")
            detail = f"{type(error).__name__}: {error}"
        return Answer(Outcome.FAILED, (), detail)

    def _use_answer(self, answer: Answer) -> None:
        self.polls += 1
        self.last_answer = answer
        self.last_answer_at = asyncio.get_running_loop().time()
        try:
            self._on_answer(answer)
        except Exception:
            log.exception("an answer of DNS could not be used; polling goes on")

    async def _wait_for_next_poll(self, soonest: float, until: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(until):
                await self._kicked.wait()
        except TimeoutError:
            return
        self._kicked.clear()
        await asyncio.sleep(max(0.0, min(soonest, until) - loop.time()))
