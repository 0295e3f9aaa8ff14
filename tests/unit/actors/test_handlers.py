"""What may be a handler, how it is named, and what a reference refuses before anything is sent."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from fleetlm import Actor, ActorRef, Address, InvalidName, NoProcess, Pid, handler
from fleetlm.actors.ref import Sender
from fleetlm.wire.codec import Codec
from fleetlm.wire.invocation import Invoke
from tests.sim.fleet import Fleet, simulated

PID = Pid("fleetlm@10.0.0.1", 1, 7)


class Base(Actor):
    @handler
    async def plain(self, number: int) -> str:
        return f"base {number}"

    @handler(concurrent=True)
    async def beside(self) -> str:
        return "beside"

    @handler
    async def items(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    async def helper(self) -> None: ...


class Sub(Base):
    async def plain(self, number: int) -> str:
        return "sub of " + await super().plain(number)

    @handler
    async def own(self) -> str:
        return "own"


class Mixin:
    @handler
    async def mixed(self) -> str:
        return "mixed"


class Mixed(Mixin, Sub):
    @handler  # It was concurrent, and is no more.
    async def beside(self) -> str:
        return "one at a time"


class Other(Actor):
    @handler
    async def plain(self, number: int) -> str:
        return "other"


class Note:
    """A node that notes what references ask of it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def send(self, to: Any, message: Any, timeout: float | None = None) -> None:
        self.asked.append(("send", to, message, timeout))

    async def cast(self, to: Any, request: Invoke, timeout: float | None = None) -> None:
        self.asked.append(("cast", to, request, timeout))

    def cast_nowait(self, to: Any, request: Invoke) -> None:
        self.asked.append(("cast_nowait", to, request))

    async def call(self, to: Any, message: Any, timeout: float | None = None) -> Any:
        self.asked.append(("call", to, message, timeout))
        return "result"

    async def stream(
        self, to: Any, message: Any, timeout: float | None = None, idle: float | None = None
    ) -> AsyncIterator[Any]:
        self.asked.append(("stream", to, message, timeout, idle))
        yield "item"


def ref(actor: type[Any] = Base, target: Any = PID) -> tuple[ActorRef[Any], Note]:
    note = Note()
    return ActorRef(cast("Sender", note), actor, target), note


# Which methods are handlers.


def test_handlers_are_found_through_inheritance() -> None:
    table = Mixed.__fleetlm_handlers__.by_name
    assert sorted(table) == ["beside", "items", "mixed", "own", "plain"]
    assert table["plain"].function is Sub.plain
    assert Base.__fleetlm_handlers__.by_name["beside"].concurrent
    assert Sub.__fleetlm_handlers__.by_name["beside"].concurrent
    assert not table["beside"].concurrent
    assert [name for name, each in table.items() if each.streams] == ["items"]
    assert Actor.__fleetlm_handlers__.by_name == {}


def test_a_handler_stays_the_function_that_it_was() -> None:
    async def method(self: Any, number: int) -> int:
        return number

    assert handler(method) is method
    assert handler(concurrent=True)(method) is method


def test_only_async_functions_are_handlers() -> None:
    with pytest.raises(TypeError, match=r"Sync.work cannot be a handler: it must be `async def`"):

        class Sync(Actor):
            @handler  # type: ignore[type-var]
            def work(self) -> int:
                return 1

    with pytest.raises(TypeError, match="must be `async def`"):
        handler(concurrent=True)(5)  # type: ignore[type-var]


def odd_ones() -> list[tuple[str, Callable[[], type]]]:
    async def run(self: Any) -> None: ...

    async def items(self: Any) -> AsyncIterator[int]:
        yield 1

    def make(base: type, **members: Any) -> Callable[[], type]:
        return lambda: type("Odd", (base,), members)

    return [
        ("`Actor` has a method of that name", make(Actor, init=handler(run))),
        ("`Actor` has a method of that name", make(Actor, stop=handler(run))),
        ("`Actor` has a method of that name", make(Actor, __repr__=handler(run))),
        ("must be a plain async method", make(Actor, work=staticmethod(handler(run)))),
        ("must be a plain async method", make(Actor, work=classmethod(handler(run)))),
        ("must be a plain async method", make(Base, plain=None)),
        ("must be `async def`", make(Base, plain=lambda self: None)),
        ("must yield if, and only if,", make(Base, plain=items)),
        ("must yield if, and only if,", make(Base, items=handler(run))),
    ]


@pytest.mark.parametrize(("why", "define"), odd_ones())
def test_what_cannot_be_a_handler_is_refused_where_its_class_is_defined(
    why: str, define: Callable[[], type]
) -> None:
    with pytest.raises(TypeError, match=why):
        define()


def test_decorators_above_and_below_are_fine() -> None:
    def counted(function: Any) -> Any:
        @functools.wraps(function)
        async def wrapper(*args: Any) -> Any:
            return await function(*args)

        return wrapper

    class Wrapped(Actor):
        @counted
        @handler(concurrent=True)
        async def above(self) -> None: ...

        @handler
        @counted
        async def below(self) -> None: ...

    table = Wrapped.__fleetlm_handlers__.by_name
    assert (table["above"].concurrent, table["below"].concurrent) == (True, False)


