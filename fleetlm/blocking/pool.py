"""One pool: runs blocking functions beside the event loop, a bounded number at a time.

The stages of one function:

1. waiting: the caller waits on the loop for one of the pool's slots. The threads have no queue of
   their own, so callers are served in order, and a caller that is cancelled here has run nothing;
2. submitted: a slot is taken, and an idle thread (or a new one) gets the job. The thread asks whether
   the caller still waits before it begins;
3. running: the function runs to its end, since a thread cannot be stopped. Its slot stays taken, even
   if the caller is cancelled meanwhile; then the result is dropped;
4. done: the result is handed to the loop, and the slot to the next caller.

The semaphore, ``running`` and every `Job.caller` belong to the loop's thread. What crosses threads is
a thread's inbox, the list of idle threads (append and pop are atomic) and ``is_busy``.

When a pool is stopped, every caller gets an error at once. Functions in threads run on (left
running), functions in processes are killed. Each job's future is cancelled, so that a function that
ends later reports nothing to a loop that may be closed by then.

Functions that never return keep their slots, and at some time all slots. Callers then wait for ever, so a
warning names the functions (`Pool._warn_full`).

Source: `concurrent.futures.ThreadPoolExecutor`; differs: its threads are joined when the program ends,
so that one stuck function would keep the program alive. These threads are daemons.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import math
import queue
import threading
from collections.abc import Callable
from typing import Any

from fleetlm.blocking import forks
from fleetlm.blocking.function_call import FunctionCall, FunctionResult, catch_result
from fleetlm.errors import NodeStopped
from fleetlm.records import Record
from fleetlm.texts import name_of

STOP_TIMEOUT_S = 1.0
"""Seconds that idle threads and processes have to end when a pool stops: they need milliseconds."""
MAX_NAMES_LOGGED = 8
"""Functions named in a warning about functions that run."""
FULL_WARNING_S = 10.0
"""Seconds that a caller waits for a slot before a warning says which functions hold all of them."""
WARNING_PAUSE_S = 60.0
"""Seconds between two such warnings of one pool."""

log: logging.Logger = logging.getLogger("fleetlm")

Ended = Callable[["Job"], Exception]
"""Makes the error that a caller gets when the pool has been stopped; see `Job.began_at`."""


class PoolKind(Record):
    """What a pool is, in words.

    Attributes:
        owner: whose pool it is: the node, or an actor.
        verb: the method that runs functions here.
        slots: what a function needs one of, in the plural.
        leftover_state: what happens to functions that still run when the pool is stopped.
        advice: what to do where there are too few slots, as the begin of a sentence.
    """

    owner: str
    verb: str
    slots: str
    leftover_state: str
    advice: str


class Job:
    """One function with its arguments and its waiting caller. Calling a job runs it and never raises.

    Args:
        function: for its name.
        call: runs it.
        needs_new_thread: whether a new thread runs it, as long as the pool may have one more.
    """

    def __init__(self, function: object, call: Callable[[], Any], *, needs_new_thread: bool = False) -> None:
        self.name: str = name_of(function)
        self.call = call
        self.needs_new_thread = needs_new_thread
        self.caller: asyncio.Future[FunctionResult] = asyncio.get_running_loop().create_future()
        """The caller waits for this future. It is done early if the caller is cancelled or the pool stops."""
        self.began_at: float | None = None
        """The loop's time when the job got its slot; None before, and where it got no thread after all."""

    @property
    def is_abandoned(self) -> bool:
        """Whether the caller has stopped waiting; then the function must not begin."""
        return self.caller.done()

    def __call__(self) -> FunctionResult:
        """Run the function, unless its caller has gone. Never raises."""
        return (None, None) if self.is_abandoned else catch_result(self.call, self.name)


