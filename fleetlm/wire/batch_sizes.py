"""How long each message of a batch is, which unpacking does not tell."""

from __future__ import annotations

from collections.abc import Iterator

import msgpack


def message_sizes(body: bytes | memoryview) -> Iterator[int]:
    """Yield the packed size of each message of a batch in bytes, in their order.

    Args:
        body: the body of a BATCH that `wire.codec` has unpacked already, so it is well formed.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=len(body))
    unpacker.feed(body)
    count = unpacker.read_array_header()
    start = unpacker.tell()
    for _ in range(count):
        unpacker.skip()
        end = unpacker.tell()
        yield end - start
        start = end
