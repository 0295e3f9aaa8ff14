"""The network of one node, on ZeroMQ: one bound ROUTER that hears, one DEALER a peer that speaks.

What libzmq's threads do reaches the loop through descriptors: the ROUTER's (frames), its monitor's
(who came and went), the ZAP handler's (who wants in) and one for each channel. They are
edge-triggered: each wake drains, or books its own continuation, and a slow re-check backs them up.

Every accepted connection is known by its descriptor. The monitor names it when it comes and goes,
the first frame of a source names it as well; so that the end of a connection is the end of a source.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import threading
import weakref
from collections.abc import Sequence
from typing import Final

import zmq

from fleetlm.curve import CurveKeys, Gatekeeper, keys_from_cookie
from fleetlm.errors import StartFailed
from fleetlm.names import canonical_ip, endpoint
from fleetlm.settings import Settings
from fleetlm.transport import Listener, Part
from fleetlm.zmq_channel import Channel
from fleetlm.zmq_monitor import FAILURES, SERVER_EVENTS, Monitor, refused_by_us
from fleetlm.zmq_options import (
    MAX_SOCKETS,
    Context,
    Sock,
    bind,
    raise_descriptor_limit,
    router,
    why_not_bound,
)

log = logging.getLogger("fleetlm.zmq")

DRAIN_FRAMES: Final = 256
DRAIN_BYTES: Final = 4 * 1024 * 1024
"""What one turn of the loop reads at most; then others have their turn."""
DRAIN_EVENTS: Final = 512
RECHECK_S: Final = 0.5
"""Between two looks at everything: should a wake-up ever be missed, this is how long it costs."""
FAREWELL_S: Final = 1.0
"""How long a lost source may be kept for frames that have arrived and wait behind others'."""
MAX_LATE: Final = 1_024
MAX_REFUSED_IPS: Final = 256
REFUSED_EVERY_S: Final = 1.0
"""Told once in that time for each address: a stranger must not fill logs."""
TERM_SLACK_S: Final = 1.0

_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_SRCFD = int(zmq.SRCFD)


