"""What a peer has sent is taken before its session ends, however the end becomes known.

Theory of operation. A node that leaves answers, says which requests stay unanswered (`messaging.settling`),
says goodbye, and closes its sockets. All of that comes over one source, and `Listener.source_lost` follows
behind it. But two other facts end a session too, and come over other sockets, so that they may be read first.
A loop that has stood still for a second finds all of them at once:

* the channel to the peer has ended, since the peer has closed its listener;
* the successor of the peer, which was restarted at its address, proves that it answers there (READY).

Either of them waits here for the source, for `LAST_WORDS_S` at most: the source may live, where only the
channel was cut. What has come from the source by then may still wait in `messaging.backlog`, which bounds it,
and the end waits behind that. Meanwhile the session is up, and what it sends is lost, as everything is that
was on its way when a connection ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from fleetlm.wire.frames import HEADER_BYTES, BadFrame, Kind, read_header, read_ready

if TYPE_CHECKING:
    import asyncio

    from fleetlm.core.topology import Topology
    from fleetlm.messaging.backlog import Backlog

LAST_WORDS_S = 0.5
"""Seconds for the end of a source to be read after something else has told it. Both ends of a process that
has gone are there at once; the time is for a busy machine. Where a channel alone was cut, the end is late."""


class LastWords:
    """The ends of sessions that wait for what their peers have sent.

    Args:
        loop: the node's event loop.
        backlog: what has come and was not taken yet.
    """

    __slots__ = ("_backlog", "_held", "_loop", "_timers")

    CHANNEL: Final = "channel"
    SUCCESSOR: Final = "successor"

    def __init__(self, loop: asyncio.AbstractEventLoop, backlog: Backlog) -> None:
        self._loop = loop
        self._backlog = backlog
        self._held: dict[bytes, dict[str, Callable[[], None]]] = {}
        """Source → what ends its session, by what has told it."""
        self._timers: dict[bytes, asyncio.TimerHandle] = {}
        """Ends the sessions of these sources at the latest."""

    def hold(self, source: bytes, teller: str, end: Callable[[], None]) -> None:
        """Call ``end`` behind everything that comes from a source.

        Args:
            source: of the session.
            teller: `CHANNEL` or `SUCCESSOR`; each of them is held once.
            end: ends the session, or does nothing if it is over.
        """
        if source not in self._held:
            self._held[source] = {}
            self._timers[source] = self._loop.call_later(LAST_WORDS_S, self._release, source)
        self._held[source].setdefault(teller, end)

    def source_lost(self, source: bytes, end: Callable[[], None]) -> None:
        """Nothing more comes from a source: end its session behind what has come."""
        self._release(source, end)

    def drop(self, source: bytes) -> None:
        """Forget a source: its session is over."""
        if self._held.pop(source, None) is not None:
            self._timers.pop(source).cancel()

    def _release(self, source: bytes, *ends: Callable[[], None]) -> None:
        ends = (*self._held.get(source, {}).values(), *ends)
        self.drop(source)
        if source in self._backlog:
            self._backlog.end(source, partial(_call_all, ends))
        else:
            _call_all(ends)


def _call_all(ends: Iterable[Callable[[], None]]) -> None:
    for end in ends:
        end()


def ended_by(topology: Topology, frame: bytes) -> bytes | None:
    """Return the source whose session a frame of a stranger would end: its node dials anew, or was restarted.

    None if the frame is not a READY that proves it; see `core.connection`.
    """
    if not frame or frame[0] != Kind.READY:
        return None
    try:
        read_header(frame)
        ready = read_ready(frame[HEADER_BYTES:])
    except BadFrame:
        return None
    peer = topology.peers.get(ready.hello.name)
    if peer is None or not peer.is_up or not peer.connection.expects(ready.epoch):
        return None
    half = peer.connection.incoming
    return None if half is None else half.source
