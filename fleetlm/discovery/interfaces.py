"""The addresses of this machine and the interfaces that have them, asked of the Linux kernel.

An address that can be bound need not be this machine's: with ``net.ipv4.ip_nonlocal_bind`` every address can.
And an address on a loopback or dummy interface may be on other machines as well: the virtual address of a
Docker Swarm service, of LVS with direct return, of kube-proxy in IPVS mode, or an anycast address.

Source: rtnetlink(7), a dump of RTM_GETADDR. Nothing is sent to the network, and no privilege is needed.
"""

from __future__ import annotations

import array
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from fleetlm.names import canonical_ip
from fleetlm.records import Record

_GET_ADDRESSES: Final = 22
_NEW_ADDRESS: Final = 20
_DONE: Final = 3
_ERROR: Final = 2
_REQUEST_DUMP: Final = 0x301
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_GET_FLAGS: Final = 0x8913
_OPTIMISTIC, _DAD_FAILED, _TENTATIVE = 0x04, 0x08, 0x40
_LOOPBACK, _POINT_TO_POINT, _NO_ARP = 0x8, 0x10, 0x80
_HEADER: Final = struct.Struct("=IHHII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_RECEIVE_BYTES: Final = 256 * 1024
_TIMEOUT_S: Final = 1.0
"""Seconds for the kernel's answer, which comes at once."""


class InterfaceAddress(Record):
    """One address of this machine.

    Attributes:
        ip: the address, in canonical text.
        interface: the name of the interface that has it.
        may_be_shared: whether the interface leads nowhere (loopback, dummy), so that other machines may have
            the same address. False for loopback addresses themselves.
    """

    ip: str
    interface: str
    may_be_shared: bool = False


def local_addresses() -> tuple[InterfaceAddress, ...] | None:
    """Return all addresses of this machine that can be used; None where the system does not tell."""
    found = _ask_kernel(tentative=False)
    return None if found is None else tuple(_describe(found))


def tentative_addresses() -> frozenset[str]:
    """Return the addresses that this machine will have in a moment, if no other machine has them.

    The kernel asks its neighbours for a second or more whether they have a new IPv6 address (duplicate
    address detection), and nothing can be bound to it meanwhile. Empty where the system does not tell.

    Source: RFC 4862, section 5.4; ``dad_transmits`` and ``router_solicitation_delay`` of Linux.
    """
    found = (canonical_ip(text) for text, _ in _ask_kernel(tentative=True) or ())
    return frozenset(ip for ip in found if ip is not None)


def _ask_kernel(*, tentative: bool) -> list[tuple[str, int]] | None:
    """Return the addresses with the numbers of their interfaces; None where the system does not tell."""
    family = getattr(socket, "AF_NETLINK", None)
    if family is None:
        return None
    try:
        with socket.socket(family, socket.SOCK_RAW, 0) as netlink:
            netlink.settimeout(_TIMEOUT_S)
            netlink.bind((0, 0))
            netlink.send(_HEADER.pack(_HEADER.size + 8, _GET_ADDRESSES, _REQUEST_DUMP, 1, 0) + bytes(8))
            found: list[tuple[str, int]] = []
            is_done = False
            while not is_done:
                messages, is_done = parse(netlink.recv(_RECEIVE_BYTES), tentative=tentative)
                found += messages
        return found
    except (OSError, struct.error):
        return None


def find_addresses(wanted: str, known: Iterable[InterfaceAddress]) -> list[InterfaceAddress]:
    """Return the addresses of an interface or in a network, IPv4 before IPv6, without link-local ones.

    Loopback addresses come last in a network that also holds others, such as ``0.0.0.0/0``.

    Args:
        wanted: the name of an interface, or a network such as ``10.8.0.0/16``.
        known: the addresses of this machine; those of one family keep their order.
    """
    network = ipaddress.ip_network(wanted) if "/" in wanted else None
    found: list[tuple[bool, bool, InterfaceAddress]] = []
    for each in known:
        address = ipaddress.ip_address(each.ip)
        is_wanted = each.interface == wanted if network is None else address in network
        if is_wanted and not address.is_link_local:
            found.append((network is not None and address.is_loopback, address.version == 6, each))
    return [each for _, _, each in sorted(found, key=lambda entry: entry[:2])]


def list_interfaces(known: Iterable[InterfaceAddress]) -> str:
    """Return the interfaces with their addresses as people read them: ``lo (127.0.0.1, ::1), eth0 (…)``."""
    by_name: dict[str, list[str]] = {}
    for each in known:
        by_name.setdefault(each.interface, []).append(each.ip)
    return ", ".join(f"{name} ({', '.join(ips)})" for name, ips in by_name.items())


def parse(data: bytes, *, tentative: bool = False) -> tuple[list[tuple[str, int]], bool]:
    """Read one datagram of the kernel's answer.

    Args:
        data: the datagram.
        tentative: whether to return the addresses that cannot be used yet, instead of those that can.

    Returns:
        The addresses with the numbers of their interfaces, and whether the answer is complete.

    Raises:
        OSError: the kernel refused the request.
        struct.error: the data is cut off.
    """
    found: list[tuple[str, int]] = []
    at = 0
    while at < len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if kind == _DONE:
            return found, True
        if kind == _ERROR or length < _HEADER.size:
            raise OSError("netlink refused to list the addresses of this machine")
        if kind == _NEW_ADDRESS:
            entry = _read_address(data[at + _HEADER.size : at + length], tentative=tentative)
            if entry is not None:
                found.append(entry)
        at += (length + 3) & ~3
    return found, False


def _read_address(body: bytes, *, tentative: bool) -> tuple[str, int] | None:
    _, _, flags, _, index = _ADDRESS.unpack_from(body)
    is_tentative = bool(flags & _TENTATIVE) and not flags & _OPTIMISTIC
    if is_tentative != tentative or (tentative and flags & _DAD_FAILED):
        return None
    attributes = dict(_read_attributes(body[_ADDRESS.size :]))
    # On a point-to-point interface the local address is IFA_LOCAL, and IFA_ADDRESS is the other end's.
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if raw is None or len(raw) not in (4, 16):
        return None
    return str(ipaddress.ip_address(raw)), index


def _read_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _describe(found: list[tuple[str, int]]) -> Iterator[InterfaceAddress]:
    """Add the names of the interfaces, and whether other machines may have the same address."""
    for text, index in found:
        ip = canonical_ip(text)
        if ip is None:
            continue
        try:
            name = socket.if_indextoname(index)
        except OSError:
            continue  # The interface has gone meanwhile.
        is_loopback = ipaddress.ip_address(ip).is_loopback
        yield InterfaceAddress(ip, name, not is_loopback and leads_nowhere(_read_flags(name)))


def leads_nowhere(flags: int) -> bool:
    """Whether the flags of an interface are those of a loopback or dummy interface. Source: netdevice(7)."""
    return bool(flags & _LOOPBACK) or bool(flags & _NO_ARP and not flags & _POINT_TO_POINT)


def _read_flags(name: str) -> int:
    request = array.array("B", struct.pack("16sh22x", name.encode()[:15], 0))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _GET_FLAGS, request, True)
    except OSError:
        return 0
    return int(struct.unpack_from("16xH", request)[0])
