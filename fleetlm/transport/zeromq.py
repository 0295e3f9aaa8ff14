"""The network of one node, on ZeroMQ: one bound ROUTER that hears, one DEALER a peer that speaks.

What libzmq's threads do reaches the loop through descriptors: the ROUTER's (frames), its monitor's
(who came and went), the ZAP handler's (who wants in) and one for each channel. They are
edge-triggered: each wake drains, or books its own continuation, and a slow re-check backs them up.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Final

import zmq

from fleetlm.errors import StartFailed
from fleetlm.names import endpoint
from fleetlm.settings import Settings
from fleetlm.transport.curve import CurveKeys, keys_from_cookie
from fleetlm.transport.dealer import DealerChannel
from fleetlm.transport.interface import Listener, Part
from fleetlm.transport.router import Router
from fleetlm.transport.sockets import (
    MAX_SOCKETS,
    Context,
    raise_descriptor_limit,
    why_not_bound,
)

log = logging.getLogger("fleetlm.zmq")

RECHECK_S: Final = 1.0
"""Between two looks at everything: should a wake-up ever be missed, this is how long it costs."""
TERM_SLACK_S: Final = 1.0
PEERS_GONE_S: Final = 0.005
"""Between two looks whether peers have hung up, while this node leaves."""


class ZmqTransport:
    """Implements `fleetlm.transport.interface.Transport` with sockets. Several may live in one process.

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
        self._channels: dict[int, DealerChannel] = {}
        self._hearing: Router | None = None
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
            self._hearing = Router(context, self._loop, self._settings, self._keys, listener)
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
            self._channels[channel] = DealerChannel(
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
        try:
            await self._peers_gone()
        finally:
            if self._closing is None and self._context is not None:
                self._shut(self._context)
        if self._closing is None:
            return
        patience = max(0.0, self._flushed_at - self._loop.time()) + TERM_SLACK_S
        await asyncio.wait({self._closing}, timeout=patience)
        if not self._closing.done():
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

    async def _peers_gone(self) -> None:
        """Hear until those to whom something may still be leaving have hung up, or its time is over.

        They lose a connection when we stop to hear: sooner than they hear our last frames, perhaps.
        """
        here = set() if self._hearing is None else self._hearing.sources()
        while self._hearing is not None and self._loop.time() < self._flushed_at:
            here &= self._hearing.sources()
            if not here:
                return
            await asyncio.sleep(PEERS_GONE_S)

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


_alive: weakref.WeakSet[ZmqTransport] = weakref.WeakSet()
_graveyard: list[object] = []
"""What a forked child inherited: kept, so that no destructor touches it."""


def _fork_happened() -> None:
    for transport in list(_alive):
        transport._after_fork()  # noqa: SLF001  # the other half of this module


os.register_at_fork(after_in_child=_fork_happened)
