"""Producers and consumers that do not do as they should."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from fleetlm import Call, InvalidName, NotSerializable, Process, RemoteError
from fleetlm.messages import MessageTypes
from fleetlm.messaging.streams import Streams
from fleetlm.messaging.windows import UNIT_BYTES
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop
from fleetlm.wire.codec import Codec
from fleetlm.wire.operations import Op
from tests.sim.fleet import Fleet, simulated
from tests.support.session_fakes import THERE, turns, virtual
from tests.unit.messaging.test_windows import Rig

KIB = 1024


def calls_into(calls: list[Call]) -> Any:
    async def take(process: Process) -> None:
        async for call in process.mailbox:
            calls.append(call)  # noqa: PERF401  # it never ends, and is looked at meanwhile

    return take


@simulated
async def test_two_producers_of_one_stream_both_go_on_with_credit(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2, stream_window=4)
    calls: list[Call] = []
    pid = there.spawn(calls_into(calls))
    got: list[str] = []

    async def consume() -> None:
        async for item in here.stream(pid, "go"):
            got.append(item)
            await asyncio.sleep(0.01)

    async def produce(name: str) -> None:
        for number in range(20):
            assert await calls[0].put(f"{name}{number}")

    consuming = asyncio.ensure_future(consume())
    await asyncio.sleep(0.1)
    await asyncio.wait_for(asyncio.gather(produce("a"), produce("b")), 10)
    calls[0].reply()
    await asyncio.wait_for(consuming, 10)
    for name in "ab":
        assert [item for item in got if item[0] == name] == [f"{name}{number}" for number in range(20)]


@simulated
async def test_a_producer_that_is_cancelled_leaves_the_credit_to_the_other(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2, stream_window=1)
    calls: list[Call] = []
    pid = there.spawn(calls_into(calls))
    stream = here.stream(pid, "go")
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.1)
    (call,) = calls
    assert await call.put(1)
    assert await call.put(2)  # Its credit is back: the consumer waited.
    one, two = (asyncio.ensure_future(call.put(item)) for item in (3, 4))
    await asyncio.sleep(0.1)
    one.cancel()
    await asyncio.wait([one])
    assert await first == 1
    assert [await anext(stream), await anext(stream)] == [2, 4]
    assert await two
    await stream.aclose()


@simulated
async def test_an_item_that_cannot_travel_takes_no_credit(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2, stream_window=4)

    async def produce(process: Process) -> None:
        call = await process.receive()
        for _ in range(20):
            with pytest.raises(NotSerializable):
                await call.put(object())
        for number in range(10):
            await call.put(number)
        call.reply()

    pid = there.spawn(produce)
    assert [item async for item in here.stream(pid, "go", timeout=5)] == list(range(10))


@dataclass
class Newer:
    """A type of message that only the producer's version knows."""

    x: int


@simulated
async def test_an_item_that_cannot_be_read_ends_the_producer_too(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2, stream_window=4)
    types = MessageTypes()
    types.register("newer", Newer)
    there._driver.sessions[here.name]._codec = Codec(types)
    ended: list[int] = []

    async def produce(process: Process) -> None:
        call = await process.receive()
        for number in range(100):
            if not await call.put(Newer(number)):
                ended.append(number)
                return

    pid = there.spawn(produce)
    with pytest.raises(RemoteError, match="Undecodable"):
        async for _ in here.stream(pid, "go"):
            pass
    await asyncio.sleep(0.1)
    assert ended
    assert not there._driver.sessions[here.name].requests


@simulated
async def test_a_deadline_ends_the_producer_whatever_its_consumer_does(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2, stream_window=4)
    ended: list[str] = []

    async def produce(process: Process) -> None:
        call = await process.receive()
        while await call.put("x"):
            pass
        ended.append(process.node.name)

    for node in (here, there):
        stream = here.stream(node.spawn(produce), "go", timeout=3)
        assert await anext(stream) == "x"
        await asyncio.sleep(5)  # It holds the stream, and takes no more of it.
        assert ended == [node.name]
        ended.clear()
        await stream.aclose()


@simulated
async def test_a_key_that_names_no_process_is_refused_by_the_consumer(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2)
    for wrong in (1.5, None, True):
        with pytest.raises(InvalidName):
            await anext(here.stream((wrong, there.name), "go"))  # type: ignore[arg-type]
    await asyncio.sleep(5)
    assert here.list() == [there.name]


@virtual
async def test_both_sides_count_a_large_request_alike() -> None:
    """What it counts is part of the request, and makes it longer."""
    settings = Settings(mailbox_limit=4_096, chunk_bytes=64 * KIB)
    rig = Rig(settings)
    streams = Streams(rig.outbound, settings, rig.pair.here.codec, SimLoop.current())
    head = (
        len(
            rig.pair.here.codec.pack_whole(
                [int(Op.STREAM), "slow", b"x" * 70_000, 1, 5000, 64, 0, 0, 1], None
            )
        )
        - 70_000
    )
    size = 200 * UNIT_BYTES - 1 - head
    streaming = asyncio.ensure_future(anext(streams.open(("slow", THERE), b"x" * size, 5.0)))
    await turns()
    for _ in range(100):
        await rig.settle()
        rig.pair.credit()
    assert len(rig.slow) == 1
    assert rig.session.windows.held == rig.arrivals.held
    streaming.cancel()
    await asyncio.wait([streaming])
