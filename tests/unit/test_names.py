"""Node names have one canonical text; process names are printable."""

from __future__ import annotations

import ipaddress
from typing import Any

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
    parse_address,
    sorted_nodes,
)
from fleetlm.texts import SHORT


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
        ("w@10.0.0.7:4373", "w@10.0.0.7:4373"),
        ("w@ 10.0.0.7:04373 ", "w@10.0.0.7:4373"),
        ("w@[FDAA:0:0::00A2]:4373", "w@[fdaa::a2]:4373"),
        ("w@[::ffff:10.0.0.7]:4373", "w@10.0.0.7:4373"),
        ("w@fd00::7:4373", "w@fd00::7:4373"),  # Without brackets: an address, and no port.
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
        ("fleetlm@10.0.0.7:", "nor one with a port such as 10.0.0.7:4373"),
        ("fleetlm@10.0.0.7:0", "not an IP address"),
        ("fleetlm@10.0.0.7:65536", "not an IP address"),
        ("fleetlm@10.0.0.7:-1", "not an IP address"),
        ("fleetlm@10.0.0.7:43 73", "not an IP address"),
        ("fleetlm@10.0.0.7:٤٣٧٣", "not an IP address"),
        ("fleetlm@10.0.0.7:4373:4373", "not an IP address"),
        ("fleetlm@worker-1:4373", "host names are not used"),
        ("fleetlm@:4373", "not an IP address"),
        ("fleetlm@[]:4373", "not an IP address"),
        ("fleetlm@[fd00::7:4373", "not an IP address"),
        ("fleetlm@fd00::7]:4373", "not an IP address"),
        ("fleetlm@[fe80::1%eth0]:4373", "not an IP address"),
        ("fleetlm@[10.0.0.7]:4373", "not an IP address"),
        ("fleetlm@fe80::1%eth0", "not an IP address"),
        ("a@b@10.0.0.7", "not an IP address"),
        ("a@٣.0.0.1", "not an IP address"),
    ],
)
def test_what_is_not_a_node_name(text: str, why: str) -> None:
    with pytest.raises(InvalidName, match=why) as caught:
        NodeName.parse(text)
    assert caught.value.name == text
    assert SHORT.repr(text) in str(caught.value)
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


@pytest.mark.parametrize("name", [5, b"a", None, ("a",)])
def test_what_is_no_text_is_no_name(name: Any) -> None:
    with pytest.raises(TypeError, match="a name is a str, not"):
        check_process_name(name)


def test_an_address_is_its_tuple() -> None:
    assert Address("printer", "n@::1") == ("printer", "n@::1")
    assert Address("printer", "n@::1").node == "n@::1"


def test_the_base_port_is_left_out_of_a_name() -> None:
    assert canonical_node("w@10.0.0.7:4370", 4370) == "w@10.0.0.7"
    assert canonical_node("w@[fd00::7]:4370", 4370) == "w@fd00::7"
    assert canonical_node("w@10.0.0.7:4371", 4370) == "w@10.0.0.7:4371"
    assert canonical_node("w@10.0.0.7:4370", 5000) == "w@10.0.0.7:4370"
    assert canonical_node("w@10.0.0.7:4370") == "w@10.0.0.7:4370"  # Of no cluster in particular.


def test_the_nodes_of_one_host_are_ordered_by_port_and_the_base_port_comes_first() -> None:
    names = ["a@10.0.0.9:4371", "a@10.0.0.10", "a@10.0.0.9:10000", "a@10.0.0.9", "a@[::1]:4371", "a@::1"]
    assert sorted_nodes(names) == [
        "a@10.0.0.9",
        "a@10.0.0.9:4371",
        "a@10.0.0.9:10000",
        "a@10.0.0.10",
        "a@::1",
        "a@[::1]:4371",
    ]


PORTS = st.integers(1, 65_535)
BASENAMES = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}\Z")


@given(BASENAMES, st.ip_addresses(), st.none() | PORTS, PORTS)
def test_a_name_is_the_same_after_it_was_written_and_parsed(
    basename: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int | None, base_port: int
) -> None:
    ip = canonical_ip(str(address))
    if ip is None:  # An IPv6 address with a scope.
        return
    name = NodeName(basename, ip, None if port == base_port else port)
    assert NodeName.parse(str(name), base_port) == name
    assert canonical_node(str(name), base_port) == str(name)
    assert str(name) == f"{basename}@{name.address}"
    spelt_out = f"{basename}@{endpoint(address.exploded, base_port if name.port is None else name.port)}"
    assert NodeName.parse(spelt_out, base_port) == name
    assert parse_address(name.address) == (ip, name.port)


@given(st.text(max_size=40) | st.from_regex(r"\A[a-z]@[0-9a-f:.\[\]]{1,30}\Z"), PORTS)
def test_any_text_is_refused_or_has_one_canonical_text(text: str, base_port: int) -> None:
    try:
        name = NodeName.parse(text, base_port)
    except InvalidName:
        return
    assert name.port != base_port
    assert NodeName.parse(str(name), base_port) == name


@given(st.lists(st.tuples(st.ip_addresses(v=4), st.none() | PORTS), max_size=20))
def test_names_that_differ_have_different_keys(
    parts: list[tuple[ipaddress.IPv4Address, int | None]],
) -> None:
    names = {str(NodeName("w", str(address), port)) for address, port in parts}
    assert len({NodeName.parse(name).sort_key for name in names}) == len(names)
    assert sorted(sorted_nodes(list(names))) == sorted(names)
