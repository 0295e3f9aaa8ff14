"""How often requests may be repeated, and the pauses before."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings, strategies as st

from fleetlm.core.retry_budget import REFILL_S, RetryBudget, pause_s


def test_each_call_earns_a_part_of_a_repetition() -> None:
    budget = RetryBudget(0.1, reserve=0, limit=100)
    taken = 0
    for _ in range(1_000):
        budget.called()
        taken += budget.take(0.0)
    assert taken == 100


def test_the_reserve_is_there_from_the_start_and_comes_back_one_by_one() -> None:
    budget = RetryBudget(0.1, reserve=3, limit=100)
    assert [budget.take(5.0) for _ in range(4)] == [True, True, True, False]
    assert not budget.take(5.0 + 0.9 * REFILL_S)
    assert budget.take(5.0 + 1.0 * REFILL_S)
    assert not budget.take(5.0 + 1.0 * REFILL_S)
    assert budget.left(5.0 + 100 * REFILL_S) == 3


def test_time_adds_nothing_to_what_was_earned() -> None:
    budget = RetryBudget(0.5, reserve=2, limit=100)
    for _ in range(20):
        budget.called()
    assert budget.left(0.0) == 12
    assert budget.left(1_000 * REFILL_S) == 12


def test_no_more_is_saved_than_the_limit() -> None:
    budget = RetryBudget(1.0, reserve=10, limit=5)
    for _ in range(50):
        budget.called()
    assert budget.left(0.0) == 5


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=200),
    st.floats(0, 1),
    st.integers(0, 20),
    st.integers(1, 50),
)
def test_repetitions_never_exceed_what_was_earned_and_the_reserve(
    course: list[tuple[bool, float]], ratio: float, reserve: int, limit: int
) -> None:
    budget, now, calls, taken = RetryBudget(ratio, reserve, limit), 0.0, 0, 0
    for is_call, pause in course:
        now += pause
        if is_call:
            budget.called()
            calls += 1
        else:
            taken += budget.take(now)
        assert taken <= calls * ratio + min(reserve, limit) + now / REFILL_S + 0.001
        assert 0 <= budget.left(now) <= limit


@pytest.mark.parametrize(("pauses", "ceiling"), [(0, 0.1), (1, 0.2), (3, 0.8), (6, 2.0), (5_000, 2.0)])
def test_a_pause_is_anywhere_below_a_ceiling_that_doubles(pauses: int, ceiling: float) -> None:
    rng = random.Random(1)
    found = [pause_s(rng, pauses, 0.1, 2.0) for _ in range(300)]
    assert 0 <= min(found) < 0.1 * ceiling
    assert 0.9 * ceiling < max(found) <= ceiling
