"""An asyncio event loop on virtual time: a simulated day takes moments, and runs the same each time.

    def test_the_poller_asks_every_five_seconds() -> None:
        async def main() -> None:
            started_s = SimLoop.current().time()
            await asyncio.sleep(5)
            assert SimLoop.current().time() == started_s + 5

        run(main())

Theory of operation. `SimLoop` replaces the selector, the clock and the timer heap of asyncio's loop; futures,
tasks and callbacks are asyncio's own. One turn of the loop (`_run_once`) does this:

1. Remove cancelled timers from the top of the heap.
2. If no callback is ready, advance the clock to the next timer. Time passes at no other place. If there
   is no timer either, raise `Deadlock`.
3. Make the timers that are due ready, then run the callbacks that are ready now.
4. If a callback or a forgotten task raised, raise `Unhandled`.

Timers of the same time run in the order in which they were made, because the heap compares (time, number).
Nothing depends on ``PYTHONHASHSEED`` or on addresses of objects. Garbage is collected at fixed turns only
(`isolated`), because a finalizer that runs at a random time would change the course.

There is no outside world: sockets, threads, signals and subprocesses raise `NotSimulated`. What would hang
or pass unseen on a real loop is an error: `Deadlock` if nothing can ever run again, `LimitReached` if a run
does not end (by virtual time, by turns, or by turns without time passing), `Unhandled`, and `LeftOver` if
tasks or async generators outlive the coroutine that was run. `clean_up` cancels what is left and finds them.

Only the loop's time is virtual. ``time.time()`` and ``time.monotonic()`` return the machine's time, and a
program that acts on them is not deterministic.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import math
import random
import time
import weakref
from asyncio import base_events
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextvars import Context
from typing import Any, NoReturn, Self, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

LIMIT_S = 7 * 86_400.0
"""Virtual seconds: longer than any scenario, so that tasks with timers that wait for each other are found."""
LIMIT_TURNS = 50_000_000
"""Turns of the loop: minutes of real time."""
STUCK_TURNS = 1_000_000
"""Turns without time passing: callbacks that schedule each other for ever stop the clock."""
SETTLE_TURNS = 10
"""Turns in which tasks that were cancelled at the very end may finish."""
_FROZEN_AT_START = 1_000
"""Up to so many objects are frozen by the interpreter itself: CPython 3.12 freezes 375 while it starts.
A program that calls ``gc.freeze`` freezes thousands; a run leaves those frozen."""
CLEAN_UP_S = 120.0
"""Virtual seconds for cancelled tasks to end."""
COLLECT_EVERY_TURNS = 1_000_000
MAX_SHOWN = 10
"""Tasks listed in an error: a cluster that hangs has thousands."""
_MIN_CANCELLED = 128


class SimulationError(Exception):
    """Base class of the errors of a simulated run; the program's own exceptions are raised as they are."""


class Deadlock(SimulationError):
    """Nothing is ready and no timer is set, so nothing can ever run again.

    Attributes:
        at_s: virtual time, in seconds.
        tasks: where each pending task waits, oldest first.
    """

    def __init__(self, at_s: float, tasks: list[str]) -> None:
        super().__init__(at_s, tasks)
        self.at_s = at_s
        self.tasks = tasks

    def __str__(self) -> str:
        return f"deadlock at {self.at_s:g} s: nothing is ready and no timer is set; {_list_tasks(self.tasks)}"


class LimitReached(SimulationError):
    """The run did not end within its limit.

    Attributes:
        what: the limit, with its number.
        at_s: virtual time, in seconds.
        tasks: where each pending task waits, oldest first.
    """

    def __init__(self, what: str, at_s: float, tasks: list[str]) -> None:
        super().__init__(what, at_s, tasks)
        self.what = what
        self.at_s = at_s
        self.tasks = tasks

    def __str__(self) -> str:
        return f"not done after {self.what} (at {self.at_s:g} s); {_list_tasks(self.tasks)}"


