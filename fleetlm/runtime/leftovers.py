"""Ends what is left on an event loop after its node has stopped, within a limit.

`asyncio.Runner` cancels the tasks that are left when it closes its loop, and waits for them without a limit.
One task that swallows its cancellation, as ``except BaseException`` in an endless loop does, thus keeps the
process alive until the platform kills it. An asynchronous generator whose clean-up never ends does the same.
`run_to_end` waits `LEFTOVERS_END_S` for both, and then ends the loop without them.

Functions in the loop's default executor (`asyncio.to_thread`) cannot be ended, and may be saving something.
Python waits for them, and `run_to_end` says so. Those in `Node.run_blocking` are not waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

log: logging.Logger = logging.getLogger("fleetlm")

LEFTOVERS_END_S = 3.0
"""Seconds that tasks have to end after the node has stopped. Threads that wait for the end allow for it."""
EXECUTOR_SILENCE_S = 1.0
"""Seconds after which a log line says that the process waits for functions in threads."""
MAX_NAMED = 5
"""Tasks that the warning names."""


def run_to_end(runner: asyncio.Runner, main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine, then end what is left on the loop. Returns and raises what the coroutine does."""
    try:
        return runner.run(main)
    finally:
        runner.run(end_leftovers())


async def end_leftovers() -> None:
    """Cancel the other tasks of this loop, end its asynchronous generators, and await its default executor.

    The tasks have `LEFTOVERS_END_S`, and so have the generators. What has not ended by then is named in a
    warning, and the loop forgets it, so that nobody waits for it when the loop is closed. To be called last
    on a loop. It raises nothing but CancelledError.
    """
    loop = asyncio.get_running_loop()
    tasks = _other_tasks()
    for task in tasks:
        task.cancel()
    await _wait(tasks)
    await _wait({asyncio.ensure_future(loop.shutdown_asyncgens())})
    _forget(_other_tasks())
    executor = asyncio.ensure_future(loop.shutdown_default_executor())
    await asyncio.wait({executor}, timeout=EXECUTOR_SILENCE_S)
    if not executor.done():
        log.warning(
            "waiting for functions in asyncio's default executor (asyncio.to_thread), which cannot be "
            "cancelled; those in run_blocking are not waited for"
        )
    await executor


def _other_tasks() -> set[asyncio.Task[Any]]:
    current = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not current}


async def _wait(tasks: set[asyncio.Task[Any]]) -> None:
    """Wait for tasks to end, and report their exceptions, as asyncio does when it closes a loop."""
    if not tasks:
        return
    done, _ = await asyncio.wait(tasks, timeout=LEFTOVERS_END_S)
    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            message = "unhandled exception of a task that was cancelled after the node had stopped"
            said = {"message": message, "exception": error, "task": task}
            asyncio.get_running_loop().call_exception_handler(said)


def _forget(tasks: set[asyncio.Task[Any]]) -> None:
    """Take tasks out of those that the loop waits for when it is closed, and name them."""
    if not tasks:
        return
    for task in tasks:
        asyncio._unregister_task(task)  # noqa: SLF001  # documented: "Extending asyncio"
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
    named = sorted(f"{task.get_name()} in {_describe(task.get_coro())}" for task in tasks)
    more = "" if len(named) <= MAX_NAMED else f" and {len(named) - MAX_NAMED} more"
    log.warning(
        "%d task(s) ignored their cancellation, and the event loop ends without them: %s%s",
        len(tasks),
        ", ".join(named[:MAX_NAMED]),
        more,
    )


def _describe(coroutine: object) -> str:
    """Return the name of what a task runs: the end of a generator has none."""
    return getattr(coroutine, "__qualname__", type(coroutine).__name__)
