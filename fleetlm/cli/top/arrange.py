"""How rows are filtered, sorted and moved over. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fleetlm.cli.top.views import Row, View
from fleetlm.records import Record

MAX_ROWS = 1_000
"""Rows of one view that are shown at most. Nobody reads more, and each costs time at every look."""


class Order(Record):
    """How a view is sorted and filtered."""

    column: int | None
    is_reversed: bool = False
    wanted: str = ""
    """Rows that have this text are shown, in lower or upper case; empty: all."""

    def next_column(self, view: View, step: int) -> Order:
        """Sort by the next column, or the one before. Trees keep their order."""
        if view.is_tree:
            return self
        column = ((-step if self.column is None else self.column) + step) % len(view.columns)
        return Order(column, False, self.wanted)

    def turned(self) -> Order:
        """Sort the other way round."""
        return Order(self.column, not self.is_reversed, self.wanted)

    def filtered(self, wanted: str) -> Order:
        """Show only rows with this text."""
        return Order(self.column, self.is_reversed, wanted)


def first_order(view: View) -> Order:
    """Return how a view is sorted at first."""
    return Order(view.sorted_by)


def arrange(view: View, rows: Sequence[Row], order: Order) -> list[Row]:
    """Return the rows to show, in their order."""
    found = keep_matching(rows, order.wanted)
    if order.column is None or view.is_tree:
        return found[:MAX_ROWS]
    column = order.column
    largest_first = view.columns[column].is_number
    found.sort(key=lambda row: row.cells[column].value, reverse=largest_first is not order.is_reversed)
    return found[:MAX_ROWS]


def keep_matching(rows: Sequence[Row], wanted: str) -> list[Row]:
    """Return the rows that have a text in one of their cells; of a tree also the rows above them."""
    wanted = wanted.strip().lower()
    if not wanted:
        return list(rows)
    kept: dict[str, Row] = {}
    above: list[Row] = []
    for row in rows:
        del above[row.depth :]
        above.append(row)
        if any(wanted in cell.text.lower() for cell in row.cells):
            kept.update((each.key, each) for each in above)
    return list(kept.values())
