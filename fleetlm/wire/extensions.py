"""What encoder and decoder share: the numbers on the wire, the shapes of dataclasses, and words.

Extension values carry what msgpack has no type for. The table is `Ext`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

SCALARS = frozenset({type(None), bool, int, float, str, bytes})
"""What msgpack packs and unpacks exactly, by itself."""
all_scalars: Callable[[Iterable[object]], bool] = SCALARS.issuperset
MAX_NESTING_LIMIT = 128
"""Largest ``max_nesting``: each level may take four frames of the 1,000 that Python allows."""


class Ext(IntEnum):
    """Extension types on the wire. Never reuse a number: a peer of an older version may know it.

    A number that a peer does not know arrives there as `Unreadable`. -1 is msgpack's timestamp:
    it is read as an aware datetime in UTC and never written.
    """

    TUPLE = 1  # packed list
    SET = 2  # packed list, items in the order of their packed bytes
    FROZENSET = 3  # likewise
    BIG_INT = 4  # beyond 64 bits: two's complement, big-endian
    DATETIME = 5  # [year, month, day, h, min, s, µs, fold, [offset µs, name or nil] or zone key]
    UUID = 6  # 16 bytes
    DECIMAL = 7  # its text, ASCII
    PID = 8  # [node, incarnation, number]
    REF = 9  # [node, incarnation, number]
    ADDRESS = 10  # [name, node]
    DATACLASS = 11  # [tag, {field: value}]


class BadData(ValueError):
    """Bytes that no codec wrote: malformed, or beyond a limit. The codec stays usable."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands in a decoded value where something could not be rebuilt. ``why`` is for people."""

    why: str


class Refused(TypeError):
    """The sender's verdict on one value; the path to it is found afterwards."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The fields of a registered dataclass."""

    names: tuple[str, ...]
    required: frozenset[str]

    @classmethod
    def of(cls, kind: type) -> Shape:
        """Look ``kind`` up."""
        fields = dataclasses.fields(kind)
        missing = dataclasses.MISSING
        needed = (f.name for f in fields if f.default is missing and f.default_factory is missing)
        return cls(tuple(field.name for field in fields), frozenset(needed))


class Shapes:
    """Fields of the registered dataclasses that were met; as many as there are types."""

    def __init__(self) -> None:
        self._known: dict[type, Shape] = {}

    def of(self, kind: type) -> Shape:
        """The shape of a dataclass."""
        shape = self._known.get(kind)
        if shape is None:
            shape = self._known[kind] = Shape.of(kind)
        return shape


def unreadable_in(value: Any) -> Unreadable | None:
    """The first `Unreadable` in a decoded value, depth first, or None."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if type(item) is Unreadable:
            return item
        if type(item) is dict:
            waiting.extend(part for pair in reversed(item.items()) for part in reversed(pair))
        elif type(item) in (list, tuple):
            waiting.extend(reversed(item))
        elif type(item) in (set, frozenset):
            waiting.extend(item)
    return None


def too_deep(max_nesting: int) -> str:
    """Why a value was refused on either side."""
    return f"nested more than {max_nesting} levels deep, or inside itself"


def explained(error: Exception) -> str:
    """An error in words for people."""
    if isinstance(error, UnicodeEncodeError):
        code = ord(error.object[error.start])
        return f"text with the lone surrogate U+{code:04X} at {error.start}, which is not Unicode text"
    if isinstance(error, Refused | BadData):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
