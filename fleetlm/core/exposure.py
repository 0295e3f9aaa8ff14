"""Decides whether a node may listen without a cookie, from the addresses at which it can be reached.

Without a cookie everybody who reaches a node is a member of its cluster. On a network that is set aside for
private use that is allowed, with a warning. Any other address may be reached from the whole Internet, so
there the node does not start unless `Settings.insecure` allows it. It does not matter why the node has an
address; a node that only this machine can reach is not warned about.

A node that listens at all addresses of its machine (FLEETLM_BIND=*) may get a public one after its start. It
goes on running, and refuses the connections that come to such an address (`refuse_exposed`), from the first
one on. Which addresses there are by then is told too (`discovery.address_watch`).

What nobody can see here: a private address may be forwarded from a public one (NAT, a load balancer, the
public address of a virtual machine). The warning says so.

Source: Redis, protected mode: without a password it serves loopback only; differs: private networks are
allowed, because three variables are the whole set-up there.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import Final

from fleetlm.errors import SettingsError
from fleetlm.names import canonical_ip
from fleetlm.settings import Settings

EVERYWHERE: Final = "*"
"""All addresses of this machine, those included that nobody can list."""
MAX_SHOWN: Final = 4
"""Addresses that a text names."""
MAKE_ONE: Final = "make one with `fleetlm cookie`, and set FLEETLM_COOKIE to it on every node"

_LOOPBACK: Final = ("127.0.0.0/8", "::1/128")
_PRIVATE: Final = (
    "10.0.0.0/8",  # RFC 1918
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",  # RFC 6598, shared addresses behind carrier-grade NAT: Tailscale, EKS
    "169.254.0.0/16",  # RFC 3927, link-local
    "198.18.0.0/15",  # RFC 2544, networks of benchmarks
    "240.0.0.0/4",  # RFC 1112, class E: no router of the Internet carries it, and GKE gives it to pods
    "fc00::/7",  # RFC 4193, unique local: Fly.io's 6PN, Docker
    "fe80::/10",  # RFC 4291, link-local
)
# Every other address counts as public. That includes addresses for documentation, which no network should
# have, and those of 6to4 and Teredo, which are reachable through relays.

_LOOPBACK_NETWORKS = tuple(map(ipaddress.ip_network, _LOOPBACK))
_PRIVATE_NETWORKS = tuple(map(ipaddress.ip_network, (*_LOOPBACK, *_PRIVATE)))


def is_only_here(ip: str) -> bool:
    """Whether only programs of this machine reach an address."""
    return _is_in(ip, _LOOPBACK_NETWORKS)


def is_private(ip: str) -> bool:
    """Whether an address belongs to a network for private use; False for `EVERYWHERE`."""
    return _is_in(ip, _PRIVATE_NETWORKS)


def check_exposure(settings: Settings, ips: Sequence[str]) -> None:
    """Refuse a start without a cookie at an address that is not private.

    Args:
        settings: the cookie, and whether it may be missing.
        ips: the addresses under which the node is reached: that in its name, and those where it listens.

    Raises:
        SettingsError: there is no cookie, and one of the addresses is not private.
    """
    public = [ip for ip in ips if not is_private(ip)]
    if settings.cookie is not None or settings.insecure or not public:
        return
    raise SettingsError(
        "FLEETLM_COOKIE",
        None,
        f"a cookie, because {_name(public)} may be reached from the Internet, and without a cookie every "
        "machine that reaches a node controls the cluster",
        f"Either {MAKE_ONE}; or use an address of a private network (FLEETLM_NODE_IP, FLEETLM_BIND). "
        "FLEETLM_INSECURE=1 starts the node all the same.",
    )


def refuse_exposed(settings: Settings, listening: Sequence[str]) -> Callable[[str], str | None] | None:
    """Return what decides whether a connection is refused for the address at which it arrived.

    Args:
        settings: as for `check_exposure`.
        listening: the addresses at which the node listens. Those that stand there were checked at the start.

    Returns:
        A function from that address to the reason, or to None if the connection may stay. None: all may.
    """
    if settings.cookie is not None or settings.insecure or EVERYWHERE not in listening:
        return None

    def refuse(ip: str) -> str | None:
        if is_private(ip):
            return None
        return (
            f"it came to {ip}, which this machine has got since the node started and which may be reached "
            f"from the Internet, and there is no cookie; {MAKE_ONE}"
        )

    return refuse


def describe_exposure(settings: Settings, ips: Sequence[str]) -> str | None:
    """Return who can join a node's cluster because there is no cookie, and what to do; None: nobody.

    Args:
        settings: the cookie.
        ips: as for `check_exposure`.
    """
    reached = [ip for ip in ips if not is_only_here(ip)]
    if settings.cookie is not None or not reached:
        return None
    public = [ip for ip in reached if not is_private(ip)]
    where = "the Internet included, unless a firewall keeps it out" if public else "containers included"
    return (
        f"no cookie is set: every machine that reaches {_name(public or reached)} ({where}) can join this "
        f"cluster, control it and read its traffic; {MAKE_ONE}"
    )


def _name(ips: Sequence[str]) -> str:
    named = ["any address of this machine" if ip == EVERYWHERE else ip for ip in dict.fromkeys(ips)]
    more = f" and {len(named) - MAX_SHOWN} more" if len(named) > MAX_SHOWN else ""
    return f"{', '.join(named[:MAX_SHOWN])}{more}"


def _is_in(ip: str, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    canonical = canonical_ip(ip)
    if canonical is None:
        return False
    address = ipaddress.ip_address(canonical)
    return any(address in network for network in networks)
