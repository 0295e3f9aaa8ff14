"""Spawning by a factory's name: the API, late replies, and seeded scenarios with crashing nodes."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from fleetlm import (
    AlreadyRegistered,
    CallTimeout,
    Crash,
    Down,
    Draining,
    Exit,
    FleetError,
    InvalidName,
    NoConnection,
    Node,
    NodeLost,
    NodeStopped,
    NoFactory,
    NoProcess,
    NotSerializable,
    Pid,
    Process,
    ProcessExit,
    Ref,
    RemoteError,
    Undecodable,
    message,
)
from fleetlm.messages import MessageTypes
from fleetlm.processes.remote_spawn import _PendingSpawn
from fleetlm.testing import SimCluster, run
from fleetlm.wire.codec import Codec
from tests.sim.seeded import ONE_PORT, most_are_long, no_logs, run_stories

KINDS = ["plain", "link", "monitor"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Silence the log: processes crash on purpose here."""
    with no_logs():
        yield


async def child(process: Process, *first: Any) -> None:
    """A process that ends as its argument says, perhaps in its first line."""
    queue = list(first)
    while True:
        match queue.pop() if queue else await process.receive():
            case "return":
                return
            case "crash":
                raise ValueError("boom")
            case "trap":
                process.trap_exit = True
            case ("exit", reason):
                raise ProcessExit(reason)
            case ("tell", pid):
                await process.node.send(pid, "hello")
            case Exit(reason=reason):
                SEEN.append(reason)


SEEN: list[Any] = []
"""Exit messages that children of this module trapped."""


def pair_story(story: Any, *, local: bool = False) -> None:
    """Run a test on two nodes that have the factory ``child``; ``there`` may be ``here``."""

    async def main() -> None:
        SEEN.clear()
        async with SimCluster(seed=11) as cluster:
            here, there = await cluster.start(2)
            await cluster.mesh(timeout=10)
            for node in (here, there):
                node.factories.register("child", child)
            await story(cluster, here, here if local else there)
            await asyncio.sleep(60)
            assert_nothing_is_left(cluster)

    run(main())


def assert_nothing_is_left(cluster: SimCluster) -> None:
    """Check that no request waits, and that each link and monitor between nodes has both ends."""
    nodes = list(cluster.nodes.values())
    tables = {node.name: node._parts.signals.links for node in nodes}
    holding = {
        ref: target
        for table in tables.values()
        for e in table._ends.values()
        for ref, target in e.monitors.items()
    }
    for node in nodes:
        for link in node._driver.sessions.values():
            assert not link.calls, f"{node.name} waits for {link.name}: {link.calls}"
            assert not link.requests
        table = tables[node.name]
        for number, ends in table._ends.items():
            me = Pid(node.name, node.incarnation, number)
            assert node.process_info(me) is not None, f"relations of {me}, which has ended"
            for other in ends.links:
                assert me in tables[other.node]._ends[other.number].links, f"{other} knows no link to {me}"
            assert set(ends.watchers) <= holding.keys()
        assert set(table._owner_of) <= holding.keys()
    for ref, target in holding.items():
        assert isinstance(target, Pid)
        assert ref in tables[target.node]._ends[target.number].watchers, (
            f"{ref} of {target} is not held there"
        )


async def spawn_as(kind: str, process: Process, at: str, *args: Any, **options: Any) -> Pid:
    if kind == "link":
        return await process.spawn_link_at(at, "child", *args, **options)
    if kind == "monitor":
        return (await process.spawn_monitor_at(at, "child", *args, **options))[0]
    return await process.node.spawn_at(at, "child", *args, **options)


@dataclass
class Asker:
    """A process that spawns, and the outcome."""

    kind: str
    at: str
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    give_up_s: float | None = None
    trap: bool = True
    outcome: Any = None
    heard: list[Any] = field(default_factory=list)

    async def run(self, process: Process) -> None:
        process.trap_exit = self.trap
        try:
            async with asyncio.timeout(self.give_up_s):
                self.outcome = await spawn_as(self.kind, process, self.at, *self.args, **self.options)
        except (FleetError, TimeoutError) as error:
            self.outcome = error
        while True:
            self.heard.append(await process.receive())


