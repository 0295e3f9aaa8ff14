"""A rate with a burst: who is above it waits for its turn."""

from __future__ import annotations

import asyncio

import pytest

from fleetlm.ops.pace import Pace, Paces


def test_a_burst_is_free_and_what_follows_waits() -> None:
    pace = Pace(10.0, 5)
    assert [pace.delay_s(100.0) for _ in range(5)] == [0.0] * 5
    assert [pace.delay_s(100.0) for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    assert pace.delay_s(100.4) == pytest.approx(0.0), "turns that have come are free"
    assert [pace.delay_s(1_000.0) for _ in range(5)] == pytest.approx([0.0] * 5), (
        "a pause gives the burst back, and no more"
    )
    assert pace.delay_s(1_000.0) == pytest.approx(0.1)


async def test_each_address_has_a_pace_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    paces = Paces(1.0, 2, 2.5, addresses=2)
    for _ in range(4):
        assert await paces.take("a")
    assert waited == pytest.approx([1.0, 2.0], abs=0.1)
    assert not await paces.take("a"), "its turn would come too late, and is not taken"
    assert not await paces.take("a")
    assert await paces.take("b")
    assert await paces.take("c")  # which makes room by forgetting the one that asked longest ago
    assert await paces.take("a")
    assert len(waited) == 2
