"""Refuses what is asked of a node on another thread or another event loop than its own.

A node has no locks: everything happens on the loop that started it. On another thread a request would run in
the middle of something else, and nothing would wake the node's loop to send it. ``node.sync`` hands requests
over to the loop, so the error names it.

Where the loop does not run at all, and none runs in this thread, nothing can interfere, and nothing is
refused: a program may prepare things between two calls of ``run_until_complete``.
"""

from __future__ import annotations

import asyncio
import threading
from asyncio import _get_running_loop


def check_loop(loop: asyncio.AbstractEventLoop, what: str) -> None:
    """Raise RuntimeError, before anything is done, unless this code runs on ``loop``.

    Args:
        loop: that of the node.
        what: the method that was called, for the text.
    """
    if _get_running_loop() is not loop:
        refuse_loop(loop, what)


def refuse_loop(loop: asyncio.AbstractEventLoop, what: str) -> None:
    """Do what `check_loop` does once it has found another loop: for callers that compare by themselves."""
    running = _get_running_loop()
    if running is None and not loop.is_running():
        return
    where = (
        f"from the thread {threading.current_thread().name!r}, which runs no event loop"
        if running is None
        else f"on another event loop (thread {threading.current_thread().name!r})"
    )
    raise RuntimeError(
        f"{what} was called {where}. A node belongs to the event loop that started it, and nothing was done. "
        "From other threads and loops use `node.sync`, whose methods wait for the node"
    )
