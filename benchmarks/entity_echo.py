"""The entity and the actor of `benchmarks.entities`."""

from __future__ import annotations

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
