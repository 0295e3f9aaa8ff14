"""Singletons on whole nodes: one process in the cluster, and seeded stories of nodes that come and go."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any, Literal

import pytest

from fleetlm import (
    Actor,
    CallTimeout,
    Child,
    Node,
    NodeStopped,
    NotOwner,
    Process,
    ProcessExit,
    Quorum,
    Supervisor,
    handler,
)
from fleetlm.entities import kinds
from fleetlm.leaders import offering as offering_module, run_restarts
from fleetlm.testing import Fleet
from tests.sim.leader_world import LeaderWorld, offering
from tests.sim.seeded import most_are_long, run_worlds

LEASE_S = 4.0
SEEDS = 1
"""Stories in one test. Each takes about a second."""
Safety = Literal["available", "quorum"]


class Boss:
    """What the runs of a singleton have done."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.began: list[tuple[str, int]] = []
        self.times: list[float] = []
        self.most = 0
        self.clean_up_s = 0.0
        self.is_deaf = False
        self.fails = 0
        self.fails_on: set[str] = set()

    async def __call__(self, process: Process) -> None:
        """Run, and answer calls."""
        name = process.node.name
        self.running.append(name)
        self.most = max(self.most, len(self.running))
        self.began.append((name, process.epoch))
        self.times.append(asyncio.get_running_loop().time())
        try:
            if self.fails or name in self.fails_on:
                self.fails = max(0, self.fails - 1)
                raise ValueError("as the test wants it")
            async for call in process.mailbox:
                if call.message == "die":
                    raise ProcessExit("because")
                call.reply([name, process.epoch])
        finally:
            try:
                if self.clean_up_s:
                    await asyncio.sleep(self.clean_up_s)
                while self.is_deaf:
                    try:
                        await asyncio.sleep(1)
                    except asyncio.CancelledError:
                        continue
            finally:
                self.running.remove(name)


async def offers(fleet: Fleet, count: int, boss: Any, **options: Any) -> list[Node]:
    """Start nodes that offer a singleton, and wait until it runs."""
    nodes = await fleet.start(count)
    for node in nodes:
        node.singleton("boss", boss, **options)
    await fleet.until(lambda: len(getattr(boss, "running", "?")) == 1, timeout=60)
    await fleet.until(lambda: len({node.singletons.where("boss") for node in nodes}) == 1)  # All have heard.
    return nodes


def home(nodes: list[Node]) -> Node:
    """Return the node that has the singleton."""
    (name,) = {node.singletons.where("boss") for node in nodes}
    return next(node for node in nodes if node.name == name)


def quorum(count: int) -> dict[str, Any]:
    return {"safety": Quorum(count, LEASE_S)}


async def test_one_of_the_nodes_runs_it_and_every_node_reaches_it(fleet: Fleet) -> None:
    boss = Boss()
    nodes = await offers(fleet, 3, boss)
    (other,) = await fleet.start(1)
    leader = home([*nodes, other])
    for node in (*nodes, other):
        assert await node.singletons.call("boss", "hi") == [leader.name, node.singletons.epoch("boss")]
        assert (await node.singletons.find("boss")).node == leader.name
        assert node.singletons.names() == ["boss"]
    assert boss.most == 1
    assert len(boss.began) == 1


async def test_a_decorator_offers_a_function(fleet: Fleet) -> None:
    (node,) = await fleet.start(1)
    began = []

    @node.singleton("boss", args=(7,))
    async def boss(process: Process, number: int) -> None:
        began.append(number)
        await process.receive()

    assert boss.__name__ == "boss"
    await fleet.until(lambda: began == [7])


