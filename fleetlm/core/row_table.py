"""Tables of programs: rows of keys and values, each owned by the node that wrote it.

A node writes its own rows and nobody else's, so two nodes may have a row under one key, and both are shown.
Each node tells every node that connects its rows, then every change; what a node has told is dropped when the
connection to it ends, all of it at once. So nothing is merged, and there is no lock, no tombstone and no
consensus: a row says what its node says now, and a reader decides what several of them mean together.

Facts come in: a row of this node was put or dropped; a connected node told a fact of its own; a connection
ended. Effects come out: what to tell every connected node (`Tell`), and what changed here (`RowPut`,
`RowDropped`). `directory.tables` performs them.

Facts on the wire (topic ``rows`` of `wire.operations.table`):

- ``["put", table, [[key, packed value], ...]]``, in pieces of a bounded size
- ``["drop", table, [key, ...]]``

Values travel packed inside of a fact. A value of a type that the receiver does not know thus costs itself
only, and a row that is told to many nodes is packed once.

Source: OTP pg.erl for the ownership; Phoenix.Tracker for the use; differs: no merge of what nodes say about
each other, since each node hears it from its owner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, KeysView
from typing import Any

from fleetlm.core.speakers import check_speaker
from fleetlm.errors import TooManyRows
from fleetlm.messages import RowDropped, RowPut
from fleetlm.names import check_process_name
from fleetlm.records import Record
from fleetlm.settings import Settings
from fleetlm.texts import SHORT, utf8_bytes
from fleetlm.wire.weights import MAX_TIMES_KEPT, Scale

Place = tuple[str, str]
"""A table and a key in it."""

MAX_TOLD_ROWS = 4_096
"""Rows that are taken of one fact of a peer, some 15 ms of work: so many of the smallest fit into a fact."""
ROW_BYTES = 32
"""What a row costs beside its texts and its value, in the limits and in a fact."""


class Tell(Record):
    """Send this fact to every connected node."""

    fact: list[Any]


Effect = Tell | RowPut | RowDropped


class _Rows:
    """The rows of one node, as that node has told them."""

    __slots__ = ("extra_bytes", "incarnation", "node", "packed", "size_bytes", "values")

    def __init__(self, node: str, incarnation: int) -> None:
        self.node = node
        self.incarnation = incarnation
        self.packed: dict[Place, bytes] = {}
        self.values: dict[Place, Any] = {}
        self.size_bytes = 0
        """What all rows count, see `size_of`."""
        self.extra_bytes = 0
        """What all values weigh beside their bytes (`wire.weights`)."""


class RowTable:
    """All tables, as this node knows them.

    Args:
        node: this node's name.
        incarnation: of this start of the node.
        settings: its limits of rows.
        read: unpacks a value; one of an unknown type it returns as None. Raises ValueError for what is no
            packed value.
        before_change: called with the place of a row of this node before the row changes.
    """

    def __init__(
        self,
        node: str,
        incarnation: int,
        settings: Settings,
        read: Callable[[bytes], Any],
        before_change: Callable[[Place], None] = lambda _: None,
    ) -> None:
        self._max_rows = settings.max_rows
        self._max_row_bytes = settings.max_row_bytes
        self._max_bytes = settings.max_rows_bytes
        self._read = read
        self._scale = Scale()
        self._before_change = before_change
        self._own = _Rows(node, incarnation)
        self._said = {node: self._own}
        """Node → its rows; this node's are among them."""
        self._nodes: dict[Place, dict[str, None]] = {}
        """Place → the nodes that have a row there, in the order in which they came."""
        self._keys: dict[str, dict[str, None]] = {}
        """Table → its keys, in the order in which they came."""

    # Queries.

    def get(self, table: str, key: str) -> dict[str, Any]:
        """Return the values under a key by the name of the node that wrote them; the caller may keep it."""
        place = (table, key)
        return {node: self._said[node].values[place] for node in self._nodes.get(place, ())}

    def value(self, table: str, key: str, node: str, default: Any) -> Any:
        """Return the value that a node has under a key."""
        said = self._said.get(node)
        return default if said is None else said.values.get((table, key), default)

    def keys(self, table: str) -> list[str]:
        """Return the keys under which any node has a row, in the order in which they came."""
        return [*self._keys.get(table, ())]

    def tables(self) -> list[str]:
        """Return the names of the tables that have a row, sorted."""
        return sorted(self._keys)

    def own_keys(self) -> KeysView[Place]:
        """Return the places of this node's rows."""
        return self._own.packed.keys()

    def own_facts(self, places: Iterable[Place], piece_bytes: int) -> Iterator[list[Any]]:
        """Return these rows of this node as facts, in pieces of about ``piece_bytes``.

        A place without a row is passed over: a row may be made while a peer is told the others.
        """
        piece: list[list[Any]] = []
        shown, size = "", 0
        for place in places:
            table, key = place
            packed = self._own.packed.get(place)
            if packed is None:
                continue
            if piece and (table != shown or size > piece_bytes):
                yield ["put", shown, piece]
                piece, size = [], 0
            shown = table
            piece.append([key, packed])
            size += size_of(place, packed)
        if piece:
            yield ["put", shown, piece]

    # Facts about this node.

    def put(self, table: str, key: str, packed: bytes) -> list[Effect]:
        """Write a row of this node, in place of the one that it may have under this key.

        Raises:
            InvalidName: ``table`` or ``key`` is not a name.
            TooManyRows: this node would have more rows, or more bytes in them, than it may. In both cases
                nothing changed.
        """
        check_process_name(table)
        check_process_name(key)
        place = (table, key)
        own, rows = self._own, {place: packed}
        why = self._excess(own, rows) or self._overweight(own, extra_bytes := self._growth(own, rows))
        if why:
            raise TooManyRows(table, key, why)
        self._before_change(place)
        value = self._read(packed)
        own.extra_bytes += extra_bytes
        return [Tell(["put", table, [[key, packed]]]), *self._put(own, table, [(key, packed)], [value])]

    def drop(self, table: str, key: str) -> list[Effect]:
        """Take back a row of this node; nothing happens if there is none."""
        place = (table, key)
        if place not in self._own.packed:
            return []
        self._before_change(place)
        return [Tell(["drop", table, [key]]), *self._drop(self._own, table, [key], "dropped")]

    # Facts about other nodes.

    def told(self, node: str, incarnation: int, fact: Any) -> list[Effect]:
        """A connected node told a fact about its own rows.

        Raises:
            ValueError: the fact is malformed, contradicts what the node told before, or exceeds a limit;
                nothing changed.
        """
        said = self._said.get(node) or _Rows(node, incarnation)
        check_speaker(said, self._own, incarnation, "the rows")
        match fact:
            case ["put", str(table), list(rows)] if 0 < len(rows) <= MAX_TOLD_ROWS:
                checked = self._check_rows(table, rows)
                put = {(table, key): packed for key, packed in checked}
                why = self._excess(said, put)
                if why:
                    raise ValueError(f"{why}; set it alike on all nodes")
                # Read before anything is entered: a value that is no message ends here.
                values = [self._read(packed) for packed in put.values()]
                extra_bytes = self._growth(said, put)
                why = self._overweight(said, extra_bytes)
                if why:
                    raise ValueError(f"{why}; set it alike on all nodes")
                said.extra_bytes += extra_bytes
                self._said[node] = said
                return self._put(said, table, checked, values)
            case ["drop", str(table), list(keys)] if 0 < len(keys) <= MAX_TOLD_ROWS:
                for key in keys:
                    if type(key) is not str or (table, key) not in said.packed:
                        raise ValueError(f"a row {SHORT.repr(key)} is dropped that is not there")
                if len(set(keys)) < len(keys):
                    raise ValueError("a fact drops one row twice")
                return self._drop(said, table, keys, "dropped")
        raise ValueError(f"{SHORT.repr(fact)} is not a fact about rows")

    def node_down(self, node: str) -> Iterator[RowDropped]:
        """The connection is over: drop all rows of the node at once, and yield what has gone one by one.

        There may be `Settings.max_rows` of them, so the caller takes them in slices.
        """
        said = self._said.get(node)
        if said is None or said is self._own:
            return iter(())
        del self._said[node]
        for place in said.packed:
            self._forget(place, node)
        return (RowDropped(table, node, key, "noconnection") for table, key in said.packed)

    # Internals.

    def _check_rows(self, table: str, rows: list[Any]) -> list[tuple[str, bytes]]:
        """Check what a peer sent. Raises: ValueError."""
        if type(table) is not str:  # Such as a member of an enum, which would stand among the keys.
            raise ValueError(f"{SHORT.repr(table)} is not the name of a table")
        check_process_name(table)
        checked: list[tuple[str, bytes]] = []
        for row in rows:
            match row:
                case [key, bytes(packed)] if type(key) is str and len(packed) <= self._max_row_bytes:
                    check_process_name(key)
                    checked.append((key, packed))
                case _:
                    raise ValueError(f"{SHORT.repr(row)} is not a row of at most Settings.max_row_bytes")
        if len({key for key, _ in checked}) < len(checked):
            raise ValueError("a fact puts one row twice")
        return checked

    def _excess(self, said: _Rows, rows: dict[Place, bytes]) -> str:
        """Return which limit these further rows of a node would exceed, if any."""
        known = said.packed
        count = len(known) + sum(place not in known for place in rows)
        if count > self._max_rows:
            return f"more than {self._max_rows:,} rows of one node, which is Settings.max_rows here"
        former = sum(size_of(place, known[place]) for place in rows if place in known)
        size = said.size_bytes - former + sum(size_of(*row) for row in rows.items())
        if size > self._max_bytes:
            return f"more than {self._max_bytes:,} bytes in one node's rows, Settings.max_rows_bytes here"
        return ""

    def _growth(self, said: _Rows, rows: dict[Place, bytes]) -> int:
        """Return by how much these rows of a node would change what its values weigh beside their bytes."""
        extra_of, known = self._scale.extra_of, said.packed
        former = sum(extra_of(known[place]) for place in rows if place in known)
        return sum(map(extra_of, rows.values())) - former

    def _overweight(self, said: _Rows, more_bytes: int) -> str:
        """Return whether the values of a node would weigh too much with so many more bytes."""
        limit = MAX_TIMES_KEPT * self._max_bytes
        if said.extra_bytes + more_bytes <= limit:
            return ""
        return (
            f"rows of one node whose values take more than {limit:,} bytes of memory, which is "
            f"{MAX_TIMES_KEPT} times Settings.max_rows_bytes here"
        )

    def _put(self, said: _Rows, table: str, rows: list[tuple[str, bytes]], values: list[Any]) -> list[Effect]:
        """Enter rows of one node with their values, and return an event for each."""
        events: list[Effect] = []
        for (key, packed), value in zip(rows, values, strict=True):
            place = (table, key)
            former = said.packed.get(place)
            if former is not None:
                said.size_bytes -= size_of(place, former)
            said.size_bytes += size_of(place, packed)
            said.packed[place] = packed
            said.values[place] = value
            self._nodes.setdefault(place, {})[said.node] = None
            self._keys.setdefault(table, {})[key] = None
            events.append(RowPut(table, said.node, key, value))
        return events

    def _drop(self, said: _Rows, table: str, keys: list[str], reason: str) -> list[Effect]:
        """Take rows of one node away, which must exist, and return an event for each."""
        for key in keys:
            place = (table, key)
            packed = said.packed.pop(place)
            said.size_bytes -= size_of(place, packed)
            said.extra_bytes -= self._scale.extra_of(packed)
            del said.values[place]
            self._forget(place, said.node)
        return [RowDropped(table, said.node, key, reason) for key in keys]

    def _forget(self, place: Place, node: str) -> None:
        """Note that a node has no row at a place any more."""
        nodes = self._nodes[place]
        del nodes[node]
        if not nodes:
            table, key = place
            del self._nodes[place]
            del self._keys[table][key]
            if not self._keys[table]:
                del self._keys[table]


def size_of(place: Place, packed: bytes) -> int:
    """Return what a row counts in the limits, in bytes."""
    table, key = place
    return ROW_BYTES + utf8_bytes(table) + utf8_bytes(key) + len(packed)
