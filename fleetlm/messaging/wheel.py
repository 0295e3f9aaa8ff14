"""A timing wheel: one timer of the event loop for the deadlines of all requests of a node.

Nearly every request is over long before its deadline. A timer of its own, which is made and cancelled for
nothing, costs more than most other things that happen to a call. So deadlines are rounded up to a *slot*, a
dict of everything that ends with it, and entering and leaving a slot costs one operation on that dict.
Nothing ends before its deadline, and nothing later than one slot, ``1 / SLOTS_PER_S`` seconds, after it.

One timer is set, for the first slot. It may be for a slot that is empty by then: empty slots in front are
dropped only when it fires. So a node that makes many short calls sets it once in a time-out or so. All empty
slots are dropped when there are twice as many slots as there were in use at the last such sweep: calls with
time-outs of hours would leave hundreds of thousands behind.

Source: G. Varghese, T. Lauck, Hashed and hierarchical timing wheels (1987), scheme 4; differs: a heap of the
slots in use instead of an array, since most requests of a node have the same time-out and few slots are used.
"""

from __future__ import annotations

import asyncio
import math
from heapq import heappop, heappush
from typing import Final

from fleetlm.messaging.targets import Target, Waiting, expire

SLOTS_PER_S: Final = 64
"""A power of two, so that the time of a slot is an exact float. A request ends at most 16 ms late."""

SWEPT_SLOTS: Final = 4_096
"""Fewer slots are never swept. Answered calls leave no more within a minute."""

Slot = dict[Waiting, tuple[Target, float]]
"""What ends at one moment: each request with its target and its time-out in seconds, for the error."""


class Wheel:
    """The deadlines of the requests of one node.

    Args:
        loop: of the node.
    """

    __slots__ = ("_armed", "_loop", "_numbers", "_slots", "_sweep_at", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, Slot] = {}
        """By number: the time of the slot, times `SLOTS_PER_S`."""
        self._numbers: list[int] = []
        """A heap of the numbers of all slots."""
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0
        """The slot that the timer is set for, if there is a timer."""
        self._sweep_at = SWEPT_SLOTS
        """The number of slots at which the empty ones are dropped."""

    def enter(self, waiting: Waiting, deadline: float, to: Target, timeout_s: float) -> Slot:
        """Let a request end with `CallTimeout` at its deadline, unless it has left the slot by then.

        Args:
            waiting: what is told.
            deadline: on the loop's clock, in seconds.
            to: for the error.
            timeout_s: likewise.

        Returns:
            The slot; the caller takes the request out of it when that is over: ``slot.pop(waiting, None)``.
        """
        number = math.ceil(deadline * SLOTS_PER_S)
        slot = self._slots.get(number)
        if slot is None:
            if len(self._numbers) >= self._sweep_at:
                self._sweep()
            slot = self._slots[number] = {}
            heappush(self._numbers, number)
            if self._timer is None or number < self._armed:
                self._arm()
        slot[waiting] = to, timeout_s
        return slot

    def close(self) -> None:
        """Stop the timer: nothing ends by its deadline any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._slots.clear()
        self._numbers.clear()

    def _sweep(self) -> None:
        """Drop all empty slots. The timer stays as it is: where its slot has gone, it finds the next one."""
        self._slots = {number: slot for number, slot in self._slots.items() if slot}
        self._numbers = sorted(self._slots)  # A sorted list is a heap.
        self._sweep_at = max(SWEPT_SLOTS, 2 * len(self._numbers))

    def _arm(self) -> None:
        """Set the timer for the first slot."""
        if self._timer is not None:
            self._timer.cancel()
        self._armed = self._numbers[0]
        self._timer = self._loop.call_at(self._armed / SLOTS_PER_S, self._turn)

    def _turn(self) -> None:
        """End what is due, drop the empty slots in front, and set the timer for the first of the others."""
        self._timer = None
        slots, numbers = self._slots, self._numbers
        due = max(self._armed, int(self._loop.time() * SLOTS_PER_S))
        while numbers and (numbers[0] <= due or not slots[numbers[0]]):
            for waiting, (to, timeout_s) in slots.pop(heappop(numbers)).items():
                expire(waiting, to, timeout_s)
        if numbers:
            self._arm()
