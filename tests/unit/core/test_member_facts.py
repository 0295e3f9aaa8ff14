"""What members and nodes tell, decided by facts."""

from __future__ import annotations

import gc
import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import msgpack
import pytest
from hypothesis import given, strategies as st

from fleetlm import InvalidName, MessageTooLarge, Pid, Settings, TooManyMemberships
from fleetlm.core import member_facts
from fleetlm.core.member_facts import (
    LOADS_KEY,
    MAX_TOLD_MEMBERS,
    REPEATS,
    WITHDRAWN_PER_STEP,
    MemberFacts,
    meta_bytes,
)
from fleetlm.core.member_loads import weigh
from fleetlm.core.snapshot import Snapshot
from fleetlm.directory.members import MAX_META_BYTES
from fleetlm.directory.replication import MAX_FACT_BYTES
from fleetlm.wire.codec import Codec

ME, PEER, THIRD = "fleetlm@10.0.0.1", "fleetlm@10.0.0.2", "fleetlm@10.0.0.3"
MINE, YOURS = Pid(ME, 1, 5), Pid(PEER, 7, 9)


def facts(node: str = ME, incarnation: int = 1, **settings: Any) -> MemberFacts:
    return MemberFacts(node, incarnation, Settings(**settings), msgpack.unpackb)


def pack(value: object) -> bytes:
    return bytes(msgpack.packb(value))


def test_a_meta_is_told_and_replaced_and_withdrawn() -> None:
    ours, theirs = facts(), facts(PEER, 7)
    theirs.told(ME, 1, ours.described("g", 5, pack({"gpu": 1})), 0.0)
    assert theirs.meta("g", MINE) == ours.meta("g", MINE) == {"gpu": 1}
    assert theirs.meta("other", MINE) is theirs.meta("g", Pid(ME, 2, 5)) is None
    theirs.told(ME, 1, ours.described("g", 5, None), 0.0)
    assert theirs.meta("g", MINE) is ours.meta("g", MINE) is None


def test_the_latest_report_counts_and_is_told_once() -> None:
    ours, theirs = facts(), facts(PEER, 7)
    ours.reported("g", 5, {"load": 1}, now=1.0)
    ours.reported("g", 5, {"load": 2.5, "queue": 3}, now=2.0)
    (fact,) = ours.due()
    assert list(ours.due()) == []
    theirs.told(ME, 1, fact, now=10.0)
    report = theirs.report("g", MINE)
    assert report is not None
    assert (dict(report.gauges), report.at_s) == ({"load": 2.5, "queue": 3.0}, 10.0)
    assert theirs.has_told("g")
    assert not theirs.has_told("h")
    theirs.left("g", MINE)
    assert theirs.report("g", MINE) is None
    assert not theirs.has_told("g")


def test_the_same_numbers_are_told_again_only_to_stay_fresh() -> None:
    ours, stale_s = facts(), Settings().gauge_stale_s
    told = []
    for tenth in range(31):
        if ours.reported("g", 5, {"load": 1}, now=tenth * 0.1):
            told.append(tenth / 10)
        assert len(list(ours.due())) == (told[-1] == tenth / 10)
    assert len(told) == REPEATS
    assert max(later - former for former, later in pairwise(told)) < stale_s / 2
    assert ours.reported("g", 5, {"load": 2}, now=3.05), "other numbers are told at once"
    assert ours.reported("g", 5, {"load": 1}, now=3.06)
    assert len(list(ours.due())) == 1
    assert not ours.reported("g", 5, {"load": 1}, now=3.1)
    report = ours.report("g", MINE)
    assert report is not None
    assert report.at_s == 3.1


@pytest.mark.parametrize("apart_s", [0.05, 0.7, 0.8, 1.0, 1.4])
def test_a_member_that_reports_twice_in_time_stays_fresh_elsewhere(apart_s: float) -> None:
    ours, theirs = facts(), facts(PEER, 7)
    for number in range(int(20 / apart_s)):
        now = number * apart_s
        ours.reported("g", 5, {"load": 1}, now)
        for fact in ours.due():
            theirs.told(ME, 1, fact, now)
        report = theirs.report("g", MINE)
        assert report is not None
        assert now + apart_s - report.at_s < Settings().gauge_stale_s


