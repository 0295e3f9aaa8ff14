"""Which values the labels of a series may have: so many, and ``other`` for all further ones.

Each value of a label makes series of its own, which cost memory in the node, in the scraper and in its
storage. Peers and groups come and go, and their names may come from other nodes. So a `LabelSet` gives the
first values a label and calls the others `OTHER`.

A value keeps its label until it is released, since a sum that moves from one label to another would look like
a counter that jumps. Only a value that has gone (a peer that is forgotten, a group without members) is
released, and leaves its place to the next newcomer.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

OTHER: Final = "other"
"""The label of everything that has none of its own."""
MAX_PEERS: Final = 200
"""Labels of peers. A node has eight series for each; in a larger cluster the sums tell more."""
MAX_GROUPS: Final = 100
MAX_HANDLERS: Final = 100
"""Pairs of an actor's class and a handler. A histogram has 18 series for each."""
MAX_ACTORS: Final = 30
"""Classes of actors with a histogram of their queues."""


class LabelSet:
    """The values of one label.

    Args:
        limit: how many have a label of their own.
    """

    __slots__ = ("_limit", "_values")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, value: str) -> bool:
        return value in self._values

    @property
    def is_full(self) -> bool:
        """Whether a newcomer gets no label."""
        return len(self._values) >= self._limit

    def label(self, value: str) -> str:
        """Return the label for a value: itself if it has a label, or gets one now, else `OTHER`."""
        if value in self._values:
            return value
        if self.is_full:
            return OTHER
        self._values[value] = None
        return value

    def release_all_but(self, present: Collection[str]) -> list[str]:
        """Release the values that are not ``present`` any more, and return them."""
        gone = [value for value in self._values if value not in present]
        for value in gone:
            del self._values[value]
        return gone

    def values(self) -> list[str]:
        """Return the values that have a label."""
        return list(self._values)
