"""The ROUTER of a node with its monitor and its ZAP handler: all that comes from who dialled us.

Every accepted connection is known by its descriptor. The monitor names it when it comes and goes,
the first frame of a source names it as well: so the end of a connection is the end of a source.

Descriptors that ZeroMQ gives to a loop are edge-triggered: each wake drains, or books its own
continuation, and the slow re-check of the transport backs them up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

import zmq

from fleetlm.names import canonical_ip
from fleetlm.settings import Settings
from fleetlm.transport.curve import CurveKeys, ZapHandler
from fleetlm.transport.interface import Listener
from fleetlm.transport.monitor import FAILURES, SERVER_EVENTS, Monitor, explain_refusal_here
from fleetlm.transport.sockets import Context, Sock, bind, get_int, make_router

MAX_FRAMES_PER_READ: Final = 256
MAX_BYTES_PER_READ: Final = 4 * 1024 * 1024
"""What one turn of the loop reads at most; then others have their turn."""
MAX_EVENTS_PER_READ: Final = 512
LAST_FRAMES_TIMEOUT_S: Final = 1.0
"""How long a source that ended may wait for its last frames, which stand behind others'."""
MAX_LOST_SOURCES: Final = 1_024
MAX_REFUSED_IPS: Final = 256
REFUSAL_INTERVAL_S: Final = 1.0
"""Told once in that time for each address: a stranger must not fill logs."""

UNKNOWN_IP: Final = "an unknown address"
"""Of a stranger whose connection was over before its address could be asked for: ZeroMQ names it
only by its descriptor, and on one machine a refusal takes less than a wake-up of the loop."""

_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_SRCFD = int(zmq.SRCFD)
_NOT_YET = -1