def test_one_that_has_left_and_joined_again_tells_its_report() -> None:
    ours = facts()
    ours.reported("g", 5, {"load": 1}, now=1.0)
    assert len(list(ours.due())) == 1
    ours.left("g", MINE)
    assert ours._told_at == {}, "nothing is kept of members that have left"
    assert ours.reported("g", 5, {"load": 1}, now=1.1)


def test_a_report_of_a_member_that_has_left_is_not_told() -> None:
    ours = facts()
    ours.reported("g", 5, {"load": 1}, now=1.0)
    ours.left("g", MINE)
    assert list(ours.due()) == []


def test_loads_of_all_other_nodes_are_added_up_and_replaced_as_a_whole() -> None:
    ours = facts()
    ours.told(PEER, 7, ["loads", {ME: [1, {5: 3}], PEER: [7, {9: 2}]}], 0.0)
    ours.told(THIRD, 8, ["loads", {ME: [1, {5: 4}]}], 0.0)
    assert (ours.outstanding(MINE), ours.outstanding(YOURS)) == (7, 2)
    ours.told(PEER, 7, ["loads", {PEER: [7, {9: 1}]}], 0.0)
    assert (ours.outstanding(MINE), ours.outstanding(YOURS)) == (4, 1)
    ours.node_down(THIRD)
    ours.node_down(PEER)
    assert (ours.outstanding(MINE), ours.outstanding(YOURS)) == (0, 0)


def test_the_loads_of_this_node_are_told_when_they_are_news() -> None:
    ours = facts()
    assert ours.loaded({}) is None
    assert ours.loaded({YOURS: 2}) == ["loads", {PEER: [7, {9: 2}]}]
    assert ours.loaded({YOURS: 2}) is None
    assert ours.outstanding(YOURS) == 0, "those of other nodes only"
    assert ours.loaded({}) == ["loads", {}]


def test_of_too_many_loads_the_largest_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_facts, "MAX_LOADS", 2)
    fact = facts().loaded({Pid(PEER, 7, number): number for number in range(1, 6)})
    assert fact == ["loads", {PEER: [7, {5: 5, 4: 4}]}]


def test_a_snapshot_has_everything_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_facts, "PIECE_BYTES", 300)
    ours, theirs = facts(), facts(PEER, 7)
    for number in range(1, 11):
        ours.described("g", number, pack("x" * 100))
    ours.reported("g", 3, {"load": 1}, 0.0)
    ours.reported("h", 30, {"load": 2}, 0.0)
    ours.loaded({YOURS: 2})
    told = list(ours.own_facts([*ours.own_keys()]))
    assert [fact[0] for fact in told].count("members") == 4
    assert LOADS_KEY in ours.own_keys()
    for fact in told:
        theirs.told(ME, 1, fact, 5.0)
    assert [theirs.meta("g", Pid(ME, 1, number)) for number in range(1, 11)] == ["x" * 100] * 10
    assert theirs.has_told("g")
    assert theirs.has_told("h")
    assert theirs.outstanding(YOURS) == 2


def test_a_report_in_a_snapshot_has_its_age() -> None:
    now = 100.0
    ours = MemberFacts(ME, 1, Settings(), msgpack.unpackb, clock=lambda: now)
    theirs = facts(PEER, 7)
    ours.reported("g", 5, {"load": 0}, now)
    now = 160.5
    for fact in ours.own_facts([*ours.own_keys()]):
        theirs.told(ME, 1, fact, 1_000.0)
    report = theirs.report("g", MINE)
    assert report is not None
    assert report.at_s == 1_000.0 - 60.5


def test_what_changes_is_announced_before() -> None:
    seen: list[Any] = []
    ours = MemberFacts(
        ME, 1, Settings(), msgpack.unpackb, lambda place: seen.append((place, ours.meta("g", MINE)))
    )
    ours.described("g", 5, pack(1))
    ours.described("g", 5, pack(2))
    ours.loaded({YOURS: 1})
    assert seen == [(("g", 5), None), (("g", 5), 1), (LOADS_KEY, 2)]


