"""Pools that run blocking functions beside the event loop, in threads or in processes.

A node has two pools. The stages of one function:

1. waiting: the caller waits on the loop for one of the pool's slots. The threads have no queue of
   their own, so callers are served in order, and a caller that is cancelled here has run nothing;
2. submitted: a slot is taken, and an idle thread (or a new one) gets the job. The thread asks whether
   the caller still waits before it begins;
3. running: the function runs to its end, since a thread cannot be stopped. Its slot stays taken, even
   if the caller is cancelled meanwhile; then the result is dropped;
4. done: the result is handed to the loop, and the slot to the next caller.

The semaphore, ``running`` and every `_Job.caller` belong to the loop's thread. What crosses threads is
a thread's inbox, the list of idle threads (append and pop are atomic) and ``is_busy``.

When the node stops, every caller gets `NodeStopped` at once. Functions in threads run on (left
running), functions in processes are killed. Each job's future is cancelled, so that a function that
ends later reports nothing to a loop that may be closed by then.

Source: `concurrent.futures.ThreadPoolExecutor`; differs: its threads are joined when the program ends,
so that one stuck function would keep the program alive. These threads are daemons.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from fleetlm.blocking import forks
from fleetlm.blocking.worker_process import FunctionCall, FunctionResult, WorkerProcess, catch_result
from fleetlm.errors import NodeStopped
from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from fleetlm.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

STOP_TIMEOUT_S = 1.0
"""Seconds that `Blocking.close` waits for idle threads and processes to end: they need milliseconds."""

MAX_NAMES_LOGGED = 8
"""Functions named in the warning about functions that still run when the node stops."""

log: logging.Logger = logging.getLogger("fleetlm")


class Blocking:
    """The two pools of a node. Threads and processes are started when they are first needed.

    On a `fleetlm.testing.SimLoop` the functions run on the loop's own thread, in the order of their
    calls, and take no virtual time, since a loop decides what its ``run_in_executor`` does.
    """

    def __init__(self, node: str, settings: Settings) -> None:
        self._threads = _Pool(node, settings.blocking_threads, _Thread)
        self._processes = _Pool(node, settings.blocking_processes or _count_cpus(), _ProcessThread)

    @property
    def running(self) -> int:
        """Functions that hold a slot, including those whose caller was cancelled."""
        return len(self._threads.running) + len(self._processes.running)

    async def in_thread(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `Node.run_blocking`."""
        _check_function("run_blocking", function)
        call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
        result: R = await self._threads.run(_Job(function, call))
        return result

    async def in_process(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `Node.run_in_process`."""
        _check_function("run_in_process", function)
        result: R = await self._processes.run(_Job(function, FunctionCall(function, args, kwargs)))
        return result

    async def close(self) -> None:
        """Refuse further functions, and wait up to `STOP_TIMEOUT_S` for idle threads and processes to end."""
        for pool in (self._threads, self._processes):
            pool.stop()
        loop = asyncio.get_running_loop()
        until = loop.time() + STOP_TIMEOUT_S
        while self._threads.is_ending() or self._processes.is_ending():
            if loop.time() >= until:
                break
            await asyncio.sleep(0.005)


def _check_function(verb: str, function: object) -> None:
    if not callable(function):
        raise TypeError(f"{verb}() takes a function, not {SHORT.repr(function)}")
    if inspect.iscoroutinefunction(function):
        name = _get_name(function)
        raise TypeError(
            f"{verb}() takes a plain function, and {name} is a coroutine function: use await {name}(...)"
        )


def _get_name(function: object) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _count_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


class _Job:
    """One function with its arguments and its waiting caller. Calling a job runs it and never raises."""

    def __init__(self, function: object, call: Callable[[], Any]) -> None:
        self.name = _get_name(function)
        self.call = call
        self.caller: asyncio.Future[FunctionResult] = asyncio.get_running_loop().create_future()
        """The caller waits for this future. It is done early if the caller is cancelled or the node stops."""

    @property
    def is_abandoned(self) -> bool:
        """Whether the caller has stopped waiting; then the function must not begin."""
        return self.caller.done()

    def __call__(self) -> FunctionResult:
        return (None, None) if self.is_abandoned else catch_result(self.call)


class _Pool:
    """Runs up to ``size`` functions at a time. All methods are called on the loop's thread."""

    def __init__(self, node: str, size: int, thread: type[_Thread]) -> None:
        self.running: dict[asyncio.Future[FunctionResult], _Job] = {}
        """Jobs that hold a slot, by the future of their execution."""
        self._node = node
        self._slots = asyncio.Semaphore(max(1, size))
        self._leftover_state = thread.leftover_state
        self._executor = _Executor(thread, f"fleetlm {node}")
        self._stopped = ""
        """Why further functions are refused, as the rest of a `NodeStopped`; empty while the pool runs."""
        forks.guard(self)

    async def run(self, job: _Job) -> Any:
        """Wait for a free slot and run the job; return its result or raise its error. Raises: NodeStopped."""
        self._check_running()
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        try:
            self._check_running()
            running = loop.run_in_executor(self._executor, job)
        except BaseException:  # The pool was stopped meanwhile, or no further thread can be started.
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

    def stop(self) -> None:
        """Raise `NodeStopped` in every caller, and let every idle thread end. Idempotent."""
        if not self._stopped:
            self._stopped = "has been stopped"
        left = []
        for running, job in self.running.items():
            left.append(job.name)
            if not job.is_abandoned:
                why = f"has been stopped before {job.name} ended"
                job.caller.set_exception(NodeStopped(self._node, why))
            # Otherwise the end of the function would be reported to a loop that may be closed by then.
            # Cancelling also frees the slot: the first waiting caller takes it, raises and passes it on.
            running.cancel()
        if left:
            log.warning(
                "node %s stopped while %d blocking function(s) were running; %s: %s",
                self._node,
                len(left),
                self._leftover_state,
                ", ".join(sorted(left)[:MAX_NAMES_LOGGED]),
            )
        self._executor.end()

    def is_ending(self) -> bool:
        """Whether idle threads have been told to end and are still there."""
        return self._executor.is_ending()

    def after_fork(self) -> None:
        """Implements `forks.Guarded`: the child has none of the pool's threads."""
        self._stopped = forks.FORKED
        self.running.clear()

    def _finish(self, running: asyncio.Future[FunctionResult]) -> None:
        """Free the slot of a job that has ended, and hand its result to the caller."""
        job = self.running.pop(running)
        self._slots.release()
        if not job.is_abandoned:
            job.caller.set_result(running.result())

    def _check_running(self) -> None:
        if self._stopped:
            raise NodeStopped(self._node, self._stopped)


_Task = tuple["concurrent.futures.Future[FunctionResult]", _Job]


class _Thread(threading.Thread):
    """Runs one job after another. The loop gives it a job only while it is idle."""

    leftover_state = "left running"
    """What happens to a function that still runs when the node has stopped, for the log."""

    def __init__(self, name: str, idle: list[_Thread]) -> None:
        super().__init__(name=name, daemon=True)
        self.inbox: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        """At most one job, and None after it to end the thread."""
        self.is_busy = False
        self._idle = idle

    def run(self) -> None:
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

    def perform(self, job: _Job) -> FunctionResult:
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


class _ProcessThread(_Thread):
    """Runs its jobs in a process of its own and waits for their results."""

    leftover_state = "killed"

    def __init__(self, name: str, idle: list[_Thread]) -> None:
        super().__init__(name, idle)
        self._process = WorkerProcess(f"{name} worker")

    def perform(self, job: _Job) -> FunctionResult:
        if job.is_abandoned or not isinstance(job.call, FunctionCall):
            return None, None
        return self._process.perform(job.call)

    def finish(self) -> None:
        self._process.end(STOP_TIMEOUT_S / 2)

    def abort(self) -> None:
        if self.is_busy:
            self._process.kill()

    @property
    def is_stuck(self) -> bool:
        return False  # A process can be killed, so the thread ends soon.


class _Executor(concurrent.futures.Executor):
    """Hands a job to an idle thread, or to a new one. The pool's semaphore bounds the number of threads."""

    def __init__(self, thread: type[_Thread], name: str) -> None:
        self._thread = thread
        self._name = name
        self._threads: list[_Thread] = []
        self._idle: list[_Thread] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run a `_Job`. Raises: RuntimeError, where no thread can be started."""
        if not isinstance(fn, _Job) or args or kwargs:
            raise TypeError("this executor runs only the jobs of its pool")
        future: concurrent.futures.Future[FunctionResult] = concurrent.futures.Future()
        if self._idle:
            thread = self._idle.pop()  # The thread that ran last: its data is still in the CPU's caches.
        else:
            thread = self._thread(f"{self._name} blocking {len(self._threads) + 1}", self._idle)
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
