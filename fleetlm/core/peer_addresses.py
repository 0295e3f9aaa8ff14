"""Which addresses a peer may have: what this node dials, and whom it lets in, because others name an address.

Three sources name addresses, and none of them is trusted alike:

- A *peer* tells of others (hearsay). It may lie, and each address that it names is dialled by every node that
  believes it. So hearsay counts only where a peer could be: not on loopback, link-local or reserved networks
  unless this node is there itself, not on the public internet if this node has private addresses only, and
  never at an address where no node can be (multicast, unspecified, broadcast, a cloud's metadata service).
- A *node that introduces itself* is dialled back at the address in its name.
- *DNS* is the operator's, and so is the program that asks for a node.

`Settings.allowed_networks` is the operator's own word on it. It holds for all that others name, for the
address in the name of a node that introduces itself, and for the address from which that node dials. DNS
answers outside of it are passed over, and said so once.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from fleetlm.core.exposure import is_private
from fleetlm.names import parse_address

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NEVER_A_PEER: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this network"
        "255.255.255.255/32",  # broadcast
        "100.100.100.200/32",  # metadata service of Alibaba Cloud
        "168.63.129.16/32",  # the same of Azure
        "169.254.169.0/24",  # the same of AWS, Google Cloud and most others
        "169.254.170.0/24",  # credentials of AWS containers
        "fd00:ec2::/32",  # metadata and name service of AWS
        "fd20:ce::254/128",  # metadata service of Google Cloud
        "::/128",  # unspecified
        "100::/64",  # discarded
    )
)
"""Addresses at which no node has ever answered, and some at which something else answers to everybody."""
_IPV4_IN_IPV6: Final = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "::/96"))
"""Networks whose addresses end with an IPv4 address, to which a gateway may lead."""
_ONLY_AMONG_THEMSELVES: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("127.0.0.0/8", "::1/128", "169.254.0.0/16", "fe80::/10", "240.0.0.0/4")
)
"""Networks whose nodes know each other only there: loopback, link-local, and class E, which some clouds give
to their pods."""


class PeerAddresses:
    """Decides which addresses are dialled and admitted.

    Args:
        own_ips: the addresses of this node.
        networks: `Settings.allowed_networks`, as texts; none of them: every network is allowed.
    """

    def __init__(self, own_ips: Iterable[str], networks: Iterable[str]) -> None:
        self._own = tuple(ipaddress.ip_address(ip) for ip in own_ips)
        self._networks = tuple(ipaddress.ip_network(text) for text in networks)
        self._is_public = not all(is_private(str(ip)) for ip in self._own)

    def allows(self, ip: str) -> bool:
        """Whether an address is within the allowed networks. An unknown one ("") is only if all are."""
        if not self._networks:
            return True
        address = _parse(ip)
        return address is not None and _is_in(address, self._networks)

    def believes(self, ip: str) -> bool:
        """Whether a peer may have this address, of which another peer tells."""
        address = _parse(ip)
        if address is None or not self.allows(ip):
            return False
        if any(address == own for own in self._own):
            return True
        return all(self._is_plausible(each) for each in (address, *_embedded(address)))

    def _is_plausible(self, address: _Address) -> bool:
        if all(own.is_loopback for own in self._own):
            return address.is_loopback  # No other machine could dial back.
        for network in _ONLY_AMONG_THEMSELVES:
            if _is_in(address, (network,)) and not any(_is_in(own, (network,)) for own in self._own):
                return False
        if address.is_multicast or address.is_unspecified or _is_in(address, NEVER_A_PEER):
            return False
        return self._is_public or is_private(str(address))


def split_by_network(addresses: Iterable[str], rules: PeerAddresses) -> tuple[list[str], list[str]]:
    """Separate the addresses of a DNS answer, which may have ports, into allowed ones and others."""
    allowed: list[str] = []
    others: list[str] = []
    for text in addresses:
        parts = parse_address(text)
        (allowed if parts is not None and rules.allows(parts[0]) else others).append(text)
    return allowed, others


@lru_cache(maxsize=8_192)  # Peers tell the same few addresses every second.
def _parse(ip: str) -> _Address | None:
    try:
        return ipaddress.ip_address(ip)
    except ValueError:
        return None


def _is_in(address: _Address, networks: Iterable[_Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _embedded(address: _Address) -> tuple[_Address, ...]:
    """Return the IPv4 addresses to which a gateway may lead from an IPv6 address."""
    if not isinstance(address, ipaddress.IPv6Address):
        return ()
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if _is_in(address, _IPV4_IN_IPV6) and not address.is_loopback:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return tuple(each for each in found if each is not None)
