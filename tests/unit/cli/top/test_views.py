"""The rows that each view makes of an overview."""

from __future__ import annotations

from typing import Any

import pytest

from fleetlm.cli.top.history import History
from fleetlm.cli.top.views import (
    NONE,
    VIEWS,
    Cell,
    Row,
    count,
    left_out,
    rate,
    short_pid,
    span,
    state_of,
    summary,
    text,
)
from tests.unit.cli.top.overviews import A, B, C, branch, gone, kind, overview, part, peer, pid, process


def history_of(*overviews: dict[str, Any]) -> History:
    history = History()
    for each in overviews:
        history.add(each)
    return history


def rows(name: str, history: History) -> list[Row]:
    (view,) = (each for each in VIEWS if each.name == name)
    made = view.make(history)
    assert all(len(row.cells) == len(view.columns) for row in made)
    assert len({row.key for row in made}) == len(made), "keys are keys"
    return made


def cell(name: str, row: Row, title: str) -> Cell:
    (view,) = (each for each in VIEWS if each.name == name)
    return row.cells[[column.title for column in view.columns].index(title)]


# Cells.


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (count(None), NONE), (count(1234567), "1,234,567"), (rate(None), NONE), (rate(0), "0"),
        (rate(0.44), "0.4"), (rate(12.4), "12"), (rate(1_234), "1.2k"), (rate(2.5e6, "B"), "2.5MB"),
        (rate(7e12), "7000G"), (span(None), NONE), (span(0.44), "0.4 s"), (span(90), "90 s"),
        (span(600), "10 min"), (span(86_400), "24 h"), (span(864_000), "10 d"), (text("\x1b[2J"), r"\x1b[2J"),
    ],
)  # fmt: skip
def test_a_cell_is_short(made: Cell, shown: str) -> None:
    assert made.text == shown


def test_what_is_not_known_is_sorted_below_all() -> None:
    assert count(None).value < count(0).value
    assert rate(None).value < rate(0.0).value
    assert span(None).value < span(0.0).value
    assert text("Zebra").value > text("apple").value, "capitals make no difference"


def test_a_pid_is_shown_as_a_number_at_a_node() -> None:
    assert short_pid(pid(12, B)) == f"12 at {B}"
    assert short_pid("anything") == "anything"


# Nodes.


def test_a_node_is_shown_with_its_rates_and_what_is_wrong() -> None:
    traffic = {"messages_sent": 40, "messages_received": 2_000, "bytes_sent": 0, "bytes_received": 9_000_000}
    later = part(
        wall_ms=12_000, counters={**traffic, "undelivered": 2}, stalled=["a waits for b"],
        exposure_warning="everybody may join", lag_ms=300,
    )  # fmt: skip
    (row,) = rows("nodes", history_of(overview(part()), overview(later)))
    shown = {
        name: cell("nodes", row, name).text for name in ("node", "state", "up", "in/s", "out/s", "B in/s")
    }
    assert shown == {
        "node": A, "state": "up", "up": "5 min", "in/s": "1.0k", "out/s": "20", "B in/s": "4.5MB",
    }  # fmt: skip
    notes = cell("nodes", row, "notes").text
    assert notes == "1 stalled: a waits for b; 2 undelivered; no cookie, and others may reach it"
    assert row.tone == "warn", "its loop is late"


def test_a_node_that_tells_nothing_has_a_row_with_the_reason() -> None:
    history = history_of(
        overview(part(A, peers=[peer(B), peer(C)]), gone(B, "it\nleft"), gone(C, "it did not answer", "up"))
    )
    _, left, silent = rows("nodes", history)
    assert (cell("nodes", left, "state").text, left.tone) == ("down", "bad")
    assert cell("nodes", left, "notes").text == r"it\nleft"
    assert cell("nodes", left, "lag ms").text == NONE
    assert (cell("nodes", silent, "state").text, silent.tone) == ("silent", "bad")


@pytest.mark.parametrize(
    ("own", "seen", "shown"),
    [
        ("up", "busy", "busy"),
        ("up", "draining", "draining"),
        ("draining", "up", "draining"),
        ("up", "up", "up"),
    ],
)
def test_the_node_that_is_asked_may_know_better(own: str, seen: str, shown: str) -> None:
    history = history_of(overview(part(A, peers=[peer(B, state=seen)]), part(B, state=own)))
    assert state_of(history, B) == shown
    assert state_of(history, A) == "up"


# Sessions and processes.


