"""Which member of a group is picked, by each rule."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from fleetlm.core.group_members import Members
from fleetlm.core.member_loads import MOST_COMPARED, MemberInfo
from fleetlm.core.picking import ANY, CHOSEN, IDLE_TRIES, MANY, Picker, Tried, Wanted
from fleetlm.core.rings import Key
from fleetlm.core.sticky_keys import StickyKeys
from fleetlm.errors import NoMember
from fleetlm.ids import Pid

HERE, THERE, YONDER = "fleetlm@10.0.0.2", "fleetlm@10.0.0.1", "fleetlm@10.0.0.3"


members_of = functools.lru_cache(lambda *pids: Members(pids))
"""Nothing here changes them, and to make them anew for each pick takes most of the time."""


class Rig:
    """A picker, with loads and draining nodes that a test sets."""

    def __init__(self, seed: int = 1) -> None:
        self.load: dict[Pid, int] = {}
        self.draining: set[str] = set()
        self.busy: set[str] = set()
        self.metas: dict[Pid, Any] = {}
        self.asked: list[Pid] = []
        """Members whose meta was looked at."""
        self.now = 0.0
        self.sticky = StickyKeys(limit=1_000, idle_s=60.0)
        self.picker = Picker(
            random.Random(seed),
            lambda pid: self.load.get(pid, 0),
            self,
            lambda node: node in self.draining,
            self.sticky,
            lambda: self.now,
        )

    # `picking.Known`.

    def is_plain(self, _group: str) -> bool:
        return not self.metas

    def is_busy(self, node: str) -> bool:
        return node in self.busy

    def meta(self, _group: str, pid: Pid) -> Any:
        self.asked.append(pid)
        return self.metas.get(pid)

    def loads(self, _group: str, pids: Sequence[Pid]) -> list[float]:
        return [float(self.load.get(pid, 0)) for pid in pids]

    def describe(self, group: str, pids: Sequence[Pid]) -> list[MemberInfo]:
        loads = self.loads(group, pids)
        return [
            MemberInfo(pid, self.metas.get(pid), {}, None, int(load), load, 0.0, False)
            for pid, load in zip(pids, loads, strict=True)
        ]

    def pick(
        self,
        members: list[Pid],
        by: Any = "random",
        key: Key | None = None,
        tried: Tried | None = None,
        wanted: Wanted = ANY,
    ) -> Pid:
        return self.picker.pick("g", members_of(*members), by, key, tried, wanted)

    def many(self, count: int, members: list[Pid], by: Any, keys: bool = False) -> Counter[Pid]:
        return Counter(self.pick(members, by, number if keys else None) for number in range(count))


MEMBERS = [Pid(f"fleetlm@10.0.0.{node}", node, number) for node in range(1, 5) for number in (1, 2)]
RULES = [
    ("random", None), ("round_robin", None), ("key", "k"), ("sticky", "k"), ("least_loaded", None),
    ("two_choices", None),
]  # fmt: skip


@pytest.mark.parametrize(("by", "key"), RULES)
def test_picking_from_an_empty_group_raises(by: Any, key: Key | None) -> None:
    with pytest.raises(NoMember, match="'g'"):
        Rig().pick([], by, key)


@pytest.mark.parametrize(
    ("by", "key", "error"),
    [
        ("fastest", None, ValueError),
        ("key", None, ValueError),
        ("random", "k", ValueError),
        ("key", 1.5, TypeError),
        ("key", True, TypeError),
        ("sticky", None, ValueError),
        ("sticky", 1.5, TypeError),
        ("key", ("a", 1), TypeError),
        ([], None, ValueError),
    ],
)
def test_unknown_rules_and_unusable_keys_are_refused(by: Any, key: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Rig().pick(MEMBERS, by, key)
    if error is ValueError:
        with pytest.raises(error):
            Rig().pick([], by, key)


@pytest.mark.parametrize(("by", "key"), RULES)
def test_the_same_seed_picks_the_same(by: Any, key: Key | None) -> None:
    one, other = Rig(5), Rig(5)
    assert [one.pick(MEMBERS, by, key) for _ in range(20)] == [
        other.pick(MEMBERS, by, key) for _ in range(20)
    ]


def test_random_gives_each_join_the_same_chance() -> None:
    picks = Rig().many(9_000, [*MEMBERS, MEMBERS[0]], "random")
    assert 1_800 < picks[MEMBERS[0]] < 2_200
    assert all(800 < picks[pid] < 1_200 for pid in MEMBERS[1:])


def test_round_robin_gives_each_member_the_same() -> None:
    picks = Rig().many(8 * 5, [*MEMBERS, MEMBERS[0]], "round_robin")
    assert picks == dict.fromkeys(MEMBERS, 5)


def test_round_robin_survives_members_that_come_and_go() -> None:
    rig = Rig()
    order = [rig.pick(MEMBERS, "round_robin") for _ in MEMBERS]
    rest = [pid for pid in MEMBERS if pid != order[0]]
    assert [rig.pick(rest, "round_robin") for _ in rest] == order[1:]
    assert rig.pick(MEMBERS, "round_robin") == order[0]
    assert rig.picker._last == {"g": order[0]}
    rig.picker.forget("g")
    assert rig.picker._last == {}


def test_round_robin_begins_anywhere() -> None:
    assert len({Rig(seed).pick(MEMBERS, "round_robin") for seed in range(40)}) > 4


def test_a_draining_node_does_not_double_the_turns_of_the_next() -> None:
    rig = Rig()
    rig.draining = {MEMBERS[2].node}
    picks = rig.many(6 * 5, MEMBERS, "round_robin")
    assert picks == {pid: 5 for pid in MEMBERS if pid.node not in rig.draining}


@given(
    st.sets(st.sampled_from(MEMBERS), min_size=1),
    st.sampled_from(MEMBERS),
    st.one_of(st.text(), st.binary(), st.integers()),
)
def test_a_key_moves_only_with_its_member(members: set[Pid], other: Pid, key: Key) -> None:
    rig = Rig()
    before = rig.pick([*members], "key", key)
    assert rig.pick([*members, *members], "key", key) == before
    assert rig.pick([*members, other], "key", key) in (before, other)
    rest = members - {other}
    if rest and before != other:
        assert rig.pick([*rest], "key", key) == before


def test_keys_are_spread_over_all_members() -> None:
    picks = Rig().many(4_000, MEMBERS, "key", keys=True)
    assert all(400 < picks[pid] < 600 for pid in MEMBERS)
    assert Rig(2).many(4_000, [*MEMBERS, MEMBERS[0]], "key", keys=True) == picks


def test_least_loaded_takes_the_least_and_chance_among_equals() -> None:
    rig = Rig()
    rig.load = dict.fromkeys(MEMBERS, 3) | {MEMBERS[1]: 1, MEMBERS[4]: 1}
    picks = rig.many(1_000, MEMBERS, "least_loaded")
    assert picks.keys() == {MEMBERS[1], MEMBERS[4]}
    assert min(picks.values()) > 400
    rig.load[MEMBERS[7]] = 0
    assert rig.many(10, MEMBERS, "least_loaded") == {MEMBERS[7]: 10}


@pytest.mark.parametrize(("by", "key"), RULES)
def test_members_on_draining_nodes_are_the_last_resort(by: Any, key: Key | None) -> None:
    rig = Rig()
    chosen = rig.pick(MEMBERS, by, key)
    rig.load[chosen] = -1
    rig.draining = {chosen.node}
    for _ in range(50):
        assert rig.pick(MEMBERS, by, key).node != chosen.node
    rig.draining = {pid.node for pid in MEMBERS}
    assert {rig.pick(MEMBERS, by, key) for _ in range(50)} <= set(MEMBERS)


@pytest.mark.parametrize(("by", "key"), RULES)
def test_where_all_drain_one_whose_node_still_serves_everything_comes_first(by: Any, key: Key | None) -> None:
    rig = Rig()
    serves = MEMBERS[3].node
    steps = {pid.node: 1 if pid.node == serves else 2 for pid in MEMBERS}
    rig.picker._drain_step = steps.__getitem__
    assert {rig.pick(MEMBERS, by, key).node for _ in range(20)} == {serves}


def test_a_draining_node_changes_no_key_but_its_own() -> None:
    rig = Rig()
    before = [rig.pick(MEMBERS, "key", key) for key in range(500)]
    rig.draining = {MEMBERS[0].node}
    after = [rig.pick(MEMBERS, "key", key) for key in range(500)]
    for old, new in zip(before, after, strict=True):
        assert (new == old) == (old.node not in rig.draining)


def test_least_loaded_does_not_look_at_every_member_of_a_large_group_that_is_mostly_idle() -> None:
    asked: list[Pid] = []

    def load(pid: Pid) -> int:
        asked.append(pid)
        return pid.number % 2

    members = Members(Pid("fleetlm@10.0.0.1", 1, number) for number in range(1, 10_001))
    picker = Picker(random.Random(1), load, Rig(), lambda _: False, StickyKeys(1, 1.0), float)
    picks = [picker.pick("g", members, "least_loaded", None) for _ in range(100)]
    assert all(pid.number % 2 == 0 for pid in picks)
    assert len(asked) < 100 * 8 + 2 * 10_000


def test_least_loaded_compares_some_members_of_a_large_group_in_which_all_are_busy() -> None:
    asked: list[Pid] = []

    def load(pid: Pid) -> int:
        asked.append(pid)
        return 1 + pid.number % 10

    members = Members(Pid(f"fleetlm@10.0.0.{number % 7}", 1, number) for number in range(1, 10_001))
    picker = Picker(random.Random(1), load, Rig(), lambda _: False, StickyKeys(1, 1.0), float)
    picks = [picker.pick("g", members, "least_loaded", None) for _ in range(200)]
    assert len(asked) <= 200 * (IDLE_TRIES + CHOSEN)
    assert sum(load(pid) for pid in picks) / 200 < 1.2, "nearly all picks are among the least loaded"
    assert len(set(picks)) > 150


def test_a_group_that_is_not_large_is_compared_as_a_whole() -> None:
    pids = [Pid("fleetlm@10.0.0.1", 1, number) for number in range(1, MOST_COMPARED + 1)]
    rig = Rig()
    rig.load = dict.fromkeys(pids, 2) | {pids[77]: 1}
    assert rig.many(20, pids, "least_loaded") == {pids[77]: 20}


def test_an_idle_process_that_joined_twice_has_no_double_chance_as_the_least_loaded() -> None:
    picks = Rig().many(2_000, [*MEMBERS, *[MEMBERS[0]] * 9], "least_loaded")
    assert 150 < picks[MEMBERS[0]] < 350


def failed_at(*pids: Pid) -> Tried:
    tried = Tried()
    for pid in pids:
        tried.add(pid)
    return tried


@pytest.mark.parametrize(("by", "key"), RULES)
def test_a_repetition_passes_over_nodes_that_failed_while_there_is_another(by: Any, key: Key | None) -> None:
    rig = Rig()
    tried = failed_at(MEMBERS[0], MEMBERS[2], MEMBERS[5])
    assert {rig.pick(MEMBERS, by, key, tried).node for _ in range(50)} == {MEMBERS[6].node}


@pytest.mark.parametrize(("by", "key"), RULES)
def test_then_it_passes_over_the_members_that_failed(by: Any, key: Key | None) -> None:
    rig = Rig()
    tried = failed_at(*MEMBERS[:5], MEMBERS[7])
    assert {rig.pick(MEMBERS, by, key, tried) for _ in range(80)} <= {MEMBERS[5], MEMBERS[6]}
    everywhere = failed_at(*MEMBERS)
    assert rig.pick(MEMBERS, by, key, everywhere) in MEMBERS


@pytest.mark.parametrize(("by", "key"), RULES)
def test_a_draining_node_that_was_not_asked_comes_before_one_that_failed(by: Any, key: Key | None) -> None:
    rig = Rig()
    rig.draining = {MEMBERS[0].node}
    tried = failed_at(*MEMBERS[2:])
    assert {rig.pick(MEMBERS, by, key, tried).node for _ in range(20)} == {MEMBERS[0].node}
    rig.draining = {MEMBERS[2].node}
    one_each = failed_at(*MEMBERS[::2])
    assert rig.pick(MEMBERS, by, key, one_each).node != MEMBERS[2].node


def test_a_repetition_by_key_goes_to_the_next_member_of_the_key_on_every_node() -> None:
    for key in range(50):
        first = Rig(1).pick(MEMBERS, "key", key)
        rest = [pid for pid in MEMBERS if pid.node != first.node]
        assert Rig(2).pick(MEMBERS, "key", key, failed_at(first)) == Rig(3).pick(rest, "key", key)


def test_it_is_known_whether_another_member_is_left() -> None:
    assert failed_at(*MEMBERS[1:]).leaves_another(Members(MEMBERS))
    assert not failed_at(*MEMBERS).leaves_another(Members(MEMBERS))
    assert not Tried().leaves_another(Members())


def test_a_new_sticky_key_goes_where_the_rule_key_sends_it() -> None:
    rig, other = Rig(1), Rig(2)
    for key in range(100):
        assert rig.pick(MEMBERS, "sticky", key) == other.pick(MEMBERS, "key", key)


def test_a_sticky_key_stays_however_many_members_join() -> None:
    rig, few = Rig(), MEMBERS[:2]
    before = [rig.pick(few, "sticky", key) for key in range(100)]
    assert [rig.pick(MEMBERS, "sticky", key) for key in range(100)] == before
    assert [rig.pick(MEMBERS, "key", key) for key in range(100)] != before


def test_a_sticky_key_moves_once_when_its_member_goes_and_stays_there() -> None:
    rig = Rig()
    first = rig.pick(MEMBERS, "sticky", "k")
    rest = [pid for pid in MEMBERS if pid != first]
    second = rig.pick(rest, "sticky", "k")
    assert second in rest
    assert rig.pick(MEMBERS, "sticky", "k") == second


def test_a_sticky_key_leaves_a_draining_node_and_does_not_come_back() -> None:
    rig = Rig()
    first = rig.pick(MEMBERS, "sticky", "k")
    rig.draining = {first.node}
    second = rig.pick(MEMBERS, "sticky", "k")
    assert second.node != first.node
    rig.draining = set()
    assert rig.pick(MEMBERS, "sticky", "k") == second
    rig.draining = {pid.node for pid in MEMBERS}
    assert rig.pick(MEMBERS, "sticky", "k") in MEMBERS


def test_a_sticky_key_that_was_not_used_for_long_begins_anew() -> None:
    rig = Rig()
    moved = next(k for k in range(99) if rig.pick(MEMBERS[:2], "key", k) != rig.pick(MEMBERS, "key", k))
    kept = rig.pick(MEMBERS[:2], "sticky", moved)
    rig.now = 60.0
    assert rig.pick(MEMBERS, "sticky", moved) == kept
    rig.now = 120.5
    assert rig.pick(MEMBERS, "sticky", moved) != kept


class StickyCourse(RuleBasedStateMachine):
    """Members and draining nodes come and go, and sticky keys are picked."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.members: set[Pid] = {MEMBERS[0]}
        self.went: dict[int, Pid] = {}

    @rule(pid=st.sampled_from(MEMBERS))
    def join(self, pid: Pid) -> None:
        self.members.add(pid)

    @rule(pid=st.sampled_from(MEMBERS))
    def leave(self, pid: Pid) -> None:
        if len(self.members) > 1:
            self.members.discard(pid)
            self.went = {key: old for key, old in self.went.items() if old != pid}

    @rule(node=st.sampled_from([pid.node for pid in MEMBERS]))
    def drain_or_not(self, node: str) -> None:
        self.rig.draining ^= {node}

    @rule(key=st.integers(0, 5))
    def pick(self, key: int) -> None:
        chosen = self.rig.pick([*self.members], "sticky", key)
        assert chosen in self.members
        staying = {pid for pid in self.members if pid.node not in self.rig.draining}
        assert chosen in staying or not staying
        former = self.went.get(key)
        if former in staying:
            assert chosen == former
        self.went[key] = chosen


