"""Attacks on a node, of which an honest peer notices nothing but time; `tests.long.attacks` has all."""

from __future__ import annotations

import pytest

from tests.long.attacks.__main__ import HOLDERS, ONLY_WITH_COOKIE, STRANGERS, row, summary
from tests.long.attacks.lab import COOKIE, Outcome, Phase, lab
from tests.support.raw_zmtp import has_sodium

pytestmark = [pytest.mark.long, pytest.mark.alone]  # The laboratory has fixed addresses.

QUIET_S, ATTACKED_S = 0.5, 2.0
MOST_GROWTH_MB = 100
STRANGERS_TRIED = ("small_parts", "probes", "empty_crowd", "silent", "knocks", "forged", "many_names")
HOLDERS_TRIED = ("equal_hashes", "empty_lists", "short_lists", "monitors", "hearsay", "broken")


@pytest.mark.deadline(60)
@pytest.mark.parametrize(
    ("name", "cookie"),
    [
        *(pytest.param(name, None, id=f"{name}-plain") for name in STRANGERS_TRIED),
        *(pytest.param(name, COOKIE, id=f"{name}-cookie") for name in HOLDERS_TRIED),
    ],
)
def test_an_attack_costs_the_honest_peer_no_call_and_no_connection(name: str, cookie: str | None) -> None:
    if cookie is not None and not has_sodium():
        pytest.skip("pyzmq was not installed from a wheel")
    with lab(cookie) as running:
        outcome = running.attack(name, QUIET_S, ATTACKED_S)
        print(row(outcome))
        assert outcome.is_alive, running.log[-2_000:]
    attacked = outcome.attacked
    assert (attacked.failed, attacked.downs) == (0, 0)
    assert attacked.calls > 0
    assert attacked.rss_mb - outcome.quiet.rss_mb < MOST_GROWTH_MB
    assert attacked.lines < 200


def test_the_table_tells_which_attacks_cost_more_than_three_times_as_much() -> None:
    def phase(p99_ms: float) -> Phase:
        return Phase(1.0, p99_ms, 9.0, 100, 0, 0, 0.1, 40.0, 33, 5.0, 2.0, 1.0, 1)

    outcomes = [
        Outcome(name, phase(2.0), phase(p99_ms), True, "-")
        for name, p99_ms in [("a", 3.0), ("b", 9.0), ("busy", 20.0)]
    ]
    assert summary(outcomes) == (
        "quiet p99 2.00 ms (median of all); under attack at most 4.5 times as much; beyond 3 times: b 4.5; "
        "busy, no attack: 10.0"
    )
    assert "2.00 →    9.00   4.5" in row(outcomes[1])


def test_what_is_tried_here_exists() -> None:
    assert set(STRANGERS_TRIED) <= set(STRANGERS) - ONLY_WITH_COOKIE
    assert set(HOLDERS_TRIED) <= set(HOLDERS)
