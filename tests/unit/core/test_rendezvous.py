"""Which member a key belongs to."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

from hypothesis import given, settings, strategies as st

from fleetlm.core.group_members import Members, lane_of
from fleetlm.core.rendezvous import digest_of, rendezvous
from fleetlm.ids import Pid

MEMBERS = [Pid(f"fleetlm@10.0.0.{node}", node, number) for node in range(1, 5) for number in (1, 2)]
PINNED = [("3", 1), ("3", 2), ("1", 1), ("2", 1), ("1", 2)]
"""For five keys, node and number of the member that every version must pick."""

keys = st.one_of(st.text(), st.binary(), st.integers())


def owner(key: str | bytes | int, members: Members) -> Pid:
    return rendezvous(digest_of(key), members.blocks)


def test_keys_of_three_types_are_three_keys_and_stay_the_same_for_ever() -> None:
    assert len({digest_of(key) for key in ("7", b"7", 7, -7, "", b"", 0, "\ud800", 10**5_000)}) == 9
    # What other versions of fleetlm in the same cluster must answer as well.
    picks = [owner(key, Members(MEMBERS)) for key in ("a", b"a", 97, "b", "")]
    assert [(pid.node[-1], pid.number) for pid in picks] == PINNED


@settings(max_examples=30)
@given(keys, st.sets(st.sampled_from(MEMBERS), min_size=1))
def test_it_is_the_member_with_the_largest_product(key: str | bytes | int, pids: set[Pid]) -> None:
    factor = int.from_bytes(digest_of(key)[:8], "little") | 1

    def score(pid: Pid) -> int:
        seed = hashlib.blake2b(str(pid).encode(), digest_size=8).digest()
        return int.from_bytes(seed, "little") * factor % 2**64

    assert owner(key, Members(pids)) == max(pids, key=score)


@settings(max_examples=30)
@given(keys, st.permutations(MEMBERS), st.integers(1, 8))
def test_neither_the_order_nor_the_history_of_the_members_matters(
    key: str | bytes | int, order: list[Pid], count: int
) -> None:
    members = Members(order)
    owner(key, members)  # What it keeps of the blocks must not outlive a change of them.
    for pid in order[count:]:
        members.remove(pid)
        owner(key, members)
    assert owner(key, members) == owner(key, Members(sorted(order[:count], key=str)))


@settings(max_examples=30)
@given(keys, st.lists(st.sampled_from(MEMBERS), min_size=1), st.sampled_from(MEMBERS))
def test_a_key_moves_only_from_a_member_that_leaves_or_to_one_that_joins(
    key: str | bytes | int, pids: list[Pid], other: Pid
) -> None:
    members = Members(pids)
    before = owner(key, members)
    members.add(other)
    after = owner(key, members)
    assert after in (before, other)
    members.remove(other)
    assert owner(key, members) == before


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


def test_keys_are_spread_evenly_over_many_members() -> None:
    members = Members(Pid(f"fleetlm@10.0.{number % 4}.1", 9, number + 1) for number in range(100))
    shares = Counter(owner(f"session-{key}", members) for key in range(10_000))
    assert len(shares) == 100
    assert min(shares.values()) > 50
    assert max(shares.values()) < 160


def test_a_change_on_one_node_keeps_what_is_known_of_the_others() -> None:
    members = Members(MEMBERS)
    owner("k", members)
    members.remove(MEMBERS[0])
    members.add(Pid(MEMBERS[2].node, MEMBERS[2].incarnation, 9))
    assert all(block.lanes == b"".join(map(lane_of, block)) for block in members.blocks)
    owner("k", members)
    assert all(block.lanes for block in members.blocks)
