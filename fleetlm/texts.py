"""Values, types and errors as short texts for logs and error messages."""

from __future__ import annotations

import reprlib

SHORT = reprlib.Repr()
"""Shortens values inside error texts: they may be large, or have a ``repr`` that raises."""
SHORT.maxstring = SHORT.maxother = 60


def type_name(kind: type) -> str:
    """Return the name under which a type is imported: ``int``, ``ipaddress.IPv4Address``."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def text_of(value: object) -> str:
    """Return the text of an exception or an exit reason, or a placeholder if its ``__str__`` raises.

    The class is part of the placeholder, so that a failing ``__str__`` does not hide which error it was.
    """
    try:
        return str(value)
    except Exception:  # noqa: BLE001  # the program's own method
        return f"<{type(value).__name__}, whose text cannot be made>"
