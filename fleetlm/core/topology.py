"""The connection table: every peer that is known, why it is known, and how it stands.

DNS proposes, connections dispose. An answer is a sample: a name in it is a candidate, a name missing
from it is nothing. A connected peer never leaves the table because somebody stopped naming it; an
unconnected one leaves after `Settings.forget_after_lookups` successful lookups without it *and*
`Settings.forget_after_s` without any mention.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleetlm.core.connection import Connection, Identity, Phase
from fleetlm.names import NodeName, sorted_nodes

if TYPE_CHECKING:
    import random

    from fleetlm.settings import Settings

SELECTORS = ("visible", "hidden", "connected", "this", "known", "dns", "busy", "draining")
"""Source: Erlang's nodes/1 for the first five; the rest are ours."""


class Peer:
    """One row of the table."""

    __slots__ = (
        "connection",
        "due",
        "in_dns",
        "is_blocked",
        "is_busy",
        "is_draining",
        "is_pinned",
        "is_pruned",
        "lag_ms",
        "last_heard",
        "last_seen",
        "logged",
        "misses",
    )

    def __init__(self, connection: Connection, now: float) -> None:
        self.connection = connection
        self.last_seen = now
        """When anybody last named it: DNS, a peer, itself."""
        self.misses = 0
        self.in_dns = False
        self.is_pinned = False
        """Asked for by name: never forgotten."""
        self.is_blocked = False
        """Disconnected by request: not dialled until asked for again."""
        self.is_pruned = False
        """Blocked because DNS named it no more: until it does."""
        self.last_heard = now
        self.is_busy = False
        self.is_draining = False
        self.lag_ms = 0
        self.due: float | None = None
        """When `Kernel.tick` looks at it next."""
        self.logged: dict[str, None] = {}
        """Verdicts logged since it was up last: each is logged once, not every attempt."""

    @property
    def is_up(self) -> bool:
        """Whether messages may flow."""
        return self.connection.phase is Phase.UP

    @property
    def status(self) -> str:
        """One of discovered / wanted / dialling / up / busy / down, as the connection table shows it."""
        connection = self.connection
        if connection.phase is Phase.UP:
            return "busy" if self.is_busy else "up"
        if self.is_blocked:
            return "discovered"
        if connection.phase is Phase.DIALLING:
            return "dialling"
        return "down" if connection.ups else "wanted"


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A row as users see it (`Node.info()`); ages in seconds, 0 for never where there is no error."""

    name: str
    status: str
    incarnation: int | None
    in_dns: bool
    up_for_s: float | None
    connections: int
    """How many times it has been up."""
    attempts: int
    """Failed attempts since it was up last."""
    last_error: str
    last_error_age_s: float | None
    lag_ms: int
    draining: bool


class Topology:
    """Peers by canonical name, in the order in which they were met (so that runs are repeatable)."""

    def __init__(self, me: Identity, settings: Settings, rng: random.Random) -> None:
        self.me = me
        self.settings = settings
        self.rng = rng
        self.peers: dict[str, Peer] = {}
        self.aliases: dict[str, str] = {}
        """Address → the node that it turned out to be: not dialled under that address."""
        self.is_full = False
        for ip in me.aliases:
            self.aliases[ip] = me.name

    def meet(self, now: float, name: str, *, itself: bool = False, by_dns: bool = False) -> Peer | None:
        """The row of ``name``, made if there is none.

        None where there is nothing to connect to: ourselves, an alias, or a full table. A node that
        introduces ``itself`` is no alias any more: addresses pass from one node to the next. In a
        full table it, or one that DNS names, takes the place of somebody who is only hearsay.
        """
        peer = self.peers.get(name)
        if peer is not None:
            peer.last_seen = now
            return peer
        ip = NodeName.parse(name).ip
        if itself and ip not in self.me.aliases:
            self.aliases.pop(ip, None)
        if name == self.me.name or ip in self.aliases:
            return None
        if len(self.peers) >= self.settings.max_peers:
            hearsay = self._find_hearsay() if itself or by_dns else None
            if hearsay is None:
                self.is_full = True
                return None
            self.forget(hearsay)
        connection = Connection(name, ip, self.me, self.settings, self.rng, now)
        peer = self.peers[name] = Peer(connection, now)
        return peer

    def answered(self, now: float, names: list[str]) -> tuple[list[Peer], list[Peer]]:
        """A successful lookup named these. Returns the rows to dial, and the rows to forget."""
        known = dict.fromkeys(self.peers)
        named = set(names)
        for peer in self.peers.values():
            peer.in_dns = False
            peer.misses += 1
        for name in names:
            peer_named = self.meet(now, name, by_dns=True)
            if peer_named is not None:
                peer_named.in_dns = True
                peer_named.misses = 0
        to_dial = [
            peer for name, peer in self.peers.items() if name not in known or self._unblock_if_named(peer)
        ]
        stale = [
            peer for name, peer in self.peers.items() if name not in named and self._is_forgettable(now, peer)
        ]
        return to_dial, stale

    def prunable(self) -> list[Peer]:
        """Connected peers that DNS has not named for as long as `Settings.prune_after_lookups` says."""
        limit = self.settings.prune_after_lookups
        if limit is None:
            return []
        return [peer for peer in self.up() if peer.misses >= limit and not peer.is_pinned]

    def forget(self, peer: Peer) -> None:
        """Take a row out of the table, and with it what is known of its other addresses."""
        name = peer.connection.name
        self.peers.pop(name, None)
        self.aliases = {ip: owner for ip, owner in self.aliases.items() if owner != name}
        self.is_full = False

    def learn_alias(self, ip: str, owner: str) -> Peer | None:
        """``ip`` is another address of ``owner``. Returns the row under that address, if it is not up."""
        if NodeName.parse(owner).ip == ip or len(self.aliases) >= 4 * self.settings.max_peers:
            return None
        self.aliases[ip] = owner
        basename = self.me.name.partition("@")[0]
        peer = self.peers.get(f"{basename}@{ip}")
        return peer if peer is not None and not peer.is_up else None

    def up(self) -> list[Peer]:
        """The connected ones, in table order."""
        return [peer for peer in self.peers.values() if peer.is_up]

    def select(self, selectors: Iterable[str]) -> list[str]:
        """The union of what the selectors mean, sorted. Raises: ValueError for an unknown one."""
        found: dict[str, None] = {}
        for selector in selectors:
            if selector == "this":
                found[self.me.name] = None
            elif selector in ("visible", "connected"):
                found.update((name, None) for name, peer in self.peers.items() if peer.is_up)
            elif selector == "known":
                found[self.me.name] = None
                found.update((name, None) for name in self.peers)
            elif selector == "dns":
                found.update((name, None) for name, peer in self.peers.items() if peer.in_dns)
            elif selector == "busy":
                found.update((name, None) for name, peer in self.peers.items() if peer.is_up and peer.is_busy)
            elif selector == "draining":
                found.update(
                    (name, None) for name, peer in self.peers.items() if peer.is_up and peer.is_draining
                )
            elif selector != "hidden":
                raise ValueError(f"unknown selector {selector!r}: one of {', '.join(SELECTORS)}")
        return sorted_nodes(list(found))

    def info(self, now: float) -> list[PeerInfo]:
        """All rows, sorted by name."""
        return [self._describe(now, self.peers[name]) for name in sorted_nodes(list(self.peers))]

    def _describe(self, now: float, peer: Peer) -> PeerInfo:
        c = peer.connection
        return PeerInfo(
            name=c.name,
            status=peer.status,
            incarnation=c.incarnation if peer.is_up else None,
            in_dns=peer.in_dns,
            up_for_s=None if c.up_at is None else now - c.up_at,
            connections=c.ups,
            attempts=c.attempt,
            last_error=c.last_error,
            last_error_age_s=now - c.last_error_at if c.last_error else None,
            lag_ms=peer.lag_ms,
            draining=peer.is_draining,
        )

    def _find_hearsay(self) -> Peer | None:
        """Whom nobody would miss: never up, not in DNS, not asked for, and not being dialled."""
        found = (
            peer
            for peer in self.peers.values()
            if not (peer.in_dns or peer.is_pinned or peer.connection.ups)
            and peer.connection.phase is Phase.IDLE
        )
        return min(found, key=lambda peer: peer.last_seen, default=None)

    def _unblock_if_named(self, peer: Peer) -> bool:
        if not (peer.is_pruned and peer.in_dns):
            return False
        peer.is_pruned = peer.is_blocked = False
        return True

    def _is_forgettable(self, now: float, peer: Peer) -> bool:
        s = self.settings
        return (
            not peer.is_up
            and not peer.is_pinned
            and peer.misses >= s.forget_after_lookups
            and now - peer.last_seen > s.forget_after_s
        )
