"""Turns: how long the processes of a node may work before the event loop goes round.

asyncio runs a task until it waits, and an ``await`` whose result is there already does not wait. A process
that finds a message in its mailbox each time would therefore never give way, and a thousand processes that
each have one message would all run in the same round of the loop. So whatever may complete without waiting
asks here first: taking a message, sending one, the outcome of a call, an item of a stream, the start of a
concurrent handler::

    if turns.left:
        turns.left -= 1
    elif turns.is_over():
        await turns.next()

Every eighth of these questions, whoever asks it, looks at the clock, which costs as much as five others. Each
of them does once the turn is over, and after a look that found slow work.

One turn is shared by everything on the loop, since a budget for each process bounds nothing where there are
many. It lasts `TURN_S`. A look at the clock after that begins another turn if the loop has gone round since
the last one began, so that a turn that is not used up costs nothing; otherwise the turn is over, and the
task waits in ``_parked``. One round of the loop thus lasts at most two turns and one piece of work, or eight
pieces where slow ones follow quick ones.

**Fairness.** Tasks go on in the order in which they came. `_release` lets a number of them go on with each
round, twice as many after a round that left time over, half as many after one that did not. One that comes
to run when the time is over again waits at the head of the queue, except for the first of each round: so
each round gets at least one task ahead, whatever else runs on the loop.

**Virtual time.** On a simulated loop no time passes while code runs. `CountedTurns` counts the questions
instead and lets virtual time pass when a turn is over, so that processes that feed each other for ever do
not stop the clock.

Source: the reductions of Erlang's scheduler, and Tokio's cooperative budget (`tokio::task::coop`); differs:
a budget in time, one for the whole loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any
from weakref import WeakValueDictionary

TURN_S = 0.004
"""Seconds of a turn. A round of the loop takes at most twice as long, and the work between two looks at the
clock. With handlers that work for a millisecond that is 12 ms: others on the node hardly notice."""
TURN_MESSAGES = 2_000
"""Messages that make a turn on virtual time: as if each took 2 µs."""
_LOOK_EVERY = 8
"""Questions of which one looks at the clock while work is quick."""
_SLOW_S = 0.000_5
"""Seconds between two looks after which the next question looks again."""
_MAX_RELEASED = 256
"""Tasks that go on in one round. They are looked at one by one, so more would only take memory."""

_of_loops: WeakValueDictionary[int, Turns] = WeakValueDictionary()
"""By the ``id`` of the loop, which lives as long as its turns."""


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


class Turns:
    """The turns of one event loop. `of` finds them: all nodes on one loop share them.

    Args:
        loop: None: the loop that runs at the moment of use.
    """

    __slots__ = (
        "__weakref__", "_again", "_has_begun", "_looked_at", "_parked", "_released", "_until",
        "future", "left", "loop",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop: asyncio.AbstractEventLoop | None = loop
        self.future: Callable[[], asyncio.Future[Any]] = _future if loop is None else loop.create_future
        """Makes a future of the loop. Finding the loop costs more than the future (Python 3.11)."""
        self.left: int = 0
        """Questions until one has to ask `is_over`; 0 for each of them when the turn is over."""
        self._until = 0.0
        """When the turn ends, on the clock of the system: a loop's own may stand still during a round."""
        self._looked_at = 0.0
        """When somebody looked at the clock."""
        self._has_begun = False
        """Whether a turn has begun in this round of the loop."""
        self._parked: deque[asyncio.Future[bool]] = deque()
        """The tasks that wait for a turn, in the order in which they came."""
        self._again: deque[asyncio.Future[bool]] = deque()
        """Those that were let go on when the time was over again; they come before the others."""
        self._released = 1

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Turns:
        """Return the turns of this loop."""
        turns = _of_loops.get(id(loop))
        if turns is None:
            turns = _of_loops[id(loop)] = cls(loop)
        return turns

    def after_fork(self) -> None:
        """In a forked child: let each wait raise RuntimeError, since no loop runs that could end it."""
        self.future = _future

    @property
    def waiting(self) -> int:
        """Tasks that wait for a turn."""
        return len(self._parked) + len(self._again)

    def is_over(self) -> bool:
        """Whether the task that asks has to wait for the next turn."""
        now = monotonic()
        if now - self._looked_at < _SLOW_S:
            self.left = _LOOK_EVERY - 1
        self._looked_at = now
        if now < self._until:
            return False
        self.left = 0
        if self._has_begun:
            return True
        self._begin(now)
        return False

    async def next(self) -> None:
        """Wait for a turn."""
        queue = self._parked
        while True:
            waiter = self.future()
            queue.append(waiter)
            if await waiter or not self.is_over():
                return
            queue = self._again

    async def pause(self) -> None:
        """Wait for the next turn if this one is over: for code that is not in a hurry."""
        if self.left:
            self.left -= 1
        elif self.is_over():
            await self.next()

    def _begin(self, now: float) -> None:
        self._until = now + TURN_S
        self._has_begun = True
        (self.loop or asyncio.get_running_loop()).call_soon(self._go_round)

    def _go_round(self) -> None:
        """Note that the loop has gone round since the turn began."""
        self._has_begun = False
        if self._again or self._parked:
            self._release()

    def _release(self) -> None:
        """Begin a turn, and let some of the tasks that wait go on."""
        now = monotonic()
        self._released = max(1, self._released // 2) if now >= self._until else self._released * 2
        self._released = min(self._released, _MAX_RELEASED)
        is_first, left = True, self._released
        while left and (queue := self._again or self._parked):
            waiter = queue.popleft()
            if not waiter.done():  # Not cancelled.
                waiter.set_result(is_first)
                is_first = False
                left -= 1
        self._begin(now)  # Last, so that the loop has gone round when those tasks have run.


class _Free(Turns):
    """Turns that never end."""

    __slots__ = ()

    def is_over(self) -> bool:
        return False


FREE = _Free()
"""For a mailbox outside of a node."""


class CountedTurns(Turns):
    """The turns of a node on virtual time: `TURN_MESSAGES` at one moment make a turn, and take `TURN_S`."""

    __slots__ = ("_at", "_count", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._loop = loop
        self._at = -1.0
        self._count = 0

    def is_over(self) -> bool:
        """Count a message. Returns whether the task that asks has to wait for time to pass."""
        now_s = self._loop.time()
        if now_s != self._at:
            self._at = now_s
            self._count = 0
        self._count += 1
        if self._count <= TURN_MESSAGES:
            return False
        if not self._has_begun:
            self._has_begun = True
            self._loop.call_later(TURN_S, self._release)
        return True

    def _release(self) -> None:
        self._has_begun = False
        waiting = [*self._again, *self._parked]
        self._again.clear()
        self._parked.clear()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(False)
