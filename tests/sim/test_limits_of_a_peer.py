"""What one peer may ask of a node is bounded, is refused in words beyond the bound, and harms nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from fleetlm import Call, Down, Exit, Node, Pid, Process, TooManyNames, WouldBlock
from fleetlm.testing import SimCluster, run
from tests.sim.seeded import no_logs

LIMIT = 8


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Silence the log: connections end on purpose here."""
    with no_logs():
        yield


def story(told: Any, **settings: Any) -> None:
    """Play a story on three nodes: the victim, a greedy one, and an honest one."""

    async def main() -> None:
        async with SimCluster(seed=11) as cluster:
            nodes = await cluster.start(3, **settings)
            await cluster.mesh(timeout=10)
            await told(cluster, *nodes)

    run(main())


async def idle(process: Process) -> None:
    async for message in process.mailbox:
        if message == "end":
            return


def test_a_peer_may_have_so_many_processes_and_gets_room_when_one_has_ended() -> None:
    async def told(_cluster: SimCluster, victim: Node, greedy: Node, honest: Node) -> None:
        victim.factories.register("idle", idle)
        pids = [await greedy.spawn_at(victim.name, "idle") for _ in range(LIMIT)]
        with pytest.raises(WouldBlock, match="has spawned live there already"):
            await greedy.spawn_at(victim.name, "idle")
        await honest.spawn_at(victim.name, "idle")
        await greedy.send(pids[0], "end")
        await asyncio.sleep(1)
        await greedy.spawn_at(victim.name, "idle")
        await victim.spawn_at(victim.name, "idle")

    story(told, max_spawned=LIMIT)


def test_who_spawns_faster_than_it_may_waits_and_gets_all_and_others_do_not_wait() -> None:
    async def told(_cluster: SimCluster, victim: Node, greedy: Node, honest: Node) -> None:
        victim.factories.register("idle", idle)
        loop = asyncio.get_running_loop()
        began = loop.time()
        spawns = [asyncio.create_task(greedy.spawn_at(victim.name, "idle", timeout=60)) for _ in range(30)]
        await asyncio.sleep(0.5)
        assert sum(spawn.done() for spawn in spawns) == 7, "a second's worth at once, and two of the next"
        before = loop.time()
        await honest.spawn_at(victim.name, "idle")
        assert await greedy.whereis("nobody", victim.name) is None, "what else it asks for does not wait"
        assert loop.time() - before < 0.1
        pids = await asyncio.gather(*spawns)
        assert len(set(pids)) == 30
        assert 4.8 <= loop.time() - began < 5.2

    story(told, spawns_per_s=5.0)


def test_spawns_that_wait_are_dropped_with_the_connection() -> None:
    async def told(_cluster: SimCluster, victim: Node, greedy: Node, _honest: Node) -> None:
        victim.factories.register("idle", idle)
        before = victim.info().processes
        spawns = [asyncio.create_task(greedy.spawn_at(victim.name, "idle", timeout=60)) for _ in range(31)]
        await asyncio.sleep(0.5)
        refused = [spawn for spawn in spawns if spawn.done() and isinstance(spawn.exception(), WouldBlock)]
        assert refused == spawns[30:], "what would wait for longer than five seconds"
        await greedy.stop(drain_s=0)
        await asyncio.gather(*spawns, return_exceptions=True)
        await asyncio.sleep(20)
        assert victim.info().processes == before + 7

    story(told, spawns_per_s=5.0)


def test_processes_that_outlive_their_node_are_counted_when_it_comes_back() -> None:
    async def told(cluster: SimCluster, victim: Node, greedy: Node, _honest: Node) -> None:
        victim.factories.register("idle", idle)
        for _ in range(LIMIT):
            await greedy.spawn_at(victim.name, "idle")
        greedy = await cluster.restart(greedy)
        await cluster.mesh(timeout=30)
        with pytest.raises(WouldBlock):
            await greedy.spawn_at(victim.name, "idle")

    story(told, max_spawned=LIMIT)


def test_a_monitor_and_a_link_beyond_the_limit_tell_system_limit_and_leave_no_child() -> None:
    async def told(_cluster: SimCluster, victim: Node, greedy: Node, honest: Node) -> None:
        target = victim.spawn(idle)
        victim.factories.register("idle", idle)
        got: list[Any] = []

        async def watcher(process: Process, count: int) -> None:
            process.trap_exit = True
            for _ in range(count):
                process.monitor(target)
            process.link(target)
            async for message in process.mailbox:
                got.append(message)  # noqa: PERF401  # it never ends, and is looked at meanwhile

        greedy.spawn(watcher, LIMIT + 1)
        await asyncio.sleep(1)
        assert [type(message) for message in got] == [Down, Exit]
        assert {message.reason for message in got} == {"system_limit"}
        del got[:]
        honest.spawn(watcher, LIMIT - 1)
        await asyncio.sleep(1)
        assert got == []

        async def parent(process: Process) -> None:
            with pytest.raises(WouldBlock, match="links and monitors"):
                await process.spawn_link_at(victim.name, "idle")
            got.append("refused")

        before = len(victim.processes())
        greedy.spawn(parent)
        await asyncio.sleep(1)
        assert got == ["refused"]
        assert len(victim.processes()) == before

    story(told, max_links_and_monitors=LIMIT)


