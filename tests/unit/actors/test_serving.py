"""The handler at the end of a chain of coroutines, found without keeping anything of it alive."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextvars import copy_context
from typing import Any

from fleetlm.actors.isolation import run_in
from fleetlm.actors.serving import handler_in
from tests.support.session_fakes import turns, virtual


class Large:
    pass


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def handler(argument: Any) -> None:
    await forever()


async def outer(levels: int, inner: Any) -> None:
    await (outer(levels - 1, inner) if levels else inner)


def started(coroutine: Any) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(coroutine)


@virtual
async def test_the_handler_at_the_end_is_named() -> None:
    task = started(outer(4, run_in(copy_context(), handler(1))))
    await turns()
    assert handler_in(task.get_coro()) == "handler"
    task.cancel()


@virtual
async def test_what_runs_no_handler_has_no_name() -> None:
    plain, deep = started(outer(4, handler(1))), started(outer(40, run_in(copy_context(), handler(1))))
    waits = started(outer(1, run_in(copy_context(), forever())))
    late = started(outer(1, handler(1)))
    assert handler_in(late.get_coro()) == "", "it has not begun"
    await turns()
    assert [handler_in(task.get_coro()) for task in (plain, deep, waits)] == ["", "", "forever"]
    for task in (plain, deep, waits, late):
        task.cancel()
    await turns()
    assert handler_in(plain.get_coro()) == "", "it has ended"
    assert handler_in(None) == ""


@virtual
async def test_looking_keeps_nothing_alive() -> None:
    argument = Large()
    gone = weakref.ref(argument)
    task = started(outer(2, run_in(copy_context(), handler(argument))))
    await turns()
    del argument
    assert handler_in(task.get_coro()) == "handler"
    task.cancel()
    await turns()
    del task
    gc.collect()
    assert gone() is None
