"""What members and nodes tell, decided by facts."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, strategies as st

from fleetlm import InvalidName, Pid, Settings, TooManyMemberships
from fleetlm.core import member_facts
from fleetlm.core.member_facts import LOADS_KEY, MemberFacts
from fleetlm.core.member_loads import weigh

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
    monkeypatch.setattr(member_facts, "PIECE_BYTES", 250)
    ours, theirs = facts(), facts(PEER, 7)
    for number in range(1, 11):
        ours.described("g", number, pack("x" * 100))
    ours.reported("g", 3, {"load": 1}, 0.0)
    ours.reported("h", 30, {"load": 2}, 0.0)
    ours.loaded({YOURS: 2})
    told = list(ours.own_facts([*ours.own_keys()]))
    assert [fact[0] for fact in told].count("metas") == 4
    assert LOADS_KEY in ours.own_keys()
    for fact in told:
        theirs.told(ME, 1, fact, 5.0)
    assert [theirs.meta("g", Pid(ME, 1, number)) for number in range(1, 11)] == ["x" * 100] * 10
    assert theirs.has_told("g")
    assert theirs.has_told("h")
    assert theirs.outstanding(YOURS) == 2


def test_what_changes_is_announced_before() -> None:
    seen: list[Any] = []
    ours = MemberFacts(
        ME, 1, Settings(), msgpack.unpackb, lambda place: seen.append((place, ours.meta("g", MINE)))
    )
    ours.described("g", 5, pack(1))
    ours.described("g", 5, pack(2))
    ours.left("g", MINE)
    ours.left("g", MINE)
    ours.loaded({YOURS: 1})
    assert seen == [(("g", 5), None), (("g", 5), 1), (("g", 5), 2), (LOADS_KEY, None)]


NONSENSE: list[Any] = [
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
