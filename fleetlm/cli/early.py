"""Signals before a command has set its own handlers: while Python imports the modules of the program.

The first process of a container (PID 1) has no default action for SIGTERM: the kernel drops a signal that
the process does not handle. Imports may take seconds (PyTorch), so a container that is stopped then would
run on until it is killed. This module imports next to nothing, so that the handler is there from the start.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


def end_on_sigterm() -> None:
    """End the process with exit code 143 when SIGTERM comes, until something sets another handler.

    Nothing has begun that would have to be finished. SIGINT needs nothing: Python raises KeyboardInterrupt
    from its start on. A handler that is set already is left alone, as is a thread other than the main one.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)


def restore_sigterm() -> None:
    """Undo `end_on_sigterm`, for a program that goes on after its node."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)
