"""The local road of a simulated connection: what two nodes of one machine have beside the network.

It follows `fleetlm.transport.local_roads`. Frames travel faster than over the network, so that they would
overtake those that were sent before unless both nodes change over as they should. No partition touches them:
a node that is cut off the network, and that its neighbour gives up for its silence, still has its local roads
until then. When the source ends, what its road has brought is reported first.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from fleetlm.testing.pipes import HELD, Control, Lane, Wheel

LATENCY_S = (0.00002, 0.0002)
"""Shortest and longest time that a frame travels on a local road, in seconds."""


class SimRoad:
    """The local road of one connection, from the request of its dialler on.

    Args:
        loop: the loop of the network.
        wheel: its timers.
        rng: its source of chance.
        deliver: takes a frame at the listener's end.
        ended: the road has ended at the listener's end.

    Attributes:
        lane: what travels.
        is_open: whether the listener has let the dialler in.
        is_taken: whether the dialler sends here.
        is_broken: whether the socket has failed.
        is_followed: whether the listener reads it.
    """

    __slots__ = (
        "_deliver", "_ended", "_expected", "_is_drained", "_is_over", "_loop", "_shown", "_unread",
        "is_broken", "is_followed", "is_open", "is_taken", "lane",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        wheel: Wheel,
        rng: random.Random,
        deliver: Callable[[bytes], None],
        ended: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._deliver = deliver
        self._ended = ended
        self.lane: Lane = Lane(wheel, rng, self._arrive)
        self.lane.low_s, self.lane.span_s = LATENCY_S[0], LATENCY_S[1] - LATENCY_S[0]
        self.is_open: bool = False
        self.is_taken: bool = False
        self.is_broken: bool = False
        self.is_followed: bool = False
        self._is_over = False
        """Whether the end of the stream has arrived."""
        self._is_drained = False
        self._shown = self._expected = b""
        self._unread: list[bytes] = []
        """What has arrived and is not read, since MOVED has not come."""

    def show(self, ticket: bytes) -> bool:
        """Take the dialler's ticket. Returns whether it is let in now."""
        self._shown = ticket
        return self._compare()

    def expect(self, ticket: bytes) -> bool:
        """Take the ticket that the listener's node expects. Returns whether the dialler is let in now."""
        self._expected = ticket
        return self._compare()

    def _compare(self) -> bool:
        if self.is_open or self.is_broken or not self._shown or self._shown != self._expected:
            return False
        self.is_open = True
        return True

    def put(self, frame: bytes) -> bool:
        """Send a frame. Returns False if the socket has failed."""
        if self.is_broken:
            return False
        self.lane.put(frame)
        return True

    def follow(self) -> bool:
        """Read the road from now on. Returns False if the dialler was not let in."""
        if not self.is_open:
            return False
        self.is_followed = True
        self._loop.call_soon(self._read)
        return True

    def break_off(self) -> None:
        """Let the socket fail: a random prefix of what is in flight arrives, then both ends find out."""
        if not self.is_broken:
            self.is_broken = True
            self.lane.drop_held()
            self.lane.keep_some()
            if self.is_open:
                self.lane.put(Control.END)

    def drain(self) -> None:
        """Report what has left the dialler: its connection has ended. Nothing more is taken.

        Where the road is not followed, this may be called again when it is.
        """
        self._is_drained = True
        pending, self.lane.pending = self.lane.pending, []
        self._unread += [each for tick, each in pending if tick != HELD and isinstance(each, bytes)]
        if self.is_followed:
            self._deliver_unread()

    def _arrive(self, frame: bytes | Control) -> None:
        if self._is_drained:
            return
        if isinstance(frame, Control):
            self._is_over = True
            if self.is_followed:
                self._read()
        elif self.is_followed and not self._unread:
            self._deliver(frame)
        else:
            self._unread.append(frame)

    def _read(self) -> None:
        self._deliver_unread()
        if self._is_over:
            self._ended()

    def _deliver_unread(self) -> None:
        unread, self._unread = self._unread, []
        for frame in unread:
            self._deliver(frame)
