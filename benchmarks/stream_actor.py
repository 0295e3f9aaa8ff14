"""The actor of `benchmarks.streams`, in a module of its own: a floor's process must not import fleetlm."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fleetlm import Actor, handler


class Items(Actor):
    """Streams items."""

    @handler
    async def items(self, count: int, size: int) -> AsyncIterator[bytes]:
        """Stream ``count`` items of ``size`` bytes."""
        item = bytes(size)
        for _ in range(count):
            yield item
