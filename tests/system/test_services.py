"""SRV records, asked of a real name server on loopback."""

from __future__ import annotations

import pytest

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery.dns import DnsDiscovery
from fleetlm.discovery.dns_targets import MAX_TARGETS_ASKED
from fleetlm.testing import DnsServer
from fleetlm.testing.dns_server import Fault, RecordType, Reply

NAME = "_fleetlm._tcp.workers.test"
A, B = "a.workers.test", "b.workers.test"
ENOUGH_S = 5.0
SHORT_S = 0.5


def asking(server: DnsServer, query: str = NAME, *, lifetime_s: float = ENOUGH_S) -> DnsDiscovery:
    return DnsDiscovery(
        query,
        server=(server.host, server.port),
        lifetime_s=lifetime_s,
        resolv_conf="/nonexistent/resolv.conf",
    )


def fill(server: DnsServer) -> None:
    server.set_srv(NAME, [(A, 4370), (A, 4371), (B, 9000)])
    server.set(A, ["127.0.0.2"])
    server.set(B, ["127.0.0.3", "::1"])


ALL = ("127.0.0.2:4370", "127.0.0.2:4371", "127.0.0.3:9000", "[::1]:9000")
WHOLE = Answer(Outcome.ADDRESSES, ALL, "4 addresses of 2 hosts (SRV)")


async def test_one_question_gives_hosts_ports_and_addresses() -> None:
    async with DnsServer() as server:
        fill(server)
        assert await asking(server).lookup() == WHOLE
        assert server.queries == {(NAME, "SRV"): 1}


@pytest.mark.parametrize("additional", [0, 1])
async def test_hosts_without_an_additional_record_are_asked_for(additional: int) -> None:
    async with DnsServer() as server:
        fill(server)
        server.behave(Fault(additional=additional))
        discovery = asking(server)
        assert await discovery.lookup() == WHOLE
        assert server.queries.total() == 1 + 2 * (2 - additional)
        await discovery.close()


async def test_records_come_and_go_one_by_one() -> None:
    async with DnsServer() as server:
        fill(server)
        server.remove_srv(NAME, A, 4371)
        server.add_srv(NAME, B, 9001)
        server.add_srv(NAME, B, 9001)  # It is there already.
        discovery = asking(server)
        expected = ("127.0.0.2:4370", "127.0.0.3:9000", "127.0.0.3:9001", "[::1]:9000", "[::1]:9001")
        assert (await discovery.lookup()).addresses == expected
        for host, port in ((A, 4370), (B, 9000), (B, 9001)):
            server.remove_srv(NAME, host, port)
        assert await discovery.lookup() == Answer(Outcome.EMPTY, (), "SRV: NXDOMAIN")
        await discovery.close()


async def test_a_name_without_records_is_empty() -> None:
    async with DnsServer() as server:
        discovery = asking(server)
        assert await discovery.lookup() == Answer(Outcome.EMPTY, (), "SRV: NXDOMAIN")
        server.set_srv(NAME, [])
        assert await discovery.lookup() == Answer(Outcome.EMPTY, (), "SRV: no record")
        server.set_srv(NAME, [(".", 0)])
        assert (await discovery.lookup()).outcome is Outcome.EMPTY
        server.set(NAME, ["127.0.0.9"])  # an address of the name itself is no service
        server.set_srv(NAME, [])
        assert (await discovery.lookup()).outcome is Outcome.EMPTY
        await discovery.close()


@pytest.mark.parametrize("reply", [Reply.SERVFAIL, Reply.REFUSED, Reply.NOTIMP, Reply.DROP, Reply.GARBAGE])
async def test_a_failed_question_for_srv_records_says_nothing_about_the_nodes(reply: Reply) -> None:
    async with DnsServer() as server:
        fill(server)
        server.behave(reply, rdtype="SRV")
        discovery = asking(server, lifetime_s=SHORT_S)
        answer = await discovery.lookup()
        assert (answer.outcome, answer.addresses, answer.whole_families) == (Outcome.FAILED, (), ())
        await discovery.close()


@pytest.mark.parametrize("reply", [Reply.SERVFAIL, Reply.REFUSED, Reply.DROP])
@pytest.mark.parametrize(
    ("rdtype", "whole", "found"),
    [(None, (), ALL[:2]), ("AAAA", (4,), ALL[:3]), ("A", (6,), (*ALL[:2], ALL[3]))],
)
async def test_a_failed_question_for_a_host_makes_the_answer_partial(
    reply: Reply, rdtype: RecordType | None, whole: tuple[int, ...], found: tuple[str, ...]
) -> None:
    async with DnsServer() as server:
        fill(server)
        server.behave(Fault(additional=0), NAME)
        server.behave(reply, B, rdtype)
        discovery = asking(server, lifetime_s=2 * SHORT_S)
        answer = await discovery.lookup()
        assert (answer.outcome, answer.whole_families, answer.addresses) == (Outcome.PARTIAL, whole, found)
        assert f"{B}. " in answer.detail
        await discovery.close()