# What a program sees.


@pytest.mark.parametrize("local", [False, True])
def test_a_factory_is_spawned_with_arguments_and_a_name(local: bool) -> None:
    async def story(_cluster: SimCluster, here: Node, there: Node) -> None:
        got: list[Any] = []

        async def echo(process: Process, *args: Any) -> None:
            got.extend([process.pid, *args])
            await process.receive()

        there.factories.register("echo", echo)
        pid = await here.spawn_at(there.name, "echo", 1, ("a", {"b": [None]}), name="e")
        assert there.registered() == {"e": pid}
        await asyncio.sleep(1)
        assert got == [pid, 1, ("a", {"b": [None]})]
        assert there.factories.unregister("echo")
        assert there.process_info(pid) is not None, "what it has spawned lives on"
        with pytest.raises(NoFactory):
            await here.spawn_at(there.name, "echo")
        here.exit(pid)
        await asyncio.sleep(1)

    pair_story(story, local=local)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("kind", ["link", "monitor"])
@pytest.mark.parametrize(
    ("first", "reason"),
    [("return", "normal"), ("crash", Crash), (("exit", {"why": (1,)}), {"why": (1,)}), (None, "shutdown")],
)
def test_the_real_reason_arrives_once_however_short_the_life(
    local: bool, kind: str, first: Any, reason: Any
) -> None:
    async def story(_cluster: SimCluster, here: Node, there: Node) -> None:
        asker = Asker(kind, there.name, () if first is None else (first,))
        pid = here.spawn(asker.run)
        await asyncio.sleep(1)
        if first is None:
            assert asker.heard == []
            here.exit(asker.outcome, "shutdown")
            await asyncio.sleep(1)
        (heard,) = asker.heard
        assert isinstance(heard, Exit if kind == "link" else Down)
        assert (heard.pid if isinstance(heard, Exit) else heard.target) == asker.outcome
        assert heard.reason == reason or isinstance(heard.reason, Crash) is (reason is Crash)
        here.exit(pid, "kill")

    pair_story(story, local=local)


@pytest.mark.parametrize("local", [False, True])
def test_a_link_ends_a_process_that_does_not_trap_on_either_side(local: bool) -> None:
    async def story(_cluster: SimCluster, here: Node, there: Node) -> None:
        first, second = (Asker("link", there.name, (order,), trap=False) for order in ("crash", "trap"))
        gone = here.spawn(first.run)
        stays = here.spawn(second.run)
        await asyncio.sleep(1)
        assert here.process_info(gone) is None
        assert here.process_info(stays) is not None
        here.exit(stays, "bad")
        await asyncio.sleep(1)
        assert SEEN == ["bad"]
        here.exit(second.outcome, "kill")

    pair_story(story, local=local)


@pytest.mark.parametrize("local", [False, True])
def test_a_spawned_process_without_link_or_monitor_lives_on(local: bool) -> None:
    async def story(_cluster: SimCluster, here: Node, there: Node) -> None:
        asker = Asker("plain", there.name)
        pid = here.spawn(asker.run)
        await asyncio.sleep(1)
        here.exit(pid, "bad")
        await asyncio.sleep(1)
        assert there.process_info(asker.outcome) is not None
        here.exit(asker.outcome)

    pair_story(story, local=local)


def test_an_exit_behind_the_reply_in_one_batch_finds_the_link() -> None:
    """The process ends before its node's loop has turned, so both leave in one frame."""

    async def story(_cluster: SimCluster, here: Node, there: Node) -> None:
        real = there._parts.remote_spawn.spawn_for

        def asked(link: Any, spawn: Any) -> Pid:
            pid = real(link, spawn)
            there._loop.call_soon(there.exit, pid, "kill")
            return pid

        there._parts.remote_spawn.spawn_for = asked  # type: ignore[assignment]
        for kind in ("link", "monitor"):
            asker = Asker(kind, there.name)
            pid = here.spawn(asker.run)
            await asyncio.sleep(1)
            assert [heard.reason for heard in asker.heard] == ["killed"]
            here.exit(pid, "kill")

    pair_story(story)


