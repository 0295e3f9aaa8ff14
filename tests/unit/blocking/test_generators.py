"""Blocking generators on virtual time, where a loop runs their steps on its own thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from fleetlm import Actor, handler
from fleetlm.blocking.generators import Generation
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import Fleet, simulated


def numbers(count: int, log: list[str]) -> Iterator[int]:
    try:
        for number in range(count):
            log.append(f"made {number}")
            yield number
    finally:
        log.append("end")


def test_a_step_uses_up_the_room_and_the_next_one_goes_on() -> None:
    log: list[str] = []
    arrived: list[int] = []
    generation = Generation(lambda: numbers(10, log), lambda item: item + 1, lambda: arrived.append(1))
    assert not generation.step(4)  # Items of 1, 2 and 3 units: the last one may exceed the room.
    assert [item for item, _ in generation.items] == [0, 1, 2]
    assert not generation.step(6)
    assert generation.put_units == 6
    assert generation.step(1_000)
    assert [item for item, _ in generation.items] == list(range(10))
    assert len(arrived) == 10
    assert log[-1] == "end"
    assert generation.step(2_000), "it has ended for good"
    assert log.count("end") == 1


def test_a_generation_that_is_closed_ends_at_its_yield_and_drops_its_item() -> None:
    log: list[str] = []

    def made() -> Iterator[int]:
        for number in numbers(10, log):
            generation.is_closed = number == 2
            yield number

    generation = Generation(made, lambda _: 1, lambda: None)
    assert generation.step(100)
    assert [item for item, _ in generation.items] == [0, 1]
    never = Generation(lambda: numbers(1, log), lambda _: 1, lambda: None)
    never.is_closed = True
    before = list(log)
    assert never.step(1)
    assert log == before, "a generator that has not begun never runs"


def test_an_iterable_without_close_will_do() -> None:
    generation = Generation(lambda: [1, 2], lambda _: 1, lambda: None)
    assert not generation.step(1)
    generation.is_closed = True
    assert generation.step(2)


class Model(Actor):
    def __init__(self) -> None:
        self.log: list[str] = []

    @handler
    async def count(self, upto: int) -> AsyncIterator[int]:
        async for number in self.stream_blocking(numbers, upto, self.log):
            yield number


@simulated
async def test_a_handler_streams_from_a_generator_between_nodes(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2)
    model = Model()
    ref = here.ref(Model, there.spawn(model))
    assert [number async for number in ref.stream(Model.count, 1_000)] == list(range(1_000))
    assert model.log.pop() == "end"
    assert isinstance(asyncio.get_running_loop(), SimLoop), "no thread was started"
    model.log.clear()
    stream = ref.stream(Model.count, 10_000)
    assert await anext(stream) == 0
    await asyncio.sleep(1)
    assert len(model.log) <= 2 * 64 + 2, "both windows hold it back"
    await stream.aclose()
    await asyncio.sleep(1)
    assert model.log[-1] == "end"


@simulated
async def test_no_more_generators_are_open_than_allowed_and_the_next_one_waits(fleet: Fleet) -> None:
    node = await fleet.start("10.0.0.1", blocking_generators=2)
    log: list[str] = []
    first, second, third = (node.stream_blocking(numbers, 100, log) for _ in range(3))
    assert (await anext(first), await anext(second)) == (0, 0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(third), 5)
    await first.aclose()
    assert await asyncio.wait_for(anext(third), 5) == 0
    waiting = node.stream_blocking(numbers, 100, log)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(waiting), 5)
    await waiting.aclose()  # While it waits for a thread: it never runs.
    await second.aclose()
    await third.aclose()
    assert [number async for number in node.stream_blocking(numbers, 3, log)] == [0, 1, 2]
    assert log.count("made 0") == 4
