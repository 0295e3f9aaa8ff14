"""The receiving side of a node: its ROUTER, with a monitor and a ZAP handler.

What ZeroMQ hides is *when a source has ended*. A ROUTER delivers frames with the routing id of their
sender and silently forgets a sender that is gone. Two facts are needed per connection and only one of
them comes with the frames, so this module joins both by the descriptor of the accepted connection:

* the monitor reports the descriptor when a connection is accepted and when it ends;
* the first frame of a source carries the same descriptor (``ZMQ_SRCFD``) and the peer's address.

States of a source::

    accepted ──first frame──► known ──monitor: DISCONNECTED──► ending ──its frames are read──► lost
       └──handshake fails──► refused (a stranger)

A connection that exceeds one of the `fleetlm.transport.bounds` is ended here, and so is that of a source
with which the node is through (`disconnect`). `fleetlm.transport.sweeps` looks at what has come over them;
while the loop stands still, `fleetlm.transport.standstill` does.

Races, and where each is settled:

* *The last frames.* The monitor may report an end while frames of that source still wait in the ROUTER.
  `_end_drained_sources` reports the loss only when they must have been read: when the ROUTER is empty,
  or after enough frames of the others (ZeroMQ serves senders in turn), or after
  `LAST_FRAMES_TIMEOUT_S`. So no frame of a source is ever reported after its loss.
* *A reused descriptor.* The kernel gives a closed descriptor to the next connection at once. `_meet`
  therefore reads all monitor events before it trusts a descriptor, and `fleetlm.transport.tcp` ends only
  the connection that was accepted.
* *A connection that came, sent and went before anything was read.* Its source is admitted as ending.
* *Frames after a loss was reported* (only after the time-out) are dropped: `_lost_sources` has their sources.
  One that is forgotten there comes as a new source. Its frames name the descriptor that it had, which may be
  another connection's by now; one from another address is told apart (`_meet`).
* *A stranger's failure* names no descriptor. The DISCONNECTED that follows names it; with several I/O
  threads in libzmq it may belong to another stranger, which only affects a log line.

Descriptors that ZeroMQ gives to a loop are edge-triggered. Each wake-up reads until nothing is left, or
schedules its own continuation; the transport's slow re-check backs this up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Final

import zmq

from fleetlm.names import canonical_ip
from fleetlm.settings import Settings
from fleetlm.transport.bounds import ENCRYPTED, PLAIN, Accepted, Bounds, Offence
from fleetlm.transport.curve import CurveKeys, ZapHandler
from fleetlm.transport.interface import Listener
from fleetlm.transport.leftovers import Leftovers
from fleetlm.transport.listening import Listening
from fleetlm.transport.monitor import FAILURES, SERVER_EVENTS, Monitor, explain_refusal_here
from fleetlm.transport.sockets import (
    Context,
    Sock,
    adopt,
    get_int,
    make_router,
)
from fleetlm.transport.standstill import Ended, Standstill
from fleetlm.transport.sweeps import Sweeps
from fleetlm.transport.tcp import Copies, count_received
from fleetlm.wire.frames import Kind

log: logging.Logger = logging.getLogger("fleetlm.zmq")

MAX_FRAMES_PER_READ: Final = 256
"""Frames read in one turn of the loop; then other callbacks have their turn."""
MAX_BYTES_PER_READ: Final = 4 * 1024 * 1024
"""Bytes read in one turn of the loop, likewise."""
MAX_READ_S: Final = 0.002
"""Seconds of reading in one turn, likewise: what is in the frames may be costly to take."""
MAX_EVENTS_PER_READ: Final = 32
"""Monitor events read in one turn of the loop, likewise: 20 us for each connection that comes or goes."""
MAX_EVENTS_S: Final = 0.001
"""Seconds of reading them in one turn."""
MAX_CUT_PER_TURN: Final = 8
"""Surplus connections that are ended in one turn of the loop, likewise: 70 us for each."""
LAST_FRAMES_TIMEOUT_S: Final = 1.0
"""Seconds after which a source that has ended is reported as lost, even if frames of others still
arrive so fast that its last frames may be unread."""
MAX_LOST_SOURCES: Final = 16_384
"""Lost sources that are remembered, so that late frames of theirs are dropped; the oldest go first. A crowd
opens and leaves 10,000 connections in a second, and the frames of one may wait as long."""
MAX_REFUSED_IPS: Final = 256
"""Strangers' addresses remembered for `REFUSAL_INTERVAL_S`. When there are more, all are forgotten."""
REFUSAL_INTERVAL_S: Final = 1.0
"""Seconds between two reports of refusals for one address, so that a stranger cannot fill the log."""

