"""What a node asks of a network, and what the network reports.

A connection between two nodes has two halves. Each node *dials* the other and gets a *channel*, on
which it only sends. What a node receives comes from a *source*: the other end of a channel that the peer
has dialled. The transport does not know which channel and which source belong to one peer; the handshake
in the core finds out.

`fleetlm.transport.zeromq.ZmqTransport` implements this with sockets, `fleetlm.testing.SimTransport` in
memory. A node cannot tell them apart.

Everything runs on the event loop's thread. A transport calls its listener from the loop, never from
inside one of its own methods, so the node handles one fact at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Listener(Protocol):
    """Receives the facts that a transport reports. No method may raise."""

    def channel_opened(self, channel: int) -> None:
        """The handshakes with the dialled address are done (TCP, ZMTP, CURVE with a cookie): send now."""

    def channel_lost(
        self, channel: int, reason: str, *, is_foreign: bool = False, is_logged: bool = False
    ) -> None:
        """The dial failed, or the channel ended. Reported once for a channel, which is gone then.

        ``is_foreign``: something accepts connections there that does not behave as a node does.
        ``is_logged``: the cause is on this node, which has logged it once for all its dials.
        """

    def channel_answered(self, channel: int, frame: bytes) -> None:
        """The dialled node answered on the channel itself, with a refusal or with its identity."""

    def frame_arrived(self, source: bytes, frame: bytes, tail: memoryview | None = None) -> None:
        """A frame from a peer that has dialled this node, in one part or two: see `Transport.send`."""

    def room(self, source: bytes, start: bytes, size_bytes: int) -> memoryview | None:
        """Say where the end of a long frame may be received, so that it need not be copied.

        Args:
            source: of the frame.
            start: what has come of the frame, at least one byte.
            size_bytes: of the whole frame.

        Returns:
            The memory for its end. When that is full, `frame_arrived` gets the frame in two parts, of which
            this view is the second one. None: no memory is ready for it.
        """

    def source_broke(self, source: bytes, why: str) -> None:
        """A source did what no node does, and is disconnected; `source_lost` follows. ``why`` says what."""

    def source_met(self, source: bytes, ip: str) -> None:
        """A new source, reported before its first frame. ``ip`` is the address that TCP shows for it."""

    def source_lost(self, source: bytes) -> None:
        """The source's connection ended. Reported after its last frame."""

    def road_opened(self, channel: int) -> None:
        """The peer has let a channel in at its local road: `Transport.take_road` may follow."""

    def stranger_refused(self, ip: str, reason: str) -> None:
        """A connection from ``ip`` failed before its first frame: a wrong cookie, or not ZeroMQ at all."""


class Transport(Protocol):
    """The network of one node. The node chooses the channel numbers and never uses one twice."""

    @property
    def road(self) -> int:
        """The number of the listener for local roads, which other nodes must know; 0: there is none."""

    async def bind(self, ip: str, ports: Sequence[int]) -> int:
        """Take the first port that is free on ``ip``, for this node alone, until `close`.

        Returns:
            The port. What is sent there waits until `start`.

        Raises:
            StartFailed: all ports are in use, or none can be used. Nothing is left open.
        """

    async def start(self, listener: Listener) -> None:
        """Report to ``listener`` what comes to the port. Raises: StartFailed; the port is free again then."""

    def dial(self, channel: int, ip: str, port: int) -> None:
        """Begin to open a channel. `Listener.channel_opened` or `Listener.channel_lost` follows."""

    def send(self, channel: int, frame: bytes, tail: memoryview | None = None) -> bool:
        """Send one frame on an open channel: whole and in order, or not at all.

        Args:
            channel: the channel.
            frame: the frame, or its first part.
            tail: the rest of a CHUNK. It may be sent without a copy, so it never changes. A transport may
                send both as one part.

        Returns:
            False if the channel is not open or has just ended; nothing was sent then. True promises
            that the frame was accepted, not that it arrives.
        """

    def open_road(self, channel: int, number: int, ticket: bytes) -> None:
        """Ask for a local road for an open channel; `Listener.road_opened` follows if the peer lets it in.

        Args:
            channel: the channel.
            number: of the peer's listener, which is on this host, or nothing happens.
            ticket: the `wire.frames.ticket` that the peer expects.
        """

    def expect_road(self, source: bytes, ticket: bytes) -> None:
        """Let a source in at the local road that comes with this ticket. Nothing of it is read yet."""

    def take_road(self, channel: int) -> None:
        """Send all further frames of a channel on its local road. If that has ended, sending fails."""

    def follow_road(self, source: bytes) -> bool:
        """Report what comes over the local road of a source. Returns False if it was not let in. Idempotent.

        Call it as soon as the source has announced its change. When the source ends, what has come over a
        local road that is not followed is dropped: the announcement may have been lost, and leaves a gap.
        """

    def note_tick(self, at: float, lag_ms: int) -> None:
        """Show every neighbour that can look at it that this node's event loop runs.

        Args:
            at: the time of the loop.
            lag_ms: how late the loop was.
        """

    def shows_ticks(self, channel: int) -> bool:
        """Whether the peer of a channel sees what `note_tick` notes, so that it needs no frames for that."""

    def read_tick(self, source: bytes) -> tuple[float, int] | None:
        """Return the time and the lag that a source's node has noted since the last call, if it has.

        The time may be that of another clock, or any other number.
        """

    def answer(self, source: bytes, frame: bytes) -> None:
        """Send one frame back to a source. It is delivered at most once, and sending never waits."""

    def admit(self, source: bytes) -> None:
        """A source is a half of a connection that is up: from now on it may send as much as a peer may.

        Until then it is a stranger, which is disconnected after a time (`Settings.stranger_s`).
        """

    def disconnect(self, source: bytes, after_s: float = 0.0) -> None:
        """End the connection of a source, with which the node is through; `Listener.source_lost` follows.

        Args:
            source: the source; unknown ones are passed over.
            after_s: seconds in which the peer may hang up by itself. What it sends is dropped at once.
        """

    def hang_up(self, channel: int, flush_s: float = 0.0) -> None:
        """Close a channel. Sent frames have ``flush_s`` seconds more to leave. No fact follows."""

    async def close(self) -> None:
        """Close everything, at the latest when the flush times of `hang_up` are over. Idempotent."""
