"""A stopped process is down within the node timeout; a busy one is never down."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from tests.system.cluster_tools import Fleet, Flood, all_sunk, until

NODE_TIMEOUT_S = 1.5
SLACK_S = 0.75
"""Additional seconds for a busy machine."""


async def stopped_and_continued(rounds: int) -> None:
    """Stop a node: every peer reports nodedown within the node timeout. Continue it: the same node is up."""
    async with Fleet(static=(2, 3, 4)) as fleet:
        a, b = await fleet.node(2), await fleet.node(3)
        worker = await fleet.worker(4)
        await asyncio.gather(a.ready(2, 10.0), b.ready(2, 10.0), worker.ask("meshed", others=2, timeout=10.0))
        silent = fleet.name(4)
        for _ in range(rounds):
            stopped = time.monotonic()
            worker.signal(signal.SIGSTOP)
            for node in (a, b):
                down = await fleet.down(node, silent, since=stopped)
                print(f"SIGSTOP: nodedown on {node.name} after {down.at - stopped:.2f} s: {down.reason}")
                assert NODE_TIMEOUT_S / 2 <= down.at - stopped <= NODE_TIMEOUT_S + SLACK_S
            assert (a.list(), b.list()) == ([b.name], [a.name])
            continued = time.monotonic()
            worker.signal(signal.SIGCONT)
            for node in (a, b):
                # Each of these connections is short-lived, so the pauses before the next dial grow.
                up = await fleet.up(node, silent, 30.0, since=continued)
                assert up.incarnation == worker.incarnations[silent], "it is the same node"
                await fleet.down(silent, node.name, since=continued)  # it lost them as well
                again = await fleet.up(silent, node.name, 30.0, since=continued)
                print(f"SIGCONT: up again after {max(up.at, again.at) - continued:.2f} s")
            assert await a.call(("echo", silent), "hello") == "hello"
            assert await worker.ask("call", to=b.name, name="echo", message="hi") == {
                "reply": "hi",
                "s": pytest.approx(0, abs=5),
            }


async def held(seconds: float) -> None:
    """Flood a node that holds the GIL: it is busy, no node reports nodedown, and nothing is lost."""
    async with Fleet(static=(2, 3, 4)) as fleet:
        settings = fleet.settings(2).replace(busy_after_s=min(3.0, seconds / 2))
        a = await fleet.node(2, settings)
        b = await fleet.worker(3)
        holder = await fleet.worker(4)
        busy = fleet.name(4)
        await a.ready(2, 10.0)
        await b.ask("meshed", others=2, timeout=10.0)
        before = await holder.ask("footprint")
        floods = [Flood(a, busy, "a", 1_000), Flood(a, busy, "b", 50)]
        await b.ask("flood", to=busy, stream="c", size=1_000)
        await until(lambda: floods[0].sent > 1_000)
        ended = holder.submit("hold_gil", seconds=seconds)
        await asyncio.wait_for(holder.holding.wait(), 10.0)
        began = time.monotonic()
        await asyncio.wait_for(until(lambda: a.list("busy") == [busy], seconds), seconds)
        print(f"shown as busy after {time.monotonic() - began:.2f} s")
        assert a.list("busy", "connected") == [b_name := fleet.name(3), busy]
        assert await a.call(("echo", b_name), "meanwhile") == "meanwhile"
        await asyncio.wait_for(ended, seconds + 10.0)
        await until(lambda: a.list("busy") == [])
        assert floods[0].longest_wait_s > seconds * 0.8, "the sender waits, so memory is bounded"
        for flood in floods:
            await flood.stop()
            assert flood.error is None
        away = await b.ask("flooded", stream="c")
        assert away["error"] is None
        sent = {flood.stream: flood.sent for flood in floods} | {"c": away["sent"]}
        await all_sunk(holder, sent)
        after = await holder.ask("footprint")
        print(
            f"GIL held for {seconds:g} s: {sum(sent.values()):,} messages arrived in order, longest wait "
            f"of a sender {floods[0].longest_wait_s:.1f} s, peak memory of the holder "
            f"{before['resident_kib'] / 1024:.0f} → {after['peak_kib'] / 1024:.0f} MiB"
        )
        assert after["peak_kib"] - before["resident_kib"] < 200 * 1024
        assert fleet.downs == []


async def test_a_stopped_process_is_down_in_time_and_comes_back_as_the_same_node() -> None:
    await stopped_and_continued(rounds=1)


async def test_a_node_that_holds_the_gil_under_a_flood_is_busy_and_loses_nothing() -> None:
    await held(seconds=4.0)
