"""What a node lets the others do: rights of peers, processes, handlers and factories for one node only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fleetlm import (
    Actor,
    AlreadyRegistered,
    CallTimeout,
    Child,
    Down,
    Exit,
    FleetError,
    Node,
    NoHandler,
    NoProcess,
    NotAllowed,
    NotSerializable,
    Pid,
    Process,
    Supervisor,
    handler,
    retry,
)
from fleetlm.messaging.session import Session
from fleetlm.runtime.requests import PeerRequests
from fleetlm.setting_parsers import RIGHTS, Right
from fleetlm.testing.loop import SimLoop
from fleetlm.wire import operations
from fleetlm.wire.invocation import Invoke
from tests.sim.fleet import Fleet, collector, echo, simulated

NOTHING = frozenset[Any]()
FOREIGN = Pid("fleetlm@10.0.0.9", 1, 1)


class Desk(Actor):
    """An actor that notes which of its handlers ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    @handler
    async def open_to_all(self) -> str:
        self.ran.append("open")
        return "open"

    @handler(local=True)
    async def mine(self) -> str:
        self.ran.append("mine")
        return "mine"

    @handler(local=True)
    async def items(self) -> Any:
        self.ran.append("items")
        yield 1

    @handler(local=True, concurrent=True)
    async def beside(self) -> str:
        self.ran.append("beside")
        return "beside"


class NightDesk(Desk):
    async def mine(self) -> str:
        return "mine at night"


async def child(process: Process, *_: Any) -> None:
    await process.receive()


async def first(node: Node, to: Any, message: Any) -> Any:
    async for item in node.stream(to, message, timeout=5):
        return item
    return None


async def run_in(node: Node, work: Callable[[Process], Any]) -> Any:
    """Run `work` in a process of this node, and return its result or raise what it raised."""
    outcome: asyncio.Future[Any] = SimLoop.current().create_future()

    async def main(process: Process) -> None:
        try:
            result = work(process)
            outcome.set_result(await result if asyncio.iscoroutine(result) else result)
        except FleetError as error:
            outcome.set_exception(error)

    node.spawn(main)
    return await outcome


def session(node: Node, peer: Node) -> Session:
    return node._driver.sessions[peer.name]


def forget_what_is_denied(node: Node, peer: Node) -> None:
    """Let a node behave as one that does not care what its peer allows."""
    found = session(node, peer)
    found.denied, found.held_limit = frozenset(), 4_096


# Each is a request of node `a` to node `b`, where `pid` is a process and "echo" its name.
USES: dict[Right, list[Callable[[Node, Node, Pid], Any]]] = {
    "call": [
        lambda a, b, pid: a.call(pid, "x"),
        lambda a, b, pid: a.call(("echo", b.name), "x"),
        lambda a, b, pid: first(a, pid, "x"),
        lambda a, b, pid: a.ref(Desk, pid).call(Desk.open_to_all),
        lambda a, b, pid: a.groups.call("echoes", "x"),
    ],
    "spawn": [
        lambda a, b, pid: a.spawn_at(b.name, "child"),
        lambda a, b, pid: run_in(a, lambda process: process.spawn_link_at(b.name, "child")),
        lambda a, b, pid: run_in(a, lambda process: process.spawn_monitor_at(b.name, "child")),
    ],
    "register": [
        lambda a, b, pid: a.register("other", pid),
        lambda a, b, pid: a.unregister("echo", b.name),
        lambda a, b, pid: a.registry.register("leader", pid),
    ],
}
ONE_WAY: dict[Right, list[Callable[[Node, Node, Pid], Any]]] = {
    "call": [
        lambda a, b, pid: a.send(pid, "x"),
        lambda a, b, pid: a.send(("echo", b.name), "x" * 200_000),
        lambda a, b, pid: a.send_nowait(pid, "x"),
        lambda a, b, pid: a.ref(Desk, pid).cast(Desk.open_to_all),
        lambda a, b, pid: a.ref(Desk, pid).cast_nowait(Desk.open_to_all),
    ],
    "exit": [
        lambda a, b, pid: a.exit(pid, "kill"),
        lambda a, b, pid: run_in(a, lambda process: process.exit(pid, "bad")),
        lambda a, b, pid: run_in(a, lambda process: process.link(pid)),
    ],
}
BOTH = {right: USES.get(right, []) + ONE_WAY.get(right, []) for right in RIGHTS}


