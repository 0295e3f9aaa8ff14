"""SQLite stores with real files, threads and processes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fleetlm import Fence, SQLiteStore, Stored, StoreFailed
from fleetlm.stores import sqlite_file, sqlite_worker
from fleetlm.stores.interface import DROPPED_S

ONE = Fence(0, 1)
TWO = Fence(0, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "states.db"


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "fleetlm store"]


def hold(path: Path) -> sqlite3.Connection:
    """Keep others from writing, as another process would."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other


async def begun(store: SQLiteStore) -> None:
    """Wait until the thread does what was asked for."""
    await asyncio.sleep(0)
    while store._worker._queue:
        await asyncio.sleep(0.001)  # A real thread takes it.


async def test_what_was_stored_is_there_when_the_file_is_opened_again(path: Path) -> None:
    async with SQLiteStore(path) as store:
        assert await store.save("k", "a", ONE, b"1", expected=0) == 1
        assert repr(store) == f"<SQLiteStore {path}>"
    async with SQLiteStore(path) as store:
        assert await store.load("k", "a", ONE) == Stored(1, b"1", 1)


async def test_the_file_is_opened_at_the_first_use_for_its_owner_alone(path: Path) -> None:
    store = SQLiteStore(str(path))
    assert not path.exists()
    await store.load("k", "a", ONE)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.with_name("states.db-wal").stat().st_mode & 0o777 == 0o600
    await store.close()
    assert not path.with_name("states.db-wal").exists()


def test_a_write_is_on_the_disk_when_it_is_acknowledged(path: Path) -> None:
    for wanted, number in (("full", 2), ("normal", 1)):
        file = sqlite_file.SQLiteFile(str(path), wanted, 1.0)
        assert file._number("PRAGMA synchronous") == number
        assert file._number("PRAGMA fullfsync") == 1
        assert file._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        file.close()


async def test_a_killed_writer_leaves_everything_that_it_acknowledged(path: Path) -> None:
    told = 0
    for _ in range(2):
        writer = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.system.store_worker", "appends", str(path),
            stdout=asyncio.subprocess.PIPE, env=os.environ | {"DNS_CLUSTER_QUERY": ""},
        )  # fmt: skip
        assert writer.stdout is not None
        first = int(await writer.stdout.readline())
        assert first in {told + 1, told + 2}, "one append may have been stored without its answer"
        told = first
        for _ in range(20):
            told = int(await writer.stdout.readline())
        writer.kill()
        rest = await writer.stdout.read()
        told = int((b"%d\n" % told + rest).split(b"\n")[-2])
        assert await writer.wait() == -signal.SIGKILL
    assert told >= 42


@pytest.mark.long
async def test_several_processes_write_to_one_file(path: Path) -> None:
    writers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.system.store_worker", "counts", str(path), "30",
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    outs = await asyncio.gather(*(each.communicate() for each in writers))
    assert [out for out, _ in outs] == [b"done\n"] * 2
    async with SQLiteStore(path) as store:
        assert await store.load("counts", "n", ONE) == Stored(60, b"60", 1)


async def test_writes_of_many_entities_share_a_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    run = sqlite_file.SQLiteFile.run

    def counted(self: sqlite_file.SQLiteFile, operations: list[Any]) -> Any:
        batches.append(len(operations))
        return run(self, operations)

    monkeypatch.setattr(sqlite_file.SQLiteFile, "run", counted)
    async with SQLiteStore(path) as store:
        await asyncio.gather(*(store.save("k", f"a{n}", ONE, b"1", expected=0) for n in range(600)))
    assert sum(batches) == 600
    assert len(batches) <= 600 / 20
    assert max(batches) <= sqlite_worker.BATCH_OPERATIONS


