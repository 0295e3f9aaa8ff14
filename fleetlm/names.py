"""Names of nodes (``basename@ip`` or ``basename@ip:port``) and of processes on them.

Each node of a cluster listens on a port of its own host. The cluster has one *base port*, on which the only
or the first node of a host listens, and which its name leaves out. All others have their port in the name, so
that a name says by itself where its node is dialled::

    fleetlm@10.0.0.7          the base port of the cluster (`Settings.base_port`)
    fleetlm@10.0.0.7:4373     another port
    fleetlm@fd00::7           IPv6: brackets only with a port
    fleetlm@[fd00::7]:4373

A node name has one canonical text (IPv6 compressed and in lower case, no leading zeros in the port, the base
port left out), so names are compared as strings everywhere. `NodeName` takes a name apart and orders names.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple

from fleetlm.errors import InvalidName
from fleetlm.records import Record

BASENAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
"""The part of a node name before the ``@``."""
MAX_PORT = 65_535
"""The highest TCP port."""
MAX_IP_LENGTH = 64
"""Characters of an IP address: an IPv6 address has at most 45, and its interface scope has some more."""
MAX_PROCESS_NAME_LENGTH = 255
"""Characters of a process name: enough for a session id with a prefix, short enough for a log line."""

_MAX_PORT_DIGITS = 5


class Address(NamedTuple):
    """A named process on a node, as a target of `Node.send` and `Node.call`. Equal to the bare tuple."""

    name: str
    node: str


class NodeName(Record):
    """The parts of a node name. ``str(name)`` is the canonical text."""

    basename: str
    ip: str
    port: int | None = None
    """The port of the node; None: the base port of its cluster."""

    @classmethod
    @lru_cache(maxsize=8_192)  # Every peer sends the same few names every second.
    def parse(cls, text: str, base_port: int | None = None) -> NodeName:
        """Parse ``basename@ip`` or ``basename@ip:port``, with the address in any spelling.

        Args:
            text: the name.
            base_port: the base port of the cluster. A name that has it written out means the same node as
                the name without a port, and becomes that. None keeps every port that is written.

        Raises:
            InvalidName: there is no ``@``, the basename has other characters than ``A-Z a-z 0-9 _ . -``, or
                what follows the ``@`` is not an IP address with or without a port (host names are not
                allowed, and an IPv6 address with a port needs brackets).
        """
        basename, at, address = text.partition("@")
        if not at:
            raise InvalidName(text, "a node name has the form basename@ip, such as fleetlm@10.0.0.7")
        if not BASENAME.fullmatch(basename):
            raise InvalidName(text, "the basename must be 1 to 64 of A-Z a-z 0-9 _ . -")
        parts = parse_address(address)
        if parts is None:
            why = (
                f"{address!r} is not an IP address, nor one with a port such as 10.0.0.7:4373 or "
                "[fd00::7]:4373 (host names are not used in node names)"
            )
            raise InvalidName(text, why)
        ip, port = parts
        return cls(basename, ip, None if port == base_port else port)

    def __str__(self) -> str:
        return f"{self.basename}@{self.address}"

    @property
    def address(self) -> str:
        """What follows the ``@``: the address, and the port if it is not the base port."""
        return self.ip if self.port is None else endpoint(self.ip, self.port)

    @property
    def sort_key(self) -> tuple[str, int, int, int]:
        """Orders names by basename, then IPv4 before IPv6, then by number: 10.0.0.9 before 10.0.0.10.

        On one host the node on the base port comes first, then the others by port.
        """
        address = ipaddress.ip_address(self.ip)
        return (self.basename, address.version, int(address), self.port or 0)


@lru_cache(maxsize=8_192)  # Each DNS answer brings the same ones.
def parse_address(text: str) -> tuple[str, int | None] | None:
    """Take ``ip``, ``ip:port`` or ``[ip]:port`` apart.

    Returns:
        The canonical address and the port, which is None if the text has none; or None if it is no such text.
        An IPv6 address without brackets has no port: ``fd00::7:4373`` is an address.
    """
    bare = canonical_ip(text)
    if bare is not None:
        return bare, None
    host, colon, digits = text.strip().rpartition(":")
    if not (colon and digits.isascii() and digits.isdecimal() and len(digits) <= _MAX_PORT_DIGITS):
        return None
    if not 1 <= int(digits) <= MAX_PORT:
        return None
    ip = canonical_ip(host)
    if ip is None or (":" in host) != host.startswith("["):
        return None
    return ip, int(digits)


def canonical_ip(text: str) -> str | None:
    """Return the canonical text of an IP address, or None if it is not one or has an interface scope.

    An IPv4-mapped IPv6 address becomes its IPv4 address, since both mean the same machine.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return _canonical_ip(text) if len(text) <= MAX_IP_LENGTH else None


@lru_cache(maxsize=8_192)  # The peers of a cluster name the same addresses in every handshake.
def _canonical_ip(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


@lru_cache(maxsize=8_192)
def canonical_node(text: str, base_port: int | None = None) -> str:
    """Return the canonical text of a node name; arguments and errors as for `NodeName.parse`."""
    return str(NodeName.parse(text, base_port))


def sorted_nodes(names: list[str]) -> list[str]:
    """Sort canonical node names by `NodeName.sort_key`."""
    return sorted(names, key=_sort_key)


@lru_cache(maxsize=8_192)
def _sort_key(name: str) -> tuple[str, int, int, int]:
    return NodeName.parse(name).sort_key


def endpoint(ip: str, port: int) -> str:
    """Format an address with a port: ``10.0.0.7:4370`` or ``[fdaa::2]:4370``."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def check_process_name(name: str) -> str:
    """Return ``name`` unchanged if it is a valid name for a process.

    Raises:
        TypeError: it is no text.
        InvalidName: it is empty, longer than 255 characters, or not printable.
    """
    if not isinstance(name, str):
        raise TypeError(f"a name is a str, not {type(name).__name__}")
    if not name or len(name) > MAX_PROCESS_NAME_LENGTH:
        raise InvalidName(name, f"a process name has 1 to {MAX_PROCESS_NAME_LENGTH} characters")
    if not name.isprintable():
        raise InvalidName(name, "a process name must be printable text")
    return name