def every(uses: dict[Right, list[Any]]) -> list[tuple[Right, int]]:
    return [(right, nth) for right, of_it in uses.items() for nth in range(len(of_it))]


async def make(use: Callable[[Node, Node, Pid], Any], a: Node, b: Node, pid: Pid) -> None:
    result = use(a, b, pid)
    if result is not None:
        await result


async def two(fleet: Fleet, **of_b: Any) -> tuple[Node, Node, Pid, list[Any]]:
    """Two connected nodes; the process of `b` that everything is about, and what it got."""
    a, b = await fleet.start("10.0.0.1", "10.0.0.2"), await fleet.start("10.0.0.2", "10.0.0.1", **of_b)
    await a.ready(timeout=30)
    await b.ready(timeout=30)
    got: list[Any] = []
    pid = b.spawn(collector(got), name="echo")
    b.groups.join("echoes", pid)
    b.factories.register("child", child)
    await asyncio.sleep(1)
    return a, b, pid, got


# ── rights of peers ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("right", "nth"), every(BOTH))
@simulated
async def test_what_a_node_denies_fails_at_the_caller_and_is_not_sent(
    fleet: Fleet, right: Right, nth: int
) -> None:
    a, b, pid, got = await two(fleet, peers_may=frozenset(RIGHTS) - {right})
    before = session(a, b).messages_sent
    with pytest.raises(NotAllowed, match=rf"{b.name} does not allow.*peers_may has no '{right}'"):
        await make(BOTH[right][nth], a, b, pid)
    if right != "register":  # Its node is asked, and refuses.
        assert session(a, b).messages_sent - before < 3, "ticks only"
    await asyncio.sleep(1)
    assert got == []
    assert b.process_info(pid) is not None
    assert [info.pid for info in b.processes()] == [pid]


@pytest.mark.parametrize(("right", "nth"), every(USES))
@simulated
async def test_a_peer_that_does_not_care_is_refused_before_anything_runs(
    fleet: Fleet, right: Right, nth: int
) -> None:
    a, b, pid, got = await two(fleet, peers_may=NOTHING)
    forget_what_is_denied(a, b)
    with pytest.raises(NotAllowed, match=rf"{b.name} does not allow.*peers_may has no '{right}'"):
        await USES[right][nth](a, b, pid)
    await asyncio.sleep(1)
    assert got == []
    assert [info.pid for info in b.processes()] == [pid]
    assert b.name_of(pid) == "echo"


@pytest.mark.parametrize(("right", "nth"), every(ONE_WAY))
@simulated
async def test_what_has_no_answer_is_dropped_by_the_node_that_denies_it(
    fleet: Fleet, right: Right, nth: int
) -> None:
    a, b, pid, got = await two(fleet, peers_may=NOTHING)
    forget_what_is_denied(a, b)
    await make(ONE_WAY[right][nth], a, b, pid)
    await asyncio.sleep(1)
    assert got == []
    assert b.process_info(pid) is not None
    assert b.name in a.list(), "an honest connection stays"


@pytest.mark.parametrize(("right", "nth"), every(BOTH))
@simulated
async def test_with_the_one_right_that_it_needs_it_is_served(fleet: Fleet, right: Right, nth: int) -> None:
    a, b, pid, _ = await two(fleet, peers_may={right})
    made_of_it = (CallTimeout, TimeoutError, NoHandler, AlreadyRegistered)  # by the process, or its node
    with contextlib.suppress(*made_of_it):
        await asyncio.wait_for(make(BOTH[right][nth], a, b, pid), 2)