async def test_large_states_are_not_done_in_one_transaction(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    run = sqlite_file.SQLiteFile.run

    def counted(self: sqlite_file.SQLiteFile, operations: list[Any]) -> Any:
        batches.append(len(operations))
        return run(self, operations)

    monkeypatch.setattr(sqlite_file.SQLiteFile, "run", counted)
    monkeypatch.setattr(sqlite_worker, "BATCH_BYTES", 1_000)
    async with SQLiteStore(path, synchronous="normal") as store:
        await asyncio.gather(*(store.save("k", f"a{n}", ONE, bytes(400), expected=0) for n in range(12)))
    assert max(batches) <= 3


async def test_a_store_whose_file_is_held_is_bounded_and_goes_on(path: Path) -> None:
    async with SQLiteStore(path, most_waiting=5) as store:
        other = hold(path)
        first = asyncio.create_task(store.save("k", "first", ONE, b"1", expected=0))
        await begun(store)
        waiting = [
            asyncio.create_task(store.save("k", f"a{n}", ONE, bytes(100), expected=0)) for n in range(5)
        ]
        await asyncio.sleep(0)
        with pytest.raises(StoreFailed, match=r"states.db failed: 5 operations with 500 bytes wait for it"):
            await store.save("k", "beyond", ONE, b"1", expected=0)
        waiting.pop().cancel()
        other.execute("ROLLBACK")
        other.close()
        assert await asyncio.gather(first, *waiting) == [1] * 5
        assert await store.load("k", "a4", ONE) == Stored(0, None, 0), "it was given up before its turn"
        assert await store.load("k", "beyond", ONE) == Stored(0, None, 0)


async def test_bytes_that_wait_are_bounded_and_one_large_state_is_taken(path: Path) -> None:
    async with SQLiteStore(path, waiting_bytes=1_000) as store:
        assert await store.save("k", "large", ONE, bytes(5_000), expected=0) == 1
        other = hold(path)
        first = asyncio.create_task(store.save("k", "first", ONE, b"1", expected=0))
        await begun(store)
        second = asyncio.create_task(store.save("k", "second", ONE, bytes(900), expected=0))
        await asyncio.sleep(0)
        with pytest.raises(StoreFailed, match="as many as may"):
            await store.save("k", "third", ONE, bytes(200), expected=0)
        other.execute("ROLLBACK")
        other.close()
        assert await asyncio.gather(first, second) == [1, 1]


async def test_a_file_that_is_held_too_long_is_told_and_used_again_later(path: Path) -> None:
    async with SQLiteStore(path, busy_s=0.05) as store:
        other = hold(path)
        with pytest.raises(StoreFailed, match="another process holds the file for longer than busy_s"):
            await store.save("k", "a", ONE, b"1", expected=0)
        other.execute("ROLLBACK")
        other.close()
        assert await store.save("k", "a", ONE, b"1", expected=0) == 1


def foreign(path: Path) -> Path:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    return path


def newer(path: Path) -> Path:
    sqlite_file.SQLiteFile(str(path), "full", 1.0).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    return path


def text(path: Path) -> Path:
    path.write_text("no database" * 1_000)
    return path


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path / "missing" / "a.db", "the folder .* does not exist; make it first"),
        (lambda path: path.parent, "it is a folder; name a file in it"),
        (foreign, "it is the database of another program; choose another path"),
        (newer, "its tables have version 99, and this fleetlm knows 1: update it"),
        (text, "the path names a file of another kind"),
    ],
)
async def test_a_path_that_does_not_serve_is_told_plainly(path: Path, make: Any, why: str) -> None:
    made = make(path)
    store = SQLiteStore(made)
    for _ in range(2):
        with pytest.raises(StoreFailed, match=why) as failure:
            await store.open()
        assert failure.value.store == str(made)
    await store.close()
    assert threads() == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
async def test_a_file_without_rights_is_told(path: Path) -> None:
    path.touch(0o400)
    async with SQLiteStore(path.with_name("other.db")):
        with pytest.raises(StoreFailed, match="may not read and write"):
            await SQLiteStore(path).open()


@pytest.mark.parametrize(
    "options", [{"path": ":memory:"}, {"path": ""}, {"path": "a\0b"}, {"synchronous": "off"}, {"busy_s": -1}]
)
def test_arguments_that_make_no_sense_are_refused(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"names no file|synchronous is|busy_s is -1"):
        SQLiteStore(**({"path": path} | options))


async def test_a_disk_that_is_full_costs_nothing_that_was_stored(path: Path) -> None:
    async with SQLiteStore(path) as store:
        assert await store.save("k", "a", ONE, b"1", expected=0) == 1
    file = sqlite_file.SQLiteFile(str(path), "full", 1.0)
    file._db.execute("PRAGMA max_page_count = 1")
    save = sqlite_file.Operation("save", "k/b", "k", "b", ONE, 0, bytes(1_000_000))
    with pytest.raises(StoreFailed, match="make room on the disk"):
        file.run([save])
    load = sqlite_file.Operation("load", "k/a", "k", "a", ONE)
    assert file.run([load]) == [Stored(1, b"1", 1)]
    file.close()


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_file_that_was_removed_or_replaced_acknowledges_nothing(
    path: Path, is_replaced: bool
) -> None:
    """SQLite itself would write to the file that has no name any more."""
    backup = path.with_name("backup.db")
    async with SQLiteStore(path) as store, SQLiteStore(backup) as other:
        await other.save("k", "a", ONE, b"old", expected=0)
        await store.save("k", "a", ONE, b"new", expected=0)
        await other.close()
        for each in ("states.db", "states.db-wal", "states.db-shm"):
            path.with_name(each).unlink()
        if is_replaced:
            backup.rename(path)
        what = "replaced by another one" if is_replaced else "removed"
        with pytest.raises(StoreFailed, match=rf"was {what} while it was open.* -wal and -shm files first"):
            await store.save("k", "a", ONE, b"newer", expected=1)
        kept = Stored(1, b"old", 1) if is_replaced else Stored(0, None, 0)
        assert await store.load("k", "a", ONE) == kept
        assert await store.save("k", "a", ONE, b"next", expected=kept.version) == kept.version + 1
    async with SQLiteStore(path) as store:
        assert (await store.load("k", "a", ONE)).state == b"next"


