"""Before a node exists: settings, own address, and the parts it is made of."""

from __future__ import annotations

import ipaddress
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleetlm.discovery.dns import DnsDiscovery
from fleetlm.discovery.interface import Discovery
from fleetlm.discovery.own_address import OwnAddress, Rule, own_address
from fleetlm.settings import Settings

if TYPE_CHECKING:
    from fleetlm.core.dns_answers import Answer
    from fleetlm.node import Node
    from fleetlm.transport.interface import Transport

log = logging.getLogger("fleetlm")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a node is made of."""

    settings: Settings
    own_address: OwnAddress
    discovery: Discovery | None
    first_answer: Answer | None
    """What DNS said while the own address was looked for."""
    transport: Transport
    rng: random.Random
    wall_ms: int
    console: Callable[[Node], Any] | None
    """Makes the server of `fleetlm remote`; None: it is off."""
    on_this_network: bool
    """False in a simulation, where nothing can be said of this machine's addresses."""


async def prepare(
    settings: Settings | None,
    discovery: Discovery | None,
    transport: Transport | None,
    rng: random.Random,
    wall_ms: int,
) -> Parts:
    """Collect the parts. Raises: SettingsError. Takes at most `Settings.own_address_budget_s`."""
    settings = Settings.from_env() if settings is None else settings
    for warning in settings.warnings:
        log.warning("%s", warning)
    if discovery is None and settings.dns_query is not None:
        discovery = DnsDiscovery(
            settings.dns_query, server=settings.dns_server, lifetime_s=settings.dns_lifetime_s
        )
    on_this_network = transport is None
    if settings.node_ip is not None and not on_this_network:
        # A simulated address is nothing that this machine could be asked about.
        address, first = OwnAddress(settings.node_ip, "it was given", Rule.EXPLICIT), None
    else:
        address, first = await own_address(settings, discovery, budget_s=settings.own_address_budget_s)
    if transport is None:
        # Not needed, nor loaded, in a simulation.
        from fleetlm.transport.zeromq import ZmqTransport  # noqa: PLC0415

        transport = ZmqTransport(settings)
    console: Callable[[Node], Any] | None = None
    if settings.remote and on_this_network:
        from fleetlm.remote.server import RemoteServer  # noqa: PLC0415  # likewise

        console = RemoteServer
    return Parts(settings, address, discovery, first, transport, rng, wall_ms, console, on_this_network)


def warn_about(node: Node) -> None:
    """Say once what an operator should know."""
    if node.own_address.warning:
        log.warning("%s", node.own_address.warning)
    exposed = not ipaddress.ip_address(node.own_address.ip).is_loopback
    if node.discovery is not None and exposed and node.settings.cookie is None:
        log.warning(
            "no cookie: whoever reaches %s can join this cluster and read its traffic; set FLEETLM_COOKIE "
            "to the same secret on every node",
            node.name,
        )
