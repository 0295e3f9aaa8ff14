"""Detects this node's own address: the one in its name, under which peers reach it.

The address is decided once, within two seconds of the start, and then fixed, since the node's name and
every pid contain it. Rules are tried in this order, and the first that finds an address decides:

1. EXPLICIT: ``FLEETLM_NODE_IP``. An address is used even if this machine does not have it (NAT). Of an
   interface or a network it is the first address, IPv4 before IPv6, never a link-local one; without one
   the node does not start, since any other address would be wrong.
2. LOOPBACK, at once, if clustering is off.
3. PLATFORM: ``FLY_PRIVATE_IP``, then ``POD_IP``.
4. DNS: the address in the cluster's DNS answer that an interface of this machine has. This rule needs
   no variable and is right on Compose, Swarm, Kubernetes, Fly and ECS. An address on a loopback or dummy
   interface may be on other machines too (a virtual address), so it does not count.
5. ROUTE: the local address from which packets to a discovered peer leave. Never the route to a public
   address such as 8.8.8.8, which may leave through another interface.
6. HOSTNAME: what the host's own name resolves to, such as in /etc/hosts. Loopback addresses
   (Debian's 127.0.1.1) are passed over; several other addresses make this a guess, with a warning.
7. INTERFACE: the only address of this machine, where it has exactly one on an interface to a network.
8. LOOPBACK, with a warning that says what to set.

Rules 1 to 3 need no lookup. Otherwise discovery is asked again and again until rule 4 decides or the
time is up, since this node's record often appears a moment after its start. Only then do the guesses
apply. `choose` is the decision as a pure function; `own_address` does the asking. An IPv6 address that rules
1, 3 and 4 are about and that this machine cannot use yet is waited for, some seconds longer: see
`tentative_addresses`.

The address of a running node never changes, but it may turn out to be wrong: see `address_watch`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fleetlm.core.dns_answers import Answer, list_hosts
from fleetlm.discovery.interface import Discovery
from fleetlm.discovery.interfaces import (
    InterfaceAddress,
    find_addresses,
    list_interfaces,
    local_addresses,
    tentative_addresses,
)
from fleetlm.discovery.system_lookup import SystemLookup
from fleetlm.errors import SettingsError
from fleetlm.names import canonical_ip
from fleetlm.records import Record
from fleetlm.settings import Settings

LOOPBACK = "127.0.0.1"
FIRST_POLL_PAUSE_S = 0.1
"""Seconds between the first two lookups; each further pause is twice as long."""
DETECTION_LIMIT_S = 8.0
"""Seconds to wait for an address that the kernel is checking for duplicates. With the defaults of Linux that
takes 1 to 2 s, and 1 s more for each further question (``dad_transmits``). On an interface without a carrier
it would never end."""
MAX_ROUTES_ASKED = 16
"""Peers for which a route is looked up. The first that has one decides; more would only cost time."""
DISCARD_PORT = 9
"""Any port will do: connecting a UDP socket sends nothing. Source: RFC 863, the discard protocol."""
CURE = "set FLEETLM_NODE_IP to the address under which peers reach this node"


HasAddress = Callable[[str], bool]
"""Tells whether this machine has an address."""


class Rule(enum.Enum):
    """The rule that decided this node's address. The module describes their order."""

    EXPLICIT = "FLEETLM_NODE_IP"
    PLATFORM = "a variable of the platform"
    DNS = "an address in the DNS answer that this machine has"
    ROUTE = "the route to a peer"
    HOSTNAME = "the host's own name"
    INTERFACE = "the only address of this machine"
    LOOPBACK = "loopback"


class OwnAddress(Record):
    """The decision.

    Attributes:
        ip: the address, in canonical text.
        why: the reason in words, for the log, such as "set by POD_IP".
        rule: the rule that decided.
        aliases: other addresses in the DNS answer that belong to this machine. This node does not dial
            them; it listens there, for peers without an address of the other family. Never a loopback
            address, and none if FLEETLM_NODE_IP was set: then another node of this machine may use them.
        warning: what may be wrong and what to do about it, or None.
    """

    ip: str
    why: str
    rule: Rule
    aliases: tuple[str, ...] = ()
    warning: str | None = None


