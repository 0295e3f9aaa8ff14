"""Hosts, endpoints and the simulated TCP connections between them.

Theory of operation. `fleetlm.testing.network` has the methods that tests call; this module has the
state that those methods change, and follows what was measured of ZeroMQ (libzmq 4.3.5) over TCP.

A `Host` is one address with its faults. An `Endpoint` is the transport of one node on a host: it
owns the channels that the node dialled and the sources that dialled the node, and reports facts to
the node's listener. A `Connection` is one dial, with two ends that open and close on their own:

    dialler:  SYN sent → acknowledged (`is_open`) → closed
    listener: no socket → open (`is_listener_open`) → closed

Its two `Lane` objects carry frames and control entries (SYN, OPENED, REFUSED, END) in both directions.
A lane keeps order and has no gap. While the path is cut its frames wait, as TCP retransmits them; what
breaks the connection takes a suffix of them. A connection is discarded when both ends are closed.

* Each end finds out for itself that the other is gone: by the other's FIN (END), which travels behind
  the last frame, or by its own heartbeat timer while nothing can reach it (*deaf*). `update` sets and
  cancels both heartbeat timers whenever a path or a host changes; it is the only place that does.
* A dialler is not told that an open channel has ended, because ZeroMQ does not report it: `send` returns
  False. A listener gets `source_lost` for every source from which it has received a frame.
* A host that lost its power sends no FIN. If a new node binds its address, the former peers get a reset
  at their next heartbeat (`reset_at_next_heartbeat`).
* A halted node (frozen or stalled, by itself or with its host) queues its facts in `Endpoint.backlog`;
  `catch_up` reports them in order. A fact that arrives meanwhile goes behind them.

Every random choice is drawn from the network's generator, and collections keep insertion order, so that
one seed gives one course. Changing the order of draws changes what each seed tests.
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
from fleetlm.testing.sim_roads import LATENCY_S, SimRoad
from fleetlm.transport.interface import Listener


@dataclass(slots=True)
class Counters:
    """Totals of a network. Frames lost = frames sent - frames delivered - frames in flight."""

    dials: int = 0
    opened: int = 0
    frames_sent: int = 0
    bytes_sent: int = 0
    frames_delivered: int = 0
    answers_sent: int = 0


class Host:
    """One address: its endpoints, its connections and its faults."""

    __slots__ = (
        "connections",
        "endpoints",
        "ip",
        "is_frozen",
        "is_powered_off",
        "is_stalled",
        "slowness",
        "taken",
    )

    def __init__(self, ip: str) -> None:
        self.ip: str = ip
        self.endpoints: dict[int, Endpoint] = {}
        self.taken: set[int] = set()
        """Ports that are bound for transports that have not been started yet."""
        self.connections: dict[Connection, None] = {}  # ordered, unlike a set
        self.is_frozen: bool = False
        self.is_stalled: bool = False
        self.is_powered_off: bool = False
        """The machine lost its power: a dial gets no answer, not even a refusal, until a node binds."""
        self.slowness: float = 1.0

    def is_frozen_at(self, port: int) -> bool:
        """Whether nothing answers at a port, not even heartbeats, since the process there stands still."""
        process = self.endpoints.get(port)
        return self.is_frozen or (process is not None and process.is_frozen)

    def is_halted_at(self, port: int) -> bool:
        """Whether the node at a port runs no callbacks and its new frames do not leave."""
        process = self.endpoints.get(port)
        return self.is_frozen or self.is_stalled or (process is not None and process.is_halted)


class Fabric(Protocol):
    """The part of `SimNetwork` that connections use."""

    loop: asyncio.AbstractEventLoop
    wheel: Wheel
    rng: random.Random
    counters: Counters
    trace: list[tuple[Any, ...]] | None

    def host(self, ip: str) -> Host:
        """Return the host at that address; it is made on first use."""

    def blocked(self, src: str, dst: str) -> bool:
        """Whether packets from ``src`` do not reach ``dst``."""

    def latency(self, src: Host, dst: Host) -> tuple[float, float]:
        """Return the shortest and the longest time that a frame travels, in seconds."""

    def new_source(self) -> bytes:
        """Return a routing id that no dial has had."""

    def is_one_machine(self, src: str, dst: str) -> bool:
        """Whether two addresses are of one machine, so that nodes there may have local roads."""


class Endpoint:
    """The state of one node's transport; reports facts to the node's listener."""

    __slots__ = (
        "backlog",
        "channels",
        "fabric",
        "host",
        "is_alive",
        "is_frozen",
        "is_paused",
        "is_stalled",
        "listener",
        "port",
        "road",
        "settings",
        "sources",
        "strangers",
        "tick",
    )

    def __init__(
        self, fabric: Fabric, host: Host, port: int, listener: Listener, settings: Settings, road: int = 0
    ) -> None:
        self.fabric: Fabric = fabric
        self.road: int = road
        """The number of its listener for local roads; 0: none."""
        self.settings: Settings = settings
        self.host: Host = host
        self.port: int = port
        self.listener: Listener = listener
        self.is_alive: bool = True
        self.channels: dict[int, Connection] = {}
        self.sources: dict[bytes, Connection] = {}
        self.strangers: dict[bytes, str] = {}
        self.tick: tuple[float, int] | None = None
        """The last tick that the node has noted for its neighbours."""
        self.backlog: deque[tuple[str, tuple[Any, ...]]] = deque()
        self.is_frozen: bool = False
        self.is_stalled: bool = False
        """Both of this process alone; all at an address may stand still, too: see `Host`."""
        self.is_paused: bool = self.is_halted

    @property
    def is_halted(self) -> bool:
        """Whether the node runs no callbacks and its new frames do not leave."""
        return self.is_frozen or self.is_stalled or self.host.is_frozen or self.host.is_stalled

    def report(self, fact: str, *args: Any) -> None:
        """Report a fact now, or queue it while the host is halted or catching up."""
        if not self.is_alive:
            return
        if self.is_paused:
            self.backlog.append((fact, args))
            return
        if fact == "source_lost":
            self._take_last_words(*args)
        trace = self.fabric.trace
        if trace is not None:
            shown = [zlib.crc32(arg) if isinstance(arg, bytes) else arg for arg in args]
            trace.append((self.fabric.loop.time(), self.host.ip, fact, *shown))
        if fact == "frame_arrived":
            self.fabric.counters.frames_delivered += 1
        getattr(self.listener, fact)(*args)

    def _take_last_words(self, source: bytes) -> None:
        """Report what the local road of a source has brought, before its end.

        A node that stood still reads MOVED only now, behind which these frames come.
        """
        connection = self.sources.pop(source, None)
        if connection is not None and connection.road is not None:
            connection.road.drain()

    def catch_up(self) -> None:
        """Report the facts that were queued while the host was halted, in order."""
        while self.backlog and self.is_alive and not self.is_halted:
            fact, args = self.backlog.popleft()
            self.is_paused = False
            self.report(fact, *args)
            self.is_paused = bool(self.backlog)
        self.is_paused = self.is_halted or bool(self.backlog)

    def draw_silence_s(self) -> float:
        """Draw the seconds from the last frame until this end's heartbeat finds the other silent."""
        earliest_s = self.settings.heartbeat_timeout_s
        return earliest_s + self.fabric.rng.random() * (self.settings.longest_silence_s - earliest_s)


