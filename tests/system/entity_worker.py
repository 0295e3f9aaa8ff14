"""The nodes of the entity tests: workers that host sessions, and a client that appends to them.

``fleetlm start entity_worker:main``. A node with ``ENTITY_CALLS`` (appends per second) is the client: it
appends to all sessions in turn, whether former calls have ended or not, until the file ``quiet``
exists in ``ENTITY_FOLDER``; then it asks every session for its lines. All others host. `entity_ledger`
describes and checks the records.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import entity_ledger as ledger  # in the same folder, also in a container

import fleetlm
from fleetlm import Entity, Node, Quorum, SQLiteStore, handler

FOLDER = Path(os.environ["ENTITY_FOLDER"])
QUIET = FOLDER / ledger.QUIET
NODES = int(os.environ["ENTITY_NODES"])
CALLS_PER_S = float(os.environ.get("ENTITY_CALLS", "0"))
OWN_CALLS_PER_S = float(os.environ.get("ENTITY_OWN_CALLS", "0"))
"""Appends per second that each worker makes, too, to sessions that nobody else asks."""
SESSIONS = int(os.environ.get("ENTITY_SESSIONS", "1000"))
IDLE_S = float(os.environ.get("ENTITY_IDLE_S", "600"))
LEASE_S = float(os.environ.get("ENTITY_LEASE_S", "0"))
"""Seconds of the lease of a quorum of all workers; 0: both sides of a partition serve."""
STORE = os.environ.get("ENTITY_STORE", "")
"""A SQLite database, in which each result is stored before it is told; empty: there is no store."""
WORKERS = NODES - 1
VOTES_AFTER = 1.25
"""Leases after which a node that has started votes."""
START_S = 90.0
"""Seconds until all nodes must have met; on a busy machine the last one starts a minute after the first."""
CALL_S = 5.0
PATIENCE_S = 20.0
"""Seconds within which an append, with its repetitions, must have its answer."""
ATTEMPTS = 8
READ_AT_ONCE = 50


class Ledger:
    """What this run of a node did. Each record is one write, so that a SIGKILL loses nothing."""

    def __init__(self, node: Node) -> None:
        self._name = f"{node.name.replace(':', '-')}-{node.incarnation}"
        path = FOLDER / f"{self._name}{ledger.SUFFIX}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o644)

    def write(self, what: str, key: str = "", request: str = "", detail: Any = None) -> None:
        """Write a record."""
        os.write(self._file, ledger.line(what, key, request, detail))

    def sign(self, suffix: str) -> None:
        """Make a file of the name of this run."""
        (FOLDER / f"{self._name}{suffix}").touch()


class Session(Entity):
    """The lines of one session, which are the names of the requests."""

    def __init__(self, book: Ledger) -> None:
        self.book = book

    async def load(self, state: Any) -> None:
        self.lines: list[str] = list(state or ())
        self.book.write("begin", self.key, "", self.epoch)

    async def save(self) -> Any:
        return self.lines

    @handler
    async def append(self, request: str) -> int:
        self.lines.append(request)
        self.book.write("run", self.key, request, self.epoch)
        return len(self.lines)

    @handler
    async def read(self) -> list[str]:
        return self.lines


class Client:
    """Appends to sessions, and writes down what came of it.

    Args:
        node: that asks.
        book: for the records.
        keys: of the sessions.
        calls_per_s: the rate.
    """

    def __init__(self, node: Node, book: Ledger, keys: list[str], calls_per_s: float) -> None:
        self.node = node
        self.book = book
        self.keys = keys
        self.calls_per_s = calls_per_s
        self.sessions = node.entities.ref(Session, "sessions")
        self.open: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Wake all sessions, append until the file ``quiet`` exists, and read all in the end."""
        await self.read_all()
        self.book.sign(ledger.READY_SUFFIX)
        names = (f"{self.node.incarnation}-{number}" for number in itertools.count(1))
        due, keys = time.monotonic(), self._in_turn()
        while not QUIET.exists():
            task = asyncio.create_task(self.append(next(keys), next(names)))
            self.open.add(task)
            task.add_done_callback(self.open.discard)
            due = max(due + 1 / self.calls_per_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
        while self.open:
            await asyncio.wait(self.open)
        for key, lines in (await self.read_all()).items():
            self.book.write("lines", key, "", lines)
        self.book.sign(ledger.DONE_SUFFIX)

    def _in_turn(self) -> Iterator[str]:
        while True:
            yield from random.sample(self.keys, len(self.keys))

    async def append(self, key: str, request: str) -> None:
        """Append to a session as the guide on retrying says."""
        session = self.sessions[key].within(CALL_S)
        self.book.write("asked", key, request)
        try:
            number = await fleetlm.retry(
                lambda: session.call(Session.append, request), attempts=ATTEMPTS, timeout=PATIENCE_S
            )
        except fleetlm.FleetError as error:
            notes = " ".join(getattr(error, "__notes__", ()))
            self.book.write(outcome_of(error), key, request, f"{error!r} {error} {notes}")
        else:
            self.book.write("ok", key, request, number)

    async def read_all(self) -> dict[str, list[str]]:
        """Return what each session has."""
        limit = asyncio.Semaphore(READ_AT_ONCE)

        async def read(key: str) -> list[str]:
            async with limit:
                session = self.sessions[key].within(PATIENCE_S)
                return await fleetlm.retry(lambda: session.call(Session.read), idempotent=True)

        return dict(zip(self.keys, await asyncio.gather(*map(read, self.keys)), strict=True))


def outcome_of(error: fleetlm.FleetError) -> str:
    """Return what a request has ended with."""
    if isinstance(error, fleetlm.OutcomeUnknown):
        return ledger.UNKNOWN
    return ledger.REFUSED if isinstance(error, fleetlm.NotDelivered) else "failed"


async def host(node: Node, book: Ledger) -> None:
    """Host sessions, and return when this node is ready to do its part."""
    safety: Any = Quorum(expected=WORKERS, lease_s=LEASE_S) if LEASE_S else "available"
    store = SQLiteStore(STORE) if STORE else None
    await node.entities.host(
        Session, "sessions", args=(book,), idle_s=IDLE_S, safety=safety, store=store,
        durable="write" if STORE else None, store_s=PATIENCE_S,
    )  # fmt: skip
    if LEASE_S:
        await asyncio.sleep(LEASE_S * VOTES_AFTER)


async def main(node: Node) -> None:
    book = Ledger(node)
    if not CALLS_PER_S:
        await host(node, book)
    await node.ready(NODES - 1, START_S)
    if CALLS_PER_S:
        keys = [f"s-{number}" for number in range(SESSIONS)]
        await Client(node, book, keys, CALLS_PER_S).run()
    elif OWN_CALLS_PER_S:
        keys = [f"{node.name}-{number}" for number in range(SESSIONS)]
        await Client(node, book, keys, OWN_CALLS_PER_S).run()
    else:
        book.sign(ledger.READY_SUFFIX)
    await asyncio.Event().wait()  # until the node is told to leave
