"""The file descriptors of a node's connections, and what it does when the process is short of descriptors.

libzmq ends the whole process where some of its calls get no descriptor (its first socket, the lookup of a
source address), and its thread runs without a pause while a connection waits that it cannot accept. So a
dial needs `FDS_FOR_DIAL` free descriptors and `FDS_KEPT` more, and below `FDS_TO_ACCEPT` the listening socket
takes no connection: a packet filter drops the packets that begin one. To close the socket would end all
connections that it has accepted. The peers dial again later, since their dials are not answered.

Source: socket(7), SO_ATTACH_FILTER; only on Linux. Elsewhere only the dials stop.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import resource
import socket
import struct
import sys
from array import array
from collections.abc import Collection, Iterator
from typing import Final

from fleetlm.names import canonical_ip
from fleetlm.transport.leftovers import EVERYBODY
from fleetlm.transport.packet_filter import INSTRUCTION_BYTES, drop_all, drop_from
from fleetlm.transport.tcp import copy_of

log: logging.Logger = logging.getLogger("fleetlm.zmq")

FDS_TO_START: Final = 25
"""Descriptors that must be free at the start: libzmq takes 12, the router 8, and the local roads 2, one
of them for the board of ticks; the spare ones come on top."""
FDS_FOR_DIAL: Final = 5
"""A DEALER, both ends of its monitor, the lookup of its source address, and the connection."""
FDS_KEPT: Final = 16
"""Descriptors that dials leave free at least. Accepting begins again when so many and the spare ones are
free."""
MOST_FDS_KEPT: Final = 64
"""Of many descriptors dials leave a quarter free, up to so many. libzmq's thread opens those of a dial a
moment after they were counted, and may accept a flood of connections in between."""
QUIET_S: Final = 600.0
"""Seconds in which a shortage is said once, however often it comes and goes."""
FDS_TO_ACCEPT: Final = 2
"""With fewer free descriptors no connection is accepted."""
SPARE_FDS: Final = 8
"""Descriptors that a node holds, to take connections that wait when none are left, and close them. The
thread of ZeroMQ tries to accept them all the time, and mostly takes a descriptor that becomes free; so each
spare one disposes of one connection. Peers dial a few at a time."""
_LOOKED_FOR: Final = FDS_KEPT + SPARE_FDS
_COUNT_BELOW: Final = 256
"""As long as so many are free for certain, they are not counted again for each dial."""

_ATTACH_FILTER: Final = 26
_DETACH_FILTER: Final = 27


class Descriptors:
    """Knows how many descriptors are free, without counting them for each dial."""

    def __init__(self) -> None:
        self._free = 0
        self._promised = 0
        """Descriptors for the dials since `count`: libzmq's thread may not have opened them yet."""
        self._kept = FDS_KEPT
        self._told_at = -math.inf

    def count(self) -> int:
        """Count the free descriptors again, and return their number."""
        self._free, self._promised = count_free(), 0
        self._kept = max(FDS_KEPT, min(MOST_FDS_KEPT, limit_of_descriptors() // 4))
        return self._free

    def look(self) -> int:
        """Return how many descriptors are free, at most `_LOOKED_FOR`. Cheap: it is asked every second.

        To list ten thousand descriptors takes 40 ms. But a new one gets the lowest free number, so its number
        is a bound for how many are free, close enough where none has been closed lately.
        """
        held: list[int] = []
        with contextlib.suppress(OSError):
            while len(held) < _LOOKED_FOR:
                held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        for fd in held:
            os.close(fd)
        is_short = len(held) < _LOOKED_FOR
        self._free, self._promised = len(held) if is_short else limit_of_descriptors() - held[-1], 0
        return len(held)

    def take(self, count: int) -> None:
        """Note that ``count`` descriptors will be used. Raises: OSError, if too few would remain free."""
        if self._free - count < _COUNT_BELOW:
            self._free = count_free() - self._promised
        if self._free < count + self._kept:
            raise OSError(errno.EMFILE, f"fewer than {count + self._kept} file descriptors are free")
        self._free -= count
        self._promised += count

    def tell(self, now: float, where: str) -> None:
        """Log, once in `QUIET_S`, that this node could not dial ``where`` since too few are free."""
        if now < self._told_at + QUIET_S:
            return
        self._told_at = now
        log.warning(
            "only %d of %d file descriptors are free: this node does not dial %s now, and perhaps others, "
            "and tries again; raise the limit of open files (`ulimit -n`)",
            self._free,
            limit_of_descriptors(),
            where,
        )


class Accepting:
    """Pauses and resumes accepting connections on the listening sockets of one node.

    Args:
        ips: the addresses at which it listens; empty: all.
        port: its port.
    """

    def __init__(self, ips: Collection[str], port: int) -> None:
        self._sockets = list(_find_listeners(ips, port)) if sys.platform.startswith("linux") else []
        self._spare: list[int] = []
        self.is_paused: bool = False
        self._turned_away: frozenset[str] = frozenset()
        self._told_at = -math.inf
        self._take_spare()

    def look(self, free: int, now: float) -> None:
        """Pause or resume, whichever ``free`` descriptors ask for. Logs it, once in `QUIET_S`."""
        if not self.is_paused and free < FDS_TO_ACCEPT:
            self.is_paused = True
            self._attach(drop_all())  # Nothing may be imported here: that takes a descriptor.
            self._close_waiting()
            if now < self._told_at + QUIET_S:
                return
            self._told_at = now
            log.warning(
                "%d of %d file descriptors are free: this node dials no peer and accepts no connection until "
                "more are; raise the limit of open files (`ulimit -n`), or find what opens so many "
                "(`ls -l /proc/%d/fd`)",
                free,
                resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                os.getpid(),
            )
        elif self.is_paused and free >= FDS_KEPT + SPARE_FDS:
            self.is_paused = False
            self._take_spare()
            self.turn_away(self._turned_away)
            log.debug("enough file descriptors are free again: this node dials and accepts connections")

    def turn_away(self, ips: frozenset[str]) -> None:
        """Take no connection from these addresses, or from any if `EVERYBODY` is given; replaces what was."""
        self._turned_away = ips
        if self.is_paused:
            return  # No connection is taken anyway, and what was given follows when it goes on.
        if ips:
            self._attach(drop_all() if ips == EVERYBODY else drop_from(ips))
        else:
            self._filter(_DETACH_FILTER, struct.pack("i", 0))

    def stop(self) -> None:
        """Take no connection until `go_on`. May be called in any thread."""
        self._attach(drop_all())

    def go_on(self) -> None:
        """Take connections again, but for those that were not taken before `stop`."""
        self.turn_away(self._turned_away)

    def close(self) -> None:
        """Close what this object holds. Idempotent."""
        for each in self._sockets:
            each.close()
        self._sockets.clear()
        while self._spare:
            os.close(self._spare.pop())

    def _attach(self, program: bytes) -> None:
        held = array("B", program)
        self._filter(
            _ATTACH_FILTER, struct.pack("HP", len(program) // INSTRUCTION_BYTES, held.buffer_info()[0])
        )

    def _filter(self, option: int, value: bytes) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, option, value)

    def _close_waiting(self) -> None:
        """Close the connections that wait already: libzmq would try to accept them again and again."""
        for each in self._sockets:
            while True:
                try:
                    each.accept()[0].close()
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._spare:
                        break
                    os.close(self._spare.pop())

    def _take_spare(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._spare) < SPARE_FDS:
                self._spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def count_free() -> int:
    """Return how many descriptors this process may still open: the limit, where it cannot be known."""
    limit = limit_of_descriptors()
    try:
        used = sum(int(entry) < limit for entry in os.listdir("/dev/fd"))  # noqa: PTH208
    except OSError as error:
        return 0 if error.errno in (errno.EMFILE, errno.ENFILE) else limit
    return max(0, limit - used + 1)  # The folder itself was open while it was listed.


def limit_of_descriptors() -> int:
    """Return how many descriptors this process may have open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def own_tcp_sockets() -> Iterator[tuple[int, socket.socket]]:
    """Yield the TCP sockets of this process: each descriptor, with a copy that the caller closes.

    ZeroMQ does not tell its descriptors, so they are found among all, by their addresses.
    """
    try:
        descriptors = [int(entry) for entry in os.listdir("/dev/fd")]  # noqa: PTH208
    except OSError:
        return
    for fd in descriptors:
        copy = copy_of(fd)
        if copy is None:  # Such as the descriptor of the folder itself, which is closed by now.
            continue
        if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
            yield fd, copy
        else:
            copy.close()


def close_copies(port: int, targets: Collection[tuple[str, int]]) -> None:
    """Close this process's descriptors of the TCP connections of a node, in a forked child.

    Args:
        port: the port on which the node listens: of the listener, and of each connection that it accepted.
        targets: the addresses that the node has dialled.
    """
    for fd, copy in own_tcp_sockets():
        with copy, contextlib.suppress(OSError):
            if _is_connection_of(copy, port, targets):
                os.close(fd)


def _is_connection_of(sock: socket.socket, port: int, targets: Collection[tuple[str, int]]) -> bool:
    if sock.getsockname()[1] == port:
        return True
    try:
        return sock.getpeername()[:2] in targets
    except OSError:
        return False


def _find_listeners(ips: Collection[str], port: int) -> Iterator[socket.socket]:
    """Yield copies of this process's listening sockets at ``port``."""
    for _, copy in own_tcp_sockets():
        with contextlib.suppress(OSError):
            if _listens(copy, ips, port):
                copy.setblocking(False)
                yield copy
                continue
        copy.close()


def _listens(sock: socket.socket, ips: Collection[str], port: int) -> bool:
    host, found = sock.getsockname()[:2]
    is_listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return bool(is_listening) and found == port and (not ips or canonical_ip(host) in ips)
