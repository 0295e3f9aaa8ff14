"""The replicated table of shards: performs what `core.shard_table` decides, and wakes who waits for an owner.

This table is the first one that a node replicates, so its rows leave before anything else over a session that
has come up. Until they have arrived, the hosts behind the session are not known here, and their shards look
free; therefore nothing is claimed for a moment after a session has come up (`settled_at`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.core.shard_table import Changed, Effect, Lost, ShardTable, Tell

if TYPE_CHECKING:
    import asyncio

    from fleetlm.directory.replication import Replication
    from fleetlm.ids import Pid
    from fleetlm.messaging.session import Session
    from fleetlm.processes.context import NodeContext


class Hosted(Protocol):
    """A kind that this node hosts."""

    def lost(self, lost: Lost) -> None:
        """Give up a shard, since another node's claim has outdone that of this node."""

    def entity_for(self, key: str, epoch: int) -> Pid | None:
        """Return the process of a live entity that takes a call of this node at once, or None."""

    def review_soon(self) -> None:
        """Look whether shards are to be claimed or handed over."""


class ReplicatedShards:
    """Implements `replication.Table` for hosts and claims.

    Args:
        context: of this node.
        replication: carries the facts; this table adds itself to it.
        wall_ms: the wall clock now, in milliseconds.

    Attributes:
        table: the decisions.
        hosted: kind → what this node hosts of it.
        last_up: when a session came up last, on the loop's clock.
    """

    topic = "shards"

    def __init__(self, context: NodeContext, replication: Replication, wall_ms: int) -> None:
        self.context: NodeContext = context
        self._wall_offset_ms = wall_ms - int(context.loop.time() * 1000)
        self.table: ShardTable = ShardTable(
            context.name,
            context.incarnation,
            functools.partial(replication.before_change, self.topic),
        )
        self.hosted: dict[str, Hosted] = {}
        self.last_up: float = context.loop.time()
        self._replication = replication
        self._waiting: dict[tuple[str, int], dict[asyncio.Future[None], None]] = {}
        """Kind and shard → requests that wait for another owner, in their order."""
        replication.add(self)

    # `replication.Table`.

    def own_keys(self) -> Iterable[str]:
        """Return the kinds that this node hosts."""
        return self.table.own_keys()

    def own_facts(self, keys: Iterable[str]) -> Iterator[Any]:
        """Return what this node hosts and claims of these kinds."""
        return self.table.own_facts(keys)

    def node_down(self, node: str) -> Iterator[None]:
        """Drop at once what a node told."""
        self.perform(self.table.node_down(node))
        return iter(())

    def told(self, node: str, incarnation: int, fact: Any) -> None:
        """Take what a connected node hosts and claims. Raises: ValueError for nonsense."""
        self.perform(self.table.told(node, incarnation, fact))

    def exited(self, pid: Pid) -> None:
        """Do nothing: a host process that ends takes its kind back itself."""

    def close(self) -> None:
        """Wake every request that waits. Called when the node stops."""
        for waiting in self._waiting.values():
            _wake(waiting)

    # For the other parts.

    def wall_ms(self) -> int:
        """Return the wall clock in milliseconds, as it was at the start of the node and has gone on since."""
        return self._wall_offset_ms + int(self.context.loop.time() * 1000)

    def node_up(self, _session: Session) -> None:
        """Note that a session has come up, whose node may host what looks free."""
        self.last_up = self.context.loop.time()

    def perform(self, effects: Iterable[Effect]) -> None:
        """Tell the other nodes, the hosts of this node, and the requests that wait."""
        for effect in effects:
            if isinstance(effect, Tell):
                self._replication.tell(self.topic, effect.fact)
            elif isinstance(effect, Changed):
                self._changed(effect)
            else:
                self.hosted[effect.kind].lost(effect)

    def is_waited_for(self, kind: str, shard: int) -> bool:
        """Whether requests wait for another owner of a shard; a further one goes behind them."""
        return bool(self._waiting) and (kind, shard) in self._waiting

    async def changed(self, kind: str, shard: int, until: float) -> None:
        """Return when the owner of a shard has changed, or at ``until`` on the loop's clock.

        Those that wait go on in the order in which they came.
        """
        waiting = self._waiting.setdefault((kind, shard), {})
        loop = self.context.loop
        future: asyncio.Future[None] = loop.create_future()
        waiting[future] = None
        timer = loop.call_at(until, _set, future)
        try:
            await future
        finally:
            timer.cancel()
            del waiting[future]
            if not waiting and self._waiting.get((kind, shard)) is waiting:
                del self._waiting[kind, shard]

    def _changed(self, change: Changed) -> None:
        if self._waiting:
            for shard in change.shards:
                _wake(self._waiting.get((change.kind, shard), {}))
        hosted = self.hosted.get(change.kind)
        if hosted is not None:
            hosted.review_soon()


def _wake(waiting: dict[asyncio.Future[None], None]) -> None:
    for future in waiting:
        _set(future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
