"""Histograms, the time for which windows were full, and what events are counted as."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fleetlm import CallEnded, ChildRestarted, HandlerEnded, MessageDropped, WindowFull, WindowOpened
from fleetlm.metrics.counts import BOUNDS_S, MAX_CLOCKS, Counts, FullClock, Histogram
from fleetlm.metrics.labels import MAX_ACTORS, MAX_HANDLERS, OTHER


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(0, 1e6)))
def test_each_bucket_holds_what_took_no_longer(seconds: list[float]) -> None:
    histogram = Histogram()
    for each in seconds:
        histogram.observe(each)
    for bound, count in histogram.buckets():
        assert count == sum(each <= float(bound) for each in seconds)
    assert histogram.sum_s == pytest.approx(math.fsum(seconds))


def test_bounds_grow_and_the_last_bucket_has_none() -> None:
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))
    assert [bound for bound, _ in Histogram().buckets()][-1] == "+Inf"


def test_a_copy_does_not_change() -> None:
    histogram = Histogram()
    histogram.observe(1.0)
    copy = histogram.copy()
    histogram.observe(1.0)
    assert (copy.buckets()[-1][1], copy.sum_s) == (1.0, 1.0)


def test_time_counts_while_at_least_one_sender_waits() -> None:
    clock = FullClock()
    clock.begin(10.0)
    clock.begin(11.0)
    assert (clock.waiting, clock.seconds(12.0)) == (2, 2.0)
    clock.end(13.0)
    assert (clock.total_s, clock.seconds(14.0)) == (0.0, 4.0)
    clock.end(15.0)
    assert (clock.waiting, clock.total_s, clock.seconds(99.0)) == (0, 5.0, 5.0)
    clock.begin(20.0)
    clock.end(21.0)
    assert clock.seconds(99.0) == 6.0


def test_a_wait_that_began_before_is_left_out() -> None:
    clock = FullClock()
    clock.end(5.0)
    assert (clock.waiting, clock.seconds(9.0)) == (0, 0.0)


class Rig:
    """Counts, and events as the taps would give them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.counts = Counts(self.clock)
        self._listeners = self.counts.listeners()

    def tell(self, event: Any, *weight: int) -> None:
        fields = [getattr(event, name) for name in event.__match_args__]
        self._listeners[type(event)](*fields, *weight)


def total(histogram: Histogram) -> int:
    return sum(histogram.counts)


def test_calls_are_counted_by_outcome() -> None:
    rig = Rig()
    for outcome in ("ok", "ok", "NodeLost"):
        rig.tell(CallEnded("to", "", outcome, 0.2), 1)
    assert {key: total(each) for key, each in rig.counts.calls.items()} == {"ok": 2, "NodeLost": 1}


def test_handlers_are_counted_with_the_time_before_them() -> None:
    rig = Rig()
    rig.tell(HandlerEnded("Model", "infer", "ok", 0.2, 0.1), 1)
    rig.tell(HandlerEnded("Model", "infer", "other", 0.3, None), 2)
    assert total(rig.counts.handlers["Model", "infer"]) == 3
    assert rig.counts.handlers["Model", "infer"].sum_s == pytest.approx(0.8)
    assert total(rig.counts.queues["Model"]) == 1


def test_histograms_of_handlers_and_actors_are_bounded() -> None:
    rig = Rig()
    for number in range(2 * MAX_HANDLERS):
        rig.tell(HandlerEnded(f"Actor{number}", "run", "ok", 0.2, 0.1), 1)
    assert len(rig.counts.handlers) == MAX_HANDLERS + 1
    assert total(rig.counts.handlers[OTHER, OTHER]) == MAX_HANDLERS
    assert len(rig.counts.queues) == MAX_ACTORS + 1
    assert total(rig.counts.queues[OTHER]) == 2 * MAX_HANDLERS - MAX_ACTORS


def test_drops_restarts_and_full_windows_are_counted() -> None:
    rig = Rig()
    rig.tell(MessageDropped("expired", 2, "to", ""))
    rig.tell(MessageDropped("expired", 1, "to", ""))
    rig.tell(ChildRestarted("root", "worker", "crash"))
    rig.tell(WindowOpened("to", "peer", 1.0))
    rig.tell(WindowFull("to", "peer"))
    rig.clock.now = 3.0
    rig.tell(WindowOpened("to", "peer", 3.0))
    assert rig.counts.drops == {"expired": 3}
    assert rig.counts.restarts == 1
    assert rig.counts.full["peer"].total_s == 3.0


def test_clocks_of_full_windows_are_bounded_though_nobody_scrapes() -> None:
    rig = Rig()
    rig.tell(WindowFull("to", "waits"))
    for number in range(2 * MAX_CLOCKS):
        rig.tell(WindowFull("to", f"n{number}"))
        rig.tell(WindowOpened("to", f"n{number}", 0.1))
    assert len(rig.counts.full) <= MAX_CLOCKS
    assert rig.counts.full["waits"].waiting == 1
