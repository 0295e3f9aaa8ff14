"""Real nodes with ports of their own, which they learn from SRV records."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from fleetlm import Node, Settings
from fleetlm.testing.dns_server import DnsServer, Fault, Reply
from tests.support.patience import allowed_s
from tests.system.cluster_tools import until

SERVICE = "_fleetlm._tcp.workers.test"
FIRST, SECOND, THIRD = "127.83.0.1", "127.83.0.2", "127.83.0.3"


def free_port(ip: str) -> int:
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return int(probe.getsockname()[1])


async def start(dns: DnsServer, ip: str, port: int) -> Node:
    settings = Settings.from_env(
        {
            "DNS_CLUSTER_QUERY": f"{SERVICE}.",
            "DNS_POLL_INTERVAL_MS": "500",
            "FLEETLM_DNS_SERVER": dns.address,
            "FLEETLM_NODE_IP": ip,
            "FLEETLM_NODE_PORT": str(port),
            "FLEETLM_REMOTE": "off",
        }
    )
    return await Node.start(settings)


async def some_lookups(dns: DnsServer) -> None:
    enough = dns.queries.total() + 8
    await until(lambda: dns.queries.total() >= enough)


async def test_nodes_on_ports_of_their_own_meet_and_outlive_every_failure_of_dns() -> None:
    async with DnsServer() as dns, contextlib.AsyncExitStack() as stack:
        places = [(FIRST, free_port(FIRST)), (FIRST, free_port(FIRST)), (SECOND, free_port(SECOND))]
        places.append((THIRD, 4370))  # the base port, which its name leaves out
        for host, ip in (("a", FIRST), ("b", SECOND), ("c", THIRD)):
            dns.set(f"{host}.workers.test", [ip])
        names = {FIRST: "a", SECOND: "b", THIRD: "c"}
        nodes = []
        for ip, port in places:
            nodes.append(await start(dns, ip, port))
            stack.push_async_callback(nodes[-1].stop)
        await asyncio.sleep(0.3)
        assert all(node.list() == [] for node in nodes), "nothing but DNS names the ports"
        dns.behave(Fault(additional=1))
        dns.set_srv(SERVICE, [(f"{names[ip]}.workers.test", port) for ip, port in places])
        await asyncio.gather(*(node.ready(3, allowed_s(10.0)) for node in nodes))
        assert sorted(node.name for node in nodes) == sorted(
            [*(f"fleetlm@{ip}:{port}" for ip, port in places[:3]), f"fleetlm@{THIRD}"]
        )
        for fault in (Reply.SERVFAIL, Reply.NXDOMAIN, Reply.EMPTY, Reply.DROP):
            dns.behave(fault)
            await some_lookups(dns)
            assert all(len(node.list()) == 3 for node in nodes)
