"""What a simulated network is made of: hosts, endpoints, and TCP connections between them.

`SimNetwork` holds the verbs that tests use; this module is what they act on, and follows what was
measured of ZeroMQ (libzmq 4.3.5) over TCP:

* A connection is a pair of *lanes*. A lane keeps order and never has a gap; while the path is cut
  its frames wait, as TCP retransmits, and what breaks a connection takes a suffix of them.
* Each *end* of a connection finds out for itself: by the other's FIN, which travels behind the
  last frame, or by its own heartbeat when it is *deaf*.
* A dialler is not told that an open channel has ended, since ZeroMQ does not tell; the listening
  end is told of every source that it has heard from.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fleetlm.settings import Settings
from fleetlm.testing.pipes import Control, Lane, Wheel
from fleetlm.transport.interface import Listener


@dataclass(slots=True)
class Counters:
    """Totals of a network. Frames lost are those sent and not delivered, less those in flight."""

    dials: int = 0
    opened: int = 0
    frames_sent: int = 0
    bytes_sent: int = 0
    frames_delivered: int = 0
    answers_sent: int = 0


class Host:
    """One address: what listens there, what is connected, and what ails it."""

    __slots__ = ("connections", "dark", "endpoints", "frozen", "ip", "slowness", "stalled")

    def __init__(self, ip: str) -> None:
        self.ip: str = ip
        self.endpoints: dict[int, Endpoint] = {}
        self.connections: dict[Connection, None] = {}  # ordered, unlike a set
        self.frozen: bool = False
        self.stalled: bool = False
        self.dark: bool = False
        """Lost its power: it answers nobody, not even with a refusal, until something binds."""
        self.slowness: float = 1.0

    @property
    def halted(self) -> bool:
        """Whether no callback runs here, and nothing new is sent."""
        return self.frozen or self.stalled


class Fabric(Protocol):
    """What connections ask of the network that they are part of."""

    loop: asyncio.AbstractEventLoop
    wheel: Wheel
    rng: random.Random
    counters: Counters
    trace: list[tuple[Any, ...]] | None

    def host(self, ip: str) -> Host:
        """The host at that address; made on first use."""

    def blocked(self, src: str, dst: str) -> bool:
        """Whether packets from ``src`` do not reach ``dst``."""

    def latency(self, src: Host, dst: Host) -> tuple[float, float]:
        """Shortest and longest time of a frame on its way, in seconds."""

    def new_source(self) -> bytes:
        """A routing id that no dial has had."""


class Endpoint:
    """The state of one node's transport, and the road on which facts reach the node."""

    __slots__ = (
        "alive",
        "backlog",
        "channels",
        "fabric",
        "host",
        "listener",
        "paused",
        "port",
        "settings",
        "sources",
        "strangers",
    )

    def __init__(self, fabric: Fabric, host: Host, port: int, listener: Listener, settings: Settings) -> None:
        self.fabric: Fabric = fabric
        self.settings: Settings = settings
        self.host: Host = host
        self.port: int = port
        self.listener: Listener = listener
        self.alive: bool = True
        self.channels: dict[int, Connection] = {}
        self.sources: dict[bytes, Connection] = {}
        self.strangers: dict[bytes, str] = {}
        self.backlog: deque[tuple[str, tuple[Any, ...]]] = deque()
        self.paused: bool = host.halted

    def tell(self, fact: str, *args: Any) -> None:
        """Report a fact: now, or, while the host is halted or catching up, in its turn."""
        if not self.alive:
            return
        if self.paused:
            self.backlog.append((fact, args))
            return
        trace = self.fabric.trace
        if trace is not None:
            shown = [zlib.crc32(arg) if isinstance(arg, bytes) else arg for arg in args]
            trace.append((self.fabric.loop.time(), self.host.ip, fact, *shown))
        if fact == "frame_arrived":
            self.fabric.counters.frames_delivered += 1
        getattr(self.listener, fact)(*args)

    def catch_up(self) -> None:
        """Report what waited while the host was halted."""
        while self.backlog and self.alive and not self.host.halted:
            fact, args = self.backlog.popleft()
            self.paused = False
            self.tell(fact, *args)
            self.paused = bool(self.backlog)
        self.paused = self.host.halted or bool(self.backlog)

    def silence_s(self) -> float:
        """How long after the last sign of the other end a heartbeat takes to find out."""
        timeout_s = self.fabric.rng.random() * self.settings.heartbeat_timeout_s
        return self.settings.heartbeat_interval_s + timeout_s


