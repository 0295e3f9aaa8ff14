"""Crashes are noticed at once, and no message for a killed node reaches the node that replaces it."""

from __future__ import annotations

import asyncio
import statistics
import time

import pytest

from fleetlm import NoConnection, Node, NodeLost, WouldBlock
from tests.support.patience import allowed_s
from tests.system.cluster_tools import Fleet, Flood, Worker, all_sunk, until

SEEN_WITHIN_S = 0.05
"""Seconds until peers notice a crash: the median, as a busy machine may delay a single one."""


class Stream:
    """Sends continually to a node's name; each message has the incarnation for which it is meant."""

    def __init__(self, node: Node, to: str) -> None:
        self.node, self.to = node, to
        self.sent: dict[int, int] = {}
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        padding = b"x" * 2_000
        while True:
            session = self.node._driver.sessions.get(self.to)
            try:
                if session is not None:
                    number = self.sent.get(session.incarnation, 0)
                    message = [f"{session.incarnation:x}", number, session.incarnation, padding]
                    self.node.send_nowait(("sink", self.to), message)
                    self.sent[session.incarnation] = number + 1
                    if number % 64:
                        continue
            except (NoConnection, WouldBlock):
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def replaced(rounds: int) -> list[float]:
    """Kill a node with queued traffic and start another at its address at once, ``rounds`` times.

    Returns the seconds from each kill until the other node listened.
    """
    async with Fleet(static=(2, 3)) as fleet:
        a = await fleet.node(2)
        name = fleet.name(3)
        worker = await fleet.worker(3)
        await a.ready(1, 10.0)
        gaps, sent = [], 0
        for _ in range(rounds):
            spare = await fleet.waiting()
            await asyncio.wait_for(spare.waiting.wait(), 20.0)
            old = worker.incarnations[name]
            in_flight = [asyncio.create_task(a.call(("slow", name), n, 20.0)) for n in range(20)]
            await asyncio.sleep(0.01)
            stream = Stream(a, name)
            await until(lambda s=stream, old=old: s.sent.get(old, 0) > 2_000)  # type: ignore[misc]
            killed = time.monotonic()
            worker.kill()
            await worker.exit_code()  # it holds the port until then
            await spare.start(fleet.ip(3))
            gaps.append(spare.listening_at - killed)
            down = await fleet.down(a, name, since=killed)
            up = await fleet.up(a, name, since=killed)
            assert (down.incarnation, up.incarnation) == (old, spare.incarnations[name])
            assert fleet.log.index(down) < fleet.log.index(up)
            ends = await asyncio.gather(*in_flight, return_exceptions=True)
            assert {type(end) for end in ends} == {NodeLost}
            assert await a.call(("echo", name), "new") == "new"
            new = spare.incarnations[name]
            await until(lambda s=stream, new=new: s.sent.get(new, 0) > 100)  # type: ignore[misc]
            await stream.stop()
            sent += sum(stream.sent.values())
            await all_sunk(spare, {f"{new:x}": stream.sent[new]})
            worker = spare
        print(
            f"{rounds} restarts under traffic: from kill -9 to the next node's start "
            f"{min(gaps) * 1000:.0f} to {max(gaps) * 1000:.0f} ms; "
            f"{sent:,} messages, none to a newcomer"
        )
        return gaps


async def crashes(rounds: int, loaded: bool) -> list[float]:
    """Kill a node ``rounds`` times. Returns the seconds until each peer reported nodedown."""
    seen: list[float] = []
    async with Fleet(static=(2, 3, 4)) as fleet:
        a, b = await fleet.node(2), await fleet.node(3)
        name = fleet.name(4)
        for _ in range(rounds):
            worker: Worker = await fleet.worker(4)
            began = time.monotonic()
            await asyncio.gather(a.ready(2, 10.0), b.ready(2, 10.0))
            floods = []
            if loaded:
                floods = [Flood(a, name, f"a{began}", 1_000), Flood(b, name, f"b{began}", 1_000)]
                await worker.ask("flood", to=a.name, stream=f"w{began}", size=1_000)
                await until(lambda floods=floods: all(f.sent > 1_000 for f in floods))  # type: ignore[misc]
            killed = time.monotonic()
            worker.kill()
            downs = [await fleet.down(node, name, since=killed) for node in (a, b)]
            seen += [down.at - killed for down in downs]
            for flood in floods:
                await flood.stop()
                assert isinstance(flood.error, NoConnection)
    what = "under load" if loaded else "idle"
    print(
        f"kill -9, {what}: seen by its peers after {statistics.median(seen) * 1000:.1f} ms (median of "
        f"{len(seen)}), at most {max(seen) * 1000:.1f} ms"
    )
    return seen


async def reconnects(count: int, warm_up: int) -> None:
    """Disconnect and connect ``count`` times: descriptors and memory do not grow."""
    async with Fleet(static=(2, 3)) as fleet:
        worker = await fleet.worker(2, 3)
        await worker.ask("meshed", others=1, timeout=10.0)
        before = await worker.ask("reconnect", count=warm_up)
        began = time.monotonic()
        after = await worker.ask("reconnect", count=count)
        took = time.monotonic() - began
        grown_kib = after["resident_kib"] - before["resident_kib"]
        print(
            f"{count} reconnects in {took:.1f} s: {before['files']} → {after['files']} descriptors, "
            f"{before['resident_kib'] / 1024:.1f} → {after['resident_kib'] / 1024:.1f} MiB"
        )
        assert abs(after["files"] - before["files"]) <= 4
        assert grown_kib <= 4 * 1024


async def test_no_message_for_a_killed_node_reaches_the_node_that_replaces_it() -> None:
    assert min(await replaced(rounds=3)) < allowed_s(0.5)


@pytest.mark.parametrize("loaded", [False, True], ids=["idle", "loaded"])
async def test_a_crash_is_seen_at_once(loaded: bool) -> None:
    seen = await crashes(rounds=3, loaded=loaded)
    assert statistics.median(seen) < SEEN_WITHIN_S


async def test_some_reconnects_leave_descriptors_and_memory_flat() -> None:
    await reconnects(count=20, warm_up=10)
