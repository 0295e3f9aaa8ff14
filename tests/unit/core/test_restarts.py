from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from fleetlm.core.restarts import Backoff, Intensity, Restart, affected, wants_restart
from fleetlm.ids import Pid
from fleetlm.messages import Crash, NameLost


@pytest.mark.parametrize(
    ("restart", "reason", "again"),
    [
        ("permanent", "normal", True),
        ("permanent", "shutdown", True),
        ("permanent", Crash("ValueError", "x"), True),
        ("transient", "normal", False),
        ("transient", "shutdown", False),
        ("transient", "killed", True),
        ("transient", "noconnection", True),
        ("transient", Crash("ValueError", "x"), True),
        ("temporary", "normal", False),
        ("temporary", Crash("ValueError", "x"), False),
    ],
)
def test_each_restart_type_restarts_for_its_reasons(restart: Restart, reason: Any, again: bool) -> None:
    assert wants_restart(restart, reason) is again


def test_each_strategy_affects_the_right_children() -> None:
    order = ["a", "b", "c"]
    assert affected("one_for_one", order, "b") == ["b"]
    assert affected("one_for_all", order, "b") == order
    assert affected("rest_for_one", order, "b") == ["b", "c"]


def test_more_restarts_than_allowed_within_the_period_are_one_too_many() -> None:
    intensity = Intensity(3, 5.0)
    assert [intensity.allows(now, "x") for now in (0.0, 1.0, 2.0, 3.0)] == [True, True, True, False]
    assert Intensity(0, 5.0).allows(0.0, "x") is False
    slow = Intensity(1, 5.0)
    assert all(slow.allows(now * 5.1, "x") for now in range(10))


def test_the_loss_of_a_peer_does_not_count() -> None:
    intensity = Intensity(1, 5.0)
    assert all(intensity.allows(0.0, "noconnection") for _ in range(100))
    assert all(intensity.allows(0.0, NameLost("n", Pid("a", 1, 1))) for _ in range(100))
    assert intensity.allows(0.0, "x") is True
    assert intensity.allows(0.0, "x") is False


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.integers(0, 5), st.floats(0.1, 50))
def test_intensity_is_what_a_count_says(gaps: list[float], most: int, period_s: float) -> None:
    intensity = Intensity(most, period_s)
    times: list[float] = []
    now = 0.0
    for gap in gaps:
        now += gap
        times.append(now)
        within = [time for time in times if time >= now - period_s]
        assert intensity.allows(now, "x") is (len(within) <= most)


def test_the_first_restart_has_no_pause_and_the_next_double() -> None:
    backoff = Backoff(0.25, 2.0)
    assert [backoff.pause_s("a", 0.0, "x") for _ in range(6)] == [0.0, 0.25, 0.5, 1.0, 2.0, 2.0]
    assert backoff.pause_s("b", 0.0, "x") == 0.0
    assert backoff.pause_s("a", 60.0, "x") == 0.0, "it lived long enough"


def test_peer_loss_never_spins() -> None:
    assert Backoff(0.25, 2.0).pause_s("a", 0.0, "noconnection") == 0.25
    assert Backoff(0.25, 2.0).pause_s("a", 0.0, NameLost("n", Pid("a", 1, 1))) == 0.25


def test_a_peer_that_is_lost_for_a_week_only_costs_pauses() -> None:
    backoff, now = Backoff(0.25, 15.0), 0.0
    while now < 7 * 86_400:
        now += backoff.pause_s("a", now, "noconnection")
    assert backoff.pause_s("a", now, "noconnection") == 15.0


def test_a_child_that_was_removed_begins_anew() -> None:
    backoff = Backoff(1.0, 15.0)
    backoff.pause_s("a", 0.0, "boom")
    assert backoff.pause_s("a", 0.0, "boom") == 1.0
    backoff.forget("a")
    backoff.forget("a")
    assert backoff.pause_s("a", 0.0, "boom") == 0.0
