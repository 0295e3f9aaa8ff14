"""The control state of one node: takes facts, hands them to the tables, and returns the effects.

A *fact* is something that happened: a lookup ended, a channel opened, a frame came, a peer ticked, time
passed. Each fact is a method with `now` first; it changes the tables and returns the *effects* to perform,
in order (`core.effects`). The kernel reads no clock, performs nothing, and raises nothing for what the
network brings. `runtime.driver` feeds it and performs its effects, so every story of connections can be
tested without a socket.

Who owns what:

- `core.topology` has one row (`Peer`) for each known node, and decides which nodes enter the table and which
  are forgotten.
- `core.connection` has the state machine of each row. Its effects pass through `_apply`, the only place
  where they update the kernel's own tables.
- The kernel maps *channels* (numbers that it gives to its dials) to rows, and *sources* (the identities
  that the transport gives to dials of others) to names. A source belongs to a row from the moment in which a
  READY has proven it; any other is a stranger, whatever its HELLO said, and all that it may do is cause a
  dial to the address in the name that it gave (`core.connection`). A channel or source of a half that was
  given up leads nowhere: its frames are passed over.
- `core.port_scan` names further ports to dial of a host on whose base port no node answers. Such a dial has
  no row: the kernel asks what listens there for its name (PROBE, IAM), and a node enters the table by it.
- `core.newcomers` limits what strangers and hearsay bring into the table and have dialled, and
  `core.peer_addresses` knows which addresses are believed and allowed.
- A heap has the next time at which each row needs attention. An entry is void if `Peer.due` has another
  time by then.
- `core.reports` makes the log lines.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fleetlm.core import admission
from fleetlm.core.connection import PROTOCOL_ERROR, Identity, Phase, addresses_at
from fleetlm.core.dns_answers import FAMILIES, Answer as DnsAnswer
from fleetlm.core.draining import Step
from fleetlm.core.effects import Disconnect, Down, Effect, End, HangUp, Reply, Report, Send, Up
from fleetlm.core.halves import Incoming
from fleetlm.core.newcomers import Newcomers
from fleetlm.core.peer_addresses import PeerAddresses, split_by_network
from fleetlm.core.port_scan import PortScan
from fleetlm.core.reports import Reports
from fleetlm.core.topology import PEERS_READ, Peer, Topology
from fleetlm.errors import InvalidName
from fleetlm.names import NodeName, canonical_node
from fleetlm.wire import frames
from fleetlm.wire.frames import BadFrame, Hello, IAm, Kind, Ready, Refusal, Refused

if TYPE_CHECKING:
    import random

    from fleetlm.settings import Settings

MAX_SOURCES = 8_192
"""Sources whose address is remembered. Beyond that the oldest one without a HELLO is forgotten."""


class Kernel:
    """The control state of one node.

    Attributes:
        basename: of this node and all its peers.
        topology: the table of peers.
        ports: the search for nodes on further ports of a host.
        reports: the log lines, and what they have said so far.
        is_leaving: whether this node has said goodbye; from then on it admits and dials no node.
    """

    def __init__(self, me: Identity, settings: Settings, rng: random.Random) -> None:
        self.me = me
        self.basename: str = NodeName.parse(me.name).basename
        self._base_port = settings.base_port
        self.settings = settings
        self.rng = rng
        self.topology: Topology = Topology(me, settings, rng)
        self.reports: Reports = Reports(settings)
        self.is_leaving: bool = False
        self._addresses = PeerAddresses((NodeName.parse(me.name).ip, *me.aliases), settings.allowed_networks)
        self._newcomers = Newcomers(settings)
        self._only_address: str | None = None
        """The address that the last DNS answer named, if it named exactly one."""
        self._sources: dict[bytes, str] = {}
        """Source of the proven half of a peer that is up → the peer's name."""
        self._ips: dict[bytes, str] = {}
        """Source → the address that it dials from."""
        self._channels: dict[int, Peer] = {}
        """Channel of an attempt, a check or a connection → its row."""
        self.ports: PortScan = PortScan(
            settings, NodeName.parse(me.name).ip, me.port, self.topology.is_searched
        )
        self._next_channel = 1
        self._due: list[tuple[float, int, str]] = []
        """A heap of when, number of the entry, and name: what `tick` looks at next."""
        self._due_entries = 0
        self._dials_left = settings.dials_per_turn

    # Facts about which nodes exist.

    def started(self, now: float) -> list[Effect]:
        """This node receives now, and looks for peers: search its own host, which needs no DNS."""
        self.ports.begin(now, NodeName.parse(self.me.name).ip)
        return self._do_due(now)

    def looked_up(self, now: float, answer: DnsAnswer) -> list[Effect]:
        """A lookup ended. Addresses add peers; a peer is absent only from an answer whole for its family."""
        effects = self.reports.lookup(answer)
        addresses, outside = split_by_network(answer.addresses, self._addresses)
        effects += self.reports.outside(outside)
        families = [family for family in FAMILIES if answer.is_whole(family)]
        if not (addresses or families):
            return effects
        names = [f"{self.basename}@{address}" for address in addresses]
        self._only_address = addresses[0] if len(answer.addresses) == 1 and addresses else None
        to_dial, stale = self.topology.answered(now, names, families)
        for peer in to_dial:
            self._schedule(now, peer)
        for peer in self.topology.prunable():
            peer.block()
            peer.is_pruned = True
            why = f"pruned: {peer.misses} lookups in a row did not name it"
            effects += self._apply(now, peer, peer.connection.leave(now, why, End.FORGOTTEN))
        for peer in stale:
            effects += self._forget(now, peer, "not in DNS any more, and not connected")
        return effects + self._report_full_table() + self._do_due(now)

    def heard_of(self, now: float, names: Iterable[str], teller: str) -> list[Effect]:
        """A connected peer names these nodes: dial those that are not known yet, if they may exist.

        Each name may be any text. Looking at one that is not known takes time, so one peer may have only so
        many looked at; others of it are passed over, and come again if they are real.
        """
        for text in names:
            if text in self.topology.peers:
                self.topology.meet(now, text)
            elif self._newcomers.may_be_looked_at(now, text, teller):
                self._look_at(now, text, teller)
        return self._report_full_table() + self._do_due(now)

    def _look_at(self, now: float, text: str, teller: str) -> None:
        """Take a node of which a peer tells into the table, if it may exist."""
        try:
            name = canonical_node(text, self._base_port)
        except InvalidName:
            self._newcomers.pass_over(text)
            return
        if name in self.topology.peers:
            self.topology.meet(now, name)
        elif not self._addresses.believes(NodeName.parse(name).ip):
            self._newcomers.pass_over(text)
        elif not self.topology.has_answered_as_another(name) and self._newcomers.may_tell(now, teller):
            self._meet_new(now, name)

    def _meet_new(self, now: float, name: str) -> None:
        """Take a node into the table of which somebody has told, and dial it soon."""
        peer = self.topology.meet(now, name)
        if peer is not None:
            self._schedule(now, peer)

    def asked_for(self, now: float, name: str) -> list[Effect]:
        """The program wants that node connected: dial it now, and never forget it."""
        peer = self.topology.meet(now, name)
        if peer is None:
            return []
        peer.is_pinned = True
        peer.unblock()
        if peer.connection.phase is Phase.IDLE:
            peer.connection.next_dial_at = now
            self._schedule(now, peer)
        return self._dial_first(now, peer) + self._do_due(now)

    def disconnected(self, now: float, name: str, reason: str) -> list[Effect]:
        """The program wants that node disconnected. It stays so until it is asked for, or restarts."""
        peer = self.topology.peers.get(name)
        if peer is None:
            return []
        peer.is_pinned = False
        peer.block()
        return self._apply(now, peer, peer.connection.leave(now, reason, End.REQUESTED))

    # Facts about channels, which this node dialled.

    def opened(self, now: float, channel: int) -> list[Effect]:
        """A channel is open: send the HELLO, or the PROBE."""
        if channel in self.ports.searches:
            return [Send(channel, frames.probe())]
        peer = self._channels.get(channel)
        return [] if peer is None else self._apply(now, peer, peer.connection.opened(now, channel))

    def channel_lost(
        self,
        now: float,
        channel: int,
        reason: str,
        *,
        is_foreign: bool = False,
        is_logged: bool = False,
        kind: End = End.LOST,
    ) -> list[Effect]:
        """A dial failed, or an open channel has ended.

        ``is_foreign``: another program listens there. ``is_logged``: the cause was logged already.
        ``kind``: of the reason, if the peer was up.
        """
        if channel in self.ports.searches:
            return self._end_search(now, channel, None, is_foreign=is_foreign)
        peer = self._channels.pop(channel, None)
        if peer is None:
            return []
        if peer.connection.is_check(channel):
            return self._end_check(now, peer)
        silence = self._describe_silence(now, peer)
        why = reason + silence
        kind = End.SILENT if silence and kind is End.LOST else kind
        peer.logged |= {why: None} if is_logged else {}
        lost = peer.connection.channel_lost(now, why, is_foreign=is_foreign, kind=kind)
        return self._apply(now, peer, lost)

    def road_opened(self, now: float, channel: int) -> list[Effect]:
        """The peer has let a channel in at its local road."""
        peer = self._channels.get(channel)
        if peer is None or not peer.is_up or peer.connection.is_check(channel):
            return []
        return self._apply(now, peer, peer.connection.road_opened())

    def answered(self, now: float, channel: int, frame: bytes) -> list[Effect]:
        """A REFUSED or IAM came back over a channel that this node dialled."""
        try:
            answer = frames.read_answer(frame)
        except BadFrame as error:
            return self.channel_lost(now, channel, f"protocol error: {error}", is_foreign=True)
        if channel in self.ports.searches:
            return self._end_search(now, channel, answer if isinstance(answer, IAm) else None)
        peer = self._channels.get(channel)
        if peer is None or isinstance(answer, IAm):
            return []
        if peer.connection.is_check(channel):
            return self._end_check(now, peer)
        effects = self._apply(now, peer, peer.connection.channel_lost(now, admission.refused_by(answer)))
        there = self._dialled_address(peer)
        if answer.refusal in (Refusal.SELF, Refusal.WRONG_NAME):
            # The row of an alias is made again and again.
            effects = [effect for effect in effects if not isinstance(effect, Report)]
            text = f"{peer.connection.name}: {peer.connection.last_error}"
            effects += self.reports.once(there, answer.refusal.word, text, "info")
        if answer.refusal is Refusal.SELF:
            effects += self._report_virtual(there, self.me.name)
            return effects + self._learn_alias(now, there, self.me.name)
        if answer.refusal is Refusal.WRONG_NAME and admission.same_fleet(self.me.name, answer.name):
            effects += self._report_virtual(there, answer.name)
            effects += self._learn_alias(now, there, answer.name)
            if self._addresses.allows(NodeName.parse(answer.name).ip):
                self._meet_new(now, canonical_node(answer.name, self._base_port))
            return effects + self._report_full_table() + self._do_due(now)
        return effects

    # Facts about sources, which dialled this node.

    def source_met(self, source: bytes, ip: str) -> None:
        """A new source has dialled from this address. Its HELLO will say which node it is."""
        if len(self._ips) >= MAX_SOURCES:
            oldest = next(iter(self._ips))
            del self._ips[next((known for known in self._ips if known not in self._sources), oldest)]
        self._ips[source] = ip

    def source_lost(self, now: float, source: bytes, reason: str) -> list[Effect]:
        """The TCP connection of a source has ended."""
        self._ips.pop(source, None)
        peer = self._find_peer(source)
        self._sources.pop(source, None)
        if peer is None:
            return []
        silence = self._describe_silence(now, peer)
        kind = End.SILENT if silence else End.LOST
        return self._apply(now, peer, peer.connection.source_lost(now, reason + silence, kind))

    def control_frame(self, now: float, source: bytes, frame: bytes) -> list[Effect]:
        """Take a frame that is neither BATCH nor CHUNK: of the handshake, a GOODBYE, a PROBE, or garbage.

        A stranger may only introduce itself, confirm a dial of this node, and ask who is here.
        """
        peer = self._find_peer(source)
        try:
            kind, epoch, seq = frames.read_header(frame)
            body = frame[frames.HEADER_BYTES :]
            if kind == Kind.PROBE:
                return [Reply(source, frames.iam(self._introduce()))]
            if peer is None or peer.connection.incoming is None:
                if kind == Kind.HELLO and seq == 0:
                    return self._judge_hello(now, source, epoch, frames.read_hello(body))
                if kind == Kind.READY:
                    ready = frames.read_ready(body)
                    half = Incoming(source, epoch, ready.hello, self._ips.get(source, ""), seq + 1)
                    return self._take_ready(now, half, ready)
                return []
            peer.connection.incoming.accept(epoch, seq)
            peer.last_heard = now
            if kind == Kind.READY:
                return []  # It confirms an earlier dial of this node, or one of somebody else in its name.
            if kind == Kind.MOVED:
                return self._apply(now, peer, peer.connection.moved())
            if kind == Kind.GOODBYE:
                return self._take_goodbye(now, peer, frames.read_goodbye(body))
        except BadFrame as error:
            return self.broken(now, source, str(error))
        return self.broken(now, source, f"kind {kind} is not known to this version, or not now")

    def broken(self, now: float, source: bytes, why: str) -> list[Effect]:
        """A source broke the protocol, or a frame from it was lost: end its connection."""
        peer = self._find_peer(source)
        reason = f"{PROTOCOL_ERROR}: {why[: frames.MAX_TEXT_CHARS]}"  # The text may quote what the peer sent.
        if peer is None:
            who = self._ips.get(source, "a connection that has ended")
            return [*self.reports.stranger(who, "protocol error", reason), Disconnect(source)]
        self._sources.pop(source, None)
        effects = self._apply(now, peer, peer.connection.broken(now, reason))
        # The peer shall read the reason first, which comes over the other half.
        return [*effects, Disconnect(source, self.settings.goodbye_flush_s)]

    def stranger_refused(self, now: float, ip: str, reason: str) -> list[Effect]:
        """A dial from ``ip`` did not get past ZeroMQ's own handshake.

        A peer that only connects and closes may be a health check, or a node that probes why it could
        not connect. That is logged as info only, and replaces no error that says more.
        """
        mates = [peer for peer in self.topology.hosts.get(ip, {}).values() if not peer.is_up]
        peer = mates[0] if len(mates) == 1 else None  # Only the address is known, not which node it was.
        certain = reason.startswith("authentication failed")
        if peer is None:
            return self.reports.stranger(ip, reason, reason, "warning" if certain else "info")
        if certain or not peer.connection.last_error:
            peer.connection.last_error, peer.connection.last_error_at = reason, now
        return self.reports.error(peer)

    def ticked(self, now: float, name: str, lag_ms: int) -> None:
        """A connected peer has sent a TICK: its loop is alive."""
        peer = self.topology.peers.get(name)
        if peer is not None:
            peer.last_heard = now
            peer.lag_ms = lag_ms

    # Time.

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: dial peers, and give up dials and handshakes that take too long.

        Call it when `deadline` has passed, in a turn of the event loop of its own: each call begins at most
        `Settings.dials_per_turn` dials, and those that are left are due at once again.
        """
        self._dials_left = self.settings.dials_per_turn
        return self._do_due(now)

    def _do_due(self, now: float) -> list[Effect]:
        """Do what is due; no more dials than are left for this turn."""
        effects: list[Effect] = []
        while self._due and self._due[0][0] <= now:
            entry = heapq.heappop(self._due)
            when, _, name = entry
            peer = self.topology.peers.get(name)
            if peer is None or self.is_leaving or peer.due != when:
                continue
            if peer.connection.phase is Phase.IDLE:
                if not self._dials_left:
                    heapq.heappush(self._due, entry)
                    break
                self._dials_left -= 1
            peer.due = None
            effects += self._wake(now, peer)
        for channel in self.ports.expired(now):
            if channel in self.ports.searches:  # Ending the first one ticks, which ends the others.
                effects += self._end_search(now, channel, None)
        return effects + self.ports.dials(now, self._is_known, self._take_channel)

    def deadline(self) -> float | None:
        """Return when `tick` has something to do next; None if nothing is scheduled."""
        times = [self._due[0][0]] if self._due else []
        times += self.ports.deadlines()
        return min(times, default=None)

    def _wake(self, now: float, peer: Peer) -> list[Effect]:
        """Do what is due for one row: begin or end a check, give up a dial, or dial."""
        connection = peer.connection
        if connection.phase is Phase.UP:
            if connection.check is not None and connection.check.deadline <= now:
                return self._end_check(now, peer)
            if connection.claim is None or connection.check_at(now) > now:
                self._schedule(now, peer)
                return []
            channel = self._take_channel()
            self._channels[channel] = peer
            return self._apply(now, peer, connection.begin_check(now, channel))
        if connection.phase is Phase.DIALLING:
            return self._apply(now, peer, connection.timed_out(now))
        if peer.is_blocked:
            return []
        if self.topology.is_unproven(peer):
            when = self._newcomers.dial_at(now, peer.introduced_by)
            if when > now:
                connection.next_dial_at = when
                self._schedule(now, peer)
                return []
        return self._dial(now, peer)

    def pulse(self, now: float) -> list[Effect]:
        """Note which peers are busy, answer again, or are to be forgotten; call it once a tick interval."""
        effects: list[Effect] = []
        for peer in self.topology.unnamed(now):
            why = f"not connected, and not named by anybody for {self.settings.forget_unnamed_s:g} s"
            effects += self._forget(now, peer, why)
        for peer in self.topology.up():
            peer.peers_left = PEERS_READ
            silent_s = now - peer.last_heard
            busy = silent_s > self.settings.busy_after_s
            if busy != peer.is_busy:
                peer.is_busy = busy
                word = f"is busy: its loop is silent for {silent_s:.1f} s" if busy else "answers again"
                effects.append(Report("info", f"{peer.connection.name} {word}", "busy"))
        return effects

    def left(self, now: float, reason: str) -> list[Effect]:
        """This node leaves: say goodbye to all peers, and admit none from now on."""
        self.is_leaving = True
        effects: list[Effect] = []
        for peer in list(self.topology.peers.values()):
            effects += self._apply(now, peer, peer.connection.leave(now, reason))
        return effects + self.ports.stop()

    # Nodes on further ports of a host.

    def _is_known(self, ip: str, port: int) -> bool:
        """Whether the table has the node at this address and port."""
        name = NodeName(self.basename, ip, None if port == self.settings.base_port else port)
        return str(name) in self.topology.peers

    def _end_search(
        self, now: float, channel: int, answer: IAm | None, *, is_foreign: bool = False
    ) -> list[Effect]:
        """A further port was dialled: get to know the node there, or forget that it was tried (None)."""
        is_stranger = answer is not None and answer.cluster != self.me.cluster
        search = self.ports.end(now, channel, is_foreign=is_foreign or is_stranger)
        effects: list[Effect] = [HangUp(channel)]
        if answer is None or is_stranger:
            return effects + self._do_due(now)
        name = answer.name
        if answer.base_port != self.me.base_port:
            # It will refuse this node, and both will say why.
            name = str(NodeName(self.basename, search.ip, search.port))
        elif not admission.same_fleet(self.me.name, name):
            text = f"{name} is of this cluster too, but no node of this one{admission.ONE_BASENAME}"
            return effects + self.reports.once(name, "basename", text, "info") + self._do_due(now)
        if self._addresses.allows(NodeName.parse(name).ip):
            self._meet_new(now, name)
            there = self._address_at(search.ip, search.port)
            effects += self._learn_alias(now, there, canonical_node(name, self._base_port))
        return effects + self._report_full_table() + self._do_due(now)

    # The handshake.

    def _judge_hello(self, now: float, source: bytes, epoch: int, hello: Hello) -> list[Effect]:
        """Refuse a HELLO, or dial the address in its name. It may be forged, and changes nothing else."""
        ip = self._ips.get(source, "")
        refusal = self._judge(hello, ip)
        if refusal is not None:
            return self._refuse(now, source, hello, *refusal)
        peer = self.topology.peers.get(hello.name)
        is_unknown = peer is None or self.topology.is_unproven(peer)
        if is_unknown and not self._newcomers.may_introduce(now, ip):
            why = f"{ip} has introduced too many unknown nodes in a short time; try again later"
            return self._refuse(now, source, hello, Refusal.TOO_MANY, why)
        peer = self.topology.meet(now, hello.name, introduced_by=ip)
        if peer is None:
            why = f"{self.me.name} knows {len(self.topology.peers):,} nodes already (Settings.max_peers)"
            return self._refuse(now, source, hello, Refusal.TOO_MANY, why)
        connection = peer.connection
        if hello.is_check and connection.phase is Phase.UP and hello.incarnation == connection.incarnation:
            why = f"{self.me.name} is connected to {hello.name} and did not dial it anew"
            return self._answer(source, Refusal.CONNECTED, why)
        if peer.shunned == hello.incarnation:
            return self._refuse_disconnected(now, source, hello)
        peer.is_blocked = False
        if not connection.ups:
            peer.announced = addresses_at(hello.aliases, hello.name)
        effects = self._apply(now, peer, connection.hello(now, source, epoch, hello))
        return effects + self._dial_first(now, peer) + self._do_due(now)

    def _dial_first(self, now: float, peer: Peer) -> list[Effect]:
        """Dial a row that is due, before all others, and whatever was dialled in this turn.

        It is for a node that has introduced itself, which waits for this node's half of the connection, but
        not for ever; and for one that the program asks for. `Connection.hellos` and `Newcomers` bound the
        former.
        """
        if peer.connection.phase is not Phase.IDLE or peer.due is None or peer.due > now or self.is_leaving:
            return []
        peer.due = None
        return self._wake(now, peer)

    def _judge(self, hello: Hello, ip: str) -> tuple[Refusal, str] | None:
        """Check what a HELLO says, and the addresses of the node. Returns the refusal, or None."""
        refusal = admission.judge(self.me, hello, leaving=self.is_leaving)
        if refusal is not None:
            return refusal
        for each in (NodeName.parse(hello.name).ip, ip):
            if not self._addresses.allows(each):
                why = f"{each or 'its address'} is outside of FLEETLM_ALLOWED_NETWORKS of {self.me.name}"
                return Refusal.NOT_ALLOWED, why
        return None

    def _take_ready(self, now: float, half: Incoming, ready: Ready) -> list[Effect]:
        """Take a READY of a stranger. One that names a dial of this node proves whose half it comes on."""
        hello = ready.hello
        peer = self.topology.peers.get(hello.name)
        if peer is None or not peer.connection.expects(ready.epoch):
            return []
        refusal = self._judge(hello, half.ip)
        if refusal is not None:
            return self._refuse(now, half.source, hello, *refusal)
        connection = peer.connection
        if peer.shunned in (0, hello.incarnation):
            peer.shunned, peer.is_blocked = hello.incarnation, True  # Now it is proven which one it is.
            effects = self._apply(now, peer, connection.leave(now, "disconnected on request", End.REQUESTED))
            return effects + self._refuse_disconnected(now, half.source, hello)
        if connection.phase is not Phase.UP:
            self._sources[half.source] = hello.name
        return self._apply(now, peer, connection.ready(now, half)) + self._do_due(now)

    def _end_check(self, now: float, peer: Peer) -> list[Effect]:
        """The address of a peer that is up did not confirm that it dialled anew: refuse whoever said so."""
        check = peer.connection.check
        effects = self._apply(now, peer, peer.connection.end_check())
        if check is None or check.claim.source not in self._ips:
            return effects
        why = admission.duplicate(check.claim.hello)
        return effects + self._refuse(now, check.claim.source, check.claim.hello, Refusal.DUPLICATE_NAME, why)

    def _refuse_disconnected(self, now: float, source: bytes, hello: Hello) -> list[Effect]:
        """Refuse a node that the program has disconnected."""
        why = f"{self.me.name} was told to disconnect from {hello.name}"
        return self._refuse(now, source, hello, Refusal.DRAINING, why)

    def _take_goodbye(self, now: float, peer: Peer, reason: str) -> list[Effect]:
        """The peer ends the connection; try again after a back-off."""
        connection = peer.connection
        in_order = not reason.startswith(PROTOCOL_ERROR)
        why = f"left: {reason}" if in_order else f"the peer ended the connection: {reason}"
        kind = End.LEFT if in_order else End.ENDED_BY_PEER
        return self._apply(now, peer, connection.down(now, why, in_order=in_order, kind=kind))

    def _refuse(self, now: float, source: bytes, hello: Hello, refusal: Refusal, why: str) -> list[Effect]:
        """Answer a HELLO with a refusal over the dialler's channel, and note it in the table and the log."""
        effects = self._answer(source, refusal, why)
        if refusal is Refusal.SELF:
            return effects
        note = f"refused it: {refusal.word} ({why})"
        ip = self._ips.get(source, "?")
        peer = self.topology.peers.get(hello.name)
        if peer is None or peer.is_up:
            text = f"refused {hello.name} at {ip}: {note}"
            return effects + self.reports.once(ip, refusal.word, text)
        peer.connection.last_error, peer.connection.last_error_at = note, now
        return effects + self.reports.once(ip, refusal.word, f"{hello.name}: {note}", "info")

    def _answer(self, source: bytes, refusal: Refusal, why: str) -> list[Effect]:
        return [Reply(source, frames.refused(Refused(refusal, why, self.me.name)))]

    # Internals.

    def _describe_silence(self, now: float, peer: Peer) -> str:
        """Return what was measured of a peer that was silent before its connection ended, or ""."""
        silent_s = now - peer.last_heard
        if not peer.is_up or silent_s <= self.settings.busy_after_s:
            return ""
        limit_s = self.settings.node_timeout_s
        limit = f"; FLEETLM_NODE_TIMEOUT_MS is {limit_s:g} s" if silent_s >= limit_s else ""
        return f" (nothing was read from it for {silent_s:.1f} s{limit})"

    def _dial(self, now: float, peer: Peer) -> list[Effect]:
        """Begin an attempt on a new channel."""
        channel = self._take_channel()
        self._channels[channel] = peer
        peer.connection.target, peer.connection.port = self.topology.address_to_dial(peer)
        return self._apply(now, peer, peer.connection.dial(now, channel))

    def _apply(self, now: float, peer: Peer, effects: list[Effect]) -> list[Effect]:
        """Update the tables for a connection's effects, and return them with what follows from them.

        Every effect of a `Connection` passes here: a channel that is hung up is forgotten, `Up` and `Down`
        reset the row, and the row is scheduled anew.
        """
        out: list[Effect] = []
        for effect in effects:
            out.append(effect)
            if isinstance(effect, HangUp):
                self._channels.pop(effect.channel, None)
            elif isinstance(effect, Up):
                peer.last_heard, peer.is_busy, peer.drain_step, peer.lag_ms = now, False, Step.NONE, 0
                peer.due = None
                peer.logged.clear()
                peer.shunned = None
                peer.announced = addresses_at(effect.incoming.hello.aliases, effect.name)
                out += self.reports.address(peer)
                if peer.connection.ups == 1 and not (peer.in_dns or peer.is_pinned):
                    self._newcomers.proved(now)
                out += self._forget_wrong_guesses(now, peer.connection.ip)
            elif isinstance(effect, Down):
                peer.is_busy, peer.drain_step = False, Step.NONE
                # Being connected counts as being named.
                peer.last_seen, peer.down_since, peer.misses = now, now, 0
                peer.logged[effect.reason] = None  # The log line of the nodedown has this reason.
                out += self.reports.short_life(peer)
        if peer.connection.phase is not Phase.IDLE:
            self._schedule(now, peer)
            return out
        if self.topology.is_wrong_guess(peer):
            return out + self._forget(now, peer, "no node listens there")
        if self.topology.is_unproven(peer) and any(isinstance(effect, HangUp) for effect in effects):
            peer.connection.wait_for_a_sign(now)
        self._schedule(now, peer)
        if peer.in_dns and not peer.is_exact and peer.connection.attempt:
            self.ports.begin(now, peer.connection.ip)
        return out + self._report_error(peer)

    def _report_error(self, peer: Peer) -> list[Effect]:
        """Report the last error of a peer; of all that one stranger has introduced only the first one."""
        is_strange = peer.introduced_by and self.topology.is_unproven(peer)
        return self.reports.error(peer, peer.introduced_by if is_strange else "")

    def _forget_wrong_guesses(self, now: float, ip: str) -> list[Effect]:
        """Forget the row that was made for a host of which another node is connected now."""
        effects: list[Effect] = []
        for mate in list(self.topology.hosts.get(ip, {}).values()):
            if self.topology.is_wrong_guess(mate):
                effects += self._forget(now, mate, "no node listens there")
        return effects

    def _learn_alias(self, now: float, address: str, owner: str) -> list[Effect]:
        """Note another address of a node, and forget the row that was made for that address."""
        peer = self.topology.learn_alias(now, address, owner)
        return [] if peer is None else self._forget(now, peer, f"another address of {owner}")

    def _forget(self, now: float, peer: Peer, why: str) -> list[Effect]:
        """End what there is with a peer, and take it out of the table; report nothing."""
        effects = peer.connection.leave(now, why, End.FORGOTTEN)
        self.topology.forget(peer)
        out = self._apply(now, peer, effects)
        return [effect for effect in out if not isinstance(effect, Report)]

    def _dialled_address(self, peer: Peer) -> str:
        """Return the address that was dialled for a peer, as it would stand in a name."""
        return self._address_at(peer.connection.target, peer.connection.port)

    def _address_at(self, ip: str, port: int) -> str:
        """Return an address as it would stand in a name."""
        return NodeName("", ip, None if port == self.settings.base_port else port).address

    def _report_virtual(self, address: str, owner: str) -> list[Effect]:
        """Report that the only address in DNS led to a node whose name has another address."""
        if address != self._only_address or address == NodeName.parse(self.me.name).address:
            return []
        return self.reports.virtual(address, owner)

    def _report_full_table(self) -> list[Effect]:
        """Report that a node found no place in the table."""
        return self.reports.full_table() if self.topology.is_full else []

    def _find_peer(self, source: bytes) -> Peer | None:
        """Return the peer whose present half this source is; None for a stranger or a former half."""
        name = self._sources.get(source)
        peer = None if name is None else self.topology.peers.get(name)
        if peer is None or peer.connection.incoming is None or peer.connection.incoming.source != source:
            self._sources.pop(source, None)
            return None
        return peer

    def _schedule(self, now: float, peer: Peer) -> None:
        """Enter when `tick` must look at this row next, if it must."""
        when = peer.connection.wake_at(now)
        if when is None or (peer.is_blocked and not peer.is_up) or peer.due == when:
            return
        peer.due = when  # Entries of this row with another time are void.
        self._due_entries += 1
        heapq.heappush(self._due, (when, self._due_entries, peer.connection.name))

    def _take_channel(self) -> int:
        channel = self._next_channel
        self._next_channel += 1
        return channel

    def _introduce(self) -> IAm:
        me = self.me
        return IAm(me.name, me.cluster, len(self.topology.up()), me.base_port)
