"""Programs of packet filters, run by a small interpreter; `tests/transport` lets the kernel run them."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from fleetlm.transport.packet_filter import INSTRUCTION_BYTES, drop_all, drop_from

NETWORK_HEADER = 0xFFF0_0000


def passes(program: bytes, source: str) -> bool:
    """Run a program on a packet from an address."""
    ip = ipaddress.ip_address(source)
    header = b"\x45" + bytes(11) + ip.packed if ip.version == 4 else b"\x60" + bytes(7) + ip.packed
    code = list(struct.iter_unpack("HBBI", program))
    at = value = 0
    while True:
        what, yes, no, operand = code[at]
        at += 1
        match what:
            case 0x30:
                value = header[operand - NETWORK_HEADER]
            case 0x20:
                value = int.from_bytes(header[operand - NETWORK_HEADER :][:4], "big")
            case 0x54:
                value &= operand
            case 0x15:
                at += yes if value == operand else no
            case 0x06:
                return bool(operand)


def test_a_filter_may_drop_all() -> None:
    assert len(drop_all()) == INSTRUCTION_BYTES
    assert not passes(drop_all(), "10.0.0.1")
    assert not passes(drop_all(), "2001:db8::1")


@pytest.mark.parametrize(
    ("dropped", "passed"),
    [
        ([], ["10.0.0.1", "2001:db8::1"]),
        (["10.0.0.1"], ["10.0.0.2", "10.0.1.1", "2001:db8::1"]),
        (["10.0.0.1", "10.0.0.3", "255.255.255.255"], ["10.0.0.2", "0.0.0.0", "::1"]),
        (["2001:db8::1"], ["2001:db8:0:1::1", "2001:db9::1", "10.0.0.1"]),
        (["2001:db8::1", "fe80::1%lo", "10.0.0.1"], ["2001:db8:1::", "fe80:0:0:1::1", "10.0.0.2"]),
        ([f"10.0.0.{n}" for n in range(16)], ["10.0.0.16"]),
        ([f"2001:db8:{n}::1" for n in range(16)], ["2001:db8:20::1"]),
    ],
)
def test_a_filter_drops_what_comes_from_some_addresses(dropped: list[str], passed: list[str]) -> None:
    program = drop_from(dropped)
    assert [ip for ip in dropped if passes(program, ip.partition("%")[0])] == []
    assert [ip for ip in passed if not passes(program, ip)] == []


def test_the_neighbours_of_an_ipv6_address_are_dropped_with_it() -> None:
    """One machine can have a whole network of 64 bits."""
    assert not passes(drop_from(["2001:db8::1"]), "2001:db8::ffff:1")
