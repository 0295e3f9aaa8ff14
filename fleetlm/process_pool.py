"""A pool of worker processes of one's own, for functions that need something loaded first.

    pool = node.process_pool(load, "/models/llama")        # load() runs in each process before anything else
    await pool.start()                                     # now, instead of at the first use
    text = await pool.run(complete, prompt)                # in a process that has loaded

Source: `concurrent.futures.ProcessPoolExecutor`; differs: an initializer that fails is told to the caller,
with what it raised, and the pool goes on with a new process; there, the pool is broken from then on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from fleetlm.blocking.pools import Blocking, in_pool, initializer_of

if TYPE_CHECKING:
    from fleetlm.ids import Pid

P = ParamSpec("P")
R = TypeVar("R")


class ProcessPool:
    """Worker processes with an initializer; made by `Node.process_pool` or `Actor.process_pool`.

    Each process starts at its first use, or with `start`, and runs the initializer before anything else; what
    that puts into global variables is there for every function. A process that has died is replaced, and
    the new one runs the initializer too.
    """

    def __init__(
        self,
        blocking: Blocking,
        initializer: Callable[..., object] | None,
        args: tuple[Any, ...],
        processes: int,
        owner: Pid | None = None,
    ) -> None:
        if processes < 1:
            raise ValueError(f"processes is {processes}; a pool has at least one")
        self._blocking = blocking
        self._initializer = initializer_of(initializer, args)
        self._pool = blocking.process_pool(processes, self._initializer, owner)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start all processes and run the initializer in each, so that no function has to wait for it.

        Raises:
            WorkerNotStarted: one of them did not start, or its initializer raised (the ``__cause__``). The
                pool
                can be used nevertheless: each use tries again.
        """
        jobs = [
            in_pool(self._initializer, _nothing, (), {}, needs_new_process=True)
            for _ in range(self._pool.size)
        ]
        outcomes = await asyncio.gather(*(self._pool.run(job) for job in jobs), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function in one of the processes; further callers wait in order.

        Args:
            function: a plain function; see `Node.run_in_process`.
            *args: its positional arguments.
            **kwargs: its named arguments.

        Raises:
            WorkerNotStarted: the function has not run: the initializer raised (the ``__cause__``), the
                process
                did not start, or the pool has been closed.
            Exception: as `Node.run_in_process`.
        """
        result: R = await self._pool.run(in_pool(self._initializer, function, args, kwargs))
        return result

    async def close(self) -> None:
        """End the processes, and kill those that run a function. The end of the node does so too."""
        await self._blocking.close_pool(self._pool)


def _nothing() -> None:
    """Do nothing, in a process that has just started."""
