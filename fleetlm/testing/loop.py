"""An asyncio event loop on virtual time: a day passes in moments, and always in the same way.

    def test_the_poller_asks_every_five_seconds() -> None:
        async def main() -> None:
            started_s = SimLoop.current().time()
            await asyncio.sleep(5)
            assert SimLoop.current().time() == started_s + 5

        run(main())

Nothing waits: where no callback is ready, the clock jumps to the next timer. Callbacks of one
instant run in the order in which they were scheduled, whatever the hash seed. There is no
outside world: no sockets, no threads, no signals (`NotSimulated`).

What would hang or pass unseen on a real loop is an error here: `Deadlock` where nothing can ever
run again, `LimitReached` where a run does not end, `Unhandled` where a callback or a forgotten task
raised, `LeftOver` where tasks or async generators outlive the coroutine that was run.

Only loop time is virtual. ``time.time()`` and ``time.monotonic()`` still tell the machine's, and a
program that acts on them is not deterministic.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import math
import random
import weakref
from asyncio import base_events
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextvars import Context
from typing import Any, NoReturn, Self, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

LIMIT_S = 7 * 86_400.0
"""Virtual seconds: longer than any scenario, so that what only waits for itself is found."""
LIMIT_TURNS = 50_000_000
STUCK_TURNS = 1_000_000
"""Turns of the loop at one instant: callbacks that schedule each other for ever stop time."""
SETTLE_TURNS = 10
_FROZEN_AT_START = 1_000
"""Up to so many objects are frozen by the interpreter itself: CPython 3.12 freezes 375 while it starts.
``gc.freeze`` called by a program freezes thousands."""
CLEAN_UP_S = 120.0
"""Virtual seconds for cancelled tasks to end."""
COLLECT_EVERY_TURNS = 1_000_000
SHOWN = 10
"""Tasks named in an error: a cluster that hangs has thousands."""
_CANCELLED_MIN = 128


class SimulationError(Exception):
    """Base of what a simulated run can fail with, besides the exception of the program itself."""


class Deadlock(SimulationError):
    """Nothing is ready and no timer is set, so nothing can ever run again.

    Attributes:
        at_s: virtual time.
        tasks: what every pending task waits for, oldest first.
    """

    def __init__(self, at_s: float, tasks: list[str]) -> None:
        super().__init__(at_s, tasks)
        self.at_s = at_s
        self.tasks = tasks

    def __str__(self) -> str:
        return f"deadlock at {self.at_s:g} s: nothing is ready and no timer is set; {_listed(self.tasks)}"


class LimitReached(SimulationError):
    """The run did not end within its limit.

    Attributes:
        what: which limit, with its number.
        at_s: virtual time.
        tasks: what every pending task waits for, oldest first.
    """

    def __init__(self, what: str, at_s: float, tasks: list[str]) -> None:
        super().__init__(what, at_s, tasks)
        self.what = what
        self.at_s = at_s
        self.tasks = tasks

    def __str__(self) -> str:
        return f"not done after {self.what} (at {self.at_s:g} s); {_listed(self.tasks)}"


class Unhandled(SimulationError):
    """A callback raised, or a task raised and nobody asked for its result.

    Attributes:
        contexts: as `asyncio.loop.call_exception_handler` has them; the first exception among
            them is also ``__cause__``.
    """

    def __init__(self, contexts: list[dict[str, Any]]) -> None:
        super().__init__(contexts)
        self.contexts = contexts

    def __str__(self) -> str:
        said = [f"{each.get('message')}: {each.get('exception')!r}" for each in self.contexts]
        return f"{len(said)} unhandled: {'; '.join(said[:SHOWN])}"


class LeftOver(SimulationError):
    """The coroutine returned while tasks or async generators of its run were alive.

    They have been cancelled or closed.

    Attributes:
        what: each of them, oldest first.
    """

    def __init__(self, what: list[str]) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"the run ended and left over {len(self.what)}: {'; '.join(self.what[:SHOWN])}"


class NotSimulated(SimulationError, NotImplementedError):
    """A virtual loop has no sockets, threads, signals or subprocesses."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return (
            f"loop.{self.what}() needs the outside world, which a SimLoop has not;"
            " use SimTransport for the network, and a fake for the rest"
        )