TestStickyCourse = StickyCourse.TestCase
TestStickyCourse.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)


# What is wanted, and what is known beside the load.


def test_only_members_whose_meta_fits_are_picked() -> None:
    rig = Rig()
    for at, pid in enumerate(MEMBERS):
        rig.metas[pid] = {"model": "large" if at % 2 else "small", "gpu": at}
    rig.metas[MEMBERS[0]] = "no dict"
    large = Wanted({"model": "large"})
    for by, key in RULES:
        picked = {rig.pick(MEMBERS, by, key, None, large) for _ in range(60)}
        assert picked <= set(MEMBERS[1::2]), by
    assert rig.pick(MEMBERS, wanted=Wanted({"model": "small", "gpu": 4})) == MEMBERS[4]
    with pytest.raises(NoMember, match=r"has no member with \{'gpu': 0\} in its meta"):
        rig.pick(MEMBERS, wanted=Wanted({"gpu": 0}))


LARGE = [Pid(f"fleetlm@10.0.0.{number % 7}", 1, number) for number in range(1, MANY + 1)]


def in_zones(rig: Rig, pids: list[Pid], every: int) -> Wanted:
    """Give one member in ``every`` another zone than the others, and return a wish for it."""
    rig.metas = {pid: {"zone": "a" if pid.number % every == 0 else "b"} for pid in pids}
    return Wanted({"zone": "a"})


