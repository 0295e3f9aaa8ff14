"""Says on an actor's own node that one of its handlers has raised.

The caller of a handler gets the exception and decides what it means, so it is no crash here. Whoever looks
after this node must find it nevertheless. The first failure of each kind is a warning with its traceback, and
later ones are logged at DEBUG: a peer that calls a failing handler in a loop must not fill the log.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fleetlm.processes.boundary import original
from fleetlm.texts import loggable

if TYPE_CHECKING:
    from fleetlm.processes.running import RunningProcess

log: logging.Logger = logging.getLogger("fleetlm")

_MAX_KINDS = 1_000
"""Kinds of failure of one node that are logged as warnings. A kind is an actor class, a handler and a class
of exception, so a program has far fewer."""


class FailureLog:
    """Which kinds of failure the actors of one node have had."""

    __slots__ = ("_kinds", "counts")

    def __init__(self) -> None:
        self._kinds: set[tuple[str, str, type]] = set()
        self.counts: dict[tuple[str, str], int] = {}
        """Failures by actor and handler; those beyond `_MAX_KINDS` pairs are not counted."""

    def report(self, process: RunningProcess, handler: str, error: BaseException, note: str) -> None:
        """Log what a handler has raised; ``note`` says what became of it."""
        kind = (process.runs, handler, type(error))
        pair = (process.runs, handler)
        if pair in self.counts or len(self.counts) < _MAX_KINDS:
            self.counts[pair] = self.counts.get(pair, 0) + 1
        is_first = kind not in self._kinds and len(self._kinds) < _MAX_KINDS
        if is_first:
            self._kinds.add(kind)
            note += "; further failures of this kind are logged at DEBUG"
        log.log(
            logging.WARNING if is_first else logging.DEBUG,
            "handler %s of %s (%s) raised %s: %s",
            handler, process.name or process.pid, process.runs, type(error).__name__, note,
            exc_info=loggable(original(error)),
        )  # fmt: skip
