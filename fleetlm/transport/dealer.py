"""One dial: a DEALER that connects once, sends, and hears at most a few answers.

With ``IMMEDIATE`` the socket is writable exactly while its connection stands, and its descriptor
wakes the loop when that changes: so `opened` and `lost` are the two edges of ``POLLOUT``. A monitor
is needed for the reason of a failure alone, and is dropped with the first edge.

::

    made ──► dialling ──POLLOUT──► open ──no POLLOUT──► lost
                 └──what the monitor says, or silence──► lost        hang_up() ends it anywhere
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Final, Protocol

import zmq

from fleetlm.names import endpoint
from fleetlm.settings import Settings
from fleetlm.transport.curve import CurveKeys
from fleetlm.transport.interface import Part
from fleetlm.transport.monitor import CLIENT_EVENTS, FAILURES, Monitor, explain_refusal_there
from fleetlm.transport.sockets import Context, connect, get_int, make_dealer, may_dial_from, source_address

ROUTING_ID_BYTES: Final = 16
ZERO_COPY_BYTES: Final = 64 * 1024
"""From here on, lending a buffer to ZeroMQ costs less than copying it."""
MAX_ANSWERS: Final = 4
"""REFUSED or IAM, once each; whoever answers more is no node."""
REASON_PROBE_TIMEOUT_S: Final = 0.25
"""For the reason of a failed dial; the failure itself is known already."""
DIAL_SLACK_S: Final = 1.0

_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_POLLOUT = int(zmq.POLLOUT)


class ChannelOwner(Protocol):
    """Who is told; always from the loop, never from inside a method of the channel."""

    def channel_opened(self, channel: int) -> None:
        """Frames may be sent."""

    def channel_lost(self, channel: int, reason: str) -> None:
        """It is over, and has cleaned up after itself."""

    def channel_answered(self, channel: int, frame: bytes) -> None:
        """A frame from the other end."""


class DealerChannel:
    """A connection that we dialled.

    Args:
        number: by which the owner knows it.
        own_ip: address to dial from, or None for the kernel's choice.

    Raises:
        zmq.ZMQError: no socket is to be had; nothing is left behind.
    """

    __slots__ = (
        "_answers",
        "_dialled_at",
        "_failure",
        "_fd",
        "_has_cookie",
        "_is_check_scheduled",
        "_is_connected",
        "_loop",
        "_monitor",
        "_owner",
        "_probe",
        "_settings",
        "_sock",
        "_target",
        "is_open",
        "may_be_answered",
        "number",
        "own_ip",
    )

    def __init__(
        self,
        context: Context,
        loop: asyncio.AbstractEventLoop,
        owner: ChannelOwner,
        number: int,
        target: tuple[str, int],
        *,
        own_ip: str | None,
        settings: Settings,
        keys: CurveKeys | None,
    ) -> None:
        self.number = number
        self.own_ip = own_ip
        self.is_open = False
        self.may_be_answered = True
        """Whether an answer may still be on its way: then a send must look for it afterwards."""
        self._loop = loop
        self._owner = owner
        self._target = target
        self._settings = settings
        self._has_cookie = keys is not None
        self._dialled_at = loop.time()
        self._answers = 0
        self._is_connected = False
        self._is_check_scheduled = False
        self._failure: tuple[int, int] | None = None
        self._probe: ReasonProbe | None = None
        self._monitor: Monitor | None = None
        self._sock = make_dealer(context, settings, new_routing_id(), keys)
        try:
            self._monitor = Monitor(context, self._sock, CLIENT_EVENTS)
            self._fd: int = get_int(self._sock, zmq.FD)
            connect(self._sock, *target, own_ip)
            loop.add_reader(self._monitor.fd, self._read_monitor)
            loop.add_reader(self._fd, self.check)
            # ZeroMQ wakes a reader that has looked and found nothing: so look once.
            loop.call_soon(self._read_monitor)
        except (zmq.ZMQError, OSError):
            if self._monitor is not None:
                loop.remove_reader(self._monitor.fd)
                self._monitor.close()
            self._sock.close(0)
            raise

    @property
    def is_closed(self) -> bool:
        """Whether it is over."""
        return self._sock.closed

    def send(self, parts: Sequence[Part]) -> bool:
        """Send one frame of one or two parts. False where the channel is not open, or is no more."""
        if not self.is_open:
            return False
        if self.may_be_answered:
            self._check_soon()
        try:
            self._write(parts)
            return True
        except zmq.ZMQError:
            return self._retry_send(parts)

    def check(self) -> None:
        """Ask the socket what changed: opened, answered, or lost."""
        self._is_check_scheduled = False
        sock = self._sock
        if sock.closed:
            return
        try:
            events = get_int(sock, _EVENTS)
            if events & _POLLOUT and not self.is_open:
                self._report_opened()
            while events & _POLLIN and not sock.closed:
                self._read_answer()
                if not sock.closed:
                    events = get_int(sock, _EVENTS)
            if self.is_open and not events & _POLLOUT and not sock.closed:
                self._report_lost(self._describe_end())
        except zmq.ZMQError as error:
            self._report_lost(f"{self._where}: {error.strerror}")

    def recheck(self, now: float) -> None:
        """The slow re-check: a safety net under edge-triggered descriptors."""
        if now > self._dialled_at + self._settings.handshake_timeout_s:
            self.may_be_answered = False
        if not self.is_open and self._monitor is not None:
            self._read_monitor()
        self.check()
        patience = 2 * self._settings.connect_timeout_s + DIAL_SLACK_S
        if not self.is_closed and not self.is_open and now > self._dialled_at + patience:
            self._report_lost(f"{self._where}: no answer within {patience:g} s")

    def hang_up(self, flush_s: float) -> None:
        """Close. What was sent may leave for ``flush_s`` more, if the connection stands."""
        if self._sock.closed:
            return
        self._drop_monitor()
        if self._probe is not None:
            self._probe.close()
        self._loop.remove_reader(self._fd)
        linger_ms = round(flush_s * 1000) if self.is_open else 0
        self.is_open = False
        self._sock.close(linger_ms)

    @property
    def _where(self) -> str:
        return endpoint(*self._target)

    def _write(self, parts: Sequence[Part]) -> None:
        send = self._sock.send
        if len(parts) == 2:
            first, second = parts
            send(first, _MORE, copy=_count_bytes(first) < ZERO_COPY_BYTES)
            send(second, _NOBLOCK, copy=_count_bytes(second) < ZERO_COPY_BYTES)
        else:
            (only,) = parts
            send(only, _NOBLOCK, copy=_count_bytes(only) < ZERO_COPY_BYTES)

    def _retry_send(self, parts: Sequence[Part]) -> bool:
        """After a refusal: ZeroMQ may not have looked at its own news yet, or the channel is gone.

        A frame of two parts is never torn: ZeroMQ refuses the second only together with the whole
        connection, and the first with it.
        """
        try:
            if get_int(self._sock, _EVENTS) & _POLLOUT:
                self._write(parts)
                return True
        except zmq.ZMQError:
            pass
        self.is_open = False
        self._loop.call_soon(self._report_lost, self._describe_end())
        return False

    def _check_soon(self) -> None:
        """A send handles ZeroMQ's news by the way, and so may swallow the wake-up for an answer."""
        if not self._is_check_scheduled:
            self._is_check_scheduled = True
            self._loop.call_soon(self.check)

    def _report_opened(self) -> None:
        self.is_open = True
        self._drop_monitor()
        self._owner.channel_opened(self.number)

    def _read_answer(self) -> None:
        frame = self._sock.recv(_NOBLOCK)
        parts = 1
        while get_int(self._sock, zmq.RCVMORE):
            self._sock.recv(_NOBLOCK)
            parts += 1
        self._answers += 1
        if parts > 1 or self._answers > MAX_ANSWERS:
            self._report_lost(f"{self._where}: it answers what no node answers")
        else:
            self._owner.channel_answered(self.number, frame)

    def _read_monitor(self) -> None:
        """Before the channel is open: why it will never be."""
        if self._monitor is None or self._probe is not None:
            return
        for event, value in self._monitor.read():
            if event == zmq.EVENT_CONNECTED:
                self._is_connected = True
            elif event & FAILURES:
                self._failure = (event, value)
            else:
                self._explain_failure()
                return

    def _explain_failure(self) -> None:
        self.check()
        if self.is_open or self._sock.closed:
            return
        limit_s = self._settings.connect_timeout_s
        elapsed_s = self._loop.time() - self._dialled_at
        if self._is_connected:
            timeout_s = limit_s if elapsed_s >= limit_s else None
            event, value = self._failure or (0, 0)
            reason = explain_refusal_there(event, value, self._has_cookie, timeout_s)
            self._report_lost(f"{self._where}: {reason}")
        elif elapsed_s >= limit_s:
            self._report_lost(f"{self._where}: connect timeout, no answer within {limit_s:g} s")
        else:
            self._probe = ReasonProbe(self._loop, *self._target, self.own_ip, self._report_reason)

    def _report_reason(self, why: str) -> None:
        self._report_lost(f"{self._where}: {why}")

    def _describe_end(self) -> str:
        return (
            f"{self._where}: the connection ended "
            f"(closed, reset, or silent for {self._settings.node_timeout_s:g} s)"
        )

    def _report_lost(self, reason: str) -> None:
        if not self._sock.closed:
            self.hang_up(0)
            self._owner.channel_lost(self.number, reason)

    def _drop_monitor(self) -> None:
        if self._monitor is not None:
            self._loop.remove_reader(self._monitor.fd)
            self._monitor.close()
            self._monitor = None


