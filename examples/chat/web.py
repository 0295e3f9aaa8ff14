"""The front end of the chat: HTTP for clients, the cluster for everything else.

    uvicorn --workers 2 web:app

Each worker process of uvicorn is a node. It holds no state: the conversations live on the workers, and any
front end finds each of them by its name.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Request, Response
from model import MODELS, SESSIONS, Model, Session
from pydantic import BaseModel, Field

from fleetlm import FleetError, Node, asgi

app = FastAPI(title="chat", lifespan=asgi.lifespan())
asgi.install(app)  # errors of the cluster become status codes

WorkerNode = Annotated[Node, Depends(asgi.current_node)]
SessionName = Annotated[str, Path(min_length=1, max_length=100)]


class Turn(BaseModel):
    """One turn of a conversation."""

    role: str = Field(pattern="^(user|assistant)$")
    content: str = Field(min_length=1, max_length=10_000)


class Said(BaseModel):
    """What a user says in a conversation, which goes on where it was."""

    session: str = Field(min_length=1, max_length=100)
    content: str = Field(min_length=1, max_length=10_000)


class Conversation(BaseModel):
    """A conversation as the client has it."""

    turns: list[Turn] = Field(min_length=1, max_length=100)

    @property
    def plain(self) -> list[dict[str, str]]:
        """The turns as message values."""
        return [turn.model_dump() for turn in self.turns]


@app.post("/chat")
async def chat(said: Said, node: WorkerNode) -> Response:
    """Stream the answer as server-sent events.

    The conversation is found wherever it lives. While it moves to another worker the answer waits, and an
    answer that has not begun may begin anywhere.
    """
    sessions = node.entities.ref(Session, SESSIONS)
    return asgi.sse(sessions[said.session].within(idle=30).stream(Session.say, said.content), ids=True)


@app.get("/sessions/{session}")
async def read(session: SessionName, node: WorkerNode) -> list[dict[str, str]]:
    """Return a conversation."""
    sessions = node.entities.ref(Session, SESSIONS)
    return await sessions[session].within(10).call(Session.read)


@app.post("/title")
async def title(conversation: Conversation, request: Request, node: WorkerNode) -> dict[str, str]:
    """Return a title: a call of the worker with the fewest requests, cancelled if the client goes."""
    models = node.groups.ref(Model, MODELS, by="least_loaded").within(10).retrying(4, idempotent=True)
    return {"title": await asgi.until_disconnect(request, models.call(Model.title, conversation.plain))}


@app.get("/workers")
async def workers(node: WorkerNode) -> dict[str, Any]:
    """Return what every worker does."""
    states = await node.groups.refs(Model, MODELS).within(2).multicall(Model.state)
    return {"front": node.name, "workers": [each for each in states if not isinstance(each, FleetError)]}


@app.get("/ready")
async def ready(node: WorkerNode, response: Response) -> dict[str, Any]:
    """Return 200 if this front end can answer, for a load balancer."""
    readiness = await node.readiness()
    has_models = bool(node.groups.members(MODELS))
    response.status_code = 200 if readiness.is_ready and has_models else 503
    return {"ready": readiness.is_ready, "models": has_models}
