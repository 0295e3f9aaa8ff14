"""Signals in a program that runs a node in its own event loop: ``async with Node.start() as node``.

By default SIGTERM ends a process at once: no call is finished, no peer hears a goodbye, no ``finally`` runs.
A program that handles the signal, or whose web server does, is left alone. In any other, SIGTERM cancels the
task that entered the block, as Ctrl-C does under `asyncio.run`. The block stops the node, and the process
exits with 143, after every block around it has ended.

A further signal means what `runtime.stop_signals` says, so SIGINT is handled here as well: the first one is
handed to the handler that was there (that of `asyncio.run` cancels the main task), a second one too, and one
that comes while SIGTERM already ends the block is not. The handler that was there is restored at the end.

Source: asyncio.Runner's handling of SIGINT, which likewise replaces the default handler only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

from fleetlm.runtime.stop_signals import FIRST, OTHER, StopSignals, Verdict

EXIT_CODE = 128 + signal.SIGTERM

log: logging.Logger = logging.getLogger("fleetlm")


class Termination:
    """The handlers of one block."""

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = StopSignals()
        self._on_sigint: Any = None
        """The handler of SIGINT that was there before."""

    def begin(self) -> None:
        """Handle SIGTERM for the current task from here on, if nothing else in this program does."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        signal.signal(signal.SIGTERM, self._handle_sigterm)
        if callable(signal.getsignal(signal.SIGINT)):
            self._on_sigint = signal.signal(signal.SIGINT, self._handle_sigint)

    def end(self) -> bool:
        """Restore the handlers that were there. Returns whether SIGTERM came first in between."""
        if self._task is not None:
            if signal.getsignal(signal.SIGTERM) == self._handle_sigterm:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if self._on_sigint is not None and signal.getsignal(signal.SIGINT) == self._handle_sigint:
                signal.signal(signal.SIGINT, self._on_sigint)
        self._task = None
        return self._signals.taken[:1] == [signal.SIGTERM]

    def _handle_sigterm(self, number: int, _: FrameType | None) -> None:
        verdict = self._signals.take(number)
        if verdict is Verdict.END:
            os._exit(128 + number)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                self._loop.call_soon_threadsafe(
                    self._cancel if verdict is Verdict.LEAVE else self._note_other
                )

    def _handle_sigint(self, number: int, frame: FrameType | None) -> None:
        verdict = self._signals.take(number)
        if verdict is Verdict.GO_ON:
            if self._loop is not None:
                with contextlib.suppress(RuntimeError):  # The loop is closed.
                    self._loop.call_soon_threadsafe(self._note_other)
            return
        if len(self._signals.taken) > 2:  # any third signal
            os._exit(128 + number)
        self._on_sigint(number, frame)

    def _cancel(self) -> None:
        if self._task is not None:
            log.info(FIRST, "SIGTERM")
            self._task.cancel()

    def _note_other(self) -> None:
        log.info(OTHER, self._signals.names[-1])
