"""How fast a peer may spawn processes here: at `Settings.spawns_per_s`, after a burst.

A spawn costs this node some 0.1 ms, as much as fifty messages, and a process is a dozen objects that Python's
garbage collector visits from then on. So a peer that spawns as fast as it can would slow down the calls of
all others. What it asks for beyond its rate waits for its turn, in the order in which it came. It is not
refused: a node that comes up and spawns its actors here is done a little later. Other messages of the peer do
not wait behind it. Nothing is promised about their order, since whoever wants to use a process waits for its
pid.

What waits takes memory and the collector's time as well, so as much waits as the rate allows in `WAIT_S`;
more is refused as not delivered. When the session ends, those that wait are dropped, and no process is left
behind that nobody knows of. The rate belongs to the name of the node, so that a peer which connects anew gets
no new burst.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fleetlm.core.buckets import Bucket

if TYPE_CHECKING:
    import asyncio

    from fleetlm.messaging.session import Session

BURST_S: Final = 1.0
"""A burst is what the rate allows in this time: 2,000 processes by default, which take some 0.2 s."""
WAIT_S: Final = 5.0
"""So long a request waits at most: as long as a caller does by default, `Settings.call_timeout_s`."""
PAUSE_S: Final = 0.005
"""Seconds between two looks at what waits, at least: ten spawns at a time by default, for a millisecond."""

Spawn = Callable[[], None]
"""Performs a request and answers it."""


class _Waiting:
    """What waits for one peer."""

    __slots__ = ("bucket", "is_full_at", "requests", "timer")

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.is_full_at = 0.0
        """When the bucket is as good as a new one, if nothing is taken out of it any more."""
        self.requests: deque[tuple[Session, int | None, Spawn]] = deque()
        """Each with its session, and its ref if its answer is urgent."""
        self.timer: asyncio.TimerHandle | None = None


class SpawnPace:
    """The rates at which peers spawn.

    Args:
        loop: the node's.
        rate: spawns of one peer in a second.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, rate: float) -> None:
        self._loop = loop
        self._rate = rate
        self._peers: dict[str, _Waiting] = {}

    def take(self, session: Session, spawn: Spawn) -> bool:
        """Perform a request of a peer, now or when it is its turn. Returns False if too many wait already."""
        now = self._loop.time()
        peer = self._peers.get(session.name)
        if peer is None:
            peer = self._enter(session.name, now)
        if not peer.requests and self._may_spawn(peer, now):
            spawn()
            return True
        if len(peer.requests) >= self._rate * WAIT_S:
            return False
        peer.requests.append((session, session.urgent_ref, spawn))
        if peer.timer is None:
            self._wait(session.name, peer, now)
        return True

    def waiting(self, node: str) -> int:
        """Return how many requests of a peer wait."""
        peer = self._peers.get(node)
        return 0 if peer is None else len(peer.requests)

    def close(self) -> None:
        """Drop all that waits: the node stops."""
        for peer in self._peers.values():
            if peer.timer is not None:
                peer.timer.cancel()
        self._peers.clear()

    def _enter(self, node: str, now: float) -> _Waiting:
        """Make an entry for a peer; those that make no difference any more go."""
        for name in [name for name, peer in self._peers.items() if _is_idle(peer, now)]:
            del self._peers[name]
        peer = self._peers[node] = _Waiting(Bucket(self._rate, self._rate * BURST_S, now))
        return peer

    def _may_spawn(self, peer: _Waiting, now: float) -> bool:
        peer.is_full_at = now + BURST_S
        return peer.bucket.take(now)

    def _wait(self, node: str, peer: _Waiting, now: float) -> None:
        at = max(peer.bucket.ready_at(now), now + PAUSE_S)
        peer.timer = self._loop.call_at(at, self._go_on, node, peer)

    def _go_on(self, node: str, peer: _Waiting) -> None:
        """Perform what the rate allows now."""
        peer.timer, now = None, self._loop.time()
        while peer.requests:
            session, ref, spawn = peer.requests[0]
            if not session.closed and not self._may_spawn(peer, now):
                self._wait(node, peer, now)
                return
            peer.requests.popleft()
            if not session.closed:
                session.urgent_ref = ref
                spawn()
                session.urgent_ref = None


def _is_idle(peer: _Waiting, now: float) -> bool:
    return not peer.requests and now >= peer.is_full_at