@simulated
async def test_a_node_that_allows_everything_checks_nothing(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    assert session(a, b).denied == frozenset()
    assert session(a, b).held_limit == session(a, b).windows.limit > 0
    assert type(b._parts.inbound._service) is PeerRequests
    assert b._parts.inbound._boxes is b._parts.local.reachable


@simulated
async def test_a_closed_node_does_itself_what_it_lets_no_other_do(fleet: Fleet) -> None:
    a, b, pid, _ = await two(fleet, peers_may=NOTHING)
    other = a.spawn(echo, name="echo")
    assert await b.call(other, 5) == 5
    assert await b.call(("echo", a.name), "x" * 300_000) == "x" * 300_000
    assert await a.ping(b.name) == "pong"
    assert await a.whereis("echo", b.name) == pid
    assert pid in a.groups.members("echoes")
    a.factories.register("child", child)
    spawned = await b.spawn_at(a.name, "child")
    b.exit(spawned)
    await asyncio.sleep(1)
    assert a.process_info(spawned) is None

    async def tied(process: Process) -> list[Any]:
        process.trap_exit = True
        process.link(other)
        await asyncio.sleep(1)
        a.exit(other, "bad")
        return [await process.receive()]

    assert await run_in(b, tied) == [Exit(other, "bad")]

    async def watches(process: Process) -> Any:
        process.monitor(pid)
        await asyncio.sleep(1)
        b.exit(pid)
        return await process.receive()

    down = await run_in(a, watches)
    assert isinstance(down, Down)
    assert down.reason == "shutdown"


@simulated
async def test_requests_to_a_group_and_to_many_go_round_the_node_that_denies_them(fleet: Fleet) -> None:
    closed = await fleet.start("10.0.0.1", "10.0.0.2", "10.0.0.3", peers_may={"spawn"})
    a, b = [await fleet.start(ip, "10.0.0.1", "10.0.0.2", "10.0.0.3") for ip in ("10.0.0.2", "10.0.0.3")]
    for node in (closed, a, b):
        await node.ready(2, timeout=30)
    for node in (closed, b):
        node.groups.join("echoes", node.spawn(echo, name="echo"))
    await asyncio.sleep(1)
    assert [await a.groups.call("echoes", n) for n in range(20)] == [*range(20)]
    answers = await a.multicall([("echo", node.name) for node in (closed, b)], "x")
    assert isinstance(answers[0], NotAllowed)
    assert answers[1] == "x"
    assert await a.broadcast("echo", "x") == 1


@simulated
async def test_a_denied_request_is_not_repeated(fleet: Fleet) -> None:
    a, _b, pid, _ = await two(fleet, peers_may=NOTHING)
    attempts = 0

    def ask() -> Any:
        nonlocal attempts
        attempts += 1
        return a.call(pid, "x")

    with pytest.raises(NotAllowed):
        await retry(ask, attempts=5)
    assert attempts == 1


@simulated
async def test_without_register_a_name_is_safe_from_claims_of_peers(fleet: Fleet) -> None:
    a, b, pid, _ = await two(fleet, peers_may=frozenset(RIGHTS) - {"register"})
    await a.registry.register("leader", a.spawn(echo))
    await asyncio.sleep(1)
    assert b.registry.whereis("leader") is None
    await b.registry.register("leader", pid)
    await asyncio.sleep(5)
    assert b.registry.whereis("leader") == pid, "an older claim of a peer has not ended it"


@pytest.mark.parametrize("linked", [True, False])
@simulated
async def test_who_may_spawn_may_end_what_it_has_spawned_and_nothing_else(fleet: Fleet, linked: bool) -> None:
    a, b, pid, _ = await two(fleet, peers_may={"spawn"})

    async def spawn(process: Process) -> Pid:
        at = process.spawn_link_at if linked else a.spawn_at
        return await at(b.name, "child")

    if linked:
        spawned = await run_in(a, spawn)  # Its owner ends now, and so does the child.
    else:
        forget_what_is_denied(a, b)
        spawned = await run_in(a, spawn)
        a.exit(spawned, "kill")  # As the node itself does for a spawn that was given up.
        a.exit(pid, "kill")
    await asyncio.sleep(1)
    assert b.process_info(spawned) is None or linked
    assert b.process_info(pid) is not None


@pytest.mark.parametrize(
    "signal",
    [
        ["link"],
        ["exit2", 5],
        [],
        "exit2",
        ["exit2", Pid("fleetlm@10.0.0.9", 1, 1), 1, "kill"],
        [["exit2"], 1],
    ],
)
@simulated
async def test_a_malformed_signal_costs_its_sender_the_connection_here_too(fleet: Fleet, signal: Any) -> None:
    a, b, pid, _ = await two(fleet, peers_may=NOTHING)
    lost = session(a, b)
    lost.signal(a._parts.codec.pack_value(operations.signal(signal)))
    await asyncio.sleep(0.2)
    assert lost.closed
    assert b.process_info(pid) is not None


# ── for one node only ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["spawn", "register", "sync", "child"])
@simulated
async def test_for_other_nodes_a_local_process_does_not_exist(fleet: Fleet, how: str) -> None:
    a, b, _, _ = await two(fleet)
    match how:
        case "register":
            pid = b.spawn(echo)
            await b.register("vault", pid, local=True)
        case "child":
            b.spawn(Supervisor([Child("vault", echo, register="vault", local=True)]))
            await asyncio.sleep(0.1)
            found = await b.whereis("vault")
            assert found is not None
            pid = found
        case _:
            pid = b.spawn(echo, name="vault", local=True)
    for to in (pid, ("vault", b.name)):
        with pytest.raises(NotAllowed, match=rf"{b.name} does not allow.*is for its own node only"):
            await a.call(to, "x")
        with pytest.raises(NotAllowed):
            await first(a, to, "x")
        await a.send(to, "raise")
    assert await a.whereis("vault", b.name) is None
    with pytest.raises(NoProcess):
        await a.register("open", pid)
    assert await a.unregister("vault", b.name) is False
    with pytest.raises(NoProcess):
        await a.registry.register("open", pid)
    a.exit(pid, "kill")

    async def ties(process: Process) -> list[Any]:
        process.trap_exit = True
        process.monitor(pid)
        process.monitor(("vault", b.name))
        process.link(pid)
        return [(await process.receive()).reason for _ in range(3)]

    assert await run_in(a, ties) == ["noproc"] * 3
    assert await b.call("vault", "y") == "y", "its own node reaches it"
    assert await b.call(pid, "y") == "y"
    assert await b.whereis("vault") == pid
    await b.unregister("vault")
    with pytest.raises(NotAllowed):
        await a.call(pid, "x")
    with pytest.raises(NoProcess):
        await a.call(("vault", b.name), "x")
    with pytest.raises(NotAllowed, match="a place in a group"):
        b.groups.join("g", pid)
    with pytest.raises(NotAllowed, match="cluster-wide name"):
        await b.registry.register("open", pid)
    assert b._parts.inbound.undelivered == 2


@simulated
async def test_a_local_process_asks_other_nodes_as_any_does(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    there = a.spawn(echo)
    got: list[Any] = []

    async def asks(process: Process) -> None:
        process.trap_exit = True
        process.link(there)
        got.append(await process.node.call(there, "x"))
        process.exit(there, "bad")
        got.append(await process.receive())

    b.spawn(asks, local=True)
    await asyncio.sleep(1)
    assert got == ["x", Exit(there, "bad")]


@simulated
async def test_a_name_of_a_local_process_is_free_when_it_has_ended(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    b.exit(b.spawn(echo, name="echo", local=True), "kill")
    with pytest.raises(NoProcess):
        await a.call(("echo", b.name), "x")
    b.spawn(echo, name="echo")
    assert await a.call(("echo", b.name), "x") == "x"
    assert b._parts.local.reachable.keys() == b._parts.local.boxes.keys()


@simulated
async def test_local_is_a_matter_of_the_processs_own_node(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    with pytest.raises(ValueError, match="is not a process of"):
        await a.register("x", b.spawn(echo), local=True)
    pid = a.spawn(echo, name="x")
    with pytest.raises(AlreadyRegistered):
        await a.register("y", pid, local=True)
    assert await b.call(("x", a.name), 1) == 1, "nothing changed"


@pytest.mark.parametrize("debug", [False, True])
@simulated
async def test_a_local_handler_runs_for_its_own_node_only(fleet: Fleet, debug: bool) -> None:
    a, b = await fleet.mesh(2, debug=debug)
    desk = Desk()
    here = await b.start_actor(desk, name="desk")
    there = a.ref(Desk, here.pid)
    assert await there.call(Desk.open_to_all) == "open"
    for refused in (Desk.mine, Desk.beside):
        with pytest.raises(NotAllowed, match=rf"{b.name} does not allow.*Desk\..* is for its own node only"):
            await there.call(refused)
        await there.cast(refused)
        there.cast_nowait(refused)
    with pytest.raises(NotAllowed):
        async for _ in there.stream(Desk.items):
            pass
    with pytest.raises(NotSerializable):
        await a.send(here.pid, Invoke("mine", (), {}))
    await asyncio.sleep(1)
    assert desk.ran == ["open"]
    assert await here.call(Desk.mine) == "mine"
    assert await here.call(Desk.beside) == "beside"
    assert [item async for item in here.stream(Desk.items)] == [1]
    await here.cast(Desk.mine)
    await asyncio.sleep(1)
    assert desk.ran == ["open", "mine", "beside", "items", "mine"]


@simulated
async def test_an_override_stays_local(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    here = await b.start_actor(NightDesk)
    assert await here.call(Desk.mine) == "mine at night"
    with pytest.raises(NotAllowed):
        await a.ref(Desk, here.pid).call(Desk.mine)


@simulated
async def test_a_local_actor_is_reached_by_its_own_node_only(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    here = await b.start_actor(Desk, name="desk", local=True)
    assert await here.call(Desk.open_to_all) == "open"
    with pytest.raises(NotAllowed):
        await a.ref(Desk, "desk", b.name).call(Desk.open_to_all)


@simulated
async def test_a_local_factory_spawns_for_its_own_node_only(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    b.factories.register("child", child, local=True)
    with pytest.raises(NotAllowed, match=r"its factory 'child' is for that node only"):
        await a.spawn_at(b.name, "child")
    assert b.processes() == []
    await b.spawn_at(b.name, "child")
    b.factories.register("child", child)
    await a.spawn_at(b.name, "child")
    assert len(b.processes()) == 2
    b.factories.unregister("child")
    b.factories.register("child", child)
    await a.spawn_at(b.name, "child")


# ── the audit log ────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def audited() -> Iterator[list[str]]:
    """Collect the lines of the audit log."""
    lines: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: lines.append(record.getMessage())
    audit = logging.getLogger("fleetlm.audit")
    audit.addHandler(listener)
    level, audit.level = audit.level, logging.INFO
    try:
        yield lines
    finally:
        audit.removeHandler(listener)
        audit.level = level


@simulated
async def test_spawns_and_exits_from_elsewhere_are_written_down(fleet: Fleet) -> None:
    with audited() as lines:
        a, b = await fleet.mesh(2)
        b.factories.register("child", child)
        await b.spawn_at(b.name, "child")
        assert lines == [], "what a node does itself is not an audit's matter"
        pid = await a.spawn_at(b.name, "child", name="né\x1b[2J\n".strip()[:2])
        a.exit(pid, "evil\x1b[2J\nline")
        await asyncio.sleep(1)
        a.exit(pid, "too late")
        await asyncio.sleep(1)
        me = Pid(a.name, a.incarnation, 0)
        assert lines == [
            f"spawn: {me} spawned {pid} of factory 'child', named 'n\\xe9'",
            f"exit: {me} sent an exit signal to {pid} ('n\\xe9'): 'evil\\x1b[2J\\nline'",
        ]


@simulated
async def test_what_a_peer_was_denied_is_written_down(fleet: Fleet) -> None:
    with audited() as lines:
        a, b, pid, _ = await two(fleet, peers_may=NOTHING)
        forget_what_is_denied(a, b)
        a.exit(pid)
        with pytest.raises(NotAllowed):
            await a.spawn_at(b.name, "child")
        assert [line.split(" (")[0] for line in lines] == [
            f"denied: {a.name} may not exit here",
            f"denied: {a.name} may not spawn here",
        ]


@simulated
async def test_a_signal_in_the_name_of_a_third_node_is_not_written_down_as_its_own(fleet: Fleet) -> None:
    with audited() as lines:
        a, b = await fleet.mesh(2)
        pid = b.spawn(echo)
        forged = operations.signal(["exit2", FOREIGN, pid.number, "kill"])
        session(a, b).signal(a._parts.codec.pack_value(forged))
        await asyncio.sleep(1)
        assert b.process_info(pid) is not None
        assert lines == []
