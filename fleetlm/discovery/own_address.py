"""Own address: which of this machine's addresses peers find it under. Decided once, at the start.

The order, and why: what the operator says, what the platform says, then the address in the
cluster's DNS answer that this machine can *bind*, which needs no variable and is right on Compose,
Swarm, Kubernetes, Fly and ECS. Only then guesses: the source of the route to a peer (never to
8.8.8.8, which leaves by another interface), and the host's own name, which may be 127.0.1.1 or
several addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fleetlm.core.dns_answers import Answer
from fleetlm.discovery.interface import Discovery
from fleetlm.discovery.system_lookup import SystemLookup
from fleetlm.names import canonical_ip
from fleetlm.settings import Settings

LOOPBACK = "127.0.0.1"
FIRST_POLL_PAUSE_S = 0.1
MAX_ROUTES_ASKED = 16
"""Peers to whom a route is looked up: the first that has one decides."""
DISCARD_PORT = 9
CURE = "set FLEETLM_NODE_IP to the address under which peers reach this node"


class Rule(enum.Enum):
    """What an own address was decided by, in the order in which the rules are tried."""

    EXPLICIT = "FLEETLM_NODE_IP"
    PLATFORM = "a variable of the platform"
    DNS = "an address in the DNS answer that this machine has"
    ROUTE = "the route to a peer"
    HOSTNAME = "the host's own name"
    LOOPBACK = "loopback"


@dataclass(frozen=True, slots=True)
class OwnAddress:
    """The decision.

    Attributes:
        ip: the address, in canonical text.
        why: the reason in words, for the log: "it is the one address of the DNS answer that ...".
        rule: the rule that decided.
        aliases: other addresses in the DNS answer that are this machine's, so that nobody need dial
            them. Never a loopback address, and none where FLEETLM_NODE_IP was set: there, another
            node of this machine may well live under them.
        warning: what may be wrong and what to do about it; None where nothing is.
    """

    ip: str
    why: str
    rule: Rule
    aliases: tuple[str, ...] = ()
    warning: str | None = None


class RecordWatch:
    """Notices that DNS names this machine under another address than the one that was decided."""

    def __init__(self, own: OwnAddress, bindable: Callable[[str], bool]) -> None:
        self._own = own
        self._bindable = bindable
        self._known = {own.ip, *own.aliases}

    def contradiction(self, addresses: Sequence[str]) -> str | None:
        """A warning that names the cure, once for each address that contradicts.

        What FLEETLM_NODE_IP said is not doubted (another node of this machine may live under the
        other address), and loopback is no evidence.
        """
        fresh = [each for each in addresses if each not in self._known and not _is_loopback(each)]
        self._known.update(fresh)
        if self._own.rule is Rule.EXPLICIT or self._own.ip in addresses:
            return None
        other = next((each for each in fresh if self._bindable(each)), None)
        if other is None:
            return None
        return (
            f"DNS names this machine {other}, but this node is {self._own.ip} ({self._own.why}), so "
            f"peers look for it in vain: set FLEETLM_NODE_IP={other} and start it again"
        )


def choose(
    *,
    explicit: str | None,
    env: Sequence[tuple[str, str]],
    answer_addresses: Sequence[str],
    bindable: Callable[[str], bool],
    route_to: Callable[[str], str | None],
    host_addresses: Sequence[str],
    clustering: bool,
) -> OwnAddress:
    """Decide the own address from what is known. Pure, given pure probes.

    Args:
        explicit: FLEETLM_NODE_IP.
        env: what platforms say, best first: ``[("POD_IP", "10.0.0.7")]``.
        answer_addresses: what discovery found, in the order of `Answer.addresses`.
        bindable: whether this machine has an address.
        route_to: the local address from which a packet to an address would leave.
        host_addresses: what the host's own name resolves to.
        clustering: False means that nobody looks for this node.
    """
    if explicit is not None:
        warning = _warn_unless_bindable("FLEETLM_NODE_IP", explicit, bindable)
        return OwnAddress(explicit, "FLEETLM_NODE_IP says so", Rule.EXPLICIT, (), warning)
    if not clustering:
        return OwnAddress(LOOPBACK, "clustering is off", Rule.LOOPBACK)
    own = [each for each in answer_addresses if not _is_loopback(each) and bindable(each)]
    chosen = (
        _choose_by_platform(env, bindable)
        or _choose_by_dns(answer_addresses, own, bindable)
        or _choose_by_route(answer_addresses, bindable, route_to)
        or _choose_by_hostname(answer_addresses, host_addresses, bindable)
        or _choose_loopback(answer_addresses)
    )
    return replace(chosen, aliases=tuple(each for each in own if each != chosen.ip))


def _choose_by_platform(env: Sequence[tuple[str, str]], bindable: Callable[[str], bool]) -> OwnAddress | None:
    for name, ip in env:
        # Taken even if it cannot be bound yet: a new IPv6 address is tentative for a second or two.
        return OwnAddress(ip, f"{name} says so", Rule.PLATFORM, (), _warn_unless_bindable(name, ip, bindable))
    return None


def _choose_by_dns(
    answer: Sequence[str], own: Sequence[str], bindable: Callable[[str], bool]
) -> OwnAddress | None:
    """An address in the answer that this machine has.

    All of 127.0.0.0/8 can be bound on Linux, so loopback counts only in an answer of nothing else
    (a cluster tried out on one machine), and only where it leaves no choice.
    """
    if not own and _are_all_loopback(answer):
        own = [each for each in answer if bindable(each)]
        if any(len(family) > 1 for family in _split_families(own)):
            return None
    if not own:
        return None
    ip = own[0]  # IPv4 before IPv6, as answers are ordered
    first_family = next(family for family in _split_families(own) if family)
    if len(first_family) > 1:
        return OwnAddress(
            ip,
            "it is the lowest address in the DNS answer that this machine has",
            Rule.DNS,
            (),
            f"this machine has several addresses of the DNS answer ({', '.join(first_family)}); "
            f"if {ip} is the wrong one, {CURE}",
        )
    return OwnAddress(ip, "it is the address in the DNS answer that this machine has", Rule.DNS)


def _choose_by_route(
    answer: Sequence[str],
    bindable: Callable[[str], bool],
    route_to: Callable[[str], str | None],
) -> OwnAddress | None:
    """The source of the route to the first peer that has one; for peers on other machines only."""
    peers = [each for each in answer if not _is_loopback(each)]
    for peer in peers[:MAX_ROUTES_ASKED]:
        source = route_to(peer)
        if source is not None and not _is_loopback(source) and bindable(source):
            return OwnAddress(source, f"the route to {peer} leaves from it", Rule.ROUTE)
    return None


def _choose_by_hostname(
    answer: Sequence[str], host_addresses: Sequence[str], bindable: Callable[[str], bool]
) -> OwnAddress | None:
    if _are_all_loopback(answer):
        return None  # a cluster on loopback: nothing there is to be seen from other machines
    candidates = list(dict.fromkeys(each for each in host_addresses if not _is_loopback(each)))
    usable = [each for each in candidates if bindable(each)]
    if not usable:
        return None
    warning = None
    if len(candidates) > 1:
        warning = (
            f"this host's name has several addresses ({', '.join(candidates)}); "
            f"if {usable[0]} is the wrong one, {CURE}"
        )
    return OwnAddress(usable[0], "this host's name resolves to it", Rule.HOSTNAME, (), warning)


def _choose_loopback(answer: Sequence[str]) -> OwnAddress:
    if _are_all_loopback(answer):
        problem = (
            f"the DNS answer holds loopback addresses only ({', '.join(answer)}), "
            "and which of them is this node's cannot be seen"
        )
    else:
        problem = "no address of this machine was found that peers could reach"
    return OwnAddress(LOOPBACK, "nothing better was found", Rule.LOOPBACK, (), f"{problem}; {CURE}")


def _warn_unless_bindable(name: str, ip: str, bindable: Callable[[str], bool]) -> str | None:
    if bindable(ip):
        return None
    return (
        f"{name} is {ip}, which is no address of this machine (or not yet): "
        "if it is wrong, no peer will find this node there"
    )


def _is_loopback(ip: str) -> bool:
    return ipaddress.ip_address(ip).is_loopback


def _are_all_loopback(addresses: Sequence[str]) -> bool:
    return bool(addresses) and all(_is_loopback(each) for each in addresses)


def _split_families(addresses: Sequence[str]) -> tuple[list[str], list[str]]:
    return (
        [each for each in addresses if ":" not in each],
        [each for each in addresses if ":" in each],
    )


def can_bind(ip: str) -> bool:
    """Whether ``ip`` is an address of this machine, found out by binding a free port of it.

    Wrong only where ``net.ipv4.ip_nonlocal_bind`` is set.
    """
    try:
        with socket.socket(_get_family(ip), socket.SOCK_DGRAM) as probe:
            probe.bind((ip, 0))
    except OSError as exc:
        # Out of descriptors or of ports: the address itself was not refused.
        return exc.errno in (errno.EMFILE, errno.ENFILE, errno.EADDRINUSE)
    return True


def route_source(peer: str) -> str | None:
    """The local address from which packets to ``peer`` leave; None without a route.

    Sends nothing: connecting a UDP socket only looks the route up.
    """
    try:
        with socket.socket(_get_family(peer), socket.SOCK_DGRAM) as probe:
            probe.connect((peer, DISCARD_PORT))
            return canonical_ip(str(probe.getsockname()[0]))
    except OSError:
        return None


async def host_addresses(*, timeout_s: float = 1.0) -> tuple[str, ...]:
    """What the host's own name resolves to, canonical, without link-local addresses.

    Empty where it does not resolve within ``timeout_s`` seconds. Never raises.
    """
    found = await SystemLookup().addresses(socket.gethostname(), timeout_s=timeout_s) or ()
    canonical = [ip for ip in map(canonical_ip, found) if ip is not None]
    return tuple(dict.fromkeys(ip for ip in canonical if not ipaddress.ip_address(ip).is_link_local))


async def own_address(
    settings: Settings, discovery: Discovery | None, *, budget_s: float = 2.0
) -> tuple[OwnAddress, Answer | None]:
    """Decide the own address, asking discovery for as long as that may change the decision.

    Args:
        settings: node_ip, fly_private_ip and pod_ip; where one of them is set there is no wait.
        discovery: where peers are found; None means that clustering is off.
        budget_s: seconds at most. The own record may be missing from DNS at first.

    Returns:
        The decision, and the last answer that it rests on: the last with addresses, else the last;
        None where nothing was asked.
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
            bindable=can_bind,
            route_to=route_source,
            host_addresses=host,
            clustering=discovery is not None,
        )

    if discovery is None or settings.node_ip is not None or env:
        return decide(None, ()), None
    host = asyncio.create_task(host_addresses(timeout_s=budget_s))
    try:
        answer = await _ask_until(discovery, lambda found: _is_settled(decide(found, ()), found), budget_s)
        own = decide(answer, ())
        if own.rule is Rule.LOOPBACK:
            own = decide(answer, await host)
        return own, answer
    finally:
        host.cancel()
        await asyncio.wait({host})


def _is_settled(own: OwnAddress, answer: Answer) -> bool:
    """Whether further answers would change nothing, or nothing for the better."""
    return own.rule is Rule.DNS or _are_all_loopback(answer.addresses)


async def _ask_until(
    discovery: Discovery, is_settled: Callable[[Answer], bool], budget_s: float
) -> Answer | None:
    """Ask until is_settled or out of time. Returns the last answer with addresses, else the last."""
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
