"""The shapes that classes of actors take: generic, abstract, dataclasses, defined again, or wrong."""

from __future__ import annotations

import abc
import datetime as dt
import functools
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import pytest

import fleetlm
from fleetlm import Actor, Child, Node, NotSerializable, Supervisor, handler
from fleetlm.messages import MessageTypes
from fleetlm.wire.codec import Codec
from fleetlm.wire.invocation import Invoke
from tests.sim.fleet import Fleet, simulated

T = TypeVar("T")


class Cache(Actor, Generic[T]):
    def __init__(self, first: Any = 5) -> None:
        self.first = first

    @handler
    async def get(self) -> T:
        return self.first

    @handler
    async def put(self, key: str, value: Any, *, until: Any = None) -> None: ...

    @handler
    async def items(self, start: Any) -> Any:
        yield start


class Base(Actor, abc.ABC):
    @handler
    @abc.abstractmethod
    async def get(self) -> int: ...


class Concrete(Base):
    async def get(self) -> int:
        return 5


@simulated
async def test_a_generic_actor_runs_under_an_alias(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    alias = Cache[int]
    assert await node.ref(alias, node.spawn(alias)).call(alias.get) == 5
    assert await node.ref(Cache[int], node.spawn(Cache, 6)).call(Cache.get) == 6
    started = await node.start_actor(Cache[int], 7)
    assert await started.call(Cache[int].get) == 7
    node.spawn(Supervisor([Child("c", Cache[int], args=(8,), register="cache")]))
    node.factories.register("cache", Cache[int])
    await node.join(started.pid, 0.1)  # lets the supervisor start its child
    assert await node.ref(Cache, "cache").call(Cache.get) == 8
    pid = await node.spawn_at(node.name, "cache", 9)
    assert await node.ref(Cache[str], pid).call(Cache.get) == 9
    assert node.processes()[0].runs == "Cache"
    with pytest.raises(TypeError, match=r"list\[int\] is not an Actor class"):
        node.ref(list[int], pid)  # type: ignore[type-var]


@simulated
async def test_an_abstract_actor_is_refused_where_it_is_spawned(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    why = "Base is abstract, since it only declares get; spawn a subclass"
    before = len(node.processes())
    for spawn in (
        lambda: node.spawn(Base, name="base"),
        lambda: Child("base", Base),
        lambda: node.factories.register("base", Base),
    ):
        with pytest.raises(TypeError, match=why):
            spawn()
    with pytest.raises(TypeError, match=why):
        await node.start_actor(Base)
    assert len(node.processes()) == before
    assert await node.ref(Base, node.spawn(Concrete, name="base")).call(Base.get) == 5


@dataclass
class Plain(Actor):
    n: int = 1
    items: list[int] = field(default_factory=list)

    @handler
    async def get(self) -> int:
        return self.n


@dataclass(slots=True)
class Slotted(Actor):
    n: int = 1

    @handler
    async def get(self) -> int:
        return self.n


@dataclass(frozen=True)
class Frozen(Actor):
    n: int = 1

    @handler
    async def get(self) -> int:
        return self.n


@simulated
async def test_an_actor_may_be_a_dataclass(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    classes: list[Any] = [Plain, Slotted, Frozen]
    for cls in classes:
        assert await node.ref(cls, node.spawn(cls, 5)).call(cls.get) == 5
        assert await node.ref(cls, node.spawn(cls(6))).call(cls.get) == 6


def define(**more: Any) -> Any:
    """Run a notebook cell that defines an actor."""

    async def get(self: Any) -> int:
        return 5

    get.__qualname__ = "Cell.get"
    members: dict[str, Any] = {"get": handler(get), "__qualname__": "Cell", **more}
    return type("Cell", (Actor,), members)


@simulated
async def test_a_class_that_is_defined_again_still_names_the_handlers_of_the_first(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)

    async def new(self: Any) -> int:
        return 6

    new.__qualname__ = "Cell.new"
    old, again = define(), define(new=handler(new))
    ref = node.ref(old, node.spawn(old))
    assert await ref.call(again.get) == 5
    assert await node.ref(again, ref.pid).call(old.get) == 5
    why = "is not a handler of the Cell with which this reference was made; the class has been defined again"
    with pytest.raises(TypeError, match=why):
        await ref.call(again.new)
    other = define(__qualname__="Other")
    other.get.__qualname__ = "Other.get"
    with pytest.raises(TypeError, match=r"Other\.get is not a handler of Cell"):
        await ref.call(other.get)


async def run(self: Any) -> None: ...


class Callable_:  # noqa: N801
    async def __call__(self, actor: Any) -> None: ...


wrapper = functools.update_wrapper(Callable_(), handler(run))
WRONG: list[tuple[str, Any]] = [
    ("must be a plain async method", lambda: {"work": property(handler(run))}),
    ("must be a plain async method", lambda: {"work": functools.partialmethod(handler(run))}),
    ("must be a plain async method", lambda: {"work": handler(functools.partial(run))}),
    ("must be a plain async method", lambda: {"work": functools.partial(handler(run))}),
    ("must be a plain async method", lambda: {"work": wrapper}),
    ("must be a plain async method", lambda: {"work": staticmethod(handler(run))}),
    ("cannot be a handler: it must be `async def`", lambda: {"work": handler(Callable_())}),
    ("cannot be a handler: it must be `async def`", lambda: {"work": handler(property(run))}),  # type: ignore[call-overload]
    ("cannot be a handler: it must be `async def`", lambda: {"work": handler(classmethod(run))}),  # type: ignore[call-overload]
]


@pytest.mark.parametrize(("why", "members"), WRONG, ids=range(len(WRONG)))
def test_what_would_silently_be_no_handler_is_refused(why: str, members: Any) -> None:
    with pytest.raises(TypeError, match=why):
        type("Odd", (Actor,), members())


@fleetlm.message("test.shapes.entry")
@dataclass
class Entry:
    text: str
    when: Any = None


NAIVE = dt.datetime(2024, 1, 1)  # noqa: DTZ001


async def refusals(node: Node, target: Any) -> None:
    ref = node.ref(Cache, target)
    wrong: list[tuple[Any, str]] = [
        (
            lambda: ref.call(Cache.put, "k", Entry("x", NAIVE)),
            "argument 2 of Cache.put, field .when cannot",
        ),
        (lambda: ref.cast(Cache.put, cast("Any", 1j), 1), "argument 1 of Cache.put cannot be sent: complex"),
        (
            lambda: ref.call(Cache.put, "k", {"a": [1j]}),
            "argument 2 of Cache.put, at ['a'][0] cannot",
        ),
        (lambda: ref.call(Cache.put, "k", 1, until=NAIVE), "argument 'until' of Cache.put cannot be sent"),
        (lambda: ref.call(Cache.put, "k", {(1j,): 1}), "the key (1j,) of argument 2 of Cache.put"),
        (lambda: anext(ref.stream(Cache.items, NAIVE)), "argument 1 of Cache.items cannot be sent"),
    ]
    for ask, why in wrong:
        with pytest.raises(NotSerializable) as caught:
            await ask()
        assert why in str(caught.value), str(caught.value)


@simulated
async def test_an_argument_that_cannot_be_sent_is_named(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    two.spawn(Cache, name="cache")
    await refusals(one, ("cache", two.name))


def test_a_refused_request_without_a_reference_names_the_handler() -> None:
    request = Invoke("put", (1, 1j), {})
    codec = Codec(MessageTypes())
    with pytest.raises(NotSerializable) as caught:
        codec.pack_whole([1, request.parts()], request.parts())
    assert request.explain(caught.value).path in ("argument 2 of put", caught.value.path)
    other = NotSerializable("the address of the message", "x")
    assert request.explain(other) is other
