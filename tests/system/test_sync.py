"""The façade for threads, on real nodes and from real threads; and a node in a thread of its own."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import contextvars
import gc
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

import fleetlm
from fleetlm import (
    Actor,
    AlreadyRegistered,
    Call,
    CallTimeout,
    NoConnection,
    Node,
    NodeLost,
    NodeStopped,
    NoProcess,
    NotSerializable,
    Process,
    RemoteError,
    Settings,
    SettingsError,
    StartFailed,
    WouldBlock,
    handler,
    node_in_thread,
    node_thread,
)
from fleetlm.cli.demo.replicas import free_port
from tests.support.patience import allowed_s

T = TypeVar("T")
HERE, THERE = "127.0.0.61", "127.0.0.62"


def settings_of(ip: str, port: int, **more: Any) -> Settings:
    return Settings(dns_query=f"{HERE},{THERE}", node_ip=ip, node_ports=(port, port), remote=False).replace(
        **more
    )


def lone(**more: Any) -> Settings:
    return settings_of(HERE, free_port([HERE]), dns_query=None, **more)


async def echo(process: Process) -> None:
    async for message in process.mailbox:
        match message:
            case Call(message="raise"):
                message.fail(ValueError("as asked"))
            case Call(message="never"):
                pass
            case Call(message=value):
                message.reply(value)


def collector(into: list[Any]) -> Callable[[Process], Any]:
    async def collect(process: Process) -> None:
        async for message in process.mailbox:
            into.append(message)  # noqa: PERF401  # it is looked at meanwhile

    return collect


class Counter(Actor):
    """An actor for threads to ask."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    @handler
    async def add(self, a: int, b: int = 1) -> int:
        return a + b

    @handler
    async def count(self, to: int) -> AsyncIterator[int]:
        try:
            for number in range(to):
                yield number
        finally:
            self.ended.append("count")

    @handler
    async def ends(self) -> list[str]:
        return self.ended


async def sleeper(_: Process) -> None:
    await asyncio.sleep(100)


