"""Keyed entities: actors that live on one node at a time, wherever the cluster puts them.

    class Session(Entity):
        async def load(self, state: object | None) -> None:
            self.lines: list[str] = list(state or ())

        async def save(self) -> object:
            return self.lines

        @handler
        async def append(self, line: str) -> int:
            self.lines.append(line)
            return len(self.lines)

    sessions = await node.entities.host(Session, "sessions")
    count = await sessions["s-42"].call(Session.append, "hi")

The package `entities` has how they are found, made, saved and moved.

Source: Akka's sharded entities and Orleans' grains; differs: the state moves with the entity, and a request
that went to a former owner is refused before it runs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from fleetlm.actor import Actor
from fleetlm.entities.seat import Seat


class Entity(Actor):
    """Base class of entities: an `Actor` with a key, which is made at its first request.

    It runs one handler at a time, on the node that owns the shard of its key. It is saved and ended when it
    has had no request for a while, and when its shard moves to another node; the next request makes it again
    there, from what it saved. So what a handler has changed is carried along by `save`, and by nothing else.

    `init` belongs to the runtime: prepare in `load`. Requests wait until it is done. The object is made with
    the ``args`` of `Entities.host`.
    """

    __fleetlm_entity__: ClassVar[bool] = True
    __seat: Seat

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "init" in vars(cls):
            raise TypeError(
                f"{cls.__qualname__} is an Entity: it prepares itself in load(state), not in init()"
            )
        super().__init_subclass__(**kwargs)

    # For subclasses to override.

    async def load(self, state: Any) -> None:
        """Prepare from what `save` has returned; runs before the first request is served.

        If it raises, the entity ends, and the requests that wait fail with `NoProcess`.

        Args:
            state: what the last `save` of this key returned, as far as it is known; else None. See
                `restarted`.
        """

    async def save(self) -> Any:
        """Return the state as a message value, or None if there is nothing to keep.

        Runs between two handlers: when the entity is passivated, and when its shard moves. If it raises, the
        entity goes on where it is.
        """
        return None

    async def merge(self, other: Any) -> None:
        """Take in the state of another entity with this key, which lived beside this one in a partition.

        Runs between two handlers, on the side that wins. By default nothing happens, and what the other one
        did is lost; override it to keep that. If it raises, the entity goes on without it.

        Args:
            other: what its `save` returned.
        """

    async def init(self) -> None:
        """See `Actor.init`. For the runtime."""
        seat = self.__seat
        if seat.storing is not None:
            await seat.fetch()
        await self.load(seat.state)
        seat.ready()

    # For subclasses to use.

    @property
    def key(self) -> str:
        """The key of this entity."""
        return self.__seat.key

    @property
    def kind(self) -> str:
        """The name of the kind, as in `Entities.host`."""
        return self.__seat.host.kind

    @property
    def epoch(self) -> int:
        """The epoch under which this node owns the entity: it grows as the owner changes."""
        return self.__seat.host.epoch_of(self.__seat)

    @property
    def restarted(self) -> bool:
        """Whether what this entity had done since `load`'s state is lost: it crashed, or its node was lost.

        After the loss of a node, it is true for every entity of its shards that has no state, since nobody
        knows which of them had lived.
        """
        return self.__seat.kept.was_lost

    def passivate(self) -> None:
        """Save and end this entity after the handler that runs now; the next request makes it again."""
        _ = self.__seat.close()
