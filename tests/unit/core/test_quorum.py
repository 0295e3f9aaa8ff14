"""Leases by a majority: what a member grants and acknowledges, and what an owner may serve."""

from __future__ import annotations

import math

import pytest

from fleetlm import Quorum
from fleetlm.core.quorum import MARGIN, Beat, Lease, Votes, Want

A, B, C = ("a@10.0.0.1", 1, 9), ("b@10.0.0.2", 2, 9), ("c@10.0.0.3", 3, 9)
PROMISE = 8 * (1 + MARGIN)


def votes() -> Votes:
    """A member that has begun long ago."""
    return Votes(8.0, -PROMISE)


def test_a_member_that_has_just_started_does_not_vote() -> None:
    young = Votes(8.0, 100.0)
    before = 100 + PROMISE - 0.01
    assert young.beat(before, A, 1, {}, ()) is None
    assert young.grant(before, A, 2, [Want(1, 5)]) is None
    assert young.beat(before + 0.01, A, 3, {}, ()) == {}


def test_a_shard_is_granted_to_another_node_once_the_first_is_silent_for_a_lease_and_a_margin() -> None:
    member = votes()
    assert member.grant(0, A, 1, [Want(1, 5), Want(2, 5)]) == {1: 0, 2: 0}
    assert member.beat(3, A, 2, {1: 5, 2: 5}, ()) == {}
    assert member.grant(3 + PROMISE - 0.01, B, 1, [Want(1, 6), Want(3, 6)]) == {1: 5, 3: 0}
    assert member.grant(3 + PROMISE, B, 2, [Want(1, 6)]) == {1: 0}
    assert member.beat(20, A, 3, {1: 5, 2: 5}, ()) == {1: 6}
    assert member.grant(20, B, 3, [Want(2, 5)]) == {2: 5}  # Not above the former epoch.


def test_a_grant_alone_is_a_promise_too() -> None:
    member = votes()
    member.grant(0, A, 1, [Want(1, 5)])
    assert member.grant(PROMISE - 0.01, B, 1, [Want(1, 6)]) == {1: 5}
    assert member.beat(PROMISE - 0.01, B, 2, {1: 6}, ()) == {1: 5}


def test_a_beat_with_a_conflict_acknowledges_nothing() -> None:
    member = votes()
    member.grant(0, A, 1, [Want(1, 5)])
    member.grant(PROMISE, B, 1, [Want(2, 5)])
    assert member.beat(PROMISE, A, 2, {1: 5, 2: 4}, ()) == {2: 5}
    assert member.grant(2 * PROMISE - 1, C, 1, [Want(1, 6)]) == {1: 0}


def test_a_shard_that_was_handed_over_is_granted_at_once_to_the_one_that_its_owner_has_named() -> None:
    member = votes()
    member.beat(0, A, 1, {1: 5}, ())
    assert member.grant(0, B, 1, [Want(1, 7, 4, A)]) == {1: 5}  # Handed over under a former epoch.
    assert member.grant(0, B, 2, [Want(1, 7, 5, C)]) == {1: 5}  # By a node that is not the owner.
    assert member.grant(0, B, 3, [Want(1, 7, 5)]) == {1: 5}
    assert member.grant(0, B, 4, [Want(1, 7, 5, A)]) == {1: 0}
    assert member.grant(0, B, 5, [Want(1, 8)]) == {1: 0}  # To itself.


def test_what_a_node_names_no_more_is_free() -> None:
    member = votes()
    member.grant(0, A, 1, [Want(1, 5), Want(2, 5)])
    member.beat(0, A, 2, {1: 5}, {2})
    assert member.grant(0, B, 1, [Want(2, 6)]) == {2: 5}
    member.beat(0, A, 3, {1: 5}, ())
    assert member.grant(0, B, 2, [Want(1, 6), Want(2, 6)]) == {1: 5, 2: 0}
    member.beat(0, A, 4, {}, ())
    assert member.grant(0, B, 3, [Want(1, 5)]) == {1: 5}  # A claim that is gone is remembered.
    assert member.grant(0, B, 4, [Want(1, 6)]) == {1: 0}


def test_a_request_that_a_later_one_has_overtaken_is_passed_over() -> None:
    member = votes()
    assert member.grant(0, A, 2, [Want(1, 5)]) == {1: 0}
    assert member.beat(0, A, 1, {}, ()) is None  # Of a time in which it did not ask for the shard.
    assert member.grant(0, A, 2, [Want(1, 7)]) is None
    assert member.grant(0, B, 1, [Want(1, 6)]) == {1: 5}


