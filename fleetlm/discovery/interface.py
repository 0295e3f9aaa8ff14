"""What a node asks of a source of peer addresses."""

from __future__ import annotations

from typing import Protocol

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
