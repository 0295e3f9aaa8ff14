"""Connections that come up and end again and again, and nodes that are gone for good."""

from __future__ import annotations

import asyncio
import logging

import pytest

from fleetlm.core.topology import PeerInfo
from fleetlm.messages import NodeUp
from fleetlm.process import Process
from fleetlm.settings import Settings
from fleetlm.testing import SimCluster, run
from fleetlm.testing.sim_dns import Reply

SETTINGS = Settings(dns_query="cluster.test")


async def _idle(process: Process) -> None:
    async for _ in process.mailbox:
        pass


def test_two_nodes_whose_limits_differ_go_up_a_handful_of_times_a_minute_and_both_know_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with SimCluster(seed=5, settings=SETTINGS) as cluster:
            new = await cluster.start_at("10.0.0.1", max_memberships=1000)
            old = await cluster.start_at("10.0.0.2", max_memberships=50)
            await cluster.mesh(timeout=10)
            ups = 0

            async def count() -> None:
                nonlocal ups
                async for event in new.events():
                    ups += isinstance(event, NodeUp)

            counting = asyncio.create_task(count())
            for _ in range(60):
                new.groups.join("workers", new.spawn(_idle))
            await asyncio.sleep(60)
            assert 2 <= ups <= 10
            before = ups
            await asyncio.sleep(300)
            assert ups - before <= 25
            counting.cancel()
            for node, other in ((new, old), (old, new)):
                row = node.info(other.name)
                assert isinstance(row, PeerInfo)
                assert row.short_lived > 3
                assert "Settings.max_memberships" in row.last_error

    with caplog.at_level(logging.WARNING, logger="fleetlm"):
        run(main())
    told = [text for text in caplog.messages if "connections in a row ended" in text]
    assert len(told) == 2, "once on each node"


def test_nodes_that_are_gone_are_forgotten_while_dns_fails_and_a_newcomer_finds_room() -> None:
    async def main() -> None:
        settings = SETTINGS.replace(max_peers=8)
        async with SimCluster(seed=3, settings=settings) as cluster:
            keeper, *workers = await cluster.start(4)
            await cluster.mesh(timeout=30)
            cluster.dns.script(Reply.SERVFAIL, to=["10.0.0.1"])
            for _ in range(5):
                for worker in workers:
                    await cluster.crash(worker)
                workers = await cluster.start(3)
                await asyncio.sleep(60)
                assert len(keeper.list()) == 3, "newcomers displace those that are down for longest"
            await asyncio.sleep(settings.forget_unnamed_s + 10)
            assert len(keeper.list("known")) == 4, "itself and those that are up"

    run(main())
