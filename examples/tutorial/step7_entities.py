"""Step 7 of the tutorial: conversations that survive a deployment.

fleetlm start step7_entities:worker
uvicorn step7_entities:app
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Response

from fleetlm import Actor, Child, Entity, Node, Supervisor, asgi, handler


class Model(Actor):
    """A stand-in for a language model."""

    async def init(self) -> None:
        self.node.groups.join("models", self.pid)
        print(f"{self.node.name} has a model", flush=True)

    @handler(concurrent=True)
    async def complete(self, turns: list[str]) -> AsyncIterator[str]:
        for token in turns[-1].split():
            await asyncio.sleep(0.1)
            yield token


class Session(Entity):
    """A conversation. It lives on one node at a time, and its turns move with it."""

    async def load(self, state: Any) -> None:
        self.turns: list[str] = list(state or ())

    async def save(self) -> Any:
        return self.turns

    @handler
    async def say(self, prompt: str) -> AsyncIterator[str]:
        turns = [*self.turns, prompt]
        yield f"turn {len(turns)}, kept by {self.node.name}:"
        models = self.node.groups.ref(Model, "models", by="least_loaded").retrying(5)
        async with models.stream(Model.complete, turns) as tokens:
            async for token in tokens:
                yield token
        self.turns = turns  # the answer is complete


async def worker(node: Node) -> None:
    """Run a model, and host conversations until the node is told to leave."""
    node.spawn(Supervisor([Child("model", Model)]))
    await node.entities.host(Session, "sessions")
    await node.wait_stopped()


app = FastAPI(lifespan=asgi.lifespan())
asgi.install(app)

WorkerNode = Annotated[Node, Depends(asgi.current_node)]


@app.get("/chat")
async def chat(session: str, prompt: str, node: WorkerNode) -> Response:
    """Stream the answer to the next turn of a conversation, wherever that lives."""
    sessions = node.entities.ref(Session, "sessions")
    return asgi.sse(sessions[session].stream(Session.say, prompt))
