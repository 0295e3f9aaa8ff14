"""A store in a PostgreSQL database, for nodes on several hosts; the extra ``fleetlm[postgres]``.

Theory of operation. An operation is one statement in a transaction of its own as long as nothing is wrong:
one round trip, and the server lets many commits share a wait for its disk. Where that statement finds the
shard under another epoch, or another version, it changes nothing, and `_settle` repeats the operation in
three steps that lock what they look at. They raise the fence if this node has a higher epoch, and else say
why the operation is refused.

The fence of a shard is one row. A write reads it ``FOR SHARE`` and holds that until its commit; raising it
waits until all such writes have ended, and those that come later find the higher epoch. So what a load
returns, after it has raised the fence, holds everything that former owners have written, and nothing follows.
This rests on READ COMMITTED, where each statement sees what was committed before it began.

A connection that has had an error, or whose operation was cancelled, is closed: what it has sent may still
take effect, which the version of the next write notices.

The driver is psycopg 3: it takes what libpq takes (service files, several hosts with
``target_session_attrs``, certificates), and it is typed. The connections are kept here, since a pool with
tasks of its own would outlive the loop of a test.

Source: PostgreSQL's manual, "Transaction Isolation" and "Explicit Locking".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fleetlm.errors import StoreError, StoreFailed
from fleetlm.seconds import check_seconds
from fleetlm.stores.interface import (
    DROPPED_S,
    Fence,
    Stored,
    check_fence,
    check_place,
    check_state,
    check_version,
)
from fleetlm.stores.opens import Opens
from fleetlm.texts import text_of

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.AsyncConnection[tuple[Any, ...]]

SCHEMA = """
CREATE TABLE IF NOT EXISTS fleetlm_fences (
    kind text NOT NULL, shard integer NOT NULL, epoch bigint NOT NULL, PRIMARY KEY (kind, shard)
);
CREATE TABLE IF NOT EXISTS fleetlm_states (
    kind text NOT NULL, key text NOT NULL, version bigint NOT NULL, epoch bigint NOT NULL,
    written timestamptz NOT NULL DEFAULT now(), state bytea, PRIMARY KEY (kind, key)
);
CREATE INDEX IF NOT EXISTS fleetlm_dropped ON fleetlm_states (written) WHERE state IS NULL;
CREATE TABLE IF NOT EXISTS fleetlm_schema (version integer NOT NULL);
INSERT INTO fleetlm_schema SELECT 1 WHERE NOT EXISTS (SELECT FROM fleetlm_schema);
"""
"""The tables. Where the role of the program may not make any, an administrator runs this once."""
SCHEMA_VERSION = 1
_SCHEMA_LOCK = 0x666C656574
"""An advisory lock: two stores that make the tables at the same time would hinder each other."""

_LOAD = """
SELECT fence.epoch, stored.version, stored.epoch, stored.state FROM fleetlm_fences AS fence
LEFT JOIN fleetlm_states AS stored ON stored.kind = fence.kind AND stored.key = %(key)s
WHERE fence.kind = %(kind)s AND fence.shard = %(shard)s
"""
_FENCE = """
WITH fence AS MATERIALIZED (
    SELECT FROM fleetlm_fences WHERE kind = %(kind)s AND shard = %(shard)s AND epoch = %(epoch)s FOR SHARE
)
"""
_INSERT = (
    _FENCE
    + """
INSERT INTO fleetlm_states (kind, key, version, epoch, state)
SELECT %(kind)s, %(key)s, 1, %(epoch)s, %(state)s FROM fence
ON CONFLICT DO NOTHING RETURNING version
"""
)
_UPDATE = (
    _FENCE
    + """
UPDATE fleetlm_states AS stored
SET version = version + 1, epoch = %(epoch)s, written = now(), state = %(state)s
FROM fence
WHERE stored.kind = %(kind)s AND stored.key = %(key)s
    AND stored.version = %(expected)s AND stored.epoch <= %(epoch)s
