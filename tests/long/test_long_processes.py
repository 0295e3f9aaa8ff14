"""100,000 idle processes on one node: memory of each, time to start one, and a call to each.

Memory is the growth of a separate program. The CPU time of spawning is compared with that of bare
asyncio tasks in the same run, in short turns, and the best turn of each counts, so that other work on the
machine affects both alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from fleetlm import Actor, Node, handler
from tests.system.cluster_tools import ROOT, Fleet, clean_env
from tests.system.cluster_worker import resident_kib

pytestmark = pytest.mark.long
COUNT = 100_000
MEMORY_BYTES = 2_048
SLACK = 1.15
"""Factor for pages that are allocated and not full."""
RATIO = 3.0
SLOWEST_S = 1.0
"""Processor time in which each of a hundred calls at a time has its answer: a hundred times the usual."""
PROGRAM = """
import asyncio, gc, json, time
from fleetlm import Node
from tests.system.cluster_worker import resident_kib

COUNT, TURNS, PART = {count}, 15, 20_000

async def idle(process):
    async for message in process.mailbox:
        message.reply(process.pid.number)

async def bare():
    await asyncio.Event().wait()

async def main():
    async with Node.start() as node:
        await turn_of_bare(1_000)
        await turn_of_processes(node, 1_000)
        gc.collect()
        before = resident_kib()
        began = time.process_time()
        pids = [node.spawn(idle) for _ in range(COUNT)]
        await asyncio.sleep(0)
        spawned_s = time.process_time() - began
        gc.collect()
        held = resident_kib() - before
        began = time.process_time()
        assert [await node.call(pid, "ping") for pid in pids] == [pid.number for pid in pids]
        pinged_s = time.process_time() - began
        began = time.process_time()
        for pid in pids:
            node.exit(pid, "kill")
        await asyncio.sleep(0.1)
        assert not node.processes()
        ended_s = time.process_time() - began
        pids.clear()
        spawning, creating = [], []
        for _ in range(TURNS):
            spawning.append(await turn_of_processes(node, PART))
            creating.append(await turn_of_bare(PART))
        print(json.dumps({{
            "bytes_each": held * 1024 / COUNT, "spawn_us": spawned_s / COUNT * 1e6,
            "ping_us": pinged_s / COUNT * 1e6, "end_us": ended_s / COUNT * 1e6,
            "ratio": min(spawning) / min(creating), "tasks_us": min(creating) / PART * 1e6,
        }}))

async def turn_of_bare(count):
    gc.collect()
    began = time.process_time()
    tasks = [asyncio.create_task(bare()) for _ in range(count)]
    await asyncio.sleep(0)
    took = time.process_time() - began
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return took

async def turn_of_processes(node, count):
    gc.collect()
    began = time.process_time()
    pids = [node.spawn(idle) for _ in range(count)]
    await asyncio.sleep(0)
    took = time.process_time() - began
    for pid in pids:
        node.exit(pid, "kill")
    await asyncio.sleep(0.05)
    return took

asyncio.run(main())
"""


def measured() -> dict[str, float]:
    fleet = Fleet(static=(2,))
    env = {**clean_env(), **fleet.env, "FLEETLM_NODE_IP": fleet.ip(2), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM.format(count=COUNT)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    cost: dict[str, float] = json.loads(done.stdout)
    return cost


@pytest.mark.deadline(300)
def test_a_hundred_thousand_idle_processes() -> None:
    cost = measured()
    print(", ".join(f"{what} {value:,.2f}" for what, value in cost.items()))
    assert cost["bytes_each"] < MEMORY_BYTES * SLACK
    assert cost["ratio"] < RATIO


class Idle(Actor):
    """An actor that is idle most of the time."""

    @handler
    async def whoami(self) -> int:
        return self.pid.number


@contextlib.contextmanager
def all_frozen() -> Iterator[None]:
    """Let the garbage collector look at nothing that exists now.

    It takes most of a second to look at all objects of a hundred thousand processes, in the middle of some
    call, and several times as long beside other work.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.collect()
        gc.freeze()  # As all tests begin; see tests/conftest.py.


@pytest.mark.deadline(300)
async def test_a_ping_to_each_of_a_hundred_thousand_from_another_node() -> None:
    """Each process has its own window, and no window is left afterwards.

    How long a call takes is the processor time of this process, in which both nodes are: other programs of
    the machine do not count.
    """
    async with Fleet(static=(2, 3)) as fleet:
        here, there = await fleet.node(2), await fleet.node(3)
        await here.ready(1, 10.0)
        pids = [there.spawn(Idle) for _ in range(COUNT)]
        await asyncio.sleep(0)
        next_pid, slowest = iter(pids), 0.0

        async def ask(node: Node) -> None:
            nonlocal slowest
            for pid in next_pid:
                asked_at = time.process_time()
                assert await node.ref(Idle, pid).within(30).call(Idle.whoami) == pid.number
                slowest = max(slowest, time.process_time() - asked_at)

        with all_frozen():
            began = time.process_time()
            await asyncio.gather(*(ask(here) for _ in range(100)))
            took = time.process_time() - began
        print(f"{took / COUNT * 1e6:.0f} µs for a call, both sides; the slowest took {slowest * 1e3:.0f} ms")
        async with asyncio.timeout(60):  # Each tick sweeps some of the windows.
            while (
                here._driver.sessions[there.name].windows.held
                or there._driver.sessions[here.name].arrivals.held
            ):
                await asyncio.sleep(0.05)
        assert slowest < SLOWEST_S
        assert fleet.downs == []
        ended_at = time.process_time()
        for pid in pids:
            there.exit(pid, "shutdown")
        async with asyncio.timeout(60):
            while len(there.processes()) > 3:
                await asyncio.sleep(0.05)
        print(f"{(time.process_time() - ended_at) / COUNT * 1e6:.0f} µs for the end of a process")


@pytest.mark.deadline(120)
async def test_two_hundred_thousand_tokens_through_a_slow_consumer() -> None:
    """The stream is as fast as its consumer, and holds no more memory than a window of items."""
    from tests.system.actor_worker import Model
    from tests.system.test_real_windows import served

    count, rests = 200_000, 40
    async with Fleet(static=(2, 3)) as fleet:
        node = await fleet.node(2)
        await fleet.program(3, "start", "tests.system.actor_worker:main")
        await node.ready(1, 20.0)
        there = fleet.name(3)
        await served(node, there)
        ref = node.ref(Model, "model", at=there)
        (before, _), here_before = await node.call(("memory", there), None), resident_kib()
        got = 0
        async with contextlib.aclosing(ref.stream(Model.tokens, count, 512)) as tokens:
            async for token in tokens:
                assert len(token) == 512  # type: ignore[arg-type]
                got += 1
                if got % (count // rests) == 0:
                    await asyncio.sleep(0.25)
        assert got == count
        _, peak = await node.call(("memory", there), None)
        grown_mib = (peak - before) / 1024, (resident_kib() - here_before) / 1024
        print(f"{grown_mib[0]:.1f} MiB more there, {grown_mib[1]:.1f} MiB here; 98 MiB went through")
        assert max(grown_mib) < 32
        assert fleet.downs == []
