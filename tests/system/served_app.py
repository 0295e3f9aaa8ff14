"""An ASGI application whose workers are nodes that notice a message which was meant for another process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fleetlm import Actor, Node, handler

GROUP = "inboxes"


class Inbox(Actor):
    """Takes messages, each of which names the process that it is meant for."""

    async def init(self) -> None:
        self.taken = 0
        self.strays = 0
        self.node.groups.join(GROUP, self.pid)

    @handler
    async def take(self, meant_for: int) -> int:
        self.taken += 1
        self.strays += meant_for != self.node.incarnation
        return os.getpid()

    @handler
    async def state(self) -> tuple[int, int, int, list[str]]:
        """Return this process, how much it has taken, how much of it was not meant for it, and its peers."""
        return os.getpid(), self.taken, self.strays, self.node.list()


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    async with Node.start() as node:
        node.spawn(Inbox)
        yield


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] != "lifespan":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    await receive()
    async with lifespan():
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
