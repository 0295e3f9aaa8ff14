"""PostgreSQL stores with a real server, which is stopped, killed and paused."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from fleetlm import Fence, PostgresStore, Stored, StoreFailed
from fleetlm.stores import postgres
from tests.support.postgres_server import PostgresServer, server_for_tests

pytestmark = pytest.mark.long
psycopg: Any = pytest.importorskip("psycopg", reason="psycopg is missing: pip install 'fleetlm[postgres]'")
ONE = Fence(0, 1)


@pytest.fixture(scope="module", name="server")
def one_server() -> Iterator[PostgresServer]:
    yield from server_for_tests()


async def ask(server: PostgresServer, query: str, conninfo: str = "") -> list[Any]:
    """Run a statement, as an administrator does."""
    async with await psycopg.AsyncConnection.connect(
        f"{server.conninfo} {conninfo}", autocommit=True
    ) as connection:
        cursor = await connection.execute(query)
        found: list[Any] = await cursor.fetchall() if cursor.description else []
        return found


async def database(server: PostgresServer, name: str) -> str:
    """Make a database. Returns how to connect to it."""
    await ask(server, f"CREATE DATABASE {name}")
    return f"{server.conninfo} dbname={name}"


async def test_a_server_that_dies_is_told_and_used_again(server: PostgresServer) -> None:
    async with PostgresStore(server.conninfo) as store:
        assert await store.save("dies", "a", ONE, b"1", expected=0) == 1
        server.stop("immediate")
        try:
            for _ in range(2):
                with pytest.raises(StoreFailed, match=r"the store <PostgresStore host=/tmp/.*> failed: "):
                    await store.save("dies", "a", ONE, b"2", expected=1)
        finally:
            server.start()
        assert await store.load("dies", "a", ONE) == Stored(1, b"1", 1)
        assert await store.save("dies", "a", ONE, b"2", expected=1) == 2


async def test_a_server_that_hangs_holds_nothing_but_what_waits_for_it(server: PostgresServer) -> None:
    async with PostgresStore(server.conninfo, connections=2, most_waiting=3) as store:
        await store.load("hangs", "a", ONE)
        server.pause()
        try:
            waiting = [asyncio.create_task(store.load("hangs", f"{n}", ONE)) for n in range(5)]
            await asyncio.sleep(0.1)
            with pytest.raises(StoreFailed, match="5 operations are under way or wait for a connection"):
                await store.load("hangs", "beyond", ONE)
            for each in waiting:
                each.cancel()
        finally:
            server.go_on()
        await asyncio.wait(waiting)
        assert await store.save("hangs", "a", ONE, b"1", expected=0) == 1


async def test_operations_share_a_few_connections(server: PostgresServer) -> None:
    async with PostgresStore(server.conninfo, connections=3) as store:
        await asyncio.gather(*(store.save("few", f"{n}", ONE, b"1", expected=0) for n in range(60)))
        assert len(store._idle) <= 3
        assert not store._busy


async def test_tables_are_made_once_by_stores_that_begin_together(server: PostgresServer) -> None:
    conninfo = await database(server, "together")
    stores = [PostgresStore(conninfo) for _ in range(6)]
    await asyncio.gather(*(store.open() for store in stores))
    await stores[0].save("k", "a", ONE, b"1", expected=0)
    assert await stores[5].load("k", "a", ONE) == Stored(1, b"1", 1)
    await asyncio.gather(*(store.close() for store in stores))
    assert await ask(server, "SELECT * FROM fleetlm_schema", "dbname=together") == [(1,)]


async def test_tables_of_a_newer_version_are_refused(server: PostgresServer) -> None:
    conninfo = await database(server, "newer")
    async with PostgresStore(conninfo):
        await ask(server, "UPDATE fleetlm_schema SET version = 99", "dbname=newer")
    with pytest.raises(StoreFailed, match="its tables have version 99, and this fleetlm knows 1: update it"):
        await PostgresStore(conninfo).open()


async def test_a_role_without_rights_is_told_what_to_do(server: PostgresServer) -> None:
    conninfo = await database(server, "rights")
    await ask(server, "CREATE ROLE poor LOGIN")
    await ask(server, "REVOKE CREATE ON SCHEMA public FROM PUBLIC", "dbname=rights")
    poor = PostgresStore(f"{conninfo} user=poor")
    with pytest.raises(StoreFailed, match=r"have an administrator run fleetlm.stores.postgres.SCHEMA"):
        await poor.open()
    await ask(server, postgres.SCHEMA, "dbname=rights")
    await ask(server, "GRANT ALL ON ALL TABLES IN SCHEMA public TO poor", "dbname=rights")
    assert await poor.save("k", "a", ONE, b"1", expected=0) == 1
    await poor.close()


async def test_a_commit_is_on_the_disk_even_where_the_server_is_set_otherwise(server: PostgresServer) -> None:
    conninfo = await database(server, "lax")
    await ask(server, "ALTER DATABASE lax SET synchronous_commit = off")
    async with PostgresStore(conninfo) as store, store._connection() as connection:
        found = await (await connection.execute("SHOW synchronous_commit")).fetchone()
        assert found == ("on",)
    await ask(server, "ALTER DATABASE lax SET synchronous_commit = remote_apply")
    async with PostgresStore(conninfo) as store, store._connection() as connection:
        found = await (await connection.execute("SHOW synchronous_commit")).fetchone()
        assert found == ("remote_apply",)


async def test_what_was_dropped_is_forgotten_after_a_while(server: PostgresServer) -> None:
    conninfo = await database(server, "dropped")
    async with PostgresStore(conninfo) as store:
        for key in "ab":
            await store.save("k", key, ONE, b"1", expected=0)
        await store.drop("k", "a", ONE, expected=1)
        await ask(server, "UPDATE fleetlm_states SET written = now() - interval '2 h'", "dbname=dropped")
        assert (await store.load("k", "a", ONE)).version == 2
        await store.drop("k", "b", ONE, expected=1)
        assert await store.load("k", "a", ONE) == Stored(0, None, 0)
        assert (await store.load("k", "b", ONE)).version == 2


async def test_a_closed_store_refuses_and_may_be_closed_again(server: PostgresServer) -> None:
    store = PostgresStore(server.conninfo)
    await store.load("closed", "a", ONE)
    await store.close()
    await store.close()
    with pytest.raises(StoreFailed, match="it has been closed"):
        await store.load("closed", "a", ONE)


async def test_no_secret_is_shown() -> None:
    store = PostgresStore("host=/nowhere/at/all dbname=x user=me password=hidden connect_timeout=2")
    with pytest.raises(StoreFailed) as failure:
        await store.open()
    for shown in (repr(store), str(failure.value)):
        assert "hidden" not in shown
        assert "host=/nowhere/at/all dbname=x" in shown
    assert repr(PostgresStore()) == "<PostgresStore (PG... variables)>"


@pytest.mark.parametrize("options", [{"connections": 0}, {"most_waiting": 0}, {"connect_s": 0}])
def test_numbers_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"are needed|connect_s is 0"):
        PostgresStore(**options)


def test_a_connection_string_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="not what libpq takes"):
        PostgresStore("host")


def test_without_the_driver_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ImportError, match=r"install fleetlm\[postgres\]"):
        PostgresStore()
