"""Process groups as a table: facts and effects, without a node."""

from __future__ import annotations

from typing import Any

import pytest

from fleetlm.core.group_table import (
    MAX_ENDED_MEMBERSHIPS,
    MAX_PIECE_MEMBERSHIPS,
    Effect,
    GroupTable,
    Tell,
)
from fleetlm.directory.replication import MAX_FACT_BYTES
from fleetlm.errors import InvalidName, NoProcess, TooManyMemberships
from fleetlm.ids import Pid, pid_order
from fleetlm.messages import Joined, Left
from fleetlm.wire import operations
from fleetlm.wire.codec import Codec

HERE, THERE, YONDER = "fleetlm@10.0.0.2", "fleetlm@10.0.0.1", "fleetlm@10.0.0.3"


def here(number: int) -> Pid:
    return Pid(HERE, 7, number)


def there(number: int) -> Pid:
    return Pid(THERE, 8, number)


def table(limit: int = 1_000, node: str = HERE, incarnation: int = 7) -> GroupTable:
    """The table of a node on which processes 1 to 9,999 are alive."""
    return GroupTable(node, incarnation, limit, lambda pid: pid == Pid(node, incarnation, pid.number))


def facts(effects: list[Effect]) -> list[Any]:
    return [effect.fact for effect in effects if isinstance(effect, Tell)]


def changes(effects: list[Effect]) -> list[Joined | Left]:
    return [effect for effect in effects if not isinstance(effect, Tell)]


def state(groups: GroupTable) -> Any:
    return {group: list(groups.members(group)) for group in groups.groups()}


# ── this node ────────────────────────────────────────────────────────────────────────────────────


def test_a_group_is_there_while_it_has_a_member() -> None:
    groups = table()
    assert groups.groups() == [*groups.members("g")] == groups.local_members("g") == []
    effects = groups.joined("g", [here(2), here(1)])
    assert facts(effects) == [["join", {"g": [2, 1]}]]
    assert changes(effects) == [Joined("g", here(2)), Joined("g", here(1))]
    assert [*groups.members("g")] == groups.local_members("g") == [here(1), here(2)]
    assert groups.groups() == ["g"]
    assert groups.has("g")
    groups.left("g", [here(1), here(2)])
    assert groups.groups() == [*groups.members("g")] == []
    assert not groups.has("g")


def test_a_process_that_joined_twice_leaves_once_at_a_time() -> None:
    groups = table()
    groups.joined("g", [here(1)])
    groups.joined("g", [here(1), here(2)])
    assert [*groups.members("g")] == [here(1), here(1), here(2)]
    effects = groups.left("g", [here(1)])
    assert facts(effects) == [["leave", {"g": [1]}]]
    assert changes(effects) == [Left("g", here(1), "left")]
    assert [*groups.members("g")] == [here(1), here(2)]


def test_leaving_passes_over_processes_that_are_not_members() -> None:
    groups = table()
    groups.joined("g", [here(1)])
    groups.joined("other", [here(2)])
    assert groups.left("g", [here(2)]) == groups.left("nowhere", [here(1)]) == []
    assert groups.left("g", [Pid(HERE, 6, 1), Pid(THERE, 7, 1)]) == []
    effects = groups.left("g", [here(1), here(1), here(2)])
    assert changes(effects) == [Left("g", here(1), "left")]
    assert state(groups) == {"other": [here(2)]}


def test_an_end_leaves_every_group_as_often_as_it_was_joined() -> None:
    groups = table()
    for group in ("a", "b", "a"):
        groups.joined(group, [here(1)])
    groups.joined("a", [here(2)])
    effects = groups.exited(here(1))
    assert facts(effects) == [["exit", 1]]
    assert changes(effects) == [Left(group, here(1), "exited") for group in ("a", "a", "b")]
    assert state(groups) == {"a": [here(2)]}
    assert groups.exited(here(1)) == groups.exited(here(99)) == []


@pytest.mark.parametrize("stranger", [Pid(HERE, 6, 1), Pid(THERE, 7, 1)])
def test_only_processes_of_this_node_can_join(stranger: Pid) -> None:
    groups = table()
    with pytest.raises(NoProcess):
        groups.joined("g", [here(1), stranger])
    assert groups.groups() == []


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb"])
def test_a_group_has_a_name_as_a_process_has(name: str) -> None:
    groups = table()
    with pytest.raises(InvalidName):
        groups.joined(name, [here(1)])
    assert groups.joined("x" * 255, [here(1)])


