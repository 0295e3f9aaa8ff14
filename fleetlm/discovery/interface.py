"""What a node asks of a source of peer addresses."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from fleetlm.core.dns_answers import Answer


class Discovery(Protocol):
    """A source of peer addresses. Pass one to `Node.start` to replace DNS."""

    @property
    def source(self) -> str:
        """The source in words, for logs: ``DNS name "fleet.internal" at 127.0.0.11``."""

    async def lookup(self) -> Answer:
        """Look the peers up once, in bounded time. Raises nothing but CancelledError.

        A failed lookup is an `Answer` with the outcome FAILED. It must never be an empty list of
        addresses: that would say that there are no nodes.
        """


@runtime_checkable
class Closable(Protocol):
    """What a discovery may offer besides: an end to what it holds between lookups."""

    async def close(self) -> None:
        """End tasks and close sockets. Called once, when the node has asked for the last time."""
