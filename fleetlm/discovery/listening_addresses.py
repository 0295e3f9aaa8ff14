"""Chooses where a node listens: at its own address and its aliases, or where ``FLEETLM_BIND`` says.

A node never listens at more than that by itself. Where peers reach it under an address that its machine does
not have (NAT, the address of the host of a container), FLEETLM_BIND names the address of this machine at
which the forwarded connections arrive, or ``*`` for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleetlm.core.exposure import EVERYWHERE
from fleetlm.discovery.interfaces import InterfaceAddress, find_addresses, list_interfaces
from fleetlm.discovery.own_address import OwnAddress
from fleetlm.errors import SettingsError
from fleetlm.names import canonical_ip


def choose_listening(
    bind: str | None, own: OwnAddress, interfaces: Sequence[InterfaceAddress]
) -> tuple[str, ...]:
    """Return the addresses at which a node listens, the most important one first; `EVERYWHERE` stands alone.

    Args:
        bind: `Settings.bind`.
        own: this node's address.
        interfaces: the addresses of this machine's interfaces; empty where they are not known.

    Raises:
        SettingsError: this machine has no address on the interface or in the network that ``bind`` names.
    """
    if bind is None:
        return (own.ip, *own.aliases)
    if bind == EVERYWHERE or canonical_ip(bind) is not None:
        return (bind,)
    found = [each.ip for each in find_addresses(bind, interfaces)]
    if not found:
        here = f"This machine has {list_interfaces(interfaces)}."
        if not interfaces:
            here = "This system does not list its interfaces: give an address, or *."
        allowed = "an address, interface or network of this machine, or * for all its addresses"
        raise SettingsError("FLEETLM_BIND", bind, allowed, here)
    return tuple(sorted(found, key=lambda ip: ip != own.ip))


def list_reached(
    own: OwnAddress, listening: Sequence[str], interfaces: Sequence[InterfaceAddress]
) -> tuple[str, ...]:
    """Return the addresses under which a node can be reached: the one in its name, and where it listens.

    `EVERYWHERE` becomes the addresses of this machine, and stays where the system does not list them.
    """
    ips = [own.ip]
    for ip in listening:
        ips += [each.ip for each in interfaces] or [ip] if ip == EVERYWHERE else [ip]
    return tuple(dict.fromkeys(ips))
