"""One direction of a simulated TCP connection (`Lane`), and the timer that all lanes share (`Wheel`).

Theory of operation. A lane is a list of entries in the order in which they were sent. Each entry has the
tick at which it arrives, or `HELD` while it has not left. Ticks never decrease along the list, so a
frame arrives after all that were sent before it, whatever latency was drawn for it.

* Held: the path is cut or the sender's host is halted. What is put in gets the tick HELD. When the lane
  is released, held entries draw their latency anew and follow what is in flight.
* Cut: not even the entries of the kernel and of ZeroMQ leave. A halted sender's kernel still
  completes a handshake, so OPENED passes a lane that is held and not cut.
* Lossy: packets on their way do not arrive, so entries in flight become HELD, as TCP retransmits them.
* A break takes a suffix (`keep`, `keep_some`, `drop_held`); nothing else removes an entry that was sent.

The wheel sets one loop timer for each tick that has an arrival. A lane is registered for at most one
tick at a time; that tick is the first of its list. If the list has changed until then, the lane
delivers nothing or less, and registers again.
"""

from __future__ import annotations

import asyncio
import enum
import math
import random
from collections import deque
from collections.abc import Callable, Iterable

TICKS_PER_S = 16_384
TICK_S = 1 / TICKS_PER_S
"""Arrivals fall on multiples of this time, about 61 us. A power of two, so that sums are exact."""
HELD = math.inf
"""The tick of a frame that waits for its path, or for its sender to run again."""

Mutation = Callable[[bytes], bytes | None]
"""A fault of one frame: returns the changed frame, or None to lose it."""


class Control(enum.Enum):
    """Entries of a lane that are not frames."""

    SYN = "the dialler asks to connect"
    OPENED = "TCP, ZMTP and, with a cookie, CURVE are done"
    REFUSED = "another cookie"
    END = "the sending end closed its socket"


Entry = tuple[float, bytes | Control]
"""The tick of arrival, and the frame or control entry."""


class Wheel:
    """Calls back at ticks of `TICK_S`, with one loop timer for each tick, not for each frame.

    Callbacks of one tick run in the order in which they were put in.
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
            self._loop.call_at(tick * TICK_S, self._run_tick, tick)
        else:
            waiting.append(then)

    def _run_tick(self, tick: float) -> None:
        for then in self._ticks.pop(tick):
            then(tick)


class Lane:
    """One direction of a connection: frames arrive in order and without a gap."""

    __slots__ = (
        "_deliver",
        "_faults",
        "_is_armed",
        "_is_cut",
        "_is_held",
        "_is_special",
        "_last_tick",
        "_random",
        "_rng",
        "_wheel",
        "low_s",
        "pending",
        "span_s",
    )

    def __init__(
        self,
        wheel: Wheel,
        rng: random.Random,
        deliver: Callable[[bytes | Control], None],
    ) -> None:
        self._wheel = wheel
        self._random = rng.random
        self._rng = rng
        self.pending: list[Entry] = []
        self.low_s: float = 0.0
        self.span_s: float = 0.0
        self._deliver = deliver
        self._last_tick = 0
        self._is_armed = False
        self._is_held = self._is_cut = False
        self._faults: deque[Mutation] | None = None
        self._is_special = False

    def put(self, frame: bytes | Control) -> None:
        """Send a frame or a control entry; it arrives after all that was sent before."""
        if self._is_special:
            if self._is_held and (self._is_cut or frame is not Control.OPENED):
                self.pending.append((HELD, frame))
                return
            if self._faults and isinstance(frame, bytes):
                mutated = self._faults.popleft()(frame)
                self._is_special = bool(self._faults) or self._is_held
                if mutated is None:
                    return
                frame = mutated
        wheel = self._wheel
        latency_s = self.low_s + self.span_s * self._random()
        tick = int((wheel.now_s() + latency_s) * TICKS_PER_S) + 1
        if tick < self._last_tick:
            tick = self._last_tick
        else:
            self._last_tick = tick
        self.pending.append((tick, frame))
        if not self._is_armed:
            self._is_armed = True
            wheel.put(tick, self._arrive)

    def fault(self, mutations: Iterable[Mutation]) -> None:
        """Apply these mutations to the next frames, one each."""
        self._faults = deque(mutations)
        self._is_special = True

    def hold(self, *, is_held: bool, is_cut: bool, is_lossy: bool) -> None:
        """Set the condition of the path.

        Args:
            is_held: nothing more leaves.
            is_cut: not even what the kernel and ZeroMQ send by themselves leaves.
            is_lossy: frames in flight do not arrive either; they wait to be sent again.
        """
        was_held, self._is_held, self._is_cut = self._is_held, is_held, is_cut
        self._is_special = is_held or bool(self._faults)
        if is_lossy:
            self.pending = [(HELD, frame) for _, frame in self.pending]
        elif was_held and not is_held:
            waiting, self.pending = self.pending, []
            for tick, frame in waiting:
                if tick == HELD:
                    self.put(frame)
                else:
                    self.pending.append((tick, frame))

    @property
    def last_arrival_s(self) -> float:
        """Virtual time at which the last frame in flight arrives; 0 if none is in flight."""
        return self.pending[-1][0] * TICK_S if self.pending else 0.0

    def keep(self, frames: int) -> None:
        """Lose all but the first ``frames`` entries in flight."""
        del self.pending[frames:]

    def keep_some(self) -> None:
        """Lose a suffix of random length of what is in flight."""
        if self.pending:
            self.keep(self._rng.randrange(len(self.pending) + 1))

    def drop_held(self) -> None:
        """Lose the frames that have not left; control entries stay."""
        self.pending = [e for e in self.pending if e[0] != HELD or isinstance(e[1], Control)]

    def _arrive(self, tick: float) -> None:
        """Deliver the entries that are due, and register for the next tick that has one."""
        pending = self.pending
        due = 0
        for entry in pending:
            if entry[0] > tick:
                break
            due += 1
        self._is_armed = due < len(pending) and pending[due][0] != HELD
        if self._is_armed:
            self._wheel.put(pending[due][0], self._arrive)
        if due:
            arrived = pending[:due]
            del pending[:due]
            deliver = self._deliver
            for _, frame in arrived:
                deliver(frame)