# What goes wrong, and is said.


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_refusal_is_typed_and_leaves_nothing(local: bool, kind: str) -> None:
    async def story(_cluster: SimCluster, here: Node, there: Node) -> None:
        owner = there.spawn(child, name="taken")

        async def spawner(process: Process) -> None:
            at = there.name
            with pytest.raises(AlreadyRegistered) as taken:
                await spawn_as(kind, process, at, name="taken")
            assert (taken.value.name, str(taken.value.owner)) == ("taken", str(owner))
            with pytest.raises(InvalidName):
                await spawn_as(kind, process, at, name="")
            with pytest.raises(InvalidName):
                await spawn_as(kind, process, "nowhere")
            with pytest.raises(NoConnection):
                await spawn_as(kind, process, "fleetlm@10.9.9.9")
            there.factories.unregister("child")
            with pytest.raises(NoFactory) as unknown:
                await spawn_as(kind, process, at)
            assert (unknown.value.node, unknown.value.factory) == (at, "child")
            there.factories.register("child", child)
            assert len(process.mailbox) == 0
            done.append(True)

        done: list[bool] = []
        here.spawn(spawner)
        await asyncio.sleep(5)
        assert done
        assert [info.pid for info in there.processes()] == [owner]

    pair_story(story, local=local)


def test_a_node_that_drains_takes_no_new_process_but_serves_questions() -> None:
    async def story(_cluster: SimCluster, here: Node, there: Node) -> None:
        draining = asyncio.create_task(there.drain())
        await asyncio.sleep(3)
        assert here.list("draining") == there.list("draining") == [there.name]
        for at, node in [(there.name, here), (there.name, there)]:
            with pytest.raises(Draining) as refused:
                await node.spawn_at(at, "child")
            assert refused.value.node == there.name
            assert not refused.value.was_sent
        assert await here.whereis("x", at=there.name) is None
        assert there.processes() == []
        assert (await draining).was_clean
        assert there.undrain()
        await here.spawn_at(here.name, "child")

    pair_story(story)


def test_a_node_that_was_stopped_says_so() -> None:
    async def story(cluster: SimCluster, here: Node, there: Node) -> None:
        await cluster.stop(here)
        for at in (here.name, there.name):
            with pytest.raises(NodeStopped):
                await here.spawn_at(at, "child")

    pair_story(story)


def test_arguments_are_message_values_here_and_there() -> None:
    async def story(_cluster: SimCluster, here: Node, there: Node) -> None:
        with pytest.raises(NotSerializable) as refused:
            await here.spawn_at(there.name, "child", {"a": [object()]})
        assert refused.value.path == "args[0]['a'][0]"
        there._parts.inbound._codec = Codec(MessageTypes())
        with pytest.raises(Undecodable) as unknown:
            await here.spawn_at(there.name, "child", Odd(5))
        assert unknown.value.target == ("child", there.name)
        assert there.processes() == []
        there._parts.inbound._codec = Codec()

    pair_story(story)


@message("test.remote_spawn.odd")
@dataclass(frozen=True)
class Odd:
    number: int


def test_with_debug_local_arguments_go_through_the_codec() -> None:
    async def main() -> None:
        async with SimCluster(seed=3) as cluster:
            (node,) = await cluster.start(1, debug=True)
            node.factories.register("child", child)
            with pytest.raises(NotSerializable):
                await node.spawn_at(node.name, "child", object())
            assert node.processes() == []

    run(main())


def test_a_process_that_has_ended_spawns_nothing() -> None:
    async def story(_cluster: SimCluster, here: Node, there: Node) -> None:
        ended: list[Process] = []

        async def short(process: Process) -> None:
            ended.append(process)

        here.spawn(short)
        await asyncio.sleep(0.1)
        for at in (here.name, there.name):
            with pytest.raises(NoProcess):
                await ended[0].spawn_link_at(at, "child")
        assert there.processes() == here.processes() == []

    pair_story(story)


