"""Logging as the command line sets it up: one line per record, to stderr, plain.

A library never configures logging: a program that embeds a node does that itself.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")


class LineFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z INFO    fleetlm@10.0.0.7 fleetlm: text``.

    Line ends and control characters in a text are escaped, since part of it may come from the
    network; a traceback follows on lines of its own, indented.
    """

    def __init__(self) -> None:
        super().__init__()
        self.node = "-"
        """The node's name, once it has one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, and its traceback's."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        when = f"{seconds}.{int(record.msecs):03d}Z"
        text = escaped(record.getMessage())
        line = f"{when} {record.levelname:<7} {self.node} {record.name}: {text}"
        details = []
        if record.exc_info:
            details.append(self.formatException(record.exc_info))
        if record.stack_info:
            details.append(self.formatStack(record.stack_info))
        lines = [line, *(f"    {each}" for part in details for each in part.splitlines())]
        return "\n".join(lines)


def escaped(text: str) -> str:
    """``text`` on one line, what a terminal would obey made visible."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def set_up(level: str = "info", stream: TextIO | None = None) -> LineFormatter:
    """Send the log of the whole program to ``stream``, stderr by default.

    Returns:
        The formatter, to be told the node's name.
    """
    formatter = LineFormatter()
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    return formatter
