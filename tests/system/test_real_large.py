"""A large message beside small ones: only messages of the same sender wait for it."""

from __future__ import annotations

import asyncio
import time

from tests.system.cluster_tools import Fleet, all_sunk, quantile

MIB = 1024 * 1024
MEDIAN_S = 0.05
WORST_S = 0.25
"""Limit in seconds of a small call beside a large message, on a busy machine.

The limit of the worst call also allows for packing and unpacking the large message, measured in the same
run: the message is copied in one piece at each end, and a call may wait for both copies.
"""
COPIES = 3


async def beside(size: int, count: int) -> None:
    """Make small calls to a node while large messages are sent to the same node."""
    async with Fleet(static=(2, 3)) as fleet:
        a, b = await fleet.worker(2), await fleet.worker(3)
        there = fleet.name(3)
        await a.ask("meshed", others=1, timeout=10.0)
        await a.ask("round_trips", to=there, count=100)
        idle = await a.ask("round_trips", to=there, count=300, pause=0.002)
        copying_s = await a.ask("copying", size=size)
        bulk = a.submit("bulk", to=there, size=size, count=count, stream="bulk")
        loaded: list[float] = []
        while not bulk.done():
            loaded += await a.ask("round_trips", to=there, count=10, pause=0.002)
        took = await bulk
        show("idle", idle)
        print(f"packing and unpacking {size // MIB} MiB takes {copying_s * 1000:.0f} ms")
        show(f"beside {count} messages of {size // MIB} MiB ({count * size / MIB / took:.0f} MiB/s)", loaded)
        assert len(loaded) >= 10, "there were calls beside it"
        assert quantile(loaded, 0.5) < MEDIAN_S
        assert max(loaded) < WORST_S + COPIES * copying_s
        # A small message that the same sender sent after a large one arrived after it.
        await all_sunk(b, {"bulk": 2 * count})
        assert (await b.ask("sunk"))["sizes"] == [size, 0] * count
        assert fleet.downs == []


async def both_ways(size: int) -> None:
    """Let two nodes send each other a large message and call each other meanwhile."""
    async with Fleet(static=(2, 3)) as fleet:
        a, b = await fleet.worker(2), await fleet.worker(3)
        await a.ask("meshed", others=1, timeout=10.0)
        copying_s = await a.ask("copying", size=size)
        began = time.monotonic()
        pairs = ((a, fleet.name(3)), (b, fleet.name(2)))
        bulks = [worker.submit("bulk", to=to, size=size, count=1, stream="bulk") for worker, to in pairs]
        calls = [worker.ask("round_trips", to=to, count=20, pause=0.002) for worker, to in pairs]
        loaded = [taken for each in await asyncio.gather(*calls) for taken in each]
        await asyncio.gather(*bulks)
        show(f"beside {size // MIB} MiB each way, in {time.monotonic() - began:.2f} s", loaded)
        assert max(loaded) < WORST_S + 2 * COPIES * copying_s  # two nodes copy at the same time
        for worker, _ in pairs:
            assert (await worker.ask("sunk"))["sizes"] == [size, 0]
        assert fleet.downs == []


def show(what: str, taken: list[float]) -> None:
    ms = [1000 * quantile(taken, share) for share in (0.5, 0.99)]
    print(f"small calls {what}: p50 {ms[0]:.2f} ms, p99 {ms[1]:.2f} ms, worst {max(taken) * 1000:.2f} ms")


async def test_a_large_message_does_not_delay_small_ones_and_is_not_overtaken_by_its_sender() -> None:
    await beside(60 * MIB, count=3)


async def test_large_messages_in_both_directions_at_once() -> None:
    await both_ways(60 * MIB)
