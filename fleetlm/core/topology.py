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
- A row is *unproven* while its node was never up, DNS does not name it, and the program has not asked for it:
  somebody else named it, or said to be it. Such rows cost little to make, so they take nobody's place: one
  address may introduce no more of them than a machine has nodes, and no more of them may be of one machine;
  a further one takes the place of the oldest of these.
- The table holds `Settings.max_peers` rows. When it is full, a node that introduces itself or that DNS
  names takes the place of an unproven one. A row that was up or is in DNS is displaced by nobody. While the
  table is full, nodes that are down and that nobody names leave after `Settings.forget_after_s`.

A *host* is an IP address; each of its ports may have a node. An A or AAAA record names a host, an SRV record
a node with its port. From a host this node makes a *guess*: a row for its base port, unless a node of that
host is connected, which tells of the others (`core.kernel` dials further ports where the guess was wrong).
Such a record names all nodes of its host, so none of them counts as absent. But it proves nothing about a
single one: a guess leaves the table as soon as another node of its host is connected, and a node that is down
on a host with a connected node leaves after `Settings.forget_after_s` in which no peer has mentioned it.

A node may have several addresses. `Topology.aliases` maps each further address to the node that answered
there, so that the same node is not dialled a second time under another name. (A node's own word is not
enough: it could name the addresses of others, and so keep two of them apart.) An address here is what
follows the ``@`` of a name, with a port if it is not the base port. Where this node has no address
of the family in a peer's name (IPv4 or IPv6), it dials an alias of that peer. An address passes from one
node to the next when containers are replaced, and the virtual address of a load balancer leads to another
node each time. So an entry ends when a node introduces itself at the address, and when DNS still names the
address after `Settings.forget_after_s`, or at once while this node is connected to no other. It lasts while
its node is connected and announces the address itself (`Peer.announced`). Announced addresses serve to dial
that node, and to tell whether it runs on this machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from fleetlm.core.connection import Connection, Identity, Phase
from fleetlm.core.dns_answers import FAMILIES
from fleetlm.core.draining import Step
from fleetlm.names import NodeName, canonical_node, parse_address, sorted_nodes
from fleetlm.records import Record

if TYPE_CHECKING:
    import random

    from fleetlm.core.effects import End
    from fleetlm.settings import Settings

SELECTORS = ("visible", "hidden", "connected", "this", "known", "dns", "host", "busy", "draining")
"""What `Topology.select` accepts. Source: Erlang's nodes/1 for the first five; the rest are ours."""
PEERS_READ = 4
"""PEERS messages that are read in one tick. A peer sends one in each `Settings.gossip_s`, and what was passed
over it sends again."""
MIN_UNPROVEN_ROWS = 16
"""Unproven rows of one address, if the range of ports is smaller: several nodes may share an address behind a
gateway, and with SRV records each of them has a port of its own."""


