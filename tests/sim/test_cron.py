"""Cron jobs on whole nodes: each slot once in the cluster, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from fleetlm import CronSlot, Node, Process, Quorum
from fleetlm.core.cron_slots import AHEAD_MS, SlotMemory
from fleetlm.core.shard_ranking import factor_of, score
from fleetlm.leaders.slots import SlotTeller
from fleetlm.testing import Fleet


class Job:
    """What the runs of a cron job were."""

    def __init__(self) -> None:
        self.slots: list[CronSlot] = []
        self.takes_s = 0.0
        self.ended = 0

    async def __call__(self, slot: CronSlot) -> None:
        """Run once."""
        self.slots.append(slot)
        await asyncio.sleep(self.takes_s)
        self.ended += 1

    @property
    def times(self) -> list[int]:
        """The slots in seconds since the first one."""
        return [round((slot.at - self.slots[0].at).total_seconds()) for slot in self.slots]


def offered(node: Node) -> Any:
    """Return the job on a node."""
    return node.singletons._offering("cron:job")


async def declare(
    fleet: Fleet, count: int, job: Any, schedule: str | float = 10, **options: Any
) -> list[Node]:
    """Start nodes that declare a job, and wait until one of them has it."""
    nodes = await fleet.start(count)
    for node in nodes:
        node.cron("job", schedule, job, **options)
    await fleet.until(lambda: all(node.singletons.where("cron:job") for node in nodes), timeout=90)
    return nodes


def home(nodes: list[Node]) -> Node:
    """Return the node that runs the job."""
    (name,) = {node.singletons.where("cron:job") for node in nodes}
    return next(node for node in nodes if node.name == name)


def move_clock(nodes: list[Node], seconds: float) -> None:
    for node in nodes:
        node._parts._wall_ms += int(seconds * 1000)


async def test_each_slot_runs_once_in_the_cluster(fleet: Fleet) -> None:
    job = Job()
    nodes = await declare(fleet, 3, job)
    await fleet.sleep(65)
    assert job.times == [0, 10, 20, 30, 40, 50]
    assert {slot.epoch for slot in job.slots} == {nodes[0].singletons.epoch("cron:job")}
    assert all(slot.late_s < 0.2 and slot.name == "job" for slot in job.slots)
    assert all(slot.at.timestamp() % 10 == 0 for slot in job.slots)


async def test_an_expression_in_a_time_zone(fleet: Fleet) -> None:
    job = Job()
    await declare(fleet, 1, job, "*/2 * * * *", tz="Europe/Berlin")
    await fleet.sleep(240)
    assert job.times == [0, 120]
    assert job.slots[0].at.minute % 2 == 0
    assert str(job.slots[0].at.tzinfo) == "Europe/Berlin"


async def test_through_a_rolling_restart_no_slot_is_lost_and_none_runs_twice(fleet: Fleet) -> None:
    job = Job()
    nodes = await declare(fleet, 3, job)
    await fleet.until(lambda: job.slots, timeout=30)
    for old in nodes:
        (new,) = await fleet.start(1)
        new.cron("job", 10, job)
        await fleet.sleep(7)
        await fleet.stop(old)
        await fleet.sleep(16)
    assert job.times == list(range(0, 10 * len(job.slots), 10))
    assert len(job.slots) >= 7


@pytest.mark.parametrize(
    ("missed", "options"),
    [("once", {}), ("skip", {}), ("once", {"safety": Quorum(3, 4.0)})],
    ids=["once", "skip", "once with a quorum"],
)
async def test_slots_that_were_missed_while_no_node_ran_the_job(
    fleet: Fleet, missed: Any, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    job = Job()
    nodes = await declare(fleet, 3, job, 5, missed=missed, settle_s=11, **options)
    await fleet.until(lambda: len(job.slots) == 2, timeout=90)
    leader = home(nodes)
    await fleet.crash(leader)
    crashed_at = fleet.now
    await fleet.until(lambda: len(job.slots) == 4, timeout=90)
    times, gap = job.times, job.times[2] - job.times[1]
    assert gap >= 10
    assert times == sorted(set(times))
    late_s = job.slots[2].late_s
    assert late_s <= 5
    assert "have not run" in caplog.text or "no slot from" in caplog.text
    assert fleet.now > crashed_at


async def test_the_last_of_them_runs_at_once_however_late(fleet: Fleet) -> None:
    job = Job()
    nodes = await declare(fleet, 2, job, 60, settle_s=20)
    await fleet.until(lambda: job.slots, timeout=70)
    await fleet.sleep(55)
    await fleet.crash(home(nodes))
    await fleet.until(lambda: len(job.slots) == 2, timeout=40)
    assert job.times == [0, 60]
    assert 14 < job.slots[1].late_s < 25


async def test_a_slot_that_its_leader_had_begun_is_not_run_again_after_its_loss(fleet: Fleet) -> None:
    job = Job()
    job.takes_s = 100
    nodes = await declare(fleet, 2, job, 60)
    await fleet.until(lambda: job.slots, timeout=70)
    await fleet.crash(home(nodes))
    await fleet.sleep(50)
    assert len(job.slots) == 1
    await fleet.sleep(20)
    assert job.times == [0, 60]


@pytest.mark.parametrize(("missed", "times"), [("once", [0, 20, 50]), ("skip", [0, 30, 60])])
async def test_one_run_at_a_time_and_what_is_due_meanwhile_counts_as_missed(
    fleet: Fleet, missed: Any, times: list[int]
) -> None:
    job = Job()
    job.takes_s = 26
    await declare(fleet, 1, job, missed=missed)
    await fleet.until(lambda: len(job.slots) == 3, timeout=120)
    assert job.times == times


async def test_what_it_raises_is_logged_once_and_the_next_slot_runs(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    ran = []

    async def fails(slot: CronSlot) -> None:
        ran.append(slot)
        if len(ran) == 3:
            raise asyncio.CancelledError
        raise ValueError("no")

    await declare(fleet, 1, fails)
    with caplog.at_level(logging.WARNING):
        await fleet.until(lambda: len(ran) == 5, timeout=60)
    assert caplog.text.count("ValueError: no") == 1
    assert "CancelledError" in caplog.text


async def test_a_process_can_get_the_slots(fleet: Fleet) -> None:
    got: list[Any] = []

    async def cleaner(process: Process) -> None:
        while True:
            message = await process.receive()
            got.append((process.node.name, message))

    nodes = await fleet.start(2)
    pid = nodes[0].spawn(cleaner, name="cleaner")
    nodes[1].cron("by pid", 10, pid)
    nodes[1].cron("by address", 10, ("cleaner", nodes[0].name))
    await fleet.until(lambda: len(got) == 2, timeout=30)
    assert {slot.name for _, slot in got} == {"by pid", "by address"}
    assert all(type(slot) is CronSlot for _, slot in got)


async def test_a_clock_that_jumps_forward_runs_the_last_slot_once(fleet: Fleet) -> None:
    job = Job()
    nodes = await declare(fleet, 1, job, 60)
    await fleet.until(lambda: job.slots, timeout=70)
    await fleet.sleep(1)
    move_clock(nodes, 605)
    await fleet.sleep(6)
    assert job.times == [0, 600]
    assert 0 < job.slots[1].late_s < 15
    await fleet.sleep(60)
    assert job.times == [0, 600, 660]


async def test_a_clock_that_jumps_back_repeats_no_slot(fleet: Fleet) -> None:
    job = Job()
    nodes = await declare(fleet, 2, job)
    await fleet.until(lambda: len(job.slots) == 3, timeout=60)
    move_clock(nodes, -25)
    await fleet.sleep(40)
    assert job.times == [0, 10, 20, 30]


async def test_a_clock_that_was_years_ahead_does_not_stop_the_job(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job()
    nodes = await declare(fleet, 2, job)
    await fleet.until(lambda: job.slots, timeout=60)
    move_clock(nodes, 2 * AHEAD_MS / 1000)
    await fleet.until(lambda: len(job.slots) == 2, timeout=60)
    move_clock(nodes, -2 * AHEAD_MS / 1000)
    await fleet.until(lambda: len(job.slots) == 4, timeout=60)
    assert "a clock was wrong" in caplog.text
    await home(nodes).drain(10)
    await fleet.until(lambda: len(job.slots) == 6, timeout=60)
    assert job.times[2:] == sorted(set(job.times[2:]))


async def test_with_a_quorum_a_slot_waits_until_a_majority_knows_of_it(fleet: Fleet) -> None:
    job = Job()
    nodes = await declare(fleet, 3, job, safety=Quorum(3, 8.0))
    await fleet.until(lambda: job.slots, timeout=60)
    leader = home(nodes)
    others = [node for node in nodes if node is not leader]
    await fleet.sleep(5)
    for node in others:
        fleet.stall(node)
    count = len(job.slots)
    await fleet.sleep(6)
    assert len(job.slots) == count
    for node in others:
        fleet.unstall(node)
    await fleet.until(lambda: len(job.slots) >= count + 2, timeout=60)
    assert job.times == sorted(set(job.times))


async def test_the_others_know_of_a_slot_before_it_begins(fleet: Fleet) -> None:
    known: list[bool] = []
    nodes: list[Node] = []

    async def look(slot: CronSlot) -> None:
        memories = [offered(node).plan.memory for node in nodes]
        settled = [memory.settled_ms for memory in memories if memory is not None]
        known.append(settled == [int(slot.at.timestamp() * 1000)] * 3)

    nodes += await declare(fleet, 3, look)
    await fleet.until(lambda: len(known) == 2, timeout=60)
    assert all(known)


async def newcomers(fleet: Fleet, job: Job, clock_s: float) -> tuple[Node, Node]:
    """Return a node that is to be lost after the first slot, and the newcomer that leads after it."""
    (first,) = await declare(fleet, 1, job, 60, settle_s=8)
    (standby,) = await fleet.start(1)
    standby.cron("job", 60, job)
    await fleet.until(lambda: job.slots, timeout=70)
    factor = factor_of("singleton:cron:job", 0)
    ips = [f"10.0.1.{number}" for number in range(1, 100)]
    ip = max(ips, key=lambda ip: score(factor, f"fleetlm@{ip}"))
    new = await fleet.start_at(ip, clock_s=clock_s)
    new.cron("job", 60, job, settle_s=8)
    await fleet.mesh()
    assert score(factor, new.name) > score(factor, standby.name)
    return first, new


async def test_a_newcomer_whose_clock_is_behind_repeats_no_slot(fleet: Fleet) -> None:
    job = Job()
    first, best = await newcomers(fleet, job, -30)
    await fleet.crash(first)
    await fleet.until(lambda: len(job.slots) == 2, timeout=120)
    assert best.singletons.where("cron:job") == best.name
    assert job.times == [0, 60]


async def test_a_newcomer_knows_which_slots_were_missed(fleet: Fleet) -> None:
    job = Job()
    first, best = await newcomers(fleet, job, 0)
    await fleet.sleep(57 - fleet.now % 60)
    await fleet.crash(first)
    await fleet.until(lambda: len(job.slots) == 2, timeout=120)
    assert best.singletons.where("cron:job") == best.name
    assert job.times == [0, 60]
    assert job.slots[1].late_s > 3


async def test_a_node_that_drains_still_tells_which_slots_have_begun(fleet: Fleet) -> None:
    job = Job()
    (first,) = await declare(fleet, 1, job, 60)
    (knows,) = await fleet.start(1)
    knows.cron("job", 60, job)
    await fleet.until(lambda: job.slots, timeout=70)
    assert (await knows.drain(10)).was_clean
    new = await fleet.start_at("10.0.1.1", clock_s=-30)
    new.cron("job", 60, job)
    await fleet.mesh()
    await fleet.crash(first)
    await fleet.until(lambda: len(job.slots) == 2, timeout=120)
    assert new.singletons.where("cron:job") == new.name
    assert job.times == [0, 60]


async def test_a_handover_carries_the_slots_along(fleet: Fleet) -> None:
    job = Job()
    (first,) = await declare(fleet, 1, job, 60)
    await fleet.until(lambda: job.slots, timeout=70)
    new = await fleet.start_at("10.0.1.1", clock_s=-30)
    new.cron("job", 60, job)
    await fleet.mesh()
    asked = []

    async def no_answers(_teller: SlotTeller, *question: int, **_: bool) -> list[list[int]]:
        asked.append(question)
        return []

    with pytest.MonkeyPatch.context() as silence:
        silence.setattr(SlotTeller, "_others", no_answers)
        await first.drain(10)
        await fleet.until(lambda: len(job.slots) == 2, timeout=120)
    assert asked
    assert job.times == [0, 60]


async def test_what_cannot_be_declared_is_refused(fleet: Fleet) -> None:
    (node,) = await fleet.start(1)
    job = Job()
    node.cron("job", 10, job)
    wrong: list[tuple[type[Exception], tuple[Any, ...], dict[str, Any]]] = [
        (ValueError, ("job", 10, job), {}),
        (ValueError, ("other", "* * *", job), {}),
        (ValueError, ("other", 10, job), {"missed": "all"}),
        (TypeError, ("other", 10, print), {}),
        (TypeError, ("other", 10, 7), {}),
        (TypeError, ("other", 10, job), {"safety": 3}),
    ]
    for error, args, options in wrong:
        with pytest.raises(error):
            node.cron(*args, **options)
    await fleet.until(lambda: node.singletons.names() == ["cron:job"])


async def test_nonsense_of_another_node_is_refused(fleet: Fleet) -> None:
    one, two = await declare(fleet, 2, Job())
    pid = two._parts.replicated_shards.table.hosts("singleton:cron:job")[one.name].pid
    for nonsense in (["slots"], ["slots", 1, "x", True], ["slots", -1, 0, False], ["slots", 1, 0]):
        with pytest.raises(Exception, match=r"no epoch and slot|not a request"):
            await two.call(pid, nonsense)


async def test_another_epoch_that_has_begun_a_slot_keeps_it(fleet: Fleet) -> None:
    nodes = await declare(fleet, 2, Job(), 60)
    shards, outbound = nodes[0]._parts.replicated_shards, nodes[0]._parts.outbound
    memory = SlotMemory()
    teller = SlotTeller("singleton:cron:job", memory, None, shards, outbound)
    other = offered(nodes[1]).plan.memory
    assert other is not None
    epoch = other.epoch
    slot = other.settled_ms + 5
    other.told(epoch, slot, is_reset=False)
    assert not await teller.tell(epoch + 1, slot)
    assert memory.settled_ms == slot
    assert await teller.tell(epoch + 1, slot + 1)
    assert not await teller.tell(epoch, slot + 2)
    assert memory.settled_ms == slot + 1
    assert shards.table.seen("singleton:cron:job", 0) >= epoch + 1
    assert await teller.ask(epoch + 2)
    assert not await teller.ask(epoch + 1)
