"""What responses say, down to hostile ones, and where they are parsed. No socket is opened."""

from __future__ import annotations

import asyncio
import threading

import dns.exception
import dns.message
import dns.name
import dns.rrset
import hypothesis
import hypothesis.strategies as st
import pytest

from fleetlm.core.dns_answers import Outcome
from fleetlm.discovery import dns_exchange
from fleetlm.discovery.dns_exchange import EDNS_PAYLOAD_BYTES, Exchange, NameServer, ServerFailure
from fleetlm.discovery.dns_search import Candidate, Records, RecordType, Service
from fleetlm.discovery.dns_services import Host, conclude_services
from fleetlm.discovery.resolv_conf import ServerAddress
from tests.support.session_fakes import virtual

NAME = "_w._tcp.test."


def read(text: str, record_type: RecordType = "SRV") -> Records:
    """Read a response in the text form of dnspython, after it was packed."""
    head = f"id 1\nopcode QUERY\nrcode NOERROR\nflags QR RD RA\n;QUESTION\n{NAME} IN {record_type}\n"
    return read_wire(dns.message.from_text(head + text).to_wire(max_size=65_535), record_type)


def read_wire(wire: bytes, record_type: RecordType = "SRV") -> Records:
    records: list[Records] = []

    @virtual
    async def main() -> None:
        server = NameServer(ServerAddress("10.0.0.53"))
        exchange = Exchange(server, dns.name.from_text(NAME), record_type, attempt=0, use_tcp=False)

        async def answer(with_edns: bool) -> dns.message.Message:
            del with_edns
            await asyncio.sleep(0)
            return dns.message.from_wire(wire)

        exchange._ask = answer
        records.append(await exchange.run())

    main()
    return records[0]


def test_records_have_ports_and_the_addresses_of_the_additional_section() -> None:
    records = read(
        f"""\
;ANSWER
{NAME} 5 IN SRV 0 100 4371 A.Test.
{NAME} 5 IN SRV 7 1 4372 a.test.
{NAME} 5 IN SRV 1 1 4370 b.test.
{NAME} 5 IN SRV 1 1 4370 bare.test.
;ADDITIONAL
a.test. 5 IN A 10.0.0.2
a.test. 5 IN A 10.0.0.1
a.test. 5 IN AAAA fd00::1
B.TEST. 5 IN AAAA fd00::2
stranger.test. 5 IN A 10.9.9.9
"""
    )
    assert records.outcome is Outcome.ADDRESSES
    found = {(each.target, each.port): set(each.addresses) for each in records.services}
    assert found == {
        ("a.test.", 4371): {"10.0.0.1", "10.0.0.2", "fd00::1"},
        ("a.test.", 4372): {"10.0.0.1", "10.0.0.2", "fd00::1"},
        ("b.test.", 4370): {"fd00::2"},
        ("bare.test.", 4370): set(),
    }


def test_targets_that_a_server_compresses_are_read() -> None:
    """RFC 2782 forbids to compress a target, and some servers do."""
    header = bytes.fromhex("0001 8180 0001 0002 0000 0000")
    question = b"\x02_w\x04_tcp\x04test\x00" + bytes.fromhex("0021 0001")
    to_a = bytes.fromhex("c00c 0021 0001 00000005 000a 0001 0001 1112") + b"\x01a\xc0\x14"
    to_a_again = bytes.fromhex("c00c 0021 0001 00000005 0008 0001 0001 1113 c030")
    records = read_wire(header + question + to_a + to_a_again)
    assert set(records.services) == {Service("a.test.", 4370), Service("a.test.", 4371)}


def test_aliases_are_followed_before_the_records_and_before_the_addresses() -> None:
    records = read(
        f"""\
;ANSWER
{NAME} 5 IN CNAME real.test.
real.test. 5 IN SRV 1 1 4370 a.test.
;ADDITIONAL
a.test. 5 IN CNAME b.test.
b.test. 5 IN CNAME c.test.
c.test. 5 IN A 10.0.0.3
"""
    )
    assert records.services == (Service("a.test.", 4370, ("10.0.0.3",)),)


def test_a_circle_of_aliases_is_a_failure_before_the_records_and_no_address_after_them() -> None:
    with pytest.raises(ServerFailure, match="ChainTooLong"):
        read(f";ANSWER\n{NAME} 5 IN CNAME x.test.\nx.test. 5 IN CNAME {NAME}\n")
    records = read(
        f""";ANSWER
{NAME} 5 IN SRV 1 1 4370 a.test.
;ADDITIONAL
a.test. 5 IN CNAME b.test.
b.test. 5 IN CNAME a.test.
"""
    )
    assert records.services == (Service("a.test.", 4370, ()),)