async def test_it_does_not_begin_before_it_was_free_and_quiet_for_the_settle_time(fleet: Fleet) -> None:
    boss = Boss()
    (first,) = await fleet.start(1)
    began_at = fleet.now
    first.singleton("boss", boss, settle_s=5)
    await fleet.sleep(3)
    (second,) = await fleet.start(1)
    second.singleton("boss", boss, settle_s=5)
    joined_at = fleet.now
    await fleet.until(lambda: boss.running)
    assert fleet.now - began_at > 7
    assert fleet.now - joined_at == pytest.approx(5, abs=1)
    leader = home([first, second])
    (other,) = {first, second} - {leader}
    await fleet.crash(leader)
    lost_at = fleet.now
    await fleet.until(lambda: boss.running == [other.name], timeout=20)
    assert fleet.now - lost_at >= 5


@pytest.mark.parametrize("options", [{}, quorum(3)], ids=["available", "quorum"])
async def test_a_drain_hands_it_over_without_overlap(fleet: Fleet, options: dict[str, Any]) -> None:
    boss = Boss()
    boss.clean_up_s = 1.5
    nodes = await offers(fleet, 3, boss, **options)
    leader = home(nodes)
    report = await leader.drain(20)
    assert report.was_clean
    await fleet.until(lambda: len(boss.began) == 2 and boss.running)
    assert boss.most == 1
    assert boss.running != [leader.name]
    assert boss.began[1][1] > boss.began[0][1]
    leader.undrain()
    await fleet.sleep(20)
    assert len(boss.began) == 2


async def test_a_run_that_does_not_end_in_time_is_killed(fleet: Fleet) -> None:
    boss = Boss()
    boss.clean_up_s = 60
    nodes = await offers(fleet, 2, boss, end_s=2)
    leader, drained_at = home(nodes), fleet.now
    assert (await leader.drain(20)).was_clean
    assert 2 <= fleet.now - drained_at < 4
    await fleet.until(lambda: boss.running and boss.running != [leader.name])
    assert boss.most == 1


