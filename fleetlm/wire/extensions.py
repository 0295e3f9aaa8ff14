"""What encoder and decoder share: extension types, shapes of dataclasses, and their errors.

Extension values carry what msgpack has no type for; `Ext` is the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

SCALARS = frozenset({type(None), bool, int, float, str, bytes})
"""Types that msgpack packs and unpacks exactly, without help."""
all_scalars: Callable[[Iterable[object]], bool] = SCALARS.issuperset
MAX_NESTING_LIMIT = 128
"""The largest ``max_nesting``: each level may take four of the 1,000 stack frames that Python allows."""


class Ext(IntEnum):
    """The numbers of extension types on the wire, which are never reused.

    A value of a type that a peer does not know arrives there as `Unreadable`. -1 is msgpack's timestamp; it
    is read as an aware datetime in UTC, and never written.
    """

    TUPLE = 1  # packed list
    SET = 2  # packed list, its items in the order of their bytes
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
    """Bytes that no codec writes: malformed, or beyond a limit. The codec stays usable."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands in a decoded value for one that could not be rebuilt. ``why`` is a text for people."""

    why: str


class Refused(TypeError):
    """Raised inside the encoder for a value that cannot be sent; its path is looked for afterwards."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The fields of a registered dataclass."""

    names: tuple[str, ...]
    required: frozenset[str]

    @classmethod
    def of(cls, kind: type) -> Shape:
        """Make the shape of a dataclass."""
        fields = dataclasses.fields(kind)
        missing = dataclasses.MISSING
        needed = (f.name for f in fields if f.default is missing and f.default_factory is missing)
        return cls(tuple(field.name for field in fields), frozenset(needed))


class Shapes:
    """The shapes of the dataclasses that were used so far, each made once."""

    def __init__(self) -> None:
        self._known: dict[type, Shape] = {}

    def of(self, kind: type) -> Shape:
        """Return the shape of a dataclass."""
        shape = self._known.get(kind)
        if shape is None:
            shape = self._known[kind] = Shape.of(kind)
        return shape


def unreadable_in(value: Any) -> Unreadable | None:
    """Return the first `Unreadable` in a decoded value, depth first, or None."""
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
    """Return the text for a value that is nested too deep; both sides use it."""
    return f"nested more than {max_nesting} levels deep, or inside itself"


def explained(error: Exception) -> str:
    """Return an error as a text for people."""
    if isinstance(error, UnicodeEncodeError):
        code = ord(error.object[error.start])
        return f"text with the lone surrogate U+{code:04X} at {error.start}, which is not Unicode text"
    if isinstance(error, Refused | BadData):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