class Router:
    """Hears for one transport; `close` what `open` failed to open as well."""

    def __init__(
        self,
        context: Context,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        keys: CurveKeys | None,
        listener: Listener,
    ) -> None:
        self._context = context
        self._loop = loop
        self._settings = settings
        self._keys = keys
        self._listener = listener
        self._accepted: dict[int, str] = {}
        """Descriptor of every connection that stands → its address."""
        self._source_of: dict[int, bytes] = {}
        self._sources: dict[bytes, int] = {}
        """Whoever was met and not yet lost → its descriptor."""
        self._ending: dict[bytes, tuple[int, float]] = {}
        """Sources whose connection has ended → number of the last frame of theirs, and a deadline."""
        self._lost_sources: dict[bytes, None] = {}
        """The last sources that were told as lost: nothing of theirs may follow."""
        self._failure: tuple[int, int] | None = None
        self._refused_until: dict[str, float] = {}
        self._frames_read = 0
        self._is_skipping = False
        self._next_read: asyncio.Handle | None = None
        self._next_monitor_read: asyncio.Handle | None = None
        self._watched_fds: list[int] = []
        self._sock: Sock | None = None
        self._monitor: Monitor | None = None
        self._zap_handler: ZapHandler | None = None

    def open(self, ip: str, port: int) -> bool:
        """Bind and listen. Returns whether ``ip`` is this machine's. Raises: zmq.ZMQError."""
        name = f"{self._settings.node_basename}@{ip}"
        if self._keys is not None:
            self._zap_handler = ZapHandler(self._context, self._keys.public)
        self._sock = make_router(self._context, self._settings, name, self._keys)
        self._monitor = Monitor(self._context, self._sock, SERVER_EVENTS)
        is_own = bind(self._sock, ip, port)
        self._watch(get_int(self._sock, zmq.FD), self._on_readable)
        self._watch(self._monitor.fd, self._on_monitor_readable)
        if self._zap_handler is not None:
            self._watch(get_int(self._zap_handler.socket, zmq.FD), self._zap_handler.serve)
        # ZeroMQ wakes a reader that has looked and found nothing: so look once.
        self._next_monitor_read = self._loop.call_soon(self._read_monitor)
        self._read_soon()
        return is_own

    def close(self) -> None:
        """Hear nobody any more. The monitor goes first, see `fleetlm.transport.monitor`."""
        for fd in self._watched_fds:
            self._loop.remove_reader(fd)
        self._watched_fds.clear()
        for handle in (self._next_read, self._next_monitor_read):
            if handle is not None:
                handle.cancel()
        if self._monitor is not None:
            self._monitor.close()
        if self._sock is not None:
            self._sock.close(0)
            self._sock = None
        if self._zap_handler is not None:
            self._zap_handler.close()
            self._zap_handler = None

    def answer(self, source: bytes, frame: bytes) -> None:
        """Send one frame back. A dialler that has gone, or reads nothing, gets nothing."""
        if self._sock is not None:
            with contextlib.suppress(zmq.ZMQError):
                self._sock.send(source, _MORE)
                self._sock.send(frame, _NOBLOCK)
            self._read_soon()  # sending may swallow the wake-up for what has arrived

    def sources(self) -> set[bytes]:
        """Whoever was met and has not gone."""
        return set(self._sources)

    def recheck(self) -> None:
        """The slow re-check."""
        if self._zap_handler is not None:
            self._zap_handler.serve()
        self._on_monitor_readable()
        self._read_soon()

    # ── frames ───────────────────────────────────────────────────────────────────────────────────

    def _on_readable(self) -> None:
        if self._next_read is None:
            self._read()

    def _read_soon(self) -> None:
        if self._next_read is None:
            self._next_read = self._loop.call_soon(self._read)

    def _read(self) -> None:
        """Read what has arrived, up to the limit of one turn.

        A frame read without a copy knows whether more parts follow, which is cheaper than asking
        the socket. One frame is the common case: then asking for events is cheaper than an
        exception; behind a second one, the exception is.
        """
        self._next_read = None
        sock = self._sock
        if sock is None:
            return
        recv, sources, arrived = sock.recv, self._sources, self._listener.frame_arrived
        size = frames = 0
        drained = False
        try:
            while frames < MAX_FRAMES_PER_READ and size < MAX_BYTES_PER_READ:
                frames += 1
                if self._is_skipping:
                    self._is_skipping = recv(_NOBLOCK, copy=False).more
                    continue
                source = recv(_NOBLOCK)
                part = recv(_NOBLOCK, copy=False)
                frame, extra = self._read_second_part(part) if part.more else (part.bytes, None)
                size += len(frame) if extra is None else len(frame) + len(extra)
                if source in sources or self._admit_source(source, part):
                    if self._ending and source in self._ending:
                        self._ending[source] = (self._frames_read + frames, self._ending[source][1])
                    arrived(source, frame, extra)
                if frames == 1 and not get_int(sock, _EVENTS) & _POLLIN:
                    drained = True
                    break
        except zmq.Again:
            drained = True
        except zmq.ZMQError:
            if not sock.closed:
                raise
            return
        self._frames_read += frames
        if self._ending:
            self._end_drained_sources(drained)
        if not drained:
            self._read_soon()

    def _read_second_part(self, part: zmq.Frame) -> tuple[bytes, bytes | None]:
        """A frame of two parts. Three and more are nobody's: an empty one stands for them.

        So whoever sent them is treated as one who sends garbage, and the rest is skipped, in as
        many turns as it takes.
        """
        assert self._sock is not None
        second = self._sock.recv(_NOBLOCK, copy=False)
        if second.more:
            self._is_skipping = True
            return b"", None
        return part.bytes, second.bytes

    def _admit_source(self, source: bytes, part: zmq.Frame) -> bool:
        """The first frame of somebody: whose connection is it? False where it is nobody's."""
        if source in self._lost_sources:
            return False
        # First what happened before: the descriptor may have belonged to somebody else.
        self._drain_monitor(None)
        try:
            fd = int(part.get(_SRCFD))
            ip = str(part.get("Peer-Address"))
        except zmq.ZMQError:
            return False  # an older ZeroMQ, or no ZeroMQ at all: its bytes only look like a frame
        former = self._source_of.get(fd)
        if former is not None:
            self._report_lost(former)
        self._sources[source] = fd
        if fd in self._accepted:
            self._source_of[fd] = source
        else:  # it came, spoke and went before anybody looked
            self._ending[source] = self._new_ending()
        self._listener.source_met(source, canonical_ip(ip) or ip)
        return True

    def _end_drained_sources(self, drained: bool) -> None:
        """Tell of the sources that ended, as soon as their last frame must have been read.

        ZeroMQ takes from those who have frames waiting in turn: who was not among twice as many
        frames as there are sources has none left.
        """
        now = self._loop.time()
        one_round = 2 * len(self._accepted) + 2 * len(self._ending) + 2
        for source, (last, deadline) in list(self._ending.items()):
            if last == _NOT_YET:
                self._ending[source] = (last := self._frames_read, deadline)
            if drained or self._frames_read - last > one_round or now > deadline:
                self._report_lost(source)

    def _report_lost(self, source: bytes) -> None:
        self._ending.pop(source, None)
        fd = self._sources.pop(source)
        if self._source_of.get(fd) == source:
            del self._source_of[fd]
        while len(self._lost_sources) >= MAX_LOST_SOURCES:
            del self._lost_sources[next(iter(self._lost_sources))]
        self._lost_sources[source] = None
        self._listener.source_lost(source)

    # ── who came and went ────────────────────────────────────────────────────────────────────────

    def _on_monitor_readable(self) -> None:
        if self._next_monitor_read is None:
            self._read_monitor()

    def _read_monitor(self) -> None:
        self._next_monitor_read = None
        self._drain_monitor(MAX_EVENTS_PER_READ)
        if self._monitor is not None and self._monitor.has_more:
            self._next_monitor_read = self._loop.call_soon(self._read_monitor)
        if self._ending:
            self._read_soon()

    def _drain_monitor(self, limit: int | None) -> None:
        if self._monitor is None:
            return
        for event, value in self._monitor.read(limit):
            if event == zmq.EVENT_ACCEPTED:
                self._accepted[value] = _look_up_peer_ip(value)
            elif event == zmq.EVENT_DISCONNECTED:
                self._end_connection(value)
            elif event & FAILURES:
                # It names no descriptor; the DISCONNECTED that follows does.
                self._failure = (event, value)

    def _end_connection(self, fd: int) -> None:
        ip = self._accepted.pop(fd, "")
        failure, self._failure = self._failure, None
        source = self._source_of.pop(fd, None)
        if source is not None:
            self._ending[source] = self._new_ending()
        elif failure is not None:
            reason = explain_refusal_here(*failure, self._keys is not None)
            self._loop.call_soon(self._report_refused, ip, reason)

    def _new_ending(self) -> tuple[int, float]:
        return _NOT_YET, self._loop.time() + LAST_FRAMES_TIMEOUT_S

    def _report_refused(self, ip: str, reason: str) -> None:
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


def _look_up_peer_ip(fd: int) -> str:
    """Whom a descriptor of libzmq's is connected to; empty where it has gone meanwhile."""
    try:
        with socket.socket(fileno=os.dup(fd)) as connection:
            ip = str(connection.getpeername()[0])
    except (OSError, IndexError, TypeError):
        return ""
    return canonical_ip(ip) or ip
