"""Tables of programs: the replicated rows, and what a program may ask of them.

Theory of operation. `core.row_table` decides what the rows are and returns effects; `ReplicatedRows` performs
them: a `Tell` goes to the other nodes through `Replication`, a `RowPut` or `RowDropped` to the subscriptions.
`SharedTable`, which a program holds, reads the rows of all nodes and writes those of its own.

A row belongs to the node that wrote it, not to a process: it stays until it is dropped or its node is gone.
Writing is local and immediate, and other nodes see it one hop later, in the order of writing. The rows of a
node that is lost are gone at once, before anything else is told of the loss (`directory.replication`).

Source: OTP pg.erl for the ownership; differs: rows have values.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fleetlm.core.row_table import Effect, Place, RowTable, Tell
from fleetlm.directory.replication import MAX_FACT_BYTES, read_value
from fleetlm.directory.subscriptions import Feed, Subscription
from fleetlm.errors import MessageTooLarge
from fleetlm.messages import RowDropped, RowPut
from fleetlm.names import check_process_name

if TYPE_CHECKING:
    from fleetlm.directory.replication import Replication
    from fleetlm.ids import Pid
    from fleetlm.processes.context import NodeContext
    from fleetlm.wire.codec import Codec


Change = RowPut | RowDropped
MAX_ROW_BYTES = MAX_FACT_BYTES // 4
"""The highest `Settings.max_row_bytes` that takes effect: such a row fits into a fact, with others."""
_PIECE_BYTES = MAX_FACT_BYTES // 2
"""Bytes of rows in one fact of a snapshot. One more row of any allowed size still fits into it."""


class ReplicatedRows:
    """Implements `replication.Table` for rows of programs: performs what `RowTable` decides.

    Args:
        context: of this node.
        codec: packs and reads values.
        replication: carries the facts; this table adds itself to it.
    """

    topic = "rows"

    def __init__(self, context: NodeContext, codec: Codec, replication: Replication) -> None:
        settings = context.settings
        self.context: NodeContext = context
        self._codec = codec
        self._replication = replication
        self._max_row_bytes = min(settings.max_row_bytes, MAX_ROW_BYTES)
        self.table: RowTable = RowTable(
            context.name,
            context.incarnation,
            settings,
            functools.partial(read_value, codec, "the value of a row of a table"),
            functools.partial(replication.before_change, self.topic),
        )
        self.feed: Feed[Change] = Feed(settings.events_limit, _key, _gone, _undo, is_single=True)
        replication.add(self)

    # `replication.Table`.

    def own_keys(self) -> Iterable[Place]:
        """Return the places of this node's rows."""
        return self.table.own_keys()

    def own_facts(self, keys: Iterable[Place]) -> Iterator[Any]:
        """Return these rows, in pieces that fit into a fact."""
        return self.table.own_facts(keys, _PIECE_BYTES)

    def node_down(self, node: str) -> Iterator[None]:
        """Drop the rows of a node now, and publish one with each step."""
        return self._each(self.table.node_down(node))

    def told(self, node: str, incarnation: int, fact: Any) -> None:
        """Take what a connected node says about its rows. Raises: ValueError for nonsense."""
        self.perform(self.table.told(node, incarnation, fact))

    def exited(self, pid: Pid) -> None:
        """Do nothing: rows belong to a node, not to a process."""

    def close(self) -> None:
        """End every subscription after what is queued. Called when the node stops."""
        self.feed.close()

    # What a `SharedTable` asks.

    def put(self, table: str, key: str, value: Any) -> None:
        """Write a row of this node. Raises: as `SharedTable.put`."""
        packed = self._codec.pack_value(value)
        if len(packed) > self._max_row_bytes:
            raise MessageTooLarge(len(packed), self._max_row_bytes, "Settings.max_row_bytes")
        self.perform(self.table.put(table, key, packed))

    def drop(self, table: str, key: str) -> bool:
        """Take back a row of this node."""
        effects = self.table.drop(table, key)
        self.perform(effects)
        return bool(effects)

    def perform(self, effects: Iterable[Effect]) -> None:
        """Tell the other nodes and the subscribers."""
        for effect in effects:
            if isinstance(effect, Tell):
                self._replication.tell(self.topic, effect.fact)
            else:
                self.feed.publish(effect)

    def _each(self, effects: Iterable[Effect]) -> Iterator[None]:
        """Perform one effect with each step."""
        for effect in effects:
            self.perform((effect,))
            yield


