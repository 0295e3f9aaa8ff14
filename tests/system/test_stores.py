"""Every store keeps the same rules; SQLite and PostgreSQL with real files, processes and servers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fleetlm import Fence, MemoryStore, PostgresStore, SQLiteStore, Store
from fleetlm.testing import STORE_RULES
from fleetlm.testing.store_rules import Rule
from tests.support import postgres_server
from tests.support.postgres_server import PostgresServer

ONE = Fence(0, 1)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the tests of this module."""
    pytest.importorskip("psycopg", reason="psycopg is missing: pip install 'fleetlm[postgres]'")
    if postgres_server.find_programs() is None or not postgres_server.is_allowed():
        pytest.skip(postgres_server.MISSING)
    with postgres_server.postgres_server() as running:
        yield running


@contextlib.asynccontextmanager
async def two_of(
    name: str, request: pytest.FixtureRequest, folder: Path
) -> AsyncIterator[tuple[Store, Store]]:
    """Two stores with the same data, as two nodes have them."""
    if name == "memory":
        memory = MemoryStore()
        yield memory, memory.another()
    elif name == "sqlite":
        path = folder / "states.db"
        async with SQLiteStore(path, synchronous="normal") as one, SQLiteStore(path) as two:
            yield one, two
    else:
        conninfo = request.getfixturevalue("server").conninfo
        async with PostgresStore(conninfo) as first, PostgresStore(conninfo, connections=2) as second:
            yield first, second


@pytest.mark.parametrize("rule", STORE_RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", ["memory", "sqlite", "postgres"])
async def test_a_store_keeps(name: str, rule: Rule, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    async with two_of(name, request, tmp_path) as (first, second):
        await rule(first, second, f"kind of {rule.__name__}")
