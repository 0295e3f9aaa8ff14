"""The threads in which checks and hooks run that are plain functions; see `runtime.user_functions`.

They are not those of `Node.run_blocking`, which the program's work may hold for minutes. A function that has
not ended in time goes on in its thread, since a thread cannot be stopped; so one function holds one thread at
most, and is not started again before it has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fleetlm.blocking.pool import FunctionThread, Job, Pool, PoolKind
from fleetlm.errors import NodeStopped

if TYPE_CHECKING:
    from fleetlm.blocking.function_call import FunctionResult

Function = Callable[[], Any]


class _Run(Job):
    """One run of a function.

    The function is free for the next run when the thread has gone, also if the thread did not call it because
    the caller had gone by then.
    """

    def __init__(self, function: Function, end: Callable[[], object]) -> None:
        super().__init__(function, function)
        self._end = end

    def __call__(self) -> FunctionResult:
        try:
            return super().__call__()
        finally:
            self._end()


class HookThreads:
    """The threads of one node for such functions; each starts when it is first needed."""

    def __init__(self, node: str, most: int) -> None:
        self._node = node
        kind = PoolKind(
            f"node {node}", "a check or a hook", "threads", "left running", "Raise Settings.hook_threads"
        )
        self.pool: Pool = Pool(node, most, FunctionThread, kind)
        self._in_threads: dict[int, Job] = {}
        """The functions that hold a thread, by the identity of the function."""

    async def run(self, function: Function) -> Any:
        """Call a function in a thread. Raises: RuntimeError, if an earlier run of it has not ended."""
        key = id(function)
        if key in self._in_threads:
            raise RuntimeError("an earlier run of it has not ended")
        job = self._in_threads[key] = _Run(function, lambda: self._in_threads.pop(key, None))
        try:
            return await self.pool.run(job)
        finally:
            if job.began_at is None:  # It got no thread.
                self._in_threads.pop(key, None)

    def close(self) -> None:
        """Let idle threads end."""
        self.pool.stop(lambda _: NodeStopped(self._node, "has been stopped"))
