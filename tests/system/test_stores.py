"""Every store keeps the same rules; SQLite and PostgreSQL with real files, processes and servers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fleetlm import Fence, MemoryStore, PostgresStore, SQLiteStore, Store
from fleetlm.testing import STORE_RULES, check_store
from fleetlm.testing.store_rules import Rule
from tests.support import postgres_server
from tests.support.postgres_server import PostgresServer


@pytest.fixture(scope="module", name="server")
def one_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the tests of this module."""
    yield from postgres_server.server_for_tests()


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
@pytest.mark.parametrize("name", ["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.long)])
async def test_a_store_keeps(name: str, rule: Rule, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    async with two_of(name, request, tmp_path) as (first, second):
        await rule(first, second, f"kind of {rule.__name__}")


class Forgetful(MemoryStore):
    """Takes what a former owner writes."""

    def _raise_fence(self, target: str, kind: str, key: str, fence: Fence) -> None:
        return


async def test_a_store_that_breaks_a_rule_is_named_with_it() -> None:
    store = Forgetful()
    with pytest.raises(
        AssertionError, match=r"<MemoryStore .* does not keep the rule 'a_former_owner_writes_noth"
    ):
        await check_store(store, store)


async def test_a_store_that_keeps_every_rule_passes() -> None:
    store = MemoryStore(latency_s=(0.0, 0.001))
    await check_store(store, store.another())
