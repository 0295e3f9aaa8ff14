"""What the parts of a node know about their node."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import field
from typing import TYPE_CHECKING

from fleetlm.ids import Pid
from fleetlm.messaging.own_loop import check_loop
from fleetlm.records import Record
from fleetlm.taps import Taps

if TYPE_CHECKING:
    from fleetlm.messaging.session import Session
    from fleetlm.settings import Settings


class NodeContext(Record):
    """The identity and the settings of one running node, and its sessions; shared by all its parts.

    Attributes:
        name: the node's name, ``basename@ip``.
        incarnation: the number of this start of the node.
        settings: never changed while the node runs.
        sessions: the live sessions by node name; the driver adds and removes them.
        drain_step: how far a node, this one or a connected one, is with draining; see `core.draining`.
        draw: returns a random number of so many bits that no peer can guess; in a simulation the same ones in
            each run.
        loop: the event loop that runs the node.
        taps: where the parts say what happens; see `fleetlm.telemetry`.
    """

    name: str
    incarnation: int
    settings: Settings
    sessions: dict[str, Session]
    drain_step: Callable[[str], int]
    draw: Callable[[int], int] = random.SystemRandom().getrandbits
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    taps: Taps = field(default_factory=Taps)

    def check_loop(self, what: str) -> None:
        """Raise RuntimeError unless this runs on the node's loop; ``what`` was called. See `own_loop`."""
        check_loop(self.loop, what)

    @property
    def pid(self) -> Pid:
        """The pid that stands for the node itself, as the sender of signals: number 0."""
        return Pid(self.name, self.incarnation, 0)
