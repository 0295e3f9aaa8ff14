"""The kernel's list of addresses, byte by byte."""

from __future__ import annotations

import socket
import struct
import sys

import pytest

from fleetlm.discovery.interfaces import leads_nowhere, local_addresses, parse


def address(ip: str, *, index: int = 2, flags: int = 0, local: str | None = None) -> bytes:
    """Return one RTM_NEWADDR message."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    body = struct.pack("=BBBBI", family, 24, flags, 0, index)
    for kind, text in ((1, ip), (2, local), (3, None)):
        if kind == 3:
            body += struct.pack("=HH", 4 + 5, 3) + b"eth0\0" + bytes(3)  # IFA_LABEL, padded
        elif text is not None:
            raw = socket.inet_pton(family, text)
            body += struct.pack("=HH", 4 + len(raw), kind) + raw
    return struct.pack("=IHHII", 16 + len(body), 20, 2, 1, 0) + body


def done(kind: int = 3) -> bytes:
    return struct.pack("=IHHIIi", 20, kind, 2, 1, 0, 0)


def test_addresses_are_read_until_the_end_of_the_answer() -> None:
    data = address("10.0.0.7") + address("fd00::7", index=3)
    assert parse(data) == ([("10.0.0.7", 2), ("fd00::7", 3)], False)
    assert parse(data + done()) == ([("10.0.0.7", 2), ("fd00::7", 3)], True)
    assert parse(done()) == ([], True)
    assert parse(b"") == ([], False)


def test_of_a_point_to_point_interface_the_local_end_counts() -> None:
    assert parse(address("10.0.0.1", local="10.0.0.7")) == ([("10.0.0.7", 2)], False)


@pytest.mark.parametrize(("flags", "is_listed"), [(0, True), (0x40, False), (0x44, True), (0x80, True)])
def test_a_tentative_address_is_not_there_yet(flags: int, is_listed: bool) -> None:
    found, _ = parse(address("fd00::7", flags=flags))
    assert bool(found) is is_listed


@pytest.mark.parametrize(("flags", "is_listed"), [(0, False), (0x40, True), (0x44, False), (0x48, False)])
def test_an_address_that_is_checked_for_duplicates_will_be_there_in_a_moment(
    flags: int, is_listed: bool
) -> None:
    found, _ = parse(address("fd00::7", flags=flags), tentative=True)
    assert bool(found) is is_listed


@pytest.mark.parametrize("data", [done(2), struct.pack("=IHHII", 3, 20, 0, 0, 0)])
def test_a_refusal_or_nonsense_is_an_error(data: bytes) -> None:
    with pytest.raises(OSError, match="netlink"):
        parse(data)


def test_an_answer_that_is_cut_off_is_an_error() -> None:
    with pytest.raises(struct.error):
        parse(address("10.0.0.7") + b"\0\0")


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (0x1 | 0x8, True),  # lo
        (0x1 | 0x2 | 0x80, True),  # dummy, kube-ipvs0
        (0x1 | 0x10 | 0x80, False),  # WireGuard, tun
        (0x1 | 0x2 | 0x1000, False),  # eth0
    ],
)
def test_loopback_and_dummy_interfaces_lead_nowhere(flags: int, answer: bool) -> None:
    assert leads_nowhere(flags) is answer


def test_without_netlink_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_NETLINK", raising=False)
    assert local_addresses() is None


def test_a_system_that_refuses_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise PermissionError

    monkeypatch.setattr(socket, "socket", refuse)
    assert local_addresses() is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has netlink")
def test_this_machine_has_its_loopback_address() -> None:
    found = local_addresses()
    assert found is not None
    assert "127.0.0.1" in [each.ip for each in found]
    assert not any(each.may_be_shared for each in found if each.ip == "127.0.0.1")
