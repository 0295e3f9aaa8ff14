from __future__ import annotations

import random

import pytest

from fleetlm.core.poll_schedule import PollSchedule
from fleetlm.settings import Settings


def delays(settings: Settings, met: list[bool]) -> list[float]:
    schedule = PollSchedule(settings, random.Random(1))
    return [schedule.next_delay_s(has_met_peer=each) for each in met]


def test_polls_are_fast_and_slow_down_while_no_peer_was_seen() -> None:
    assert delays(Settings(poll_jitter=0.0), [False] * 7) == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_polls_are_at_the_interval_once_a_peer_was_seen() -> None:
    assert delays(Settings(poll_jitter=0.0), [True, True]) == [5.0, 5.0]
    assert delays(Settings(poll_jitter=0.0), [False, True]) == [0.25, 5.0]


def test_a_short_interval_is_never_exceeded() -> None:
    assert delays(Settings(poll_jitter=0.0, poll_interval_s=0.1), [False, False, True]) == [0.1, 0.1, 0.1]


@pytest.mark.parametrize("interval_s", [0.001, 5.0, 86_400.0])
def test_jitter_spreads_over_a_tenth_on_both_sides(interval_s: float) -> None:
    found = delays(Settings(poll_interval_s=interval_s), [True] * 500)
    assert 0.9 * interval_s <= min(found) < 0.92 * interval_s
    assert 1.08 * interval_s < max(found) <= 1.1 * interval_s


def test_two_nodes_do_not_ask_together() -> None:
    schedules = [PollSchedule(Settings(), random.Random(seed)) for seed in (1, 2)]
    first, second = (schedule.next_delay_s(has_met_peer=True) for schedule in schedules)
    assert first != second


def test_a_lost_connection_asks_soon_but_not_in_a_storm() -> None:
    assert PollSchedule(Settings(), random.Random(1)).soonest_s() == 0.25
    assert PollSchedule(Settings(poll_interval_s=0.05), random.Random(1)).soonest_s() == 0.05
