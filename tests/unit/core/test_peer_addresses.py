from __future__ import annotations

import pytest

from fleetlm.core.peer_addresses import PeerAddresses, split_by_network

PRIVATE = PeerAddresses(["10.0.0.1", "fd00::1"], [])


@pytest.mark.parametrize(
    "ip",
    [
        "0.0.0.0",
        "0.0.0.1",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.1.1",
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "8.8.8.8",
        "1.1.1.1",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::808:808",
        "2002:7f00:1::1",
        "2001:0:7f00:1::1",
        "100::1",
        "fe80::1",
        "ff02::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "2600::1",
        "worker-1",
        "",
    ],
)
def test_a_node_with_private_addresses_believes_no_such_hearsay(ip: str) -> None:
    assert not PRIVATE.believes(ip)


@pytest.mark.parametrize(
    "ip", ["10.255.0.9", "172.16.4.4", "192.168.1.7", "100.64.0.9", "fd00::9", "fdaa:0:1::3", "10.0.0.1"]
)
def test_a_node_with_private_addresses_believes_private_ones(ip: str) -> None:
    assert PRIVATE.believes(ip)


@pytest.mark.parametrize(
    ("own", "ip", "believes"),
    [
        ("127.0.0.1", "127.0.0.9", True),
        ("127.0.0.1", "::1", True),
        ("127.0.0.1", "10.0.0.9", False),
        ("::1", "::1", True),
        ("10.0.0.1", "::1", False),
        ("240.0.0.1", "240.0.0.2", True),
        ("240.0.0.1", "255.255.255.255", False),
        ("127.0.0.1", "169.254.169.254", False),
        ("169.254.7.7", "169.254.8.8", True),
        ("169.254.7.7", "169.254.169.254", False),
        ("169.254.7.7", "fe80::1", False),
        ("fe80::7", "fe80::1", True),
        ("100.64.0.1", "100.64.0.2", True),
        ("100.64.0.1", "8.8.8.8", False),
        ("8.8.4.4", "8.8.8.8", True),
        ("8.8.4.4", "10.0.0.9", True),
        ("8.8.4.4", "127.0.0.1", False),
        ("2600::2", "2600::1", True),
        ("2600::2", "224.0.0.1", False),
        ("2600::2", "64:ff9b::808:808", True),
        ("2600::2", "64:ff9b::a9fe:a9fe", False),
    ],
)
def test_what_is_believed_depends_on_the_own_address(own: str, ip: str, believes: bool) -> None:
    assert PeerAddresses([own], []).believes(ip) is believes


def test_allowed_networks_hold_for_every_address() -> None:
    rules = PeerAddresses(["10.0.0.1"], ["10.0.0.0/16", "fd00::/8"])
    assert [ip for ip in ("10.0.9.9", "10.1.0.1", "fd99::1", "2600::1", "") if rules.allows(ip)] == [
        "10.0.9.9",
        "fd99::1",
    ]
    assert rules.believes("10.0.9.9")
    assert not rules.believes("10.1.0.1")


def test_allowed_networks_do_not_make_hearsay_plausible() -> None:
    assert not PeerAddresses(["10.0.0.1"], ["0.0.0.0/0"]).believes("169.254.169.254")


def test_without_allowed_networks_every_address_is_allowed() -> None:
    assert all(PRIVATE.allows(ip) for ip in ("8.8.8.8", "127.0.0.1", "::1", ""))


def test_dns_answers_are_split_with_their_ports() -> None:
    rules = PeerAddresses(["10.0.0.1"], ["10.0.0.0/16", "fd00::/8"])
    answer = ("10.0.0.2", "10.9.0.2", "10.0.0.3:4371", "[fd00::2]:4371", "[2600::1]:4371")
    allowed, others = split_by_network(answer, rules)
    assert allowed == ["10.0.0.2", "10.0.0.3:4371", "[fd00::2]:4371"]
    assert others == ["10.9.0.2", "[2600::1]:4371"]
