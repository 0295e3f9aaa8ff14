"""Streams of actors between nodes: typed items, the window, and the end of each side."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleetlm import (
    Actor,
    ActorRef,
    CallTimeout,
    Expired,
    NoHandler,
    OutcomeUnknown,
    ProcessDown,
    ProcessExit,
    RemoteError,
    handler,
)
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import Fleet, simulated


class Model(Actor):
    def __init__(self) -> None:
        self.made: list[int] = []
        self.log: list[str] = []

    @handler
    async def count(self, upto: int, pause: float = 0.0) -> AsyncIterator[int]:
        try:
            for number in range(upto):
                self.made.append(number)
                yield number
                await asyncio.sleep(pause)
        except BaseException as error:
            self.log.append(type(error).__name__)
            raise
        finally:
            self.log.append("closed")

    @handler(concurrent=True)
    async def beside(self, upto: int) -> AsyncIterator[int]:
        for number in range(upto):
            await asyncio.sleep(1)
            yield number

    @handler
    async def broken(self, error: str) -> AsyncIterator[object]:
        yield 1
        if error == "exit":
            raise ProcessExit("quota")
        if error == "unsendable":
            yield object()
        raise ValueError(error)

    @handler
    async def relayed(self, at: str, upto: int) -> AsyncIterator[int]:
        async with contextlib.aclosing(
            self.node.ref(Model, "model", at=at).stream(Model.count, upto, 1.0)
        ) as items:
            async for item in items:
                yield item * 10

    @handler
    async def plain(self) -> str:
        return "plain"


async def started(fleet: Fleet, count: int = 2) -> tuple[list[Model], ActorRef[Model]]:
    """Start the models, and return a reference from the first node to the last node's."""
    nodes = await fleet.mesh(count)
    made = [Model() for _ in nodes]
    for node, model in zip(nodes, made, strict=True):
        await node.start_actor(model, name="model")
    return made, nodes[0].ref(Model, "model", at=nodes[-1].name)


async def consume(items: AsyncIterator[Any], into: list[Any]) -> None:
    async for item in items:
        into.append(item)  # noqa: PERF401  # it may raise


@pytest.mark.parametrize("count", [1, 2])
def test_items_come_in_order_and_the_actor_goes_on(count: int) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        made, ref = await started(fleet, count)
        assert [item async for item in ref.stream(Model.count, 200)] == list(range(200))
        assert made[-1].log == ["closed"]
        assert await ref.call(Model.plain) == "plain"

    story()


@pytest.mark.parametrize("count", [1, 2])
def test_the_window_holds_a_generator_that_is_faster(count: int) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        made, ref = await started(fleet, count)
        taken = 0
        async for _ in ref.stream(Model.count, 1_000):
            await asyncio.sleep(0.01)
            taken += 1
            assert len(made[-1].made) - taken <= fleet.nodes[0].settings.stream_window + 1
        assert taken == 1_000

    story()


@pytest.mark.parametrize("count", [1, 2])
def test_a_consumer_that_stops_cancels_the_handler(count: int) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        made, ref = await started(fleet, count)
        for pause, error in ((1.0, "CancelledError"), (0.0, "GeneratorExit")):
            async with contextlib.aclosing(ref.stream(Model.count, 1_000_000, pause)) as items:
                async for item in items:
                    if item == 2:
                        await asyncio.sleep(0.5)
                        break
            await asyncio.sleep(0.5)
            assert made[-1].log == [error, "closed"]
            made[-1].log.clear()
            assert await ref.call(Model.plain) == "plain"

    story()


@simulated
async def test_each_kind_of_end_reaches_the_consumer(fleet: Fleet) -> None:
    logging.disable(logging.CRITICAL)
    made, ref = await started(fleet)
    for error, expected in (("no", RemoteError), ("unsendable", RemoteError), ("exit", ProcessDown)):
        got: list[Any] = []
        with pytest.raises(expected):
            await consume(ref.stream(Model.broken, error), got)
        assert got == [1]
    await fleet.nodes[1].start_actor(made[1].__class__, name="model")
    with pytest.raises(NoHandler, match="returns one result"):
        await anext(ref.stream(Model.plain))  # type: ignore[arg-type]
    with pytest.raises(NoHandler, match="yields"):
        await ref.call(Model.count, 1)  # type: ignore[arg-type]
    with pytest.raises(NoHandler, match="argument"):
        await anext(ref.stream(Model.count))  # type: ignore[call-arg]
    with pytest.raises(CallTimeout):
        await consume(ref.within(2).stream(Model.count, 10, 1.0), [])
    consuming = asyncio.ensure_future(anext(ref.stream(Model.beside, 5)))
    await asyncio.sleep(0.5)
    await fleet.crash(fleet.nodes[1])
    await asyncio.wait([consuming])
    assert isinstance(consuming.exception(), OutcomeUnknown)


@simulated
async def test_concurrent_streams_run_beside_plain_handlers(fleet: Fleet) -> None:
    _, ref = await started(fleet)
    begun = SimLoop.current().time()

    got: list[list[int]] = [[], [], []]
    consuming = [asyncio.ensure_future(consume(ref.stream(Model.beside, 3), each)) for each in got]
    await asyncio.sleep(0.5)
    assert await ref.call(Model.plain) == "plain"
    await asyncio.gather(*consuming)
    assert got == [[0, 1, 2]] * 3
    assert SimLoop.current().time() - begun == pytest.approx(3.0, abs=0.5)


@simulated
async def test_a_deadline_and_a_cancellation_travel_through_streams(fleet: Fleet) -> None:
    made, _ = await started(fleet, 3)
    first = fleet.nodes[0].ref(Model, "model", at=fleet.nodes[1].name)
    got: list[int] = []
    with pytest.raises(CallTimeout):
        await consume(first.within(2.5).stream(Model.relayed, fleet.nodes[2].name, 100), got)
    assert got == [0, 10, 20]
    await asyncio.sleep(0.2)
    assert made[2].log == ["CancelledError", "closed"]
    async with contextlib.aclosing(first.stream(Model.relayed, fleet.nodes[2].name, 100)) as items:
        await anext(items)
    await asyncio.sleep(0.5)
    assert made[2].log == ["CancelledError", "closed"] * 2
    assert await first.call(Model.plain) == "plain"


@simulated
async def test_a_stream_with_no_time_left_is_not_opened(fleet: Fleet) -> None:
    _, ref = await started(fleet)
    said: list[Any] = []

    class Late(Actor):
        @handler
        async def late(self) -> None:
            await asyncio.sleep(0)
            from fleetlm.messaging.deadline import SERVING

            call = SERVING.get()
            assert call is not None
            call.deadline = SimLoop.current().time()
            try:
                await anext(ref.stream(Model.count, 1))
            except Expired as error:
                said.append(error)

    await (await fleet.nodes[0].start_actor(Late)).call(Late.late)
    assert len(said) == 1
