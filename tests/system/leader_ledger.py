"""A database that refuses former leaders, and the records of those who wrote to it, on real nodes.

Each accepted write is a row: its token, the run that wrote it, and when. What a run met besides is in the
table ``met``: "refused" (the database refused its write), "not owner" (`Process.epoch` raised, so it wrote
nothing), "ended" (its process ended in order, or was killed). All nodes are on one machine, so that they have
the monotonic clock in common.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_TABLES = """
PRAGMA journal_mode = WAL;
CREATE TABLE fence (token INTEGER NOT NULL);
INSERT INTO fence VALUES (0);
CREATE TABLE writes (number INTEGER PRIMARY KEY, token INTEGER, run TEXT, node TEXT, at REAL);
CREATE TABLE met (number INTEGER PRIMARY KEY, what TEXT, run TEXT, node TEXT, at REAL);
"""
BUSY_S = 20.0


class Write(NamedTuple):
    """A write that was accepted, or what a run met instead (`what`)."""

    what: str
    token: int
    run: str
    node: str
    at: float


class FencedDatabase:
    """The database; open it for a moment only, since a fleet looks at its locks.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        self._db.execute("PRAGMA synchronous = OFF")  # No test cuts the power.

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: str) -> Iterator[FencedDatabase]:
        """Open it, and close it in the end."""
        database = cls(path)
        try:
            yield database
        finally:
            database.close()

    def close(self) -> None:
        """Close it."""
        self._db.close()

    def make(self) -> None:
        """Make the tables."""
        self._db.executescript(_TABLES)

    def write(self, token: int, run: str, node: str) -> bool:
        """Write, unless a later leader has written: then note that, and return False."""
        with self._transaction():
            moved = self._db.execute("UPDATE fence SET token = ? WHERE token <= ?", (token, token))
            if moved.rowcount == 0:
                self._note("refused", run, node)
                return False
            row = (token, run, node, time.monotonic())
            self._db.execute("INSERT INTO writes (token, run, node, at) VALUES (?, ?, ?, ?)", row)
        return True

    def note(self, what: str, run: str, node: str) -> None:
        """Note what a run met."""
        with self._transaction():
            self._note(what, run, node)

    def last(self) -> Write | None:
        """Return the last write."""
        row = self._db.execute(
            "SELECT 'wrote', token, run, node, at FROM writes ORDER BY number DESC LIMIT 1"
        ).fetchone()
        return None if row is None else Write(*row)

    def writes(self) -> list[Write]:
        """Return the writes, in their order."""
        rows = self._db.execute("SELECT 'wrote', token, run, node, at FROM writes ORDER BY number")
        return [Write(*row) for row in rows]

    def met(self) -> list[Write]:
        """Return what runs met besides, in the order of the notes."""
        rows = self._db.execute("SELECT what, 0, run, node, at FROM met ORDER BY number")
        return [Write(*row) for row in rows]

    def _note(self, what: str, run: str, node: str) -> None:
        row = (what, run, node, time.monotonic())
        self._db.execute("INSERT INTO met (what, run, node, at) VALUES (?, ?, ?, ?)", row)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def complaints(writes: list[Write], *, has_quorum: bool) -> list[str]:
    """Return what is wrong with accepted writes.

    Args:
        writes: in their order.
        has_quorum: whether each run must have ended before the next one wrote. Else it may write again under
            an epoch above that of the next one.
    """
    wrong: list[str] = []
    ended: set[str] = set()
    runs: dict[int, str] = {}
    for earlier, later in itertools.pairwise(writes):
        if later.token < earlier.token:
            wrong.append(f"{later} was accepted after {earlier}")
        if later.run != earlier.run:
            ended.add(earlier.run)
            if has_quorum and later.run in ended:
                wrong.append(f"{later} was accepted after another run had written")
    wrong += [
        f"two runs had the epoch {write.token}: {runs[write.token]} and {write.run}"
        for write in writes
        if runs.setdefault(write.token, write.run) != write.run
    ]
    return wrong
