"""When a cron job runs, and which of its slots have begun."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fleetlm.core.cron_slots import (
    AHEAD_MS,
    LATE_MS,
    LOOK_MS,
    MAX_SLOT_MS,
    Begin,
    Reset,
    Skip,
    SlotMemory,
    Slots,
    Wait,
    decide,
)
from fleetlm.core.shard_table import EPOCH_END

MINUTE = Slots(lambda time: (time // 60_000 + 1) * 60_000, lambda _, until: until // 60_000 * 60_000)
NEVER = Slots(lambda _: None, lambda after, _: after)
NOW = 1_800_000_000_000 // 60_000 * 60_000


def test_it_waits_for_the_next_slot_but_looks_at_the_clock_meanwhile() -> None:
    assert decide(MINUTE, NOW, NOW + 58_000, "once") == Wait(2.0)
    assert decide(MINUTE, NOW, NOW + 1, "once") == Wait(LOOK_MS / 1000)
    assert decide(NEVER, NOW, NOW, "once") == Wait(LOOK_MS / 1000)


def test_a_slot_begins_once() -> None:
    assert decide(MINUTE, NOW - 60_000, NOW, "skip") == Begin(NOW, 0, 0)
    assert decide(MINUTE, NOW, NOW, "skip") == Wait(LOOK_MS / 1000)


@pytest.mark.parametrize("missed", ["once", "skip"])
def test_a_slot_that_is_a_little_late_runs(missed: Any) -> None:
    assert decide(MINUTE, NOW - 60_000, NOW + LATE_MS, missed) == Begin(NOW, LATE_MS, 0)


def test_of_slots_that_were_missed_the_last_one_runs_or_none() -> None:
    late = NOW + LATE_MS + 1
    assert decide(MINUTE, NOW - 180_000, late, "once") == Begin(NOW, LATE_MS + 1, NOW - 120_000)
    assert decide(MINUTE, NOW - 180_000, late, "skip") == Skip(NOW, NOW - 120_000)
    assert decide(MINUTE, NOW - 180_000, NOW, "skip") == Begin(NOW, 0, NOW - 120_000)


def test_a_clock_that_goes_back_repeats_no_slot() -> None:
    assert decide(MINUTE, NOW, NOW - 3_600_000, "once") == Wait(LOOK_MS / 1000)


def test_a_clock_that_was_wrong_by_more_than_a_day_does_not_stop_the_job() -> None:
    assert decide(MINUTE, NOW + AHEAD_MS, NOW, "once") == Wait(LOOK_MS / 1000)
    assert decide(MINUTE, NOW + AHEAD_MS + 1, NOW, "once") == Reset(NOW)


def test_a_member_remembers_the_last_slot_and_who_has_told_it() -> None:
    memory = SlotMemory()
    assert memory.told(5, 0, is_reset=False) == [5, 0, 0]
    assert memory.told(5, NOW, is_reset=False) == [5, 0, 0]
    assert memory.told(6, NOW + 1, is_reset=False) == [6, NOW, 5]
    assert (memory.settled_ms, memory.settled_by) == (NOW + 1, 6)


def test_a_former_leader_changes_nothing() -> None:
    memory = SlotMemory()
    memory.told(6, NOW, is_reset=False)
    assert memory.told(5, NOW + 1, is_reset=True) == [6, NOW, 6]
    assert (memory.epoch, memory.settled_ms) == (6, NOW)


def test_slots_never_go_back_unless_a_clock_was_wrong() -> None:
    memory = SlotMemory()
    memory.told(6, NOW, is_reset=False)
    memory.told(7, NOW - 1, is_reset=False)
    assert (memory.settled_ms, memory.settled_by) == (NOW, 6)
    memory.told(7, 0, is_reset=True)
    assert memory.settled_ms == NOW
    memory.told(7, NOW - 1, is_reset=True)
    assert (memory.settled_ms, memory.settled_by) == (NOW - 1, 7)


@pytest.mark.parametrize("told", [(-1, 0), (EPOCH_END, 0), (1, -1), (1, MAX_SLOT_MS)])
def test_nonsense_is_refused_and_changes_nothing(told: tuple[int, int]) -> None:
    memory = SlotMemory()
    with pytest.raises(ValueError, match="no epoch and slot"):
        memory.told(*told, is_reset=False)
    assert (memory.epoch, memory.settled_ms) == (0, 0)


def test_what_is_saved_moves_along_and_nonsense_is_ignored() -> None:
    memory, next_owner = SlotMemory(), SlotMemory()
    memory.told(3, NOW, is_reset=False)
    next_owner.load(memory.save())
    assert (next_owner.settled_ms, next_owner.settled_by) == (NOW, 0)
    for nonsense in ("x", None, -1, MAX_SLOT_MS, NOW - 1, True):
        next_owner.load(nonsense)
    assert next_owner.settled_ms == NOW


def test_with_majorities_a_slot_begins_once_whatever_is_lost() -> None:
    """Leaders come and go, answers are lost, former leaders go on: no two leaders begin one slot."""
    for seed in range(300):
        rng = random.Random(seed)
        members = [SlotMemory() for _ in range(5)]
        begun: list[int] = []
        leaders: list[tuple[int, int]] = []  # Epoch, and the slot up to which it knows all to be settled.
        for epoch in range(1, 12):
            heard = rng.sample(members, 3)
            leaders.append((epoch, max(each.told(epoch, 0, is_reset=False)[1] for each in heard)))
            for _ in range(3):
                at = rng.randrange(len(leaders))
                leader, settled = leaders[at]
                slot = settled + 1
                answers = [each.told(leader, slot, is_reset=False) for each in rng.sample(members, 4)]
                others = [known for _, known, by in answers if known >= slot and by != leader]
                is_allowed = sum(known == leader for known, *_ in answers) >= 3
                if is_allowed and not others:
                    begun.append(slot)
                if is_allowed:
                    leaders[at] = (leader, max(slot, *others) if others else slot)
        assert len(begun) == len(set(begun)), seed
