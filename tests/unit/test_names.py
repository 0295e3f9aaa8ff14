"""Node names have one canonical text; process names are printable."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, strategies as st

from fleetlm.errors import FleetError, InvalidName
from fleetlm.names import (
    Address,
    NodeName,
    canonical_ip,
    canonical_node,
    check_process_name,
    endpoint,
    sorted_nodes,
)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("fleetlm@10.0.0.7", "fleetlm@10.0.0.7"),
        ("_a.B-9@127.0.0.1", "_a.B-9@127.0.0.1"),
        ("w@FDAA:0:0::00A2", "w@fdaa::a2"),
        ("w@[fdaa::2]", "w@fdaa::2"),
        ("w@::ffff:10.0.0.7", "w@10.0.0.7"),
        ("w@ 10.0.0.7 ", "w@10.0.0.7"),
        ("w@0:0:0:0:0:0:0:1", "w@::1"),
        ("a" * 64 + "@::1", "a" * 64 + "@::1"),
    ],
)
def test_one_name_has_one_text(text: str, canonical: str) -> None:
    assert canonical_node(text) == canonical
    assert canonical_node(canonical) == canonical


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has the form basename@ip"),
        ("fleetlm", "has the form basename@ip"),
        ("@10.0.0.7", "the basename must be 1 to 64"),
        ("a b@10.0.0.7", "the basename must be"),
        ("-a@10.0.0.7", "the basename must be"),
        ("ä@10.0.0.7", "the basename must be"),
        ("a\n@10.0.0.7", "the basename must be"),
        ("a" * 65 + "@::1", "the basename must be"),
        ("fleetlm@", "'' is not an IP address"),
        ("fleetlm@worker-1", "host names are not used"),
        ("fleetlm@10.0.0.256", "not an IP address"),
        ("fleetlm@010.0.0.1", "not an IP address"),
        ("fleetlm@10.0.0.7:4370", "not an IP address"),
        ("fleetlm@fe80::1%eth0", "not an IP address"),
        ("a@b@10.0.0.7", "not an IP address"),
        ("a@٣.0.0.1", "not an IP address"),
    ],
)
def test_what_is_not_a_node_name(text: str, why: str) -> None:
    with pytest.raises(InvalidName, match=why) as caught:
        NodeName.parse(text)
    assert caught.value.name == text
    assert repr(text) in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, FleetError)


def test_order_is_by_basename_family_and_number() -> None:
    names = ["b@10.0.0.1", "a@::1", "a@10.0.0.10", "a@10.0.0.9", "a@9.255.0.1", "a@fdaa::2"]
    assert sorted_nodes(names) == [
        "a@9.255.0.1",
        "a@10.0.0.9",
        "a@10.0.0.10",
        "a@::1",
        "a@fdaa::2",
        "b@10.0.0.1",
    ]


@given(st.ip_addresses())
def test_every_address_has_a_canonical_text(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    text = canonical_ip(address.exploded)
    assert text is not None
    assert canonical_ip(text) == text
    assert canonical_ip(text.upper()) == text
    assert canonical_ip(f"[{text}]") == text
    assert str(NodeName.parse(f"n@{text}")) == f"n@{text}"


@given(st.text(max_size=40))
def test_any_text_is_a_name_or_invalid(text: str) -> None:
    try:
        name = NodeName.parse(text)
    except InvalidName:
        return
    assert NodeName.parse(str(name)) == name


def test_endpoints() -> None:
    assert endpoint("10.0.0.7", 4370) == "10.0.0.7:4370"
    assert endpoint("fdaa::2", 4370) == "[fdaa::2]:4370"


@pytest.mark.parametrize("name", ["a", "printer", "session:42/ü", "x" * 255, " "])
def test_process_names(name: str) -> None:
    assert check_process_name(name) is name


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", "\x00", "\ud800", "\u200b"])
def test_what_is_not_a_process_name(name: str) -> None:
    with pytest.raises(InvalidName):
        check_process_name(name)


def test_an_address_is_its_tuple() -> None:
    assert Address("printer", "n@::1") == ("printer", "n@::1")
    assert Address("printer", "n@::1").node == "n@::1"
