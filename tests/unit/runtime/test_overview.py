"""`Node.overview` on simulated nodes: what is in it, what it costs, and nodes that do not answer."""

from __future__ import annotations

import asyncio
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from fleetlm import (
    Actor,
    Child,
    FleetError,
    HandlerEnded,
    MessageTooLarge,
    Node,
    NodeStopped,
    Pid,
    Process,
    Supervisor,
    handler,
)
from fleetlm.core.overview_shape import DOES_NOT_KNOW, LIMITS, LONGEST, UNREADABLE, rows_of
from fleetlm.node import parts_of
from fleetlm.runtime import overview as module, own_overview
from fleetlm.runtime.events import MAX_RECENT
from fleetlm.runtime.own_overview import AT_A_TIME, LOOKED_AT, OwnOverview
from fleetlm.runtime.requests import PeerRequests
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import A, B, Fleet, collector, simulated

Part = dict[str, Any]


async def idle(process: Process) -> None:
    await process.receive()


async def sleeps(process: Process, seconds: float = 1e6) -> None:
    await asyncio.sleep(seconds)


async def takes_and_sleeps(process: Process) -> None:
    async for _ in process.mailbox:
        await asyncio.sleep(1e6)


async def crash(process: Process) -> None:
    await process.receive()
    raise RuntimeError("crashed")


