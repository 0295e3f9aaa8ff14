"""Blocking functions beside the event loop: in threads, or in processes of their own.

Each pool has a bound, and its threads have no queue: who finds all of them busy waits on the loop, in
order, and can be cancelled there. So a function that has not begun when its caller goes is never run.

The threads are daemons. Those of `concurrent.futures` are joined when the program ends, and one stuck
function would keep it from ending.
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
from fleetlm.blocking.worker_process import Order, Outcome, WorkerProcess, outcome_of
from fleetlm.errors import NodeStopped

if TYPE_CHECKING:
    from fleetlm.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

END_S = 1.0
"""For idle threads and processes to end with their node: they need milliseconds."""

SHOWN = 8
"""Functions named in a warning."""

log = logging.getLogger("fleetlm")


class Blocking:
    """The two pools of a node. Nothing is started before it is needed.

    On a `fleetlm.testing.SimLoop` the functions run on the loop's own thread, in the order in which
    they were asked for, and take no virtual time: a loop decides what its ``run_in_executor`` does.
    """

    def __init__(self, node: str, settings: Settings) -> None:
        self._threads = _Pool(node, settings.blocking_threads, _Thread)
        self._processes = _Pool(node, settings.blocking_processes or _cpus(), _ProcessThread)

    @property
    def running(self) -> int:
        """Functions that have begun and not ended, those that nobody waits for any more included."""
        return len(self._threads.running) + len(self._processes.running)

    async def in_thread(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `Node.run_blocking`."""
        _check("run_blocking", function)
        call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
        result: R = await self._threads.run(_Job(function, call))
        return result

    async def in_process(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `Node.run_in_process`."""
        _check("run_in_process", function)
        result: R = await self._processes.run(_Job(function, Order(function, args, kwargs)))
        return result

    async def close(self) -> None:
        """Run nothing any more; waits for threads and processes that have nothing to do, at most `END_S`."""
        for pool in (self._threads, self._processes):
            pool.stop()
        loop = asyncio.get_running_loop()
        until = loop.time() + END_S
        while self._threads.ending() or self._processes.ending():
            if loop.time() >= until:
                break
            await asyncio.sleep(0.005)


def _check(verb: str, function: object) -> None:
    if not callable(function):
        raise TypeError(f"{verb}() takes a function, not {function!r}")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{verb}() takes a plain function: await {_name(function)}(...) itself, it can wait")


def _name(function: object) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _cpus() -> int:
    """CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


class _Job:
    """One function with its arguments. Called, it runs them here and never raises."""

    def __init__(self, function: object, call: Callable[[], Any]) -> None:
        self.name = _name(function)
        self.call = call
        self.caller: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        """What its caller waits for; done earlier where that was cancelled, or the node has stopped."""

    @property
    def dropped(self) -> bool:
        """Whether nobody waits: then it must not begin."""
        return self.caller.done()

    def __call__(self) -> Outcome:
        return (None, None) if self.dropped else outcome_of(self.call)


class _Pool:
    """So many functions at a time. All of it belongs to the loop's thread."""

    def __init__(self, node: str, size: int, thread: type[_Thread]) -> None:
        self.running: dict[asyncio.Future[Outcome], _Job] = {}
        """What runs, whether its caller waits or not."""
        self._node = node
        self._slots = asyncio.Semaphore(max(1, size))
        self._fate = thread.fate
        self._executor = _Executor(thread, f"fleetlm {node}")
        self._stopped = ""
        forks.guard(self)

    async def run(self, job: _Job) -> Any:
        """Wait for a free slot, run the job, return or raise what the function did."""
        self._check_running()
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        try:
            self._check_running()
            running = loop.run_in_executor(self._executor, job)
        except BaseException:  # Stopped meanwhile, or the system gives no more threads.
            self._slots.release()
            raise
        self.running[running] = job
        running.add_done_callback(self._ended)
        value, error = await job.caller
        if error is None:
            return value
        try:
            raise error
        finally:
            del error  # its traceback has this frame: a cycle

    def stop(self) -> None:
        """Let every caller hear that the node has stopped, and every idle thread end."""
        if not self._stopped:
            self._stopped = "has been stopped"
        left = []
        for running, job in self.running.items():
            left.append(job.name)
            if not job.dropped:
                why = f"has been stopped, and {job.name} did not end before"
                job.caller.set_exception(NodeStopped(self._node, why))
            # The end of it would be told to a loop that may be closed by then. And its slot is free now:
            # the first that waits takes it, raises, and passes it on.
            running.cancel()
        if left:
            shown = ", ".join(sorted(left)[:SHOWN])
            log.warning("%d function(s) outlast the node and are %s: %s", len(left), self._fate, shown)
        self._executor.end()

    def ending(self) -> bool:
        """Whether threads that will end soon have not yet."""
        return self._executor.ending()

    def after_fork(self) -> None:
        """`forks.Guarded`: a child has none of the threads."""
        self._stopped = forks.FORKED
        self.running.clear()

    def _ended(self, running: asyncio.Future[Outcome]) -> None:
        job = self.running.pop(running)
        self._slots.release()
        if not job.dropped:
            job.caller.set_result(running.result())

    def _check_running(self) -> None:
        if self._stopped:
            raise NodeStopped(self._node, self._stopped)


_Task = tuple["concurrent.futures.Future[Outcome]", _Job]


class _Thread(threading.Thread):
    """Runs one job after another."""

    fate = "left behind"
    """What becomes of a function that outlasts the node."""

    def __init__(self, name: str, idle: list[_Thread]) -> None:
        super().__init__(name=name, daemon=True)
        self.inbox: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        """One job, then None: it is given another only when it is idle."""
        self.busy = False
        self._idle = idle

    def run(self) -> None:
        while (task := self.inbox.get()) is not None:
            future, job = task
            if future.set_running_or_notify_cancel():
                self.busy = True
                outcome = self.perform(job)
                self.busy = False
                self._idle.append(self)  # First: whoever hears of the outcome may need a thread.
                future.set_result(outcome)
                del outcome
            else:
                self._idle.append(self)
            del task, future, job  # What a function returned must not live until the next one.
        self.finish()

    def perform(self, job: _Job) -> Outcome:
        """Run a job; never raises."""
        return job()

    def finish(self) -> None:
        """The thread ends."""

    def abort(self) -> None:
        """Called from the loop: the node has gone, whatever is still busy."""

    @property
    def stuck(self) -> bool:
        """Whether it may not end soon."""
        return self.busy


class _ProcessThread(_Thread):
    """Has one process that runs its jobs, and waits for it in its place."""

    fate = "killed"

    def __init__(self, name: str, idle: list[_Thread]) -> None:
        super().__init__(name, idle)
        self._process = WorkerProcess(f"{name} worker")

    def perform(self, job: _Job) -> Outcome:
        if job.dropped or not isinstance(job.call, Order):
            return None, None
        return self._process.perform(job.call)

    def finish(self) -> None:
        self._process.end(END_S / 2)

    def abort(self) -> None:
        if self.busy:
            self._process.kill()

    @property
    def stuck(self) -> bool:
        return False  # A process can be killed.


class _Executor(concurrent.futures.Executor):
    """Hands a job to an idle thread, or to a new one; its user sees to the bound."""

    def __init__(self, thread: type[_Thread], name: str) -> None:
        self._thread = thread
        self._name = name
        self._threads: list[_Thread] = []
        self._idle: list[_Thread] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run a `_Job`. Raises: RuntimeError, where the system gives no thread."""
        if not isinstance(fn, _Job) or args or kwargs:
            raise TypeError("this executor runs the jobs of its pool")
        future: concurrent.futures.Future[Outcome] = concurrent.futures.Future()
        if self._idle:
            thread = self._idle.pop()  # The last one that was busy: what it needs is in the caches.
        else:
            thread = self._thread(f"{self._name} blocking {len(self._threads) + 1}", self._idle)
            thread.start()
            self._threads.append(thread)
        thread.inbox.put((future, fn))
        return future

    def end(self) -> None:
        """Let every thread end once it is idle."""
        for thread in self._threads:
            thread.inbox.put(None)
            thread.abort()

    def ending(self) -> bool:
        """Whether threads that are about to end are still there."""
        return any(thread.is_alive() and not thread.stuck for thread in self._threads)
