"""What can be told of a function before it is run as a process, and what cannot."""

from __future__ import annotations

import asyncio
import functools
import time
import types
import typing
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, cast

import pytest

from fleetlm import Actor, Child, Node, Supervisor
from fleetlm.processes.functions import describe_unfit, process_function
from tests.sim.fleet import Fleet, simulated


async def work(process: Any, *args: Any) -> None: ...


def plain(process: Any) -> None:
    time.sleep(0)


def several_ends(process: Any) -> int | None:
    if process:
        return 5
    for _ in range(3):
        with open("nothing") as _:  # noqa: PTH123  # it is never run
            return None
    return None


def raises(process: Any) -> None:
    raise NotImplementedError


def steps(process: Any) -> Iterator[int]:
    yield 1


async def items(process: Any) -> AsyncIterator[int]:
    yield 1


class NoActor:
    """A class of which people think that it runs."""

    async def run(self) -> None: ...


class CalledPlainly:
    def __call__(self, process: Any) -> None: ...


class CalledWithYield:
    async def __call__(self, process: Any) -> AsyncIterator[int]:
        yield 1


class Runs(Actor):
    def __init__(self, n: int = 0) -> None: ...


UNFIT: dict[str, tuple[Any, str]] = {
    "a plain function": (plain, "plain is a plain function, not `async def`, and returns nothing"),
    "one with several returns": (several_ends, "several_ends is a plain function"),
    "a plain lambda": (lambda process: None, "<lambda> is a plain function"),
    "a generator function": (steps, "steps is a generator function"),
    "an async generator function": (items, "items is an async generator function"),
    "a partial of one": (functools.partial(items, 1), "items is an async generator function"),
    "a bound method": (CalledPlainly().__call__, "CalledPlainly.__call__ is a plain function"),
    "a static method": (staticmethod(plain), "plain is a plain function"),
    "an object that is called plainly": (CalledPlainly(), "CalledPlainly.__call__ is a plain function"),
    "its class": (CalledPlainly, "CalledPlainly.__call__ is a plain function"),
    "a class that yields": (CalledWithYield, "CalledWithYield.__call__ is an async generator function"),
    "a class that is no actor": (NoActor, "NoActor is a class that is no Actor, and its objects cannot"),
    "an object of it": (NoActor(), "is not a function"),
    "a partial of an actor": (functools.partial(Runs, 3), "a partial of Runs makes an actor"),
    "a built-in class": (dict, "dict is a class that is no Actor"),
    "None": (None, "None is not a function"),
    "a text": ("work", "'work' is not a function"),
}  # fmt: skip


class CalledAsync:
    async def __call__(self, process: Any, *args: Any) -> None: ...

    async def method(self, process: Any) -> None: ...


class MakesAnother:
    def __new__(cls) -> Any:
        return CalledAsync()


class Meta(type):
    def __call__(cls, *args: Any) -> Any:
        return work


class OfMeta(metaclass=Meta):
    pass


@types.coroutine
def old_style(process: Any) -> Generator[Any, Any, None]:
    yield None


def returns_a_coroutine(process: Any) -> Any:
    return work(process)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


FIT: dict[str, Any] = {
    "a coroutine function": work,
    "a partial of one": functools.partial(work, None, 1),
    "a method": CalledAsync().method,
    "an object": CalledAsync(),
    "a class": CalledAsync,
    "a class that makes something else": MakesAnother,
    "a class with a metaclass": OfMeta,
    "an actor class": Runs,
    "an actor object": Runs(1),
    "a supervisor": Supervisor([]),
    "a lambda": lambda process: work(process, 1),
    "a lambda with branches": lambda process: work(process) if process else None,
    "a plain function that returns a coroutine": returns_a_coroutine,
    "a decorated function": decorated(work),
    "one that only raises": raises,
    "a generator-based coroutine": old_style,
    "a partial of a class": functools.partial(NoActor),
    "a built-in function": asyncio.sleep,
    "a compiled function": min,
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_no_process_can_run_is_refused_with_what_was_given_and_what_is_wanted(name: str) -> None:
    function, problem = UNFIT[name]
    with pytest.raises(TypeError) as error:
        process_function(function)
    assert problem in str(error.value)
    assert str(error.value).endswith("a coroutine function (`async def` without `yield`), or an Actor class")


@pytest.mark.parametrize("name", FIT)
def test_what_a_process_may_be_able_to_run_is_taken(name: str) -> None:
    assert process_function(FIT[name]) is FIT[name]
    assert describe_unfit(FIT[name]) == ""


def test_a_generic_alias_becomes_its_class() -> None:
    T = typing.TypeVar("T")

    class Cache(Actor, typing.Generic[T]): ...

    assert process_function(Cache[int]) is Cache


def test_a_coroutine_is_refused_and_closed_so_that_only_one_mistake_is_told() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match=r"is a coroutine: give the function itself, without calling it"):
            process_function(work(None))


@simulated
async def test_each_way_to_start_a_process_refuses_it_at_once_and_starts_nothing(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    held: list[Any] = []
    begun = asyncio.Event()

    async def parent(process: Any) -> None:
        held.append(process)
        begun.set()
        await process.receive()

    node.spawn(parent)
    await begun.wait()
    before = node.processes()
    ways: list[Callable[[Node], object]] = [
        lambda node: node.spawn(cast("Any", plain), name="wrong"),
        lambda _: held[0].spawn_link(plain, name="wrong"),
        lambda _: held[0].spawn_monitor(plain, name="wrong"),
        lambda _: Child("wrong", plain),  # type: ignore[arg-type]
        lambda node: node.factories.register("wrong", plain),  # type: ignore[arg-type]
        lambda node: node.singleton("wrong", plain),  # type: ignore[arg-type]
    ]
    for way in ways:
        with pytest.raises(TypeError, match="plain is a plain function"):
            way(node)
    assert node.processes() == before
    assert node.factories.list() == []
    node.spawn(work, name="wrong")
