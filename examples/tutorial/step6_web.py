"""Step 6 of the tutorial: a front end for browsers.

fleetlm start step6_web:worker
uvicorn step6_web:app
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, Response

from fleetlm import Actor, Child, Node, Supervisor, asgi, handler


class Model(Actor):
    """A stand-in for a language model that keeps what it knows of each session."""

    async def init(self) -> None:
        self.seen: dict[str, int] = {}
        self.node.groups.join("models", self.pid)
        print(f"{self.node.name} has a model", flush=True)

    @handler(concurrent=True)
    async def complete(self, session: str, turns: list[str]) -> AsyncIterator[str]:
        known = self.seen.get(session, 0)
        self.seen[session] = len(turns)
        yield f"{self.node.name}, which knew {known} of {len(turns)} turns, says:"
        for token in turns[-1].split():
            await asyncio.sleep(0.1)
            yield token


def worker(node: Node) -> None:
    """Run a model until the node is told to leave; a supervisor starts it again if it crashes."""
    node.spawn(Supervisor([Child("model", Model)]))


app = FastAPI(lifespan=asgi.lifespan())  # a node in each worker process of the server
asgi.install(app)  # 503 with Retry-After where a request has not run

WorkerNode = Annotated[Node, Depends(asgi.current_node)]


@app.get("/chat")
async def chat(session: str, prompt: str, node: WorkerNode) -> Response:
    """Stream an answer as server-sent events; it is cancelled when the client goes."""
    models = node.groups.ref(Model, "models", by="sticky", key=session).retrying(5)
    return asgi.sse(models.stream(Model.complete, session, [prompt]))
