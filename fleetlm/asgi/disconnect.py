"""Clients that go before they have their answer.

A server does not cancel the handler of a client that has gone: it answers the next ``receive()`` with
``http.disconnect``. So somebody has to wait for that message while the program waits for the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

T = TypeVar("T")


async def until_disconnect(request: Request, awaitable: Awaitable[T]) -> T:
    """Wait for a result as long as the client does.

    ::

        answer = await asgi.until_disconnect(request, model.call(Model.answer, prompt))

    When the client goes, the awaitable is cancelled, and so is the handler of the call that it waits for. The
    body of the request is read, and kept for ``request.body()`` and ``request.json()``; a handler that reads
    ``request.stream()`` does so before.

    Returns:
        The result of the awaitable.

    Raises:
        ClientDisconnect: the client has gone; the awaitable was cancelled and has ended. With `install` it is
            not logged as an error of the program.
        Exception: what the awaitable raised.
    """
    work = asyncio.ensure_future(awaitable)
    watch = asyncio.create_task(_gone(request), name="fleetlm.asgi waits for the client to go")
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        watch.result()  # Raises what the server has raised, if that is why it ended.
        raise ClientDisconnect
    finally:
        await settle([work, watch])


async def _gone(request: Request) -> None:
    """Return when the client has gone."""
    # Read before, so that the body is there for the handler. It cannot be read again from a consumed stream.
    with contextlib.suppress(RuntimeError, ClientDisconnect):
        await request.body()
    await wait_until_gone(request.receive)


async def wait_until_gone(receive: Receive) -> None:
    """Return when the server says that the client has gone; what is left of the request's body is dropped."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def settle(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks, and wait until they have ended. Their errors are left to those who ask for them."""
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)
    for task in pending:
        if not task.cancelled():
            task.exception()  # Retrieved, so that asyncio does not report it.
