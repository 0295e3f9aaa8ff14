"""A snapshot: the rows of this node's tables that one peer has yet to be told, sent in small facts.

A table may have 100,000 rows, so they are not packed and sent all at once, and rows change meanwhile. A
change is sent to every peer at the moment when it is made, as a difference to the row as it was. So a peer
must have a row before it is told that the row has changed, or gone:

* The keys of the rows are noted at the start. `next` makes the next fact from the rows as they are then.
* A table calls `before_change` before it changes a row. If the peer has yet to be told that row, it is told
  the former row now, ahead of the others.
* A row that is made after the start is not part of the snapshot: its making is a change, and is told.

So every row is told exactly once, and its changes follow it in order. Once the snapshot has ended, the peer
has the same rows as this node.

States of a row: *left* (noted, and not told) → *taken* for a fact → told. Facts are made in the order of the
rows, so a fact that has been returned has all rows that were taken before the last one, and only that one may
be cut, or be left to the next fact. `before_change` moves a row from either of the first two states to told.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, Protocol

TopicAndFact = tuple[str, Any]


class Rows(Protocol):
    """What a table shows of its own rows."""

    @property
    def topic(self) -> str:
        """Its name on the wire."""

    def own_keys(self) -> Iterable[Hashable]:
        """Return the keys of all rows of this node."""

    def own_facts(self, keys: Iterable[Any]) -> Iterator[Any]:
        """Return those rows with these keys that exist as small facts: about a millisecond's work each.

        They are in the order of the keys. A fact is made when it is asked for. A key is taken when its row is
        needed, and so is the row.
        """


class Snapshot:
    """The rows that one peer has yet to be told.

    Args:
        tables: with the rows of this node, which are told table by table.
    """

    __slots__ = ("_facts", "_tables", "_taken", "_told")

    def __init__(self, tables: Iterable[Rows]) -> None:
        self._tables = {table.topic: table for table in tables}
        self._told: dict[str, set[Hashable]] = {topic: set() for topic in self._tables}
        """Topic → the keys of rows that are not left: taken, told, or made after the start."""
        self._taken: tuple[str, Hashable] | None = None
        """Topic and key of the row that was taken last."""
        ordered = [(topic, [*table.own_keys()]) for topic, table in self._tables.items()]
        self._facts: Iterator[TopicAndFact] = self._make_facts(ordered)

    def next(self) -> TopicAndFact | None:
        """Return the next topic and fact to be told at once; None: the peer has been told all."""
        return next(self._facts, None)

    def before_change(self, topic: str, key: Hashable) -> Iterator[TopicAndFact]:
        """Return the facts that must be told before the row with this key changes: take all of them."""
        if key not in self._told[topic]:
            self._told[topic].add(key)
            for fact in self._tables[topic].own_facts([key]):
                yield topic, fact
            return
        row = (topic, key)
        while self._taken == row and (fact := self.next()) is not None:
            yield fact

    def _make_facts(self, ordered: Iterable[tuple[str, list[Hashable]]]) -> Iterator[TopicAndFact]:
        for topic, keys in ordered:
            for fact in self._tables[topic].own_facts(self._take(topic, keys)):
                yield topic, fact
        self._taken = None

    def _take(self, topic: str, keys: list[Hashable]) -> Iterator[Hashable]:
        told = self._told[topic]
        for key in keys:
            if key not in told:
                told.add(key)
                self._taken = topic, key
                yield key
