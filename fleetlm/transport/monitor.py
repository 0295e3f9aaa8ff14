"""Reads ZeroMQ's socket monitors, and puts their events into words.

A monitor is a PAIR socket that libzmq's own I/O thread writes to. Three rules, each learned from a hang:

* its queue has no limit. With one, libzmq's thread blocks all traffic until the events are read;
* the monitor is switched off *before* its reading end is closed. Otherwise that thread waits for ever;
* ``MONITOR_STOPPED`` is not requested. It is sent while the socket closes, after the last read.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Final

import zmq

from fleetlm.transport.sockets import Context, Sock, get_int

FAILURES: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
SERVER_EVENTS: Final = FAILURES | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
"""Without ACCEPT_FAILED: when descriptors run out, libzmq repeats that event as fast as it can."""
CLIENT_EVENTS: Final = FAILURES | zmq.EVENT_CONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED

CRYPTOGRAPHIC: Final = int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC)
MISMATCH: Final = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)

OTHER_HAS_NO_COOKIE: Final = "authentication failed: it has no cookie (FLEETLM_COOKIE), and this node has one"
OTHER_WANTS_COOKIE: Final = (
    "authentication failed: it requires a cookie, and this node has none (FLEETLM_COOKIE)"
)

_EVENT = struct.Struct("=Hi")
_numbers = itertools.count(1)
_NOBLOCK = int(zmq.NOBLOCK)


class Monitor:
    """The events of one socket, as pairs of event and value (a descriptor, an errno or an error code)."""

    __slots__ = ("_pair", "_watched", "fd")

    def __init__(self, context: Context, watched: Sock, events: int) -> None:
        address = f"inproc://fleetlm-monitor-{next(_numbers)}"
        watched.monitor(address, events)
        self._watched = watched
        try:
            self._pair = context.socket(zmq.PAIR)
            self._pair.set(zmq.RCVHWM, 0)
            self._pair.set(zmq.LINGER, 0)
            self._pair.connect(address)
            self.fd: int = get_int(self._pair, zmq.FD)
        except zmq.ZMQError:
            watched.monitor(None, 0)
            raise

    def read(self, limit: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield waiting events in order, up to ``limit`` of them. Stops early when the monitor is closed."""
        pair = self._pair
        for _ in itertools.count() if limit is None else range(limit):
            if pair.closed or not get_int(pair, zmq.EVENTS) & zmq.POLLIN:
                return
            head = pair.recv(_NOBLOCK)
            pair.recv(_NOBLOCK)  # the endpoint
            yield _EVENT.unpack(head)

    @property
    def has_more(self) -> bool:
        """Whether more events wait."""
        return not self._pair.closed and bool(get_int(self._pair, zmq.EVENTS) & zmq.POLLIN)

    def close(self) -> None:
        """Stop the monitor. Must be called before the watched socket is closed. Idempotent."""
        if not self._pair.closed:
            self._watched.monitor(None, 0)
            self._pair.close()


def explain_refusal_here(event: int, value: int, cookies: int) -> str:
    """Return why this node's ROUTER refused a connection, from the event of its monitor.

    In the text "it" is the node that dialled. ``cookies`` is how many this node has.
    """
    has_cookie = cookies > 0
    if cookies > 1 and event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == CRYPTOGRAPHIC:
        return (
            "it dialled with another cookie than the first one of this node; this is normal while the cookie "
            "is changed, and it tries its other one next"
        )
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == CRYPTOGRAPHIC:
        return "authentication failed: its cookie differs from ours, or its FLEETLM_CLUSTER does"
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == MISMATCH:
        if has_cookie:
            return OTHER_HAS_NO_COOKIE
        return "authentication failed: it has a cookie, and this node has none (FLEETLM_COOKIE)"
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "authentication failed: its key is not the cluster's"
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return f"it violated the ZeroMQ protocol (code {value:#x}): is it a fleetlm node?"
    closed = "it closed the connection, or sent nothing, during the ZeroMQ handshake"
    if has_cookie:
        return (
            f"{closed}: perhaps a node with another cookie or without one (FLEETLM_COOKIE), or a health check"
        )
    return f"{closed}: perhaps a health check or a proxy, or a node that has a cookie while this one has none"


def is_no_zeromq(event: int, value: int) -> bool:
    """Whether a failure that the monitor reported shows that the other end does not speak ZeroMQ."""
    return event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value not in (MISMATCH, CRYPTOGRAPHIC)


def explain_refusal_there(event: int, value: int, has_cookie: bool, timeout_s: float | None) -> str | None:
    """Return why a dialled node did not accept this one, from the last failure that the monitor reported.

    A node that refuses a client closes at once, mostly before ZeroMQ here has read its error, and so does a
    proxy that cannot reach the node. Then the monitor does not know why, and the greeting must tell
    (`transport.reasons`).

    Args:
        event: the event of the monitor.
        value: its error code.
        has_cookie: whether this node has a cookie.
        timeout_s: the limit of the handshake in seconds, if it has passed.

    Returns:
        The reason, in which "it" is the node that was dialled; None if the monitor does not know it.
    """
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == MISMATCH:
        return OTHER_HAS_NO_COOKIE if has_cookie else OTHER_WANTS_COOKIE
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "authentication failed: our key is not its cluster's (FLEETLM_COOKIE, FLEETLM_CLUSTER)"
    if timeout_s is not None:
        return (
            f"no ZeroMQ handshake within {timeout_s:g} s: something accepts connections there, but "
            "it is not a fleetlm node, or it is blocked"
        )
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return f"it violated the ZeroMQ protocol (code {value:#x}): is it a fleetlm node?"
    return None