async def test_a_run_that_ignores_its_cancellation_stays_and_the_report_names_it(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    boss = Boss()
    boss.is_deaf = True
    nodes = await offers(fleet, 2, boss, end_s=1)
    leader = home(nodes)
    report = await leader.drain(10)
    assert report.unmoved == ("singleton:boss/run",)
    assert boss.running == [leader.name]
    assert "ignores its cancellation" in caplog.text
    leader.undrain()
    boss.is_deaf = False
    await fleet.until(lambda: len(boss.began) == 2 and boss.running)
    assert boss.most == 1
    assert home(nodes) is leader


async def test_nodes_that_are_replaced_one_after_the_other_move_it_once_for_each_at_most(
    fleet: Fleet,
) -> None:
    boss = Boss()
    nodes = await offers(fleet, 4, boss)
    for old in nodes:
        (new,) = await fleet.start(1)
        new.singleton("boss", boss)
        before, leader = len(boss.began), home([*fleet.nodes.values()])
        await fleet.stop(old)
        await fleet.until(lambda: len(boss.running) == 1)
        await fleet.sleep(5)
        assert len(boss.began) - before == (leader is old)
    assert boss.most == 1


async def test_a_newcomer_never_takes_it(fleet: Fleet) -> None:
    boss = Boss()
    nodes = await offers(fleet, 2, boss)
    for _ in range(4):
        (new,) = await fleet.start(1)
        new.singleton("boss", boss, settle_s=0)
        nodes.append(new)
    await fleet.sleep(30)
    assert len(boss.began) == 1


@pytest.mark.parametrize("options", [{}, quorum(3)], ids=["available", "quorum"])
async def test_it_begins_anew_with_pauses_and_higher_epochs(fleet: Fleet, options: dict[str, Any]) -> None:
    boss = Boss()
    nodes = await offers(fleet, 3, boss, backoff_s=(1.0, 4.0), max_restarts=5, **options)
    leader = home(nodes)
    boss.fails = 4
    with pytest.raises(Exception, match="because"):
        await nodes[0].singletons.call("boss", "die")
    await fleet.until(lambda: len(boss.began) == 6, timeout=20)
    pauses = [round(later - earlier) for earlier, later in pairwise(boss.times[1:])]
    assert pauses == [1, 2, 4, 4]
    epochs = [epoch for _, epoch in boss.began]
    assert epochs == sorted(set(epochs))
    assert {name for name, _ in boss.began} == {leader.name}
    assert await nodes[1].singletons.call("boss", "hi") == [leader.name, epochs[-1]]


@pytest.mark.parametrize("options", [{}, quorum(3)], ids=["available", "quorum"])
async def test_a_node_on_which_it_fails_again_and_again_gives_it_to_another_one(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    boss = Boss()
    nodes = await offers(fleet, 3, boss, **options)
    leader, began = home(nodes), len(boss.began)
    boss.fails_on = {leader.name}
    leader.exit(await leader.singletons.find("boss"), "kill")
    await fleet.until(lambda: boss.running not in ([], [leader.name]), timeout=20)
    failed = boss.began[began:-1]
    assert [name for name, _ in failed] == [leader.name] * 3, "the kill, and three restarts"
    assert boss.began[-1][1] > failed[-1][1]
    assert boss.most == 1
    assert "here it has ended more than 3 times within 60 s" in caplog.text
    await fleet.sleep(5)
    assert await leader.singletons.call("boss", "hi") == [home(nodes).name, boss.began[-1][1]]
    assert len(boss.began) == began + 4


async def test_what_fails_on_every_node_goes_round_with_pauses_and_is_never_without_one(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    boss = Boss()
    nodes = await offers(fleet, 2, boss)
    boss.fails_on = {node.name for node in nodes}
    leader, began_at = home(nodes), fleet.now
    leader.exit(await leader.singletons.find("boss"), "kill")
    free_s, looks = 0.0, 0
    while fleet.now < began_at + 300:
        await fleet.sleep(0.5)
        looks += 1
        free_s += 0.5 * (nodes[0].singletons.where("boss") is None)
    assert free_s == 0
    names = [name for name, _ in boss.began]
    moves = sum(earlier != later for earlier, later in pairwise(names))
    assert 3 <= moves <= 300 / run_restarts.STAND_BACK_S + 1
    assert 300 / 15 < len(names) < 60
    assert min(names.count(node.name) for node in nodes) > len(names) / 4
    said = caplog.text.count("no other node takes it")
    assert 1 <= said <= 300 / offering_module.STAYS_LOG_S + 1
    boss.fails_on.clear()
    await fleet.until(lambda: boss.running, timeout=20)
    assert boss.most == 1
    leader = home(nodes)
    assert (await leader.drain(20)).was_clean, "who has given up a moment ago takes it from one that leaves"


async def test_what_returns_is_never_given_up(fleet: Fleet) -> None:
    ran: list[str] = []

    async def boss(process: Process) -> None:
        ran.append(process.node.name)

    for node in await fleet.start(2):
        node.singleton("boss", boss, backoff_s=(0.1, 0.1), settle_s=0)
    await fleet.until(lambda: len(ran) > 20, timeout=30)
    assert len(set(ran)) == 1


@pytest.mark.parametrize("options", [{}, quorum(1)], ids=["available", "quorum"])
async def test_a_host_process_that_dies_is_started_anew_a_few_times(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    boss = Boss()
    boss.clean_up_s = 2.0
    (node,) = await offers(fleet, 1, boss, settle_s=0.5, **options)
    for count in range(1, kinds.MAX_RESTARTS + 2):
        here = offering(node)
        assert here is not None
        assert here.process is not None
        node.exit(here.process.pid, "kill")
        await fleet.until(lambda: offering(node) is not here)  # noqa: B023
        if count <= kinds.MAX_RESTARTS:
            await fleet.until(lambda: len(boss.began) == count + 1, timeout=30)  # noqa: B023
    assert boss.most == 1, "the next one waits for the clean-up of the former one"
    assert boss.began == sorted(set(boss.began), key=lambda run: run[1])
    assert "no other node has it" in caplog.text
    assert offering(node) is None
    await fleet.until(lambda: not boss.running)
    node.singleton("boss", boss)  # As a program may try again.
    await fleet.until(lambda: boss.running, timeout=30)


@pytest.mark.parametrize("options", [{}, quorum(3)], ids=["available", "quorum"])
async def test_after_a_crash_of_its_node_another_one_runs_it(fleet: Fleet, options: dict[str, Any]) -> None:
    boss = Boss()
    nodes = await offers(fleet, 3, boss, **options)
    leader = home(nodes)
    others = [node for node in nodes if node is not leader]
    assert await others[0].singletons.call("boss", "hi", 60)
    await fleet.crash(leader)
    await fleet.until(lambda: leader.name not in others[0].list())
    assert (await others[0].singletons.call("boss", "hi", 60))[0] in {node.name for node in others}
    assert boss.began[-1][1] > boss.began[0][1]


async def test_with_a_quorum_a_node_that_is_cut_off_stops_before_another_one_begins(fleet: Fleet) -> None:
    boss = Boss()
    nodes = await offers(fleet, 3, boss, **quorum(3))
    leader, cut_at = home(nodes), fleet.now
    process = leader._local.process(await leader.singletons.find("boss"))
    assert isinstance(process, Process)
    fleet.partition([leader])
    await fleet.until(lambda: not boss.running)
    assert fleet.now - cut_at <= LEASE_S
    with pytest.raises(NotOwner):
        process.epoch  # noqa: B018  # it raises
    await fleet.until(lambda: boss.running, timeout=60)
    assert boss.most == 1
    assert boss.running != [leader.name]
    fleet.heal()
    await fleet.sleep(20)
    assert len(boss.began) == 2


async def test_when_the_lease_is_over_the_epoch_cannot_be_read_even_before_the_run_is_killed(
    fleet: Fleet,
) -> None:
    boss = Boss()
    nodes = await offers(fleet, 3, boss, **quorum(3))
    leader = home(nodes)
    process = leader._local.process(await leader.singletons.find("boss"))
    assert isinstance(process, Process)
    here = offering(leader)
    assert here is not None
    assert here.majority is not None
    guard: Any = here.majority
    assert process.epoch == boss.began[0][1]
    guard._lease.until = fleet.now  # As in a process that has just thawed: no timer has run yet.
    assert boss.running
    with pytest.raises(NotOwner):
        process.epoch  # noqa: B018  # it raises


async def test_available_runs_on_both_sides_and_in_the_end_on_one(fleet: Fleet) -> None:
    boss = Boss()
    nodes = await offers(fleet, 3, boss)
    leader = home(nodes)
    fleet.partition([leader])
    await fleet.until(lambda: len(boss.running) == 2, timeout=60)
    fleet.heal()
    await fleet.until(lambda: len(boss.running) == 1, timeout=60)
    await fleet.sleep(5)
    assert boss.running == [leader.name]
    assert await nodes[1].singletons.call("boss", "hi") == [leader.name, nodes[2].singletons.epoch("boss")]
    assert nodes[1].singletons.epoch("boss") > max(epoch for _, epoch in boss.began)


async def test_supervised_children_belong_to_it_and_end_before_the_next_run(fleet: Fleet) -> None:
    alive: list[tuple[str, int]] = []
    most = 0

    async def worker(process: Process, number: int) -> None:
        nonlocal most
        alive.append((process.node.name, number))
        most = max(most, len(alive))
        assert process.epoch > 0
        try:
            await process.receive()
        finally:
            try:
                await asyncio.sleep(0.3)
            finally:
                alive.remove((process.node.name, number))

    tree = Supervisor([Child("one", worker, (1,)), Child("two", Supervisor([Child("in", worker, (2,))]))])
    nodes = await fleet.start(2)
    for node in nodes:
        node.singleton("boss", tree)
    await fleet.until(lambda: len(alive) == 2)
    leader = home(nodes)
    report = await leader.drain(20)
    assert report.was_clean
    await fleet.until(lambda: len(alive) == 2 and alive[0][0] != leader.name)
    assert most == 2
    (other,) = set(nodes) - {leader}
    await other.stop()
    assert not alive


async def test_a_lease_that_ends_kills_a_whole_tree_at_once(fleet: Fleet) -> None:
    alive: list[int] = []

    async def worker(process: Process, number: int) -> None:
        alive.append(number)
        process.trap_exit = True
        try:
            await asyncio.Event().wait()
        finally:
            alive.remove(number)

    nodes = await fleet.start(3)
    for node in nodes:
        node.singleton("boss", Supervisor([Child("one", worker, (1,))]), **quorum(3))
    await fleet.until(lambda: alive, timeout=60)
    await fleet.sleep(0.1)  # All have heard.
    leader, cut_at = home(nodes), fleet.now
    fleet.partition([leader])
    await fleet.until(lambda: not alive)
    assert fleet.now - cut_at <= LEASE_S


class Counter(Actor):
    """An actor as a singleton."""

    async def init(self) -> None:
        self.count = 0

    @handler
    async def add(self) -> int:
        self.count += 1
        return self.count


async def test_an_actor_can_be_one(fleet: Fleet) -> None:
    nodes = await fleet.start(2)
    for node in nodes:
        node.singleton("boss", Counter)
    ref = nodes[0].ref(Counter, await nodes[0].singletons.find("boss", 20))
    assert await ref.call(Counter.add) == 1


async def test_messages_wait_while_it_moves(fleet: Fleet) -> None:
    boss = Boss()
    boss.clean_up_s = 1.0
    nodes = await offers(fleet, 3, boss)
    leader = home(nodes)
    asker = next(node for node in nodes if node is not leader)
    await asker.singletons.call("boss", "hi")
    drain = asyncio.create_task(leader.drain(20))
    await fleet.sleep(0.1)
    answers = await asyncio.gather(*(asker.singletons.call("boss", "hi", 20) for _ in range(5)))
    assert {answer[0] for answer in answers} == set(boss.running)
    await drain
    with pytest.raises(NotOwner):
        await asker.singletons.call("nobody", "hi", 0.5)


async def test_a_message_reaches_it(fleet: Fleet) -> None:
    got = []

    async def boss(process: Process) -> None:
        while True:
            message = await process.receive()
            got.append(message)

    nodes = await fleet.start(2)
    for node in nodes:
        node.singleton("boss", boss)
    for node in nodes:
        await node.singletons.send("boss", node.name, 20)
    await fleet.until(lambda: sorted(got) == sorted(node.name for node in nodes))


async def test_a_node_withdraws_it(fleet: Fleet) -> None:
    boss = Boss()
    nodes = await offers(fleet, 2, boss)
    leader = home(nodes)
    (other,) = set(nodes) - {leader}
    assert await leader.singletons.withdraw("boss")
    assert not await leader.singletons.withdraw("boss")
    await fleet.until(lambda: boss.running == [other.name])
    assert boss.most == 1
    assert await other.singletons.withdraw("boss")
    assert not boss.running
    assert other.singletons.where("boss") is None
    leader.singleton("boss", boss)
    await fleet.until(lambda: boss.running == [leader.name])


async def test_a_killed_entity_leaves_no_second_run(fleet: Fleet) -> None:
    boss = Boss()
    (node,) = await offers(fleet, 1, boss)
    here = offering(node)
    assert here is not None
    for seat in list(here.seats.values()):
        node.exit(seat.process.pid, "kill")
    await fleet.until(lambda: len(boss.began) == 2)
    assert boss.most == 1
    assert boss.began[1][1] > boss.began[0][1]


async def test_the_end_of_the_entity_of_a_run_makes_its_pause_no_shorter(fleet: Fleet) -> None:
    boss = Boss()
    (node,) = await offers(fleet, 1, boss, backoff_s=(8.0, 8.0))
    node.exit(await node.singletons.find("boss"), "kill")
    await fleet.until(lambda: len(boss.began) == 2)
    node.exit(await node.singletons.find("boss"), "kill")
    await fleet.until(lambda: not boss.running)
    here, count = offering(node), len(boss.began)
    assert here is not None
    for seat in list(here.seats.values()):
        node.exit(seat.process.pid, "kill")
    await fleet.sleep(7)
    assert len(boss.began) == count
    await fleet.until(lambda: len(boss.began) == count + 1, timeout=3)


async def test_nodes_that_offer_it_with_another_safety_are_named(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = await fleet.start(2)
    one.singleton("boss", Boss())
    two.singleton("boss", Boss(), **quorum(3))
    await fleet.until(lambda: caplog.text.count("singleton:boss is not hosted alike on all nodes") == 2)
    (kind,) = one.entities.info()
    assert kind.disagreeing == {two.name: "safety Quorum(expected=3, lease_s=4)"}
    (kind,) = two.entities.info()
    assert kind.disagreeing == {one.name: "safety available"}


async def test_what_cannot_be_offered_is_refused(fleet: Fleet) -> None:
    (node,) = await fleet.start(1)
    node.singleton("boss", Boss())
    wrong: list[tuple[type[Exception], dict[str, Any]]] = [
        (ValueError, {"name": "boss"}),
        (ValueError, {"name": "cron:x"}),
        (ValueError, {"settle_s": -1}),
        (ValueError, {"backoff_s": (2.0, 1.0)}),
        (ValueError, {"max_restarts": -1}),
        (ValueError, {"period_s": 0.0}),
        (TypeError, {"safety": "both"}),
        (TypeError, {"function": 7}),
    ]
    for error, options in wrong:
        given = {"name": "other", "function": Boss(), **options}
        with pytest.raises(error):
            node.singleton(given.pop("name"), given.pop("function"), **given)
    await fleet.until(lambda: node.singletons.names() == ["boss"])
    pid = node.spawn(Counter)
    process = node._local.process(pid)
    assert isinstance(process, Process)
    with pytest.raises(RuntimeError, match="no singleton"):
        process.epoch  # noqa: B018  # it raises
    await node.stop()
    with pytest.raises(NodeStopped):
        node.singleton("late", Boss())


async def test_a_call_that_may_have_run_is_not_repeated(fleet: Fleet) -> None:
    asked = 0

    async def boss(process: Process) -> None:
        nonlocal asked
        async for _ in process.mailbox:
            asked += 1

    (node,) = await fleet.start(1)
    node.singleton("boss", boss)
    await node.singletons.find("boss", 20)
    with pytest.raises(CallTimeout):
        await node.singletons.call("boss", "hi", 2)
    assert asked == 1


def play(safety: Safety, first: int, *, faults: bool) -> None:
    run_worlds(lambda seed: LeaderWorld(seed, safety, faults=faults), range(first, first + SEEDS))


@pytest.mark.parametrize("first", most_are_long(range(0, 60, SEEDS), 1))
def test_without_faults_one_runs_at_a_time_and_epochs_grow(first: int) -> None:
    play("available", first, faults=False)


@pytest.mark.parametrize("first", most_are_long(range(0, 60, SEEDS), 1))
def test_with_a_quorum_one_runs_at_any_instant_and_epochs_grow_whatever_fails(first: int) -> None:
    play("quorum", first, faults=True)


@pytest.mark.parametrize("first", most_are_long(range(0, 60, SEEDS), 1))
def test_available_comes_to_one_run_in_the_end_whatever_fails(first: int) -> None:
    play("available", first, faults=True)
