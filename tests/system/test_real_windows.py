"""Back-pressure on real sockets: a slow process fills its own window and delays no other process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from fleetlm import Node, NoProcess, WouldBlock
from tests.system.cluster_tools import Fleet, Worker, until
from tests.system.cluster_worker import resident_kib

KIB = 1024


@contextlib.asynccontextmanager
async def two() -> AsyncIterator[tuple[Fleet, Node, Worker, str]]:
    """Start a node here and a program with slow and stuck processes."""
    async with Fleet(static=(2, 3)) as fleet:
        node = await fleet.node(2)
        program = await fleet.program(3, "start", "tests.system.actor_worker:main")
        await node.ready(1, 20.0)
        there = fleet.name(3)
        await served(node, there)
        yield fleet, node, program, there


async def served(node: Node, there: str) -> None:
    """Wait until the program has spawned its processes; the memory process is the last."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(NoProcess):
                await node.call(("memory", there), None)
                return
            await asyncio.sleep(0.01)


def fill(node: Node, there: str) -> None:
    """Send to the stuck process until its window is full."""
    with contextlib.suppress(WouldBlock):
        while True:
            node.send_nowait(("stuck", there), "x")


async def rate(node: Node, there: str, seconds: float = 0.2) -> float:
    """Make calls in sequence. Returns calls per second."""
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        await node.call(("echo", there), count)
        count += 1
    return count / (time.perf_counter() - began)


async def test_memory_stays_bounded_on_both_sides_of_a_producer_that_is_too_fast() -> None:
    """A window of 4,096 messages of 4 KiB holds 16 MiB at the receiver, besides what is in flight."""
    async with two() as (fleet, node, _, there):
        (before, _), here_before = await node.call(("memory", there), None), resident_kib()
        body = bytes(4 * KIB)
        sent, until_s = 0, time.monotonic() + 4.0

        async def produce() -> None:
            nonlocal sent
            while time.monotonic() < until_s:
                await node.send(("slow", there), body)
                sent += 1

        producing = [asyncio.ensure_future(produce()) for _ in range(20)]
        calls = 0
        while time.monotonic() < until_s:
            assert await node.call(("echo", there), calls) == calls
            calls += 1
        _, peak = await node.call(("memory", there), None)
        here = resident_kib()
        grown = (peak - before) / KIB, (here - here_before) / KIB
        for task in producing:
            task.cancel()
        await asyncio.wait(producing)
        print(f"{sent:,} messages of 4 KiB and {calls:,} calls: {grown[1]:.1f} and {grown[0]:.1f} MiB more")
        assert 4_096 <= sent < 20_000, "it went at the pace of its consumer"
        assert calls > 100
        assert grown[0] < 64
        assert grown[1] < 64
        assert fleet.downs == []


async def test_a_stuck_process_delays_no_other_process_on_its_connection() -> None:
    async with two() as (fleet, node, _, there):
        await rate(node, there)
        free, beside = 0.0, 0.0
        for _ in range(6):  # The best of several, as the machine may be busy.
            free = max(free, await rate(node, there))
        fill(node, there)
        sending = [asyncio.ensure_future(node.send(("stuck", there), "x")) for _ in range(1_000)]
        for _ in range(6):
            beside = max(beside, await rate(node, there))
        print(f"calls per second: {free:,.0f} alone, {beside:,.0f} beside a stuck process with 1,000 senders")
        assert not any(task.done() for task in sending)
        for task in sending:
            task.cancel()
        await asyncio.wait(sending)
        # The two rates were measured at different times, so this bound forgives a busy machine. A call that
        # waited for the stuck process would take its whole time-out.
        assert beside > free / 20
        assert fleet.downs == []


async def test_a_killed_peer_ends_every_send_that_waits_for_its_windows() -> None:
    async with two() as (fleet, node, program, there):
        fill(node, there)
        sending = [asyncio.ensure_future(node.send(("stuck", there), "x")) for _ in range(100)]
        calling = [asyncio.ensure_future(node.call(("stuck", there), "x", 30.0)) for _ in range(100)]
        broadcasting = asyncio.ensure_future(node.broadcast("stuck", "x"))
        await asyncio.sleep(0.1)
        killed_at = time.monotonic()
        program.kill()
        waiting = asyncio.gather(*sending, *calling, return_exceptions=True)
        outcomes = await asyncio.wait_for(waiting, 5.0)
        took = time.monotonic() - killed_at
        print(f"{len(outcomes)} sends and calls ended within {took * 1000:.0f} ms")
        assert {type(outcome).__name__ for outcome in outcomes} == {"NoConnection"}
        assert await broadcasting == 0
        await fleet.down(node, there)
        await until(lambda: not node._driver.sessions)
