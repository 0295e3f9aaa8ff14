"""What the runtime has an actor do between two handlers, in its own task."""

from __future__ import annotations

from abc import ABC, abstractmethod


class BetweenHandlers(ABC):
    """A message of the runtime for an actor: `actors.run` runs it in its turn, as it would a handler."""

    __slots__ = ()

    @abstractmethod
    async def run(self) -> None:
        """Do it. What this raises ends the actor."""
