"""One node's whole control state: takes facts, routes them to the tables, returns their effects.

Facts are methods in the past tense with `now` first; each returns the effects to perform, in order.
`tick` performs what is due, `deadline` says when that is. A kernel never reads a clock, never
performs anything, and never raises on what the network brings.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from fleetlm.core import admission
from fleetlm.core.connection import Identity, Phase
from fleetlm.core.dns_answers import Answer as DnsAnswer, Outcome
from fleetlm.core.effects import Dial, Down, Effect, HangUp, Reply, Report, Send, Up
from fleetlm.core.topology import Peer, Topology
from fleetlm.wire import frames
from fleetlm.wire.frames import BadFrame, Hello, IAm, Kind, Refusal, Refused

if TYPE_CHECKING:
    import random

    from fleetlm.settings import Settings

MAX_SOURCES = 8_192
"""Diallers remembered, known or not: beyond that the oldest unknown one is forgotten."""
MAX_STRANGERS = 256
"""Strangers whose refusal was logged, and addresses observed: each is said once."""
MAX_VERDICTS = 16
"""Verdicts on one peer that were logged; beyond that they may be logged again."""


class _Claim(NamedTuple):
    """A second claimant of a name whose owner is being asked for."""

    source: bytes
    epoch: int
    hello: Hello
    ip: str
    until: float


class Kernel:
    """The control plane of one node."""

    def __init__(self, me: Identity, settings: Settings, rng: random.Random) -> None:
        self.me = me
        self.settings = settings
        self.rng = rng
        self.topology = Topology(me, settings, rng)
        self.leaving = False
        self.draining = False
        self.verdict = ""
        """The last lookup's outcome in words."""
        self.observed: set[str] = set()
        """Addresses from which peers dial us, other than those in their names."""
        self._sources: dict[bytes, str] = {}
        self._ips: dict[bytes, str] = {}
        self._channels: dict[int, Peer] = {}
        self._probes: dict[int, _Claim] = {}
        self._next_channel = 1
        self._due: list[tuple[float, int, str]] = []
        self._due_entries = 0
        self._strangers: dict[tuple[str, str], None] = {}

    # Facts about who exists.

    def looked_up(self, now: float, answer: DnsAnswer) -> list[Effect]:
        """A lookup ended. Only addresses add; only a successful lookup counts for forgetting."""
        effects = self._verdict_changed(answer)
        if answer.outcome not in (Outcome.ADDRESSES, Outcome.PARTIAL, Outcome.EMPTY):
            return effects
        basename = self.me.name.partition("@")[0]
        names = [f"{basename}@{ip}" for ip in answer.addresses]
        if answer.outcome is Outcome.PARTIAL:
            return effects + self.heard_of(now, names)
        to_dial, stale = self.topology.answered(now, names)
        for peer in to_dial:
            self._schedule(peer)
        for peer in self.topology.prunable():
            peer.blocked = peer.pruned = True
            why = f"pruned: {peer.misses} lookups in a row did not name it"
            effects += self._of(now, peer, peer.connection.leave(now, why))
        for peer in stale:
            effects += self._forget(now, peer, "not in DNS any more, and not connected")
        return effects + self._table_full() + self.tick(now)

    def heard_of(self, now: float, names: Iterable[str]) -> list[Effect]:
        """A connected peer told of these; each is a candidate."""
        for name in names:
            known = name in self.topology.peers
            peer = self.topology.meet(now, name)
            if peer is not None and not known:
                self._schedule(peer)
        return self._table_full() + self.tick(now)

    def asked_for(self, now: float, name: str) -> list[Effect]:
        """Somebody wants this node connected: dial now, and keep it in the table."""
        peer = self.topology.meet(now, name)
        if peer is None:
            return []
        peer.pinned = True
        peer.blocked = peer.pruned = False
        if peer.connection.phase is Phase.IDLE:
            peer.connection.next_dial_at = now
            self._schedule(peer)
        return self.tick(now)

    def disconnected(self, now: float, name: str, reason: str) -> list[Effect]:
        """Somebody wants this node disconnected: it stays so until asked for, or until it restarts."""
        peer = self.topology.peers.get(name)
        if peer is None:
            return []
        peer.pinned = False
        peer.blocked = True
        if peer.connection.incoming is not None:
            peer.connection.incarnation = peer.connection.incoming.hello.incarnation
        return self._of(now, peer, peer.connection.leave(now, reason))

    # Facts about channels: what we dialled.

    def opened(self, now: float, channel: int) -> list[Effect]:
        """A channel can carry frames."""
        if channel in self._probes:
            return [Send(channel, frames.probe())]
        peer = self._channels.get(channel)
        return [] if peer is None else self._of(now, peer, peer.connection.opened(now))

    def channel_lost(self, now: float, channel: int, reason: str) -> list[Effect]:
        """A dial failed, or a channel ended."""
        if channel in self._probes:
            return self._probed(now, channel, None)
        peer = self._channels.pop(channel, None)
        return [] if peer is None else self._of(now, peer, peer.connection.channel_lost(now, reason))

    def answered(self, now: float, channel: int, frame: bytes) -> list[Effect]:
        """The node that we dialled answered on our own channel."""
        try:
            answer = frames.read_answer(frame)
        except BadFrame as error:
            return self.channel_lost(now, channel, f"protocol error: {error}")
        if isinstance(answer, IAm):
            return self._probed(now, channel, answer) if channel in self._probes else []
        peer = self._channels.get(channel)
        if peer is None:
            return []
        known = peer.connection.incoming
        if answer.refusal is Refusal.STALE and known and known.hello.incarnation != answer.incarnation:
            peer.connection.incoming = None  # Of the former incarnation: no READY for it any more.
        effects = self._of(now, peer, peer.connection.channel_lost(now, admission.refused_by(answer)))
        ip = peer.connection.ip
        if answer.refusal is Refusal.SELF:
            return effects + self._alias(now, ip, self.me.name)
        if answer.refusal is Refusal.WRONG_NAME and admission.same_fleet(self.me.name, answer.name):
            return effects + self._alias(now, ip, answer.name) + self.heard_of(now, [answer.name])
        return effects

    # Facts about sources: who dialled us.

    def source_met(self, source: bytes, ip: str) -> None:
        """Somebody dialled us from this address; nothing is known of them yet."""
        if len(self._ips) >= MAX_SOURCES:
            oldest = next(iter(self._ips))
            del self._ips[next((known for known in self._ips if known not in self._sources), oldest)]
        self._ips[source] = ip

    def source_lost(self, now: float, source: bytes, reason: str) -> list[Effect]:
        """A dialler's connection ended."""
        self._ips.pop(source, None)
        peer = self._peer_of(source)
        self._sources.pop(source, None)
        if peer is None:
            return []
        return self._of(now, peer, peer.connection.source_lost(now, reason))

    def control_frame(self, now: float, source: bytes, frame: bytes) -> list[Effect]:
        """Anything but a batch or a chunk: the handshake, goodbye, a probe, or garbage."""
        peer = self._peer_of(source)
        try:
            kind, epoch, seq = frames.read_header(frame)
            body = frame[frames.HEADER_BYTES :]
            if kind == Kind.PROBE:
                return [Reply(source, frames.iam(self._iam()))]
            if kind == Kind.HELLO and seq == 0 and peer is None:
                return self._hello(now, source, epoch, frames.read_hello(body))
            if peer is None or peer.connection.incoming is None:
                return []  # Of a half that was given up, or of a stranger: nobody's loss.
            peer.connection.incoming.accept(epoch, seq)
            peer.last_heard = now
            if kind == Kind.READY:
                return self._ready(now, peer, source, frames.read_ready(body))
            if kind == Kind.GOODBYE:
                return self._goodbye(now, peer, frames.read_goodbye(body))
        except BadFrame as error:
            return self.broken(now, source, str(error))
        return self.broken(now, source, f"kind {kind} is not known to this version, or not now")

    def broken(self, now: float, source: bytes, why: str) -> list[Effect]:
        """This source sent what it must not, or something of it was lost: its connection is over."""
        peer = self._peer_of(source)
        reason = f"protocol error: {why[: frames.MAX_TEXT]}"  # It may quote what the peer sent.
        if peer is None:
            who = self._ips.get(source, "unknown address")
            return self._stranger(who, "protocol error", reason)
        self._sources.pop(source, None)
        return self._of(now, peer, peer.connection.broken(now, reason))

    def stranger_refused(self, now: float, ip: str, reason: str) -> list[Effect]:
        """Somebody at ``ip`` did not get past ZeroMQ's own handshake.

        Who only connects and closes may be a health check, or a peer that finds out why it could
        not connect before: that is worth no warning, and replaces no reason that says more.
        """
        basename = self.me.name.partition("@")[0]
        peer = self.topology.peers.get(f"{basename}@{ip}")
        certain = reason.startswith("authentication failed")
        if peer is None or peer.up:
            return self._stranger(ip, reason, reason, "warning" if certain else "info")
        if certain or not peer.connection.last_error:
            peer.connection.last_error, peer.connection.last_error_at = reason, now
        return self._verdict(peer)

    def ticked(self, now: float, name: str, lag_ms: int, draining: bool) -> None:
        """A connected peer's loop is alive."""
        peer = self.topology.peers.get(name)
        if peer is not None:
            peer.last_heard = now
            peer.lag_ms = lag_ms
            peer.draining = draining

    # Time.

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: dial, and give up what takes too long."""
        effects: list[Effect] = []
        while self._due and self._due[0][0] <= now:
            when, _, name = heapq.heappop(self._due)
            peer = self.topology.peers.get(name)
            if peer is None or self.leaving or peer.due != when:
                continue
            peer.due = None
            connection = peer.connection
            if connection.phase is Phase.IDLE and not peer.blocked:
                if connection.next_dial_at <= now:
                    effects += self._dial(now, peer)
                else:
                    self._schedule(peer)
            elif connection.phase is Phase.DIALLING:
                if connection.deadline <= now:
                    effects += self._of(now, peer, connection.timed_out(now))
                else:
                    self._schedule(peer)
        for channel, claim in list(self._probes.items()):
            if claim.until <= now and channel in self._probes:
                effects += self._probed(now, channel, None)
        return effects

    def deadline(self) -> float | None:
        """When `tick` has something to do; None while nothing is due ever."""
        times = [self._due[0][0]] if self._due else []
        times += [claim.until for claim in self._probes.values()]
        return min(times, default=None)

    def pulse(self, now: float) -> list[Effect]:
        """Once a tick interval: who is busy by now?"""
        effects: list[Effect] = []
        for peer in self.topology.up():
            silent_s = now - peer.last_heard
            busy = silent_s > self.settings.busy_after_s
            if busy != peer.busy:
                peer.busy = busy
                word = f"is busy: its loop is silent for {silent_s:.1f} s" if busy else "answers again"
                effects.append(Report("info", f"{peer.connection.name} {word}"))
        return effects

    def left(self, now: float, reason: str) -> list[Effect]:
        """This node goes: say goodbye to everybody, and take nobody any more."""
        self.leaving = True
        effects: list[Effect] = [HangUp(channel) for channel in self._probes]
        self._probes.clear()
        for peer in list(self.topology.peers.values()):
            effects += self._of(now, peer, peer.connection.leave(now, reason))
        return effects

    # How.

    def _hello(self, now: float, source: bytes, epoch: int, hello: Hello) -> list[Effect]:
        ip = self._ips.get(source, "")
        refusal = admission.judge(self.me, hello, leaving=self.leaving)
        if refusal is not None:
            return self._refuse(now, source, hello, *refusal)
        peer = self.topology.meet(now, hello.name, itself=True)
        if peer is None:
            why = f"{self.me.name} knows as many nodes as it may ({self.settings.max_peers:,})"
            return self._refuse(now, source, hello, Refusal.TOO_MANY, why)
        if peer.up and peer.connection.incarnation != hello.incarnation:
            return self._probe(now, source, epoch, hello, ip, peer)
        return self._admit(now, source, epoch, hello, ip, peer)

    def _admit(
        self, now: float, source: bytes, epoch: int, hello: Hello, ip: str, peer: Peer
    ) -> list[Effect]:
        effects: list[Effect] = []
        if peer.blocked and peer.connection.incarnation in (0, hello.incarnation):
            peer.connection.incarnation = hello.incarnation
            why = f"{self.me.name} was told to disconnect from {hello.name}"
            return self._refuse(now, source, hello, Refusal.DRAINING, why)
        peer.blocked = False
        for alias in hello.aliases:
            effects += self._alias(now, alias, hello.name)
        known = peer.connection.incoming
        if known is not None:
            self._sources.pop(known.source, None)
        self._sources[source] = hello.name
        effects += self._of(now, peer, peer.connection.hello(now, source, epoch, hello, ip))
        return effects + self.tick(now)

    def _probe(
        self, now: float, source: bytes, epoch: int, hello: Hello, ip: str, peer: Peer
    ) -> list[Effect]:
        """Two incarnations claim one name: ask who is at its address."""
        if any(claim.hello.name == hello.name for claim in self._probes.values()):
            why = admission.duplicate(hello, peer.connection.incarnation)
            return self._refuse(now, source, hello, Refusal.DUPLICATE_NAME, why)
        channel = self._take_channel()
        until = now + self.settings.connect_timeout_s
        self._probes[channel] = _Claim(source, epoch, hello, ip, until)
        return [Dial(channel, peer.connection.ip, peer.connection.port)]

    def _probed(self, now: float, channel: int, answer: IAm | None) -> list[Effect]:
        source, epoch, hello, ip, _ = self._probes.pop(channel)
        effects: list[Effect] = [HangUp(channel)]
        peer = self.topology.meet(now, hello.name, itself=True)
        if peer is None or source not in self._ips:
            return effects
        if peer.up and peer.connection.incarnation == hello.incarnation:
            return effects  # It came up over a later dial meanwhile.
        claimed = (hello.name, hello.incarnation)
        confirmed = answer is not None and (answer.name, answer.incarnation) == claimed
        if confirmed and peer.up:
            effects += self._of(now, peer, peer.connection.down(now, "restarted: another incarnation"))
        if confirmed or (answer is None and not peer.up):  # Nobody contests the name any more.
            return effects + self._admit(now, source, epoch, hello, ip, peer)
        owner = peer.connection.incarnation if answer is None else answer.incarnation
        why = admission.duplicate(hello, owner)
        return effects + self._refuse(now, source, hello, Refusal.DUPLICATE_NAME, why)

    def _ready(self, now: float, peer: Peer, source: bytes, ready: frames.Ready) -> list[Effect]:
        if ready.incarnation != self.me.incarnation:
            hello = peer.connection.incoming.hello if peer.connection.incoming else None
            effects = self.source_lost(now, source, "stale")
            why = f"{self.me.name} has been restarted: incarnation {ready.incarnation:x} is no more"
            return (
                effects if hello is None else effects + self._refuse(now, source, hello, Refusal.STALE, why)
            )
        return self._of(now, peer, peer.connection.ready(now, ready))

    def _goodbye(self, now: float, peer: Peer, reason: str) -> list[Effect]:
        connection = peer.connection
        if connection.phase is Phase.UP:
            return self._of(now, peer, connection.down(now, f"left: {reason}"))
        source = connection.incoming.source if connection.incoming else b""
        self._sources.pop(source, None)
        connection.incoming = None
        return self._of(now, peer, connection.failed(now, f"left: {reason}"))

    def _refuse(self, now: float, source: bytes, hello: Hello, refusal: Refusal, why: str) -> list[Effect]:
        """Say no, on the dialler's own channel, and note it where people look."""
        answer = Refused(refusal, why, self.me.name, self.me.incarnation)
        effects: list[Effect] = [Reply(source, frames.refused(answer))]
        if refusal is Refusal.SELF:
            return effects
        note = f"refused it: {refusal.word} ({why})"
        peer = self.topology.peers.get(hello.name)
        if peer is None or peer.up:
            who = f"{hello.name} at {self._ips.get(source, '?')}"
            return effects + self._stranger(who, refusal.word, note)
        peer.connection.last_error, peer.connection.last_error_at = note, now
        return effects + self._verdict(peer)

    def _dial(self, now: float, peer: Peer) -> list[Effect]:
        channel = self._take_channel()
        self._channels[channel] = peer
        return self._of(now, peer, peer.connection.dial(now, channel))

    def _of(self, now: float, peer: Peer, effects: list[Effect]) -> list[Effect]:
        """What a connection ordered, with what follows from it for the tables."""
        out: list[Effect] = []
        for effect in effects:
            out.append(effect)
            if isinstance(effect, HangUp):
                self._channels.pop(effect.channel, None)
            elif isinstance(effect, Up):
                peer.last_heard, peer.busy, peer.draining, peer.lag_ms = now, False, False, 0
                peer.due = None
                peer.logged.clear()
                out += self._observed(peer)
            elif isinstance(effect, Down):
                peer.busy = peer.draining = False
                peer.last_seen, peer.misses = now, 0  # Nobody is seen better than when connected.
                peer.logged[effect.reason] = None  # The nodedown says it.
        self._schedule(peer)
        return out + (self._verdict(peer) if peer.connection.phase is Phase.IDLE else [])

    def _observed(self, peer: Peer) -> list[Effect]:
        """Its HELLO came from another address than its name says: NAT, or a wrong own address."""
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
        return [Report("warning", text)]

    def _verdict(self, peer: Peer) -> list[Effect]:
        """Log each error of a peer once until it is up again; addresses die all the time."""
        reason = peer.connection.last_error
        if not reason or reason in peer.logged or peer.connection.attempt == 0:
            return []
        if len(peer.logged) >= MAX_VERDICTS:
            peer.logged.clear()
        peer.logged[reason] = None
        return [Report("info", f"{peer.connection.name}: {reason}")]

    def _verdict_changed(self, answer: DnsAnswer) -> list[Effect]:
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
        return [Report(level, f"DNS: {answer.detail}; connected nodes stay connected, and we go on asking")]

    def _stranger(self, who: str, what: str, reason: str, level: str = "warning") -> list[Effect]:
        """Say once for each ``who`` and ``what``; the wording of ``reason`` may differ each time."""
        if (who, what) in self._strangers:
            return []
        if len(self._strangers) >= MAX_STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        self._strangers[who, what] = None
        return [Report(level, f"refused {who}: {reason}")]

    def _alias(self, now: float, ip: str, owner: str) -> list[Effect]:
        peer = self.topology.learn_alias(ip, owner)
        return [] if peer is None else self._forget(now, peer, f"another address of {owner}")

    def _forget(self, now: float, peer: Peer, why: str) -> list[Effect]:
        effects = peer.connection.leave(now, why)
        if peer.connection.outgoing is None:
            self.topology.forget(peer)
        out = self._of(now, peer, effects)
        return [effect for effect in out if not isinstance(effect, Report)]

    def _table_full(self) -> list[Effect]:
        if not self.topology.full:
            return []
        return self._stranger(
            "more nodes", "full", f"the table holds {self.settings.max_peers:,}, which is Settings.max_peers"
        )

    def _peer_of(self, source: bytes) -> Peer | None:
        """The peer whose current half this source is; a former half is nobody's."""
        name = self._sources.get(source)
        peer = None if name is None else self.topology.peers.get(name)
        if peer is None or peer.connection.incoming is None or peer.connection.incoming.source != source:
            self._sources.pop(source, None)
            return None
        return peer

    def _schedule(self, peer: Peer) -> None:
        connection = peer.connection
        if connection.phase is Phase.UP or peer.blocked:
            return
        when = connection.next_dial_at if connection.phase is Phase.IDLE else connection.deadline
        if peer.due == when:
            return
        peer.due = when  # An entry with another time is void.
        self._due_entries += 1
        heapq.heappush(self._due, (when, self._due_entries, connection.name))

    def _take_channel(self) -> int:
        channel = self._next_channel
        self._next_channel += 1
        return channel

    def _iam(self) -> IAm:
        return IAm(self.me.name, self.me.incarnation, self.me.cluster, len(self.topology.up()))
