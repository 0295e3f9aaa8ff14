"""Unpacks msgpack bytes into message values, whatever the bytes hold.

The receiver trusts nothing that a peer sends. There are two kinds of fault:

- Bytes that no codec writes (malformed, too deep, trailing bytes) raise `BadData`; the session ends.
- A value that is well formed but cannot be rebuilt here (a tag that is not registered, a constructor that
  raised, a time zone that this machine does not have) becomes an `Unreadable` in its place and is counted
  in `Decoder.failures`. That costs one message, not the session. No constructor of a program ever gets an
  `Unreadable` as an argument: a dataclass with an unreadable field is unreadable itself.

Nesting is limited twice. Extension values nest bytes in bytes: each level of them has its own unpacker, and
`_depth` counts them. The finished value is then walked for its depth, in C where it has only built-in
containers. Lengths need no limit, because msgpack refuses a header that claims more than the input holds.

A peer chooses the keys of maps, and could choose keys that collide (`wire.hash_tables`). Nearly all maps have
texts as keys, and msgpack itself refuses others with ``strict_map_key``. So bytes are read in this *strict*
way first, which costs nothing. Where it fails they are read once more from the start, the *careful* way: each
map is handed over as pairs, whose keys are checked before a dict is made of them.

How long that takes depends on what the bytes consist of: empty sets take twenty times as long as numbers do.
All that takes long goes through a function of this module, which counts it (`_take_steps`). So
`unpack_batch` can stop where it would take too long for its caller.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Collection, Iterable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Flag
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgpack

from fleetlm.ids import Pid, Ref
from fleetlm.messages import MessageTypes
from fleetlm.names import Address
from fleetlm.texts import SHORT, type_name
from fleetlm.wire.blobs import Hold
from fleetlm.wire.extensions import (
    SCALARS,
    BadData,
    Ext,
    Form,
    Shape,
    Shapes,
    Unreadable,
    explained,
    split,
    too_deep,
    unreadable_in,
)
from fleetlm.wire.hash_tables import UNCHECKED_KEYS, CollidingKeys, check_keys, make_set
from fleetlm.wire.zones import ZONES

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

_SMALL_BYTES = 4096
"""Up to this size a reused unpacker is twice as fast as ``unpackb``; it costs 4 KiB for each depth."""
_MAX_SHOWN_CHARS = 128
"""Longer texts of a peer are cut in errors."""
_LEAVES = SCALARS | {datetime, date, time, timedelta, UUID, Decimal, Pid, Ref, Address, Unreadable}
"""Types whose values hold no further message values, so that the walk for depth ends there."""
_all_leaves = _LEAVES.issuperset
_all_lists = frozenset({list}).issuperset
_MICROSECOND = timedelta(microseconds=1)
_BLOCK_ITEMS = 65_536
"""Items of a container whose types are looked at in one go: a millisecond."""
_MAX_ID = (1 << 64) - 1
_CAREFUL_READS = 16
"""Reads in the careful way after one that needed it: who sends such a map sends more of them."""
_HUGE_INT_BYTES = 1_024
"""Comparing a Decimal with a larger integer takes a time that grows with the square of its size."""
MAX_FLAG_VALUES = 65_536
"""Values of a Flag that a peer may make this node know: its class keeps each of them for ever, a few hundred
bytes. A Flag of sixteen members has no more."""
_OTHER_KEY = "strict_map_key"
"""Is in msgpack's error for a key that is neither text nor bytes."""
_ALONE = frozenset({int, float, bool, str, bytes, type(None), UUID})
"""Types whose values compare fast with each other, whatever their size."""
NO_LIMIT = sys.maxsize
"""As many steps as it takes."""
_EXTENSION_STEPS = 4
"""Of an extension value: some 2 us, of which its own unpacker takes most."""
_PAIR_STEPS = 2
"""Of a pair of a map in the careful way."""


class TooManySteps(Exception):  # It is no error: the bytes may be fine.
    """To unpack these bytes takes longer than its caller has allowed."""