RETURNING stored.version
"""
)
_RAISE = """
INSERT INTO fleetlm_fences AS fence VALUES (%(kind)s, %(shard)s, %(epoch)s)
ON CONFLICT (kind, shard) DO UPDATE SET epoch = GREATEST(fence.epoch, EXCLUDED.epoch) RETURNING epoch
"""
_LOOK = """
SELECT version, epoch, state FROM fleetlm_states WHERE kind = %(kind)s AND key = %(key)s FOR UPDATE
"""
_WRITE = """
INSERT INTO fleetlm_states AS stored (kind, key, version, epoch, state)
VALUES (%(kind)s, %(key)s, %(version)s, %(epoch)s, %(state)s)
ON CONFLICT (kind, key) DO UPDATE
SET version = EXCLUDED.version, epoch = EXCLUDED.epoch, written = now(), state = EXCLUDED.state
"""
_PURGE = """
DELETE FROM fleetlm_states WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM fleetlm_states WHERE state IS NULL AND written < now() - make_interval(secs => %(secs)s)
    LIMIT 1000
)) AND state IS NULL
"""
_SETTINGS = """
SELECT set_config('statement_timeout', %(limit_ms)s, false),
       set_config('idle_in_transaction_session_timeout', %(limit_ms)s, false),
       set_config('default_transaction_isolation', 'read committed', false),
       CASE WHEN current_setting('synchronous_commit') = 'off'
            THEN set_config('synchronous_commit', 'on', false) END
