"""Takes an input apart: the same bytes always give the same numbers, texts and choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Inputs:
    """Reads values from the bytes of one input. When they are used up, it returns zeros and empty values."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether bytes are left."""
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes, or as many as are left."""
        taken = self._data[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        """Return all bytes that are left."""
        return self.take(len(self._data))

    def block(self) -> bytes:
        """Return a block whose length stands before it, in two bytes."""
        return self.take(int.from_bytes(self.take(2), "big"))

    def number(self, below: int) -> int:
        """Return a number from 0 to ``below - 1``, from as many bytes as that needs."""
        size = max(1, ((below - 1).bit_length() + 7) // 8)
        return int.from_bytes(self.take(size), "big") % below

    def choice(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[self.number(len(options))]

    def text(self, size: int) -> str:
        """Return a text of up to ``size`` bytes; bytes that are no UTF-8 become lone surrogates."""
        return self.take(size).decode(errors="surrogateescape")


def block(data: bytes) -> bytes:
    """Return the bytes from which `Inputs.block` returns ``data``."""
    return len(data).to_bytes(2, "big") + data
