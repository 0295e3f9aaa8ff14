"""Runs functions of the program that have a time limit: checks of readiness, and hooks of a node that leaves.

A coroutine function runs on the event loop. A plain function runs in a thread: it may block, and a time limit
could not be kept for one that blocks the loop. If it returns an awaitable, that is awaited on the loop.

`runtime.hook_threads` has the threads; they are made for the first plain function.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleetlm.runtime.hook_threads import HookThreads
    from fleetlm.settings import Settings

Function = Callable[[], Any]


class TookTooLong(Exception):
    """A function has not ended within its time limit."""


class UserFunctions:
    """Runs such functions for one node."""

    def __init__(self, node: str, settings: Settings) -> None:
        self._node = node
        self._settings = settings
        self._is_closed = False

    @functools.cached_property
    def threads(self) -> HookThreads:
        """Made at its first use: a node without checks and hooks starts without this code."""
        from fleetlm.runtime.hook_threads import HookThreads  # noqa: PLC0415

        threads = HookThreads(self._node, self._settings.hook_threads)
        if self._is_closed:
            threads.close()
        return threads

    def prepare(self, function: Function) -> None:
        """Make the threads if a function will need one: a node that leaves should not have to import code."""
        if not is_async(function):
            _ = self.threads

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
                result = function() if is_async(function) else await self.threads.run(function)
                return await result if inspect.isawaitable(result) else result
        except TimeoutError:
            if limit.expired():
                raise TookTooLong(f"was not done within {limit_s:g} s") from None
            raise

    def close(self) -> None:
        """Let idle threads end, and refuse further plain functions."""
        self._is_closed = True
        if "threads" in vars(self):
            self.threads.close()


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling a function, method, partial or callable object only makes a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # the method of an object, not whether there is one
    )