@pytest.mark.parametrize("by", ["random", "least_loaded", "two_choices"])
def test_not_all_members_of_a_large_group_are_looked_at_to_find_some_that_are_wanted(by: Any) -> None:
    rig = Rig()
    wanted = in_zones(rig, LARGE, 8)
    members = Members(LARGE)
    rig.load = {pid: pid.number % 3 for pid in LARGE}
    picked = Counter(rig.picker.pick("g", members, by, None, None, wanted) for _ in range(100))
    assert {pid.number % 8 for pid in picked} == {0}
    assert len(picked) > 30
    assert len(rig.asked) / 100 < (20 if by == "random" else 400)
    if by == "least_loaded":
        assert {rig.load[pid] for pid in picked} == {0}
    rig.draining = {f"fleetlm@10.0.0.{node}" for node in range(6)}
    for _ in range(40):
        assert rig.picker.pick("g", members, by, None, None, wanted).node == "fleetlm@10.0.0.6"


@pytest.mark.parametrize("by", ["random", "round_robin", "least_loaded", "two_choices"])
def test_few_wanted_members_of_a_large_group_are_found(by: Any) -> None:
    rig = Rig()
    wanted = in_zones(rig, LARGE, 400)
    members = Members(LARGE)
    picked = {rig.picker.pick("g", members, by, None, None, wanted) for _ in range(40)}
    assert sorted(pid.number for pid in picked) == [400, 800, 1_200]
    for pid in picked:
        rig.metas[pid] = None
    with pytest.raises(NoMember):
        rig.picker.pick("g", members, by, None, None, wanted)