def test_sessions_are_shown_from_both_ends() -> None:
    first = overview(part(A, peers=[peer(B)]), part(B, peers=[peer(A)]), gone(C))
    second = overview(
        part(A, 11_000, peers=[peer(B, bytes_sent=5_000, state="busy")]),
        part(B, 11_000, peers=[peer(A, road=None, up_s=None, last_error="refused")]),
        gone(C),
    )
    here, there = rows("sessions", history_of(first, second))
    assert (cell("sessions", here, "node").text, cell("sessions", here, "peer").text) == (A, B)
    assert (cell("sessions", here, "B out/s").text, here.tone) == ("5.0kB", "warn")
    assert (cell("sessions", there, "road").text, cell("sessions", there, "up").text) == (NONE, NONE)
    assert cell("sessions", there, "last error").text == "refused"


def test_a_process_that_is_behind_or_slow_stands_out() -> None:
    shown = [
        process(1, mailbox=500), process(2, serving="generate", serving_s=61.0, open_calls=1),
        process(3, serving_s=99.0, waits_for="reply"), process(4, taken=10),
    ]  # fmt: skip
    first = overview(part(processes={"count": 4, "shown": shown}))
    second = overview(part(A, 11_000, processes={"count": 4, "shown": [*shown[:3], process(4, taken=30)]}))
    behind, slow, waits, quick = rows("processes", history_of(first, second))
    assert [row.tone for row in (behind, slow, waits, quick)] == ["warn", "warn", "", ""]
    assert cell("processes", slow, "serving").text == "generate"
    assert cell("processes", slow, "for").text == "61 s"
    assert cell("processes", quick, "for").text == ""
    assert cell("processes", quick, "taken/s").text == "20"
    assert cell("processes", quick, "pid") == Cell(4, "4")


# Trees.


def test_trees_are_drawn_and_keep_their_places() -> None:
    tree = branch(
        "app",
        branch("a", branch("deep", number=4, restarts=2), number=2, restarted=2, runs="Supervisor"),
        branch("b", pid="", state="restarting"),
        runs="Supervisor",
    )
    made = rows("trees", history_of(overview(part(trees=[tree, branch("", number=9)]))))
    assert [cell("trees", row, "child").text for row in made] == [
        "app", "├─ a", "│  └─ deep", "└─ b", "<9>",
    ]  # fmt: skip
    assert [row.depth for row in made] == [0, 1, 2, 1, 0]
    assert [row.tone for row in made] == ["", "warn", "warn", "bad", ""]
    assert cell("trees", made[3], "pid").text == NONE
    restarted = {**tree, "children": [{**tree["children"][0], "pid": pid(77)}, tree["children"][1]]}
    again = rows("trees", history_of(overview(part(trees=[restarted, branch("", number=9)]))))
    assert [row.key for row in again] == [row.key for row in made]


# Groups and names.


def test_a_group_is_that_of_the_node_that_is_asked_and_differences_are_told() -> None:
    members = [pid(1, A), pid(2, B), pid(3, B)]
    history = history_of(
        overview(
            part(B, groups={"g": {"members": members, "count": 3}}),
            part(
                A, groups={"g": {"members": members[:2], "count": 2}, "x": {"members": [pid(1)], "count": 1}}
            ),
            gone(C),
        )
    )
    g, x = rows("groups", history)
    assert [cell("groups", g, title).text for title in ("group", "members", "nodes")] == ["g", "3", "2"]
    assert cell("groups", g, "notes").text == "1 of 2 nodes see another number"
    assert cell("groups", g, "who").text == f"1 at {A}, 2 at {B}, 3 at {B}"
    assert (g.tone, x.tone) == ("warn", "")


def test_a_name_with_two_holders_stands_out() -> None:
    history = history_of(
        overview(
            part(A, names={"leader": pid(1, A), "only": pid(2, A)}), part(B, names={"leader": pid(1, B)})
        )
    )
    leader, only = rows("names", history)
    assert [cell("names", leader, title).text for title in ("name", "node", "pid")] == ["leader", A, "1"]
    assert (cell("names", leader, "notes").text, leader.tone) == ("1 of 2 nodes see another holder", "warn")
    assert (cell("names", only, "notes").text, only.tone) == ("", "")


# Events and the whole.


def test_events_of_all_nodes_come_newest_first() -> None:
    def event(wall_ms: int, kind: str) -> dict[str, Any]:
        return {"wall_ms": wall_ms, "kind": kind, "text": "x"}

    history = history_of(
        overview(
            part(A, events=[event(1_000, "NodeUp"), event(9_000, "NodeDown")]),
            part(B, events=[event(5_000, "NodeDraining"), event(5_000, "NodeUndrained")]),
            wall_ms=10_000,
        )
    )
    made = rows("events", history)
    assert [cell("events", row, "when").text for row in made] == [
        "1.0 s ago",
        "5.0 s ago",
        "5.0 s ago",
        "9.0 s ago",
    ]
    assert [row.tone for row in made] == ["bad", "", "warn", "good"]
    assert cell("events", made[0], "when").value > cell("events", made[3], "when").value


