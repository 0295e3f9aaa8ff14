from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

from fleetlm.core.snapshot import Snapshot


class Table:
    """Rows of letters; a fact carries two letters of one row, with the row's length at that moment."""

    def __init__(self, topic: str, rows: dict[int, str]) -> None:
        self.topic = topic
        self.rows = rows

    def own_keys(self) -> Iterable[int]:
        return self.rows.keys()

    def own_facts(self, keys: Iterable[int]) -> Iterator[Any]:
        for key in keys:
            text = self.rows.get(key, "")
            for at in range(0, len(text), 2):
                assert self.rows.get(key) == text, "a row has changed while it was told"
                yield key, text[at : at + 2]


def rest(snapshot: Snapshot) -> list[Any]:
    return [fact for _, fact in iter(snapshot.next, None)]


def test_all_rows_are_told_table_by_table() -> None:
    snapshot = Snapshot([Table("a", {1: "x", 2: "yyz"}), Table("b", {}), Table("c", {1: "z"})])
    told = [*iter(snapshot.next, None)]
    assert told == [("a", (1, "x")), ("a", (2, "yy")), ("a", (2, "z")), ("c", (1, "z"))]
    assert snapshot.next() is None


def test_a_row_that_changes_is_told_first_and_once() -> None:
    table = Table("a", dict.fromkeys(range(203), "x"))
    snapshot = Snapshot([table])
    assert snapshot.next() == ("a", (0, "x"))
    late = 201
    assert [*snapshot.before_change("a", late)] == [("a", (late, "x"))]
    del table.rows[late]
    assert [*snapshot.before_change("a", late)] == []
    table.rows[late] = "new"
    assert [key for key, _ in rest(snapshot)] == [key for key in range(1, 203) if key != late]


def test_a_row_that_changes_while_it_is_told_is_told_to_its_end() -> None:
    table = Table("a", {1: "xxyyzz", 2: "uu"})
    snapshot = Snapshot([table])
    assert snapshot.next() == ("a", (1, "xx"))
    told = [fact for _, fact in snapshot.before_change("a", 1)]
    table.rows[1] = ""
    assert told + rest(snapshot) == [(1, "yy"), (1, "zz"), (2, "uu")]
    assert [*snapshot.before_change("a", 1), *snapshot.before_change("a", 2)] == []


def test_a_row_made_after_the_start_and_one_of_another_table_are_not_mixed_up() -> None:
    first, second = Table("a", {1: "x"}), Table("b", {1: "y"})
    snapshot = Snapshot([first, second])
    assert [*snapshot.before_change("a", 7)] == []
    first.rows[7] = "z"
    assert snapshot.next() == ("a", (1, "x"))
    assert [*snapshot.before_change("b", 1)] == [("b", (1, "y"))]
    assert snapshot.next() is None


def test_whatever_changes_meanwhile_a_peer_reaches_the_same_rows() -> None:
    """A peer that applies facts and strict changes in order: a change must fit the row that it knows."""
    for seed in range(60):
        rng = random.Random(seed)
        table = Table("a", {key: "ab" * rng.randrange(1, 4) for key in range(rng.randrange(60))})
        snapshot, peer, next_key = Snapshot([table]), dict[int, str](), len(table.rows)

        def take(told: Iterable[Any], peer: dict[int, str] = peer) -> None:
            for _, (key, text) in told:
                peer[key] = peer.get(key, "") + text

        ended = False
        while not ended:
            fact = snapshot.next()
            ended = fact is None
            take([] if fact is None else [fact])
            for _ in range(rng.randrange(4)):
                if table.rows and rng.random() < 0.7:
                    key = rng.choice([*table.rows])
                    take(snapshot.before_change("a", key))
                    assert peer[key] == table.rows[key], "the peer has the row before it changes"
                    del table.rows[key], peer[key]
                    if rng.random() < 0.3:
                        continue
                else:
                    key, next_key = next_key, next_key + 1
                    take(snapshot.before_change("a", key))
                    assert key not in peer
                table.rows[key] = peer[key] = "new"
        assert peer == table.rows
