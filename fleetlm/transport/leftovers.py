"""Counts what libzmq still holds of strangers whose connections were ended, and says who must wait for it.

libzmq keeps what it has taken of a connection until the ROUTER reads it, also when the connection is over,
and has no call that drops it. A frame of two bytes takes 64 in memory, and libzmq takes many times more
frames in a second than a node reads. A single connection is ended before this matters
(`fleetlm.transport.bounds`), so it is the next connections that must wait. While more than `MOST_LEFT_BYTES`
are left, no new connection is accepted from the addresses that they came from
(`fleetlm.transport.descriptors.Accepting.turn_away`), and where these are more than `MAX_ADDRESSES`, from
none. To read as much takes about a second, more on a busy machine. The kernel of a newcomer asks again after
one second, after two more, and so on, so that it is delayed and not refused.

The bytes of peers are not counted here: `Settings.unread_bytes` and the windows bound them.

This module decides only, and knows no socket.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Final

MOST_LEFT_BYTES: Final = 512 * 1024
"""So many bytes on the wire are 16 MiB in memory where the frames are empty, and a second's reading. Some
more come before the connections that are open by then have ended."""
FEW_LEFT_BYTES: Final = MOST_LEFT_BYTES // 4
"""When no more are left, every connection is accepted again."""
MAX_ADDRESSES: Final = 16
"""So many addresses are turned away by name."""
TOLD_S: Final = 60.0
"""Seconds between two log lines."""
EVERYBODY: Final[frozenset[str]] = frozenset({""})
"""Stands for all addresses."""


class Leftovers:
    """What is left of the strangers of one node.

    Attributes:
        turn_away: is called with the addresses from which no connection is accepted from now on.
        left_bytes: bytes on the wire that are left to read, at most.
        turned_away: the addresses from which no connection is accepted now.
    """

    def __init__(self) -> None:
        self.turn_away: Callable[[frozenset[str]], None] = lambda _: None
        self.left_bytes: int = 0
        self.turned_away: frozenset[str] = frozenset()
        self._by_ip: Counter[str] = Counter()
        self._told_at = -math.inf

    def add(self, ip: str, size_bytes: int) -> None:
        """The connection of a stranger was ended, and libzmq has taken so many bytes that were not read."""
        if size_bytes <= 0:
            return
        self.left_bytes += size_bytes
        self._by_ip[ip] += size_bytes
        if self.left_bytes > MOST_LEFT_BYTES:
            self._set(self._find_addresses())

    def read(self, size_bytes: int) -> None:
        """So many of these bytes were read."""
        self.left_bytes = max(0, self.left_bytes - size_bytes)
        if self.left_bytes <= FEW_LEFT_BYTES and self.turned_away:
            self.end()

    def end(self) -> None:
        """Nothing is left, or nearly nothing: accept every connection. Idempotent."""
        self.left_bytes = 0
        self._by_ip.clear()
        self._set(frozenset())

    def tell(self, now: float) -> str:
        """Return a sentence for the log, once in `TOLD_S`, or "" if it was said or nobody is turned away."""
        if not self.turned_away or now < self._told_at + TOLD_S:
            return ""
        self._told_at = now
        who = ", ".join(sorted(self.turned_away)) or "any address"
        return (
            "connections that are not a node's send faster than this node reads: until it has read what "
            f"came, it accepts no connection from {who}"
        )

    def _find_addresses(self) -> frozenset[str]:
        """Return the addresses with most, if these few have nearly everything, or else all of them."""
        most = self._by_ip.most_common(MAX_ADDRESSES)
        is_known = "" not in self._by_ip and sum(size for _, size in most) * 8 >= self.left_bytes * 7
        return frozenset(ip for ip, _ in most) if is_known else EVERYBODY

    def _set(self, addresses: frozenset[str]) -> None:
        if addresses != self.turned_away:
            self.turned_away = addresses
            self.turn_away(addresses)
