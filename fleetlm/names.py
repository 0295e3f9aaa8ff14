"""Names of nodes (``basename@ip``) and of processes on them.

A node name has one canonical text (IPv6 compressed and in lower case, no brackets), so names are compared
as strings everywhere. `NodeName` takes a name apart and orders names.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from fleetlm.errors import InvalidName

BASENAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
"""The part of a node name before the ``@``."""
MAX_PROCESS_NAME_LENGTH = 255
"""Characters of a process name: enough for a session id with a prefix, short enough for a log line."""


class Address(NamedTuple):
    """A named process on a node, as a target of `Node.send` and `Node.call`. Equal to the bare tuple."""

    name: str
    node: str


@dataclass(frozen=True, slots=True)
class NodeName:
    """The parts of a node name. ``str(name)`` is the canonical text."""

    basename: str
    ip: str

    @classmethod
    @lru_cache(maxsize=8_192)  # Every peer sends the same few names every second.
    def parse(cls, text: str) -> NodeName:
        """Parse ``basename@ip``, with the address in any spelling.

        Raises:
            InvalidName: there is no ``@``, the basename has other characters than ``A-Z a-z 0-9 _ . -``,
                or what follows the ``@`` is not an IP address (host names are not allowed).
        """
        basename, at, ip = text.partition("@")
        if not at:
            raise InvalidName(text, "a node name has the form basename@ip, such as fleetlm@10.0.0.7")
        if not BASENAME.fullmatch(basename):
            raise InvalidName(text, "the basename must be 1 to 64 of A-Z a-z 0-9 _ . -")
        canonical = canonical_ip(ip)
        if canonical is None:
            raise InvalidName(text, f"{ip!r} is not an IP address (host names are not used in node names)")
        return cls(basename, canonical)

    def __str__(self) -> str:
        return f"{self.basename}@{self.ip}"

    @property
    def sort_key(self) -> tuple[str, int, int]:
        """Orders names by basename, then IPv4 before IPv6, then by number: 10.0.0.9 before 10.0.0.10."""
        address = ipaddress.ip_address(self.ip)
        return (self.basename, address.version, int(address))


def canonical_ip(text: str) -> str | None:
    """Return the canonical text of an IP address, or None if it is not one or has an interface scope.

    An IPv4-mapped IPv6 address becomes its IPv4 address, since both mean the same machine.
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
    """Return the canonical text of a node name. Raises: InvalidName."""
    return str(NodeName.parse(text))


def sorted_nodes(names: list[str]) -> list[str]:
    """Sort canonical node names by `NodeName.sort_key`."""
    return sorted(names, key=_sort_key)


@lru_cache(maxsize=8_192)
def _sort_key(name: str) -> tuple[str, int, int]:
    return NodeName.parse(name).sort_key


def endpoint(ip: str, port: int) -> str:
    """Format an address with a port: ``10.0.0.7:4370`` or ``[fdaa::2]:4370``."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def check_process_name(name: str) -> str:
    """Return ``name`` unchanged if it is a valid name for a process.

    Raises:
        InvalidName: the name is empty, longer than 255 characters, or not printable.
    """
    if not name or len(name) > MAX_PROCESS_NAME_LENGTH:
        raise InvalidName(name, f"a process name has 1 to {MAX_PROCESS_NAME_LENGTH} characters")
    if not name.isprintable():
        raise InvalidName(name, "a process name must be printable text")
    return name
