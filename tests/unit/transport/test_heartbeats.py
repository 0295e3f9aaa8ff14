"""What may come over a connection that brings heartbeats alone."""

from __future__ import annotations

import pytest

from fleetlm.transport.heartbeats import HEARTBEAT_BYTES, Heartbeats

MOST = 10_000
INTERVAL_S = 2.0


def heartbeats() -> Heartbeats:
    """They begin at second 100, when 500 bytes had come."""
    return Heartbeats(100.0, 500, MOST, INTERVAL_S)


def test_so_much_may_come_at_once_and_no_byte_more() -> None:
    assert heartbeats().take(100.0, 500 + MOST)
    assert not heartbeats().take(100.0, 501 + MOST)


def test_what_was_used_comes_back_with_time() -> None:
    each = heartbeats()
    assert each.take(100.0, 500 + MOST)
    assert each.take(102.0, 500 + MOST + HEARTBEAT_BYTES)
    assert not each.take(102.0, 501 + MOST + HEARTBEAT_BYTES)


def test_no_more_than_that_is_saved() -> None:
    each = heartbeats()
    assert each.take(10_000.0, 500)
    assert each.allowed_bytes == MOST
    assert not each.take(10_000.0, 501 + MOST)


@pytest.mark.parametrize("pause_s", [1.0, 60.0, 3_600.0])
def test_heartbeats_with_a_cookie_are_never_too_much_however_late_the_looks_are(pause_s: float) -> None:
    """100 bytes in each interval, for a week."""
    each = heartbeats()
    for look in range(1, int(7 * 86_400 / pause_s) + 1, max(1, int(600 / pause_s))):
        since_s = look * pause_s
        assert each.take(100.0 + since_s, 500 + int(since_s * 100 / INTERVAL_S))
        assert each.allowed_bytes == MOST
