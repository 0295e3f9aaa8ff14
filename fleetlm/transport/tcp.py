"""Looks at TCP connections whose descriptors belong to libzmq, and ends one of them.

libzmq has no call that ends one peer of a ROUTER. But its monitor names the descriptor of each accepted
connection, and ``shutdown(2)`` on any descriptor of a connection ends it for libzmq too.

*A reused descriptor.* libzmq's thread closes descriptors at any time, and the kernel gives the number to
the next connection or file at once. So a connection is identified when it is accepted (`Copies.identify`),
by its peer and by the cookie that the kernel gives to each socket; `Copies.shut_down` works on a copy of the
descriptor, and only if the copy is still that connection. A copy is held for a moment only: a connection
ends for its peer when its last descriptor is closed.

Source: socket(7), SO_COOKIE; tcp(7), TCP_INFO. Both exist on Linux alone. Elsewhere the address and the port
of the peer identify a connection, and what it has received is not known.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import termios
from typing import Final

from fleetlm.names import canonical_ip
from fleetlm.records import Row

KNOWS_RECEIVED: Final = sys.platform.startswith("linux")
"""Whether `count_received` works on this system."""

_SO_COOKIE: Final = 57
_TCP_INFO: Final[int] = getattr(socket, "TCP_INFO", 11)
_TCP_INFO_BYTES: Final = 256
_DISCARDED_AT_ONCE: Final = 256 * 1024
_DISCARD: Final[int] = socket.MSG_DONTWAIT | (socket.MSG_TRUNC if KNOWS_RECEIVED else 0)
"""On Linux the kernel does not even copy what is thrown away. Source: tcp(7), MSG_TRUNC."""
_rubbish = bytearray(_DISCARDED_AT_ONCE)
"""Where such bytes go elsewhere, from any thread; nothing reads them."""
_BYTES_RECEIVED_AT: Final = 128
"""Offset of ``tcpi_bytes_received``, 64 bits, in Linux's ``struct tcp_info``."""


class Identity(Row):
    """Tells one TCP connection from every other one, also from later ones with its descriptor."""

    ip: str
    port: int
    cookie: bytes
    here: str = ""
    """The address of this machine at which it arrived."""


def copy_of(fd: int) -> socket.socket | None:
    """Return a copy of a descriptor that the caller closes; None if it is not a socket, or not any more."""
    try:
        copy = os.dup(fd)
    except OSError:
        return None
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None


class Copies:
    """Identifies connections of libzmq, and ends them.

    It holds two descriptors of its own, so that a copy can be made while the process has none left.
    """

    def __init__(self) -> None:
        self._nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._place = os.dup(self._nothing)
        """The number that a copy gets for a moment; it leads to nothing between two copies."""

    def identify(self, fd: int) -> Identity | None:
        """Return which connection this descriptor is; None if it is not connected, or not any more."""
        copy = self._copy(fd)
        if copy is None:
            return None
        identity = _identify(copy)
        self._put_back(copy)
        return identity

    def shut_down(self, fd: int, identity: Identity) -> int | None:
        """End a connection in both directions.

        What the kernel has received and libzmq has not taken is thrown away: libzmq would go on taking it,
        some megabytes of it, which cost a multiple in small frames. The kernel takes nothing more from
        the peer.

        Returns:
            The bytes that libzmq has taken since the connection began, 0 where this is not known. None if
            the descriptor is another one by now.
        """
        copy = self._copy(fd)
        if copy is None:
            return None
        taken: int | None = None
        if _identify(copy) == identity:
            with contextlib.suppress(OSError):  # The peer has ended it meanwhile.
                copy.shutdown(socket.SHUT_RDWR)
            taken = max(0, (_received(copy) or 0) - _discard(copy))
        self._put_back(copy)
        return taken

    def close(self) -> None:
        """Close the two descriptors. Idempotent."""
        for fd in (self._nothing, self._place):
            if fd >= 0:
                os.close(fd)
        self._nothing = self._place = -1

    def _copy(self, fd: int) -> socket.socket | None:
        try:
            os.dup2(fd, self._place, inheritable=False)
            return socket.socket(fileno=self._place)
        except OSError:  # It is closed by now, or no socket any more.
            os.dup2(self._nothing, self._place, inheritable=False)
            return None

    def _put_back(self, copy: socket.socket) -> None:
        copy.detach()
        os.dup2(self._nothing, self._place, inheritable=False)