def test_large_arguments_do_not_delay_other_messages() -> None:
    async def story(_cluster: SimCluster, here: Node, there: Node) -> None:
        sizes: list[int] = []

        async def large(_process: Process, data: bytes) -> None:
            sizes.append(len(data))

        there.factories.register("large", large)
        spawning = asyncio.create_task(here.spawn_at(there.name, "large", b"x" * 20_000_000, timeout=60))
        await here.spawn_at(there.name, "child", "return")
        await spawning
        await asyncio.sleep(1)
        assert sizes == [20_000_000]

    pair_story(story)


# Late replies.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["its timeout", "a timeout around it"])
def test_a_spawn_that_was_given_up_leaves_no_process(kind: str, how: str) -> None:
    async def story(cluster: SimCluster, here: Node, there: Node) -> None:
        own = how == "its timeout"
        options = {"timeout": 2.0} if own else {}
        asker = Asker(kind, there.name, ("trap",), options, None if own else 2.0)
        cluster.stall(there)
        pid = here.spawn(asker.run)
        await asyncio.sleep(3)
        assert type(asker.outcome) is (CallTimeout if own else TimeoutError)
        assert here._driver.sessions[there.name].calls, "its answer is still to come"
        cluster.unstall(there)
        await asyncio.sleep(1)
        assert there.processes() == []
        assert asker.heard == []
        assert SEEN == [], "killed, not asked to end"
        here.exit(pid, "kill")

    pair_story(story)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reason", ["bad", "kill", "normal"])
def test_a_process_that_ends_during_a_spawn_leaves_no_orphan(kind: str, reason: str) -> None:
    """A linked process gets the reason as if the link had existed; others are killed."""

    async def story(cluster: SimCluster, here: Node, there: Node) -> None:
        asker = Asker(kind, there.name, ("trap",), trap=False)
        cluster.stall(there)
        pid = here.spawn(asker.run)
        await asyncio.sleep(1)
        if reason == "normal":
            process = here._local.process(pid)
            assert process is not None
            process.exit(pid, "normal")  # type: ignore[attr-defined]  # From itself: ends it.
        else:
            here.exit(pid, reason)
        await asyncio.sleep(1)
        assert here.process_info(pid) is None
        cluster.unstall(there)
        await asyncio.sleep(1)
        if kind == "link":
            assert ["killed" if reason == "kill" else reason] == SEEN
            (info,) = there.processes()
            here.exit(info.pid, "kill")
        else:
            assert (SEEN, there.processes()) == ([], [])

    pair_story(story)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trap", [True, False])
