"""What ``durable="write"`` costs with SQLite: an entity alone, and a hundred at a time, on this disk.

    python -m benchmarks.stores [FOLDER]

One node, so that nothing but the entity and its store is measured. Each request changes a state of 64 bytes.
Not among the benchmarks of `python -m benchmarks`, whose floors must not depend on a disk.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from fleetlm import Entity, EntityRefs, Node, Settings, SQLiteStore, handler

AT_ONCE = 100
SECONDS = 2.0
"""Of each measurement, after as many requests as there are entities."""


class Blob(Entity):
    """A state of 64 bytes that each request changes."""

    async def load(self, state: Any) -> None:
        """See `Entity.load`."""
        self.number: int = int.from_bytes(state or b"", "big")

    async def save(self) -> Any:
        """See `Entity.save`."""
        return self.number.to_bytes(64, "big")

    @handler
    async def add(self) -> None:
        """Change it."""
        self.number += 1


async def ask(refs: EntityRefs[Blob], key: str, until: float, took: list[float]) -> None:
    """Send one request after the other to one entity."""
    ref = refs[key]
    while (began := time.perf_counter()) < until:
        await ref.call(Blob.add)
        took.append(time.perf_counter() - began)


async def measure(refs: EntityRefs[Blob], entities: int) -> str:
    """Return rate and latency of so many entities, each with one request at a time."""
    keys = [f"k{number}" for number in range(entities)]
    await asyncio.gather(*(refs[key].call(Blob.add) for key in keys))
    took: list[float] = []
    until = time.perf_counter() + SECONDS
    await asyncio.gather(*(ask(refs, key, until, took) for key in keys))
    took.sort()
    p50, p99 = statistics.median(took), took[int(len(took) * 0.99)]
    return f"{len(took) / SECONDS:10,.0f}/s   p50 {p50 * 1e3:8.2f} ms   p99 {p99 * 1e3:8.2f} ms"


async def run(folder: Path) -> None:
    """Measure without a store, and with each way to confirm a write."""
    async with Node.start(Settings()) as node:
        plain = await node.entities.host(Blob, "plain", settle_s=0.0)
        for entities in (1, AT_ONCE):
            print(f"{'no store':<20}{entities:>4} at a time {await measure(plain, entities)}", flush=True)
        ways: tuple[Literal["normal", "full"], ...] = ("normal", "full")
        for way in ways:
            async with SQLiteStore(folder / f"{way}.db", synchronous=way) as store:
                refs = await node.entities.host(Blob, way, settle_s=0.0, store=store, durable="write")
                for entities in (1, AT_ONCE):
                    found = await measure(refs, entities)
                    print(f"{f'SQLite, {way}':<20}{entities:>4} at a time {found}", flush=True)
                await node.entities.unhost(way)


def main() -> None:
    """Measure in a folder on the disk that counts; else in a temporary one."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        asyncio.run(run(Path(folder)))


if __name__ == "__main__":
    main()
