from __future__ import annotations

import pytest

from fleetlm.core.dns_answers import MAX_ADDRESSES, sift


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
    ],
)
def test_unusable_addresses_are_passed_over_with_the_reason(text: str, reason: str) -> None:
    addresses, remark = sift([text, "10.0.0.1"])
    assert addresses == ("10.0.0.1",)
    assert remark.startswith("passed over ")
    assert reason in remark


def test_a_long_list_of_unusable_addresses_makes_a_short_remark() -> None:
    _, remark = sift(f"224.0.0.{n}" for n in range(1, 201))
    assert remark.count("multicast") == 3
    assert remark.endswith("and 197 more")


def test_a_huge_answer_is_cut_to_the_same_addresses_on_every_node() -> None:
    texts = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(5000)]
    addresses, remark = sift(reversed(texts))
    assert addresses == tuple(texts[:MAX_ADDRESSES])
    assert remark == "took the lowest 4096 of 5000 addresses"