def test_a_score_is_asked_for_more_than_one_wanted_member_of_a_large_group() -> None:
    rig, seen = Rig(), list[int]()

    def score(info: MemberInfo) -> float:
        seen.append(info.pid.number)
        return info.pid.number

    wanted = Wanted({"zone": "a"}, score)
    in_zones(rig, LARGE, 2)
    picked = rig.picker.pick("g", Members(LARGE), "random", None, None, wanted)
    assert len(seen) == CHOSEN
    assert picked.number == max(seen)


@pytest.mark.parametrize("by", ["key", "sticky"])
def test_a_key_goes_to_a_wanted_member_as_if_there_were_no_others(by: Any) -> None:
    rig = Rig()
    wanted = in_zones(rig, LARGE, 8)
    some = Members(pid for pid in LARGE if pid.number % 8 == 0)
    members = Members(LARGE)
    for key in range(200):
        expected = Rig().picker.pick("g", some, "key", key)
        assert rig.picker.pick("g", members, by, key, None, wanted) == expected
    assert len(rig.asked) / 200 < 60
    with pytest.raises(NoMember, match=r"has no member with \{'zone': 'c'\} in its meta"):
        rig.picker.pick("g", members, by, 1, None, Wanted({"zone": "c"}))


class Incomparable:
    """As an array of numpy, whose comparison is no truth value."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")

    __hash__ = None  # type: ignore[assignment]


def test_a_meta_that_cannot_be_compared_costs_its_member_only() -> None:
    rig = Rig()
    rig.metas = {pid: {"gpu": 1} for pid in MEMBERS}
    rig.metas[MEMBERS[0]] = {"gpu": Incomparable()}
    assert {rig.pick(MEMBERS, wanted=Wanted({"gpu": 1})) for _ in range(99)} == set(MEMBERS[1:])


def test_a_sticky_key_leaves_a_member_that_is_not_wanted_any_more() -> None:
    rig = Rig()
    rig.metas = {pid: {"zone": "a"} for pid in MEMBERS}
    zone = Wanted({"zone": "a"})
    kept = rig.pick(MEMBERS, "sticky", "k", None, zone)
    assert {rig.pick(MEMBERS, "sticky", "k", None, zone) for _ in range(9)} == {kept}
    rig.metas[kept] = {"zone": "b"}
    assert rig.pick(MEMBERS, "sticky", "k", None, zone) != kept


def test_a_score_picks_the_highest_and_chance_decides_among_equals() -> None:
    rig = Rig()
    rig.load = {pid: pid.number for pid in MEMBERS}
    by_load = Wanted(score=lambda info: -info.load)
    assert {rig.pick(MEMBERS, wanted=by_load) for _ in range(99)} == set(MEMBERS[::2])
    assert rig.pick(MEMBERS, wanted=Wanted(score=lambda _: float("nan"))) in MEMBERS
    with pytest.raises(ValueError, match="score= picks by itself"):
        rig.pick(MEMBERS, "round_robin", wanted=by_load)


def test_the_better_of_two_members_is_chosen_and_every_member_has_a_chance_but_the_worst() -> None:
    rig = Rig()
    rig.load = {pid: at for at, pid in enumerate(MEMBERS)}
    picked = Counter(rig.pick(MEMBERS, "two_choices") for _ in range(2_000))
    assert set(picked) == set(MEMBERS[:-1])
    assert picked[MEMBERS[0]] > picked[MEMBERS[3]] > picked[MEMBERS[6]]
    assert rig.pick(MEMBERS[:1], "two_choices") == MEMBERS[0]
    assert rig.pick([MEMBERS[0], MEMBERS[0]], "two_choices") == MEMBERS[0]


def test_members_on_busy_nodes_are_passed_over_but_not_by_keys() -> None:
    rig = Rig()
    calm = rig.pick(MEMBERS, "key", "k")
    kept = rig.pick(MEMBERS, "sticky", "s")
    rig.busy = {calm.node, kept.node}
    assert rig.pick(MEMBERS, "key", "k") == calm
    assert rig.pick(MEMBERS, "sticky", "s") == kept
    for by in ("random", "round_robin", "least_loaded", "two_choices"):
        assert {rig.pick(MEMBERS, by).node for _ in range(60)} & rig.busy == set(), by
    rig.draining = {pid.node for pid in MEMBERS} - rig.busy
    assert {rig.pick(MEMBERS).node for _ in range(60)} <= rig.busy, "busy nodes serve, draining ones leave"
    rig.busy = {pid.node for pid in MEMBERS}
    rig.draining = set()
    assert rig.pick(MEMBERS) in MEMBERS


class Scores:
    """A score that remembers which members were picked."""

    def __init__(self, best: Pid) -> None:
        self.best = best
        self.told: list[Pid] = []

    def __call__(self, info: MemberInfo) -> float:
        return float(info.pid == self.best)

    def picked(self, pid: Pid) -> None:
        self.told.append(pid)


def test_a_score_hears_only_of_the_member_that_is_picked_in_the_end() -> None:
    rig = Rig()
    scores = Scores(best=MEMBERS[0])
    assert rig.pick(MEMBERS, wanted=Wanted(score=scores)) == MEMBERS[0]
    rig.draining = {MEMBERS[0].node}
    second = rig.pick(MEMBERS, wanted=Wanted(score=scores))
    assert scores.told == [MEMBERS[0], second]


@pytest.mark.parametrize("at", range(len(MEMBERS)))
def test_a_score_that_is_no_number_is_below_all_others(at: int) -> None:
    def score(info: MemberInfo) -> float:
        return -5.0 if info.pid == MEMBERS[at] else float("nan")

    assert {Rig(seed).pick(MEMBERS, wanted=Wanted(score=score)) for seed in range(9)} == {MEMBERS[at]}


def test_members_that_are_not_wanted_are_no_candidates() -> None:
    rig = Rig()
    rig.metas = {pid: {"zone": "a"} for pid in MEMBERS[:2]}
    wanted = Wanted({"zone": "a"})
    assert [*rig.picker.candidates("g", Members(MEMBERS), wanted)] == MEMBERS[:2]
    assert [*rig.picker.candidates("g", Members(MEMBERS), ANY)] == MEMBERS
    tried = Tried()
    for pid in MEMBERS[:2]:
        assert tried.leaves_another(rig.picker.candidates("g", Members(MEMBERS), wanted))
        tried.add(pid)
    assert not tried.leaves_another(rig.picker.candidates("g", Members(MEMBERS), wanted))
    assert tried.leaves_another(rig.picker.candidates("g", Members(MEMBERS), ANY))
    assert rig.pick(MEMBERS, "random", None, tried, wanted) in MEMBERS[:2]


def test_without_a_wish_every_meta_fits() -> None:
    assert ANY.fits(None)
    assert ANY.fits({"zone": "a"})


def test_the_one_with_the_least_load_of_those_that_fit_is_picked() -> None:
    rig = Rig()
    rig.metas = {pid: {"zone": "a" if at % 2 else "b"} for at, pid in enumerate(MEMBERS)}
    rig.load = {pid: at for at, pid in enumerate(MEMBERS)}
    zone = Wanted({"zone": "a"})
    assert {rig.pick(MEMBERS, "least_loaded", wanted=zone) for _ in range(20)} == {MEMBERS[1]}
