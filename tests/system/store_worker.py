"""Programs of the tests of stores: writers that are killed, or that write at the same time.

``appends PATH``: a node appends to one entity that is stored, and prints each number that it was given.
``counts PATH TIMES``: counts a shared number up, so many times, and prints ``done``.
"""

from __future__ import annotations

import asyncio
import sys

from benchmarks.entity_echo import CountEntity
from fleetlm import Fence, Node, Settings, SQLiteStore, VersionConflict

ONE = Fence(0, 1)


async def appends(path: str) -> None:
    async with SQLiteStore(path) as store, Node.start(Settings()) as node:
        refs = await node.entities.host(CountEntity, "numbers", store=store, settle_s=0.0, shards=4)
        while True:
            print(await refs["n"].call(CountEntity.add), flush=True)


async def counts(path: str, times: int) -> None:
    async with SQLiteStore(path, busy_s=20) as store:
        for _ in range(times):
            while True:
                stored = await store.load("counts", "n", ONE)
                number = int(stored.state or b"0") + 1
                try:
                    await store.save("counts", "n", ONE, b"%d" % number, expected=stored.version)
                    break
                except VersionConflict:
                    continue
    print("done", flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["appends", path]:
            asyncio.run(appends(path))
        case ["counts", path, times]:
            asyncio.run(counts(path, int(times)))
