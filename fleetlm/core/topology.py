"""The connection table: every peer that is known, why it is known, and the state of its connection.

A DNS answer is a sample: a name in it is a candidate to dial, and a name missing from it says nothing about
that node. The rules:

- A peer enters the table when DNS names it, a connected peer names it, the program asks for it, or its own
  HELLO arrives.
- A connected peer never leaves the table because DNS stopped naming it. It can be pruned after
  `Settings.prune_after_lookups` lookups without it, if the operator asked for that.
- An unconnected peer leaves after `Settings.forget_after_lookups` successful lookups without it *and*
  `Settings.forget_after_s` seconds without any mention. One that the program asked for is pinned and stays.
- An unconnected peer also leaves after `Settings.forget_unnamed_s` without any mention, whatever the lookups
  brought: a resolver may fail, or give partial answers, for ever.
- The table holds `Settings.max_peers` rows. When it is full, a node that introduces itself or that DNS
  names takes the place of one that is known from hearsay only: named by a peer, never connected. A node that
  introduces itself is alive, so it may also take the place of the one that has been down for longest.

A node may have several addresses. `Topology.aliases` maps each further address to the node that answered
there, so that the same node is not dialled a second time under another name. Where this node has no address
of the family in a peer's name (IPv4 or IPv6), it dials an alias of that peer. An address passes from one
node to the next when containers are replaced, and the virtual address of a load balancer leads to another
node each time. So an entry ends when a node introduces itself at the address, and when DNS still names the
address after `Settings.forget_after_s`, or at once while this node is connected to no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleetlm.core.connection import Connection, Identity, Phase
from fleetlm.core.dns_answers import FAMILIES
from fleetlm.core.draining import Step
from fleetlm.names import NodeName, sorted_nodes

if TYPE_CHECKING:
    import random

    from fleetlm.settings import Settings

SELECTORS = ("visible", "hidden", "connected", "this", "known", "dns", "busy", "draining")
"""What `Topology.select` accepts. Source: Erlang's nodes/1 for the first five; the rest are ours."""


class Peer:
    """One row of the table.

    Attributes:
        connection: its state machine.
        last_seen: when DNS, a peer or the node itself last named it.
        down_since: when it was up last, or when the row was made; only while it is not up.
        misses: DNS answers in a row that are whole for its family and did not name it.
        in_dns: whether the last one of those named it.
        is_pinned: the program asked for it by name, so that it is never forgotten.
        is_blocked: the program disconnected it, so that it is not dialled until asked for again.
        is_pruned: blocked because DNS no longer named it, until DNS names it again.
        last_heard: when its last frame came, at the loop's time.
        is_busy: connected, but its loop has been silent for `Settings.busy_after_s`.
        drain_step: how far it is with draining; see `core.draining`.
        drain_since: when its last notice of that came, on the loop's clock.
        drain_until: when its time for finishing is over.
        lag_ms: how late its loop ran, in milliseconds, when it ticked last.
        due: when `Kernel.tick` looks at this row next, or None.
        logged: errors that were logged since it was up last, each once.
    """

    __slots__ = (
        "connection",
        "down_since",
        "drain_since",
        "drain_step",
        "drain_until",
        "due",
        "in_dns",
        "is_blocked",
        "is_busy",
        "is_pinned",
        "is_pruned",
        "lag_ms",
        "last_heard",
        "last_seen",
        "logged",
        "misses",
    )

    def __init__(self, connection: Connection, now: float) -> None:
        self.connection: Connection = connection
        self.last_seen: float = now
        self.down_since: float = now
        self.misses: int = 0
        self.in_dns: bool = False
        self.is_pinned: bool = False
        self.is_blocked: bool = False
        self.is_pruned: bool = False
        self.last_heard: float = now
        self.is_busy: bool = False
        self.drain_step: Step = Step.NONE
        self.drain_since: float = 0.0
        self.drain_until: float = 0.0
        self.lag_ms: int = 0
        self.due: float | None = None
        self.logged: dict[str, None] = {}

    @property
    def is_up(self) -> bool:
        """Whether messages may flow."""
        return self.connection.phase is Phase.UP

    @property
    def is_draining(self) -> bool:
        """Whether it is about to leave."""
        return self.drain_step is not Step.NONE

    @property
    def status(self) -> str:
        """The state shown to people: discovered, wanted, dialling, up, busy or down."""
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
    """A row of the connection table as `Node.info` shows it; ages are in seconds."""

    name: str
    status: str
    incarnation: int | None
    in_dns: bool
    up_for_s: float | None
    connections: int
    """How many times this peer has been up."""
    attempts: int
    """Failed attempts since this peer was up last."""
    last_error: str
    """Why the last attempt failed or the last connection ended; "" before the first such error."""
    last_error_age_s: float | None
    lag_ms: int
    draining: bool
    short_lived: int = 0
    """Connections in a row that ended before they had lived for `Settings.settled_s`."""