def test_a_spawn_cancelled_in_the_turn_of_its_reply_leaves_no_process(
    kind: str, trap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then both ends are recorded; they are removed before the process is killed."""
    take = _PendingSpawn.set_result

    def taken(self: _PendingSpawn, result: Any) -> None:
        take(self, result)
        cancelled[0].cancel()

    async def story(_cluster: SimCluster, here: Node, there: Node) -> None:
        async def spawner(process: Process) -> None:
            process.trap_exit = trap
            task = asyncio.current_task()
            assert task is not None
            cancelled.append(task)
            with pytest.raises(asyncio.CancelledError):
                await spawn_as(kind, process, there.name)
            task.uncancel()
            await asyncio.sleep(5)
            assert len(process.mailbox) == 0
            done.append(True)

        done: list[bool] = []
        here.spawn(spawner)
        await asyncio.sleep(1)
        assert there.processes() == []
        await asyncio.sleep(10)
        assert done

    cancelled: list[asyncio.Task[Any]] = []
    monkeypatch.setattr(_PendingSpawn, "set_result", taken)
    pair_story(story)


@pytest.mark.parametrize("kind", KINDS)
def test_another_task_may_wait_for_a_process_that_ends(kind: str) -> None:
    async def story(cluster: SimCluster, here: Node, there: Node) -> None:
        askers: list[Process] = []

        async def idle(process: Process) -> None:
            askers.append(process)
            await process.receive()

        pid = here.spawn(idle)
        await asyncio.sleep(0.1)
        cluster.stall(there)
        waiting = asyncio.create_task(spawn_as(kind, askers[0], there.name))
        await asyncio.sleep(0.1)
        here.exit(pid, "bad")
        await asyncio.sleep(0.1)
        cluster.unstall(there)
        if kind == "plain":
            here.exit(await waiting)
        else:
            with pytest.raises(FleetError, match="bad"):
                await waiting
        await asyncio.sleep(1)
        assert there.processes() == []

    pair_story(story)


# Nodes that are lost.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["asker", "asked"])
@pytest.mark.parametrize("silent", [True, False])
def test_a_node_that_dies_at_any_point_leaves_one_outcome(kind: str, which: str, silent: bool) -> None:
    """A crash before the request, before its reply, while the reply is on its way, and after it."""

    async def one(after_s: float) -> str:
        async with SimCluster(seed=int(after_s * 1e6), settings=ONE_PORT) as cluster:
            here, there = await cluster.start(2)
            await cluster.mesh(timeout=10)
            there.factories.register("child", child)
            asker = Asker(kind, there.name, (), {"timeout": 60.0})
            here.spawn(asker.run)
            await asyncio.sleep(after_s)
            await cluster.crash(here if which == "asker" else there, silent=silent)
            await asyncio.sleep(100)
            ran = isinstance(asker.outcome, Pid)
            if which == "asked":
                assert ran or isinstance(asker.outcome, NodeLost | NoConnection)
                heard = [type(each) for each in asker.heard]
                assert heard == ([{"link": Exit, "monitor": Down}[kind]] if ran and kind != "plain" else [])
                assert all(each.reason == "noconnection" for each in asker.heard)
            else:
                alive = len(there.processes())
                assert alive == 0 if kind == "link" else alive <= 1
            assert_nothing_is_left(cluster)
            return type(asker.outcome).__name__

    seen = {run(one(microseconds / 1e6)) for microseconds in range(0, 6_000, 300)}
    if which == "asked":
        assert {"NodeLost", "Pid"} <= seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_connection_ends_what_is_linked_and_nothing_else(kind: str) -> None:
    async def story(cluster: SimCluster, here: Node, there: Node) -> None:
        asker = Asker(kind, there.name, (), {"timeout": 300.0})
        here.spawn(asker.run)
        await asyncio.sleep(0.0001)
        cluster.stall(here)  # It has sent, and takes no answer.
        await asyncio.sleep(1)
        assert len(there.processes()) == 1
        cluster.partition([here])
        await asyncio.sleep(60)
        assert isinstance(asker.outcome, NodeLost)
        assert asker.heard == []
        cluster.heal()
        await cluster.mesh(timeout=120)
        left = there.processes()
        assert len(left) == (0 if kind == "link" else 1), "it was spawned, and its asker knows that it may be"
        for info in left:
            there.exit(info.pid, "kill")

    pair_story(story)


# Peers that lie.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given_up", [False, True])
@pytest.mark.parametrize("reply", [None, "x", 5, "another node's", "a former one's", "ours"])
def test_a_reply_that_is_no_pid_of_that_node_is_an_error(kind: str, given_up: bool, reply: Any) -> None:
    async def story(cluster: SimCluster, here: Node, there: Node) -> None:
        asker = Asker(kind, there.name, (), {"timeout": 1.0})
        pid = here.spawn(asker.run)
        lies = {
            "another node's": Pid("fleetlm@10.0.0.99", 1, 1),
            "a former one's": Pid(there.name, there.incarnation - 1, 1),
            "ours": pid,
        }
        there._parts.remote_spawn.spawn_for = lambda *_: lies.get(reply, reply)
        if given_up:
            cluster.stall(there)
        await asyncio.sleep(2)
        cluster.unstall(there)
        await asyncio.sleep(1)
        assert isinstance(asker.outcome, CallTimeout if given_up else RemoteError)
        assert here.process_info(pid) is not None
        assert here._parts.signals.links.counts() == (0, 0)

    pair_story(story)


@pytest.mark.parametrize("argument", range(14))
def test_nonsense_is_answered_and_spawns_nothing(argument: int) -> None:
    async def story(_cluster: SimCluster, here: Node, there: Node) -> None:
        me, other = Pid(here.name, here.incarnation, 1), Pid(there.name, there.incarnation, 1)
        ref, alien = Ref(here.name, here.incarnation, 1), Ref(there.name, there.incarnation, 1)
        nonsense: list[Any] = [
            None, [], "child", {"factory": "child"},
            ["child", (), None, me, True, False],
            ["child", (), None, me, 1, None, None],
            [5, (), None, me, 1, None, False],
            ["child", [], None, me, 1, None, False],
            ["child", (), b"name", me, 1, None, False],
            ["child", (), None, other, 1, None, False],
            ["child", (), None, me, "1", None, False],
            ["child", (), None, me, None, me, False],
            ["child", (), None, me, None, alien, False],
            ["child", (), None, None, None, ref, False],
        ]  # fmt: skip
        with pytest.raises(RemoteError, match="InvalidName"):
            await here._outbound.ask(there.name, "spawn", nonsense[argument], 5.0)
        with pytest.raises(RemoteError, match="InvalidName"):
            await here._outbound.ask(there.name, "spawn", ["child", (), "", me, 1, None, False], 5.0)
        with pytest.raises(NoFactory):
            await here._outbound.ask(there.name, "spawn", ["c" * 100_000, (), None, me, 1, None, False], 5.0)
        assert there.processes() == []
        assert here.list() == [there.name], "the connection lives"

    pair_story(story)


# Seeded stories.


class Story:
    """Processes spawn on each other's nodes while nodes crash, stall, drain and are partitioned."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.drains: list[asyncio.Task[Any]] = []
        latency_s = (0.0002, self.rng.choice([0.002, 0.05, 0.5]))
        self.cluster = SimCluster(seed=seed, settings=ONE_PORT, latency_s=latency_s)
        self.serial = 0
        self.ran: dict[int, Pid] = {}
        """Number of an attempt → the process that it spawned, also if no reply arrived."""
        self.outcomes: dict[int, Any] = {}
        self.kinds: dict[int, str] = {}
        self.askers: dict[int, Pid] = {}
        self.connections: dict[int, Any] = {}
        self.heard: Counter[Pid] = Counter()
        self.reasons: dict[Pid, Any] = {}

    async def spawned(self, process: Process, serial: int, fate: str) -> None:
        self.ran[serial] = process.pid
        if fate == "crash":
            raise ValueError("boom")
        if fate == "return":
            return
        if fate == "trap":
            process.trap_exit = True
        while not isinstance(await process.receive(), Exit):
            pass

    async def asker(self, process: Process) -> None:
        process.trap_exit = True
        spawning: set[asyncio.Task[None]] = set()
        try:
            async for each in process.mailbox:
                match each:
                    case Down(target=Pid() as pid, reason=reason) | Exit(pid=pid, reason=reason):
                        self.heard[pid] += 1
                        self.reasons[pid] = reason
                        if reason == "end":
                            raise ProcessExit("bad")
                    case ("spawn", kind, at, fate, timeout_s, apart):
                        attempt = self.attempt(process, kind, at, fate, timeout_s)
                        if apart:
                            spawning.add(task := asyncio.create_task(attempt))
                            task.add_done_callback(spawning.discard)
                        else:
                            await attempt
        finally:
            for task in spawning:
                if self.rng.random() < 0.5:
                    task.cancel()

    async def attempt(self, process: Process, kind: str, at: str, fate: str, timeout_s: float) -> None:
        self.serial += 1
        serial = self.serial
        self.kinds[serial], self.askers[serial] = kind, process.pid
        self.connections[serial] = self.connection(process.pid, at)
        try:
            if kind == "link":
                pid = await process.spawn_link_at(at, "spawned", serial, fate, timeout=timeout_s)
            elif kind == "monitor":
                pid, _ = await process.spawn_monitor_at(at, "spawned", serial, fate, timeout=timeout_s)
            else:
                pid = await process.node.spawn_at(at, "spawned", serial, fate, timeout=timeout_s)
        except FleetError as error:
            self.outcomes[serial] = error
        except asyncio.CancelledError as error:
            self.outcomes[serial] = error
            raise
        else:
            assert self.outcomes.setdefault(serial, pid) == pid

    def nodes(self) -> list[Node]:
        return list(self.cluster.nodes.values())

    def connection(self, pid: Pid, at: str) -> Any:
        """Return a value that changes when the connection from a process's node to another is lost."""
        for node in self.nodes():
            if (node.name, node.incarnation) == (pid.node, pid.incarnation):
                return (
                    node._parts.kernel.topology.peers[at].connection.ups
                    if at in node._driver.sessions
                    else None
                )
        return None

    def prepare(self, node: Node) -> None:
        node.factories.register("spawned", self.spawned)
        for number in range(2):
            node.spawn(self.asker, name=f"asker {number}")

    async def step(self) -> None:
        rng, cluster = self.rng, self.cluster
        pick = rng.random()
        node = rng.choice(self.nodes())
        if pick < 0.04:
            self.prepare(await cluster.restart(node))
        elif pick < 0.07:
            cluster.partition([node])
        elif pick < 0.1:
            cluster.partition_one_way([node], [rng.choice(self.nodes())])
        elif pick < 0.14:
            cluster.stall(node)
        elif pick < 0.25:
            cluster.heal()
        elif pick < 0.3:
            if not node.undrain():
                self.drains.append(asyncio.create_task(node.drain(rng.choice([0.0, 1.0, 60.0]))))
        elif pick < 0.35:
            pid = node.registered().get("asker 0")
            if pid is not None:
                node.exit(pid, rng.choice(["end", "kill"]))
            await asyncio.sleep(rng.choice([0.0, 0.001, 0.1]))
            if "asker 0" not in node.registered() and not node._stopping:
                node.spawn(self.asker, name="asker 0")
        else:
            for _ in range(rng.randint(1, 8)):
                self.order(node, rng.choice(self.nodes()))
        await asyncio.sleep(rng.choice([0.0, 0.0005, 0.002, 0.05, 1.0, 12.0]))

    def order(self, node: Node, at: Node) -> None:
        rng = self.rng
        kind, fate = rng.choice(KINDS), rng.choice(["crash", "return", "live", "live", "trap"])
        timeout_s = rng.choice([0.001, 0.01, 0.5, 5.0])
        for name in [name for name in node.registered() if name.startswith("asker")]:
            node.send_nowait(name, ("spawn", kind, at.name, fate, timeout_s, rng.random() < 0.5))

    async def play(self) -> None:
        async with self.cluster:
            for node in await self.cluster.start(self.rng.randint(1, 3)):
                self.prepare(node)
            await self.cluster.mesh(timeout=60)
            for _ in range(40):
                await self.step()
            for node in self.nodes():
                node.undrain()
            self.cluster.heal()
            await self.cluster.mesh(timeout=300)
            await asyncio.sleep(60)
            self.check()

    def check(self) -> None:
        assert_nothing_is_left(self.cluster)
        alive = {info.pid for node in self.nodes() for info in node.processes()}
        for serial, kind in self.kinds.items():
            outcome, asker, ran = self.outcomes.get(serial), self.askers[serial], self.ran.get(serial)
            told = f"attempt {serial}: {kind} by {asker} ran as {ran}, came to {outcome!r}"
            assert outcome is not None or asker not in alive, f"{told}: no outcome"
            if isinstance(outcome, Pid):
                assert ran in (None, outcome), told
                if kind == "plain" or asker not in alive:
                    continue
                if kind == "monitor" and self.reasons.get(outcome) == "noconnection":
                    assert self.heard[outcome] == 1, told
                else:
                    assert self.heard[outcome] == (outcome not in alive), told
            elif ran is not None:
                assert not self.heard[ran], f"{told}, but a message about it arrived"
                if kind == "link":
                    assert ran not in alive, told
                elif ran in alive:  # Only a lost connection keeps it from being killed.
                    at = self.connections[serial]
                    assert at is None or at != self.connection(asker, ran.node), told


@pytest.mark.parametrize("first", most_are_long(range(0, 324, 12), 2))
def test_no_orphan_no_leak_and_one_end_whatever_happens(first: int) -> None:
    async def play(seed: int) -> None:
        await Story(seed).play()

    run_stories(play, range(first, first + 12))
