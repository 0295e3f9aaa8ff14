"""Web programs on Starlette and FastAPI: ``pip install 'fleetlm[asgi]'``.

    from fleetlm import asgi

    app = FastAPI(lifespan=asgi.lifespan())  # a node in each worker process of the server
    asgi.install(app)  # outcomes of requests become status codes

    @app.get("/chat")
    async def chat(request: Request, prompt: str) -> Response:
        models = request.state.node.groups.ref(Model, "models", by="least_loaded")
        return asgi.sse(models.stream(Model.complete, prompt))

`lifespan` starts and drains the node, `sse` answers with server-sent events, `until_disconnect` cancels what
a client that has gone was waiting for, `install` and `outcome_of` map errors to status codes, and `running`
serves an application in a test. Nothing else of fleetlm imports this package, and it imports Starlette only.
"""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("starlette") is None:  # pragma: no cover - needs an environment without it
    raise ModuleNotFoundError("fleetlm.asgi needs Starlette: pip install 'fleetlm[asgi]'", name="starlette")

from fleetlm.asgi.disconnect import until_disconnect
from fleetlm.asgi.event_stream import EventStream, sse
from fleetlm.asgi.events import Event
from fleetlm.asgi.handlers import install, problem_response
from fleetlm.asgi.outcomes import Outcome, outcome_of
from fleetlm.asgi.running import running
from fleetlm.asgi.worker_node import current_node, lifespan, node_of

__all__ = [
    "Event",
    "EventStream",
    "Outcome",
    "current_node",
    "install",
    "lifespan",
    "node_of",
    "outcome_of",
    "problem_response",
    "running",
    "sse",
    "until_disconnect",
]