class Told:
    """`snapshot.Rows` for what members tell."""

    topic = "members"

    def __init__(self, ours: MemberFacts) -> None:
        self.own_keys, self.own_facts = ours.own_keys, ours.own_facts


def test_a_member_that_leaves_during_a_snapshot_is_not_told_of_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(member_facts, "PIECE_BYTES", 250)
    for leaver in range(1, 10):
        facts_told: list[Any] = []
        snapshots: list[Snapshot] = []

        def announce(place: Any, snapshots: list[Snapshot] = snapshots, told: list[Any] = facts_told) -> None:
            for snapshot in snapshots:
                told += [fact for _, fact in snapshot.before_change("members", place)]

        ours, theirs = MemberFacts(ME, 1, Settings(), msgpack.unpackb, announce), facts(PEER, 7)
        for number in range(1, 10):
            ours.described("g", number, pack("x" * 100))
            ours.reported("g", number, {"load": 1}, 0.0)
        snapshot = Snapshot([Told(ours)])
        snapshots.append(snapshot)
        first = snapshot.next()
        assert first is not None
        theirs.told(ME, 1, first[1], 0.0)
        ours.left("g", Pid(ME, 1, leaver))
        theirs.left("g", Pid(ME, 1, leaver))  # What `core.group_table` tells, before anything else.
        while (further := snapshot.next()) is not None:
            facts_told.append(further[1])
        for fact in facts_told:
            theirs.told(ME, 1, fact, 0.0)
        gone = Pid(ME, 1, leaver)
        assert (theirs.meta("g", gone), theirs.report("g", gone)) == (None, None), leaver
        stay = [Pid(ME, 1, number) for number in range(1, 10) if number != leaver]
        assert all(theirs.meta("g", pid) and theirs.report("g", pid) for pid in stay)


LONGEST = "\U00020000" * 255
"""The name of a group that takes the most bytes."""


def test_every_fact_fits_also_with_the_longest_names() -> None:
    ours = facts(max_meta_bytes=MAX_META_BYTES)
    gauges = {f"{number:02}" + "\U00020000" * 30: 0.1 for number in range(16)}
    for number in range(1, 301):
        ours.described(LONGEST, number, b"\xc4" + bytes([number % 256, *range(number % 256)]))
        ours.reported(LONGEST, number, gauges, 0.0)
    ours.described("g", 500, pack(b"x" * (MAX_META_BYTES - 9)))
    told = [*ours.due(), *ours.own_facts([*ours.own_keys()])]
    assert len(told) > 10
    assert max(len(Codec().pack_value(fact)) for fact in told) < MAX_FACT_BYTES


def test_the_metas_of_a_node_have_a_limit_of_bytes() -> None:
    size = meta_bytes(("g", 1), pack("x" * 50))
    ours = facts(max_metas_bytes=2 * size)
    ours.described("g", 1, pack("x" * 50))
    ours.described("g", 2, pack("x" * 50))
    with pytest.raises(MessageTooLarge, match="max_metas_bytes"):
        ours.described("g", 3, pack(1))
    ours.described("g", 2, pack("x" * 40))
    with pytest.raises(MessageTooLarge, match="max_metas_bytes"):
        ours.described("g", 2, pack("x" * 51))
    ours.left("g", MINE)
    ours.described("g", 1, None)
    ours.described("g", 3, pack("x" * 50))
    with pytest.raises(ValueError, match="max_metas_bytes here"):
        ours.told(PEER, 7, ["metas", [["g", n, pack("x" * 50)] for n in range(1, 4)]], 0.0)
    ours.told(PEER, 7, ["metas", [["g", n, pack("x" * 50)] for n in range(1, 3)]], 0.0)
    ours.told(PEER, 7, ["metas", [["g", 1, None], ["g", 3, pack("x" * 50)]]], 0.0)


