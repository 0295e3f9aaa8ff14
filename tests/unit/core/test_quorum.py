"""Leases by a majority: what a member grants and acknowledges, and what an owner may serve."""

from __future__ import annotations

import math

import pytest

from fleetlm import Quorum
from fleetlm.core.quorum import MARGIN, Lease, Votes, Want

A, B, C = ("a@10.0.0.1", 1), ("b@10.0.0.2", 2), ("c@10.0.0.3", 3)
PROMISE = 8 * (1 + MARGIN)


def votes() -> Votes:
    """A member that has begun long ago."""
    return Votes(8.0, -PROMISE)


def test_a_member_that_has_just_started_does_not_vote() -> None:
    young = Votes(8.0, 100.0)
    before = 100 + PROMISE - 0.01
    assert young.beat(before, A, {}, ()) is None
    assert young.grant(before, A, [Want(1, 5, 0)]) is None
    assert young.beat(before + 0.01, A, {}, ()) == {}


def test_a_shard_is_granted_to_another_node_once_the_first_is_silent_for_a_lease_and_a_margin() -> None:
    member = votes()
    assert member.grant(0, A, [Want(1, 5, 0), Want(2, 5, 0)]) == {1: 0, 2: 0}
    assert member.beat(3, A, {1: 5, 2: 5}, ()) == {}
    assert member.grant(3 + PROMISE - 0.01, B, [Want(1, 6, 0), Want(3, 6, 0)]) == {1: 5, 3: 0}
    assert member.grant(3 + PROMISE, B, [Want(1, 6, 0)]) == {1: 0}
    assert member.beat(20, A, {1: 5, 2: 5}, ()) == {1: 6}
    assert member.grant(20, B, [Want(2, 5, 0)]) == {2: 5}  # Not above the former epoch.


def test_a_beat_with_a_conflict_acknowledges_nothing() -> None:
    member = votes()
    member.grant(0, A, [Want(1, 5, 0)])
    member.grant(PROMISE, B, [Want(2, 5, 0)])
    assert member.beat(PROMISE, A, {1: 5, 2: 4}, ()) == {2: 5}
    assert member.grant(2 * PROMISE - 1, C, [Want(1, 6, 0)]) == {1: 0}


def test_a_shard_that_was_handed_over_is_granted_at_once() -> None:
    member = votes()
    member.beat(0, A, {1: 5}, ())
    assert member.grant(0, B, [Want(1, 7, 4)]) == {1: 5}  # Handed over by an owner before that one.
    assert member.grant(0, B, [Want(1, 7, 5)]) == {1: 0}
    assert member.grant(0, B, [Want(1, 8, 0)]) == {1: 0}  # To itself.


def test_what_a_node_names_no_more_is_free() -> None:
    member = votes()
    member.grant(0, A, [Want(1, 5, 0), Want(2, 5, 0)])
    member.beat(0, A, {1: 5}, {2})
    assert member.grant(0, B, [Want(2, 6, 0)]) == {2: 5}
    member.beat(0, A, {1: 5}, ())
    assert member.grant(0, B, [Want(1, 6, 0), Want(2, 6, 0)]) == {1: 5, 2: 0}
    member.beat(0, A, {}, ())
    assert member.grant(0, B, [Want(1, 5, 0)]) == {1: 5}  # A claim that is gone is remembered.
    assert member.grant(0, B, [Want(1, 6, 0)]) == {1: 0}


def test_a_claim_with_a_higher_epoch_was_granted_by_a_majority() -> None:
    member = votes()
    member.beat(0, A, {1: 5}, ())
    assert member.beat(0, B, {1: 6}, ()) == {}
    assert member.beat(0, A, {1: 5}, ()) == {1: 6}
    assert member.beat(0, B, {1: 6}, ()) == {}


def test_a_node_serves_as_long_as_a_majority_has_acknowledged_beats_that_name_the_shard() -> None:
    lease = Lease(3, 8.0)
    lease.claimed(1, 1.0)
    assert not lease.holds(0)
    lease.acknowledged(A, 0.5)
    assert not lease.holds(0.5)
    lease.acknowledged(B, 0.5)
    assert lease.holds(0.6)
    assert not lease.serves(1, 0.6)  # These beats were sent before the claim.
    lease.acknowledged(A, 2.0)
    assert not lease.serves(1, 2.0)
    lease.acknowledged(C, 1.0)
    assert lease.serves(1, 2.0)
    assert lease.until == 9.0
    assert not lease.serves(1, 9.0)
    lease.acknowledged(C, 0.1)  # A late answer to an earlier beat.
    assert lease.until == 9.0
    lease.acknowledged(C, 5.0)
    assert lease.until == 10.0
    lease.dropped(1)
    assert not lease.serves(1, 5.0)


def test_one_node_alone_may_be_its_own_majority() -> None:
    lease = Lease(1, 8.0)
    lease.acknowledged(A, 0.0)
    assert lease.until == 8.0


def test_members_of_former_times_count_no_more() -> None:
    lease = Lease(3, 8.0)
    lease.acknowledged(B, 0.0)
    lease.acknowledged(A, 9.0)
    assert not lease.holds(9.0)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_a_quorum_is_a_number_of_nodes(bad: int) -> None:
    with pytest.raises(ValueError, match="at least one node"):
        Quorum(bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_a_lease_lasts_for_some_seconds(bad: float) -> None:
    with pytest.raises(ValueError, match="lease lasts"):
        Quorum(3, bad)
