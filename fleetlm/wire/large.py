"""Unpacks large messages in slices, and within a budget of memory.

A list of empty lists takes 72 times as much memory as its bytes, and bytes inside extension values inside
others are copied at each level. In small messages this does not matter. In large ones each container and each
nested body is counted while the message is unpacked, and one that would take too much is not rebuilt: in its
place comes the same message with an `Unreadable` as its payload, so that its sender gets an answer.

Unpacking 64 MiB takes seconds, in which no other Python code would run. So the bytes are given to msgpack
slice by slice, which costs no time, and ``pause`` is called between two slices: a `LargeDecoder` belongs in a
thread of its own, where that call hands the interpreter to the event loop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import msgpack

from fleetlm.messages import MessageTypes
from fleetlm.texts import type_name
from fleetlm.wire.blobs import Hold
from fleetlm.wire.decoder import NO_LIMIT, Decoder, bad_data
from fleetlm.wire.extensions import MAX_NESTING_LIMIT, BadData, Ext
from fleetlm.wire.weights import CONTAINER_BYTES, HOLDERS, PAIR_BYTES, VALUE_BYTES, nested_extra

SLICE_BYTES = 32 * 1024
"""Takes a millisecond or two, if it is all small values."""
_COPY_BYTES = 1024 * 1024
"""Copying so much takes less than a millisecond. It holds whole items of any array."""
RESERVE_BYTES = 256 * 1024 * 1024
"""Memory that the containers of a message may take beyond `MEMORY_FACTOR`: so a message of 2.5 MiB is never
refused, whatever it consists of."""
MEMORY_FACTOR = 8
"""Bytes of containers for each byte of the message. Records of 20 bytes, which are small ones, take 12, and
up to 64 MiB of them stay within factor and reserve. Texts and numbers are not counted: at worst, in texts of
two characters, they take 24 for each byte."""
_FEW_VALUES = 256
"""A message of so few values is unpacked at once: it consists of large texts, bytes or arrays."""
_LIST_BYTES = 88
_DICT_BYTES = 232
_ITEM_BYTES = 8
_PAIR_BYTES = 100
"""Of a dict, with the pair that it is made of."""
_EXTENSION_BYTES = 64
"""Memory of a list, of a dict, for each of their items, and of an extension value; more or less."""


class _TooMuch(BadData):
    """The message would take too much memory."""


class LargeDecoder(Decoder):
    """Unpacks one message after the other, each as `Decoder.unpack` does.

    Args:
        types: the register of dataclasses that may travel.
        max_nesting: as of a `Codec`.
        pause: called between two slices.

    Attributes:
        extra_bytes: `Codec.extra_bytes` of the last message.
    """

    __slots__ = ("_pause", "_room_bytes", "extra_bytes")

    def __init__(
        self, types: MessageTypes, max_nesting: int, pause: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(types, max_nesting)
        self._pause = pause
        self._room_bytes = 0
        self.extra_bytes: int = 0
        self._set_options(
            strict_map_key=False, object_pairs_hook=self._count_dict, list_hook=self._count_list
        )

    def unpack(self, data: bytes | memoryview, blobs: Collection[Hold] = ()) -> Any:
        """Return the message in ``data``. Replaces and raises as `Decoder.unpack` does."""
        self._room_bytes = RESERVE_BYTES + MEMORY_FACTOR * len(data)
        self.extra_bytes = 0
        self._blobs = dict(enumerate(blobs))
        try:
            message = super().unpack(data)
        except _TooMuch as error:
            return self._unpack_around(data, str(error))
        if type(message) is list:
            self.extra_bytes -= CONTAINER_BYTES + VALUE_BYTES * len(message)  # Only the payload counts.
        return message

    def unpack_batch(self, data: bytes | memoryview, most_steps: int = NO_LIMIT) -> list[Any]:
        """Return the messages of a batch. Raises: BadData, also if they would take too much memory."""
        self._steps_left = most_steps
        self._room_bytes = RESERVE_BYTES + MEMORY_FACTOR * len(data)
        self._blobs = {}
        batch = self._read(data)
        if type(batch) is not list:
            raise BadData(f"a batch is an array of messages, not {type_name(type(batch))}")
        self._check_depth(batch, self._max_nesting + 2)
        return batch

    def _read(self, data: bytes | memoryview) -> Any:
        try:
            return self._read_once(data)
        except _TooMuch:
            raise
        except Exception as error:
            raise bad_data(error) from error

    def _read_once(self, data: bytes | memoryview) -> Any:
        self._depth = 0
        self._has_decimal = self._has_huge_int = False
        self._unpackers.clear()
        return self._read_nested(data)

    def _read_nested(self, data: bytes | memoryview) -> Any:
        size = len(data)
        if size <= SLICE_BYTES:
            return super()._read_nested(data)
        self._take(2 * size)  # These bytes, and the buffer of the unpacker.
        depth = self._depth
        self._check_levels(depth)
        self._depth = depth + 1
        try:
            value = self._unpack_slices(memoryview(data))
        finally:
            self._depth = depth
        self._room_bytes += 2 * size
        return value

    def _unpack_slices(self, data: memoryview) -> Any:
        size = len(data)
        step = size if has_few_values(data) else SLICE_BYTES
        unpacker = msgpack.Unpacker(read_size=step, max_buffer_size=size, **self._options)
        for start in range(0, size, step):
            unpacker.feed(data[start : start + step])
            try:
                value = unpacker.unpack()
            except msgpack.OutOfData:
                self._pause()
                continue
            if unpacker.tell() != size:
                raise BadData("bytes behind the value")
            return value
        raise BadData("a value that is not whole")

    def _pieces(self, data: memoryview) -> Iterable[memoryview]:
        yield data[:_COPY_BYTES]
        for start in range(_COPY_BYTES, len(data), _COPY_BYTES):
            self._pause()
            yield data[start : start + _COPY_BYTES]

    def _take(self, size_bytes: int) -> None:
        """Count memory. Raises: _TooMuch."""
        self._room_bytes -= size_bytes
        if self._room_bytes < 0:
            raise _TooMuch(
                f"it would take more than {MEMORY_FACTOR} times its size and {RESERVE_BYTES >> 20} MiB of "
                "memory; send it in parts, or as bytes or an array"
            )

    def _count_list(self, items: list[Any]) -> list[Any]:
        self._take(_LIST_BYTES + _ITEM_BYTES * len(items))
        self.extra_bytes += CONTAINER_BYTES + VALUE_BYTES * len(items)
        return items

    def _count_dict(self, pairs: list[tuple[Any, Any]]) -> Any:
        self._take(_DICT_BYTES + _PAIR_BYTES * len(pairs))
        self.extra_bytes += CONTAINER_BYTES + PAIR_BYTES * len(pairs)
        return self._make_dict(pairs)

    def _read_ext(self, code: int, data: bytes) -> Any:
        self._take(_EXTENSION_BYTES)
        before = self.extra_bytes
        value = super()._read_ext(code, data)
        self.extra_bytes = before + nested_extra(code, self.extra_bytes - before)
        return value

    def _unpack_around(self, data: bytes | memoryview, why: str) -> Any:
        """Return the message without its payload: the first list, map or extension value in it."""
        unpacker = msgpack.Unpacker(max_buffer_size=len(data), strict_map_key=True)
        unpacker.feed(data)
        message: list[Any] = []
        for _ in range(unpacker.read_array_header()):
            head = data[unpacker.tell()]
            if _is_compound(head):
                unpacker.skip()
                message.append(self._unreadable(why))
            else:
                message.append(unpacker.unpack())
        return message


def _is_compound(head: int) -> bool:
    return 0x80 <= head <= 0x9F or head in _COMPOUND


_COMPOUND = frozenset({0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9), *range(0xDC, 0xE0)})
"""First bytes of lists, maps and extension values, besides the short ones of `_is_compound`."""
_FIXED_BYTES = {
    **dict.fromkeys((0xCC, 0xD0), 2), **dict.fromkeys((0xCD, 0xD1), 3),
    **dict.fromkeys((0xCA, 0xCE, 0xD2), 5),
    **dict.fromkeys((0xCB, 0xCF, 0xD3), 9), **{0xD4 + power: 2 + 2**power for power in range(5)},
    **dict.fromkeys((0xDC, 0xDE), 3), **dict.fromkeys((0xDD, 0xDF), 5),
}  # fmt: skip
"""First bytes of values, each with the bytes that the value takes, or the head of a container."""
_LENGTH_BYTES = {
    **dict.fromkeys((0xC4, 0xD9), (1, 0)), **dict.fromkeys((0xC5, 0xDA), (2, 0)),
    **dict.fromkeys((0xC6, 0xDB), (4, 0)), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
}  # fmt: skip
"""First bytes of values whose length follows, each with the bytes of the length and of a type behind it."""


_WHOLE = frozenset({Ext.BIG_INT, Ext.UUID, Ext.DECIMAL, Ext.BYTEARRAY, Ext.MEMORYVIEW, Ext.ARRAY, Ext.NUMPY})
"""Extension values whose bodies are not unpacked as values, but for a short head."""


def has_few_values(data: memoryview, most: int = _FEW_VALUES, *, inside: bool = False) -> bool:
    """Whether ``data`` has at most ``most`` values.

    Args:
        data: something packed.
        most: how many are few.
        inside: whether those inside extension values count, too.
    """
    place, size = 0, len(data)
    for _ in range(most):
        if place >= size:
            return True
        head = data[place]
        if 0xA0 <= head <= 0xBF:
            place += 1 + (head & 0x1F)
        elif head in _LENGTH_BYTES:
            width, more = _LENGTH_BYTES[head]
            body = place + 1 + width + more
            if inside and more and body <= size and data[body - 1] not in _WHOLE:
                place = body
            else:
                place = body + int.from_bytes(data[place + 1 : place + 1 + width], "big")
        elif inside and 0xD4 <= head <= 0xD8 and place + 1 < size and data[place + 1] not in _WHOLE:
            place += 2
        else:
            place += _FIXED_BYTES.get(head, 1)
    return place >= size


def copied_bytes(envelope: bytes | memoryview, sizes: Sequence[int]) -> int:
    """Return how many bytes beside a message are copied, or looked through, when it is unpacked.

    Args:
        envelope: the packed message, whatever it holds.
        sizes: of the blobs beside it. One that is not found in the message counts as copied.
    """
    copied = dict(enumerate(sizes))
    depth = 0

    def read(data: bytes | memoryview) -> None:
        nonlocal depth
        if depth > MAX_NESTING_LIMIT:
            raise BadData("too deep")
        unpacker = msgpack.Unpacker(
            read_size=len(data), max_buffer_size=len(data), raw=True, strict_map_key=False,
            list_hook=_forget, object_pairs_hook=_forget, ext_hook=note,
        )  # fmt: skip
        unpacker.feed(data)
        depth += 1
        unpacker.unpack()
        depth -= 1

    def note(code: int, data: bytes) -> None:
        if code in HOLDERS:
            read(data)
        elif code == Ext.BLOB and data[1] in _LENT and not (data[1] == Ext.NUMPY and re.search(_TEXTS, data)):
            copied.pop(data[0], None)

    try:
        read(envelope)
    except Exception:  # noqa: BLE001  # No message: who unpacks it says so.
        return sum(sizes)
    return sum(copied.values())


_LENT = frozenset({0, int(Ext.MEMORYVIEW), int(Ext.NUMPY)})
"""As what a blob arrives without a copy; 0 is bytes."""
_TEXTS = b"[<>|]U"
"""The dtype of arrays of texts, which are looked through."""


def _forget(_items: Any) -> None:
    """Keep nothing of a list or a map: its keys may have been made to collide."""
