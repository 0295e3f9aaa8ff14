"""Adapts what may be in flight on a connection to the path, so that small messages do not wait behind it.

On a slow path a window that suits a fast one holds seconds of queue: 8 MiB are a minute at 1 Mbit/s. All of
it stands before each call, and what the kernel holds stands before ZeroMQ's heartbeats too. So `Pace` says
how many bytes of large messages may be in flight: about what the path carries in `TARGET_S`.

It learns that from credit. The time from a MARK to its credit is the *delay*, and in-flight bytes are what
the path carries in that time:

- With a delay below the target the window grows by what was taken, so that it doubles with each round trip
  and more, but by no more than the path carries in the time that is left to the target. A window that is not
  used up does not grow.
- With a longer delay it shrinks in proportion, so that the delay becomes the target. What was sent before
  that is late because of the former window, so it does not shrink the window once more.

The target is `TARGET_S` beyond the delay of an empty path, which is no queue. That one is measured every
`PROBE_S`, and at first: the window is at its least until all that was in flight before has been taken, and
then one mark that was sent after that. A peer whose loop stands still looks like a slow path. Its window
shrinks then, and grows again within a few round trips. After a pause of `PAUSE_S` the path may be another
one, and all begins anew.

Source: RFC 6817 (LEDBAT), a target for the delay beyond that of an empty path; N. Cardwell et al., BBR
(2016), probes of the empty path; RFC 7661, no growth of a window that is not used; differs: measured by
credit, which flows anyway.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

TARGET_S: Final = 0.2
"""What is in flight takes this long. A call behind it is late by that, and 10 Gbit/s need far less."""
LEAST_BYTES: Final = 64 * 1024
"""What may always be in flight, and at first: 0.5 s at 1 Mbit/s. A fast path needs six round trips from here
to the largest window."""
CHUNKS_IN_WINDOW: Final = 4
"""A chunk is at most this fraction of the window, since one that is begun cannot be overtaken."""
PAUSE_S: Final = 5.0
"""Seconds in which no credit came, after which the path is not known any more."""
PROBE_S: Final = 10.0
"""Seconds between two measurements of the delay of an empty path, which cost two round trips."""
PROBE_DELAYS: Final = 30
"""And at least so many such delays: what a probe costs stays small on a long path."""
MAX_EMPTY_S: Final = 2.0
"""A longer delay of an empty path is none: the peer's loop stood still."""


class Pace:
    """Says how much may be in flight to one peer.

    Args:
        most_bytes: the largest window.
        most_chunk_bytes: the largest chunk.

    Attributes:
        window_bytes: bytes of large messages that may be in flight. Small ones may have as much in addition.
        chunk_bytes: the most that the next chunk may have.
        step_bytes: a mark follows so many bytes: two of them in a window, so that credit comes in time.
    """

    __slots__ = (
        "_clean_from", "_credited_at", "_empty_s", "_kept_bytes", "_most_bytes", "_most_chunk_bytes",
        "_probe_at", "_probed_from", "_sent", "_shrunk_at", "chunk_bytes", "step_bytes", "window_bytes",
    )  # fmt: skip

    def __init__(self, most_bytes: int, most_chunk_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._most_chunk_bytes = most_chunk_bytes
        self._sent: deque[tuple[float, int, int, bool]] = deque()
        """For each mark without credit: when it was sent, what had been taken by then, what was in flight,
        and whether its credit was asked for at once."""
        self._credited_at = 0.0
        self._empty_s = 0.0
        """The delay of an empty path."""
        self._shrunk_at = -math.inf
        self._probe_at = 0.0
        """When the next probe begins."""
        self._begin_probe(-math.inf, -math.inf, LEAST_BYTES)

    def marked(self, now: float, taken_bytes: int, in_flight_bytes: int, *, at_once: bool) -> None:
        """Note that a mark was sent.

        Args:
            now: the time in seconds.
            taken_bytes: what the peer had taken by then, in all.
            in_flight_bytes: what was in flight, until this mark.
            at_once: whether the peer is asked to send its credit at once. If not, its delay says nothing.
        """
        if not self._sent and now > self._credited_at + PAUSE_S:
            self._begin_probe(-math.inf, -math.inf, LEAST_BYTES)
        self._sent.append((now, taken_bytes, in_flight_bytes, at_once))

    def credited(self, now: float, taken_bytes: int, marks: int) -> None:
        """Take the credit for the last of the ``marks`` oldest marks.

        Args:
            now: the time in seconds.
            taken_bytes: what the peer has taken now, in all.
            marks: how many marks it is for, at least one.
        """
        self._credited_at = now
        for _ in range(marks - 1):
            self._sent.popleft()
        sent_at, taken_before, in_flight_bytes, at_once = self._sent.popleft()
        if not at_once:
            return
        delay_s, carried_bytes = now - sent_at, taken_bytes - taken_before
        if self._kept_bytes:
            self._probe(now, sent_at, delay_s)
            return
        self._empty_s = min(delay_s, self._empty_s)
        queue_s = delay_s - self._empty_s
        if queue_s <= TARGET_S:
            if 2 * in_flight_bytes >= self.window_bytes:
                room_s = TARGET_S - queue_s
                self._set(self.window_bytes + int(carried_bytes * min(1.0, room_s / max(delay_s, 1e-9))))
        elif sent_at >= self._shrunk_at:
            self._shrunk_at = now
            self._set(int(self.window_bytes * (TARGET_S + self._empty_s) / delay_s))
        if now >= self._probe_at:
            self._begin_probe(now, math.inf, self.window_bytes)

    def _begin_probe(self, probed_from: float, clean_from: float, kept_bytes: int) -> None:
        """Begin to measure the delay of an empty path.

        Args:
            probed_from: now; what was sent earlier is still on its way.
            clean_from: since when nothing else is on the way; infinite if that is to come.
            kept_bytes: the window afterwards.
        """
        self._probed_from, self._clean_from = probed_from, clean_from
        self._kept_bytes = kept_bytes
        """The window that a probe interrupts; 0 if there is none."""
        self._set(LEAST_BYTES)

    def _probe(self, now: float, sent_at: float, delay_s: float) -> None:
        """Take a credit while a probe goes on."""
        if sent_at >= self._clean_from:
            self._empty_s = min(delay_s, MAX_EMPTY_S)
            self._set(self._kept_bytes)
            self._kept_bytes, self._probe_at = 0, now + max(PROBE_S, PROBE_DELAYS * delay_s)
        elif sent_at >= self._probed_from and self._clean_from == math.inf:
            self._clean_from = now

    def _set(self, window_bytes: int) -> None:
        self.window_bytes: int = max(min(LEAST_BYTES, self._most_bytes), min(window_bytes, self._most_bytes))
        self.chunk_bytes: int = max(1, min(self._most_chunk_bytes, self.window_bytes // CHUNKS_IN_WINDOW))
        self.step_bytes: int = self.window_bytes // 2
