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
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack

from fleetlm.ids import Pid, Ref
from fleetlm.messages import MessageTypes
from fleetlm.names import Address
from fleetlm.texts import SHORT, type_name
from fleetlm.wire.extensions import (
    SCALARS,
    BadData,
    Ext,
    Shapes,
    Unreadable,
    explained,
    too_deep,
    unreadable_in,
)

_SMALL_BYTES = 4096
"""Up to this size a reused unpacker is twice as fast as ``unpackb``; it costs 4 KiB for each depth."""
_MAX_SHOWN_CHARS = 128
"""Longer texts of a peer are cut in errors."""
_LEAVES = SCALARS | {datetime, UUID, Decimal, Pid, Ref, Address, Unreadable}
"""Types whose values hold no further message values, so that the walk for depth ends there."""
_all_leaves = _LEAVES.issuperset
_MICROSECOND = timedelta(microseconds=1)


class Decoder:
    """The unpacking half of a `Codec`, whose docstring describes the arguments and attributes."""

    __slots__ = (
        "_depth",
        "_max_nesting",
        "_met_instances",
        "_readers",
        "_shapes",
        "_types",
        "_unpack_large",
        "_unpackers",
        "failures",
    )

    def __init__(self, types: MessageTypes, max_nesting: int) -> None:
        self.failures: int = 0
        self._types = types
        self._max_nesting = max_nesting
        self._shapes = Shapes()
        self._readers: dict[int, Callable[[bytes], Any]] = {
            Ext.TUPLE: lambda data: tuple(self._read_list(data)),
            Ext.SET: lambda data: set(self._read_list(data)),
            Ext.FROZENSET: lambda data: frozenset(self._read_list(data)),
            Ext.BIG_INT: lambda data: int.from_bytes(data, "big", signed=True),
            Ext.DATETIME: self._read_datetime,
            Ext.UUID: lambda data: UUID(bytes=data),
            Ext.DECIMAL: lambda data: Decimal(data.decode("ascii")),
            Ext.PID: lambda data: Pid(*self._read_identity(data)),
            Ext.REF: lambda data: Ref(*self._read_identity(data)),
            Ext.ADDRESS: self._read_address,
            Ext.DATACLASS: self._read_dataclass,
        }
        self._depth = 0
        self._met_instances = False
        """Whether the present batch holds other values than built-in containers and scalars."""
        self._unpackers: list[Any] = []
        self._unpack_large = partial(msgpack.unpackb, **self._unpack_options)

    def unpack(self, data: bytes | memoryview) -> Any:
        """Return the one value that ``data`` holds: a message of `wire.operations`, or a part of one.

        A value that cannot be rebuilt is replaced by `Unreadable` and counted in `failures`.

        Raises:
            BadData: malformed, trailing bytes, or a payload nested deeper than ``max_nesting``.
        """
        value = self._read(data)
        if type(value) not in _LEAVES:
            self._check_depth(value, self._max_nesting + 1)
        return value

    def unpack_batch(self, data: bytes | memoryview) -> list[Any]:
        """Return the messages of one packed array. Replaces and raises as `unpack` does."""
        self._met_instances = False
        batch = self._read(data)
        if type(batch) is not list:
            raise BadData(f"a batch is an array of messages, not {type_name(type(batch))}")
        room = self._max_nesting + 2
        if self._met_instances:
            self._check_depth(batch, room)
            return batch
        # Only built-in containers: walk level by level in C, 15 ns a message instead of 60.
        level: list[Any] = batch
        for _ in range(room):
            level = gc.get_referents(*level)
            if not level:
                return batch
        raise BadData(too_deep(self._max_nesting))

    @property
    def _unpack_options(self) -> dict[str, Any]:
        # msgpack bounds all lengths by the size of the input by default.
        return {"ext_hook": self._read_ext, "strict_map_key": False, "timestamp": 3}

    def _read(self, data: bytes | memoryview) -> Any:
        """Return the one value in ``data``; its depth is not checked yet. Raises: BadData."""
        self._depth = 0
        try:
            if len(data) > _SMALL_BYTES:
                return self._unpack_large(data)
            return self._read_nested(data)
        except Exception as error:
            self._unpackers.clear()
            raise BadData(f"not a message: {explained(error)[:_MAX_SHOWN_CHARS]}") from error

    def _read_nested(self, data: bytes | memoryview) -> Any:
        """Read the bytes inside an extension value, with the unpacker of this depth.

        ``unpackb`` would take 40 KiB of stack for each level.
        """
        depth = self._depth
        if depth > self._max_nesting + 1:
            raise BadData(too_deep(self._max_nesting))
        size = len(data)
        if size > _SMALL_BYTES:
            unpacker = msgpack.Unpacker(read_size=size, max_buffer_size=size, **self._unpack_options)
        elif depth < len(self._unpackers):
            unpacker = self._unpackers[depth]
        else:
            unpacker = msgpack.Unpacker(
                read_size=_SMALL_BYTES, max_buffer_size=_SMALL_BYTES, **self._unpack_options
            )
            if depth == len(self._unpackers):
                self._unpackers.append(unpacker)
        unpacker.feed(data)
        self._depth = depth + 1
        value = unpacker.unpack()
        self._depth = depth
        if unpacker.read_bytes(1):
            raise BadData("bytes behind the value")
        return value

    def _check_depth(self, value: Any, room: int) -> None:
        """Raise BadData if ``value``, which must not be a leaf, holds more than ``room`` levels."""
        if room == 0:
            raise BadData(too_deep(self._max_nesting))
        for part in self._parts(value):
            if not _all_leaves(map(type, part)):
                for child in part:
                    if type(child) not in _LEAVES:
                        self._check_depth(child, room - 1)

    def _parts(self, value: Any) -> tuple[Iterable[Any], ...]:
        """Return the values inside a container or dataclass, in one or two iterables."""
        kind = type(value)
        if kind is dict:
            return value.keys(), value.values()
        if kind in (list, tuple, set, frozenset):
            return (value,)
        if kind in self._types.tags:
            return ([getattr(value, name, None) for name in self._shapes.of(kind).names],)
        return ()

    def _read_ext(self, code: int, data: bytes) -> Any:
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

    def _read_list(self, data: bytes) -> list[Any]:
        items = self._read_nested(data)
        if type(items) is not list:
            raise BadData(f"expected an array, not {type_name(type(items))}")
        return items

    def _read_datetime(self, data: bytes) -> datetime | Unreadable:
        *numbers, fold, where = self._read_list(data)
        zone: timezone | ZoneInfo
        if type(where) is str:
            try:
                zone = ZoneInfo(where)
            except Exception as error:  # noqa: BLE001  # the system's file may be missing or broken
                why = explained(error)[:_MAX_SHOWN_CHARS]
                return self._unreadable(f"time zone {where[:64]!r}: {why}; install tzdata here")
        else:
            offset, name = where
            delta = offset * _MICROSECOND
            zone = timezone(delta) if name is None else timezone(delta, name)
        if len(numbers) != 7:
            raise BadData("a datetime with the wrong number of fields")
        return datetime(*numbers, fold=fold, tzinfo=zone)  # type: ignore[misc]

    def _read_identity(self, data: bytes) -> tuple[str, int, int]:
        node, incarnation, number = self._read_list(data)
        if not (type(node) is str and type(incarnation) is int and type(number) is int):
            raise BadData("a pid or ref with fields of the wrong type")
        return node, incarnation, number

    def _read_address(self, data: bytes) -> Address:
        name, node = self._read_list(data)
        if not (type(name) is str and type(node) is str):
            raise BadData("an address that is not two strings")
        return Address(name, node)

    def _read_dataclass(self, data: bytes) -> Any:
        failures = self.failures
        tag, fields = self._read_list(data)
        if type(tag) is not str or type(fields) is not dict:
            raise BadData("a dataclass without tag or fields")
        if self.failures != failures:  # No constructor ever gets an Unreadable.
            return unreadable_in(fields)
        kind = self._types.by_tag.get(tag)
        shown = repr(tag[:_MAX_SHOWN_CHARS])
        if kind is None:
            return self._unreadable(f"no message type is registered under {shown} on this node")
        shape = self._shapes.of(kind)
        unknown = [name for name in fields if name not in shape.names]
        missing = sorted(shape.required - fields.keys())
        if unknown:
            return self._unreadable(f"{shown} has no field {SHORT.repr(unknown[0])} on this node")
        if missing:
            return self._unreadable(
                f"{shown} came without the field {missing[0]!r}, which has no default on this node"
            )
        try:
            return kind(**fields)
        except Exception as error:  # noqa: BLE001  # the program's constructor, on input of a peer
            return self._unreadable(f"{shown} could not be made: {explained(error)[:_MAX_SHOWN_CHARS]}")
