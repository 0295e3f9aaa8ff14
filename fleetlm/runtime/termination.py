"""SIGTERM in a program that runs a node in its own event loop: ``async with Node.start() as node``.

By default SIGTERM ends a process at once: no call is finished, no peer hears a goodbye, no ``finally`` runs.
A program that handles the signal, or whose web server does, is left alone. In any other, SIGTERM cancels the
task that entered the block, as Ctrl-C does under `asyncio.run`. The block stops the node, and the process
exits with 143, after every block around it has ended. A second SIGTERM ends the process at once.

Source: asyncio.Runner's handling of SIGINT, which likewise replaces the default handler only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM

log: logging.Logger = logging.getLogger("fleetlm")


class Termination:
    """The handler of one block."""

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._came = False

    def begin(self) -> None:
        """Handle SIGTERM for the current task from here on, if nothing else in this program does."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._task = asyncio.current_task()
            self._loop = asyncio.get_running_loop()
            signal.signal(signal.SIGTERM, self._handle)

    def end(self) -> bool:
        """Restore the default action. Returns whether SIGTERM came in between."""
        if self._task is not None and signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._task = None
        return self._came

    def _handle(self, number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        self._came = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            log.info("received SIGTERM; shutting down (a second signal ends the process at once)")
            self._task.cancel()
