"""`install`: what a program does not catch becomes a status code, in Starlette and FastAPI."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from fleetlm.asgi import install, outcome_of, problem_response
from fleetlm.errors import CallTimeout, FleetError, NodeLost, NoProcess, RemoteError
from tests.support.asgi_client import Client

ERROR = NoProcess("model")


async def fail(_request: Request) -> Response:
    raise ERROR


def starlette() -> Starlette:
    return Starlette(routes=[Route("/", fail)])


def fastapi() -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def endpoint() -> str:
        raise ERROR

    return app


@pytest.mark.parametrize("make", [starlette, fastapi])
async def test_an_outcome_that_nobody_catches_is_a_status_code_with_a_body(make: Any) -> None:
    app = make()
    install(app)
    client = await Client(app).run()
    assert client.status == 503
    assert client.headers["retry-after"] == "1"
    assert client.headers["content-type"] == "application/problem+json"
    assert json.loads(client.text) == outcome_of(ERROR).problem()


async def test_without_it_the_exception_reaches_the_server() -> None:
    with pytest.raises(NoProcess):
        await Client(starlette()).run()


async def test_a_handler_of_the_program_for_a_subclass_comes_first() -> None:
    app = starlette()
    install(app)

    async def not_found(_request: Request, _error: Exception) -> Response:
        return PlainTextResponse("no such model", 404)

    app.add_exception_handler(NoProcess, not_found)
    client = await Client(app).run()
    assert (client.status, client.text) == (404, "no such model")


async def test_a_mounted_application_has_its_own_handlers() -> None:
    inner = starlette()
    install(inner)
    client = await Client(Starlette(routes=[Mount("/sub", inner)]), "/sub/").run()
    assert client.status == 503


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (NoProcess("model"), logging.INFO),
        (CallTimeout("model", 5.0), logging.INFO),
        (RemoteError("ValueError", "secret", "Traceback"), logging.ERROR),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FleetError) else None,
)
async def test_the_log_has_what_the_client_is_not_told(
    error: FleetError, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def endpoint(_request: Request) -> Response:
        raise error

    caplog.set_level(logging.INFO, "fleetlm.asgi")
    app = Starlette(routes=[Route("/chat", endpoint)])
    install(app)
    client = await Client(app, "/chat").run()
    [record] = caplog.records
    assert record.levelno == level
    assert f"/chat was answered with {client.status}: {error}" in record.getMessage()
    assert str(error) not in client.text


async def test_a_response_for_an_outcome_may_be_made_by_hand() -> None:
    client = await Client(problem_response(outcome_of(NodeLost("fleetlm@10.0.0.7", "x")))).run()
    assert (client.status, json.loads(client.text)["kind"]) == (502, "node_lost")
    assert "retry-after" not in client.headers


async def test_a_websocket_whose_client_has_gone_is_not_an_error_of_the_program() -> None:
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        raise ERROR

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    install(app)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        if message["type"] != "websocket.accept":
            raise OSError("gone")

    await app({**Client(app).scope, "type": "websocket", "scheme": "ws", "subprotocols": []}, receive, send)


@pytest.mark.parametrize(("accepts", "closes"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize(
    ("error", "code"), [(NoProcess("model"), 1013), (RemoteError("ValueError", "secret"), 1011)]
)
async def test_a_websocket_is_closed_with_a_code(
    error: FleetError, code: int, accepts: bool, closes: bool
) -> None:
    async def endpoint(websocket: WebSocket) -> None:
        if accepts:
            await websocket.accept()
        if closes:
            await websocket.close()
        raise error

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    install(app)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {**Client(app).scope, "type": "websocket", "scheme": "ws", "subprotocols": []}
    await app(scope, receive, send)
    [closed] = [message for message in sent if message["type"] == "websocket.close"]
    if not closes:
        assert (closed["code"], closed["reason"]) == (code, outcome_of(error).kind)
