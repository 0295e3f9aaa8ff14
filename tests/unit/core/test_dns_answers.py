from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, strategies as st

from fleetlm.core import dns_answers
from fleetlm.core.dns_answers import (
    MAX_ADDRESSES,
    Answer,
    Outcome,
    answer_of_list,
    count_addresses,
    list_hosts,
    merge,
    sift,
)
from fleetlm.names import parse_address


@pytest.mark.parametrize(
    ("texts", "addresses"),
    [
        ([], ()),
        (["10.0.0.10", "10.0.0.9"], ("10.0.0.9", "10.0.0.10")),
        (["fd00::1", "10.0.0.1"], ("10.0.0.1", "fd00::1")),
        (["10.0.0.1", "10.0.0.1"], ("10.0.0.1",)),
        (["FDAA:0:0::00A7", "fdaa::a7"], ("fdaa::a7",)),
        (["::ffff:10.0.0.1", "10.0.0.1"], ("10.0.0.1",)),
        (["127.0.0.2", "::1"], ("127.0.0.2", "::1")),
        (["169.254.3.4"], ("169.254.3.4",)),
        (["10.0.0.1:4371", "10.0.0.1:999", "10.0.0.1"], ("10.0.0.1", "10.0.0.1:999", "10.0.0.1:4371")),
        (
            ["[FD00:0::7]:4371", "10.0.0.2:80", "10.0.0.1:0080"],
            ("10.0.0.1:80", "10.0.0.2:80", "[fd00::7]:4371"),
        ),
        (["[::ffff:10.0.0.1]:5", "10.0.0.1:5"], ("10.0.0.1:5",)),
    ],
)
def test_usable_addresses_are_canonical_sorted_and_single(
    texts: list[str], addresses: tuple[str, ...]
) -> None:
    assert sift(texts) == (addresses, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("::ffff:0.0.0.0", "unspecified"),
        ("224.0.0.251", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "not an address that means the same on every machine"),
        ("fleet.internal", "not an address"),
        ("fleet.internal:4370", "not an address"),
        ("10.0.0.2:65536", "not an address"),
        ("10.0.0.2:", "not an address"),
        ("10.0.0.2:0", "not an address"),
        ("[fd00::2]:0", "not an address"),
        ("0.0.0.0:4370", "unspecified"),
        ("[fe80::1]:4370", "link-local"),
    ],
)
def test_unusable_addresses_are_passed_over_with_the_reason(text: str, reason: str) -> None:
    addresses, remark = sift([text, "10.0.0.1"])
    assert addresses == ("10.0.0.1",)
    assert remark.startswith("passed over ")
    assert reason in remark


def test_the_hosts_of_an_answer_are_named_once_and_without_ports() -> None:
    addresses = ["10.0.0.1", "10.0.0.1:4371", "10.0.0.2:4370", "[fd00::7]:4371", "fd00::7", "garbage"]
    assert list_hosts(addresses) == ("10.0.0.1", "10.0.0.2", "fd00::7")


def test_a_long_list_of_unusable_addresses_makes_a_short_remark() -> None:
    _, remark = sift(f"224.0.0.{n}" for n in range(1, 201))
    assert remark.count("multicast") == 3
    assert remark.endswith("and 197 more")


def test_a_huge_answer_is_cut_to_the_same_addresses_on_every_node() -> None:
    texts = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(5000)]
    addresses, remark = sift(reversed(texts))
    assert addresses == tuple(texts[:MAX_ADDRESSES])
    assert remark == "took the lowest 4096 of 5000 addresses"


def found(*addresses: str) -> Answer:
    return Answer(Outcome.ADDRESSES, addresses, f"{len(addresses)}")


NOTHING = Answer(Outcome.EMPTY, (), "NXDOMAIN")
BROKEN = Answer(Outcome.FAILED, (), "SERVFAIL")
HALF = Answer(Outcome.PARTIAL, ("10.0.0.3",), "AAAA failed", (4,))


