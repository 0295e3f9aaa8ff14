"""Parses the texts of settings: each function returns the value, or raises `Refused` with what is allowed."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Literal, get_args

from fleetlm.names import BASENAME, MAX_PORT, canonical_ip

MAX_NODE_PORTS = 256
"""The widest range of ports: a node for each core of the largest machines. A host whose first port is empty
is looked for on each port in turn, so a wider range only makes that slower."""
DNS_PORT = 53
MAX_DURATION_MS = 86_400_000
"""One day, in milliseconds. A longer interval or time-out is probably in the wrong unit."""

Right = Literal["call", "spawn", "exit", "register"]
"""What a node may let the others do; see `Settings.peers_may`."""
RIGHTS: tuple[Right, ...] = get_args(Right)

MAX_DNS_NAMES = 16
"""Limit of names in DNS_CLUSTER_QUERY: each of them is two questions in every lookup."""
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_PROTOCOLS = ("_tcp", "_udp")
"""The second label of an SRV name. Consul also takes a tag in its place."""
_INTERFACE = r"[^\s/:%]{1,15}"
"""What the Linux kernel takes for the name of an interface."""


class Refused(Exception):
    """Raised by a parser for a value that is not allowed; becomes a `SettingsError`."""

    def __init__(self, allowed: str, hint: str = "") -> None:
        super().__init__(allowed, hint)
        self.allowed = allowed
        self.hint = hint


def parse_integer(low: int, high: int, what: str) -> Callable[[str], int]:
    """Make a parser of whole numbers in a range; ``what`` says what they count."""
    allowed = f"{what}, a whole number from {low:,} to {high:,}"

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text, re.ASCII):
            hint = "Write digits only, without a unit or a fraction." if text else "Unset it for the default."
            raise Refused(allowed, hint)
        number = int(text)
        if not low <= number <= high:
            raise Refused(allowed)
        return number

    return parse


def parse_ports(text: str) -> tuple[int, int]:
    """Parse one port, or the first and the last of a range."""
    matched = re.fullmatch(r"([0-9]{1,5})(?:\s*-\s*([0-9]{1,5}))?", text, re.ASCII)
    if matched is None:
        hint = "Write digits only, such as 4370 or 4370-4385." if text else "Unset it for the default."
        raise Refused(_PORTS_ALLOWED, hint)
    first, last = int(matched[1]), int(matched[2] or matched[1])
    if not (1 <= first <= MAX_PORT and 1 <= last <= MAX_PORT):
        raise Refused(_PORTS_ALLOWED)
    if last < first:
        raise Refused(_PORTS_ALLOWED, f"Write the lower port first: {last}-{first}.")
    if last - first >= MAX_NODE_PORTS:
        raise Refused(_PORTS_ALLOWED, f"These are {last - first + 1:,} ports.")
    return first, last


_PORTS_ALLOWED = (
    f"a port from 1 to 65,535, or a range of at most {MAX_NODE_PORTS} such as 4370-4385, with the same first "
    "port on every node"
)


def format_ports(ports: tuple[int, int]) -> str:
    """Write a range of ports as the environment has it: ``4370-4385``, or ``4370``."""
    first, last = ports
    return str(first) if first == last else f"{first}-{last}"


_OPS_ALLOWED = (
    "where the ops listener listens: ip:port, [ip]:port for IPv6, or :port for all addresses; the port may "
    "be a range such as 4380-4395, of which the first free one is taken; or off"
)


def parse_ops(text: str) -> str | None:
    """Parse where the ops listener listens: ``ip:port`` or ``ip:first-last``; ``*`` stands for all addresses.

    None stands for ``off``. Port 0 lets the system choose one, for tests.
    """
    if text == "off":
        return None
    host, colon, ports = text.rpartition(":")
    ip = {"": "*", "*": "*", "localhost": "127.0.0.1"}.get(host) or canonical_ip(host)
    if not colon or ip is None or (":" in ip and not host.startswith("[")) or "%" in ip:
        hint = "Unset it, or write off, to have none." if not text else ""
        raise Refused(_OPS_ALLOWED, hint)
    if ports != "0":
        try:
            ports = format_ports(parse_ports(ports))
        except Refused:
            raise Refused(_OPS_ALLOWED) from None
    return f"[{ip}]:{ports}" if ":" in ip else f"{ip}:{ports}"


def split_ops(place: str) -> tuple[str, range]:
    """Return the address, or ``*`` for all, and the ports to try, of what `parse_ops` returned."""
    host, _, ports = place.rpartition(":")
    first, _, last = ports.partition("-")
    return host.strip("[]"), range(int(first), int(last or first) + 1)


def is_loopback(ip: str) -> bool:
    """Whether only programs of this machine reach an address; ``*`` stands for all addresses."""
    return ip != "*" and ipaddress.ip_address(ip).is_loopback


def parse_seconds(low_ms: int) -> Callable[[str], float]:
    """Make a parser of milliseconds, from ``low_ms`` to one day, that returns seconds."""
    parse_ms = parse_integer(low_ms, MAX_DURATION_MS, "milliseconds")
    return lambda text: parse_ms(text) / 1000


_QUERY_ALLOWED = (
    "a DNS name such as worker or fleet.default.svc.cluster.local, or names and IP addresses with commas "
    "between them"
)


def parse_query(text: str) -> str | None:
    """Parse names and addresses with commas between them; None if there is none."""
    if not text:
        return None
    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not parts:
        raise Refused(_QUERY_ALLOWED, "Unset it to turn clustering off.")
    found = [canonical_ip(part) or parse_dns_name(part) for part in parts]
    names = sum(canonical_ip(part) is None for part in parts)
    if names > MAX_DNS_NAMES:
        raise Refused(f"at most {MAX_DNS_NAMES} DNS names", f"These are {names}.")
    return ",".join(found)


def is_service_name(name: str) -> bool:
    """Whether a name of ``dns_query`` asks for SRV records, which give ports too: it begins with ``_``."""
    return name.startswith("_")


def _check_service_labels(labels: list[str]) -> None:
    """Refuse an SRV name without service, protocol or domain. Source: RFC 2782."""
    allowed = "an SRV name such as _fleetlm._tcp.workers.default.svc.cluster.local"
    domain = ".".join(label for label in labels if not label.startswith("_")) or "workers.example"
    if labels[0].lower() in _PROTOCOLS:
        raise Refused(allowed, f"The service is missing: write _fleetlm.{labels[0]}.{domain}")
    if len(labels) < 2 or not labels[1].startswith("_"):
        hint = f"The protocol is missing: write {labels[0]}._tcp.{domain}"
        raise Refused(allowed, f"{hint}. A name that begins with _ is asked for SRV records.")
    if labels[1].lower() == "_udp":
        raise Refused(allowed, f"Nodes speak TCP: write {labels[0]}._tcp.{domain}")
    if len(labels) < 3:
        raise Refused(allowed, f"The domain is missing: write {labels[0]}.{labels[1]}.{domain}")


def parse_dns_name(text: str) -> str:
    """Parse one DNS name."""
    labels = text.removesuffix(".").split(".")
    if len(text) > 254 or not all(re.fullmatch(_LABEL, label, re.ASCII) for label in labels):
        hint = "Give only the name: no scheme, port or spaces. Labels have 1 to 63 letters, digits, - and _."
        if not text.isascii():
            hint = f"{hint} A name with other letters is written in its ASCII form (Punycode: xn--...)."
        raise Refused(_QUERY_ALLOWED, hint)
    if all(label.isdecimal() for label in labels):
        raise Refused(_QUERY_ALLOWED, f"{text} is neither an IP address nor a name.")
    if is_service_name(text):
        _check_service_labels(labels)
    return text


def parse_basename(text: str) -> str:
    """Parse the part of a node name before the ``@``."""
    if not BASENAME.fullmatch(text):
        raise Refused("1 to 64 of A-Z a-z 0-9 _ . - (the part before the @ of every node's name)")
    return text


def parse_own_ip(text: str) -> str:
    """Parse an address that peers can connect to."""
    ip = canonical_ip(text)
    if ip is None:
        raise Refused("one IPv4 or IPv6 address, without a port")
    address = ipaddress.ip_address(ip)
    if address.is_unspecified or address.is_multicast:
        raise Refused("an address that peers can connect to", f"{ip} is a wildcard or multicast address.")
    if address.version == 6 and address.is_link_local:
        hint = f"{ip} is link-local: it means another machine on each interface, so no node can be named so."
        raise Refused("an address that peers can connect to", hint)
    return ip


def parse_node_ip(text: str) -> str:
    """Parse an address, or the interface or network of this machine that has it."""
    if canonical_ip(text) is not None:
        return parse_own_ip(text)
    allowed = "one IPv4 or IPv6 address, without a port; or a network such as 10.8.0.0/16, or an interface"
    if "/" in text:
        try:
            return str(ipaddress.ip_network(text))
        except ValueError as error:
            raise Refused(allowed, f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    if not re.fullmatch(_INTERFACE, text) or not text.strip("0123456789."):
        raise Refused(allowed)
    return text


def parse_bind(text: str) -> str:
    """Parse where to listen: ``*``, or as `parse_node_ip`."""
    if text == "*":
        return text
    try:
        return parse_node_ip(text)
    except Refused as refused:
        raise Refused(f"{refused.allowed}; or * for all addresses of this machine", refused.hint) from None


def parse_networks(text: str) -> tuple[str, ...]:
    """Parse networks with commas between them; an address alone is a network of one."""
    allowed = "networks with commas between them, such as 10.0.0.0/8,fd00::/8"
    if not text.strip():
        raise Refused(allowed, "Unset it to allow any network.")
    found: dict[str, None] = {}
    for part in text.split(","):
        if "%" in part:
            raise Refused(allowed, "A network has no interface in it.")
        try:
            found[str(ipaddress.ip_network(part.strip()))] = None
        except ValueError as error:
            raise Refused(allowed, f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    return tuple(found)


def parse_platform_ip(text: str) -> str | None:
    """Parse an address that the platform sets; an empty value means that it is not set."""
    return parse_own_ip(text) if text else None


def parse_cluster(text: str) -> str:
    """Parse the id of a cluster."""
    if len(text) > 128 or not text.isprintable():
        raise Refused("up to 128 printable characters")
    return text


def parse_switch(text: str) -> bool:
    """Parse ``on`` or ``off``."""
    if text not in ("on", "off"):
        raise Refused("on or off")
    return text == "on"


def parse_flag(text: str) -> bool:
    """Parse ``0`` or ``1``."""
    if text not in ("0", "1"):
        raise Refused("0 or 1")
    return text == "1"


_RIGHTS_ALLOWED = f"any of {', '.join(RIGHTS)}, with commas between them; or none"


def parse_rights(text: str) -> frozenset[Right]:
    """Parse rights with commas between them, or ``none``."""
    if not text:
        raise Refused(_RIGHTS_ALLOWED, "Unset it to allow everything; write none to allow nothing.")
    return frozenset() if text == "none" else check_rights(part.strip() for part in text.split(","))


def check_rights(names: Iterable[object]) -> frozenset[Right]:
    """Return rights as they are kept."""
    given = list(names)
    found = frozenset(right for right in RIGHTS if right in given)
    if len(found) != len(set(map(repr, given))):
        raise Refused(_RIGHTS_ALLOWED)
    return found


def format_rights(rights: Iterable[Right]) -> str:
    """Write rights as the environment has them, in one order."""
    given = frozenset(rights)
    return ",".join(right for right in RIGHTS if right in given) or "none"


def parse_log(text: str) -> str:
    """Parse the form of log lines."""
    if text not in ("text", "json"):
        raise Refused("text or json")
    return text


def parse_dns_server(text: str) -> tuple[str, int]:
    """Parse the address of a name server, with or without a port."""
    allowed = "ip or ip:port of a name server ([ip]:port for IPv6)"
    bare = canonical_ip(text)
    if bare is not None:
        return bare, DNS_PORT
    host, colon, port = text.rpartition(":")
    ip = canonical_ip(host)
    if not colon or ip is None or (":" in ip and not host.startswith("[")):
        raise Refused(
            allowed, "Give an IP address, since a name could not be resolved without a name server."
        )
    return ip, parse_integer(1, 65_535, "a port")(port)