def test_what_is_no_packed_value_changes_nothing() -> None:
    ours = MemberFacts(ME, 1, Settings(), Codec().unpack)
    with pytest.raises(ValueError, match="not a message"):
        ours.told(PEER, 7, ["members", [["g", 8, pack(1)], ["g", 9, b"\xc1"]], [["g", 9, {"load": 1}]]], 0.0)
    assert ours.meta("g", Pid(PEER, 7, 8)) is None
    assert not ours.has_told("g")


NONSENSE: list[Any] = [
    ["members", [["g", 5, b"\x01"]], [["g", 5, {"load": "much"}]]],
    ["members", [["g", 5, b"\x01"]]],
    ["members", [["g", 5, b"\x01"]], [["g", 5, {"load": 1}, -1]]],
    ["members", [["g", 5, b"\x01"]], [["g", 5, {"load": 1}, 1.5]]],
    ["members", [["g", 5, b"\x01"]], [["g", 5, {"load": 1}, True]]],
    ["members", [["g", 5, b"\x01"]], [["g", 5, {"load": 1}, 0, 0]]],
    None,
    [],
    ["metas", 1],
    ["metas", [["g", 5]]],
    ["metas", [["g", 5, "text"]]],
    ["metas", [["g", 0, b"\x01"]]],
    ["metas", [["g", True, b"\x01"]]],
    ["metas", [["", 5, b"\x01"]]],
    ["metas", [["g", 5, b"x" * 5_000]]],
    ["gauges", [["g", 5]]],
    ["gauges", [["g", 5, {"load": "much"}]]],
    ["gauges", [["g", 5, {"load": float("nan")}]]],
    ["gauges", [["g", 5, {"load": True}]]],
    ["gauges", [["g", 5, {"load": 10**400}]]],
    ["gauges", [["g", 5, {"": 1}]]],
    ["gauges", [["g", 5, {"x" * 33: 1}]]],
    ["gauges", [["g", 5, {str(n): 1 for n in range(17)}]]],
    ["gauges", [["g", 5, [1]]]],
    ["gauges", [5]],
    ["loads", []],
    ["loads", {ME: [1]}],
    ["loads", {ME: [-1, {5: 1}]}],
    ["loads", {ME: [True, {5: 1}]}],
    ["loads", {"x" * 1_000: [1, {5: 1}]}],
    ["loads", {ME: [1, {0: 1}]}],
    ["loads", {ME: [1, {5: 0}]}],
    ["loads", {ME: [1, {5: 1.5}]}],
    ["loads", {1: [1, {5: 1}]}],
    ["loads", {ME: [1, dict.fromkeys(range(1, 3_000), 1)]}],
]


@pytest.mark.parametrize("fact", NONSENSE, ids=lambda fact: repr(fact)[:60])
def test_nonsense_changes_nothing(fact: Any) -> None:
    ours = facts()
    ours.told(PEER, 7, ["metas", [["g", 9, pack(1)]]], 0.0)
    ours.told(PEER, 7, ["loads", {ME: [1, {5: 3}]}], 0.0)
    with pytest.raises((ValueError, TypeError, InvalidName)):
        ours.told(PEER, 7, fact, 1.0)
    assert (ours.meta("g", YOURS), ours.outstanding(MINE)) == (1, 3)
    assert not ours.has_told("g")
    assert ours.meta("g", Pid(PEER, 7, 5)) is None


@pytest.mark.parametrize(
    "report",
    [
        ["g", 9.0, {"load": 1}],
        ["g", 9, [1]],
        ["g", 9, {"load": math.nan}],
        ["g", 9, {"load": True}],
        ["g", 9, {"load": 1, "": 2}],
        ["g", 9, {"load": 1}, -1],
        ["g", 9, {"load": 1}, None],
        [[], 9, {"load": 1}],
    ],
)
def test_nonsense_about_a_member_that_has_reported_before_changes_nothing(report: list[Any]) -> None:
    ours = facts()
    ours.told(PEER, 7, ["gauges", [["g", 9, {"load": 5}]]], 0.0)
    with pytest.raises((ValueError, TypeError)):
        ours.told(PEER, 7, ["gauges", [["g", 9, {"load": 6}], report]], 1.0)
    assert ours.gauges("g", [YOURS], "load", 2.0) == [(5.0, 2.0)]


