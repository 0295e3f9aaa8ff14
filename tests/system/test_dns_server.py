"""The test DNS server, asked with dnspython's own queries and with bare sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from typing import ClassVar

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import hypothesis
import hypothesis.strategies as st
import pytest

from fleetlm.testing import DnsServer
from fleetlm.testing.dns_server import Fault, RecordType, Reply

NAME = "fleet.test"
BOTH = ["127.0.0.3", "::1", "127.0.0.2"]
PATIENCE_S = 5.0
IMPATIENCE_S = 0.15
"""For what never comes."""


async def ask(
    server: DnsServer,
    rdtype: RecordType = "A",
    name: str = NAME,
    *,
    tcp: bool = False,
    payload: int | None = None,
    timeout_s: float = PATIENCE_S,
) -> dns.message.Message:
    query = dns.message.make_query(name, rdtype, payload=payload)
    transport = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    return await transport(query, server.host, timeout=timeout_s, port=server.port)


def addresses(message: dns.message.Message) -> list[str]:
    return sorted(record.address for rrset in message.answer for record in rrset)


@pytest.mark.parametrize("tcp", [False, True])
async def test_the_zone_answers_by_family(tcp: bool) -> None:
    async with DnsServer(ttl_s=7) as server:
        server.set(NAME, BOTH)
        a = await ask(server, "A", tcp=tcp)
        aaaa = await ask(server, "AAAA", tcp=tcp)
    assert (addresses(a), addresses(aaaa)) == (["127.0.0.2", "127.0.0.3"], ["::1"])
    assert a.answer[0].ttl == 7
    assert not a.flags & dns.flags.TC


async def test_ttl_is_what_docker_says() -> None:
    async with DnsServer() as server:
        server.set(NAME, ["127.0.0.2"])
        assert (await ask(server)).answer[0].ttl == 600


async def test_it_binds_ipv6_and_a_port_that_was_asked_for() -> None:
    async with DnsServer("::1") as first:
        port = first.port
        assert first.address == f"[::1]:{port}"
    async with DnsServer("::1", port) as second:
        assert second.port == port
        second.set(NAME, ["127.0.0.2"])
        assert addresses(await ask(second)) == ["127.0.0.2"]
        with pytest.raises(OSError, match=r"[Aa]ddress"):
            await DnsServer("::1", port).__aenter__()


def test_an_address_before_the_start_is_a_mistake_that_is_told() -> None:
    with pytest.raises(RuntimeError, match="not started"):
        _ = DnsServer().address


async def test_addresses_come_and_go() -> None:
    async with DnsServer() as server:
        assert (await ask(server)).rcode() == dns.rcode.NXDOMAIN
        server.add(NAME, "127.0.0.2")
        server.add("FLEET.test.", "127.0.0.3")
        server.add(NAME, "127.0.0.3")
        assert addresses(await ask(server, name="Fleet.TEST")) == ["127.0.0.2", "127.0.0.3"]
        server.remove(NAME, "127.0.0.2")
        assert addresses(await ask(server)) == ["127.0.0.3"]
        aaaa = await ask(server, "AAAA")
        assert (aaaa.rcode(), aaaa.answer) == (dns.rcode.NOERROR, [])
        server.remove(NAME, "127.0.0.3")
        assert (await ask(server)).rcode() == dns.rcode.NXDOMAIN
        server.set(NAME, [])
        empty = await ask(server)
        assert (empty.rcode(), empty.answer) == (dns.rcode.NOERROR, [])
        server.delete(NAME)
        assert (await ask(server)).rcode() == dns.rcode.NXDOMAIN


async def test_what_is_no_address_leaves_the_zone_as_it_was() -> None:
    async with DnsServer() as server:
        server.set(NAME, ["127.0.0.2"])
        for change in (lambda: server.set(NAME, ["x"]), lambda: server.add(NAME, "127.0.0.256")):
            with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
                change()
        assert addresses(await ask(server)) == ["127.0.0.2"]


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize(
    ("reply", "rcode"),
    [
        (Reply.EMPTY, dns.rcode.NOERROR),
        (Reply.NXDOMAIN, dns.rcode.NXDOMAIN),
        (Reply.SERVFAIL, dns.rcode.SERVFAIL),
        (Reply.REFUSED, dns.rcode.REFUSED),
    ],
)
async def test_answers_without_addresses(reply: Reply, rcode: dns.rcode.Rcode, tcp: bool) -> None:
    async with DnsServer() as server:
        server.set(NAME, ["127.0.0.2"])
        server.behave(reply)
        answer = await ask(server, tcp=tcp)
        assert (answer.rcode(), answer.answer) == (rcode, [])
        server.heal()
        assert addresses(await ask(server, tcp=tcp)) == ["127.0.0.2"]


@pytest.mark.parametrize(
    ("reply", "tcp", "error"),
    [
        (Reply.DROP, False, dns.exception.Timeout),
        (Reply.DROP, True, dns.exception.Timeout),
        (Reply.HANG_UP, False, dns.exception.Timeout),
        (Reply.HANG_UP, True, (EOFError, OSError)),
        (Reply.GARBAGE, False, dns.exception.DNSException),
        (Reply.GARBAGE, True, dns.exception.DNSException),
        (Reply.WRONG_ID, False, dns.query.BadResponse),
        (Reply.WRONG_ID, True, dns.query.BadResponse),
    ],
)
async def test_answers_that_are_none(
    reply: Reply, tcp: bool, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    async with DnsServer() as server:
        server.set(NAME, ["127.0.0.2"])
        server.behave(reply)
        with pytest.raises(error):
            await ask(server, tcp=tcp, timeout_s=IMPATIENCE_S)
        server.heal()
        assert addresses(await ask(server)) == ["127.0.0.2"]


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_slow_answer_is_late_and_right(tcp: bool) -> None:
    async with DnsServer() as server:
        server.set(NAME, ["127.0.0.2"])
        server.behave(Fault(delay_s=0.05))
        started = time.monotonic()
        assert addresses(await ask(server, tcp=tcp)) == ["127.0.0.2"]
        assert time.monotonic() - started >= 0.05


async def test_answers_held_back_die_with_the_server() -> None:
    async with DnsServer() as server:
        server.behave(Fault(delay_s=60.0))
        with pytest.raises(dns.exception.Timeout):
            await ask(server, timeout_s=IMPATIENCE_S)


async def test_samples_differ_and_cover_everything_in_time_the_same_for_the_same_seed() -> None:
    everything = [f"127.0.1.{n}" for n in range(1, 11)]

    async def samples(seed: int) -> list[list[str]]:
        async with DnsServer(seed=seed) as server:
            server.set(NAME, everything)
            server.behave(Fault(sample=3))
            return [addresses(await ask(server)) for _ in range(40)]

    seen = await samples(1)
    assert all(len(sample) == 3 for sample in seen)
    assert {each for sample in seen for each in sample} == set(everything)
    assert await samples(1) == seen
    assert await samples(2) != seen


async def test_without_edns_an_answer_over_512_bytes_is_truncated_to_what_fits() -> None:
    async with DnsServer() as server:
        server.set(NAME, [f"127.0.1.{n}" for n in range(1, 31)])
        fits = await ask(server)  # 12 bytes of header, 16 of question, 30 * 16: 508
        assert (len(addresses(fits)), fits.flags & dns.flags.TC) == (30, 0)
        server.add(NAME, "127.0.1.31")
        cut = await ask(server)
        assert (len(addresses(cut)), bool(cut.flags & dns.flags.TC)) == (30, True)
        assert len(addresses(await ask(server, payload=1232))) == 31
        assert len(addresses(await ask(server, tcp=True))) == 31


@pytest.mark.parametrize(("payload", "limit"), [(512, 512), (800, 800), (1232, 1232), (4096, 1232)])
async def test_edns_sets_the_size_up_to_1232_bytes(payload: int, limit: int) -> None:
    async with DnsServer() as server:
        server.set(NAME, [f"fd00::{n:x}" for n in range(1, 201)])
        cut = await ask(server, "AAAA", payload=payload)
        whole = await ask(server, "AAAA", payload=payload, tcp=True)
    assert cut.flags & dns.flags.TC
    assert limit - 28 < len(cut.to_wire()) <= limit
    assert len(addresses(whole)) == 200


async def test_even_tcp_has_a_limit() -> None:
    async with DnsServer() as server:
        server.set(NAME, [f"127.1.{n >> 8}.{n & 255}" for n in range(5000)])
        answer = await ask(server, tcp=True)
    assert answer.flags & dns.flags.TC
    assert 4000 < len(addresses(answer)) < 4096


async def test_truncation_on_demand_and_a_fault_for_tcp_alone() -> None:
    async with DnsServer() as server:
        server.set(NAME, ["127.0.0.2", "127.0.0.3"])
        server.behave(Fault(truncate=1, tcp_reply=Reply.SERVFAIL))
        cut = await ask(server)
        assert (len(addresses(cut)), bool(cut.flags & dns.flags.TC)) == (1, True)
        assert (await ask(server, tcp=True)).rcode() == dns.rcode.SERVFAIL


async def test_a_server_from_before_edns() -> None:
    async with DnsServer() as server:
        server.set(NAME, ["127.0.0.2"])
        server.behave(Fault(edns=False))
        assert (await ask(server, payload=1232)).rcode() == dns.rcode.FORMERR
        assert addresses(await ask(server)) == ["127.0.0.2"]


async def test_the_narrowest_fault_decides() -> None:
    async with DnsServer() as server:
        for name in (NAME, "other.test"):
            server.set(name, ["127.0.0.2", "::1"])
        server.behave(Reply.SERVFAIL)
        server.behave(Reply.NXDOMAIN, rdtype="AAAA")
        server.behave(Reply.REFUSED, NAME)
        server.behave(Reply.ANSWER, NAME, "AAAA")
        rcodes = {
            (name, rdtype): (await ask(server, rdtype, name)).rcode()
            for name in (NAME, "other.test")
            for rdtype in ("A", "AAAA")
        }
    assert rcodes == {
        (NAME, "A"): dns.rcode.REFUSED,
        (NAME, "AAAA"): dns.rcode.NOERROR,
        ("other.test", "A"): dns.rcode.SERVFAIL,
        ("other.test", "AAAA"): dns.rcode.NXDOMAIN,
    }


async def test_a_fault_for_so_many_queries() -> None:
    async with DnsServer() as server:
        server.set(NAME, ["127.0.0.2"])
        server.behave(Reply.SERVFAIL, times=2)
        rcodes = [(await ask(server)).rcode() for _ in range(3)]
    assert rcodes == [dns.rcode.SERVFAIL, dns.rcode.SERVFAIL, dns.rcode.NOERROR]


async def test_queries_are_counted() -> None:
    async with DnsServer() as server:
        await ask(server, "A", "Fleet.test")
        await ask(server, "A", tcp=True)
        await ask(server, "AAAA", "other.test")
        assert server.queries == {(NAME, "A"): 2, ("other.test", "AAAA"): 1}


async def test_bad_packets_never_kill_it() -> None:
    response = dns.message.make_response(dns.message.make_query(NAME, "A")).to_wire()
    chaos = dns.message.make_query(NAME, "A", "CH").to_wire()
    headless = dns.message.Message().to_wire()
    packets = [b"", b"\0", b"\xff" * 700, response, chaos, headless, struct.pack("!H", 9) * 40]
    async with DnsServer() as server:
        server.set(NAME, ["127.0.0.2"])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for packet in packets:
                udp.sendto(packet, (server.host, server.port))
        for packet in packets:
            _, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(struct.pack("!H", len(packet)) + packet)
            writer.write(b"\xff\xff half a message")
            await writer.drain()
            writer.close()
        assert addresses(await ask(server)) == ["127.0.0.2"]
        assert addresses(await ask(server, tcp=True)) == ["127.0.0.2"]
        assert server.bad_packets == 2 * len(packets)


@hypothesis.given(data=st.data())
def test_queries_with_any_bytes_changed_are_answered_or_passed_over(data: st.DataObject) -> None:
    class Peer:
        over_tcp = False
        answers: ClassVar[list[bytes]] = []

        def send(self, wire: bytes) -> None:
            self.answers.append(wire)

        def abort(self) -> None:
            raise AssertionError

    server = DnsServer()
    server.set(NAME, BOTH)
    rdtype, payload = data.draw(st.sampled_from([("A", None), ("AAAA", 1232), ("TXT", 1)]))
    wire = bytearray(dns.message.make_query(NAME, rdtype, payload=payload).to_wire())
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    server._received(bytes(wire), Peer())
    assert len(Peer.answers) + server.bad_packets == 1


async def test_many_queries_on_one_tcp_connection_in_odd_pieces() -> None:
    queries = [dns.message.make_query(NAME, "A") for _ in range(3)]
    sent = b"".join(query.to_wire(prepend_length=True) for query in queries)
    async with DnsServer() as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        for start in range(0, len(sent), 7):
            writer.write(sent[start : start + 7])
            await asyncio.sleep(0)
        ids = []
        for _ in queries:
            (size_bytes,) = struct.unpack("!H", await reader.readexactly(2))
            ids.append(dns.message.from_wire(await reader.readexactly(size_bytes)).id)
        writer.close()
    assert ids == [query.id for query in queries]


def test_in_a_thread_it_serves_code_without_a_loop_and_leaves_nothing() -> None:
    before = threading.active_count()
    with DnsServer.in_thread() as server:
        server.set(NAME, ["127.0.0.2"])
        query = dns.message.make_query(NAME, "A")
        answer = dns.query.udp(query, server.host, timeout=1.0, port=server.port)
        assert addresses(answer) == ["127.0.0.2"]
        server.behave(Reply.REFUSED)
        answer = dns.query.tcp(query, server.host, timeout=1.0, port=server.port)
        assert answer.rcode() == dns.rcode.REFUSED
        port = server.port
        with pytest.raises(OSError, match=r"[Aa]ddress"), DnsServer.in_thread(port=port):
            pass
    assert threading.active_count() == before
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", port))


def test_changes_from_many_threads_are_all_kept() -> None:
    server = DnsServer()

    def add(net: int) -> None:
        for host in range(1, 101):
            server.add(NAME, f"127.1.{net}.{host}")

    threads = [threading.Thread(target=add, args=(net,)) for net in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with DnsServer.in_thread() as running:
        running._script = server._script
        query = dns.message.make_query(NAME, "A")
        answer = dns.query.tcp(query, running.host, timeout=2.0, port=running.port)
    assert len(addresses(answer)) == 400
