"""The output of `fleetlm demo`: colours and symbols on a terminal, plain ASCII everywhere else."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TextIO

from fleetlm.escapes import escape

WIDTH = 78
"""Columns of a line. Times are aligned to the right of it."""
_BOLD, _DIM, _RED, _GREEN, _CYAN = "1", "2", "31", "32", "36"
_ASCII = {"✓": "ok", "✗": "FAILED", "→": "->", "…": "...", "–": "-", "×": "x", "·": "-"}


class Screen:
    """Prints steps, results with the time they took, and failures.

    Args:
        stream: where to print.
        environ: the environment. ``NO_COLOR`` (if not empty) and ``TERM=dumb`` turn colours off.
    """

    def __init__(self, stream: TextIO, environ: Mapping[str, str] | None = None) -> None:
        env = os.environ if environ is None else environ
        self._stream = stream
        terminal = stream.isatty() and env.get("TERM") != "dumb"
        self.colour: bool = terminal and not env.get("NO_COLOR")
        self.unicode: bool = self.colour and "utf" in (stream.encoding or "").lower()
        self._steps = 0

    def title(self, text: str, more: str) -> None:
        """Print the headline, and an introduction."""
        self._write_line(self._paint(_BOLD, text))
        self._write_line(self._paint(_DIM, more))

    def step(self, text: str) -> None:
        """Print the numbered heading of the next step."""
        self._steps += 1
        self._write_line("")
        self._write_line(self._paint(_BOLD, f"{self._steps}. {text}"))

    def fact(self, text: str, took_s: float | None = None) -> None:
        """Print a result that was checked, with the seconds that it took."""
        mark = "✓" if self.unicode else "ok"
        plain = self._to_plain(f"   {mark} {text}")
        took = "" if took_s is None else duration(took_s)
        gap = " " * max(2, WIDTH - len(plain) - len(took)) if took else ""
        shown = plain.replace(mark, self._paint(_GREEN, mark), 1)
        self._write_line(shown + gap + self._paint(_CYAN, took))

    def detail(self, text: str) -> None:
        """Print a line of detail below a result."""
        indent = "     " if self.unicode else "      "
        self._write_line(self._paint(_DIM, f"{indent}{text}"))

    def failed(self, text: str) -> None:
        """Print a check that failed."""
        self._write_line("")
        self._write_line(self._paint(_RED, f"✗ {text}"))

    def log(self, title: str, lines: list[str]) -> None:
        """Print lines of a log below a title."""
        self._write_line("")
        self._write_line(self._paint(_BOLD, title))
        for line in lines or ["(empty)"]:
            self._write_line(f"  {escape(line)}")

    def end(self, text: str, more: str) -> None:
        """Print the last lines."""
        self._write_line("")
        self._write_line(self._paint(_GREEN, text))
        self._write_line(self._paint(_DIM, more))

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def _to_plain(self, text: str) -> str:
        if self.unicode:
            return text
        for glyph, ascii_text in _ASCII.items():
            text = text.replace(glyph, ascii_text)
        return text.encode("ascii", "backslashreplace").decode()

    def _write_line(self, text: str) -> None:
        # Escapes are in the text only if symbols are allowed; `_to_plain` then returns it unchanged.
        self._stream.write(f"{self._to_plain(text)}\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """Format a time as ``0.8 ms``, ``412 ms`` or ``2.1 s``."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


class Stopwatch:
    """Measures the time since its creation."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    @property
    def s(self) -> float:
        """Seconds since the creation."""
        return time.perf_counter() - self._started
