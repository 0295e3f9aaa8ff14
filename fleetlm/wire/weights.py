"""What messages weigh: about how many bytes of memory they take where they wait, whatever they consist of.

The size of a message does not tell that. An empty list has one byte on the wire and takes 80 in memory. So
the weight of a message is its packed size, and in addition, for its payload (`Codec.extra_bytes`):

- `CONTAINER_BYTES` for each list and dict;
- `EXTENSION_BYTES` for each extension value but large integers;
- `VALUE_BYTES` for each item of a list, and twice that for each pair of a dict. Tuples, sets and records
  travel as extension values with a list or a dict inside (`wire.extensions.Ext`), and count as both.

A list takes less memory than it counts. But Python's collector of cyclic garbage looks at each list and dict
in all mailboxes, again and again while they become more, and the event loop stands still meanwhile, for some
10 ms if there are a hundred thousand. A full mailbox, of 64 MiB by default, has at most 200,000.

What a message really takes is at most two and a half times its weight, and less for most; a test measures all
kinds of values. The codec counts while it packs, which costs one addition for each container. The receiver
counts only now and then (`Scale`), and finds at most as much as an honest sender, since it counts the same
things.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack

from fleetlm.wire.extensions import Ext

CONTAINER_BYTES = 288
"""Of a list or dict: its memory without items, and three times as much for the collector's time."""
EXTENSION_BYTES = 96
"""Of a Decimal, a UUID, a datetime; of a tuple, set or record beside what is in it."""
VALUE_BYTES = 32
"""A place in a list, and a number or a short text in it."""
PAIR_BYTES = 2 * VALUE_BYTES

MAX_TIMES_KEPT = 8
"""Values that a node keeps for others, such as metas and rows, have a limit of bytes. They may weigh so many
times that, so that lists of empty lists do not fill its memory; values of dicts and numbers weigh less."""

_NESTED = {
    Ext.TUPLE: 0, Ext.SET: 0, Ext.FROZENSET: 0,
    Ext.DATACLASS: CONTAINER_BYTES + 2 * VALUE_BYTES, Ext.CONVERTED: CONTAINER_BYTES + 2 * VALUE_BYTES,
}  # fmt: skip
"""Extension values with message values inside; each with what its list of tag and body would count."""
HOLDERS = frozenset(_NESTED)
"""Their types."""


def nested_extra(code: int, inside_bytes: int) -> int:
    """Return what an extension value adds to the weight.

    Args:
        code: its type.
        inside_bytes: what the containers in its body would add.
    """
    if code == Ext.BIG_INT:
        return 0
    uncounted = _NESTED.get(code)  # type: ignore[call-overload]
    return EXTENSION_BYTES if uncounted is None else EXTENSION_BYTES + inside_bytes - uncounted


class Scale:
    """Weighs packed messages without rebuilding them."""

    __slots__ = ("_extra_bytes", "_options")

    def __init__(self) -> None:
        self._extra_bytes = 0
        self._options: dict[str, Any] = {
            "raw": True,
            "strict_map_key": False,
            "list_hook": self._count_list,
            "object_pairs_hook": self._count_pairs,
            "ext_hook": self._count_extension,
        }

    def weights(self, body: bytes | memoryview, light_bytes: int) -> Iterator[int]:
        """Yield the weight of each message of a batch, in their order.

        Args:
            body: the body of a BATCH that `wire.codec` has unpacked already, so it is well formed.
            light_bytes: a shorter message is not looked at and weighs 0.
        """
        unpacker = msgpack.Unpacker(max_buffer_size=len(body))
        unpacker.feed(body)
        count = unpacker.read_array_header()
        start = unpacker.tell()
        for _ in range(count):
            unpacker.skip()
            end = unpacker.tell()
            yield 0 if end - start < light_bytes else self.weight(body[start:end])
            start = end

    def weight(self, message: bytes | memoryview) -> int:
        """Return the weight of a packed message that is well formed."""
        self._extra_bytes = 0
        fields = self._read(message)
        if type(fields) is not int or not self._extra_bytes:  # It is no list, so it will be refused.
            return 0
        return len(message) + self._extra_bytes - CONTAINER_BYTES - VALUE_BYTES * fields

    def extra_of(self, value: bytes) -> int:
        """Return what a packed value, which is well formed, weighs beside its bytes."""
        self._extra_bytes = 0
        self._read(value)
        return self._extra_bytes

    def _read(self, data: bytes | memoryview) -> Any:
        unpacker = msgpack.Unpacker(read_size=len(data), max_buffer_size=len(data), **self._options)
        unpacker.feed(data)
        return unpacker.unpack()

    def _count_list(self, items: list[Any]) -> int:
        """Count a list. Returns its length instead of it, so that nothing is kept."""
        self._extra_bytes += CONTAINER_BYTES + VALUE_BYTES * len(items)
        return len(items)

    def _count_pairs(self, pairs: list[tuple[Any, Any]]) -> None:
        self._extra_bytes += CONTAINER_BYTES + PAIR_BYTES * len(pairs)

    def _count_extension(self, code: int, data: bytes) -> None:
        before = self._extra_bytes
        if code in _NESTED:
            self._read(data)
        self._extra_bytes = before + nested_extra(code, self._extra_bytes - before)
