"""Replicated tables: every node keeps a copy of what each connected node says about itself.

Theory of operation. A *table* (process groups, cluster-wide names) is cut by owner: each node writes only
the rows of its own processes, and reads those of all nodes. A row has one writer, so there is no lock, no
tombstone, no version and nothing to merge. What is left to guarantee is that the copy of a node's rows is
right while that node is connected, and absent while it is not:

* **snapshot**: when a session comes up, `Replication.node_up` sends all rows of this node over it. Both
  sides do this. The first `FACTS_AT_ONCE` facts leave before anything else is sent over the session, which
  is everything for most nodes. The others leave one by one, `PAUSE_S` apart, so that neither side stands
  still for a table with 100,000 rows. Until the last one has arrived, the copy lacks rows.
* **deltas**: every later change is sent to every session at once, packed once. A session keeps the order of
  what is sent over it, and delivers a prefix without gaps.
* **nodedown**: when the session ends, the copy of that node's rows is dropped, in small steps. The next
  session starts with a snapshot, so a delta that was lost with a session does no harm.

The races: a change between two sessions is part of the next snapshot. A row that is about to change while a
snapshot is being sent is sent first, ahead of its turn, and the change after it (`before_change`;
`core.snapshot` keeps account of the rows). So each row of a copy is always some former state of that row,
and with the end of the snapshot the whole copy is a former state of its owner's table. A session that ends
in the middle takes its snapshot with it, and sessions that come up together have one each. A process that
ends leaves the tables before any process is told that it has ended (`runtime.assembly` keeps that order), so
a process that gets a `Down` finds the tables without the one that ended.

A node of an older version may not know a table (`wire.table_topics`). It is told nothing of it.

A full window must not stop the node that writes, since a change has no caller who could wait. A session
whose window is full is *behind*: its facts are put in a queue of their own, and one task sends them in
order as there is room (*catching up*). Later facts join that queue, so they do not overtake. The snapshot
waits until that queue is empty. The queue is dropped when the session ends.

Source: Erlang's pg.erl; differs: pg has an overlay network of its own. Here a session takes the place of a
connection in it, and nodeup that of its discovery message.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Hashable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.core.snapshot import Rows, Snapshot
from fleetlm.errors import NoConnection
from fleetlm.texts import SHORT
from fleetlm.wire import operations
from fleetlm.wire.codec import unreadable_in

if TYPE_CHECKING:
    from fleetlm.ids import Pid
    from fleetlm.messaging.session import Session
    from fleetlm.messaging.turns import Turns
    from fleetlm.wire.codec import Codec

log: logging.Logger = logging.getLogger("fleetlm")

MAX_FACT_BYTES = 256 * 1024
"""Size of one fact, packed. A fact travels inside a batch, so a table cuts its rows into pieces."""
FACTS_AT_ONCE = 3
"""Facts of a snapshot that are sent as soon as a session comes up: a few milliseconds, for 600 rows."""
MAX_FACTS_BEHIND = 524_288
"""Changes that wait for one session, in some 60 MiB: more than a whole table. A peer that does not keep up
with them is disconnected, and gets the tables anew."""
PAUSE_S = 0.001
"""Seconds between two further facts. A peer takes a fact in less, so that they do not pile up before it."""


class Table(Rows, Protocol):
    """One replicated table of a node: its own rows, and copies of the rows of connected nodes.

    A fact is a message value of at most `MAX_FACT_BYTES`. The table calls `Replication.before_change` before
    it changes a row of this node, and `Replication.tell` after it.
    """

    def node_down(self, node: str) -> Iterator[None]:
        """Drop the rows of a node that is not connected any more: now, or in the small steps that follow."""

    def told(self, node: str, incarnation: int, fact: Any) -> bool | None:
        """Take a fact from a connected node about itself. Raises: ValueError, TypeError for nonsense.

        Returns:
            True if only a part of a long fact was taken, and it must be told again before any other fact.
        """

    def exited(self, pid: Pid) -> None:
        """Drop the rows of a process of this node that has ended."""

    def close(self) -> None:
        """End what programs wait for. Called when the node stops."""


def read_value(codec: Codec, what: str, packed: bytes) -> Any:
    """Return a value that a fact carries packed; None, logged, where its type is not known to this node.

    Args:
        codec: unpacks it.
        what: whose value it is, for the log.
        packed: the value.

    Raises: as `Codec.unpack`.
    """
    value = codec.unpack(packed)
    found = unreadable_in(value)
    if found is None:
        return value
    log.warning("%s is shown as None: %s", what, found.why)
    return None


class Replication:
    """The tables of a node, and how their facts reach the other nodes.

    Args:
        codec: packs facts.
        sessions: by the name of the node; those that are up.
        turns: of this node's loop, which snapshots share with everything else.
    """

    def __init__(self, codec: Codec, sessions: dict[str, Session], turns: Turns) -> None:
        self._codec = codec
        self._sessions = sessions
        self._turns = turns
        self._tables: dict[str, Table] = {}
        self._behind: dict[Session, deque[bytes]] = {}
        """Sessions whose window is full, with the facts that are still to be sent over them, in order."""
        self._snapshots: dict[Session, Snapshot] = {}
        """Sessions over which not all rows of this node have been sent yet."""
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, table: Table) -> None:
        """Replicate a table. Call it before the first session comes up."""
        self._tables[table.topic] = table

    def tell(self, topic: str, fact: Any, to: str | None = None) -> None:
        """Send a change to every connected node, or to one.

        Args:
            topic: of the table.
            fact: a message value of at most `MAX_FACT_BYTES`; packed once.
            to: the name of the one node; nothing happens if it is not connected.
        """
        if to is not None:
            session = self._sessions.get(to)
            if session is not None and topic not in session.unknown_topics:
                self._send(session, self._packed(topic, fact))
            return
        if self._sessions:
            packed = self._packed(topic, fact)
            for session in self._sessions.values():
                if topic not in session.unknown_topics:
                    self._send(session, packed)

    def node_up(self, session: Session) -> None:
        """Send the rows of this node over a session that has just come up; where there are many, in time."""
        unknown = session.unknown_topics
        snapshot = Snapshot(table for table in self._tables.values() if table.topic not in unknown)
        for _ in range(FACTS_AT_ONCE):
            if not self._send_next(session, snapshot):
                return
        self._snapshots[session] = snapshot
        self._start(self._send_rest(session, snapshot), f"snapshot for {session.name}")

    def before_change(self, topic: str, key: Hashable) -> None:
        """Send a row that is about to change over the sessions that have not carried it yet."""
        for session, snapshot in self._snapshots.items():
            if topic not in session.unknown_topics:
                for fact in snapshot.before_change(topic, key):
                    self._send(session, self._packed(*fact))

    def node_down(self, node: str) -> Iterator[None]:
        """Drop what a node said about itself, now that its session has ended, and tell so in small steps.

        Each table begins before the first step: what it drops at once is gone before anything is told.
        """
        for steps in [table.node_down(node) for table in self._tables.values()]:
            yield from steps

    def told(self, session: Session, topic: Any, fact: Any) -> bool | None:
        """Take a fact from a peer, as `Table.told` does.

        Raises:
            ValueError, TypeError: nonsense; the session must end.
        """
        table = self._tables.get(topic) if isinstance(topic, str) else None
        if table is None:
            raise ValueError(f"table {SHORT.repr(topic)} is not known to this version")
        return table.told(session.name, session.incarnation, fact)

    def exited(self, pid: Pid) -> None:
        """Drop the rows of a process of this node that has ended."""
        for table in self._tables.values():
            table.exited(pid)

    def close(self) -> None:
        """Close every table and stop catching up. Called when the node stops."""
        for table in self._tables.values():
            table.close()
        self._snapshots.clear()
        for task in self._tasks:
            task.cancel()

    def _send(self, session: Session, packed: bytes) -> None:
        """Send a fact, or queue it behind others where the session's window is full. Never waits."""
        behind = self._behind.get(session)
        if behind is not None:
            behind.append(packed)
            if len(behind) == MAX_FACTS_BEHIND:
                session.give_up(f"{len(behind):,} changes of tables wait for it, which it does not take")
        elif not session.is_full:
            session.signal(packed)
        elif not session.closed:
            self._behind[session] = deque([packed])
            self._start(self._catch_up(session), f"tables for {session.name}")

    def _send_next(self, session: Session, snapshot: Snapshot) -> bool:
        """Send the next fact of a snapshot. Returns False if there is none."""
        fact = snapshot.next()
        if fact is None:
            return False
        self._send(session, self._packed(*fact))
        return True

    async def _send_rest(self, session: Session, snapshot: Snapshot) -> None:
        """Send what is left of a snapshot fact by fact, as the window has room."""
        try:
            while True:
                await asyncio.sleep(PAUSE_S)
                await self._turns.pause()
                await session.room()
                # Changes that wait come first. The rows that they concern were sent, or are among them.
                if session not in self._behind and not self._send_next(session, snapshot):
                    return
        except NoConnection:
            pass  # The next session starts with a snapshot.
        finally:
            self._snapshots.pop(session, None)

    async def _catch_up(self, session: Session) -> None:
        """Send the facts that wait for this session as its window has room; return when the session ends."""
        behind = self._behind[session]
        try:
            while behind:
                await session.room()
                session.signal(behind.popleft())
        except NoConnection:
            pass  # The next session starts with a snapshot.
        finally:
            del self._behind[session]

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _packed(self, topic: str, fact: Any) -> bytes:
        return self._codec.pack_whole(operations.table(topic, fact), fact)
