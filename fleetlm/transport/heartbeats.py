"""Bounds what comes over a connection that should bring heartbeats alone.

Two connections do: that of a dial, whose other end sends nothing back once its answers have come, and that of
a peer whose frames have moved to a local road. Frames that are read can be compared with what has come, but
heartbeats stay in libzmq. So these connections are bounded by a rate.
"""

from __future__ import annotations

from typing import Final

HEARTBEAT_BYTES: Final = 2_048
"""Bytes that the other end may send in one of this node's heartbeat intervals: heartbeats of both have 100.
What comes beyond that, such as a message without end, would wait in libzmq unseen."""
MOST_BESIDE_BYTES: Final = 64 * 1024
"""Bytes that may come at once on a connection whose frames have moved, beyond the heartbeats of the time
since the last look. Honest nodes need none of them."""


class Heartbeats:
    """Allows for some bytes at once, and for `HEARTBEAT_BYTES` more in each heartbeat interval.

    A token bucket: what was not used is saved, up to what may come at once. The time since the last look
    counts in full, whatever is saved, since a loop that stands still looks late.

    Args:
        now: the time.
        received: bytes that have come until now.
        most_bytes: what may come at once.
        interval_s: seconds between two heartbeats.

    Attributes:
        allowed_bytes: what may come now; below 0 if too much has come.
    """

    __slots__ = ("_at", "_bytes_a_second", "_most_bytes", "_received", "allowed_bytes")

    def __init__(self, now: float, received: int, most_bytes: int, interval_s: float) -> None:
        self._at = now
        self._received = received
        self._most_bytes = most_bytes
        self._bytes_a_second = HEARTBEAT_BYTES / interval_s
        self.allowed_bytes: float = most_bytes

    def take(self, now: float, received: int) -> bool:
        """Count what has come by now, ``received`` bytes in all. Returns False if that is too much."""
        earned = (now - self._at) * self._bytes_a_second
        left = self.allowed_bytes + earned - (received - self._received)
        self.allowed_bytes = min(self._most_bytes, left)
        self._at, self._received = now, received
        return left >= 0
