"""The rules of votes and leases, each broken once."""

from __future__ import annotations

from typing import Any

from fleetlm.core.quorum import Lease, MemberKey, Votes

BEGIN_VOTES, BEGIN_LEASE = Votes.__init__, Lease.__init__


def _vote_at_once(votes: Votes, lease_s: float, now: float) -> None:
    BEGIN_VOTES(votes, lease_s, now)
    votes._votes_from = now


def _count_half(lease: Lease, expected: int, lease_s: float) -> None:
    BEGIN_LEASE(lease, expected, lease_s)
    lease.majority = max(1, expected // 2)


def _forget_early(votes: Votes, now: float, node: MemberKey) -> bool:
    heard = votes._heard.get(node)
    return heard is None or now - heard.at >= votes._promise_s / 2


def _serve_without_a_clock(lease: Lease, shard: int, _now: float) -> bool:
    return lease._since.get(shard, 1 << 62) <= lease._began.number


VOTE_MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "a member votes at its start": (Votes, "__init__", _vote_at_once),
    "a half is a majority": (Lease, "__init__", _count_half),
    "a silent owner is forgotten early": (Votes, "_is_silent", _forget_early),
    "an owner does not look at its clock": (Lease, "serves", _serve_without_a_clock),
}
"""What is broken → the class, the method, and what stands in its place."""
