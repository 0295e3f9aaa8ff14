"""The processes that want to know when their node drains, so that they can hand over what they hold.

An actor whose class has an ``on_drain`` or ``on_undrain`` of its own gets a `DrainNotice` into its mailbox,
and runs that method in its turn, between two handlers. A plain process that has set ``trap_drain`` gets the
event as a message. Nothing is waited for here: the drain waits for processes that serve a message, and these
are messages (`runtime.unfinished`), so they must be in the mailboxes before the drain looks for what is
open.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetlm.messages import NodeDraining, NodeUndrained
    from fleetlm.processes.running import RunningProcess


_PER_TURN = 1_024
"""Actors that are told in one turn of the loop: a millisecond or two."""


class DrainNotice:
    """Told to one actor: its node drains until this time of the loop's clock; None: it does not any more."""

    __slots__ = ("until",)

    def __init__(self, until: float | None) -> None:
        self.until: float | None = until


class DrainListeners:
    """The processes of one node that are told."""

    def __init__(self) -> None:
        self._actors: dict[int, RunningProcess] = {}
        self._plain: dict[int, RunningProcess] = {}
        self._telling = asyncio.Lock()

    def add_actor(self, process: RunningProcess) -> None:
        """Tell this actor of drains from now on."""
        self._actors[process.pid.number] = process

    def set_trap(self, process: RunningProcess, on: bool) -> None:
        """See `Process.trap_drain`."""
        if on:
            self._plain[process.pid.number] = process
        else:
            self._plain.pop(process.pid.number, None)

    def traps(self, process: RunningProcess) -> bool:
        """Whether this process gets a message."""
        return process.pid.number in self._plain

    def exited(self, process: RunningProcess) -> None:
        """Forget a process that has ended."""
        self._actors.pop(process.pid.number, None)
        self._plain.pop(process.pid.number, None)

    async def tell(self, event: NodeDraining | NodeUndrained) -> None:
        """Tell every process that listens, some in each turn of the loop, and one event after the other."""
        until: float | None = getattr(event, "until", None)
        async with self._telling:
            for process in [*self._plain.values()]:
                process.mailbox.put(event)
            for nth, process in enumerate([*self._actors.values()], 1):
                if not process._is_gone:  # a class of this package
                    process.mailbox.put(DrainNotice(until))
                if nth % _PER_TURN == 0:
                    await asyncio.sleep(0)