@pytest.mark.parametrize(("reason", "waiting"), [("x" * 60_000, 1), ([[]] * 200, 1), ("x" * 600, 3)])
def test_an_exit_signal_counts_what_its_reason_weighs(reason: Any, waiting: int) -> None:
    async def told(_cluster: SimCluster, victim: Node, greedy: Node, _honest: Node) -> None:
        async def stuck(process: Process) -> None:
            process.trap_exit = True
            await asyncio.sleep(1e6)

        stuck_one = victim.spawn(stuck)
        process: Any = greedy._parts.local.process(greedy.spawn(idle))
        for _ in range(LIMIT + 5):
            process.exit(stuck_one, reason)
        await asyncio.sleep(1)
        assert len(victim._parts.local.boxes[stuck_one.number]) == waiting + 1

    story(told, max_links_and_monitors=LIMIT)


def test_a_peer_cannot_fill_a_mailbox_with_exit_signals() -> None:
    async def told(cluster: SimCluster, victim: Node, greedy: Node, honest: Node) -> None:
        async def stuck(process: Process) -> None:
            process.trap_exit = True
            await asyncio.sleep(1e6)

        stuck_one = victim.spawn(stuck)
        sender = greedy.spawn(idle)
        process: Any = greedy._parts.local.process(sender)
        for _ in range(50):
            process.exit(stuck_one, "boom")
        await asyncio.sleep(1)
        box = victim._parts.local.boxes[stuck_one.number]
        assert len(box) == LIMIT + 1, "the one that is too much ends the connection"
        assert victim.name in honest.list()
        await cluster.mesh(timeout=60)
        process.exit(stuck_one, "boom")
        await asyncio.sleep(0.1)
        assert len(box) == LIMIT + 2
        assert victim.name not in greedy.list(), "on the next connection they count as before"
        await cluster.mesh(timeout=60)
        stuck_two = victim.spawn(stuck)
        for round_ in range(5):  # With links, too: each exit ends one, and another one is made.
            other = greedy.spawn(idle)
            linked: Any = greedy._parts.local.process(other)
            linked.link(stuck_two)
            await greedy.send(other, "end")
            await asyncio.sleep(0.5)
            assert len(victim._parts.local.boxes[stuck_two.number]) == 1 + round_

    story(told, max_links_and_monitors=LIMIT)


def test_a_peer_that_connects_again_and_again_cannot_fill_a_mailbox() -> None:
    async def told(cluster: SimCluster, victim: Node, greedy: Node, honest: Node) -> None:
        async def stuck(_: Process) -> None:
            await asyncio.sleep(1e6)

        stuck_one = victim.spawn(stuck)
        box = victim._parts.local.boxes[stuck_one.number]
        for round_ in range(5):
            for number in range(LIMIT):
                await greedy.send(stuck_one, (round_, number))
            await honest.send(stuck_one, "honest")
            await asyncio.sleep(0.1)
            assert len(box) == min(3, round_ + 1) * LIMIT + round_ + 1
            greedy.disconnect(victim.name)
            await asyncio.sleep(0.1)
            assert await greedy.connect(victim.name)
            await cluster.mesh(timeout=60)
        assert [each for each in box.queue if each != "honest"] == [
            (round_, number) for round_ in range(2) for number in range(LIMIT)
        ]

    story(told, mailbox_limit=LIMIT)


def test_exit_signals_that_are_taken_are_no_burden() -> None:
    async def told(_cluster: SimCluster, victim: Node, greedy: Node, _honest: Node) -> None:
        got: list[Any] = []

        async def taker(process: Process) -> None:
            process.trap_exit = True
            async for message in process.mailbox:
                got.append(message)  # noqa: PERF401  # it never ends, and is looked at meanwhile

        pid = victim.spawn(taker)
        process: Any = greedy._parts.local.process(greedy.spawn(idle))
        for _ in range(10 * LIMIT):
            process.exit(pid, "boom")
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        assert len(got) == 10 * LIMIT
        (session,) = [s for s in victim._driver.sessions.values() if s.name == greedy.name]
        assert session.arrivals.exits._held == {}

    story(told, max_links_and_monitors=LIMIT)


def test_other_nodes_cannot_take_all_names_that_a_node_may_have() -> None:
    async def told(_cluster: SimCluster, victim: Node, greedy: Node, _honest: Node) -> None:
        pid = victim.spawn(idle)
        for number in range(LIMIT // 2):
            await greedy.registry.register(f"theirs {number}", pid)
        await greedy.registry.register("theirs 0", pid, meta="a new one")
        with pytest.raises(TooManyNames, match="half of"):
            await greedy.registry.register("too much", pid)
        for number in range(LIMIT // 2):
            await victim.registry.register(f"ours {number}", pid)

    story(told, max_cluster_names=LIMIT)


def test_a_node_answers_no_further_questions_of_a_peer_that_has_too_many_calls_open() -> None:
    async def told(_cluster: SimCluster, victim: Node, greedy: Node, honest: Node) -> None:
        async def holder(process: Process) -> None:
            calls = [message async for message in process.mailbox if isinstance(message, Call)]
            del calls

        pid: Pid = victim.spawn(holder)
        calls = [asyncio.ensure_future(greedy.call(pid, n, timeout=30)) for n in range(LIMIT)]
        await asyncio.sleep(1)
        for ask in (greedy.whereis("x", victim.name), greedy.call(pid, "more", timeout=5)):
            with pytest.raises(WouldBlock, match="are open there already"):
                await ask
        assert await honest.whereis("x", victim.name) is None
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(1)
        assert await greedy.whereis("x", victim.name) is None

    story(told, max_open_calls=LIMIT)
