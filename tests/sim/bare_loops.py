"""Event loops for many nodes in one true time, each with a clock of its own.

`TrueTime` has one heap of everything that is going to happen. Each node has a `NodeLoop`, which shows the
true time with an offset and a speed of its own. A loop runs only when something of its node is due: a timer,
or a message. What is due on a node that is frozen waits until the node thaws, and happens then in an order
that the caller of `NodeLoop.thaw` chooses. A node that is dead runs no more.

So one thread plays a whole cluster, with clocks that drift and processes that stop for a while, for a few
microseconds an event: asyncio's tasks and futures, and nothing else of asyncio.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from asyncio import _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_Base: Any = asyncio.AbstractEventLoop
"""Not all of its methods are needed."""

MAX_TURNS = 100_000
"""Callbacks of a node at one moment: more of them schedule each other for ever."""
END_ROUNDS = 50
"""Rounds in which the tasks of a node that ends may finish; see `NodeLoop.end`."""


class Handle:
    """Something that is going to happen; what asyncio needs of a handle."""

    __slots__ = ("_args", "_callback", "_context", "_is_cancelled", "_when", "rank")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
        when: float = 0.0,
        rank: int = 0,
    ) -> None:
        self._callback = callback
        self._args = args
        self._context = context
        self._is_cancelled = False
        self._when = when
        self.rank = rank
        """Number of the queue to which it belongs, in which none overtakes another one. 0: none."""

    def cancel(self) -> None:
        """See `asyncio.Handle`."""
        self._is_cancelled = True

    def cancelled(self) -> bool:
        """See `asyncio.Handle`."""
        return self._is_cancelled

    def when(self) -> float:
        """See `asyncio.TimerHandle`."""
        return self._when

    def run(self) -> None:
        """Let it happen, unless it was cancelled."""
        if self._is_cancelled:
            return
        if self._context is None:
            self._callback(*self._args)
        else:
            self._context.run(self._callback, *self._args)


class TrueTime:
    """What happens in a cluster, in the order of the true time, which begins at 0."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self.failures: list[str] = []
        """What raised, and nobody has handled."""
        self._heap: list[tuple[float, int, NodeLoop | None, Handle]] = []
        self._made = 0

    def at(
        self, when: float, loop: NodeLoop | None, callback: Callable[..., object], *args: Any, rank: int = 0
    ) -> Handle:
        """Let something happen on a loop; None: in the world, whoever is frozen."""
        handle = Handle(callback, args, None, when, rank)
        self.push(when, loop, handle)
        return handle

    def push(self, when: float, loop: NodeLoop | None, handle: Handle) -> None:
        """Enter a handle."""
        self._made += 1
        heapq.heappush(self._heap, (max(when, self.now), self._made, loop, handle))

    def run_until(self, until: float) -> None:
        """Let everything happen up to a time. Raises: AssertionError: something has failed."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, loop, handle = heapq.heappop(heap)
            if handle.cancelled():
                continue
            self.events += 1
            if loop is None:
                handle.run()
            else:
                loop.take(handle)
            assert not self.failures, self.failures
        self.now = max(self.now, until)


class NodeLoop(_Base):
    """The loop of one node.

    Args:
        times: the true time.
        offset_s: what the clock of the node shows at the true time 0.
        speed: seconds of it in a true second.
        after: called when something has happened on the node.

    Attributes:
        is_frozen: whether nothing happens on the node for the time being.
        is_dead: whether nothing happens on it any more.
        missed: what was due while it was frozen.
    """

    def __init__(
        self, times: TrueTime, offset_s: float, speed: float, after: Callable[[], object] = lambda: None
    ) -> None:
        self._times = times
        self._offset_s = offset_s
        self._speed = speed
        self._after = after
        self._ready: deque[Handle] = deque()
        self._tasks: list[asyncio.Task[Any]] = []
        """Those that have not ended, and some that have."""
        self._tasks_limit = 64
        self._is_running = False
        self._is_woken = False
        self.is_frozen = False
        self.is_dead = False
        self.missed: list[Handle] = []

    # What happens on it.

    def take(self, handle: Handle) -> None:
        """Let a handle happen now, or when the node has thawed."""
        if self.is_dead:
            return
        if self.is_frozen:
            self.missed.append(handle)
            return
        self._run(handle)
        self._after()

    def _run(self, handle: Handle | None) -> None:
        """Let a handle happen, and all that follows from it at this moment."""
        ready, turns = self._ready, 0
        self._is_running = True
        _set_running_loop(self)
        try:
            if handle is not None:
                handle.run()
            while ready:
                ready.popleft().run()
                turns += 1
                if turns > MAX_TURNS:
                    raise RuntimeError(f"more than {MAX_TURNS:,} callbacks at {self._times.now:.3f} s")
        finally:
            _set_running_loop(None)
            self._is_running = self._is_woken = False

    def within(self, function: Callable[[], T]) -> T:
        """Run a function as if the node did it, and what follows from it at this moment."""
        assert not self._is_running
        assert not self.is_dead
        found: list[T] = []
        self._run(Handle(lambda: found.append(function()), (), None))
        self._after()
        return found[0]

    def freeze(self) -> None:
        """Let nothing happen until `thaw`."""
        self.is_frozen = True

    def thaw(self, order: Callable[[list[Handle]], None]) -> None:
        """Let everything happen that was due meanwhile.

        Args:
            order: puts the handles into the order in which they are to happen. Those of one queue
                (`Handle.rank`) keep theirs all the same.
        """
        self.is_frozen = False
        missed, self.missed = self.missed, []
        queues: dict[int, deque[Handle]] = {}
        for handle in missed:
            queues.setdefault(handle.rank, deque()).append(handle)
        order(missed)
        for handle in missed:
            if self.is_frozen:  # By something that has happened just now.
                self.missed.append(handle)
            elif not self.is_dead:
                self.take(queues[handle.rank].popleft() if handle.rank else handle)

    def end(self) -> None:
        """End all tasks at once. What they do meanwhile must reach nobody."""
        for _ in range(END_ROUNDS):
            self._tasks = [task for task in self._tasks if not task.done()]
            if not self._tasks:
                break
            for task in self._tasks:
                task.cancel()
            self._run(None)
        self.is_dead = True
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.clear()
        self._ready.clear()
        self.missed.clear()

    # What asyncio and the library ask of a loop.

    def time(self) -> float:
        """See `asyncio.AbstractEventLoop`."""
        return self._offset_s + self._times.now * self._speed

    def is_running(self) -> bool:
        """See `asyncio.AbstractEventLoop`."""
        return self._is_running

    def is_closed(self) -> bool:
        """See `asyncio.AbstractEventLoop`."""
        return self.is_dead

    def get_debug(self) -> bool:
        """See `asyncio.AbstractEventLoop`."""
        return False

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        """See `asyncio.AbstractEventLoop`."""
        handle = Handle(callback, args, contextvars.copy_context() if context is None else context)
        self._ready.append(handle)
        if not (self._is_running or self._is_woken):
            self._is_woken = True
            self._times.at(self._times.now, self, lambda: None)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        """See `asyncio.AbstractEventLoop`."""
        handle = Handle(callback, args, context, when)
        self._times.push((when - self._offset_s) / self._speed, self, handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        """See `asyncio.AbstractEventLoop`."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """See `asyncio.AbstractEventLoop`."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """See `asyncio.AbstractEventLoop`."""
        task = asyncio.Task(coro, loop=self, name="" if name is None else str(name), context=context)
        self._tasks.append(task)
        if len(self._tasks) > self._tasks_limit:
            self._tasks = [task for task in self._tasks if not task.done()]
            self._tasks_limit = 64 + 2 * len(self._tasks)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """See `asyncio.AbstractEventLoop`."""
        if not self.is_dead:
            self._times.failures.append(f"{context.get('message')}: {context.get('exception')!r}")
