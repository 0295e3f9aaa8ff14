"""Stands between fleetlm's loggers and the program's handlers while a node runs.

Peers and strangers cause log lines, and their texts are part of some. So `LogGuard` is a filter of each
logger of fleetlm, and does two things:

* It writes a limited number of lines of each kind (`core.log_lines`), and says how many it left out.
* It escapes line ends and control characters, also in the errors below a traceback: a text must not look like
  a line of its own in a file, nor move the cursor of a terminal. The program's own formatters need not care.

A program's own loggers are not touched, and a process whose nodes have all stopped has no such filter. A kind
of line is the place in the code that logs it. A place that logs texts of several kinds says which, by
``extra={KIND: ...}``.

Threads may log at the same time. Nothing is locked: a count may be wrong by a line then, and a filter that
waits for a lock would be worse.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Final

from fleetlm.core.log_lines import LogLines
from fleetlm.escapes import escape
from fleetlm.records import Row
from fleetlm.texts import format_error

KIND: Final = "fleetlm_kind"
"""The attribute of a record that tells kinds of lines apart that are logged at one place."""
_IS_SUMMARY: Final = "fleetlm_left_out"
_ROOT: Final = "fleetlm"


class _Example(Row):
    """The first line of a kind that was left out."""

    logger: str
    level: int
    text: str


class LogGuard:
    """The filter; one for each process.

    Args:
        clock: seconds, of any clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._users = 0
        self._lines = LogLines()
        self._examples: dict[Hashable, _Example] = {}
        self._known_loggers = 0
        """How many loggers the process had when those of fleetlm were looked for."""

    def start(self) -> None:
        """Begin to filter, unless another node of this process has begun. Each start needs a `stop`."""
        self._users += 1
        if self._users == 1:
            self._lines = LogLines()
            self._cover()

    def stop(self) -> None:
        """Stop filtering when each node of this process has stopped, and say what was left out until then."""
        self._users -= 1
        if self._users == 0:
            self.flush(least_s=0.0)
            self._examples.clear()
            for logger in _find_loggers():
                logger.removeFilter(self.filter)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be written. Its text is escaped if necessary."""
        if hasattr(record, _IS_SUMMARY):
            return True
        try:
            place = getattr(record, KIND, None) or (record.pathname, record.lineno)
            kind = record.name, record.levelno, place
            if self._lines.admit(kind, self._clock()):
                _make_safe(record)
                return True
            if kind not in self._examples:
                self._examples[kind] = _Example(record.name, record.levelno, escape(record.getMessage()))
        except Exception:  # noqa: BLE001  # The handler shows what is wrong with the record.
            return True
        return False

    def flush(self, least_s: float | None = None) -> None:
        """Say how many lines were left out, where that is due. Called once a tick.

        Args:
            least_s: the age from which on it is due, in seconds; None: as `core.log_lines` has it.
        """
        self.cover_new()
        now = self._clock()
        found = self._lines.take_left_out(now) if least_s is None else self._lines.take_left_out(now, least_s)
        for kind, lines, seconds in found:
            example = self._examples.pop(kind, None)
            if example is not None:
                logging.getLogger(example.logger).log(
                    example.level,
                    "%s more %s like this in the last %.0f s: %s",
                    f"{lines:,}", "line" if lines == 1 else "lines", seconds, example.text,
                    extra={_IS_SUMMARY: True},
                )  # fmt: skip

    def cover_new(self) -> None:
        """Become the filter of loggers that were made meanwhile. Parts that are imported late call it."""
        if self._users and len(logging.root.manager.loggerDict) != self._known_loggers:
            self._cover()

    def _cover(self) -> None:
        """Become the filter of each logger that fleetlm has now; one that is covered stays so."""
        self._known_loggers = len(logging.root.manager.loggerDict)
        for logger in _find_loggers():
            logger.addFilter(self.filter)


def _find_loggers() -> Iterator[logging.Logger]:
    """Yield fleetlm's own loggers."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        is_ours = name == _ROOT or name.startswith(f"{_ROOT}.")
        if is_ours and isinstance(logger, logging.Logger):
            yield logger


def _make_safe(record: logging.LogRecord) -> None:
    """Escape the text of a record, and that of its traceback, as handlers will write them."""
    text = record.getMessage()
    if not text.isprintable():
        record.msg, record.args = escape(text), ()
    if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
        record.exc_text = format_error(record.exc_info[1])


GUARD: Final = LogGuard()
"""The guard of this process."""
