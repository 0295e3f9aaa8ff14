"""Refuses what is asked of a node on another thread or another event loop than its own.

A node has no locks: everything happens on the loop that started it. On another thread a request would run in
the middle of something else, and nothing would wake the node's loop to send it. ``node.sync`` hands requests
over to the loop, so the error names it.

Where the loop does not run at all, and none runs in this thread, nothing can interfere, and nothing is
refused: a program may prepare things between two calls of ``run_until_complete``.

**Cost.** Every message passes this check. ``asyncio._get_running_loop()`` asks the system for the number of
the process each time (Python 3.11), which costs as much as a third of the whole way of a message on one node.
A loop of asyncio itself knows the thread that runs it, and a thread runs one loop at a time, so comparing
threads says the same. `home_of` returns where to read that thread; callers compare by themselves::

    if self._home._thread_id != get_ident():
        check_loop(self._loop, "send")

uvloop does not show its thread. What a node remembers of its start would be wrong when a program moves its
loop to another thread. But the thread cannot change within a turn, so the `Flusher`, which runs at the end of
each turn in which messages are sent, lets `HiddenHome` note it until then. A loop that is stopped in the
middle of such a turn keeps the note until it runs again; until then a call on that thread is not refused.
"""

from __future__ import annotations

import asyncio
import threading
from asyncio import _get_running_loop
from typing import Protocol, cast
from weakref import WeakValueDictionary


class Home(Protocol):
    """Knows which thread runs a loop."""

    _thread_id: int | None


class HiddenHome:
    """The home of a loop that does not show its thread: known in a turn in which messages are sent.

    Args:
        loop: is kept alive, so that no other loop gets its ``id``.
    """

    __slots__ = ("__weakref__", "_thread_id", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self._thread_id: int | None = None

    def note(self) -> None:
        """Note the thread that runs this loop, if this code runs on the loop."""
        if _get_running_loop() is self.loop:
            self._thread_id = threading.get_ident()

    def forget(self) -> None:
        """Forget it, at the end of the turn."""
        self._thread_id = None


_hidden: WeakValueDictionary[int, HiddenHome] = WeakValueDictionary()
"""By the ``id`` of the loop: all nodes on a loop share its home."""


def home_of(loop: asyncio.AbstractEventLoop) -> Home:
    """Return what says in ``_thread_id`` which thread runs this loop; None: none does, or it is not known."""
    return hidden_home_of(loop) or cast("Home", loop)


def hidden_home_of(loop: asyncio.AbstractEventLoop) -> HiddenHome | None:
    """Return the home of a loop that does not show its thread; None for any other loop."""
    if hasattr(loop, "_thread_id"):
        return None
    home = _hidden.get(id(loop))
    if home is None:
        home = _hidden[id(loop)] = HiddenHome(loop)
    return home


def check_loop(loop: asyncio.AbstractEventLoop, what: str) -> None:
    """Raise RuntimeError, before anything is done, unless this code runs on ``loop``.

    Args:
        loop: that of the node.
        what: the method that was called, for the text.
    """
    running = _get_running_loop()
    if running is loop or (running is None and not loop.is_running()):
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