class Connection:
    """A dialled TCP connection: the dialler's end, the listener's end, and two lanes."""

    __slots__ = (
        "_channel",
        "_dialler_gone",
        "_dialler_timer",
        "_dst",
        "_fabric",
        "_listener",
        "_listener_gone",
        "_listener_timer",
        "_met",
        "_opened",
        "_port",
        "_refusal",
        "_src",
        "_waiting",
        "back",
        "dialler",
        "flush_until_s",
        "hears",
        "out",
        "sends",
        "source",
    )

    def __init__(self, dialler: Endpoint, channel: int, dst: Host, port: int) -> None:
        fabric = dialler.fabric
        self._fabric = fabric
        self.dialler: Endpoint = dialler
        self._channel = channel
        self._src = dialler.host
        self._dst = dst
        self._port = port
        self._listener: Endpoint | None = None
        self.source: bytes = b""
        self.sends: bool = True
        """Whether the dialler's socket is open."""
        self.hears: bool = False
        """Whether the listener's is."""
        self._opened = False
        self._met = False
        self._waiting = False  # a SYN that nobody answers
        self._refusal = ""
        self._dialler_gone = False  # lost its power: no FIN
        self._listener_gone = False
        self.flush_until_s: float = 0.0
        self._listener_timer: asyncio.TimerHandle | None = None
        self._dialler_timer: asyncio.TimerHandle | None = fabric.loop.call_later(
            dialler.settings.connect_timeout_s, self._unanswered
        )
        self.out: Lane = Lane(fabric.wheel, fabric.rng, self._at_listener)
        self.back: Lane = Lane(fabric.wheel, fabric.rng, self._at_dialler)
        self._src.connections[self] = None
        self._dst.connections[self] = None
        self.set_latency()
        self.review()
        self.out.put(Control.SYN)

    @property
    def opened(self) -> bool:
        """Whether frames may be sent."""
        return self._opened and self.sends

    @property
    def hosts(self) -> tuple[Host, Host]:
        """Who dialled, and whom."""
        return self._src, self._dst

    @property
    def leaves_at_s(self) -> float:
        """When a hung-up channel has nothing left to flush."""
        return min(self.flush_until_s, self.out.last_arrival_s)

    # What arrives.

    def _at_listener(self, frame: bytes | Control, extra: bytes | None) -> None:
        if isinstance(frame, Control):
            if frame is Control.SYN:
                self._knock()
            elif self.hears:
                self._listener_ended(farewell=False)
        elif self.hears and (listener := self._listener) is not None:
            if not self._met:
                self._met = True
                listener.tell("source_met", self.source, self._src.ip)
            if listener.paused or self._fabric.trace is not None:
                listener.tell("frame_arrived", self.source, frame, extra)
            else:  # the same without the detour: most of a simulation's time is spent here
                self._fabric.counters.frames_delivered += 1
                listener.listener.frame_arrived(self.source, frame, extra)

    def _at_dialler(self, frame: bytes | Control, _extra: bytes | None) -> None:
        if not self.sends:
            return
        if frame is Control.OPENED:
            self._opened = True
            self._dialler_timer = _stopped(self._dialler_timer)
            self._fabric.counters.opened += 1
            self.dialler.tell("channel_opened", self._channel)
            self.review()
        elif frame is Control.REFUSED:
            self._failed(self._refusal)
        elif frame is Control.END:
            self._dialler_ended(farewell=False)
            if not self._opened:
                self._say_lost("connection reset")
        else:
            self.dialler.tell("channel_answered", self._channel, frame)

    def _knock(self) -> None:
        if self._dst.dark or self._dst.frozen:
            self._waiting = True
            return
        listener = self._dst.endpoints.get(self._port)
        if listener is None:
            self._failed("connection refused")
            return
        mine, theirs = self.dialler.settings.cookie, listener.settings.cookie
        if mine != theirs:
            self._refusal = f"authentication failed: {_mismatch(mine, theirs)}"
            said = f"authentication failed: {_mismatch(theirs, mine)}"
            listener.tell("stranger_refused", self._src.ip, said)
            self.back.put(Control.REFUSED)
            return
        self._listener = listener
        self.source = self._fabric.new_source()
        self.hears = True
        listener.sources[self.source] = self
        self.back.put(Control.OPENED)
        self.review()

    # How it ends.

    def _unanswered(self) -> None:
        self._dialler_timer = None
        self._failed("connect timeout")

    def _failed(self, reason: str) -> None:
        if self.sends:
            self._dialler_ended(farewell=True)
            self._say_lost(reason)

    def _say_lost(self, reason: str) -> None:
        self.dialler.tell("channel_lost", self._channel, reason)

    def _dialler_deaf(self) -> None:
        self._dialler_timer = None
        self.out.keep_some()
        self._dialler_ended(farewell=True)

    def _listener_deaf(self) -> None:
        self._listener_timer = None
        self._listener_ended(farewell=True)

    def _dialler_ended(self, *, farewell: bool) -> None:
        """The dialler's socket is closed; ``farewell``: and the other end will hear of it."""
        self.sends = False
        self.dialler.channels.pop(self._channel, None)
        self._dialler_timer = _stopped(self._dialler_timer)
        self.back.keep(0)
        if not self.hears:
            self._done()
        elif farewell:
            self.out.put(Control.END)

    def _listener_ended(self, *, farewell: bool) -> None:
        self.hears = False
        self._listener_timer = _stopped(self._listener_timer)
        self.out.keep(0)
        if self._listener is not None:
            self._listener.sources.pop(self.source, None)
            if self._met:
                self._listener.tell("source_lost", self.source)
        if not self.sends:
            self._done()
        elif farewell:
            self.back.put(Control.END)

    def _done(self) -> None:
        self._src.connections.pop(self, None)
        self._dst.connections.pop(self, None)
        self._waiting = False
        self.out.keep(0)
        self.back.keep(0)

    def hang_up(self, flush_s: float) -> None:
        """The dialler closes its socket; what was sent has ``flush_s`` to leave."""
        loop = self._fabric.loop
        if flush_s <= 0:
            self.out.keep(0)
        elif self.out.pending:
            self.flush_until_s = loop.time() + flush_s
            loop.call_at(self.flush_until_s, self.out.drop_held)
        self._dialler_ended(farewell=True)

    def crash(self, host: Host, *, silent: bool) -> None:
        """What the end of ``host`` leaves behind: some prefix in flight, and a FIN or nothing."""
        if self._src is host and self.sends:
            self.out.drop_held()
            self.out.keep_some()
            self._dialler_gone = silent
            self._dialler_ended(farewell=not silent)
        if self._dst is host and self.hears:
            self._listener_gone = silent
            self._listener_ended(farewell=not silent)
        self.review()

    def close_listener(self) -> None:
        """The listener closes its sockets."""
        if self.hears:
            self._listener_ended(farewell=True)

    def reset(self) -> None:
        """Break it: both ends find out by themselves, some prefix arrives."""
        if self.sends:
            told = self._opened
            self.out.keep_some()
            self._dialler_ended(farewell=True)
            if not told:
                self._fabric.loop.call_soon(self._say_lost, "connection reset")

    def disown(self) -> None:
        """A newcomer at a dead machine's address answers its former peers: not known here."""
        wait_s = self._fabric.rng.random()
        loop = self._fabric.loop
        if self._dialler_gone and self.hears and self._listener is not None:
            _stopped(self._listener_timer)
            wait_s *= self._listener.settings.heartbeat_interval_s
            self._listener_timer = loop.call_later(wait_s, self._listener_deaf)
        elif self._listener_gone and self.opened:
            _stopped(self._dialler_timer)
            wait_s *= self.dialler.settings.heartbeat_interval_s
            self._dialler_timer = loop.call_later(wait_s, self._dialler_deaf)

    # What it is like.

    def set_latency(self) -> None:
        """Take over how fast the path is."""
        for lane, src, dst in ((self.out, self._src, self._dst), (self.back, self._dst, self._src)):
            low_s, high_s = self._fabric.latency(src, dst)
            lane.low_s, lane.span_s = low_s, high_s - low_s

    def review(self) -> None:
        """Take over what the path and the hosts have come to: who hears, who waits, who is deaf."""
        src, dst = self._src, self._dst
        out_blocked = self._fabric.blocked(src.ip, dst.ip)
        back_blocked = self._fabric.blocked(dst.ip, src.ip)
        # One way is enough: without acknowledgements TCP sends nothing the other way, either.
        cut = out_blocked or back_blocked
        self.out.hold(held=cut or src.halted, cut=cut, lossy=out_blocked)
        self.back.hold(held=cut or dst.halted, cut=cut, lossy=back_blocked)
        if self._waiting and not (dst.dark or dst.frozen):
            self._waiting = False
            self.out.put(Control.SYN)
        if self._opened:
            deaf = self.sends and not src.frozen and (cut or dst.frozen or self._listener_gone)
            self._dialler_timer = self._watch(
                self.dialler, self._dialler_timer, self._dialler_deaf, deaf=deaf
            )
        if self._listener is not None:
            deaf = self.hears and not dst.frozen and (cut or src.frozen or self._dialler_gone)
            self._listener_timer = self._watch(
                self._listener, self._listener_timer, self._listener_deaf, deaf=deaf
            )

    def _watch(
        self,
        end: Endpoint,
        timer: asyncio.TimerHandle | None,
        then: Callable[[], None],
        *,
        deaf: bool,
    ) -> asyncio.TimerHandle | None:
        if not deaf:
            return _stopped(timer)
        return timer or self._fabric.loop.call_later(end.silence_s(), then)


def _stopped(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """No timer any more."""
    if timer is not None:
        timer.cancel()
    return None


def _mismatch(own: str | None, other: str | None) -> str:
    if own is None:
        return "this node has no cookie, the other has one"
    if other is None:
        return "this node has a cookie, the other has none"
    return "the other node has another cookie"
