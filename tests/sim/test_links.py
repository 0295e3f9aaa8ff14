"""Links, monitors and exits across nodes: the API, and seeded scenarios with invariants."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from fleetlm import Address, Call, Crash, Down, Exit, Node, Pid, Process, ProcessDown, ProcessExit, Ref
from fleetlm.testing import SimCluster, run
from tests.sim.seeded import ONE_PORT, most_are_long, run_stories


async def child(process: Process) -> None:
    """A process that ends as its message says."""
    async for message in process.mailbox:
        match message:
            case "return":
                return
            case ("exit", reason):
                raise ProcessExit(reason)
            case "crash":
                raise ValueError("boom")


async def listener(process: Process, log: list[Any], watched: list[Any], link: Pid | None = None) -> None:
    process.trap_exit = True
    if link is not None:
        process.link(link)
    for target in watched:
        process.monitor(target)
    while True:
        log.append(await process.receive())


def pair_story(story: Any) -> None:
    async def main() -> None:
        async with SimCluster(seed=11) as cluster:
            a, b = await cluster.start(2)
            await cluster.mesh(timeout=10)
            await story(cluster, a, b)

    run(main())


@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("return", "normal"),
        (("exit", "shutdown"), "shutdown"),
        (("exit", {"why": [1, 2]}), {"why": [1, 2]}),
        ("crash", Crash),
    ],
)
def test_a_monitor_and_a_link_deliver_the_reason(remote: bool, order: Any, reason: Any) -> None:
    async def story(_cluster: SimCluster, a: Node, b: Node) -> None:
        home = b if remote else a
        pid = home.spawn(child, name="child")
        log: list[Any] = []
        a.spawn(listener, log, [pid, ("child", home.name)], pid)
        await asyncio.sleep(1)
        await a.send(pid, order)
        await asyncio.sleep(1)
        downs = [message for message in log if isinstance(message, Down)]
        exits = [message for message in log if isinstance(message, Exit)]
        assert [down.target for down in downs] == [pid, Address("child", home.name)]
        assert [message.pid for message in exits] == [pid]
        for message in (*downs, *exits):
            if reason is Crash:
                assert isinstance(message.reason, Crash)  # type: ignore[attr-defined]
                assert (message.reason.type_name, message.reason.text) == ("ValueError", "boom")  # type: ignore[attr-defined]
                assert "child" in message.reason.traceback_text  # type: ignore[attr-defined]
            else:
                assert message.reason == reason  # type: ignore[attr-defined]

    pair_story(story)


@pytest.mark.parametrize("remote", [True, False])
def test_what_is_not_there_is_down_at_once(remote: bool) -> None:
    async def story(_cluster: SimCluster, a: Node, b: Node) -> None:
        home = b if remote else a
        gone = home.spawn(child)
        home.exit(gone)
        await asyncio.sleep(0.1)
        log: list[Any] = []
        watched = [gone, ("nobody", home.name), ("x", "fleetlm@10.0.0.99")]
        a.spawn(listener, log, watched, gone)
        await asyncio.sleep(1)
        assert sorted(message.reason for message in log) == ["noconnection", "noproc", "noproc", "noproc"]

    pair_story(story)


def test_a_monitor_of_an_ended_process_fires_after_the_messages_that_it_sent() -> None:
    async def story(_cluster: SimCluster, a: Node, b: Node) -> None:
        log: list[Any] = []

        async def sender(process: Process, to: Pid) -> None:
            for number in range(4):
                await process.node.send(to, (number, bytes(1024 * 1024)))

        async def receiver(process: Process) -> None:
            process.trap_exit = True
            async for message in process.mailbox:
                log.append(message if isinstance(message, Down | Exit) else message[0])
                if len(log) == 1:
                    process.monitor(pids[0])
                    process.link(pids[0])

        pids = [b.spawn(sender, a.spawn(receiver))]
        await asyncio.sleep(5)
        assert log[:4] == list(range(4))
        assert [type(message) for message in log[4:]] == [Down, Exit]

    pair_story(story)


def test_an_untrapped_exit_ends_the_linked_process_and_normal_does_not() -> None:
    async def story(_cluster: SimCluster, a: Node, b: Node) -> None:
        async def linked(process: Process, other: Pid) -> None:
            process.link(other)
            await process.receive()

        first, second = b.spawn(child), b.spawn(child)
        normal, abnormal = a.spawn(linked, first), a.spawn(linked, second)
        await asyncio.sleep(1)
        await a.send(first, "return")
        await a.send(second, ("exit", "bad"))
        await asyncio.sleep(1)
        assert a.process_info(normal) is not None
        assert a.process_info(abnormal) is None

    pair_story(story)


def test_kill_cannot_be_trapped_and_is_heard_as_killed() -> None:
    async def story(_cluster: SimCluster, a: Node, b: Node) -> None:
        async def stubborn(process: Process) -> None:
            process.trap_exit = True
            while True:
                await process.receive()

        pid = b.spawn(stubborn, name="stubborn")
        log: list[Any] = []
        a.spawn(listener, log, [pid])
        await asyncio.sleep(1)
        a.exit(pid, "shutdown")
        await asyncio.sleep(1)
        assert log == []
        a.exit(pid, "kill")
        await asyncio.sleep(1)
        assert [message.reason for message in log] == ["killed"]
        assert await a.whereis("stubborn", at=b.name) is None

    pair_story(story)


def test_a_call_that_a_killed_process_had_taken_ends_with_process_down() -> None:
    async def story(_cluster: SimCluster, a: Node, b: Node) -> None:
        async def taker(process: Process) -> None:
            message = await process.receive()
            assert isinstance(message, Call)
            await process.receive()

        pid = b.spawn(taker)
        asked = asyncio.create_task(a.call(pid, "x"))
        await asyncio.sleep(1)
        a.exit(pid, "kill")
        with pytest.raises(ProcessDown, match="killed"):
            await asked

    pair_story(story)


def test_demonitor_and_unlink_leave_nothing_in_the_mailbox() -> None:
    async def story(_cluster: SimCluster, a: Node, b: Node) -> None:
        left: list[Any] = []
        pid = b.spawn(child)

        async def fickle(process: Process) -> None:
            process.trap_exit = True
            ref = process.monitor(pid)
            process.link(pid)
            await process.node.send(pid, "return")
            await asyncio.sleep(1)
            assert len(process.mailbox) == 2
            process.demonitor(ref)
            process.unlink(pid)
            left.append(await process.receive())
            left.append(len(process.mailbox))

        a.spawn(fickle)
        await asyncio.sleep(3)
        assert left == [Exit(pid, "normal"), 0]

    pair_story(story)


def test_a_reason_that_cannot_travel_travels_as_text() -> None:
    async def story(_cluster: SimCluster, a: Node, b: Node) -> None:
        class Odd:
            def __repr__(self) -> str:
                return "an odd reason"

        async def odd(process: Process) -> None:
            await process.receive()
            raise ProcessExit(Odd())

        async def huge(process: Process) -> None:
            await process.receive()
            raise ProcessExit("x" * 1_000_000)

        log: list[Any] = []
        pids = [b.spawn(odd), b.spawn(huge)]
        a.spawn(listener, log, pids)
        await asyncio.sleep(1)
        for pid in pids:
            await a.send(pid, "go")
        await asyncio.sleep(1)
        assert log[0].reason == "an odd reason"
        assert log[1].reason.startswith("'xxx")
        assert len(log[1].reason) < 10_000

    pair_story(story)


def test_spawn_link_and_spawn_monitor_know_what_ends_before_it_runs() -> None:
    async def story(_cluster: SimCluster, a: Node, _b: Node) -> None:
        log: list[Any] = []

        async def at_once(_process: Process) -> None:
            raise ProcessExit("at once")

        async def parent(process: Process) -> None:
            process.trap_exit = True
            pid = process.spawn_link(at_once, name="short")
            other, ref = process.spawn_monitor(at_once)
            log.extend([await process.receive(), await process.receive()])
            assert log == [Exit(pid, "at once"), Down(ref, other, "at once")]

        a.spawn(parent)
        await asyncio.sleep(1)
        assert len(log) == 2

    pair_story(story)


def test_a_lost_node_is_noconnection_once_and_a_new_monitor_after_healing_works() -> None:
    async def story(cluster: SimCluster, a: Node, b: Node) -> None:
        pid, survivor = b.spawn(child, name="child"), b.spawn(child)
        log: list[Any] = []
        a.spawn(listener, log, [pid], pid)
        await asyncio.sleep(1)
        cluster.partition([a])
        await asyncio.sleep(30)
        assert b.process_info(pid) is None, "it was linked, and traps nothing"
        assert sorted(type(message).__name__ for message in log) == ["Down", "Exit"]
        assert {message.reason for message in log} == {"noconnection"}
        cluster.heal()
        await cluster.mesh(timeout=60)
        again: list[Any] = []
        a.spawn(listener, again, [survivor])
        await asyncio.sleep(1)
        await a.send(survivor, "return")
        await asyncio.sleep(1)
        assert [message.reason for message in again] == ["normal"]
        assert len(log) == 2

    pair_story(story)


def test_a_second_exit_signal_does_not_cut_a_clean_up_short_and_a_kill_does() -> None:
    async def story(_cluster: SimCluster, a: Node, b: Node) -> None:
        cleaned: list[str] = []

        async def tidy(process: Process, name: str) -> None:
            try:
                await process.receive()
            finally:
                await asyncio.sleep(5)
                cleaned.append(name)

        log: list[Any] = []
        patient, killed = b.spawn(tidy, "patient"), b.spawn(tidy, "killed")
        a.spawn(listener, log, [patient, killed])
        for pid, second in ((patient, "boom"), (killed, "kill")):
            a.exit(pid, "shutdown")
            await asyncio.sleep(1)
            a.exit(pid, second)
        await asyncio.sleep(10)
        assert cleaned == ["patient"]
        assert {down.target: down.reason for down in log} == {patient: "shutdown", killed: "killed"}

    pair_story(story)


def test_an_exit_signal_for_a_former_incarnation_spares_the_process_with_its_number() -> None:
    async def story(cluster: SimCluster, a: Node, b: Node) -> None:
        former = b.spawn(child)
        b = await cluster.restart(b)
        await cluster.mesh(timeout=60)
        now = b.spawn(child)
        assert now.number == former.number
        for reason in ("boom", "kill"):
            a.exit(former, reason)
        log: list[Any] = []
        a.spawn(listener, log, [former], former)
        await asyncio.sleep(1)
        assert b.process_info(now) is not None
        assert [message.reason for message in log] == ["noproc", "noproc"]

    pair_story(story)


# Seeded stories.


class Story:
    """Processes link and monitor each other at random while nodes crash and are partitioned."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.cluster = SimCluster(seed=seed, settings=ONE_PORT)
        self.downs: Counter[Ref] = Counter()
        self.armed: dict[Ref, Pid] = {}
        """Return every monitor that was started and not removed → its owner."""
        self.pids: list[Pid] = []
        self.traps: dict[Pid, bool] = {}

    async def member(self, process: Process, trap: bool) -> None:
        process.trap_exit = trap
        held: list[Ref] = []
        async for message in process.mailbox:
            match message:
                case Down(ref=ref):
                    self.downs[ref] += 1
                    assert ref in held, "a Down of a monitor that is not, or no more, held"
                    held.remove(ref)
                case Exit():
                    assert trap
                case ("link", pid):
                    process.link(pid)
                case ("unlink", pid):
                    process.unlink(pid)
                case ("monitor", pid):
                    ref = process.monitor(pid)
                    held.append(ref)
                    self.armed[ref] = process.pid
                case "demonitor" if held:
                    ref = held.pop()
                    process.demonitor(ref)
                    del self.armed[ref]
                case ("exit", pid, reason):
                    process.exit(pid, reason)
                case ("end", reason):
                    raise ProcessExit(reason)

    def nodes(self) -> list[Node]:
        return list(self.cluster.nodes.values())

    def spawn(self, node: Node) -> None:
        trap = self.rng.random() < 0.5
        pid = node.spawn(self.member, trap)
        self.pids.append(pid)
        self.traps[pid] = trap

    def order(self) -> Any:
        rng = self.rng
        other = rng.choice(self.pids)
        return rng.choice(
            [
                ("link", other), ("link", other), ("unlink", other),
                ("monitor", other), ("monitor", other), "demonitor",
                ("exit", other, rng.choice(["normal", "shutdown", "kill", "bad"])),
                ("end", rng.choice(["normal", "shutdown", "bad"])),
            ]
        )  # fmt: skip

    async def step(self) -> None:
        rng, cluster = self.rng, self.cluster
        nodes = self.nodes()
        pick = rng.random()
        if pick < 0.04:
            await cluster.restart(rng.choice(nodes))
        elif pick < 0.08:
            cluster.partition([rng.choice(nodes)])
        elif pick < 0.12:
            cluster.heal()
        elif pick < 0.3:
            self.spawn(rng.choice(nodes))
        else:
            for _ in range(rng.randint(1, 6)):
                pid = rng.choice(self.pids)
                for node in nodes:
                    if node.name == pid.node and node.process_info(pid) is not None:
                        node.send_nowait(pid, self.order())
        await asyncio.sleep(rng.choice([0.0, 0.001, 0.05, 1.0, 12.0]))

    async def play(self) -> None:
        async with self.cluster:
            await self.cluster.start(self.rng.randint(2, 3))
            await self.cluster.mesh(timeout=60)
            for node in self.nodes() * 3:
                self.spawn(node)
            for _ in range(40):
                await self.step()
            self.cluster.heal()
            await self.cluster.mesh(timeout=120)
            await asyncio.sleep(30)
            self.check()

    def check(self) -> None:
        tables = {node.name: node._parts.signals.links for node in self.nodes()}
        alive = {pid for node in self.nodes() for pid in self.pids if node.process_info(pid) is not None}
        assert not [ref for ref, times in self.downs.items() if times != 1], "a monitor fired twice"
        holding = {
            ref: target
            for table in tables.values()
            for ends in table._ends.values()
            for ref, target in ends.monitors.items()
        }
        for ref, holder in self.armed.items():
            if holder in alive:
                fired = self.downs[ref] == 1
                assert fired != (ref in holding), f"{ref} of {holder}: fired {fired}, held {ref in holding}"
        for ref, target in holding.items():
            assert isinstance(target, Pid)
            assert target in alive, f"{ref} watches {target}, which has ended, and never fired"
            assert ref in tables[target.node]._ends[target.number].watchers
        for name, table in tables.items():
            for number, ends in table._ends.items():
                me = Pid(name, table.incarnation, number)
                assert me in alive
                for other in ends.links:
                    assert other in alive, f"{me} is linked to {other}, which has ended"
                    assert me in tables[other.node]._ends[other.number].links, (
                        f"{other} knows no link to {me}"
                    )
                for ref in ends.watchers:
                    assert ref in holding, f"{ref} has no owner any more"


@pytest.mark.parametrize("first", most_are_long(range(0, 520, 20), 2))
def test_every_monitor_fires_once_and_links_die_on_both_sides(first: int) -> None:
    async def play(seed: int) -> None:
        await Story(seed).play()

    run_stories(play, range(first, first + 20))
