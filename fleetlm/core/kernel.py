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
  that the transport gives to dials of others) to names. A source that no row claims is a stranger. A
  channel or source of a half that was given up leads nowhere: its frames are passed over.
- `core.port_scan` names further ports to dial of a host on whose base port no node answers. Such a dial has
  no row: the kernel asks what listens there for its name (PROBE, IAM), and a node enters the table by it.
- A heap has the next time at which each row needs attention. An entry is void if `Peer.due` has another
  time by then.

Two nodes that claim one name: a HELLO of an incarnation other than the connected one does not end the
connection. It starts a *probe*: the kernel dials the address of that name and asks who is there (PROBE,
IAM). If the new incarnation answers, the node has restarted: the old connection goes down before the new
one comes up. If another one answers, or none while the old connection is still up, the claimant is refused
as ``duplicate_name``. The clocks of the two nodes play no part in it.

Each change that people should know of becomes one `Report`. The lists of what has been reported are bounded,
so that a stranger cannot fill the memory or the log.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from fleetlm.core import admission
from fleetlm.core.connection import PROTOCOL_ERROR, Identity, Phase, addresses_at
from fleetlm.core.dns_answers import FAMILIES, Answer as DnsAnswer, Outcome
from fleetlm.core.draining import Step
from fleetlm.core.effects import Dial, Disconnect, Down, Effect, HangUp, Reply, Report, Send, Up
from fleetlm.core.port_scan import PortScan
from fleetlm.core.topology import Peer, Topology
from fleetlm.names import NodeName, canonical_node
from fleetlm.wire import frames
from fleetlm.wire.frames import BadFrame, Hello, IAm, Kind, Refusal, Refused

if TYPE_CHECKING:
    import random

    from fleetlm.settings import Settings

MAX_SOURCES = 8_192
"""Sources whose address is remembered. Beyond that the oldest one without a HELLO is forgotten."""
MAX_STRANGERS = 256
"""Refusals of strangers, and unexpected addresses, that are remembered so that each is logged once."""
SHORT_LIVES_TOLD = 3
"""Short-lived connections in a row to one peer after which people are told, once. Fewer are a restart."""
MAX_VERDICTS = 16
"""Errors of one peer that are remembered as logged. Beyond that they may be logged again."""


class _Claim(NamedTuple):
    """The HELLO of a second claimant of a name, kept while the address of that name is probed."""

    source: bytes
    epoch: int
    hello: Hello
    ip: str
    until: float


