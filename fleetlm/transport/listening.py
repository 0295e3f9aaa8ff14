"""Takes a port for a node: the first free one of a range, on its address and its aliases.

The listening socket itself is the lock. It is made here, before the node has a name, and handed to ZeroMQ
when the node starts (``ZMQ_USE_FD``); connections that come in between wait in the kernel. It disappears with
the process, so nothing can be stale: no file, no lease.

What the kernel decides, on Linux:

* ``SO_REUSEADDR`` lets a node listen again while connections of its former process are in TIME_WAIT. It lets
  no two sockets *listen* on one address and port (only ``SO_REUSEPORT`` would, which is never set), nor one
  on an address and another on all addresses. Two processes that bind at the same moment may both succeed; the
  second `listen` fails, so a port is taken only after both.
* A port that an outgoing connection uses as its local port is in use as well: the next one is taken.

Elsewhere (BSD, macOS) a socket on one address and one on all addresses may share a port. A node listens on
all addresses only where it is told to (FLEETLM_BIND).

Source: epmd's port and registration; differs: no daemon, the kernel's table of sockets is the registry.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Sequence
from typing import Final

from fleetlm.names import endpoint

log: logging.Logger = logging.getLogger("fleetlm.zmq")

BACKLOG: Final = 1_024
"""Connections that may wait to be accepted: all peers of a large cluster may dial at the same time."""

Taken = tuple[str, socket.socket]
"""An address, ``*`` for all of them, and the socket that listens there."""


class Listening:
    """The port of a node, and the sockets that listen there until `hand_over`.

    Attributes:
        port: the port.
        ips: the addresses of this machine at which the node listens, its own one first; empty: all.
    """

    def __init__(self, port: int, own: Taken) -> None:
        self.port: int = port
        self._taken = [own]

    @property
    def ips(self) -> tuple[str, ...]:
        """See the class."""
        return tuple(ip for ip, _ in self._taken if ip != "*")

    def listen_at(self, ips: Sequence[str], explain: str) -> None:
        """Listen at further addresses too, and warn of those where that fails."""
        for ip in ips:
            try:
                self._taken.append((ip, listen_at(ip, self.port)))
            except OSError as error:
                where = endpoint(ip, self.port)
                log.warning("%s %s cannot connect: %s", explain, where, error.strerror)

    def sockets(self) -> list[Taken]:
        """The addresses and their sockets, which stay those of this object."""
        return list(self._taken)

    def close(self) -> None:
        """Give the port back, unless its sockets were detached. Idempotent."""
        for _, sock in self._taken:
            sock.close()


def take_port(ip: str, ports: Sequence[int]) -> Listening:
    """Listen on the first port that is free.

    Args:
        ip: an address of this machine, or ``*`` for all of them.
        ports: the ports to try, in their order.

    Raises:
        OSError: no port could be taken; the error of the last one, or the first that is not EADDRINUSE.
    """
    refused = OSError(errno.EADDRINUSE, "no port was given")
    for port in ports:
        try:
            return Listening(port, (ip, listen_at(ip, port)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            refused = error
    raise refused


def listen_at(ip: str, port: int, backlog: int = BACKLOG) -> socket.socket:
    """Make a socket that listens on ``ip:port``, or on all addresses of both families for ``*``.

    Args:
        ip: an address of this machine, or ``*``.
        port: 0: one that the system chooses.
        backlog: connections that may wait to be accepted.

    Raises:
        OSError: the address cannot be used, or the port is taken.
    """
    if ip != "*":
        return _open(socket.AF_INET6 if ":" in ip else socket.AF_INET, ip, port, backlog)
    try:
        return _open(socket.AF_INET6, "::", port, backlog)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _open(socket.AF_INET, "0.0.0.0", port, backlog)  # noqa: S104  # a machine without IPv6


def _open(family: socket.AddressFamily, host: str, port: int, backlog: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        sock.bind((host, port))
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