def choose(
    *,
    explicit: str | None,
    env: Sequence[tuple[str, str]],
    answer_addresses: Sequence[str],
    has_address: HasAddress,
    route_to: Callable[[str], str | None],
    host_addresses: Sequence[str],
    clustering: bool,
    interfaces: Sequence[InterfaceAddress] = (),
) -> OwnAddress:
    """Decide this node's address from what is known. Pure if its callables are.

    Args:
        explicit: the value of FLEETLM_NODE_IP, if set: an address, an interface or a network.
        env: the platform's variables, best first: ``[("POD_IP", "10.0.0.7")]``.
        answer_addresses: the addresses that discovery found, in the order of `Answer.addresses`. Their ports
            do not matter.
        has_address: tells whether this machine has an address.
        route_to: returns the local address from which packets to a peer leave, or None.
        host_addresses: what the host's own name resolves to.
        clustering: whether this node looks for peers at all.
        interfaces: the addresses of this machine's interfaces; empty where they are not known.

    Raises:
        SettingsError: this machine has no address on the interface or in the network that ``explicit`` names.
    """
    if explicit is not None:
        if canonical_ip(explicit) is None:
            return _choose_from_interfaces(explicit, interfaces)
        warning = _warn_unless_here("FLEETLM_NODE_IP", explicit, has_address)
        return OwnAddress(explicit, "set by FLEETLM_NODE_IP", Rule.EXPLICIT, (), warning)
    if not clustering:
        return OwnAddress(LOOPBACK, "clustering is off", Rule.LOOPBACK)
    answer_addresses = list_hosts(answer_addresses)
    here = [each for each in answer_addresses if not is_loopback(each) and has_address(each)]
    shared = {each.ip: each.interface for each in interfaces if each.may_be_shared}
    own = [each for each in here if each not in shared]
    chosen = (
        _choose_by_platform(env, has_address)
        or _choose_by_dns(answer_addresses, own, has_address)
        or choose_by_route([each for each in answer_addresses if each not in shared], has_address, route_to)
        or _choose_by_hostname(answer_addresses, host_addresses, has_address)
        or _choose_by_interface(answer_addresses, interfaces)
        or _choose_loopback(answer_addresses)
    )
    if chosen.warning is None and any(each in shared for each in here) and not own:
        chosen = replace(
            chosen, warning=_warn_of_shared(next(each for each in here if each in shared), shared)
        )
    return replace(chosen, aliases=tuple(each for each in own if each != chosen.ip))


def _choose_from_interfaces(wanted: str, interfaces: Sequence[InterfaceAddress]) -> OwnAddress:
    """The first address of an interface or in a network. Raises: SettingsError."""
    found = find_addresses(wanted, interfaces)
    if not found:
        here = f"This machine has {list_interfaces(interfaces)}."
        if not interfaces:
            here = "This system does not list its interfaces: give an address."
        allowed = "an address, or an interface or network of this machine with an address on it"
        raise SettingsError("FLEETLM_NODE_IP", wanted, allowed, f"{here} Link-local addresses do not count.")
    first = found[0]
    return OwnAddress(first.ip, f"FLEETLM_NODE_IP={wanted}: {first.interface} has {first.ip}", Rule.EXPLICIT)


def _choose_by_platform(env: Sequence[tuple[str, str]], has_address: HasAddress) -> OwnAddress | None:
    for name, ip in env:
        # Used even if it cannot be bound yet: a new IPv6 address is tentative for a second or two.
        return OwnAddress(ip, f"set by {name}", Rule.PLATFORM, (), _warn_unless_here(name, ip, has_address))
    return None


def _choose_by_dns(answer: Sequence[str], own: Sequence[str], has_address: HasAddress) -> OwnAddress | None:
    """The first address in the answer that belongs to this machine.

    Linux can bind all of 127.0.0.0/8, so loopback addresses count only if the answer holds nothing else
    (a cluster on one machine), and only if at most one of each family can be bound.
    """
    if not own and _are_all_loopback(answer):
        own = [each for each in answer if has_address(each)]
        if any(len(family) > 1 for family in _split_families(own)):
            return None
    if not own:
        return None
    ip = own[0]  # Answers are ordered: IPv4 before IPv6, then by number.
    first_family = next(family for family in _split_families(own) if family)
    if len(first_family) > 1:
        return OwnAddress(
            ip,
            "it is the lowest of this machine's addresses in the DNS answer",
            Rule.DNS,
            (),
            f"the DNS answer holds several addresses of this machine ({', '.join(first_family)}); "
            f"if {ip} is the wrong one, {CURE}",
        )
    return OwnAddress(ip, "it is this machine's address in the DNS answer", Rule.DNS)


def choose_by_route(
    answer: Sequence[str],
    has_address: HasAddress,
    route_to: Callable[[str], str | None],
) -> OwnAddress | None:
    """The source of the route to the first peer on another machine that has a route."""
    peers = [each for each in answer if not is_loopback(each)]
    for peer in peers[:MAX_ROUTES_ASKED]:
        source = route_to(peer)
        if source is None or is_loopback(source) or _needs_scope(source):
            continue
        if has_address(source):
            return OwnAddress(source, f"packets to the peer {peer} leave from it", Rule.ROUTE)
    return None


