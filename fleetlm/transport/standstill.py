"""Bounds what libzmq takes from connections while the node's event loop stands still.

`fleetlm.transport.sweeps` looks from the loop. A handler that works for three seconds without waiting stops
it, and libzmq's own thread goes on reading: a stranger would fill gigabytes. So a thread looks then. It ends
the same connections for the same reason, unread bytes, of which no honest node has so many however long the
loop stands still (`fleetlm.transport.bounds`). Times and counts are left to the loop, since a newcomer cannot
help that nobody answers.

*What it costs.* The thread sleeps until something has come, and then for `GRACE_S`. If the loop has gone on
by then, it sleeps again. So it does nothing on a quiet node, and looks at a few numbers some times a second
on a busy one. It looks at connections only when the memory of the process has grown by `GROWTH_BYTES` since
something came, and a twentieth of the time at most (`PART_OF_TIME`): a loop that is late because many nodes
connect at once would be later with each look, and a process with several nodes has a thread for each.

*Who is looked at.* Connections that the loop knows, those that this node has dialled, and those that were
accepted meanwhile, which only libzmq knows: they are found among the descriptors of the process, by the
address at which they arrived. With the first one that must end, the node accepts no connection any more until
its loop goes on, since whoever is ended would come again at once.

*Who changes what.* The thread reads the loop's tables and changes none of them. It ends connections by
``shutdown(2)`` (`tcp.Copies`, with two descriptors of its own) and passes on which. The loop does the rest
when it goes on. It may see some frames of such a connection before, or find out itself that it must end.

*The interpreter's lock.* A call that releases it waits for it again, up to 5 ms while a handler computes. So
a look uses calls that keep it; only what ends a connection does not. C code that never releases the lock
stops this thread too: what comes meanwhile is bounded by the memory of the machine alone.

Only on Linux: elsewhere what a connection has received is not known.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from fleetlm.names import canonical_ip
from fleetlm.transport.bounds import STRANGER_BYTES, Accepted, Bounds
from fleetlm.transport.tcp import (
    KNOWS_RECEIVED,
    Copies,
    count_received,
    read_cookie,
    read_own_address,
)

GRACE_S: Final = 0.1
"""Seconds after which a loop that has not gone on stands still. libzmq takes up to 100 MB meanwhile from the
same machine, and from a network of 1 Gbit/s 12 MB."""
LOOK_S: Final = 0.05
"""Seconds between two looks while it stands still, at least."""
GROWTH_BYTES: Final = 16 * 1024 * 1024
"""Bytes by which the memory of the process has grown when connections are looked at. What libzmq takes into
memory that was used before does not count, and is bounded by that."""
PART_OF_TIME: Final = 0.05
"""The part of the time in which one node looks while its loop stands still."""
MOST_ANSWERED_BYTES: Final = 256 * 1024
"""Bytes that may come while the loop stands still where heartbeats are all that should: from a node that was
dialled, and from one whose frames travel on a local road. They are the heartbeats of an hour."""
FOREIGN_IN_A_ROW: Final = 1_024
"""After so many numbers in a row that are no TCP connection, those above them are not looked at: a new
descriptor gets the lowest free number. It takes 2 ms."""
MOST_NUMBERS: Final = 65_536
"""Numbers of descriptors that are looked at."""
JOIN_S: Final = 2.0
"""Seconds for the thread to end; it is only late where it waits for the interpreter's lock."""
_MEMORY: Final = "/proc/self/statm"
_PAGE_BYTES: Final = resource.getpagesize()
STOOD_STILL: Final = "while this node's loop stood still, it sent more than any node does"


class Seen(NamedTuple):
    """What a look has found of one connection.

    Attributes:
        fd: its descriptor.
        unread_bytes: what has come over it and was not read.
        most_bytes: how much of that it may have.
        is_stranger: whether it counts in the sum of strangers.
        is_dialled: whether this node has dialled it.
        known: what the loop knows of it, if it does.
    """

    fd: int
    unread_bytes: int
    most_bytes: int
    is_stranger: bool
    is_dialled: bool = False
    known: Accepted | None = None