class Model(Actor):
    @handler
    async def slow(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @handler(concurrent=True)
    async def beside(self) -> None:
        await asyncio.sleep(1e6)

    async def handle_info(self, message: Any) -> None:
        await asyncio.sleep(1e6)


async def own(node: Node) -> Part:
    part = (await node.overview())["nodes"][node.name]
    assert isinstance(part, dict)
    return part


def shown(part: Part, name: str) -> Part:
    """The row of a process."""
    return next(row for row in part["processes"]["shown"] if row["name"] == name)


# What is in it.


@simulated
async def test_each_node_tells_of_itself_and_every_value_is_json(fleet: Fleet) -> None:
    one, two, three = await fleet.mesh(3)
    two.spawn(idle, name="printer")
    seen = await one.overview()
    assert json.loads(json.dumps(seen, allow_nan=False)) == seen
    assert seen["asked"] == one.name
    assert list(seen["nodes"]) == [one.name, two.name, three.name]
    part = seen["nodes"][two.name]
    assert part["name"] == two.name
    assert part["incarnation"] == two.incarnation
    assert part["state"] == "up"
    assert part["host"] == B
    assert part["version"]
    assert (part["cookie"], part["exposure_warning"]) == (False, None)
    assert part["dns"]["query"] == "fleet.test"
    assert [row["name"] for row in part["peers"]] == [one.name, three.name]
    assert part["processes"]["count"] == 1
    row = shown(part, "printer")
    assert (row["runs"], row["state"], row["mailbox"], row["serving"]) == ("idle", "waiting", 0, "")
    assert part["tables"]["sessions"] == 2
    assert part["left_out"] == {}


@simulated
async def test_a_session_shows_its_traffic_and_what_is_open(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    two.spawn(takes_and_sleeps, name="busy")
    calls = [asyncio.ensure_future(one.call(("busy", two.name), "x" * 1_000, 30)) for _ in range(3)]
    await asyncio.sleep(1)
    row = (await own(one))["peers"][0]
    assert row["name"] == two.name
    assert (row["state"], row["road"], row["ups"]) == ("up", "zmq", 1)
    assert row["up_s"] > 0
    assert row["outstanding"] == 3
    assert row["messages_sent"] >= 3
    assert row["bytes_sent"] > 3_000
    part = await own(two)
    assert part["peers"][0]["bytes_received"] > 3_000
    assert part["tables"]["served_calls"] in (3, 4), "one may be the look of the other node"
    assert (await own(one))["tables"]["open_calls"] == 3
    for call in calls:
        call.cancel()


@simulated
async def test_counters_only_grow_though_sessions_end(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    two.spawn(collector, [], name="sink")
    for _ in range(20):
        await one.send(("sink", two.name), "x" * 100)
    await asyncio.sleep(1)
    before = (await own(one))["counters"]
    assert before["messages_sent"] >= 20
    assert before["bytes_sent"] > 2_000
    one.disconnect(two.name)
    await asyncio.sleep(1)
    after = await own(one)
    assert after["tables"]["sessions"] == 0
    assert all(after["counters"][name] >= count for name, count in before.items())


@simulated
async def test_a_handler_is_shown_with_the_time_since_its_call_came(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    ref = await node.start_actor(Model, name="model")
    call = asyncio.ensure_future(ref.within(30).call(Model.slow, 20.0))
    await asyncio.sleep(5)
    row = shown(await own(node), "model")
    assert (row["serving"], row["state"], row["open_calls"]) == ("slow", "running", 1)
    assert row["serving_s"] == pytest.approx(5, abs=0.1)
    assert await call == "done"
    await asyncio.sleep(1)
    row = shown(await own(node), "model")
    assert (row["serving"], row["serving_s"], row["open_calls"]) == ("", 0.0, 0)


@simulated
async def test_the_time_of_a_cast_begins_when_somebody_looks(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    ref = await node.start_actor(Model, name="model")
    await ref.cast(Model.slow, 10.0)
    await asyncio.sleep(3)
    assert shown(await own(node), "model")["serving"] == "slow"
    await asyncio.sleep(4)
    assert shown(await own(node), "model")["serving_s"] == pytest.approx(4, abs=0.1)
    await ref.cast(Model.slow, 10.0)
    await asyncio.sleep(6)
    row = shown(await own(node), "model")
    assert row["serving"] == "slow", "the second one"
    assert row["serving_s"] == pytest.approx(0, abs=0.1)


@simulated
async def test_a_cast_is_named_while_handlers_are_measured(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    node.telemetry.listen({HandlerEnded: lambda *_: None})
    ref = await node.start_actor(Model, name="cast")
    info = await node.start_actor(Model, name="info")
    await ref.cast(Model.slow, 10.0)
    await node.send(info.target, "message")
    await asyncio.sleep(1)
    part = await own(node)
    assert (shown(part, "cast")["serving"], shown(part, "info")["serving"]) == ("slow", "handle_info")


@simulated
async def test_what_runs_beside_and_what_takes_plain_messages_is_named(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    ref = await node.start_actor(Model, name="beside")
    call = asyncio.ensure_future(ref.within(1e5).call(Model.beside))
    await node.start_actor(Model, name="info")
    await node.send("info", "plain")
    node.spawn(takes_and_sleeps, name="plain")
    node.send_nowait("plain", "x")
    await asyncio.sleep(2)
    part = await own(node)
    assert shown(part, "beside")["serving"] == "beside"
    assert shown(part, "info")["serving"] == "handle_info"
    assert shown(part, "plain")["serving"] == "", "it is no actor"
    call.cancel()


@simulated
async def test_a_process_that_waits_for_another_says_so(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    ref = await node.start_actor(Model, name="model")

    async def asks(process: Process) -> None:
        await ref.within(1e5).call(Model.slow, 1e6)

    node.spawn(asks, name="asks")
    await asyncio.sleep(7)
    part = await own(node)
    row = shown(part, "asks")
    assert row["waits_for"].startswith("reply from <")
    assert row["serving_s"] == pytest.approx(7, abs=0.1), "since it waits"
    assert part["stalled"], "Settings.stalled_after_s is over"


@simulated
async def test_supervisors_are_shown_as_trees_with_their_restarts(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    inner = Supervisor([Child("leaf", idle)])
    node.spawn(Supervisor([Child("worker", crash, register="worker"), Child("inner", inner)]), name="root")
    await asyncio.sleep(1)
    for _ in range(2):
        await node.send("worker", "crash")
        await asyncio.sleep(1)
    (root,) = (await own(node))["trees"]
    assert (root["name"], root["restarts"], root["restarted"]) == ("root", 0, 2)
    worker, below = root["children"]
    assert (worker["name"], worker["runs"], worker["restart"]) == ("worker", "crash", "permanent")
    assert (worker["restarts"], worker["state"]) == (2, "waiting")
    assert [row["name"] for row in rows_of([below])] == ["inner", "leaf"]
    assert node.supervisors()[Pid(node.name, node.incarnation, 1)][0].restarts == 2


@simulated
async def test_groups_names_and_events_are_those_of_the_whole_cluster(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    pid = two.spawn(idle)
    two.groups.join("models", pid)
    two.groups.join("models", pid)

    async def leader(process: Process) -> None:
        await two.registry.register("leader", process.pid)
        await process.receive()

    holder = two.spawn(leader)
    await asyncio.sleep(1)
    await two.drain(1.0)
    await fleet.crash(two)
    await asyncio.sleep(0)
    part = await own(one)
    assert part["groups"] == {"models": {"members": [str(pid)], "count": 1}}
    assert part["names"] == {"leader": str(holder)}
    await asyncio.sleep(60)
    part = await own(one)
    assert (part["groups"], part["names"]) == ({}, {})
    assert [(event["kind"], event["text"].partition(":")[0]) for event in part["events"]] == [
        ("NodeUp", two.name), ("NodeDraining", f"{two.name}, asked by api"), ("NodeDown", two.name),
    ]  # fmt: skip
    times = [event["wall_ms"] for event in part["events"]]
    assert times == sorted(times)


@simulated
async def test_a_node_that_drains_says_so(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    await two.drain(0.0)
    await asyncio.sleep(1)
    seen = await one.overview()
    assert seen["nodes"][two.name]["state"] == "draining"
    assert seen["nodes"][one.name]["peers"][0]["state"] == "draining"


@simulated
async def test_a_process_for_its_own_node_only_is_not_told_to_others(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    two.spawn(Supervisor([Child("safe", idle, local=True)]), name="vault", local=True)
    two.spawn(idle, name="open")
    await asyncio.sleep(1)
    theirs = (await one.overview())["nodes"][two.name]
    assert [row["name"] for row in theirs["processes"]["shown"]] == ["open"]
    assert theirs["trees"] == []
    mine = await own(two)
    assert {row["name"] for row in mine["processes"]["shown"]} == {"vault", "", "open"}
    assert [row["name"] for row in rows_of(mine["trees"])] == ["vault", "safe"]


@simulated
async def test_a_node_that_lets_peers_do_nothing_may_be_looked_at(fleet: Fleet) -> None:
    one = await fleet.start(A, B)
    two = await fleet.start(B, A, peers_may=frozenset())
    await two.ready(1, timeout=30)
    assert (await one.overview())["nodes"][two.name]["state"] == "up"


# Nodes that do not answer.


@simulated
async def test_a_node_that_is_gone_is_there_with_the_reason(fleet: Fleet) -> None:
    one, two, three = await fleet.mesh(3)
    await fleet.crash(two)
    await asyncio.sleep(60)
    seen = (await one.overview())["nodes"]
    assert seen[two.name]["error"].startswith("it is not connected: ")
    assert seen[two.name]["state"] in ("down", "connecting")
    assert "error" not in seen[three.name]


@simulated
async def test_a_node_of_an_older_version_does_not_know_the_question(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)

    def asked(self: PeerRequests, session: Any, verb: str, argument: Any, call: Any) -> None:
        original(self, session, "gauges" if verb == "overview" else verb, argument, call)

    original = PeerRequests.asked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PeerRequests, "asked", asked)
        seen = (await one.overview())["nodes"]
    assert seen[two.name] == {"name": two.name, "error": DOES_NOT_KNOW, "state": "up"}


@simulated
async def test_an_answer_that_is_no_part_is_shown_as_an_error(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(parts_of(two)), "asked_for_overview", lambda _, __, call: call.reply("nonsense"))
        seen = (await one.overview())["nodes"]
    assert seen[two.name]["error"] == UNREADABLE


@simulated
async def test_a_node_that_hangs_delays_nobody_and_is_asked_once(fleet: Fleet) -> None:
    one, two, three = await fleet.mesh(3)
    asked: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_of(two), "asked_for_overview", lambda _, call: asked.append(call))
        clock: SimLoop = fleet.loop
        began = clock.time()
        seen = (await one.overview(timeout=1.0))["nodes"]
        assert clock.time() - began == pytest.approx(1.0, abs=0.05)
        assert seen[two.name]["error"] == "it did not answer within 1 s"
        assert "error" not in seen[three.name]
        await asyncio.gather(*(one.overview(timeout=0.5) for _ in range(5)))
        assert len(asked) == 1, "one request is on its way"
        await asyncio.sleep(module.ASK_S)
    assert "error" not in (await one.overview())["nodes"][two.name]


@simulated
async def test_a_stop_ends_every_look(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_of(two), "asked_for_overview", lambda *_: None)
        look = asyncio.ensure_future(one.overview(timeout=50))
        await asyncio.sleep(1)
        await one.stop(drain_s=0)
        with pytest.raises(NodeStopped):
            await look
    with pytest.raises(NodeStopped):
        await one.overview()


@simulated
async def test_a_stop_ends_what_is_being_made(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    refused: list[FleetError] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_overview, "AT_A_TIME", 1)
        for _ in range(50):
            one.spawn(idle)
        look = asyncio.ensure_future(one.overview())
        await asyncio.sleep(0)
        call = SimpleNamespace(fail=refused.append)
        parts_of(one).overview.answer(2, call)  # type: ignore[arg-type]  # as a peer that asks
        parts_of(one).close_overview()
        with pytest.raises(NodeStopped):
            await look
    assert [type(error) for error in refused] == [NodeStopped]
    assert "error" not in (await two.overview())["nodes"][two.name]


@simulated
async def test_a_fault_while_a_part_is_made_leaves_nobody_waiting(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)

    def fail(*_: Any) -> Part:
        raise RuntimeError("a fault")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OwnOverview, "_make", fail)
        async with asyncio.timeout(10):
            seen = (await one.overview())["nodes"]
    assert seen[one.name] == {
        "name": one.name, "error": "it cannot tell of itself: RuntimeError", "state": "up",
    }  # fmt: skip
    assert seen[two.name]["error"] == UNREADABLE
    await asyncio.sleep(1)
    assert all("error" not in part for part in (await one.overview())["nodes"].values())


@simulated
async def test_an_answer_that_cannot_be_sent_harms_nobody(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)

    def too_large(value: Any) -> None:
        raise MessageTooLarge(5, 4)

    parts_of(node).overview.answer("many", SimpleNamespace(reply=too_large))  # type: ignore[arg-type]
    assert (await own(node))["state"] == "up"


@simulated
async def test_the_busiest_of_many_busy_processes_are_shown(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_overview, "AT_A_TIME", 40)
        for number in range(200):
            node.spawn(takes_and_sleeps, name=f"p{number}")
        await asyncio.sleep(1)
        for number in range(200):
            for _ in range(number % 50 + 1):
                node.send_nowait(f"p{number}", "x")
        await asyncio.sleep(1)
        part = await own(node)
    lengths = [row["mailbox"] for row in part["processes"]["shown"]]
    assert len(lengths) == LIMITS["processes"]
    assert lengths[:LONGEST] == sorted((n % 50 for n in range(200)), reverse=True)[:LONGEST]


@simulated
async def test_more_trees_than_are_shown_are_counted(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LIMITS, "trees", 5)
        pids = [node.spawn(Supervisor([Child("only", idle)])) for _ in range(7)]
        await asyncio.sleep(1)
        part = await own(node)
        assert (len(part["trees"]), part["left_out"]["trees"]) == (5, 7)
        node.exit(pids[0], "kill")
        await asyncio.sleep(1)
        assert len((await own(node))["trees"]) == 5
        assert (await own(node))["left_out"]["trees"] == 6


@simulated
async def test_a_caller_that_gives_up_leaves_nothing_behind(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await one.overview()
    assert "error" not in (await one.overview())["nodes"][two.name]


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_a_time_that_is_none_is_refused(timeout: float) -> None:
    @simulated
    async def refused(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1)
        with pytest.raises(ValueError, match=r"timeout is .*, not a number of seconds above 0"):
            await node.overview(timeout)

    refused()


# What it costs.


@simulated
async def test_many_watchers_cost_what_one_costs(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    made: list[str] = []
    original = OwnOverview.steps

    def steps(self: OwnOverview) -> Any:
        made.append(self._node.context.name)
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OwnOverview, "steps", steps)
        seen = await asyncio.gather(
            *(one.overview() for _ in range(20)), *(two.overview() for _ in range(20))
        )
        assert sorted(made) == [one.name, two.name]
        assert len({id(each["nodes"][two.name]) for each in seen[:20]}) == 1
        await asyncio.sleep(module.KEPT_S + 0.1)
        await one.overview()
        assert sorted(made) == [one.name, one.name, two.name, two.name]


@simulated
async def test_what_nobody_looks_at_is_dropped(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    await one.overview()
    await asyncio.sleep(module.FORGET_S - 1)
    await one.overview()
    held = [parts_of(node).overview for node in (one, two)]
    await asyncio.sleep(module.FORGET_S - 1)
    assert all(each._own._kept is not None for each in held)
    assert held[0]._peers
    await asyncio.sleep(2)
    assert all(each._own._kept is None and not each._own._cut and not each._peers for each in held)


@simulated
async def test_what_a_node_told_is_dropped_with_its_session_though_somebody_looks(fleet: Fleet) -> None:
    one, two, three = await fleet.mesh(3)
    await one.overview()
    assert set(parts_of(one).overview._peers) == {two.name, three.name}
    await two.stop(drain_s=0)
    for _ in range(4):
        await asyncio.sleep(module.FORGET_S / 2)
        await one.overview()
    assert set(parts_of(one).overview._peers) == {three.name}


@simulated
async def test_of_very_many_processes_some_are_looked_at_each_time(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_overview, "LOOKED_AT", 100)
        patch.setattr(own_overview, "AT_A_TIME", 10)
        for number in range(1_000):
            node.spawn(idle, name=f"p{number}")
        node.spawn(takes_and_sleeps, name="last")
        await asyncio.sleep(1)
        for _ in range(5):
            node.send_nowait("last", "x")
        await asyncio.sleep(1)
        part = await own(node)
        assert part["processes"]["count"] == 1_001
        assert part["left_out"]["processes not looked at"] == 901
        assert len(part["processes"]["shown"]) == LIMITS["processes"]
        for _ in range(10):
            await asyncio.sleep(1)
            part = await own(node)
        assert part["processes"]["shown"][0]["name"] == "last"
        for _ in range(15):  # It stays, wherever the look is by now.
            await asyncio.sleep(1)
            assert (await own(node))["processes"]["shown"][0]["mailbox"] == 4


@simulated
async def test_the_loop_goes_on_between_the_steps(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_overview, "AT_A_TIME", 10)
        pids = [node.spawn(idle) for _ in range(200)]
        await asyncio.sleep(1)
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1
                node.exit(pids.pop())  # Processes may end meanwhile.

        counter = asyncio.ensure_future(count())
        part = await own(node)
        counter.cancel()
    assert turns >= 10
    assert all(int(row["pid"].split()[-1][:-1]) <= 200 for row in part["processes"]["shown"])


@simulated
async def test_the_largest_of_everything_is_cut_and_counted(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    children = [Child(f"c{number}", idle) for number in range(300)]
    node.spawn(Supervisor(children), name="large")
    node.spawn(Supervisor([Child("only", idle)]), name="small")
    pid = node.spawn(idle)
    for number in range(150):
        node.groups.join(f"g{number:03}", pid)
    await asyncio.sleep(5)
    part = await own(node)
    rows = list(rows_of(part["trees"]))
    assert len(rows) <= LIMITS["trees"]
    assert [row["name"] for row in part["trees"]] == ["large", "small"]
    assert [row["name"] for row in part["trees"][1]["children"]] == ["only"]
    assert part["left_out"]["trees"] == 303 - len(rows)
    assert list(part["groups"]) == [f"g{number:03}" for number in range(100)]
    assert part["left_out"]["groups"] == 50
    assert part["left_out"]["processes"] == 304 - LIMITS["processes"]
    assert len(part["processes"]["shown"]) == LIMITS["processes"]


@simulated
async def test_a_tree_is_shown_to_a_depth_that_can_travel(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    tree = Supervisor([Child("leaf", idle)])
    for number in range(30):
        tree = Supervisor([Child(f"level{number}", tree)])
    two.spawn(tree, name="deep")
    await asyncio.sleep(5)
    part = (await one.overview())["nodes"][two.name]
    assert 10 < len(list(rows_of(part["trees"]))) <= 32
    assert part["left_out"]["trees"] > 0


@simulated
async def test_reasons_of_other_nodes_are_safe_to_show(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    await two.stop("\x1b[2J", drain_s=0)
    await asyncio.sleep(1)
    part = await own(one)
    assert [event["kind"] for event in part["events"]] == ["NodeUp", "NodeDraining", "NodeDown"]
    assert "[2J" in part["events"][-1]["text"]
    assert all(event["text"].isprintable() for event in part["events"])
    assert part["peers"][0]["last_error"].isprintable()


@simulated
async def test_a_node_at_which_nobody_looks_makes_nothing(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    await asyncio.sleep(60)
    assert "overview" not in vars(parts_of(one))
    await one.stop(drain_s=0)
    with pytest.raises(NodeStopped):
        await one.overview()
    assert "overview" not in vars(parts_of(two))


def test_the_limits_fit_each_other() -> None:
    assert LIMITS["events"] == MAX_RECENT
    assert LOOKED_AT % AT_A_TIME == 0
    assert module.KEPT_S < module.ASK_S <= module.MAX_TIMEOUT_S