"""
"""A server that is set to acknowledge commits before they are on its disk must not do so here."""
_STATEMENT_S = 10.0
"""Seconds after which the server gives up a statement that waits for a lock, so that none is left behind."""


class PostgresStore(Opens):
    """Keeps states in a PostgreSQL database, from version 12 on. Implements `Store`.

    ::

        async with PostgresStore("host=db dbname=chat user=chat") as store, Node.start() as node:
            await node.entities.host(Session, "sessions", store=store, durable="write")

    All nodes use the same database, each with a store of its own. The tables ``fleetlm_states`` and
    ``fleetlm_fences`` are made at the first use, in the first schema of the role's ``search_path``. The
    server must be the one that takes writes; an asynchronous replica that is promoted may have lost the last
    ones.

    The connections belong to the event loop on which the store is used first.

    Args:
        conninfo: what libpq takes: ``key=value`` pairs or a URL, which ``PG...`` variables complete.
        connections: how many are open at most. Each does one operation at a time.
        connect_s: seconds for opening one.
        most_waiting: operations that wait for a connection at most; more are refused with `StoreFailed`.

    Raises:
        ImportError: psycopg is missing: install ``fleetlm[postgres]``.
        ValueError: a number is out of range.
    """

    def __init__(
        self, conninfo: str = "", *, connections: int = 8, connect_s: float = 5.0, most_waiting: int = 4_096
    ) -> None:
        try:
            import psycopg  # noqa: PLC0415  # an extra
        except ImportError as error:
            raise ImportError(f"PostgresStore needs psycopg: install fleetlm[postgres] ({error})") from error
        check_seconds(connect_s, "connect_s", above=0)
        if connections < 1 or most_waiting < 1:
            raise ValueError("at least one connection and one operation that waits are needed")
        self._driver = psycopg
        self._conninfo = conninfo
        self._connect_s = connect_s
        self._most = connections + most_waiting
        self._free = asyncio.Semaphore(connections)
        self._idle: list[Connection] = []
        """Open connections that do nothing, the one that was used last at the end."""
        self._busy: set[Connection] = set()
        self._asked = 0
        """Operations that are under way or wait."""
        self._is_made = False
        """Whether the tables exist."""
        self._is_closed = False
        self.place: str = _describe(psycopg, conninfo)

    def __repr__(self) -> str:
        return f"<PostgresStore {self.place}>"

    async def open(self) -> None:
        """Connect and make the tables now, instead of at the first use. Raises: StoreFailed."""
        async with self._connection():
            return

    async def close(self) -> None:
        """Close the connections, also those in use. Later operations raise `StoreFailed`.

        Stop the nodes before it. May be called again.
        """
        self._is_closed = True
        connections, self._idle = [*self._idle, *self._busy], []
        for each in connections:
            await each.close()

    async def load(self, kind: str, key: str, fence: Fence) -> Stored:
        """See `Store.load`."""
        target = check_place(kind, key)
        check_fence(target, fence, 0)
        values = {"kind": kind, "key": key, "shard": fence.shard, "epoch": fence.epoch}
        async with self._connection() as connection:
            row = await (await connection.execute(_LOAD, values, binary=True)).fetchone()
            if row is not None and row[0] == fence.epoch and (row[2] or 0) <= fence.epoch:
                return Stored(row[1] or 0, row[3], row[2] or 0)
            async with connection.transaction():
                return await self._settle(connection, target, fence, values)

    async def save(self, kind: str, key: str, fence: Fence, state: bytes, *, expected: int) -> int:
        """See `Store.save`."""
        check_state(state)
        return await self._write(kind, key, fence, state, expected)

    async def drop(self, kind: str, key: str, fence: Fence, *, expected: int) -> int:
        """See `Store.drop`."""
        return await self._write(kind, key, fence, None, expected)

    async def _write(self, kind: str, key: str, fence: Fence, state: bytes | None, expected: int) -> int:
        target = check_place(kind, key)
        check_fence(target, fence, 0)
        values: dict[str, Any] = {"kind": kind, "key": key, "shard": fence.shard, "epoch": fence.epoch}
        values |= {"state": state, "expected": expected}
        async with self._connection() as connection:
            if state is not None:
                query = _UPDATE if expected else _INSERT
                row = await (await connection.execute(query, values)).fetchone()
                if row is not None:
                    return int(row[0])
            async with connection.transaction():
                version = (await self._settle(connection, target, fence, values)).version
                check_version(target, expected, version)
                values["version"] = version + 1
                await connection.execute(_WRITE, values)
                if state is None:
                    await connection.execute(_PURGE, {"secs": DROPPED_S})
            return version + 1

    async def _settle(
        self, connection: Connection, target: str, fence: Fence, values: dict[str, Any]
    ) -> Stored:
        """Raise the fence, and return what is stored. Raises: Fenced."""
        raised = await (await connection.execute(_RAISE, values)).fetchone()
        assert raised is not None
        check_fence(target, fence, raised[0])
        row = await (await connection.execute(_LOOK, values, binary=True)).fetchone()
        if row is None:
            return Stored(0, None, 0)
        check_fence(target, fence, row[1])
        return Stored(row[0], row[2], row[1])

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """Lend a connection. Errors of the driver become StoreFailed, and end the connection."""
        if self._asked >= self._most:
            why = f"{self._asked:,} operations are under way or wait for a connection, as many as may"
            raise StoreFailed(repr(self), why)
        self._asked += 1
        try:
            async with self._free:
                connection = await self._take()
                self._busy.add(connection)
                is_good = False
                try:
                    yield connection
                    is_good = True
                except StoreError:
                    is_good = True
                    raise
                except (self._driver.Error, OSError) as error:
                    raise StoreFailed(repr(self), _explain(error)) from error
                finally:
                    self._busy.discard(connection)
                    if is_good and not (self._is_closed or connection.closed):
                        self._idle.append(connection)
                    else:
                        await connection.close()
        finally:
            self._asked -= 1

    async def _take(self) -> Connection:
        """Return an open connection that nobody uses. Raises: StoreFailed."""
        if self._is_closed:
            raise StoreFailed(repr(self), "it has been closed")
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        try:
            connection = await self._driver.AsyncConnection.connect(
                self._conninfo, autocommit=True, connect_timeout=max(2, round(self._connect_s)),
                application_name="fleetlm",
            )  # fmt: skip
        except (self._driver.Error, OSError) as error:
            raise StoreFailed(repr(self), _explain(error)) from error
        try:
            await connection.execute(_SETTINGS, {"limit_ms": str(int(_STATEMENT_S * 1000))})
            if not self._is_made:
                await self._make(connection)
        except BaseException as error:
            await connection.close()
            if isinstance(error, self._driver.Error | OSError):
                raise StoreFailed(repr(self), _explain(error)) from error
            raise
        return connection

    async def _make(self, connection: Connection) -> None:
        """Make the tables unless they exist. Raises: StoreFailed: they are of a newer version."""
        found = await (await connection.execute("SELECT to_regclass('fleetlm_schema')")).fetchone()
        if found == (None,):
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(%s)", [_SCHEMA_LOCK])
                await connection.execute(SCHEMA)
        row = await (await connection.execute("SELECT max(version) FROM fleetlm_schema")).fetchone()
        version = 0 if row is None or row[0] is None else row[0]
        if version != SCHEMA_VERSION:
            why = f"its tables have version {version}, and this fleetlm knows {SCHEMA_VERSION}: update it"
            raise StoreFailed(repr(self), why)
        self._is_made = True


def _explain(error: BaseException) -> str:
    """Return what an error of the driver means, on one line."""
    text = " ".join(text_of(error).split()) or type(error).__name__
    if getattr(error, "sqlstate", None) == "42501":  # insufficient_privilege
        return f"{text}; have an administrator run fleetlm.stores.postgres.SCHEMA and grant its tables"
    return text


def _describe(driver: Any, conninfo: str) -> str:
    """Return host, port and database, and no secret. Raises: ValueError: not what libpq takes."""
    try:
        parts = driver.conninfo.conninfo_to_dict(conninfo)
    except driver.Error as error:
        raise ValueError(f"the connection string is not what libpq takes: {_explain(error)}") from None
    shown = {name: parts[name] for name in ("service", "host", "port", "dbname") if name in parts}
    return " ".join(f"{name}={value}" for name, value in shown.items()) or "(PG... variables)"
