"""Runs functions of the program that have a time limit: checks of readiness, and hooks of a node that leaves.

A coroutine function runs on the event loop. A plain function runs in a thread: it may block, and a time limit
could not be kept for one that blocks the loop. If it returns an awaitable, that is awaited on the loop.

The threads are not those of `Node.run_blocking`, which the program's work may hold for minutes. A function
that has not ended in time goes on in its thread, since a thread cannot be stopped; so one function holds one
thread at most, and is not started again before it has ended.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fleetlm.blocking.function_call import FunctionResult
from fleetlm.blocking.pool import FunctionThread, Job, Pool, PoolKind
from fleetlm.errors import NodeStopped

if TYPE_CHECKING:
    from fleetlm.settings import Settings

Function = Callable[[], Any]


class TookTooLong(Exception):
    """A function has not ended within its time limit."""


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


class UserFunctions:
    """The threads of one node for such functions; they start when they are first needed."""

    def __init__(self, node: str, settings: Settings) -> None:
        self._node = node
        kind = PoolKind(
            f"node {node}", "a check or a hook", "threads", "left running", "Raise Settings.hook_threads"
        )
        self._pool = Pool(node, settings.hook_threads, FunctionThread, kind)
        self._in_threads: dict[int, Job] = {}
        """The functions that hold a thread, by the identity of the function."""

    async def run(self, function: Function, limit_s: float) -> Any:
        """Call a function and return its result.

        Args:
            function: takes no arguments.
            limit_s: seconds that it has.

        Raises:
            TookTooLong: it took longer. A coroutine was cancelled, a plain function goes on in its thread.
            RuntimeError: an earlier run of this plain function has not ended.
            Exception: what it raised.
        """
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                result = function() if is_async(function) else await self._run_in_thread(function)
                return await result if inspect.isawaitable(result) else result
        except TimeoutError:
            if limit.expired():
                raise TookTooLong(f"was not done within {limit_s:g} s") from None
            raise

    async def _run_in_thread(self, function: Function) -> Any:
        key = id(function)
        if key in self._in_threads:
            raise RuntimeError("an earlier run of it has not ended")

        job = self._in_threads[key] = _Run(function, lambda: self._in_threads.pop(key, None))
        try:
            return await self._pool.run(job)
        finally:
            if job.began_at is None:  # It got no thread.
                self._in_threads.pop(key, None)

    def close(self) -> None:
        """Let idle threads end."""
        self._pool.stop(lambda _: NodeStopped(self._node, "has been stopped"))


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling a function, method, partial or callable object only makes a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # the method of an object, not whether there is one
    )
