"""What the SRV records of a service and the addresses of its hosts mean."""

from __future__ import annotations

import pytest

from fleetlm.core.dns_answers import MAX_ADDRESSES, Answer, Outcome
from fleetlm.discovery.dns_search import Candidate, Records, Service
from fleetlm.discovery.dns_services import Host, conclude_services, read_host, sum_up

A, B, C = "a.test.", "b.test.", "c.test."
FAILED = Records(Outcome.FAILED, (), "SERVFAIL from 10.0.0.53")
NO_RECORD = Records(Outcome.EMPTY, (), "no record")
NXDOMAIN = Records(Outcome.EMPTY, (), "NXDOMAIN")
UNSERVED = Records(Outcome.FAILED, (), "no answer", is_unserved=True)


def found(*addresses: str) -> Records:
    return Records(Outcome.ADDRESSES, addresses)


def services(*targets: tuple[str, int], outcome: Outcome = Outcome.ADDRESSES, detail: str = "") -> Candidate:
    records = Records(outcome, (), detail, services=tuple(Service(*each) for each in targets))
    return Candidate("_w._tcp.test.", {"SRV": records})


def asked(name: str, a: Records, aaaa: Records = NO_RECORD) -> Host:
    return read_host(name, Candidate(name, {"A": a, "AAAA": aaaa}))


def conclude(candidate: Candidate, *hosts: Host) -> Answer:
    return conclude_services(candidate, {host.name: host for host in hosts})


def test_hosts_and_ports_become_one_sorted_answer() -> None:
    answer = conclude(
        services((B, 4371), (A, 4372), (A, 4370), (A, 4370)),
        Host(A, ("10.0.0.10",)),
        Host(B, ("10.0.0.9", "FD00::9")),
    )
    assert answer == Answer(
        Outcome.ADDRESSES,
        ("10.0.0.9:4371", "10.0.0.10:4370", "10.0.0.10:4372", "[fd00::9]:4371"),
        "4 addresses of 2 hosts (SRV)",
    )


def test_two_names_of_one_address_and_port_are_one_node() -> None:
    answer = conclude(services((A, 4370), (B, 4370)), Host(A, ("10.0.0.1",)), Host(B, ("::ffff:10.0.0.1",)))
    assert answer.addresses == ("10.0.0.1:4370",)
    assert answer.detail == "1 address of 2 hosts (SRV)"


def test_the_root_as_target_says_that_there_is_no_such_service() -> None:
    assert conclude(services((".", 0))) == Answer(
        Outcome.EMPTY, (), "no such service (the target of its SRV record is .)"
    )
    beside = conclude(services((".", 0), (A, 4370)), Host(A, ("10.0.0.1",)))
    assert (beside.outcome, beside.addresses) == (Outcome.ADDRESSES, ("10.0.0.1:4370",))
    cut = conclude(services((".", 0), outcome=Outcome.PARTIAL, detail="truncated"))
    assert cut.outcome is Outcome.FAILED


def test_port_0_is_passed_over() -> None:
    answer = conclude(services((A, 0), (A, 4370), (B, 0)), Host(A, ("10.0.0.1",)))
    assert (answer.outcome, answer.addresses) == (Outcome.ADDRESSES, ("10.0.0.1:4370",))
    assert (
        answer.detail
        == "1 address of 1 host (SRV), 2 hosts with port 0, which no node has (a.test., b.test.)"
    )
    only = conclude(services((A, 0)), Host(A, ("10.0.0.1",)))
    assert only == Answer(
        Outcome.FAILED, (), "no address of 1 host (SRV), 1 host with port 0, which no node has (a.test.)"
    )


def test_a_host_without_an_address_is_passed_over() -> None:
    for record in (NO_RECORD, NXDOMAIN):
        answer = conclude(services((A, 1), (B, 2)), Host(A, ("10.0.0.1",)), asked(B, record, record))
        assert answer == Answer(
            Outcome.ADDRESSES,
            ("10.0.0.1:1",),
            "1 address of 1 host (SRV), 1 host without an address (b.test.)",
        )


@pytest.mark.parametrize(
    "host",
    [
        asked(A, NO_RECORD),
        asked(A, NXDOMAIN, NXDOMAIN),
        asked(A, NXDOMAIN, UNSERVED),
        asked(A, FAILED, FAILED),
        asked(A, NO_RECORD, FAILED),
        asked(A, found("0.0.0.0")),
        Host(A, ("127.0.0.1.5", "fe80::1")),
        read_host(A, None),
    ],
)
def test_srv_records_without_any_address_are_a_failure_and_not_an_empty_cluster(host: Host) -> None:
    answer = conclude(services((A, 4370)), host)
    assert (answer.outcome, answer.addresses, answer.whole_families) == (Outcome.FAILED, (), ())
    assert answer.detail.startswith("no address of 1 host (SRV)")