def test_one_gauge_of_several_members_is_read_with_its_age() -> None:
    ours = facts()
    ours.told(PEER, 7, ["gauges", [["g", 9, {"load": 5}], ["g", 8, {"queue": 2}]]], 1.0)
    asked = [YOURS, Pid(PEER, 7, 8), Pid(PEER, 6, 9), Pid(PEER, 7, 10), Pid(THIRD, 3, 9), MINE]
    assert ours.gauges("g", asked, "load", 1.5) == [(5.0, 0.5), None, None, None, None, None]
    assert ours.gauges("other", asked, "load", 1.5) == [None] * 6
    ours.told(PEER, 7, ["gauges", [["g", 9, {"load": 6, "queue": 1}]]], 2.0)
    assert ours.gauges("g", [YOURS], "queue", 2.0) == [(1.0, 0.0)]


def test_nobody_speaks_for_another_incarnation_or_for_this_node() -> None:
    ours = facts()
    ours.told(PEER, 7, ["metas", [["g", 9, pack(1)]]], 0.0)
    for node, incarnation in ((PEER, 8), (ME, 1)):
        with pytest.raises(ValueError, match="may not tell"):
            ours.told(node, incarnation, ["metas", [["g", 9, pack(2)]]], 0.0)


def test_a_node_tells_of_no_more_members_than_it_may_have() -> None:
    ours = facts(max_memberships=2)
    ours.described("g", 1, pack(1))
    ours.described("g", 2, pack(1))
    ours.described("g", 2, pack(2))
    with pytest.raises(TooManyMemberships):
        ours.described("g", 3, pack(1))
    with pytest.raises(ValueError, match="members that tell of themselves"):
        ours.told(PEER, 7, ["metas", [["g", n, pack(1)] for n in range(1, 4)]], 0.0)
    with pytest.raises(ValueError, match="members that tell of themselves"):
        ours.told(PEER, 7, ["gauges", [["g", n, {}] for n in range(1, 4)]], 0.0)


# Loads that are compared.


def test_a_report_is_added_and_an_old_one_counts_as_the_mean() -> None:
    loads = weigh([1, 2, 0, 4], [(3.0, 0.1), (5.0, 0.1), (0.0, 9.0), None], [99.0] * 4, 3.0, 5.0)
    assert loads == [4.0, 7.0, 4.0, 4.0]


def test_a_newcomer_counts_as_a_part_of_the_mean_that_falls() -> None:
    def newcomer(age: float) -> float:
        return weigh([8, 4, 0], [None] * 3, [99.0, 99.0, age], 3.0, 5.0)[2]

    assert [newcomer(age) for age in (0.0, 2.5, 5.0)] == [6.0, 3.0, 0.0]
    assert weigh([3, 0], [None] * 2, [0.0, 0.0], 3.0, 5.0) == [3.0, 0.0]


def test_where_nobody_has_reported_or_is_new_the_requests_count_alone() -> None:
    assert weigh([3, 0], [], [], 3.0, 5.0) == [3, 0]
    assert weigh([3, 0], [(1.0, 0.0), None], [], 3.0, 5.0) == [4.0, 0]
    assert weigh([2, 0], [], [9.0, 0.0], 3.0, 5.0) == [2, 2.0]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 50),
            st.none() | st.tuples(st.floats(-9, 9), st.floats(0, 9)),
            st.floats(0, 9),
        ),
        max_size=8,
    )
)
def test_no_load_is_below_zero_and_each_member_has_one(members: list[Any]) -> None:
    counts, reported, known = ([each[at] for each in members] for at in range(3))
    loads = weigh(counts, reported, known, 3.0, 5.0)
    assert len(loads) == len(members)
    assert all(load >= 0 for load in loads)


