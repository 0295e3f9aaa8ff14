"""A front end with FastAPI: it takes requests over HTTP and gives each one to a worker of `work.py`.

    DNS_CLUSTER_QUERY=worker,web uvicorn front:app

The node starts in the lifespan, on the event loop that serves the requests. At SIGTERM uvicorn finishes the
requests first, then the node finishes what it has begun.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from work import GROUP, Model  # type: ignore[import-not-found]  # stands beside this file

from fleetlm import Node, NotDelivered


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Node]]:
    """Run the node of this process."""
    async with Node.start() as node:
        yield {"node": node}


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health(request: Request, response: Response) -> dict[str, Any]:
    """Say whether this front end takes requests; for load balancers that probe over HTTP."""
    readiness = await request.state.node.readiness(min_nodes=1)
    response.status_code = 200 if readiness.is_ready else 503
    return {"node": readiness.node, "nodes": readiness.connected, "reasons": list(readiness.reasons)}


@app.post("/ask")
async def ask(request: Request, response: Response, prompt: str) -> dict[str, Any]:
    """Let a worker answer. Repeated elsewhere where it did not run; 503 where no worker is there."""
    node: Node = request.state.node
    try:
        return await node.groups.ref(Model, GROUP, by="least_loaded").call(Model.answer, prompt)
    except NotDelivered as error:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
        return {"error": str(error)}
