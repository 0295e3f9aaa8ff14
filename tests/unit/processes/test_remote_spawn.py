"""The table of factories, what a peer may ask, and answers that are undone after their caller gave up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleetlm.errors import (
    AlreadyRegistered,
    InvalidName,
    NodeLost,
    NoFactory,
    ProcessDown,
    RemoteError,
)
from fleetlm.ids import Pid, Ref
from fleetlm.process import Process
from fleetlm.processes.context import NodeContext
from fleetlm.processes.remote_spawn import Factories, RemoteSpawn, SpawnRequest, _PendingSpawn, asked_to_spawn
from fleetlm.settings import Settings
from fleetlm.supervisor import Supervisor
from fleetlm.testing.loop import SimLoop
from fleetlm.wire.failures import FailureKind
from tests.support.session_fakes import HERE, THERE, Pair, processes_and_signals, virtual

PEER, PEERS_REF = Pid(THERE, 2, 7), Ref(THERE, 2, 1)
"""A process of the other side of a `Pair`, and a monitor that it holds."""
ASKED = SpawnRequest("f", (1, ("x",)), "n", PEER, 4, PEERS_REF)


async def idle(process: Process, *_args: Any) -> None:
    await process.receive()


async def other(process: Process) -> None:
    await process.receive()


class Rig:
    """The factories of a node with one link."""

    def __init__(self, **settings: Any) -> None:
        self.pair = Pair()
        self.session = self.pair.here.session
        self.sessions = {THERE: self.session}
        self.draining = False
        context = NodeContext(HERE, 1, Settings(**settings), self.sessions, lambda _: self.draining)
        self.local, self.signals = processes_and_signals(self, context)
        self.links = self.signals.links
        self.factories = Factories(context.settings.max_factories)
        self.remote_spawn = RemoteSpawn(
            context, self.factories, self.pair.here.codec, self.local, self.signals, None, self.spawn  # type: ignore[arg-type]
        )  # fmt: skip

    def name_of(self, pid: Pid) -> str | None:
        return self.local.table.name_of(pid.number)

    def spawn(self, function: Any, *args: Any, name: str | None = None, essential: bool | None = None) -> Pid:
        return self.local.spawn(function, args, name)

    def process(self, *, trap: bool = False) -> Process:
        """One that waits."""
        process = self.local.process(self.spawn(idle))
        assert process is not None
        process.trap_exit = trap  # type: ignore[attr-defined]
        return process  # type: ignore[return-value]

    def spawning(
        self, owner: Process | None, *, linked: bool = False, ref: Ref | None = None
    ) -> _PendingSpawn:
        """A request of that process that has left."""
        sender = Pid(HERE, 1, 0) if owner is None else owner.pid
        spawn = SpawnRequest("f", (), None, sender, 5 if linked else None, ref)
        return _PendingSpawn(self.local, self.signals, self.sessions, THERE, spawn, owner)

    def told(self) -> list[Any]:
        """Signals that left for the other node since the last look."""
        self.pair.settle()
        said, self.pair.there.service.questions = self.pair.there.service.questions, []
        return [signal for what, signal in said if what == "signal"]

    async def end(self) -> None:
        await self.local.stop()


# The table.


@virtual
async def test_factories_are_registered_listed_and_taken_away() -> None:
    factories = Rig().factories
    tree = Supervisor([])
    factories.register("b", idle)
    factories.register("a", tree)
    assert factories.list() == ["a", "b"]
    assert factories.unregister("a")
    assert not factories.unregister("a")
    assert factories.list() == ["b"]
    factories.register("a", idle)
    factories.register("b", idle)
    assert factories.list() == ["a", "b"]


@virtual
async def test_a_name_is_one_function_and_says_whose_it_is() -> None:
    factories = Rig().factories
    factories.register("a", idle)
    with pytest.raises(AlreadyRegistered, match="'a' is already registered by idle; unregister it first"):
        factories.register("a", other)
    factories.unregister("a")
    factories.register("a", other)


@pytest.mark.parametrize("name", ["", "x" * 256, "new\nline"])
def test_names_are_those_of_processes(name: str) -> None:
    @virtual
    async def main() -> None:
        factories = Rig().factories
        with pytest.raises(InvalidName):
            factories.register(name, idle)
        assert factories.list() == []

    main()


@virtual
async def test_the_table_is_bounded_and_only_functions_get_in() -> None:
    factories = Rig(max_factories=2).factories
    factories.register("a", idle)
    factories.register("b", idle)
    with pytest.raises(InvalidName, match=r"2 factories .*max_factories"):
        factories.register("c", idle)
    factories.register("b", idle)
    factories.unregister("a")
    factories.register("c", idle)
    with pytest.raises(TypeError, match="coroutine function"):
        factories.register("d", "fleetlm:main")  # type: ignore[arg-type]


# What a peer asks.


@virtual
async def test_a_request_arrives_as_it_was_sent() -> None:
    rig = Rig()
    codec = rig.pair.here.codec
    arrived = codec.unpack(codec.pack_value(ASKED.packed()))
    assert asked_to_spawn(rig.session, arrived) == ASKED


@pytest.mark.parametrize(
    "argument",
    [
        [],
        ["f"],
        ["f", (), None, PEER, 1, None, None],
        [b"f", (), None, PEER, 1, None],
        ["f", [], None, PEER, 1, None],
        ["f", (), 5, PEER, 1, None],
        ["f", (), None, "peer", 1, None],
        ["f", (), None, PEER, "1", None],
        ["f", (), None, PEER, None, PEER],
        ["f", (), None, PEER, None, 5],
        ["f", (), None, Pid(HERE, 1, 7), 1, None],
        ["f", (), None, Pid(THERE, 3, 7), 1, None],
        ["f", (), None, PEER, None, Ref(HERE, 1, 1)],
        ["f", (), None, PEER, None, Ref(THERE, 3, 1)],
    ],
)
def test_nonsense_and_strangers_processes_are_no_request(argument: list[Any]) -> None:
    @virtual
    async def main() -> None:
        assert asked_to_spawn(Rig().session, argument) is None

    main()


@virtual
async def test_ends_are_there_before_the_first_line() -> None:
    rig = Rig()
    seen: list[Any] = []

    async def first(process: Process, *args: Any) -> None:
        seen.extend([process.name, args, rig.links.counts()])
        assert process.parent == PEER

    rig.factories.register("f", first)
    pid = rig.remote_spawn.spawn_for(rig.session, ASKED)
    assert seen == []
    await asyncio.sleep(1)
    assert seen == ["n", (1, ("x",)), (1, 1)]
    assert rig.told() == [["exit", pid, 7, "normal"], ["down", PEERS_REF, "normal"]]
    assert rig.links.counts() == (0, 0)


@virtual
async def test_what_is_refused_runs_nothing_and_ties_nothing() -> None:
    rig = Rig()
    with pytest.raises(NoFactory) as unknown:
        rig.remote_spawn.spawn_for(rig.session, ASKED)
    assert (unknown.value.node, unknown.value.factory) == (HERE, "f")
    rig.factories.register("f", idle)
    rig.spawn(idle, name="n")
    with pytest.raises(AlreadyRegistered):
        rig.remote_spawn.spawn_for(rig.session, ASKED)
    assert len(rig.local.info()) == 1
    assert rig.links.counts() == (0, 0)
    await rig.end()


# The answer.

CHILD = Pid(THERE, 2, 3)


@virtual
async def test_the_answer_is_recorded_when_it_is_taken() -> None:
    rig = Rig()
    owner = rig.process(trap=True)
    ref = rig.signals.new_ref()
    spawning = rig.spawning(owner, linked=True, ref=ref)
    spawning.set_result(CHILD)
    assert spawning.result() == CHILD
    assert rig.links.counts() == (1, 1)
    rig.signals.told(rig.session, ["exit", CHILD, owner.pid.number, "bad"])
    rig.signals.told(rig.session, ["down", ref, "bad"])
    assert len(owner.mailbox) == 2
    assert rig.told() == []
    await rig.end()


@virtual
async def test_for_the_node_itself_nothing_is_recorded() -> None:
    rig = Rig()
    spawning = rig.spawning(None)
    spawning.set_result(CHILD)
    assert spawning.result() == CHILD
    late = rig.spawning(None)
    late.give_up()
    late.set_result(CHILD)
    assert late.cancelled()
    assert rig.told() == [["exit2", Pid(HERE, 1, 0), 3, "kill"]]
    assert rig.links.counts() == (0, 0)


@virtual
async def test_a_late_answer_is_killed() -> None:
    rig = Rig()
    owner = rig.process()
    for spawning in (rig.spawning(owner, linked=True), rig.spawning(owner, ref=rig.signals.new_ref())):
        spawning.give_up()
        assert not spawning.done()
        spawning.set_result(CHILD)
        assert spawning.cancelled()
        assert rig.told() == [["exit2", owner.pid, 3, "kill"]]
    assert rig.links.counts() == (0, 0)
    await rig.end()


@virtual
async def test_an_answer_that_nobody_took_is_taken_back() -> None:
    rig = Rig()
    owner = rig.process(trap=True)
    ref = rig.signals.new_ref()
    spawning = rig.spawning(owner, linked=True, ref=ref)
    spawning.set_result(CHILD)
    rig.signals.told(rig.session, ["down", ref, "bad"])
    rig.signals.told(rig.session, ["exit", CHILD, owner.pid.number, "bad"])
    owner.mailbox.put("mine")
    spawning.give_up()
    assert list(owner.mailbox.queue) == ["mine"]
    assert rig.links.counts() == (0, 0)
    assert rig.told()[-1] == ["exit2", owner.pid, 3, "kill"]
    await rig.end()


@pytest.mark.parametrize("given_up", [True, False])
@pytest.mark.parametrize("linked", [True, False])
def test_an_answer_for_a_process_that_has_ended(given_up: bool, linked: bool) -> None:
    @virtual
    async def main() -> None:
        rig = Rig()
        owner = rig.process()
        spawning = rig.spawning(owner, linked=linked, ref=None if linked else rig.signals.new_ref())
        owner._end_with({"why": 1})
        if given_up:
            spawning.give_up()
        await asyncio.sleep(1)
        assert rig.local.process(owner.pid) is None
        spawning.set_result(CHILD)
        if linked:
            assert rig.told() == [["exit", owner.pid, 3, {"why": 1}]]
        else:
            assert rig.told() == [["exit2", owner.pid, 3, "kill"]]
        if given_up:
            assert spawning.cancelled()
        else:
            with pytest.raises(ProcessDown, match="why"):
                spawning.result()
        assert rig.links._ends == {}

    main()


@virtual
async def test_a_linked_process_of_one_that_is_ending_is_left_to_the_link() -> None:
    rig = Rig()
    ready = asyncio.Event()

    async def slow_to_end(process: Process) -> None:
        try:
            await process.receive()
        finally:
            await ready.wait()

    owner = rig.local.process(rig.spawn(slow_to_end))
    assert owner is not None
    await asyncio.sleep(0)
    before, late = rig.spawning(owner, linked=True), rig.spawning(owner, linked=True)  # type: ignore[arg-type]
    before.set_result(CHILD)
    owner._end_with("bad")
    before.give_up()
    late.give_up()
    late.set_result(Pid(THERE, 2, 4))
    await asyncio.sleep(1)
    assert rig.told() == []
    ready.set()
    await asyncio.sleep(1)
    assert rig.told() == [["exit", owner.pid, 3, "bad"], ["exit", owner.pid, 4, "bad"]]


@pytest.mark.parametrize("given_up", [True, False])
def test_a_failure_and_the_end_of_the_connection(given_up: bool) -> None:
    """After `give_up`, a failure must not become an exception that is never retrieved, which asyncio logs."""

    @virtual
    async def main() -> None:
        rig = Rig()
        spawning = rig.spawning(rig.process())
        if given_up:
            spawning.give_up()
        spawning.set_exception(NodeLost(THERE, "x"))
        if given_up:
            assert spawning.cancelled()
        else:
            spawning.give_up()
            assert isinstance(spawning.exception(), NodeLost)
        assert rig.told() == []
        await rig.end()

    main()


@pytest.mark.parametrize(
    "reply", [None, 5, "pid", [PEER], Pid(HERE, 1, 1), Pid(THERE, 3, 3), Pid("fleetlm@10.0.0.9", 2, 3)]
)
def test_an_answer_that_is_no_pid_of_that_node(reply: Any) -> None:
    @virtual
    async def main() -> None:
        rig = Rig()
        owner = rig.process()
        spawning = rig.spawning(owner, linked=True)
        spawning.set_result(reply)
        with pytest.raises(RemoteError, match="not a pid of its own"):
            spawning.result()
        late = rig.spawning(owner, linked=True)
        late.give_up()
        late.set_result(reply)
        assert late.cancelled()
        rig.sessions.clear()
        over = rig.spawning(owner)
        over.set_result(CHILD)
        assert isinstance(over.exception(), RemoteError)
        assert rig.told() == []
        assert rig.links.counts() == (0, 0)
        await rig.end()

    main()


@virtual
async def test_failures_of_a_spawn_travel_with_their_type() -> None:
    rig = Rig()
    future = rig.pair.there.session.calls[1] = SimLoop.current().create_future()
    rig.session.failed(1, FailureKind.NO_FACTORY, [HERE, "f"])
    rig.pair.settle()
    error = future.exception()
    assert isinstance(error, NoFactory)
    assert (error.node, error.factory) == (HERE, "f")
