"""The two halves of a connection: what this node numbers and sends, what it receives and checks.

A half is one TCP connection, used in one direction: the node that dialled sends, the node that was
dialled receives (apart from refusals, which are not numbered). A connection needs one half from each
node. On the dialling side a half is an `Outgoing`, on the dialled side an `Incoming`.

The dialler draws an *epoch* for each dial, which nobody can guess, and numbers the frames from 0, which is
the HELLO. Both are in the header of every frame. The receiver counts along, so that it notices a frame that
was lost or that belongs to an earlier dial: ZeroMQ reconnects silently and drops what was queued. A gap ends
the connection; nothing is repaired.

Sequence numbers belong to a half, not to a session: they go on from the handshake into the messages.
That is why `effects.Up` hands both halves over to the session of the messaging layer.
"""

from __future__ import annotations

from fleetlm.wire import frames
from fleetlm.wire.frames import ARRAY32, BATCH_HEAD, BadFrame, Hello, Kind

_BATCH = Kind.BATCH


class Outgoing:
    """This node's half: the channel, and the numbering of the frames on it."""

    __slots__ = ("channel", "confirmed", "epoch", "is_local", "opened_at", "seq")

    def __init__(self, channel: int, epoch: int) -> None:
        self.channel: int = channel
        self.epoch: int = epoch
        self.seq: int = 0
        """The number of the next frame."""
        self.opened_at: float | None = None
        """When the channel could carry frames; None before."""
        self.confirmed: set[int] = set()
        """The epochs that our READYs on this half have named."""
        self.is_local: bool = False
        """Whether its frames travel on the local road."""

    def header(self, kind: int) -> bytes:
        """Return the header of the next frame, and count that frame.

        The frame must then be sent: a number that is skipped looks like a loss and ends the connection.
        """
        seq = self.seq
        self.seq = seq + 1
        return frames.header(kind, self.epoch, seq)

    def batch_header(self, count: int) -> bytes:
        """Return what stands before the ``count`` messages of a BATCH. Otherwise as `header`."""
        seq = self.seq
        self.seq = seq + 1
        return BATCH_HEAD.pack(_BATCH, self.epoch, seq, ARRAY32, count)


class Incoming:
    """The peer's half: its source, the HELLO that it sent, and the number that must come next."""

    __slots__ = ("epoch", "hello", "ip", "is_local", "seq", "source")

    def __init__(self, source: bytes, epoch: int, hello: Hello, ip: str, seq: int = 1) -> None:
        self.source: bytes = source
        self.epoch: int = epoch
        self.hello: Hello = hello
        self.ip: str = ip
        self.seq: int = seq
        """The number of the next frame; the HELLO is 0."""
        self.is_local: bool = False
        """Whether its frames travel on the local road."""

    def accept(self, epoch: int, seq: int) -> None:
        """Count a frame.

        Raises:
            BadFrame: a frame before this one is missing, or this one is of another dial.
        """
        if seq != self.seq or epoch != self.epoch:
            raise BadFrame(
                f"expected frame {self.seq} of epoch {self.epoch:x}, got {seq} of {epoch:x}: "
                "something was lost on the way"
            )
        self.seq = seq + 1