def _choose_by_hostname(
    answer: Sequence[str], host_addresses: Sequence[str], has_address: HasAddress
) -> OwnAddress | None:
    if _are_all_loopback(answer):
        return None  # All peers are on loopback, where no address of the host's name could be right.
    candidates = list(dict.fromkeys(each for each in host_addresses if not is_loopback(each)))
    usable = [each for each in candidates if has_address(each)]
    if not usable:
        return None
    warning = None
    if len(candidates) > 1:
        warning = (
            f"this host's name has several addresses ({', '.join(candidates)}); "
            f"if {usable[0]} is the wrong one, {CURE}"
        )
    return OwnAddress(usable[0], "this host's name resolves to it", Rule.HOSTNAME, (), warning)


def _choose_by_interface(answer: Sequence[str], interfaces: Sequence[InterfaceAddress]) -> OwnAddress | None:
    """The only address of this machine on an interface to a network, IPv4 before IPv6."""
    if _are_all_loopback(answer):
        return None
    networks = [
        each
        for each in interfaces
        if not each.may_be_shared and not is_loopback(each.ip) and not _is_link_local(each.ip)
    ]
    for family in (4, 6):
        found = [each for each in networks if ipaddress.ip_address(each.ip).version == family]
        if len(found) == 1:
            why = f"it is the only address of this machine, on {found[0].interface}"
            return OwnAddress(found[0].ip, why, Rule.INTERFACE)
        if found:
            return None
    return None


def _warn_of_shared(ip: str, shared: Mapping[str, str]) -> str:
    return (
        f"{ip} in the DNS answer is on {shared[ip]} of this machine, and perhaps on other machines too (a "
        "virtual address, such as of a Docker Swarm service). If DNS names no other, use a name that "
        "resolves to each node: in Docker Swarm tasks.<service>, in Kubernetes a headless Service"
    )


def _choose_loopback(answer: Sequence[str]) -> OwnAddress:
    if _are_all_loopback(answer):
        problem = (
            f"the DNS answer holds only loopback addresses ({', '.join(answer)}), "
            "so it does not show which one is this node's"
        )
    else:
        problem = "no address of this machine was found that peers can reach"
    return OwnAddress(LOOPBACK, "no other address was found", Rule.LOOPBACK, (), f"{problem}; {CURE}")


def _warn_unless_here(name: str, ip: str, has_address: HasAddress) -> str | None:
    if has_address(ip):
        return None
    return (
        f"{name} is {ip}, which is not an address of this machine (or not yet): "
        "peers can connect to this node only if that address is forwarded to it"
    )


def is_loopback(ip: str) -> bool:
    """Whether an address is reachable from this machine only."""
    return ipaddress.ip_address(ip).is_loopback


def _is_link_local(ip: str) -> bool:
    return ipaddress.ip_address(ip).is_link_local


def _needs_scope(ip: str) -> bool:
    """Whether an address means something on one interface only, so that it can be no part of a name."""
    return ":" in ip and _is_link_local(ip)


def _are_all_loopback(addresses: Sequence[str]) -> bool:
    return bool(addresses) and all(is_loopback(each) for each in addresses)


def _split_families(addresses: Sequence[str]) -> tuple[list[str], list[str]]:
    return (
        [each for each in addresses if ":" not in each],
        [each for each in addresses if ":" in each],
    )


def has_address(ip: str) -> bool:
    """Whether ``ip`` is an address of this machine, in use and not tentative."""
    return observe_addresses()(ip)


def shared_addresses() -> frozenset[str]:
    """Return the addresses of this machine that other machines may have too.

    They are those of its loopback and dummy interfaces, without 127.0.0.0/8 and ``::1``.
    """
    return frozenset(each.ip for each in local_addresses() or () if each.may_be_shared)


def observe_addresses() -> HasAddress:
    """Return a function that tells whether an address is one of this machine's as it is now.

    It looks at the interfaces once, which takes a millisecond, and many on a machine with hundreds of them:
    too long to repeat it for each of a thousand addresses.

    Binding an address proves that only for a loopback address: with ``net.ipv4.ip_nonlocal_bind`` every
    address can be bound. Where the system does not list its addresses, the route decides: packets to an own
    address leave from that address.
    """
    known = local_addresses()
    here = None if known is None else {each.ip for each in known}

    def is_here(ip: str) -> bool:
        if is_loopback(ip):
            return _can_bind(ip)
        return route_source(ip) == ip if here is None else ip in here

    return is_here


def _can_bind(ip: str) -> bool:
    try:
        with socket.socket(_get_family(ip), socket.SOCK_DGRAM) as probe:
            probe.bind((ip, 0))
    except OSError as exc:
        # No descriptor or no port is free; the address itself was not refused.
        return exc.errno in (errno.EMFILE, errno.ENFILE, errno.EADDRINUSE)
    return True


