"""Tables that every node keeps of what all nodes say of themselves: groups, cluster-wide names.

Each node speaks for its own processes alone. At nodeup it tells all that it has, then every change;
what it told is dropped at nodedown. So there is no lock, no tombstone and nothing to merge.
Source: Erlang's pg.erl.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.errors import NoConnection
from fleetlm.texts import SHORT
from fleetlm.wire import operations

if TYPE_CHECKING:
    from fleetlm.ids import Pid
    from fleetlm.messaging.session import Session
    from fleetlm.wire.codec import Codec

MAX_FACT_BYTES = 256 * 1024
"""Of one fact, which travels inside a batch: a table cuts what it tells at nodeup into pieces."""


class Table(Protocol):
    """One table of a node."""

    topic: str
    """Its name on the wire."""

    def own_facts(self) -> Iterable[Any]:
        """All that this node says of itself, for a node that has just come up: message values."""

    def node_down(self, node: str) -> None:
        """What that node told is void."""

    def told(self, node: str, incarnation: int, fact: Any) -> None:
        """A connected node said something of itself. Raises: ValueError, TypeError for nonsense."""

    def exited(self, pid: Pid) -> None:
        """A process of this node has ended."""

    def close(self) -> None:
        """The node stops."""


class Replication:
    """All tables of a node, and their road to the others."""

    def __init__(self, codec: Codec, sessions: dict[str, Session]) -> None:
        self._codec = codec
        self._sessions = sessions
        self._tables: dict[str, Table] = {}
        self._behind: dict[Session, deque[bytes]] = {}
        """Links whose window is full, and what is still to be told over them, in order."""
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, table: Table) -> None:
        """Before the node starts."""
        self._tables[table.topic] = table

    def tell(self, topic: str, fact: Any) -> None:
        """Tell every connected node; packed once. ``fact`` is a message value of at most MAX_FACT_BYTES."""
        if self._sessions:
            packed = self._packed(topic, fact)
            for session in self._sessions.values():
                self._send(session, packed)

    def node_up(self, session: Session) -> None:
        """Tell a node that has come up all that this one has, before anything else."""
        for table in self._tables.values():
            for fact in table.own_facts():
                self._send(session, self._packed(table.topic, fact))

    def node_down(self, node: str) -> None:
        """A connection is over."""
        for table in self._tables.values():
            table.node_down(node)

    def told(self, session: Session, topic: Any, fact: Any) -> None:
        """Raises: ValueError, TypeError; the session must go down."""
        table = self._tables.get(topic) if isinstance(topic, str) else None
        if table is None:
            raise ValueError(f"table {SHORT.repr(topic)} is not known to this version")
        table.told(session.name, session.incarnation, fact)

    def exited(self, pid: Pid) -> None:
        """A process of this node has ended."""
        for table in self._tables.values():
            table.exited(pid)

    def close(self) -> None:
        """The node stops."""
        for table in self._tables.values():
            table.close()
        for task in self._tasks:
            task.cancel()

    def _send(self, session: Session, packed: bytes) -> None:
        """Facts keep their order, and wait for the window: nobody waits for them."""
        behind = self._behind.get(session)
        if behind is not None:
            behind.append(packed)
        elif not session.is_full:
            session.signal(packed)
        elif not session.closed:
            self._behind[session] = deque([packed])
            task = asyncio.get_running_loop().create_task(
                self._catch_up(session), name=f"tables for {session.name}"
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _catch_up(self, session: Session) -> None:
        behind = self._behind[session]
        try:
            while behind:
                await session.room()
                session.signal(behind.popleft())
        except NoConnection:
            pass  # At the next nodeup all is told anew.
        finally:
            del self._behind[session]

    def _packed(self, topic: str, fact: Any) -> bytes:
        return self._codec.pack(operations.table(topic, fact), fact)