class Kernel:
    """The control state of one node.

    Attributes:
        basename: of this node and all its peers.
        topology: the table of peers.
        ports: the search for nodes on further ports of a host.
        is_leaving: whether this node has said goodbye; from then on it admits and dials no node.
        verdict: the outcome of the last lookup in words.
        observed: addresses from which peers dial this node that are not those of their names.
    """

    def __init__(self, me: Identity, settings: Settings, rng: random.Random) -> None:
        self.me = me
        self.basename: str = NodeName.parse(me.name).basename
        self._base_port = settings.base_port
        self.settings = settings
        self.rng = rng
        self.topology: Topology = Topology(me, settings, rng)
        self.is_leaving: bool = False
        self.verdict: str = ""
        self._only_address: str | None = None
        """The address that the last DNS answer named, if it named exactly one."""
        self.observed: set[str] = set()
        self._sources: dict[bytes, str] = {}
        """Source of a peer's present half → the name in its HELLO."""
        self._ips: dict[bytes, str] = {}
        """Source → the address that it dials from."""
        self._channels: dict[int, Peer] = {}
        """Channel of an attempt or connection → its row."""
        self._probes: dict[int, _Claim] = {}
        """Channel of a probe → the claim that it is to settle."""
        self.ports: PortScan = PortScan(
            settings, NodeName.parse(me.name).ip, me.port, self.topology.is_searched
        )
        self._next_channel = 1
        self._due: list[tuple[float, int, str]] = []
        """A heap of when, number of the entry, and name: what `tick` looks at next."""
        self._due_entries = 0
        self._strangers: dict[tuple[str, str], None] = {}

    # Facts about which nodes exist.

    def started(self, now: float) -> list[Effect]:
        """This node receives now, and looks for peers: search its own host, which needs no DNS."""
        self.ports.begin(now, NodeName.parse(self.me.name).ip)
        return self.tick(now)

    def looked_up(self, now: float, answer: DnsAnswer) -> list[Effect]:
        """A lookup ended. Addresses add peers; a peer is absent only from an answer whole for its family."""
        effects = self._report_lookup(answer)
        families = [family for family in FAMILIES if answer.is_whole(family)]
        if not (answer.addresses or families):
            return effects
        names = [f"{self.basename}@{address}" for address in answer.addresses]
        self._only_address = answer.addresses[0] if len(answer.addresses) == 1 else None
        to_dial, stale = self.topology.answered(now, names, families)
        for peer in to_dial:
            self._schedule(peer)
        for peer in self.topology.prunable():
            peer.is_blocked = peer.is_pruned = True
            why = f"pruned: {peer.misses} lookups in a row did not name it"
            effects += self._apply(now, peer, peer.connection.leave(now, why))
        for peer in stale:
            effects += self._forget(now, peer, "not in DNS any more, and not connected")
        return effects + self._report_full_table() + self.tick(now)

    def heard_of(self, now: float, names: Iterable[str]) -> list[Effect]:
        """A connected peer names these nodes: dial those that are not known yet."""
        for text in names:
            name = canonical_node(text, self._base_port)
            known = name in self.topology.peers
            peer = self.topology.meet(now, name)
            if peer is not None and not known:
                self._schedule(peer)
        return self._report_full_table() + self.tick(now)

    def asked_for(self, now: float, name: str) -> list[Effect]:
        """The program wants that node connected: dial it now, and never forget it."""
        peer = self.topology.meet(now, name)
        if peer is None:
            return []
        peer.is_pinned = True
        peer.is_blocked = peer.is_pruned = False
        if peer.connection.phase is Phase.IDLE:
            peer.connection.next_dial_at = now
            self._schedule(peer)
        return self.tick(now)

    def disconnected(self, now: float, name: str, reason: str) -> list[Effect]:
        """The program wants that node disconnected. It stays so until it is asked for, or restarts."""
        peer = self.topology.peers.get(name)
        if peer is None:
            return []
        peer.is_pinned = False
        peer.is_blocked = True
        if peer.connection.incoming is not None:
            peer.connection.incarnation = peer.connection.incoming.hello.incarnation
        return self._apply(now, peer, peer.connection.leave(now, reason))

    # Facts about channels, which this node dialled.

    def opened(self, now: float, channel: int) -> list[Effect]:
        """A channel is open: send the HELLO, or the PROBE."""
        if channel in self._probes or channel in self.ports.searches:
            return [Send(channel, frames.probe())]
        peer = self._channels.get(channel)
        return [] if peer is None else self._apply(now, peer, peer.connection.opened(now))

    def channel_lost(
        self, now: float, channel: int, reason: str, *, is_foreign: bool = False, is_logged: bool = False
    ) -> list[Effect]:
        """A dial failed, or an open channel has ended.

        ``is_foreign``: another program listens there. ``is_logged``: the cause was logged already.
        """
        if channel in self._probes:
            return self._settle_claim(now, channel, None)
        if channel in self.ports.searches:
            return self._end_search(now, channel, None)
        peer = self._channels.pop(channel, None)
        if peer is None:
            return []
        why = reason + self._describe_silence(now, peer)
        peer.logged |= {why: None} if is_logged else {}
        return self._apply(now, peer, peer.connection.channel_lost(now, why, is_foreign=is_foreign))

    def answered(self, now: float, channel: int, frame: bytes) -> list[Effect]:
        """A REFUSED or IAM came back over a channel that this node dialled."""
        try:
            answer = frames.read_answer(frame)
        except BadFrame as error:
            return self.channel_lost(now, channel, f"protocol error: {error}", is_foreign=True)
        if channel in self.ports.searches:
            return self._end_search(now, channel, answer if isinstance(answer, IAm) else None)
        if isinstance(answer, IAm):
            return self._settle_claim(now, channel, answer) if channel in self._probes else []
        peer = self._channels.get(channel)
        if peer is None:
            return []
        known = peer.connection.incoming
        if answer.refusal is Refusal.STALE and known and known.hello.incarnation != answer.incarnation:
            peer.connection.incoming = None  # That half is of a former incarnation: do not confirm it.
        effects = self._apply(now, peer, peer.connection.channel_lost(now, admission.refused_by(answer)))
        there = self._dialled_address(peer)
        if answer.refusal in (
            Refusal.SELF,
            Refusal.WRONG_NAME,
        ):  # The row of an alias is made again and again.
            effects = [effect for effect in effects if not isinstance(effect, Report)]
            text = f"{peer.connection.name}: {peer.connection.last_error}"
            effects += self._report_once(there, answer.refusal.word, text, "info")
        if answer.refusal is Refusal.SELF:
            effects += self._report_virtual(there, self.me.name)
            return effects + self._learn_alias(now, there, self.me.name, dialled_at=now)
        if answer.refusal is Refusal.WRONG_NAME and admission.same_fleet(self.me.name, answer.name):
            effects += self._report_virtual(there, answer.name)
            effects += self._learn_alias(now, there, answer.name, dialled_at=now)
            return effects + self.heard_of(now, [answer.name])
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
        why = reason + self._describe_silence(now, peer)
        return self._apply(now, peer, peer.connection.source_lost(now, why))

    def control_frame(self, now: float, source: bytes, frame: bytes) -> list[Effect]:
        """Take a frame that is neither BATCH nor CHUNK: of the handshake, a GOODBYE, a PROBE, or garbage."""
        peer = self._find_peer(source)
        try:
            kind, epoch, seq = frames.read_header(frame)
            body = frame[frames.HEADER_BYTES :]
            if kind == Kind.PROBE:
                return [Reply(source, frames.iam(self._introduce()))]
            if kind == Kind.HELLO and seq == 0 and peer is None:
                return self._judge_hello(now, source, epoch, frames.read_hello(body))
            if peer is None or peer.connection.incoming is None:
                return []  # From a half that was given up, or from a stranger: pass over.
            peer.connection.incoming.accept(epoch, seq)
            peer.last_heard = now
            if kind == Kind.READY:
                return self._take_ready(now, peer, source, frames.read_ready(body))
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
            return [*self._report_stranger(who, "protocol error", reason), Disconnect(source)]
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
            return self._report_stranger(ip, reason, reason, "warning" if certain else "info")
        if certain or not peer.connection.last_error:
            peer.connection.last_error, peer.connection.last_error_at = reason, now
        return self._report_verdict(peer)

    def ticked(self, now: float, name: str, lag_ms: int) -> None:
        """A connected peer has sent a TICK: its loop is alive."""
        peer = self.topology.peers.get(name)
        if peer is not None:
            peer.last_heard = now
            peer.lag_ms = lag_ms

    # Time.

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: dial peers, and give up handshakes and probes that take too long."""
        effects: list[Effect] = []
        while self._due and self._due[0][0] <= now:
            when, _, name = heapq.heappop(self._due)
            peer = self.topology.peers.get(name)
            if peer is None or self.is_leaving or peer.due != when:
                continue
            peer.due = None
            if peer.connection.phase is Phase.DIALLING:
                effects += self._apply(now, peer, peer.connection.timed_out(now))
            elif peer.connection.phase is Phase.IDLE and not peer.is_blocked:
                effects += self._dial(now, peer)
        for channel, claim in list(self._probes.items()):
            if claim.until <= now and channel in self._probes:
                effects += self._settle_claim(now, channel, None)
        for channel in self.ports.expired(now):
            if channel in self.ports.searches:  # Ending the first one ticks, which ends the others.
                effects += self._end_search(now, channel, None)
        return effects + self.ports.dials(now, self._is_known, self._take_channel)

    def deadline(self) -> float | None:
        """Return when `tick` has something to do next; None if nothing is scheduled."""
        times = [self._due[0][0]] if self._due else []
        times += [claim.until for claim in self._probes.values()]
        times += self.ports.deadlines()
        return min(times, default=None)

    def pulse(self, now: float) -> list[Effect]:
        """Note which peers are busy, answer again, or are to be forgotten; call it once a tick interval."""
        effects: list[Effect] = []
        for peer in self.topology.unnamed(now):
            why = f"not connected, and not named by anybody for {self.settings.forget_unnamed_s:g} s"
            effects += self._forget(now, peer, why)
        for peer in self.topology.up():
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
        effects: list[Effect] = [HangUp(channel) for channel in self._probes]
        self._probes.clear()
        effects += self.ports.stop()
        for peer in list(self.topology.peers.values()):
            effects += self._apply(now, peer, peer.connection.leave(now, reason))
        return effects

    # Nodes on further ports of a host.

    def _is_known(self, ip: str, port: int) -> bool:
        """Whether the table has the node at this address and port."""
        name = NodeName(self.basename, ip, None if port == self.settings.base_port else port)
        return str(name) in self.topology.peers

    def _end_search(self, now: float, channel: int, answer: IAm | None) -> list[Effect]:
        """A further port was dialled: get to know the node there, or forget that it was tried (None)."""
        search = self.ports.end(channel)
        effects: list[Effect] = [HangUp(channel)]
        if answer is None or answer.cluster != self.me.cluster:
            return effects + self.tick(now)
        name = answer.name
        if answer.base_port != self.me.base_port:
            # It will refuse this node, and both will say why.
            name = str(NodeName(self.basename, search.ip, search.port))
        elif not admission.same_fleet(self.me.name, name):
            text = f"{name} is of this cluster too, but no node of this one{admission.ONE_BASENAME}"
            return effects + self._report_once(name, "basename", text, "info") + self.tick(now)
        return effects + self.heard_of(now, [name])

    # The handshake.

    def _judge_hello(self, now: float, source: bytes, epoch: int, hello: Hello) -> list[Effect]:
        """Admit or refuse a dialler, or probe its address if its name is connected already."""
        ip = self._ips.get(source, "")
        refusal = admission.judge(self.me, hello, leaving=self.is_leaving)
        if refusal is not None:
            return self._refuse(now, source, hello, *refusal)
        peer = self.topology.meet(now, hello.name, itself=True)
        if peer is None:
            why = f"{self.me.name} knows {self.settings.max_peers:,} nodes already (Settings.max_peers)"
            return self._refuse(now, source, hello, Refusal.TOO_MANY, why)
        if peer.is_up and peer.connection.incarnation != hello.incarnation:
            return self._probe_owner(now, source, epoch, hello, ip, peer)
        return self._admit(now, source, epoch, hello, ip, peer)

    def _admit(
        self, now: float, source: bytes, epoch: int, hello: Hello, ip: str, peer: Peer
    ) -> list[Effect]:
        """Make this source the present half of its peer, unless the program disconnected that node."""
        effects: list[Effect] = []
        if peer.is_blocked and peer.connection.incarnation in (0, hello.incarnation):
            peer.connection.incarnation = hello.incarnation
            why = f"{self.me.name} was told to disconnect from {hello.name}"
            return self._refuse(now, source, hello, Refusal.DRAINING, why)
        peer.is_blocked = False
        for alias in addresses_at(hello.aliases, hello.name):
            effects += self._learn_alias(now, alias, hello.name)
        known = peer.connection.incoming
        if known is not None:
            self._sources.pop(known.source, None)
        self._sources[source] = hello.name
        effects += self._apply(now, peer, peer.connection.hello(now, source, epoch, hello, ip))
        return effects + self.tick(now)

    def _probe_owner(
        self, now: float, source: bytes, epoch: int, hello: Hello, ip: str, peer: Peer
    ) -> list[Effect]:
        """Two incarnations claim one name: dial its address, and ask which of them is there."""
        if any(claim.hello.name == hello.name for claim in self._probes.values()):
            why = admission.duplicate(hello, peer.connection.incarnation)
            return self._refuse(now, source, hello, Refusal.DUPLICATE_NAME, why)
        channel = self._take_channel()
        until = now + self.settings.connect_timeout_s
        self._probes[channel] = _Claim(source, epoch, hello, ip, until)
        return [Dial(channel, peer.connection.target, peer.connection.port)]

    def _settle_claim(self, now: float, channel: int, answer: IAm | None) -> list[Effect]:
        """A probe was answered, or was not (None): admit the second claimant of the name, or refuse it."""
        source, epoch, hello, ip, _ = self._probes.pop(channel)
        effects: list[Effect] = [HangUp(channel)]
        peer = self.topology.meet(now, hello.name, itself=True)
        if peer is None or source not in self._ips:
            return effects
        if peer.is_up and peer.connection.incarnation == hello.incarnation:
            return effects  # It has come up over a later dial in the meantime.
        claimed = (hello.name, hello.incarnation)
        confirmed = answer is not None and (answer.name, answer.incarnation) == claimed
        if confirmed and peer.is_up:
            effects += self._apply(now, peer, peer.connection.down(now, "restarted: another incarnation"))
        if confirmed or (answer is None and not peer.is_up):  # No other node claims the name any more.
            return effects + self._admit(now, source, epoch, hello, ip, peer)
        owner = peer.connection.incarnation if answer is None else answer.incarnation
        why = admission.duplicate(hello, owner)
        return effects + self._refuse(now, source, hello, Refusal.DUPLICATE_NAME, why)

    def _take_ready(self, now: float, peer: Peer, source: bytes, ready: frames.Ready) -> list[Effect]:
        """Take a READY; one that is meant for a former incarnation of this node is refused as `stale`."""
        if ready.incarnation != self.me.incarnation:
            hello = peer.connection.incoming.hello if peer.connection.incoming else None
            effects = self.source_lost(now, source, "stale")
            why = f"{self.me.name} has been restarted: incarnation {ready.incarnation:x} has ended"
            return (
                effects if hello is None else effects + self._refuse(now, source, hello, Refusal.STALE, why)
            )
        return self._apply(now, peer, peer.connection.ready(now, ready))

    def _take_goodbye(self, now: float, peer: Peer, reason: str) -> list[Effect]:
        """The peer ends the connection or attempt; try again after a back-off."""
        connection = peer.connection
        in_order = not reason.startswith(PROTOCOL_ERROR)
        why = f"left: {reason}" if in_order else f"the peer ended the connection: {reason}"
        if connection.phase is Phase.UP:
            return self._apply(now, peer, connection.down(now, why, in_order=in_order))
        source = connection.incoming.source if connection.incoming else b""
        self._sources.pop(source, None)
        connection.incoming = None
        return self._apply(now, peer, connection.failed(now, why))

    def _refuse(self, now: float, source: bytes, hello: Hello, refusal: Refusal, why: str) -> list[Effect]:
        """Answer a HELLO with a refusal over the dialler's channel, and note it in the table and the log."""
        answer = Refused(refusal, why, self.me.name, self.me.incarnation)
        effects: list[Effect] = [Reply(source, frames.refused(answer))]
        if refusal is Refusal.SELF:
            return effects
        note = f"refused it: {refusal.word} ({why})"
        peer = self.topology.peers.get(hello.name)
        if peer is None or peer.is_up:
            who = f"{hello.name} at {self._ips.get(source, '?')}"
            return effects + self._report_stranger(who, refusal.word, note)
        peer.connection.last_error, peer.connection.last_error_at = note, now
        return effects + self._report_verdict(peer)

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
                out += self._note_address(peer)
                out += self._forget_wrong_guesses(now, peer.connection.ip)
            elif isinstance(effect, Down):
                peer.is_busy, peer.drain_step = False, Step.NONE
                # Being connected counts as being named.
                peer.last_seen, peer.down_since, peer.misses = now, now, 0
                peer.logged[effect.reason] = None  # The log line of the nodedown has this reason.
                out += self._note_short_life(peer)
        if peer.connection.phase is not Phase.IDLE:
            self._schedule(peer)
            return out
        if self.topology.is_wrong_guess(peer):
            return out + self._forget(now, peer, "no node listens there")
        self._schedule(peer)
        if peer.in_dns and not peer.is_exact and peer.connection.attempt:
            self.ports.begin(now, peer.connection.ip)
        return out + self._report_verdict(peer)

    def _forget_wrong_guesses(self, now: float, ip: str) -> list[Effect]:
        """Forget the row that was made for a host of which another node is connected now."""
        effects: list[Effect] = []
        for mate in list(self.topology.hosts.get(ip, {}).values()):
            if self.topology.is_wrong_guess(mate):
                effects += self._forget(now, mate, "no node listens there")
        return effects

    def _note_address(self, peer: Peer) -> list[Effect]:
        """Report a peer that dials from another address than that in its name: NAT, or a wrong name."""
        incoming = peer.connection.incoming
        if incoming is None or not incoming.ip or incoming.ip == peer.connection.ip:
            return []
        if incoming.ip in incoming.hello.aliases or incoming.ip in self.observed:
            return []
        if len(self.observed) >= MAX_STRANGERS:
            return []
        self.observed.add(incoming.ip)
        text = (
            f"{peer.connection.name} dials us from {incoming.ip}, not from the address in its name; if "
            "peers cannot reach it, set FLEETLM_NODE_IP there"
        )
        return [Report("warning", text, "address")]

    def _note_short_life(self, peer: Peer) -> list[Effect]:
        """Report a peer whose connections end soon after the handshake, once until one of them lives."""
        connection = peer.connection
        if connection.short_lived != SHORT_LIVES_TOLD:
            return []
        text = (
            f"{connection.name}: {SHORT_LIVES_TOLD} connections in a row ended within "
            f"{self.settings.settled_s:g} s, the last one because of this: {connection.last_error}. This "
            f"node dials again after longer and longer pauses, up to {2 * self.settings.backoff_max_s:g} s"
        )
        return [Report("warning", text, "short life")]

    def _report_verdict(self, peer: Peer) -> list[Effect]:
        """Report each error of a peer once until it is up again: dead addresses are normal in a cluster."""
        reason = peer.connection.last_error
        if not reason or reason in peer.logged or peer.connection.attempt == 0:
            return []
        if len(peer.logged) >= MAX_VERDICTS:
            peer.logged.clear()
        peer.logged[reason] = None
        return [Report("info", f"{peer.connection.name}: {reason}", "verdict")]

    def _report_lookup(self, answer: DnsAnswer) -> list[Effect]:
        """Report the outcome of a lookup if it is not that of the last one."""
        verdict = answer.outcome.name
        if answer.outcome is not Outcome.ADDRESSES:
            verdict += f": {answer.detail}"
        if verdict == self.verdict:
            return []
        first = not self.verdict
        self.verdict = verdict
        if answer.outcome is Outcome.ADDRESSES:
            return [Report("info", f"DNS names {len(answer.addresses)} address(es): {answer.detail}")]
        level = "info" if first else "warning"
        return [Report(level, f"DNS: {answer.detail}; connected nodes stay connected, and lookups continue")]

    def _report_stranger(self, who: str, what: str, reason: str, level: str = "warning") -> list[Effect]:
        """Report a refusal once for each ``who`` and ``what``; the text of ``reason`` may vary."""
        return self._report_once(who, what, f"refused {who}: {reason}", level)

    def _report_once(self, who: str, what: str, text: str, level: str = "warning") -> list[Effect]:
        """Report a text once for each ``who`` and ``what``."""
        if (who, what) in self._strangers:
            return []
        if len(self._strangers) >= MAX_STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        self._strangers[who, what] = None
        return [Report(level, text, what)]

    def _learn_alias(
        self, now: float, address: str, owner: str, *, dialled_at: float | None = None
    ) -> list[Effect]:
        """Note another address of a node, and forget the row that was made for that address."""
        peer = self.topology.learn_alias(address, owner, dialled_at)
        return [] if peer is None else self._forget(now, peer, f"another address of {owner}")

    def _forget(self, now: float, peer: Peer, why: str) -> list[Effect]:
        """End what there is with a peer, and take it out of the table; report nothing."""
        effects = peer.connection.leave(now, why)
        self.topology.forget(peer)
        out = self._apply(now, peer, effects)
        return [effect for effect in out if not isinstance(effect, Report)]

    def _dialled_address(self, peer: Peer) -> str:
        """Return the address that was dialled for a peer, as it would stand in a name."""
        connection = peer.connection
        port = None if connection.port == self.settings.base_port else connection.port
        return NodeName("", connection.target, port).address

    def _report_virtual(self, address: str, owner: str) -> list[Effect]:
        """Report once that the only address in DNS led to a node whose name has another address."""
        if address != self._only_address or address == NodeName.parse(self.me.name).address:
            return []
        text = (
            f"DNS names one address only, {address}, and {owner} answers there: perhaps the virtual address "
            "of a load balancer, behind which one node at a time is found. In Kubernetes use a headless "
            "Service (clusterIP: None), in Docker Swarm tasks.<service>"
        )
        return self._report_once(address, "virtual address", text)

    def _report_full_table(self) -> list[Effect]:
        """Report once that a node found no place in the table."""
        if not self.topology.is_full:
            return []
        return self._report_stranger(
            "more nodes", "full", f"the table holds {self.settings.max_peers:,}, which is Settings.max_peers"
        )

    def _find_peer(self, source: bytes) -> Peer | None:
        """Return the peer whose present half this source is; None for a stranger or a former half."""
        name = self._sources.get(source)
        peer = None if name is None else self.topology.peers.get(name)
        if peer is None or peer.connection.incoming is None or peer.connection.incoming.source != source:
            self._sources.pop(source, None)
            return None
        return peer

    def _schedule(self, peer: Peer) -> None:
        """Enter when `tick` must look at this row next, unless it is up or blocked."""
        connection = peer.connection
        if connection.phase is Phase.UP or peer.is_blocked:
            return
        when = connection.next_dial_at if connection.phase is Phase.IDLE else connection.deadline
        if peer.due == when:
            return
        peer.due = when  # Entries of this row with another time are void.
        self._due_entries += 1
        heapq.heappush(self._due, (when, self._due_entries, connection.name))

    def _take_channel(self) -> int:
        channel = self._next_channel
        self._next_channel += 1
        return channel

    def _introduce(self) -> IAm:
        me = self.me
        return IAm(me.name, me.incarnation, me.cluster, len(self.topology.up()), me.base_port)
