from __future__ import annotations

from hypothesis import given, strategies as st

from fleetlm.core.buckets import Bucket


def test_a_bucket_gives_its_burst_at_once_and_then_one_at_a_time() -> None:
    bucket = Bucket(rate=2.0, burst=3.0, now=10.0)
    assert [bucket.take(10.0) for _ in range(5)] == [True, True, True, False, False]
    assert bucket.ready_at(10.0) == 10.5
    assert not bucket.take(10.4)
    assert bucket.take(10.5)
    assert not bucket.take(10.5)


def test_a_bucket_saves_no_more_than_its_burst() -> None:
    bucket = Bucket(rate=2.0, burst=3.0, now=0.0)
    assert sum(bucket.take(1e6) for _ in range(10)) == 3


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = Bucket(rate=1.0, burst=1.0, now=100.0)
    assert bucket.take(100.0)
    assert not bucket.take(50.0)
    assert bucket.take(101.0)


@given(st.floats(0.01, 1_000.0), st.integers(1, 9), st.lists(st.floats(0.0, 3.0), max_size=40))
def test_there_is_a_token_when_the_bucket_said_so(rate: float, burst: int, pauses: list[float]) -> None:
    now, taken = 0.0, 0
    bucket = Bucket(rate, burst, now)
    for pause in pauses:
        now += pause
        taken += bucket.take(now)
        when = bucket.ready_at(now)
        assert when >= now
        assert Bucket(rate, burst, now).take(now)
        if when > now:
            assert not bucket.take(now)
            now = when
            assert bucket.take(now)
            taken += 1
    assert taken <= burst + now * rate + 1e-6
