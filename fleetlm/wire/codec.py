"""Packs message values as msgpack bytes exactly: what arrives equals what was sent, types included.

msgpack alone would turn tuples into lists and subclasses into their base classes. So a message is walked
once before it is packed. The walk refuses values that cannot arrive as they are, and replaces those that
msgpack has no type for by extension values (`wire.extensions.Ext`). Plain messages (scalars, lists and
dicts of them) are packed as they are, without a copy.

Packing the same value gives the same bytes, except for the order of dict items: items of sets are sorted.
A value that is refused raises `NotSerializable` with the path to the culprit, which is looked for only
then (`Codec._refusal`), so that packing does not keep track of paths.

Packing is here, unpacking in `Decoder`; a `Codec` does both. It keeps buffers between calls and belongs to
one event loop.
"""

from __future__ import annotations

import dataclasses
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgpack

from fleetlm.errors import MessageTooLarge, NotSerializable
from fleetlm.ids import Pid, Ref
from fleetlm.messages import TYPES, MessageTypes, is_named_tuple
from fleetlm.names import Address
from fleetlm.texts import SHORT, type_name
from fleetlm.wire.blobs import MAX_BLOBS, Packed, Parcel
from fleetlm.wire.decoder import Decoder
from fleetlm.wire.extensions import (
    LEAN,
    MAX_NESTING_LIMIT,
    SCALARS,
    BadData,
    Ext,
    Form,
    Refused,
    Shape,
    Unreadable,
    all_lean,
    explained,
    join,
    too_deep,
    unreadable_in,
)
from fleetlm.wire.weights import CONTAINER_BYTES, EXTENSION_BYTES, PAIR_BYTES, VALUE_BYTES

if TYPE_CHECKING:
    from fleetlm.wire.arrays import Buffer
    from fleetlm.wire.large import LargeDecoder
    from fleetlm.wire.sliced_batch import SlicedBatch

__all__ = ["BadData", "Codec", "Ext", "Unreadable", "unreadable_in"]

_MAX_KEPT_BUFFER_BYTES = 1024 * 1024
"""A packer's buffer never shrinks, so a packer that has packed more than this is replaced."""
_MAX_PATH_CHARS = 200
"""The path to a refused value is not extended beyond this length."""
_TUPLE = int(Ext.TUPLE)
_BLOB, _BYTES = int(Ext.BLOB), 0
_NEVER = sys.maxsize
_MICROSECOND = timedelta(microseconds=1)
_BASES = (
    *(bool, int, float, str, bytes, bytearray, tuple, list, dict, set, frozenset, array),
    *(datetime, date, time, timedelta, UUID, Decimal),
)
"""Types whose subclasses are refused, because they would arrive as instances of the type itself."""
_ExtType = msgpack.ExtType
_new = tuple.__new__  # ExtType's constructor checks in Python: 280 ns, this 110
_changed = (RuntimeError, IndexError)
"""What the walk raises for a dict, a set or a list whose size changes meanwhile; and `RecursionError`."""
_pack_errors = (TypeError, ValueError, OverflowError, *_changed)  # UnicodeEncodeError included


