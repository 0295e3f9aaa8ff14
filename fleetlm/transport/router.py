"""The receiving side of a node: its ROUTER, with a monitor and a ZAP handler.

What ZeroMQ hides is *when a source has ended*. A ROUTER delivers frames with the routing id of their
sender and silently forgets a sender that is gone. Two facts are needed per connection and only one of
them comes with the frames, so this module joins both by the descriptor of the accepted connection:

* the monitor reports the descriptor when a connection is accepted and when it ends;
* the first frame of a source carries the same descriptor (``ZMQ_SRCFD``) and the peer's address.

States of a source::

    accepted ──first frame──► known ──monitor: DISCONNECTED──► ending ──its frames are read──► lost
       └──handshake fails──► refused (a stranger)

Races, and where each is settled:

* *The last frames.* The monitor may report an end while frames of that source still wait in the ROUTER.
  `_end_drained_sources` reports the loss only when they must have been read: when the ROUTER is empty,
  or after enough frames of the others (ZeroMQ serves senders in turn), or after
  `LAST_FRAMES_TIMEOUT_S`. So no frame of a source is ever reported after its loss.
* *A reused descriptor.* The kernel gives a closed descriptor to the next connection at once.
  `_admit_source` therefore reads all monitor events before it trusts a descriptor.
* *A connection that came, sent and went before anything was read.* Its source is admitted as ending.
* *Frames after a loss was reported* (only after the time-out) are dropped: `_lost_sources` has their sources.
* *A stranger's failure* names no descriptor. The DISCONNECTED that follows names it; with several I/O
  threads in libzmq it may belong to another stranger, which only affects a log line.

Descriptors that ZeroMQ gives to a loop are edge-triggered. Each wake-up reads until nothing is left, or
schedules its own continuation; the transport's slow re-check backs this up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from time import monotonic
from typing import Final

import zmq

from fleetlm.names import canonical_ip
from fleetlm.settings import Settings
from fleetlm.transport.curve import CurveKeys, ZapHandler
from fleetlm.transport.interface import Listener
from fleetlm.transport.listening import Listening
from fleetlm.transport.monitor import FAILURES, SERVER_EVENTS, Monitor, explain_refusal_here
from fleetlm.transport.sockets import (
    Context,
    Sock,
    adopt,
    get_int,
    make_router,
)

log: logging.Logger = logging.getLogger("fleetlm.zmq")

MAX_FRAMES_PER_READ: Final = 256
"""Frames read in one turn of the loop; then other callbacks have their turn."""
MAX_BYTES_PER_READ: Final = 4 * 1024 * 1024
"""Bytes read in one turn of the loop, likewise."""
MAX_READ_S: Final = 0.004
"""Seconds of reading in one turn, likewise: what is in the frames may be costly to take."""
MAX_EVENTS_PER_READ: Final = 512
"""Monitor events read in one turn of the loop, likewise."""
LAST_FRAMES_TIMEOUT_S: Final = 1.0
"""Seconds after which a source that has ended is reported as lost, even if frames of others still
arrive so fast that its last frames may be unread."""
MAX_LOST_SOURCES: Final = 1_024
"""Lost sources that are remembered, so that late frames of theirs are dropped; the oldest go first."""
MAX_REFUSED_IPS: Final = 256
"""Strangers' addresses remembered for `REFUSAL_INTERVAL_S`. When there are more, all are forgotten."""
REFUSAL_INTERVAL_S: Final = 1.0
"""Seconds between two reports of refusals for one address, so that a stranger cannot fill the log."""

