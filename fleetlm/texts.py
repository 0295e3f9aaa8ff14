"""Values, types and errors as short texts for logs and error messages.

Showing a value must never fail and never take long, because it happens while something else is reported:
a ``repr`` may raise, an int of more than 4,300 digits cannot be written in decimal
(``sys.set_int_max_str_digits``), and the text of a large value costs more memory than the value.
"""

from __future__ import annotations

import dataclasses
import reprlib

MAX_TEXT_CHARS = 65_536
"""Longer texts of a program's exceptions and exit reasons are cut: they stand in log lines and travel."""
_MAX_INT_BITS = 1_024
"""Integers beyond this size, about 300 digits, are described instead of written."""
_MAX_SHOWN_CHARS = 300
"""Longer texts of values are cut: containers that hold each other multiply."""
_SHOWN_BYTES = 40
"""Longer bytes are cut before their text is made."""


class _ShortRepr(reprlib.Repr):
    """Shows values of any size and any class in at most a few hundred characters.

    `reprlib` cuts what it writes, but writes the whole text first for bytes, dataclasses and integers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60

    def repr(self, x: object) -> str:
        """Return a short text for any value."""
        try:
            text = super().repr(x)
        except Exception:  # noqa: BLE001  # the program's own class, such as one that is named ``list``
            return _without_repr(x)
        return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[: _MAX_SHOWN_CHARS - 3]}..."

    def repr1(self, x: object, level: int) -> str:
        """Return a short text for a value inside others; a class may have the name of a built-in one."""
        if isinstance(x, int) and x.bit_length() > _MAX_INT_BITS:
            return f"<{type(x).__name__} of {x.bit_length():,} bits>"
        if isinstance(x, bytes | bytearray | memoryview):
            return self._repr_buffer(x)
        return super().repr1(x, level)

    def repr_instance(self, x: object, level: int) -> str:
        """Return a short text for an object of any other class."""
        # A generated `__repr__` would write all fields in full. A class's own one is used as it is.
        if dataclasses.is_dataclass(x) and hasattr(type(x).__repr__, "__wrapped__"):
            return self._repr_fields(x, level)
        try:
            return self._cut(repr(x))
        except Exception:  # noqa: BLE001  # the program's own method
            return _without_repr(x)

    def _repr_fields(self, x: object, level: int) -> str:
        name = type(x).__qualname__.rpartition(".")[2]
        if level <= 0:
            return f"{name}(...)"
        fields = [field.name for field in dataclasses.fields(x) if field.repr]  # type: ignore[arg-type]
        shown = [f"{each}={self.repr1(getattr(x, each, ...), level - 1)}" for each in fields[: self.maxdict]]
        more = ", ..." if len(fields) > len(shown) else ""
        return f"{name}({', '.join(shown)}{more})"

    def _repr_buffer(self, x: bytes | bytearray | memoryview) -> str:
        size = x.nbytes if isinstance(x, memoryview) else len(x)
        if isinstance(x, memoryview) or size > _SHOWN_BYTES:
            head = "" if isinstance(x, memoryview) else f" {bytes(x[:_SHOWN_BYTES])!r}..."
            return f"<{type(x).__name__} of {size:,} bytes{head}>"
        return repr(x)

    def _cut(self, text: str) -> str:
        if len(text) <= self.maxother:
            return text
        head = (self.maxother - 3) // 2
        return f"{text[:head]}...{text[len(text) - (self.maxother - 3 - head) :]}"


def _without_repr(value: object) -> str:
    return f"<{type(value).__name__} object, whose repr() raises>"


SHORT = _ShortRepr()
"""Shortens values inside error texts: they may be large, or have a ``repr`` that raises."""


def type_name(kind: type) -> str:
    """Return the name under which a type is imported: ``int``, ``ipaddress.IPv4Address``."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def text_of(value: object) -> str:
    """Return the text of an exception or an exit reason, or a placeholder if its ``__str__`` raises.

    The class is part of the placeholder, so that a failing ``__str__`` does not hide which error it was.
    A value that is neither a text nor an exception is shown as `SHORT` does.
    """
    try:
        if isinstance(value, int | bytes | bytearray | list | tuple | dict | set | frozenset):
            return SHORT.repr(value)
        text = str(value)
    except Exception:  # noqa: BLE001  # the program's own method
        return f"<{type(value).__name__}, whose text cannot be made>"
    return text if len(text) <= MAX_TEXT_CHARS else f"{text[:MAX_TEXT_CHARS]}..."


def format_span(seconds: float) -> str:
    """Return a span of time in one unit, in seconds below two minutes, in minutes below two hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.0f} h"
