from __future__ import annotations

from fleetlm.core.newcomers import (
    BURST_S,
    INTRODUCTIONS_AT_ONCE,
    INTRODUCTIONS_PER_S,
    MAX_BUDGETS,
    TOLD_AT_ONCE,
    TOLD_PER_S,
    Newcomers,
)
from fleetlm.settings import Settings
from tests.support.kernel_fakes import SETTINGS, T, ip, name


def test_each_address_has_a_budget_of_its_own_for_names() -> None:
    newcomers = Newcomers(SETTINGS)
    assert sum(newcomers.may_introduce(T, ip(2)) for _ in range(1_000)) == INTRODUCTIONS_AT_ONCE
    assert newcomers.may_introduce(T, ip(3))
    assert sum(newcomers.may_introduce(T + 1, ip(2)) for _ in range(1_000)) == INTRODUCTIONS_PER_S


def test_each_peer_has_a_budget_of_its_own_for_hearsay() -> None:
    newcomers = Newcomers(SETTINGS)
    assert sum(newcomers.may_tell(T, name(2)) for _ in range(1_000)) == TOLD_AT_ONCE
    assert newcomers.may_tell(T, name(3))
    assert sum(newcomers.may_tell(T + 1, name(2)) for _ in range(1_000)) == TOLD_PER_S


def test_budgets_are_bounded_and_the_latest_are_kept() -> None:
    newcomers = Newcomers(SETTINGS)
    for _ in range(INTRODUCTIONS_AT_ONCE):
        newcomers.may_introduce(T, "first")
    for n in range(MAX_BUDGETS - 1):
        newcomers.may_introduce(T, str(n))
    assert not newcomers.may_introduce(T, "first")
    for n in range(MAX_BUDGETS):
        newcomers.may_introduce(T, str(n))
    assert len(newcomers._introduced) == MAX_BUDGETS
    assert newcomers.may_introduce(T, "first"), "forgotten, so it begins anew"


def test_dials_to_unproven_nodes_have_one_budget_and_wait_for_it() -> None:
    newcomers = Newcomers(Settings(unproven_dials_per_s=10.0))
    assert [newcomers.dial_at(T, "") for _ in range(int(10 * BURST_S))] == [T] * int(10 * BURST_S)
    assert newcomers.dial_at(T, "") == T + 0.1
    assert newcomers.dial_at(T + 0.1, "") == T + 0.1
    assert newcomers.dial_at(T + 0.1, "") == T + 0.2


def test_nodes_that_come_up_allow_further_dials_and_false_names_do_not() -> None:
    newcomers = Newcomers(Settings(unproven_dials_per_s=10.0))
    burst = int(10 * BURST_S)
    for _ in range(burst):
        newcomers.dial_at(T, "")
    dialled, unknown = burst, 1_000 - burst
    for _ in range(dialled):
        newcomers.proved(T)
    assert [newcomers.dial_at(T, "") for _ in range(burst)] == [T] * burst, "never more than that at once"
    assert newcomers.dial_at(T, "") > T
    for _ in range(unknown - burst):
        newcomers.proved(T)
        assert newcomers.dial_at(T, "") == newcomers.dial_at(T, "") == T


def test_a_dial_to_a_node_that_somebody_introduced_counts_for_him_too() -> None:
    newcomers = Newcomers(SETTINGS)
    assert [newcomers.dial_at(T, ip(2)) for _ in range(INTRODUCTIONS_AT_ONCE)] == [T] * INTRODUCTIONS_AT_ONCE
    assert newcomers.dial_at(T, ip(2)) == T + 1 / INTRODUCTIONS_PER_S
    assert newcomers.dial_at(T, ip(3)) == newcomers.dial_at(T, "") == T
    assert newcomers.dial_at(T + 1 / INTRODUCTIONS_PER_S, ip(2)) == T + 1 / INTRODUCTIONS_PER_S
