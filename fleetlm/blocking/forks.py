"""Objects that must refuse to work in a forked child register here.

``os.fork()`` copies a running node into the child, but not the threads behind it: no event loop runs
there and ZeroMQ's sockets are shared with the parent. Every copy is told at once, so that it raises
instead of hanging or writing into the parent's sockets.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import weakref
from typing import NoReturn, Protocol

FORKED = (
    "belongs to the process that this one was forked from, and cannot be used here (start processes "
    "with 'spawn' instead of 'fork')"
)
"""The reason given to `NodeStopped` in a child, as the rest of a sentence."""


class Guarded(Protocol):
    """An object that must know that it has been copied into a forked child."""

    def after_fork(self) -> None:
        """Refuse every later request with `FORKED` as the reason. Called in the child."""


_guarded: weakref.WeakSet[Guarded] = weakref.WeakSet()


def guard(something: Guarded) -> None:
    """Call ``something.after_fork()`` in every child that is forked while ``something`` lives."""
    _guarded.add(something)


def end_child(error: BaseException | None) -> NoReturn:
    """End a forked child that came back from the function which forked it.

    It is a copy of a thread in which the parent runs functions for others; there is nothing for it to go on
    with.

    Args:
        error: what the function raised, such as SystemExit; None: it returned.
    """
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if error.code is not None and not isinstance(error.code, int):
            sys.stderr.write(f"{error.code}\n")
    elif error is not None:
        traceback.print_exception(error)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # It may be None, or closed.
            stream.flush()
    os._exit(code)


def _notify_guarded() -> None:
    for something in list(_guarded):
        something.after_fork()


os.register_at_fork(after_in_child=_notify_guarded)
