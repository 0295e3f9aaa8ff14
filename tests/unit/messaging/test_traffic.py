"""Sums over sessions that only grow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fleetlm.messaging.traffic import Traffic


def session(number: int) -> Any:
    return SimpleNamespace(
        messages_sent=number,
        messages_received=10 * number,
        byte_window=SimpleNamespace(sent_bytes=100 * number),
        byte_credit=SimpleNamespace(taken_bytes=1_000 * number),
    )


def shown(traffic: Traffic) -> tuple[int, int, int, int]:
    return traffic.messages_sent, traffic.messages_received, traffic.bytes_sent, traffic.bytes_received


def test_what_is_over_stays_in_the_sum() -> None:
    ended = Traffic()
    ended.add(session(1))
    assert shown(ended) == (1, 10, 100, 1_000)
    assert shown(ended.plus([session(2), session(3)])) == (6, 60, 600, 6_000)
    assert shown(ended) == (1, 10, 100, 1_000), "what is open may still grow"
    assert shown(Traffic.of(session(4))) == (4, 40, 400, 4_000)
    assert shown(Traffic()) == (0, 0, 0, 0)
