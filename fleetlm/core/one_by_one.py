"""Goes through the keys of a large table that loses them meanwhile, in small steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def one_by_one(keys: Iterable[T]) -> Iterator[T]:
    """Yield the keys as they are at the first step, and let go of each one then.

    A list of them would hold them all until its end, and to free 200,000 objects at once takes 20 ms.
    """
    left = [*keys]
    left.reverse()
    while left:
        yield left.pop()
