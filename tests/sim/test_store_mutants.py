"""Each rule of stored entities, broken once: the stories of `store_world` notice it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from fleetlm import Fence, FleetError, MemoryStore
from fleetlm.entities.keeping import Keeper
from fleetlm.entities.storing import Storing
from fleetlm.stores import memory
from fleetlm.testing import run
from tests.sim.seeded import no_logs
from tests.sim.store_world import StoreWorld

SEEDS = 60


def answer_before_it_is_stored(patch: pytest.MonkeyPatch) -> None:
    async def store_result(self: Storing) -> None:
        task = asyncio.ensure_future(self._keeper.store(await self._packed()))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    patch.setattr(Storing, "_store_result", store_result)


def answer_although_it_is_not_stored(patch: pytest.MonkeyPatch) -> None:
    async def store_result(self: Storing) -> None:
        try:
            await self._keeper.store(await self._packed())
        except FleetError:
            return

    patch.setattr(Storing, "_store_result", store_result)


def take_every_version(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory, "check_version", lambda *_: None)


def take_every_epoch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryStore, "_raise_fence", lambda *_: None)


def fence_writes_alone(patch: pytest.MonkeyPatch) -> None:
    real = MemoryStore._raise_fence

    async def load(self: MemoryStore, kind: str, key: str, fence: Fence) -> Any:
        patch.setattr(MemoryStore, "_raise_fence", lambda *_: None)
        try:
            return await loaded(self, kind, key, fence)
        finally:
            patch.setattr(MemoryStore, "_raise_fence", real)

    loaded = MemoryStore.load
    patch.setattr(MemoryStore, "load", load)


def forget_what_is_stored(patch: pytest.MonkeyPatch) -> None:
    real = Keeper.load

    async def load(self: Keeper) -> Any:
        return (await real(self))._replace(state=None)

    patch.setattr(Keeper, "load", load)


def end_without_storing(patch: pytest.MonkeyPatch) -> None:
    async def save(self: Storing) -> None:
        await self._packed()

    patch.setattr(Storing, "save", save)


@pytest.mark.long
@pytest.mark.parametrize(
    ("mutant", "faults", "durable"),
    [
        (answer_before_it_is_stored, True, "write"),
        (answer_although_it_is_not_stored, True, "write"),
        (take_every_version, True, "write"),
        (take_every_epoch, True, "write"),
        (fence_writes_alone, True, "write"),
        (forget_what_is_stored, True, "write"),
        (forget_what_is_stored, False, "passivate"),
        (end_without_storing, False, "passivate"),
    ],
)
def test_a_broken_rule_is_noticed(
    mutant: Callable[[pytest.MonkeyPatch], None], faults: bool, durable: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    with no_logs():
        for seed in range(SEEDS):
            try:
                run(StoreWorld(seed, faults=faults, durable=durable).play(), seed=seed)
            except Exception:  # noqa: BLE001  # it was noticed
                return
    pytest.fail(f"{SEEDS} stories do not notice it")
