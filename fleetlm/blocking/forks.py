"""A forked child has copies of its parent's nodes, without the threads and sockets behind them."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

FORKED = (
    "belongs to the process that this one was forked from, and nothing of it works here (start "
    "processes with 'spawn')"
)


class Guarded(Protocol):
    """What must know that it is in a child."""

    def after_fork(self) -> None:
        """Refuse whatever is asked from here on, with `FORKED` as the reason."""


_guarded: weakref.WeakSet[Guarded] = weakref.WeakSet()


def guard(something: Guarded) -> None:
    """Tell it if this process is forked while it lives."""
    _guarded.add(something)


def _forked() -> None:
    for something in list(_guarded):
        something.after_fork()


os.register_at_fork(after_in_child=_forked)
