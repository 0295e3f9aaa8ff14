"""Feeds the kernel with facts and performs its effects: the one place where effects happen.

The driver decides nothing. Facts come from the transport (as its `Listener`), from the poller, from peers
and from timers. Each fact is one call of the kernel, and its effects are performed in their order before
the next fact is taken. BATCH and CHUNK frames of a session do not pass the kernel but go straight to
`Inbound`, because nearly every frame is one.

The driver owns the sessions: `Up` makes one and `Down` closes it. In between it is in ``sessions`` by the
name of its node, and is found by the source of its frames. On `Up` subscribers get their nodeup before any
message of the session is decoded; on `Down` the session is closed first, so that every caller has its
outcome before the nodedown.

A node that is lost may take 100,000 monitors, memberships and names with it. So the follower deals with it
in steps, and the driver takes `STEPS_PER_TURN` of them in one turn of the loop (`_Ending`). Until the last
step a dial to that address waits, so that nothing newer of that node arrives before it.

Races. A fact that arises while effects are performed or while a program sends (a send that fails) would
come between two effects: it is taken in a later turn of the event loop (``call_soon``).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Container, Iterator
from functools import partial
from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from fleetlm.core.effects import (
    Dial,
    Disconnect,
    Down,
    Effect,
    End,
    ExpectRoad,
    FollowRoad,
    HangUp,
    OpenRoad,
    Reply,
    Report,
    RoadEffect,
    Send,
    TakeRoad,
    Up,
)
from fleetlm.messages import NodeDown, NodeUp
from fleetlm.messaging.backlog import Backlog, Rest
from fleetlm.messaging.beside import Unpacked
from fleetlm.messaging.flusher import Flusher
from fleetlm.messaging.former_windows import FormerWindows
from fleetlm.messaging.session import SENDING_FAILED, Session
from fleetlm.messaging.traffic import Traffic
from fleetlm.names import NodeName
from fleetlm.runtime.last_words import LastWords, ended_by
from fleetlm.runtime.log_guard import KIND
from fleetlm.wire import operations
from fleetlm.wire.frames import BadFrame, Kind

if TYPE_CHECKING:
    import random
    from concurrent.futures import ThreadPoolExecutor

    from fleetlm.core.dns_answers import Answer as DnsAnswer
    from fleetlm.core.kernel import Kernel
    from fleetlm.messaging.inbound import Inbound
    from fleetlm.processes.context import NodeContext
    from fleetlm.runtime.events import EventHub
    from fleetlm.transport.interface import Transport
    from fleetlm.wire.codec import Codec

log: logging.Logger = logging.getLogger("fleetlm")

_BATCH = Kind.BATCH
_MOVED = Kind.MOVED
PEERS_TOLD = 512
"""At most this many names are in one PEERS message, to keep the frame small. More nodes: a random sample."""

STEPS_PER_TURN = 64
"""Steps for a lost node in one turn of the loop: half a millisecond. A call takes three turns or so."""

TICKED_EACH_TIME = 32
"""Up to so many peers get a tick in each tick interval, more of them in every second one: ticks are most of
what idle nodes do. A peer counts as busy after three intervals without a tick."""

_EARLY = 0.1
"""The part of a tick interval by which a timer may be early without a second tick at the same moment."""

PEERS_TOLD_AT_ONCE = 32
"""At most this many names are told to a node that comes up. The periodic messages complete them."""


class Follower(Protocol):
    """The parts of a node that must know of every session, as the driver sees them."""

    def node_up(self, session: Session) -> None:
        """A session has come up, and its `NodeUp` has been published; nothing has been sent over it."""

    def node_down(self, name: str) -> Iterator[None]:
        """A session is over; its `NodeDown` and anything newer of that node come after the last step."""

    def changed(self) -> None:
        """The set of connected nodes has changed."""

    def pulsed(self) -> None:
        """A tick interval has passed."""

    def connection_lost(self) -> None:
        """A session ended though this node is not leaving: DNS may know where the peer is now."""


class _Ending:
    """What is still to be done for a node that was lost, and the dials to its address that wait for it."""

    __slots__ = ("dials", "down", "steps")

    def __init__(self, down: Down, steps: Iterator[None]) -> None:
        self.down: Down = down
        self.steps: Iterator[None] = steps
        self.dials: dict[int, Dial] = {}


class Driver:
    """Implements `transport.interface.Listener` for a node, and owns its sessions."""

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
        inbound.unpack_beside = self._unpack_beside
        self._unpacker: ThreadPoolExecutor | None = None
        """Unpacks large messages; made with the first one."""
        self.follower = follower
        self.lag_ms: int = 0
        """Milliseconds by which the last tick of this node's event loop was late."""
        self.ended: Traffic = Traffic()
        """What was exchanged over sessions that are over."""
        self.lag_s: float = 0.0
        """Seconds by which all ticks together were late."""
        self.ends: dict[End, int] = {}
        """Sessions that are over, by the kind of reason."""
        self.reconnects: dict[End, int] = {}
        """Sessions with a node that had been connected before, by the kind of reason of that end."""
        self._by_source: dict[bytes, Session] = {}
        self._by_channel: dict[int, Session] = {}
        self._endings: dict[tuple[str, int], _Ending] = {}
        """Address and port of a node that was lost → what is still to be done for it."""
        self._former_windows = FormerWindows()
        self._transport = transport
        self._codec = codec
        self._events = events
        self._settings = context.settings
        self._rng = rng
        self._draw = context.draw
        self._taps = context.taps
        self._loop = asyncio.get_running_loop()
        self._flusher = Flusher(self._loop)
        self._backlog = Backlog(
            self._loop,
            context.settings.max_unread_bytes,
            go_on=self._go_on,
            take=self._take_frame,
            begin_turn=inbound.begin_turn,
            is_over=inbound.is_over,
            pause_s=inbound.pause_s,
        )
        self._queued: Container[bytes] = self._backlog.queues
        """The sources whose frames wait there: the dict itself, since each frame looks into it."""
        self._last_words = LastWords(self._loop, self._backlog)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._pulse: asyncio.TimerHandle | None = None
        self._ticks_with_host = False
        self._pulse_due = 0.0
        self._gossip_due = 0.0
        self._ticks_read_at = 0.0

    # Start and stop.

    def start(self, *, looks_for_peers: bool = False, ticks_with_host: bool = False) -> None:
        """Begin to tick, and to look for other nodes of this host if the node looks for peers at all.

        Args:
            looks_for_peers: whether to look for nodes on further ports.
            ticks_with_host: tick at whole intervals of the loop's clock, which all nodes of a host share. A
                peer is then woken once for all of them. In a simulation each node has its own moment.
        """
        now = self._loop.time()
        if looks_for_peers:
            self._perform(self.kernel.started(now))
        self._ticks_with_host = ticks_with_host
        self._pulse_due = self._next_pulse(now, self._rng.uniform(0.5, 1.0))
        self._gossip_due = now + self._settings.gossip_s
        self._ticks_read_at = now
        self._pulse = self._loop.call_at(self._pulse_due, self._on_pulse)

    def leave(self, reason: str) -> None:
        """Send what is queued, say goodbye to every peer, and stop ticking."""
        self._backlog.clear()
        if self._unpacker is not None:
            self._unpacker.shutdown(wait=False)
        for session in self.sessions.values():
            session.settle()
        self._perform(self.kernel.left(self._loop.time(), reason))
        for where in list(self._endings):
            self._end(where, math.inf)
        for timer in (self._timer, self._pulse):
            if timer is not None:
                timer.cancel()

    # Facts from the transport.

    def channel_opened(self, channel: int) -> None:
        """See `Listener`."""
        self._perform(self.kernel.opened(self._loop.time(), channel))

    def channel_lost(
        self, channel: int, reason: str, *, is_foreign: bool = False, is_logged: bool = False
    ) -> None:
        """See `Listener`. What the peer has sent before is taken first: see `runtime.last_words`."""
        lose = partial(self._lose_channel, channel, reason, is_foreign=is_foreign, is_logged=is_logged)
        session = self._by_channel.get(channel)
        if session is None:
            lose()
        else:
            self._last_words.hold(session.incoming.source, LastWords.CHANNEL, lose)

    def _lose_channel(
        self,
        channel: int,
        reason: str,
        *,
        is_foreign: bool = False,
        is_logged: bool = False,
        kind: End = End.LOST,
    ) -> None:
        lost = self.kernel.channel_lost(
            self._loop.time(), channel, reason, is_foreign=is_foreign, is_logged=is_logged, kind=kind
        )
        self._perform(lost)

    def channel_answered(self, channel: int, frame: bytes) -> None:
        """See `Listener`."""
        self._perform(self.kernel.answered(self._loop.time(), channel, frame))

    def road_opened(self, channel: int) -> None:
        """See `Listener`."""
        self._perform(self.kernel.road_opened(self._loop.time(), channel))

    def source_met(self, source: bytes, ip: str) -> None:
        """See `Listener`."""
        self.kernel.source_met(source, ip)

    def source_lost(self, source: bytes) -> None:
        """See `Listener`."""
        self._last_words.source_lost(source, partial(self._lose_source, source))

    def _lose_source(self, source: bytes) -> None:
        self._perform(self.kernel.source_lost(self._loop.time(), source, "connection closed"))

    def stranger_refused(self, ip: str, reason: str) -> None:
        """See `Listener`."""
        self._perform(self.kernel.stranger_refused(self._loop.time(), ip, reason))

    def frame_arrived(self, source: bytes, frame: bytes, tail: memoryview | None = None) -> None:
        """See `Listener`. Frames of a session go straight to `Inbound`."""
        if source in self._queued:
            waiting_bytes = self._backlog.add(source, frame, tail)
            if waiting_bytes:
                why = f"it ignores its window: {waiting_bytes:,} bytes of it wait to be taken"
                self._perform(self.kernel.broken(self._loop.time(), source, why))
            elif frame and frame[0] == _MOVED:
                self._follow_road(source)
            return
        inbound = self.inbound
        inbound.until = monotonic() + inbound.turn_s  # `Inbound.begin_turn` inline.
        session = self._by_source.get(source)
        if session is None or tail is not None or not frame or frame[0] != _BATCH:
            self._take_frame(source, frame, tail)
            return
        try:  # As `_take_frame` and `_deliver`, in one call less for each frame.
            rest = inbound.frame(session, frame)
        except Exception as error:  # noqa: BLE001  # it logs
            self._end_broken(source, session, error)
        else:
            if rest is not None:
                self._backlog.begin(source, rest)

    def room(self, source: bytes, start: bytes, size_bytes: int) -> memoryview | None:
        """See `Listener`. There is no room where frames wait that came before: their content comes first."""
        session = self._by_source.get(source)
        if session is None or source in self._backlog:
            return None
        return self.inbound.room(session, start, size_bytes)

    def _take_frame(self, source: bytes, frame: bytes, tail: memoryview | None) -> None:
        """Take a frame; what the turn has no time for is taken in the next ones."""
        session = self._by_source.get(source)
        if session is not None and frame and frame[0] in (Kind.BATCH, Kind.CHUNK):
            rest = self._deliver(source, session, self.inbound.frame, frame, tail)
            if rest is not None:
                self._backlog.begin(source, rest)
            return
        ended = None if session is not None else ended_by(self.kernel.topology, frame)
        if ended is None:
            self._take_control_frame(source, frame)
        else:
            take = partial(self._take_control_frame, source, frame)
            self._last_words.hold(ended, LastWords.SUCCESSOR, take)

    def _take_control_frame(self, source: bytes, frame: bytes) -> None:
        self._perform(self.kernel.control_frame(self._loop.time(), source, frame))

    def source_broke(self, source: bytes, why: str) -> None:
        """See `Listener`."""
        self._perform(self.kernel.broken(self._loop.time(), source, why))

    def _unpack_beside(self, session: Session, unpack: Callable[[], Unpacked]) -> None:
        """Unpack something large in a thread; what comes from its peer meanwhile waits behind it."""
        self._backlog.park(session.incoming.source)
        if self._unpacker is None:
            from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  # some nodes never need it

            self._unpacker = ThreadPoolExecutor(1, "fleetlm unpack")
        work = self._loop.run_in_executor(self._unpacker, unpack)
        work.add_done_callback(partial(self._unpacked, session))

    def _unpacked(self, session: Session, unpacked: asyncio.Future[Unpacked]) -> None:
        """Deliver a large message, and go on with what came behind it."""
        source = session.incoming.source
        if unpacked.cancelled() or self._by_source.get(source) is not session:
            return  # The session is over.
        self.inbound.begin_turn()
        rest = self._deliver(source, session, self.inbound.take_unpacked, unpacked)
        if source in self._backlog:
            self._backlog.resume(source, rest)

    def _go_on(self, source: bytes, rest: Rest) -> Rest | None:
        """Deliver more of a frame. Returns what is left of it."""
        session = self._by_source[source]
        return self._deliver(source, session, self.inbound.go_on, rest)

    def _deliver(
        self, source: bytes, session: Session, work: Callable[..., Rest | None], *what: object
    ) -> Rest | None:
        """Let `Inbound` work for a session, which ends if the peer has broken the protocol."""
        try:
            return work(session, *what)
        except Exception as error:  # noqa: BLE001  # it logs
            self._end_broken(source, session, error)
        return None

    def _end_broken(self, source: bytes, session: Session, error: Exception) -> None:
        """End a session whose frame could not be taken."""
        why = str(error)
        if not isinstance(error, BadFrame):
            log.error("cannot handle a frame from %s; its connection ends", session.name, exc_info=error)
            why = f"{type(error).__name__} on this node while it handled a frame"
        self._perform(self.kernel.broken(self._loop.time(), source, why))

    # Facts from elsewhere.

    def looked_up(self, answer: DnsAnswer) -> None:
        """Take an answer of the poller."""
        self._perform(self.kernel.looked_up(self._loop.time(), answer))

    def ticked(self, name: str, lag_ms: int) -> None:
        """Take a TICK: how late the peer's event loop was."""
        self.kernel.ticked(self._loop.time(), name, lag_ms)

    def told_of(self, names: list[str], teller: str) -> None:
        """Take the names of nodes to which the peer ``teller`` is connected."""
        self._perform(self.kernel.heard_of(self._loop.time(), names, teller))

    def asked_for(self, name: str) -> None:
        """Connect to the node ``name``, since the program asks for it."""
        self._perform(self.kernel.asked_for(self._loop.time(), name))

    def disconnected(self, name: str, reason: str) -> None:
        """Disconnect the node ``name``, as the program asks; what was sent leaves before the goodbye."""
        session = self.sessions.get(name)
        if session is not None:
            session.settle()
        self._perform(self.kernel.disconnected(self._loop.time(), name, reason))

    def _session_lost(self, session: Session, reason: str) -> None:
        """Take the loss of a session in a later turn: a program may be in the middle of a send.

        A peer that takes nothing has no last words: more of what it does not take must not pile up meanwhile.
        """
        channel = session.outgoing.channel
        if reason == SENDING_FAILED:
            self._loop.call_soon(self.channel_lost, channel, reason)
        else:
            kind = End.LOST if reason.startswith("connection closed") else End.OVERLOADED
            self._loop.call_soon(partial(self._lose_channel, channel, reason, kind=kind))

    # Effects.

    def _perform(self, effects: list[Effect]) -> None:
        """Perform the effects of one fact in their order, and set the timer to the kernel's next deadline."""
        for effect in effects:
            match effect:
                case Send(channel, frame):
                    self._send(channel, frame)
                case Reply(source, frame):
                    self._transport.answer(source, frame)
                case Dial():
                    self._dial(effect)
                case HangUp(channel, flush_s):
                    self._transport.hang_up(channel, flush_s)
                    for ending in self._endings.values():
                        ending.dials.pop(channel, None)
                case Disconnect(source, after_s):
                    self._transport.disconnect(source, after_s)
                case ExpectRoad() | OpenRoad() | TakeRoad() | FollowRoad():
                    self._change_road(effect)
                case Up():
                    self._up(effect)
                case Down():
                    self._down(effect)
                case Report(level, text, kind):
                    log.log(
                        logging.getLevelNamesMapping()[level.upper()], "%s", text, extra={KIND: kind or None}
                    )
        self._set_timer()

    def _send(self, channel: int, frame: bytes) -> None:
        """Send a frame of the handshake, or a goodbye."""
        if not self._transport.send(channel, frame):
            reason = "connection closed during the handshake"
            self._loop.call_soon(self.channel_lost, channel, reason)

    def _change_road(self, effect: RoadEffect) -> None:
        """Move a half of a connection to a local road, by one step."""
        match effect:
            case ExpectRoad(source, ticket):
                self._transport.expect_road(source, ticket)
            case OpenRoad(channel, number, ticket):
                self._transport.open_road(channel, number, ticket)
            case TakeRoad(channel):
                self._transport.take_road(channel)
            case FollowRoad(source):
                if source not in self._backlog:  # Otherwise MOVED has waited there, and see `_follow_road`.
                    self._follow_road(source)

    def _follow_road(self, source: bytes) -> None:
        """Read the local road of a source, since its MOVED has come.

        Where MOVED queues in the backlog, this must not wait until it is taken: the peer may leave meanwhile,
        and what it has sent on its local road would be lost with the road. What is read queues behind MOVED.
        """
        if not self._transport.follow_road(source):
            why = "it changes over to a local road on which it was not let in"
            self._loop.call_soon(self.source_broke, source, why)

    def _dial(self, dial: Dial) -> None:
        """Dial, or wait until everything is done for the node that was lost at that address."""
        where = dial.ip, dial.port
        if where in self._endings:
            self._endings[where].dials[dial.channel] = dial
        else:
            self._transport.dial(dial.channel, dial.ip, dial.port)

    def _up(self, up: Up) -> None:
        """Make the session of a connection, and tell the tables and the subscribers."""
        peer = self.kernel.topology.peers[up.name]
        session = Session(
            peer,
            up.outgoing,
            up.incoming,
            self._settings,
            self._codec,
            self._transport,
            self._flusher.flush_soon,
            self._session_lost,
        )
        session.byte_window.draw = self._draw
        self._former_windows.began(session)
        self.sessions[up.name] = session
        self._by_source[up.incoming.source] = self._by_channel[up.outgoing.channel] = session
        self._transport.admit(up.incoming.source)
        log.info("nodeup %s (incarnation %x)", up.name, up.incarnation)
        after = peer.ended_by
        if after is not None:
            self.reconnects[after] = self.reconnects.get(after, 0) + 1
        if self._taps.session_up is not None:
            self._taps.session_up(up.name, up.incarnation, "" if after is None else after.value)
        self._events.up(NodeUp(up.name, up.incarnation))
        self.follower.node_up(session)
        self._tell_peers(session, PEERS_TOLD_AT_ONCE)
        self.follower.changed()

    def _down(self, down: Down) -> None:
        """Close a session: its callers and senders first, then the tables, then subscribers."""
        session = self.sessions.pop(down.name)
        source = session.incoming.source
        self._by_source.pop(source, None)
        self._by_channel.pop(session.outgoing.channel, None)
        self._transport.disconnect(source, self._settings.handshake_timeout_s)  # Its node hangs up, too.
        self._backlog.drop(source)
        self._last_words.drop(source)
        log.info("nodedown %s: %s", down.name, down.reason)
        self._count_end(session, down)
        session.close(down.reason)
        name = NodeName.parse(down.name)
        where = name.ip, name.port or self._settings.base_port
        if where in self._endings:  # Two incarnations at one address: the former one first.
            self._end(where, math.inf)
        steps = chain(self._former_windows.ended(session), self.follower.node_down(down.name))
        self._endings[where] = _Ending(down, steps)
        self._end(where, STEPS_PER_TURN)
        self.follower.changed()
        if not self.kernel.is_leaving:
            self.follower.connection_lost()

    def _count_end(self, session: Session, down: Down) -> None:
        """Note that a session has ended, and why."""
        session.peer.ended_by = down.kind
        self.ended.add(session)
        self.ends[down.kind] = self.ends.get(down.kind, 0) + 1
        if self._taps.session_ended is not None:
            self._taps.session_ended(session)
        if self._taps.session_down is not None:
            seconds = self._loop.time() - session.up_at
            self._taps.session_down(down.name, down.incarnation, down.kind.value, down.reason, seconds)

    def _end(self, where: tuple[str, int], most: float) -> None:
        """Take up to ``most`` further steps for a lost node; after the last one tell the subscribers."""
        ending = self._endings.get(where)
        if ending is None:
            return  # `leave` has taken all steps.
        for taken, _ in enumerate(ending.steps, 1):
            if taken >= most:
                self._loop.call_soon(self._end, where, most)
                return
        del self._endings[where]
        down = ending.down
        self._events.down(NodeDown(down.name, down.incarnation, down.reason))
        for dial in ending.dials.values():
            self._transport.dial(dial.channel, dial.ip, dial.port)

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
        """Note this loop's lag, let sessions report small credits, tick, and tell a peer about others."""
        now = self._loop.time()
        late_s = max(0.0, now - self._pulse_due)
        self.lag_ms = int(late_s * 1000)
        self.lag_s += late_s
        self._pulse_due = self._next_pulse(now)
        self._pulse = self._loop.call_at(self._pulse_due, self._on_pulse)
        self._transport.note_tick(now, self.lag_ms)
        self._read_ticks(now)
        # What peers sent while this loop stood still has not been read yet: that is not their silence.
        self._perform(self.kernel.pulse(now - self.lag_ms / 1000))
        for session in list(self.sessions.values()):
            session.sweep()
        if len(self.sessions) <= TICKED_EACH_TIME or int(now / self._settings.tick_s + _EARLY) % 2:
            self.tick_sessions()
        self.follower.pulsed()
        if now >= self._gossip_due and self.sessions:
            self._gossip_due = now + self._settings.gossip_s
            self._tell_peers(self._rng.choice(list(self.sessions.values())))

    def _next_pulse(self, now: float, part: float = 1.0) -> float:
        """Return when to tick next: after a tick interval, or ``part`` of it before the first tick."""
        tick_s = self._settings.tick_s
        if self._ticks_with_host:
            return (math.floor(now / tick_s + _EARLY) + 1) * tick_s
        return now + tick_s * part

    def _read_ticks(self, now: float) -> None:
        """Take the ticks of neighbours, which have noted them where this node can look: see `Transport`.

        A neighbour has ticked since the last look, that is certain. The time that it notes says when, unless
        its clock is another one, or it lies.
        """
        since, self._ticks_read_at = self._ticks_read_at, now
        for session in list(self.sessions.values()):
            tick = self._transport.read_tick(session.incoming.source)
            if tick is not None:
                at, lag_ms = tick
                session.peer_ticked(now)
                heard = max(session.peer.last_heard, min(max(at, since), now))
                self.kernel.ticked(heard, session.name, lag_ms)

    def tick_sessions(self) -> None:
        """Tell every peer that this event loop is alive, unless it sees that for itself.

        The first tick of a session is always sent: with it a peer knows that what was sent before has come.
        """
        tick = operations.tick(self.lag_ms)
        for session in list(self.sessions.values()):
            if not (session.has_ticked and self._transport.shows_ticks(session.outgoing.channel)):
                session.has_ticked = True
                session.control(tick)

    def _tell_peers(self, session: Session, most: int = PEERS_TOLD) -> None:
        """Tell a peer to which nodes this one is connected, so that no node depends on one DNS answer."""
        names = [name for name in self.sessions if name != session.name]
        if len(names) > most:
            names = self._rng.sample(names, most)
        if names:
            session.control(operations.peers(names))
