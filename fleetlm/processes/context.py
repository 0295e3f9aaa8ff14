"""What the parts of one node know of it, without knowing the node itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from fleetlm.messaging.session import Session
    from fleetlm.settings import Settings
    from fleetlm.wire.codec import Codec


@dataclass(frozen=True, slots=True)
class NodeContext:
    """The facts and shared objects that every part of a node needs; made once by `runtime.assembly`."""

    name: str
    """This node's name, ``basename@ip``."""
    incarnation: int
    settings: Settings
    codec: Codec
    loop: asyncio.AbstractEventLoop
    sessions: dict[str, Session]
    """The sessions to connected nodes, by name. The driver owns the dict; everybody else only reads it."""
    is_leaving: Callable[[], bool]
    """Whether this node is draining: it takes no new work from outside."""

    def is_draining(self, node: str) -> bool:
        """Whether a node, this one or a connected one that has said so, takes no new work."""
        if node == self.name:
            return self.is_leaving()
        session = self.sessions.get(node)
        return session is not None and session.peer.draining