class Ended(NamedTuple):
    """A connection that was ended.

    Attributes:
        ip: the address of the other end.
        known: what the loop knows of it, if it does.
        is_dialled: whether this node has dialled it.
        taken_bytes: what libzmq had taken of it.
        why: a reason for the log; "it" is the other end.
    """

    ip: str
    known: Accepted | None
    is_dialled: bool
    taken_bytes: int
    why: str


def choose(seen: Iterable[Seen], most_of_strangers: int) -> list[Seen]:
    """Choose the connections that must end, the worst ones first.

    Args:
        seen: all that were looked at.
        most_of_strangers: unread bytes that all strangers may have together.
    """
    ended: list[Seen] = []
    strangers: list[Seen] = []
    for each in seen:
        if each.unread_bytes > each.most_bytes:
            ended.append(each)
        elif each.is_stranger:
            strangers.append(each)
    strangers.sort(key=lambda each: each.unread_bytes)
    left = sum(each.unread_bytes for each in strangers)
    while left > most_of_strangers:
        worst = strangers.pop()
        left -= worst.unread_bytes
        ended.append(worst)
    ended.sort(key=lambda each: -each.unread_bytes)
    return ended


def memory_bytes() -> int:
    """Return how much memory this process has; 0 if that cannot be read."""
    try:
        with open(_MEMORY, "rb") as file:  # noqa: PTH123  # a start does not import pathlib
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