class Unhandled(SimulationError):
    """A callback raised, or a task raised and its result was never retrieved.

    Attributes:
        contexts: the contexts that `asyncio.loop.call_exception_handler` got; the first exception
            in them is also ``__cause__``.
    """

    def __init__(self, contexts: list[dict[str, Any]]) -> None:
        super().__init__(contexts)
        self.contexts = contexts

    def __str__(self) -> str:
        said = [f"{each.get('message')}: {each.get('exception')!r}" for each in self.contexts]
        return f"{len(said)} unhandled: {'; '.join(said[:MAX_SHOWN])}"


class LeftOver(SimulationError):
    """The coroutine returned while tasks or async generators of its run were still alive.

    They have been cancelled or closed.

    Attributes:
        what: descriptions of these tasks and generators, oldest first.
    """

    def __init__(self, what: list[str]) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"the run ended and left over {len(self.what)}: {'; '.join(self.what[:MAX_SHOWN])}"


class NotSimulated(SimulationError, NotImplementedError):
    """The program asked a `SimLoop` for a socket, a thread, a signal or a subprocess."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return (
            f"loop.{self.what}() needs the outside world, which a SimLoop does not have;"
            " use SimTransport for the network, and a fake for everything else"
        )


class SimLoop(asyncio.BaseEventLoop):
    """An event loop whose clock starts at 0.0 and jumps to the next timer.

    Args:
        seed: the seed of `rng`, from which everything random in a simulation should be drawn.
        limit_s: virtual time at which the run fails with `LimitReached`, in seconds.
        limit_turns: number of turns at which the run fails with `LimitReached`.

    ``run_in_executor`` (and so ``asyncio.to_thread``) runs the function on this thread, in a later
    turn. ``call_soon_threadsafe`` works, but the loop does not wait for other threads.
    """

    def __init__(self, *, seed: int = 0, limit_s: float = LIMIT_S, limit_turns: int = LIMIT_TURNS) -> None:
        super().__init__()
        self.rng: random.Random = random.Random(seed)
        self.limit_s: float = limit_s
        self.limit_turns: int = limit_turns
        self.unhandled: list[dict[str, Any]] = []
        """Contexts of unhandled exceptions; the turn in which one is added ends with `Unhandled`."""
        self.turns: int = 0
        self._now_s = 0.0
        # The heap compares tuples in C and never a handle: the number makes equal times stable.
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_made = 0
        self._timers_cancelled = 0
        self._turns_stop = 0
        self._set_turn_limits()
        self._tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], None]
        self._tasks = weakref.WeakKeyDictionary()
        self._tasks_made = 0

    @classmethod
    def current(cls) -> Self:
        """Return the running loop.

        Raises:
            RuntimeError: no loop runs, or the running loop is not a `SimLoop`.
        """
        loop = asyncio.get_running_loop()
        if not isinstance(loop, cls):
            raise RuntimeError(  # noqa: TRY004  # as where no loop runs at all
                f"the running event loop is {loop!r}, not a {cls.__name__}"
            )
        return loop

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._now_s

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call back at a virtual time; in the next turn if that time has passed.

        Raises:
            ValueError: ``when`` is NaN.
            RuntimeError: the loop is closed.
        """
        self._check_closed()  # type: ignore[attr-defined]
        if math.isnan(when):
            raise ValueError("the time of a timer must be a number; got nan")
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        # With this mark a cancelled handle calls `_timer_handle_cancelled`, as with asyncio's own heap.
        timer._scheduled = True  # type: ignore[attr-defined]  # noqa: SLF001
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, timer))
        return timer

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        """Make a task; tasks without a name are numbered per loop, so that traces of two runs compare."""
        self._tasks_made += 1
        if name is None:
            name = f"Task-{self._tasks_made}"
        task: asyncio.Task[T] = super().create_task(coro, name=name, **options)
        self._tasks[task] = None
        return task

    def run_in_executor(
        self, executor: object, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run the function on this thread in the loop's next turn; the executor is not used."""
        del executor
        future: asyncio.Future[T] = self.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001  # the caller gets it, as with any executor
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_soon(work)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep an unhandled exception for the end of the turn, unless the program set its own handler."""
        if self.get_exception_handler() is not None:
            super().call_exception_handler(context)
        else:
            self.unhandled.append(context)

    def pending_tasks(self) -> list[asyncio.Task[Any]]:
        """Return the tasks that are not done, oldest first."""
        return [task for task in list(self._tasks) if not task.done()]

    def extend(self, limit_s: float) -> None:
        """Set new limits: ``limit_s`` virtual seconds and `LIMIT_TURNS` turns from now on."""
        self.limit_s = self._now_s + limit_s
        self.limit_turns = self.turns + LIMIT_TURNS
        self._set_turn_limits()

    def close(self) -> None:
        """Close the loop. Idempotent."""
        super().close()
        self._timers.clear()

    # One turn.

    def _run_once(self) -> None:
        """Run one turn; see the theory of operation. It calls no method that every callback would pay for."""
        ready: deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        self.turns += 1
        if self.turns >= self._turns_stop:
            self._check_turns()
        if self._timers_cancelled > _MIN_CANCELLED:
            self._drop_cancelled()
        timers = self._timers
        while timers and timers[0][2]._cancelled:  # noqa: SLF001
            heapq.heappop(timers)
            self._timers_cancelled -= 1
        if not ready:
            if timers:
                self._advance_to(timers[0][0])
            elif not self._stopping:  # type: ignore[attr-defined]
                raise Deadlock(self._now_s, self._describe_tasks())
        now_s = self._now_s
        while timers and timers[0][0] <= now_s:
            timer = heapq.heappop(timers)[2]
            timer._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001
            ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:  # noqa: SLF001
                handle._run()  # noqa: SLF001
        if self.unhandled:
            self._raise_unhandled()

    def _advance_to(self, when_s: float) -> None:
        if when_s <= self._now_s:
            return
        if when_s > self.limit_s:
            raise LimitReached(f"{self.limit_s:g} virtual seconds", self._now_s, self._describe_tasks())
        self._now_s = when_s
        self._stuck_at = self.turns + STUCK_TURNS  # `_check_turns` moves `_turns_stop` when it is reached.

    def _set_turn_limits(self) -> None:
        # The next turn at which garbage is collected is a stop as well: one comparison a turn.
        collect = (self.turns // COLLECT_EVERY_TURNS + 1) * COLLECT_EVERY_TURNS
        self._stuck_at = self.turns + STUCK_TURNS
        self._turns_stop = min(self._stuck_at, self.limit_turns, collect)

    def _check_turns(self) -> None:
        if self.turns >= self.limit_turns:
            raise LimitReached(f"{self.limit_turns:,} turns", self._now_s, self._describe_tasks())
        if self.turns >= self._stuck_at:
            what = f"{STUCK_TURNS:,} turns without time passing"
            raise LimitReached(what, self._now_s, self._describe_tasks())
        if self.turns % COLLECT_EVERY_TURNS == 0 and not gc.isenabled():
            gc.collect()
        stuck_at = self._stuck_at
        self._set_turn_limits()
        self._stuck_at = stuck_at
        self._turns_stop = min(self._turns_stop, stuck_at)

    def _raise_unhandled(self) -> NoReturn:
        contexts, self.unhandled = self.unhandled, []
        ended = base_events._run_until_complete_cb  # type: ignore[attr-defined]  # noqa: SLF001
        for handle in self._ready:  # type: ignore[attr-defined]
            if handle._callback is ended:  # noqa: SLF001
                handle.cancel()  # what ended in this very turn must not stop the next run
        raise _make_unhandled(contexts)

    def _drop_cancelled(self) -> None:
        if self._timers_cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._timers_cancelled = 0

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        del handle
        self._timers_cancelled += 1

    def _describe_tasks(self) -> list[str]:
        return [_describe_task(task) for task in self.pending_tasks()]

    # Parts of asyncio's loop that need the outside world.

    def _process_events(self, event_list: object) -> None:
        """Do nothing: a simulated loop has no events."""

    def _write_to_self(self) -> None:
        """Do nothing: a simulated loop never sleeps."""


def _make_absent(name: str) -> Callable[..., NoReturn]:
    def absent(_self: SimLoop, *_args: object, **_options: object) -> NoReturn:
        raise NotSimulated(name)

    absent.__name__ = name
    return absent


for _name in (
    *("add_reader", "remove_reader", "add_writer", "remove_writer"),
    *("add_signal_handler", "remove_signal_handler", "getaddrinfo", "getnameinfo"),
    *("create_connection", "create_server", "create_datagram_endpoint", "start_tls", "sendfile"),
    *("create_unix_connection", "create_unix_server", "connect_accepted_socket"),
    *("sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into"),
    *("sock_sendall", "sock_sendto", "sock_connect", "sock_accept", "sock_sendfile"),
    *("connect_read_pipe", "connect_write_pipe", "subprocess_shell", "subprocess_exec"),
):
    setattr(SimLoop, _name, _make_absent(_name))


def run(
    main: Coroutine[Any, Any, T],
    *,
    seed: int = 0,
    limit_s: float = LIMIT_S,
    limit_turns: int = LIMIT_TURNS,
) -> T:
    """Run a coroutine on a `SimLoop` of its own and return its result.

    The generator of the random module is seeded too, and restored afterwards. Garbage is collected at
    fixed turns only, so that finalizers do not depend on what ran before.

    Args:
        main: the coroutine; `SimLoop.current` returns its loop.
        seed: the seed of `SimLoop.rng` and of the random module.
        limit_s: limit in virtual seconds.
        limit_turns: limit in turns of the loop.

    Returns:
        The result of ``main``.

    Raises:
        Deadlock: nothing can ever run again.
        LimitReached: the run did not end within a limit.
        Unhandled: a callback or a forgotten task raised.
        LeftOver: ``main`` returned, but tasks or async generators were still alive.
        RuntimeError: an event loop is running already.

    An exception of ``main`` is raised first, with the others as notes. After any error, every task has
    been cancelled and the loop is closed.
    """
    if asyncio.events._get_running_loop() is not None:  # noqa: SLF001  # asyncio checks too late
        main.close()
        raise RuntimeError("run() starts its own event loop, but one is running already")
    loop = SimLoop(seed=seed, limit_s=limit_s, limit_turns=limit_turns)
    with isolated(seed), contextlib.closing(loop):
        try:
            result = loop.run_until_complete(main)
        except BaseException as error:
            for trouble in clean_up(loop):
                if not isinstance(trouble, LeftOver):
                    error.add_note(f"Also: {trouble}")
            raise
        for trouble in clean_up(loop):
            raise trouble
        return result


class _FormerRuns:
    """What runs have left, since tests and errors still refer to it when they end: a cluster is one cycle.

    The next run would freeze it. Looking at all objects of a process takes a tenth of a second, as long as
    ten small runs; so it is done when runs have taken `PATIENCE` times as long. Where the program has frozen
    its objects, it is done each time: it takes a moment, and what a run freezes then stays frozen.
    """

    PATIENCE = 20

    def __init__(self) -> None:
        self.took_s = 0.0
        """Seconds of this process in runs since the last collection."""
        self.running = 0
        """Runs that go on: one inside another one, at most."""
        self._collection_s = 0.05
        self._is_frozen = False

    def is_frozen(self) -> bool:
        """Whether the program, or a run around this one, has frozen its objects.

        Python counts them one by one, a tenth of a second for a million. So it is asked no more once the
        program has frozen them: they are taken to stay so.
        """
        if not (self.running or self._is_frozen):
            self._is_frozen = gc.get_freeze_count() > _FROZEN_AT_START
        return self.running > 0 or self._is_frozen

    def collect(self, *, is_last_chance: bool) -> None:
        """Collect the garbage, if that is worth its time, or cannot be done later."""
        if is_last_chance or self.took_s > self.PATIENCE * self._collection_s:
            began = time.process_time()
            gc.collect()
            self.took_s, self._collection_s = 0.0, time.process_time() - began


_FORMER_RUNS = _FormerRuns()


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed the random module and turn automatic garbage collection off; restore both afterwards."""
    state = random.getstate()
    collecting, may_unfreeze = gc.isenabled(), not _FORMER_RUNS.is_frozen()
    _FORMER_RUNS.collect(is_last_chance=not may_unfreeze)
    gc.disable()
    gc.freeze()  # objects made before this run are neither scanned nor finalized in it
    random.seed(seed)
    began = time.process_time()
    _FORMER_RUNS.running += 1
    try:
        yield
    finally:
        _FORMER_RUNS.running -= 1
        _FORMER_RUNS.took_s += time.process_time() - began
        random.setstate(state)
        if may_unfreeze:
            gc.unfreeze()
        if collecting:
            gc.enable()


def clean_up(loop: SimLoop) -> list[SimulationError]:
    """Cancel and close everything that is alive on the loop, and return the errors found."""
    contexts: list[dict[str, Any]] = []
    gc.collect()  # a forgotten task reports its exception when it is collected
    loop.extend(CLEAN_UP_S)
    settling = loop.create_task(_settle())
    try:
        loop.run_until_complete(settling)
    except Unhandled as error:  # raised out of the loop: `settling` may still wait
        contexts += error.contexts
    left = [_describe_task(task) for task in loop.pending_tasks() if task is not settling]
    while tasks := loop.pending_tasks():
        for task in tasks:
            task.cancel()
        try:
            loop.run_until_complete(asyncio.wait(tasks))
        except Unhandled as error:
            contexts += error.contexts
        except SimulationError as error:
            left += [f"{_describe_task(task)} ignored its cancellation ({error})" for task in tasks]
            break
        for task in tasks:
            if task.done() and not task.cancelled() and (exception := task.exception()) is not None:
                message = f"{_describe_task(task)} raised when it was cancelled"
                contexts.append({"message": message, "exception": exception})
    asyncgens: weakref.WeakSet[Any] = loop._asyncgens  # type: ignore[attr-defined]  # noqa: SLF001
    left += sorted(f"async generator {agen.__qualname__}" for agen in asyncgens if agen.ag_frame)
    with contextlib.suppress(SimulationError):
        loop.run_until_complete(loop.shutdown_asyncgens())
    gc.collect()
    contexts += loop.unhandled
    loop.unhandled = []
    found: list[SimulationError] = [_make_unhandled(contexts)] if contexts else []
    return [*found, LeftOver(left)] if left else found


async def _settle() -> None:
    """Let tasks finish that were cancelled at the very end; tasks that wait for something do not."""
    for _ in range(SETTLE_TURNS):
        await asyncio.sleep(0)


def _make_unhandled(contexts: list[dict[str, Any]]) -> Unhandled:
    error = Unhandled(contexts)
    error.__cause__ = next((each["exception"] for each in contexts if each.get("exception")), None)
    return error


def _describe_task(task: asyncio.Task[Any]) -> str:
    """Describe a task in one line: its name, its coroutine, and where it waits."""
    coroutine = task.get_coro()
    name = getattr(coroutine, "__qualname__", repr(coroutine))
    where = ""
    while (inner := getattr(coroutine, "cr_await", None)) is not None:
        if getattr(inner, "cr_frame", None) is None:
            break
        coroutine = inner
    frame = getattr(coroutine, "cr_frame", None)
    if frame is not None:
        where = f" at {frame.f_code.co_filename}:{frame.f_lineno}"
    return f"{task.get_name()} ({name}){where}"


def _list_tasks(tasks: list[str]) -> str:
    if not tasks:
        return "no task is pending"
    more = f" and {len(tasks) - MAX_SHOWN} more" if len(tasks) > MAX_SHOWN else ""
    return f"{len(tasks)} pending: {'; '.join(tasks[:MAX_SHOWN])}{more}"
