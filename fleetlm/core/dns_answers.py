"""The result of a lookup of the cluster's name: one of four outcomes, which are never confused.

A resolver that fails says nothing about the nodes, but a name without addresses says that there are none.
A program that mistakes the first for the second cuts a healthy cluster, so the two are different values
here and stay different up to the connection table.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from fleetlm.names import canonical_ip

MAX_ADDRESSES = 4096
"""Addresses taken from one answer: a DNS message of 64 KiB holds no more."""
MAX_DISCARDS_NAMED = 3
"""Unusable addresses that an answer's detail names; further ones are only counted."""


class Outcome(enum.Enum):
    """How a lookup ended."""

    ADDRESSES = "addresses"
    """The whole answer arrived, and it holds addresses."""
    EMPTY = "empty"
    """The name server says that there is no address: NXDOMAIN, or no record."""
    PARTIAL = "partial"
    """There are addresses, and more may exist: one family failed, or the answer was cut short."""
    FAILED = "failed"
    """Nothing is known: SERVFAIL, REFUSED, timeout, garbage, no network, or only unusable addresses."""


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
    """Separate the usable addresses of an answer from the unusable ones.

    Loopback addresses are usable, so that a cluster can be tried on one machine.

    Returns:
        At most `MAX_ADDRESSES` addresses, ordered as `Answer.addresses` is, and a remark on those that were
        passed over, such as "passed over 0.0.0.0 (unspecified)"; "" if every address was taken.
    """
    usable: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()
    unusable: dict[str, str] = {}
    for text in texts:
        canonical = canonical_ip(text)
        if canonical is None:
            unusable[text] = "not an address that means the same on every machine"
            continue
        address = ipaddress.ip_address(canonical)
        reason = _why_unusable(address)
        if reason is None:
            usable.add(address)
        else:
            unusable[canonical] = reason
    ordered = sorted(usable, key=lambda address: (address.version, int(address)))
    remarks = [f"passed over {text} ({reason})" for text, reason in unusable.items()]
    if len(remarks) > MAX_DISCARDS_NAMED:
        rest = len(remarks) - MAX_DISCARDS_NAMED
        remarks = [*remarks[:MAX_DISCARDS_NAMED], f"and {rest} more"]
    if len(ordered) > MAX_ADDRESSES:
        # Not a random choice: all nodes must look for the same ones.
        remarks.append(f"took the lowest {MAX_ADDRESSES} of {len(ordered)} addresses")
        del ordered[MAX_ADDRESSES:]
    return tuple(str(address) for address in ordered), ", ".join(remarks)


def _why_unusable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    if address.is_unspecified:
        return "unspecified; ad blockers answer so"
    if address.is_multicast:
        return "multicast"
    if address == ipaddress.IPv4Address("255.255.255.255"):
        return "broadcast"
    if address.version == 6 and address.is_link_local:
        return "link-local: it names another machine on each network interface"
    return None