@simulated
async def test_the_handler_of_the_actual_actor_runs(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    sub = await node.start_actor(Sub, name="sub")
    assert await sub.call(Base.plain, 1) == await sub.call(Sub.plain, 1) == "sub of base 1"
    assert await node.ref(Base, "sub").call(Base.plain, 2) == "sub of base 2"
    mixed = await node.start_actor(Mixed)
    assert await mixed.call(Mixin.mixed) == "mixed"
    assert await mixed.call(Base.beside) == "one at a time"


# What a reference sends.


async def test_only_the_name_travels() -> None:
    to, note = ref()
    assert await to.call(Base.plain, 1) == "result"
    await to.within(2).call(Base.plain, number=2)
    await to.cast(Base.beside)
    await to.within(5).cast(Base.beside)
    to.cast_nowait(Base.beside)
    got: list[Any] = [item async for item in to.within(3).stream(Base.items, 4)]
    assert got == ["item"]
    await to.send("raw")
    assert note.asked == [
        ("call", PID, Invoke("plain", (1,), {}), None),
        ("call", PID, Invoke("plain", (), {"number": 2}), 2),
        ("cast", PID, Invoke("beside", (), {}), None),
        ("cast", PID, Invoke("beside", (), {}), 5),
        ("cast_nowait", PID, Invoke("beside", (), {})),
        ("stream", PID, Invoke("items", (4,), {}), 3, None),
        ("send", PID, "raw", None),
    ]


def test_a_request_travels_as_it_is() -> None:
    codec = Codec()
    request = Invoke("append", ("s1", (1, 2)), {"line": "hello"})
    packed = codec.pack_value(request.parts())
    assert Invoke.of(codec.unpack(packed)) == request
    assert len(packed) < 80


def test_what_is_no_handler_of_it_is_refused_where_it_is_written() -> None:
    to, note = ref()
    wrong: list[tuple[Any, str]] = [
        (Base.helper, r"Base.helper is not a handler: put @handler above it"),
        (Other.plain, r"Other.plain is not a handler of Base"),
        (Sub.own, r"Sub.own is not a handler of Base"),
        (Sub.plain, r"Sub.plain is not a handler of Base"),
        (Base().plain, r"pass the function of the class, Base.plain, not a bound method"),
        ("plain", r"'plain' is not a handler of Base"),
        ([], r"\[\] is not a handler of Base"),
        (None, "None is not a handler"),
    ]
    for method, why in wrong:
        for ask in (to.call, to.cast, to.cast_nowait, to.stream):
            with pytest.raises(TypeError, match=why):
                ask(method)
    assert note.asked == []


def test_a_reference_says_where_it_leads() -> None:
    assert repr(ref()[0]) == "<ActorRef Base <fleetlm@10.0.0.1 1 7>>"
    assert repr(ref(target="b")[0].within(2.5)) == "<ActorRef Base b within 2.5 s>"
    by_name = ref(target=Address("b", "fleetlm@10.0.0.2"))[0]
    assert repr(by_name) == "<ActorRef Base 'b' on fleetlm@10.0.0.2>"
    assert by_name.target == ("b", "fleetlm@10.0.0.2")
    assert ref()[0].pid == PID
    with pytest.raises(TypeError, match=r"has a name, not a pid: ask `await node.whereis"):
        assert by_name.pid


async def test_a_function_is_asked_anew_at_each_use() -> None:
    found = [PID, Pid("fleetlm@10.0.0.2", 1, 8)]
    asked: list[Any] = []
    to, note = ref(target=lambda: found[len(asked)])
    note.asked = asked
    assert to.pid == found[0]
    await to.call(Base.plain, 1)
    await to.within(1).cast(Base.plain, 1)
    assert [each[1] for each in note.asked] == found

    def nobody() -> Pid:
        raise NoProcess("sessions")

    lost, note = ref(target=nobody)
    with pytest.raises(NoProcess):
        await lost.call(Base.plain, 1)


@simulated
async def test_a_reference_is_made_from_whatever_leads_to_a_process(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    started = await node.start_actor(Sub, name="sub")
    for target in (started.pid, "sub", ("sub", node.name), Address("sub", node.name), lambda: started.pid):
        assert await node.ref(Sub, target).call(Sub.own) == "own"
    there = node.ref(Sub, "sub", at=node.name)
    assert there.target == Address("sub", node.name)
    assert await there.call(Sub.own) == "own"
    with pytest.raises(TypeError, match="at= goes with a name only"):
        node.ref(Sub, started.pid, at=node.name)
    with pytest.raises(InvalidName):
        node.ref(Sub, "sub", at="nowhere")
    with pytest.raises(TypeError, match="not an Actor class"):
        node.ref(Mixin, "sub")  # type: ignore[type-var]
