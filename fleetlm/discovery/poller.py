"""Polls discovery for as long as the node lives.

One task runs one lookup at a time, so lookups never overlap. `PollSchedule` sets the pace: fast while no
peer was ever seen (0.25 s, doubling up to the interval), then the interval; ±10 % jitter each. `kick`
makes the next lookup start at once, but not sooner than the fast interval after the last one.

Three things must never happen:

* The poller must not die. A discovery that raises, even a CancelledError of its own, yields a FAILED
  answer and is asked again at the next poll; so does one that does not answer within
  `LOOKUP_LIMIT_S`. An error of the callback that takes the answer is logged. Only `stop` ends the task.
* It must not block. Every wait is a wait on the loop, and all of them are bounded.
* It must not cut connections. It only passes answers on; the core decides what they mean, and a
  failed lookup never removes a peer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.core.poll_schedule import PollSchedule
from fleetlm.discovery.interface import Closable

if TYPE_CHECKING:
    import random

    from fleetlm.discovery.interface import Discovery
    from fleetlm.settings import Settings

log: logging.Logger = logging.getLogger("fleetlm")

LOOKUP_LIMIT_S = 60.0
"""Seconds after which a lookup is cut off. It protects against discoveries without a limit of their own;
that of DNS is far lower, see `Settings.dns_lifetime_s`."""


class Poller:
    """Polls one discovery.

    Args:
        discovery: the source of addresses. It may be faulty.
        settings: the interval, the fast interval and the jitter.
        rng: the source of the jitter.
        on_answer: called with every answer, on the loop.
        has_met_peer: tells whether any peer was ever seen; until then polling is fast.

    Attributes:
        polls: the number of answers so far.
        last_answer: the last answer, None before the first.
        last_answer_at: when it came, in seconds on the loop's clock.
    """

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
        self.polls: int = 0
        self.last_answer: Answer | None = None
        self.last_answer_at: float | None = None

    def start(self, first: Answer | None) -> None:
        """Start the task. ``first`` is the answer, if any, that detecting this node's address got."""
        self._task = asyncio.get_running_loop().create_task(self._run(first), name="fleetlm poller")

    def kick(self) -> None:
        """Poll soon, since a connection was lost; not more often than the fast interval."""
        self._kicked.set()

    @property
    def source(self) -> str:
        """Where it looks for peers, for people."""
        return self._discovery.source

    async def stop(self) -> None:
        """End the task, and a lookup with it, and close the discovery if it can be closed. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if isinstance(self._discovery, Closable):
            try:
                await self._discovery.close()
            except Exception:
                log.exception("closing the discovery failed")

    async def _run(self, first: Answer | None) -> None:
        loop = asyncio.get_running_loop()
        if first is not None:
            self._use_answer(first)
        while True:
            started = loop.time()
            self._use_answer(await self._lookup())
            until = started + self._schedule.next_delay_s(has_met_peer=self._has_met_peer())
            await self._wait_for_next_poll(started + self._schedule.soonest_s(), until)

    async def _lookup(self) -> Answer:
        """Ask once; whatever the discovery raises becomes a FAILED answer."""
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(LOOKUP_LIMIT_S):
                return await self._discovery.lookup()
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            # The discovery cancelled itself, perhaps through a task group of its own; `stop` did not.
            detail = "the lookup was cancelled by the discovery itself"
            log.warning("discovery: %s; trying again at the next poll", detail)
        except Exception as error:
            log.exception("discovery raised an exception; trying again at the next poll")
            detail = f"{type(error).__name__}: {error}"
        return Answer(Outcome.FAILED, (), detail)

    def _use_answer(self, answer: Answer) -> None:
        self.polls += 1
        self.last_answer = answer
        self.last_answer_at = asyncio.get_running_loop().time()
        try:
            self._on_answer(answer)
        except Exception:
            log.exception("handling an answer of discovery failed; polling goes on")

    async def _wait_for_next_poll(self, soonest: float, until: float) -> None:
        """Wait until the loop's clock shows ``until``, or ``soonest`` after a kick, whichever is sooner."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(until):
                await self._kicked.wait()
        except TimeoutError:
            return
        self._kicked.clear()
        await asyncio.sleep(max(0.0, min(soonest, until) - loop.time()))
