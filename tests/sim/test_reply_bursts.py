"""Bursts of replies between healthy nodes: no connection ends, no call is lost, memory stays bounded."""

from __future__ import annotations

import asyncio
from typing import Any

from fleetlm import Call, NodeDown, Process
from fleetlm.node import parts_of
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import A, Fleet, simulated

KIB = 1024
SMALL: dict[str, Any] = {"window_bytes": 256 * KIB, "reply_queue_bytes": 1024 * KIB, "batch_bytes": 16 * KIB}


async def sized(process: Process) -> None:
    """Answers each call at once, as a plain loop does."""
    async for message in process.mailbox:
        message.reply(bytes(message.message))


async def burst(process: Process) -> None:
    """Collects calls and answers all of them in one turn."""
    held: list[Call] = []
    async for message in process.mailbox:
        held.append(message)
        if len(held) == message.message[0]:
            for call in held:
                call.reply(bytes(call.message[1]))
            held.clear()


@simulated
async def test_many_replies_in_one_turn_all_arrive(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2, **SMALL)
    pid = there.spawn(burst)
    replies = await asyncio.gather(*(here.call(pid, (300, 20 * KIB), timeout=30) for _ in range(300)))
    assert {len(reply) for reply in replies} == {20 * KIB}
    assert here.list() == [there.name]


@simulated
async def test_a_caller_whose_loop_is_busy_gets_its_replies_afterwards(fleet: Fleet) -> None:
    here, there, third = await fleet.mesh(3, **SMALL)
    pid = there.spawn(sized)
    calls = [asyncio.ensure_future(here.call(pid, 8 * KIB, timeout=60)) for _ in range(1_000)]
    await asyncio.sleep(0.01)
    fleet.net.stall(A)
    most = 0
    session = parts_of(there).context.sessions[here.name]
    for _ in range(50):
        await asyncio.sleep(0.1)
        most = max(most, session.in_flight)
    assert most < (256 + 1024 + 64) * KIB, "the process waits with the next call"
    fleet.net.unstall(A)
    assert {len(reply) for reply in await asyncio.gather(*calls)} == {8 * KIB}
    assert here.list() == [there.name, third.name]
    assert len(await third.call(pid, 5)) == 5


@simulated
async def test_a_busy_peer_is_never_cut_and_loses_nothing_that_it_can_hold(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2, **SMALL, no_credit_s=20.0)
    pid = there.spawn(sized)
    calls = [asyncio.ensure_future(here.call(pid, 8 * KIB, timeout=1_000)) for _ in range(100)]
    await asyncio.sleep(0.01)
    fleet.net.stall(A)
    await asyncio.sleep(200)
    assert there.list() == [here.name]
    assert there.list("busy") == [here.name]
    fleet.net.unstall(A)
    assert {len(reply) for reply in await asyncio.gather(*calls)} == {8 * KIB}


@simulated
async def test_a_peer_that_is_alive_and_takes_nothing_is_cut_after_the_set_time(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2, **SMALL, no_credit_s=20.0)
    pid = there.spawn(sized)
    sessions = parts_of(here).context.sessions
    credit: Any = sessions[there.name].byte_credit
    credit._tell = lambda *_: None  # Its loop runs and ticks, and it gives no credit.
    began = SimLoop.current().time()
    ask = (here.call(pid, 8 * KIB, timeout=100) for _ in range(100))
    calls = asyncio.gather(*ask, return_exceptions=True)
    events = there.events()
    reason = ""
    async for event in events:
        if isinstance(event, NodeDown):
            reason = event.reason
            break
    assert "it took nothing of" in reason
    assert 20 <= SimLoop.current().time() - began < 23
    await calls
