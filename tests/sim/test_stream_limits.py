"""Limits of streams: idle, deadline, bytes, and what a stream that is open counts as load."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleetlm import (
    Actor,
    ActorRef,
    Call,
    CallTimeout,
    FleetError,
    Node,
    Process,
    RemoteError,
    Stream,
    StreamIdle,
    handler,
)
from fleetlm.node import parts_of
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import Fleet, simulated


class Model(Actor):
    def __init__(self) -> None:
        self.sent = 0
        self.ends: list[str] = []

    @handler
    async def tokens(self, count: int, pause_s: float = 0.0, size: int = 0) -> AsyncIterator[Any]:
        try:
            for number in range(count):
                if pause_s:
                    await asyncio.sleep(pause_s)
                yield bytes(size) if size else number
                self.sent += 1
        finally:
            self.ends.append("closed")

    @handler(concurrent=True)
    async def beside(self, count: int, pause_s: float) -> AsyncIterator[int]:
        for number in range(count):
            yield number
            await asyncio.sleep(pause_s)

    @handler
    async def ping(self) -> str:
        return "pong"


async def models(fleet: Fleet, **settings: Any) -> list[tuple[Model, ActorRef[Model], Node]]:
    """One on another node, one on the node of the consumer."""
    here, there = await fleet.mesh(2, **settings)
    found = []
    for node in (there, here):
        model = Model()
        found.append((model, here.ref(Model, node.spawn(model)), here))
    return found


async def rest_of(stream: Stream[Any]) -> tuple[list[Any], BaseException | None]:
    """The items that are left of a stream, and the error that comes after them."""
    got: list[Any] = []
    try:
        async for item in stream:
            got.append(item)  # noqa: PERF401  # those before the error count
    except FleetError as error:
        return got, error
    return got, None


def now() -> float:
    return SimLoop.current().time()


@simulated
async def test_keep_alives_while_no_item_comes_lose_none(fleet: Fleet) -> None:
    for _, ref, _ in await models(fleet):
        stream = ref.stream(Model.tokens, 5, 0.6)
        got: list[Any] = []
        timeouts = 0
        while len(got) < 5:
            try:
                got.append(await asyncio.wait_for(anext(stream), 0.25))
            except TimeoutError:
                timeouts += 1
        assert got == list(range(5))
        assert timeouts >= 10
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(stream), 0.25)


@simulated
async def test_a_consumer_that_stops_reading_does_not_keep_an_actor_from_others(fleet: Fleet) -> None:
    for model, ref, _ in await models(fleet):
        stream = ref.stream(Model.tokens, 10_000)
        assert await anext(stream) == 0
        began = now()
        assert await ref.within(100).call(Model.ping) == "pong"
        assert 59 < now() - began < 63
        assert model.ends == ["closed"]
        got, error = await rest_of(stream)
        assert got == list(range(1, len(got) + 1)), "what came before is still handed on"
        assert len(got) >= 63
        assert isinstance(error, StreamIdle)
        assert error.is_unread
        assert error.target == ref.pid
        assert "its consumer took no item for 60 s" in str(error)


@simulated
async def test_a_slow_consumer_that_still_reads_is_not_cut_off(fleet: Fleet) -> None:
    for _, ref, _ in await models(fleet, stream_idle_s=5.0):
        got = []
        async for item in ref.stream(Model.tokens, 80):
            got.append(item)
            await asyncio.sleep(3)  # A half window takes 96 s.
        assert got == list(range(80))


@simulated
async def test_a_producer_that_stops_is_noticed_however_often_the_wait_begins_anew(fleet: Fleet) -> None:
    for model, ref, _ in await models(fleet, stream_idle_s=20.0):
        began = now()
        with pytest.raises(StreamIdle, match="no item came for 20 s") as raised:
            await anext(ref.stream(Model.tokens, 3, 1e4))
        assert 19.9 < now() - began < 20.5
        assert not raised.value.is_unread
        assert isinstance(raised.value, CallTimeout)
        stream, began = ref.stream(Model.tokens, 3, 1e4), now()
        error: BaseException = TimeoutError()
        while not isinstance(error, StreamIdle):
            with pytest.raises(TimeoutError) as waited:
                await asyncio.wait_for(anext(stream), 3)
            error = waited.value
        assert 19.9 < now() - began < 20.5
        await asyncio.sleep(1)
        assert model.ends == ["closed"] * 2, "the producer was cancelled"


@simulated
async def test_an_explicit_limit_overrules_the_default(fleet: Fleet) -> None:
    for _, ref, _ in await models(fleet, stream_idle_s=2.0):
        assert [item async for item in ref.within(60).stream(Model.tokens, 2, 20.0)] == [0, 1]
        assert [item async for item in ref.within(idle=30).stream(Model.tokens, 2, 20.0)] == [0, 1]
        assert [item async for item in ref.within(idle=math.inf).stream(Model.tokens, 1, 60.0)] == [0]
        with pytest.raises(CallTimeout, match="within 6 s"):
            await anext(ref.within(6).stream(Model.tokens, 2, 1e4))
        for limits in (ref.within(600, idle=5), ref.within(idle=5)):
            with pytest.raises(StreamIdle, match="for 5 s"):
                await anext(limits.stream(Model.tokens, 2, 100.0))


@simulated
async def test_a_consumer_with_time_may_pause_within_it(fleet: Fleet) -> None:
    for _, ref, _ in await models(fleet, stream_idle_s=2.0):
        for limited in (ref.within(60), ref.within(idle=60)):
            stream = limited.stream(Model.tokens, 200)
            assert await anext(stream) == 0
            await asyncio.sleep(30)
            assert [item async for item in stream] == list(range(1, 200))


@simulated
async def test_the_idle_limit_can_be_switched_off(fleet: Fleet) -> None:
    for _, ref, _ in await models(fleet, stream_idle_s=None):
        stream = ref.stream(Model.tokens, 200)
        assert await anext(stream) == 0
        await asyncio.sleep(100)
        assert [item async for item in stream] == list(range(1, 200))


@simulated
async def test_a_plain_process_is_told_that_its_consumer_does_not_read(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2, stream_idle_s=5.0)
    ended: list[int] = []

    async def produce(process: Process) -> None:
        call = await process.receive()
        number = 0
        while await call.put(number):
            number += 1
        ended.append(number)

    for node in (there, here):
        stream = here.stream(node.spawn(produce), "go")
        await anext(stream)
        await asyncio.sleep(10)
        assert ended.pop() in (64, 65)
        with pytest.raises(StreamIdle, match="took no item for 5 s"):
            [item async for item in stream]


@simulated
async def test_large_items_do_not_fill_the_memory_of_their_consumer(fleet: Fleet) -> None:
    for model, ref, _ in await models(fleet):
        stream = ref.stream(Model.tokens, 50, 0.0, 4 << 20)
        assert len(await anext(stream)) == 4 << 20
        await asyncio.sleep(10)
        assert model.sent <= 3
        count = 1
        async for _ in stream:
            count += 1
        assert count == 50


@simulated
async def test_two_producers_of_large_items_keep_to_the_window(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2)

    async def produce(process: Process) -> None:
        call = await process.receive()

        async def half() -> None:
            for size in (300_000, 10, 2 << 20, 30_000) * 10:
                assert await call.put(bytes(size))

        await asyncio.gather(half(), half())
        call.reply()

    for node in (there, here):
        sizes = [len(item) async for item in here.stream(node.spawn(produce), "go")]
        assert Counter(sizes) == {300_000: 20, 10: 20, 2 << 20: 20, 30_000: 20}
    assert here.list() == [there.name]


@simulated
async def test_a_stream_counts_as_load_until_it_ends(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2)
    pids = [there.spawn(Model), there.spawn(Model), here.spawn(Model)]
    for pid in pids:
        parts_of(here if pid.node == here.name else there).groups.join("models", pid)
    await asyncio.sleep(1)
    open_streams: list[Stream[int]] = []
    for busy in (pids[0], pids[2]):
        stream = here.ref(Model, busy).stream(Model.beside, 100, 1.0)
        assert await anext(stream) == 0
        open_streams.append(stream)
    assert {here.groups.pick("models", by="least_loaded") for _ in range(30)} == {pids[1]}
    await open_streams[0].aclose()
    await asyncio.sleep(1)
    assert {here.groups.pick("models", by="least_loaded") for _ in range(30)} == set(pids[:2])
    assert len([item async for item in open_streams[1]]) == 99
    await asyncio.sleep(1)
    assert {here.groups.pick("models", by="least_loaded") for _ in range(50)} == set(pids)


@simulated
async def test_a_stream_that_is_given_up_while_it_waits_for_room_leaves_nothing(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2, mailbox_limit=4)

    async def late(process: Process) -> None:
        await asyncio.sleep(5)
        async for message in process.mailbox:
            del message

    for node in (there, here):
        pid = node.spawn(late)
        for _ in range(4):
            await here.send(pid, "full")
        stream = here.stream(pid, "go")
        waiting = asyncio.ensure_future(anext(stream, "end"))
        await asyncio.sleep(1)
        await stream.aclose()
        assert await waiting == "end"
        await asyncio.sleep(1)
        assert parts_of(here).local.load_of(pid) == 0
        outbound, sessions = parts_of(here).outbound, parts_of(here).context.sessions.values()
        assert not outbound.local_calls
        assert not any(session.calls or session.open_calls for session in sessions)


async def generous(process: Process) -> None:
    """Answer calls with 2,000 bytes, and streams with items of that size."""
    async for message in process.mailbox:
        if not isinstance(message, Call):
            continue
        while message.streaming and await message.put(bytes(2_000)):
            pass
        message.reply(bytes(2_000))


@simulated
async def test_what_is_larger_than_one_peer_takes_ends_no_process_of_others(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    frugal = await fleet.start("10.0.0.3", one.own_address.ip, two.own_address.ip, max_message_bytes=1_500)
    await frugal.ready(2, timeout=30)
    pid = two.spawn(generous, name="generous")
    where = ("generous", two.name)
    with pytest.raises(RemoteError, match="exceeds the limit of 1,500 bytes"):
        await frugal.call(where, None)
    with pytest.raises(RemoteError, match="of 1,500 bytes"):
        await anext(frugal.stream(where, None))
    assert await one.call(where, None) == bytes(2_000)
    assert await anext(one.stream(where, None)) == bytes(2_000)
    for wanted in ([two.name, frugal.name], [frugal.name, two.name]):
        assert await one.broadcast("generous", bytes(2_000), wanted) == 1
    assert await two.whereis("generous") == pid