@pytest.mark.parametrize(
    ("host", "whole", "trouble"),
    [
        (asked(B, FAILED, FAILED), (), "b.test. SERVFAIL from 10.0.0.53"),
        (asked(B, found("10.0.0.2"), FAILED), (4,), "b.test. AAAA: SERVFAIL from 10.0.0.53"),
        (asked(B, FAILED, found("fd00::2")), (6,), "b.test. A: SERVFAIL from 10.0.0.53"),
        (asked(B, NO_RECORD, UNSERVED), (4,), "b.test. A: no record; AAAA: no answer"),
        (read_host(B, None), (), "b.test. not asked in time"),
    ],
)
def test_a_host_that_fails_makes_the_answer_partial(host: Host, whole: tuple[int, ...], trouble: str) -> None:
    answer = conclude(services((A, 1), (B, 2)), Host(A, ("10.0.0.1",)), host)
    assert (answer.outcome, answer.whole_families) == (Outcome.PARTIAL, whole)
    assert "10.0.0.1:1" in answer.addresses
    assert trouble.removeprefix("b.test. A: no record; ") in answer.detail


def test_a_family_that_is_not_served_leaves_the_answer_whole_for_the_other() -> None:
    answer = conclude(services((A, 1)), asked(A, found("10.0.0.1"), UNSERVED))
    assert (answer.outcome, answer.whole_families) == (Outcome.ADDRESSES, (4,))
    gone = conclude(services((A, 1), (B, 1)), Host(A, ("10.0.0.1",)), asked(B, NXDOMAIN, UNSERVED))
    assert (gone.outcome, gone.whole_families) == (Outcome.ADDRESSES, (4,))


def test_truncated_srv_records_make_the_answer_partial_for_both_families() -> None:
    cut = services((A, 1), outcome=Outcome.PARTIAL, detail="truncated, and TCP failed")
    assert conclude(cut, Host(A, ("10.0.0.1",))) == Answer(
        Outcome.PARTIAL,
        ("10.0.0.1:1",),
        "1 address of 1 host (SRV), but SRV: truncated, and TCP failed",
        (),
    )


def test_many_failures_make_a_short_detail() -> None:
    names = [f"h{n}.test." for n in range(100)]
    answer = conclude(
        services(*((name, 1) for name in names)), *(asked(name, FAILED, FAILED) for name in names)
    )
    assert answer.outcome is Outcome.FAILED
    assert answer.detail.count("SERVFAIL") == 3
    assert answer.detail.endswith("; 97 hosts more")
    without = conclude(
        services((A, 1), *((name, 1) for name in names)), Host(A, ("10.0.0.1",)), *map(Host, names)
    )
    assert without.detail.endswith("100 hosts without an address (h0.test., h1.test., h2.test., ...)")


def test_many_ports_of_a_host_with_many_addresses_are_bounded() -> None:
    ips = tuple(f"10.0.{n // 250}.{n % 250}" for n in range(1000))
    answer = conclude(services(*((A, port) for port in range(1, 2001))), Host(A, tuple(reversed(ips))))
    assert len(answer.addresses) == MAX_ADDRESSES
    assert answer.addresses[0] == "10.0.0.0:1"
    assert "took the lowest 8 of 1000 addresses of a.test." in answer.detail
    assert "took the lowest 4096 of 16000 addresses" in answer.detail
    many = [Host(f"h{n}.test.", ips) for n in range(50)]
    short = conclude(services(*((host.name, 1) for host in many)), *many)
    assert len(short.detail) < 400
    assert "and 47 more remarks" in short.detail


def test_a_family_of_several_hosts_failed_only_if_it_failed_for_each() -> None:
    def candidate(a: Records | None, aaaa: Records | None) -> Candidate:
        return Candidate("", {"A": a, "AAAA": aaaa})

    some = sum_up([candidate(found("10.0.0.1"), FAILED), candidate(FAILED, NO_RECORD)])
    assert some.records == {"A": found("10.0.0.1"), "AAAA": NO_RECORD}
    none = sum_up([candidate(NO_RECORD, FAILED), candidate(FAILED, FAILED)])
    assert none.records == {"A": NO_RECORD, "AAAA": FAILED}
    assert sum_up([]).records == {}
