"""Tests of a worker, on a simulated cluster and on real sockets: copy and adapt them.

    pytest test_worker.py          # or: python test_worker.py

The first test runs on virtual time, from one seed: half a minute passes in a moment. The second test uses
real sockets and a real name server on loopback.
"""

from __future__ import annotations

import asyncio
import logging
import os

import pytest
from echo import echo

import fleetlm
from fleetlm.testing import DnsServer, SimCluster, run

PORT = int(os.environ.get("EXAMPLE_PORT", "24378"))


def test_a_call_into_a_partition_fails_and_does_not_hang() -> None:
    """Callers on the other side get `NotDelivered`, and calls work again once the partition heals."""

    async def main() -> None:
        async with SimCluster(seed=7) as cluster:
            here, there, _ = await cluster.start(3)
            there.spawn(echo, name="echo")
            await cluster.mesh(timeout=10)
            assert await here.call(("echo", there.name), "hello") == "hello"

            cluster.partition([there])
            await asyncio.sleep(30)  # Longer than the node timeout; virtual time, so it passes at once.
            with pytest.raises(fleetlm.NotDelivered, match=there.name):
                await here.call(("echo", there.name), "hello")

            cluster.heal()
            await cluster.mesh(timeout=60)
            assert await here.call(("echo", there.name), "again") == "again"

    run(main())


def test_a_name_server_that_fails_disconnects_no_node() -> None:
    """Two nodes with real sockets find each other by DNS; then their name disappears from DNS."""

    async def main() -> None:
        async with DnsServer() as dns:
            dns.set("fleet.test", ["127.0.0.1", "127.0.0.2"])
            host, _, port = dns.address.rpartition(":")
            first, second = (
                fleetlm.Settings(
                    dns_query="fleet.test",
                    dns_server=(host, int(port)),
                    poll_interval_s=0.1,
                    node_ip=ip,
                    node_ports=(PORT, PORT),
                    remote=False,
                )
                for ip in ("127.0.0.1", "127.0.0.2")
            )
            async with fleetlm.Node.start(first) as here, fleetlm.Node.start(second) as there:
                there.spawn(echo, name="echo")
                await here.ready(1, timeout=5)
                dns.delete("fleet.test")
                asked = dns.queries.total()
                await asyncio.sleep(0.5)  # Several polls.
                assert dns.queries.total() > asked
                assert await here.call(("echo", there.name), "still here") == "still here"

    asyncio.run(main())


if __name__ == "__main__":
    logging.getLogger("fleetlm").setLevel(logging.ERROR)  # Its warning that DNS fails is expected.
    test_a_call_into_a_partition_fails_and_does_not_hang()
    test_a_name_server_that_fails_disconnects_no_node()
    print("2 passed")
