"""A front end with FastAPI: it takes requests over HTTP and gives each one to a worker of `model.py`.

    DNS_CLUSTER_QUERY=worker,web uvicorn web:app

The node starts in the lifespan, on the event loop that serves the requests. At SIGTERM uvicorn finishes the
requests first, then the node finishes what it has begun.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from model import MODELS, Model  # type: ignore[import-not-found]  # stands beside this file
from pydantic import BaseModel

from fleetlm import FleetError, Node, NotDelivered


class Conversation(BaseModel):
    """What a client sends."""

    session: str
    turns: list[dict[str, str]]


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Node]]:
    """Run the node of this process."""
    async with Node.start() as node:
        yield {"node": node}


app = FastAPI(lifespan=lifespan)


@app.get("/ready")
async def ready(request: Request, response: Response) -> dict[str, Any]:
    """Say whether this front end can answer, for load balancers."""
    node: Node = request.state.node
    readiness, has_models = await node.readiness(), bool(node.groups.members(MODELS))
    response.status_code = 200 if readiness.is_ready and has_models else 503
    return {"ready": readiness.is_ready, "models": has_models}


@app.post("/title")
async def title(request: Request, response: Response, conversation: Conversation) -> dict[str, Any]:
    """Let a worker answer: another one where the first did not get the request, 503 where there is none."""
    node: Node = request.state.node
    try:
        models = node.groups.ref(Model, MODELS, by="least_loaded").within(10)
        return {"title": await models.call(Model.title, conversation.turns)}
    except NotDelivered as error:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
        return {"error": str(error)}


@app.get("/workers")
async def workers(request: Request) -> dict[str, Any]:
    """Return what every worker says of itself."""
    node: Node = request.state.node
    states = await node.groups.refs(Model, MODELS).within(2).multicall(Model.state)
    return {"front": node.name, "workers": [each for each in states if not isinstance(each, FleetError)]}
