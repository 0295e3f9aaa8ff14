"""Where shards go: even shares, and nothing moves that need not."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from fleetlm.core.shard_plan import assign, excess, share

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
def test_hosts_that_act_one_after_the_other_assign_the_same(shards: int, nodes: int, rng: object) -> None:
    import random  # the type of what hypothesis gives

    assert isinstance(rng, random.Random)
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


def test_nothing_is_handed_to_hosts_that_have_their_share() -> None:
    counts = {NODES[0]: 9, NODES[1]: 4, NODES[2]: 4}  # As this node hears of it, while others move shards.
    assert excess("s", 12, range(9), NODES[0], counts) == {}
