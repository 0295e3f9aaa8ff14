"""What may be in flight follows the path: pure arithmetic, played on paths that are made up here."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, strategies as st

from fleetlm.messaging.pace import (
    CHUNKS_IN_WINDOW,
    LEAST_BYTES,
    MAX_EMPTY_S,
    PAUSE_S,
    PROBE_S,
    TARGET_S,
    Pace,
)

KIB, MIB = 1024, 1024 * 1024
MOST = 4 * MIB


class Path:
    """A sender that always has something to send, over a path with a rate, a round trip and freezes."""

    def __init__(self, rate: float, round_trip_s: float = 0.001, most_bytes: int = MOST) -> None:
        self.pace = Pace(most_bytes, 256 * KIB)
        self.rate, self.round_trip_s = rate, round_trip_s
        self.now = 100.0
        self.free_at = self.now
        self.sent = self.marked = self.taken = 0
        self.credits: deque[tuple[float, int]] = deque()
        self.delays: list[float] = []
        self.frozen_until = 0.0

    def send(self) -> None:
        """Send chunks until the window is full, with a mark after each step."""
        pace = self.pace
        while self.sent - self.taken < pace.window_bytes:
            self.sent += pace.chunk_bytes
            self.free_at = max(self.free_at, self.now) + pace.chunk_bytes / self.rate
            self.mark()

    def mark(self) -> None:
        """Send a mark if one is due."""
        if self.sent - self.marked >= self.pace.step_bytes:
            self.marked = self.sent
            self.pace.marked(self.now, self.taken, self.sent - self.taken, at_once=True)
            self.credits.append((max(self.free_at, self.now) + self.round_trip_s, self.sent))
            self.delays.append(max(0.0, self.free_at - self.now) + self.round_trip_s)

    def run(self, seconds: float) -> float:
        """Send for so long. Returns the bytes a second that arrived."""
        until, before, began = self.now + seconds, self.taken, self.now
        while True:
            self.send()
            at, taken = self.credits[0]
            at = max(at, self.frozen_until, self.now)
            if at > until:
                self.now = until
                return (self.taken - before) / (self.now - began)
            self.credits.popleft()
            self.now, self.taken = at, taken
            self.pace.credited(at, taken, 1)
            self.mark()


@pytest.mark.parametrize("rate", [1.25e9, 1e9, 125e6])
def test_a_fast_path_gets_the_largest_window_within_a_few_round_trips(rate: float) -> None:
    path = Path(rate)
    path.run(0.3)
    assert path.pace.window_bytes == MOST
    assert path.pace.chunk_bytes == 256 * KIB
    assert path.run(1.0) > 0.95 * min(rate, MOST / path.round_trip_s)


@pytest.mark.parametrize(("mbit", "most_s"), [(1, 1.6), (4, 0.7), (10, 0.6), (100, 0.5)])
def test_on_a_slow_path_little_stands_before_a_small_message(mbit: float, most_s: float) -> None:
    path = Path(mbit * 125_000, 0.02)
    assert path.run(30) > 0.97 * mbit * 125_000, "and nothing of the path is wasted"
    path.delays.clear()
    path.run(30)
    assert max(path.delays) < most_s


def test_even_the_first_bytes_are_few_on_a_slow_path() -> None:
    path = Path(125_000, 0.02)
    path.run(20)
    assert max(path.delays) < 1.6


@pytest.mark.parametrize(
    ("round_trip_s", "share"), [(0.02, 0.9), (0.1, 0.8), (0.3, 0.7), (0.6, 0.4), (1.5, 0.15)]
)
@pytest.mark.parametrize("rate", [1.25e6, 1.25e9])
def test_a_long_round_trip_is_no_queue(rate: float, round_trip_s: float, share: float) -> None:
    path = Path(rate, round_trip_s)
    path.run(40)
    assert path.run(60) > share * min(rate, MOST / round_trip_s)


def test_a_peer_that_stood_still_gets_its_window_back() -> None:
    path = Path(125e6)
    path.run(1.0)
    for frozen_s in (0.5, 3.0, 30.0):
        path.frozen_until = path.now + frozen_s
        path.run(frozen_s)
        path.run(0.5)
        assert path.run(1.0) > 0.9 * 125e6
        assert path.pace.window_bytes == MOST


def test_a_peer_that_stands_still_again_and_again_is_not_starved() -> None:
    path = Path(125e6)
    path.run(1.0)
    taken = path.taken
    for _ in range(20):
        path.frozen_until = path.now + 1.0
        path.run(1.0)
        path.run(0.1)
    assert path.taken - taken > 20 * 5 * MIB


def test_a_path_that_becomes_slow_is_found_out_with_the_next_credit() -> None:
    path = Path(125e6)
    path.run(5.0)
    path.rate = 125_000
    path.run(45.0)  # What was in flight must get there.
    path.delays.clear()
    path.run(20.0)
    assert max(path.delays) < 1.6


def test_after_a_pause_the_path_is_unknown() -> None:
    path = Path(125e6)
    path.run(1.0)
    assert path.pace.window_bytes == MOST
    path.pace._sent.clear()
    path.pace.marked(path.now + PAUSE_S - 0.1, path.taken, 1_000, at_once=True)
    assert path.pace.window_bytes == MOST
    path.pace.credited(path.now + PAUSE_S - 0.1, path.taken + 1_000, 1)
    path.pace.marked(path.now + 2 * PAUSE_S, path.taken, 1_000, at_once=True)
    assert path.pace.window_bytes == LEAST_BYTES


def test_what_was_sent_before_the_window_shrank_does_not_shrink_it_once_more() -> None:
    path = Path(125e6)
    path.run(1.0)
    pace, now, taken = path.pace, path.now, path.taken
    pace._sent.clear()
    for number in range(3):
        pace.marked(now + number * 0.001, taken, MIB, at_once=True)
    pace.credited(now + 0.4, taken + MIB, 1)
    shrunk = pace.window_bytes
    assert shrunk == pytest.approx(MOST / 2, rel=0.05)
    pace.credited(now + 0.8, taken + 2 * MIB, 1)
    assert pace.window_bytes == shrunk
    pace.marked(now + 0.9, taken, MIB, at_once=True)
    pace.credited(now + 1.0, taken + 3 * MIB, 1)
    pace.credited(now + 1.3, taken + 4 * MIB, 1)
    assert pace.window_bytes == pytest.approx(shrunk / 2, rel=0.05)


def test_a_window_that_is_not_used_up_does_not_grow() -> None:
    pace = Pace(MOST, 256 * KIB)
    for number in range(100):
        pace.marked(number * 0.1, number * 1_000, 1_000, at_once=True)
        pace.credited(number * 0.1 + 0.01, (number + 1) * 1_000, 1)
    assert pace.window_bytes == LEAST_BYTES


def test_the_credit_of_a_tick_says_nothing() -> None:
    path = Path(125e6)
    path.run(1.0)
    path.pace._sent.clear()
    path.pace.marked(path.now, path.taken, 1_000, at_once=True)
    path.pace.marked(path.now, path.taken, 2_000, at_once=False)
    path.pace.credited(path.now + 3.0, path.taken + 2_000, 2)
    assert path.pace.window_bytes == MOST
    assert not path.pace._sent


def test_the_delay_of_an_empty_path_is_measured_with_little_in_flight() -> None:
    path = Path(12.5e6, 0.1)
    path.run(PROBE_S - 1)
    assert path.pace._empty_s == pytest.approx(0.1, abs=0.02)
    path.round_trip_s = 0.3
    path.run(2 * PROBE_S)
    assert path.pace._empty_s == pytest.approx(0.3, abs=0.02)
    path.round_trip_s = 60.0
    path.run(300.0)
    assert path.pace._empty_s <= MAX_EMPTY_S


@given(
    st.floats(1e4, 1e10),
    st.floats(0, 2),
    st.integers(1, 8 * MIB),
    st.lists(st.tuples(st.floats(0.01, 3), st.floats(1e4, 1e10), st.booleans()), max_size=6),
)
def test_whatever_the_path_does_the_window_keeps_its_bounds_and_something_moves(
    rate: float, round_trip_s: float, most_bytes: int, changes: list[tuple[float, float, bool]]
) -> None:
    path = Path(rate, round_trip_s, most_bytes)
    for seconds, new_rate, is_frozen in changes:
        path.rate = new_rate
        if is_frozen:
            path.frozen_until = path.now + seconds
        path.free_at = min(path.free_at, path.now + 5)
        for _ in range(20):
            path.send()
            at, taken = path.credits.popleft()
            path.now, path.taken = max(at, path.frozen_until, path.now), taken
            path.pace.credited(path.now, taken, 1)
            path.mark()
            assert min(LEAST_BYTES, most_bytes) <= path.pace.window_bytes <= most_bytes
            assert 1 <= path.pace.chunk_bytes <= max(1, path.pace.window_bytes // CHUNKS_IN_WINDOW)
            assert 2 * path.pace.step_bytes <= path.pace.window_bytes


def test_the_numbers_fit_each_other() -> None:
    assert TARGET_S * 125_000 < LEAST_BYTES, "at 1 Mbit/s the least is what counts"
    assert MOST / TARGET_S < 25e6, "and above 200 Mbit/s the largest window"