def test_joins_beyond_the_limit_are_refused_as_a_whole() -> None:
    groups = table(limit=3)
    groups.joined("g", [here(1), here(2)])
    with pytest.raises(TooManyMemberships) as caught:
        groups.joined("g", [here(3), here(4)])
    assert (caught.value.held, caught.value.wanted, caught.value.limit) == (2, 2, 3)
    assert [*groups.members("g")] == [here(1), here(2)]
    groups.exited(here(1))
    groups.joined("g", [here(3), here(4)])
    groups.left("g", [here(3)])
    groups.joined("h", [here(4)])
    with pytest.raises(TooManyMemberships):
        groups.joined("h", [here(4)])


# ── others ───────────────────────────────────────────────────────────────────────────────────────


def test_what_a_node_tells_at_nodeup_makes_the_same_table() -> None:
    groups, other = table(), table(node=YONDER, incarnation=9)
    for group, numbers in (("a", [3, 1, 1]), ("b", [1]), ("c", [2])):
        groups.joined(group, map(here, numbers))
    groups.exited(here(2))
    groups.left("a", [here(1)])
    for fact in groups.own_facts(groups.own_keys()):
        other.told(HERE, 7, fact)
    assert state(other) == state(groups) == {"a": [here(1), here(3)], "b": [here(1)]}
    assert other.local_members("a") == list(other.own_keys()) == list(other.own_facts([1])) == []


def test_members_are_ordered_alike_everywhere() -> None:
    groups, other = table(), table(node=THERE, incarnation=8)
    first = groups.joined("g", [here(2)]) + groups.joined("g", [here(1)])
    second = other.joined("g", [there(5)])
    for fact in facts(second):
        groups.told(THERE, 8, fact)
    for fact in facts(first):
        other.told(HERE, 7, fact)
    assert [*groups.members("g")] == [*other.members("g")] == [there(5), here(1), here(2)]
    assert groups.local_members("g") == [here(1), here(2)]
    assert [*groups.members("g")] == sorted(groups.members("g"), key=pid_order)


def test_joins_and_leaves_of_other_nodes_become_events() -> None:
    groups = table()
    assert groups.told(THERE, 8, ["join", {"g": [1, 2, 1], "h": [1]}]) == [
        Joined("g", there(1)), Joined("g", there(2)), Joined("g", there(1)), Joined("h", there(1)),
    ]  # fmt: skip
    assert groups.told(THERE, 8, ["leave", {"g": [1]}]) == [Left("g", there(1), "left")]
    assert groups.told(THERE, 8, ["exit", 1]) == [
        Left("g", there(1), "exited"),
        Left("h", there(1), "exited"),
    ]
    assert state(groups) == {"g": [there(2)]}
    groups.joined("g", [here(1)])
    assert [*groups.node_down(THERE)] == [Left("g", there(2), "noconnection")]
    assert [*groups.node_down(THERE)] == [*groups.node_down(HERE)] == []
    assert state(groups) == {"g": [here(1)]}


def test_a_node_that_comes_back_is_another() -> None:
    groups = table()
    groups.told(THERE, 8, ["join", {"g": [1]}])
    assert len([*groups.node_down(THERE)]) == 1
    groups.told(THERE, 9, ["join", {"g": [1]}])
    assert [*groups.members("g")] == [Pid(THERE, 9, 1)]


def test_who_is_the_one_member_of_a_group_is_known_without_members_being_made() -> None:
    groups = table()
    groups.told(THERE, 8, ["join", {"g": [3]}])
    assert groups.has_member("g", there(3))
    assert not groups.has_member("g", there(4))
    assert [*groups.members("g")] == [there(3)]


def test_a_lost_nodes_memberships_are_hidden_at_once_and_taken_out_in_small_steps() -> None:
    groups = table()
    for number in range(1, 9):
        groups.told(THERE, 8, ["join", {f"alone{number}": [number], "shared": [number, number]}])
    groups.joined("shared", [here(1)])
    groups.told(YONDER, 9, ["join", {"alone1": [1]}])
    before, yonder = groups.count, Pid(YONDER, 9, 1)
    steps = groups.node_down(THERE)
    assert groups.count == before, "nothing was taken out yet: there may be 100,000"
    assert [*groups.members("shared")] == [here(1)]
    assert [*groups.members("alone1")] == [yonder]
    assert [*groups.members("alone4")] == []
    assert not groups.has("alone2")
    assert not groups.has_member("alone3", there(3))
    assert groups.groups() == ["alone1", "shared"]
    assert groups.first(5, 100) == [
        ("alone1", groups.members("alone1")),
        ("shared", groups.members("shared")),
    ]
    assert groups.memberships == 2
    left = [next(steps)]
    groups.joined("alone5", [here(2)])
    groups.told(YONDER, 9, ["join", {"alone6": [1]}])
    left += steps
    assert len(left) == 24
    assert set(left) == {
        Left(group, there(n), "noconnection") for n in range(1, 9) for group in (f"alone{n}", "shared")
    }
    assert groups.count == len(groups.groups()) == 4
    assert state(groups) == {"alone1": [yonder], "alone5": [here(2)], "alone6": [yonder], "shared": [here(1)]}
    assert not groups._leaving


