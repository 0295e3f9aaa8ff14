"""Which member a key belongs to."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings, strategies as st

from fleetlm.core import rings as rings_module
from fleetlm.core.group_members import Members
from fleetlm.core.rings import RINGS, Key, Rings, digest_of, places_of, probes_of
from fleetlm.ids import Pid, pid_order

MEMBERS = [Pid(f"fleetlm@10.0.0.{node}", node, number) for node in range(1, 5) for number in (1, 2)]
PINNED: dict[Key, tuple[str, int]] = {
    "a": ("1", 1),
    b"a": ("1", 1),
    97: ("4", 2),
    "b": ("1", 1),
    "": ("1", 2),
    b"\xff": ("2", 2),
    -1: ("4", 2),
    "session-17": ("4", 1),
}
"""Keys, each with the node and the number of the member that every version must pick."""

keys = st.one_of(st.text(), st.binary(), st.integers())


def owner(key: Key, members: Members) -> Pid:
    return members.rings().nearest(probes_of(digest_of(key)))


def many(count: int, seed: int = 1) -> list[Pid]:
    """Return members on four nodes."""
    rng = random.Random(seed)
    started = [rng.getrandbits(64) for _ in range(4)]
    return [
        Pid(f"fleetlm@10.0.1.{number % 4}", started[number % 4], number // 4 + 1) for number in range(count)
    ]


def test_keys_of_three_types_are_three_keys_and_stay_the_same_for_ever() -> None:
    assert len({digest_of(key) for key in ("7", b"7", 7, -7, "", b"", 0, "\ud800", 10**5_000)}) == 9
    # What other versions of fleetlm in the same cluster must answer as well.
    picks = {key: owner(key, Members(MEMBERS)) for key in PINNED}
    assert {key: (pid.node[-1], pid.number) for key, pid in picks.items()} == PINNED


def nearest_by_definition(probes: tuple[int, ...], pids: set[Pid]) -> Pid:
    """Return the member at the smallest distance, without any ring."""
    ordered = sorted(pids, key=pid_order)

    def distance(rank: int) -> tuple[int, int, int, int]:
        places = rings_module.places_of(ordered[rank])
        return min(
            min(((place - probe) % 2**32, ring, 0, rank), ((probe - place) % 2**32, ring, 1, -rank))
            for ring, (place, probe) in enumerate(zip(places, probes, strict=True))
        )

    return ordered[min(range(len(ordered)), key=distance)]


@settings(max_examples=30)
@given(keys, st.sets(st.sampled_from(MEMBERS), min_size=1))
def test_it_is_the_member_nearest_to_a_probe(key: Key, pids: set[Pid]) -> None:
    assert owner(key, Members(pids)) == nearest_by_definition(probes_of(digest_of(key)), pids)


def one_of_few_places(pid: Pid) -> tuple[int, ...]:
    """As `places_of`, with many members at the same place, some of them at both ends of the circle."""
    return tuple(4 * (place % 5 - 2) % 2**32 for place in places_of(pid))


few = st.sampled_from([2, 6, 10, 2**31, 2**32 - 2, 2**32 - 6])  # Halfway between places, mostly.
few_probes = st.lists(few, min_size=RINGS, max_size=RINGS)


@settings(max_examples=60)
@given(few_probes.map(tuple), st.permutations(MEMBERS), st.data())
def test_members_at_the_same_distance_are_told_apart_by_what_all_nodes_know(
    probes: tuple[int, ...], order: list[Pid], data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rings_module, "places_of", one_of_few_places)
        rings = Rings(sorted(order[:1], key=pid_order))
        for pid in order[1:]:
            rings.add(pid)
        for pid in data.draw(st.lists(st.sampled_from(order), unique=True, max_size=len(order) - 1)):
            rings.remove(pid)
            order.remove(pid)
        expected = nearest_by_definition(probes, {*order})
        assert rings.nearest(probes) == expected
        assert rings.nearest_of(probes, lambda _: True) == expected
        chosen = {*data.draw(st.lists(st.sampled_from(order), min_size=1))}
        assert rings.nearest_of(probes, chosen.__contains__) == nearest_by_definition(probes, chosen)


@settings(max_examples=30)
@given(keys, st.permutations(MEMBERS), st.integers(1, 8))
def test_neither_the_order_nor_the_history_of_the_members_matters(
    key: Key, order: list[Pid], count: int
) -> None:
    members = Members(order)
    owner(key, members)
    for pid in order[count:]:
        members.remove(pid)
        owner(key, members)
    assert owner(key, members) == owner(key, Members(sorted(order[:count], key=str)))


@settings(max_examples=30)
@given(keys, st.lists(st.sampled_from(MEMBERS), min_size=1), st.sampled_from(MEMBERS))
def test_a_key_moves_only_from_a_member_that_leaves_or_to_one_that_joins(
    key: Key, pids: list[Pid], other: Pid
) -> None:
    members = Members(pids)
    before = owner(key, members)
    members.add(other)
    assert owner(key, members) in (before, other)
    members.remove(other)
    assert owner(key, members) == before


@settings(max_examples=30)
@given(keys, st.sets(st.sampled_from(MEMBERS), min_size=1))
def test_members_that_may_not_be_picked_are_passed_over_as_if_they_did_not_exist(
    key: Key, chosen: set[Pid]
) -> None:
    probes = probes_of(digest_of(key))
    assert Rings(MEMBERS).nearest_of(probes, chosen.__contains__) == owner(key, Members(chosen))


def test_where_no_member_may_be_picked_each_is_looked_at_once() -> None:
    asked: list[Pid] = []

    def may(pid: Pid) -> bool:
        asked.append(pid)
        return False

    assert Rings(MEMBERS).nearest_of(probes_of(digest_of("k")), may) is None
    assert sorted(asked, key=pid_order) == MEMBERS


def test_few_members_are_looked_at_where_many_may_not_be_picked() -> None:
    pids = sorted(many(2_000), key=pid_order)
    rings, asked = Rings(pids), 0

    def may(pid: Pid) -> bool:
        nonlocal asked
        asked += 1
        return pid.number % 10 == 0

    for key in range(200):
        found = rings.nearest_of(probes_of(digest_of(key)), may)
        assert found is not None
        assert found.number % 10 == 0
    assert asked / 200 < 60


@pytest.mark.parametrize("leaves", [1, 3, 60])
def test_a_node_that_leaves_takes_all_its_members_from_the_rings(leaves: int) -> None:
    gone = [Pid("fleetlm@10.0.2.1", 7, number) for number in range(1, leaves + 1)]
    stays = many(200)
    members, expected = Members([*stays, *gone]), Members(stays)
    owner("k", members)
    members.remove_node("fleetlm@10.0.2.1")
    assert [owner(key, members) for key in range(300)] == [owner(key, expected) for key in range(300)]
    members.add(gone[0])
    expected.add(gone[0])
    assert [owner(key, members) for key in range(300)] == [owner(key, expected) for key in range(300)]


# Balance.


def shares(members: Members, count: int, name: Callable[[int], Key] = int) -> Counter[Pid]:
    return Counter(owner(name(key), members) for key in range(count))


def spread(found: Counter[Pid], size: int) -> float:
    """Return the standard deviation of the members' shares beyond that of chance, by the mean.

    It is chi-square, less what it would be if each key went to any member by chance.
    """
    mean = found.total() / size
    chi_square = sum((count - mean) ** 2 for count in found.values()) / mean + (size - len(found)) * mean
    return max(0.0, (chi_square - (size - 1)) / (size - 1) / mean) ** 0.5


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7, 8])
def test_the_shares_of_few_members_are_nearly_equal(size: int) -> None:
    spreads = []
    for seed in range(2):
        found = shares(Members(many(size, seed)), 1_000 * size)
        assert len(found) == size
        assert max(found.values()) < 1_170
        assert min(found.values()) > 830
        spreads.append(spread(found, size))
    assert sum(spreads) / 2 < 0.06


def test_the_shares_of_many_members_are_nearly_equal() -> None:
    found = shares(Members(many(50)), 20_000, lambda key: f"session-{key}")
    assert len(found) == 50
    assert min(found.values()) > 320  # The mean is 400, and chance alone has a standard deviation of 20.
    assert max(found.values()) < 480
    assert spread(found, 50) < 0.06


def test_one_that_joins_gets_its_share_from_all_others_evenly() -> None:
    rng = random.Random(1)
    pids = [Pid(f"fleetlm@10.0.1.{number}", rng.getrandbits(60), 7) for number in range(20)]
    members = Members(pids[:19])
    before = [owner(key, members) for key in range(8_000)]
    members.add(pids[19])
    after = [owner(key, members) for key in range(8_000)]
    moved = Counter(old for old, new in zip(before, after, strict=True) if old != new)
    assert {new for old, new in zip(before, after, strict=True) if old != new} == {pids[19]}
    assert 300 < moved.total() < 500  # 8,000 / 20
    assert len(moved) == 19
    assert max(moved.values()) < 50  # 400 / 19 = 21


# What is kept.


def test_a_process_that_joins_twice_stands_once_on_the_rings() -> None:
    members = Members(MEMBERS)
    before = shares(members, 300)
    members.add(MEMBERS[0])
    assert shares(members, 300) == before == shares(Members([*MEMBERS, MEMBERS[0]]), 300)
    members.remove(MEMBERS[0])
    assert shares(members, 300) == before


def test_the_rings_are_kept_while_members_come_and_go_and_dropped_if_nobody_uses_them() -> None:
    members = Members(MEMBERS[1:])
    rings = members.rings()
    for _ in range(1_000):
        members.add(MEMBERS[0])
        members.remove(MEMBERS[0])
        assert members.rings() is rings
    for _ in range(500):
        members.add(MEMBERS[0])
        members.remove(MEMBERS[0])
    assert members._rings is None
    assert owner("k", members) == owner("k", Members(MEMBERS[1:]))


def test_a_group_that_was_empty_has_new_rings() -> None:
    members = Members(MEMBERS[:1])
    assert owner("k", members) == MEMBERS[0]
    members.remove(MEMBERS[0])
    members.add(MEMBERS[1])
    assert owner("k", members) == MEMBERS[1]
    members.remove_node(MEMBERS[1].node)
    members.add(MEMBERS[2])
    assert owner("k", members) == MEMBERS[2]
