"""How fast counts grow, between two overviews."""

from __future__ import annotations

from typing import Any

import pytest

from fleetlm.cli.top.history import History
from tests.unit.cli.top.overviews import A, B, gone, overview, part, peer, pid, process


def counted(wall_ms: int, count: int, **changes: Any) -> dict[str, Any]:
    """A part that has counted so much of everything."""
    values: dict[str, Any] = {
        "counters": {"messages_sent": count},
        "peers": [peer(B, messages_sent=count)],
        "processes": {"count": 1, "shown": [process(1, taken=count)]},
    }
    return part(wall_ms=wall_ms, **values | changes)


def test_before_the_first_overview_there_is_nothing() -> None:
    history = History()
    assert (history.asked, dict(history.parts)) == ("", {})
    assert history.rate(A, "counters", "messages_sent") is None


def test_a_rate_is_known_with_the_second_part() -> None:
    history = History()
    history.add(overview(counted(10_000, 100)))
    assert history.asked == A
    assert history.rate(A, "counters", "messages_sent") is None
    history.add(overview(counted(12_000, 150)))
    for what in (("counters", "messages_sent"), ("peers", B, "messages_sent"), ("processes", pid(1))):
        assert history.rate(A, *what) == 25.0
    assert history.rate(A, "processes", pid(2)) is None
    assert history.rate(B, "counters", "messages_sent") is None


def test_the_same_part_counts_once() -> None:
    history = History()
    for wall_ms, count in ((10_000, 100), (11_000, 110), (11_000, 110), (11_000, 110)):
        history.add(overview(counted(wall_ms, count)))
    assert history.rate(A, "counters", "messages_sent") == 10.0


def test_a_look_that_a_node_misses_does_not_lose_its_rate() -> None:
    history = History()
    history.add(overview(counted(10_000, 100), gone(B)))
    history.add(overview(gone(A), gone(B)))
    assert history.rate(A, "counters", "messages_sent") is None
    history.add(overview(counted(14_000, 140), gone(B)))
    assert history.rate(A, "counters", "messages_sent") == 10.0


@pytest.mark.parametrize(
    "second",
    [
        counted(12_000, 150, incarnation=6),
        counted(12_000, 50),
        counted(10_050, 150),
        counted(9_000, 150),
        counted(12_000, 0, counters={}),
    ],
    ids=["it has restarted", "it counts anew", "too short", "its clock was set", "it counts no more"],
)
def test_no_rate_is_better_than_a_wrong_one(second: dict[str, Any]) -> None:
    history = History()
    history.add(overview(counted(10_000, 100)))
    history.add(overview(second))
    assert history.rate(A, "counters", "messages_sent") is None


def test_nodes_that_leave_the_table_are_forgotten() -> None:
    history = History()
    history.add(overview(part(A), part(B)))
    history.add(overview(part(A)))
    assert history._counts.keys() == {A}
