"""What encoder and decoder share: extension types, shapes of dataclasses, and their errors.

Extension values carry what msgpack has no type for; `Ext` is the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

from fleetlm.ids import Pid, Ref
from fleetlm.messages import MessageTypes, is_named_tuple
from fleetlm.names import Address
from fleetlm.records import Record
from fleetlm.texts import text_of

SCALARS = frozenset({type(None), bool, int, float, str, bytes})
"""Types that msgpack packs and unpacks exactly, without help."""
LEAN = SCALARS - {bytes}
"""Those of them that are always packed where they stand; large bytes are not (`wire.blobs`)."""
all_lean: Callable[[Iterable[object]], bool] = LEAN.issuperset
_HEAD_LENGTH_BYTES = 2
"""Of the head of a buffer."""
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
    DATACLASS = 11  # [tag, {field: value}], NamedTuples too; fields at their default may be left out
    DATE = 12  # [year, month, day]
    TIME = 13  # [h, min, s, µs, fold, nil or as in DATETIME]
    TIMEDELTA = 14  # [days, s, µs]
    ENUM = 15  # [tag, name of the member]; of a Flag: [tag, number]
    CONVERTED = 16  # [tag, what its function made of the object]
    BYTEARRAY = 17  # its bytes
    MEMORYVIEW = 18  # its bytes
    ARRAY = 19  # length of the head in 2 bytes, [type code, bytes per item], the items little-endian
    NUMPY = 20  # length of the head in 2 bytes, [dtype, shape or nil for a scalar, "C" or "F"], the items
    BLOB = 21  # number of a blob, `Ext` of what it is (0: bytes), the head that it has there (`wire.blobs`)


class BadData(ValueError):
    """Bytes that no codec writes: malformed, or beyond a limit. The codec stays usable."""


class Unreadable(Record):
    """Stands in a decoded value for one that could not be rebuilt. ``why`` is a text for people."""

    why: str


class Refused(TypeError):
    """Raised inside the encoder for a value that cannot be sent; its path is looked for afterwards."""


class Form(IntEnum):
    """The ways in which objects of a registered class travel."""

    RECORD = Ext.DATACLASS
    ENUM = Ext.ENUM
    CONVERTED = Ext.CONVERTED


class Shape(Record):
    """What the codec knows of a registered class.

    Attributes:
        form: how its objects travel; the rest is for records, which are dataclasses and NamedTuples.
        names: the fields, in their order.
        known: the same as a set.
        required: the fields that have no default.
        always: the fields that are always sent, in their order.
        optional: the fields that are not sent while they have their default, each with that default.
        empty: the fields that are not sent while they are empty, each with the type of its container.
        is_lenient: whether unknown fields are dropped.
    """

    form: Form
    names: tuple[str, ...] = ()
    known: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    always: tuple[str, ...] = ()
    optional: tuple[tuple[str, Any], ...] = ()
    empty: tuple[tuple[str, type], ...] = ()
    is_lenient: bool = False

    @classmethod
    def of(cls, kind: type, types: MessageTypes) -> Shape:
        """Make the shape of a registered class."""
        if kind in types.converters:
            return cls(Form.CONVERTED)
        if issubclass(kind, Enum):
            return cls(Form.ENUM)
        missing = dataclasses.MISSING
        names: tuple[str, ...]
        defaults: dict[str, Any]
        factories: dict[str, Any] = {}
        if is_named_tuple(kind):
            names, defaults = kind._fields, kind._field_defaults  # type: ignore[attr-defined]
        else:
            fields = dataclasses.fields(kind)  # type: ignore[arg-type]  # `register` has looked
            names = tuple(field.name for field in fields)
            defaults = {each.name: each.default for each in fields if each.default is not missing}
            factories = {
                each.name: each.default_factory for each in fields if each.default_factory is not missing
            }
        optional = {name: value for name, value in defaults.items() if _is_fixed(value)}
        empty = {name: make for name, make in factories.items() if make in (list, dict, set)}
        return cls(
            Form.RECORD,
            names,
            frozenset(names),
            frozenset(names) - defaults.keys() - factories.keys(),
            tuple(name for name in names if name not in optional and name not in empty),
            tuple(optional.items()),
            tuple(empty.items()),
            kind in types.lenient,
        )


_FIXED = SCALARS | {date, datetime, time, timedelta, UUID, Decimal, Pid, Ref, Address}


def _is_fixed(value: Any) -> bool:
    """Whether a default can never change, so that a field that is this very object has its default."""
    if type(value) in (tuple, frozenset):
        return all(map(_is_fixed, value))
    return type(value) in _FIXED or isinstance(value, Enum)


def join(head: bytes, items: memoryview) -> bytes:
    """Make the body of an extension value of a packed head and items."""
    return b"".join((len(head).to_bytes(_HEAD_LENGTH_BYTES, "big"), head, items))


def split(data: bytes, unpack: Callable[[bytes], list[Any]]) -> tuple[list[Any], memoryview]:
    """Return head and items of a body. Raises: BadData."""
    start = _HEAD_LENGTH_BYTES + int.from_bytes(data[:_HEAD_LENGTH_BYTES], "big")
    if len(data) < _HEAD_LENGTH_BYTES or len(data) < start:
        raise BadData("a buffer that is shorter than its head")
    return unpack(data[_HEAD_LENGTH_BYTES:start]), memoryview(data)[start:]


class Shapes:
    """The shapes of the registered classes that were used so far, each made once."""

    def __init__(self, types: MessageTypes) -> None:
        self._types = types
        self._known: dict[type, Shape] = {}

    def of(self, kind: type) -> Shape:
        """Return the shape of a registered class."""
        shape = self._known.get(kind)
        if shape is None:
            shape = self._known[kind] = Shape.of(kind, self._types)
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
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
