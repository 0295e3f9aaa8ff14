"""The first test of docs/testing.md."""

from __future__ import annotations

from counter import counter

from fleetlm.testing import Fleet


async def test_a_crash_is_noticed(fleet: Fleet) -> None:
    one, two, three = await fleet.start(3)  # started, and connected with each other
    two.spawn(counter, name="counter")
    assert await one.call(("counter", two.name), ("add", 1)) == 1

    await fleet.crash(two)
    await fleet.until(lambda: one.list() == [three.name])
