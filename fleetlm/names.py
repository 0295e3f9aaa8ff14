"""Names: of nodes (``basename@ip``) and of processes on them.

A node name has one canonical text (IPv6 compressed and lower case, no brackets), so that names
can be compared as strings everywhere; `NodeName` is for taking one apart and for ordering.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from fleetlm.errors import InvalidName

BASENAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
MAX_PROCESS_NAME_LENGTH = 255
"""Characters: long enough for a session id with a prefix, short enough for a log line."""


class Address(NamedTuple):
    """A named process on a node: what `Node.send` and `Node.call` take. Equal to the bare tuple."""

    name: str
    node: str


@dataclass(frozen=True, slots=True)
class NodeName:
    """A node name in its parts. ``str(name)`` is the canonical text."""

    basename: str
    ip: str

    @classmethod
    @lru_cache(maxsize=8_192)  # The same few names, told by every peer every second.
    def parse(cls, text: str) -> NodeName:
        """Read ``basename@ip``, in any spelling of the address.

        Raises:
            InvalidName: no ``@``, a basename with other characters than ``A-Z a-z 0-9 _ . -``,
                or no IP address behind the ``@`` (host names are not node names).
        """
        basename, at, ip = text.partition("@")
        if not at:
            raise InvalidName(text, "a node name reads basename@ip, such as fleetlm@10.0.0.7")
        if not BASENAME.fullmatch(basename):
            raise InvalidName(text, "the basename is 1 to 64 of A-Z a-z 0-9 _ . -")
        canonical = canonical_ip(ip)
        if canonical is None:
            raise InvalidName(text, f"{ip!r} is not an IP address (host names are not used in node names)")
        return cls(basename, canonical)

    def __str__(self) -> str:
        return f"{self.basename}@{self.ip}"

    @property
    def sort_key(self) -> tuple[str, int, int]:
        """Orders by basename, then IPv4 before IPv6, then by number: 10.0.0.9 before 10.0.0.10."""
        address = ipaddress.ip_address(self.ip)
        return (self.basename, address.version, int(address))


def canonical_ip(text: str) -> str | None:
    """The one text form of an address, or None where it is none (or is scoped to an interface).

    IPv4-mapped IPv6 addresses become IPv4: the two are one address of one machine.
    """
    try:
        address = ipaddress.ip_address(text.strip().removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


@lru_cache(maxsize=8_192)
def canonical_node(text: str) -> str:
    """The canonical text of a node name. Raises: InvalidName."""
    return str(NodeName.parse(text))


def sorted_nodes(names: list[str]) -> list[str]:
    """Canonical node names in the order of `NodeName.sort_key`."""
    return sorted(names, key=_sort_key)


@lru_cache(maxsize=8_192)
def _sort_key(name: str) -> tuple[str, int, int]:
    return NodeName.parse(name).sort_key


def endpoint(ip: str, port: int) -> str:
    """``10.0.0.7:4370`` or ``[fdaa::2]:4370``: an address as it is written beside a port."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def check_process_name(name: str) -> str:
    """Return ``name`` if a process may have it.

    Raises:
        InvalidName: empty, longer than 255 characters, or not printable.
    """
    if not name or len(name) > MAX_PROCESS_NAME_LENGTH:
        raise InvalidName(name, f"a process name has 1 to {MAX_PROCESS_NAME_LENGTH} characters")
    if not name.isprintable():
        raise InvalidName(name, "a process name is printable text")
    return name
