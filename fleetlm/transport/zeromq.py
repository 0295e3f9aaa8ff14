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
    explain_bind_error,
    raise_descriptor_limit,
)

log = logging.getLogger("fleetlm.zmq")

RECHECK_S: Final = 1.0
"""Between two looks at everything: should a wake-up ever be missed, this is how long it costs."""
TERM_TIMEOUT_S: Final = 1.0
HANG_UP_POLL_S: Final = 0.005
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
        self._router: Router | None = None
        self._context: Context | None = None
        self._keys: CurveKeys | None = None
        self._own_ip: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flush_until = 0.0
        self._context_ended: asyncio.Future[None] | None = None
        self._is_forked = False
        _transports.add(self)

    # ── Transport ────────────────────────────────────────────────────────────────────────────────

    async def start(self, ip: str, port: int, listener: Listener) -> None:
        """Listen on ``ip:port``, or on every address where ``ip`` is not this machine's (NAT).

        Raises:
            StartFailed: the port is not to be had, or descriptors are. Nothing is left behind.
        """
        self._check_fork()
        if self._context is not None or self._context_ended is not None:
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
            self._router = Router(context, self._loop, self._settings, self._keys, listener)
            is_own = self._router.open(ip, port)
        except (zmq.ZMQError, OSError) as error:
            if self._router is not None:
                self._router.close()
                self._router = None
            context.destroy(0)
            raise StartFailed(endpoint(ip, port), explain_bind_error(error, port)) from error
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
        if self._router is not None:
            self._router.answer(source, frame)

    def hang_up(self, channel: int, flush_s: float = 0.0) -> None:
        """Close a channel; frames that were sent may leave for ``flush_s`` more. No fact follows."""
        self._check_fork()
        known = self._channels.pop(channel, None)
        if known is not None:
            known.hang_up(flush_s)
            self._flush_until = max(self._flush_until, self._loop.time() + flush_s)

    async def close(self) -> None:
        """Close everything, within the flush time of what was hung up. Idempotent."""
        self._check_fork()
        try:
            await self._wait_for_hang_ups()
        finally:
            if self._context_ended is None and self._context is not None:
                self._close_sockets(self._context)
        if self._context_ended is None:
            return
        patience = max(0.0, self._flush_until - self._loop.time()) + TERM_TIMEOUT_S
        await asyncio.wait({self._context_ended}, timeout=patience)
        if not self._context_ended.done():
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
        if self._router is not None:
            self._router.recheck()
        for channel in list(self._channels.values()):
            channel.recheck(now)

    async def _wait_for_hang_ups(self) -> None:
        """Hear until those to whom something may still be leaving have hung up, or its time is over.

        They lose a connection when we stop to hear: sooner than they hear our last frames, perhaps.
        """
        here = set() if self._router is None else self._router.sources()
        while self._router is not None and self._loop.time() < self._flush_until:
            here &= self._router.sources()
            if not here:
                return
            await asyncio.sleep(HANG_UP_POLL_S)

    def _close_sockets(self, context: Context) -> None:
        """Close all sockets at once, and end the context in a thread: that waits for what lingers."""
        if self._timer is not None:
            self._timer.cancel()
        for number in list(self._channels):
            self.hang_up(number)
        if self._router is not None:
            self._router.close()
        self._router = self._context = None
        _transports.discard(self)
        ended = self._context_ended = self._loop.create_future()

        def tell() -> None:
            if not ended.done():
                ended.set_result(None)

        def end() -> None:
            context.term()
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(tell)

        threading.Thread(target=end, name="fleetlm-zmq-term", daemon=True).start()

    def _check_fork(self) -> None:
        if self._is_forked:
            raise RuntimeError(
                "this process was forked from one with a running node, and ZeroMQ's threads do not "
                "survive a fork: start a node of its own here, or start processes with 'spawn'"
            )

    def _after_fork(self) -> None:
        """In the child: nothing of this may be used, and nothing be closed, since it is shared."""
        _inherited.append((self._channels, self._router, self._context))
        self._channels = {}
        self._is_forked = True


_transports: weakref.WeakSet[ZmqTransport] = weakref.WeakSet()
_inherited: list[object] = []
"""What a forked child inherited: kept, so that no destructor touches it."""


def _mark_forked() -> None:
    for transport in list(_transports):
        transport._after_fork()  # noqa: SLF001  # the other half of this module


os.register_at_fork(after_in_child=_mark_forked)