def route_source(peer: str) -> str | None:
    """The local address from which packets to ``peer`` leave, or None without a route.

    Sends nothing: connecting a UDP socket only looks the route up.
    """
    try:
        with socket.socket(_get_family(peer), socket.SOCK_DGRAM) as probe:
            probe.connect((peer, DISCARD_PORT))
            return canonical_ip(str(probe.getsockname()[0]))
    except OSError:
        return None


async def host_addresses(*, timeout_s: float = 1.0) -> tuple[str, ...]:
    """The addresses that the host's own name resolves to, canonical, without link-local ones.

    Empty if the name does not resolve within ``timeout_s`` seconds. Never raises.
    """
    found = await SystemLookup().addresses(socket.gethostname(), timeout_s=timeout_s) or ()
    canonical = [ip for ip in map(canonical_ip, found) if ip is not None]
    return tuple(dict.fromkeys(ip for ip in canonical if not ipaddress.ip_address(ip).is_link_local))


async def own_address(
    settings: Settings, discovery: Discovery | None, *, budget_s: float = 2.0
) -> tuple[OwnAddress, Answer | None]:
    """Decide this node's address, asking discovery for as long as the answer may change the decision.

    Args:
        settings: node_ip, fly_private_ip and pod_ip are used; if one of them is set, nothing is asked.
        discovery: the source of peer addresses; None means that clustering is off.
        budget_s: the longest wait, in seconds. This node's record may be missing from DNS at first. A wait
            for an address that is checked for duplicates comes on top, at most `DETECTION_LIMIT_S`.

    Returns:
        The decision, and the answer on which it rests: the last one with addresses, or else the last
        one; None if nothing was asked.

    Raises:
        SettingsError: the interface or network that node_ip names has no address, even after the wait.
    """
    env = [
        (name, ip)
        for name, ip in (("FLY_PRIVATE_IP", settings.fly_private_ip), ("POD_IP", settings.pod_ip))
        if ip is not None
    ]

    def decide(answer: Answer | None, host: Sequence[str]) -> OwnAddress:
        return choose(
            explicit=settings.node_ip,
            env=env,
            answer_addresses=answer.addresses if answer else (),
            has_address=observe_addresses(),
            route_to=route_source,
            host_addresses=host,
            clustering=discovery is not None,
            interfaces=local_addresses() or (),
        )

    if settings.node_ip is not None and canonical_ip(settings.node_ip) is None:
        await _wait_for_interface(settings.node_ip, budget_s)
    if discovery is None or settings.node_ip is not None or env:
        await _wait_for_detection([settings.node_ip or "", *(ip for _, ip in env[:1])])
        return decide(None, ()), None
    host = asyncio.create_task(host_addresses(timeout_s=budget_s))
    try:
        answer = await _ask_until(discovery, lambda found: _is_settled(decide(found, ()), found), budget_s)
        own = decide(answer, ())
        if own.rule is not Rule.DNS and answer is not None:
            await _wait_for_detection(list_hosts(answer.addresses))
            own = decide(answer, ())
        if own.rule is Rule.LOOPBACK:
            own = decide(answer, await host)
        return own, answer
    finally:
        host.cancel()
        await asyncio.wait({host})


async def _wait_for_interface(wanted: str, budget_s: float) -> None:
    """Wait until an interface or network has an address: a new one is configured a moment after the boot."""
    for _ in range(round(budget_s / FIRST_POLL_PAUSE_S)):
        known = local_addresses()
        if known is None or find_addresses(wanted, known):  # None: it will never be known here.
            return
        await asyncio.sleep(FIRST_POLL_PAUSE_S)


async def _wait_for_detection(ips: Sequence[str]) -> None:
    """Wait while the kernel checks whether another machine has one of these addresses."""
    for _ in range(round(DETECTION_LIMIT_S / FIRST_POLL_PAUSE_S)):
        if tentative_addresses().isdisjoint(ips):
            return
        await asyncio.sleep(FIRST_POLL_PAUSE_S)


def _is_settled(own: OwnAddress, answer: Answer) -> bool:
    """Whether further answers cannot improve the decision."""
    return own.rule is Rule.DNS or _are_all_loopback(list_hosts(answer.addresses))


async def _ask_until(
    discovery: Discovery, is_settled: Callable[[Answer], bool], budget_s: float
) -> Answer | None:
    """Ask until ``is_settled`` or out of time. Returns the last answer with addresses, or else the last."""
    best: Answer | None = None
    pause_s = FIRST_POLL_PAUSE_S
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(budget_s):
            while True:
                answer = await discovery.lookup()
                if answer.addresses or best is None or not best.addresses:
                    best = answer
                if is_settled(answer):
                    break
                await asyncio.sleep(pause_s)
                pause_s *= 2
    return best


def _get_family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET
