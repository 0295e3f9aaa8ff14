"""Unpacks a long batch message by message, so that its reader can stop between two slices of it.

msgpack gets the bytes slice by slice, which costs no more time than all at once. A slice is small
(`SLICE_BYTES`), because a peer chooses what its bytes consist of. What cannot be cut is left to the caller: a
long message of many values, whose containers Python's collector of cyclic garbage would visit again and
again while they become more, and a long extension value, which msgpack hands over as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack

from fleetlm.messages import MessageTypes
from fleetlm.wire.decoder import Decoder, TooManySteps, bad_data
from fleetlm.wire.extensions import BadData
from fleetlm.wire.frames import ARRAY32
from fleetlm.wire.large import has_few_values

SLICE_BYTES = 2 * 1024
"""It takes 0.1 ms if it holds usual messages, and 1 ms at worst."""
WHOLE_BYTES = 16 * 1024
"""A longer message is not unpacked here if it has many values."""
FEW_VALUES = 1_024
"""So many values take a millisecond at worst. Counting them takes less than a thread."""


class SlicedBatch(Decoder):
    """Unpacks one batch.

    Args:
        types: the register of dataclasses that may travel.
        max_nesting: as of a `Codec`.
        body: of the BATCH.

    Attributes:
        count: messages of the batch, once its first slice has come.
    """

    __slots__ = ("_body", "_left", "_place", "count")

    def __init__(self, types: MessageTypes, max_nesting: int, body: memoryview) -> None:
        super().__init__(types, max_nesting)
        self._read_carefully()
        self._body = body
        self._place = 0
        """Where the first message begins that was not unpacked yet."""
        self._left = 0
        """Messages from there on."""
        self.count: int = 0

    def slices(self) -> Iterator[tuple[list[Any], memoryview]]:
        """Yield the messages, a few at a time or none, each time with their bytes.

        What cannot be rebuilt is replaced and counted as by `Decoder.unpack`. After each slice ``values`` is
        about how many values it held.

        Raises:
            TooManySteps: what follows cannot be unpacked in slices; `rest` is a batch of it.
            BadData: the bytes are no batch. What was yielded before is fine.
        """
        try:
            yield from self._slices()
        except (BadData, TooManySteps):
            raise
        except Exception as error:
            raise bad_data(error) from error

    @property
    def rest(self) -> bytes:
        """The messages that were not yielded yet, as a batch."""
        return b"".join((array_head(self._left), self._body[self._place :]))

    def _slices(self) -> Iterator[tuple[list[Any], memoryview]]:
        body, size = self._body, len(self._body)
        if not size:
            raise BadData("an empty batch")
        unpacker = msgpack.Unpacker(read_size=min(SLICE_BYTES, size), max_buffer_size=size, **self._options)
        for start in range(0, size, SLICE_BYTES):
            end = min(start + SLICE_BYTES, size)
            unpacker.feed(body[start:end])
            if start == 0:
                self._begin(unpacker)
            messages, behind = self._unpack_whole_ones(unpacker)
            self._check_batch(messages)
            packed, self._place = body[self._place : behind], behind
            self._left -= len(messages)
            yield messages, packed
            if not self._left:
                break
            if end - self._place > WHOLE_BYTES and not has_few_values(body[self._place : end], FEW_VALUES):
                raise TooManySteps
        if self._left:
            raise BadData("a batch that is not whole")
        if self._place != size:
            raise BadData("bytes behind the batch")

    def _begin(self, unpacker: msgpack.Unpacker) -> None:
        """Read how many messages there are."""
        if not (self._body[0] in _ARRAYS or self._body[0] & 0xF0 == _FIXARRAY):
            raise BadData("a batch is an array of messages")
        self.count = self._left = unpacker.read_array_header()
        self._place = unpacker.tell()

    def _unpack_whole_ones(self, unpacker: msgpack.Unpacker) -> tuple[list[Any], int]:
        """Return the messages that have been given to msgpack as a whole, and where they end."""
        messages: list[Any] = []
        unpack, tell, behind = unpacker.unpack, unpacker.tell, self._place
        for _ in range(self._left):
            try:
                messages.append(unpack())
            except msgpack.OutOfData:
                break
            behind = tell()
        return messages, behind

    def _read_ext(self, code: int, data: bytes) -> Any:
        if len(data) > WHOLE_BYTES and not has_few_values(memoryview(data), FEW_VALUES, inside=True):
            raise TooManySteps
        try:
            return super()._read_ext(code, data)
        except msgpack.OutOfData as error:  # From a message it would mean that the next slice has more.
            raise bad_data(error) from error


def array_head(count: int) -> bytes:
    """Return what stands before so many packed values to make them an array."""
    return bytes((ARRAY32,)) + count.to_bytes(4, "big")


_ARRAYS = frozenset({0xDC, ARRAY32})
_FIXARRAY = 0x90
"""First bytes of arrays; of a short one it has the length, too."""
