"""What watchers are shown: sections that changed, rates, and errors for what cannot be shown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fleetlm.ops import board
from fleetlm.ops.board import Board, divide, rates_between
from tests.support.ops_fakes import NAME, node_name, overview_of, part, peer


def seen(pieces: list[bytes]) -> dict[str, Any]:
    text = b"".join(pieces).decode()
    assert text.endswith("\n\n")
    assert text.count("\n") == 3, "one event, on one line"
    found: dict[str, Any] = json.loads(text.partition("data: ")[2])
    return found


def test_whoever_has_seen_nothing_gets_everything() -> None:
    shown = Board()
    shown.update(overview_of(3))
    event = seen(shown.changes(0))
    assert event["asked"] == NAME
    assert event["nodes"] == list(event["set"]) == [node_name(each) for each in (1, 2, 3)]
    assert event["set"][NAME]["peers"][0][:2] == [node_name(2), "up"], "peers are rows of columns"
    assert event["set"][NAME]["head"]["version"] == "0.1.0"


def test_whoever_has_seen_a_number_gets_what_changed_after_it() -> None:
    shown = Board()
    shown.update(overview_of(3))
    first = shown.number
    changed = overview_of(3)
    changed["nodes"][node_name(2)]["names"] = {"other": "<x.1>"}
    shown.update(changed)
    assert seen(shown.changes(first))["set"] == {node_name(2): {"names": {"other": "<x.1>"}}}
    shown.update(changed)
    assert seen(shown.changes(shown.number - 1))["set"] == {}
    assert seen(shown.changes(first))["set"] == {node_name(2): {"names": {"other": "<x.1>"}}}, "a slow one"


def test_nodes_that_are_forgotten_go_and_those_that_do_not_answer_keep_their_parts() -> None:
    shown = Board()
    shown.update(overview_of(3))
    before = shown.number
    silent = overview_of(2)
    silent["nodes"][node_name(2)] = {"name": node_name(2), "error": "no answer", "state": "busy"}
    shown.update(silent)
    event = seen(shown.changes(before))
    assert event["nodes"] == [node_name(1), node_name(2)]
    assert event["set"][node_name(2)] == {"head": silent["nodes"][node_name(2)]}
    everything = seen(shown.changes(0))
    assert "trees" in everything["set"][node_name(2)], "a page that opens now sees what was known last"
    assert node_name(3) not in everything["set"]


def test_a_node_that_does_not_answer_at_all_is_said_until_it_does() -> None:
    shown = Board()
    shown.update(overview_of(1))
    shown.stall("it is blocked", 7)
    event = seen(shown.changes(shown.number - 1))
    assert (event["stalled"], event["wall_ms"], event["set"]) == ("it is blocked", 7, {})
    shown.update(overview_of(1))
    assert seen(shown.changes(shown.number - 1))["stalled"] == ""
    shown.update(overview_of(1))
    assert "stalled" not in seen(shown.changes(shown.number - 1))


def test_rates_are_those_of_one_incarnation() -> None:
    now = (1, 3_000.0, [30.0, 5.0])
    assert rates_between((1, 1_000.0, [10.0, 5.0]), now) == [10.0, 0.0]
    assert rates_between(None, now) == [None, None]
    assert rates_between((2, 1_000.0, [10.0, 5.0]), now) == [None, None], "it has restarted"
    assert rates_between((1, 3_000.0, [10.0, 5.0]), now) == [None, None], "no time has passed"
    assert rates_between((1, 2_000.0, [40.0, 5.0]), now) == [0.0, 0.0], "a session has ended with its counts"


def test_the_history_has_the_last_minutes_in_columns() -> None:
    shown = Board()
    for tick in range(board.HISTORY + 5):
        shown.update(overview_of(2, tick))
    text = seen(shown.history())
    assert len(text["wall_ms"]) == board.HISTORY
    assert text["nodes"][NAME][-1] == [100.0, 90.0, 10_000.0, 1]
    only = Board()
    only.update(overview_of(2))
    without = overview_of(1, 1)
    only.update(without)
    assert seen(only.history())["nodes"][node_name(2)] == [[None, None, None, 1], None]


@pytest.mark.parametrize("facts", [None, 5, "text", [1], b"x"])
def test_a_part_that_is_none_is_an_error(facts: Any) -> None:
    assert json.loads(divide(facts)["head"])["error"].startswith("its answer is")


def test_what_cannot_be_written_is_said_and_the_rest_is_shown() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    strange = part(NAME, [peer("a")], trees=nested, names={"a": float("inf")}, groups={"a": {1}})
    strange["peers"].append("no peer")
    texts = divide(strange)
    assert set(texts) == {"head", "peers", "processes", "kinds", "events"}
    error = json.loads(texts["head"])["error"]
    for key in ("trees", "names", "groups"):
        assert f"its {key} cannot be shown" in error
    assert json.loads(texts["peers"]) == [["a", "up", "zmq", 3725.0, 1, "", 1, 100, 90, 10_000, 9_000, 0]]
    assert "its head cannot be shown" in json.loads(divide({"pid": {1}})["head"])["error"]


def test_a_section_that_is_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "MAX_SECTION_BYTES", 2_000)
    texts = divide(part(NAME, [peer(node_name(each)) for each in range(1, 100)]))
    assert "peers" not in texts
    assert "its peers are too large" in json.loads(texts["head"])["error"]


@pytest.mark.parametrize("overview", [{}, {"nodes": None}, {"nodes": [1]}, {"nodes": {1: 2}, "wall_ms": "x"}])
def test_an_overview_of_another_shape_breaks_nothing(overview: dict[str, Any]) -> None:
    shown = Board()
    shown.update(overview)
    seen(shown.changes(0))
    seen(shown.history())
