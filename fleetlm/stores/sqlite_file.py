"""The file of a `SQLiteStore`: how it is opened and checked, and what one transaction does.

Several processes may have the same file open. SQLite lets one of them write at a time, and its write-ahead
log (WAL) lets the others read meanwhile; `sqlite_turns` says who waits for how long. With
``synchronous=FULL`` a commit is on the disk when it returns; `run` therefore does many operations in one
transaction, which share the wait for the disk.

A batch of loads whose fences this process has raised before needs no lock for writing; any other batch begins
with one (``BEGIN IMMEDIATE``), so that nothing that it has read changes before its end.

SQLite goes on with a file that was removed, or replaced by another one (a backup that was moved to its
place), and what is written to it then is gone at the end of the process. So each transaction is followed by a
look whether the path still names the open file; where it does not, the transaction counts as failed.

Source: SQLite's documentation of WAL, of ``PRAGMA synchronous``, and "How To Corrupt An SQLite Database
File" (a descriptor of the file that is closed takes the locks of the whole process away: `_create`).
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from fleetlm.errors import StoreError, StoreFailed
from fleetlm.records import Record
from fleetlm.stores.interface import DROPPED_S, Fence, Stored, check_fence, check_version
from fleetlm.stores.sqlite_turns import Turns
from fleetlm.texts import text_of

APPLICATION_ID = 0x464C4D53
"""Marks the file as one of ours; "FLMS"."""
SCHEMA_VERSION = 1
"""Of the tables below. A file with a higher one was made by a newer version of fleetlm."""
_TABLES = (
    """CREATE TABLE fences (
        kind TEXT NOT NULL, shard INTEGER NOT NULL, epoch INTEGER NOT NULL, PRIMARY KEY (kind, shard)
    ) WITHOUT ROWID""",
    """CREATE TABLE states (
        kind TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, epoch INTEGER NOT NULL,
        written_s INTEGER NOT NULL, state BLOB, PRIMARY KEY (kind, key)
    )""",
    "CREATE INDEX dropped ON states (written_s) WHERE state IS NULL",
)
_JOURNAL_BYTES = 64 * 1024 * 1024
"""The log is cut to this size when it begins anew, after a burst has made it longer."""
_PURGED_AT_ONCE = 1_000
"""Rows of dropped states that one transaction removes."""
_MAX_RAISED = 100_000
"""Fences that are remembered as raised; more than the shards of some dozens of kinds."""
_PRIMARY_CODE = 0xFF
"""The bits of an error code of SQLite that are not its details."""
_HINTS = {
    "readonly": "the process may not write to the file or to its folder, where SQLite needs two files more",
    "disk is full": "make room on the disk; what was stored before is safe",
    "locked": "another process holds the file for longer than busy_s; is it open in a tool, or is a process "
    "stopped (SIGSTOP) in the middle of a write?",
    "not a database": "the path names a file of another kind",
    "malformed": "the file is damaged; restore it from a backup",
}
"""What to do, by a part of SQLite's own text."""


T = TypeVar("T")


class Operation(Record):
    """What is asked of the file.

    Attributes:
        what: which method of `Store`.
        target: how errors name the key.
        kind: see `Store`.
        key: see `Store`.
        fence: see `Store`.
        expected: see `Store.save`.
        state: see `Store.save`.
    """

    what: Literal["load", "save", "drop"]
    target: str
    kind: str
    key: str
    fence: Fence
    expected: int = 0
    state: bytes | None = None


Outcome = Stored | StoreError | ValueError
"""What an operation has come to; an error is to be raised."""


