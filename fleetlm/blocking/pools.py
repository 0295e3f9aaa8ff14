"""The pools of a node, in which blocking functions run beside the event loop, in threads or in processes.

* One pool of threads and one of processes serve the whole node (`run_blocking`, `run_in_process`).
* An actor with a thread of its own has a pool of one thread, for libraries whose objects belong to the thread
  that made them: the pool is made at the first use, and ends with the actor.
* A generator of `stream_blocking` has a pool of one thread from its begin to its end (`generators`).
* A program can make further pools of processes, with an initializer (`ProcessPool`).

`pool` has how one pool works.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from fleetlm.blocking.cpus import cpus
from fleetlm.blocking.function_call import FunctionCall, InitializedCall, Initializer
from fleetlm.blocking.generators import Generation, GeneratorSource, GeneratorThread, Weigh
from fleetlm.blocking.pool import STOP_TIMEOUT_S, FunctionThread, Job, Pool, PoolKind, ProcessThread
from fleetlm.errors import NodeStopped, WorkerDied, WorkerNotStarted
from fleetlm.texts import SHORT, name_of

if TYPE_CHECKING:
    from fleetlm.ids import Pid
    from fleetlm.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")


class Blocking:
    """The pools of a node. Threads and processes are started when they are first needed.

    On a `fleetlm.testing.SimLoop` the functions run on the loop's own thread, in the order of their
    calls, and take no virtual time, since a loop decides what its ``run_in_executor`` does.
    """

    def __init__(self, node: str, settings: Settings) -> None:
        self._node = node
        self._is_stopped = False
        owner, more = f"node {node}", "Raise Settings."
        self._threads = Pool(
            node,
            settings.blocking_threads,
            FunctionThread,
            PoolKind(owner, "run_blocking", "threads", "left running", f"{more}blocking_threads"),
        )
        self._processes = Pool(
            node,
            settings.blocking_processes or _cpus(),
            ProcessThread,
            PoolKind(owner, "run_in_process", "processes", "killed", f"{more}blocking_processes"),
        )
        self._settings = settings
        self._generators: dict[Pool, None] = {}
        """The pools of one thread in which blocking generators run."""
        self._generator_slots = asyncio.Semaphore(max(1, settings.blocking_generators))
        self._own_threads: dict[Pid, Pool] = {}
        """The pools of actors that have a thread of their own, from their first use to the actor's end."""
        self._pools: dict[Pool, Pid | None] = {}
        """Process pools that the program has made and not closed, each with the actor that it ends with."""

    def open_jobs(self) -> list[tuple[asyncio.Future[Any], str]]:
        """Return the functions whose callers wait, each as its caller's future and its name.

        A function whose caller was cancelled, by Ctrl-C for one, holds up nobody's leaving.
        """
        every = (job for pool in self._every() for job in pool.running.values())
        return [(job.caller, job.name) for job in every if not job.is_abandoned]

    @property
    def running(self) -> int:
        """Functions that hold a slot, including those whose caller was cancelled."""
        return sum(len(pool.running) for pool in self._every())

    async def in_thread(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `Node.run_blocking`."""
        result: R = await self._threads.run(_in_thread(function, args, kwargs))
        return result

    async def in_own_thread(
        self, owner: Pid, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a function in the one thread of an actor; see `Actor.thread`. The actor must not have ended."""
        job = _in_thread(function, args, kwargs)
        result: R = await self._own_thread(owner).run(job)
        return result

    def generate(
        self,
        function: Callable[..., Iterable[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        weigh: Weigh,
        owner: Pid | None = None,
    ) -> GeneratorSource:
        """See `Node.stream_blocking`.

        Args:
            function: the generator function.
            args: its positional arguments.
            kwargs: its named arguments.
            weigh: returns the units of an item in the window of a stream.
            owner: an actor with a thread of its own, in which the generator runs; None: in any thread.
        """
        window = self._settings.stream_window
        open_pool = self._open_generator if owner is None else functools.partial(self._lend_thread, owner)
        return GeneratorSource(function, args, kwargs, window, weigh, open_pool)

    @contextlib.asynccontextmanager
    async def _open_generator(self, generation: Generation) -> AsyncIterator[Pool]:
        """Wait until a further generator may have a thread, and end its thread afterwards."""
        async with self._generator_slots:
            if self._is_stopped:
                raise NodeStopped(self._node, "has been stopped")
            kind = PoolKind(
                f"node {self._node}", "stream_blocking", "threads", "left running",
                "Raise Settings.blocking_generators",
            )  # fmt: skip
            pool = Pool(self._node, 1, functools.partial(GeneratorThread, generation), kind)
            self._generators[pool] = None
            try:
                yield pool
            finally:
                self._generators.pop(pool, None)
                pool.stop(self._node_stopped)

    @contextlib.asynccontextmanager
    async def _lend_thread(self, owner: Pid, _generation: Generation) -> AsyncIterator[Pool]:
        """Let a generator run in the own thread of an actor, in turns with the actor's functions."""
        yield self._own_thread(owner)

    def _own_thread(self, owner: Pid) -> Pool:
        pool = self._own_threads.get(owner)
        if pool is None:
            if self._is_stopped:
                raise NodeStopped(self._node, "has been stopped")
            words = PoolKind(
                f"actor {owner}",
                "run_blocking",
                "threads",
                "left running",
                "Its functions run one after the other",
            )
            pool = self._own_threads[owner] = Pool(self._node, 1, FunctionThread, words)
        return pool

    async def in_process(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `Node.run_in_process`."""
        _check_function("run_in_process", function)
        result: R = await self._processes.run(Job(function, FunctionCall(function, args, kwargs)))
        return result

    def process_pool(self, processes: int, initializer: Initializer | None, owner: Pid | None) -> Pool:
        """Return a further pool of processes; it ends with this node, with ``owner`` or by `close_pool`."""
        if self._is_stopped:
            raise NodeStopped(self._node, "has been stopped")
        kind = PoolKind(
            f"node {self._node}", "ProcessPool.run", "processes", "killed", "Give the pool more processes"
        )
        make_thread = functools.partial(ProcessThread, initializer=initializer)
        pool = Pool(self._node, processes, make_thread, kind)
        self._pools[pool] = owner
        return pool

    async def close_pool(self, pool: Pool) -> None:
        """Stop a pool that `process_pool` returned, and wait until its idle processes have ended."""
        if self._pools.pop(pool, None) is not None or not self._is_stopped:
            pool.stop(_pool_closed)
        await _wait_for_end([pool])

    def process_ended(self, pid: Pid) -> None:
        """End what belongs to an actor that has ended: its thread and its pools of processes."""
        pool = self._own_threads.pop(pid, None) if self._own_threads else None  # Hashing a pid takes a while.
        if pool is not None:
            pool.stop(functools.partial(_actor_ended, pid))
        if self._pools:
            for pool in [pool for pool, owner in self._pools.items() if owner == pid]:
                del self._pools[pool]
                pool.stop(_pool_closed)

    async def close(self) -> None:
        """Refuse further functions, and wait up to `STOP_TIMEOUT_S` for idle threads and processes to end."""
        self.stop()
        await _wait_for_end(self._every())

    def stop(self) -> None:
        """Refuse further functions, and let idle threads and processes end."""
        self._is_stopped = True
        for pool in self._every():
            pool.stop(self._node_stopped)

    def _every(self) -> list[Pool]:
        return [self._threads, self._processes, *self._own_threads.values(), *self._pools, *self._generators]

    def _node_stopped(self, job: Job) -> NodeStopped:
        before = "" if job.began_at is None else f" before {job.name} ended"
        return NodeStopped(self._node, f"has been stopped{before}")


@functools.cache
def _cpus() -> int:
    """Return `cpus`, which reads files, for the nodes of this program."""
    return cpus()


def initializer_of(function: Callable[..., object] | None, args: tuple[Any, ...]) -> Initializer | None:
    """Return the initializer of a process pool. Raises: TypeError, if it is no plain function."""
    if function is None:
        return None
    _check_function("process_pool", function)
    initializer = Initializer(function, args, {})
    initializer.pack()  # For its TypeError, here and not at the first use.
    return initializer


def in_pool(
    initializer: Initializer | None,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    needs_new_process: bool = False,
) -> Job:
    """Return the job for a function in a process pool."""
    _check_function("ProcessPool.run", function)
    call = InitializedCall(initializer, function, args, kwargs)
    return Job(function, call, needs_new_thread=needs_new_process)


def _in_thread(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Job:
    _check_function("run_blocking", function)
    return Job(function, functools.partial(contextvars.copy_context().run, function, *args, **kwargs))


def _check_function(verb: str, function: object) -> None:
    if not callable(function):
        raise TypeError(f"{verb}() takes a function, not {SHORT.repr(function)}")
    if inspect.iscoroutinefunction(function):
        name = name_of(function)
        raise TypeError(
            f"{verb}() takes a plain function, and {name} is a coroutine function: use await {name}(...)"
        )


def _actor_ended(pid: Pid, job: Job) -> RuntimeError:
    before = "" if job.began_at is None else f" before {job.name} ended"
    return RuntimeError(f"the actor {pid} has ended{before}, and its thread with it")


def _pool_closed(job: Job) -> WorkerDied | WorkerNotStarted:
    if job.began_at is None:
        return WorkerNotStarted(job.name, "its pool has been closed")
    return WorkerDied(job.name, "its pool was closed before it ended")


async def _wait_for_end(pools: list[Pool]) -> None:
    """Wait up to `STOP_TIMEOUT_S` for the idle threads of pools that have been stopped."""
    loop = asyncio.get_running_loop()
    until = loop.time() + STOP_TIMEOUT_S
    while any(pool.is_ending() for pool in pools) and loop.time() < until:  # noqa: ASYNC110  # threads end
        await asyncio.sleep(0.005)
