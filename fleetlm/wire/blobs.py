"""Large bytes that travel beside a message: neither packed, nor copied where that can be avoided.

msgpack copies what it packs twice, and what it unpacks once more. So bytes and buffers of
`Settings.large_bytes` and more stay out of the *envelope*, the packed rest of the message. In their place
stands an extension value (`Ext.BLOB`): which of the message's blobs it is, and as what it is to arrive.

**Sending.** Bytes cannot change, so they are lent to the transport as they are. Whatever can change is copied
once, while the message is packed: what a program changes after it has sent is not seen by the receiver.

**Receiving.** Each blob is written into one buffer of its final size as its pieces come (`Hold`), and that
buffer becomes the value: bytes, a memoryview or an array of numpy without a further copy. What comes over a
local road is received there at once. Nothing reads the buffer before it is full, so it begins with whatever
its memory held (`new_buffer`).

A message has at most `MAX_BLOBS`; further large values stay in the envelope. A receiver refuses blobs of less
than `MIN_BLOB_BYTES`, so that the bytes that a peer may announce bound their number, too.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from io import SEEK_CUR, BytesIO
from typing import Final

MAX_BLOBS: Final = 64
"""Blobs of one message. Their sizes stand in its first chunk."""
MIN_BLOB_BYTES: Final = 1_024
"""The least size of a blob that a node accepts. `Settings.large_bytes` may not be lower."""

MIN_UNSET_BYTES: Final = 64 * 1024
"""A smaller buffer is zeroed in less time than another way to make it takes."""


class Parcel:
    """A packed message with blobs beside it. Its length is that of everything together.

    Attributes:
        envelope: the packed message without them.
        blobs: never changed any more; the messages of a broadcast share them.
    """

    __slots__ = ("_size_bytes", "blobs", "envelope")

    def __init__(self, envelope: bytes, blobs: Sequence[bytes]) -> None:
        self.envelope: bytes = envelope
        self.blobs: Sequence[bytes] = blobs
        self._size_bytes = len(envelope) + sum(map(len, blobs))

    def __len__(self) -> int:
        return self._size_bytes


Packed = bytes | Parcel
"""A packed message. One with blobs is always so large that it travels in chunks."""


class Buffer(BytesIO):
    """A `BytesIO` that may be collected together with the views of it.

    The collector of cycles closes it before it releases the views. That fails, which does no harm, and
    Python 3.13 and later report it as an error that nobody can handle.
    """

    def close(self) -> None:
        """Close it, unless there are views of it."""
        with contextlib.suppress(BufferError):
            super().close()


def new_buffer(size_bytes: int) -> Buffer:
    """Return a buffer of this size. A large one has any content: nobody may see it before it is filled."""
    return Buffer(bytes(size_bytes) if size_bytes < MIN_UNSET_BYTES else _unset_bytes()(size_bytes))


@functools.cache
def _unset_bytes() -> Callable[[int], bytes]:
    """Return what makes bytes without setting them, if this Python can; else what zeroes them.

    To zero 16 MiB keeps the loop for 1 to 2 ms, a sixth of the receiver's work for a message of that size.
    Only Python's C API has bytes whose content is set afterwards.
    """
    try:
        import ctypes  # noqa: PLC0415  # for programs that receive large messages

        # A type of its own: the attributes of `ctypes.pythonapi` are shared by the whole program.
        prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)
        make = prototype(("PyBytes_FromStringAndSize", ctypes.pythonapi))
    except (
        ImportError,
        AttributeError,
        OSError,
        MemoryError,
    ):  # The last one where no memory may be executed.
        return bytes
    return functools.partial(make, None)


class Hold:
    """A buffer of known size that is filled from its start and becomes a value without a copy.

    Memory is used as it is filled: the kernel gives pages of large buffers only when they are written to.
    `BytesIO` is the only buffer of Python that becomes bytes without a copy.
    """

    __slots__ = ("_buffer", "_room", "left_bytes", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes: int = size_bytes
        self.left_bytes: int = size_bytes
        """What has not come yet."""
        self._buffer = new_buffer(size_bytes)
        self._room: memoryview | None = None

    def room(self, size_bytes: int) -> memoryview:
        """Return the memory of the next piece, to receive it in its place; then pass it to `fill`.

        Args:
            size_bytes: of the piece, which must not be longer than what is left.
        """
        start = self.size_bytes - self.left_bytes
        self._room = self._buffer.getbuffer()[start : start + size_bytes]
        return self._room

    def fill(self, piece: memoryview) -> None:
        """Append a piece, which must not be longer than what is left.

        A piece that was received in its place is released: while there is a view of it, the buffer can
        neither be written to nor become bytes.

        Raises:
            ValueError: another piece is being received in its place. Nothing has changed.
        """
        size_bytes = len(piece)
        if self._room is None:
            self._buffer.write(piece)
        elif piece is self._room:
            piece.release()
            self._room = None
            self._buffer.seek(size_bytes, SEEK_CUR)
        else:
            raise ValueError("a piece beside one that is being received in its place")
        self.left_bytes -= size_bytes

    def to_bytes(self) -> bytes:
        """Return what has come. Use either this or `to_buffer`, once."""
        return self._buffer.getvalue()

    def to_buffer(self) -> memoryview:
        """Return a buffer that can be written to, and that nobody else has."""
        return self._buffer.getbuffer()
