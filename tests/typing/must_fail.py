"""What a type checker must refuse: each line marked with `E:` and the error's code, and no other."""

from __future__ import annotations

from fleetlm import Actor, ActorRef, ActorRefs, Child, Node, Pid, Process, handler
from tests.typing.sessions import Busy, Other, Sessions


async def ask(ref: ActorRef[Sessions]) -> None:
    await ref.call(Sessions.apend, "s1", "hello")  # E: attr-defined
    await ref.call("append", "s1", "hello")  # E: arg-type
    await ref.call(Sessions.append, "s1")  # E: call-arg
    await ref.call(Sessions.append, "s1", "hello", "more")  # E: call-arg
    await ref.call(Sessions.append, "s1", 5)  # E: arg-type
    await ref.call(Sessions.append, "s1", lin="hello")  # E: call-arg
    await ref.call(Sessions.append, "s1", "hello", twice="yes")  # E: arg-type
    await ref.call(Other.append, "s1")  # E: arg-type
    await ref.call(Busy.busy)  # E: arg-type
    await ref.call(Sessions.tokens, "prompt")  # E: arg-type
    text: str = await ref.call(Sessions.append, "s1", "hello")  # E: arg-type
    print(text)
    await ref.within("2").call(Sessions.touch)  # E: arg-type
    ref.call(Sessions.touch)  # E: unused-coroutine


async def cast(ref: ActorRef[Sessions]) -> None:
    await ref.cast(Sessions.append, "s1")  # E: call-arg
    await ref.cast(Sessions.append, "s1", b"hello")  # E: arg-type
    await ref.cast(Other.append, "s1")  # E: arg-type
    await ref.cast(Sessions.tokens, "prompt")  # E: arg-type
    ref.cast(Sessions.touch)  # E: unused-coroutine


async def many(node: Node, refs: ActorRefs[Sessions], pid: Pid) -> None:
    await refs.multicall(Sessions.append, "s1")  # E: call-arg
    await refs.multicall(Sessions.append, "s1", 5)  # E: arg-type
    await refs.multicall(Other.append, "s1")  # E: arg-type
    await refs.multicall(Busy.busy)  # E: arg-type
    await refs.multicall(Sessions.tokens, "prompt")  # E: arg-type
    refs.multicall(Sessions.touch)  # E: unused-coroutine
    counts: list[int] = await refs.multicall(Sessions.append, "s1", "hello")  # E: assignment
    print(counts)
    await refs.broadcast(Sessions.append, "s1", b"hello")  # E: arg-type
    await refs.broadcast(Other.append, "s1")  # E: arg-type
    refs.broadcast(Sessions.touch)  # E: unused-coroutine
    node.refs(Sessions, pid)  # E: arg-type
    node.refs(int, "s")  # E: type-var
    node.sync.refs(Sessions, "s").multicall(Sessions.append, "s1")  # E: call-arg


async def stream(ref: ActorRef[Sessions]) -> None:
    async for token in ref.stream(Sessions.tokens, 5):  # E: arg-type
        print(token)
    async for number in ref.stream(Sessions.append, "s1", "hello"):  # E: arg-type
        print(number)
    async for each in ref.stream(Sessions.numbers):
        text: str = each  # E: assignment
        print(text)
    for wrong in ref.stream(Sessions.numbers):  # E: attr-defined
        print(wrong)


async def start(node: Node, pid: Pid) -> None:
    await node.start_actor(int)  # E: type-var
    node.ref(int, pid)  # E: type-var
    node.ref(Sessions, 5)  # E: arg-type
    node.spawn(int)  # E: arg-type
    Child("s", int)  # E: arg-type
    sub: ActorRef[Busy] = node.ref(Sessions, pid)  # E: arg-type
    print(sub)


async def any_of(node: Node) -> None:
    await node.groups.call("g", Sessions.append, "s1", 7)  # E: arg-type
    await node.groups.call("g", Sessions.append, "s1", "hello", by="fastest")  # E: call-overload
    await node.groups.call("g", Sessions.tokens, "prompt")  # E: arg-type
    node.groups.stream("g", Sessions.append, "s1", "hello")  # E: arg-type
    node.groups.call("g", Sessions.touch)  # E: unused-coroutine
    ref = node.groups.ref(Sessions, "g")
    await ref.call(Sessions.append, "s1")  # E: call-arg
    await ref.call(Other.append, "s1")  # E: arg-type
    ref.stream(Sessions.append, "s1", "hello")  # E: arg-type
    ref.keyed(1.5)  # E: arg-type
    node.sync.groups.call("g", Sessions.append, "s1", 7)  # E: arg-type


class Wrong(Actor):
    @handler  # E: type-var
    def sync(self) -> int:
        return 1

    @handler(concurrent=True)  # E: type-var
    def sync_beside(self) -> int:
        return 1

    @handler(concurent=True)  # E: call-overload
    async def typo(self) -> int:
        return 1

    async def init(self, more: int) -> None: ...  # E: override


async def plain(process: Process) -> None: ...


async def counting(process: Process, start: int, step: int = 1) -> None: ...


def no_coroutine(process: Process) -> None: ...


async def spawn(node: Node, process: Process) -> None:
    node.spawn(counting)  # E: call-arg
    node.spawn(counting, "not an int")  # E: arg-type
    node.spawn(counting, 1, 2, 3)  # E: arg-type
    node.spawn(plain, 1)  # E: arg-type
    node.spawn(no_coroutine)  # E: arg-type
    node.spawn(Sessions, "not an int")  # E: arg-type
    process.spawn_link(counting, "not an int")  # E: arg-type
    process.spawn_monitor(plain, 1)  # E: arg-type
    await node.start_actor(Sessions, "not an int")  # E: arg-type
    await node.start_actor(Sessions, 3, 7)  # E: arg-type
    print(node.info("fleetlm@10.0.0.7").peers)  # E: union-attr
