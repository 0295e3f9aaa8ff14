"""README's test without the fixture: a partition and a crash, on a simulated cluster."""

from __future__ import annotations

import asyncio

from fleetlm.testing import SimCluster, run


def test_a_partition_and_a_crash_are_noticed() -> None:
    async def main() -> None:
        async with SimCluster(seed=7) as cluster:
            one, two, three = await cluster.start(3)
            await cluster.mesh(timeout=10)  # wait until all are connected with each other

            cluster.partition([one])  # one cannot reach the others
            await asyncio.sleep(30)  # virtual time: it passes in milliseconds
            assert one.list() == []

            cluster.heal()
            await cluster.mesh(timeout=30)
            await cluster.crash(three)
            await asyncio.sleep(1)
            assert one.list() == [two.name]

    run(main())