def test_one_line_sums_up_the_cluster() -> None:
    def counted(name: str, wall_ms: int, received: int) -> dict[str, Any]:
        counters = {"messages_received": received}
        return part(name, wall_ms, counters=counters, processes={"count": 600, "shown": []})

    first = overview(counted(A, 10_000, 0), counted(B, 10_000, 0), gone(C))
    assert summary(history_of(first)) == "3 nodes, 2 up, 1 down · 1,200 processes · DNS addresses: 3"
    second = overview(counted(A, 11_000, 600), counted(B, 11_000, 700), gone(C))
    assert "· 1.3k messages/s ·" in summary(history_of(first, second))
    assert summary(history_of(overview(part(dns={"verdict": ""})))) == "1 node, 1 up · 0 processes"


def test_what_the_limits_left_out_is_said() -> None:
    history = history_of(
        overview(
            part(A, left_out={"processes": 950, "names": 7, "peers": 3}),
            part(B, left_out={"processes": 50, "names": 9}),
            gone(C),
        )
    )
    assert left_out(history, "processes") == "1,000 more are not shown"
    assert left_out(history, "names") == "9 more are not shown", "all nodes know the same names"
    assert left_out(history, "sessions") == "3 more are not shown"
    assert left_out(history, "trees") == ""


# Keyed entities.


def test_each_kind_is_shown_on_each_node_that_hosts_it() -> None:
    def made(activated: int, wall_ms: int) -> dict[str, Any]:
        sessions = kind(activated=activated, moving=2, handed_over=3, taken=4, fenced=5)
        return part(A, wall_ms, kinds={"sessions": sessions, "carts": kind(is_hosted=False)})

    other = part(B, kinds={"sessions": kind(127), "carts": kind(256)})
    history = history_of(overview(made(30, 10_000), other), overview(made(50, 12_000), other))
    found = {(cell("entities", row, "kind").text, cell("entities", row, "node").text): row
             for row in rows("entities", history)}  # fmt: skip
    assert set(found) == {("sessions", A), ("sessions", B), ("carts", B)}
    row = found["sessions", A]
    titles = ("owned", "shards", "moving", "alive", "made/s", "given", "taken", "fenced", "notes")
    shown = [cell("entities", row, title).text for title in titles]
    assert shown == ["128", "256", "2", "10", "10", "3", "4", "5", ""]
    assert row.tone == ""


@pytest.mark.parametrize(
    ("changes", "note", "tone"),
    [
        ({"unowned": 3}, "3 shards have no owner", "warn"),
        ({"alive": 1_000}, "as many live as may", "warn"),
        ({"alive": 1, "live": 1, "shards": 1}, "", ""),
        ({"kept_bytes": 1_000}, "its states take all bytes that they may", "warn"),
        ({"differing": {B: 64}}, f"others cut it into another number of shards ({B}: 64)", "bad"),
        (
            {"quorum": {"expected": 3, "seen": 1, "holds": False}},
            "no quorum: 1 of 3 hosts are seen",
            "bad",
        ),
        (
            {"quorum": {"expected": 3, "seen": 3, "holds": True}, "hosts": 4},
            "4 hosts, and its quorum expects 3",
            "warn",
        ),
        ({"quorum": {"expected": 3, "seen": 2, "holds": True}}, "", ""),
        (
            {"store": {"name": "S", "durable": "write", "failures": 1_200, "fails": True}},
            "its store fails, 1,200 operations up to now",
            "bad",
        ),
    ],
)
def test_what_is_wrong_with_a_kind_is_said(changes: dict[str, Any], note: str, tone: str) -> None:
    (row,) = rows("entities", history_of(overview(part(A, kinds={"sessions": kind(**changes)}))))
    assert (cell("entities", row, "notes").text, row.tone) == (note, tone)


def test_a_kind_whose_hosts_tell_nothing_has_one_row() -> None:
    seen = kind(is_hosted=False, unowned=256, hosts=1)
    history = history_of(overview(part(A, kinds={"sessions": seen}), gone(B, "silent", "up")))
    (row,) = rows("entities", history)
    assert (row.key, cell("entities", row, "node").text, row.tone) == ("sessions", NONE, "warn")
    assert cell("entities", row, "notes").text == "256 shards have no owner"


def test_a_node_of_an_older_version_tells_of_no_kinds() -> None:
    older = part(A)
    del older["kinds"]
    assert rows("entities", history_of(overview(older))) == []
