"""A store in one file on a local disk, for the nodes of one host; needs nothing but Python."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Literal

from fleetlm.seconds import check_seconds
from fleetlm.stores.interface import Fence, Stored, check_place, check_state
from fleetlm.stores.opens import Opens
from fleetlm.stores.sqlite_file import Operation
from fleetlm.stores.sqlite_worker import SQLiteWorker


class SQLiteStore(Opens):
    """Keeps states in a SQLite database. Implements `Store`.

    ::

        async with SQLiteStore("/var/lib/chat/sessions.db") as store, Node.start() as node:
            await node.entities.host(Session, "sessions", store=store, durable="write")

    All nodes of one host, also in several processes, may use the same file, each with a store of its own. The
    disk must be a local one: SQLite's locks do not hold on network file systems.

    The file is opened at the first use, or by `open`. It is made if it does not exist, readable for its owner
    only. Two more files beside it, ``-wal`` and ``-shm``, belong to it. The work is done in a thread of the
    store, in the order in which it was asked for, many operations in one transaction.

    Args:
        path: of the file; its folder must exist.
        synchronous: ``"full"``: what was stored survives a power cut, if the disk keeps what it says it has
            written. ``"normal"``: it survives a crash of the process, and a power cut may take the last
            writes; faster by far on disks that are slow to confirm.
        busy_s: seconds to wait while other processes write. They share the file evenly. One that is stopped
            in the middle of a write (SIGSTOP) keeps all others from writing until it goes on or is killed.
        most_waiting: operations that wait for the disk at most; more are refused with `StoreFailed`.
        waiting_bytes: bytes of the states in them, likewise.

    Raises:
        ValueError: a path such as ``:memory:`` names no file, or a number is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Literal["full", "normal"] = "full",
        busy_s: float = 5.0,
        most_waiting: int = 4_096,
        waiting_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self.path: str = str(Path(path).absolute())
        if os.fspath(path) in {"", ":memory:"} or "\0" in self.path:
            raise ValueError(f"{path!r} names no file; a store in memory is fleetlm.MemoryStore")
        if synchronous not in {"full", "normal"}:
            raise ValueError(f"synchronous is 'full' or 'normal', not {synchronous!r}")
        check_seconds(busy_s, "busy_s", least=0)
        if most_waiting < 1 or waiting_bytes < 1:
            raise ValueError("at least one operation and one byte must be able to wait")
        self._worker = SQLiteWorker(self.path, synchronous, busy_s, most_waiting, waiting_bytes)
        weakref.finalize(self, self._worker.close_now)

    def __repr__(self) -> str:
        return f"<SQLiteStore {self.path}>"

    @property
    def place(self) -> str:
        """Where the data is."""
        return self.path

    async def open(self) -> None:
        """Open the file now, instead of at the first use. Raises: StoreFailed, with what to do."""
        await self._worker.ask(None)

    async def close(self) -> None:
        """Write what waits, close the file and end the thread. Later operations raise `StoreFailed`.

        Stop the nodes before it. May be called again.
        """
        await self._worker.close()

    async def load(self, kind: str, key: str, fence: Fence) -> Stored:
        """See `Store.load`."""
        return await self._worker.ask(Operation("load", check_place(kind, key), kind, key, fence))

    async def save(self, kind: str, key: str, fence: Fence, state: bytes, *, expected: int) -> int:
        """See `Store.save`."""
        check_state(state)
        asked = Operation("save", check_place(kind, key), kind, key, fence, expected, state)
        return (await self._worker.ask(asked)).version

    async def drop(self, kind: str, key: str, fence: Fence, *, expected: int) -> int:
        """See `Store.drop`."""
        asked = Operation("drop", check_place(kind, key), kind, key, fence, expected)
        return (await self._worker.ask(asked)).version