def in_thread(function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    """Run it in a thread of its own that ends with it; the executor's would live on."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def run() -> None:
        try:
            value, error = function(*args), None
        except BaseException as raised:  # noqa: BLE001  # it is the test's
            value, error = None, raised
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, daemon=True).start()
    return future


async def until(fact: Callable[[], object], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not fact():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def pair(**more: Any) -> AsyncIterator[tuple[Node, Node]]:
    port = free_port([HERE, THERE])
    async with (
        Node.start(settings_of(HERE, port, **more)) as here,
        Node.start(settings_of(THERE, port, **more)) as there,
    ):
        await here.ready(1, timeout=10)
        await there.ready(1, timeout=10)
        yield here, there


# ── what a thread can ask ────────────────────────────────────────────────────────────────────────


async def test_each_method_returns_and_raises_what_the_async_one_does() -> None:
    async with pair() as (here, there):
        got: list[Any] = []
        pid, twin = there.spawn(echo, name="echo"), there.spawn(echo)
        there.spawn(collector(got), name="sink")
        there.spawn(sleeper, name="idle")

        def thread() -> None:
            node, at = here.sync, there.name
            assert node.call(("echo", at), {"a": (1, 2)}) == {"a": (1, 2)}
            assert node.call(pid, "by pid", timeout=2) == "by pid"
            node.send(("sink", at), 1)
            node.send(("sink", at), 2, timeout=2)
            node.send_nowait(("sink", at), 3)
            assert node.list() == [at]
            assert node.list("this") == [here.name]
            assert node.whereis("echo", at) == pid
            assert node.whereis("echo") is None
            replies = node.multicall([("echo", at), ("nobody", at), "nobody"], "x")
            assert [replies[0], *map(type, replies[1:])] == ["x", NoProcess, NoProcess]
            mine = node.spawn(collector(got), name="sink")
            assert mine.node == here.name
            assert node.broadcast("sink", 4) == 2
            assert node.broadcast("sink", 5, nodes=iter([at])) == 1
            node.register("twin", twin)
            assert node.call(("twin", at), 1) == 1
            node.ready(1, timeout=1)
            node.exit(mine, "enough")
            for error, use in {
                NoProcess: lambda: node.call(("nobody", at), 1),
                RemoteError: lambda: node.call(("echo", at), "raise"),
                CallTimeout: lambda: node.call(("echo", at), "never", timeout=0.05),
                NotSerializable: lambda: node.send(("echo", at), object()),
                NoConnection: lambda: node.send(("echo", "fleetlm@127.0.0.63"), 1),
                AlreadyRegistered: lambda: node.spawn(echo, name="again"),
                TypeError: lambda: node.spawn(3),  # type: ignore[call-overload]
                ValueError: lambda: node.list("no such selector"),
                TimeoutError: lambda: node.ready(5, timeout=0.05),
            }.items():
                with pytest.raises(error):
                    use()

        here.spawn(sleeper, name="again")
        await in_thread(thread)
        await until(lambda: got == [1, 2, 3, 4, 4, 5])
        await until(lambda: here.registered().keys() == {"again"})


class Tally(Actor):
    """Counts."""

    def __init__(self) -> None:
        self.count = 0

    @handler
    async def add(self, more: int, pause_s: float = 0) -> int:
        await asyncio.sleep(pause_s)
        self.count += more
        return self.count


async def test_a_thread_asks_many_actors_with_one_request() -> None:
    async with pair() as (here, there):
        for node in (here, there):
            node.groups.join("counters", (await node.start_actor(Tally, name="counter")).pid)
        there_pid = there.registered()["counter"]
        await here.registry.register("leader", there_pid)
        await until(lambda: len(here.groups.members("counters")) == 2)

        def thread() -> None:
            node = here.sync
            everywhere = node.refs(Tally, "counter")
            assert everywhere.targets == [("counter", here.name), ("counter", there.name)]
            assert everywhere.multicall(Tally.add, 1) == [1, 1]
            assert everywhere.broadcast(Tally.add, more=1) == 2
            assert node.groups.refs(Tally, "counters").multicall(Tally.add, 1) == [3, 3]
            leader, nobody = node.registry.ref(Tally, "leader"), node.registry.ref(Tally, "nobody")
            refs = node.refs(Tally, [nobody, leader, here.registered()["counter"], "nobody"])
            kinds = [type(each) for each in refs.within(5).multicall(Tally.add, 1)]
            assert kinds == [NoProcess, int, int, NoProcess]
            assert refs.within(5).broadcast(Tally.add, 1) == 2
            late = everywhere.within(0.05).multicall(Tally.add, 1, pause_s=60)
            assert [type(each) for each in late] == [CallTimeout] * 2
            assert repr(everywhere) == "<SyncRefs Tally>"
            with pytest.raises(NotSerializable, match=r"argument 1 of Tally\.add"):
                refs.multicall(Tally.add, object())  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="is one target"):
                node.refs(Tally, there_pid)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="is not an Actor class"):
                node.refs(int, "counter")  # type: ignore[type-var]

        await in_thread(thread)


async def refuse(process: Process, asked: list[int]) -> None:
    process.node.groups.join("counters", process.pid)
    async for call in process.mailbox:
        asked.append(call.message)
        call.refuse(fleetlm.Draining(process.node.name))


class Member(Tally):
    async def init(self) -> None:
        for group in ("counters", "actors"):
            self.node.groups.join(group, self.pid)

    @handler(concurrent=True)
    async def up_to(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number


async def test_a_thread_asks_any_member_of_a_group_and_repeats_what_was_not_delivered() -> None:
    async with pair() as (here, there):
        asked: list[int] = []
        here.spawn(refuse, asked)
        there_pid = (await there.start_actor(Member)).pid
        await until(lambda: len(here.groups.members("counters")) == 2)

        def thread() -> None:
            groups = here.sync.groups
            members = groups.ref(Member, "counters", by="round_robin")
            assert [members.within(5).call(Member.add, 1) for _ in range(3)] == [1, 2, 3]
            groups.ref(Member, "actors").cast(Member.add, more=1)
            assert groups.call("counters", Member.add, 1, by="round_robin", timeout=5) == 5
            assert list(members.stream(Member.up_to, 3)) == [0, 1, 2]
            with groups.stream("counters", Member.up_to, 3) as items:
                assert items.get(timeout=5) == 0
            sticky = groups.ref(Member, "counters", by="sticky", key="k").retrying(4, idempotent=True)
            assert sticky.keyed("s").call(Member.add, 1) == 6
            assert repr(sticky) == "<SyncGroupRef Member in 'counters' by sticky>"
            with pytest.raises(CallTimeout):
                members.within(0.05).call(Member.add, 1, pause_s=60)
            with pytest.raises(ValueError, match="unknown rule"):
                groups.ref(Member, "counters", by="fastest")  # type: ignore[arg-type]

        await in_thread(thread)
        there.exit(there_pid, "kill")
        await until(lambda: len(here.groups.members("counters")) == 1)

        def alone() -> None:
            with pytest.raises(fleetlm.Draining) as caught:
                here.sync.groups.call("counters", 7, attempts=2)
            assert "no attempt was left (attempts=2)" in caught.value.__notes__[0]

        await in_thread(alone)
        assert asked == [7, 7]


async def test_a_thread_repeats_its_own_requests() -> None:
    async with Node.start(lone()) as node:

        def thread() -> None:
            attempts: list[float] = []

            def until_it_is_there() -> str:
                attempts.append(time.monotonic())
                if len(attempts) == 3:
                    node.sync.spawn(echo, name="late")
                result: str = node.sync.call("late", "hello")
                return result

            assert node.sync.retry(until_it_is_there, timeout=30) == "hello"
            assert len(attempts) == 3
            with pytest.raises(NoProcess) as caught:
                node.sync.retry(lambda: node.sync.call("nobody", 1), attempts=2)
            assert "no attempt was left (attempts=2)" in caught.value.__notes__[0]
            with pytest.raises(ZeroDivisionError):
                node.sync.retry(lambda: 1 // 0)
            with pytest.raises(ValueError, match="attempts is 0"):
                node.sync.retry(lambda: None, attempts=0)

        await in_thread(thread)
        assert await node.retry(lambda: node.call("late", "again")) == "again"


async def test_what_one_thread_sends_arrives_in_order_large_or_small() -> None:
    async with pair() as (here, there):
        got: list[tuple[int, int]] = []

        async def sizes(process: Process) -> None:
            async for thread, number, _ in process.mailbox:
                got.append((thread, number))

        there.spawn(sizes, name="sink")

        def thread(index: int) -> None:
            for number in range(30):
                size = 3 << 20 if number % 5 == 0 else 10
                send = here.sync.send_nowait if number % 3 == 2 else here.sync.send
                with contextlib.suppress(WouldBlock):
                    send(("sink", there.name), (index, number, b"x" * size))

        await asyncio.gather(*(in_thread(thread, index) for index in range(3)))
        await until(lambda: len([each for each in got if each[1] == 28]) == 3, 20)
        for index in range(3):
            mine = [number for thread_index, number in got if thread_index == index]
            assert mine == sorted(mine)
            assert len(mine) >= 20


async def test_many_threads_at_a_time_and_nothing_is_left_of_them() -> None:
    async with Node.start(lone()) as node:
        node.spawn(echo, name="echo")
        tasks = len(asyncio.all_tasks())

        def thread(index: int) -> list[Any]:
            return [node.sync.call("echo", (index, number)) for number in range(50)]

        replies = await asyncio.gather(*(in_thread(thread, index) for index in range(20)))
        assert replies == [[(index, number) for number in range(50)] for index in range(20)]
        await until(lambda: not node.sync._requests._tasks)
        assert len(asyncio.all_tasks()) == tasks


async def test_a_function_in_the_pool_may_ask_its_node() -> None:
    async with Node.start(lone()) as node:
        node.spawn(echo, name="echo")
        assert await node.run_blocking(node.sync.call, "echo", "from within") == "from within"


async def test_a_process_does_not_get_the_context_variables_of_the_thread_that_spawns_it() -> None:
    async with Node.start(lone()) as node:
        tenant = contextvars.ContextVar("tenant", default="nobody")
        seen: list[str] = []

        async def told(_: Process) -> None:
            seen.append(tenant.get())

        def thread() -> None:
            node.sync.spawn(told)
            tenant.set("somebody")
            node.sync.spawn(told)
            contextvars.Context().run(node.sync.spawn, told)

        await in_thread(thread)
        await until(lambda: len(seen) == 3)
        assert seen == ["nobody"] * 3


async def test_a_window_that_stays_full() -> None:
    async with Node.start(lone(mailbox_limit=1)) as node:
        pid = node.spawn(sleeper, name="sleeper")

        def thread() -> None:
            node.sync.send("sleeper", 1)
            with pytest.raises(WouldBlock):
                node.sync.send_nowait("sleeper", 2)
            began = time.monotonic()
            with pytest.raises(WouldBlock, match=r"stayed full for the 0\.2 s"):
                node.sync.send("sleeper", 3, timeout=0.2)
            assert 0.2 <= time.monotonic() - began < allowed_s(1.0)
            with pytest.raises(NoProcess):  # for as long as it takes, and here it takes a death
                node.sync.send("sleeper", 4)

        asked = in_thread(thread)
        await asyncio.sleep(0.6)
        assert not asked.done()
        node.exit(pid, "kill")
        await asked


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────


async def test_the_node_stops_while_threads_wait() -> None:
    node = await Node.start(lone(mailbox_limit=1), discovery=fleetlm.StaticDiscovery([]))
    node.spawn(echo, name="echo")
    node.spawn(sleeper, name="sleeper")
    await node.send("sleeper", 1)
    waiting = {
        in_thread(node.sync.call, "echo", "never", 30): (NodeLost, fleetlm.ProcessDown),
        in_thread(node.sync.send, "sleeper", 2): (NoProcess,),
        in_thread(node.sync.ready, 5): (NodeStopped,),
    }
    await asyncio.sleep(0.2)
    began = time.monotonic()
    await node.stop(drain_s=0)
    for future, errors in waiting.items():
        with pytest.raises(errors):
            await future
    assert time.monotonic() - began < allowed_s(0.9)
    with pytest.raises(NodeStopped, match="has been stopped"):
        await in_thread(node.sync.list)
    assert node.sync._requests._tasks == {}


class OwnLoop:
    """A loop in a thread of its own that a test ends as it likes, without asking the node."""

    def __init__(self, settings: Settings) -> None:
        self.loop = asyncio.new_event_loop()
        self.node = self.loop.run_until_complete(Node.start(settings))
        self.loop.run_until_complete(self.spawn(echo, "echo"))
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        while not self.loop.is_running():
            time.sleep(0.001)

    async def spawn(self, function: Any, name: str) -> None:
        self.node.spawn(function, name=name)

    def block(self, seconds: float) -> None:
        begun = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (begun.set(), time.sleep(seconds)))
        begun.wait(5)

    def halt(self) -> None:
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(5)

    def close(self) -> None:
        self.halt()
        if not self.loop.is_closed():
            self.loop.run_until_complete(self.node.stop(drain_s=0))
            self.loop.close()


@pytest.fixture
def own_loop() -> Iterator[Callable[..., OwnLoop]]:
    made: list[OwnLoop] = []

    def make(**settings: Any) -> OwnLoop:
        made.append(OwnLoop(lone(**settings)))
        return made[-1]

    yield make
    for own in made:
        own.close()


def test_a_loop_that_ends_without_a_word(own_loop: Callable[..., OwnLoop]) -> None:
    own = own_loop()
    node = own.node.sync
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(node.call, "echo", "never", 30)
        time.sleep(0.1)
        began = time.monotonic()
        own.halt()
        with pytest.raises(NodeStopped, match="its event loop does not run"):
            waiting.result(5)
        assert time.monotonic() - began < allowed_s(2.0)
        with pytest.raises(NodeStopped, match="its event loop does not run"):
            pool.submit(node.list).result(5)
        own.close()
        with pytest.raises(NodeStopped, match="has been stopped"):
            pool.submit(node.list).result(5)


def test_a_program_that_ends_while_a_thread_waits() -> None:
    outcome: list[BaseException] = []

    def thread(node: Node) -> None:
        try:
            node.sync.call("echo", "never", 30)
        except NodeStopped as error:
            outcome.append(error)

    async def main() -> threading.Thread:
        node = await Node.start(lone())
        node.spawn(echo, name="echo")
        waiting = threading.Thread(target=thread, args=(node,), daemon=True)
        waiting.start()
        await asyncio.sleep(0.2)
        main_node.append(node)
        return waiting

    main_node: list[Node] = []
    loop = asyncio.new_event_loop()
    waiting = loop.run_until_complete(main())
    for task in list(main_node[0].sync._requests._tasks):  # as asyncio.run does at its end
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    waiting.join(5)
    assert ["event loop has ended" in str(error) for error in outcome] == [True]
    loop.run_until_complete(main_node[0].stop(drain_s=0))
    loop.close()


def test_a_loop_that_is_busy_holds_up_nobody_for_ever(
    own_loop: Callable[..., OwnLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetlm.runtime.thread_requests.MARGIN_S", 0.3)
    own = own_loop(call_timeout_s=0.2)
    node = own.node.sync
    assert node.call("echo", 1) == 1

    own.block(1.5)
    began = time.monotonic()
    with pytest.raises(WouldBlock, match=r"the event loop of .* was busy for 0\.5 s"):
        node.call("echo", "never begun")
    assert 0.5 <= time.monotonic() - began < allowed_s(0.9)
    assert [type(each) for each in node.multicall(["echo", "x"], 1)] == [WouldBlock, WouldBlock]
    own.block(0.3)
    assert node.call("echo", 2, timeout=10) == 2  # begins late, and is none the worse

    async def blocks(process: Process) -> None:
        await process.receive()
        time.sleep(1.0)

    node.spawn(blocks, name="blocks")
    with pytest.raises(CallTimeout, match=r"'blocks' within 0\.2 s"):
        node.call("blocks", 1)
    own.block(0)
    node.spawn(blocks, name="blocks")
    assert [type(each) for each in node.multicall(["blocks"], 1)] == [CallTimeout]
    own.block(0)
    assert node.call("echo", "and on") == "and on"


def test_an_interrupt_cancels_what_waits() -> None:
    taken: list[Call] = []

    async def keeps(process: Process) -> None:
        async for message in process.mailbox:
            taken.append(message)  # noqa: PERF401  # it is looked at meanwhile

    def interrupt() -> None:
        while not taken:
            time.sleep(0.01)
        _thread.interrupt_main()

    with node_in_thread(lone()) as node:
        node.spawn(keeps, name="keeps")
        threading.Thread(target=interrupt, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            node.call("keeps", "long", timeout=20)
        assert time.monotonic() - began < allowed_s(5)
        assert node.list("this") == [node.name]  # its next request, and by now it was cancelled
        assert not taken[0].wanted
        assert [task.cancelling() for task in node._requests._tasks] == [0]
        node.spawn(echo, name="echo")
        assert node.call("echo", "and on") == "and on"


# ── a node in a thread ───────────────────────────────────────────────────────────────────────────


def node_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "fleetlm node"]


def test_a_program_without_a_loop() -> None:
    port = free_port([HERE, THERE])
    with node_in_thread(settings_of(HERE, port)) as here, node_in_thread(settings_of(THERE, port)) as there:
        there.spawn(echo, name="echo")
        here.ready(1, timeout=10)
        assert here.call(("echo", there.name), "hello") == "hello"
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda n: here.call(("echo", there.name), n), range(40))) == list(range(40))
        assert len(node_threads()) == 2
    assert node_threads() == []
    with pytest.raises(NodeStopped):
        here.list()


def test_a_start_that_fails_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with node_in_thread(lone()) as node:
        taken = node._node.settings
        with pytest.raises(StartFailed), node_in_thread(taken):
            pytest.fail("it has started")
    monkeypatch.setenv("FLEETLM_NODE_PORT", "many")
    with pytest.raises(SettingsError, match="FLEETLM_NODE_PORT"), node_in_thread():
        pytest.fail("it has started")
    assert node_threads() == []


@contextlib.contextmanager
def raising_at_its_end(port: int, error: BaseException | None) -> Iterator[None]:
    with node_in_thread(settings_of(THERE, port)) as there:
        there.ready(1, timeout=10)
        yield
        if error is not None:
            raise error


def test_how_the_block_ends_is_how_the_node_ends() -> None:
    port = free_port([HERE, THERE])
    reasons: list[str] = []

    async def watch(process: Process) -> None:
        async for event in process.node.events():
            if isinstance(event, fleetlm.NodeDown):
                reasons.append(event.reason)  # noqa: PERF401  # it is looked at meanwhile

    with node_in_thread(settings_of(HERE, port)) as here:
        here.spawn(watch)
        for error in (None, ValueError("of the block"), KeyboardInterrupt()):
            with contextlib.suppress(ValueError, KeyboardInterrupt), raising_at_its_end(port, error):
                pass
            for _ in range(400):
                if here.list() == []:
                    break
                time.sleep(0.01)
    assert reasons == ["left: shutdown", "left: crashed: ValueError", "left: shutdown"]


def test_a_node_that_was_stopped_by_another_is_no_trouble_at_the_end() -> None:
    async def stops(process: Process) -> None:
        await process.node.stop()

    with node_in_thread(lone()) as node:
        node.spawn(stops)
        with pytest.raises(NodeStopped):
            [node.list() or time.sleep(0.01) for _ in range(500)]
    assert node_threads() == []


def test_a_loop_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetlm.node_thread.STOP_SLACK_S", 0.1)
    go = threading.Event()

    async def blocks(_: Process) -> None:
        go.wait(20)

    with (
        pytest.raises(TimeoutError, match=r"has not stopped within 0\.3 s: something blocks its event loop"),
        node_in_thread(lone(drain_s=0.1)) as node,
    ):
        node.spawn(blocks)

    def fails() -> None:
        with node_in_thread(lone(drain_s=0.1)) as node:
            node.spawn(blocks)
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block") as caught:
        fails()
    assert "Besides, stopping the node failed: TimeoutError" in caught.value.__notes__[0]
    go.set()
    for thread in threading.enumerate():
        if thread.name == "fleetlm node":
            thread.join(5)
    assert node_threads() == []


def test_a_task_that_ignores_its_cancellation_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fleetlm.runtime.leftovers.LEFTOVERS_END_S", 0.1)
    begun = threading.Event()
    tasks: list[asyncio.Task[None]] = []

    async def refine() -> None:
        begun.set()
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def starts_it(_: Process) -> None:
        tasks.append(asyncio.create_task(refine(), name="refiner"))

    with node_in_thread(lone()) as node:
        node.spawn(starts_it)
        assert begun.wait(5)
    assert node_threads() == []
    assert any("without them: refiner in " in record.getMessage() for record in caplog.records)


def test_a_node_lives_until_it_is_stopped_whatever_else_is_dropped() -> None:
    node_in_thread(lone())
    (left,) = node_thread._running
    gc.collect()
    assert left._started.result().sync.list() == []
    node = left._started.result().sync
    del left
    node.stop()
    node.stop()
    assert node_threads() == []
    assert not node_thread._running
    assert node.wait_stopped(1)
    with pytest.raises(NodeStopped):
        node.list()


def test_a_second_node_on_the_port_of_the_first_names_the_first() -> None:
    with node_in_thread(lone()) as node, pytest.raises(StartFailed) as caught:
        node_in_thread(node.settings)
    assert str(caught.value).endswith(
        f"This program runs {node.name} in a thread already: use it, or node.stop() it"
    )


LEFT_RUNNING = """
import sys
import fleetlm
from fleetlm import Settings

port = int(sys.argv[1])
node = fleetlm.node_in_thread(Settings(node_ip="127.0.0.63", node_ports=(port, port), remote=False))

class Watcher(fleetlm.Actor):
    async def terminate(self, reason):
        print("terminate", reason, flush=True)

node.start_actor(Watcher)
node = None
sys.exit(3)
"""


def test_a_program_that_ends_stops_the_node_that_it_left_running() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT_RUNNING, str(free_port(["127.0.0.63"]))],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "terminate shutdown\n", "")


async def test_a_thread_can_stop_the_node_of_another_loop() -> None:
    node = await Node.start(lone())
    with pytest.raises(RuntimeError, match="is for other threads"):
        node.sync.stop()
    began = time.monotonic()
    waiting = in_thread(node.sync.wait_stopped)
    assert await in_thread(node.sync.wait_stopped, 0.05) is False
    await in_thread(node.sync.stop, "asked by a thread")
    assert await waiting is True
    assert time.monotonic() - began < allowed_s(2.0)
    await in_thread(node.sync.stop)
    assert await in_thread(node.sync.wait_stopped) is True


async def test_a_node_on_a_loop_warns_where_threads_are_greenlets(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched = SimpleNamespace(is_module_patched=lambda _: True)
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)
    with caplog.at_level(logging.WARNING, "fleetlm"):
        async with Node.start(lone()):
            pass
    assert "has replaced this program's threads by greenlets" in caplog.text


async def test_a_block_ends_the_node_that_was_started_before_it() -> None:
    node = await Node.start(lone())
    async with node as same:
        assert same is node
    with pytest.raises(NodeStopped):
        await node.send("nobody", 1)


def test_threads_use_groups_names_and_factories() -> None:
    port = free_port([HERE, THERE])
    with node_in_thread(settings_of(HERE, port)) as here, node_in_thread(settings_of(THERE, port)) as there:
        here.ready(1, timeout=10)
        with there.groups.watch("models") as joined, there.registry.watch("leader") as names:
            counter = here.start_actor(Counter, name="counter")
            assert counter.call(Counter.add, 1) == 2
            assert counter.pid == here.whereis("counter") == there.whereis("counter", here.name)
            here.groups.join("models", counter.pid)
            assert joined.get(timeout=10) == fleetlm.Joined("models", counter.pid)
            assert there.groups.pick("models") == counter.pid
            assert there.groups.members("models") == [counter.pid]
            assert (there.groups.local_members("models"), there.groups.list()) == ([], ["models"])
            assert there.groups.broadcast("models", "hello") == 1
            there.registry.register("leader", counter.pid, {"since": 1})
            assert isinstance(names.get(timeout=10), fleetlm.Registered)
            assert there.registry.wait_for("leader", timeout=10) == counter.pid
            claim = there.registry.lookup("leader")
            assert claim is not None
            assert claim.meta == {"since": 1}
            assert there.registry.list() == {"leader": there.registry.whereis("leader")}
            assert there.registry.ref(Counter, "leader").call(Counter.add, 4) == 5
            assert there.registry.resolve is None
            there.registry.resolve = older
            assert there.registry.resolve is older
            assert there.registry.unregister("leader") is True
            assert here.groups.leave("models", counter.pid) is True
            assert isinstance(joined.get(timeout=10), fleetlm.Left)
            here.factories.register("echo", echo)
            assert here.factories.list() == ["echo"]
            assert there.call(there.spawn_at(here.name, "echo"), "hello") == "hello"
            assert here.factories.unregister("echo") is True
            assert there.ping(here.name) == "pong"
            info = there.info(here.name)
            assert isinstance(info, fleetlm.PeerInfo)
            here.exit(counter.pid)
            assert here.join(counter.pid, timeout=10)
            assert "counter" not in here.registered()
        assert there.disconnect(here.name) is True
        assert there.connect(here.name, 10) is True


def older(first: fleetlm.Claim, _: fleetlm.Claim) -> fleetlm.Claim:
    return first


def test_a_subscription_has_time_outs_and_an_end_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with node_in_thread(lone()) as node:
        changes = node.groups.watch()
        with pytest.raises(TimeoutError):
            changes.get(timeout=0.01)
        pid = node.spawn(sleeper)
        node.groups.join("one", pid)
        monkeypatch.setattr(node._requests, "run", lost(node._requests.run))
        with pytest.raises(KeyboardInterrupt):
            changes.get(timeout=10)
        monkeypatch.undo()
        assert changes.get(timeout=10) == fleetlm.Joined("one", pid)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(list, changes)
            node.groups.join("two", pid)
            until_waits(node, changes)
            changes.close()
            assert reading.result(10) == [fleetlm.Joined("two", pid)]
        with pytest.raises(ValueError, match="has been closed"):
            changes.get(timeout=1)
        with ThreadPoolExecutor(1) as pool:
            events = node.events()
            reading_events = pool.submit(list, events)
            node.stop()
            assert [type(event) for event in reading_events.result(10)] == [fleetlm.NodeDraining]
        with pytest.raises(NodeStopped):
            events.get(timeout=1)
        events.close()


def lost(run: Callable[..., Any]) -> Callable[..., Any]:
    """An interrupt that comes when the loop has done its part."""

    def interrupted(*args: Any) -> None:
        run(*args)
        raise KeyboardInterrupt

    return interrupted


def until_waits(node: fleetlm.SyncNode, changes: Any) -> None:
    for _ in range(1_000):
        if changes._events._waiter is not None and not changes._events._queue and not changes._arrived:
            node.list()
            return
        time.sleep(0.005)


def test_another_loop_can_be_chosen() -> None:
    uvloop = pytest.importorskip("uvloop", reason="the extra `uvloop` is not installed")
    with node_in_thread(lone(), loop_factory=uvloop.new_event_loop) as node:
        node.spawn(echo, name="echo")
        assert node.call("echo", 1) == 1


def test_threads_ask_actors_and_read_streams() -> None:
    with node_in_thread(lone()) as node:
        node.spawn(Counter, name="counter")
        counter = node.ref(Counter, "counter")
        assert counter.call(Counter.add, 2, b=3) == 5
        assert counter.within(2.0).call(Counter.add, 2) == 3
        counter.cast(Counter.add, 1)
        assert list(counter.stream(Counter.count, 1_000)) == list(range(1_000))
        for number in counter.stream(Counter.count, 1_000_000):
            if number == 10:
                break
        assert counter.call(Counter.ends) == ["count", "count"]
        with pytest.raises(NoProcess):
            next(node.ref(Counter, "nobody").stream(Counter.count, 1))
        with pytest.raises(TypeError, match="not an Actor class"):
            node.ref(int, "counter")  # type: ignore[type-var]
        assert "counter" in repr(counter)


class Slow(Actor):
    def __init__(self, ended: list[str]) -> None:
        self.ended = ended

    @handler(concurrent=True)
    async def tokens(self, count: int, pause_s: float) -> AsyncIterator[int]:
        try:
            for number in range(count):
                await asyncio.sleep(pause_s)
                yield number
        finally:
            self.ended.append("ended")


def test_a_thread_whose_wait_for_an_item_ends_early_loses_none() -> None:
    with node_in_thread(lone()) as node:
        node.spawn(Slow, [], name="slow")
        slow = node.ref(Slow, "slow")
        stream = slow.stream(Slow.tokens, 4, 0.1)
        got: list[int] = []
        timeouts = 0
        while len(got) < 4:
            try:
                got.append(stream.get(timeout=0.03))
            except TimeoutError:
                timeouts += 1
        assert got == [0, 1, 2, 3]
        assert timeouts > 0
        for _ in range(2):
            with pytest.raises(StopIteration):
                stream.get()
        stream = slow.stream(Slow.tokens, 3, 0.2)
        threading.Timer(0.05, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        assert list(stream) == [0, 1, 2]


def test_a_stream_that_its_thread_closes_or_drops_ends_its_producer() -> None:
    ended: list[str] = []
    with node_in_thread(lone()) as node:
        node.spawn(Slow, ended, name="slow")
        slow = node.ref(Slow, "slow")
        with slow.within(idle=30).stream(Slow.tokens, 1_000, 0.01) as stream:
            assert next(stream) == 0
        assert list(stream) == []
        assert next(slow.stream(Slow.tokens, 1_000, 0.01)) == 0
        gc.collect()
        until = time.monotonic() + allowed_s(10)
        while len(ended) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert ended == ["ended"] * 2
        with pytest.raises(fleetlm.StreamIdle):
            next(slow.within(idle=0.1).stream(Slow.tokens, 1, 60.0))


def test_threads_tell_of_members_and_write_tables() -> None:
    with node_in_thread(lone()) as node:
        pid = node.spawn(echo)
        member = node.groups.join("g", pid, meta={"zone": "a"})
        member.report(load=2)
        member.describe({"zone": "b"})
        (info,) = node.groups.describe("g")
        assert (info.meta, dict(info.gauges), info.load) == ({"zone": "b"}, {"load": 2.0}, 2.0)
        assert repr(member) == f"<SyncMember {pid} of 'g'>"
        assert node.groups.pick("g", where={"zone": "b"}) == pid
        with node.groups.chosen("g") as chosen:
            assert chosen == pid
            assert node.groups.describe("g")[0].outstanding == 1
        assert node.groups.describe("g")[0].outstanding == 0
        scored = node.groups.ref(Keeper, "g").scored(lambda _: 1.0)
        assert "GroupRef" in repr(scored)

        table = node.table("flags")
        table.put("beta", 1)
        assert (table.get("beta"), table.own("beta"), table.of(node.name, "beta")) == ({node.name: 1}, 1, 1)
        assert table.keys() == ["beta"]
        with table.watch() as changes:
            assert next(changes) == fleetlm.RowPut("flags", node.name, "beta", 1)
            assert table.drop("beta")
            assert next(changes) == fleetlm.RowDropped("flags", node.name, "beta", "dropped")
        assert repr(table) == f"<SyncTable 'flags' of {node.name}>"


class Keeper(Actor):
    """Nothing but a class for a reference."""


def test_a_thread_that_gives_no_number_of_seconds_is_told_at_once() -> None:
    with node_in_thread(lone()) as node:
        pid = node.spawn(echo, name="echo")
        for value, error in ((float("nan"), ValueError), ("5", TypeError), (True, TypeError)):
            ways: list[Callable[[Any], object]] = [
                lambda t: node.call("echo", 1, t),
                lambda t: node.send("echo", 1, t),
                lambda t: node.multicall(["echo"], 1, t),
                lambda t: next(node.stream("echo", 1, t)),
                lambda t: node.retry(lambda: node.call("echo", 1), timeout=t),
                lambda t: node.ready(0, t),
                lambda t: node.join(pid, t),
                lambda t: node.whereis("echo", timeout=t),
                lambda t: node.registry.wait_for("echo", t),
                lambda t: node.events().get(t),
                node.wait_stopped,
                node.drain,
                lambda t: node.stop(drain_s=t),
            ]
            for way in ways:
                with pytest.raises(error, match=r"is .*, not a number of seconds"):
                    way(value)
        assert node.call("echo", 1, 5) == 1
