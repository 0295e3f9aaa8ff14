"""What peers have sent and this node has not taken yet: a turn of the event loop must not last longer for it.

A frame may hold thousands of messages, and each of them may be costly: a process to spawn, a link, a name.
`Inbound` stops when the time of a turn is over, and what is left of the frame comes here. Everything that
comes from the same source meanwhile queues behind it, also the end of its connection, whichever half of it
ends first: the last word of a node that has left may stand in the queue. In each of the next
turns of the loop the sources with a queue are served for half of `Settings.inbound_turn_s` in all, one after
the other; the next turn begins with the next of them. So a peer that floods holds up itself, and other peers
for the time of one turn.

**Pauses.** A call takes two or three rounds of the loop until it is answered: its frame is read, its process
goes on, the answer leaves. If each of these rounds had a turn of the queues in it, every call would take up
to three turns longer. So a turn is followed by a pause, in which the rest of the node has the loop for
itself. It lasts for a round at least, in which the sockets are read; then it ends with the first round in
which nothing else was done, or when it has lasted for `Settings.inbound_turn_s`. So the rest of the node has
two thirds of the loop's time if it needs that, and what it does not need goes to the queues. Pauses are
measured in processor time of the loop's thread: while the system runs other programs, the rest of the node
does nothing.

A queue holds what is in flight on its connection, which the peer's window bounds; signals come on top. A peer
that sends more than `Settings.max_unread_bytes` ignores its window.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from time import thread_time
from typing import Any, Self

QUIET_S = 0.000_03
"""Processor seconds of a round of the loop in which hardly anything else was done. An empty round takes some
2 us, and one in which a call is read or answered takes 50. On a slow machine no round is quiet, and pauses
last as long as turns."""


class Rest:
    """The messages of a frame that were not delivered yet, in slices. A slice that was begun can be put back.

    (A chain of iterators would grow by a link with each turn, and each link keeps what it has delivered.)

    Args:
        slices: the messages, in their order.
    """

    __slots__ = ("_begun", "_slices")

    def __init__(self, slices: Iterable[list[Any]]) -> None:
        self._slices = iter(slices)
        self._begun: list[Any] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[Any]:
        begun, self._begun = self._begun, None
        return next(self._slices) if begun is None else begun

    def put_back(self, begun: list[Any]) -> Self:
        """Let these messages come next. Returns this object."""
        self._begun = begun
        return self


class _Queue:
    """What has come from one source: the rest of a frame, then frames."""

    __slots__ = ("frames", "is_parked", "lost", "rest", "size_bytes")

    def __init__(self, rest: Rest | None) -> None:
        self.rest: Rest | None = rest
        self.is_parked = False
        """Whether a large message is being unpacked, and nothing behind it may be taken."""
        self.frames: deque[tuple[bytes, memoryview | None]] = deque()
        """Each with its tail, if it has one."""
        self.size_bytes = 0
        """Of the frames."""
        self.lost: Callable[[], None] | None = None
        """Called behind the frames, if the connection has ended."""


class Backlog:
    """The queues of all sources of a node.

    Args:
        loop: the node's event loop.
        max_bytes: bytes of frames that may queue for one source.
        go_on: delivers more of a frame, and returns what is left of it then.
        take: takes a frame; what is left of it comes back through `begin`.
        is_over: whether the turn is over, and ``begin_turn`` begins the next one.
        pause_s: seconds of a pause at most; 0 for none.
    """

    __slots__ = (
        "_begin_turn", "_ended_at", "_go_on", "_is_over", "_is_scheduled", "_looked_at", "_loop",
        "_max_bytes", "_pause_s", "_rounds", "_take", "queues",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        max_bytes: int,
        *,
        go_on: Callable[[bytes, Rest], Rest | None],
        take: Callable[[bytes, bytes, memoryview | None], None],
        begin_turn: Callable[[], None],
        is_over: Callable[[], bool],
        pause_s: float = 0.0,
    ) -> None:
        self._loop = loop
        self._max_bytes = max_bytes
        self._go_on = go_on
        self._take = take
        self._begin_turn = begin_turn
        self._is_over = is_over
        self.queues: dict[bytes, _Queue] = {}
        """By source; the one that is served next comes first."""
        self._is_scheduled = False
        self._pause_s = pause_s
        self._ended_at = 0.0
        """When the last turn was over, in processor time. A frame's first turn is `Inbound`'s."""
        self._looked_at = 0.0
        """When the last round of the loop was over in this pause."""
        self._rounds = 0
        """Rounds of the loop in this pause."""

    def __contains__(self, source: bytes) -> bool:
        """Whether what comes from this source must queue."""
        return source in self.queues

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the sources whose frames queue."""
        return iter(self.queues)

    def begin(self, source: bytes, rest: Rest) -> None:
        """Keep the rest of a frame for the next turn."""
        queue = self.queues.get(source)
        if queue is None:
            self.queues[source] = _Queue(rest)
        else:
            queue.rest = rest
        self._schedule()

    def park(self, source: bytes) -> None:
        """Take nothing from this source until `resume`: its large message is being unpacked."""
        queue = self.queues.setdefault(source, _Queue(None))
        queue.is_parked = True

    def resume(self, source: bytes, rest: Rest | None) -> None:
        """Go on with a source after `park`, first with ``rest``."""
        queue = self.queues[source]
        queue.is_parked = False
        queue.rest = rest
        self._schedule()

    def add(self, source: bytes, frame: bytes, tail: memoryview | None = None) -> int:
        """Queue a frame behind what has come before. After `end` it is dropped.

        Args:
            source: where it comes from.
            frame: the frame, or its first part.
            tail: its second part.

        Returns:
            0; or the bytes that would wait then, if they are too many: the frame was not queued.
        """
        queue = self.queues[source]
        if queue.lost is not None:
            return 0
        size_bytes = queue.size_bytes + _size(frame, tail)
        if size_bytes > self._max_bytes:
            return size_bytes
        queue.size_bytes = size_bytes
        queue.frames.append((frame, tail))
        return 0

    def end(self, source: bytes, lost: Callable[[], None]) -> None:
        """Note that the connection of a source has ended; ``lost`` is called behind what has come before."""
        queue = self.queues[source]
        if queue.lost is None:
            queue.lost = lost

    def drop(self, source: bytes) -> None:
        """Forget what has come from a source: its session is over."""
        self.queues.pop(source, None)

    def clear(self) -> None:
        """Forget everything: the node leaves."""
        self.queues.clear()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._begin_pause()
            self._loop.call_soon(self._turn)

    def _begin_pause(self) -> None:
        if self._pause_s:
            self._ended_at = self._looked_at = thread_time()
            self._rounds = 0

    def _is_pausing(self) -> bool:
        """Note that a round of the loop is over. Returns whether the rest of the node goes on first."""
        now = thread_time()
        round_s, self._looked_at = now - self._looked_at, now
        self._rounds += 1
        if now - self._ended_at >= self._pause_s:
            return False
        # What has come during the turn is read in the first round.
        return self._rounds == 1 or round_s >= QUIET_S

    def _turn(self) -> None:
        """Serve the sources one after the other until the turn is over; but first the rest of the node."""
        if self._pause_s and self._is_pausing():
            self._loop.call_soon(self._turn)
            return
        self._is_scheduled = False
        self._begin_turn()
        for source in list(self.queues):
            self._serve(source)
            if self._is_over():
                break
        if not all(queue.is_parked for queue in self.queues.values()):
            self._schedule()

    def _serve(self, source: bytes) -> None:
        """Take what has come from one source until the turn is over; put it behind the others then."""
        queues, queue = self.queues, self.queues.get(source)
        # It is dropped if the session ends.
        while queue is not None and not queue.is_parked and queues.get(source) is queue:
            rest, queue.rest = queue.rest, None
            if rest is not None:
                queue.rest = self._go_on(source, rest)
            elif queue.frames:
                frame, tail = queue.frames.popleft()
                queue.size_bytes -= _size(frame, tail)
                self._take(source, frame, tail)
            else:
                del queues[source]
                if queue.lost is not None:
                    queue.lost()
                return
            if self._is_over() and queues.get(source) is queue:
                del queues[source]
                queues[source] = queue
                return


def _size(frame: bytes, tail: memoryview | None) -> int:
    return len(frame) + (0 if tail is None else len(tail))
