"""Blocking generators in real threads."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from fleetlm import Actor, Node, NodeStopped, Settings, handler
from fleetlm.node import parts_of

WINDOW = 64


class Tokens:
    """A generator function that notes in which thread it ran and how it ended."""

    def __init__(self) -> None:
        self.made = 0
        self.threads: set[int] = set()
        self.ended: list[str] = []

    def __call__(self, count: int, pause_s: float = 0.0, fail_at: int = -1, size: int = 0) -> Iterator[Any]:
        try:
            for number in range(count):
                self.threads.add(threading.get_ident())
                if pause_s:
                    time.sleep(pause_s)
                if number == fail_at:
                    raise KeyError("no more")
                self.made += 1
                yield bytes(size) if size else number
            self.ended.append("done")
        except GeneratorExit:
            self.threads.add(threading.get_ident())
            self.ended.append("closed")
            raise


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def alone(**changes: Any) -> Node:
    return await Node.start(Settings(node_ip="127.0.0.1", remote=False, **changes))


async def test_items_come_in_order_from_one_thread_while_the_loop_goes_on() -> None:
    tokens = Tokens()
    async with await alone() as node:
        assert [item async for item in node.stream_blocking(tokens, 1_000)] == list(range(1_000))
        assert len(tokens.threads) == 1
        assert threading.get_ident() not in tokens.threads
        got, beats = [], 0
        stream = node.stream_blocking(tokens, 5, pause_s=0.05)
        while len(got) < 5:
            try:
                got.append(await asyncio.wait_for(anext(stream), 0.01))
            except TimeoutError:
                beats += 1
        assert got == list(range(5))
        assert beats > 5
        assert await anext(stream, "end") == "end"
        await until(lambda: not parts_of(node).blocking.running)
    assert tokens.ended == ["done", "done"]


async def test_a_generator_waits_for_its_consumer() -> None:
    tokens, large = Tokens(), Tokens()
    async with await alone() as node:
        stream = node.stream_blocking(tokens, 10_000)
        blobs = node.stream_blocking(large, 100, size=4 << 20)
        assert (await anext(stream), len(await anext(blobs))) == (0, 4 << 20)
        await asyncio.sleep(0.2)
        assert tokens.made <= 2 * WINDOW
        assert large.made <= 3
        for number in range(1, 5_000):
            assert await anext(stream) == number
        await blobs.aclose()
        await stream.aclose()
        await until(lambda: tokens.ended == large.ended == ["closed"])
        assert len(tokens.threads) == 1, "closed in its own thread"


async def test_a_consumer_that_goes_closes_the_generator_at_its_next_item() -> None:
    async with await alone(blocking_generators=1) as node:
        for leave in ("break", "drop", "async with", "cancel"):
            tokens = Tokens()
            if leave == "break":
                async for _ in node.stream_blocking(tokens, 1_000, pause_s=0.01):
                    break
            elif leave == "drop":
                await anext(node.stream_blocking(tokens, 1_000, pause_s=0.01))
            elif leave == "async with":
                async with node.stream_blocking(tokens, 1_000, pause_s=0.01) as stream:
                    await anext(stream)
            else:

                async def consume(tokens: Tokens = tokens) -> None:
                    async for _ in node.stream_blocking(tokens, 1_000, pause_s=0.01):
                        pass

                consuming = asyncio.ensure_future(consume())
                await until(lambda tokens=tokens: tokens.made > 2)  # type: ignore[misc]
                consuming.cancel()
            await until(lambda tokens=tokens: tokens.ended == ["closed"])  # type: ignore[misc]
            assert len(tokens.threads) == 1
        assert [x async for x in node.stream_blocking(Tokens(), 3)] == [0, 1, 2], "its slot is free again"


async def test_errors_travel_behind_the_items_and_never_end_the_node() -> None:
    async with await alone() as node:
        stream = node.stream_blocking(Tokens(), 10, fail_at=3)
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(KeyError, match="no more"):
                await anext(stream)

        def leaves() -> Iterator[int]:
            yield 1
            raise SystemExit(3)

        stream = node.stream_blocking(leaves)
        assert await anext(stream) == 1
        with pytest.raises(RuntimeError, match="SystemExit"):
            await anext(stream)
        with pytest.raises(TypeError, match="plain generator function"):
            node.stream_blocking(Model.complete)  # type: ignore[arg-type,call-arg]
        with pytest.raises(TypeError, match="not 5"):
            node.stream_blocking(5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="argument"):
            await anext(node.stream_blocking(Tokens()))  # type: ignore[call-arg]
        assert [item async for item in node.stream_blocking(lambda: [1, 2])] == [1, 2]


async def test_the_end_of_the_node_closes_the_generator_in_its_thread() -> None:
    tokens = Tokens()
    async with await alone() as node:
        stream = node.stream_blocking(tokens, 10_000)
        assert await anext(stream) == 0
    await until(lambda: tokens.ended == ["closed"])
    assert len(tokens.threads) == 1
    with pytest.raises(NodeStopped):
        [item async for item in stream]


class Model(Actor):
    tokens = Tokens()

    @handler
    async def complete(self, count: int, pause_s: float) -> AsyncIterator[int]:
        async for token in self.stream_blocking(self.tokens, count, pause_s):
            yield token


async def test_a_handler_streams_from_a_generator_and_its_callers_leave_closes_it() -> None:
    Model.tokens = Tokens()
    async with await alone() as node:
        ref = node.ref(Model, node.spawn(Model))
        assert [token async for token in ref.stream(Model.complete, 100, 0.0)] == list(range(100))
        async with ref.stream(Model.complete, 1_000, 0.01) as tokens:
            assert await anext(tokens) == 0
        await until(lambda: Model.tokens.ended == ["done", "closed"])


class Db(Actor):
    thread = True

    async def init(self) -> None:
        self.db = await self.run_blocking(sqlite3.connect, ":memory:")
        await self.run_blocking(self.db.execute, "create table t (n)")
        await self.run_blocking(self.db.executemany, "insert into t values (?)", [(n,) for n in range(500)])

    async def terminate(self, reason: object) -> None:
        await self.run_blocking(self.db.close)

    def select(self) -> Iterator[int]:
        for (n,) in self.db.execute("select n from t order by n"):
            yield n

    @handler(concurrent=True)
    async def rows(self) -> AsyncIterator[int]:
        async for n in self.stream_blocking(self.select):
            yield n

    @handler(concurrent=True)
    async def count(self) -> int:
        cursor = await self.run_blocking(self.db.execute, "select count(*) from t")
        return int((await self.run_blocking(cursor.fetchone))[0])


async def test_an_actor_with_a_thread_streams_from_its_own_thread_beside_its_functions() -> None:
    async with await alone() as node:
        ref = await node.start_actor(Db)
        stream = ref.stream(Db.rows)
        assert await anext(stream) == 0
        assert await ref.call(Db.count) == 500, "the thread is free while the consumer is slow"
        assert [n async for n in stream] == list(range(1, 500))