MORE_PARTS: Final = "it sent a message with parts that no fleetlm node sends"
UNKNOWN_IP: Final = "a connection that ended before its address was read"
"""Stands for the address of a stranger whose connection had ended before the address could be looked
up. ZeroMQ names strangers only by descriptor, and on one machine a refusal is faster than the loop."""

_CHUNK = bytes((Kind.CHUNK,))
_HELLO = bytes((Kind.HELLO,))
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_SRCFD = int(zmq.SRCFD)
_NOT_COUNTED = -1
"""In `Router._ending`: no read has ended since the source did."""


class Router:
    """Receives for one transport. `close` must also be called after an `open` that failed."""

    def __init__(
        self,
        context: Context,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        keys: tuple[CurveKeys, ...],
        listener: Listener,
        max_descriptors: int,
        drain: Callable[[bytes], None],
        refuse: Callable[[str], str | None] | None = None,
    ) -> None:
        self._context = context
        self._loop = loop
        self._settings = settings
        self._keys = keys
        self._listener = listener
        self._drain = drain
        """Reports what a source has sent over its local road."""
        self._refuse = refuse
        """From the address of this machine at which a connection arrived to the reason why it must end."""
        self._bounds = Bounds(settings, max_descriptors)
        self._leftovers = Leftovers()
        self._overhead = ENCRYPTED if keys else PLAIN
        self._accepted: dict[int, Accepted] = {}
        """Every established connection, by descriptor."""
        self._sources: dict[bytes, Accepted] = {}
        """Sources that were reported and are not lost yet → their connection."""
        self._ending: dict[bytes, tuple[int, float]] = {}
        """Sources whose connection has ended → the number of their last frame, and a deadline."""
        self._lost_sources: dict[bytes, None] = {}
        """The latest sources reported as lost, in order: none of their frames may be passed on."""
        self._surplus: deque[Accepted] = deque()
        """Connections of strangers that are to be ended, since there are too many."""
        self._failure: tuple[int, int] | None = None
        """A handshake failure (event, code) whose DISCONNECTED has not been read yet."""
        self._refused_until: dict[str, float] = {}
        self._frames_read = 0
        self._drains = 0
        """How many times the ROUTER had no frame left."""
        self._sweeps = Sweeps(
            loop, self._bounds, self._accepted, self._end_offenders, self._read_soon, lambda: self._drains
        )
        self._standstill: Standstill | None = None
        self._accept_again: Callable[[], None] = lambda: None
        self._events_read = 0
        self._copies: Copies | None = None
        self._is_skipping = False
        self._next_read: asyncio.Handle | None = None
        self._next_monitor_read: asyncio.Handle | None = None
        self._watched_fds: list[int] = []
        self._sock: Sock | None = None
        self._monitor: Monitor | None = None
        self._zap_handler: ZapHandler | None = None

    def open(self, listening: Listening) -> None:
        """Receive what comes to these sockets, which are ZeroMQ's from now on.

        Raises:
            zmq.ZMQError, OSError: ZeroMQ cannot begin; sockets that it has not taken are still open.
        """
        own = self._keys[0] if self._keys else None
        if own is not None:
            self._zap_handler = ZapHandler(self._context, own.public)
        name = f"{self._settings.node_basename}:{listening.port}"
        self._sock = make_router(self._context, self._settings, name, own)
        self._copies = Copies()
        self._monitor = Monitor(self._context, self._sock, SERVER_EVENTS)
        for ip, sock in listening.sockets():
            adopt(self._sock, ip, listening.port, sock)
        self._watch(get_int(self._sock, zmq.FD), self._on_readable)
        self._watch(self._monitor.fd, self._on_monitor_readable)
        if self._zap_handler is not None:
            self._watch(get_int(self._zap_handler.socket, zmq.FD), self._zap_handler.serve)
        # Edge-triggered: ZeroMQ wakes only readers that have looked and found nothing, so look once.
        self._next_monitor_read = self._loop.call_soon(self._read_monitor)
        self._read_soon()

    def turn_away_with(self, turn_away: Callable[[frozenset[str]], None]) -> None:
        """Call this with the addresses from which no connection may be accepted; see `Leftovers`."""
        self._leftovers.turn_away = turn_away

    def watch_standstills(
        self, at: tuple[Sequence[str], int], stop_accepting: Callable[[], None],
        accept_again: Callable[[], None],
    ) -> None:  # fmt: skip
        """Have `Standstill` look while the loop stands still.

        Args:
            at: the addresses at which the node listens (empty: all), and its port.
            stop_accepting: lets no connection in any more, in any thread.
            accept_again: undoes that.

        Raises:
            OSError: there are too few descriptors; nothing was begun.
        """
        assert self._monitor is not None
        self._accept_again = accept_again
        self._standstill = Standstill(
            self._loop,
            at,
            self._bounds,
            accepted=self._accepted,
            dialled=self._sweeps.dialled,
            waiting=(*self._sweeps.waiting_fds, self._monitor.fd),
            count_rounds=lambda: self._frames_read + self._events_read + self._sweeps.count,
            stop_accepting=stop_accepting,
            ended=self._take_ended,
        )
        self._standstill.start()

    def close(self) -> None:
        """Stop receiving. The monitor is closed first, see `fleetlm.transport.monitor`. Idempotent."""
        if self._standstill is not None:
            self._standstill.close()
            self._standstill = None
        for fd in self._watched_fds:
            self._loop.remove_reader(fd)
        self._watched_fds.clear()
        for handle in (self._next_read, self._next_monitor_read):
            if handle is not None:
                handle.cancel()
        self._sweeps.close()
        if self._monitor is not None:
            self._monitor.close()
        if self._sock is not None:
            self._sock.close(0)
            self._sock = None
        if self._zap_handler is not None:
            self._zap_handler.close()
            self._zap_handler = None
        if self._copies is not None:
            self._copies.close()
            self._copies = None

    def admit(self, source: bytes) -> None:
        """A source is a half of a connection that is up: it may send as a peer may."""
        known = self._sources.get(source)
        if known is not None and not known.is_cut:
            self._bounds.admit(known)

    def moved(self, source: bytes) -> None:
        """The frames of a source travel on a local road from now on: heartbeats are all that comes here."""
        known = self._sources.get(source)
        if known is None or known.heartbeats is not None or self._accepted.get(known.fd) is not known:
            return
        received = count_received(known.fd)
        if received is not None:
            self._bounds.moved(known, self._loop.time(), received)
            self._sweeps.calm(known.fd)

    def disconnect(self, source: bytes, after_s: float = 0.0) -> None:
        """End a source's connection after ``after_s`` seconds; what it sends is dropped at once."""
        known = self._sources.get(source)
        if known is None or known.is_cut:
            return
        known.is_over, known.is_peer = True, False
        if after_s > 0:
            self._loop.call_later(after_s, self._cut, known)
        else:
            self._cut(known)

    @property
    def watcher(self) -> Sweeps:
        """Looks at what comes back over the connections that this node dials."""
        return self._sweeps

    def answer(self, source: bytes, frame: bytes) -> None:
        """Send one frame back. It is dropped if the source is gone or does not read."""
        if self._sock is not None:
            with contextlib.suppress(zmq.ZMQError):
                self._sock.send(source, _MORE)
                self._sock.send(frame, _NOBLOCK)
            self._read_soon()  # sending may have consumed the wake-up for frames that have arrived

    def sources(self) -> set[bytes]:
        """Return the sources that were reported and are not lost."""
        return set(self._sources)

    def recheck(self) -> None:
        """Look at everything once more, in case a wake-up was missed. Called about every second."""
        if self._zap_handler is not None:
            self._zap_handler.serve()
        self._on_monitor_readable()
        self._read_soon()
        self._sweeps.recheck()

    # ── frames ───────────────────────────────────────────────────────────────────────────────────

    def _on_readable(self) -> None:
        if self._next_read is None:
            self._read()

    def _read_soon(self) -> None:
        if self._next_read is None:
            self._next_read = self._loop.call_soon(self._read)

    def _read(self) -> None:
        """Read the frames that have arrived, up to the limits of one turn.

        Fast path, measured: a frame that is read without a copy knows whether more parts follow, which
        is cheaper than asking the socket. After one frame, the common case, asking whether more wait is
        cheaper than the exception that ends the loop; after more frames the exception is cheaper.
        """
        self._next_read = None
        sock = self._sock
        if sock is None:
            return
        recv, sources, arrived = sock.recv, self._sources, self._listener.frame_arrived
        small_bytes, large_bytes, most_of_small = self._overhead
        size = frames = 0
        until = monotonic() + MAX_READ_S
        drained = False
        try:
            while frames < MAX_FRAMES_PER_READ and size < MAX_BYTES_PER_READ and monotonic() < until:
                frames += 1
                if self._is_skipping:
                    self._is_skipping = recv(_NOBLOCK, copy=False).more
                    continue
                source = recv(_NOBLOCK)
                part = recv(_NOBLOCK, copy=False)
                frame = part.bytes
                length = len(frame)
                size += length
                known = sources.get(source) or self._meet(source, part)
                if known is None or part.more:
                    size += self._take_parts(known, part, self._frames_read + frames)
                    continue
                known.read_bytes += length + (small_bytes if length <= most_of_small else large_bytes)
                if known.is_peer or self._may_speak(known, frame):
                    if self._ending and source in self._ending:
                        self._ending[source] = (self._frames_read + frames, self._ending[source][1])
                    arrived(source, frame)
                if frames == 1 and not get_int(sock, _EVENTS) & _POLLIN:
                    drained = True
                    break
        except zmq.Again:
            drained = True
        except zmq.ZMQError:
            if not sock.closed:
                raise
            return
        self._end_read(frames, drained=drained)

    def _take_parts(self, known: Accepted | None, first: zmq.Frame, number: int) -> int:
        """Take a chunk with its tail; drop every other message of several parts, or of an unknown source.

        Args:
            known: the connection of the source.
            first: the first part.
            number: of the frame, for `_ending`.

        Returns:
            The bytes of the tail.
        """
        part, sock = first, self._sock
        if known is not None and known.is_peer and first.more and first.bytes[:1] == _CHUNK:
            assert sock is not None
            assert known.source is not None
            part = sock.recv(_NOBLOCK, copy=False)  # ZeroMQ delivers all parts together.
            if not part.more:
                small_bytes, large_bytes, most_of_small = self._overhead
                for size in (len(first), len(part)):
                    known.read_bytes += size + (small_bytes if size <= most_of_small else large_bytes)
                if known.source in self._ending:
                    self._ending[known.source] = (number, self._ending[known.source][1])
                self._listener.frame_arrived(known.source, first.bytes, part.buffer)
                return len(part)
        if known is None:
            self._leftovers.read(len(part) + self._overhead.small_bytes)
        self._drop(known, part)
        return 0

    def _end_read(self, frames: int, *, drained: bool) -> None:
        """Note what was read in this turn, and go on in the next one if frames are left."""
        self._frames_read += frames
        if self._ending:
            self._end_drained_sources(drained)
        if drained:
            self._drains += 1
            if self._leftovers.left_bytes:
                self._leftovers.end()
        else:
            self._read_soon()

    def _may_speak(self, known: Accepted, frame: bytes) -> bool:
        """Whether a frame that is not of a peer is passed on."""
        if known.is_cut or known.is_over:
            if not known.was_peer:
                self._leftovers.read(len(frame) + self._overhead.small_bytes)
            return False
        self._end_offenders(self._bounds.hear(known, len(frame), is_hello=frame[:1] == _HELLO))
        return not known.is_cut

    def _drop(self, known: Accepted | None, part: zmq.Frame) -> None:
        """Drop a message; skip its other parts, in as many turns as that takes, and end its connection."""
        self._is_skipping = part.more
        if known is not None:
            self._end_offenders([(known, MORE_PARTS)])

    def _meet(self, source: bytes, part: zmq.Frame) -> Accepted | None:
        """Find the connection of a new source and report the source.

        Returns:
            None if its frame must be dropped: the source was reported as lost already, or the frame
            belongs to no connection, or to one that was ended.
        """
        if source in self._lost_sources:
            return None
        # First the events of the past: the descriptor may have belonged to another connection.
        self._drain_monitor(None)
        try:
            fd = int(part.get(_SRCFD))
            ip = str(part.get("Peer-Address"))
        except zmq.ZMQError:
            return None  # an old ZeroMQ, or bytes of a stranger that only look like a frame
        known, ip = self._accepted.get(fd), canonical_ip(ip) or ip
        if known is not None and known.ip not in ("", ip):
            known = None  # It has the descriptor of the one that sent this frame.
        if known is None:  # the connection was accepted and ended before its frame was read
            known = Accepted(fd, None, self._sweeps.alive_s)
            self._ending[source] = self._new_ending()
        elif known.is_cut:
            self._remember_lost(source)
            return None
        elif known.source is not None:
            self._report_lost(known.source)
        known.source = source
        self._sources[source] = known
        self._listener.source_met(source, ip)
        return known

    def _end_drained_sources(self, drained: bool) -> None:
        """Report ended sources as lost once their last frame must have been read.

        ZeroMQ reads in turn from the senders that have frames waiting. So a source without a frame among
        twice as many frames as there are senders has none left.
        """
        now = self._loop.time()
        one_round = 2 * len(self._accepted) + 2 * len(self._ending) + 2
        for source, (last, deadline) in list(self._ending.items()):
            if last == _NOT_COUNTED:
                self._ending[source] = (last := self._frames_read, deadline)
            if drained or self._frames_read - last > one_round or now > deadline:
                self._report_lost(source)

    def _report_lost(self, source: bytes) -> None:
        """Forget a source, report its loss, and remember that it was lost."""
        self._ending.pop(source, None)
        self._sources.pop(source).source = None
        self._remember_lost(source)
        self._drain(source)
        self._listener.source_lost(source)

    def _remember_lost(self, source: bytes) -> None:
        while len(self._lost_sources) >= MAX_LOST_SOURCES:
            del self._lost_sources[next(iter(self._lost_sources))]
        self._lost_sources[source] = None

    # ── connections ──────────────────────────────────────────────────────────────────────────────

    def _on_monitor_readable(self) -> None:
        if self._next_monitor_read is None:
            self._read_monitor()

    def _read_monitor(self) -> None:
        self._next_monitor_read = None
        for _ in range(min(MAX_CUT_PER_TURN, len(self._surplus))):
            self._cut(self._surplus.popleft())
        self._drain_monitor(MAX_EVENTS_PER_READ, monotonic() + MAX_EVENTS_S)
        if self._monitor is not None and (self._surplus or self._monitor.has_more):
            self._next_monitor_read = self._loop.call_soon(self._read_monitor)
        if self._ending:
            self._read_soon()

    def _drain_monitor(self, limit: int | None, until: float = math.inf) -> None:
        """Handle up to ``limit`` waiting events of the monitor, or all of them, until that time."""
        if self._monitor is None:
            return
        for event, value in self._monitor.read(limit):
            self._events_read += 1
            if event == zmq.EVENT_ACCEPTED:
                self._begin_connection(value)
            elif event == zmq.EVENT_DISCONNECTED:
                self._end_connection(value)
            elif event & FAILURES:
                # This event carries no descriptor; the DISCONNECTED that follows does.
                self._failure = (event, value)
            if monotonic() >= until:
                break

    def _begin_connection(self, fd: int) -> None:
        """A connection was accepted: note which one, and watch how much comes over it."""
        assert self._copies is not None
        if fd in self._accepted:
            self._end_connection(fd)
        known = self._accepted[fd] = Accepted(fd, self._copies.identify(fd), self._sweeps.alive_s)
        self._sweeps.notice(fd)
        identity = known.identity
        why = None if self._refuse is None or identity is None else self._refuse(identity.here)
        if why is not None:
            self._end_offenders([(known, why)])
            return
        crowd = self._bounds.accept(known)
        self._surplus.extend(crowd)  # `_read_monitor` ends them.
        if crowd and (said := self._bounds.tell_crowd(self._loop.time(), len(crowd), crowd[-1].ip)):
            log.warning("%s", said)

    def _end_connection(self, fd: int) -> None:
        """A connection has ended: mark its source as ending, or report the stranger that failed."""
        known = self._accepted.pop(fd, None)
        failure, self._failure = self._failure, None
        if known is None:
            known = Accepted(fd, None, self._sweeps.alive_s)
        self._bounds.forget(known)
        if known.source is not None:
            self._ending[known.source] = self._new_ending()
        elif failure is not None and not known.is_cut:
            reason = explain_refusal_here(*failure, len(self._keys))
            self._loop.call_soon(self._report_refused, known.ip, reason)

    def _end_offenders(self, offences: Iterable[Offence]) -> None:
        """End these connections, and report each of them."""
        for known, why in offences:
            if known.is_cut:
                continue
            self._cut(known)
            if known.source is None:
                self._loop.call_soon(self._report_refused, known.ip, why)
            else:
                self._listener.source_broke(known.source, why)

    def _cut(self, known: Accepted) -> None:
        """End a connection, and drop what it has sent; its DISCONNECTED follows. Idempotent."""
        if known.is_cut:
            return
        known.is_cut, known.is_peer = True, False
        self._bounds.forget(known)
        if self._copies is not None and known.identity is not None and self._accepted.get(known.fd) is known:
            taken = self._copies.shut_down(known.fd, known.identity)
            if taken is not None and not known.was_peer:
                self._leftovers.add(known.ip, taken - known.read_bytes)
                if said := self._leftovers.tell(self._loop.time()):
                    log.warning("%s", said)

    def _take_ended(self, ended: Iterable[Ended]) -> None:
        """Take note of connections that were ended while the loop stood still, and accept others again."""
        self._accept_again()
        for ip, known, is_dialled, taken_bytes, why in ended:
            if is_dialled:
                continue  # Its DEALER notices.
            if known is None:
                self._leftovers.add(ip, taken_bytes)
                self._report_refused(ip, why)
            elif not known.is_cut:
                known.is_cut, known.is_peer = True, False
                self._bounds.forget(known)
                if not known.was_peer:
                    self._leftovers.add(ip, taken_bytes - known.read_bytes)
                if known.source is None:
                    self._report_refused(ip, why)
                else:
                    self._listener.source_broke(known.source, why)
        if said := self._leftovers.tell(self._loop.time()):
            log.warning("%s", said)

    def _new_ending(self) -> tuple[int, float]:
        return _NOT_COUNTED, self._loop.time() + LAST_FRAMES_TIMEOUT_S

    def _report_refused(self, ip: str, reason: str) -> None:
        """Report a stranger, at most once in `REFUSAL_INTERVAL_S` for each address."""
        now = self._loop.time()
        if now < self._refused_until.get(ip, now):
            return
        if len(self._refused_until) >= MAX_REFUSED_IPS:
            self._refused_until.clear()
        self._refused_until[ip] = now + REFUSAL_INTERVAL_S
        self._listener.stranger_refused(ip or UNKNOWN_IP, reason)

    def _watch(self, fd: int, read: Callable[[], None]) -> None:
        self._loop.add_reader(fd, read)
        self._watched_fds.append(fd)
