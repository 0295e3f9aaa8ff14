"""`running`: an application with its lifespan, without a server. For tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleetlm.asgi.disconnect import settle
from fleetlm.asgi.worker_node import GIVEN
from fleetlm.node import Node


@asynccontextmanager
async def running(app: ASGIApp, node: Node | None = None) -> AsyncIterator[ASGIApp]:
    """Run the lifespan of an application as a server does, and serve it in this process.

    ::

        async def test_chat(fleet: Fleet) -> None:
            web, worker = await fleet.start(2)
            async with asgi.running(app, web) as served:
                transport = httpx.ASGITransport(app=served)
                async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                    assert (await client.get("/")).status_code == 200

    ``httpx.ASGITransport`` alone runs no lifespan, so there would be no ``request.state.node``.

    Args:
        app: any ASGI application.
        node: a node that runs already, of `fleetlm.testing.Fleet` for example: the lifespan of
            `asgi.lifespan` takes it instead of starting one, and neither drains nor stops it. The same
            application may run several times at once, each time with another node.

    Returns:
        The application, for ``httpx.ASGITransport``; each request gets the state that the lifespan has
        yielded.

    Raises:
        RuntimeError: the lifespan has raised, when it began or when it ended; that exception is the
            ``__cause__``.
    """
    lifespan = _Lifespan(app, node)
    await lifespan.start()
    try:
        yield lifespan.serve
    finally:
        await lifespan.stop()


class _Lifespan:
    """The server's half of the lifespan protocol."""

    def __init__(self, app: ASGIApp, node: Node | None) -> None:
        self._app = app
        self._state: dict[str, Any] = {}
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        token = GIVEN.set(node)
        try:
            self._task = asyncio.create_task(self._run(), name="the lifespan of an application")
        finally:
            GIVEN.reset(token)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request with the state of the lifespan, a copy for each."""
        await self._app({**scope, "state": {**self._state}}, receive, send)

    async def start(self) -> None:
        await self._ask("startup")

    async def stop(self) -> None:
        if not self._task.done():
            await self._ask("shutdown")
        await settle([self._task])

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        await self._app(scope, self._to_app.get, self._from_app.put)

    async def _ask(self, phase: str) -> None:
        """Send an event, and wait for the answer of the application. Raises: RuntimeError."""
        await self._to_app.put({"type": f"lifespan.{phase}"})
        answer = asyncio.create_task(self._from_app.get())
        try:
            await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done() and answer.result()["type"] == f"lifespan.{phase}.complete":
                return
            await asyncio.wait({self._task})  # It tells first, and raises then.
            cause = None if self._task.cancelled() else self._task.exception()
            raise RuntimeError(f"the {phase} of the application has failed: {cause!r}") from cause
        finally:
            await settle([answer])