class Codec(Decoder):
    """Packs and unpacks messages.

    Args:
        types: the register of dataclasses that may travel.
        max_nesting: how many containers may be inside each other in one message, 1 to 128.
        max_message_bytes: the largest result of `pack`, `pack_part` and `pack_value`.
        large_bytes: from this size on bytes and buffers travel beside a message (`wire.blobs`). Default:
            never.

    Attributes:
        failures: how many `Unreadable` this codec has made. If it is the same before and after a batch,
            the batch need not be searched for them.
        extra_bytes: about how much more memory than bytes the last value takes that was packed
            (`wire.weights`).

    Raises:
        ValueError: ``max_nesting`` is out of its range.
    """

    # Slots for speed: `pack` reads three attributes for every message.
    __slots__ = (
        "_beside", "_large_bytes", "_least_blob_bytes", "_max_message_bytes", "_pack", "_packer",
        "_watch_bytes", "_writers", "extra_bytes",
    )  # fmt: skip

    def __init__(
        self,
        types: MessageTypes = TYPES,
        *,
        max_nesting: int = 64,
        max_message_bytes: int = 64 * 1024 * 1024,
        large_bytes: int = _NEVER,
    ) -> None:
        if not 1 <= max_nesting <= MAX_NESTING_LIMIT:
            raise ValueError(f"max_nesting is 1 to {MAX_NESTING_LIMIT}, not {max_nesting}")
        super().__init__(types, max_nesting)
        self._max_message_bytes = max_message_bytes
        self.extra_bytes: int = 0
        self._watch_bytes = min(max_message_bytes, _MAX_KEPT_BUFFER_BYTES)
        self._large_bytes = self._least_blob_bytes = large_bytes
        self._beside: list[bytes] = []
        """What the present message has beside it."""
        self._writers: dict[type, Callable[[Any, int], Any]] = {
            tuple: self._write_tuple,
            set: partial(self._write_set, int(Ext.SET)),
            frozenset: partial(self._write_set, int(Ext.FROZENSET)),
            datetime: self._write_datetime,
            date: self._write_date,
            time: self._write_time,
            timedelta: self._write_timedelta,
            bytes: self._write_bytes,
            bytearray: partial(self._write_plain_buffer, int(Ext.BYTEARRAY)),
            memoryview: self._write_memoryview,
            array: self._write_array,
            UUID: lambda value, _depth: _new(_ExtType, (int(Ext.UUID), value.bytes)),
            Decimal: lambda value, _depth: _new(_ExtType, (int(Ext.DECIMAL), str(value).encode())),
            Pid: partial(self._write_identity, int(Ext.PID)),
            Ref: partial(self._write_identity, int(Ext.REF)),
            Address: self._write_address,
        }
        self._renew_packer()

    def pack(self, envelope: list[Any], payload: Any) -> Packed:
        """Pack a message of `wire.operations`, with large bytes beside it.

        Args:
            envelope: the list to pack; it has ``payload`` as one of its items.
            payload: the part that the program gave; only this part is walked.

        Returns:
            The message; later changes of ``payload`` do not affect it.

        Raises:
            NotSerializable: a value in ``payload`` would not arrive as it is, and the error has its path; or
                ``payload`` was changed meanwhile, by another thread or by a function of a registered type.
            MessageTooLarge: the result is larger than ``max_message_bytes``.
            MemoryError, KeyboardInterrupt: nothing is kept of the message.
        """
        self.extra_bytes = 0
        try:
            kind = type(payload)
            if kind not in LEAN and (kind is not bytes or len(payload) >= self._least_blob_bytes):
                plain = self._plain(payload, 1)
                if plain is not payload:
                    envelope = _replaced(envelope, payload, plain)
            data: bytes = self._pack(envelope)
        except _pack_errors as error:
            raise self._refusal(payload, error) from None
        except BaseException:
            self._start_over()  # What is beside this message must not travel with the next one.
            raise
        if self._beside:
            return self._take_blobs(data)
        if len(data) > self._watch_bytes:
            self._after_large(data)
        return data

    def pack_whole(self, envelope: list[Any], payload: Any) -> bytes:
        """Do as `pack` with everything in the message, for what must travel in a batch."""
        self._least_blob_bytes = _NEVER
        try:
            packed = self.pack(envelope, payload)
        finally:
            self._least_blob_bytes = self._large_bytes
        assert isinstance(packed, bytes)
        return packed

    def pack_part(self, value: Any) -> Packed:
        """Do as `pack_value`, with large bytes beside it as in `pack`: many messages may share them."""
        self.extra_bytes = 0
        try:
            kind = type(value)
            is_plain = kind in SCALARS and (kind is not bytes or len(value) < self._least_blob_bytes)
            data: bytes = self._pack(value if is_plain else self._plain(value, 1))
        except _pack_errors as error:
            raise self._refusal(value, error) from None
        except BaseException:
            self._start_over()
            raise
        if self._beside:
            return self._take_blobs(data)
        if len(data) > self._watch_bytes:
            self._after_large(data)
        return data

    def pack_value(self, value: Any) -> bytes:
        """Pack a value alone, to be joined with the rest of a message. Raises as `pack` does."""
        self.extra_bytes = 0
        self._least_blob_bytes = _NEVER
        try:
            data: bytes = self._pack(value if type(value) in SCALARS else self._plain(value, 1))
        except _pack_errors as error:
            raise self._refusal(value, error) from None
        finally:
            self._least_blob_bytes = self._large_bytes
        if len(data) > self._watch_bytes:
            self._after_large(data)
        return data

    def large_decoder(self, pause: Callable[[], None]) -> LargeDecoder:
        """Make a decoder of large messages, for use in another thread; ``pause`` as there."""
        from fleetlm.wire.large import LargeDecoder  # noqa: PLC0415  # which is a `Decoder` itself

        return LargeDecoder(self._types, self._max_nesting, pause)

    def sliced_batch(self, body: memoryview) -> SlicedBatch:
        """Make a decoder of one batch, which unpacks it in slices."""
        from fleetlm.wire.sliced_batch import SlicedBatch  # noqa: PLC0415  # which is a `Decoder` itself

        return SlicedBatch(self._types, self._max_nesting, body)

    def _start_over(self) -> None:
        """Drop what was packed of a message that fails."""
        self._beside = []
        self._renew_packer()

    def _renew_packer(self) -> None:
        self._packer = msgpack.Packer(strict_types=True, default=_write_big_int)
        self._pack: Callable[[Any], bytes] = self._packer.pack

    def _after_large(self, data: bytes) -> None:
        """Replace a packer whose buffer has grown large. Raises: MessageTooLarge beyond the limit."""
        self._renew_packer()
        if len(data) > self._max_message_bytes:
            raise MessageTooLarge(len(data), self._max_message_bytes)

    def _take_blobs(self, envelope: bytes) -> Parcel:
        """Return the packed message with what is beside it. Raises: MessageTooLarge beyond the limit."""
        blobs, self._beside = self._beside, []
        if len(envelope) > self._watch_bytes:
            self._after_large(envelope)
        parcel = Parcel(envelope, blobs)
        if len(parcel) > self._max_message_bytes:
            raise MessageTooLarge(len(parcel), self._max_message_bytes)
        return parcel

    def _plain(self, value: Any, depth: int) -> Any:
        """Return a value in the form that msgpack packs, or the value itself if nothing must change.

        Args:
            value: not a scalar, or bytes.
            depth: the number of containers around it, itself included.

        Raises:
            Refused: it cannot be sent.
        """
        kind = type(value)
        if kind is not list and kind is not dict:
            return self._plain_other(value, depth)
        if depth > self._max_nesting:
            raise Refused(too_deep(self._max_nesting))
        changed = None
        if kind is dict:
            self.extra_bytes += CONTAINER_BYTES + PAIR_BYTES * len(value)
            for key, item in value.items():
                if type(key) not in SCALARS:
                    return self._plain_keys(value if changed is None else changed, key, depth)
                if (item_kind := type(item)) not in LEAN and (
                    item_kind is not bytes or len(item) >= self._least_blob_bytes
                ):
                    plain = self._plain(item, depth + 1)
                    if plain is not item:
                        changed = value.copy() if changed is None else changed
                        changed[key] = plain
            return value if changed is None else changed
        self.extra_bytes += CONTAINER_BYTES + VALUE_BYTES * len(value)
        if not all_lean(map(type, value)):
            for index, item in enumerate(value):
                if (item_kind := type(item)) not in LEAN and (
                    item_kind is not bytes or len(item) >= self._least_blob_bytes
                ):
                    plain = self._plain(item, depth + 1)
                    if plain is not item:
                        changed = value.copy() if changed is None else changed
                        changed[index] = plain
        return value if changed is None else changed

    def _plain_other(self, value: Any, depth: int) -> Any:
        """Do as `_plain` for values that are neither list nor dict."""
        kind = type(value)
        self.extra_bytes += EXTENSION_BYTES
        writer = self._writers.get(kind)
        if writer is None:
            writer = self._writers[kind] = self._find_writer(kind)
        return writer(value, depth)

    def _find_writer(self, kind: type) -> Callable[[Any, int], Any]:
        """Return the writer of a class that the program has registered, or of numpy. Raises: Refused."""
        tag = self._types.tags.get(kind)
        if tag is not None:
            shape = self._shapes.of(kind)
            if shape.form is Form.RECORD:
                return partial(self._write_record, tag, shape)
            if shape.form is Form.ENUM:
                return partial(self._write_enum, tag)
            return partial(self._write_converted, tag, self._types.converters[kind][0])
        from fleetlm.wire.arrays import find_numpy_writer  # noqa: PLC0415

        write = find_numpy_writer(kind)
        if write is None:
            raise Refused(_why_not(kind))
        return lambda value, _depth: self._write_buffer(int(Ext.NUMPY), write(value, self._pack))

    def _write_bytes(self, value: bytes, _depth: int) -> Any:
        """Write bytes: beside the message where they are large."""
        if len(value) < self._least_blob_bytes or len(self._beside) == MAX_BLOBS:
            return value
        return self._put_beside(_BYTES, b"", value)

    def _write_plain_buffer(self, code: int, value: bytearray | memoryview, _depth: int) -> Any:
        """Write a buffer of plain bytes, which may change later: it is copied once."""
        data = bytes(value)
        if len(data) < self._least_blob_bytes or len(self._beside) == MAX_BLOBS:
            return _new(_ExtType, (code, data))
        return self._put_beside(code, b"", data)

    def _write_memoryview(self, value: memoryview, depth: int) -> Any:
        from fleetlm.wire.arrays import check_memoryview  # noqa: PLC0415

        return self._write_plain_buffer(int(Ext.MEMORYVIEW), check_memoryview(value), depth)

    def _write_array(self, value: array[Any], _depth: int) -> Any:
        from fleetlm.wire.arrays import write_array  # noqa: PLC0415  # most programs send none

        return self._write_buffer(int(Ext.ARRAY), write_array(value, self._pack))

    def _write_buffer(self, code: int, buffer: Buffer) -> Any:
        """Write a buffer that has a head; likewise."""
        head, items = buffer
        if len(items) < self._least_blob_bytes or len(self._beside) == MAX_BLOBS:
            return _new(_ExtType, (code, join(head, items)))
        return self._put_beside(code, head, bytes(items))

    def _put_beside(self, code: int, head: bytes, data: bytes) -> Any:
        """Put bytes beside the message, and return what stands for them."""
        number = len(self._beside)
        self._beside.append(data)
        return _new(_ExtType, (_BLOB, bytes((number, code)) + head))

    def _plain_keys(self, value: dict[Any, Any], first: Any, depth: int) -> dict[Any, Any]:
        """Do as `_plain` for a dict with a key that is no scalar; items before ``first`` are plain."""
        plain = {}
        is_plain = True
        for key, item in value.items():
            is_plain = is_plain and key is not first
            if is_plain:
                plain[key] = item
            else:
                plain[self._plain_item(key, depth)] = self._plain_item(item, depth)
        if len(plain) != len(value):  # (nan,) and (nan,) are two keys here and one packed
            raise Refused("a dict with two keys that no receiver can tell apart")
        return plain

    def _plain_item(self, item: Any, depth: int) -> Any:
        return item if type(item) in SCALARS else self._plain(item, depth + 1)

    def _write_tuple(self, value: tuple[Any, ...], depth: int) -> Any:
        return _new(_ExtType, (_TUPLE, self._pack(self._plain(list(value), depth))))

    def _write_set(self, code: int, value: Iterable[Any], depth: int) -> Any:
        if depth > self._max_nesting:
            raise Refused(too_deep(self._max_nesting))
        items = sorted(self._pack(self._plain_item(item, depth)) for item in value)
        self.extra_bytes += CONTAINER_BYTES + VALUE_BYTES * len(items)
        return _new(_ExtType, (code, self._packer.pack_array_header(len(items)) + b"".join(items)))

    def _write_datetime(self, value: datetime, _depth: int) -> Any:
        zone = value.tzinfo
        if zone is None:
            raise Refused("a datetime without a time zone; make it aware: datetime.now(timezone.utc)")
        clock = [value.hour, value.minute, value.second, value.microsecond, value.fold]
        body = self._pack([value.year, value.month, value.day, *clock, _name_zone(zone, "datetime")])
        return _new(_ExtType, (int(Ext.DATETIME), body))

    def _write_date(self, value: date, _depth: int) -> Any:
        return _new(_ExtType, (int(Ext.DATE), self._pack([value.year, value.month, value.day])))

    def _write_time(self, value: time, _depth: int) -> Any:
        where = None if value.tzinfo is None else _name_zone(value.tzinfo, "time")
        clock = [value.hour, value.minute, value.second, value.microsecond, value.fold]
        return _new(_ExtType, (int(Ext.TIME), self._pack([*clock, where])))

    def _write_timedelta(self, value: timedelta, _depth: int) -> Any:
        body = self._pack([value.days, value.seconds, value.microseconds])
        return _new(_ExtType, (int(Ext.TIMEDELTA), body))

    def _write_identity(self, code: int, value: Pid | Ref, _depth: int) -> Any:
        parts = [value.node, value.incarnation, value.number]
        if [type(part) for part in parts] != [str, int, int]:
            raise Refused(f"a {type_name(type(value))} with a field of the wrong type: {SHORT.repr(parts)}")
        return _new(_ExtType, (code, self._pack(parts)))

    def _write_address(self, value: Address, _depth: int) -> Any:
        if [type(part) for part in value] != [str, str]:
            raise Refused(f"an Address that is not two strings: {SHORT.repr([*value])}")
        return _new(_ExtType, (int(Ext.ADDRESS), self._pack([*value])))

    def _write_record(self, tag: str, shape: Shape, value: Any, depth: int) -> Any:
        """Write a dataclass or NamedTuple: the fields that have another value than their default."""
        try:
            fields = {name: getattr(value, name) for name in shape.always}
            for name, default in shape.optional:
                item = getattr(value, name)
                if item is not default and not (type(item) is type(default) and _is_equal(item, default)):
                    fields[name] = item
            for name, container in shape.empty:
                item = getattr(value, name)
                if item or type(item) is not container:
                    fields[name] = item
        except AttributeError as error:
            raise Refused(f"a {type_name(type(value))} whose field {error.name!r} is not set") from None
        return _new(_ExtType, (int(Ext.DATACLASS), self._pack([tag, self._plain(fields, depth)])))

    def _write_enum(self, tag: str, value: Enum, _depth: int) -> Any:
        body = self._pack([tag, value.value if isinstance(value, Flag) else value.name])
        return _new(_ExtType, (int(Ext.ENUM), body))

    def _write_converted(self, tag: str, to_value: Callable[[Any], Any], value: Any, depth: int) -> Any:
        if depth > self._max_nesting:
            raise Refused(too_deep(self._max_nesting))
        made = self._convert(to_value, value)
        body = self._pack([tag, self._plain_item(made, depth)])
        return _new(_ExtType, (int(Ext.CONVERTED), body))

    def _convert(self, to_value: Callable[[Any], Any], value: Any) -> Any:
        """Call a function of the program, which may send messages itself, by a logging handler for example.

        Raises:
            Refused: it has raised.
        """
        outer = self._beside, self.extra_bytes, self._least_blob_bytes
        self._beside, self._least_blob_bytes = [], self._large_bytes
        try:
            return to_value(value)
        except Exception as error:
            why = explained(error)
            raise Refused(f"a {type_name(type(value))} of which no value could be made: {why}") from error
        finally:
            self._beside, self.extra_bytes, self._least_blob_bytes = outer

    def _refusal(self, value: Any, error: Exception) -> NotSerializable:
        """Build the sender's error."""
        self._start_over()
        if not _is_change(error):
            try:
                return self._find_culprit(value, error)
            except _changed as change:  # While it was looked for.
                error = change
        return NotSerializable("message", _why(error))

    def _find_culprit(self, value: Any, error: Exception) -> NotSerializable:
        """Descend to the first refused child until the culprit is found."""
        why, depth, path = self._why_refused(value, 1), 1, "message"
        if why is None:  # Then another item of the envelope is at fault, such as a name.
            return NotSerializable("the address of the message", explained(error))
        found = True
        while found and depth <= self._max_nesting:  # A cycle would never end.
            found = False
            for step, child in _children(value):
                child_why = self._why_refused(child, depth + 1)
                if child_why is not None:
                    value, why, depth, found = child, child_why, depth + 1, True
                    path = step.format(path=path) if len(path) < _MAX_PATH_CHARS else path
                    break
        return NotSerializable(path, why)

    def _why_refused(self, value: Any, depth: int) -> str | None:
        """Return why a value cannot be sent, or None if it can."""
        try:
            self._pack(value if type(value) in SCALARS else self._plain(value, depth))
        except _pack_errors as error:
            return _why(error)
        finally:
            self._beside = []
        return None


