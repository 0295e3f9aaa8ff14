"""Looks at the connections over which something has come, soon after it has, and ends those beyond a bound.

An ``epoll`` of its own names them, edge-triggered, so that a quiet connection costs nothing. While there are
strangers, or much is unread, a sweep follows each `SWEEP_S`; else the first bytes that come make one due
after that time. A new connection is looked at after `SUSPECT_S`. Where it has sent more than it should by
then, or a message seems to have no end, the next sweep follows after that time too, since small parts of
messages take much more memory than bytes on the wire.

*What epoll would hide.* It tells what is ready at the moment of the question. libzmq reads all the time, so
a connection whose bytes it has taken by then would not be named, and who sends a little now and then could
have as much as it likes unread. So a connection is watched for writing too: it is writable nearly always, and
each arrival of bytes names it then. One that is not writable, because its other end reads nothing, is found
by looks at all connections in turn, `LOOKS_IN_TURN` in each sweep.

*Where frames have moved to a local road*, only heartbeats come. They wake nobody: such connections are
looked at by `Sweeps.recheck`, about once a second. A flood of such a peer is noticed that much later, but a
local road leads to a process of this node's user, which could stop this node by a signal.

Everything happens on the node's loop: while that stands still, `fleetlm.transport.standstill` looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from fleetlm.transport.bounds import UNCERTAIN_BYTES, Accepted, Bounds, Offence
from fleetlm.transport.tcp import count_received, count_waiting

SWEEP_S: Final = 0.05
"""Seconds between two looks at what has come and was not read: a fast network brings 50 MB meanwhile."""
SUSPECT_S: Final = 0.01
"""The same while a message seems to have no end, and for a new connection. In this time libzmq takes parts
that need some 5 MB."""
MAX_LOOKS: Final = 128
"""Connections looked at in one sweep because something has come; some 2 us each. The others are first in the
next one."""
LOOKS_IN_TURN: Final = 8
"""Further connections looked at in one sweep: all of a thousand within some seconds."""
LONGEST_SWEEP_S: Final = 0.5
"""A sweep that is later than this is late since the loop stood still, which is no stranger's fault."""
if sys.platform.startswith("linux"):
    _Epoll = select.epoll
    _EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
else:
    _Epoll = Any
    _EVENTS = 0


