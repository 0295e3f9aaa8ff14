"""`lifespan` and `running`: an application has a node while it serves."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, Router

import fleetlm
from fleetlm import Call, Node, NodeStopped, Process, Settings
from fleetlm.asgi import current_node, lifespan, node_of, running
from fleetlm.asgi.leaving import STATE_KEY, Leaving
from fleetlm.testing import Fleet, SimTransport
from tests.support.asgi_client import Client


async def echo(process: Process) -> None:
    async for message in process.mailbox:
        if isinstance(message, Call):
            message.reply(message.message)


async def name(request: Request) -> Response:
    return PlainTextResponse(node_of(request).name)


async def get(app: Any, path: str = "/") -> str:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get(path)
        answer.raise_for_status()
        return answer.text


async def test_a_request_finds_the_node_of_the_test(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    app = Starlette(routes=[Route("/", name)], lifespan=lifespan())
    async with running(app, one) as first, running(app, two) as second:
        assert await get(first) == one.name
        assert await get(second) == two.name
        assert app.state.node is two
    assert await one.ping(two.name) == "pong"  # They run on, and do not drain.
    assert not one.is_draining


async def test_mounts_and_routers_find_it_too(fleet: Fleet) -> None:
    node = await fleet.node()
    inner = Starlette(routes=[Route("/", name)])
    app = Starlette(routes=[Mount("/sub", inner)], lifespan=lifespan())
    async with running(app, node) as served:
        assert await get(served, "/sub/") == node.name
    async with running(Router(routes=[Route("/", name)], lifespan=lifespan()), node) as served:
        assert await get(served) == node.name


async def test_fastapi_takes_it_as_a_dependency(fleet: Fleet) -> None:
    node = await fleet.node()
    app = FastAPI(lifespan=lifespan())

    @app.get("/")
    async def nodes(worker: Annotated[Node, Depends(current_node)]) -> str:
        return worker.name

    async with running(app, node) as served:
        assert await get(served) == f'"{node.name}"'


async def test_an_application_without_a_node_says_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match=r"lifespan=fleetlm.asgi.lifespan\(\)"):
        await Client(Starlette(routes=[Route("/", name)])).run()
    with pytest.raises(RuntimeError, match="there is no node"):
        node_of(HTTPConnection({"type": "http"}))


async def test_the_node_may_be_that_of_the_application_alone(fleet: Fleet) -> None:
    app = Starlette(routes=[Route("/", name)])
    app.state.node = await fleet.node()
    assert await get(app) == app.state.node.name


def started(fleet: Fleet, **more: Any) -> dict[str, Any]:
    """The arguments with which `lifespan` starts a node of its own on the network of the test."""
    settings = Settings(node_ip="10.0.9.1", **more)
    return {"settings": settings, "transport": SimTransport(fleet.network, settings), "rng": fleet.rng}


async def test_it_starts_a_node_and_the_program_runs_inside(fleet: Fleet) -> None:
    course: list[str] = []

    @asynccontextmanager
    async def program(app: Starlette) -> AsyncIterator[dict[str, int]]:
        node: Node = app.state.node
        node.spawn(echo, name="echo")
        for phase in ("before_drain", "after_drain", "before_stop"):
            node.on_leaving(functools.partial(note, phase), phase=phase)
        course.append(f"begins, drains: {node.is_draining}")
        yield {"answer": 42}
        assert await node.call("echo", "still here") == "still here"
        course.append(f"ends, drains: {node.is_draining}")

    async def note(what: str) -> None:
        course.append(what)

    async def answer(request: Request) -> Response:
        assert isinstance(request.scope["state"][STATE_KEY], Leaving)
        return PlainTextResponse(f"{request.state.answer} {request.state.node.name}")

    app = Starlette(routes=[Route("/", answer)], lifespan=lifespan(**started(fleet), program=program))
    async with running(app) as served:
        assert await get(served) == "42 fleetlm@10.0.9.1"
    assert course == [
        "begins, drains: False", "before_drain", "after_drain", "ends, drains: True", "before_stop",
    ]  # fmt: skip
    with pytest.raises(NodeStopped):
        await app.state.node.call("echo", "x")


async def test_a_lifespan_of_the_program_that_fails_stops_the_node(fleet: Fleet) -> None:
    @asynccontextmanager
    async def at_the_start(_app: Starlette) -> AsyncIterator[None]:
        raise KeyError("no database")
        yield

    @asynccontextmanager
    async def at_the_end(_app: Starlette) -> AsyncIterator[None]:
        yield
        raise KeyError("no database")

    for program, phase in ((at_the_start, "startup"), (at_the_end, "shutdown")):
        app = Starlette(lifespan=lifespan(**started(fleet), program=program))
        with pytest.raises(RuntimeError, match=f"the {phase} of the application has failed") as caught:
            async with running(app):
                pass
        assert isinstance(caught.value.__cause__, KeyError)
        with pytest.raises(NodeStopped):
            app.state.node.spawn(echo)


async def test_a_node_that_cannot_start_stops_the_server(fleet: Fleet) -> None:
    app = Starlette(lifespan=lifespan(Settings(node_ip="10.0.0.0/8"), transport=started(fleet)["transport"]))
    with pytest.raises(RuntimeError, match="node_ip"):
        async with running(app):
            raise AssertionError("it must not serve")


async def test_an_application_that_ends_before_it_is_told_to(fleet: Fleet) -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})

    async with running(app):
        await asyncio.sleep(0)

    async def silent(_scope: Any, _receive: Any, _send: Any) -> None:
        return

    with pytest.raises(RuntimeError, match="startup of the application has failed: None"):
        async with running(silent):
            raise AssertionError("it must not serve")


def test_no_other_part_of_fleetlm_needs_starlette() -> None:
    package = Path(fleetlm.__file__).parent
    with_starlette = {
        path.relative_to(package).parts[0]
        for path in package.rglob("*.py")
        if re.search(r"^\s*(from|import) starlette\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert with_starlette - {"ops"} == {"asgi"}  # `ops` is an extra, too


async def test_requests_share_no_state(fleet: Fleet) -> None:
    async def put(request: Request) -> Response:
        seen = hasattr(request.state, "mine")
        request.state.mine = True
        return PlainTextResponse(str(seen))

    app = Starlette(routes=[Route("/", put)], lifespan=lifespan())
    async with running(app, await fleet.node()) as served:
        assert [await get(served), await get(served)] == ["False", "False"]
