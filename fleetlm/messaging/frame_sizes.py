"""How large the frames to one peer may be: what this node's settings say, and what the peer takes.

A peer ends a connection on which a frame is larger than its `Settings.max_frame_bytes`, and its HELLO says
how much that is. Batches and chunks keep to half of it, or of this node's own limit if that is less: a batch
is sent when it has reached its size, so its last message comes on top of it, and a chunk has a head.

A peer of an older version does not say what it takes. It gets chunks of up to `Settings.chunk_bytes`, as
nodes of its version send them.
"""

from __future__ import annotations

from typing import Final

from fleetlm.records import Row
from fleetlm.settings import Settings
from fleetlm.wire.frames import MAX_HANDSHAKE_BYTES

ALONE_CHUNKS: Final = 4
"""A chunk of a message that is alone has so many times `Settings.chunk_bytes`; 1 MiB is as good as more."""
LEAST_FRAME_BYTES: Final = MAX_HANDSHAKE_BYTES
"""A peer that claims to take less is not believed, since a HELLO may have as much. Frames of a few bytes
would cost this node a lot."""


class FrameSizes(Row):
    """The sizes of what is sent to one peer, in bytes."""

    batch_bytes: int
    """A batch that has reached it is sent."""
    small_bytes: int
    """A longer message travels in chunks."""
    chunk_bytes: int
    """The largest chunk while small messages pass it."""
    alone_chunk_bytes: int
    """The largest chunk of a message that is alone."""


def frame_sizes(settings: Settings, max_frame_bytes: int) -> FrameSizes:
    """Return the sizes for a peer.

    Args:
        settings: this node's.
        max_frame_bytes: the largest frame that the peer takes; 0: it does not say so.
    """
    alone_bytes = ALONE_CHUNKS * settings.chunk_bytes if max_frame_bytes else settings.chunk_bytes
    frame_bytes = min(settings.max_frame_bytes, max_frame_bytes or settings.max_frame_bytes)
    half = max(LEAST_FRAME_BYTES, frame_bytes) // 2
    chunk_bytes = min(settings.chunk_bytes, half)
    return FrameSizes(
        batch_bytes=min(settings.batch_bytes, half // 2),
        small_bytes=min(settings.large_bytes, chunk_bytes, half // 2),
        chunk_bytes=chunk_bytes,
        alone_chunk_bytes=min(alone_bytes, settings.bulk_window_bytes // 2, half),
    )