def test_what_a_lost_node_tells_anew_stays() -> None:
    groups = table()
    groups.told(THERE, 8, ["join", {"g": [1], "h": [1], "i": [1, 2]}])
    steps = groups.node_down(THERE)
    groups.told(THERE, 9, ["join", {"g": [1], "i": [3]}])
    assert len([*steps]) == 4
    assert state(groups) == {"g": [Pid(THERE, 9, 1)], "i": [Pid(THERE, 9, 3)]}
    steps = groups.node_down(THERE)
    groups.told(THERE, 10, ["join", {"g": [2]}])
    assert len([*steps]) == 2
    assert state(groups) == {"g": [Pid(THERE, 10, 2)]}
    assert groups.count == 1


HOSTILE: list[Any] = [
    None, 7, "join", [], {}, ["join"], ["join", {}], ["join", []], ["join", {"g": [1]}, 1], ["join", None],
    ["join", {"g": []}], ["join", {"g": 1}], ["join", {"g": (1,)}], ["join", {"g": {1: 1}}],
    ["join", {"g": [0]}], ["join", {"g": [-1]}], ["join", {"g": [1 << 64]}], ["join", {"g": [True]}],
    ["join", {"g": [1.0]}], ["join", {"g": ["1"]}], ["join", {"g": [None]}], ["join", {"g": [here(1)]}],
    ["join", {"g": [there(1)]}], ["join", {7: [1]}], ["join", {None: [1]}], ["join", {b"g": [1]}],
    ["join", {"": [1]}], ["join", {"x" * 256: [1]}], ["join", {"a\0": [1]}], ["join", {"g": [1], "h": [0]}],
    ["join", {"g": [1], ("h",): [1]}],
    ["leave", {"g": [2]}], ["leave", {"h": [1]}], ["leave", {"g": [1, 1, 1]}], ["leave", {}], ["leave", 1],
    ["leave", {"g": [1], "h": [1]}], ["leave", {"g": [True]}], ["leave", {"mine": [1]}],
    ["exit", 2], ["exit", True], ["exit", "1"], ["exit", [1]], ["exit", {}], ["exit", there(1)], ["exit"],
    ["exit", 1, 1], ["gone", 1], [["join"], {"g": [1]}], [{}, {}],
]  # fmt: skip


@pytest.mark.parametrize("fact", HOSTILE, ids=repr)
def test_nonsense_changes_nothing(fact: Any) -> None:
    groups = table()
    groups.joined("mine", [here(1)])
    groups.told(THERE, 8, ["join", {"g": [1, 1], "g2": [3]}])
    before = state(groups)
    with pytest.raises(ValueError):  # noqa: PT011  # some are InvalidName
        groups.told(THERE, 8, fact)
    assert state(groups) == before
    groups.told(THERE, 8, ["leave", {"g": [1, 1]}])
    groups.told(THERE, 8, ["exit", 3])
    assert state(groups) == {"mine": [here(1)]}


def test_a_node_tells_only_its_own_memberships() -> None:
    groups = table()
    groups.told(THERE, 8, ["join", {"g": [1]}])
    for node, incarnation in ((HERE, 7), (HERE, 6), (THERE, 9)):
        with pytest.raises(ValueError, match="may not tell"):
            groups.told(node, incarnation, ["join", {"g": [2]}])
    assert state(groups) == {"g": [there(1)]}


def test_a_peer_with_too_many_memberships_is_refused_and_told_why() -> None:
    groups = table(limit=3)
    groups.told(YONDER, 9, ["join", {"g": [1, 2, 3]}])
    groups.told(THERE, 8, ["join", {"g": [1, 2]}])
    with pytest.raises(ValueError, match=r"more than 3 memberships .* Settings\.max_memberships"):
        groups.told(THERE, 8, ["join", {"g": [3], "h": [3]}])
    groups.told(THERE, 8, ["leave", {"g": [2]}])
    groups.told(THERE, 8, ["join", {"g": [3], "h": [3]}])
    assert [*groups.members("h")] == [there(3)]
    with pytest.raises(ValueError, match="more than 3"):
        groups.told("fleetlm@10.0.0.4", 1, ["join", {"g": [1] * 4}])


