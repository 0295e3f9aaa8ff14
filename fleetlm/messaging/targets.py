"""What a message can be addressed to, and what waits for the outcome of a request until its deadline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fleetlm.errors import CallTimeout
from fleetlm.ids import Pid
from fleetlm.records import Row
from fleetlm.wire.blobs import Packed, Parcel

Target = Pid | str | tuple[str, str]
"""A pid, a name registered on this node, or ``(name, node)`` (an `Address`)."""

MAX_TIMEOUT_S = 86_400.0
"""One day. A longer deadline, ``inf`` included, is cut to it: a deadline travels as whole milliseconds."""


class Payload(Row):
    """What many processes get, packed once."""

    packed: bytes
    extra_bytes: int
    """`Codec.extra_bytes` of it."""
    blobs: Sequence[bytes] = ()
    """Large bytes beside it, which all messages with this payload share (`wire.blobs`)."""

    def beside(self, envelope: bytes) -> Packed:
        """Return a message into which ``packed`` was put, with the blobs beside it."""
        return Parcel(envelope, self.blobs) if self.blobs else envelope


class Waiting(Protocol):
    """What waits for the outcome of a request: a future, or the consumer's end of a stream."""

    def done(self) -> bool:
        """Whether it has an outcome."""

    def set_result(self, value: Any, /) -> None:
        """Give it the reply; for a stream, its regular end."""

    def set_exception(self, error: BaseException, /) -> None:
        """Give it the reason why no reply, or no further item, comes."""


def expire(waiting: Waiting, to: Target, timeout_s: float) -> None:
    """Give a request that has no outcome by its deadline a `CallTimeout`."""
    if not waiting.done():
        waiting.set_exception(CallTimeout(to, timeout_s))
