"""A web application in several worker processes, each of them a node of one cluster.

Start it with either server, in this folder:

    uvicorn --workers 2 web:app
    gunicorn --workers 4 --worker-class asgi web:app

The node starts in the lifespan: in each worker, after the fork, on the event loop that serves the requests.
Each worker takes the first free port of FLEETLM_NODE_PORT. When a worker stops, the server finishes the
requests first, then the node finishes what it has begun.

``curl http://127.0.0.1:8000/`` shows which worker has answered, and what all of them say.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fleetlm import Actor, Node, handler

Message = dict[str, Any]


class Model(Actor):
    """Stand in for what a worker has loaded."""

    async def init(self) -> None:
        self.node.groups.join("models", self.pid)

    @handler
    async def who(self) -> tuple[str, int]:
        return self.node.name, os.getpid()


@asynccontextmanager
async def lifespan(_app: object) -> AsyncIterator[dict[str, Node]]:
    """Run the node of this worker. FastAPI and Starlette take this function as it is."""
    async with Node.start() as node:
        node.spawn(Model)
        yield {"node": node}  # FastAPI and Starlette: request.state.node


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Serve one request, or the lifespan. A framework would do the latter for you."""
    if scope["type"] == "lifespan":
        await receive()
        async with lifespan(app) as state:
            scope["state"].update(state)
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    node: Node = scope["state"]["node"]
    told = await node.groups.refs(Model, "models").multicall(Model.who)
    everyone = [each for each in told if isinstance(each, tuple)]
    body = json.dumps({"node": node.name, "pid": os.getpid(), "everyone": sorted(everyone)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
