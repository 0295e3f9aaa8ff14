"""Feeds the kernel with facts and performs its effects: the one place where effects happen.

The driver decides nothing. Facts come from the transport (`Listener`), the poller, sessions and timers;
effects are performed in the order given, before the next fact is taken.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from fleetlm.core.effects import Dial, Down, Effect, HangUp, Reply, Report, Send, Up
from fleetlm.messages import NodeDown, NodeUp
from fleetlm.messaging.flusher import Flusher
from fleetlm.messaging.session import Session
from fleetlm.wire import operations
from fleetlm.wire.frames import BadFrame, Kind

if TYPE_CHECKING:
    import random

    from fleetlm.core.dns_answers import Answer as DnsAnswer
    from fleetlm.core.kernel import Kernel
    from fleetlm.messaging.inbound import Inbound
    from fleetlm.processes.context import NodeContext
    from fleetlm.runtime.events import EventHub
    from fleetlm.transport.interface import Transport
    from fleetlm.wire.codec import Codec

log: logging.Logger = logging.getLogger("fleetlm")

PEERS_TOLD = 512
"""Names in one telling: a random sample of a larger cluster, so that the frame stays small."""

PEERS_TOLD_AT_ONCE = 32
"""Names told to a node that has just come up; the periodic telling completes them."""


class Follower(Protocol):
    """The parts of a node that must know of every session, as the driver sees them."""

    def node_up(self, session: Session) -> None:
        """A session has come up, and its `NodeUp` has been published; nothing has been sent over it."""

    def node_down(self, name: str) -> None:
        """A session is over; its `NodeDown` and anything newer of that node come after this."""

    def changed(self) -> None:
        """The set of connected nodes has changed."""

    def connection_lost(self) -> None:
        """A session ended though this node is not leaving: DNS may know where the peer is now."""


class Driver:
    """`transport.Listener` of a node, and the owner of its sessions."""

    def __init__(
        self,
        context: NodeContext,
        codec: Codec,
        kernel: Kernel,
        transport: Transport,
        inbound: Inbound,
        events: EventHub,
        rng: random.Random,
        follower: Follower,
    ) -> None:
        self.kernel = kernel
        self.sessions: dict[str, Session] = context.sessions
        self.inbound = inbound
        self.follower = follower
        self.lag_ms: int = 0
        self._by_source: dict[bytes, Session] = {}
        self._transport = transport
        self._codec = codec
        self._events = events
        self._settings = context.settings
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._flusher = Flusher(self._loop)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._pulse: asyncio.TimerHandle | None = None
        self._pulse_due = 0.0
        self._gossip_due = 0.0

    # Life.

    def start(self) -> None:
        """Begin to tick."""
        now = self._loop.time()
        self._pulse_due = now + self._settings.tick_s * self._rng.uniform(0.5, 1.0)
        self._gossip_due = now + self._settings.gossip_s
        self._pulse = self._loop.call_at(self._pulse_due, self._on_pulse)

    def leave(self, reason: str) -> None:
        """Flush what is queued, say goodbye to everybody, and stop ticking."""
        self._flusher.flush()
        self._perform(self.kernel.left(self._loop.time(), reason))
        for timer in (self._timer, self._pulse):
            if timer is not None:
                timer.cancel()

    # Facts from the transport.

    def channel_opened(self, channel: int) -> None:
        """See `transport.Listener`."""
        self._perform(self.kernel.opened(self._loop.time(), channel))

    def channel_lost(self, channel: int, reason: str) -> None:
        """See `transport.Listener`."""
        self._perform(self.kernel.channel_lost(self._loop.time(), channel, reason))

    def channel_answered(self, channel: int, frame: bytes) -> None:
        """See `transport.Listener`."""
        self._perform(self.kernel.answered(self._loop.time(), channel, frame))

    def source_met(self, source: bytes, ip: str) -> None:
        """See `transport.Listener`."""
        self.kernel.source_met(source, ip)

    def source_lost(self, source: bytes) -> None:
        """See `transport.Listener`."""
        self._perform(self.kernel.source_lost(self._loop.time(), source, "connection closed"))

    def stranger_refused(self, ip: str, reason: str) -> None:
        """See `transport.Listener`."""
        self._perform(self.kernel.stranger_refused(self._loop.time(), ip, reason))

    def frame_arrived(self, source: bytes, frame: bytes, extra: bytes | None) -> None:
        """See `transport.Listener`. The straight road: a batch of a session goes to `Inbound`."""
        session = self._by_source.get(source)
        if session is not None and frame and frame[0] in (Kind.BATCH, Kind.CHUNK):
            try:
                self.inbound.frame(session, frame, extra)
            except BadFrame as error:
                self._perform(self.kernel.broken(self._loop.time(), source, str(error)))
            except Exception as error:
                log.exception("a frame of %s could not be taken: its connection ends", session.name)
                why = f"{type(error).__name__} here while a frame of it was taken"
                self._perform(self.kernel.broken(self._loop.time(), source, why))
            return
        if extra is not None:
            frame = b""  # No control frame has two parts.
        self._perform(self.kernel.control_frame(self._loop.time(), source, frame))

    # Facts from elsewhere.

    def looked_up(self, answer: DnsAnswer) -> None:
        """The poller has an answer."""
        self._perform(self.kernel.looked_up(self._loop.time(), answer))

    def ticked(self, name: str, lag_ms: int, draining: bool) -> None:
        """A peer says that its loop is alive, how late it was, and whether the node is leaving."""
        self.kernel.ticked(self._loop.time(), name, lag_ms, draining)

    def told_of(self, names: list[str]) -> None:
        """A peer named these."""
        self._perform(self.kernel.heard_of(self._loop.time(), names))

    def asked_for(self, name: str) -> None:
        """The program wants this node."""
        self._perform(self.kernel.asked_for(self._loop.time(), name))

    def disconnected(self, name: str, reason: str) -> None:
        """The program wants this node no more; what was sent to it leaves before the goodbye."""
        session = self.sessions.get(name)
        if session is not None:
            session.flush()
        self._perform(self.kernel.disconnected(self._loop.time(), name, reason))

    def _session_lost(self, session: Session, reason: str) -> None:
        """Sending failed, perhaps in the middle of somebody's send: the fact is taken afterwards."""
        channel = session.outgoing.channel
        self._loop.call_soon(self.channel_lost, channel, reason)

    # Effects.

    def _perform(self, effects: list[Effect]) -> None:
        for order in effects:
            match order:
                case Send(channel, frame):
                    if not self._transport.send(channel, (frame,)):
                        reason = "connection closed during the handshake"
                        self._loop.call_soon(self.channel_lost, channel, reason)
                case Reply(source, frame):
                    self._transport.answer(source, frame)
                case Dial(channel, ip, port):
                    self._transport.dial(channel, ip, port)
                case HangUp(channel, flush_s):
                    self._transport.hang_up(channel, flush_s)
                case Up():
                    self._up(order)
                case Down():
                    self._down(order)
                case Report(level, text):
                    log.log(logging.getLevelNamesMapping()[level.upper()], "%s", text)
        self._set_timer()

    def _up(self, order: Up) -> None:
        peer = self.kernel.topology.peers[order.name]
        session = Session(
            peer,
            order.outgoing,
            order.incoming,
            self._settings,
            self._codec,
            self._transport,
            self._flusher.flush_soon,
            self._session_lost,
        )
        self.sessions[order.name] = session
        self._by_source[order.incoming.source] = session
        log.info("nodeup %s (incarnation %x)", order.name, order.incarnation)
        self._events.up(NodeUp(order.name, order.incarnation))
        self.follower.node_up(session)
        self._tell_peers(session, PEERS_TOLD_AT_ONCE)
        self.follower.changed()

    def _down(self, order: Down) -> None:
        session = self.sessions.pop(order.name)
        self._by_source.pop(session.incoming.source, None)
        log.info("nodedown %s: %s", order.name, order.reason)
        session.close(order.reason)
        self.follower.node_down(order.name)
        self._events.down(NodeDown(order.name, order.incarnation, order.reason))
        self.follower.changed()
        if not self.kernel.leaving:
            self.follower.connection_lost()

    # Time.

    def _set_timer(self) -> None:
        deadline = self.kernel.deadline()
        if deadline is None or (self._timer is not None and self._timer_at <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._perform(self.kernel.tick(self._loop.time()))

    def _on_pulse(self) -> None:
        now = self._loop.time()
        self.lag_ms = max(0, int((now - self._pulse_due) * 1000))
        self._pulse_due = now + self._settings.tick_s
        self._pulse = self._loop.call_at(self._pulse_due, self._on_pulse)
        self._perform(self.kernel.pulse(now))
        for session in list(self.sessions.values()):
            session.sweep()
            session.byte_credit.tell()
        self.tick_sessions()
        if now >= self._gossip_due and self.sessions:
            self._gossip_due = now + self._settings.gossip_s
            self._tell_peers(self._rng.choice(list(self.sessions.values())))

    def tick_sessions(self) -> None:
        """Tell every peer that this loop turns, and whether the node is draining."""
        tick = operations.tick(self.lag_ms, self.kernel.draining)
        for session in list(self.sessions.values()):
            session.control(tick)

    def _tell_peers(self, session: Session, most: int = PEERS_TOLD) -> None:
        """Name the nodes that we are connected to, so that no node depends on one DNS answer."""
        names = [name for name in self.sessions if name != session.name]
        if len(names) > most:
            names = self._rng.sample(names, most)
        if names:
            session.control(operations.peers(names))