class Peer:
    """One row of the table.

    Attributes:
        connection: its state machine.
        last_seen: when DNS, a peer or the node itself last named it.
        down_since: when it was up last, or when the row was made; only while it is not up.
        misses: DNS answers in a row that are whole for its family and did not name it.
        in_dns: whether the last one of those named it, or its host.
        is_exact: whether it named the node itself with its port, not only its host.
        is_guess: DNS names its host, and nobody has named the node itself yet.
        is_pinned: the program asked for it by name, so that it is never forgotten.
        introduced_by: the address that dialled this node in its name, when the row was made; "" for others.
        announced: further addresses that it has announced, with its port; proven to be its own word once it
            was up, but not that they are its addresses.
        is_blocked: the program disconnected it, so that it is not dialled until asked for again.
        shunned: the incarnation that was disconnected, and is not admitted; 0: the next one that proves its
            name; None: no such.
        is_pruned: blocked because DNS no longer named it, until DNS names it again.
        last_heard: when its last frame came, at the loop's time.
        is_busy: connected, but its loop has been silent for `Settings.busy_after_s`.
        drain_step: how far it is with draining; see `core.draining`.
        drain_until: when its time for finishing is over.
        lag_ms: how late its loop ran, in milliseconds, when it ticked last.
        peers_left: PEERS messages of it that are read until the next `Kernel.pulse`.
        due: when `Kernel.tick` looks at this row next, or None.
        logged: errors that were logged since it was up last, each once.
        ended_by: the kind of reason why its last session has ended; None before the first end.
    """

    __slots__ = (
        "announced",
        "connection",
        "down_since",
        "drain_step",
        "drain_until",
        "due",
        "ended_by",
        "in_dns",
        "introduced_by",
        "is_blocked",
        "is_busy",
        "is_exact",
        "is_guess",
        "is_pinned",
        "is_pruned",
        "lag_ms",
        "last_heard",
        "last_seen",
        "logged",
        "misses",
        "peers_left",
        "shunned",
    )

    def __init__(self, connection: Connection, now: float, introduced_by: str = "") -> None:
        self.connection: Connection = connection
        self.last_seen: float = now
        self.down_since: float = now
        self.misses: int = 0
        self.in_dns: bool = False
        self.is_exact: bool = False
        self.is_guess: bool = False
        self.is_pinned: bool = False
        self.introduced_by: str = introduced_by
        self.announced: tuple[str, ...] = ()
        self.is_blocked: bool = False
        self.shunned: int | None = None
        self.is_pruned: bool = False
        self.last_heard: float = now
        self.is_busy: bool = False
        self.drain_step: Step = Step.NONE
        self.drain_until: float = 0.0
        self.lag_ms: int = 0
        self.peers_left: int = PEERS_READ
        self.due: float | None = None
        self.logged: dict[str, None] = {}
        self.ended_by: End | None = None

    @property
    def is_up(self) -> bool:
        """Whether messages may flow."""
        return self.connection.phase is Phase.UP

    def block(self) -> None:
        """Dial it no more, and admit it only when it has restarted."""
        c = self.connection
        # In a handshake nothing has proven yet which incarnation it is.
        self.shunned = 0 if c.phase is Phase.DIALLING and c.heard else c.incarnation
        self.is_blocked = True

    def unblock(self) -> None:
        """Take `block` back."""
        self.is_blocked = self.is_pruned = False
        self.shunned = None

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


class PeerInfo(Record):
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
    road: str = ""
    """How messages travel to it: ``"zeromq"``, or ``"local"`` for a Unix socket of this host; "" while it is
    not up."""


