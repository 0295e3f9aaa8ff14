"""Sorting and filtering of rows."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from fleetlm.cli.top.arrange import MAX_ROWS, Order, arrange, first_order, keep_matching
from fleetlm.cli.top.history import History
from fleetlm.cli.top.views import VIEWS, Column, Row, View, count, text

VIEW = View("v", (Column("name"), Column("size", True)), lambda _: [])
TREE = View("t", (Column("name"), Column("size", True)), lambda _: [], None, True)


def row(name: str, size: int = 0, depth: int = 0) -> Row:
    return Row(name, (text(name), count(size)), "", depth)


def names(rows: list[Row]) -> list[str]:
    return [each.key for each in rows]


def test_texts_are_sorted_upwards_and_numbers_downwards() -> None:
    rows = [row("b", 1), row("C", 3), row("a", 2)]
    assert names(arrange(VIEW, rows, Order(0))) == ["a", "b", "C"]
    assert names(arrange(VIEW, rows, Order(0, True))) == ["C", "b", "a"]
    assert names(arrange(VIEW, rows, Order(1))) == ["C", "a", "b"]
    assert names(arrange(VIEW, rows, Order(1, True))) == ["b", "a", "C"]
    assert names(rows) == ["b", "C", "a"]


@pytest.mark.parametrize("order", [Order(1), Order(1, True)])
def test_equal_rows_keep_their_order(order: Order) -> None:
    rows = [row("b", 1), row("a", 1), row("c", 1)]
    assert names(arrange(VIEW, rows, order)) == ["b", "a", "c"]


def test_the_keys_go_round_the_columns() -> None:
    order = first_order(VIEW)
    assert order == Order(0)
    assert order.next_column(VIEW, 1) == Order(1)
    assert order.next_column(VIEW, 1).next_column(VIEW, 1) == Order(0)
    assert order.next_column(VIEW, -1) == Order(1)
    assert Order(None).next_column(VIEW, 1) == Order(0)
    assert Order(None).next_column(VIEW, -1) == Order(0)
    assert order.turned().turned() == order
    assert Order(1, True, "x").next_column(VIEW, 1) == Order(0, False, "x"), "the filter stays"


def test_a_tree_keeps_its_order() -> None:
    rows = [row("b"), row("a")]
    assert first_order(TREE).next_column(TREE, 1) == first_order(TREE)
    assert names(arrange(TREE, rows, Order(0))) == ["b", "a"]


def test_a_filter_looks_into_every_cell() -> None:
    rows = [row("Model", 7), row("printer", 12), row("other", 3)]
    assert names(arrange(VIEW, rows, Order(0).filtered("MODEL "))) == ["Model"]
    assert names(arrange(VIEW, rows, Order(0).filtered("12"))) == ["printer"]
    assert names(arrange(VIEW, rows, Order(0).filtered("nothing"))) == []
    assert len(arrange(VIEW, rows, Order(0).filtered("  "))) == 3


def test_of_a_tree_the_rows_above_stay() -> None:
    rows = [
        row("app"), row("pool", depth=1), row("worker-1", depth=2), row("worker-2", depth=2),
        row("log", depth=1), row("other"), row("worker-3", depth=1),
    ]  # fmt: skip
    assert names(keep_matching(rows, "worker-2")) == ["app", "pool", "worker-2"]
    assert names(keep_matching(rows, "worker")) == [
        "app", "pool", "worker-1", "worker-2", "other", "worker-3",
    ]  # fmt: skip
    assert names(keep_matching(rows, "app")) == ["app"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3)), max_size=12))
def test_whatever_the_depths_no_row_is_doubled_or_moved(given_rows: list[tuple[str, int]]) -> None:
    rows = [Row(str(nth), (text(name), count(0)), "", depth) for nth, (name, depth) in enumerate(given_rows)]
    kept = names(keep_matching(rows, "a"))
    assert kept == sorted(set(kept), key=int)
    assert {each.key for each in rows if each.cells[0].text == "a"} <= set(kept)


def test_very_many_rows_are_cut() -> None:
    rows = [row(str(nth), nth) for nth in range(MAX_ROWS + 5)]
    assert names(arrange(VIEW, rows, Order(1)))[0] == str(MAX_ROWS + 4)
    assert len(arrange(VIEW, rows, Order(1))) == len(arrange(TREE, rows, Order(None))) == MAX_ROWS


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_each_view_of_nothing_is_empty_in_each_order(view: View) -> None:
    for column in range(len(view.columns)):
        assert arrange(view, view.make(History()), Order(column)) == []
