"""What a node tells of itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleetlm.core.topology import PeerInfo

if TYPE_CHECKING:
    from fleetlm.node import Node


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A snapshot of a node; times in seconds."""

    name: str
    incarnation: int
    uptime_s: float
    own_address_why: str
    own_address_warning: str | None
    cluster: str
    cookie: bool
    """Whether one is set."""
    discovery: str
    """Where peers are looked for."""
    dns_verdict: str
    """What the last lookup said."""
    dns_age_s: float | None
    polls: int
    lag_ms: int
    draining: bool
    observed_ips: tuple[str, ...]
    """Addresses from which peers dialled us that are not those in their names."""
    processes: int
    messages_sent: int
    messages_received: int
    undelivered: int
    """One-way messages that arrived for nobody."""
    unreadable: int
    """Messages with a type that this node does not know."""
    peers: tuple[PeerInfo, ...]


def node_info(node: Node) -> NodeInfo:
    """Collect it. Counters of connections that have ended are not in the sums."""
    now = asyncio.get_running_loop().time()
    poller = node.poller
    answered_at = None if poller is None else poller.last_answer_at
    answer = None if poller is None else poller.last_answer
    sessions = list(node.sessions.values())
    return NodeInfo(
        name=node.name,
        incarnation=node.incarnation,
        uptime_s=now - node.started_at,
        own_address_why=node.own_address.why,
        own_address_warning=node.own_address_warning,
        cluster=node.settings.cluster,
        cookie=node.settings.cookie is not None,
        discovery="off" if node.discovery is None else node.discovery.source,
        dns_verdict="" if answer is None else f"{answer.outcome.value}: {answer.detail}",
        dns_age_s=None if answered_at is None else now - answered_at,
        polls=0 if poller is None else poller.polls,
        lag_ms=node.lag_ms,
        draining=node.kernel.draining,
        observed_ips=tuple(sorted(node.kernel.observed)),
        processes=len(node.processes()),
        messages_sent=sum(session.messages_sent for session in sessions),
        messages_received=sum(session.messages_received for session in sessions),
        undelivered=node.inbound.undelivered,
        unreadable=node.inbound.unreadable,
        peers=tuple(node.kernel.topology.info(now)),
    )