def _is_change(error: Exception) -> bool:
    """Whether the walk has met a container whose size changed."""
    return isinstance(error, _changed) and not isinstance(error, RecursionError)


def _why(error: Exception) -> str:
    """Return why a value cannot be sent."""
    if not _is_change(error):
        return explained(error)
    who = "perhaps another thread, or a function of a registered type"
    return f"{explained(error)}; {who}, has changed it while it was packed: send a copy"


def _replaced(envelope: list[Any], payload: Any, plain: Any) -> list[Any]:
    """Return the envelope with the payload in the form that msgpack packs."""
    # Not inside `pack`: a comprehension would turn its locals into cells, 25 ns for every message.
    return [plain if item is payload else item for item in envelope]


def _write_big_int(value: Any) -> Any:
    """Pack what msgpack cannot and the walk has let through: integers of more than 64 bits."""
    if type(value) is not int:
        raise Refused(_why_not(type(value)))
    return _new(
        _ExtType,
        (int(Ext.BIG_INT), value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)),
    )


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """Return the values inside ``value``, each with a format for its path."""
    kind: Any = type(value)
    if kind in (list, tuple):
        yield from ((f"{{path}}[{index}]", item) for index, item in enumerate(value))
    elif kind in (set, frozenset):
        yield from (("an item of {path}", item) for item in value)
    elif kind is dict:
        for key, item in value.items():
            shown = SHORT.repr(key).replace("{", "{{").replace("}", "}}")
            yield f"the key {shown} of {{path}}", key
            yield f"{{path}}[{shown}]", item
    elif dataclasses.is_dataclass(kind) and kind not in (Pid, Ref):
        for field in dataclasses.fields(kind):
            yield f"{{path}}.{field.name}", getattr(value, field.name, None)
    elif is_named_tuple(kind):
        yield from ((f"{{path}}.{name}", getattr(value, name, None)) for name in kind._fields)


