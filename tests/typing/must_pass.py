"""What a type checker knows of actors; every line of this must pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar, assert_type

from fleetlm import (
    Actor,
    ActorRef,
    ActorRefs,
    Child,
    FleetError,
    GroupRef,
    Node,
    NodeInfo,
    PeerInfo,
    Pid,
    Process,
    Ref,
    Stream,
    Supervisor,
    SyncStream,
    handler,
    retry,
)
from tests.typing.sessions import Busy, Line, Other, Sessions

T = TypeVar("T")


async def start(node: Node, process: Process) -> None:
    node.spawn(Sessions, name="a class")
    node.spawn(Sessions, 3)
    node.spawn(Sessions(3), name="an object")
    process.spawn_link(Busy)
    Supervisor([Child("s", Sessions, args=(3,)), Child("t", Supervisor, args=([],))])
    assert_type(await node.start_actor(Sessions, 3, name="s", timeout=2.5), ActorRef[Sessions])
    assert_type(await node.start_actor(Sessions(limit=3)), ActorRef[Sessions])
    assert_type(await process.start_actor_link(Busy), ActorRef[Busy])


def refer(node: Node, pid: Pid) -> None:
    assert_type(node.ref(Sessions, pid), ActorRef[Sessions])
    assert_type(node.ref(Sessions, "s"), ActorRef[Sessions])
    assert_type(node.ref(Sessions, "s", at="fleetlm@10.0.0.7"), ActorRef[Sessions])
    assert_type(node.ref(Sessions, ("s", "fleetlm@10.0.0.7")), ActorRef[Sessions])
    assert_type(node.ref(Busy, lambda: pid), ActorRef[Busy])
    assert_type(node.ref(Busy, pid).pid, Pid)
    base: ActorRef[Sessions] = node.ref(Busy, pid)
    anything: ActorRef[Actor] = base
    print(anything)


async def ask(ref: ActorRef[Sessions], busy: ActorRef[Busy], other: ActorRef[Other]) -> None:
    assert_type(await ref.call(Sessions.append, "s1", "hello"), int)
    assert_type(await ref.call(Sessions.append, "s1", line="hello", twice=True), int)
    assert_type(await ref.within(2).call(Sessions.append, "s1", "hello"), int)
    asking: Coroutine[Any, Any, int] = ref.call(Sessions.append, "s1", "hello")
    assert_type(await asking, int)
    assert_type(await ref.call(Sessions.fetch, "url"), Line | None)
    await ref.call(Sessions.touch)
    assert_type(await other.call(Other.append, "s1"), bytes)
    assert_type(await busy.call(Sessions.append, "s1", "hello"), int)
    assert_type(await busy.call(Busy.append, "s1", "hello"), int)
    assert_type(await busy.call(Busy.busy), bool)
    await ref.cast(Sessions.append, "s1", "hello")
    await ref.within(2.5).cast(Sessions.touch)
    await ref.send({"any": "value"})


async def many(node: Node, pid: Pid, busy: ActorRef[Busy]) -> None:
    everywhere = node.refs(Sessions, "sessions")
    assert_type(everywhere, ActorRefs[Sessions])
    assert_type(node.refs(Sessions, [pid, "sessions", ("sessions", "fleetlm@10.0.0.7")]), ActorRefs[Sessions])
    assert_type(node.refs(Busy, [busy]), ActorRefs[Busy])
    assert_type(node.refs(Sessions, lambda: node.groups.members("g")), ActorRefs[Sessions])
    assert_type(node.groups.refs(Sessions, "sessions"), ActorRefs[Sessions])
    assert_type(await everywhere.multicall(Sessions.append, "s1", "hello"), list[int | FleetError])
    assert_type(
        await everywhere.within(2).multicall(Sessions.fetch, url="url"), list[Line | FleetError | None]
    )
    assert_type(await node.refs(Busy, [busy]).multicall(Sessions.append, "s1", "hi"), list[int | FleetError])
    assert_type(await everywhere.broadcast(Sessions.append, "s1", line="hello", twice=True), int)
    assert_type(node.sync.refs(Busy, "busy").multicall(Busy.busy), list[bool | FleetError])
    assert_type(node.sync.groups.refs(Busy, "busy").broadcast(Busy.busy), int)
    base: ActorRefs[Sessions] = node.refs(Busy, [busy])
    print(base)


async def any_of(node: Node) -> None:
    groups, threads = node.groups, node.sync.groups
    assert_type(await groups.call("g", Sessions.append, "s1", "hello"), int)
    assert_type(await groups.call("g", Sessions.fetch, "url", by="key", key="s1", attempts=2), Line | None)
    await groups.call("g", Sessions.touch, timeout=2, idempotent=True)
    assert_type(await groups.call("g", {"any": "message"}, by="sticky", key=7), Any)
    assert_type(groups.stream("g", Sessions.tokens, "prompt"), Stream[str])
    assert_type(groups.stream("g", Sessions.tokens, "prompt", 5, idle=2), Stream[str])
    assert_type(groups.stream("g", "prompt"), Stream[Any])
    ref = groups.ref(Sessions, "g", by="sticky", key="s1")
    assert_type(ref, GroupRef[Sessions])
    assert_type(ref.within(2, idle=1).keyed("s2").retrying(5, idempotent=True), GroupRef[Sessions])
    assert_type(await ref.call(Sessions.append, "s1", line="hello", twice=True), int)
    await ref.cast(Sessions.touch)
    async for token in ref.stream(Sessions.tokens, "prompt", most=5):
        assert_type(token, str)
    base: GroupRef[Sessions] = groups.ref(Busy, "busy")
    print(base)
    assert_type(threads.call("g", Sessions.append, "s1", "hello"), int)
    assert_type(threads.stream("g", Sessions.tokens, "prompt"), SyncStream[str])
    assert_type(threads.ref(Sessions, "g").within(2).call(Sessions.fetch, "url"), Line | None)
    assert_type(threads.ref(Sessions, "g").stream(Sessions.tokens, "prompt"), SyncStream[str])


async def repeat(node: Node, ref: ActorRef[Sessions]) -> None:
    assert_type(await retry(lambda: ref.call(Sessions.append, "s1", "hello"), attempts=3, timeout=2), int)
    assert_type(await node.retry(lambda: ref.call(Sessions.fetch, "url"), idempotent=True), Line | None)
    threads = node.sync.ref(Sessions, "sessions")
    assert_type(node.sync.retry(lambda: threads.call(Sessions.append, "s1", "hello")), int)


async def stream(ref: ActorRef[Sessions], busy: ActorRef[Busy]) -> None:
    assert_type(ref.stream(Sessions.tokens, "prompt", 5), Stream[str])
    async for token in ref.within(60).stream(Sessions.tokens, "prompt", most=5):
        assert_type(token, str)
    async for number in busy.stream(Sessions.numbers):
        assert_type(number, int)


async def inside(sessions: Sessions) -> None:
    assert_type(await sessions.append("s1", "hello"), int)
    assert_type(sessions.pid, Pid)
    assert_type(sessions.node, Node)
    assert_type(await sessions.run_blocking(sorted, [3, 1]), list[int])
    assert_type(await sessions.run_blocking(int, "10", base=2), int)


class Base(Actor, ABC):
    @handler
    @abstractmethod
    async def run(self, x: int) -> str: ...


class Cache(Actor, Generic[T]):
    @handler
    async def get(self, key: str) -> T:
        raise KeyError(key)


async def shapes(node: Node, pid: Pid) -> None:
    assert_type(node.ref(Base, pid), ActorRef[Base])
    assert_type(await node.ref(Base, pid).call(Base.run, 1), str)
    cache: ActorRef[Cache[int]] = node.ref(Cache, "cache")
    assert_type(node.ref(Cache[int], "cache"), ActorRef[Cache[int]])
    assert_type(await cache.call(Cache[int].get, "key"), int)
    print(await cache.call(Cache.get, "key"))  # mypy infers int here too, pyright Unknown


async def plain(process: Process) -> None: ...


async def counting(process: Process, start: int, step: int = 1, *, top: int = 9) -> None: ...


async def several(process: Process, *parts: str) -> None: ...


def spawn(node: Node, process: Process, anything: Callable[..., Awaitable[None]]) -> None:
    node.spawn(plain, name="plain")
    node.spawn(counting, 1)
    node.spawn(counting, 1, 2)
    node.spawn(several)
    node.spawn(several, "a", "b")
    node.spawn(anything, 1, "b")
    node.spawn(lambda process: counting(process, 1))
    process.spawn_link(counting, 1)
    process.spawn_link(anything, 1, "b")
    assert_type(process.spawn_monitor(anything, 1, name="anything"), tuple[Pid, Ref])
    node.sync.spawn(anything, 1, essential=False)
    assert_type(process.spawn_monitor(counting, 1), tuple[Pid, Ref])


def info(node: Node) -> None:
    assert_type(node.info(), NodeInfo)
    assert_type(node.info(None), NodeInfo)
    assert_type(node.info("fleetlm@10.0.0.7"), NodeInfo | PeerInfo | None)