class SimLoop(asyncio.BaseEventLoop):
    """An event loop whose clock starts at 0.0 and jumps to the next timer.

    Args:
        seed: of `rng`, from which everything random in a simulation is to be drawn.
        limit_s: virtual time at which `LimitReached` ends the run.
        limit_turns: turns of the loop, likewise.

    ``run_in_executor`` (so ``asyncio.to_thread``) runs the function on this thread, in a later
    turn. ``call_soon_threadsafe`` works, but the loop does not wait for other threads.
    """

    def __init__(self, *, seed: int = 0, limit_s: float = LIMIT_S, limit_turns: int = LIMIT_TURNS) -> None:
        super().__init__()
        self.rng: random.Random = random.Random(seed)
        self.limit_s: float = limit_s
        self.limit_turns: int = limit_turns
        self.unhandled: list[dict[str, Any]] = []
        """Contexts of exceptions that nobody handled; `run_until_complete` raises on the first."""
        self.turns: int = 0
        self._now_s = 0.0
        # The heap compares tuples in C and never a handle: the number makes equal times stable.
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_made = 0
        self._timers_cancelled = 0
        self._turns_stop = 0
        self._allow_turns()
        self._tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], None]
        self._tasks = weakref.WeakKeyDictionary()
        self._tasks_made = 0

    @classmethod
    def current(cls) -> Self:
        """The running loop. Raises: RuntimeError where it is none of this class."""
        loop = asyncio.get_running_loop()
        if not isinstance(loop, cls):
            raise RuntimeError(  # noqa: TRY004  # as where no loop runs at all
                f"the running event loop is {loop!r}, not a {cls.__name__}"
            )
        return loop

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call back at that virtual time; at once where it has passed."""
        self._check_closed()  # type: ignore[attr-defined]
        if math.isnan(when):
            raise ValueError("a timer needs a time; got nan")
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        # With this mark a cancelled handle says so, as with asyncio's own heap.
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
        """A task; without a name it is numbered within this loop, so that traces compare."""
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
            except Exception as error:  # noqa: BLE001  # it is the caller's, as with any executor
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_soon(work)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what nobody handled, unless the program set a handler of its own."""
        if self.get_exception_handler() is not None:
            super().call_exception_handler(context)
        else:
            self.unhandled.append(context)

    def pending_tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks that are not done, oldest first."""
        return [task for task in list(self._tasks) if not task.done()]

    def extend(self, limit_s: float) -> None:
        """Set the limits anew: so many virtual seconds and `LIMIT_TURNS` turns from now on."""
        self.limit_s = self._now_s + limit_s
        self.limit_turns = self.turns + LIMIT_TURNS
        self._allow_turns()

    def close(self) -> None:
        """Close the loop. Idempotent."""
        super().close()
        self._timers.clear()

    # One turn.

    def _run_once(self) -> None:
        ready: deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        self.turns += 1
        if self.turns >= self._turns_stop:
            self._check_turns()
        if self._timers_cancelled > _CANCELLED_MIN:
            self._drop_cancelled()
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
            self._timers_cancelled -= 1
        if not ready:
            if timers:
                self._jump(timers[0][0])
            elif not self._stopping:  # type: ignore[attr-defined]
                raise Deadlock(self._now_s, self._shown())
        now_s = self._now_s
        while timers and timers[0][0] <= now_s:
            timer = heapq.heappop(timers)[2]
            timer._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001
            ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()  # noqa: SLF001
        if self.unhandled:
            self._fail()

    def _jump(self, when_s: float) -> None:
        if when_s <= self._now_s:
            return
        if when_s > self.limit_s:
            raise LimitReached(f"{self.limit_s:g} virtual seconds", self._now_s, self._shown())
        self._now_s = when_s
        self._allow_turns()

    def _allow_turns(self) -> None:
        # The next multiple at which rubbish is collected is a stop, too: one comparison a turn.
        collect = (self.turns // COLLECT_EVERY_TURNS + 1) * COLLECT_EVERY_TURNS
        self._stuck_at = self.turns + STUCK_TURNS
        self._turns_stop = min(self._stuck_at, self.limit_turns, collect)

    def _check_turns(self) -> None:
        if self.turns >= self.limit_turns:
            raise LimitReached(f"{self.limit_turns:,} turns", self._now_s, self._shown())
        if self.turns >= self._stuck_at:
            what = f"{STUCK_TURNS:,} turns without time passing"
            raise LimitReached(what, self._now_s, self._shown())
        if self.turns % COLLECT_EVERY_TURNS == 0 and not gc.isenabled():
            gc.collect()
        stuck_at = self._stuck_at
        self._allow_turns()
        self._stuck_at = stuck_at
        self._turns_stop = min(self._turns_stop, stuck_at)

    def _fail(self) -> NoReturn:
        contexts, self.unhandled = self.unhandled, []
        ended = base_events._run_until_complete_cb  # type: ignore[attr-defined]  # noqa: SLF001
        for handle in self._ready:  # type: ignore[attr-defined]
            if handle._callback is ended:  # noqa: SLF001
                handle.cancel()  # what ended in this very turn must not stop the next run
        raise _unhandled(contexts)

    def _drop_cancelled(self) -> None:
        if self._timers_cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._timers_cancelled = 0

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        del handle
        self._timers_cancelled += 1

    def _shown(self) -> list[str]:
        return [_shown(task) for task in self.pending_tasks()]

    # The outside world.

    def _process_events(self, event_list: object) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nothing sleeps that would have to be woken."""