def test_what_a_lost_node_told_is_forgotten_and_of_others_nothing_is_known() -> None:
    ours = facts()
    ours.told(PEER, 7, ["gauges", [["g", 9, {"load": 1}]]], 0.0)
    ours.left("g", Pid(THIRD, 3, 1))
    ours.node_down(THIRD)
    ours.node_down(ME)
    assert ours.has_told("g")
    steps = ours.node_down(PEER)
    assert ours.report("g", YOURS) is None, "at once"
    assert [*steps] == []
    assert not ours.has_told("g")


def test_the_reports_of_a_lost_node_are_forgotten_in_small_steps_and_later_ones_stay() -> None:
    ours = facts(max_memberships=1_000)
    ours.told(PEER, 7, ["gauges", [[f"g{n}", 9, {"load": 1}] for n in range(200)]], 0.0)
    steps = ours.node_down(PEER)
    assert ours.report("g0", YOURS) is None
    ours.told(PEER, 8, ["gauges", [["g199", 9, {"load": 2}]]], 0.0)
    sizes = [len(ours._reporting), *(len(ours._reporting) for _ in steps)]
    assert sizes[0] == 200
    assert sizes[-1] == 1
    assert max(before - after for before, after in pairwise(sizes)) <= WITHDRAWN_PER_STEP
    assert ours.has_told("g199")
    assert not ours.has_told("g0")
    assert [*ours.node_down(PEER)] == []
    assert not ours.has_told("g199")


def test_numbers_of_libraries_are_gauges_if_they_are_finite() -> None:
    ours = facts()
    ours.reported("g", 5, {"load": Fraction(1, 4)}, 0.0)  # type: ignore[dict-item]
    report = ours.report("g", MINE)
    assert report is not None
    assert dict(report.gauges) == {"load": 0.25}
    with pytest.raises(ValueError, match="not a finite number"):
        ours.reported("g", 5, {"load": Fraction(10**400)}, 0.0)  # type: ignore[dict-item]


@pytest.mark.parametrize("verb", ["metas", "gauges"])
def test_one_fact_of_a_peer_tells_of_few_members(verb: str) -> None:
    ours = facts()
    told = [["g", number, b"\x01" if verb == "metas" else {}] for number in range(1, MAX_TOLD_MEMBERS + 2)]
    with pytest.raises(ValueError, match="one fact tells of more than"):
        ours.told(PEER, 7, [verb, told], 0.0)
    with pytest.raises(ValueError, match="one fact tells of more than"):
        ours.told(PEER, 7, ["members", *((told, []) if verb == "metas" else ([], told))], 0.0)
    ours.told(PEER, 7, [verb, told[1:]], 0.0)


HEAVY = pack([[]] * 100)
"""A meta that takes eighty times its bytes in memory."""


def test_metas_that_take_far_more_memory_than_bytes_have_a_limit_too() -> None:
    ours = facts(max_metas_bytes=10_000)  # So they may take 80,000, which is two of these.
    for number in (1, 2, 2):
        ours.described("g", number, HEAVY)
        ours.told(PEER, 7, ["metas", [["g", number, HEAVY]]], 0.0)
    with pytest.raises(MessageTooLarge, match=r"8 times Settings\.max_metas_bytes"):
        ours.described("g", 3, HEAVY)
    with pytest.raises(ValueError, match=r"8 times Settings\.max_metas_bytes"):
        ours.told(PEER, 7, ["metas", [["g", 3, HEAVY]]], 0.0)
    ours.left("g", Pid(ME, 1, 1))
    ours.described("g", 3, HEAVY)
    ours.told(PEER, 7, ["metas", [["g", 1, None], ["g", 3, HEAVY]]], 0.0)


def test_the_collector_leaves_reports_out() -> None:
    """It would visit each of them in each of its passes, and there may be 100,000 of a node."""
    ours = facts()
    for number in range(1, 101):
        fact = ["gauges", [[f"g{number}", number, {"load": 1, "queue": 2}]]]
        ours.told(YOURS.node, YOURS.incarnation, fact, 1.0)
    gc.collect()
    reports = ours._told[YOURS.node].reports
    assert len(reports) == 100
    assert not any(gc.is_tracked(each) for each in (*reports, *reports.values()))
