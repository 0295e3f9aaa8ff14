"""The result of a lookup of the cluster's name: one of four outcomes, which are never confused.

A resolver that fails says nothing about the nodes, but a name without addresses says that there are none.
A program that mistakes the first for the second cuts a healthy cluster, so the two are different values
here and stay different up to the connection table.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache

from fleetlm.names import endpoint, parse_address
from fleetlm.records import Record

MAX_ADDRESSES = 4096
"""Addresses taken from one answer: a DNS message of 64 KiB holds no more."""
FAMILIES = (4, 6)
"""The IP versions of addresses."""
MAX_DISCARDS_NAMED = 3
"""Unusable addresses that an answer's detail names; further ones are only counted."""

_UNSPECIFIED = "unspecified; ad blockers answer so"
_MULTICAST = "multicast"

_Place = tuple[int, int, int, str]
"""An address in the order of answers: IP version, number, port (0: none), canonical text."""


class Outcome(enum.Enum):
    """How a lookup ended."""

    ADDRESSES = "addresses"
    """The whole answer arrived, and it holds addresses."""
    EMPTY = "empty"
    """The name server says that there is no address: NXDOMAIN, or no record."""
    PARTIAL = "partial"
    """There are addresses, and more may exist: one family failed, or the answer was cut short.
    `Answer.is_whole` says which family is complete nevertheless."""
    FAILED = "failed"
    """Nothing is known: SERVFAIL, REFUSED, timeout, garbage, no network, or only unusable addresses."""


class Answer(Record):
    """The result of one lookup.

    Attributes:
        outcome: how it ended.
        addresses: canonical texts without duplicates, IPv4 first, then by number and port; empty unless
            the outcome is ADDRESSES or PARTIAL. Each is an IP address, whose port is not known (of an A or
            AAAA record), or an IP address with a port (of an SRV record): ``10.0.0.7``, ``fd00::7``,
            ``10.0.0.7:4371``, ``[fd00::7]:4371``. `fleetlm.names.parse_address` takes them apart.
        detail: what happened, in words: "3 addresses", "NXDOMAIN", "SERVFAIL from 10.0.0.2".
        whole_families: the IP versions, 4 and 6, whose addresses are all known; see `is_whole`. None becomes
            both if the outcome is ADDRESSES or EMPTY, and neither if it is PARTIAL or FAILED.
    """

    outcome: Outcome
    addresses: tuple[str, ...]
    detail: str
    whole_families: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Fill in `whole_families`."""
        if self.whole_families is None:
            is_known = self.outcome in (Outcome.ADDRESSES, Outcome.EMPTY)
            object.__setattr__(self, "whole_families", FAMILIES if is_known else ())

    def is_whole(self, family: int) -> bool:
        """Whether an address of that IP version (4 or 6) that is missing here is missing in DNS.

        An answer may be whole for IPv4 only, and stay so: many name servers drop or refuse questions for
        IPv6 addresses. The absence of a peer counts only if the answer is whole for its address.
        """
        return family in (self.whole_families or ())


def count_addresses(number: int) -> str:
    """Return ``1 address`` or ``3 addresses``."""
    return "1 address" if number == 1 else f"{number} addresses"


def merge(answers: Sequence[tuple[str, Answer]]) -> Answer:
    """Make one answer of those for several names, whose addresses together are the cluster.

    An address counts from whichever name it comes. That there are no others, and that an address is
    absent, is known only if every lookup was whole:

    * with addresses: ADDRESSES if every answer is ADDRESSES or EMPTY, otherwise PARTIAL;
    * without: EMPTY if every answer is EMPTY, otherwise FAILED.

    Args:
        answers: each name with its answer. The details of several are joined.
    """
    if len(answers) == 1:
        return answers[0][1]
    found = [answer for _, answer in answers]
    addresses, too_many = sift(address for answer in found for address in answer.addresses)
    detail = "; ".join(f"{name}: {answer.detail}" for name, answer in answers)
    if too_many:
        detail += f"; {too_many}"
    is_known = all(answer.outcome in (Outcome.ADDRESSES, Outcome.EMPTY) for answer in found)
    if addresses:
        outcome = Outcome.ADDRESSES if is_known else Outcome.PARTIAL
    else:
        outcome = Outcome.EMPTY if is_known else Outcome.FAILED
    whole = tuple(family for family in FAMILIES if all(answer.is_whole(family) for answer in found))
    return Answer(outcome, addresses, detail, whole)


def answer_of_list(texts: Sequence[str]) -> Answer:
    """Make an answer of addresses that do not come from DNS."""
    addresses, passed_over = sift(texts)
    if addresses:
        detail = ", ".join(filter(None, (count_addresses(len(addresses)), passed_over)))
        return Answer(Outcome.ADDRESSES, addresses, detail)
    if texts:
        return Answer(Outcome.FAILED, (), f"no usable address: {passed_over}")
    return Answer(Outcome.EMPTY, (), "no addresses")


def list_hosts(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return the IP addresses of an answer's addresses, each once and in the same order, without ports."""
    parts = (parse_address(text) for text in addresses)
    return tuple(dict.fromkeys(part[0] for part in parts if part is not None))