class ZmqTransport:
    """Implements `fleetlm.transport.Transport` with sockets. Several may live in one process.

    Args:
        settings: time-outs, limits and the cookie. Without a cookie: plain text, nobody is asked.
        loop: the event loop; default: the one that runs `start`.
        context_io_threads: threads of libzmq. With more than one, `Listener.stranger_refused` may
            name the address of another stranger who failed at the same moment.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        context_io_threads: int = 1,
    ) -> None:
        self._settings = settings
        self._given_loop = loop
        self._io_threads = context_io_threads
        self._channels: dict[int, Channel] = {}
        self._hearing: Hearing | None = None
        self._context: Context | None = None
        self._keys: CurveKeys | None = None
        self._own_ip: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flushed_at = 0.0
        self._closing: asyncio.Future[None] | None = None
        self._forked = False
        _alive.add(self)

    # ── Transport ────────────────────────────────────────────────────────────────────────────────

    async def start(self, ip: str, port: int, listener: Listener) -> None:
        """Listen on ``ip:port``, or on every address where ``ip`` is not this machine's (NAT).

        Raises:
            StartFailed: the port is not to be had, or descriptors are. Nothing is left behind.
        """
        self._check_fork()
        if self._context is not None or self._closing is not None:
            raise RuntimeError("a transport is started once; make a new one")
        self._loop = self._given_loop or asyncio.get_running_loop()
        self._listener = listener
        room = raise_descriptor_limit()
        log.info("open files allow for about %d peers", room)
        if self._settings.cookie is not None:
            self._keys = keys_from_cookie(self._settings.cookie)
        context: Context = zmq.Context(self._io_threads)
        context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        try:
            self._hearing = Hearing(context, self._loop, self._settings, self._keys, listener)
            is_own = self._hearing.open(ip, port)
        except (zmq.ZMQError, OSError) as error:
            if self._hearing is not None:
                self._hearing.close()
                self._hearing = None
            context.destroy(0)
            raise StartFailed(endpoint(ip, port), why_not_bound(error, port)) from error
        if not is_own:
            log.info("%s is no address of this machine: listening on all of them", ip)
        self._context = context
        self._own_ip = ip if is_own else None
        self._timer = self._loop.call_later(RECHECK_S, self._recheck)

    def dial(self, channel: int, ip: str, port: int) -> None:
        """Open a channel. `Listener.channel_opened` or `Listener.channel_lost` follows."""
        self._check_fork()
        if self._context is None:
            raise RuntimeError("this transport is not running")
        try:
            self._channels[channel] = Channel(
                self._context,
                self._loop,
                self,
                channel,
                (ip, port),
                own_ip=self._own_ip,
                settings=self._settings,
                keys=self._keys,
            )
        except (zmq.ZMQError, OSError) as error:
            why = f"{endpoint(ip, port)}: {error.strerror}"
            if error.errno in (errno.EMFILE, errno.ENFILE):
                why += "; raise the limit of open files (`ulimit -n`)"
            self._loop.call_soon(self._listener.channel_lost, channel, why)

    def send(self, channel: int, parts: Sequence[Part]) -> bool:
        """Put one frame on an open channel. False where it is not open, or has just ended."""
        known = self._channels.get(channel)
        if known is None:
            self._check_fork()
            return False
        return known.send(parts)

    def answer(self, source: bytes, frame: bytes) -> None:
        """Send one frame back to a dialler, at most once delivered and never waiting."""
        self._check_fork()
        if self._hearing is not None:
            self._hearing.answer(source, frame)

    def hang_up(self, channel: int, flush_s: float = 0.0) -> None:
        """Close a channel; frames that were sent may leave for ``flush_s`` more. No fact follows."""
        self._check_fork()
        known = self._channels.pop(channel, None)
        if known is not None:
            known.hang_up(flush_s)
            self._flushed_at = max(self._flushed_at, self._loop.time() + flush_s)

    async def close(self) -> None:
        """Close everything, within the flush time of what was hung up. Idempotent."""
        self._check_fork()
        if self._closing is None:
            if self._context is None:
                return
            self._shut(self._context)
        assert self._closing is not None
        patience = max(0.0, self._flushed_at - self._loop.time()) + TERM_SLACK_S
        try:
            await asyncio.wait_for(asyncio.shield(self._closing), patience)
        except TimeoutError:
            log.error("ZeroMQ did not end within %.1f s; its threads go on", patience)

    # ── ChannelOwner ─────────────────────────────────────────────────────────────────────────────

    def channel_opened(self, channel: int) -> None:
        """Pass it on."""
        self._listener.channel_opened(channel)

    def channel_lost(self, channel: int, reason: str) -> None:
        """Forget it and pass it on."""
        self._channels.pop(channel, None)
        self._listener.channel_lost(channel, reason)

    def channel_answered(self, channel: int, frame: bytes) -> None:
        """Pass it on."""
        self._listener.channel_answered(channel, frame)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _recheck(self) -> None:
        now = self._loop.time()
        self._timer = self._loop.call_later(RECHECK_S, self._recheck)
        if self._hearing is not None:
            self._hearing.look_after()
        for channel in list(self._channels.values()):
            channel.look_after(now)

    def _shut(self, context: Context) -> None:
        """Close all sockets at once, and end the context in a thread: that waits for what lingers."""
        if self._timer is not None:
            self._timer.cancel()
        for number in list(self._channels):
            self.hang_up(number)
        if self._hearing is not None:
            self._hearing.close()
        self._hearing = self._context = None
        _alive.discard(self)
        ended = self._closing = self._loop.create_future()

        def tell() -> None:
            if not ended.done():
                ended.set_result(None)

        def end() -> None:
            context.term()
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(tell)

        threading.Thread(target=end, name="fleetlm-zmq-term", daemon=True).start()

    def _check_fork(self) -> None:
        if self._forked:
            raise RuntimeError(
                "this process was forked from one with a running node, and ZeroMQ's threads do not "
                "survive a fork: start a node of its own here, or start processes with 'spawn'"
            )

    def _after_fork(self) -> None:
        """In the child: nothing of this may be used, and nothing be closed, since it is shared."""
        _graveyard.append((self._channels, self._hearing, self._context))
        self._channels = {}
        self._forked = True


class Hearing:
    """The ROUTER, its monitor and the ZAP handler: everything that comes from those who dialled us."""

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
        """Sources whose connection has ended → when their last frame was read, and a deadline."""
        self._late: dict[bytes, None] = {}
        """The last sources that were told as lost: nothing of theirs may follow."""
        self._failure: tuple[int, int] | None = None
        self._refused: dict[str, float] = {}
        self._frames = 0
        self._skipping = False
        self._again: asyncio.Handle | None = None
        self._watched: list[int] = []
        self._router: Sock | None = None
        self._monitor: Monitor | None = None
        self._gatekeeper: Gatekeeper | None = None

    def open(self, ip: str, port: int) -> bool:
        """Bind and listen. Returns whether ``ip`` is this machine's. Raises: zmq.ZMQError."""
        name = f"{self._settings.node_basename}@{ip}"
        if self._keys is not None:
            self._gatekeeper = Gatekeeper(self._context, self._keys.public)
        self._router = router(self._context, self._settings, name, self._keys)
        self._monitor = Monitor(self._context, self._router, SERVER_EVENTS)
        is_own = bind(self._router, ip, port)
        self._watch(self._router.get(zmq.FD), self._wake)
        self._watch(self._monitor.fd, self._read_monitor)
        if self._gatekeeper is not None:
            self._watch(self._gatekeeper.socket.get(zmq.FD), self._gatekeeper.serve)
        # A descriptor tells of changes: what came between bind and here has been told already.
        self._read_soon()
        return is_own

    def close(self) -> None:
        """Hear nobody any more. The monitor goes first, see `fleetlm.zmq_monitor`."""
        for fd in self._watched:
            self._loop.remove_reader(fd)
        self._watched.clear()
        if self._again is not None:
            self._again.cancel()
        if self._monitor is not None:
            self._monitor.close()
        if self._router is not None:
            self._router.close(0)
            self._router = None
        if self._gatekeeper is not None:
            self._gatekeeper.close()
            self._gatekeeper = None

    def answer(self, source: bytes, frame: bytes) -> None:
        """Send one frame back. A dialler that has gone, or reads nothing, gets nothing."""
        if self._router is not None:
            with contextlib.suppress(zmq.ZMQError):
                self._router.send(source, _MORE)
                self._router.send(frame, _NOBLOCK)
            self._read_soon()  # sending may swallow the wake-up for what has arrived

    def look_after(self) -> None:
        """The slow re-check."""
        if self._gatekeeper is not None:
            self._gatekeeper.serve()
        self._read_monitor()
        self._read_soon()

    # ── frames ───────────────────────────────────────────────────────────────────────────────────

    def _wake(self) -> None:
        if self._again is None:
            self._read()

    def _read_soon(self) -> None:
        if self._again is None:
            self._again = self._loop.call_soon(self._read)

    def _read(self) -> None:
        """Read what has arrived, up to the limit of one turn.

        A frame read without a copy knows whether more parts follow, which is cheaper than asking
        the socket. One frame is the common case: then asking for events is cheaper than an
        exception; behind a second one, the exception is.
        """
        self._again = None
        router = self._router
        if router is None:
            return
        recv, sources, arrived = router.recv, self._sources, self._listener.frame_arrived
        size = frames = 0
        drained = False
        try:
            while frames < DRAIN_FRAMES and size < DRAIN_BYTES:
                frames += 1
                if self._skipping:
                    self._skipping = recv(_NOBLOCK, copy=False).more
                    continue
                source = recv(_NOBLOCK)
                part = recv(_NOBLOCK, copy=False)
                extra: bytes | None = None
                frame = part.bytes
                if part.more:
                    second = recv(_NOBLOCK, copy=False)
                    extra = second.bytes
                    size += len(extra)
                    if second.more:
                        # Three parts and more are nobody's frame. Passed on as an empty one, so
                        # that whoever sent it is treated as one who sends garbage.
                        self._skipping, frame, extra = True, b"", None
                size += len(frame)
                if source in sources or self._met(source, part):
                    if self._ending and source in self._ending:
                        self._ending[source] = (self._frames + frames, self._ending[source][1])
                    arrived(source, frame, extra)
                if frames == 1 and not router.get(_EVENTS) & _POLLIN:
                    drained = True
                    break
        except zmq.Again:
            drained = True
        except zmq.ZMQError:
            if not router.closed:
                raise
            return
        self._frames += frames
        if self._ending:
            self._settle(drained)
        if not drained:
            self._read_soon()

    def _met(self, source: bytes, part: zmq.Frame) -> bool:
        """The first frame of somebody: whose connection is it? False where it is nobody's."""
        if source in self._late:
            return False
        # First what happened before: the descriptor may have belonged to somebody else.
        self._drain_monitor(None)
        try:
            fd = int(part.get(_SRCFD))
            ip = str(part.get("Peer-Address"))
        except zmq.ZMQError:
            return False  # an older ZeroMQ, or no ZeroMQ at all: its bytes only look like a frame
        if fd not in self._accepted:
            return False  # it has gone already
        former = self._source_of.get(fd)
        if former is not None:
            self._tell_lost(former)
        self._source_of[fd] = source
        self._sources[source] = fd
        self._listener.source_met(source, canonical_ip(ip) or ip)
        return True

    def _settle(self, drained: bool) -> None:
        """Tell of the sources that ended, as soon as their last frame must have been read.

        ZeroMQ takes from those who have frames waiting in turn: who was not among twice as many
        frames as there are sources has none left.
        """
        now = self._loop.time()
        round_ = 2 * len(self._accepted) + 2 * len(self._ending) + 2
        for source, (last, deadline) in list(self._ending.items()):
            if drained or self._frames - last > round_ or now > deadline:
                self._tell_lost(source)

    def _tell_lost(self, source: bytes) -> None:
        self._ending.pop(source, None)
        fd = self._sources.pop(source)
        if self._source_of.get(fd) == source:
            del self._source_of[fd]
        while len(self._late) >= MAX_LATE:
            del self._late[next(iter(self._late))]
        self._late[source] = None
        self._listener.source_lost(source)

    # ── who came and went ────────────────────────────────────────────────────────────────────────

    def _read_monitor(self) -> None:
        self._drain_monitor(DRAIN_EVENTS)
        monitor = self._monitor
        if monitor is not None and monitor.pending:
            self._loop.call_soon(self._read_monitor)
        if self._ending:
            self._read_soon()

    def _drain_monitor(self, limit: int | None) -> None:
        if self._monitor is None:
            return
        for event, value in self._monitor.read(limit):
            if event == zmq.EVENT_ACCEPTED:
                self._accepted[value] = _ip_of(value)
            elif event == zmq.EVENT_DISCONNECTED:
                self._disconnected(value)
            elif event & FAILURES:
                # It names no descriptor; the DISCONNECTED that follows does.
                self._failure = (event, value)

    def _disconnected(self, fd: int) -> None:
        ip = self._accepted.pop(fd, "")
        failure, self._failure = self._failure, None
        source = self._source_of.pop(fd, None)
        if source is not None:
            self._ending[source] = (self._frames, self._loop.time() + FAREWELL_S)
        elif failure is not None:
            reason = refused_by_us(*failure, self._keys is not None)
            self._loop.call_soon(self._tell_refused, ip, reason)

    def _tell_refused(self, ip: str, reason: str) -> None:
        now = self._loop.time()
        if now < self._refused.get(ip, now):
            return
        if len(self._refused) >= MAX_REFUSED_IPS:
            self._refused.clear()
        self._refused[ip] = now + REFUSED_EVERY_S
        self._listener.stranger_refused(ip or "an unknown address", reason)

    def _watch(self, fd: int, read: _Read) -> None:
        self._loop.add_reader(fd, read)
        self._watched.append(fd)


def _ip_of(fd: int) -> str:
    """Whom a descriptor of libzmq's is connected to; empty where it has gone meanwhile."""
    try:
        with socket.socket(fileno=os.dup(fd)) as connection:
            ip = str(connection.getpeername()[0])
    except (OSError, IndexError, TypeError):
        return ""
    return canonical_ip(ip) or ip
