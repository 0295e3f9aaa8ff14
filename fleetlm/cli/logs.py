"""Logging for the command line: one line per record on stderr, as text or as JSON.

Only the command line configures logging. A program that embeds a node configures its own.

Theory of operation. Whatever reads stderr may stop reading: a stuck log collector, a paused terminal, a full
pipe. A write would then wait, and with it the event loop and every peer's view of this node. So a record is
formatted where it is made and put into a queue with a bound (`MAX_QUEUED_CHARS`), and a thread of its own
writes to the stream (`Output`). A line that finds the queue full is dropped and counted; when the stream
takes lines again, one line says how many were dropped. At the end `Log.close` waits for what is queued, for
`FLUSH_S` at most.

A forked child has no such thread, and may end without notice: there a line is written at once.

The thread writes to the descriptor and not through ``sys.stderr``: a thread that waits inside a Python stream
holds that stream's lock, and the interpreter would wait for the lock when it ends.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import select
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO

from fleetlm.escapes import escape, escape_lines
from fleetlm.texts import format_error

LEVELS = ("debug", "info", "warning", "error")
"""Values of ``--log-level``."""
MAX_QUEUED_CHARS: Final = 4 * 1024 * 1024
"""Characters that may wait for a stream that is not read: some 40,000 lines, and little memory."""
FLUSH_S: Final = 1.0
"""Seconds at the end for lines that wait. A stream that nothing reads must not keep a process alive."""
RETRY_S: Final = 0.1
"""Seconds until the next attempt to write to a stream that refuses lines, such as a file on a full disk."""


class LineFormatter(logging.Formatter):
    """Format a record as ``2026-01-31T12:00:00.123Z INFO    fleetlm@10.0.0.7 fleetlm: text``.

    Line ends and control characters in the text are escaped, since parts of it may come from the
    network and must not forge another record. A traceback follows on indented lines of its own, and its
    texts are escaped, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.node = "-"
        """The node's name; a dash until the node has started."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, and the lines of its traceback."""
        text = escape(record.getMessage())
        line = f"{_format_time(record)} {record.levelname:<7} {self.node} {record.name}: {text}"
        lines = [line, *(f"    {each}" for part in _details(self, record) for each in part.split("\n"))]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """Format a record as one JSON object on one line.

    Fields: ``time`` (ISO 8601, UTC, milliseconds), ``level`` (lower case), ``logger``, ``message`` and
    ``node`` (its name, null until the node has started); only where they apply ``process``, ``handler``,
    ``trace_id``, ``span_id`` and ``context`` (see `fleetlm.logs.LogContext`), and ``exc`` (the traceback as
    text).
    """

    def __init__(self) -> None:
        super().__init__()
        self.node = "-"
        """The node's name; a dash until the node has started."""
        self.find_context: Callable[[], Mapping[str, Any]] = dict
        """Returns the fields that say where a record was made."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object of a record."""
        fields: dict[str, Any] = {
            "time": _format_time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "node": None if self.node == "-" else self.node,
        }
        fields |= self.find_context()
        details = _details(self, record)
        if details:
            fields["exc"] = "\n".join(details)
        return json.dumps(fields)


