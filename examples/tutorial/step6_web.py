"""Step 6 of the tutorial: a front end for browsers. ``uvicorn step6_web:app``"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI
from step5_sessions import Model

from fleetlm import Node, asgi

app = FastAPI(lifespan=asgi.lifespan())  # a node in each worker process
asgi.install(app)  # 503 with Retry-After where a request has not run

WorkerNode = Annotated[Node, Depends(asgi.current_node)]


@app.get("/chat")
async def chat(session: str, prompt: str, node: WorkerNode) -> asgi.EventStream[str]:
    """Stream an answer as server-sent events; it is cancelled when the client goes."""
    models = node.groups.ref(Model, "models", by="sticky", key=session).retrying(5)
    return asgi.sse(models.stream(Model.complete, session, [prompt]))
