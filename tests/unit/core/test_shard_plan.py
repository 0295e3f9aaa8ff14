"""Where shards go: even shares, and nothing moves that need not."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from fleetlm.core import shard_ranking
from fleetlm.core.rings import hash_of
from fleetlm.core.shard_plan import assign, excess, share
from fleetlm.core.shard_ranking import factor_of, score

NODES = [f"fleetlm@10.0.0.{number}" for number in range(1, 12)]
few = settings(max_examples=60, deadline=None)


def spread(shards: int, nodes: list[str]) -> dict[int, str]:
    return assign("s", shards, range(shards), dict.fromkeys(nodes, 0))


def counts_of(owners: dict[int, str], nodes: list[str]) -> dict[str, int]:
    return {node: Counter(owners.values())[node] for node in nodes}


def balance(shards: int, owners: dict[int, str], nodes: list[str]) -> dict[int, str]:
    """Let each host in turn hand over what is beyond its share. Returns what moved."""
    moved: dict[int, str] = {}
    for node in nodes:
        owned = [shard for shard, owner in owners.items() if owner == node]
        moves = excess("s", shards, owned, node, counts_of(owners, nodes))
        owners.update(moves)
        moved.update(moves)
    return moved


def test_without_hosts_nothing_is_assigned() -> None:
    assert assign("s", 8, range(8), {}) == {}


@few
@given(st.integers(1, 300), st.integers(1, 10))
def test_no_host_gets_more_than_its_share(shards: int, nodes: int) -> None:
    owners = spread(shards, NODES[:nodes])
    assert sorted(owners) == list(range(shards))
    assert max(Counter(owners.values()).values()) <= share(shards, nodes)


@few
@given(st.integers(1, 300), st.integers(1, 10))
def test_a_host_that_joins_takes_its_share_at_most_and_nothing_else_moves(shards: int, nodes: int) -> None:
    owners = spread(shards, NODES[:nodes])
    moved = balance(shards, owners, NODES[: nodes + 1])
    assert len(moved) <= share(shards, nodes + 1)
    assert set(moved.values()) <= {NODES[nodes]}
    assert max(counts_of(owners, NODES[: nodes + 1]).values()) <= share(shards, nodes + 1)
    assert balance(shards, owners, NODES[: nodes + 1]) == {}


@few
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 2))
def test_one_host_after_the_other_gets_its_share_also_where_the_others_have_no_more_than_theirs_rounded_up(
    shards: int, nodes: int, joining: int
) -> None:
    owners = spread(shards, NODES[:nodes])
    for count in range(nodes + 1, nodes + joining + 1):
        assert len(balance(shards, owners, NODES[:count])) <= share(shards, count)
        counts = counts_of(owners, NODES[:count]).values()
        assert max(counts) - min(counts) <= 1


@few
@given(st.integers(1, 200), st.integers(2, 8), st.randoms())
def test_hosts_that_act_at_the_same_time_fill_each_gap_once(
    shards: int, nodes: int, rng: random.Random
) -> None:
    hosts = NODES[:nodes]
    owners = {shard: rng.choice(hosts[: rng.randint(1, nodes)]) for shard in range(shards)}
    counts, moved = counts_of(owners, hosts), {}
    for node in hosts:
        owned = [shard for shard, owner in owners.items() if owner == node]
        moved |= excess("s", shards, owned, node, counts)
    after = counts_of(owners | moved, hosts).values()
    assert max(after) - min(after) <= 1


@few
@given(st.integers(1, 300), st.integers(2, 10))
def test_of_a_host_that_leaves_only_its_own_shards_move(shards: int, nodes: int) -> None:
    owners = spread(shards, NODES[:nodes])
    gone, left = NODES[0], NODES[1:nodes]
    free = [shard for shard, owner in owners.items() if owner == gone]
    kept = {shard: owner for shard, owner in owners.items() if owner != gone}
    again = {**kept, **assign("s", shards, free, counts_of(kept, left))}
    assert {shard: owner for shard, owner in again.items() if shard in kept} == kept
    assert balance(shards, again, left) == {}


@few
@given(st.integers(1, 200), st.integers(2, 8), st.randoms())
def test_hosts_that_act_one_after_the_other_assign_the_same(
    shards: int, nodes: int, rng: random.Random
) -> None:
    hosts = NODES[:nodes]
    whole = spread(shards, hosts)
    owners: dict[int, str] = {}
    for node in rng.sample(hosts, nodes):
        free = [shard for shard in range(shards) if shard not in owners]
        plan = assign("s", shards, free, counts_of(owners, hosts))
        owners.update({shard: to for shard, to in plan.items() if to == node})
    assert owners == whole


@pytest.mark.parametrize(("counts", "moves"), [((4, 4), 0), ((5, 3), 1), ((8, 0), 4), ((8, 4), 2)])
def test_what_is_beyond_the_share_goes_to_the_host_with_the_fewest(
    counts: tuple[int, int], moves: int
) -> None:
    mine, theirs = counts
    found = excess("s", mine + theirs, range(mine), NODES[0], {NODES[0]: mine, NODES[1]: theirs})
    assert list(found.values()) == [NODES[1]] * moves


def test_hosts_that_prefer_the_same_shards_get_each_of_them_once() -> None:
    moves = excess("s", 30, range(30), NODES[0], {NODES[0]: 30, NODES[1]: 0, NODES[2]: 0})
    assert sorted(moves.values()) == [NODES[1]] * 10 + [NODES[2]] * 10
    assert moves.keys() <= set(range(30))


@few
@given(st.integers(1, 200), st.integers(1, 6), st.integers(1, 4), st.integers(1, 9))
def test_some_moves_at_a_time_come_to_the_same_as_all_at_once(
    shards: int, nodes: int, joining: int, limit: int
) -> None:
    owners, hosts = spread(shards, NODES[:nodes]), NODES[: nodes + joining]
    moved: list[int] = []
    for node in hosts:
        while True:
            owned = [shard for shard, owner in owners.items() if owner == node]
            moves = excess("s", shards, owned, node, counts_of(owners, hosts), limit)
            assert len(moves) <= limit
            if not moves:
                break
            owners.update(moves)
            moved += moves
    assert len(moved) == len(set(moved)) <= joining * share(shards, nodes + joining)
    assert max(counts_of(owners, hosts).values()) <= share(shards, nodes + joining)


@few
@given(st.integers(1, 200), st.integers(1, 8), st.randoms())
def test_a_part_of_the_free_shards_goes_where_it_would_go_among_all(
    shards: int, nodes: int, rng: random.Random
) -> None:
    counts = {node: rng.randrange(4) for node in NODES[:nodes]}
    whole = assign("s", shards, range(shards), counts)
    some = rng.randrange(shards + 1)
    assert assign("s", shards, range(some), counts) == {shard: whole[shard] for shard in range(some)}


@few
@given(st.integers(1, 60), st.integers(1, 5), st.randoms())
def test_a_plan_is_that_of_the_rule_taken_word_by_word(shards: int, nodes: int, rng: random.Random) -> None:
    counts = {node: rng.randrange(shards) for node in NODES[:nodes]}
    free = rng.sample(range(shards), rng.randrange(shards + 1))
    least, remainder = divmod(shards, nodes)
    have, expected = dict(counts), {}
    for shard in sorted(free):
        most = least + (sum(count > least for count in have.values()) < remainder)
        open_hosts = [host for host in have if have[host] < most] or list(have)
        best = max(open_hosts, key=lambda host: score(factor_of("s", shard), host))
        expected[shard] = best
        have[best] += 1
    assert assign("s", shards, free, counts) == expected


def test_a_large_plan_hashes_each_host_once_and_each_shard_with_seven_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed: list[bytes] = []

    def counted(data: bytes, size_bytes: int) -> bytes:
        hashed.append(data)
        return hash_of(data, size_bytes)

    monkeypatch.setattr(shard_ranking, "hash_of", counted)
    shard_ranking.seed_of.cache_clear()
    shard_ranking.factors_of.cache_clear()
    hosts = [f"fleetlm@10.0.1.{number}" for number in range(64)]
    owners = assign("large", 4_096, range(4_096), dict.fromkeys(hosts, 0))
    assert set(Counter(owners.values()).values()) == {64}
    excess("large", 4_096, range(4_096), hosts[0], {hosts[0]: 4_096, **dict.fromkeys(hosts[1:], 0)}, 8)
    assert len(hashed) == 4_096 // 8 + 64


def test_nothing_is_handed_to_hosts_that_have_their_share() -> None:
    counts = {NODES[0]: 9, NODES[1]: 4, NODES[2]: 4}  # As this node hears of it, while others move shards.
    assert excess("s", 12, range(9), NODES[0], counts) == {}
