"""Looks again, at each DNS answer, whether the address and the port of this node are right.

Both are fixed when the node starts, and may turn out to be wrong: DNS lists this machine under another
address, the address has gone from this machine, or an SRV record names another port for it. A node without
a cookie that listens at all addresses may also come to listen at a public one. What follows from that is
decided in `runtime.assembly`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Container, Iterable, Sequence

from fleetlm.core.dns_answers import list_hosts
from fleetlm.core.exposure import MAKE_ONE
from fleetlm.discovery.interfaces import InterfaceAddress, local_addresses
from fleetlm.discovery.own_address import (
    HasAddress,
    OwnAddress,
    Rule,
    choose_by_route,
    is_loopback,
    observe_addresses,
    route_source,
    shared_addresses,
)
from fleetlm.names import parse_address
from fleetlm.records import Record

LOOKS_TO_BE_GONE = 2
"""Looks in a row, one for each DNS lookup, that must miss this node's address before it counts as gone."""
LOOKS_TO_MISS_PORT = 10
"""Answers with SRV records of this address, but not of this node's port, before the port counts as wrong:
half a minute with the default interval, in which a registry lists a node that has just started."""
MAX_PORTS_NAMED = 3
"""Ports that a text names."""
PORT_CURE = "set FLEETLM_NODE_PORT to the port that this process was given (in Nomad ${NOMAD_PORT_<label>})"


class Verdict(enum.Enum):
    """What a later look at this node's address found."""

    MOVED = "this machine has another address, which DNS lists, or which leads to the peers"
    GONE = "this machine does not have the address any more"
    OTHER_PORT = "DNS lists this node's address with other ports only"
    EXPOSED = "this node listens at an address of the Internet now, and has no cookie"


class AddressProblem(Record):
    """This node's address or its port is wrong, or it has no cookie and a public address.

    Attributes:
        verdict: what was found.
        text: a sentence that names both addresses and the remedy.
    """

    verdict: Verdict
    text: str


