"""A SQLite file beside a store in memory: whatever is asked of both, in whatever order, they answer alike."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hypothesis import given, settings, strategies as st

from fleetlm import Fence, MemoryStore, Stored
from fleetlm.errors import StoreError
from fleetlm.stores.sqlite_file import Operation, Outcome, SQLiteFile

OPERATIONS = st.builds(
    lambda what, key, epoch, expected, state: Operation(
        what,
        f"k/{key}",
        "k",
        key,
        Fence("aab".index(key), epoch),
        expected,
        state if what == "save" else None,
    ),
    st.sampled_from(["load", "save", "save", "save", "drop"]),
    st.sampled_from("ab"),
    st.integers(1, 4),
    st.integers(0, 4),
    st.binary(max_size=3),
)


async def perform(store: MemoryStore, asked: Operation) -> Outcome:
    """Ask the store in memory for the same."""
    kind, key, fence = asked.kind, asked.key, asked.fence
    try:
        if asked.what == "load":
            return await store.load(kind, key, fence)
        if asked.what == "save":
            assert asked.state is not None
            version = await store.save(kind, key, fence, asked.state, expected=asked.expected)
        else:
            version = await store.drop(kind, key, fence, expected=asked.expected)
    except StoreError as error:
        return error
    return Stored(version, asked.state, fence.epoch)


def shown(outcomes: Iterable[Outcome]) -> list[object]:
    return [each if isinstance(each, Stored) else (type(each), each.args) for each in outcomes]


@settings(max_examples=25)
@given(batches=st.lists(st.lists(OPERATIONS, min_size=1, max_size=8), max_size=5), opens=st.booleans())
def test_a_file_answers_as_a_store_in_memory(batches: list[list[Operation]], opens: bool) -> None:
    store = MemoryStore()

    async def model() -> list[list[Outcome]]:
        return [[await perform(store, asked) for asked in batch] for batch in batches]

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "states.db")
        file = SQLiteFile(path, "normal", 1.0)
        for batch, wanted in zip(batches, asyncio.run(model()), strict=True):
            assert shown(file.run(batch)) == shown(wanted)
            if opens:
                file.close()
                file = SQLiteFile(path, "normal", 1.0)
        file.close()
