"""Actors and streams between real nodes: many cancellations, slow consumers, nodes that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from typing import Any

from fleetlm import Actor, ActorRef, FleetError, Node, NodeLost, handler
from tests.support.patience import allowed_s
from tests.system.actor_worker import Model
from tests.system.cluster_tools import Fleet, Worker, quantile
from tests.system.cluster_worker import resident_kib
from tests.system.test_real_windows import served

SEED = 7


@contextlib.asynccontextmanager
async def two() -> AsyncIterator[tuple[Fleet, Node, Worker, ActorRef[Model]]]:
    """Start a node here and a program with the actor."""
    async with Fleet(static=(2, 3)) as fleet:
        node = await fleet.node(2)
        program = await fleet.program(3, "start", "tests.system.actor_worker:main")
        await node.ready(1, 20.0)
        await served(node, fleet.name(3))
        yield fleet, node, program, node.ref(Model, "model", at=fleet.name(3))


async def at_rest(ref: ActorRef[Model], timeout_s: float = 5.0) -> list[int]:
    """Wait until no handler runs."""
    async with asyncio.timeout(timeout_s):
        while True:
            state = await ref.call(Model.state)
            if not state[0]:
                return state
            await asyncio.sleep(0.01)


async def given_up(asking: asyncio.Future[Any], after_s: float) -> str:
    """Cancel a call after a while. Returns its outcome."""
    await asyncio.sleep(after_s)
    asking.cancel()
    await asyncio.wait([asking])
    if asking.cancelled():
        return "cancelled"
    return "failed" if asking.exception() else "done"


async def test_many_cancellations_leave_no_handler_behind() -> None:
    rng = random.Random(SEED)
    async with two() as (fleet, node, _, ref):
        for method in (Model.work, Model.one_by_one):
            asked = [
                given_up(asyncio.ensure_future(ref.call(method, rng.random() / 20)), rng.random() / 5)
                for _ in range(1_000)
            ]
            outcomes = await asyncio.gather(*asked)
            _, begun, _ = await at_rest(ref)
            counts = {what: outcomes.count(what) for what in set(outcomes)}
            print(f"{method.__name__}: {counts}, {begun:,} handlers have begun")
            assert "failed" not in outcomes
            assert outcomes.count("cancelled") > 100
        link = node._driver.sessions[fleet.name(3)]
        assert not link.calls
        assert not link.open_calls
        assert await ref.call(Model.noop) is None
        assert fleet.downs == []


async def test_many_timeouts_and_closed_streams_leave_no_handler_behind() -> None:
    rng = random.Random(SEED)

    async def brief() -> None:
        with contextlib.suppress(FleetError):
            await ref.within(rng.random() / 10).call(Model.work, rng.random() / 10)

    async def left() -> None:
        most = rng.randrange(1, 300)
        async with contextlib.aclosing(ref.stream(Model.tokens, 1_000)) as tokens:
            async for token in tokens:
                if token >= most:  # type: ignore[operator]
                    break

    async with two() as (fleet, node, _, ref):
        await asyncio.gather(*(brief() for _ in range(500)), *(left() for _ in range(300)))
        await at_rest(ref)
        assert not node._driver.sessions[fleet.name(3)].calls
        assert fleet.downs == []


async def test_a_long_stream_is_as_fast_as_its_consumer_and_takes_little_memory() -> None:
    """Every token arrives in order; the producer is at most one window ahead."""
    count = 50_000
    async with two() as (fleet, _, _, ref):
        before = resident_kib()
        began, expected = time.monotonic(), 0
        async for token in ref.stream(Model.tokens, count):
            assert token == expected
            expected += 1
            if expected % 10_000 == 0:
                await asyncio.sleep(0.2)
                _, _, made = await ref.call(Model.state)
                assert made <= expected + 64 + 1
        took = time.monotonic() - began - 0.2 * (count // 10_000)
        grown_mib = (resident_kib() - before) / 1024
        print(f"{count:,} tokens, {count / took:,.0f} a second; grown by {grown_mib:.1f} MiB")
        assert expected == count
        assert grown_mib < 32
        assert fleet.downs == []


async def test_the_first_item_comes_as_soon_as_a_reply() -> None:
    async with two() as (_, _, _, ref):
        calls, items = [], []
        for _ in range(300):
            began = time.perf_counter()
            await ref.call(Model.state)
            calls.append(time.perf_counter() - began)
            began = time.perf_counter()
            async with contextlib.aclosing(ref.stream(Model.tokens, 1)) as tokens:
                await anext(tokens)
                items.append(time.perf_counter() - began)
        call_s, item_s = quantile(calls, 0.5), quantile(items, 0.5)
        print(f"median: a reply after {call_s * 1e6:.0f} µs, a first item after {item_s * 1e6:.0f} µs")
        assert item_s < allowed_s(2 * call_s + 0.001)


async def test_a_producer_that_is_killed_ends_every_stream_at_once() -> None:
    async def consume() -> str:
        got = 0
        try:
            async for _ in ref.stream(Model.tokens, 10_000_000, 100):
                got += 1
                await asyncio.sleep(0.001)
        except NodeLost:
            return "lost" if got else "lost before the first"
        return "ended"

    async with two() as (fleet, node, program, ref):
        consuming = [asyncio.ensure_future(consume()) for _ in range(50)]
        await asyncio.sleep(1.0)
        killed_at = time.monotonic()
        program.kill()
        outcomes = await asyncio.wait_for(asyncio.gather(*consuming), 5.0)
        print(f"50 streams ended within {(time.monotonic() - killed_at) * 1000:.0f} ms")
        assert set(outcomes) == {"lost"}
        await fleet.down(node, fleet.name(3))


async def test_a_consumer_that_is_killed_ends_its_handlers() -> None:
    async with Fleet(static=(2, 3, 4)) as fleet:
        node = await fleet.node(2)
        model = Model()
        node.spawn(model, name="model")
        programs = [
            await fleet.program(number, "start", "tests.system.stream_reader:main", MODEL_AT=node.name)
            for number in (3, 4)
        ]
        async with asyncio.timeout(20):
            while model.running < 40:
                await asyncio.sleep(0.01)
        programs[0].kill()
        async with asyncio.timeout(5):
            while model.running > 20:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert model.running == 20, "those of the other consumer go on"


async def test_a_deadline_does_not_stay_in_the_thread_that_served_its_call() -> None:
    """A thread of the pool serves one call after another; each has its own deadline or none."""

    class Blocking(Actor):
        @handler
        async def begin(self) -> None:
            await self.run_blocking(self.node.sync.call, "echo", "of the call")
            await asyncio.sleep(0.5)  # The call was served, and the thread is free.

    async with Fleet(static=(2,)) as fleet:
        node = await fleet.node(2)
        ref = await node.start_actor(Blocking)
        serving = asyncio.ensure_future(ref.within(1.0).call(Blocking.begin))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        with contextlib.suppress(FleetError):
            await node.run_blocking(node.sync.call, "slow", "of nobody", 2.0)
        assert time.monotonic() - began > 1.5, "it had the time that it asked for"
        await serving
