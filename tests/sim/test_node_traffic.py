"""Large messages, windows and misbehaving peers on connections of whole nodes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from fleetlm import (
    NodeDown,
    NodeInfo,
    NodeUp,
    PeerInfo,
    Process,
    Undecodable,
    WouldBlock,
)
from fleetlm.messages import MessageTypes
from fleetlm.testing.loop import SimLoop
from fleetlm.wire.codec import Codec
from fleetlm.wire.frames import Kind, header
from tests.sim.fleet import A, B, Fleet, collector, echo, simulated

KIB = 1024
NARROW = {
    "window_bytes": 64 * KIB,
    "chunk_bytes": 4 * KIB,
    "bulk_window_bytes": 8 * KIB,
    "batch_bytes": 4 * KIB,
}


# Large messages, order, windows.


@simulated
async def test_order_per_sender_is_kept_whatever_the_sizes(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2, **NARROW)
    got: list[Any] = []
    pid = b.spawn(collector(got), name="sink")

    async def sender(process: Process, who: int) -> None:
        for serial in range(60):
            size = SimLoop.current().rng.choice([1, 100, 3 * KIB, 5 * KIB, 30 * KIB])
            await process.node.send(pid, [who, serial, b"x" * size])
            if serial % 7 == 0:
                await asyncio.sleep(0.001)

    for who in range(4):
        a.spawn(sender, who)
    await asyncio.sleep(30)
    for who in range(4):
        assert [serial for sender_, serial, _ in got if sender_ == who] == list(range(60))
    link = a._driver.sessions[b.name]
    await asyncio.sleep(2)
    assert link.lanes.waiting_bytes == 0
    assert link.in_flight < KIB


@simulated
async def test_a_very_large_message_does_not_delay_small_ones(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    b.spawn(echo, name="echo")
    large = asyncio.ensure_future(a.call(("echo", b.name), b"x" * 30_000 * KIB, timeout=60))
    longest = 0.0
    while a._driver.sessions[b.name].lanes or not large.done():
        if a._driver.sessions[b.name].is_full:  # its own window is full of the large one
            await asyncio.sleep(0.001)
            continue
        started = SimLoop.current().time()
        assert await a.call(("echo", b.name), "small") == "small"
        longest = max(longest, SimLoop.current().time() - started)
    assert len(await large) == 30_000 * KIB
    assert longest < 0.05


@simulated
async def test_a_slow_reader_makes_only_its_own_senders_wait(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2, mailbox_limit=16, **NARROW)
    got: list[int] = []
    gate = asyncio.Event()

    async def slow(process: Process) -> None:
        await gate.wait()
        async for message in process.mailbox:
            got.append(message[0])  # noqa: PERF401  # looked at meanwhile

    pid = b.spawn(slow, name="slow")
    b.spawn(echo, name="echo")
    a.spawn(echo, name="echo")

    async def flood(process: Process) -> None:
        for number in range(1000):
            await process.node.send(pid, [number, b"x" * KIB])

    a.spawn(flood, name="flood")
    await asyncio.sleep(20)
    info = b.process_info(pid)
    assert info is not None
    assert info.mailbox == 16
    assert await a.whereis("flood") is not None
    with pytest.raises(WouldBlock):
        a.send_nowait(pid, 1)
    with pytest.raises(WouldBlock):
        await a.call(pid, 1, timeout=1)
    # Traffic to others, and in the other direction, goes on; so do ticks.
    assert await a.call(("echo", b.name), 1, timeout=1) == 1
    assert await b.call(("echo", a.name), "other way", timeout=1) == "other way"
    assert len(await b.call(("echo", a.name), b"x" * 40 * KIB, timeout=5)) == 40 * KIB
    assert a.list("busy") == b.list("busy") == []
    gate.set()
    await asyncio.sleep(20)
    assert got == list(range(1000))
    assert await a.call(("echo", b.name), 1) == 1


@simulated
async def test_a_reader_that_ends_lets_its_senders_go_on(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2, mailbox_limit=4, **NARROW)
    pid = b.spawn(lambda process: asyncio.sleep(10), name="deaf")
    b.spawn(echo, name="echo")
    sent = 0

    async def flood(process: Process) -> None:
        nonlocal sent
        for _ in range(500):
            await process.node.send(pid, b"x" * KIB)
            sent += 1

    a.spawn(flood)
    await asyncio.sleep(5)
    assert sent < 300
    await asyncio.sleep(10)
    assert sent == 500
    assert await a.call(("echo", b.name), 1) == 1


@simulated
async def test_two_slow_nodes_do_not_block_each_other_for_ever(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2, mailbox_limit=8, **NARROW)
    got: list[Any] = []

    async def talker(process: Process, to: str) -> None:
        """Make calls as fast as the window allows, and read in between."""
        for number in range(200):
            await process.node.call(("sink", to), [number, b"x" * 5 * KIB], timeout=60)

    async def sink(process: Process) -> None:
        async for call in process.mailbox:
            await asyncio.sleep(0.01)
            got.append(call.message[0])
            call.reply(b"y" * 6 * KIB)

    for node, other in ((a, b), (b, a)):
        node.spawn(sink, name="sink")
        for _ in range(5):
            node.spawn(talker, other.name)
    await asyncio.sleep(300)
    assert len(got) == 2 * 5 * 200


# Types, bad peers.


@dataclass
class Strange:
    x: int


@simulated
async def test_an_unknown_type_costs_its_message_and_nothing_else(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    types = MessageTypes()
    types.register("strange", Strange)
    a._outbound._codec = Codec(types)  # as if only this node had registered it
    b.spawn(echo, name="echo")
    got: list[Any] = []
    b.spawn(collector(got), name="sink")
    with pytest.raises(Undecodable, match="strange"):
        await a.call(("echo", b.name), [Strange(1)])
    for message in (1, Strange(2), 3):
        await a.send(("sink", b.name), message)
    assert await a.call(("echo", b.name), "next") == "next"
    assert got == [1, 3]
    info = b.info()
    assert isinstance(info, NodeInfo)
    assert info.unreadable == 2
    assert info.peers[0].connections == 1


@simulated
async def test_garbage_from_a_peer_costs_its_connection_only(fleet: Fleet) -> None:
    a, b, c = await fleet.mesh(3)
    a.spawn(echo, name="echo")
    events = a.events()
    await anext(events)
    await anext(events)
    for round_, bad in enumerate([b"", b"\x03", b"\xff" * 40, header(Kind.BATCH, 1, 1) + b"\xc1"]):
        link = a._driver.sessions[b.name]
        calling = asyncio.ensure_future(c.call(("echo", a.name), round_))
        fleet.net.inject(A, link.incoming.source, bad)
        down, up = await anext(events), await anext(events)
        assert (down.node, up.node) == (b.name, b.name)
        assert isinstance(down, NodeDown)
        assert await calling == round_
        await b.ready(2, timeout=30)
        assert await b.call(("echo", a.name), "again") == "again"
    row = a.info(c.name)
    assert isinstance(row, PeerInfo)
    assert row.connections == 1


@simulated
async def test_a_lost_or_corrupted_frame_takes_the_connection_down_and_never_a_message_silently(
    fleet: Fleet,
) -> None:
    a, b = await fleet.mesh(2)
    got: list[Any] = []
    b.spawn(collector(got), name="sink")
    events = b.events()
    await anext(events)
    fleet.net.drop_frame(A, B, skip=2)
    for number in range(10):
        await a.send(("sink", b.name), number)
        await asyncio.sleep(0.01)
        if b.name not in a.list():
            break
    down = await anext(events)
    assert isinstance(down, NodeDown)
    assert "something was lost" in down.reason
    assert got == list(range(len(got)))
    assert len(got) <= 3
    assert isinstance(await anext(events), NodeUp)


@simulated
async def test_strangers_do_not_disturb_the_cluster(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    b.spawn(echo, name="echo")
    for number in range(200):
        frame = SimLoop.current().rng.randbytes(SimLoop.current().rng.randrange(60))
        fleet.net.inject(B, b"stranger %d" % (number % 7), frame)
        fleet.net.inject(B, b"half", header(number % 10, number, number))
    await asyncio.sleep(1)
    assert await a.call(("echo", b.name), 1) == 1
    row = a.info(b.name)
    assert isinstance(row, PeerInfo)
    assert (row.status, row.connections) == ("up", 1)
