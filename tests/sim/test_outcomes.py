"""Outcomes of requests in layered services: what a caller learns of a request that its callee made."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from fleetlm import (
    Actor,
    CallTimeout,
    NoConnection,
    NodeLost,
    NoHandler,
    NoProcess,
    NotDelivered,
    OutcomeUnknown,
    Pid,
    Process,
    RemoteError,
    handler,
)
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import Fleet, simulated


class Inner(Actor):
    def __init__(self) -> None:
        self.ran = 0

    @handler
    async def add(self, a: int, b: int = 0, *, c: int = 0) -> int:
        self.ran += 1
        return a + b + c

    @handler(concurrent=True)
    async def beside(self, a: int) -> int:
        self.ran += 1
        return a

    @handler
    async def count(self, upto: int) -> AsyncIterator[int]:
        self.ran += 1
        for number in range(upto):
            yield number

    @handler
    async def misfit(self) -> int:
        self.ran += 1
        return len(5)  # type: ignore[arg-type]

    @handler
    async def slow(self) -> None:
        await asyncio.sleep(100)


class Outer(Actor):
    """A service that asks another one, and lets what comes of it through."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    @handler
    async def ask(self, timeout: float = 2.0) -> Any:
        return await self.node.ref(Inner, self.inner).within(timeout).call(Inner.add, 1)

    @handler
    async def ask_wrongly(self) -> Any:
        return await self.node.ref(Inner, self.inner).call(Inner.misfit)

    @handler
    async def ask_slowly(self) -> Any:
        return await self.node.ref(Inner, self.inner).within(1).call(Inner.slow)

    @handler
    async def ask_in_a_group(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.node.ref(Inner, self.inner).call(Inner.add, 1))

    @handler
    async def stream(self) -> AsyncIterator[int]:
        yield 1
        async for number in self.node.ref(Inner, self.inner).stream(Inner.count, 3):
            yield number

    @handler(concurrent=True)
    async def relay(self, to: Pid) -> Any:
        return await self.node.ref(Outer, to).call(Outer.ask)


async def remote_error(request: Coroutine[Any, Any, Any]) -> RemoteError:
    with pytest.raises(RemoteError) as raised:
        await request
    return raised.value


@simulated
async def test_what_a_callee_could_not_deliver_is_known_to_its_caller(fleet: Fleet) -> None:
    one, two, three = await fleet.mesh(3)
    gone = three.spawn(Inner)
    three.exit(gone, "kill")
    for asker in (one, two):  # From another node, and on the same one.
        ref = asker.ref(Outer, two.spawn(Outer, gone))
        for ask in (Outer.ask, Outer.ask_in_a_group):
            error = await remote_error(ref.call(ask))
            assert isinstance(error.cause, NoProcess)
            assert error.__cause__ is error.cause
        items: list[int] = []
        with pytest.raises(RemoteError) as raised:
            items.extend([item async for item in ref.stream(Outer.stream)])
        assert isinstance(raised.value.cause, NoProcess)
    nowhere = one.ref(Outer, two.spawn(Outer, ("inner", "fleetlm@10.0.9.9")))
    assert isinstance((await remote_error(nowhere.call(Outer.ask))).cause, NoConnection)


@simulated
async def test_what_a_callee_does_not_know_its_caller_does_not_know_either(fleet: Fleet) -> None:
    one, two, three = await fleet.mesh(3)
    ref = one.ref(Outer, two.spawn(Outer, three.spawn(Inner)))
    error = await remote_error(ref.call(Outer.ask_slowly))
    assert isinstance(error.cause, CallTimeout)
    assert isinstance(error.cause, OutcomeUnknown)
    asking = asyncio.ensure_future(
        remote_error(one.ref(Outer, two.spawn(Outer, three.spawn(Inner))).call(Outer.ask_slowly))
    )
    await asyncio.sleep(0.5)
    two.disconnect(three.name)
    assert isinstance((await asking).cause, NodeLost)


@simulated
async def test_causes_go_on_over_three_hops(fleet: Fleet) -> None:
    one, two, three = await fleet.mesh(3)
    inner = three.spawn(Inner)
    last = three.spawn(Outer, inner)
    first = one.ref(Outer, two.spawn(Outer, None))
    three.exit(inner, "kill")
    await asyncio.sleep(0.1)
    error = await remote_error(first.call(Outer.relay, last))
    assert isinstance(error.cause, RemoteError)
    assert isinstance(error.cause.cause, NoProcess)
    wrong = await remote_error(one.ref(Outer, two.spawn(Outer, three.spawn(Inner))).call(Outer.ask_wrongly))
    assert isinstance(wrong.cause, RemoteError)
    assert wrong.cause.type_name == "TypeError"
    assert wrong.cause.cause is None


@simulated
async def test_a_retry_in_a_layered_service_works_by_the_kind_of_outcome(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    two.spawn(Outer, "inner", name="outer")
    ref = one.ref(Outer, "outer", at=two.name)
    tries, began = 0, SimLoop.current().time()
    while SimLoop.current().time() < began + 10:
        tries += 1
        try:
            assert await ref.call(Outer.ask) == 1
            break
        except RemoteError as error:
            if not isinstance(error.cause, NotDelivered):
                raise
        if tries == 3:
            two.spawn(Inner, name="inner")
        await asyncio.sleep(0.1)
    assert tries == 4


@simulated
async def test_a_plain_process_tells_the_outcome_too(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)

    async def serve(process: Process) -> None:
        async for call in process.mailbox:
            with contextlib.suppress(NotDelivered):
                try:
                    await process.node.call("nobody", 1)
                except NotDelivered as error:
                    call.fail(error)
                    raise

    assert isinstance((await remote_error(one.call(two.spawn(serve), 1))).cause, NoProcess)


@simulated
async def test_arguments_that_do_not_fit_have_run_nothing(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    for node in (two, one):
        actor = Inner()
        ref: Any = one.ref(Inner, node.spawn(actor))
        for args, named in (((), {}), ((1, 2, 3), {}), ((1,), {"d": 2}), ((1,), {"a": 2})):
            for request in (
                ref.call(Inner.add, *args, **named),
                ref.call(Inner.beside, *args, 1, 2, **named),
                anext(ref.stream(Inner.count, *args, 1, 2, **named)),
            ):
                with pytest.raises(NoHandler, match="argument"):
                    await request
        await ref.cast(Inner.add)
        await ref.cast(Inner.beside, 1, 2)
        assert await ref.call(Inner.add, 1, 2, c=3) == 6
        assert actor.ran == 1
        with pytest.raises(RemoteError, match="TypeError"):
            await ref.call(Inner.misfit)
