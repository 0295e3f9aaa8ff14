"""Real DNS and sockets: an outage ends no connection, and a cluster forms from partial answers too."""

from __future__ import annotations

import asyncio
import itertools
import time

from fleetlm import Node, NodeInfo, Settings
from fleetlm.testing.dns_server import DnsServer, Fault, Reply
from tests.support.patience import allowed_s
from tests.system.cluster_tools import QUERY, Fleet, until

FAULTS = (
    Fault(Reply.SERVFAIL),
    Fault(Reply.NXDOMAIN),
    Fault(Reply.DROP),
    Fault(sample=3),
    Fault(Reply.EMPTY),
    Fault(Reply.REFUSED),
    Fault(Reply.GARBAGE),
    Fault(Reply.SERVFAIL, delay_s=0.2),
)


def polls(node: Node) -> int:
    """How many lookups of a node have ended."""
    info = node.info()
    assert isinstance(info, NodeInfo)
    return info.polls


async def outage(seconds: float, each_s: float, nodes: int = 10) -> None:
    """Let DNS fail in every way in turn: no nodedown; afterwards a new node finds the others."""
    async with DnsServer() as dns, Fleet(dns=dns) as fleet:
        dns.set(QUERY, fleet.ips(*range(2, 2 + nodes)))
        members = [await fleet.node(number) for number in range(2, 2 + nodes)]
        await asyncio.gather(*(node.ready(nodes - 1, 10.0) for node in members))
        await until(lambda: all(polls(node) > 1 for node in members))
        asked = dns.queries.total()
        ends = time.monotonic() + seconds
        for fault in itertools.cycle(FAULTS):
            dns.behave(fault)
            await asyncio.sleep(each_s)
            if time.monotonic() > ends:
                break
        assert fleet.downs == []
        assert dns.queries.total() > asked + nodes * seconds / 10, "too few lookups meanwhile"
        assert all(len(node.list()) == nodes - 1 for node in members)
        dns.heal()
        dns.add(QUERY, fleet.ip(99))
        newcomer = await fleet.node(99)
        began = time.monotonic()
        await newcomer.ready(nodes, 10.0)
        await until(lambda: all(newcomer.name in node.list() for node in members))
        print(
            f"{seconds:g} s of DNS faults: no nodedown; a new node then joined in "
            f"{time.monotonic() - began:.2f} s"
        )
        assert fleet.downs == []


async def mesh(processes: int, each: int, within_s: float, sample: int | None = None) -> float:
    """Start all nodes before DNS names them. Returns the seconds from its first answer to the full mesh."""
    count = processes * each
    numbers = range(2, 2 + count)
    # All but the poll interval is the default. `Fleet` finds silent nodes soon, which costs many heartbeats.
    timeout_ms = str(round(Settings().node_timeout_s * 1000))
    async with (
        DnsServer() as dns,
        Fleet(dns=dns, DNS_POLL_INTERVAL_MS="500", FLEETLM_NODE_TIMEOUT_MS=timeout_ms) as fleet,
    ):
        if sample is not None:
            dns.behave(Fault(sample=sample))
        workers = [await fleet.waiting() for _ in range(processes)]
        shares = [fleet.ips(*numbers[part::processes]) for part in range(processes)]
        await asyncio.gather(*(worker.start(*ips) for worker, ips in zip(workers, shares, strict=True)))
        asked = dns.queries.total()
        dns.set(QUERY, fleet.ips(*numbers))
        began = time.monotonic()
        await until(lambda: dns.queries.total() > asked)
        answered = time.monotonic()
        ended = await asyncio.gather(*(w.ask("meshed", others=count - 1, timeout=60.0) for w in workers))
        took = max(ended) - answered
        what = "all" if sample is None else f"{sample}"
        print(
            f"{count} nodes in {processes} processes, {what} in an answer: full mesh {took:.2f} s after the "
            f"first answer ({max(ended) - began:.2f} s after the record was set)"
        )
        assert took < allowed_s(within_s)
        expected = sorted(fleet.name(number) for number in numbers)
        for worker in workers:
            for name, others in (await worker.ask("list")).items():
                assert sorted([name, *others]) == expected
        assert fleet.downs == []
        return took


async def test_dns_faults_end_no_connection_and_a_new_node_joins_afterwards() -> None:
    await outage(seconds=5.0, each_s=0.65)


async def test_twelve_nodes_mesh_soon_after_the_first_answer() -> None:
    await mesh(processes=2, each=6, within_s=3.0)


async def test_a_mesh_forms_from_answers_that_name_a_quarter_of_the_nodes() -> None:
    await mesh(processes=2, each=6, within_s=6.0, sample=3)