def _absent(name: str) -> Callable[..., NoReturn]:
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
    setattr(SimLoop, _name, _absent(_name))


def run(
    main: Coroutine[Any, Any, T],
    *,
    seed: int = 0,
    limit_s: float = LIMIT_S,
    limit_turns: int = LIMIT_TURNS,
) -> T:
    """Run a coroutine on a `SimLoop` of its own and return its result.

    The random module's own generator is seeded as well, and put back afterwards. Rubbish is
    collected at fixed turns only: finalizers must not depend on what ran before.

    Args:
        main: the coroutine; `SimLoop.current` gives it the loop.
        seed: of `SimLoop.rng`.
        limit_s: virtual seconds.
        limit_turns: turns of the loop.

    Raises:
        Deadlock: nothing can ever run again.
        LimitReached: it did not end.
        Unhandled: a callback or a forgotten task raised.
        LeftOver: it returned, but tasks or async generators were still alive.

    What ``main`` raises comes first, with the others as notes. Whatever is raised, every task has
    been cancelled and the loop is closed.
    """
    if asyncio.events._get_running_loop() is not None:  # noqa: SLF001  # asyncio checks too late
        main.close()
        raise RuntimeError("run() starts an event loop of its own; here, one is running already")
    loop = SimLoop(seed=seed, limit_s=limit_s, limit_turns=limit_turns)
    with isolated(seed), contextlib.closing(loop):
        try:
            result = loop.run_until_complete(main)
        except BaseException as error:
            for trouble in clean_up(loop):
                if not isinstance(trouble, LeftOver):
                    error.add_note(f"Besides: {trouble}")
            raise
        for trouble in clean_up(loop):
            raise trouble
        return result


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed the random module, and keep rubbish from being collected at random; put both back."""
    state = random.getstate()
    collecting, is_frozen = gc.isenabled(), gc.get_freeze_count() > _FROZEN_AT_START
    gc.disable()
    if not is_frozen:
        gc.freeze()  # what was there before is neither looked through nor finalized in this run
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
        if not is_frozen:
            gc.unfreeze()
        if collecting:
            gc.enable()


def clean_up(loop: SimLoop) -> list[SimulationError]:
    """End what is alive on the loop, and tell what was wrong."""
    contexts: list[dict[str, Any]] = []
    gc.collect()  # a forgotten task tells of its exception when it is collected
    loop.extend(CLEAN_UP_S)
    settling = loop.create_task(_settle())
    try:
        loop.run_until_complete(settling)
    except Unhandled as error:  # raised out of the loop: `settling` may still wait
        contexts += error.contexts
    left = [_shown(task) for task in loop.pending_tasks() if task is not settling]
    while tasks := loop.pending_tasks():
        for task in tasks:
            task.cancel()
        try:
            loop.run_until_complete(asyncio.wait(tasks))
        except Unhandled as error:
            contexts += error.contexts
        except SimulationError as error:
            left += [f"{_shown(task)} ignored its cancellation ({error})" for task in tasks]
            break
        for task in tasks:
            if task.done() and not task.cancelled() and (exception := task.exception()) is not None:
                message = f"{_shown(task)} raised when it was cancelled"
                contexts.append({"message": message, "exception": exception})
    asyncgens: weakref.WeakSet[Any] = loop._asyncgens  # type: ignore[attr-defined]  # noqa: SLF001
    left += sorted(f"async generator {agen.__qualname__}" for agen in asyncgens if agen.ag_frame)
    with contextlib.suppress(SimulationError):
        loop.run_until_complete(loop.shutdown_asyncgens())
    gc.collect()
    contexts += loop.unhandled
    loop.unhandled = []
    found: list[SimulationError] = [_unhandled(contexts)] if contexts else []
    return [*found, LeftOver(left)] if left else found


async def _settle() -> None:
    """What was cancelled or dropped at the very end may finish, what waits may not."""
    for _ in range(SETTLE_TURNS):
        await asyncio.sleep(0)


def _unhandled(contexts: list[dict[str, Any]]) -> Unhandled:
    error = Unhandled(contexts)
    error.__cause__ = next((each["exception"] for each in contexts if each.get("exception")), None)
    return error


def _shown(task: asyncio.Task[Any]) -> str:
    """A task in a line: its name, its coroutine, and where that waits."""
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


def _listed(tasks: list[str]) -> str:
    if not tasks:
        return "no task is pending"
    more = f" and {len(tasks) - SHOWN} more" if len(tasks) > SHOWN else ""
    return f"{len(tasks)} pending: {'; '.join(tasks[:SHOWN])}{more}"
