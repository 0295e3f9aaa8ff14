"""The window of a connection: the bytes that were handed to the transport and that the peer has not taken.

A sender waits, or gets `WouldBlock`, while this window is full (`messaging.windows` tells of the other one).
libzmq keeps whatever the peer does not read, so what stands here is what a peer can make this node hold.
`ByteWindow` at the sender counts every byte of the BATCH and CHUNK frames. The bytes of chunks are counted a
second time, against `Settings.bulk_window_bytes`, so that large messages never use up the window that small
ones need. On a slow path both windows are smaller (`messaging.pace`).

**Marks.** A peer must not be able to claim that it has taken what it has not read: its claim would open the
window, and libzmq would hold all that follows. So credit is a proof. The sender puts a MARK with a random
number behind some frames, and remembers how many bytes stand before it. The receiver repeats the number of
the last MARK that it has decoded in a CREDIT. Frames are decoded in their order, so that whoever repeats the
number has taken everything before it, and nobody can guess it. A CREDIT for no mark that is open ends the
connection.

A MARK follows each eighth of the window, or half of the window for chunks or of that of `Pace` where these
are less, and is answered at once; behind chunks it stands in the head of the
last one. With a tick another one follows what is less than that, but for the last `LEAST_MARKED_BYTES`, and
is answered with a tick of the peer. So two nodes that have nothing to say do not exchange marks and credit
for the bytes of their ticks.

**Chunks.** Each costs both nodes some 50 us, whatever its size. So a large message that is *alone* travels in
larger ones: no small message has passed it for `ALONE_S`. What small messages wait behind is not larger then,
since a larger chunk is sent only where all of it has room in the window.

**What cannot wait.** Exit signals, `Down` messages, credit and ticks wait for no window. `Settings.
max_unread_bytes` is the bound for everything together: a connection that reaches it ends.

Source: S. Savage et al., TCP congestion control with a misbehaving receiver (1999), the cumulative nonce;
differs: one random number for some frames, since frames are never lost on their way.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Final

from fleetlm.messaging.pace import Pace

TOLD_SHARE: Final = 8
"""A mark follows every eighth of a window: rarely enough to cost nothing, often enough to flow."""
LEAST_WAITING_BYTES: Final = 1_024
"""A sender that waits for room counts at least so many bytes, since few messages are smaller with what they
need on their way: so a credit does not wake thousands of senders for which there is no room."""
LEAST_MARKED_BYTES: Final = 1_024
"""Fewer bytes are not worth a mark: a tick has 60."""
MAX_MARKS: Final = 1_024
"""Marks that wait for their CREDIT. A peer whose loop stands still gets one with every tick."""
MAX_WINDOWS_WITHOUT_CREDIT: Final = 4
"""Bytes, in windows, that a peer may send while our window to it is full and it takes nothing. Its own window
holds one of them; for a second one it must take the credit that stands behind our bytes."""
ALONE_S: Final = 0.05
"""Seconds without a small message after which large ones are alone."""
MAX_HEADS_BYTES: Final = 4_096
"""The heads of the chunks in a window, which may come on top of it."""
_MARK_BITS: Final = 63
_HIGHEST_BIT: Final = 1 << 63
"""Set in every mark, so that all of them have the same length in a frame."""


class ByteWindow:
    """The sender's side of the window of a connection, in bytes, and the senders that wait for it.

    Args:
        limit_bytes: bytes in flight from which on senders wait, on a fast path.
        chunk_limit_bytes: the same for the bytes of chunks, which wait in lanes.
        most_bytes: bytes in flight beyond which the connection must end; at least twice ``limit_bytes``.
        chunk_bytes: the largest chunk while small messages pass large ones.
        clock: the loop's time in seconds.
        alone_chunk_bytes: the largest one of messages that are alone; default: the same.
    """

    __slots__ = (
        "_acked_bytes", "_acked_chunk_bytes", "_alone_from", "_chunk_limit_bytes", "_clock", "_is_waking",
        "_marked_bytes", "_marks", "_most_chunk_bytes", "_pace", "_sent_bytes", "_sent_chunk_bytes",
        "_step_bytes", "_waiters", "_waiting", "draw", "full_bytes", "in_flight_bytes", "limit_bytes",
        "most_bytes",
    )  # fmt: skip

    def __init__(
        self, limit_bytes: int, chunk_limit_bytes: int, most_bytes: int = 0, chunk_bytes: int = 256 * 1024,
        clock: Callable[[], float] = monotonic, alone_chunk_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.full_bytes: int = limit_bytes
        """The window on a fast path."""
        self.limit_bytes: int = 0
        """Bytes in flight from which on senders wait: on a slow path fewer than ``full_bytes``."""
        self._chunk_limit_bytes = chunk_limit_bytes
        self._clock = clock
        self._most_chunk_bytes = chunk_bytes
        self._alone_from = -math.inf
        """Since when large messages are alone, or when they will be."""
        most_chunk_bytes = max(chunk_bytes, alone_chunk_bytes)
        self._pace = Pace(max(chunk_limit_bytes, limit_bytes // 2), most_chunk_bytes)
        self.most_bytes: int = max(most_bytes, 2 * limit_bytes)
        self.in_flight_bytes: int = 0
        """Bytes handed to the transport and not known to be taken."""
        self._sent_bytes = self._marked_bytes = self._acked_bytes = 0
        self._sent_chunk_bytes = self._acked_chunk_bytes = 0
        self._keep_pace()
        self.draw: Callable[[int], int] = random.SystemRandom().getrandbits
        """Returns a random number of so many bits that the peer cannot guess."""
        self._marks: deque[tuple[int, int, int]] = deque()
        """The marks without a CREDIT, the oldest first, each with all bytes and bytes of chunks before it."""
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._waiting: dict[asyncio.Future[None], int] = {}
        """Senders that wait for room in this window, the first one first, each with its bytes."""
        self._is_waking = False

    @property
    def sent_bytes(self) -> int:
        """Bytes handed to the transport so far."""
        return self._sent_bytes

    @property
    def taken_bytes(self) -> int:
        """Bytes that the peer has proved to have taken."""
        return self._acked_bytes

    @property
    def chunk_bytes(self) -> int:
        """The most that the next chunk may have; 0 if the window of chunks is full."""
        chunk_bytes, pace = self._pace.chunk_bytes, self._pace
        limit_bytes = min(self._chunk_limit_bytes, pace.window_bytes)
        room_bytes = limit_bytes - (self._sent_chunk_bytes - self._acked_chunk_bytes)
        if room_bytes <= 0:
            return 0
        if chunk_bytes > self._most_chunk_bytes and (
            chunk_bytes > room_bytes + MAX_HEADS_BYTES or self._clock() < self._alone_from
        ):
            return self._most_chunk_bytes
        return chunk_bytes

    def passed(self) -> None:
        """Note that a small message passes large ones that wait: their chunks become smaller for a time."""
        self._alone_from = self._clock() + ALONE_S

    @property
    def is_mark_due(self) -> bool:
        """Whether so much was sent since the last mark that another one should follow at once."""
        return self._sent_bytes - self._marked_bytes >= self._step_bytes

    @property
    def is_mark_worthwhile(self) -> bool:
        """Whether enough was sent since the last mark that one should follow with the next tick."""
        return self._sent_bytes - self._marked_bytes >= LEAST_MARKED_BYTES

    @property
    def awaits_credit(self) -> bool:
        """Whether the peer still has to prove that it has taken what stands before a mark."""
        return bool(self._marks)

    def sent(self, size_bytes: int) -> bool:
        """Count a frame. Returns whether the window is full now, or `is_mark_due`."""
        self._sent_bytes = sent_bytes = self._sent_bytes + size_bytes
        self.in_flight_bytes = in_flight_bytes = self.in_flight_bytes + size_bytes
        return in_flight_bytes >= self.limit_bytes or sent_bytes - self._marked_bytes >= self._step_bytes

    def sent_chunk(self, size_bytes: int) -> None:
        """Count the bytes of a chunk, in addition to `sent`."""
        self._sent_chunk_bytes += size_bytes

    def mark(self, *, at_once: bool) -> int | None:
        """Return a mark for all that was sent until now; it must follow that.

        Args:
            at_once: whether its credit is to follow at once.

        Returns:
            None if all that was sent is marked already, or too many marks have no credit.
        """
        if self._sent_bytes == self._marked_bytes or len(self._marks) >= MAX_MARKS:
            return None
        self._marked_bytes = self._sent_bytes
        mark = self.draw(_MARK_BITS) | _HIGHEST_BIT
        self._marks.append((mark, self._marked_bytes, self._sent_chunk_bytes))
        self._pace.marked(self._clock(), self._acked_bytes, self.in_flight_bytes, at_once=at_once)
        self._keep_pace()
        return mark

    def credited(self, mark: int) -> None:
        """Note that the peer has taken all that stands before a mark.

        Raises:
            ValueError: there is no such mark, or it was credited before; nothing changed.
        """
        if all(known != mark for known, _, _ in self._marks):
            raise ValueError("credit for bytes that it has not taken")
        known, marks = None, 0
        while known != mark:
            known, self._acked_bytes, self._acked_chunk_bytes = self._marks.popleft()
            marks += 1
        self.in_flight_bytes = self._sent_bytes - self._acked_bytes
        self._pace.credited(self._clock(), self._acked_bytes, marks)
        self._keep_pace()

    def _keep_pace(self) -> None:
        """Take over what the path carries: small messages have the same again, whatever chunks have."""
        pace = self._pace
        chunk_bytes = max(pace.window_bytes, self._sent_chunk_bytes - self._acked_chunk_bytes)
        self.limit_bytes = min(self.full_bytes, pace.window_bytes + chunk_bytes)
        self._step_bytes = min(self.full_bytes // TOLD_SHARE, self._chunk_limit_bytes // 2, pace.step_bytes)

    async def wait_for_room(self, size_bytes: int) -> None:
        """Return when this window may have room for so many bytes; the caller looks whether it has."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = max(size_bytes, LEAST_WAITING_BYTES)
        try:
            await waiter
        finally:
            self._waiting.pop(waiter, None)

    def _wake_for_room(self) -> None:
        """Wake as many of the senders that wait for room as it is enough for, and then look again.

        Those that are woken may not need it, and no credit may come any more that wakes others.
        """
        self._is_waking = False
        room_bytes = self.limit_bytes - self.in_flight_bytes
        waiting = self._waiting
        while waiting and room_bytes > 0:
            waiter = next(iter(waiting))
            room_bytes -= waiting.pop(waiter)
            if not waiter.done():
                waiter.set_result(None)
                self._is_waking = True
        if self._is_waking and waiting:
            asyncio.get_running_loop().call_soon(self._wake_for_room)
        else:
            self._is_waking = False

    async def wait(self) -> None:
        """Return when something has changed; the caller looks whether it may go on."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    def wake(self) -> None:
        """Wake those that wait: there may be room."""
        waiters, self._waiters = self._waiters, {}
        wake(waiters)
        if not self._is_waking:
            self._wake_for_room()

    def close(self) -> None:
        """End with the connection: nothing is in flight any more, and every waiting sender wakes."""
        self.in_flight_bytes = 0
        self.wake()
        waiting, self._waiting = self._waiting, {}
        wake(waiting)


class Stall:
    """Measures for how long a peer has taken nothing of what is in flight though its loop is alive.

    It looks at each tick of the peer, which only a running loop sends. A pause in the ticks begins the
    measurement anew: the loop was busy, and takes everything now. It also counts what the peer sends
    meanwhile, which proves more than a tick. Source: TCP's zero-window probes, RFC 9293 section 3.8.6.1;
    differs: TCP probes without end, since it cannot know whether the other program is alive.

    Args:
        window: what is in flight to the peer.
        after_s: seconds after which the connection should end.
        busy_after_s: seconds without a tick after which the peer was busy.
    """

    __slots__ = (
        "_busy_after_s", "_received_bytes", "_since", "_taken_bytes", "_ticked_at", "_was_empty", "_window",
        "after_s",
    )  # fmt: skip

    def __init__(self, window: ByteWindow, after_s: float, busy_after_s: float) -> None:
        self.after_s: float = after_s
        self._window = window
        self._busy_after_s = busy_after_s
        self._since = self._ticked_at = 0.0
        self._taken_bytes = 0
        self._was_empty = True
        self._received_bytes = 0
        """What had come from the peer when it last took something, or had nothing to take."""

    def progressed(self, received_bytes: int) -> None:
        """Note that the peer has taken something, and what has come from it in all until now."""
        self._received_bytes = received_bytes

    def received(self, received_bytes: int) -> int:
        """Return how much came from the peer, of ``received_bytes`` in all, while it took nothing."""
        if self._window.in_flight_bytes < self._window.limit_bytes:
            self._received_bytes = received_bytes
        return received_bytes - self._received_bytes

    def ticked(self, now: float) -> float:
        """Take a tick of the peer. Returns for how many seconds it has taken nothing; 0 if it has."""
        window = self._window
        was_busy = now - self._ticked_at > self._busy_after_s
        if was_busy or self._was_empty or window.taken_bytes != self._taken_bytes:
            self._since = now
        self._ticked_at = now
        self._taken_bytes = window.taken_bytes
        self._was_empty = not window.awaits_credit
        return now - self._since


class ByteCredit:
    """The receiver's side of the window of a connection, in bytes.

    Args:
        step_bytes: bytes after which ``check`` is called.
        tell: sends the peer the last mark.
        check: looks whether the peer takes something itself; called from time to time.
    """

    __slots__ = ("_check", "_mark", "_step_bytes", "_tell", "look_at_bytes", "taken_bytes")

    def __init__(self, step_bytes: int, tell: Callable[[int], None], check: Callable[[], None]) -> None:
        self.taken_bytes: int = 0
        """Bytes of frames that were decoded."""
        self._step_bytes = step_bytes
        self.look_at_bytes: int = step_bytes
        """The value of `taken_bytes` from which on `look` is due."""
        self._mark: int | None = None
        """The last mark that came, until it was told."""
        self._tell = tell
        self._check = check

    def took(self, size_bytes: int) -> None:
        """Count a frame that was decoded; `Inbound` has a copy for a BATCH."""
        self.taken_bytes += size_bytes
        if self.taken_bytes >= self.look_at_bytes:
            self.look()

    def look(self) -> None:
        """Look whether the peer takes something itself, and note when to look again."""
        self.look_at_bytes = self.taken_bytes + self._step_bytes
        self._check()

    def marked(self, mark: int, *, at_once: bool) -> None:
        """Take a mark of the peer, and tell it now, or with the next tick."""
        self._mark = mark
        if at_once:
            self.tell()

    def tell(self) -> None:
        """Tell the peer the last mark, unless it was told before."""
        mark, self._mark = self._mark, None
        if mark is not None:
            self._tell(mark)


def wake(waiters: Iterable[asyncio.Future[None]]) -> None:
    """Let those go on that wait for these futures."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
