"""What an overview may hold, what of it a peer gets, and what is made of whatever a peer sends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from fleetlm.core.overview_shape import (
    COUNTS,
    LEAST,
    LIMITS,
    LONGEST,
    MEMBERS,
    TEXT_CHARS,
    TREE_DEPTH,
    UNREADABLE,
    WHOLE_FOR,
    Part,
    absent,
    bounded,
    cut,
    limit_of,
    peer_state,
    pick_shown,
    read_part,
    rows_of,
    trim_trees,
)
from fleetlm.core.shard_table import MAX_DIFFERING

NAME = "fleetlm@10.0.0.7"


def branch(name: str, *children: Part, local: bool = False) -> Part:
    return {
        "pid": f"<{name}>", "name": name, "runs": "f", "state": "waiting", "restart": "permanent",
        "restarts": 1, "restarted": 0, "local": local, "children": list(children),
    }  # fmt: skip


def process(number: int, *, local: bool = False) -> Part:
    return {
        "pid": f"<{number}>", "name": "", "runs": "f", "mailbox": 1, "taken": 2, "open_calls": 0,
        "state": "running", "serving": "generate", "serving_s": 1.5, "waits_for": "", "local": local,
    }  # fmt: skip


def peer(name: str, state: str = "up") -> Part:
    return {
        "name": name, "state": state, "road": "zmq", "up_s": 1.5, "ups": 1, "last_error": "", "lag_ms": 0,
        "messages_sent": 1, "messages_received": 2, "bytes_sent": 3, "bytes_received": 4, "outstanding": 5,
    }  # fmt: skip


def kind(**changes: Any) -> Part:
    return {
        "shards": 256, "unowned": 1, "hosts": 2, "differing": {"b": 64}, "is_hosted": True, "runs": "S",
        "owned": 128, "moving": 1, "alive": 10, "live": 100, "kept_bytes": 5, "max_kept_bytes": 50,
        "activated": 30, "fenced": 1, "handed_over": 2, "taken": 3, "stayed": 4,
        "quorum": {"expected": 3, "seen": 2, "holds": True},
        "store": {"name": "S", "durable": "write", "failures": 2, "fails": False},
    } | changes  # fmt: skip


def part(**changes: Any) -> Part:
    return {
        "name": NAME, "incarnation": 1 << 63, "version": "1", "pid": 7, "host": "10.0.0.7", "uptime_s": 1.5,
        "wall_ms": 9, "state": "up", "lag_ms": 0, "cookie": True, "exposure_warning": None,
        "dns": {"query": "q", "verdict": "v", "age_s": None, "polls": 3},
        "peers": [peer("a")], "processes": {"count": 1, "shown": [process(1)]}, "trees": [branch("root")],
        "groups": {"g": {"members": ["<1>"], "count": 1}}, "names": {"n": "<1>"},
        "kinds": {"sessions": kind()},
        "counters": {"messages_sent": 1}, "tables": {"processes": 1}, "stalled": ["x waits"],
        "events": [{"wall_ms": 1, "kind": "NodeUp", "text": "a"}], "left_out": {},
    } | changes  # fmt: skip


# Texts and states.


def test_a_text_is_short_and_holds_nothing_that_a_terminal_obeys() -> None:
    assert bounded("a name") == "a name"
    assert bounded("\x1b[31mred\nnext") == r"\x1b[31mred\nnext"
    assert len(bounded("x" * 10_000)) == len(bounded("\x1b" * 10_000)) == TEXT_CHARS
    assert bounded("x" * TEXT_CHARS) == "x" * TEXT_CHARS
    assert bounded("x" * 10_000).endswith("…")


@pytest.mark.parametrize(
    ("status", "draining", "state"),
    [
        ("up", False, "up"), ("up", True, "draining"), ("busy", False, "busy"), ("busy", True, "draining"),
        ("dialling", False, "connecting"), ("wanted", False, "connecting"), ("down", True, "down"),
        ("discovered", False, "down"),
    ],
)  # fmt: skip
def test_the_state_of_a_peer_has_five_words(status: str, draining: bool, state: str) -> None:
    assert peer_state(status, is_draining=draining) == state


# Which processes are shown.


def test_the_longest_mailboxes_come_first_then_the_busiest() -> None:
    loads = [(0, 0.0, 1), (-5, 0.0, 2), (0, -9.0, 3), (-5, -2.0, 4), (0, -3.0, 5)]
    assert pick_shown(loads, 10) == [4, 2, 3, 5, 1]
    assert pick_shown(loads, 3) == [4, 2, 3]


def test_full_mailboxes_do_not_hide_what_is_busy() -> None:
    full = [(-1, 0.0, number) for number in range(1, 101)]
    busy = [(0, -float(number), number) for number in range(101, 201)]
    shown = pick_shown([*full, *busy], 50)
    assert shown[:LONGEST] == list(range(1, LONGEST + 1))
    assert shown[LONGEST:] == list(range(200, 200 - (50 - LONGEST), -1))


@given(st.lists(st.tuples(st.integers(-3, 0), st.floats(-3, 0), st.integers(0, 30))), st.integers(1, 8))
def test_each_process_is_shown_once_and_no_place_stays_free(
    given_loads: list[tuple[int, float, int]], most: int
) -> None:
    loads = list({number: (length, busy, number) for length, busy, number in given_loads}.values())
    shown = pick_shown(loads, most)
    assert len(shown) == len(set(shown)) == min(most, len(loads))
    if any(length for length, _, _ in loads):
        longest = min(length for length, _, _ in loads)
        assert (longest, shown[0]) in [(length, number) for length, _, number in loads]


# What a peer gets.


def test_a_part_of_a_small_cluster_is_whole() -> None:
    assert cut(part(), WHOLE_FOR, for_peer=True) == part()


def test_processes_for_their_own_node_only_are_no_business_of_peers() -> None:
    trees = [branch("root", branch("vault", branch("safe"), local=True), branch("open"))]
    full = part(processes={"count": 2, "shown": [process(1, local=True), process(2)]}, trees=trees)
    mine, theirs = cut(full, 2, for_peer=False), cut(full, 2, for_peer=True)
    assert [row["pid"] for row in mine["processes"]["shown"]] == ["<1>", "<2>"]
    assert [row["pid"] for row in theirs["processes"]["shown"]] == ["<2>"]
    assert [row["name"] for row in rows_of(mine["trees"])] == ["root", "vault", "safe", "open"]
    assert [row["name"] for row in rows_of(theirs["trees"])] == ["root", "open"]
    assert [row["name"] for row in rows_of(full["trees"])] == ["root", "vault", "safe", "open"]


def test_the_more_nodes_are_asked_the_shorter_are_the_lists() -> None:
    full = part(
        peers=[peer(str(number)) for number in range(1_024)],
        processes={"count": 50, "shown": [process(number) for number in range(50)]},
        names={str(number): "<1>" for number in range(200)},
        groups={str(number): {"members": [], "count": 0} for number in range(100)},
        kinds={str(number): kind() for number in range(64)},
        events=[{"wall_ms": number, "kind": "NodeUp", "text": ""} for number in range(100)],
        trees=[branch(str(number)) for number in range(200)],
        stalled=["x"] * 20,
        left_out={"names": 3},
    )
    half = cut(full, 2 * WHOLE_FOR, for_peer=False)
    lists = ("peers", "trees", "groups", "names", "kinds", "stalled", "events")
    assert [len(half[what]) for what in lists] == [512, 100, 50, 100, 32, 10, 50]
    assert len(half["processes"]["shown"]) == 25
    assert half["events"][-1]["wall_ms"] == 99, "the last ones"
    assert half["left_out"] == {
        "names": 103, "peers": 512, "processes": 25, "trees": 100, "groups": 50, "kinds": 32, "stalled": 10,
    }  # fmt: skip
    assert full["left_out"] == {"names": 3}
    least = cut(full, 60_000, for_peer=False)
    assert len(least["peers"]) == LEAST["peers"]
    assert {what: limit_of(what, 60_000) for what in LIMITS} == LEAST


def test_of_many_peers_those_with_trouble_are_shown() -> None:
    peers = [peer(str(number)) for number in range(100)] + [peer("x", "down"), peer("y", "busy")]
    shown = cut(part(peers=peers), 60_000, for_peer=True)["peers"]
    assert [row["name"] for row in shown[:3]] == ["x", "y", "0"]


def test_trees_are_cut_level_by_level() -> None:
    trees = [branch("a", branch("b", branch("c")), branch("d")), branch("e", branch("f"))]
    kept, dropped = trim_trees(trees, 4)
    assert [row["name"] for row in rows_of(kept)] == ["a", "b", "d", "e"]
    assert dropped == 2
    assert trim_trees(trees, 6) == (trees, 0)
    assert trim_trees(trees, 0) == ([], 6)
    assert [row["name"] for row in rows_of(trees)] == ["a", "b", "c", "d", "e", "f"]


# What peers send.


def test_a_part_survives_the_reading() -> None:
    assert read_part(part(), NAME) == part()


def test_the_name_of_a_part_is_that_of_the_node_that_was_asked() -> None:
    assert read_part(part(name="fleetlm@10.0.0.99"), NAME)["name"] == NAME


@pytest.mark.parametrize("value", [None, 5, "part", [], {}, {"name": "x"}])
def test_what_is_no_part_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=UNREADABLE):
        read_part(value, NAME)


def test_what_a_version_does_not_know_is_empty_or_dropped() -> None:
    found = read_part({"incarnation": 5, "gpu": "new"}, NAME)
    assert "gpu" not in found
    assert found == {
        "name": NAME, "incarnation": 5, "version": "", "pid": 0, "host": "", "uptime_s": 0, "wall_ms": 0,
        "state": "", "lag_ms": 0, "cookie": False, "exposure_warning": None,
        "dns": {"query": "", "verdict": "", "age_s": None, "polls": 0}, "peers": [],
        "processes": {"count": 0, "shown": []}, "trees": [], "groups": {}, "names": {}, "kinds": {},
        "counters": {}, "tables": {}, "stalled": [], "events": [], "left_out": {},
    }  # fmt: skip


def test_what_a_hostile_peer_sends_is_bounded() -> None:
    deep: Any = []
    for _ in range(100):
        deep = [{**branch("x"), "children": deep}] * 2
    found = read_part(
        {
            "incarnation": 1 << 70, "pid": -5, "uptime_s": float("nan"), "lag_ms": True, "wall_ms": 1 << 64,
            "state": "\x1b[2J", "trees": deep, "peers": [{}] * 5_000,
            "names": {str(n): "x" for n in range(999)},
            "groups": {5: {}, "g": {"members": ["x"] * 999}}, "events": "none", "version": "x" * 10_000,
            "counters": {str(n): n for n in range(999)},
            "kinds": {str(n): {"differing": {str(m): m for m in range(99)}, "quorum": 5} for n in range(999)},
        },
        NAME,
    )  # fmt: skip
    assert (found["incarnation"], found["pid"], found["uptime_s"]) == (0, 0, 0)
    assert (found["lag_ms"], found["wall_ms"]) == (0, 0)
    assert found["state"] == r"\x1b[2J"
    assert len(found["peers"]) == LIMITS["peers"]
    assert len(list(rows_of(found["trees"]))) == LIMITS["trees"]
    assert depth(found["trees"]) <= TREE_DEPTH
    assert len(found["names"]) == LIMITS["names"]
    assert {name: len(group["members"]) for name, group in found["groups"].items()} == {"g": MEMBERS}
    assert found["events"] == []
    assert len(found["version"]) == TEXT_CHARS
    assert len(found["counters"]) == COUNTS
    assert len(found["kinds"]) == LIMITS["kinds"]
    assert {len(each["differing"]) for each in found["kinds"].values()} == {MAX_DIFFERING}
    assert found["kinds"]["0"]["quorum"] == {"expected": 0, "seen": 0, "holds": False}


def test_a_tree_that_is_only_deep_is_cut_below() -> None:
    deep: Part = branch("last")
    for _ in range(40):
        deep = branch("x", deep)
    assert depth(read_part(part(trees=[deep]), NAME)["trees"]) == TREE_DEPTH


def depth(trees: list[Part]) -> int:
    return max((1 + depth(row["children"]) for row in trees), default=0)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)
KEYS = st.sampled_from([*part(), "shown", "members", "children"])


@settings(max_examples=40)
@given(st.dictionaries(KEYS, VALUES | st.lists(st.dictionaries(KEYS, VALUES, max_size=3), max_size=3)))
def test_whatever_a_peer_sends_becomes_a_part_that_every_reader_can_hold(value: dict[str, Any]) -> None:
    found = read_part({"incarnation": 1, **value}, NAME)
    assert found.keys() == part().keys()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert read_part(found, NAME) == found
    assert cut(found, 100, for_peer=True).keys() == found.keys()


def test_a_node_that_tells_nothing_is_there_with_the_reason() -> None:
    assert absent(NAME, "it is\ngone", state="down") == {
        "name": NAME, "error": r"it is\ngone", "state": "down",
    }  # fmt: skip


def test_a_branch_that_is_none_has_no_children() -> None:
    (row,) = read_part({"incarnation": 1, "trees": ["root"]}, NAME)["trees"]
    assert row["children"] == []
