"""What docs/leaders.md shows."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fleetlm import CronSlot, Node, Process, Quorum
from fleetlm.testing import Fleet


class Outdated(Exception):  # the name that the guide shows
    """A former run has tried to write."""


class Database:
    """Jobs in SQLite; the same statements work in PostgreSQL."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path)
        with self._db:
            self._db.execute("CREATE TABLE IF NOT EXISTS fence (token INTEGER NOT NULL)")
            self._db.execute("CREATE TABLE IF NOT EXISTS jobs (job TEXT, token INTEGER)")
            self._db.execute("INSERT INTO fence SELECT 0 WHERE NOT EXISTS (SELECT * FROM fence)")

    def write(self, job: str, token: int) -> None:
        """Write a job, unless a later run has written. Both statements are one transaction."""
        with self._db:
            moved = self._db.execute("UPDATE fence SET token = ? WHERE token <= ?", (token, token))
            if moved.rowcount == 0:
                raise Outdated(f"a run with a higher epoch than {token} has written")
            self._db.execute("INSERT INTO jobs VALUES (?, ?)", (job, token))

    def jobs(self) -> list[str]:
        return [job for (job,) in self._db.execute("SELECT job FROM jobs ORDER BY rowid")]

    def close(self) -> None:
        self._db.close()


def offer_scheduler(node: Node, database: Database) -> None:
    @node.singleton("scheduler", safety=Quorum(expected=3))
    async def scheduler(process: Process) -> None:
        async for call in process.mailbox:
            database.write(call.message, token=process.epoch)
            call.reply("planned")


async def plan(node: Node, job: str) -> None:
    print("the scheduler runs on", node.singletons.where("scheduler"))  # None: on no node just now
    await node.singletons.call("scheduler", job)  # from any node; waits while it moves


def declare_jobs(node: Node, clean: Callable[[CronSlot], Awaitable[None]]) -> None:
    node.cron("clean", "*/5 * * * *", clean)  # UTC
    node.cron("report", "30 6 * * mon-fri", clean, tz="Europe/Berlin", missed="skip")
    node.cron("poll", 10.0, clean)  # every ten seconds; needs no library


async def test_the_scheduler(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = Database(str(tmp_path / "jobs.db"))
    nodes = await fleet.start(3)
    for node in nodes:
        offer_scheduler(node, database)
    await nodes[0].singletons.find("scheduler", 60)
    epoch = nodes[0].singletons.epoch("scheduler")
    await plan(nodes[0], "first")
    leader = str(nodes[0].singletons.where("scheduler"))
    assert f"the scheduler runs on {leader}" in capsys.readouterr().out
    await fleet.crash(leader)
    alive = next(node for node in nodes if node.name != leader)
    await fleet.until(lambda: alive.singletons.epoch("scheduler") > epoch, timeout=60)
    await alive.singletons.call("scheduler", "second", 30)
    with pytest.raises(Outdated):
        database.write("late", epoch)
    assert database.jobs() == ["first", "second"]
    database.close()


async def test_the_jobs(fleet: Fleet) -> None:
    slots: list[CronSlot] = []

    async def clean(slot: CronSlot) -> None:
        slots.append(slot)

    (node,) = await fleet.start(1)
    declare_jobs(node, clean)
    await fleet.sleep(320)
    assert {slot.name for slot in slots} >= {"clean", "poll"}
