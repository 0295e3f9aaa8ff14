"""Server-sent events: how an event is written, and how message values become JSON. Pure.

Source: the HTML standard, section "Server-sent events".
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from datetime import date, time
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

from fleetlm.records import Record

HEARTBEAT: Final = b": heartbeat\n\n"
"""A comment, which clients pass over."""

_LINE_END = re.compile(r"\r\n|\r|\n")


class Event(Record):
    """One event.

    Attributes:
        data: text; each of its lines is sent as a line of data.
        event: the name of the event, for ``addEventListener``; empty: ``message``.
        id: what a client sends as ``Last-Event-ID`` when it connects again; empty: none.
        retry_ms: milliseconds that a client waits before it connects again; None: as before.

    Raises:
        ValueError: a name or an id has several lines, or an id has a NUL, which clients would misread.
    """

    data: str
    event: str = ""
    id: str = ""
    retry_ms: int | None = None

    def __post_init__(self) -> None:
        for what, text in (("event", self.event), ("id", self.id)):
            if _LINE_END.search(text) or "\0" in text:
                raise ValueError(f"the {what} of a server-sent event must be one line: {text[:80]!r}")

    def encode(self) -> bytes:
        """Return the bytes of the event, the empty line that ends it included."""
        lines = []
        if self.event:
            lines.append(f"event: {self.event}")
        if self.id:
            lines.append(f"id: {self.id}")
        if self.retry_ms is not None:
            lines.append(f"retry: {self.retry_ms}")
        lines += [f"data: {line}" for line in _LINE_END.split(self.data)]
        return "\n".join([*lines, "", ""]).encode()


def to_json(value: Any) -> str:
    """Return a message value as JSON in one line.

    Dataclasses become objects; sets and tuples arrays; times ISO 8601; bytes base64; other values that have
    no place in JSON, such as a `UUID`, a `Decimal` or a `Pid`, their text.

    Raises:
        TypeError: a key is not a text or a number.
        ValueError: a number is NaN or infinite, which no JSON parser reads.
    """
    return json.dumps(value, default=_plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """Return a value in types of JSON. Raises: TypeError for what is not a message value."""
    match value:
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case set() | frozenset():
            return list(value)
        case date() | time():  # a datetime is a date
            return value.isoformat()
        case Enum():
            return value.value
        case UUID() | Decimal():
            return str(value)
    if type(value).__module__.startswith("fleetlm."):  # Pid, Ref, Address and the like
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__qualname__} has no place in JSON: give sse() an encode=")