def sift(texts: Iterable[str]) -> tuple[tuple[str, ...], str]:
    """Separate the usable addresses of an answer from the unusable ones.

    Loopback addresses are usable, so that a cluster can be tried on one machine.

    Returns:
        At most `MAX_ADDRESSES` addresses, ordered as `Answer.addresses` is, and a remark on those that were
        passed over, such as "passed over 0.0.0.0 (unspecified)"; "" if every address was taken.
    """
    usable: set[_Place] = set()
    unusable: dict[str, str] = {}
    for text in texts:
        place, reason = _look_at(text)
        if reason is None:
            usable.add(place)
        else:
            unusable[place[-1]] = reason
    ordered = sorted(usable)
    remarks = [f"passed over {text} ({reason})" for text, reason in unusable.items()]
    if len(remarks) > MAX_DISCARDS_NAMED:
        rest = len(remarks) - MAX_DISCARDS_NAMED
        remarks = [*remarks[:MAX_DISCARDS_NAMED], f"and {rest} more"]
    if len(ordered) > MAX_ADDRESSES:
        # Not a random choice: all nodes must look for the same ones.
        remarks.append(f"took the lowest {MAX_ADDRESSES} of {len(ordered)} addresses")
        del ordered[MAX_ADDRESSES:]
    return tuple(canonical for *_, canonical in ordered), ", ".join(remarks)


@lru_cache(maxsize=2 * MAX_ADDRESSES)  # Each answer brings the same ones.
def _look_at(text: str) -> tuple[_Place, str | None]:
    """Return an address in the order of answers with its canonical text, and why it is unusable, if it is."""
    number = _number_of_ipv4(text)
    if number is not None:
        return (4, number, 0, text), _why_unusable_ipv4(number)
    parts = parse_address(text)
    if parts is None:
        return (0, 0, 0, text), "not an address that means the same on every machine"
    ip, port = parts
    canonical = ip if port is None else endpoint(ip, port)
    address = ipaddress.ip_address(ip)
    if address.version == 4:
        return (4, int(address), port or 0, canonical), _why_unusable_ipv4(int(address))
    return (address.version, int(address), port or 0, canonical), _why_unusable(address)


def _number_of_ipv4(text: str) -> int | None:
    """Return an IPv4 address as a number; None for all but its one usual text.

    An answer may bring thousands, and `ipaddress` takes ten times as long for each.
    """
    parts = text.split(".")
    if len(parts) != 4 or not text.isascii():
        return None
    number = 0
    for part in parts:
        if not part.isdigit() or len(part) > 3 or (part[0] == "0" and len(part) > 1) or int(part) > 255:
            return None
        number = number << 8 | int(part)
    return number


def _why_unusable_ipv4(number: int) -> str | None:
    if number == 0:
        return _UNSPECIFIED
    if number >> 28 == 0b1110:
        return _MULTICAST
    return "broadcast" if number == 0xFFFF_FFFF else None


def _why_unusable(address: ipaddress.IPv6Address) -> str | None:
    if address.is_unspecified:
        return _UNSPECIFIED
    if address.is_multicast:
        return _MULTICAST
    if address.is_link_local:
        return "link-local: it names another machine on each network interface"
    return None
