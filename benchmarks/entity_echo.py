"""The entities and the actors of `benchmarks.entities` and `benchmarks.many_entities`."""

from __future__ import annotations

from typing import Any

from fleetlm import Actor, Entity, handler


class EchoActor(Actor):
    """An actor that echoes."""

    @handler
    async def echo(self, payload: bytes) -> bytes:
        """Reply with the payload."""
        return payload


class EchoEntity(Entity):
    """An entity that echoes, and has no state to move."""

    @handler
    async def echo(self, payload: bytes) -> bytes:
        """Reply with the payload."""
        return payload


class CountActor(Actor):
    """An actor that counts."""

    async def init(self) -> None:
        """Begin with nothing."""
        self.count = 0

    @handler
    async def add(self) -> int:
        """Count one more."""
        self.count += 1
        return self.count

    @handler
    async def rest(self) -> int:
        """Count one more, and end."""
        self.stop()
        return await self.add()


class CountEntity(Entity):
    """An entity that counts, and is saved as a number."""

    async def load(self, state: Any) -> None:
        """Go on with the number."""
        self.count: int = state or 0

    async def save(self) -> Any:
        """Return the number."""
        return self.count

    @handler
    async def add(self) -> int:
        """Count one more."""
        self.count += 1
        return self.count

    @handler
    async def rest(self) -> int:
        """Count one more, and passivate."""
        self.passivate()
        return await self.add()
