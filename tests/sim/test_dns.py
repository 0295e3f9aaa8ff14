"""SimDns: every kind of answer that a name server gives."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from fleetlm import Outcome
from fleetlm.testing import Reply, SimCluster, SimDns, run
from fleetlm.testing.cluster import SETTINGS
from fleetlm.testing.sim_dns import DELAY_S, TIMEOUT_S

A, B = "10.0.0.1", "10.0.0.2"

ANSWERS = [
    (Reply.ALL, {}, Outcome.ADDRESSES, 5),
    (Reply.ALL, {"hidden": [A, B]}, Outcome.ADDRESSES, 3),
    (Reply.ALL, {"extra": ["10.9.9.9", A]}, Outcome.ADDRESSES, 6),
    (Reply.ALL, {"extra": ["0.0.0.0", "garbage"]}, Outcome.ADDRESSES, 5),
    (Reply.SAMPLE, {"count": 3}, Outcome.ADDRESSES, 3),
    (Reply.SAMPLE, {"count": 9}, Outcome.ADDRESSES, 5),
    (Reply.SAMPLE, {"count": 0}, Outcome.EMPTY, 0),
    (Reply.SAMPLE, {"count": 0, "extra": ["0.0.0.0"]}, Outcome.FAILED, 0),
    (Reply.EMPTY, {}, Outcome.EMPTY, 0),
    (Reply.NXDOMAIN, {"extra": ["10.9.9.9"]}, Outcome.EMPTY, 0),
    (Reply.SERVFAIL, {}, Outcome.FAILED, 0),
    (Reply.REFUSED, {}, Outcome.FAILED, 0),
    (Reply.TIMEOUT, {}, Outcome.FAILED, 0),
    (Reply.PARTIAL, {"count": 2}, Outcome.PARTIAL, 2),
    (Reply.PARTIAL, {"count": 0}, Outcome.FAILED, 0),
    (Reply.NO_AAAA, {"extra": ["fdaa::9"]}, Outcome.PARTIAL, 5),
    (Reply.NO_AAAA, {"hidden": [f"10.0.0.{n}" for n in range(1, 6)]}, Outcome.FAILED, 0),
]


@pytest.mark.parametrize(("reply", "options", "outcome", "count"), ANSWERS)
def test_answers(reply: Reply, options: dict[str, Any], outcome: Outcome, count: int) -> None:
    async def main() -> None:
        dns = SimDns(random.Random(1))
        for n in range(1, 6):
            dns.add(f"10.0.0.{n}")
        dns.script(reply, **options)
        client = dns.client(A)
        began_s = asyncio.get_running_loop().time()
        answer = await client.lookup()
        took_s = asyncio.get_running_loop().time() - began_s
        assert (answer.outcome, len(answer.addresses)) == (outcome, count)
        assert answer.detail
        slowest_s = TIMEOUT_S if reply is Reply.TIMEOUT else DELAY_S[1]
        assert DELAY_S[0] <= took_s <= slowest_s
        assert client.source
        assert dns.lookups == 1

    run(main())


def test_an_answer_without_aaaa_is_whole_for_ipv4() -> None:
    async def main() -> None:
        dns = SimDns(random.Random(1))
        dns.add(A)
        dns.script(Reply.NO_AAAA)
        answer = await dns.client(A).lookup()
        assert (answer.is_whole(4), answer.is_whole(6)) == (True, False)

    run(main())


@pytest.mark.parametrize(
    ("reply", "options", "addresses"),
    [
        (Reply.ALL, {}, ("10.0.0.1:4370", "10.0.0.1:4371", "10.0.0.2", "[fd00::1]:4370")),
        (Reply.ALL, {"hidden": ["10.0.0.1:4371"]}, ("10.0.0.1:4370", "10.0.0.2", "[fd00::1]:4370")),
        (Reply.ALL, {"hidden": ["10.0.0.1", "fd00::1"], "extra": ["10.0.0.3:0"]}, ("10.0.0.2",)),
        (Reply.NO_AAAA, {}, ("10.0.0.1:4370", "10.0.0.1:4371", "10.0.0.2")),
    ],
)
def test_addresses_may_have_ports(reply: Reply, options: dict[str, Any], addresses: tuple[str, ...]) -> None:
    async def main() -> None:
        dns = SimDns(random.Random(1))
        for each in ("[fd00::1]:4370", "10.0.0.2", "10.0.0.1:4371", "10.0.0.1:4370", "10.0.0.9:1"):
            dns.add(each)
        dns.remove("10.0.0.9:1")
        dns.script(reply, **options)
        assert (await dns.client(A).lookup()).addresses == addresses

    run(main())


def test_nodes_on_ports_of_their_own_meet_through_srv_records() -> None:
    async def main() -> None:
        settings = SETTINGS.replace(dns_query="_fleetlm._tcp.test")
        async with SimCluster(5, settings=settings) as cluster:
            for n, port in enumerate((20001, 20002, 4370, 20001), 1):
                await cluster.start_at(f"10.0.0.{n}", in_dns=False, node_ports=(port, port))
                cluster.dns.add(f"10.0.0.{n}:{port}")
            cluster.dns.add("10.0.0.9:4370")  # nobody is there
            await cluster.mesh()
            assert cluster.nodes["10.0.0.1:20001"].list() == [
                "fleetlm@10.0.0.2:20002",
                "fleetlm@10.0.0.3",
                "fleetlm@10.0.0.4:20001",
            ]
            for reply in (Reply.SERVFAIL, Reply.PARTIAL, Reply.EMPTY):
                cluster.dns.script(reply)
                await asyncio.sleep(60)
                assert all(len(node.list()) == 3 for node in cluster.nodes.values())

    run(main())


def test_a_broken_discovery_raises_and_a_slow_one_is_slow() -> None:
    async def main() -> None:
        dns = SimDns(random.Random(1), timeout_s=7.0)
        dns.script(Reply.RAISE)
        with pytest.raises(OSError, match="broken"):
            await dns.client(A).lookup()
        dns.script(Reply.ALL, delay_s=(2.0, 2.0))
        began_s = asyncio.get_running_loop().time()
        await dns.client(A).lookup()
        assert asyncio.get_running_loop().time() - began_s == pytest.approx(2.0)
        dns.script(Reply.TIMEOUT)
        await dns.client(A).lookup()
        assert asyncio.get_running_loop().time() - began_s == pytest.approx(9.0)

    run(main())


def test_samples_differ_and_together_name_every_node() -> None:
    async def main() -> None:
        dns = SimDns(random.Random(1))
        for n in range(1, 21):
            dns.add(f"10.0.0.{n}")
        dns.script(Reply.SAMPLE, count=3)
        answers = [(await dns.client(A).lookup()).addresses for _ in range(100)]
        assert len({ip for answer in answers for ip in answer}) == 20
        dns.remove("10.0.0.20")
        dns.remove("10.0.0.20")
        dns.heal()
        assert len((await dns.client(B).lookup()).addresses) == 19

    run(main())
