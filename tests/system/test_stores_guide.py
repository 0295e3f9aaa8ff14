"""What docs/stores.md shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fleetlm import Entity, Fence, Node, Settings, SQLiteStore, Stored, handler
from fleetlm.stores.interface import check_fence, check_place, check_state, check_version
from fleetlm.testing import check_store


class Session(Entity):
    async def load(self, state: Any) -> None:
        self.lines: list[str] = list(state or ())

    async def save(self) -> Any:
        return self.lines or None  # None: nothing to keep

    @handler
    async def append(self, line: str) -> int:
        self.lines.append(line)
        return len(self.lines)

    @handler
    async def delete(self) -> None:
        self.lines = []


async def main(node: Node, path: Path) -> int:
    async with SQLiteStore(path) as store:
        await node.entities.host(Session, "sessions", store=store, durable="write")
        sessions = node.entities.ref(Session, "sessions")
        count = await sessions["s-42"].call(Session.append, "hi")  # it is on the disk now
        await node.entities.unhost("sessions")
    return count


async def test_the_guide(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    async with Node.start(Settings()) as node:
        assert [await main(node, path) for _ in range(2)] == [1, 2]
        async with SQLiteStore(path) as store:
            sessions = await node.entities.host(Session, "sessions", store=store)
            await sessions["s-42"].call(Session.delete)
            await node.entities.unhost("sessions")
        assert await main(node, path) == 1


class DictStore:
    """Keeps states in a dict; without an await in between, each method is atomic."""

    def __init__(self) -> None:
        self.epochs: dict[tuple[str, int], int] = {}
        self.rows: dict[tuple[str, str], Stored] = {}

    def enter(self, kind: str, key: str, fence: Fence) -> Stored:
        target = check_place(kind, key)
        row = self.rows.get((kind, key), Stored(0, None, 0))
        highest = max(self.epochs.get((kind, fence.shard), 0), row.epoch)
        check_fence(target, fence, highest)  # Raises Fenced.
        self.epochs[kind, fence.shard] = fence.epoch
        return row

    async def load(self, kind: str, key: str, fence: Fence) -> Stored:
        return self.enter(kind, key, fence)

    async def save(self, kind: str, key: str, fence: Fence, state: bytes, *, expected: int) -> int:
        check_state(state)
        return self.write(kind, key, fence, state, expected)

    async def drop(self, kind: str, key: str, fence: Fence, *, expected: int) -> int:
        return self.write(kind, key, fence, None, expected)

    def write(self, kind: str, key: str, fence: Fence, state: bytes | None, expected: int) -> int:
        version = self.enter(kind, key, fence).version
        check_version(f"{kind}/{key}", expected, version)  # Raises VersionConflict.
        self.rows[kind, key] = Stored(version + 1, state, fence.epoch)
        return version + 1


async def test_the_store_keeps_the_rules() -> None:
    store = DictStore()
    await check_store(store, store)
