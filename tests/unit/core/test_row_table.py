"""The rows that nodes write, decided by facts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any

import msgpack
import pytest

from fleetlm import InvalidName, RowDropped, RowPut, Settings, TooManyRows
from fleetlm.core.row_table import MAX_TOLD_ROWS, ROW_BYTES, Place, RowTable, Tell, size_of
from fleetlm.core.snapshot import Snapshot
from fleetlm.directory.replication import MAX_FACT_BYTES
from fleetlm.wire.codec import Codec

ME, PEER = "fleetlm@10.0.0.1", "fleetlm@10.0.0.2"


def rows(**settings: Any) -> RowTable:
    return RowTable(ME, 1, Settings(**settings), msgpack.unpackb)


def pack(value: object) -> bytes:
    return bytes(msgpack.packb(value))


def test_a_row_is_told_and_shown_and_replaced_and_taken_back() -> None:
    table = rows()
    assert table.put("flags", "beta", pack(True)) == [
        Tell(["put", "flags", [["beta", pack(True)]]]),
        RowPut("flags", ME, "beta", True),
    ]
    table.put("flags", "beta", pack([1]))
    assert table.get("flags", "beta") == {ME: [1]}
    assert table.drop("flags", "beta") == [
        Tell(["drop", "flags", ["beta"]]),
        RowDropped("flags", ME, "beta", "dropped"),
    ]
    assert (table.get("flags", "beta"), table.keys("flags"), table.tables()) == ({}, [], [])
    assert table.drop("flags", "beta") == []


def test_two_nodes_may_write_under_one_key() -> None:
    table = rows()
    table.put("flags", "beta", pack(1))
    assert table.told(PEER, 7, ["put", "flags", [["beta", pack(2)], ["alpha", pack(3)]]]) == [
        RowPut("flags", PEER, "beta", 2),
        RowPut("flags", PEER, "alpha", 3),
    ]
    assert table.get("flags", "beta") == {ME: 1, PEER: 2}
    assert table.value("flags", "alpha", PEER, None) == 3
    assert table.value("flags", "alpha", ME, "none") == "none"
    assert table.value("flags", "alpha", "fleetlm@10.0.0.9", "none") == "none"
    assert table.keys("flags") == ["beta", "alpha"]
    assert table.told(PEER, 7, ["drop", "flags", ["beta"]]) == [RowDropped("flags", PEER, "beta", "dropped")]
    assert table.get("flags", "beta") == {ME: 1}


def test_a_lost_node_takes_all_its_rows_at_once_and_says_so_one_by_one() -> None:
    table = rows()
    table.put("flags", "beta", pack(1))
    table.told(PEER, 7, ["put", "flags", [["beta", pack(2)], ["alpha", pack(3)]]])
    gone = table.node_down(PEER)
    assert table.get("flags", "beta") == {ME: 1}
    assert table.keys("flags") == ["beta"]
    assert list(gone) == [
        RowDropped("flags", PEER, "beta", "noconnection"),
        RowDropped("flags", PEER, "alpha", "noconnection"),
    ]
    assert list(table.node_down(PEER)) == list(table.node_down(ME)) == []
    table.told(PEER, 8, ["put", "flags", [["beta", pack(4)]]])
    assert table.get("flags", "beta") == {ME: 1, PEER: 4}


@pytest.mark.parametrize(
    "fact",
    [
        None,
        ["put"],
        ["put", "flags", []],
        ["put", 1, [["a", b""]]],
        ["put", "flags", [["a", "text"]]],
        ["put", "flags", [["a", b"x" * 5_000]]],
        ["put", "flags", [["a", b"\x01"], ["a", b"\x02"]]],
        ["put", "flags", [["", b"\x01"]]],
        ["put", "", [["a", b"\x01"]]],
        ["put", "flags", [[1, b"\x01"]]],
        ["drop", "flags", []],
        ["drop", "flags", ["unknown"]],
        ["drop", "flags", [1]],
        ["drop", "flags", ["known", "known"]],
        ["grow", "flags", []],
    ],
)
def test_nonsense_changes_nothing(fact: Any) -> None:
    table = rows()
    table.told(PEER, 7, ["put", "flags", [["known", pack(1)]]])
    with pytest.raises((ValueError, InvalidName)):
        table.told(PEER, 7, fact)
    assert table.keys("flags") == ["known"]


def test_nobody_speaks_for_another_incarnation_or_for_this_node() -> None:
    table = rows()
    table.told(PEER, 7, ["put", "flags", [["known", pack(1)]]])
    for node, incarnation in ((PEER, 8), (ME, 1)):
        with pytest.raises(ValueError, match="may not tell"):
            table.told(node, incarnation, ["put", "flags", [["a", pack(1)]]])


def test_the_limits_hold_for_this_node_and_for_peers() -> None:
    table = rows(max_rows=2)
    table.put("a", "1", pack(1))
    table.put("b", "1", pack(1))
    table.put("b", "1", pack(2))  # in place of another one
    with pytest.raises(TooManyRows, match=r"more than 2 rows"):
        table.put("b", "2", pack(1))
    assert table.keys("b") == ["1"]
    with pytest.raises(ValueError, match=r"Settings\.max_rows here; set it alike"):
        table.told(PEER, 7, ["put", "a", [[str(n), b"\x01"] for n in range(3)]])

    size = 2 * size_of(("a", "1"), b"x" * 100)
    assert size == 2 * (ROW_BYTES + 102)
    table = rows(max_rows_bytes=size)
    table.put("a", "1", pack(b"x" * 98))
    table.put("a", "2", pack(b"x" * 98))
    with pytest.raises(TooManyRows, match="bytes in one node's rows"):
        table.put("a", "2", pack(b"x" * 99))
    table.put("a", "2", pack(b"x"))
    table.put("a", "3", pack(b"x" * 50))


def test_names_are_checked_before_anything_changes() -> None:
    table = rows()
    for name, key in (("", "a"), ("a", ""), ("a\n", "a"), ("a", "x" * 256)):
        with pytest.raises(InvalidName):
            table.put(name, key, b"\x01")
    assert list(table.own_keys()) == []


def test_a_snapshot_comes_in_pieces_of_one_table_each() -> None:
    table = rows()
    for name in ("a", "b"):
        for number in range(5):
            table.put(name, str(number), pack(b"x" * 100))
    facts = list(table.own_facts([*table.own_keys()], piece_bytes=200))
    copy = RowTable(PEER, 2, Settings(), msgpack.unpackb)
    for fact in facts:
        assert len(fact[2]) <= 2
        copy.told(ME, 1, fact)
    assert {key: copy.get("a", key) for key in copy.keys("a")} == {str(n): {ME: b"x" * 100} for n in range(5)}
    assert copy.keys("b") == table.keys("b")
    assert len(facts) == 6


def test_a_row_that_changes_is_announced_before() -> None:
    before: list[tuple[Place, Any]] = []
    table = RowTable(
        ME, 1, Settings(), msgpack.unpackb, lambda place: before.append((place, table.get(*place)))
    )
    table.put("a", "k", pack(1))
    table.put("a", "k", pack(2))
    table.drop("a", "k")
    assert before == [(("a", "k"), {}), (("a", "k"), {ME: 1}), (("a", "k"), {ME: 2})]


class Told:
    """The rows of a table, as `Snapshot` reads them."""

    topic = "rows"

    def __init__(self, table: RowTable) -> None:
        self.table = table

    def own_keys(self) -> Iterable[Place]:
        return self.table.own_keys()

    def own_facts(self, keys: Iterable[Place]) -> Iterator[Any]:
        return self.table.own_facts(keys, 200)


def test_a_row_can_be_made_while_a_peer_is_told_the_others() -> None:
    snapshots: list[Snapshot] = []
    announced: list[Any] = []

    def announce(place: Place) -> None:
        for snapshot in snapshots:
            announced.extend(snapshot.before_change("rows", place))

    table = RowTable(ME, 1, Settings(), msgpack.unpackb, announce)
    table.put("flags", "beta", pack(1))
    snapshots.append(Snapshot([Told(table)]))
    assert table.put("flags", "alpha", pack(2))[0] == Tell(["put", "flags", [["alpha", pack(2)]]])
    assert announced == [], "there was no row that the peer would have to know before"
    assert snapshots[0].next() == ("rows", ["put", "flags", [["beta", pack(1)]]])
    assert snapshots[0].next() is None


class Name(StrEnum):
    """A text that is more than a text."""

    FLAGS = "flags"


def test_names_from_peers_are_plain_texts() -> None:
    table = rows()
    for fact in (["put", Name.FLAGS, [["a", pack(1)]]], ["put", "flags", [[Name.FLAGS, pack(1)]]]):
        with pytest.raises(ValueError, match="is not"):
            table.told(PEER, 7, fact)
    assert table.tables() == []


def test_what_is_no_packed_value_changes_nothing() -> None:
    table = RowTable(ME, 1, Settings(), Codec().unpack)
    table.told(PEER, 7, ["put", "flags", [["known", pack(1)]]])
    with pytest.raises(ValueError, match="not a message"):
        table.told(PEER, 7, ["put", "flags", [["beta", pack(2)], ["known", b"\xc1"]]])
    assert (table.get("flags", "known"), table.get("flags", "beta")) == ({PEER: 1}, {})
    assert list(table.node_down(PEER)) == [RowDropped("flags", PEER, "known", "noconnection")]
    assert table.tables() == []


def test_pieces_of_rows_with_the_longest_keys_fit_into_a_fact() -> None:
    table = rows(max_rows_bytes=1 << 30)
    for number in range(600):
        table.put("\U00020000" * 255, f"{number:03}" + "\U00020000" * 252, pack(number))
    packed = [Codec().pack_value(fact) for fact in table.own_facts([*table.own_keys()], MAX_FACT_BYTES // 2)]
    assert len(packed) > 1
    assert max(map(len, packed)) < MAX_FACT_BYTES


def test_without_rows_there_is_nothing_to_tell() -> None:
    assert list(rows().own_facts([], piece_bytes=200)) == []


def test_one_fact_of_a_peer_has_few_rows() -> None:
    table = rows()
    keys = [f"k{number}" for number in range(MAX_TOLD_ROWS + 1)]
    with pytest.raises(ValueError, match="not a fact about rows"):
        table.told(PEER, 7, ["put", "flags", [[key, b"\x01"] for key in keys]])
    for some in (keys[:1], keys[1:]):
        table.told(PEER, 7, ["put", "flags", [[key, b"\x01"] for key in some]])
    with pytest.raises(ValueError, match="not a fact about rows"):
        table.told(PEER, 7, ["drop", "flags", keys])
    table.told(PEER, 7, ["drop", "flags", keys[1:]])
    assert table.keys("flags") == keys[:1]


HEAVY = pack([[]] * 100)
"""A value that takes eighty times its bytes in memory."""


def test_values_that_take_far_more_memory_than_bytes_have_a_limit_too() -> None:
    table = rows(max_rows_bytes=10_000)  # So they may take 80,000, which is two of these.
    for key in ("a", "b", "b"):
        table.put("t", key, HEAVY)
        table.told(PEER, 7, ["put", "t", [[key, HEAVY]]])
    with pytest.raises(TooManyRows, match=r"8 times Settings\.max_rows_bytes"):
        table.put("t", "c", HEAVY)
    with pytest.raises(ValueError, match=r"8 times Settings\.max_rows_bytes here; set it alike"):
        table.told(PEER, 7, ["put", "t", [["c", HEAVY]]])
    assert table.keys("t") == ["a", "b"]
    table.put("t", "a", pack(1))
    table.put("t", "c", HEAVY)
    table.told(PEER, 7, ["drop", "t", ["a"]])
    table.told(PEER, 7, ["put", "t", [["c", HEAVY]]])
