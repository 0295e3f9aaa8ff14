"""Schedules of cron jobs: expressions with time zones, and intervals."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from fleetlm.core.cron_slots import Slots
from fleetlm.leaders.schedule import slots_of

BERLIN = ZoneInfo("Europe/Berlin")


def ms(text: str, zone: ZoneInfo | None = None, fold: int = 0) -> int:
    """Return a time in milliseconds; UTC without a zone."""
    return int(datetime.fromisoformat(text).replace(tzinfo=zone or UTC, fold=fold).timestamp()) * 1000


def first(slots: Slots, after_ms: int, count: int) -> list[str]:
    """Return the next slots, as local times in Berlin."""
    found = []
    for _ in range(count):
        slot = slots.after(after_ms)
        assert slot is not None
        assert slot > after_ms
        after_ms = slot
        found.append(datetime.fromtimestamp(slot / 1000, BERLIN).isoformat(timespec="minutes"))
    return found


def test_an_interval_has_its_multiples_on_every_node() -> None:
    slots = slots_of(2.5, None)
    assert slots.after(0) == 2_500
    assert slots.after(2_500) == 5_000
    assert slots.after(6_000) == 7_500
    assert slots.newest(2_500, 12_400) == 10_000
    assert slots.newest(2_500, 12_500) == 12_500


def test_an_expression_is_in_its_time_zone() -> None:
    assert slots_of("30 6 * * *", None).after(ms("2026-07-01T05:00")) == ms("2026-07-01T06:30")
    assert slots_of("30 6 * * *", "Europe/Berlin").after(ms("2026-07-01T04:00")) == ms("2026-07-01T04:30")
    assert slots_of("30 6 * * *", BERLIN).after(ms("2026-12-01T04:00")) == ms("2026-12-01T05:30")
    assert slots_of("*/10 * * * * *", "UTC").after(ms("2026-07-01T04:00")) == ms("2026-07-01T04:00:10")


def test_a_time_that_a_day_does_not_have_is_the_next_one_that_it_has() -> None:
    """On 29 March 2026 the clocks of Berlin go from 2:00 to 3:00."""
    slots = slots_of("30 2 * * *", BERLIN)
    assert first(slots, ms("2026-03-28T00:00"), 3) == [
        "2026-03-28T02:30+01:00", "2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00",
    ]  # fmt: skip
    twice = slots_of("10,40 2 * * *", BERLIN)
    assert first(twice, ms("2026-03-28T12:00"), 2) == ["2026-03-29T03:00+02:00", "2026-03-30T02:10+02:00"]


def test_a_time_that_a_day_has_twice_is_the_first_of_the_two() -> None:
    """On 25 October 2026 the clocks of Berlin go from 3:00 back to 2:00."""
    slots = slots_of("30 2 * * *", BERLIN)
    assert first(slots, ms("2026-10-24T12:00"), 2) == ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]
    between = ms("2026-10-25T02:10", BERLIN, fold=1)
    assert first(slots, between, 1) == ["2026-10-26T02:30+01:00"]


def test_a_job_of_every_hour_runs_by_the_time_that_passes() -> None:
    for day in ("2026-03-29", "2026-10-25"):
        slots = slots_of("0 * * * *", BERLIN)
        time = ms(f"{day}T00:00", BERLIN)
        for _ in range(6):
            assert slots.after(time) == time + 3_600_000
            time += 3_600_000


@pytest.mark.parametrize("expression", ["*/5 * * * *", "30 2 * * *", "0,30 1-3 * * *", "0 12 * * mon#1"])
def test_the_newest_slot_is_the_one_that_counting_finds(expression: str) -> None:
    slots = slots_of(expression, BERLIN)
    for begin in ("2026-03-28T20:00", "2026-10-24T20:00"):
        all_slots, time, end = [], ms(begin), ms(begin) + 40 * 3_600_000
        while (found := slots.after(time)) is not None and found <= end:
            all_slots.append(found)
            time = found
        for slot, later in pairwise(all_slots):
            for until in (slot, later - 1):
                assert slots.newest(all_slots[0], until) == slot
    assert slots.after(slots.newest(ms("2026-01-05T11:00"), ms("2026-07-01T00:00"))) is not None


def test_half_hours_and_zones_without_summer_time_work() -> None:
    slots = slots_of("0 9 * * *", "Asia/Kolkata")
    assert slots.after(ms("2026-03-29T00:00")) == ms("2026-03-29T03:30")
    lord_howe = slots_of("15 2 * * *", "Australia/Lord_Howe")  # Its clocks move by half an hour.
    time = ms("2026-10-01T00:00")
    for _ in range(5):
        slot = lord_howe.after(time)
        assert slot is not None
        assert timedelta(hours=23) <= timedelta(milliseconds=slot - time) + timedelta(hours=24)
        time = slot


@pytest.mark.parametrize(
    ("schedule", "tz", "error"),
    [
        ("* * * *", None, ValueError),
        ("61 * * * *", None, ValueError),
        ("0 0 31 2 *", None, ValueError),
        ("x" * 300, None, ValueError),
        ("* * * * *", "Europe/Nowhere", ValueError),
        ("* * * * *", "../etc/passwd", ValueError),
        (0.5, None, ValueError),
        (float("nan"), None, ValueError),
        (float("inf"), None, ValueError),
        (10, "UTC", ValueError),
        (True, None, TypeError),
        (None, None, TypeError),
    ],
)
def test_what_is_no_schedule_is_refused(schedule: str, tz: str | None, error: type[Exception]) -> None:
    with pytest.raises(error):
        slots_of(schedule, tz)


def test_without_the_library_an_expression_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(ModuleNotFoundError, match=r"fleetlm\[cron\]"):
        slots_of("* * * * *", None)
    assert slots_of(60, None).after(0) == 60_000
