"""Runs a coroutine with context variables of its own, in the task that awaits it.

`asyncio` gives a context to a whole task. An actor serves all its requests in one task, since a task for each
request would cost more than a small request itself; so this module changes the context for each step of a
handler. ``asyncio.current_task()``, time-outs and cancellation are those of the actor's task, as if the
handler were awaited directly.

Source: PEP 567, `Context.run`; PEP 342 for how ``await`` passes values and exceptions on.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Generator
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


@types.coroutine
def run_in(context: Context, awaitable: Awaitable[T]) -> Generator[Any, Any, T]:
    """Await ``awaitable`` so that every step of it sees and changes the variables of ``context`` only."""
    coroutine: Any = awaitable
    if type(coroutine) is not types.CoroutineType:
        coroutine = _await(awaitable)
    run, send = context.run, coroutine.send
    try:
        awaited = run(send, None)
        while True:
            try:
                answer = yield awaited
            except BaseException as error:  # noqa: BLE001  # whatever is thrown in belongs to the coroutine
                awaited = run(coroutine.throw, error)
            else:
                awaited = run(send, answer)
    except StopIteration as done:
        result: T = done.value
        return result


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable
