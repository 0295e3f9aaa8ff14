"""The run of a cron job: waits for its slots, tells the others that one begins, and runs the target.

At most one run of the target goes on at a time, since the next slot is looked for when it has ended. What has
become due meanwhile is treated like what has become due while no node ran the job: see `core.cron_slots`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Any

from fleetlm.core.cron_slots import Begin, Missed, Reset, Skip, SlotMemory, Slots, Wait, decide
from fleetlm.errors import ProcessExit
from fleetlm.messages import CronSlot
from fleetlm.processes.boundary import exit_in, is_from_signal
from fleetlm.records import Record

if TYPE_CHECKING:
    from fleetlm.leaders.slots import SlotTeller
    from fleetlm.process import Process

log: logging.Logger = logging.getLogger("fleetlm")

AGAIN_S = 0.25
"""Seconds before too few nodes are asked again."""


class Job(Record):
    """A cron job as a program has declared it; see `Node.cron`.

    Attributes:
        name: of the job.
        slots: of its schedule.
        zone: in which times are shown.
        missed: what happens to slots that could not begin in time.
        target: a function that takes the `CronSlot`, or where it is sent.
    """

    name: str
    slots: Slots
    zone: tzinfo
    missed: Missed
    target: Any


class CronRun:
    """The function of the singleton that a job is.

    Args:
        job: what to run.
        memory: which slots this node knows to be settled.
        teller: asks the other nodes.
        wall_ms: the wall clock, in milliseconds.
    """

    def __init__(self, job: Job, memory: SlotMemory, teller: SlotTeller, wall_ms: Callable[[], int]) -> None:
        self.__qualname__ = f"cron {job.name}"
        self._job = job
        self._memory = memory
        self._teller = teller
        self._wall_ms = wall_ms

    async def __call__(self, process: Process) -> None:
        """Run the job until this process ends."""
        job, memory = self._job, self._memory
        while not await self._teller.ask(process.epoch):  # noqa: ASYNC110  # it asks again
            await asyncio.sleep(AGAIN_S)
        while not memory.settled_ms:  # The first run ever, as far as any node knows: begin from now.
            await self._settle(process, max(1, self._wall_ms()))
        while True:
            match decide(job.slots, memory.settled_ms, self._wall_ms(), job.missed):
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                case Begin(slot_ms, late_ms, first_missed_ms):
                    await self._begin(process, slot_ms, late_ms, first_missed_ms)
                case Skip(slot_ms, first_missed_ms):
                    log.warning(
                        "cron job %s: no slot from %s to %s has run, since none could begin in time",
                        job.name, self._time(first_missed_ms), self._time(slot_ms),
                    )  # fmt: skip
                    await self._settle(process, slot_ms)
                case Reset(settled_ms):
                    log.error(
                        "cron job %s: its slots are settled until %s, and it is %s now: a clock was wrong. "
                        "It goes on from now",
                        job.name, self._time(memory.settled_ms), self._time(settled_ms),
                    )  # fmt: skip
                    await self._settle(process, settled_ms, is_reset=True)

    async def _settle(self, process: Process, slot_ms: int, *, is_reset: bool = False) -> None:
        if not await self._teller.tell(process.epoch, slot_ms, is_reset=is_reset):
            await asyncio.sleep(AGAIN_S)

    async def _begin(self, process: Process, slot_ms: int, late_ms: int, first_missed_ms: int) -> None:
        """Run a slot, once the others know of it."""
        job = self._job
        if not await self._teller.tell(process.epoch, slot_ms):
            await asyncio.sleep(AGAIN_S)
            return
        epoch = process.epoch  # Raises where the lease is over.
        if first_missed_ms:
            log.warning(
                "cron job %s: slots from %s on have not run, since none could begin in time; that of %s runs "
                "now",
                job.name, self._time(first_missed_ms), self._time(slot_ms),
            )  # fmt: skip
        slot = CronSlot(job.name, self._time(slot_ms), epoch, late_ms / 1000)
        try:
            if callable(job.target):
                target: Callable[[CronSlot], Awaitable[object]] = job.target
                await target(slot)
            else:
                await process.node.send(job.target, slot)
        except ProcessExit:
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._report(process, error)
        except BaseException as error:
            if is_from_signal(error) or isinstance(error, GeneratorExit) or exit_in(error) is not None:
                raise
            self._report(process, error)

    def _report(self, process: Process, error: BaseException) -> None:
        """Log what the target has raised; the first one of each kind as a warning."""
        failures = process._services.failures  # noqa: SLF001  # this is a part of the runtime
        failures.report(process, f"cron {self._job.name}", error, "the next slot runs nevertheless")

    def _time(self, slot_ms: int) -> datetime:
        return datetime.fromtimestamp(slot_ms / 1000, UTC).astimezone(self._job.zone)