MORE_PARTS: Final = "it sent a message of several parts, as no fleetlm node does"
UNKNOWN_IP: Final = "a connection that ended before its address was read"
"""Stands for the address of a stranger whose connection had ended before the address could be looked
up. ZeroMQ names strangers only by descriptor, and on one machine a refusal is faster than the loop."""

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
    ) -> None:
        self._context = context
        self._loop = loop
        self._settings = settings
        self._keys = keys
        self._listener = listener
        self._accepted: dict[int, str] = {}
        """Every established connection: descriptor → address, which is empty if it is not known."""
        self._source_of: dict[int, bytes] = {}
        """Established connections of which a frame was read: descriptor → source."""
        self._sources: dict[bytes, int] = {}
        """Sources that were reported and are not lost yet → descriptor."""
        self._ending: dict[bytes, tuple[int, float]] = {}
        """Sources whose connection has ended → the number of their last frame, and a deadline."""
        self._lost_sources: dict[bytes, None] = {}
        """The latest sources reported as lost, in order: none of their frames may be passed on."""
        self._failure: tuple[int, int] | None = None
        """A handshake failure (event, code) whose DISCONNECTED has not been read yet."""
        self._refused_until: dict[str, float] = {}
        self._frames_read = 0
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

    def close(self) -> None:
        """Stop receiving. The monitor is closed first, see `fleetlm.transport.monitor`. Idempotent."""
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
                size += len(frame)
                is_known = source in sources or self._admit_source(source, part)
                if is_known and not part.more:
                    if self._ending and source in self._ending:
                        self._ending[source] = (self._frames_read + frames, self._ending[source][1])
                    arrived(source, frame)
                else:
                    self._drop(source, part, is_known=is_known)
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

    def _drop(self, source: bytes, part: zmq.Frame, *, is_known: bool) -> None:
        """Drop a message; skip its other parts, in as many turns as that takes, and report their sender."""
        self._is_skipping = part.more
        if is_known:
            self._listener.source_broke(source, MORE_PARTS)

    def _admit_source(self, source: bytes, part: zmq.Frame) -> bool:
        """Find the connection of a new source and report the source.

        Returns:
            False if its frame must be dropped: the source was reported as lost already, or the frame
            belongs to no connection.
        """
        if source in self._lost_sources:
            return False
        # First the events of the past: the descriptor may have belonged to another connection.
        self._drain_monitor(None)
        try:
            fd = int(part.get(_SRCFD))
            ip = str(part.get("Peer-Address"))
        except zmq.ZMQError:
            return False  # an old ZeroMQ, or bytes of a stranger that only look like a frame
        former = self._source_of.get(fd)
        if former is not None:
            self._report_lost(former)
        self._sources[source] = fd
        if fd in self._accepted:
            self._source_of[fd] = source
        else:  # the connection was accepted and ended before its frame was read
            self._ending[source] = self._new_ending()
        self._listener.source_met(source, canonical_ip(ip) or ip)
        return True

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
        fd = self._sources.pop(source)
        if self._source_of.get(fd) == source:
            del self._source_of[fd]
        while len(self._lost_sources) >= MAX_LOST_SOURCES:
            del self._lost_sources[next(iter(self._lost_sources))]
        self._lost_sources[source] = None
        self._listener.source_lost(source)

    # ── connections ──────────────────────────────────────────────────────────────────────────────

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
        """Handle up to ``limit`` waiting events of the monitor, or all of them."""
        if self._monitor is None:
            return
        for event, value in self._monitor.read(limit):
            if event == zmq.EVENT_ACCEPTED:
                self._accepted[value] = _look_up_peer_ip(value)
            elif event == zmq.EVENT_DISCONNECTED:
                self._end_connection(value)
            elif event & FAILURES:
                # This event carries no descriptor; the DISCONNECTED that follows does.
                self._failure = (event, value)

    def _end_connection(self, fd: int) -> None:
        """A connection has ended: mark its source as ending, or report the stranger that failed."""
        ip = self._accepted.pop(fd, "")
        failure, self._failure = self._failure, None
        source = self._source_of.pop(fd, None)
        if source is not None:
            self._ending[source] = self._new_ending()
        elif failure is not None:
            reason = explain_refusal_here(*failure, len(self._keys))
            self._loop.call_soon(self._report_refused, ip, reason)

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


def _look_up_peer_ip(fd: int) -> str:
    """Return the address to which a descriptor of libzmq is connected; empty if the connection has ended."""
    try:
        with socket.socket(fileno=os.dup(fd)) as connection:
            ip = str(connection.getpeername()[0])
    except (OSError, IndexError, TypeError):
        return ""
    return canonical_ip(ip) or ip