class Output:
    """Writes text to a stream in a thread of its own: `write` never waits.

    Args:
        stream: where to write. It stays open.
        describe_loss: returns the line that says how many lines were dropped.
    """

    def __init__(self, stream: TextIO, describe_loss: Callable[[int], str]) -> None:
        self._stream = stream
        self._fd = _find_fd(stream)
        self._describe_loss = describe_loss
        self._texts: deque[str] = deque()
        self._size = 0
        self._dropped = 0
        self._is_closing = False
        self._is_forked = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="fleetlm-log", daemon=True)
        self._thread.start()
        os.register_at_fork(after_in_child=functools.partial(_mark_forked, weakref.ref(self)))

    def write(self, text: str) -> None:
        """Queue a text of one or more lines, with its last line end; drop it if the queue is full."""
        if self._is_forked:
            self._put(text)
            return
        with self._changed:
            limit = MAX_QUEUED_CHARS // 2 if self._dropped else MAX_QUEUED_CHARS  # One long gap, not many.
            if self._size + len(text) > limit:
                self._dropped += 1
                return
            if self._dropped:
                self._queue(self._take_loss())
            self._queue(text)
            self._changed.notify()

    def close(self, timeout_s: float = FLUSH_S) -> bool:
        """Write what is queued, for ``timeout_s`` seconds at most. Returns whether all was written."""
        if self._is_forked:
            return True
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._texts or self._dropped or self._is_closing):
                    self._changed.wait()
                if not self._texts and not self._dropped:
                    return
                lost = 0 if self._texts else self._dropped
                text = self._texts.popleft() if self._texts else self._take_loss()
                self._size -= 0 if lost else len(text)
            if not self._put(text):
                with self._changed:
                    self._dropped += lost or 1
                    if self._is_closing and not self._texts:
                        return
                    self._changed.wait(RETRY_S)

    def _queue(self, text: str) -> None:
        self._texts.append(text)
        self._size += len(text)

    def _take_loss(self) -> str:
        """Return the line about what was dropped, and begin to count anew."""
        dropped, self._dropped = self._dropped, 0
        return f"{self._describe_loss(dropped)}\n"

    def _put(self, text: str) -> bool:
        """Write a text, however long that takes. Returns False if the stream is broken or its disk full."""
        try:
            if self._fd is None:
                self._stream.write(text)
                self._stream.flush()
                return True
            rest = memoryview(text.encode("utf-8", "backslashreplace"))
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:  # Another program has made the descriptor non-blocking.
                    select.select([], [self._fd], [], RETRY_S)
        except (OSError, ValueError, AttributeError):  # The last one: no stderr at all.
            return False
        return True


def _mark_forked(output: weakref.ref[Output]) -> None:
    """Let each write go to the stream itself in a forked child. The parent writes what was queued."""
    found = output()
    if found is not None:
        found._is_forked = True  # noqa: SLF001  # same module


class Log:
    """The log of one run of the command line.

    Attributes:
        node: the name shown in each line; a dash until it is set.
    """

    def __init__(self, formatter: LineFormatter | JsonFormatter, stream: TextIO) -> None:
        self._formatter = formatter
        self.output: Output = Output(stream, self._describe_loss)

    @property
    def node(self) -> str:
        """The name of the node in each line; a dash until it is set."""
        return self._formatter.node

    @node.setter
    def node(self, name: str) -> None:
        self._formatter.node = name

    def attribute_to(self, make_finder: Callable[[], Callable[[], Mapping[str, Any]]]) -> None:
        """Say in JSON records where they were made, by a function that ``make_finder`` makes.

        In a log of text it is not called.
        """
        if isinstance(self._formatter, JsonFormatter):
            self._formatter.find_context = make_finder()

    def say(self, text: str) -> None:
        """Write a text that is no record, such as an error that ends the command."""
        self.output.write(f"{escape_lines(text)}\n")

    def close(self) -> None:
        """Write what is queued, for `FLUSH_S` at most."""
        self.output.close()

    def _describe_loss(self, dropped: int) -> str:
        lines = "1 log line was" if dropped == 1 else f"{dropped:,} log lines were"
        text = f"{lines} dropped here, because nothing read them"
        return self._formatter.format(
            logging.LogRecord("fleetlm.log", logging.WARNING, __file__, 0, text, (), None)
        )


class _Handler(logging.Handler):
    """Formats a record where it is made, and queues its text."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._output.write(f"{self.format(record)}\n")
        except Exception:  # noqa: BLE001  as every handler of the standard library
            self.handleError(record)


def set_up(level: str = "info", stream: TextIO | None = None, *, form: str = "text") -> Log:
    """Send all log records of this program to one stream, in place of the handlers set before.

    Args:
        level: records below this level are dropped; one of `LEVELS`.
        stream: where to write; stderr by default.
        form: ``"text"`` or ``"json"``.

    Returns:
        The log, whose ``node`` is set once the node has a name. Close it at the end.
    """
    formatter = JsonFormatter() if form == "json" else LineFormatter()
    log = Log(formatter, sys.stderr if stream is None else stream)
    handler = _Handler(log.output)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    return log


def _format_time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _details(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """Return the traceback and the stack of a record, if it has them."""
    details = []
    if record.exc_info:
        error = record.exc_info[1]
        details.append(formatter.formatException(record.exc_info) if error is None else format_error(error))
    if record.stack_info:
        details.append(escape_lines(formatter.formatStack(record.stack_info)))
    return details


def _find_fd(stream: TextIO) -> int | None:
    """Return the descriptor of a stream, or None for one in memory."""
    try:
        return stream.fileno()
    except (AttributeError, OSError, io.UnsupportedOperation, ValueError):
        return None