def _is_equal(item: Any, default: Any) -> bool:
    """Whether two values of one type cannot be told apart. Only plain types are compared."""
    return type(item) in SCALARS and item == default and (item != 0 or str(item) == str(default))  # -0.0


def _name_zone(zone: tzinfo, what: str) -> object:
    """Return a time zone as it travels: its key, or its offset in µs and its name. Raises: Refused."""
    if type(zone) is not timezone:
        from zoneinfo import ZoneInfo  # noqa: PLC0415  # most times are in UTC

        if type(zone) is ZoneInfo and zone.key:
            return zone.key
        kind = type_name(type(zone))
        raise Refused(f"a {what} in a zone of type {kind}; use zoneinfo.ZoneInfo or datetime.timezone")
    offset, name = zone.utcoffset(None), zone.tzname(None)
    return [offset // _MICROSECOND, None if name == timezone(offset).tzname(None) else name]


def _why_not(kind: type) -> str:
    """Return why values of this type cannot be sent, and what to send instead."""
    name = type_name(kind)
    if issubclass(kind, Enum):
        return f"the enum {name} is not registered; put @fleetlm.message(tag) above it"
    if dataclasses.is_dataclass(kind):
        return f"the dataclass {name} is not registered; put @fleetlm.message(tag) above it"
    if hasattr(kind, "model_dump") and hasattr(kind, "model_validate"):
        short = kind.__name__
        return (
            f"{name} is a pydantic model; send model_dump() and rebuild it with model_validate(), or "
            f"fleetlm.register_type(tag, {short}, {short}.model_dump, {short}.model_validate)"
        )
    if is_named_tuple(kind) and kind.__module__ != "msgpack.ext":
        return f"the NamedTuple {name} is not registered; register it with fleetlm.message(tag)"
    for base in _BASES:
        if issubclass(kind, base):
            return f"{name} is a kind of {type_name(base)} and would arrive as a plain one; convert it"
    hint = "" if kind.__module__ == "builtins" else ", or register it with fleetlm.register_type"
    return f"{name} is not a message type; convert it{hint}"