class Connection:
    """A dialled TCP connection: the dialler's end, the listener's end, and a lane in each direction."""

    __slots__ = (
        "_channel",
        "_dialler_timer",
        "_dst",
        "_fabric",
        "_is_acknowledged",
        "_is_dialler_powered_off",
        "_is_listener_powered_off",
        "_is_syn_unanswered",
        "_listener",
        "_listener_timer",
        "_port",
        "_refusal",
        "_src",
        "_tick_read",
        "back",
        "dialler",
        "flush_until_s",
        "is_announced",
        "is_dialler_open",
        "is_ignored",
        "is_listener_open",
        "out",
        "road",
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
        self.is_dialler_open: bool = True
        """Whether the dialler's socket is open."""
        self.is_listener_open: bool = False
        """Whether the listener's socket is open."""
        self.is_ignored: bool = False
        """Whether the listener's end drops what arrives."""
        self._is_acknowledged = False
        self.is_announced: bool = False
        """Whether the listener knows of this source, since a frame has come."""
        self._is_syn_unanswered = False  # the listener's host is off or frozen; dialled again when it is back
        self._refusal = ""
        self._is_dialler_powered_off = False  # no FIN was sent
        self._is_listener_powered_off = False
        self.flush_until_s: float = 0.0
        self._listener_timer: asyncio.TimerHandle | None = None
        self._dialler_timer: asyncio.TimerHandle | None = fabric.loop.call_later(
            dialler.settings.connect_timeout_s, self._time_out_dial
        )
        self.out: Lane = Lane(fabric.wheel, fabric.rng, self._arrive_at_listener)
        self.back: Lane = Lane(fabric.wheel, fabric.rng, self._arrive_at_dialler)
        self._tick_read: tuple[float, int] | None = None
        self.road: SimRoad | None = None
        """Set when either end asks for a local road."""
        self._src.connections[self] = None
        self._dst.connections[self] = None
        self.set_latency()
        self.update()
        self.out.put(Control.SYN)

    @property
    def is_open(self) -> bool:
        """Whether frames may be sent."""
        return self._is_acknowledged and self.is_dialler_open

    @property
    def lane(self) -> Lane:
        """What the dialler's frames travel on now."""
        return self.road.lane if self.road is not None and self.road.is_taken else self.out

    @property
    def hosts(self) -> tuple[Host, Host]:
        """The dialler's host and the listener's host."""
        return self._src, self._dst

    @property
    def flushed_at_s(self) -> float:
        """The virtual time at which a hung-up channel has nothing left to flush."""
        return min(self.flush_until_s, self.out.last_arrival_s)

    # Arrivals.

    def _arrive_at_listener(self, frame: bytes | Control) -> None:
        if isinstance(frame, Control):
            if frame is Control.SYN:
                self._take_dial()
            elif self.is_listener_open:
                self._end_listener(send_fin=False)
        else:
            self._deliver(frame)

    def _deliver(self, frame: bytes) -> None:
        """Report a frame at the listener's end."""
        if self.is_listener_open:
            self._report_frame(frame)

    def _report_frame(self, frame: bytes) -> None:
        if not self.is_ignored and (listener := self._listener) is not None:
            if not self.is_announced:
                self.is_announced = True
                listener.report("source_met", self.source, self._src.ip)
            if listener.is_paused or self._fabric.trace is not None:
                listener.report("frame_arrived", self.source, frame)
            else:  # `Endpoint.report` inlined: most of a simulation's time is spent here
                self._fabric.counters.frames_delivered += 1
                listener.listener.frame_arrived(self.source, frame)

    def _arrive_at_dialler(self, frame: bytes | Control) -> None:
        """Take what the listener's end sent: an acknowledgement, a refusal, a FIN or an answer."""
        if not self.is_dialler_open:
            return
        if frame is Control.OPENED:
            self._is_acknowledged = True
            self._dialler_timer = _cancel(self._dialler_timer)
            self._fabric.counters.opened += 1
            self.dialler.report("channel_opened", self._channel)
            self.update()
        elif frame is Control.REFUSED:
            self._fail_dial(self._refusal)
        elif frame is Control.END:
            self._end_dialler(send_fin=False)
            if not self._is_acknowledged:
                self._report_lost("connection reset")
        else:
            self.dialler.report("channel_answered", self._channel, frame)

    def _take_dial(self) -> None:
        """Answer a SYN at the listener's host: open the connection, refuse it, or give no answer."""
        if self._dst.is_powered_off or self._dst.is_frozen_at(self._port):
            self._is_syn_unanswered = True
            return
        listener = self._dst.endpoints.get(self._port)
        if listener is None:
            self._fail_dial("connection refused")
            return
        mine, theirs = self.dialler.settings.cookie, listener.settings.cookie
        knows = mine == theirs or theirs in self.dialler.settings.other_cookies
        is_other_cluster = self.dialler.settings.cluster != listener.settings.cluster
        if not knows or (theirs is not None and is_other_cluster):
            self._refusal = f"authentication failed: {_describe_mismatch(mine, theirs)}"
            said = f"authentication failed: {_describe_mismatch(theirs, mine)}"
            listener.report("stranger_refused", self._src.ip, said)
            self.back.put(Control.REFUSED)
            return
        self._listener = listener
        self.source = self._fabric.new_source()
        self.is_listener_open = True
        listener.sources[self.source] = self
        self.back.put(Control.OPENED)
        self.update()

    # The end of a connection.

    def _time_out_dial(self) -> None:
        self._dialler_timer = None
        self._fail_dial("connect timeout")

    def _fail_dial(self, reason: str) -> None:
        if self.is_dialler_open:
            self._end_dialler(send_fin=True)
            self._report_lost(reason)

    def _report_lost(self, reason: str) -> None:
        self.dialler.report("channel_lost", self._channel, reason)

    def _give_up_listener(self) -> None:
        self._dialler_timer = None
        self.out.keep_some()
        self._end_dialler(send_fin=True)

    def _give_up_dialler(self) -> None:
        self._listener_timer = None
        self._end_listener(send_fin=True)

    def _end_dialler(self, *, send_fin: bool) -> None:
        """Close the dialler's socket; ``send_fin`` also sends a FIN to a listener's end that is open."""
        self.is_dialler_open = False
        self.dialler.channels.pop(self._channel, None)
        self._dialler_timer = _cancel(self._dialler_timer)
        self.back.keep(0)
        if not self.is_listener_open:
            self._discard()
        elif send_fin:
            self.out.put(Control.END)

    def _end_listener(self, *, send_fin: bool) -> None:
        """Close the listener's socket, report the end of an announced source, and send a FIN if asked."""
        if self.road is not None:
            self.road.drain()
        self.is_listener_open = False
        self._listener_timer = _cancel(self._listener_timer)
        self.out.keep(0)
        if self._listener is not None:
            if self.is_announced:
                self._listener.report("source_lost", self.source)
            else:
                self._listener.sources.pop(self.source, None)
        if not self.is_dialler_open:
            self._discard()
        elif send_fin:
            self.back.put(Control.END)

    def _discard(self) -> None:
        """Forget the connection: both ends are closed."""
        self._src.connections.pop(self, None)
        self._dst.connections.pop(self, None)
        self._is_syn_unanswered = False
        self.out.keep(0)
        self.back.keep(0)

    def hang_up(self, flush_s: float) -> None:
        """Close the dialler's socket; frames that were sent have ``flush_s`` seconds to leave."""
        loop = self._fabric.loop
        if self.road is not None and flush_s <= 0:
            self.road.lane.keep_some()
        if flush_s <= 0:
            self.out.keep(0)
        elif self.out.pending:
            self.flush_until_s = loop.time() + flush_s
            loop.call_at(self.flush_until_s, self.out.drop_held)
        self._end_dialler(send_fin=True)

    def crash(self, host: Host, *, silent: bool) -> None:
        """End what ``host`` holds of this connection: a prefix still arrives, then a FIN unless silent."""
        if self._src is host and self.is_dialler_open:
            self._lose_some()
            self._is_dialler_powered_off = silent
            self._end_dialler(send_fin=not silent)
        if self._dst is host and self.is_listener_open:
            self._is_listener_powered_off = silent
            self._end_listener(send_fin=not silent)
        self.update()

    def crash_process(self, process: Endpoint) -> None:
        """End what one process of a host holds of this connection, which may lead to another one there."""
        if self.dialler is process and self.is_dialler_open:
            self._lose_some()
            self._end_dialler(send_fin=True)
        if self._listener is process and self.is_listener_open:
            self._end_listener(send_fin=True)
        self.update()

    def _lose_some(self) -> None:
        """Lose what has not left the dialler, and a random suffix of what is in flight."""
        for lane in (self.out, self.road.lane) if self.road is not None else (self.out,):
            lane.drop_held()
            lane.keep_some()

    def close_listener(self) -> None:
        """Close the listener's socket."""
        if self.is_listener_open:
            self._end_listener(send_fin=True)

    def reset(self) -> None:
        """Break the connection: a prefix of what is in flight arrives, then the listener's end closes."""
        if self.is_dialler_open:
            was_open = self._is_acknowledged
            self.out.keep_some()
            self._end_dialler(send_fin=True)
            if not was_open:
                self._fabric.loop.call_soon(self._report_lost, "connection reset")

    def reset_at_next_heartbeat(self) -> None:
        """Let a node that binds a powered-off address reset this connection at its peer's next heartbeat."""
        wait_s = self._fabric.rng.random()
        loop = self._fabric.loop
        if self._is_dialler_powered_off and self.is_listener_open and self._listener is not None:
            _cancel(self._listener_timer)
            wait_s *= self._listener.settings.heartbeat_interval_s
            self._listener_timer = loop.call_later(wait_s, self._give_up_dialler)
        elif self._is_listener_powered_off and self.is_open:
            _cancel(self._dialler_timer)
            wait_s *= self.dialler.settings.heartbeat_interval_s
            self._dialler_timer = loop.call_later(wait_s, self._give_up_listener)

    # The local road.

    def show_ticket(self, number: int, ticket: bytes) -> None:
        """Let the dialler ask for a local road at the listener with this number."""
        if self._is_neighbour(number):
            low_s, high_s = LATENCY_S
            self._fabric.loop.call_later(self._fabric.rng.uniform(low_s, high_s), self._take_ticket, ticket)

    def _take_ticket(self, ticket: bytes) -> None:
        if self.is_listener_open and self._require_road().show(ticket):
            self._let_in()

    def expect_ticket(self, ticket: bytes) -> None:
        """Let the dialler in at the listener's local road when it shows this ticket."""
        is_near = self._listener is not None and self._is_neighbour(self._listener.road)
        if is_near and self._require_road().expect(ticket):
            self._let_in()

    def take_road(self) -> None:
        """Send what follows on the local road."""
        road = self._require_road()
        road.is_taken, road.is_broken = True, road.is_broken or not road.is_open

    def read_tick(self) -> tuple[float, int] | None:
        """Return the tick that the dialler's node has noted since the last call, or None."""
        last, self._tick_read = self._tick_read, self.dialler.tick
        return None if last == self._tick_read else self._tick_read

    def _is_neighbour(self, number: int) -> bool:
        """Whether both ends are on one machine, and the listener there has this number."""
        listener = self._listener
        return (
            listener is not None
            and number == listener.road != 0
            and self.dialler.road != 0
            and self._fabric.is_one_machine(self._src.ip, self._dst.ip)
        )

    def _require_road(self) -> SimRoad:
        if self.road is None:
            fabric = self._fabric
            deliver, ended = self._report_frame, self.close_listener
            self.road = SimRoad(fabric.loop, fabric.wheel, fabric.rng, deliver, ended)
            self.update()
        return self.road

    def _let_in(self) -> None:
        low_s, high_s = LATENCY_S
        self._fabric.loop.call_later(self._fabric.rng.uniform(low_s, high_s), self._report_road)

    def _report_road(self) -> None:
        if self.is_open and self.road is not None and not self.road.is_broken:
            self.dialler.report("road_opened", self._channel)

    # Path and host conditions.

    def set_latency(self) -> None:
        """Copy the path's latency to both lanes."""
        for lane, src, dst in ((self.out, self._src, self._dst), (self.back, self._dst, self._src)):
            low_s, high_s = self._fabric.latency(src, dst)
            lane.low_s, lane.span_s = low_s, high_s - low_s

    def update(self) -> None:
        """Apply changed paths and hosts: hold or release the lanes, dial again, set the heartbeat timers."""
        src, dst = self._src, self._dst
        is_out_blocked = self._fabric.blocked(src.ip, dst.ip)
        is_back_blocked = self._fabric.blocked(dst.ip, src.ip)
        # One blocked direction cuts both: without acknowledgements TCP sends nothing the other way, either.
        is_cut = is_out_blocked or is_back_blocked
        is_dialler_frozen = src.is_frozen or self.dialler.is_frozen
        is_listener_frozen = dst.is_frozen_at(self._port)
        is_listener_halted = dst.is_halted_at(self._port)
        self.out.hold(is_held=is_cut or self.dialler.is_halted, is_cut=is_cut, is_lossy=is_out_blocked)
        self.back.hold(is_held=is_cut or is_listener_halted, is_cut=is_cut, is_lossy=is_back_blocked)
        if self.road is not None:
            self.road.lane.hold(is_held=self.dialler.is_halted, is_cut=False, is_lossy=False)
        if self._is_syn_unanswered and not (dst.is_powered_off or is_listener_frozen):
            self._is_syn_unanswered = False
            self.out.put(Control.SYN)
        if self._is_acknowledged:
            is_deaf = (
                self.is_dialler_open
                and not is_dialler_frozen
                and (is_cut or is_listener_frozen or self._is_listener_powered_off)
            )
            self._dialler_timer = self._set_heartbeat_timer(
                self.dialler, self._dialler_timer, self._give_up_listener, is_deaf=is_deaf
            )
        if self._listener is not None:
            is_deaf = (
                self.is_listener_open
                and not is_listener_frozen
                and (is_cut or is_dialler_frozen or self._is_dialler_powered_off)
            )
            self._listener_timer = self._set_heartbeat_timer(
                self._listener, self._listener_timer, self._give_up_dialler, is_deaf=is_deaf
            )

    def _set_heartbeat_timer(
        self,
        end: Endpoint,
        timer: asyncio.TimerHandle | None,
        then: Callable[[], None],
        *,
        is_deaf: bool,
    ) -> asyncio.TimerHandle | None:
        """Keep the heartbeat timer of an end running exactly while that end is deaf."""
        if not is_deaf:
            return _cancel(timer)
        return timer or self._fabric.loop.call_later(end.draw_silence_s(), then)


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel a timer, if there is one, and return None to store in its place."""
    if timer is not None:
        timer.cancel()
    return None


def _describe_mismatch(own: str | None, other: str | None) -> str:
    if own is None:
        return "this node has no cookie, the other has one"
    if other is None:
        return "this node has a cookie, the other has none"
    return "the other node has another cookie or another cluster id"
