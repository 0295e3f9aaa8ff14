"""The members of one group, held in blocks that are sorted."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, strategies as st

from fleetlm.core import group_members
from fleetlm.core.group_members import Members, after
from fleetlm.ids import Pid, pid_order

NODES = ("c@10.0.0.1", "a@10.0.0.2", "b@10.0.0.3")
PIDS = [Pid(node, incarnation, number) for incarnation, node in enumerate(NODES, 1) for number in range(1, 6)]
pids = st.sampled_from(PIDS)


def agree(members: Members, model: list[Pid]) -> None:
    assert [*members] == sorted(model, key=pid_order)
    assert (len(members), members.joins, members.processes) == (len(model), len(model), len({*model}))
    assert bool(members) == bool(model)
    assert all(members.blocks)
    for node in NODES:
        assert [*members.block(node)] == [pid for pid in members if pid.node == node]


@given(st.lists(st.tuples(st.sampled_from(["add", "add", "remove", "node"]), pids)))
def test_members_are_what_a_sorted_list_would_hold(steps: list[tuple[str, Pid]]) -> None:
    members, model = Members(), list[Pid]()
    for verb, pid in steps:
        if verb == "add":
            members.add(pid)
            model.append(pid)
        elif verb == "node":
            members.remove_node(pid.node)
            model = [other for other in model if other.node != pid.node]
        elif pid in model:
            members.remove(pid)
            model.remove(pid)
        agree(members, model)


@given(st.lists(pids, min_size=1), pids)
def test_the_member_after_another_is_the_next_in_order_and_after_the_last_comes_the_first(
    model: list[Pid], last: Pid
) -> None:
    ordered = sorted({*model}, key=pid_order)
    later = [pid for pid in ordered if pid_order(pid) > pid_order(last)]
    assert after(last, Members(model).blocks) == (later or ordered)[0]


def test_a_former_incarnation_comes_before_the_members_of_its_successor() -> None:
    members = Members([Pid("a@10.0.0.1", 2, 1), Pid("a@10.0.0.1", 2, 5)])
    assert after(Pid("a@10.0.0.1", 1, 4), members.blocks) == Pid("a@10.0.0.1", 2, 1)
    assert after(Pid("a@10.0.0.1", 3, 1), members.blocks) == Pid("a@10.0.0.1", 2, 1)


@given(st.lists(pids, min_size=1))
def test_an_index_counts_through_all_blocks(model: list[Pid]) -> None:
    members = Members(model)
    for picked_from in (members, Members.of(members.blocks)):
        assert picked_from.joins == len(model)
        assert [picked_from.at(index) for index in range(len(model))] == [*members]
        with pytest.raises(IndexError):
            picked_from.at(len(model))


def test_a_join_and_a_leave_in_a_large_group_touch_one_block() -> None:
    members = Members(Pid(f"n@10.0.0.{node}", 1, number) for node in range(10) for number in range(1, 101))
    others = [id(block) for block in members.blocks if block[0].node != "n@10.0.0.3"]
    before = [*members]
    rng = random.Random(1)
    for _ in range(50):
        pid = Pid("n@10.0.0.3", 1, rng.randrange(1, 101))
        members.remove(pid)
        members.add(pid)
    assert [id(block) for block in members.blocks if block[0].node != "n@10.0.0.3"] == others
    assert [*members] == before


def test_a_process_that_has_joined_often_is_found_as_fast_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def number(pid: Pid) -> int:
        nonlocal looks
        looks += 1
        return pid.number

    members = Members(PIDS[:1] * 5_000)
    monkeypatch.setattr(group_members, "_number", number)
    members.add(PIDS[0])
    members.remove(PIDS[0])
    assert (members.joins, members.processes) == (5_000, 1)
    assert looks < 100, "a look at each membership would take the loop's time"
