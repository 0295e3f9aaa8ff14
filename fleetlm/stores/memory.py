"""A store in memory, which can fail as real ones do: for tests."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import NamedTuple

from fleetlm.errors import StoreError, StoreFailed
from fleetlm.stores.interface import Fence, Stored, check_fence, check_place, check_state, check_version


class _Row(NamedTuple):
    epoch: int
    version: int
    state: bytes | None


class _Data:
    """What several `MemoryStore` objects share."""

    def __init__(self) -> None:
        self.fences: dict[tuple[str, int], int] = {}
        self.rows: dict[tuple[str, str], _Row] = {}


_NO_ROW = _Row(0, 0, None)


class MemoryStore:
    """Keeps states in this process, with faults where a test wants them. Implements `Store`.

    ::

        store = MemoryStore(latency_s=(0.001, 0.02), failures=0.1, lost_answers=0.1, rng=random.Random(7))
        await node.entities.host(Session, "sessions", store=store, durable="write")
        other = store.another()                 # the same data, with faults of its own, for another node
        other.is_down = True                    # it answers nothing, until this is False again

    Nothing survives the process. The faults may be changed at any time.

    Attributes:
        latency_s: seconds that an operation takes, between these two: half of them before it takes effect.
        failures: how many operations, from 0 to 1, fail before they take effect.
        lost_answers: how many of them take effect and fail then.
        late: how many of those that are cancelled before they take effect do so nevertheless, at a time
            within ten times the latency.
        is_down: whether nothing is answered. What is asked then fails, or waits until it is cancelled if
            ``is_silent``.
        is_silent: see ``is_down``.
        on_effect: called with kind, key, fence, and what is stored then, for each load and each write that
            takes effect.
    """

    def __init__(
        self,
        *,
        latency_s: tuple[float, float] = (0.0, 0.0),
        failures: float = 0.0,
        lost_answers: float = 0.0,
        late: float = 0.0,
        rng: random.Random | None = None,
    ) -> None:
        self.latency_s: tuple[float, float] = latency_s
        self.failures: float = failures
        self.lost_answers: float = lost_answers
        self.late: float = late
        self.is_down: bool = False
        self.is_silent: bool = False
        self.on_effect: Callable[[str, str, Fence, Stored], None] | None = None
        self._rng = random.Random(0) if rng is None else rng
        self._data = _Data()

    def __repr__(self) -> str:
        return f"<MemoryStore of {len(self._data.rows):,} rows>"

    def another(self) -> MemoryStore:
        """Return a store with the same data, and with faults of its own, which are none at first."""
        other = MemoryStore(rng=self._rng)
        other._data = self._data
        other.on_effect = self.on_effect
        return other

    def states(self, kind: str) -> dict[str, bytes]:
        """Return what is stored of a kind, by key."""
        return {
            key: row.state
            for (of, key), row in sorted(self._data.rows.items())
            if of == kind and row.state is not None
        }

    async def load(self, kind: str, key: str, fence: Fence) -> Stored:
        """See `Store.load`."""
        target = check_place(kind, key)

        def take() -> Stored:
            self._raise_fence(target, kind, key, fence)
            row = self._data.rows.get((kind, key), _NO_ROW)
            stored = Stored(row.version, row.state, row.epoch)
            if self.on_effect is not None:
                self.on_effect(kind, key, fence, stored)
            return stored

        return await self._perform(take)

    async def save(self, kind: str, key: str, fence: Fence, state: bytes, *, expected: int) -> int:
        """See `Store.save`."""
        check_state(state)
        return await self._write(kind, key, fence, state, expected)

    async def drop(self, kind: str, key: str, fence: Fence, *, expected: int) -> int:
        """See `Store.drop`."""
        return await self._write(kind, key, fence, None, expected)

    async def _write(self, kind: str, key: str, fence: Fence, state: bytes | None, expected: int) -> int:
        target = check_place(kind, key)

        def take() -> Stored:
            self._raise_fence(target, kind, key, fence)
            row = self._data.rows.get((kind, key), _NO_ROW)
            check_version(target, expected, row.version)
            stored = Stored(row.version + 1, state, fence.epoch)
            self._data.rows[kind, key] = _Row(fence.epoch, stored.version, state)
            if self.on_effect is not None:
                self.on_effect(kind, key, fence, stored)
            return stored

        return (await self._perform(take)).version

    def _raise_fence(self, target: str, kind: str, key: str, fence: Fence) -> None:
        """Note an owner, or refuse a former one."""
        place = (kind, fence.shard)
        row = self._data.rows.get((kind, key), _NO_ROW)
        check_fence(target, fence, max(self._data.fences.get(place, 0), row.epoch))
        self._data.fences[place] = fence.epoch

    async def _perform(self, take: Callable[[], Stored]) -> Stored:
        """Do something to the data, with the faults that are wanted."""
        chance, rng = self._rng.random(), self._rng
        latency_s = rng.uniform(*self.latency_s)
        try:
            await asyncio.sleep(latency_s / 2)
            if self.is_down and self.is_silent:
                await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if not self.is_down and rng.random() < self.late:
                delay_s = rng.uniform(0, 10 * max(self.latency_s))
                _ = asyncio.get_running_loop().call_later(delay_s, _try, take)
            raise
        if self.is_down:
            raise StoreFailed(repr(self), "it is down")
        if chance < self.failures:
            raise StoreFailed(repr(self), "the test wants it to fail")
        taken = take()
        await asyncio.sleep(latency_s / 2)
        if chance < self.failures + self.lost_answers:
            raise StoreFailed(repr(self), "the test wants its answer to be lost")
        return taken


def _try(take: Callable[[], Stored]) -> None:
    """Do what nobody waits for any more."""
    try:
        take()
    except StoreError:
        return