async def test_an_operation_that_is_refused_harms_no_other_one_of_its_transaction(path: Path) -> None:
    file = sqlite_file.SQLiteFile(str(path), "full", 1.0)
    operations = [
        sqlite_file.Operation("save", "k/a", "k", "a", TWO, 0, b"a"),
        sqlite_file.Operation("save", "k/b", "k", "b", ONE, 0, b"b"),
        sqlite_file.Operation("save", "k/c", "k", "c", TWO, 7, b"c"),
        sqlite_file.Operation("load", "k/a", "k", "a", TWO),
    ]
    outcomes = file.run(operations)
    assert [type(each).__name__ for each in outcomes] == ["Stored", "Fenced", "VersionConflict", "Stored"]
    assert outcomes[3] == Stored(1, b"a", 2)
    file.close()


async def test_what_was_dropped_is_forgotten_after_a_while(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SQLiteStore(path) as store:
        for key in "ab":
            await store.save("k", key, ONE, b"1", expected=0)
        await store.drop("k", "a", ONE, expected=1)
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + DROPPED_S + 2)
        assert (await store.load("k", "a", ONE)).version == 2
        await store.drop("k", "b", ONE, expected=1)
        assert await store.load("k", "a", ONE) == Stored(0, None, 0)
        assert (await store.load("k", "b", ONE)).version == 2


async def test_a_store_is_closed_once_everything_is_written(path: Path) -> None:
    store = SQLiteStore(path)
    await store.close()  # It was never opened.
    store = SQLiteStore(path)
    writes = [asyncio.create_task(store.save("k", f"a{n}", ONE, b"1", expected=0)) for n in range(50)]
    await asyncio.sleep(0)
    await asyncio.gather(store.close(), store.close())
    assert await asyncio.gather(*writes) == [1] * 50
    await store.close()
    assert threads() == []
    with pytest.raises(StoreFailed, match="has been closed"):
        await store.load("k", "a", ONE)


async def test_a_store_that_is_forgotten_ends_its_thread(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    assert len(threads()) == 1
    del store
    gc.collect()
    assert threads() == []


async def test_a_program_that_does_not_close_its_store_ends_nevertheless(path: Path) -> None:
    source = (
        "import asyncio, sys; from fleetlm import SQLiteStore, Fence\n"
        "store = SQLiteStore(sys.argv[1])\n"
        "asyncio.run(store.save('k', 'a', Fence(0, 1), b'1', expected=0))"
    )
    program = await asyncio.create_subprocess_exec(sys.executable, "-W", "error", "-c", source, str(path))
    assert await program.wait() == 0
    async with SQLiteStore(path) as store:
        assert (await store.load("k", "a", ONE)).state == b"1"


async def test_a_forked_child_needs_a_store_of_its_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SQLiteStore(path) as store:
        here = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: here + 1)
        with pytest.raises(StoreFailed, match="open a store of its own here"):
            await store.load("k", "a", ONE)
        with pytest.raises(StoreFailed, match="open a store of its own here"):
            await store.close()
        store._worker.close_now()
        monkeypatch.undo()
        assert await store.load("k", "a", ONE) == Stored(0, None, 0)


async def test_an_error_that_nobody_expects_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with SQLiteStore(path) as store:
        monkeypatch.setattr(sqlite_file.SQLiteFile, "_perform", lambda *_: 1 / 0)
        with pytest.raises(StoreFailed, match="ZeroDivisionError"):
            await store.load("k", "a", ONE)
        monkeypatch.undo()
        assert await store.load("k", "a", ONE) == Stored(0, None, 0)
    assert "met an error that it does not know" in caplog.text


def test_an_answer_for_a_loop_that_has_ended_goes_nowhere(path: Path) -> None:
    store = SQLiteStore(path)

    async def give_up() -> None:
        save = asyncio.ensure_future(store.save("k", "a", ONE, b"1", expected=0))
        await asyncio.sleep(0)
        save.cancel()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(give_up())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    asyncio.run(store.close())
    assert threads() == []
