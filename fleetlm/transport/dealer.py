"""One channel: a DEALER that connects once, sends, and receives at most a few answers.

The socket has the option ``IMMEDIATE``, so it is writable exactly while its connection exists, and it
never reconnects. Its descriptor wakes the loop when that changes. So the two edges of ``POLLOUT`` are the
two facts of a channel, opened and lost::

    created ──► dialling ──POLLOUT──► open ──no POLLOUT──► lost
                    └──the monitor reports a failure, or silence──► lost

    hang_up() closes the channel in any state; no fact follows.

What ZeroMQ hides, and how it is found out:

* *Why a dial failed.* The monitor only says that a connect failed, or that the other end closed the
  connection during the handshake. A `ReasonProbe` then connects once more with a plain socket, to get the
  errno or the greeting. The monitor is needed only while dialling and is dropped at the first edge, since
  it costs two descriptors.
* *Events consumed by a send.* A send lets ZeroMQ handle its pending events, and so may consume the wake-up
  of the descriptor. While an answer may still come, each send therefore schedules a `DealerChannel.check`.
* *That something else listens there.* An address is given to another machine, and a web server has that
  port now. It waits for a request, as ZeroMQ waits for its greeting; a server that serves one connection at a
  time would be held for as long. But every node sends its greeting at once, also while it is busy, since
  libzmq's own thread does it. So a connection over which no byte has come for `GREETING_S`, or for a few
  round trips, is closed, and its loss is reported as foreign.
* *A wake-up that is missed.* The descriptor is edge-triggered. `DealerChannel.recheck`, called by the
  transport every second, looks at everything once more, and ends a dial that nothing else ended.

The owner's callbacks come from the loop or from `DealerChannel.recheck`, never from inside `send`,
`hang_up` or the constructor. A channel reports at most one loss, and none after `hang_up`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final, Protocol

import zmq

from fleetlm.names import endpoint
from fleetlm.settings import Settings
from fleetlm.transport.curve import CurveKeys
from fleetlm.transport.heartbeats import Heartbeats
from fleetlm.transport.monitor import (
    CLIENT_EVENTS,
    FAILURES,
    Monitor,
    explain_refusal_there,
    is_no_zeromq,
)
from fleetlm.transport.reasons import (
    Found,
    ReasonProbe,
    explain_errno,
    explain_greeting,
    is_no_greeting,
)
from fleetlm.transport.sockets import MAX_ANSWER_BYTES, Context, connect, get_int, make_dealer
from fleetlm.transport.tcp import count_received, limit_unsent

ROUTING_ID_BYTES: Final = 16
"""Length of a routing id: random, so that two dials never get the same one."""
ZERO_COPY_BYTES: Final = 64 * 1024
"""Frames of this size or more are lent to ZeroMQ instead of copied; below it, a copy is cheaper."""
UNSENT_BYTES: Final = 128 * 1024
"""What the kernel may hold that it cannot send yet: 1 s at 1 Mbit/s, and enough for 10 Gbit/s."""
MAX_ANSWERS: Final = 4
"""Answers accepted on one channel. A node sends REFUSED or IAM, once each, and never more than two."""
GREETING_S: Final = 0.5
"""Seconds for the first byte of the other end. A node sends it within one round trip."""
GREETING_ROUND_TRIPS: Final = 6
"""Where the network is slow: so many times the time that TCP took to connect."""
MOST_HEARD_BYTES: Final = 2 * MAX_ANSWERS * MAX_ANSWER_BYTES
"""Bytes that the other end may send at once: its answers, and the handshakes of ZMTP and CURVE. Later it
sends heartbeats alone."""
DIAL_SLACK_S: Final = 1.0
"""Seconds beyond both time-outs of a dial (TCP, then ZMTP) after which `recheck` ends it."""

_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_POLLOUT = int(zmq.POLLOUT)


class Watcher(Protocol):
    """Looks at how much has come over a connection, soon after something has."""

    def watch(self, fd: int, look: Callable[[int], None]) -> None:
        """Call ``look`` with the bytes received over this descriptor, from the loop, until `unwatch`."""

    def unwatch(self, fd: int, look: Callable[[int], None]) -> None:
        """Stop. Idempotent."""

    def calm(self, fd: int, look: Callable[[int], None]) -> None:
        """Look only about once a second from now on; nothing else changes. Does nothing after `unwatch`."""


class ChannelOwner(Protocol):
    """Receives the facts of a channel, never from inside a send, a hang-up or the constructor."""

    @property
    def watcher(self) -> Watcher | None:
        """Bounds what the other end of a channel sends; None: nothing does."""

    def channel_opened(self, channel: int) -> None:
        """The channel is open: frames may be sent."""

    def channel_lost(
        self, channel: int, reason: str, *, is_foreign: bool = False, is_refused: bool = False
    ) -> None:
        """The channel has ended and has closed its socket. ``reason`` names the endpoint and the cause.

        ``is_foreign``: another program listens there. ``is_refused``: the handshake failed, perhaps since the
        cookies differ.
        """

    def channel_answered(self, channel: int, frame: bytes) -> None:
        """The node at the other end sent a frame."""


class DealerChannel:
    """One channel to a peer: the half of a connection on which this node sends.

    Args:
        context: the ZeroMQ context, in which the socket is made.
        loop: the event loop that watches the socket.
        owner: receives the channel's facts.
        number: the owner's number for the channel.
        target: address and port to dial.
        own_ip: address to dial from, or None for the kernel's choice.
        settings: time-outs and limits.
        keys: the cluster's CURVE keys, or None for plain text.

    Attributes:
        is_open: whether frames may be sent.
        may_be_answered: whether an answer may still come. Until then a send checks for one afterwards.

    Raises:
        zmq.ZMQError: no socket or descriptor is available. Nothing is left open.
        OSError: as above.
    """

    __slots__ = (
        "_answers",
        "_dialled_at",
        "_failure",
        "_fd",
        "_greeting",
        "_has_cookie",
        "_heartbeats",
        "_is_check_scheduled",
        "_is_connected",
        "_loop",
        "_monitor",
        "_owner",
        "_probe",
        "_settings",
        "_sock",
        "_target",
        "_tcp_fd",
        "_watcher",
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
        self.number: int = number
        self.own_ip: str | None = own_ip
        self.is_open: bool = False
        self.may_be_answered: bool = True
        self._loop = loop
        self._owner = owner
        self._target = target
        self._settings = settings
        self._has_cookie = keys is not None
        self._dialled_at = loop.time()
        self._heartbeats = Heartbeats(self._dialled_at, 0, MOST_HEARD_BYTES, settings.heartbeat_interval_s)
        self._watcher = owner.watcher
        self._tcp_fd = -1
        self._answers = 0
        self._is_connected = False
        self._is_check_scheduled = False
        self._failure: tuple[int, int] | None = None
        self._probe: ReasonProbe | None = None
        self._greeting: asyncio.TimerHandle | None = None
        self._monitor: Monitor | None = None
        self._sock = make_dealer(context, settings, new_routing_id(), keys)
        try:
            self._monitor = Monitor(context, self._sock, CLIENT_EVENTS)
            self._fd: int = get_int(self._sock, zmq.FD)
            connect(self._sock, *target, own_ip)
            loop.add_reader(self._monitor.fd, self._read_monitor)
            loop.add_reader(self._fd, self.check)
            # Edge-triggered: ZeroMQ wakes only readers that have looked and found nothing, so look once.
            loop.call_soon(self._read_monitor)
        except (zmq.ZMQError, OSError):
            if self._monitor is not None:
                loop.remove_reader(self._monitor.fd)
                self._monitor.close()
            self._sock.close(0)
            raise

    @property
    def target(self) -> tuple[str, int]:
        """The address and the port that the channel dialled."""
        return self._target

    @property
    def is_closed(self) -> bool:
        """Whether the channel has ended."""
        return self._sock.closed

    def send(self, frame: bytes, tail: memoryview | None = None) -> bool:
        """Send one frame, of one part or two. Returns False if the channel is not open or has just ended."""
        if not self.is_open:
            return False
        if self.may_be_answered:
            self._check_soon()
        try:
            self._hand_over(frame, tail)
            return True
        except zmq.ZMQError:
            return self._retry_send(frame, tail)

    def check(self) -> None:
        """Look at the socket's state and report what changed: opened, answered or lost."""
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
        """Look at everything once more, in case a wake-up was missed. Called about every second."""
        if now > self._dialled_at + self._settings.handshake_timeout_s:
            self.may_be_answered = False
        if not self.is_open and self._monitor is not None:
            self._read_monitor()
        self.check()
        patience = 2 * self._settings.connect_timeout_s + DIAL_SLACK_S
        if not self.is_closed and not self.is_open and now > self._dialled_at + patience:
            self._report_lost(f"{self._where}: no answer within {patience:g} s")

    def end(self, why: str) -> None:
        """Close the channel and report its loss, which something else than ZeroMQ has caused."""
        self.check()  # If it has ended meanwhile, that is the reason.
        self._report_lost(f"{self._where}: {why}")

    def moved(self) -> None:
        """Frames travel on a local road from now on, which a process of this user has opened."""
        if self._watcher is not None:
            self._watcher.calm(self._tcp_fd, self._hear)

    def hang_up(self, flush_s: float) -> None:
        """Close the channel; sent frames have ``flush_s`` seconds more to leave if it is open. Idempotent."""
        if self._sock.closed:
            return
        self._drop_monitor()
        if self._probe is not None:
            self._probe.close()
        if self._watcher is not None:
            self._watcher.unwatch(self._tcp_fd, self._hear)
        self._loop.remove_reader(self._fd)
        linger_ms = round(flush_s * 1000) if self.is_open else 0
        self.is_open = False
        self._sock.close(linger_ms)

    @property
    def _where(self) -> str:
        return endpoint(*self._target)

    def _hand_over(self, frame: bytes, tail: memoryview | None) -> None:
        """Hand a frame over to ZeroMQ, which takes all parts or none.

        Where the connection ends between two parts, ZeroMQ takes the second one and drops both.
        """
        if tail is not None and len(tail) < ZERO_COPY_BYTES:
            frame, tail = b"".join((frame, tail)), None
        if tail is None:
            self._sock.send(frame, _NOBLOCK, copy=len(frame) < ZERO_COPY_BYTES)
        else:
            self._sock.send(frame, _MORE)
            self._sock.send(tail, _NOBLOCK, copy=False)

    def _retry_send(self, frame: bytes, tail: memoryview | None) -> bool:
        """Send again after an error: ZeroMQ may just not have handled its events yet.

        If the channel is really gone, its loss is reported from the loop.
        """
        try:
            if get_int(self._sock, _EVENTS) & _POLLOUT:
                self._hand_over(frame, tail)
                return True
        except zmq.ZMQError:
            pass
        self.is_open = False
        self._loop.call_soon(self._report_lost, self._describe_end())
        return False

    def _check_soon(self) -> None:
        """Schedule a check: a send may have consumed the wake-up for an answer."""
        if not self._is_check_scheduled:
            self._is_check_scheduled = True
            self._loop.call_soon(self.check)

    def _report_opened(self) -> None:
        self.is_open = True
        self._read_monitor()  # It names the descriptor, if that was not read yet.
        self._drop_monitor()
        self._owner.channel_opened(self.number)

    def _read_answer(self) -> None:
        """Pass one answer on, or end the channel if no node would send it."""
        frame = self._sock.recv(_NOBLOCK)
        parts = 1
        while get_int(self._sock, zmq.RCVMORE):
            self._sock.recv(_NOBLOCK)
            parts += 1
        self._answers += 1
        if parts > 1 or self._answers > MAX_ANSWERS:
            why = f"{self._where}: it sends answers that no fleetlm node sends"
            self._report_lost(why, is_foreign=True)
        else:
            self._owner.channel_answered(self.number, frame)

    def _read_monitor(self) -> None:
        """Read the monitor while dialling: note what it reports, and end the dial when it has failed."""
        if self._monitor is None or self._probe is not None:
            return
        for event, value in self._monitor.read():
            if event == zmq.EVENT_CONNECTED:
                self._is_connected = True
                self._tcp_fd = value
                limit_unsent(value, UNSENT_BYTES)
                if self._watcher is not None:
                    self._watcher.watch(value, self._hear)
                took_s = self._loop.time() - self._dialled_at
                patience_s = max(GREETING_S, GREETING_ROUND_TRIPS * took_s)
                self._greeting = self._loop.call_later(patience_s, self._check_greeting, value, patience_s)
            elif event & FAILURES:
                self._failure = (event, value)
            else:
                self._explain_failure()
                return

    def _hear(self, received: int) -> None:
        """Count what has come from the other end, and end the channel if no node would send so much."""
        if self._heartbeats.take(self._loop.time(), received) or self._sock.closed:
            return
        self.check()  # If it has ended meanwhile, that is the reason.
        why = f"{self._where}: it sends back more than answers and heartbeats, as no fleetlm node does"
        self._report_lost(why, is_foreign=True)

    def _check_greeting(self, fd: int, patience_s: float) -> None:
        """End a dial to something that has accepted the connection and has sent nothing at all."""
        self._greeting = None
        self.check()
        if self.is_open or self._sock.closed or count_received(fd) != 0:
            return
        self._report_lost(
            f"{self._where}: it accepted the connection and sent nothing within {patience_s:.1f} s, while a "
            "fleetlm node greets at once: another program has this port, or the node there is stopped",
            is_foreign=True,
        )

    def _explain_failure(self) -> None:
        """End a dial that has failed, with the reason; a `ReasonProbe` finds it if ZeroMQ does not say."""
        self.check()
        if self.is_open or self._sock.closed:
            return
        limit_s = self._settings.connect_timeout_s
        elapsed_s = self._loop.time() - self._dialled_at
        if self._is_connected:
            timeout_s = limit_s if elapsed_s >= limit_s else None
            event, value = self._failure or (0, 0)
            reason = explain_refusal_there(event, value, self._has_cookie, timeout_s)
            if reason is None:
                self._probe = ReasonProbe(self._loop, *self._target, self.own_ip, self._report_greeting)
                return
            is_foreign = timeout_s is not None or is_no_zeromq(event, value)
            is_refused = timeout_s is None
            self._report_lost(f"{self._where}: {reason}", is_foreign=is_foreign, is_refused=is_refused)
        elif elapsed_s >= limit_s:
            self._report_lost(f"{self._where}: connect timeout, no answer within {limit_s:g} s")
        else:
            self._probe = ReasonProbe(self._loop, *self._target, self.own_ip, self._report_errno)

    def _report_errno(self, found: Found) -> None:
        self._report_lost(f"{self._where}: {explain_errno(found)}")

    def _report_greeting(self, found: Found) -> None:
        reason = f"{self._where}: {explain_greeting(found, self._has_cookie)}"
        is_foreign = is_no_greeting(found)
        self._report_lost(reason, is_foreign=is_foreign, is_refused=not is_foreign)

    def _describe_end(self) -> str:
        return f"{self._where}: the connection ended"

    def _report_lost(self, reason: str, *, is_foreign: bool = False, is_refused: bool = False) -> None:
        """Close the channel and tell the owner, unless it has ended already."""
        if not self._sock.closed:
            self.hang_up(0)
            self._owner.channel_lost(self.number, reason, is_foreign=is_foreign, is_refused=is_refused)

    def _drop_monitor(self) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None
        if self._monitor is not None:
            self._loop.remove_reader(self._monitor.fd)
            self._monitor.close()
            self._monitor = None


def new_routing_id() -> bytes:
    """Make a routing id for one dial. Its first byte is never 0: such ids are reserved by ZeroMQ."""
    while True:
        candidate = os.urandom(ROUTING_ID_BYTES)
        if candidate[0]:
            return candidate