class SQLiteFile:
    """One open file.

    Args:
        path: of the file; it is made if it does not exist.
        synchronous: ``"full"`` or ``"normal"``.
        busy_s: seconds to wait while another process writes.

    Raises:
        StoreFailed: it cannot be opened, or is not ours.
    """

    def __init__(self, path: str, synchronous: str, busy_s: float) -> None:
        self._path = path
        self._where = Path(path)
        self._raised: dict[tuple[str, int], int] = {}
        """Kind and shard → the epoch to which this process has raised the fence."""
        self._turns = Turns(busy_s)
        _create(path)
        try:
            self._db = sqlite3.connect(path, timeout=0, isolation_level=None)
        except sqlite3.Error as error:
            raise self._failure(error) from error
        try:
            self._in_turn(lambda: self._prepare(synchronous))
        except StoreFailed:
            self._db.close()
            raise
        # Now that it is open: overlay file systems copy a file when it is opened.
        self._identity = _identify(self._where)

    def run(self, operations: list[Operation]) -> list[Outcome]:
        """Do operations in one transaction, in their order.

        Raises:
            StoreFailed: the transaction failed. Its operations have most likely had no effect; where the
                commit itself failed, nobody knows.
        """
        raised = self._raised
        is_read = all(
            each.what == "load" and raised.get((each.kind, each.fence.shard)) == each.fence.epoch
            for each in operations
        )
        try:
            outcomes, checked = self._in_turn(lambda: self._transact(operations, is_read=is_read))
            self._check_identity()
        except StoreFailed:
            raised.clear()
            raise
        if len(raised) >= _MAX_RAISED:
            raised.clear()
        raised.update(checked)
        return outcomes

    def close(self) -> None:
        """Close the file. The last process that does so empties the log."""
        self._db.close()

    # Internals.

    def _in_turn(self, work: Callable[[], T]) -> T:
        """Do something; again and again while other processes write. Raises: StoreFailed."""
        turns = self._turns
        time.sleep(turns.first_pause_s(time.monotonic()))
        began_at = time.monotonic()
        while True:
            try:
                done = work()
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._roll_back()
                pause_s = turns.next_pause_s(began_at, time.monotonic()) if _is_busy(error) else None
                if pause_s is None:
                    raise self._failure(error) from error
                time.sleep(pause_s)
            else:
                turns.ended(time.monotonic())
                return done

    def _transact(
        self, operations: list[Operation], *, is_read: bool
    ) -> tuple[list[Outcome], dict[tuple[str, int], int]]:
        """Do operations in one transaction. Returns their outcomes, and the fences that they raised."""
        self._db.execute("BEGIN" if is_read else "BEGIN IMMEDIATE")
        checked: dict[tuple[str, int], int] = {}
        outcomes = [self._perform(each, checked) for each in operations]
        if any(each.what == "drop" for each in operations):
            self._purge()
        self._db.execute("COMMIT")
        return outcomes, checked

    def _check_identity(self) -> None:
        """Look whether the path names the file that is open. Raises: StoreFailed."""
        now = _identify(self._where)
        if now != self._identity:
            done = "removed" if now is None else "replaced by another one"
            why = (
                f"the file was {done} while it was open, and what is stored now would be lost with it; "
                "restore a backup while no node has the file open, and remove its -wal and -shm files first"
            )
            raise StoreFailed(self._path, why)

    def _prepare(self, synchronous: str) -> None:
        """Look whose file it is, make the tables, and set what a connection needs. May be done again."""
        self._check_owner()
        (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            why = f"SQLite cannot keep a write-ahead log there (its journal is {mode!r}); use a local disk"
            raise StoreFailed(self._path, why)
        for pragma in (
            f"synchronous = {synchronous.upper()}",
            "fullfsync = 1",  # For macOS, where a plain fsync does not reach the disk.
            "checkpoint_fullfsync = 1",
            f"journal_size_limit = {_JOURNAL_BYTES}",
        ):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("BEGIN IMMEDIATE")
        if not self._check_owner():  # Else another process was faster.
            for statement in _TABLES:
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._db.execute("COMMIT")

    def _check_owner(self) -> bool:
        """Return whether the tables exist. Raises: StoreFailed: the file is not ours, or is too new."""
        application = self._number("PRAGMA application_id")
        version = self._number("PRAGMA user_version")
        if application == APPLICATION_ID:
            if version > SCHEMA_VERSION:
                why = f"its tables have version {version}, and this fleetlm knows {SCHEMA_VERSION}: update it"
                raise StoreFailed(self._path, why)
            return True
        if application or version or self._number("SELECT count(*) FROM sqlite_master"):
            raise StoreFailed(self._path, "it is the database of another program; choose another path")
        return False

    def _perform(self, asked: Operation, checked: dict[tuple[str, int], int]) -> Outcome:
        """Do an operation. Each step of SQLite gives other threads a turn, so there are few.

        Args:
            asked: what is to be done.
            checked: kind and shard → the epoch of its fence, as this transaction has read or raised it.
        """
        try:
            self._raise_fence(asked, checked)
            if asked.what == "save" and (stored := self._write(asked)) is not None:
                return stored
            row = self._db.execute(
                "SELECT version, epoch, state FROM states WHERE kind = ? AND key = ?", (asked.kind, asked.key)
            ).fetchone()
            version, epoch, state = (0, 0, None) if row is None else row
            check_fence(asked.target, asked.fence, epoch)
            if asked.what == "load":
                return Stored(version, state, epoch)
            check_version(asked.target, asked.expected, version)
        except (StoreError, ValueError) as error:
            return error  # Nothing was changed, so the transaction goes on.
        stored = self._write(asked)
        assert stored is not None, asked.target
        return stored

    def _write(self, asked: Operation) -> Stored | None:
        """Write in place of the version that is expected. None: it is not there, and nothing was written."""
        stored = Stored(asked.expected + 1, asked.state, asked.fence.epoch)
        row = (stored.version, stored.epoch, int(time.time()), stored.state, asked.kind, asked.key)
        if asked.expected:
            written = self._db.execute(
                "UPDATE states SET version = ?, epoch = ?, written_s = ?, state = ?"
                " WHERE kind = ? AND key = ? AND version = ? AND epoch <= ?",
                (*row, asked.expected, stored.epoch),
            )
        else:
            written = self._db.execute(
                "INSERT OR IGNORE INTO states (version, epoch, written_s, state, kind, key)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
        return stored if written.rowcount == 1 else None

    def _raise_fence(self, asked: Operation, checked: dict[tuple[str, int], int]) -> None:
        """Note the owner of a shard. Raises: Fenced, ValueError."""
        shard, epoch = asked.fence
        place = (asked.kind, shard)
        highest = checked.get(place)
        if highest is None:
            found = self._db.execute(
                "SELECT epoch FROM fences WHERE kind = ? AND shard = ?", place
            ).fetchone()
            highest = checked[place] = 0 if found is None else found[0]
        check_fence(asked.target, asked.fence, highest)
        if epoch > highest:
            self._db.execute("INSERT OR REPLACE INTO fences VALUES (?, ?, ?)", (*place, epoch))
            checked[place] = epoch

    def _purge(self) -> None:
        """Forget what was dropped long ago."""
        self._db.execute(
            "DELETE FROM states WHERE rowid IN"
            " (SELECT rowid FROM states WHERE state IS NULL AND written_s < ? LIMIT ?)",
            (int(time.time() - DROPPED_S), _PURGED_AT_ONCE),
        )

    def _number(self, query: str) -> int:
        (number,) = self._db.execute(query).fetchone()
        return int(number)

    def _roll_back(self) -> None:
        try:
            self._db.execute("ROLLBACK")
        except sqlite3.Error:
            return  # SQLite has rolled it back itself. The first error counts.

    def _failure(self, error: sqlite3.Error) -> StoreFailed:
        """Return what an error of SQLite means, and what to do."""
        text = text_of(error)
        hint = next((hint for part, hint in _HINTS.items() if part in text), "")
        return StoreFailed(self._path, f"SQLite says {text!r}{': ' if hint else ''}{hint}")


def _is_busy(error: sqlite3.Error) -> bool:
    """Whether another process has a lock that was needed."""
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE == sqlite3.SQLITE_BUSY


def _identify(path: Path) -> tuple[int, int] | None:
    """Return which file a path names; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _create(path: str) -> None:
    """Make an empty file that only its owner can read, unless there is one. Raises: StoreFailed.

    A file that exists is not opened here: closing it would take the locks away that another store of this
    process has.
    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise StoreFailed(path, f"the folder {folder} does not exist; make it first")
    if Path(path).is_dir():
        raise StoreFailed(path, "it is a folder; name a file in it")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if not os.access(path, os.R_OK | os.W_OK):
            raise StoreFailed(path, "the process may not read and write the file") from None
    except OSError as error:
        raise StoreFailed(path, f"it cannot be made: {error.strerror}") from error