@pytest.mark.parametrize(
    ("answers", "outcome", "addresses", "whole"),
    [
        ([found("10.0.0.2"), found("10.0.0.1")], Outcome.ADDRESSES, ("10.0.0.1", "10.0.0.2"), (4, 6)),
        ([found("10.0.0.2"), found("10.0.0.2")], Outcome.ADDRESSES, ("10.0.0.2",), (4, 6)),
        ([found("10.0.0.2"), NOTHING], Outcome.ADDRESSES, ("10.0.0.2",), (4, 6)),
        ([found("10.0.0.2"), BROKEN], Outcome.PARTIAL, ("10.0.0.2",), ()),
        ([found("10.0.0.2"), HALF], Outcome.PARTIAL, ("10.0.0.2", "10.0.0.3"), (4,)),
        ([NOTHING, HALF], Outcome.PARTIAL, ("10.0.0.3",), (4,)),
        ([NOTHING, NOTHING], Outcome.EMPTY, (), (4, 6)),
        ([NOTHING, BROKEN], Outcome.FAILED, (), ()),
        ([BROKEN, BROKEN], Outcome.FAILED, (), ()),
    ],
)  # fmt: skip
def test_an_address_counts_from_any_name_and_absence_only_if_all_are_whole(
    answers: list[Answer], outcome: Outcome, addresses: tuple[str, ...], whole: tuple[int, ...]
) -> None:
    for order in (answers, answers[::-1]):
        answer = merge([(f"n{number}.test", each) for number, each in enumerate(order)])
        assert (answer.outcome, answer.addresses, answer.whole_families) == (outcome, addresses, whole)
        assert all(each.detail in answer.detail for each in answers)


def test_one_name_is_not_changed_by_merging() -> None:
    assert merge([("a.test", HALF)]) is HALF


def test_the_names_stand_in_the_detail() -> None:
    answer = merge([("a.test", found("10.0.0.2")), ("b.test", BROKEN)])
    assert answer.detail == "a.test: 1; b.test: SERVFAIL"


def test_several_huge_answers_are_cut_like_one() -> None:
    texts = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(2 * MAX_ADDRESSES)]
    answer = merge([("a", found(*texts[:MAX_ADDRESSES])), ("b", found(*texts[MAX_ADDRESSES:]))])
    assert answer.addresses == tuple(texts[:MAX_ADDRESSES])
    assert "took the lowest 4096 of 8192 addresses" in answer.detail


def test_which_families_are_whole_follows_from_the_outcome_unless_it_is_said() -> None:
    assert found("10.0.0.2").is_whole(4)
    assert found("10.0.0.2").is_whole(6)
    assert NOTHING.is_whole(6)
    assert not BROKEN.is_whole(4)
    assert not Answer(Outcome.PARTIAL, ("10.0.0.2",), "cut").is_whole(4)
    assert HALF.is_whole(4)
    assert not HALF.is_whole(6)
    assert Answer(Outcome.FAILED, (), "AAAA failed", (4,)).is_whole(4)


@pytest.mark.parametrize(("number", "text"), [(0, "0 addresses"), (1, "1 address"), (3, "3 addresses")])
def test_addresses_are_counted_in_words(number: int, text: str) -> None:
    assert count_addresses(number) == text


@pytest.mark.parametrize(
    ("texts", "answer"),
    [
        (["10.0.0.2", "10.0.0.1"], Answer(Outcome.ADDRESSES, ("10.0.0.1", "10.0.0.2"), "2 addresses")),
        ([], Answer(Outcome.EMPTY, (), "no addresses")),
    ],
)
def test_a_list_of_addresses_is_an_answer(texts: list[str], answer: Answer) -> None:
    assert answer_of_list(texts) == answer


def test_a_list_without_a_usable_address_is_a_failure_that_says_why() -> None:
    answer = answer_of_list(["no address"])
    assert (answer.outcome, answer.addresses) == (Outcome.FAILED, ())
    assert answer.detail.startswith("no usable address: ")
    assert "no address" in answer.detail


@given(
    st.lists(
        st.integers(0, 300).map(str) | st.sampled_from(["", "00", "01", "٣", "+1", "1 ", "x"]), max_size=5
    )
)
def test_the_short_way_for_usual_addresses_finds_what_the_long_one_finds(parts: list[str]) -> None:
    text = ".".join(parts)
    number = dns_answers._number_of_ipv4(text)
    assert (number is None) == (parse_address(text) is None)
    assert number is None or ipaddress.IPv4Address(number) == ipaddress.IPv4Address(text)


def test_thousands_of_usual_addresses_are_read_without_slow_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_answers, "parse_address", None)
    texts = [f"10.7.{number >> 8}.{number & 255}" for number in range(4_000)]
    assert sift(texts) == (tuple(texts), "")
