"""What a node asks of a network, and what the network tells it.

Two halves make a connection: each node *dials* the other on a channel of its own, which only sends,
and hears it from a *source*. `ZmqTransport` does it with sockets, `testing.SimTransport` in memory;
the node cannot tell them apart.

Everything here runs on the event loop's thread. A transport calls its listener from the loop, never
from inside one of its own methods, so that facts reach the node one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Part = bytes | memoryview
"""A piece of a frame; a memoryview must stay unchanged until the frame has left."""


class Listener(Protocol):
    """The facts that a transport reports. None of these may raise."""

    def channel_opened(self, channel: int) -> None:
        """The dialled address answered (TCP, ZMTP and, with a cookie, CURVE): frames may be sent."""

    def channel_lost(self, channel: int, reason: str) -> None:
        """The dial failed, or the channel ended. Told once; the channel is gone."""

    def channel_answered(self, channel: int, frame: bytes) -> None:
        """The node at the other end answered on the channel itself: a refusal, or who it is."""

    def frame_arrived(self, source: bytes, frame: bytes, extra: bytes | None) -> None:
        """A frame from somebody who dialled us. ``extra`` is the second part, where one was sent."""

    def source_met(self, source: bytes, ip: str) -> None:
        """Before the first frame of a source: the address that it dialled from, as TCP saw it."""

    def source_lost(self, source: bytes) -> None:
        """That dialler's connection ended. Told after its last frame."""

    def stranger_refused(self, ip: str, reason: str) -> None:
        """Somebody at ``ip`` failed before the first frame: another cookie, or no ZeroMQ at all."""


class Transport(Protocol):
    """One node's network. Channel numbers are the node's own and are never used twice."""

    async def start(self, ip: str, port: int, listener: Listener) -> None:
        """Listen on ``ip:port``. Raises: StartFailed, leaving nothing behind."""

    def dial(self, channel: int, ip: str, port: int) -> None:
        """Open a channel. `Listener.channel_opened` or `Listener.channel_lost` follows."""

    def send(self, channel: int, parts: Sequence[Part]) -> bool:
        """Put one frame (one or two parts) on an open channel: whole and in order, or not at all.

        Returns False where it cannot be sent: the channel is not open, or has just ended.
        """

    def answer(self, source: bytes, frame: bytes) -> None:
        """Send one frame back to a dialler, at most once delivered and never waiting."""

    def hang_up(self, channel: int, flush_s: float = 0.0) -> None:
        """Close a channel; frames that were sent may leave for ``flush_s`` more. No fact follows."""

    async def close(self) -> None:
        """Close everything, within the flush time of what was hung up. Idempotent."""