class Topology:
    """The peers of one node by canonical name, in the order in which they were met.

    That order makes runs with the same seed repeatable.

    Attributes:
        peers: the rows by name.
        aliases: further address → name of the node that has it.
        hosts: IP address → its rows by name.
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
        self._is_answering = False
        """Whether the names of a DNS answer are being taken."""
        self._displaceable: Iterator[Peer] | None = None
        """The rows whose places these names may take, once one of them has needed one."""
        self._learned_at: dict[str, float] = {}
        """When a dial of an alias led to its node, for those that no node has announced."""
        self.hosts: dict[str, dict[str, Peer]] = {}
        self._introduced: dict[str, dict[str, Peer]] = {}
        """Address that dialled this node → the rows that were made for the names that it gave."""
        self._owners: dict[str, dict[str, str]] = {}
        """IP address of an alias → the aliases there, with their nodes."""
        self._own_ips = {NodeName.parse(me.name).ip, *me.aliases}
        for address in me.alias_addresses:
            self._note_alias(address, me.name)
        self._families = {_family(ip) for ip in self._own_ips}

    def unmet(self, dials: int) -> str:
        """Return a node that was never connected, and whose dials have not failed so often yet, for people.

        Empty: each node that is known is connected, was so once, or cannot be reached.
        """
        for name, peer in self.peers.items():
            connection = peer.connection
            if not (peer.is_up or peer.is_blocked or connection.ups) and connection.attempt < dials:
                return f"{name} is being connected"
        return ""

    def meet(
        self, now: float, name: str, *, introduced_by: str | None = None, by_dns: bool = False
    ) -> Peer | None:
        """Return the row of a node, and make it if the node is new.

        Args:
            now: the loop's time.
            name: the node's canonical name.
            introduced_by: a HELLO in its name has come from this address; None for others. Its address is not
                an alias any more.
            by_dns: DNS names it. Such a node, like one that introduces itself, may take the place of
                an unproven one in a full table.

        Returns:
            None where there is nothing to connect to: this node, an alias, or a full table.
        """
        peer = self.peers.get(name)
        if peer is not None:
            peer.last_seen = now
            peer.is_guess = False
            return peer
        parsed = NodeName.parse(name)
        address = parsed.address
        itself = introduced_by is not None
        may_pass_on = itself or (by_dns and self._is_old_alias(now, address))
        if may_pass_on and address not in self.me.alias_addresses:
            self._drop_alias(address)
        if name == self.me.name or address in self.aliases:
            return None
        if not (by_dns or self._make_room_at(parsed.ip, introduced_by)):
            return None
        if len(self.peers) >= self.settings.max_peers:
            displaced = self._find_displaced() if itself or by_dns else None
            if displaced is None:
                self.is_full = True
                return None
            self.forget(displaced)
        connection = Connection(name, parsed.ip, self.me, self.settings, self.rng, now)
        peer = self.peers[name] = Peer(connection, now, introduced_by or "")
        self.hosts.setdefault(parsed.ip, {})[name] = peer
        if introduced_by:
            self._introduced.setdefault(introduced_by, {})[name] = peer
        return peer

    def is_unproven(self, peer: Peer) -> bool:
        """Whether nothing but the word of others speaks for a row: never up, not in DNS, not asked for."""
        return not (peer.in_dns or peer.is_pinned or peer.connection.ups)

    def has_answered_as_another(self, name: str) -> bool:
        """Whether a name is this node's own, or has an address at which another node answered."""
        return name == self.me.name or NodeName.parse(name).address in self.aliases

    def _make_room_at(self, ip: str, introduced_by: str | None) -> bool:
        """See to it that one more unproven row is not too many for its host, and for who introduces it."""
        # A node that dials from the address in its name has nothing to do with what others say of that host.
        is_own = introduced_by == ip
        mates = [peer for peer in self.hosts.get(ip, {}).values() if (peer.introduced_by == ip) == is_own]
        for rows in (mates, list(self._introduced.get(introduced_by or "", {}).values())):
            unproven = [peer for peer in rows if self.is_unproven(peer)]
            if len(unproven) >= max(MIN_UNPROVEN_ROWS, len(self.settings.all_ports)):
                displaced = self._find_displaceable(unproven)
                if displaced is None:
                    return False
                self.forget(displaced)
        return True

    def answered(
        self, now: float, names: list[str], families: Sequence[int] = FAMILIES
    ) -> tuple[list[Peer], list[Peer]]:
        """Take the names of a DNS answer. Return the rows to dial, and the rows to forget.

        Args:
            now: the loop's time.
            names: the names of all addresses in the answer. One that has a port, even if it is the base port,
                means that node alone; one without a port means the host.
            families: the IP versions for which it is whole; see `Answer.is_whole`. It says nothing about
                peers with other addresses, except that those in it are worth dialling.
        """
        known = dict.fromkeys(self.peers)
        for peer in self.peers.values():
            if _version(peer) in families:
                peer.in_dns = peer.is_exact = False
                peer.misses += 1
        self._is_answering = True
        for name in names:
            for peer in self._named_by_dns(now, NodeName.parse(name)):
                peer.in_dns = peer.in_dns or _version(peer) in families
                peer.misses = 0
        self._is_answering, self._displaceable = False, None
        to_dial = [
            peer for name, peer in self.peers.items() if name not in known or self._unblock_if_named(peer)
        ]
        stale = [peer for peer in self.peers.values() if peer.misses and self._is_forgettable(now, peer)]
        return to_dial, stale

    def _named_by_dns(self, now: float, name: NodeName) -> list[Peer]:
        """Return the rows that a name in a DNS answer means, and make one if it is new."""
        if name.port is None:
            return self._host_named(now, name)
        exact = self.meet(now, canonical_node(str(name), self.settings.base_port), by_dns=True)
        if exact is None:
            return []
        exact.is_exact = True
        return [exact]

    def _host_named(self, now: float, name: NodeName) -> list[Peer]:
        """Return the rows of a host that DNS names; make the guess if no node of it is connected."""
        mates = self.hosts.get(name.ip, {})
        guess = mates.get(str(name))
        if not self.has_connected(name.ip):
            was_guess = guess is None or guess.is_guess
            guess = self.meet(now, str(name), by_dns=True)
            if guess is not None:
                guess.is_guess = was_guess
                mates = self.hosts[name.ip]
        return list(mates.values())

    def has_connected(self, ip: str) -> bool:
        """Whether a node of that host is connected, so that it tells of the others.

        This node is the one of its own host: it has looked on each port of the range itself.
        """
        return (
            ip in self._own_ips
            or any(peer.is_up for peer in self.hosts.get(ip, {}).values())
            or any(self._is_up(owner) for owner in self._owners.get(ip, {}).values())
        )

    def is_searched(self, ip: str) -> bool:
        """Whether to look for nodes on further ports of a host: DNS names it, and no node of it is connected.

        An address of this node is searched as long as no other node there is connected. (`core.port_scan`
        itself sees to it that the nodes at the address in this node's name find each other.)
        """
        mates = self.hosts.get(ip, {}).values()
        if ip in self._own_ips:
            return not any(peer.is_up for peer in mates)
        return any(peer.in_dns and not peer.is_exact for peer in mates) and not self.has_connected(ip)

    def is_wrong_guess(self, peer: Peer) -> bool:
        """Whether a row is a guess that nothing has answered, and another node of its host is connected."""
        connection = peer.connection
        return (
            peer.is_guess
            and connection.phase is Phase.IDLE
            and self.peers.get(connection.name) is peer
            and self.has_connected(connection.ip)
        )

    def unnamed(self, now: float) -> list[Peer]:
        """Return the rows to forget because neither DNS nor a peer has named them for too long.

        On a host with a connected node this comes sooner: peers name a node as long as they are connected to
        it, so one that none has named has left its port.
        """
        s = self.settings
        return [
            peer
            for peer in self.peers.values()
            if now - peer.last_seen > s.forget_after_s
            and not (peer.is_up or peer.is_pinned)
            and (
                now - peer.last_seen > s.forget_unnamed_s
                or self._is_deserted(peer)
                or (self.is_full and not peer.in_dns)
            )
        ]

    def _is_deserted(self, peer: Peer) -> bool:
        """Whether other nodes of its host are connected, and DNS names no node at this very port."""
        return not peer.is_exact and self.has_connected(peer.connection.ip)

    def prunable(self) -> list[Peer]:
        """Return the connected peers to prune: not named for `Settings.prune_after_lookups` lookups."""
        limit = self.settings.prune_after_lookups
        if limit is None:
            return []
        return [peer for peer in self.up() if peer.misses >= limit and not peer.is_pinned]

    def forget(self, peer: Peer) -> None:
        """Take a row out of the table, with the aliases of that node."""
        name, ip = peer.connection.name, peer.connection.ip
        self.peers.pop(name, None)
        for key, rows in ((ip, self.hosts), (peer.introduced_by, self._introduced)):
            mates = rows.get(key, {})
            mates.pop(name, None)
            if not mates:
                rows.pop(key, None)
        for address in [each for each, owner in self.aliases.items() if owner == name]:
            self._drop_alias(address)
        self.is_full = False

    def _is_old_alias(self, now: float, address: str) -> bool:
        """Whether an address may lead to another node by now, so that it is worth dialling again."""
        learned_at = self._learned_at.get(address)
        if learned_at is None:
            return False
        owner = self.peers.get(self.aliases.get(address, ""))
        if owner is not None and owner.is_up and address in owner.announced:
            return False
        return now - learned_at > self.settings.forget_after_s or not self.up()

    def learn_alias(self, now: float, address: str, owner: str) -> Peer | None:
        """Note another address of ``owner``: a dial of it led there.

        Args:
            now: the loop's time.
            address: an IP address, with the port unless it is the base port.
            owner: the node.

        Returns:
            The row under that address, if it is not up.
        """
        if NodeName.parse(owner).address == address or len(self.aliases) >= 4 * self.settings.max_peers:
            return None
        self._note_alias(address, owner)
        self._learned_at[address] = now
        basename = self.me.name.partition("@")[0]
        peer = self.peers.get(f"{basename}@{address}")
        return peer if peer is not None and not peer.is_up else None

    def address_to_dial(self, peer: Peer) -> tuple[str, int]:
        """Return the address and port in a peer's name, or those of an alias in a family of this node.

        A node with an IPv6 address only reaches a node whose name has an IPv4 address in this way. Without a
        usable alias it is the address in the name, since a gateway may translate.
        """
        own = NodeName.parse(peer.connection.name)
        found = own
        if _family(own.ip) not in self._families:
            answered = [address for address, owner in self.aliases.items() if owner == peer.connection.name]
            aliases = (NodeName.parse(f"{own.basename}@{each}") for each in (*answered, *peer.announced))
            found = next((each for each in aliases if _family(each.ip) in self._families), own)
        return found.ip, found.port or self.settings.base_port

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
            elif selector == "host":
                found.update((name, None) for name, peer in self.peers.items() if self._is_host_mate(peer))
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

    def info_of(self, name: str, now: float) -> PeerInfo | None:
        """Return the row of one peer as people see it, or None: a program may ask for each peer in turn."""
        peer = self.peers.get(name)
        return None if peer is None else self._describe(now, peer)

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
            road=c.road,
        )

    def _is_host_mate(self, peer: Peer) -> bool:
        """Whether a connected node runs on this machine: it has an address of this node."""
        if not peer.is_up:
            return False
        name = peer.connection.name
        announced = map(_ip_of, peer.announced)
        answered = (ip for ip, known in self._owners.items() if name in known.values())
        theirs = [peer.connection.ip, *announced, *answered]
        return not self._own_ips.isdisjoint(theirs)

    def _find_displaceable(self, rows: Iterable[Peer]) -> Peer | None:
        """Return the unproven row that was named least recently, of those that are not being dialled."""
        return min(filter(self._is_displaceable, rows), key=_last_seen, default=None)

    def _find_displaced(self) -> Peer | None:
        """Return the row whose place a node may take in the full table, or None.

        To look through a thousand rows for each of the four thousand names of a DNS answer would take most of
        a second. Such names make no row displaceable, so the rows are looked through once.
        """
        if not self._is_answering:
            return self._find_displaceable(self.peers.values())
        if self._displaceable is None:
            self._displaceable = iter(
                sorted(filter(self._is_displaceable, self.peers.values()), key=_last_seen)
            )
        return next(filter(self._is_displaceable, self._displaceable), None)

    def _is_displaceable(self, peer: Peer) -> bool:
        is_wanted = self._is_in_dns_itself(peer) or peer.is_pinned or peer.connection.ups
        return not is_wanted and peer.connection.phase is Phase.IDLE

    def _is_in_dns_itself(self, peer: Peer) -> bool:
        """Whether DNS names a node, or its host, and it is the one to dial there."""
        return peer.is_exact or (peer.in_dns and peer.connection.port == self.settings.base_port)

    def _is_up(self, name: str) -> bool:
        peer = self.peers.get(name)
        return peer is not None and peer.is_up

    def _note_alias(self, address: str, owner: str) -> None:
        self.aliases[address] = owner
        self._owners.setdefault(_ip_of(address), {})[address] = owner

    def _drop_alias(self, address: str) -> None:
        self.aliases.pop(address, None)
        self._learned_at.pop(address, None)
        there = self._owners.get(_ip_of(address), {})
        there.pop(address, None)
        if not there:
            self._owners.pop(_ip_of(address), None)

    def _unblock_if_named(self, peer: Peer) -> bool:
        """Unblock a pruned peer that DNS names again. Return whether it was one."""
        if not (peer.is_pruned and peer.in_dns):
            return False
        peer.unblock()
        return True

    def _is_forgettable(self, now: float, peer: Peer) -> bool:
        s = self.settings
        return (
            not peer.is_up
            and not peer.is_pinned
            and peer.misses >= s.forget_after_lookups
            and now - peer.last_seen > s.forget_after_s
        )


def _last_seen(peer: Peer) -> float:
    return peer.last_seen


def _version(peer: Peer) -> int:
    """Return the IP version of the address in a peer's name."""
    return _family(peer.connection.ip)


def _ip_of(address: str) -> str:
    """Return the IP address of an address that may have a port."""
    parsed = parse_address(address)
    return address if parsed is None else parsed[0]


def _family(ip: str) -> int:
    """Return the IP version of an address."""
    return 6 if ":" in ip else 4
