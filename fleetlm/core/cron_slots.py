"""When a cron job runs, and which of its slots have begun.

A *slot* is a point of time of a schedule, in milliseconds since 1970 (UTC). Slots begin in their order, and a
slot that is *settled* never begins again: all up to the one that has begun last, or was passed over. So one
number says everything (`SlotMemory.settled_ms`), and every node that offers the job keeps it.

Before a slot begins, its number is told to the other nodes, under the epoch of the run of the job. A node
refuses what comes under a lower epoch than it has heard of. A run that begins asks all others first, under
its epoch. With a quorum each of the two needs the answers of a majority, and any two majorities have a member
in common. So a slot begins once, even if its node is lost right after, or has not noticed yet that another
one runs the job.

Pure: every function is told the time. Source: Lamport's "Paxos made simple" for epochs that shut out former
leaders; differs: the number only grows, so it needs no agreement about its value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fleetlm.core.shard_table import EPOCH_END
from fleetlm.records import Record, Row

Missed = Literal["once", "skip"]
LATE_MS = 5_000
"""A slot that could not begin within so many milliseconds of its time is missed."""
LOOK_MS = 5_000
"""The longest wait without a look at the wall clock, which may jump."""
AHEAD_MS = 24 * 3600 * 1000
"""If slots are settled further ahead than this, the clock that said so was wrong. The job must not wait until
then, which may be years."""
MAX_SLOT_MS = 253_402_300_800_000
"""The end of the year 9999."""


class SlotMemory:
    """What a node knows of the slots of one job.

    Attributes:
        epoch: the highest one under which this node was asked or told.
        settled_ms: the slot up to which all are settled; 0: nothing is known.
        settled_by: the epoch under which that was told; 0: it is not known.
    """

    __slots__ = ("epoch", "settled_by", "settled_ms")

    def __init__(self) -> None:
        self.epoch: int = 0
        self.settled_ms: int = 0
        self.settled_by: int = 0

    def told(self, epoch: int, slot_ms: int, *, is_reset: bool) -> list[int]:
        """Take what the leader says, or asks.

        Args:
            epoch: of the leader.
            slot_ms: up to which all slots are settled now; 0: it only asks.
            is_reset: whether what was settled before does not count, since a clock was wrong.

        Returns:
            The highest epoch that this node has heard of, what was settled before, and under which epoch that
            was told. If the first one is higher than that of the leader, nothing was changed.

        Raises:
            ValueError: nonsense; nothing was changed.
        """
        if not (0 <= epoch < EPOCH_END and 0 <= slot_ms < MAX_SLOT_MS):
            raise ValueError(f"{epoch} and {slot_ms} are no epoch and slot")
        before, by = self.settled_ms, self.settled_by
        if epoch >= self.epoch:
            self.epoch = epoch
            if slot_ms > before or (is_reset and slot_ms):
                self.settled_ms, self.settled_by = slot_ms, epoch
        return [self.epoch, before, by]

    def load(self, state: object) -> None:
        """Take what the former owner of the job knew, as `save` has returned it; anything else is ignored."""
        if type(state) is int and self.settled_ms < state < MAX_SLOT_MS:
            self.settled_ms, self.settled_by = state, 0

    def save(self) -> int:
        """Return what the next owner must know."""
        return self.settled_ms


class Slots(Row):
    """The slots of a schedule.

    Attributes:
        after: returns the first slot after a time, or None if there is none any more.
        newest: returns the last slot that is not after the second time; the first one is a slot before it.
    """

    after: Callable[[int], int | None]
    newest: Callable[[int, int], int]


class Wait(Record):
    """Nothing is due: look again after so many seconds."""

    seconds: float


class Begin(Record):
    """A slot is due.

    Attributes:
        slot_ms: its time.
        late_ms: how late it is.
        first_missed_ms: the first slot that was missed before it; 0: none.
    """

    slot_ms: int
    late_ms: int
    first_missed_ms: int


class Skip(Record):
    """Slots were missed, and do not run: all up to this one are settled."""

    slot_ms: int
    first_missed_ms: int


class Reset(Record):
    """What was settled is nonsense: begin from now."""

    settled_ms: int


def decide(slots: Slots, settled_ms: int, now_ms: int, missed: Missed) -> Wait | Begin | Skip | Reset:
    """Return what a job does now."""
    if settled_ms - now_ms > AHEAD_MS:
        return Reset(now_ms)
    due = slots.after(settled_ms)
    if due is None or due > now_ms:
        wait_ms = LOOK_MS if due is None else min(due - now_ms, LOOK_MS)
        return Wait(wait_ms / 1000)
    newest = slots.newest(due, now_ms)
    late_ms = now_ms - newest
    if missed == "skip" and late_ms > LATE_MS:
        return Skip(newest, due)
    return Begin(newest, late_ms, 0 if newest == due else due)
