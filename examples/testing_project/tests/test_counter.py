"""The counter on a simulated cluster: a minute of virtual time takes a few milliseconds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from counter import COUNTER, STANDBY, add, ask, counter, standby

from fleetlm import Node, NotDelivered, OutcomeUnknown
from fleetlm.testing import Fleet

Nodes = tuple[Node, Node, Node]


@pytest.fixture
async def nodes(fleet: Fleet) -> Nodes:
    """Three nodes: one has the counter, one its standby, one is the client."""
    first, second, client = await fleet.start(3)
    first.spawn(counter, 0, second.name, name=COUNTER)
    second.spawn(standby, first.name, name=STANDBY)
    return first, second, client


async def test_it_counts(nodes: Nodes) -> None:
    first, _, client = nodes
    assert await add(client, [first.name]) == 1
    assert await add(client, [first.name], 5) == 6
    assert await ask(client, first.name, "value") == 6


async def test_without_a_counter_nothing_is_added(fleet: Fleet) -> None:
    client, empty = await fleet.start(2)
    with pytest.raises(NotDelivered):
        await add(client, [empty.name])


async def test_the_standby_takes_over_when_the_power_fails(fleet: Fleet, nodes: Nodes) -> None:
    first, second, client = nodes
    await add(client, [first.name], 7)
    await fleet.crash(first, silent=True)  # Without a goodbye: its peers notice only the silence.
    assert await fleet.until(lambda: ask(client, second.name, "value"), timeout=20) == 7
    assert await add(client, [first.name, second.name]) == 8


@pytest.mark.fleet(seeds=20)  # seeds 0 to 19, one test for each
async def test_no_crash_loses_what_was_acknowledged(fleet: Fleet, nodes: Nodes) -> None:
    first, second, client = nodes
    tally = Tally()
    adding = asyncio.create_task(tally.add_for(1.0, client, [first.name, second.name]))
    await fleet.sleep(fleet.rng.uniform(0.0, 0.1))  # The moment of the crash differs from seed to seed.
    await fleet.crash(first)
    await adding
    assert tally.fits(await ask(client, second.name, "value"))


@pytest.mark.fleet(seeds=[1, 2, 3], latency_s=(0.01, 0.2))
async def test_every_request_in_a_partition_has_an_outcome(fleet: Fleet) -> None:
    client, there = await fleet.start(2)
    there.spawn(counter, name=COUNTER)
    tally = Tally()
    adding = asyncio.create_task(tally.add_for(60.0, client, [there.name]))
    for _ in range(3):
        await fleet.sleep(fleet.rng.uniform(1.0, 10.0))
        fleet.partition(there)
        await fleet.sleep(fleet.rng.uniform(1.0, 10.0))
        fleet.heal()
    await adding
    assert tally.fits(await ask(client, there.name, "value"))


@dataclass
class Tally:
    """Counts the outcomes of one client's requests."""

    acknowledged: int = 0
    unknown: int = 0

    async def add_for(self, seconds: float, client: Node, at: list[str]) -> None:
        """Add 1 again and again for ``seconds`` of virtual time."""
        now = asyncio.get_running_loop().time
        ends_at = now() + seconds
        while now() < ends_at:
            try:
                await add(client, at)
                self.acknowledged += 1
            except OutcomeUnknown:
                self.unknown += 1
            except NotDelivered:
                await asyncio.sleep(0.05)  # No node has the counter at this moment.

    def fits(self, value: int) -> bool:
        """Whether these outcomes allow this value of the counter."""
        return self.acknowledged <= value <= self.acknowledged + self.unknown