def test_a_conflict_with_a_lower_epoch_is_no_acknowledgement_either() -> None:
    member = votes()
    member.beat(0, A, 1, {1: 5}, ())
    assert member.beat(0, B, 1, {1: 6}, ()) == {1: 5}  # It may still be served there.
    assert member.beat(PROMISE, B, 2, {1: 6}, ()) == {}
    assert member.beat(PROMISE, A, 2, {1: 5}, ()) == {1: 6}
    assert member.beat(2 * PROMISE, A, 3, {1: 6}, ()) == {1: 6}  # Not above it.


def lease_of(expected: int) -> Lease:
    return Lease(expected, 8.0)


def test_a_node_serves_as_long_as_a_majority_has_acknowledged_beats_that_name_the_shard() -> None:
    lease = lease_of(3)
    before = lease.next(1.0)
    lease.claimed(1)
    assert not lease.lapsed(0)
    lease.acknowledged(A, before)
    lease.acknowledged(B, before)
    assert lease.until == 9.0
    assert not lease.serves(1, 1.0)  # These beats were sent before the claim, if at the same time.
    after = lease.next(1.0)
    lease.acknowledged(A, after)
    assert not lease.serves(1, 1.0)
    lease.acknowledged(C, after)
    assert lease.serves(1, 1.0)
    assert not lease.serves(1, 9.0)
    lease.acknowledged(C, before)  # A late answer to an earlier beat.
    assert lease.serves(1, 8.9)
    lease.acknowledged(C, lease.next(5.0))
    assert lease.until == 9.0  # That of B or C.
    lease.acknowledged(A, lease.next(6.0))
    assert lease.until == 13.0
    lease.dropped(1)
    assert not lease.serves(1, 6.0)


def test_after_the_end_of_a_lease_nothing_is_served_that_was_claimed_before() -> None:
    lease = lease_of(1)
    lease.claimed(1)
    lease.acknowledged(A, lease.next(0.0))
    assert lease.serves(1, 7.9)
    assert not lease.lapsed(7.9)
    assert lease.lapsed(8.0)
    assert not lease.lapsed(8.0)  # That was the same end.
    lease.claimed(2)
    lease.acknowledged(A, lease.next(8.0))
    assert lease.serves(2, 8.0)
    assert not lease.serves(1, 8.0)


def test_an_answer_that_is_older_than_a_lease_begins_none() -> None:
    lease = lease_of(3)
    old = lease.next(0.0)
    lease.acknowledged(B, old)
    lease.acknowledged(A, lease.next(8.0))
    assert lease.until == -math.inf
    assert not lease.lapsed(8.0)


def test_beats_are_numbered_where_the_clock_stands_still() -> None:
    lease = lease_of(1)
    assert [lease.next(5.0), lease.next(5.0)] == [Beat(5.0, 1), Beat(5.0, 2)]


@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_a_quorum_is_a_number_of_nodes(bad: int) -> None:
    with pytest.raises(ValueError, match="at least one node"):
        Quorum(bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_a_lease_lasts_for_some_seconds(bad: float) -> None:
    with pytest.raises(ValueError, match="lease lasts"):
        Quorum(3, bad)


def test_a_lease_is_seen_by_those_who_have_acknowledged_it_lately() -> None:
    lease = Lease(3, 8.0)
    assert (lease.seen(0), lease.holds(0)) == (0, False)
    for member in (A, B):
        lease.acknowledged(member, Beat(100.0, 1))
    assert (lease.seen(107.9), lease.holds(107.9)) == (2, True)
    assert (lease.seen(108), lease.holds(108)) == (0, False)


def test_a_want_that_is_not_above_another_claim_is_refused() -> None:
    member = votes()
    assert member.grant(0, A, 1, [Want(1, 5)]) == {1: 0}
    assert member.grant(100, B, 1, [Want(1, 5)]) == {1: 5}


@pytest.mark.parametrize("lease_s", [None, 0.5, 60])
def test_a_quorum_may_name_its_lease(lease_s: float | None) -> None:
    assert Quorum(3, lease_s).lease_s == lease_s


def test_an_epoch_below_one_of_which_the_member_has_heard_otherwise_is_not_granted() -> None:
    member = votes()
    assert member.grant(0, A, 1, [Want(1, 5), Want(2, 9)], lambda _: 9) == {1: 9, 2: 0}
    assert member.grant(1, A, 2, [Want(1, 10)], lambda _: 9) == {1: 0}
