"""Logging for the command line: one plain line per record, on stderr.

Only the command line configures logging. A program that embeds a node configures its own.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")
"""Values of ``--log-level``."""


class LineFormatter(logging.Formatter):
    """Format a record as ``2026-01-31T12:00:00.123Z INFO    fleetlm@10.0.0.7 fleetlm: text``.

    Line ends and control characters in the text are escaped, since parts of it may come from the
    network and must not forge another record. A traceback follows on indented lines of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.node = "-"
        """The node's name; a dash until the node has started."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, and the lines of its traceback."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        when = f"{seconds}.{int(record.msecs):03d}Z"
        text = escape(record.getMessage())
        line = f"{when} {record.levelname:<7} {self.node} {record.name}: {text}"
        details = []
        if record.exc_info:
            details.append(self.formatException(record.exc_info))
        if record.stack_info:
            details.append(self.formatStack(record.stack_info))
        lines = [line, *(f"    {each}" for part in details for each in part.splitlines())]
        return "\n".join(lines)


def escape(text: str) -> str:
    """Return ``text`` with line ends and control characters replaced by visible escapes."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def set_up(level: str = "info", stream: TextIO | None = None) -> LineFormatter:
    """Send all log records of this program to one stream, in place of the handlers set before.

    Args:
        level: records below this level are dropped; one of `LEVELS`.
        stream: where to write; stderr by default.

    Returns:
        The formatter, whose ``node`` is set once the node has a name.
    """
    formatter = LineFormatter()
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    return formatter