class SharedTable:
    """A table of the whole cluster whose rows are owned by nodes; made by `Node.table`.

    ::

        flags = node.table("flags")
        flags.put("beta", True)                  # a row of this node
        flags.get("beta")                        # {'fleetlm@10.0.0.7': True, 'fleetlm@10.0.0.8': False}
        for event in flags.watch(): ...          # RowPut and RowDropped, from the present on

    Every node reads all rows without asking anybody, and writes rows of its own. Two nodes may write under
    one key; a reader gets both values and decides. A row is seen elsewhere one hop later, and is gone, with
    all other rows of its node, when that node is lost or stops.

    It is a bulletin board, not a database: nothing is merged, voted on, or kept on disk, and in a partition
    each side sees its own nodes. It suits what a node says of itself: flags, versions, addresses, capacities.
    For one owner of a name use `Node.registry`; for what changes several times a second, `Member.report`.

    Attributes:
        name: of the table.
    """

    __slots__ = ("_replicated", "_table", "name")

    def __init__(self, replicated: ReplicatedRows, name: str) -> None:
        check_process_name(name)
        self._replicated = replicated
        self._table = replicated.table
        self.name: str = name

    def __repr__(self) -> str:
        return f"<SharedTable {self.name!r} of {self._replicated.context.name}>"

    def put(self, key: str, value: Any) -> None:
        """Write a row of this node, in place of the one that it has under this key.

        Args:
            key: 1 to 255 printable characters.
            value: a message value of at most `Settings.max_row_bytes` when packed. Readers get an equal copy,
                on this node too.

        Raises:
            InvalidName, NotSerializable, MessageTooLarge, TooManyRows: nothing changed.
        """
        self._replicated.context.check_loop("SharedTable.put")
        self._replicated.put(self.name, key, value)

    def drop(self, key: str) -> bool:
        """Take back this node's row under a key. Returns False if there was none."""
        self._replicated.context.check_loop("SharedTable.drop")
        return self._replicated.drop(self.name, key)

    def get(self, key: str) -> dict[str, Any]:
        """Return the values under a key, by the name of the node that wrote them; empty if there is none.

        A value is None where this node does not know its type. All readers of a node share the values: do
        not change them.
        """
        return self._table.get(self.name, key)

    def own(self, key: str, default: Any = None) -> Any:
        """Return the value that this node has written under a key, or ``default``."""
        return self._table.value(self.name, key, self._replicated.context.name, default)

    def of(self, node: str, key: str, default: Any = None) -> Any:
        """Return the value that a node has written under a key, or ``default``."""
        return self._table.value(self.name, key, node, default)

    def keys(self) -> list[str]:
        """Return the keys under which a node has a row, in the order in which they came here."""
        return self._table.keys(self.name)

    def watch(self, key: str | None = None) -> Subscription[Change]:
        """Subscribe to changes: a `RowPut` for every row that there is now, then every change.

        There is no gap in between. A row that is written anew is a further `RowPut`. Close the subscription
        when it is not needed any more.

        Args:
            key: only this key; None: all of the table.
        """
        name = self.name

        def is_wanted(change: Change) -> bool:
            return change.table == name and (key is None or change.key == key)

        return self._replicated.feed.subscribe(is_wanted)


def _key(change: Change) -> Hashable:
    return (change.table, change.key, change.node)


def _gone(change: Change) -> bool:
    return isinstance(change, RowDropped)


def _undo(change: Change) -> Change:
    return RowDropped(change.table, change.node, change.key, "missed: this subscriber reads too slowly")
