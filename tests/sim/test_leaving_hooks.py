"""Hooks of a node that leaves, and actors that hand over, on virtual time."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from fleetlm import (
    Actor,
    Child,
    DrainReport,
    Node,
    NodeDraining,
    NodeUndrained,
    OutcomeUnknown,
    Process,
    Supervisor,
    handler,
)
from fleetlm.testing import Fleet


class Told:
    """Notes what happened when."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.lines: list[str] = []

    def say(self, what: str) -> None:
        self.lines.append(what)

    async def slowly(self, what: str, seconds: float = 1.0) -> None:
        self.lines.append(what)
        await self._fleet.sleep(seconds)


class Slow(Actor):
    @handler(concurrent=True)
    async def work(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"


def hooked(node: Node, told: Told) -> None:
    for phase in ("before_drain", "after_drain", "before_stop", "after_undrain"):
        node.on_leaving(functools.partial(told.slowly, phase), phase=phase)


async def test_the_phases_of_a_stop_in_their_order(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    told = Told(fleet)
    hooked(two, told)

    @two.on_leaving(phase="before_drain")
    async def still_serves() -> None:
        assert not two.is_draining
        assert one.list("draining") == []
        assert await one.ref(Slow, "slow", at=two.name).call(Slow.work, 0.1) == "done"
        assert (await two.readiness()).reasons == ("it is about to drain",)
        told.say("served before")

    @two.on_leaving(phase="after_drain")
    async def processes_run() -> None:
        assert two.is_draining
        assert await two.whereis("slow") is not None

    @two.on_leaving(phase="before_stop")
    async def can_still_call() -> None:
        assert two.processes() == []
        assert await two.ref(Slow, "slow", at=one.name).call(Slow.work, 0.1) == "done"
        told.say("called one")

    for node in (one, two):
        await node.start_actor(Slow, name="slow")
    call = asyncio.create_task(one.ref(Slow, "slow", at=two.name).within(60).call(Slow.work, 5.0))
    await fleet.sleep(0.1)
    await two.stop()
    assert await call == "done"
    assert told.lines == ["before_drain", "served before", "after_drain", "before_stop", "called one"]
    assert two.drain_report is not None
    assert two.drain_report.was_clean


async def test_each_hook_runs_once_for_a_drain_and_its_stop(fleet: Fleet) -> None:
    (node,) = await fleet.start(1)
    told = Told(fleet)
    hooked(node, told)
    reports = await asyncio.gather(node.drain(10), node.drain(20))
    assert all(report.was_clean for report in reports)
    assert told.lines == ["before_drain", "after_drain"]
    await node.stop()
    assert told.lines == ["before_drain", "after_drain", "before_stop"]


async def test_a_drain_that_is_undone_runs_its_own_hooks_and_the_next_one_all_again(fleet: Fleet) -> None:
    (node,) = await fleet.start(1)
    told = Told(fleet)
    hooked(node, told)
    await node.drain(10)
    assert not (await node.readiness()).is_ready
    assert node.undrain()
    assert (await node.readiness()).is_ready
    assert not node.undrain()
    await fleet.sleep(2)
    assert told.lines == ["before_drain", "after_drain", "after_undrain"]
    await node.drain(10)
    assert told.lines[3:] == ["before_drain", "after_drain"]


async def test_a_drain_is_undone_while_its_first_hooks_run(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    told = Told(fleet)
    hooked(two, told)
    drain = asyncio.create_task(two.drain(10, "oops"))
    await fleet.sleep(0.5)
    assert two.undrain()
    report = await drain
    assert (report.was_undone, report.was_clean, report.reason) == (True, False, "oops")
    assert one.list("draining") == []
    await fleet.sleep(2)
    assert told.lines == ["before_drain", "after_undrain"]
    assert not two.is_draining


async def test_a_caller_that_is_cancelled_does_not_take_the_drain_back(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    told = Told(fleet)
    hooked(two, told)
    drain = asyncio.create_task(two.drain(10))
    await fleet.sleep(0.5)
    drain.cancel()
    await fleet.sleep(3)
    assert one.list("draining") == [two.name]
    assert told.lines == ["before_drain", "after_drain"]


@pytest.mark.parametrize("drain_s", [0.0, 3.0, 20.0])
async def test_whatever_hangs_a_leave_has_an_end_that_can_be_computed(fleet: Fleet, drain_s: float) -> None:
    """The rule of docs/leaving.md: the drain, 5 s for trees, and 5 s for each of the two later phases."""
    one, two = await fleet.start(2)
    for phase in ("before_drain", "after_drain", "before_stop"):
        two.on_leaving(functools.partial(asyncio.sleep, 1_000), phase=phase, timeout=900)

    async def stubborn(process: Process) -> None:
        process.trap_exit = True
        while True:
            await process.receive()

    two.spawn(Supervisor([Child("s", stubborn, shutdown_s=600)]))
    await two.start_actor(Slow, name="slow")
    call = asyncio.create_task(one.ref(Slow, "slow", at=two.name).within(600).call(Slow.work, 500.0))
    await fleet.sleep(0.1)
    began = fleet.now
    await two.stop(drain_s=drain_s)
    late_s = min(5.0, drain_s)
    assert drain_s + 3 * late_s <= fleet.now - began < drain_s + 3 * late_s + 2
    with pytest.raises(OutcomeUnknown):
        await call


# ── handing over ─────────────────────────────────────────────────────────────────────────────────


class Keeper(Actor):
    """Holds something, and takes it to another node."""

    def __init__(self, kept: list[str] | None = None, seconds: float = 0.0) -> None:
        self.kept = kept or []
        self.seconds = seconds

    async def init(self) -> None:
        self.node.groups.join("keepers", self.pid)

    @handler
    async def keep(self, what: str) -> list[str]:
        self.kept.append(what)
        await asyncio.sleep(0.5)
        return self.kept

    async def on_drain(self, until: float) -> None:
        assert until > asyncio.get_running_loop().time()
        await asyncio.sleep(self.seconds)
        await self.node.spawn_at(self.node.list()[0], "keeper", self.kept)
        self.node.groups.leave("keepers", self.pid)

    async def on_undrain(self) -> None:
        self.kept.append("back")


async def keeper_of(fleet: Fleet, seconds: float = 0.0) -> tuple[Node, Node, Any]:
    one, two = await fleet.start(2)
    for node in (one, two):
        node.factories.register("keeper", Keeper)
    await two.start_actor(Keeper, ["a"], seconds)
    await fleet.until(lambda: len(one.groups.members("keepers")) == 1)
    return one, two, one.ref(Keeper, lambda: one.groups.pick("keepers"))


async def test_an_actor_hands_its_state_over_between_two_requests(fleet: Fleet) -> None:
    one, two, ref = await keeper_of(fleet)
    call = asyncio.create_task(ref.call(Keeper.keep, "b"))
    await fleet.sleep(0.1)
    await two.stop()
    assert await call == ["a", "b"]
    assert [pid.node for pid in one.groups.members("keepers")] == [one.name]
    assert await ref.call(Keeper.keep, "c") == ["a", "b", "c"], "what it held when it was not working"


async def test_a_drain_waits_for_actors_that_hand_over_and_says_which_did_not_in_time(fleet: Fleet) -> None:
    _, two, _ = await keeper_of(fleet, seconds=3.0)
    began = fleet.now
    report = await two.drain(10)
    assert 3.0 <= fleet.now - began < 4.0
    assert report.was_clean
    two.undrain()
    report = await two.drain(1.0)
    assert (report.cut, "Keeper" in str(report)) == (1, True), report


async def test_a_supervised_actor_is_told_once_and_what_it_raises_does_not_end_it(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Actor):
        async def on_drain(self, until: float) -> None:
            raise LookupError("no other node")

        @handler
        async def alive(self) -> bool:
            return True

    (node,) = await fleet.start(1)
    node.spawn(Supervisor([Child("broken", Broken, register="broken")]))
    await fleet.sleep(0.1)
    first = await node.whereis("broken")
    assert (await node.drain(5)).was_clean
    assert await node.whereis("broken") == first
    assert node.undrain()
    assert await node.ref(Broken, "broken").call(Broken.alive)
    assert caplog.text.count("LookupError: no other node") == 1
    assert "handler on_drain of broken" in caplog.text


async def test_an_actor_takes_back_what_it_did_when_the_drain_is_undone(fleet: Fleet) -> None:
    _, two, _ = await keeper_of(fleet)
    (pid,) = two.groups.local_members("keepers")
    await two.drain(5)
    two.undrain()
    await fleet.sleep(0.1)
    assert await two.ref(Keeper, pid).call(Keeper.keep, "c") == ["a", "back", "c"]


async def test_without_any_time_no_actor_begins_to_hand_over(fleet: Fleet) -> None:
    one, two, _ = await keeper_of(fleet)
    await two.stop(drain_s=0)
    await fleet.sleep(1)
    assert one.groups.members("keepers") == []


async def test_a_plain_process_hears_of_drains_if_it_asks(fleet: Fleet) -> None:
    (node,) = await fleet.start(1)
    heard: list[Any] = []

    async def listen(process: Process, on: bool) -> None:
        process.trap_drain = on
        assert process.trap_drain is on
        while True:
            heard.append(await process.receive())

    node.spawn(listen, True)
    node.spawn(listen, False)
    await fleet.sleep(0.1)
    until = fleet.now + 5
    await node.drain(5)
    node.undrain()
    await fleet.sleep(0.1)
    assert heard == [NodeDraining(node.name, until, "api"), NodeUndrained(node.name)]
    await node.drain(5)
    assert isinstance(node.drain_report, DrainReport)
