"""One direction of a simulated TCP connection, and the clockwork that all of them share."""

from __future__ import annotations

import asyncio
import enum
import math
import random
from collections import deque
from collections.abc import Callable, Iterable

TICKS_PER_S = 16_384
TICK_S = 1 / TICKS_PER_S
"""Arrivals fall on multiples of this, some 61 us: a power of two, so that no sum is rounded."""
HELD = math.inf
"""Arrival of a frame that waits for its path, or for its sender to run again."""

Mutation = Callable[[bytes], bytes | None]
"""What a fault makes of one frame; None: it vanishes."""


class Control(enum.Enum):
    """What travels on a lane beside frames."""

    SYN = "the dialler asks to connect"
    OPENED = "TCP, ZMTP and, with a cookie, CURVE are done"
    REFUSED = "another cookie"
    END = "the sending end closed its socket"


Entry = tuple[float, bytes | Control, bytes | None]
"""The tick of its arrival, the frame, and its second part."""


class Wheel:
    """What arrives when, on a grid of `TICK_S`: one timer for each tick, not for each frame.

    What arrives at one tick is handed over in the order in which it was put in.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ticks: dict[float, list[Callable[[float], None]]] = {}
        self.now_s: Callable[[], float] = loop.time

    def put(self, tick: float, then: Callable[[float], None]) -> None:
        """Call ``then(tick)`` at that tick."""
        waiting = self._ticks.get(tick)
        if waiting is None:
            self._ticks[tick] = [then]
            self._loop.call_at(tick * TICK_S, self._turn, tick)
        else:
            waiting.append(then)

    def _turn(self, tick: float) -> None:
        for then in self._ticks.pop(tick):
            then(tick)


class Lane:
    """One direction of a connection: in order, no gap."""

    __slots__ = (
        "_armed",
        "_cut",
        "_faults",
        "_held",
        "_last",
        "_random",
        "_rng",
        "_special",
        "_target",
        "_wheel",
        "low_s",
        "pending",
        "span_s",
    )

    def __init__(
        self,
        wheel: Wheel,
        rng: random.Random,
        target: Callable[[bytes | Control, bytes | None], None],
    ) -> None:
        self._wheel = wheel
        self._random = rng.random
        self._rng = rng
        self.pending: list[Entry] = []
        self.low_s: float = 0.0
        self.span_s: float = 0.0
        self._target = target
        self._last = 0
        self._armed = False
        self._held = self._cut = False
        self._faults: deque[Mutation] | None = None
        self._special = False

    def put(self, frame: bytes | Control, extra: bytes | None = None) -> None:
        """Send something; it arrives after all that was sent before."""
        if self._special:
            if self._held and (self._cut or frame is not Control.OPENED):
                self.pending.append((HELD, frame, extra))
                return
            if self._faults and isinstance(frame, bytes):
                mutated = self._faults.popleft()(frame)
                self._special = bool(self._faults) or self._held
                if mutated is None:
                    return
                frame = mutated
        wheel = self._wheel
        latency_s = self.low_s + self.span_s * self._random()
        tick = int((wheel.now_s() + latency_s) * TICKS_PER_S) + 1
        if tick < self._last:
            tick = self._last
        else:
            self._last = tick
        self.pending.append((tick, frame, extra))
        if not self._armed:
            self._armed = True
            wheel.put(tick, self._arrive)

    def fault(self, mutations: Iterable[Mutation]) -> None:
        """Let the next frames meet these, one each."""
        self._faults = deque(mutations)
        self._special = True

    def hold(self, *, held: bool, cut: bool, lossy: bool) -> None:
        """Say what the path is like.

        Args:
            held: nothing more leaves.
            cut: not even the kernel's and ZeroMQ's own words.
            lossy: what is under way does not arrive, either.
        """
        before, self._held, self._cut = self._held, held, cut
        self._special = held or bool(self._faults)
        if lossy:
            self.pending = [(HELD, frame, extra) for _, frame, extra in self.pending]
        elif before and not held:
            waiting, self.pending = self.pending, []
            for tick, frame, extra in waiting:
                if tick == HELD:
                    self.put(frame, extra)
                else:
                    self.pending.append((tick, frame, extra))

    @property
    def last_arrival_s(self) -> float:
        """When the last of what is in flight arrives; 0 where nothing is."""
        return self.pending[-1][0] * TICK_S if self.pending else 0.0

    def keep(self, frames: int) -> None:
        """Lose all but the first so many of what is in flight."""
        del self.pending[frames:]

    def keep_some(self) -> None:
        """Lose a suffix of what is in flight, of any length."""
        if self.pending:
            self.keep(self._rng.randrange(len(self.pending) + 1))

    def drop_held(self) -> None:
        """Lose the frames that have not left yet."""
        self.pending = [e for e in self.pending if e[0] != HELD or isinstance(e[1], Control)]

    def _arrive(self, tick: float) -> None:
        pending = self.pending
        due = 0
        for entry in pending:
            if entry[0] > tick:
                break
            due += 1
        self._armed = due < len(pending) and pending[due][0] != HELD
        if self._armed:
            self._wheel.put(pending[due][0], self._arrive)
        if due:
            arrived = pending[:due]
            del pending[:due]
            target = self._target
            for _, frame, extra in arrived:
                target(frame, extra)
