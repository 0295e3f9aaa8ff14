"""`lifespan`: a node for each worker process of a web server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from starlette.requests import HTTPConnection

from fleetlm.asgi.leaving import STATE_KEY, Leaving
from fleetlm.node import Node
from fleetlm.settings import Settings

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]
"""What Starlette and FastAPI take: a function of the application that returns a context manager."""

STATE_NODE = "node"
GIVEN: ContextVar[Node | None] = ContextVar("GIVEN", default=None)
"""The node with which a test runs an application, so that its lifespan starts none; see `running`."""


def lifespan(
    settings: Settings | None = None, *, program: Lifespan | None = None, **options: Any
) -> Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]:
    """Return a lifespan that runs a node in each worker process of the server.

    ::

        @asynccontextmanager
        async def program(app: FastAPI) -> AsyncIterator[None]:
            app.state.node.spawn(Cache)  # the node runs here
            yield

        app = FastAPI(lifespan=asgi.lifespan(program=program))

    The node starts when the worker starts to serve: after the fork, on the loop of the requests. A request
    finds it as ``request.state.node``, a WebSocket as ``websocket.state.node``, in mounted applications too,
    and the program as ``app.state.node``.

    When the worker is told to leave (SIGTERM or SIGINT), the node drains at once, while the server finishes
    its requests. Both together take `Settings.drain_s` seconds at most: responses of `sse` that go on are
    ended with an ``error`` event then. Afterwards the program's own lifespan ends, and then the node stops.
    If the node ends by itself, because an essential process failed, the worker leaves.

    Args:
        settings: default `Settings.from_env()`, read when the worker starts.
        program: the program's own lifespan, which runs inside: its node runs already when it begins, and has
            drained but not stopped when it ends. What it yields is added to the state of the requests.
        **options: the further arguments of `Node.start`.

    Raises:
        SettingsError, StartFailed: when the worker starts; the server shows the error, and does not serve.
    """

    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        given = GIVEN.get()
        if given is not None:  # Its owner stops it.
            async with _inside(app, given, program) as state:
                yield state
            return
        async with Node.start(settings, **options) as node:
            leaving = Leaving(node)
            leaving.begin()
            try:
                async with _inside(app, node, program) as state:
                    yield {**state, STATE_KEY: leaving}
                    await leaving.drain()
            finally:
                await leaving.end()

    return run


def node_of(connection: HTTPConnection) -> Node:
    """Return the node of the worker that serves a request or a WebSocket.

    Raises:
        RuntimeError: the application runs without `lifespan`.
    """
    node = connection.scope.get("state", {}).get(STATE_NODE)
    if node is None:
        node = getattr(getattr(connection.scope.get("app"), "state", None), STATE_NODE, None)
    if not isinstance(node, Node):
        raise RuntimeError(  # noqa: TRY004  # the application lacks something, not the argument
            "there is no node: give the application lifespan=fleetlm.asgi.lifespan(), and in a test run it "
            "with fleetlm.asgi.running(app)"
        )
    return node


async def current_node(connection: HTTPConnection) -> Node:
    """Return the node of the worker: a dependency of FastAPI.

    ::

        WorkerNode = Annotated[Node, Depends(asgi.current_node)]

        @app.get("/nodes")
        async def nodes(node: WorkerNode) -> list[str]:
            return node.list()

    It is a coroutine function, because FastAPI runs other dependencies in a thread.
    """
    return node_of(connection)


@asynccontextmanager
async def _inside(app: Any, node: Node, program: Lifespan | None) -> AsyncIterator[dict[str, Any]]:
    """Run the program's own lifespan with the node. The value is the state of the requests."""
    holder = getattr(app, "state", None)  # A plain router has none.
    if holder is not None:
        setattr(holder, STATE_NODE, node)
    async with nullcontext() if program is None else program(app) as state:
        yield {STATE_NODE: node, **(state or {})}