class Pool:
    """Runs up to ``size`` functions at a time. All methods are called on the loop's thread.

    Args:
        node: the name of the node.
        size: functions that run at a time.
        make_thread: makes a thread from its name and the list of idle threads.
        kind: what the pool is, in words.
    """

    def __init__(self, node: str, size: int, make_thread: MakeThread, kind: PoolKind) -> None:
        self.running: dict[asyncio.Future[FunctionResult], Job] = {}
        """Jobs that hold a slot, by the future of their execution."""
        self.size: int = max(1, size)
        self.kind = kind
        self._node = node
        self._slots = asyncio.Semaphore(self.size)
        self._executor = _Executor(make_thread, f"fleetlm {node}", self.size)
        self._ended: Ended | None = None
        """Set by `stop`: the pool takes no further functions."""
        self._no_warning_until = -math.inf
        forks.guard(self)

    async def run(self, job: Job) -> Any:
        """Wait for a free slot and run the job; return its result or raise its error.

        Raises:
            Exception: the error of `stop`, if the pool has been stopped.
        """
        self._check_running(job)
        loop = asyncio.get_running_loop()
        warning = loop.call_later(FULL_WARNING_S, self._warn_full) if self._slots.locked() else None
        try:
            await self._slots.acquire()
        finally:
            if warning is not None:
                warning.cancel()
        try:
            self._check_running(job)
            job.began_at = loop.time()
            running = loop.run_in_executor(self._executor, job)
        except BaseException:  # The pool was stopped meanwhile, or no further thread can be started.
            job.began_at = None
            self._slots.release()
            raise
        self.running[running] = job
        running.add_done_callback(self._finish)
        value, error = await job.caller
        if error is None:
            return value
        try:
            raise error
        finally:
            del error  # Its traceback refers to this frame, which would be a reference cycle.

    def stop(self, ended: Ended) -> None:
        """Raise ``ended(job)`` in every caller, and let every idle thread end. Idempotent."""
        if self._ended is None:
            self._ended = ended
        left = []
        for running, job in self.running.items():
            left.append(job.name)
            if not job.is_abandoned:
                job.caller.set_exception(self._ended(job))
            # Otherwise the end of the function would be reported to a loop that may be closed by then.
            # Cancelling also frees the slot: the first waiting caller takes it, raises and passes it on.
            running.cancel()
        if left:
            log.warning(
                "%s stopped while %d blocking function(s) were running; %s: %s",
                self.kind.owner,
                len(left),
                self.kind.leftover_state,
                ", ".join(sorted(left)[:MAX_NAMES_LOGGED]),
            )
        self._executor.end()

    def is_ending(self) -> bool:
        """Whether idle threads have been told to end and are still there."""
        return self._executor.is_ending()

    def after_fork(self) -> None:
        """Implements `forks.Guarded`: the child has none of the pool's threads."""
        self._ended = lambda _: NodeStopped(self._node, forks.FORKED)
        self.running.clear()

    def _finish(self, running: asyncio.Future[FunctionResult]) -> None:
        """Free the slot of a job that has ended, and hand its result to the caller."""
        job = self.running.pop(running)
        self._slots.release()
        if not job.is_abandoned:
            job.caller.set_result(running.result())

    def _check_running(self, job: Job) -> None:
        if self._ended is not None:
            raise self._ended(job)

    def _warn_full(self) -> None:
        """Say that a caller waits for a slot, and which functions hold them."""
        now = asyncio.get_running_loop().time()
        jobs = list(self.running.values())
        if now < self._no_warning_until or not jobs:
            return
        self._no_warning_until = now + WARNING_PAUSE_S
        oldest = min(now if job.began_at is None else job.began_at for job in jobs)
        log.warning(
            "a call of %s on %s has waited for %g s: all its %s (%d) are taken, by %s, the first of "
            "them for %.0f s. %s, and give functions that may hang a time limit of their own",
            self.kind.verb,
            self.kind.owner,
            FULL_WARNING_S,
            self.kind.slots,
            len(jobs),
            ", ".join(sorted({job.name for job in jobs})[:MAX_NAMES_LOGGED]),
            now - oldest,
            self.kind.advice,
        )


