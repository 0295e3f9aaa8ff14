"""Ticks of the nodes of one host in shared memory: to tell and to read them wakes nobody.

A tick says that a node's event loop runs. Sent as a frame, it wakes the loop of each peer, every second, and
in a cluster of idle nodes that is most of what they do. So a node also notes its ticks on a *board*, some
bytes of shared memory, and gives its neighbours a descriptor of it when they let it in at their local roads
(`fleetlm.transport.local_roads`). A neighbour that has one looks at it when it ticks itself.

*What a neighbour may do.* It has this node's user, and may note anything on its own board, as it may send any
tick. A board is read with ``pread``, never mapped: if it were cut short, reading a mapped one would end this
process. And it must be memory (`take`), since the file of somebody's file system could keep a reader waiting.

Source: memfd_create(2), fcntl(2) on seals, which Linux alone has. Elsewhere ticks are frames.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import struct
import sys
from typing import Final, NamedTuple

_TICK: Final = struct.Struct("=dI")
"""The time of the tick on the clock of the machine, in seconds, and how late the loop was, in ms."""
_MOST_LAG_MS: Final = 2**32 - 1
_GET_SEALS: Final[int] = getattr(fcntl, "F_GET_SEALS", 1034)
_ADD_SEALS: Final[int] = getattr(fcntl, "F_ADD_SEALS", 1033)
_SIZE_IS_FIXED: Final[int] = getattr(fcntl, "F_SEAL_SHRINK", 2) | getattr(fcntl, "F_SEAL_GROW", 4)


class Tick(NamedTuple):
    """A tick that was noted on a board."""

    at: float
    """When, on the writer's clock: any number that the writer likes, but never NaN."""
    lag_ms: int
    """How late the event loop was."""


class OwnBoard:
    """The board of this node. Raises: OSError, AttributeError: this system has no such memory.

    Attributes:
        fd: to be given to neighbours.
    """

    def __init__(self) -> None:
        self.fd: int = -1
        if not sys.platform.startswith("linux"):
            raise OSError(errno.ENOSYS, "this system has no memory with a descriptor")
        self.fd = os.memfd_create("fleetlm-ticks", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, _TICK.size)
            fcntl.fcntl(self.fd, _ADD_SEALS, _SIZE_IS_FIXED)
        except OSError:
            self.close()
            raise

    def note(self, at: float, lag_ms: int) -> None:
        """Note a tick, in place of the former one."""
        if self.fd >= 0:
            os.pwrite(self.fd, _TICK.pack(at, min(lag_ms, _MOST_LAG_MS)), 0)

    def close(self) -> None:
        """Close the descriptor; neighbours read the last tick as long as they like. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Board:
    """The board of a neighbour; see `take`."""

    __slots__ = ("_fd", "_last")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last = b""

    def read(self) -> Tick | None:
        """Return the last tick; None if there is none, or none since the last call."""
        noted = os.pread(self._fd, _TICK.size, 0) if self._fd >= 0 else b""
        if noted == self._last or len(noted) < _TICK.size:
            return None
        self._last = noted
        at, lag_ms = _TICK.unpack(noted)
        return None if not at or math.isnan(at) else Tick(at, lag_ms)

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def take(fd: int) -> Board | None:
    """Make a board of a descriptor that a neighbour has given, or close it if it is anything else."""
    try:
        if fcntl.fcntl(fd, _GET_SEALS) & _SIZE_IS_FIXED == _SIZE_IS_FIXED:  # Only memory has seals.
            return Board(fd)
    except OSError:
        pass
    os.close(fd)
    return None
