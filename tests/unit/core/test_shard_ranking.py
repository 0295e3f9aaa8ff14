"""How much shards prefer nodes: the same everywhere, evenly, and by one multiplication for all hosts."""

from __future__ import annotations

from collections import Counter

from fleetlm.core.shard_ranking import Preferences, factor_of, factors_of, score, seed_of

HOSTS = [f"fleetlm@10.0.0.{number}" for number in range(1, 9)]


def test_a_ranking_is_the_same_on_every_node_and_in_every_version() -> None:
    assert seed_of("fleetlm@10.0.0.1") == 3180478902054342651
    assert factor_of("sessions", 7) == 9452377816759850277
    assert score(factor_of("sessions", 7), "fleetlm@10.0.0.1") == 3161664912133187143
    assert factors_of("sessions", 8)[7] == factor_of("sessions", 7)


def test_the_best_host_is_the_one_with_the_highest_score_in_whatever_order_they_come() -> None:
    forward, backward = Preferences(HOSTS), Preferences(reversed(HOSTS))
    for factor in factors_of("sessions", 500):
        best = max(HOSTS, key=lambda host: score(factor, host))
        assert forward.best(factor) == backward.best(factor) == best


def test_one_host_is_the_best_for_all() -> None:
    assert {Preferences(HOSTS[:1]).best(factor) for factor in factors_of("s", 20)} == {HOSTS[0]}


def test_shards_are_spread_evenly() -> None:
    counts = Counter(Preferences(HOSTS).best(factor) for factor in factors_of("sessions", 4_096))
    assert set(counts) == set(HOSTS)
    assert all(400 < count < 630 for count in counts.values()), counts


def test_a_host_that_leaves_changes_no_other_choice() -> None:
    whole, less = Preferences(HOSTS), Preferences(HOSTS[1:])
    for factor in factors_of("sessions", 500):
        if whole.best(factor) != HOSTS[0]:
            assert whole.best(factor) == less.best(factor)
