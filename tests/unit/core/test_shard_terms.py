"""The terms that hosts tell of themselves in the table of shards."""

from __future__ import annotations

from typing import Any

import pytest

from fleetlm.core.shard_table import MAX_TERM_CHARS, MAX_TERMS, Changed, ShardTable, Tell

TERMS = ("safety available", "no store")


def told(*terms: Any) -> ShardTable:
    table = ShardTable("a@1", 1, lambda _: None)
    table.told("b@1", 2, ["hosts", [["s", 7, 8, [[1, 3, 3]], *terms]]])
    return table


def test_terms_travel_with_a_host() -> None:
    table = ShardTable("a@1", 1, lambda _: None)
    row = ["s", 5, 8, [], list(TERMS)]
    assert table.host("s", 5, 8, TERMS) == [Tell(["hosts", [row]]), Changed("s", ())]
    assert [*table.own_facts(["s"])] == [["hosts", [row]]]
    assert told(list(TERMS)).hosts("s")["b@1"].terms == TERMS


def test_a_host_without_terms_tells_none() -> None:
    table = ShardTable("a@1", 1, lambda _: None)
    table.host("s", 5, 8)
    assert [*table.own_facts(["s"])] == [["hosts", [["s", 5, 8, []]]]]
    assert told().hosts("s")["b@1"].terms == ()


@pytest.mark.parametrize("terms", ["text", [1], ["x" * (MAX_TERM_CHARS + 1)], ["x"] * (MAX_TERMS + 1), None])
def test_terms_that_are_nonsense_are_refused(terms: Any) -> None:
    with pytest.raises(ValueError, match="does not tell how a node hosts"):
        told(terms)
    with pytest.raises(ValueError, match="does not tell how a node hosts"):
        told(["x"], ["y"])
