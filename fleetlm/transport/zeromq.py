"""The network of one node on ZeroMQ: a ROUTER that only receives, and for each peer a DEALER that only sends.

Each direction has a socket of its own, for these reasons. A ROUTER is one socket for all peers: it does not
report that one of them has gone, and frames to a peer that has just gone vanish. A DEALER with one
connection, ``IMMEDIATE`` and no reconnect is writable exactly while its connection exists, so a send either
is accepted or fails visibly. And since each direction has a TCP connection of its own, two nodes that dial
each other at the same time need no tie-break. One exception: a ROUTER sends back short answers to a
handshake, which may be lost.

Who owns what::

    ZmqTransport ── context (libzmq's I/O threads) ── re-check timer
      ├── Router            the ROUTER, its monitor (accepted, ended), the ZAP handler (cookie)
      └── DealerChannel *n  one DEALER each; its monitor while it dials

Everything but libzmq's threads runs on the loop's thread. What those threads do reaches the loop through
descriptors: the ROUTER's (frames), its monitor's, the ZAP handler's and one for each channel. They are
edge-triggered: each wake-up reads until nothing is left, or schedules its own continuation, and a re-check
every `RECHECK_S` backs them up. It also looks whether descriptors are left (`transport.descriptors`).

What ZeroMQ hides, and where it is found out: that a connection has ended (dealer: the loss of POLLOUT;
router: the monitor, joined with the frames by descriptor), why a dial failed (dealer), that all frames of
an ended source were read (router: the frames are drained before ``source_lost`` is reported).

Closing: `close` keeps receiving until the peers that are sent last frames have hung up, or their flush time
is over; it then closes all sockets and ends the context in a thread, since that blocks while frames linger.

Forks: libzmq's threads do not survive ``os.fork()``. In a child every method raises RuntimeError, and the
inherited sockets are kept alive unused, since closing them would disturb the parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Final

import zmq

from fleetlm.errors import StartFailed
from fleetlm.names import endpoint
from fleetlm.settings import Settings
from fleetlm.transport.curve import CurveKeys, derive_keys
from fleetlm.transport.dealer import DealerChannel
from fleetlm.transport.descriptors import (
    FDS_FOR_DIAL,
    FDS_TO_START,
    Accepting,
    Descriptors,
    close_copies,
    limit_of_descriptors,
)
from fleetlm.transport.interface import Listener
from fleetlm.transport.listening import Listening, take_port
from fleetlm.transport.local_frames import FrameWriter
from fleetlm.transport.local_roads import LocalRoads
from fleetlm.transport.router import Router
from fleetlm.transport.sockets import (
    MAX_SOCKETS,
    NOT_HERE,
    Context,
    describe_ports,
    explain_bind_error,
    may_dial_from,
    raise_descriptor_limit,
)
from fleetlm.transport.sweeps import Sweeps
from fleetlm.transport.tick_board import Tick
from fleetlm.transport.timer_slack import timer_slack

log: logging.Logger = logging.getLogger("fleetlm.zmq")

FEW_PEERS: Final = 8
"""A limit of open files that allows for fewer peers is worth a warning: small clusters would not be whole."""

RECHECK_S: Final = 1.0
"""Seconds between two re-checks: the delay that a missed wake-up costs."""
RECHECKS_ON_ROADS: Final = 8
"""A DEALER whose frames travel on a local road is looked at in every so many re-checks: only a send can
consume a wake-up, and nothing is sent over it."""
TERM_TIMEOUT_S: Final = 1.0
"""Seconds for the context to end after all flush times are over."""
ADDRESS_POLL_S: Final = 0.1
"""Seconds between two attempts to listen at an address that this machine does not have yet."""
HANG_UP_POLL_S: Final = 0.005
"""Seconds between two looks, while closing, whether the peers have hung up."""


class ZmqTransport:
    """Implements `fleetlm.transport.interface.Transport` with sockets. A process may have several.

    Args:
        settings: time-outs, limits and the cookie. Without a cookie, traffic is plain text and every
            peer is admitted.
        aliases: further addresses of this machine at which to listen, so that nodes of the other family
            (IPv4 or IPv6) reach this one.
        loop: the event loop; default: the loop that runs `start`.
        refuse: returns why a connection is refused that arrived at an address of this machine, or None;
            default: none is.
        context_io_threads: number of libzmq's I/O threads. With more than one,
            `Listener.stranger_refused` may give the address of another stranger that failed at the
            same moment.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        aliases: Sequence[str] = (),
        refuse: Callable[[str], str | None] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        context_io_threads: int = 1,
    ) -> None:
        self._settings = settings
        self._aliases = tuple(aliases)
        self._refuse = refuse
        self._given_loop = loop
        self._io_threads = context_io_threads
        self._channels: dict[int, DealerChannel] = {}
        self._senders: dict[int, DealerChannel | FrameWriter] = {}
        """Channel → what sends its frames: a DEALER, or a local road."""
        self._flushing: dict[int, DealerChannel] = {}
        """Channels that were hung up and whose local road has frames that are still to leave."""
        self._listening: Listening | None = None
        self._router: Router | None = None
        self._descriptors = Descriptors()
        self._roads = LocalRoads(settings, self._descriptors)
        self._accepting: Accepting | None = None
        self._context: Context | None = None
        self._keys: tuple[CurveKeys, ...] = ()
        self._untried: dict[int, tuple[str, int, tuple[CurveKeys, ...]]] = {}
        """Channel that is being dialled → its address, and the keys to dial with if it is refused."""
        self._own_ips: tuple[str, ...] = ()
        """The addresses from which to dial: the first that can be the source for the address dialled."""
        self._port: int | None = None
        """The port on which this transport listens, once it does."""
        self._timer: asyncio.TimerHandle | None = None
        self._flush_until = 0.0
        self._context_ended: asyncio.Future[None] | None = None
        self._is_forked = False
        _transports.add(self)

    # ── Transport ────────────────────────────────────────────────────────────────────────────────

    async def bind(self, ip: str, ports: Sequence[int]) -> int:
        """Take the first free port.

        An address that this machine does not have is waited for, for `Settings.own_address_budget_s`: a new
        IPv6 address cannot be used in its first second or two.

        Args:
            ip: an address of this machine, or ``*`` for all of them.
            ports: the ports to try, in their order.

        Raises:
            StartFailed: no port can be bound, or no descriptors are left. Nothing is left open. If all ports
                are in use, the error names the programs that hold them, which takes up to a second.
            RuntimeError: the transport was bound before, or belongs to the parent of a fork.
        """
        self._check_fork()
        if self._listening is not None or self._context_ended is not None:
            raise RuntimeError("a transport can be started only once; create a new one")
        where = describe_ports(ip, ports)
        room = raise_descriptor_limit()
        level = logging.INFO if room >= FEW_PEERS else logging.WARNING
        log.log(level, "the limit of open files allows for about %d peers", room)
        if self._descriptors.count() < FDS_TO_START:  # Without this libzmq would end the whole process.
            raise StartFailed(where, explain_bind_error(OSError(errno.EMFILE, ""), ports))
        try:
            self._listening = await self._take_port(ip, ports)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise StartFailed(where, explain_bind_error(error, ports)) from error
            from fleetlm.transport.taken_ports import explain_taken, look_at_ports  # noqa: PLC0415  # rare

            taken = await look_at_ports(ip, ports, self._settings)
            raise StartFailed(where, explain_taken(taken, self._settings.node_slot)) from error
        self._listening.listen_at(self._aliases, "nodes that can only reach")
        self._roads.bind()
        return self._listening.port

    async def _take_port(self, ip: str, ports: Sequence[int]) -> Listening:
        """Take a port; wait for an address that this machine does not have yet. Raises: OSError."""
        for _ in range(round(self._settings.own_address_budget_s / ADDRESS_POLL_S)):
            try:
                return take_port(ip, ports)
            except OSError as error:
                if error.errno not in NOT_HERE:
                    raise
            await asyncio.sleep(ADDRESS_POLL_S)
        return take_port(ip, ports)

    async def start(self, listener: Listener) -> None:
        """Receive at the port that was taken, and report to ``listener``.

        Raises:
            StartFailed: ZeroMQ cannot begin. The transport is closed then.
            RuntimeError: it was started before, was not bound, or belongs to the parent of a fork.
        """
        self._check_fork()
        listening = self._listening
        if listening is None or self._context is not None or self._context_ended is not None:
            raise RuntimeError("a transport is bound and then started, once; create a new one")
        self._loop = self._given_loop or asyncio.get_running_loop()
        self._listener = listener
        self._keys = await derive_keys(self._settings)
        context: Context = zmq.Context(self._io_threads)
        context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        try:
            self._router = Router(
                context,
                self._loop,
                self._settings,
                self._keys,
                listener,
                limit_of_descriptors(),
                self._roads.drain,
                self._refuse,
            )
            # libzmq starts its threads with the first socket.
            with timer_slack(self._settings.heartbeat_slack_s):
                context.socket(zmq.PAIR).close(0)
            self._router.open(listening)
        except (zmq.ZMQError, OSError) as error:
            if self._router is not None:
                self._router.close()
                self._router = None
            context.destroy(0)
            listening.close()
            self._roads.close()
            ports = (listening.port,)
            raise StartFailed(
                describe_ports(listening.ips[0] if listening.ips else "*", ports),
                explain_bind_error(error, ports),
            ) from error
        self._own_ips = listening.ips
        self._accepting = Accepting(self._own_ips, listening.port)
        self._router.turn_away_with(self._accepting.turn_away)
        with contextlib.suppress(OSError):  # Without a descriptor left only the loop looks.
            at = (self._own_ips, listening.port)
            self._router.watch_standstills(at, self._accepting.stop, self._accepting.go_on)
        self._context = context
        self._port = listening.port
        self._roads.start(self._loop, listener, self.disconnect, self._road_lost)
        self._timer = self._loop.call_later(RECHECK_S, self._recheck)

    def dial(self, channel: int, ip: str, port: int) -> None:
        """Begin to open a channel. `Listener.channel_opened` or `Listener.channel_lost` follows."""
        self._check_fork()
        if self._context is None:
            raise RuntimeError("this transport is not running")
        self._dial(self._context, channel, (ip, port), self._keys)

    def _dial(
        self, context: Context, channel: int, target: tuple[str, int], keys: tuple[CurveKeys, ...]
    ) -> None:
        """Dial with the first of ``keys``, and remember the others."""
        ip, port = target
        if len(keys) > 1:
            self._untried[channel] = (ip, port, keys[1:])
        try:
            self._descriptors.take(FDS_FOR_DIAL)
            self._channels[channel] = self._senders[channel] = DealerChannel(
                context,
                self._loop,
                self,
                channel,
                target,
                own_ip=next((each for each in self._own_ips if may_dial_from(each, ip)), None),
                settings=self._settings,
                keys=keys[0] if keys else None,
            )
        except (zmq.ZMQError, OSError) as error:
            why = f"{endpoint(ip, port)}: {error.strerror}"
            is_short = error.errno in (errno.EMFILE, errno.ENFILE)
            if is_short:
                why += "; raise the limit of open files (`ulimit -n`)"
                self._descriptors.tell(self._loop.time(), endpoint(ip, port))
            lost = functools.partial(self._listener.channel_lost, channel, why, is_logged=is_short)
            self._loop.call_soon(lost)

    def send(self, channel: int, frame: bytes, tail: memoryview | None = None) -> bool:
        """Send one frame on an open channel. Returns False if it is not open or has just ended."""
        known = self._senders.get(channel)
        if known is None:
            self._check_fork()
            return False
        return known.send(frame, tail)

    def admit(self, source: bytes) -> None:
        """A source is a half of a connection that is up: it may send as a peer may."""
        if self._router is not None:
            self._router.admit(source)

    def disconnect(self, source: bytes, after_s: float = 0.0) -> None:
        """End a source's connection after ``after_s`` seconds; what it sends is dropped at once."""
        self._roads.mute(source)
        if self._router is not None:
            self._router.disconnect(source, after_s)

    def answer(self, source: bytes, frame: bytes) -> None:
        """Send one frame back to a source. It is delivered at most once, and sending never waits."""
        self._check_fork()
        if self._router is not None:
            self._router.answer(source, frame)

    def hang_up(self, channel: int, flush_s: float = 0.0) -> None:
        """Close a channel. Sent frames have ``flush_s`` seconds more to leave. No fact follows."""
        self._check_fork()
        known = self._channels.pop(channel, None)
        self._untried.pop(channel, None)
        self._senders.pop(channel, None)
        if known is None:
            return
        until = self._loop.time() + flush_s
        self._flush_until = max(self._flush_until, until)
        if self._roads.is_behind(channel) and flush_s > 0:
            self._flushing[channel] = known
            self._flush(channel, until)
        else:
            self._roads.hang_up(channel)
            known.hang_up(flush_s)

    def _flush(self, channel: int, until: float) -> None:
        """Hang up when the local road has sent what waits: with the DEALER the peer would lose both."""
        known = self._flushing.get(channel)
        if known is None:
            return
        if self._roads.is_behind(channel) and self._loop.time() < until:
            self._loop.call_later(HANG_UP_POLL_S, self._flush, channel, until)
            return
        del self._flushing[channel]
        self._roads.hang_up(channel)
        known.hang_up(0)

    async def close(self) -> None:
        """Close everything, at the latest when the flush times of `hang_up` are over. Idempotent."""
        self._check_fork()
        try:
            await self._wait_for_hang_ups()
        finally:
            if self._listening is not None and self._context is None:  # Bound, and never started.
                self._listening.close()
                self._roads.close()
            if self._context_ended is None and self._context is not None:
                self._close_sockets(self._context)
        if self._context_ended is None:
            return
        patience = max(0.0, self._flush_until - self._loop.time()) + TERM_TIMEOUT_S
        await asyncio.wait({self._context_ended}, timeout=patience)
        if not self._context_ended.done():
            log.error("ZeroMQ did not terminate within %.1f s; its threads keep running", patience)

    # ── ChannelOwner ─────────────────────────────────────────────────────────────────────────────

    @property
    def road(self) -> int:
        """The number of the listener for local roads; 0: there is none."""
        return self._roads.number

    def open_road(self, channel: int, number: int, ticket: bytes) -> None:
        """Ask for a local road for an open channel."""
        if channel in self._channels:
            self._roads.open(channel, number, ticket)

    def expect_road(self, source: bytes, ticket: bytes) -> None:
        """Let a source in at the local road that comes with this ticket."""
        if self._router is not None and source in self._router.sources():
            self._roads.expect(source, ticket)

    def take_road(self, channel: int) -> None:
        """Send all further frames of a channel on its local road."""
        writer = self._roads.take(channel)
        if writer is not None and channel in self._channels:
            self._senders[channel] = writer
            self._channels[channel].moved()
        else:
            self._senders.pop(channel, None)

    def follow_road(self, source: bytes) -> bool:
        """Report what comes over the local road of a source. Returns False if it was not let in."""
        is_followed = self._roads.follow(source)
        if is_followed and self._router is not None:
            self._router.moved(source)
        return is_followed

    def note_tick(self, at: float, lag_ms: int) -> None:
        """Show the neighbours that read this node's board that its loop runs."""
        self._roads.note_tick(at, lag_ms)

    def shows_ticks(self, channel: int) -> bool:
        """Whether the peer of a channel finds this node's ticks on its board."""
        return self._roads.shows_ticks(channel)

    def read_tick(self, source: bytes) -> Tick | None:
        """Return what the node of a source has noted on its board since the last call, or None."""
        return self._roads.read_tick(source)

    def _road_lost(self, channel: int) -> None:
        """The local road of a channel has ended while its DEALER lives."""
        known = self._channels.get(channel)
        if known is not None:
            known.end("the local road ended, while the connection was alive")

    @property
    def watcher(self) -> Sweeps | None:
        """Bounds what dialled nodes send back."""
        return None if self._router is None else self._router.watcher

    def channel_opened(self, channel: int) -> None:
        """Pass the fact on to the listener."""
        self._untried.pop(channel, None)
        self._listener.channel_opened(channel)

    def channel_lost(
        self, channel: int, reason: str, *, is_foreign: bool = False, is_refused: bool = False
    ) -> None:
        """Dial again with the next cookie if this one was refused; else forget the channel, and report it."""
        self._roads.hang_up(channel)
        self._senders.pop(channel, None)
        if self._flushing.pop(channel, None) is not None:
            return
        self._channels.pop(channel, None)
        ip, port, keys = self._untried.pop(channel, ("", 0, ()))
        if is_refused and keys and self._context is not None:
            self._dial(self._context, channel, (ip, port), keys)
            return
        self._listener.channel_lost(channel, reason, is_foreign=is_foreign)

    def channel_answered(self, channel: int, frame: bytes) -> None:
        """Pass the answer on to the listener."""
        self._listener.channel_answered(channel, frame)

    # ── internals ────────────────────────────────────────────────────────────────────────────────────

    def _recheck(self) -> None:
        now = self._loop.time()
        # At the moment at which the node ticks: one wake-up of the loop for both.
        self._timer = self._loop.call_at((now // RECHECK_S + 1) * RECHECK_S, self._recheck)
        if self._accepting is not None:
            self._accepting.look(self._descriptors.look(), now)
        if self._router is not None:
            self._router.recheck()
        self._roads.recheck(now)
        self._recheck_channels(now)

    def _recheck_channels(self, now: float) -> None:
        """Look at the DEALERs over which something is sent, and at some of the others."""
        turn = int(now / RECHECK_S)
        for number, channel in list(self._channels.items()):
            if self._senders.get(number) is channel or (number + turn) % RECHECKS_ON_ROADS == 0:
                channel.recheck(now)

    async def _wait_for_hang_ups(self) -> None:
        """Keep receiving until the peers that may still get frames have hung up, or until the flush ends.

        A peer loses its channel to this node when the ROUTER closes. If that happened first, it would
        drop the session before it has read this node's last frames.
        """
        here = set() if self._router is None else self._router.sources()
        while self._router is not None and self._loop.time() < self._flush_until:
            here &= self._router.sources()
            if not here:
                return
            await asyncio.sleep(HANG_UP_POLL_S)

    def _close_sockets(self, context: Context) -> None:
        """Close all sockets now, and end the context in a thread, which waits for lingering frames."""
        if self._timer is not None:
            self._timer.cancel()
        for number in list(self._channels):
            self.hang_up(number)
        for number in list(self._flushing):
            self._flush(number, 0.0)
        self._roads.close()
        if self._accepting is not None:
            self._accepting.close()
        if self._router is not None:
            self._router.close()
        self._router = self._context = self._accepting = None
        _transports.discard(self)
        ended = self._context_ended = self._loop.create_future()

        def tell() -> None:
            if not ended.done():
                ended.set_result(None)

        def end() -> None:
            context.term()
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(tell)

        try:
            threading.Thread(target=end, name="fleetlm-zmq-term", daemon=True).start()
        except RuntimeError:  # The interpreter ends, and takes no new thread (Python 3.12).
            tell()

    def _check_fork(self) -> None:
        if self._is_forked:
            raise RuntimeError(
                "this process was forked from one with a running node, and ZeroMQ's threads do not "
                "survive a fork: start a new node here, after the fork, or start processes with 'spawn' "
                "(docs/several-nodes-on-one-host.md)"
            )

    def _after_fork(self) -> None:
        """In a forked child: refuse all use, and close the child's copies of the TCP connections.

        A connection ends for the peer when its last copy is closed. With the copies open, peers would not see
        the parent's death, and nobody could listen on its port, as long as the child lives. ZeroMQ's own
        objects are kept and never touched, since the parent's threads are not here.
        """
        _inherited.append((self._channels, self._flushing, self._router, self._accepting, self._context))
        self._roads.close_copies()
        if self._port is not None:
            close_copies(self._port, {channel.target for channel in self._channels.values()})
        self._channels = {}
        self._senders = {}
        self._is_forked = True


_transports: weakref.WeakSet[ZmqTransport] = weakref.WeakSet()
_inherited: list[object] = []
"""Sockets that a forked child has inherited, referenced for ever so that no destructor closes them."""


def _mark_forked() -> None:
    for transport in list(_transports):
        transport._after_fork()  # noqa: SLF001  # same module


os.register_at_fork(after_in_child=_mark_forked)