def test_an_alias_that_leads_nowhere_is_no_record() -> None:
    assert read(f";ANSWER\n{NAME} 5 IN CNAME gone.test.\n") == Records(Outcome.EMPTY, (), "no record")


def test_records_of_other_types_and_names_are_no_services() -> None:
    records = read(f";ANSWER\n{NAME} 5 IN A 10.0.0.1\nother.test. 5 IN SRV 1 1 4370 a.test.\n")
    assert records == Records(Outcome.EMPTY, (), "no record")


def test_a_target_may_be_the_service_itself() -> None:
    records = read(f";ANSWER\n{NAME} 5 IN SRV 1 1 4370 {NAME}\n")
    assert records.services == (Service(NAME, 4370, ()),)


def test_a_thousand_targets_are_read_and_told_in_a_few_words() -> None:
    lines = "".join(f"{NAME} 5 IN SRV 1 1 {port} t{port}.\n" for port in range(1, 1001))
    records = read(f";ANSWER\n{lines}")
    assert len(records.services) == 1000
    answer = conclude_services(Candidate(NAME, {"SRV": records}), {})
    assert answer.outcome is Outcome.FAILED
    assert len(answer.detail) < 400


LABELS = st.sampled_from(["a", "b", "_w._tcp.test", "*", r"x\.y", r"\000", ""])
TARGETS = LABELS.map(lambda label: f"{label}." if label in ("", "_w._tcp.test") else f"{label}.test.")
SRV = st.tuples(TARGETS, st.integers(0, 65535)).map(lambda each: f"{NAME} 5 IN SRV 1 1 {each[1]} {each[0]}")
IPS = st.one_of(
    st.ip_addresses(v=4).map(lambda ip: f"A {ip}"), st.ip_addresses(v=6).map(lambda ip: f"AAAA {ip}")
)
BESIDE = st.one_of(
    st.tuples(TARGETS, IPS).map(lambda each: f"{each[0]} 5 IN {each[1]}"),
    st.tuples(TARGETS, TARGETS).map(lambda each: f"{each[0]} 5 IN CNAME {each[1]}"),
)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.lists(SRV, max_size=8), st.lists(BESIDE, max_size=8))
def test_whatever_a_server_says_ends_in_one_of_the_four_outcomes(srv: list[str], beside: list[str]) -> None:
    lines = "\n".join([";ANSWER", *srv, ";ADDITIONAL", *beside, ""])
    try:
        records = read(lines)
    except (ServerFailure, dns.exception.DNSException):
        return
    assert records.outcome in (Outcome.ADDRESSES, Outcome.EMPTY)
    assert (records.outcome is Outcome.EMPTY) == (not records.services) == (not srv)
    if not records.services:
        return
    hosts = {each.target: Host(each.target, each.addresses) for each in records.services if each.addresses}
    answer = conclude_services(Candidate(NAME, {"SRV": records}), hosts)
    assert bool(answer.addresses) == (answer.outcome in (Outcome.ADDRESSES, Outcome.PARTIAL))
    assert answer.outcome is not Outcome.EMPTY or all(each.target == "." for each in records.services)
    assert not any(address.endswith(":0") for address in answer.addresses)


@pytest.mark.parametrize(("count", "is_on_loop"), [(1, True), (75, True), (76, False), (2000, False)])
async def test_only_what_would_not_fit_into_a_packet_is_parsed_off_the_loop(
    count: int, is_on_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    parse = dns_exchange._parse

    def watched(wire: bytes, query: dns.message.Message) -> dns.message.Message | None:
        threads.append(threading.current_thread())
        return parse(wire, query)

    monkeypatch.setattr(dns_exchange, "_parse", watched)
    query = dns.message.make_query("w.test.", "A")
    response = dns.message.make_response(query)
    addresses = [f"10.0.{n >> 8}.{n & 255}" for n in range(count)]
    response.answer.append(dns.rrset.from_text_list("w.test.", 0, "IN", "A", addresses))
    wire = response.to_wire(max_size=65_535)
    assert (len(wire) <= EDNS_PAYLOAD_BYTES) is is_on_loop
    parsed = await dns_exchange._parse_off_loop(wire, query)
    assert parsed is not None
    assert len(parsed.answer[0]) == count
    assert [thread is threading.current_thread() for thread in threads] == [is_on_loop]


async def test_large_garbage_is_no_response() -> None:
    query = dns.message.make_query("w.test.", "A")
    assert await dns_exchange._parse_off_loop(b"\xff" * 60_000, query) is None