class Topology:
    """The peers of one node by canonical name, in the order in which they were met.

    That order makes runs with the same seed repeatable.

    Attributes:
        peers: the rows by name.
        aliases: further address → name of the node that has it.
        is_full: whether a node has found no place since the last row was forgotten.
        is_draining: whether this node itself drains.
    """

    def __init__(self, me: Identity, settings: Settings, rng: random.Random) -> None:
        self.me = me
        self.settings = settings
        self.rng = rng
        self.peers: dict[str, Peer] = {}
        self.aliases: dict[str, str] = {}
        self.is_full: bool = False
        self.is_draining: bool = False
        self._learned_at: dict[str, float] = {}
        """When a dial of an alias led to its node, for those that no node has announced."""
        for ip in me.aliases:
            self.aliases[ip] = me.name
        self._families = {_family(ip) for ip in (NodeName.parse(me.name).ip, *me.aliases)}

    def meet(self, now: float, name: str, *, itself: bool = False, by_dns: bool = False) -> Peer | None:
        """Return the row of a node, and make it if the node is new.

        Args:
            now: the loop's time.
            name: the node's canonical name.
            itself: the node's own HELLO has come, so that its address is not an alias any more.
            by_dns: DNS names it. Such a node, like one that introduces itself, may take the place of
                hearsay in a full table.

        Returns:
            None where there is nothing to connect to: this node, an alias, or a full table.
        """
        peer = self.peers.get(name)
        if peer is not None:
            peer.last_seen = now
            return peer
        ip = NodeName.parse(name).ip
        if (itself or (by_dns and self._is_old_alias(now, ip))) and ip not in self.me.aliases:
            self.aliases.pop(ip, None)
            self._learned_at.pop(ip, None)
        if name == self.me.name or ip in self.aliases:
            return None
        if len(self.peers) >= self.settings.max_peers:
            displaced = self._find_hearsay() if itself or by_dns else None
            if displaced is None and itself:
                displaced = self._find_longest_down()
            if displaced is None:
                self.is_full = True
                return None
            self.forget(displaced)
        connection = Connection(name, ip, self.me, self.settings, self.rng, now)
        peer = self.peers[name] = Peer(connection, now)
        return peer

    def answered(
        self, now: float, names: list[str], families: Sequence[int] = FAMILIES
    ) -> tuple[list[Peer], list[Peer]]:
        """Take the names of a DNS answer. Return the rows to dial, and the rows to forget.

        Args:
            now: the loop's time.
            names: the names of all addresses in the answer.
            families: the IP versions for which it is whole; see `Answer.is_whole`. It says nothing about
                peers with other addresses, except that those in it are worth dialling.
        """
        known = dict.fromkeys(self.peers)
        named = set(names)
        for peer in self.peers.values():
            if _version(peer) in families:
                peer.in_dns = False
                peer.misses += 1
        for name in names:
            peer_named = self.meet(now, name, by_dns=True)
            if peer_named is not None:
                peer_named.in_dns = peer_named.in_dns or _version(peer_named) in families
                peer_named.misses = 0
        to_dial = [
            peer for name, peer in self.peers.items() if name not in known or self._unblock_if_named(peer)
        ]
        stale = [
            peer for name, peer in self.peers.items() if name not in named and self._is_forgettable(now, peer)
        ]
        return to_dial, stale

    def unnamed(self, now: float) -> list[Peer]:
        """Return the rows to forget because neither DNS nor a peer has named them for too long."""
        limit_s = self.settings.forget_unnamed_s
        return [
            peer
            for peer in self.peers.values()
            if now - peer.last_seen > limit_s and not (peer.is_up or peer.is_pinned)
        ]

    def prunable(self) -> list[Peer]:
        """Return the connected peers to prune: not named for `Settings.prune_after_lookups` lookups."""
        limit = self.settings.prune_after_lookups
        if limit is None:
            return []
        return [peer for peer in self.up() if peer.misses >= limit and not peer.is_pinned]

    def forget(self, peer: Peer) -> None:
        """Take a row out of the table, with the aliases of that node."""
        name = peer.connection.name
        self.peers.pop(name, None)
        self.aliases = {ip: owner for ip, owner in self.aliases.items() if owner != name}
        self._learned_at = {ip: at for ip, at in self._learned_at.items() if ip in self.aliases}
        self.is_full = False

    def _is_old_alias(self, now: float, ip: str) -> bool:
        """Whether an address may lead to another node by now, so that it is worth dialling again."""
        learned_at = self._learned_at.get(ip)
        if learned_at is None:
            return False
        return now - learned_at > self.settings.forget_after_s or not self.up()

    def learn_alias(self, ip: str, owner: str, dialled_at: float | None = None) -> Peer | None:
        """Note ``ip`` as another address of ``owner``.

        Args:
            ip: the address.
            owner: the node.
            dialled_at: when a dial of the address led to that node, if the node did not announce the address
                itself. Such an alias has an end; see the module.

        Returns:
            The row under that address, if it is not up.
        """
        if NodeName.parse(owner).ip == ip or len(self.aliases) >= 4 * self.settings.max_peers:
            return None
        self.aliases[ip] = owner
        if dialled_at is None:
            self._learned_at.pop(ip, None)
        else:
            self._learned_at[ip] = dialled_at
        basename = self.me.name.partition("@")[0]
        peer = self.peers.get(f"{basename}@{ip}")
        return peer if peer is not None and not peer.is_up else None

    def address_to_dial(self, peer: Peer) -> str:
        """Return the address in a peer's name, or an alias of it where this node has none of that family.

        A node with an IPv6 address only reaches a node whose name has an IPv4 address in this way. Without a
        usable alias it is the address in the name, since a gateway may translate.
        """
        name, ip = peer.connection.name, peer.connection.ip
        if _family(ip) in self._families:
            return ip
        found = (each for each, owner in self.aliases.items() if owner == name)
        return next((each for each in found if _family(each) in self._families), ip)

    def up(self) -> list[Peer]:
        """Return the connected peers, in table order."""
        return [peer for peer in self.peers.values() if peer.is_up]

    def select(self, selectors: Iterable[str]) -> list[str]:
        """Return the names that any of the selectors means, sorted.

        Raises:
            ValueError: an unknown selector.
        """
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
                if self.is_draining:
                    found[self.me.name] = None
                found.update(
                    (name, None) for name, peer in self.peers.items() if peer.is_up and peer.is_draining
                )
            elif selector != "hidden":
                raise ValueError(f"unknown selector {selector!r}; use one of {', '.join(SELECTORS)}")
        return sorted_nodes(list(found))

    def info(self, now: float) -> list[PeerInfo]:
        """Return all rows as people see them, sorted by name."""
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
            short_lived=c.short_lived,
        )

    def _find_hearsay(self) -> Peer | None:
        """Return a row known from hearsay only: never up, not in DNS, not asked for, and not being dialled.

        If there are several, it is the one that was named least recently.
        """
        found = (
            peer
            for peer in self.peers.values()
            if not (peer.in_dns or peer.is_pinned or peer.connection.ups)
            and peer.connection.phase is Phase.IDLE
        )
        return min(found, key=lambda peer: peer.last_seen, default=None)

    def _find_longest_down(self) -> Peer | None:
        """Return the row that has been down for longest and is not asked for, blocked or being dialled."""
        found = (
            peer
            for peer in self.peers.values()
            if not (peer.is_pinned or peer.is_blocked) and peer.connection.phase is Phase.IDLE
        )
        return min(found, key=lambda peer: peer.down_since, default=None)

    def _unblock_if_named(self, peer: Peer) -> bool:
        """Unblock a pruned peer that DNS names again. Return whether it was one."""
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


def _version(peer: Peer) -> int:
    """Return the IP version of the address in a peer's name."""
    return _family(peer.connection.ip)


def _family(ip: str) -> int:
    """Return the IP version of an address."""
    return 6 if ":" in ip else 4