class Standstill:
    """Looks at the connections of one node while its loop stands still.

    Args:
        loop: the node's.
        at: the addresses at which the node listens (empty: all), and its port.
        bounds: knows how much may be unread.
        accepted: the connections that the loop knows, by descriptor.
        dialled: the descriptors of this node's own dials.
        waiting: descriptors that are readable while something has come that the loop has not looked at.
        count_rounds: returns a number that changes when the loop looks.
        stop_accepting: lets no connection in any more; called in the thread.
        ended: takes connections that were ended, on the loop. It lets connections in again.
    """

    def __init__(  # noqa: PLR0913  # the tables of the loop, and what happens to them
        self,
        loop: asyncio.AbstractEventLoop,
        at: tuple[Collection[str], int],
        bounds: Bounds,
        *,
        accepted: Mapping[int, Accepted],
        dialled: Collection[int],
        waiting: Iterable[int],
        count_rounds: Callable[[], int],
        stop_accepting: Callable[[], None],
        ended: Callable[[list[Ended]], None],
    ) -> None:
        self._loop = loop
        self._ips, self._port = at
        self._bounds = bounds
        self._accepted = accepted
        self._dialled = dialled
        self._waiting = tuple(waiting)
        self._count_rounds = count_rounds
        self._stop_accepting = stop_accepting
        self._report = ended
        self._ended: deque[Ended] = deque()
        """Those of which the loop does not know yet."""
        self._is_stopped = False
        """Whether no connection is accepted, until the loop goes on."""
        self._answered: dict[int, int] = {}
        """Descriptor of a connection that brings heartbeats alone → what had come at the first look of this
        standstill."""
        self._foreign: set[bytes] = set()
        """Connections of the program itself, by the kernel's cookies."""
        self._is_over = threading.Event()
        self._copies: Copies | None = None
        self._wake: tuple[int, int] = (-1, -1)
        """Both ends of a pipe: the thread ends when something comes."""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin. Does nothing where the system cannot tell what was received. Raises: OSError."""
        if not KNOWS_RECEIVED:
            return
        self._copies, self._wake = Copies(), os.pipe()
        self._thread = threading.Thread(target=self._run, name="fleetlm standstill", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Idempotent."""
        if self._thread is None:
            return
        self._is_over.set()
        os.write(self._wake[1], b"x")
        self._thread.join(JOIN_S)
        if not self._thread.is_alive():
            for fd in self._wake:
                os.close(fd)
            if self._copies is not None:
                self._copies.close()
        self._thread = None

    # ── in the thread ────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        something = select.poll()
        for fd in (self._wake[0], *self._waiting):
            something.register(fd, select.POLLIN)
        while True:
            something.poll()
            rounds, most_bytes = self._count_rounds(), memory_bytes() + GROWTH_BYTES
            if self._is_over.wait(GRACE_S):
                return
            if self._count_rounds() == rounds:
                self._look_until_it_goes_on(rounds, most_bytes)

    def _look_until_it_goes_on(self, rounds: int, most_bytes: int) -> None:
        self._answered.clear()
        self._foreign.clear()
        while self._count_rounds() == rounds and not self._is_over.is_set():
            took_s, has_bytes = 0.0, memory_bytes()
            if not has_bytes or has_bytes > most_bytes:
                began = time.thread_time()
                for each in choose(self._see(), self._bounds.most_of_strangers):
                    if self._count_rounds() != rounds:
                        return  # The loop looks by itself again.
                    self._end(each)
                took_s = time.thread_time() - began
            self._is_over.wait(max(LOOK_S, took_s / PART_OF_TIME))

    def _see(self) -> Iterator[Seen]:
        """Look at all connections of the node."""
        accepted, dialled = dict(self._accepted), set(self._dialled)
        last_known = max((*accepted, *dialled), default=0)
        foreign = 0
        for fd in range(MOST_NUMBERS):
            received = count_received(fd)
            if received is None:
                foreign += 1
                if foreign >= FOREIGN_IN_A_ROW and fd > last_known:
                    return
                continue
            foreign = 0
            seen = self._describe(fd, received, accepted.get(fd), is_dialled=fd in dialled)
            if seen is not None:
                yield seen

    def _describe(self, fd: int, received: int, known: Accepted | None, *, is_dialled: bool) -> Seen | None:
        """Return what was found of a connection; None if it is not the node's, or ended already."""
        if known is not None and known.identity is not None and known.identity.cookie == read_cookie(fd):
            if known.is_cut:
                return None
            if known.heartbeats is not None:
                return Seen(
                    fd, self._came_since(fd, received), MOST_ANSWERED_BYTES, is_stranger=False, known=known
                )
            unread = received - known.read_bytes
            return Seen(
                fd, unread, self._bounds.most_unread(known), is_stranger=not known.was_peer, known=known
            )
        if is_dialled:
            came = self._came_since(fd, received)
            return Seen(fd, came, MOST_ANSWERED_BYTES, is_stranger=False, is_dialled=True)
        if received and self._is_ours(fd):
            return Seen(fd, received, STRANGER_BYTES, is_stranger=True)
        return None

    def _came_since(self, fd: int, received: int) -> int:
        """Return how much has come since the first look of this standstill, where no frame is ever read."""
        return received - self._answered.setdefault(fd, received)

    def _is_ours(self, fd: int) -> bool:
        """Whether this is a connection to the node, and not to another node or program in this process."""
        cookie = read_cookie(fd)
        if cookie is None or cookie in self._foreign:
            return False
        at = read_own_address(fd)
        is_ours = (
            at is not None and at[1] == self._port and (not self._ips or canonical_ip(at[0]) in self._ips)
        )
        if not is_ours:
            self._foreign.add(cookie)
        return is_ours

    def _end(self, seen: Seen) -> None:
        """End a connection, and have the loop told of it."""
        assert self._copies is not None
        known = seen.known
        identity = self._copies.identify(seen.fd) if known is None else known.identity
        if identity is None:
            return
        if not self._is_stopped:
            self._is_stopped = True
            self._stop_accepting()
        taken = self._copies.shut_down(seen.fd, identity)
        if taken is not None:
            why = f"{STOOD_STILL}: {seen.unread_bytes / 2**20:,.1f} MiB are unread"
            self._ended.append(Ended(identity.ip, known, seen.is_dialled, taken, why))
        with contextlib.suppress(RuntimeError):  # The loop has been closed.
            self._loop.call_soon_threadsafe(self._tell)

    # ── on the loop ──────────────────────────────────────────────────────────────────────────────

    def _tell(self) -> None:
        """Pass on what was ended. The thread asks for this behind each one."""
        self._is_stopped = False
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        self._report(ended)