async def test_a_host_without_an_address_is_passed_over_and_alone_it_is_a_failure() -> None:
    async with DnsServer() as server:
        server.set_srv(NAME, [(A, 4370), ("gone.test", 4370)])
        server.set(A, ["127.0.0.2"])
        discovery = asking(server)
        assert await discovery.lookup() == Answer(
            Outcome.ADDRESSES,
            ("127.0.0.2:4370",),
            "1 address of 1 host (SRV), 1 host without an address (gone.test.)",
        )
        server.set_srv(NAME, [("gone.test", 4370)])
        assert (await discovery.lookup()).outcome is Outcome.FAILED
        await discovery.close()


@pytest.mark.parametrize("tcp_reply", [None, Reply.HANG_UP])
async def test_a_truncated_answer_is_asked_for_over_tcp(tcp_reply: Reply | None) -> None:
    async with DnsServer() as server:
        fill(server)
        server.behave(Fault(truncate=1, tcp_reply=tcp_reply), NAME)
        discovery = asking(server, lifetime_s=2 * SHORT_S)
        answer = await discovery.lookup()
        if tcp_reply is None:
            assert answer == WHOLE
        else:
            assert answer.outcome is Outcome.PARTIAL
            assert set(answer.addresses) < set(ALL)
            assert answer.addresses
            assert answer.whole_families == ()
        await discovery.close()


@pytest.mark.parametrize("nodes", [20, 200])
async def test_a_large_service_comes_whole(nodes: int) -> None:
    async with DnsServer() as server:
        server.set_srv(NAME, [(f"10-0-0-{n}.workers.test", 4370 + n) for n in range(nodes)])
        for n in range(nodes):
            server.set(f"10-0-0-{n}.workers.test", [f"10.0.0.{n}"])
        discovery = asking(server)
        answer = await discovery.lookup()
        assert (answer.outcome, len(answer.addresses)) == (Outcome.ADDRESSES, nodes)
        await discovery.close()


async def test_more_hosts_than_one_lookup_asks_for_are_found_by_several() -> None:
    nodes = MAX_TARGETS_ASKED + 20
    async with DnsServer() as server:
        server.behave(Fault(additional=0))
        server.set_srv(NAME, [(f"n{n}.test", 4370) for n in range(nodes)])
        for n in range(nodes):
            server.set(f"n{n}.test", [f"10.0.{n // 250}.{n % 250 + 1}"])
        discovery = asking(server, lifetime_s=60.0)
        first, second = await discovery.lookup(), await discovery.lookup()
        assert (first.outcome, len(first.addresses)) == (Outcome.PARTIAL, MAX_TARGETS_ASKED)
        assert "not asked in time" in first.detail
        assert len({*first.addresses, *second.addresses}) == nodes
        await discovery.close()


async def test_samples_are_whole_answers_and_together_name_every_node() -> None:
    async with DnsServer() as server:
        server.set_srv(NAME, [("host.test", port) for port in range(20000, 20020)])
        server.set("host.test", ["127.0.0.2"])
        server.behave(Fault(sample=8))
        discovery = asking(server)
        seen: set[str] = set()
        for _ in range(40):
            answer = await discovery.lookup()
            assert (answer.outcome, len(answer.addresses)) == (Outcome.ADDRESSES, 8)
            seen.update(answer.addresses)
        assert len(seen) == 20
        await discovery.close()


async def test_service_names_plain_names_and_addresses_are_one_cluster() -> None:
    async with DnsServer() as server:
        fill(server)
        server.set("plain.test", ["127.0.0.2", "127.0.0.4"])
        discovery = asking(server, f"{NAME},plain.test,10.0.0.1")
        answer = await discovery.lookup()
        assert answer.addresses == (
            "10.0.0.1",
            "127.0.0.2",
            "127.0.0.2:4370",
            "127.0.0.2:4371",
            "127.0.0.3:9000",
            "127.0.0.4",
            "[::1]:9000",
        )
        assert answer.outcome is Outcome.ADDRESSES
        server.behave(Reply.SERVFAIL, NAME)
        partial = await discovery.lookup()
        assert (partial.outcome, partial.addresses) == (
            Outcome.PARTIAL,
            ("10.0.0.1", "127.0.0.2", "127.0.0.4"),
        )
        await discovery.close()
