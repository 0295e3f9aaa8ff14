"""Members that tell of themselves, and picks that see the load of the whole cluster, on whole nodes."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest

from fleetlm import (
    Actor,
    Member,
    MessageTooLarge,
    Node,
    NoMember,
    NoProcess,
    NotSerializable,
    Pid,
    Process,
    handler,
)
from fleetlm.core import member_facts
from fleetlm.directory import members, replication
from fleetlm.directory.replication import Replication
from fleetlm.testing import Fleet, SimCluster
from tests.sim.seeded import ONE_PORT, most_are_long, run_stories


async def idle(process: Process) -> None:
    await asyncio.get_running_loop().create_future()


def join(node: Node, meta: Any = None, group: str = "g") -> Member:
    return node.groups.join(group, node.spawn(idle), meta=meta)


def described(node: Node, group: str = "g") -> dict[Pid, Any]:
    return {info.pid: info for info in node.groups.describe(group)}


async def test_a_meta_is_there_when_the_member_is_seen_and_goes_with_it(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    watch = two.groups.watch("g")
    member = join(one, {"model": "llama", "gpu": 3})
    joined = await anext(watch)
    assert described(two)[joined.pid].meta == {"model": "llama", "gpu": 3}
    assert two.groups.pick("g", where={"model": "llama"}) == member.pid
    with pytest.raises(NoMember):
        two.groups.pick("g", where={"model": "other"})
    member.describe({"model": "other"})
    await fleet.until(lambda: two.groups.describe("g")[0].meta == {"model": "other"})
    late = await fleet.node()
    await fleet.until(lambda: [info.meta for info in late.groups.describe("g")] == [{"model": "other"}])
    one.groups.leave("g", member.pid)
    with pytest.raises(NoProcess):
        member.describe({})
    with pytest.raises(NoProcess):
        member.report(load=1)
    one.groups.join("g", member.pid)
    await fleet.until(lambda: [info.meta for info in late.groups.describe("g")] == [None])
    watch.close()


async def test_a_meta_that_cannot_be_told_lets_nobody_join(fleet: Fleet) -> None:
    node = await fleet.node()
    pid = node.spawn(idle)
    with pytest.raises(NotSerializable):
        node.groups.join("g", pid, meta=object())
    with pytest.raises(MessageTooLarge, match=r"max_meta_bytes"):
        node.groups.join("g", pid, meta=b"x" * 5_000)
    with pytest.raises(TypeError, match="describes one process"):
        node.groups.join("g", pid, pid, meta=1)  # type: ignore[call-overload]
    assert node.groups.members("g") == []


async def test_what_is_wanted_is_checked_before_anything_is_picked(fleet: Fleet) -> None:
    node = await fleet.node()
    with pytest.raises(TypeError, match="where= is a mapping"):
        node.groups.pick("g", where="large")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="score= is a function"):
        node.groups.ref(Actor, "g", score=1.0)  # type: ignore[arg-type]


async def test_gauges_arrive_with_the_next_frame_and_show_their_age(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    member = join(one)
    for number in range(1_000):
        member.report(load=number, queue=1)
    await fleet.until(lambda: described(two).get(member.pid) is not None)
    await fleet.until(lambda: dict(described(two)[member.pid].gauges) == {"load": 999.0, "queue": 1.0})
    await fleet.sleep(2)
    assert described(two)[member.pid].age_s == pytest.approx(2.0, abs=0.2)
    with pytest.raises(ValueError, match="not a finite number"):
        member.report(load=float("inf"))
    for wrong in (True, "1", None, Fraction(10**400), 10**400, float("nan")):
        with pytest.raises(ValueError, match="not a finite number"):
            member.report(load=wrong)  # type: ignore[arg-type]
    member.report(load=Fraction(1, 4), queue=3)  # type: ignore[arg-type]  # a real number, as numpy's are
    assert dict(described(one)[member.pid].gauges) == {"load": 0.25, "queue": 3.0}
    assert {type(value) for value in described(one)[member.pid].gauges.values()} == {float}
    member.report({"kv-cache": 0.5})
    assert dict(described(one)[member.pid].gauges) == {"kv-cache": 0.5}


async def test_a_thousand_reports_are_one_frame(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = await fleet.start(2)
    member = join(one)
    await fleet.until(lambda: two.groups.members("g") == [member.pid])
    told: list[Any] = []
    tell = Replication.tell
    monkeypatch.setattr(
        Replication,
        "tell",
        lambda self, topic, fact, to=None: (told.append(fact), tell(self, topic, fact, to)),
    )
    for number in range(1_000):
        member.report(load=number)
    await fleet.sleep(0.5)
    assert told == [["gauges", [["g", member.pid.number, {"load": 999.0}]]]]


async def test_reported_loads_decide_and_old_ones_count_as_the_mean(fleet: Fleet) -> None:
    one, two, three = await fleet.start(3)
    members = [join(node) for node in (one, two, three)]
    await fleet.sleep(6)  # None is new any more.
    for member, load in zip(members, (5, 1, 9), strict=True):
        member.report(load=load)
    await fleet.sleep(0.5)
    assert {one.groups.pick("g", by="least_loaded") for _ in range(20)} == {members[1].pid}
    await fleet.sleep(4)  # All are stale but the first.
    members[0].report(load=0)
    await fleet.sleep(0.5)
    assert [info.load for info in one.groups.describe("g")] == [0.0, 0.0, 0.0]
    members[0].report(load=4)
    members[1].report(load=2)
    await fleet.sleep(0.5)
    assert {info.pid: info.load for info in one.groups.describe("g")} == {
        members[0].pid: 4.0,
        members[1].pid: 2.0,
        members[2].pid: 3.0,
    }


class Slow(Actor):
    async def init(self) -> None:
        self.node.groups.join("slow", self.pid)

    @handler(concurrent=True)
    async def work(self) -> None:
        await asyncio.sleep(3_600)


async def test_a_worker_full_of_requests_of_one_front_end_is_passed_over_by_another(fleet: Fleet) -> None:
    front, other, a, b = await fleet.start(4)
    busy, free = a.spawn(Slow), b.spawn(Slow)
    await fleet.until(lambda: len(other.groups.members("slow")) == 2 == len(front.groups.members("slow")))
    await fleet.sleep(6)
    other.groups.pick("slow", by="least_loaded")
    calls = [asyncio.ensure_future(front.ref(Slow, busy).within(60).call(Slow.work)) for _ in range(50)]
    front.groups.pick("slow", by="least_loaded")
    await fleet.sleep(1)
    assert Counter(other.groups.pick("slow", by="least_loaded") for _ in range(100)) == {free: 100}
    assert Counter(other.groups.pick("slow", by="two_choices") for _ in range(100)) == {free: 100}
    assert Counter(a.groups.pick("slow", by="least_loaded") for _ in range(100)) == {free: 100}
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await fleet.sleep(1)
    assert {info.outstanding for info in other.groups.describe("slow")} == {0}


async def test_what_a_caller_has_chosen_counts_until_it_is_done(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    a, b = join(one), join(two)
    await fleet.until(lambda: len(one.groups.members("g")) == 2 == len(two.groups.members("g")))
    await fleet.sleep(6)
    with one.groups.chosen("g", where=None) as first, one.groups.chosen("g") as second:
        assert {first, second} == {a.pid, b.pid}
        with one.groups.chosen("g") as third:
            other = ({first, second} - {third}).pop()
            two.groups.pick("g", by="least_loaded")
            await fleet.sleep(0.5)
            assert {two.groups.pick("g", by="least_loaded") for _ in range(20)} == {other}
    await fleet.sleep(0.5)
    assert {info.outstanding for info in two.groups.describe("g")} == {0}


async def test_a_newcomer_is_not_given_everything_at_once(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    for _ in range(3):
        join(one)
    await fleet.sleep(6)
    held = [one.groups.chosen("g") for _ in range(12)]
    for each in held:
        each.__enter__()
    fresh = join(two)
    await fleet.until(lambda: len(one.groups.members("g")) == 4)

    def give(count: int) -> int:
        """Choose so many members, all still held; return how many were the new one."""
        more = [one.groups.chosen("g") for _ in range(count)]
        held.extend(more)
        return [each.__enter__() for each in more].count(fresh.pid)

    assert give(6) <= 2, "an empty member would get all of them"
    await fleet.sleep(6)
    assert give(4) == 4
    for each in held:
        each.__exit__(None, None, None)


async def test_members_on_a_busy_node_are_not_picked(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    a, b = join(one), join(two)
    await fleet.until(lambda: len(one.groups.members("g")) == 2)
    fleet.stall(two)
    await fleet.until(lambda: one.list("busy") == [two.name])
    assert {one.groups.pick("g") for _ in range(50)} == {a.pid}
    assert described(one)[b.pid].is_passed_over
    fleet.unstall(two)
    await fleet.until(lambda: one.list("busy") == [])
    assert {one.groups.pick("g") for _ in range(50)} == {a.pid, b.pid}


async def test_a_score_of_the_program_decides(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    join(one, {"zone": "a"})
    member = join(two, {"zone": "b"})
    await fleet.until(lambda: len(one.groups.members("g")) == 2)
    near = one.groups.pick("g", score=lambda info: float(info.meta["zone"] == "b") - info.load / 100)
    assert near == member.pid


async def test_a_typed_reference_asks_members_that_are_wanted(fleet: Fleet) -> None:
    one, two = await fleet.start(2)

    class Model(Actor):
        def __init__(self, name: str) -> None:
            self.name = name

        async def init(self) -> None:
            self.node.groups.join("models", self.pid, meta={"model": self.name})

        @handler
        async def which(self) -> str:
            return self.name

    one.spawn(Model, "small")
    two.spawn(Model, "large")
    await fleet.until(lambda: len(one.groups.members("models")) == 2)
    large = one.groups.ref(Model, "models", where={"model": "large"})
    assert {await large.call(Model.which) for _ in range(10)} == {"large"}
    small = one.groups.ref(Model, "models").scored(lambda info: info.meta["model"] == "small")
    assert {await small.call(Model.which) for _ in range(10)} == {"small"}
    with pytest.raises(ValueError, match="score= picks by itself"):
        one.groups.ref(Model, "models", by="round_robin").scored(lambda _: 1.0)


@pytest.mark.parametrize("by", ["least_loaded", "two_choices"])
async def test_four_routers_spread_their_requests_evenly(fleet: Fleet, by: Any) -> None:
    """With loads that are a frame old, no router sends all its requests where the others do."""
    nodes = await fleet.start(6)
    routers, workers = nodes[:4], nodes[4:]
    for node in workers:
        for _ in range(4):
            join(node, group="workers")
    await fleet.until(lambda: all(len(node.groups.members("workers")) == 8 for node in routers))
    await fleet.sleep(6)
    running: Counter[Pid] = Counter()
    peaks: list[float] = []
    rng = random.Random(3)

    async def request(router: Node) -> None:
        with router.groups.chosen("workers", by) as pid:
            running[pid] += 1
            await asyncio.sleep(rng.uniform(0.5, 1.5))
            running[pid] -= 1

    tasks = []
    for _ in range(400):
        tasks += [asyncio.ensure_future(request(router)) for router in routers]
        await asyncio.sleep(0.02)
        total = sum(running.values())
        if total > 100:
            peaks.append(max(running.values()) / (total / 8))
    await asyncio.gather(*tasks)
    assert sum(peaks) / len(peaks) < 1.5


async def test_a_member_that_stopped_reporting_does_not_look_fresh_to_a_node_that_comes_later(
    fleet: Fleet,
) -> None:
    one = await fleet.node()
    silent, other = join(one), join(one)
    silent.report(load=0)
    await fleet.sleep(60)
    other.report(load=6)
    late = await fleet.node()
    await fleet.until(lambda: described(late).get(other.pid) is not None)
    infos = described(late)
    age_s = infos[silent.pid].age_s
    assert age_s is not None
    assert 60 <= age_s < 65
    assert infos[silent.pid].load == infos[other.pid].load == 6, "it counts as the mean of the others"


async def test_a_member_that_joins_once_more_is_not_new_again(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    known, fresh = join(two), join(two)
    await fleet.sleep(6)
    for member in (known, fresh):
        member.report(load=8)
    two.groups.join("g", known.pid)
    other = two.spawn(idle)
    two.groups.join("g", other, other)  # This one is new, and joins twice at once.
    await fleet.until(lambda: len(one.groups.members("g")) == 5)
    await fleet.sleep(0.2)
    loads = {pid: info.load for pid, info in described(one).items()}
    assert loads[known.pid] == loads[fresh.pid] == 8
    assert loads[other] > 7


async def test_nothing_is_kept_of_members_that_have_gone(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "MAX_NEWCOMERS", 5)
    one, two, three = await fleet.start(3)
    await fleet.sleep(6)  # To a node that has just started none is new.
    for node in (two, three):
        for number in range(4):
            member = join(node, {"number": number}, f"g{number % 2}")
            member.report(load=number)
            node.groups.join(f"g{number % 2}", member.pid)  # It joins twice, and leaves twice.
    await fleet.until(lambda: [len(one.groups.members(group)) for group in ("g0", "g1")] == [8, 8])
    kept = one.groups._replicated.members
    with one.groups.chosen("g0") as pid, one.groups.chosen("g1", by="two_choices"):
        assert kept.outstanding(pid) == 1
        assert len(kept._joined) == sum(kept._newcomers.values()) == 5
        gc.collect()
        assert not any(map(gc.is_tracked, kept._joined))  # The collector has nothing to visit there.
        await fleet.until(lambda: two.groups._replicated.members.facts.outstanding(pid) == 1)
    two.exit(two.groups.local_members("g0")[0])
    await fleet.crash(three)
    for pid in [*two.groups.local_members("g0"), *two.groups.local_members("g1")]:
        two.exit(pid)
    await fleet.until(lambda: one.groups.list() == [])
    await fleet.sleep(members.INTEREST_S + 1)
    for node in (one, two):
        rest = node.groups._replicated.members
        assert not rest._joined
        assert not rest._newcomers
        assert not rest._chosen
        assert not rest._balanced
        assert rest._timer is None
        facts = rest.facts
        assert (facts._reporting, facts._due, facts._outstanding) == ({}, {}, {})
        assert all(not (told.packed or told.reports or told.metas_bytes) for told in facts._told.values())


# Stories: whatever happens, each node knows in the end what the members of all others tell.


async def play(seed: int) -> None:
    async with SimCluster(seed=seed, settings=ONE_PORT) as cluster:
        await tell_and_break(cluster, random.Random(f"members {seed}"))


async def tell_and_break(cluster: SimCluster, rng: random.Random) -> None:
    """Members join, tell, leave and end while nodes crash, come, and are cut off."""
    await cluster.start(3)
    await cluster.mesh(timeout=20)
    for _ in range(40):
        node = rng.choice(list(cluster.nodes.values()))
        group = f"g{rng.randrange(3)}"
        mine = node.groups.local_members(group)
        match rng.randrange(14):
            case 0:
                cluster.partition([node])
            case 1:
                cluster.heal()
            case 2 if len(cluster.nodes) > 2:
                await cluster.crash(node)
            case 3:
                await cluster.start()
            case 4 | 5 if mine:
                node.groups.leave(group, rng.choice(mine))
            case 6 if mine:
                node.exit(rng.choice(mine))
            case 7 if mine:
                node.groups.join(group, rng.choice(mine), meta=rng.choice((None, rng.random())))
            case 8 | 9 if node.groups.members(group):
                with node.groups.chosen(group):
                    await asyncio.sleep(rng.choice((0, 0.2)))
            case _:
                for _ in range(rng.randrange(1, 12)):
                    member = join(node, rng.choice((None, "x" * rng.randrange(200))), group)

                    if rng.random() < 0.7:
                        member.report(load=rng.randrange(9), **{"g" * rng.randrange(1, 32): 1})
        await asyncio.sleep(rng.choice((0, 0, 0, 0.002, 0.01, 0.5, 9)))
    cluster.heal()
    await cluster.mesh(timeout=60)
    await asyncio.sleep(members.INTEREST_S + 2)
    nodes = list(cluster.nodes.values())
    for node in nodes:
        own = node.groups._replicated.members.facts._own
        assert own.loads == {}
        here = {
            (group, pid.number) for group in node.groups.list() for pid in node.groups.local_members(group)
        }
        assert here >= own.packed.keys() | own.reports.keys()
        gauges = {place: row[1:] for place, row in own.reports.items()}
        for other in nodes:
            facts = other.groups._replicated.members.facts
            told = facts._told.get(node.name)
            found = (
                ({}, {}) if told is None else (told.packed, {at: row[1:] for at, row in told.reports.items()})
            )
            assert found == (own.packed, gauges), (node.name, other.name)
            assert facts._outstanding == {}
            assert facts._told.keys() <= {each.name for each in nodes}


@pytest.mark.parametrize("first", most_are_long(range(10, 210, 10), 1))
def test_all_nodes_know_what_members_tell(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_facts, "PIECE_BYTES", 250)  # So that snapshots take many facts,
    monkeypatch.setattr(replication, "FACTS_AT_ONCE", 1)  # and changes come in between.
    run_stories(play, range(first, first + 10))
