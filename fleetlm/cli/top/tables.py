"""Views as plain text, for pipes and for terminals without `textual`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fleetlm.cli.top.arrange import arrange, first_order
from fleetlm.cli.top.history import History
from fleetlm.cli.top.views import VIEWS, Row, View, left_out, summary

ROWS = 20
"""Rows of each table; the summary and `--json` have all."""
_MAX_CELL_CHARS = 60
"""Longer cells are cut, but for those of the last column."""


def render(history: History, most: int = ROWS) -> str:
    """Return all views that have rows as tables below each other."""
    parts = [f"{history.asked}: {summary(history)}\n"]
    for view in VIEWS:
        rows = arrange(view, view.make(history), first_order(view))
        if not rows:
            continue
        hidden = len(rows) - most
        notes = [f"{hidden:,} more rows" if hidden > 0 else "", left_out(history, view.name)]
        note = "".join(f" ({each})" for each in notes if each)
        parts.append(f"{view.name.upper()}{note}\n{table(view, rows[:most])}")
    return "\n".join(parts)


def table(view: View, rows: Sequence[Row]) -> str:
    """Lay out a table. Columns are as wide as their widest cell; numbers stand to the right."""
    lines = [[column.title for column in view.columns], *([cell.text for cell in row.cells] for row in rows)]
    last = len(view.columns) - 1
    cells = [[_cut(each) if nth < last else each for nth, each in enumerate(line)] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "".join(
        "  ".join(
            each.rjust(width) if column.is_number else each.ljust(width)
            for each, width, column in zip(line, widths, view.columns, strict=True)
        ).rstrip()
        + "\n"
        for line in cells
    )


def _cut(cell: str) -> str:
    return cell if len(cell) <= _MAX_CELL_CHARS else f"{cell[: _MAX_CELL_CHARS - 1]}…"
