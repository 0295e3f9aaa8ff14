"""`until_disconnect`: what a client that has gone was waiting for is cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fleetlm import Actor, handler
from fleetlm.asgi import install, until_disconnect
from fleetlm.testing import Fleet
from tests.support.asgi_client import Client


class Model(Actor):
    def __init__(self) -> None:
        self.ends: list[str] = []

    @handler
    async def answer(self, prompt: str, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        self.ends.append("done")
        return prompt.upper()


def request_of(client: Client) -> Request:
    return Request(client.scope, client._receive)


async def test_the_result_comes_while_the_client_waits() -> None:
    async def answer() -> int:
        return 7

    assert await until_disconnect(request_of(Client(Response())), answer()) == 7


async def test_an_exception_comes_as_it_is() -> None:
    async def answer() -> int:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await until_disconnect(request_of(Client(Response())), answer())


async def test_the_handler_on_another_node_is_cancelled_within_a_second(fleet: Fleet) -> None:
    web, worker = await fleet.start(2)
    model = Model()
    worker.spawn(model, name="model")
    ref = web.ref(Model, "model", at=worker.name).within(60)

    async def endpoint(request: Request) -> Response:
        return JSONResponse(await until_disconnect(request, ref.call(Model.answer, "hi", 30.0)))

    app = Starlette(routes=[Route("/", endpoint)])
    install(app)
    client = Client(app).start()
    await fleet.sleep(1)
    client.go()
    await client.done()
    await fleet.until(lambda: model.ends == ["cancelled"], timeout=1)
    assert client.status == 499  # for the access log: the server sends it to nobody
    answered = await Client(app).run()
    assert (answered.status, answered.text) == (200, '"HI"')


async def test_a_client_that_has_gone_is_an_exception_for_the_program() -> None:
    client = Client(Response())
    client.go()
    started = asyncio.Event()

    async def answer() -> None:
        started.set()
        await asyncio.Event().wait()

    with pytest.raises(ClientDisconnect):
        await until_disconnect(request_of(client), answer())
    assert started.is_set()


async def test_the_awaitable_has_ended_when_the_program_goes_on() -> None:
    client = Client(Response())
    ended = []

    async def answer() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def wait() -> None:
        await until_disconnect(request_of(client), answer())

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    client.go()
    with pytest.raises(ClientDisconnect):
        await task
    assert ended == [True]
    cancelled = asyncio.create_task(until_disconnect(request_of(Client(Response())), answer()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert ended == [True, True]


async def test_the_body_can_still_be_read() -> None:
    request = request_of(Client(Response(), method="POST", body=b'{"a": 1}'))

    async def answer() -> int:
        for _ in range(5):
            await asyncio.sleep(0)
        return 1

    await until_disconnect(request, answer())
    assert await request.json() == {"a": 1}
    read = request_of(Client(Response(), method="POST", body=b"abc"))
    assert [part async for part in read.stream()] == [b"abc", b""]
    assert await until_disconnect(read, answer()) == 1


async def test_a_server_that_breaks_is_an_exception() -> None:
    async def receive() -> Any:
        raise RuntimeError("the server is broken")

    async def answer() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="the server is broken"):
        await until_disconnect(Request(Client(Response()).scope, receive), answer())
