"""Requests do not touch each other: context variables, handlers that must finish, streams that are left."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleetlm import Actor, CallTimeout, Node, Pid, Process, RemoteError, handler
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import Fleet, simulated

USER: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


class Session(Actor):
    async def init(self) -> None:
        self.seen: list[str] = []
        if USER.get() == "nobody":
            USER.set("the actor")

    async def handle_info(self, message: Any) -> None:
        self.seen.append(USER.get())
        USER.set(message)

    async def terminate(self, reason: Any) -> None:
        self.seen.append(USER.get())

    @handler
    async def login(self, user: str) -> None:
        await asyncio.sleep(0.1)
        USER.set(user)
        await asyncio.sleep(0.1)
        assert USER.get() == user
        assert asyncio.current_task() is self.process._task

    @handler
    async def who(self) -> str:
        return USER.get()

    @handler(concurrent=True)
    async def who_beside(self) -> str:
        return USER.get()

    @handler
    async def items(self) -> AsyncIterator[str]:
        token = USER.set("a stream")
        yield USER.get()
        await asyncio.sleep(0.1)
        yield USER.get()
        USER.reset(token)
        yield USER.get()


@simulated
async def test_what_a_request_sets_is_seen_by_no_other_request(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    USER.set("spawner")
    session = Session()
    ref = await node.start_actor(session)
    USER.set("caller")
    await ref.call(Session.login, "alice")
    await ref.cast(Session.login, "bob")
    await node.send(ref.pid, "carol")
    assert [item async for item in ref.stream(Session.items)] == ["a stream", "a stream", "the actor"]
    assert await ref.call(Session.who) == "the actor"
    assert await ref.call(Session.who_beside) == "the actor"
    node.exit(ref.pid)
    await node.join(ref.pid)
    assert session.seen == ["the actor", "the actor"]


def test_a_process_starts_with_the_variables_of_the_code_that_started_its_node() -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        USER.set("the program")
        (node,) = await fleet.mesh(1)
        seen: list[str] = []

        async def look(process: Process) -> None:
            seen.append(USER.get())
            USER.set("a process")

        async def spawner(process: Process) -> None:
            USER.set("a spawner")
            await node.join(process.spawn_link(look))

        USER.set("a request")
        for pid in (node.spawn(look), node.spawn(look), node.spawn(spawner)):
            await node.join(pid)
        assert seen == ["the program"] * 3

    contextvars.copy_context().run(story)


# Handlers that must finish.


class Bank(Actor):
    def __init__(self) -> None:
        self.log: list[str] = []
        self.inside = 0

    async def _work(self, name: str) -> None:
        self.inside += 1
        assert self.inside == 1
        self.log.append(f"+{name}")
        try:
            await asyncio.sleep(3)
            self.log.append(f"-{name}")
        finally:
            self.inside -= 1

    @handler(cancel=False)
    async def move(self, name: str) -> str:
        await self._work(name)
        return name

    @handler
    async def drop(self, name: str) -> None:
        await self._work(name)

    @handler
    async def shielded(self, name: str) -> None:
        await asyncio.shield(self._work(name))

    @handler(cancel=False, concurrent=True)
    async def move_beside(self, name: str) -> str:
        self.log.append(f"+{name}")
        await asyncio.sleep(3)
        self.log.append(f"-{name}")
        return name

    @handler(cancel=False)
    async def ask(self, other: Pid) -> str:
        await asyncio.sleep(2)
        result: str = await self.node.ref(Bank, other).call(Bank.move, "asked")
        self.log.append(result)
        return result

    async def terminate(self, reason: Any) -> None:
        self.log.append(f"terminate {reason}")


@simulated
async def test_a_handler_that_must_finish_keeps_its_turn_when_its_caller_gives_up(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    for caller in (one, two):
        bank = Bank()
        pid = one.spawn(bank)
        ref = caller.ref(Bank, pid)
        for name in ("a", "b"):
            with pytest.raises(CallTimeout):
                await ref.within(1).call(Bank.move, name)
        assert await ref.within(60).call(Bank.move, "c") == "c"
        assert bank.log == ["+a", "-a", "+c", "-c"]  # The deadline of b had passed before its turn.
        with pytest.raises(CallTimeout):
            await ref.within(1).call(Bank.drop, "d")
        assert await ref.call(Bank.move, "e") == "e"
        assert bank.log[4:] == ["+d", "+e", "-e"]


@simulated
async def test_its_own_requests_are_not_cut_short_by_its_caller(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    bank, other = Bank(), Bank()
    ref, asked = await node.start_actor(bank), await node.start_actor(other)
    with pytest.raises(CallTimeout):
        await ref.within(2.5).call(Bank.ask, asked.pid)
    await asyncio.sleep(5)
    assert bank.log == ["asked"]


@pytest.mark.parametrize("method", ["move", "move_beside"])
def test_an_exit_signal_waits_for_it_and_a_kill_does_not(method: str) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1)
        for reason in ("enough", "kill", "stop"):
            bank = Bank()
            ref = await node.start_actor(bank)
            asking = asyncio.ensure_future(ref.call(getattr(Bank, method), "a"))
            await asyncio.sleep(1)
            if reason == "stop":
                await node.stop(drain_s=0)
            else:
                node.exit(ref.pid, reason)
                await node.join(ref.pid)
            await asyncio.wait([asking])
            if reason == "kill":
                assert bank.log == ["+a"]
                assert asking.exception() is not None
            else:
                ended = "shutdown" if reason == "stop" else reason
                assert bank.log == ["+a", "-a", f"terminate {ended}"]
                assert asking.exception() is not None or asking.result() == "a"

    story()


def test_a_stopping_node_interrupts_one_that_takes_too_long(caplog: pytest.LogCaptureFixture) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1, terminate_s=0.5)
        bank = Bank()
        ref = await node.start_actor(bank)
        await ref.cast(Bank.move, "a")
        await asyncio.sleep(0.1)
        await node.stop(drain_s=0)
        assert bank.log == ["+a", "terminate shutdown"]

    with caplog.at_level(logging.WARNING):
        story()
    assert "is interrupted in a handler with cancel=False" in caplog.text


def test_a_shield_in_a_handler_whose_caller_has_gone_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1)
        ref = await node.start_actor(Bank)
        with pytest.raises(CallTimeout):
            await ref.within(1).call(Bank.shielded, "a")
        await asyncio.sleep(5)

    with caplog.at_level(logging.WARNING):
        story()
    assert caplog.text.count("has a handler that awaits asyncio.shield") == 1
    assert "@handler(cancel=False)" in caplog.text


def test_a_stream_cannot_have_to_finish() -> None:
    with pytest.raises(TypeError, match="a stream ends when its consumer leaves"):

        @handler(cancel=False)
        async def items(_self: Any) -> AsyncIterator[int]:
            yield 1


# Streams that are left.


class Tokens(Actor):
    @handler
    async def tokens(self) -> AsyncIterator[int]:
        async with asyncio.TaskGroup() as group:
            beat = group.create_task(asyncio.sleep(3_600))
            for number in range(10_000):
                yield number
            beat.cancel()

    @handler(concurrent=True)
    async def beside(self) -> AsyncIterator[int]:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(3_600))
            for number in range(10_000):
                yield number

    @handler
    async def raises_at_its_end(self) -> AsyncIterator[int]:
        try:
            for number in range(10_000):
                yield number
        finally:
            raise KeyError("clean-up")

    @handler
    async def exits_at_its_end(self) -> AsyncIterator[int]:
        try:
            for number in range(10_000):
                yield number
        finally:
            raise SystemExit(3)

    @handler
    async def limited(self) -> AsyncIterator[int]:
        try:
            async with asyncio.timeout(2):
                for number in range(10_000):
                    yield number
        except TimeoutError:
            yield -1

    @handler
    async def with_a_failing_child(self) -> AsyncIterator[int]:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fail())
            for number in range(10_000):
                yield number

    async def _fail(self) -> None:
        await asyncio.sleep(2)
        raise KeyError("child")

    @handler
    async def ping(self) -> int:
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()


LEFT = ("tokens", "beside", "raises_at_its_end", "exits_at_its_end", "limited")


@pytest.mark.parametrize("name", LEFT)
def test_a_consumer_that_leaves_harms_no_actor(name: str) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        one, two = await fleet.mesh(2)
        pid = one.spawn(Tokens)
        for caller in (one, two):
            ref = caller.ref(Tokens, pid)
            for last in (0, 5, 200):
                items = ref.stream(getattr(Tokens, name))
                async for item in items:
                    if item == last:
                        break
                await items.aclose()
                assert await ref.call(Tokens.ping) == 0

    story()


async def read_slowly(node: Node, ref: Any, method: Any) -> list[int]:
    got = []
    async for item in ref.stream(method):
        got.append(item)
        if item == 0:
            await asyncio.sleep(3)  # The window fills, and the handler waits at its `yield`.
    return got


@simulated
async def test_a_time_out_around_a_yield_is_its_own_also_while_the_consumer_is_slow(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    ref = two.ref(Tokens, one.spawn(Tokens))
    assert (await read_slowly(two, ref, Tokens.limited))[-1] == -1
    assert await ref.call(Tokens.ping) == 0
    with pytest.raises(RemoteError) as told:
        await read_slowly(two, ref, Tokens.with_a_failing_child)
    assert told.value.type_name == "ExceptionGroup"
    assert "KeyError: 'child'" in told.value.traceback_text
    assert await ref.call(Tokens.ping) == 0


# Eager tasks.


@simulated
async def test_a_task_factory_that_starts_at_once_changes_nothing(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    loop = SimLoop.current()
    log: list[Any] = []

    def eager(loop: Any, coroutine: Any, **options: Any) -> Any:
        """As asyncio.eager_task_factory of Python 3.12, as far as a process can tell."""
        context = options.get("context") or contextvars.copy_context()
        try:
            waits_for = context.run(coroutine.send, None)
        except StopIteration:
            return asyncio.Task(asyncio.sleep(0), loop=loop)
        assert waits_for is None, "a process gives way before its first line"
        return asyncio.Task(coroutine, loop=loop, **options)

    async def ends_itself(process: Process) -> None:
        log.append((process._task is not None, process.parent))
        process.exit(process.pid, "at once")
        await asyncio.sleep(10)

    async def returns(process: Process) -> None:
        log.append(process.pid)

    loop.set_task_factory(eager)
    try:
        first, second = node.spawn(ends_itself), node.spawn(returns, name="named")
        doomed = node.spawn(returns)
        assert log == []
        node.exit(doomed)
    finally:
        loop.set_task_factory(None)
    for pid in (first, second, doomed):
        await node.join(pid)
    assert log == [(True, None), second]
    assert node.processes() == []