class AddressWatch:
    """Reports each problem of this node's address once.

    An address that this machine did not have at the start (NAT, FLEETLM_NODE_IP of the host) cannot be found
    gone. It takes `LOOKS_TO_BE_GONE` looks to find one gone, since an interface may be configured anew.

    Args:
        own: the decision on this node's address.
        ports: the ports on which this node, and further ones of this machine, may listen.
        observe: looks at this machine's addresses.
        route_to: returns the local address from which packets to a peer leave, or None.
        list_shared: returns the addresses of this machine that other machines may have too.
        refuse: for a node that listens at all addresses: returns why connections to one of them are refused
            (`core.exposure`).
        list_here: returns all addresses of this machine; None where the system does not tell.
    """

    def __init__(
        self,
        own: OwnAddress,
        ports: range,
        observe: Callable[[], HasAddress] = observe_addresses,
        route_to: Callable[[str], str | None] = route_source,
        list_shared: Callable[[], Container[str]] = shared_addresses,
        refuse: Callable[[str], str | None] | None = None,
        list_here: Callable[[], Iterable[InterfaceAddress] | None] = local_addresses,
    ) -> None:
        self._own = own
        self._ports = ports
        self._observe = observe
        self._route_to = route_to
        self._list_shared = list_shared
        self._refuse = refuse
        self._list_here = list_here
        self._exposed: set[str] = set()
        self._known = {own.ip, *own.aliases}
        self._was_here = observe()(own.ip)
        self._had_no_address = own.rule is Rule.LOOPBACK
        self._missing = 0
        self._looks_without_port = 0

    def look(self, addresses: Sequence[str]) -> AddressProblem | None:
        """Compare this node's address with a DNS answer, and with the addresses of this machine.

        An address set by FLEETLM_NODE_IP is never contradicted by DNS, since another node of this machine may
        use the other address. Loopback addresses, and those that other machines may have too, prove nothing
        and are ignored.

        Args:
            addresses: the addresses of a DNS answer; empty where there was none.
        """
        hosts = list_hosts(addresses)
        has_address = self._observe()
        return (
            self._look_for_gone(has_address)
            or self._look_for_moved(hosts, has_address)
            or self._look_for_first_address(hosts, has_address)
            or self._look_for_port(addresses)
            or self._look_for_exposed()
        )

    def _look_for_gone(self, has_address: HasAddress) -> AddressProblem | None:
        own = self._own
        if not self._was_here or self._missing >= LOOKS_TO_BE_GONE:
            return None
        self._missing = 0 if has_address(own.ip) else self._missing + 1
        if self._missing < LOOKS_TO_BE_GONE:
            return None
        return AddressProblem(
            Verdict.GONE,
            f"{own.ip} ({own.why}) is not an address of this machine any more, so no peer can reach this "
            "node; restart it, so that it takes the present address",
        )

    def _look_for_moved(self, hosts: Sequence[str], has_address: HasAddress) -> AddressProblem | None:
        """Find another address of this machine in DNS, also one that it got after DNS had named it."""
        others = [
            each for each in hosts if each not in self._known and not is_loopback(each) and has_address(each)
        ]
        self._known.update(others)
        if others:
            shared = self._list_shared()
            others = [each for each in others if each not in shared]
        if not others or self._own.rule is Rule.EXPLICIT or self._own.ip in hosts:
            return None
        self._had_no_address = False
        return AddressProblem(
            Verdict.MOVED,
            f"DNS lists this machine as {others[0]}, but this node uses {self._own.ip} ({self._own.why}), so "
            f"peers cannot find it: set FLEETLM_NODE_IP={others[0]} and restart it",
        )

    def _look_for_first_address(self, hosts: Sequence[str], has_address: HasAddress) -> AddressProblem | None:
        """Find an address towards the peers, though this machine had none when the node started."""
        if not self._had_no_address:
            return None
        found = choose_by_route(hosts, has_address, self._route_to)
        if found is None:
            return None
        self._had_no_address = False
        return AddressProblem(
            Verdict.MOVED,
            f"this machine has the address {found.ip} now ({found.why}), but this node was started without "
            f"one and uses {self._own.ip}, so peers cannot find it: restart it",
        )

    def _look_for_exposed(self) -> AddressProblem | None:
        """Find addresses that this machine has got, and at which connections are refused without a cookie."""
        if self._refuse is None:
            return None
        exposed = {each.ip for each in self._list_here() or () if self._refuse(each.ip) is not None}
        found, self._exposed = sorted(exposed - self._exposed), exposed
        if not found:
            return None
        return AddressProblem(
            Verdict.EXPOSED,
            f"this machine has the address {found[0]} now, which may be reached from the Internet. The node "
            "listens at all addresses (FLEETLM_BIND=*) and has no cookie, so it refuses all connections that "
            f"come to it there; {MAKE_ONE} and restart them, or listen elsewhere. FLEETLM_INSECURE=1 "
            "accepts such connections all the same",
        )

    def _look_for_port(self, addresses: Sequence[str]) -> AddressProblem | None:
        """Find out whether SRV records name other ports of this address only.

        A port of this node's range is right, since a node of the same machine that has it knows this one.
        """
        text = describe_other_ports(self._own.ip, self._ports, addresses)
        if text is not None:
            self._looks_without_port += 1
            if self._looks_without_port == LOOKS_TO_MISS_PORT:
                return AddressProblem(Verdict.OTHER_PORT, f"{text}: {PORT_CURE} and restart it")
        elif self._own.ip in list_hosts(addresses):
            self._looks_without_port = 0
        return None


def describe_other_ports(ip: str, ports: range, addresses: Sequence[str]) -> str | None:
    """Say that an answer lists an address with other ports only; None if it does not.

    Args:
        ip: the address of this node.
        ports: the ports on which nodes of this machine listen.
        addresses: the addresses of a DNS answer.
    """
    parts = (parse_address(each) for each in addresses)
    named = [part[1] for part in parts if part is not None and part[0] == ip]
    others = sorted(port for port in named if port is not None and port not in ports)
    if not named or len(others) < len(named):
        return None
    mine = f"port {ports[0]}" if len(ports) == 1 else f"a port of {ports[0]}-{ports[-1]}"
    shown = ", ".join(map(str, others[:MAX_PORTS_NAMED])) + (", ..." if len(others) > MAX_PORTS_NAMED else "")
    return (
        f"DNS lists {ip} with the port {shown} (SRV records), but this node listens on {mine}, so peers "
        "cannot find it through DNS"
    )
