"""What a lookup of the cluster's name came to: four outcomes that are never taken for each other.

A resolver that fails says nothing about the nodes; a name without addresses says that there are
none. Whoever reads the first as the second cuts a healthy cluster, so the two are different values
here and stay different all the way up.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from fleetlm.names import canonical_ip

MAX_ADDRESSES = 4096
"""Addresses taken from one answer: what a DNS message of 64 KiB can hold."""
MAX_DISCARDS_TOLD = 3
"""Unusable addresses named in an answer's detail; the rest is counted."""


class Outcome(enum.Enum):
    """How a lookup ended."""

    ADDRESSES = "addresses"
    """The whole answer arrived and holds addresses."""
    EMPTY = "empty"
    """The name server says that there is no address: NXDOMAIN, or no record."""
    PARTIAL = "partial"
    """There are addresses, and more may exist: one family failed, or the answer was cut short."""
    FAILED = "failed"
    """Nothing is known: SERVFAIL, REFUSED, timeout, garbage, no network, unusable addresses."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one lookup.

    Attributes:
        outcome: how it ended.
        addresses: canonical texts without duplicates, IPv4 first, then by number; empty unless
            the outcome is ADDRESSES or PARTIAL.
        detail: what happened, in words: "3 addresses", "NXDOMAIN", "SERVFAIL from 10.0.0.2".
    """

    outcome: Outcome
    addresses: tuple[str, ...]
    detail: str


def sift(texts: Iterable[str]) -> tuple[tuple[str, ...], str]:
    """Sort what a name server said into usable addresses and a remark on the rest.

    Loopback addresses are usable: that is how a cluster is tried out on one machine.

    Returns:
        The addresses as `Answer.addresses` has them, at most `MAX_ADDRESSES`, and the remark:
        "" where every address was taken, else such as "passed over 0.0.0.0 (unspecified)".
    """
    usable: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()
    unusable: dict[str, str] = {}
    for text in texts:
        canonical = canonical_ip(text)
        if canonical is None:
            unusable[text] = "not an address that means the same on every machine"
            continue
        address = ipaddress.ip_address(canonical)
        reason = _unusable(address)
        if reason is None:
            usable.add(address)
        else:
            unusable[canonical] = reason
    ordered = sorted(usable, key=lambda address: (address.version, int(address)))
    remarks = [f"passed over {text} ({reason})" for text, reason in unusable.items()]
    if len(remarks) > MAX_DISCARDS_TOLD:
        rest = len(remarks) - MAX_DISCARDS_TOLD
        remarks = [*remarks[:MAX_DISCARDS_TOLD], f"and {rest} more"]
    if len(ordered) > MAX_ADDRESSES:
        # The lowest and not a random choice, so that all nodes look for the same ones.
        remarks.append(f"took the lowest {MAX_ADDRESSES} of {len(ordered)} addresses")
        del ordered[MAX_ADDRESSES:]
    return tuple(str(address) for address in ordered), ", ".join(remarks)


def _unusable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    if address.is_unspecified:
        return "unspecified; ad blockers answer so"
    if address.is_multicast:
        return "multicast"
    if address == ipaddress.IPv4Address("255.255.255.255"):
        return "broadcast"
    if address.version == 6 and address.is_link_local:
        return "link-local: it names another machine on each network interface"
    return None
