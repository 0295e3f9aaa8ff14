"""Finds out why a dial failed, where ZeroMQ does not say: connects once more with a plain socket.

ZeroMQ's monitor hides two things. A failed connect has no errno there. And a connection that ends during the
handshake looks alike whether the node refused this one's cookie, or a proxy (a service mesh's sidecar, a load
balancer) accepted the connection for a node that does not listen. The greeting tells them apart: libzmq sends
it before anything is checked, and it names the security mechanism, CURVE with a cookie and NULL without.

Source: ZMTP 3.1 (RFC 37): a greeting has 64 bytes, of which 10 are the signature and 20 the mechanism.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Final

from fleetlm.texts import SHORT
from fleetlm.transport.monitor import OTHER_HAS_NO_COOKIE, OTHER_WANTS_COOKIE
from fleetlm.transport.sockets import may_dial_from, source_address

TIMEOUT_S: Final = 0.25
"""Seconds to find the reason of a failed dial. Short, since the failure itself is known already."""
GREETING_BYTES: Final = 64

_MECHANISM = slice(12, 32)
_BEGINNING: Final = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01"
"""Signature and version. ZeroMQ answers them with its whole greeting. The mechanism is left out: ZeroMQ
closes the connection after one that it does not accept, and what it has sent may be lost."""

Found = int | bytes | None
"""What a probe found: an errno; what the other end sent before it closed or the time ended; None if the
connection could not be made in time."""


class ReasonProbe:
    """Connects to an address, and reads the greeting of the program that listens there.

    Args:
        loop: the event loop.
        ip: the address.
        port: the port.
        own_ip: address to dial from, or None for the kernel's choice.
        report: called once with what was found, from the loop, unless `close` comes first.
    """

    __slots__ = ("_loop", "_read", "_report", "_sock", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ip: str,
        port: int,
        own_ip: str | None,
        report: Callable[[Found], None],
    ) -> None:
        self._loop = loop
        self._report = report
        self._read: bytes | None = None
        family, _ = source_address(ip)
        self._timer = loop.call_later(TIMEOUT_S, self._finish)
        self._sock: socket.socket | None = None
        try:
            self._sock = sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            if own_ip and may_dial_from(own_ip, ip):
                sock.bind(source_address(own_ip)[1])
            code = sock.connect_ex((ip, port))
        except OSError as error:
            code = error.errno or errno.EIO
        if self._sock is not None and code in (0, errno.EINPROGRESS):
            loop.add_writer(self._sock, self._take_connection)
        else:
            self._timer.cancel()
            self._timer = loop.call_later(0, self._end, code)

    def close(self) -> None:
        """Give up without reporting anything. Idempotent."""
        self._timer.cancel()
        if self._sock is not None:
            self._loop.remove_writer(self._sock)
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    def _take_connection(self) -> None:
        """The connect has ended: begin a greeting, and wait for the other one."""
        assert self._sock is not None
        self._loop.remove_writer(self._sock)
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._end(code)
            return
        self._read = b""
        self._loop.add_reader(self._sock, self._read_greeting)
        try:
            self._sock.send(_BEGINNING)  # It fits into an empty buffer.
        except OSError:
            self._finish()

    def _read_greeting(self) -> None:
        assert self._sock is not None
        assert self._read is not None
        try:
            part = self._sock.recv(GREETING_BYTES)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        self._read += part
        if not part or len(self._read) >= GREETING_BYTES or not _may_be_greeting(self._read):
            self._finish()

    def _finish(self) -> None:
        self._end(self._read)

    def _end(self, found: Found) -> None:
        self.close()
        self._report(found)


def explain_errno(found: Found) -> str:
    """Return why a connect failed, in words."""
    if isinstance(found, int):
        return os.strerror(found).lower()
    if found is None:
        return "connection refused, or the host cannot be reached"
    return "connection refused a moment ago; it accepts connections now"


def explain_greeting(found: Found, has_cookie: bool) -> str:
    """Return why a connection ended during the handshake. In the text "it" is what was dialled.

    What the greeting proves is stated; what remains likely is marked with "perhaps".

    Args:
        found: what a `ReasonProbe` found.
        has_cookie: whether this node has a cookie.
    """
    closed = "it closed the connection during the ZeroMQ handshake"
    if found is None or isinstance(found, int):
        return f"{closed}, and now: {explain_errno(found)}"
    if not found:
        return (
            "it accepts connections and closes them at once: perhaps a proxy or a sidecar accepts them for a "
            "node that does not listen"
        )
    if is_no_greeting(found):
        return f"it is not a fleetlm node: it answers {SHORT.repr(found)}"
    mechanism = found[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")
    if mechanism == "NULL":
        return OTHER_HAS_NO_COOKIE if has_cookie else f"{closed}: perhaps it was just ending"
    if mechanism == "CURVE":
        if has_cookie:
            return (
                "authentication failed: its cookie differs from ours (FLEETLM_COOKIE), or its "
                "FLEETLM_CLUSTER does, or it was just ending"
            )
        return OTHER_WANTS_COOKIE
    return f"{closed}: is it a fleetlm node?"


def is_no_greeting(found: Found) -> bool:
    """Whether the other end has sent something that is not a greeting of ZeroMQ."""
    return isinstance(found, bytes) and bool(found) and not _may_be_greeting(found)


def _may_be_greeting(data: bytes) -> bool:
    """Whether these bytes are, or begin, the greeting of ZeroMQ."""
    return data[:1] == b"\xff" and data[9:10] in (b"", b"\x7f")