@pytest.mark.parametrize("letter", ["x", "\U0001f600"])
def test_no_fact_is_longer_than_a_fact_may_be(letter: str) -> None:
    groups = table(limit=10_000)
    for number in range(3 * MAX_PIECE_MEMBERSHIPS + 1):
        groups.joined(f"{number:03}" + letter * 252, [here((1 << 63) + number)])
    pieces = list(groups.own_facts(groups.own_keys()))
    assert len(pieces) == 4
    assert (
        max(len(Codec().pack(operations.table("groups", piece), piece)) for piece in pieces) < MAX_FACT_BYTES
    )
    effects = groups.joined("g", map(here, range(1, 3 * MAX_PIECE_MEMBERSHIPS + 2)))
    told = facts(effects) + facts(groups.left("g", map(here, range(1, 3 * MAX_PIECE_MEMBERSHIPS + 2))))
    assert len(told) == 8
    assert max(len(numbers) for _, members in told for numbers in members.values()) == MAX_PIECE_MEMBERSHIPS
    assert sum(len(numbers) for _, members in told for numbers in members.values()) == 2 * (
        3 * MAX_PIECE_MEMBERSHIPS + 1
    )


def test_some_groups_are_found_without_looking_at_all_of_them() -> None:
    groups = table()
    for name in ("d", "b", "a", "c"):
        groups.joined(name, [here(1)])
    assert groups.count == 4
    assert [name for name, _ in groups.first(2, 2)] == ["b", "d"], "only the oldest two are looked at"
    assert [name for name, _ in groups.first(2, 100)] == ["a", "b"]
    assert groups.members("c")
    assert [name for name, _ in groups.first(4, 4)] == ["a", "b", "c", "d"], "none is there twice"
    assert list(groups.first(1, 100)[0][1]) == [here(1)]


def test_sizes_are_known_without_a_look_at_every_group() -> None:
    t = GroupTable("a", 1, 10, lambda _: True)
    pids = [Pid("a", 1, number) for number in (1, 2)]
    t.joined("x", pids)
    t.joined("y", pids[:1])
    t.joined("y", pids[:1])
    assert (t.count, t.memberships) == (2, 4)
    t.left("x", pids)
    assert (t.count, t.memberships) == (1, 2)


def test_new_memberships_are_told_once_and_a_second_join_is_none() -> None:
    groups = table()
    groups.joined("g", [here(1)])
    groups.joined("g", [here(1), here(2)])
    assert groups.take_new() == [("g", here(1)), ("g", here(2))]
    assert groups.take_new() == []
    assert groups.has_member("g", here(2))
    assert not groups.has_member("g", here(3))


def test_one_fact_of_a_peer_has_few_memberships() -> None:
    groups = table(limit=5 * MAX_PIECE_MEMBERSHIPS)
    numbers = list(range(1, MAX_PIECE_MEMBERSHIPS + 1))
    for members in ({"g": [*numbers, 7]}, {f"g{number}": [number] for number in [*numbers, 2_000]}):
        with pytest.raises(ValueError, match="in one fact"):
            groups.told(THERE, 8, ["join", members])
    groups.told(THERE, 8, ["join", {"g": numbers}])
    with pytest.raises(ValueError, match="in one fact"):
        groups.told(THERE, 8, ["leave", {"g": [*numbers, 7]}])
    groups.told(THERE, 8, ["leave", {"g": numbers}])
    assert state(groups) == {}


@pytest.mark.parametrize("is_in_one", [False, True])
def test_a_process_that_was_in_many_groups_leaves_them_in_small_steps(is_in_one: bool) -> None:
    groups = table(limit=10_000)
    count = 2 * MAX_ENDED_MEMBERSHIPS + 1
    groups.told(THERE, 8, ["join", {"g": [1]}])
    names = ["g"] * count if is_in_one else [f"g{number}" for number in range(count)]
    for name in names:
        groups.told(THERE, 8, ["join", {name: [2]}])
    exit2: list[Any] = ["exit", 2]
    steps: list[Effect] = []
    for is_told in (False, False, True):
        effects = groups.told(THERE, 8, exit2)
        assert len(effects) <= MAX_ENDED_MEMBERSHIPS
        steps += effects
        assert groups.is_told(THERE, exit2) == is_told
    assert steps == [Left(name, there(2), "exited") for name in names]
    assert state(groups) == {"g": [there(1)]}
    with pytest.raises(ValueError, match="not a fact"):
        groups.told(THERE, 8, exit2)