class ReasonProbe:
    """ZeroMQ does not say why a connect failed: connect once more, plainly, to hear the errno.

    ``report`` is called once, from the loop, unless `close` comes first.
    """

    __slots__ = ("_loop", "_report", "_sock", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ip: str,
        port: int,
        own_ip: str | None,
        report: _ReportReason,
    ) -> None:
        self._loop = loop
        self._report = report
        family, _ = source_address(ip)
        self._timer = loop.call_later(REASON_PROBE_TIMEOUT_S, self._report_result, None)
        self._sock: socket.socket | None = None
        try:
            self._sock = sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            if own_ip and may_dial_from(own_ip, ip):
                sock.bind(source_address(own_ip)[1])
            code = sock.connect_ex((ip, port))
        except OSError as error:
            code = error.errno or errno.EIO
        if self._sock is not None and code == errno.EINPROGRESS:
            loop.add_writer(self._sock, self._read_result)
        else:
            self._timer.cancel()
            self._timer = loop.call_later(0, self._report_result, code)

    def close(self) -> None:
        """Give up; nothing is told."""
        self._timer.cancel()
        if self._sock is not None:
            self._loop.remove_writer(self._sock)
            self._sock.close()
            self._sock = None

    def _read_result(self) -> None:
        assert self._sock is not None
        self._report_result(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _report_result(self, code: int | None) -> None:
        self.close()
        if code == 0:
            self._report("connection refused a moment ago; it accepts connections now")
        elif code is None:
            self._report("connection refused, or the host cannot be reached")
        else:
            self._report(os.strerror(code).lower())


class _ReportReason(Protocol):
    def __call__(self, why: str, /) -> None: ...


def new_routing_id() -> bytes:
    """Different for each dial, so that none is taken for another; ids from 0 on are ZeroMQ's own."""
    while True:
        candidate = secrets.token_bytes(ROUTING_ID_BYTES)
        if candidate[0]:
            return candidate


def _count_bytes(part: Part) -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)