class Sweeps:
    """The looks of one node at its connections.

    Args:
        loop: the node's.
        bounds: decides what must end.
        accepted: every established connection that this node has accepted, by descriptor.
        end: ends connections.
        read_soon: makes the ROUTER read what it has.
        count_drains: returns how many times the ROUTER had no frame left.

    Attributes:
        alive_s: seconds in which this node's loop ran, while sweeps were due.
        is_quiet: whether no sweep is due before something comes.
        count: how many sweeps there were.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bounds: Bounds,
        accepted: Mapping[int, Accepted],
        end: Callable[[Iterable[Offence]], None],
        read_soon: Callable[[], None],
        count_drains: Callable[[], int],
    ) -> None:
        self.alive_s: float = 0.0
        self.is_quiet: bool = True
        self.count: int = 0
        self._loop = loop
        self._bounds = bounds
        self._accepted = accepted
        self._end = end
        self._read_soon = read_soon
        self._count_drains = count_drains
        self._changed: _Epoll | None = None
        """Names the connections over which something has come; None where the system has no ``epoll``."""
        self._calm: _Epoll | None = None
        """Likewise those over which heartbeats alone should come; nothing wakes up for them."""
        if sys.platform.startswith("linux"):
            self._changed, self._calm = select.epoll(), select.epoll()
        self._dialled: dict[int, Callable[[int], None]] = {}
        """Descriptors of this node's own dials → what looks at how much has come back over them."""
        self._in_turn: Iterator[int] = iter(())
        self._swept_at = self._due_at = 0.0
        self._next: asyncio.TimerHandle | None = None
        self._is_watching = False
        """Whether the loop waits for the first bytes that come."""

    def notice(self, fd: int) -> None:
        """Look at a new connection soon, and in each sweep before which something has come over it."""
        self._register(fd)
        self._be_due(SUSPECT_S)

    def watch(self, fd: int, look: Callable[[int], None]) -> None:
        """Call ``look`` with the bytes received over a dialled connection, soon after some have come."""
        self._dialled[fd] = look
        self._register(fd)
        self._be_due(SWEEP_S)

    def unwatch(self, fd: int, look: Callable[[int], None]) -> None:
        """Undo a `watch`, unless the descriptor is another connection's by now. Idempotent."""
        if self._dialled.get(fd) == look:
            del self._dialled[fd]

    def calm(self, fd: int, look: Callable[[int], None] | None = None) -> None:
        """Look at a connection in each `recheck` from now on, and not soon after something has come.

        Args:
            fd: its descriptor; nothing happens if it is another connection's by now.
            look: what watches it, if this node has dialled it.
        """
        if self._changed is None or self._calm is None or (look and self._dialled.get(fd) != look):
            return
        with contextlib.suppress(OSError):  # It has ended already.
            self._changed.unregister(fd)
            self._calm.register(fd, _EVENTS)

    def recheck(self) -> None:
        """Look at the calm connections over which something has come. Called about every second."""
        if self._calm is not None:
            for fd, _ in self._calm.poll(0, MAX_LOOKS):
                self._look(fd)

    @property
    def dialled(self) -> Collection[int]:
        """The descriptors of this node's own dials."""
        return self._dialled

    @property
    def waiting_fds(self) -> list[int]:
        """A descriptor that is readable while something has come that no sweep has looked at, if any."""
        return [] if self._changed is None else [self._changed.fileno()]

    def close(self) -> None:
        """Stop. Idempotent."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self._stop_watching()
        for names in (self._changed, self._calm):
            if names is not None:
                names.close()
        self._changed = self._calm = None

    def _register(self, fd: int) -> None:
        if self._changed is not None:
            with contextlib.suppress(OSError):  # It has ended already.
                self._changed.register(fd, _EVENTS)

    def _be_due(self, within_s: float) -> None:
        """See to it that a sweep follows after ``within_s``, or sooner if it is due anyway."""
        self._stop_watching()
        now = self._loop.time()
        if self._next is None:
            self.is_quiet = False
            self._swept_at = now
        elif self._due_at > now + within_s:
            self._next.cancel()
        else:
            return
        self._sweep_after(now, within_s)

    def _sweep_after(self, now: float, seconds: float) -> None:
        self._due_at = now + seconds
        self._next = self._loop.call_at(self._due_at, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        self.alive_s += min(now - self._swept_at, LONGEST_SWEEP_S)
        self._swept_at, self._next = now, None
        self.count += 1
        self._end(self._bounds.expire(self.alive_s))
        is_uncertain = is_suspect = False
        named = [] if self._changed is None else [fd for fd, _ in self._changed.poll(0, MAX_LOOKS)]
        for fd in (*named, *self._take_in_turn()):
            known = self._look(fd)
            if known is not None:
                is_uncertain = is_uncertain or known.unread_bytes > UNCERTAIN_BYTES
                is_suspect = is_suspect or self._bounds.is_suspect(known)
        if is_suspect:
            self._read_soon()  # Only when nothing is left to read, it is known to have no end.
        self.is_quiet = not (is_uncertain or self._bounds.strangers)
        if not self.is_quiet:
            self._sweep_after(now, SUSPECT_S if is_suspect else SWEEP_S)
        elif self._changed is not None:
            self._loop.add_reader(self._changed.fileno(), self._be_due, SWEEP_S)
            self._is_watching = True

    def _look(self, fd: int) -> Accepted | None:
        """Look at one connection. Returns it if it goes on."""
        received = count_received(fd)
        if received is None:
            return None
        if fd in self._dialled:
            self._dialled[fd](received)
        known = self._accepted.get(fd)
        if known is None or known.is_cut:
            return None
        if known.heartbeats is not None:
            offences = self._bounds.look_beside(known, self._loop.time(), received)
            self._end(offences)
            return None if offences else known
        waiting = count_waiting(fd) if received - known.read_bytes > UNCERTAIN_BYTES else None
        offences = self._bounds.look(known, received, waiting, self._count_drains())
        self._end(offences)
        return None if offences else known

    def _take_in_turn(self) -> list[int]:
        """Return the next few connections, whether something has come or not."""
        taken: list[int] = []
        for _ in range(min(LOOKS_IN_TURN, len(self._accepted))):
            fd = next(self._in_turn, None)
            if fd is None:
                self._in_turn = iter(list(self._accepted))
                fd = next(self._in_turn)
            taken.append(fd)
        return taken

    def _stop_watching(self) -> None:
        if self._is_watching and self._changed is not None:
            self._is_watching = False
            self._loop.remove_reader(self._changed.fileno())