_Task = tuple["concurrent.futures.Future[FunctionResult]", Job]


class FunctionThread(threading.Thread):
    """Runs one job after another. The loop gives it a job only while it is idle."""

    def __init__(self, name: str, idle: list[FunctionThread]) -> None:
        super().__init__(name=name, daemon=True)
        self.inbox: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        """At most one job, and None after it to end the thread."""
        self.is_busy: bool = False
        self._idle = idle

    def run(self) -> None:
        """Run jobs until the pool ends."""
        while (task := self.inbox.get()) is not None:
            future, job = task
            if future.set_running_or_notify_cancel():
                self.is_busy = True
                result = self.perform(job)
                self.is_busy = False
                self._idle.append(self)  # Before the result: its receiver may submit the next job at once.
                future.set_result(result)
                del result
            else:
                self._idle.append(self)
            del task, future, job  # Otherwise a result would be kept alive until the next job.
        self.finish()

    def perform(self, job: Job) -> FunctionResult:
        """Run a job. Never raises."""
        return job()

    def finish(self) -> None:
        """Release what the thread owns. Called at its end, in the thread itself."""

    def abort(self) -> None:
        """End a running job if possible. Called on the loop's thread when the node has stopped."""

    @property
    def is_stuck(self) -> bool:
        """Whether the thread may take long to end, so that closing does not wait for it."""
        return self.is_busy


class ProcessThread(FunctionThread):
    """Runs its jobs in a process of its own and waits for their results."""

    def __init__(
        self, name: str, idle: list[FunctionThread], initializer: FunctionCall | None = None
    ) -> None:
        # Imported here: few programs use multiprocessing.
        from fleetlm.blocking.worker_process import WorkerProcess  # noqa: PLC0415

        super().__init__(name, idle)
        self._process = WorkerProcess(f"{name} worker", initializer)

    def perform(self, job: Job) -> FunctionResult:
        """Let the process run a job. Never raises."""
        if job.is_abandoned or not isinstance(job.call, FunctionCall):
            return None, None
        return self._process.perform(job.call)

    def finish(self) -> None:
        """End the process."""
        self._process.end(STOP_TIMEOUT_S / 2)

    def abort(self) -> None:
        """Kill the process while it runs a function."""
        if self.is_busy:
            self._process.kill()

    @property
    def is_stuck(self) -> bool:
        """See `FunctionThread.is_stuck`."""
        return False  # A process can be killed, so the thread ends soon.


MakeThread = Callable[[str, list[FunctionThread]], FunctionThread]
"""Makes a thread from its name and the list to which it adds itself when it is idle."""


class _Executor(concurrent.futures.Executor):
    """Hands a job to an idle thread, or to a new one. The pool's semaphore bounds the number of threads."""

    def __init__(self, make_thread: MakeThread, name: str, size: int) -> None:
        self._make_thread = make_thread
        self._name = name
        self._size = size
        self._threads: list[FunctionThread] = []
        self._idle: list[FunctionThread] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run a `Job`. Raises: RuntimeError, where no thread can be started."""
        if not isinstance(fn, Job) or args or kwargs:
            raise TypeError("this executor runs only the jobs of its pool")
        future: concurrent.futures.Future[FunctionResult] = concurrent.futures.Future()
        is_new = fn.needs_new_thread and len(self._threads) < self._size
        if self._idle and not is_new:
            thread = self._idle.pop()  # The thread that ran last: its data is still in the CPU's caches.
        else:
            thread = self._make_thread(f"{self._name} blocking {len(self._threads) + 1}", self._idle)
            thread.start()
            self._threads.append(thread)
        thread.inbox.put((future, fn))
        return future

    def end(self) -> None:
        """Tell every thread to end once it is idle."""
        for thread in self._threads:
            thread.inbox.put(None)
            thread.abort()

    def is_ending(self) -> bool:
        """Whether threads that will end soon are still there."""
        return any(thread.is_alive() and not thread.is_stuck for thread in self._threads)