def _discard(sock: socket.socket) -> int:
    """Throw away what has come over a connection that takes nothing more. Returns the number of bytes."""
    discarded = 0
    with contextlib.suppress(OSError):  # The peer has reset it.
        while size := sock.recv_into(_rubbish, _DISCARDED_AT_ONCE, _DISCARD):
            discarded += size
    return discarded


def count_received(fd: int) -> int | None:
    """Return how many bytes have come over a TCP connection; None where this cannot be known.

    Costs a microsecond, since no copy is made: the number may be that of a connection with a reused
    descriptor.
    """
    lent = _lend(fd) if KNOWS_RECEIVED else None
    if lent is None:
        return None
    try:
        return _received(lent)
    finally:
        lent.detach()


def read_cookie(fd: int) -> bytes | None:
    """Return the kernel's cookie of a connection; None if this is not known.

    As `count_received` it makes no copy, and keeps the interpreter's lock.
    """
    lent = _lend(fd) if KNOWS_RECEIVED else None
    if lent is None:
        return None
    try:
        return lent.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
    except OSError:
        return None
    finally:
        lent.detach()


def read_own_address(fd: int) -> tuple[str, int] | None:
    """Return the address and the port at which a connection arrived; None if this is not known.

    As `count_received` it makes no copy, and keeps the interpreter's lock.
    """
    lent = _lend(fd)
    if lent is None:
        return None
    try:
        ip, port = lent.getsockname()[:2]
    except (OSError, ValueError, TypeError):  # It is no connection over IP.
        return None
    finally:
        lent.detach()
    return ip, port


def _lend(fd: int) -> socket.socket | None:
    """Make an object for a descriptor, to be detached at once; None if that is closed or negative."""
    try:  # With a family, a type and a protocol nothing is asked about the descriptor. IPv6 has more room.
        return socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=fd)
    except (OSError, ValueError):
        return None


def _received(sock: socket.socket) -> int | None:
    if not KNOWS_RECEIVED:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _BYTES_RECEIVED_AT + 8:
        return None
    return int.from_bytes(info[_BYTES_RECEIVED_AT : _BYTES_RECEIVED_AT + 8], sys.byteorder)


def limit_unsent(fd: int, most_bytes: int) -> None:
    """Let the kernel take no more than about so many bytes that it cannot send yet.

    The rest waits in libzmq. What the kernel has taken cannot be overtaken, not by libzmq's heartbeats
    either, and it takes up to 4 MiB: 8 s at 4 Mbit/s. Unlike a small send buffer this does not limit
    what is on its way. Where the system has no such limit, nothing happens. Source: tcp(7),
    TCP_NOTSENT_LOWAT.
    """
    option: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    copy = None if option is None else copy_of(fd)
    if copy is None or option is None:
        return
    with copy, contextlib.suppress(OSError):  # It has ended by now.
        copy.setsockopt(socket.IPPROTO_TCP, option, most_bytes)


def count_waiting(fd: int) -> int | None:
    """Return how many received bytes libzmq has not taken from the kernel yet; None if this is not known."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:
        return None


def _identify(sock: socket.socket) -> Identity | None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None  # Another kind of socket has the descriptor by now.
    try:
        ip, port = sock.getpeername()[:2]
        cookie = sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8) if KNOWS_RECEIVED else b""
        here = sock.getsockname()[0]
        return Identity(canonical_ip(ip) or ip, port, cookie, canonical_ip(here) or here)
    except (OSError, IndexError, TypeError, ValueError):
        return None
