"""The waits of processes that write to one file, played on virtual time."""

from __future__ import annotations

import random

import pytest

from fleetlm.stores.sqlite_turns import GIVE_WAY_S, LOOK_MIN_S, MET_S, Turns

BUSY_S = 5.0
LIFE_S = 40.0


class Writer:
    """A process that always has something to write."""

    def __init__(self, rng: random.Random) -> None:
        self.turns = Turns(BUSY_S)
        self.at = rng.random() * 0.01
        """When it looks next."""
        self.began_at = self.at
        self.longest_s = 0.0
        self.written = 0
        self.failed = 0


def play(writers: list[Writer], commit_s: float, rng: random.Random) -> None:
    """Have all of them write, each commit as long as that, and up to a millisecond late at every look."""
    free_at = 0.0
    while (writer := min(writers, key=lambda each: each.at)).at < LIFE_S:
        now, late_s = writer.at, rng.random() * 0.001
        if now < free_at:
            pause_s = writer.turns.next_pause_s(writer.began_at, now)
            if pause_s is None:
                writer.failed += 1
                writer.began_at, pause_s = now, 0.0
            writer.at = now + pause_s + late_s
            continue
        writer.longest_s = max(writer.longest_s, now - writer.began_at)
        writer.written += 1
        free_at = now + commit_s * (0.5 + rng.random())
        writer.turns.ended(free_at)
        writer.at = writer.began_at = free_at + writer.turns.first_pause_s(free_at) + late_s


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("commit_s", [0.001, 0.02, 0.2])
def test_processes_that_always_write_share_the_file(count: int, commit_s: float) -> None:
    rng = random.Random(count)
    writers = [Writer(rng) for _ in range(count)]
    play(writers, commit_s, rng)
    assert [each.failed for each in writers] == [0] * count
    assert max(each.longest_s for each in writers) < 0.8 * BUSY_S
    written = [each.written for each in writers]
    assert max(written) < 1.5 * min(written)
    round_s = LIFE_S / sum(written)
    assert round_s < commit_s + GIVE_WAY_S, "the file is hardly ever free for longer"


def test_who_is_alone_waits_for_nothing() -> None:
    turns = Turns(BUSY_S)
    for now in (0.0, 0.001, 0.002):
        assert turns.first_pause_s(now) == 0
        turns.ended(now + 0.0005)


def test_a_process_gives_way_for_a_while_after_it_has_met_another_one() -> None:
    turns = Turns(BUSY_S)
    assert turns.next_pause_s(9.9, 10.0)
    turns.ended(10.1)
    assert turns.first_pause_s(10.1) == pytest.approx(GIVE_WAY_S)
    assert turns.first_pause_s(10.1 + GIVE_WAY_S / 2) == pytest.approx(GIVE_WAY_S / 2)
    assert turns.first_pause_s(10.1 + GIVE_WAY_S) == 0
    turns.ended(10.0 + MET_S)
    assert turns.first_pause_s(10.0 + MET_S + 0.001) == 0


def test_who_has_waited_for_longer_looks_more_often_until_the_time_is_over() -> None:
    pauses = [Turns(BUSY_S).next_pause_s(0.0, waited) for waited in (0.0, 0.5, 1.0, 4.0)]
    assert pauses == sorted(pauses, reverse=True)  # type: ignore[type-var]
    assert pauses[0] == pytest.approx(GIVE_WAY_S)
    assert pauses[-1] == pytest.approx(LOOK_MIN_S, rel=0.1)
    assert Turns(BUSY_S).next_pause_s(0.0, BUSY_S - 0.0001) == pytest.approx(0.0001), "the last look"
    assert Turns(BUSY_S).next_pause_s(0.0, BUSY_S) is None
    assert Turns(0.0).next_pause_s(0.0, 0.0) is None