class Decoder:
    """The unpacking half of a `Codec`, whose docstring describes the arguments and attributes."""

    __slots__ = (
        "_blobs",
        "_careful_reads",
        "_depth",
        "_has_decimal",
        "_has_huge_int",
        "_max_nesting",
        "_met_instances",
        "_options",
        "_readers",
        "_shapes",
        "_steps_left",
        "_types",
        "_unpack_large",
        "_unpackers",
        "failures",
        "values",
    )

    def __init__(self, types: MessageTypes, max_nesting: int) -> None:
        self.failures: int = 0
        self.values: int = 0
        """About how many values the last batch held."""
        self._types = types
        self._max_nesting = max_nesting
        self._shapes = Shapes(types)
        self._readers: dict[int, Callable[[bytes], Any]] = {
            Ext.TUPLE: lambda data: tuple(self._read_list(data)),
            Ext.SET: self._read_set,
            Ext.FROZENSET: self._read_frozenset,
            Ext.BIG_INT: self._read_big_int,
            Ext.DATETIME: self._read_datetime,
            Ext.UUID: lambda data: UUID(bytes=data),
            Ext.DECIMAL: self._read_decimal,
            Ext.PID: lambda data: Pid(*self._read_identity(data)),
            Ext.REF: lambda data: Ref(*self._read_identity(data)),
            Ext.ADDRESS: self._read_address,
            Ext.DATACLASS: self._read_record,
            Ext.DATE: lambda data: date(*self._read_list(data)),
            Ext.TIME: self._read_time,
            Ext.TIMEDELTA: self._read_timedelta,
            Ext.ENUM: self._read_enum,
            Ext.CONVERTED: self._read_converted,
            Ext.BYTEARRAY: bytearray,
            Ext.MEMORYVIEW: memoryview,
            Ext.ARRAY: partial(self._read_buffer, Ext.ARRAY),
            Ext.NUMPY: partial(self._read_buffer, Ext.NUMPY),
            Ext.BLOB: self._read_blob,
        }
        self._blobs: dict[int, Hold] = {}
        """What is beside the present message and has not been read yet."""
        self._depth = 0
        self._met_instances = False
        """Whether the present batch holds other values than built-in containers and scalars."""
        self._has_decimal = False
        """Whether the present input holds a Decimal, and (below) an integer of more than 1 KiB."""
        self._has_huge_int = False
        self._steps_left = NO_LIMIT
        """Of the present batch; see `_take_steps`."""
        self._read_strictly()

    def unpack(self, data: bytes | memoryview, blobs: Collection[Hold] = ()) -> Any:
        """Return the one value that ``data`` holds: a message of `wire.operations`, or a part of one.

        A value that cannot be rebuilt is replaced by `Unreadable` and counted in `failures`.

        Args:
            data: the packed message.
            blobs: what is beside it.

        Raises:
            BadData: malformed, trailing bytes, or a payload nested deeper than ``max_nesting``.
        """
        self._steps_left = NO_LIMIT
        value = self._read_with(data, blobs) if blobs else self._read(data)
        if type(value) not in _LEAVES:
            self._check_depth(value, self._max_nesting + 1)
        return value

    def unpack_batch(self, data: bytes | memoryview, most_steps: int = NO_LIMIT) -> list[Any]:
        """Return the messages of one packed array. Replaces and raises as `unpack` does.

        Args:
            data: the packed array.
            most_steps: how long it may take. A step takes half a microsecond at most.

        Raises:
            TooManySteps: it takes longer, and nothing has been counted.
        """
        self._met_instances = False
        self._steps_left = most_steps
        batch = self._read(data)
        if type(batch) is not list:
            raise BadData(f"a batch is an array of messages, not {type_name(type(batch))}")
        self._check_batch(batch)
        return batch

    def _check_batch(self, batch: list[Any]) -> None:
        """Count the values of messages. Raises: BadData if they are nested too deep."""
        room = self._max_nesting + 2
        if self._met_instances:
            self.values = 0
            self._check_depth(batch, room)
            return
        # Only built-in containers. Nearly every batch has arrays of scalars, which one pass in C shows;
        # others are walked level by level.
        if _all_lists(map(type, batch)) and _all_leaves(map(type, chain.from_iterable(batch))):
            self.values = 0  # None of them is in a container of its message.
            return
        level: list[Any] = batch
        values = 0
        for _ in range(room - 1):
            level = gc.get_referents(*level)
            values += len(level)
            if _all_leaves(map(type, level)):
                self.values = values
                return
        raise BadData(too_deep(self._max_nesting))

    def _read_with(self, data: bytes | memoryview, blobs: Collection[Hold]) -> Any:
        """Return the value in a message that has blobs. It is read once, as blobs are used up."""
        careful_reads = self._careful_reads
        self._read_carefully()
        self._blobs = dict(enumerate(blobs))
        try:
            return self._read(data)
        finally:
            self._blobs = {}
            if not careful_reads:
                self._read_strictly()

    def _read_strictly(self) -> None:
        """Read the next input in the strict way."""
        self._careful_reads = 0
        """How many further inputs are read in the careful way."""
        self._set_options(strict_map_key=True)

    def _read_carefully(self) -> None:
        """Read this input, and some further ones, in the careful way."""
        self._careful_reads = _CAREFUL_READS
        self._set_options(strict_map_key=False, object_pairs_hook=self._make_dict)

    def _set_options(self, **options: Any) -> None:
        # msgpack bounds all lengths by the size of the input by default.
        self._options: dict[str, Any] = {"ext_hook": self._read_ext, "timestamp": 3, **options}
        self._unpackers: list[Any] = []
        self._unpack_large = partial(msgpack.unpackb, **self._options)

    def _read(self, data: bytes | memoryview) -> Any:
        """Return the one value in ``data``; its depth is not checked yet. Raises: BadData."""
        failures = self.failures
        if self._careful_reads:
            self._careful_reads -= 1
            if not self._careful_reads:
                self._read_strictly()
        self._has_decimal = self._has_huge_int = False
        unpackers = self._unpackers
        try:
            if len(data) > _SMALL_BYTES or not unpackers:
                return self._read_once(data)
            # As `_read_nested`, which would be two more calls for every batch.
            unpacker = unpackers[0]
            unpacker.feed(data)
            self._depth = 1
            value = unpacker.unpack()
            if unpacker.read_bytes(1):
                raise BadData("bytes behind the value")  # noqa: TRY301  as any other fault
        except TooManySteps:
            unpackers.clear()
            self.failures = failures
            raise
        except Exception as error:
            unpackers.clear()
            if self._careful_reads or _OTHER_KEY not in str(error):
                raise bad_data(error) from error
        except BaseException:  # This unpacker still holds data.
            unpackers.clear()
            raise
        else:
            return value
        self.failures = failures
        self._read_carefully()
        try:
            return self._read_once(data)
        except Exception as error:
            self._unpackers.clear()
            if isinstance(error, TooManySteps):
                self.failures = failures
                raise
            raise bad_data(error) from error

    def _read_once(self, data: bytes | memoryview) -> Any:
        self._depth = 0
        self._has_decimal = self._has_huge_int = False
        if len(data) > _SMALL_BYTES:
            return self._unpack_large(data)
        return self._read_nested(data)

    def _read_nested(self, data: bytes | memoryview) -> Any:
        """Read the bytes inside an extension value, with the unpacker of this depth.

        ``unpackb`` would take 40 KiB of stack for each level.
        """
        depth = self._depth
        self._check_levels(depth)
        size = len(data)
        if size > _SMALL_BYTES:
            unpacker = msgpack.Unpacker(read_size=size, max_buffer_size=size, **self._options)
        elif depth < len(self._unpackers):
            unpacker = self._unpackers[depth]
        else:
            unpacker = msgpack.Unpacker(read_size=_SMALL_BYTES, max_buffer_size=_SMALL_BYTES, **self._options)
            if depth == len(self._unpackers):
                self._unpackers.append(unpacker)
        unpacker.feed(data)
        self._depth = depth + 1
        try:
            value = unpacker.unpack()
            if unpacker.read_bytes(1):
                raise BadData("bytes behind the value")  # noqa: TRY301  this unpacker goes too
        except BaseException:  # The reader of a type may go on, and these unpackers still hold data.
            del self._unpackers[depth:]
            raise
        finally:
            self._depth = depth
        return value

    def _check_levels(self, depth: int) -> None:
        """Raise BadData if there are too many levels of extension values."""
        if depth > self._max_nesting + 1:
            raise BadData(too_deep(self._max_nesting))

    def _check_depth(self, value: Any, room: int) -> None:
        """Raise BadData if ``value``, which must not be a leaf, holds more than ``room`` levels."""
        parts = self._parts(value)
        if room == 0 and parts:
            raise BadData(too_deep(self._max_nesting))
        for part in parts:
            for block in _blocks(part):
                self.values += len(block)
                if not _all_leaves(map(type, block)):
                    for child in block:
                        if type(child) not in _LEAVES:
                            self._check_depth(child, room - 1)

    def _parts(self, value: Any) -> tuple[Collection[Any], ...]:
        """Return the values inside a container or dataclass, in one or two iterables."""
        kind = type(value)
        if kind is dict:
            return value.keys(), value.values()
        if kind in (list, tuple, set, frozenset):
            return (value,)
        if kind in self._types.tags:
            shape = self._shapes.of(kind)
            if shape.form is Form.RECORD:
                return ([getattr(value, name, None) for name in shape.names],)
        return ()

    def _take_steps(self, count: int) -> None:
        """Count what takes long. Raises: TooManySteps."""
        self._steps_left -= count
        if self._steps_left < 0:
            raise TooManySteps

    def _read_ext(self, code: int, data: bytes) -> Any:
        self._steps_left -= _EXTENSION_STEPS
        if self._steps_left < 0:  # `_take_steps` inline.
            raise TooManySteps
        self._met_instances |= code > Ext.FROZENSET
        reader = self._readers.get(code)
        if reader is None:
            return self._unreadable(f"extension type {code} is not known to this version of fleetlm")
        return reader(data)

    def _unreadable(self, why: str) -> Unreadable:
        """Make the stand-in for a value that cannot be rebuilt, and count it."""
        self.failures += 1
        self._met_instances = True
        return Unreadable(why)

    def _make_dict(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any] | Unreadable:
        """Make a dict of the pairs of a map in the careful way."""
        self._take_steps(_PAIR_STEPS * len(pairs))
        if len(pairs) > UNCHECKED_KEYS or self._has_huge_int:
            keys = [key for key, _ in pairs]
            try:
                self._check_comparisons(keys)
                check_keys(keys)
            except CollidingKeys as error:
                return self._unreadable(str(error))
        return dict(pairs)

    def _read_set(self, data: bytes) -> set[Any] | Unreadable:
        items = self._read_list(data)
        try:
            self._check_comparisons(items)
            return make_set(items)
        except CollidingKeys as error:
            return self._unreadable(str(error))

    def _read_frozenset(self, data: bytes) -> frozenset[Any] | Unreadable:
        items = self._read_set(data)
        return items if isinstance(items, Unreadable) else frozenset(items)

    def _check_comparisons(self, keys: list[Any]) -> None:
        """Raise CollidingKeys if a Decimal and a huge integer may be among these keys or inside them."""
        if self._has_huge_int and self._has_decimal and not _ALONE.issuperset(map(type, keys)):
            raise CollidingKeys("a Decimal and a huge integer as keys of a dict or items of a set")

    def _read_big_int(self, data: bytes) -> int:
        self._has_huge_int |= len(data) > _HUGE_INT_BYTES
        return int.from_bytes(data, "big", signed=True)

    def _read_decimal(self, data: bytes) -> Decimal:
        self._has_decimal = True
        return Decimal(data.decode("ascii"))

    def _read_list(self, data: bytes) -> list[Any]:
        items = self._read_nested(data)
        if type(items) is not list:
            raise BadData(f"expected an array, not {type_name(type(items))}")
        return items

    def _read_datetime(self, data: bytes) -> datetime | Unreadable:
        *numbers, fold, where = self._read_list(data)
        zone = self._read_zone(where)
        if type(zone) is Unreadable:
            return zone
        if len(numbers) != 7:
            raise BadData("a datetime with the wrong number of fields")
        return datetime(*numbers, fold=fold, tzinfo=zone)  # type: ignore[misc, arg-type]

    def _read_time(self, data: bytes) -> time | Unreadable:
        *numbers, fold, where = self._read_list(data)
        zone = None if where is None else self._read_zone(where)
        if type(zone) is Unreadable:
            return zone
        if len(numbers) != 4:
            raise BadData("a time with the wrong number of fields")
        return time(*numbers, fold=fold, tzinfo=zone)  # type: ignore[misc, arg-type]

    def _read_timedelta(self, data: bytes) -> timedelta:
        days, seconds, microseconds = self._read_list(data)
        if not all(type(number) is int for number in (days, seconds, microseconds)):
            raise BadData("a timedelta that is not three numbers")
        return timedelta(days, seconds, microseconds)

    def _read_zone(self, where: Any) -> timezone | ZoneInfo | Unreadable:
        if type(where) is not str:
            offset, name = where
            delta = offset * _MICROSECOND
            return timezone(delta) if name is None else timezone(delta, name)
        found = ZONES.find(where)
        if isinstance(found, str):
            return self._unreadable(
                f"time zone {where[:64]!r}: {found[:_MAX_SHOWN_CHARS]}; install tzdata here"
            )
        return found

    def _read_identity(self, data: bytes) -> tuple[str, int, int]:
        node, incarnation, number = self._read_list(data)
        if not (type(node) is str and type(incarnation) is int and type(number) is int):
            raise BadData("a pid or ref with fields of the wrong type")
        if not (0 <= incarnation <= _MAX_ID and 0 <= number <= _MAX_ID):
            raise BadData("a pid or ref with a number of more than 64 bits")
        return node, incarnation, number

    def _read_address(self, data: bytes) -> Address:
        name, node = self._read_list(data)
        if not (type(name) is str and type(node) is str):
            raise BadData("an address that is not two strings")
        return Address(name, node)

    def _read_record(self, data: bytes) -> Any:
        failures = self.failures
        tag, fields = self._read_list(data)
        if type(tag) is not str or type(fields) is not dict:
            raise BadData("a dataclass without tag or fields")
        kind = self._types.by_tag.get(tag)
        shape = None if kind is None else self._shapes.of(kind)
        if shape is not None and shape.is_lenient:
            fields = {name: fields[name] for name in shape.names if name in fields}
        if self.failures != failures:  # No constructor ever gets an Unreadable.
            found = unreadable_in(fields)
            if found is not None:
                return found
        if kind is None or shape is None or shape.form is not Form.RECORD:
            return self._unknown_tag(tag, "a dataclass")
        if not (shape.required <= fields.keys() <= shape.known):
            return self._explain_fields(tag, shape, fields)
        try:
            return kind(**fields)
        except Exception as error:  # noqa: BLE001  # the program's constructor, on input of a peer
            return self._not_made(tag, error)

    def _explain_fields(self, tag: str, shape: Shape, fields: dict[Any, Any]) -> Unreadable:
        """Say which field is unknown here, or is missing."""
        shown = repr(tag[:_MAX_SHOWN_CHARS])
        for name in fields:
            if name not in shape.known:
                return self._unreadable(f"{shown} has no field {SHORT.repr(name)} on this node")
        missing = min(shape.required - fields.keys())
        why = f"{shown} came without the field {missing!r}, which has no default on this node"
        return self._unreadable(why)

    def _read_enum(self, data: bytes) -> Any:
        tag, member = self._read_list(data)
        if type(tag) is not str or type(member) not in (str, int):
            raise BadData("an enum without tag or member")
        kind = self._types.by_tag.get(tag)
        if kind is None or self._shapes.of(kind).form is not Form.ENUM:
            return self._unknown_tag(tag, "an enum")
        if issubclass(kind, Flag) and type(member) is int:
            known = kind._value2member_map_
            if len(known) >= MAX_FLAG_VALUES and member not in known:
                return self._unreadable(f"{tag!r} has {len(known):,} values on this node already")
            try:
                return kind(member)
            except Exception as error:  # noqa: BLE001  # bits that this version of the class does not have
                return self._not_made(tag, error)
        if type(member) is str and member in kind.__members__:  # type: ignore[attr-defined]
            return kind[member]  # type: ignore[index]
        return self._unreadable(f"{tag!r} has no member {SHORT.repr(member)} on this node")

    def _read_converted(self, data: bytes) -> Any:
        failures = self.failures
        tag, value = self._read_list(data)
        if type(tag) is not str:
            raise BadData("a value without its tag")
        if self.failures != failures:
            found = unreadable_in(value)
            if found is not None:
                return found
        kind = self._types.by_tag.get(tag)
        if kind is None or self._shapes.of(kind).form is not Form.CONVERTED:
            return self._unknown_tag(tag, "a type of `register_type`")
        if type(value) not in _LEAVES:  # The program's function walks it, perhaps recursively.
            self._check_depth(value, self._max_nesting)
        try:
            return self._types.converters[kind][1](value)
        except Exception as error:  # noqa: BLE001  # the program's function, on input of a peer
            return self._not_made(tag, error)

    def _read_blob(self, data: bytes) -> Any:
        """Make a value of what is beside the message."""
        hold, code = self._blobs.pop(data[0]), data[1]  # Each is used once: an array can be written to.
        if code == 0:
            return hold.to_bytes()
        if code == Ext.MEMORYVIEW:
            return memoryview(hold.to_bytes())
        if code == Ext.BYTEARRAY:
            copy = bytearray()
            for piece in self._pieces(hold.to_buffer()):
                copy += piece
            return copy
        if code in (Ext.ARRAY, Ext.NUMPY):
            return self._make_buffer(code, self._read_list(data[2:]), hold.to_buffer())
        return self._unreadable(f"extension type {code} is not known to this version of fleetlm")

    def _read_buffer(self, code: int, data: bytes) -> Any:
        head, items = split(data, self._read_list)
        return self._make_buffer(code, head, bytearray(items) if code == Ext.NUMPY else items)

    def _make_buffer(self, code: int, head: list[Any], items: Any) -> Any:
        """Make an array, of numpy or not."""
        try:
            from fleetlm.wire.arrays import read_array, read_numpy  # noqa: PLC0415  # most programs get none

            if code == Ext.NUMPY:
                return read_numpy(head, items)
            return read_array(head, self._pieces(items))
        except BadData:
            raise
        except Exception as error:  # noqa: BLE001  # another machine, or no numpy here
            what = "an array of numpy" if code == Ext.NUMPY else "an array"
            why = explained(error)[:_MAX_SHOWN_CHARS]
            hint = "; pip install 'fleetlm[numpy]' on this node" if isinstance(error, ImportError) else ""
            return self._unreadable(f"{what} could not be made: {why}{hint}")

    def _pieces(self, data: memoryview) -> Iterable[memoryview]:
        """Return ``data`` in the pieces in which it is copied."""
        return (data,)

    def _not_made(self, tag: str, error: Exception) -> Unreadable:
        shown = repr(tag[:_MAX_SHOWN_CHARS])
        return self._unreadable(f"{shown} could not be made: {explained(error)[:_MAX_SHOWN_CHARS]}")

    def _unknown_tag(self, tag: str, what: str) -> Unreadable:
        shown = repr(tag[:_MAX_SHOWN_CHARS])
        known = self._types.by_tag.get(tag)
        if known is None:
            return self._unreadable(f"no message type is registered under {shown} on this node")
        return self._unreadable(f"{shown} came as {what}, but is {type_name(known)} on this node")


def _blocks(part: Collection[Any]) -> Iterable[Collection[Any]]:
    """Cut a large container, so that no call holds the interpreter for long."""
    if len(part) <= _BLOCK_ITEMS:
        return (part,)
    items = iter(part)
    return iter(lambda: tuple(islice(items, _BLOCK_ITEMS)), ())


def bad_data(error: Exception) -> BadData:
    """Return the error for bytes that raised this one when they were read."""
    return BadData(f"not a message: {explained(error)[:_MAX_SHOWN_CHARS]}")
