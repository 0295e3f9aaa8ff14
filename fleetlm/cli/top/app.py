"""The live view of `fleetlm top`, on `textual`.

Theory of operation. A thread looks at the cluster (`Source`), one look after the other, and hands each
outcome to the loop of the app (`show_look`). So a node that hangs holds up no key. What is on the screen is
made of the last overview by pure functions (`views`, `arrange`), at each look and at each key that changes
the order. While the view is paused, the last look waits until it goes on. A look that fails keeps the last
overview on the screen, with the reason and its age above it, and the next look tries again.

The table is changed cell by cell where the rows are the same as before, so that the cursor stays on its row.
Else it is filled anew, and the cursor goes to the row that it was on.
"""

from __future__ import annotations

import asyncio
import operator
import os
import sys
import threading
import time
from collections.abc import Iterable
from typing import ClassVar, Protocol

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.types import AnimationLevel
from textual.widgets import DataTable, Footer, Input, Static, Tab, Tabs

from fleetlm.cli.top.arrange import Order, arrange, first_order
from fleetlm.cli.top.history import History, Overview
from fleetlm.cli.top.source import Look
from fleetlm.cli.top.views import VIEWS, Column, Row, View, left_out, summary

_LATE_S = 3.0
"""Seconds without a look after which the screen says how old it is."""
_CLOSE_S = 0.5
"""Seconds that the looking thread has to end; one that waits for a greeting may need longer, and is left."""
_MAX_CELLS = 80
"""No column is wider; Enter shows the whole row."""
_TONES = {"good": "text-success", "warn": "text-warning", "bad": "text-error", "dim": "text-muted"}
"""Tone → the variable of the theme with a colour that can be read on its background."""

HELP = """\
[b]Views[/b]      1 nodes · 2 processes · 3 trees · 4 groups · 5 names · 6 entities
           7 sessions · 8 events
           Tab, Shift-Tab: next view, former view
[b]Moving[/b]     arrows, PageUp, PageDown, Home, End · Enter: the whole row
[b]Sorting[/b]    s: by the next column · S: by the column before · r: the other way round
[b]Filter[/b]     /: show only rows with a text · Esc: all rows
[b]Screen[/b]     Space: pause, go on · d: dark, light · ?: this text · q: quit

[b]What the words mean[/b]
[b]busy[/b]       the node is connected, and its event loop has not answered for a while
[b]silent[/b]     it is connected and did not tell its part in time
[b]lag ms[/b]     by how much the last tick of the event loop was late
[b]calls[/b]      of a node: its calls that others have not answered; of a process: those that it serves
[b]for[/b]        time since the call came that is served, or for which the process waits for another
[b]B in/s[/b]     bytes a second in frames between nodes
[b]owned[/b]      of a kind of entities: shards of that node
[b]given, taken[/b]: shards that it has handed over to other nodes, and that others have handed over to it
[b]fenced[/b]     entities that were ended, since another node owns their shard or no quorum was seen
"""


class Looks(Protocol):
    """What gives overviews; `Source` does."""

    @property
    def node(self) -> str:
        """The node that is asked."""

    def look(self) -> Look:
        """Look at the cluster; blocks."""

    def close(self) -> None:
        """End a look in another thread."""


class _Page(ModalScreen[None]):
    """A text above the view, until a key is pressed."""

    def __init__(self, content: str | Text) -> None:
        super().__init__()
        self._content = content

    def compose(self) -> ComposeResult:
        """Show the text."""
        with VerticalScroll(id="page"):
            yield Static(self._content)

    def on_key(self, event: events.Key) -> None:
        """Go back at any key but those that scroll."""
        if event.key not in ("up", "down", "pageup", "pagedown", "home", "end"):
            event.stop()
            self._dismissed = self.dismiss()  # Awaiting it here would wait for this very handler.


class TopApp(App[None]):
    """The live view.

    Args:
        source: gives the overviews; the caller closes it.
        interval_s: seconds between the end of a look and the next one.
    """

    TITLE: str | None = "fleetlm top"
    ENABLE_COMMAND_PALETTE: ClassVar[bool] = False
    CSS: ClassVar[str] = """
    #state { height: 1; padding: 0 1; background: $panel; }
    #state.failed { background: $error; color: $text; }
    #note { height: 1; padding: 0 1; color: $text-muted; }
    #filter { display: none; }
    #filter.open { display: block; }
    DataTable { height: 1fr; }
    _Page { align: center middle; }
    #page { width: 90%; max-width: 110; height: auto; max-height: 90%; padding: 1 2; background: $panel; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(nth), f"view({nth - 1})", view.name, show=False) for nth, view in enumerate(VIEWS, 1)),
        Binding("tab", "next_view(1)", "view", priority=True),
        Binding("shift+tab", "next_view(-1)", "former view", show=False, priority=True),
        Binding("s", "sort(1)", "sort"),
        Binding("S,upper_s", "sort(-1)", "sort back", show=False),
        Binding("r", "turn", "turn"),
        Binding("slash", "filter", "filter"),
        Binding("escape", "all_rows", "all rows", show=False),
        Binding("space", "pause", "pause"),
        Binding("d", "change_theme", "dark/light"),
        Binding("question_mark", "help", "help"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, source: Looks, interval_s: float) -> None:
        super().__init__()
        self.animation_level: AnimationLevel = "none"  # Terminals may be far away.
        self._source = source
        self._interval_s = interval_s
        self._history = History()
        self._failure = ""
        self._looked_at: float | None = None
        """When the overview on the screen came."""
        self._is_paused = False
        self._missed: tuple[Overview, float] | None = None
        """The last overview that came while the view was paused, and when."""
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="fleetlm top looks", daemon=True)
        self._view = VIEWS[0]
        self._orders: dict[str, Order] = {view.name: first_order(view) for view in VIEWS}
        # The widgets are held here, since a query looks only into the page above them, if there is one.
        self._state = Static(id="state", markup=False)
        self._tabs = Tabs(*(Tab(f"{nth} {view.name}", id=view.name) for nth, view in enumerate(VIEWS, 1)))
        self._table: DataTable[Text] = DataTable(cursor_type="row", zebra_stripes=True)
        self._note = Static(id="note", markup=False)
        self._filter = Input(placeholder="show only rows with this text", id="filter")
        self._keys: list[str] = []
        """The keys of the rows in the table."""
        self._shown_columns: tuple[str, ...] = ()
        self._widths: list[int] = []
        """How wide the columns are. The table finds that out only after it has been painted once."""

    @property
    def order(self) -> Order:
        """How the view on the screen is sorted and filtered."""
        return self._orders[self._view.name]

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield self._state
        yield self._tabs
        yield self._table
        yield self._note
        yield self._filter
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        self._tabs.can_focus = False
        self._table.focus()
        self.theme_changed_signal.subscribe(self, lambda _: self._fill_anew())
        self.set_interval(1.0, self._on_second)
        self._show_state()
        self._refresh_rows()
        self._loop_of_app = asyncio.get_running_loop()
        self._thread.start()

    def on_unmount(self) -> None:
        """Let the thread end."""
        self._ends.set()
        self._source.close()
        self._thread.join(_CLOSE_S)

    # Looking.

    def _look_on(self) -> None:
        """Look again and again, in a thread."""
        while not self._ends.is_set():
            look = self._source.look()
            if not self._ends.is_set():
                # Not `call_from_thread`, which waits: the app may be waiting for this thread.
                self._loop_of_app.call_soon_threadsafe(self._take, look)
                self._ends.wait(self._interval_s)

    def _take(self, look: Look) -> None:
        """Take what the thread has seen, unless the app ends."""
        if not self._ends.is_set():
            self.call_later(self.show_look, look)

    def show_look(self, look: Look) -> None:
        """Take the outcome of a look, and show it unless the view is paused."""
        self._failure = look.failure
        if look.overview is not None:
            if self._is_paused:
                self._missed = look.overview, time.monotonic()
            else:
                self._show_overview(look.overview, time.monotonic())
        self._show_state()

    def _show_overview(self, overview: Overview, at: float) -> None:
        self._history.add(overview)
        self._looked_at = at
        self._refresh_rows()

    # The screen.

    def _on_second(self) -> None:
        """Bring the age of what is shown up to date; end if the terminal has been closed without a signal."""
        if not (self.is_headless or has_terminal()):
            self.exit()
        self._show_state()

    def _show_state(self) -> None:
        """Show one line about the cluster, or what is wrong with the looking."""
        age_s = None if self._looked_at is None else time.monotonic() - self._looked_at
        is_late = age_s is not None and age_s > max(_LATE_S, 3 * self._interval_s) and not self._is_paused
        self._state.set_class(bool(self._failure) or is_late, "failed")
        if self._failure:
            shown = f"{self._failure}; trying again"
            if age_s is not None:
                shown += f"; what is shown is {age_s:.0f} s old"
        elif age_s is None:
            shown = f"asking {self._source.node} …"
        else:
            shown = f"{self._history.asked}: {summary(self._history)}"
            if self._is_paused:
                shown = f"PAUSED  {shown}"
            elif is_late:
                shown = f"no answer for {age_s:.0f} s  {shown}"
        self._state.update(shown)

    def _refresh_rows(self) -> None:
        """Make the rows of the view, and bring the table up to date."""
        every = self._view.make(self._history)
        rows = arrange(self._view, every, self.order)
        table = self._table
        titles = tuple(
            _title(self._view, nth, column, self.order) for nth, column in enumerate(self._view.columns)
        )
        widths = [
            max([cell_len(title), *(min(cell_len(row.cells[nth].text), _MAX_CELLS) for row in rows)])
            for nth, title in enumerate(titles)
        ]
        is_same = titles == self._shown_columns and [row.key for row in rows] == self._keys
        if is_same and all(map(operator.le, widths, self._widths)):
            for row in rows:
                for nth, cell in enumerate(self._cells(row)):
                    if table.get_cell(row.key, str(nth)) != cell:
                        table.update_cell(row.key, str(nth), cell)
        else:
            if titles == self._shown_columns:  # Columns that are never narrower again do not dance.
                widths = list(map(max, widths, self._widths))
            self._fill(table, titles, widths, rows)
        self._show_note(len(rows), len(every))

    def _fill(
        self, table: DataTable[Text], titles: tuple[str, ...], widths: list[int], rows: list[Row]
    ) -> None:
        """Fill the table anew; the cursor goes to the row that it was on, or stays at its height."""
        at = table.cursor_row
        here = self._keys[at] if 0 <= at < len(self._keys) else None
        scrolled_to = table.scroll_x, table.scroll_y
        table.clear(columns=True)
        for nth, (title, width) in enumerate(zip(titles, widths, strict=True)):
            table.add_column(title, width=width, key=str(nth))
        for row in rows:
            table.add_row(*self._cells(row), key=row.key)
        self._shown_columns, self._widths, self._keys = titles, widths, [row.key for row in rows]
        if here in self._keys:
            at = self._keys.index(here)
        table.move_cursor(row=max(0, min(at, len(rows) - 1)), animate=False, scroll=False)
        table.scroll_to(*scrolled_to, animate=False)

    def _cells(self, row: Row) -> Iterable[Text]:
        """Return the cells of a row in the colours of the theme."""
        style = self.theme_variables.get(_TONES.get(row.tone, ""), "")
        for cell, column in zip(row.cells, self._view.columns, strict=True):
            yield Text(cell.text, style=style, justify="right" if column.is_number else "left", no_wrap=True)

    def _fill_anew(self) -> None:
        """Fill the table though its rows may be the same, since their colours are not."""
        self._shown_columns = ()
        self._refresh_rows()

    def _show_note(self, shown: int, made: int) -> None:
        notes = []
        if self.order.wanted:
            notes.append(f"filter: {self.order.wanted} ({shown} of {made} rows)")
        elif shown < made:
            notes.append(f"the first {shown:,} of {made:,} rows")
        missing = left_out(self._history, self._view.name)
        self._note.update(" · ".join([*notes, *([missing] if missing else [])]))

    # Keys.

    def on_tabs_tab_activated(self, event: Tabs.TabActivated) -> None:
        """Show the view that was chosen."""
        view = next(each for each in VIEWS if each.name == event.tab.id)
        if view is not self._view:
            if self._filter.has_class("open"):  # Else one would go on with the filter of the former view.
                self._close_filter()
            self._view = view
            self._keys = []
            self._shown_columns = ()
            self._refresh_rows()
            self._table.move_cursor(row=0, animate=False)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Show the whole row."""
        rows = {row.key: row for row in self._view.make(self._history)}
        row = rows.get(str(event.row_key.value))
        if row is not None:
            content = Text()
            for column, cell in zip(self._view.columns, row.cells, strict=True):
                content.append(f"{column.title}: ", style="bold")
                content.append(f"{cell.text}\n")
            self._show_page(content)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while the user types."""
        self._change(self.order.filtered(event.value))

    def on_input_submitted(self) -> None:
        """Go back to the table, filtered."""
        self._close_filter()

    def action_view(self, nth: int) -> None:
        """Show a view."""
        self._tabs.active = VIEWS[nth].name

    def action_next_view(self, step: int) -> None:
        """Show the next view."""
        self.action_view((VIEWS.index(self._view) + step) % len(VIEWS))

    def action_sort(self, step: int) -> None:
        """Sort by another column."""
        self._change(self.order.next_column(self._view, step))

    def action_turn(self) -> None:
        """Sort the other way round."""
        self._change(self.order.turned())

    def action_filter(self) -> None:
        """Ask for the text of the filter."""
        self._filter.add_class("open")
        self._filter.value = self.order.wanted
        self._filter.focus()

    def action_all_rows(self) -> None:
        """Show all rows again."""
        self._filter.value = ""
        self._change(self.order.filtered(""))
        self._close_filter()

    def action_pause(self) -> None:
        """Stop changing what is shown, or go on."""
        self._is_paused = not self._is_paused
        missed, self._missed = self._missed, None
        if missed is not None:
            self._show_overview(*missed)
        self._show_state()

    def action_change_theme(self) -> None:
        """Change between a dark and a light theme."""
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"

    def action_help(self) -> None:
        """Show the keys."""
        self._show_page(HELP)

    def _show_page(self, content: str | Text) -> None:
        self._pages = self.push_screen(_Page(content))  # To be awaited by whoever needs it there at once.

    def _close_filter(self) -> None:
        self._filter.remove_class("open")
        self._table.focus()

    def _change(self, order: Order) -> None:
        """Sort and filter differently."""
        self._orders[self._view.name] = order
        self._refresh_rows()


def has_terminal() -> bool:
    """Whether the terminal that textual reads from is still there."""
    try:
        return sys.__stdin__ is not None and os.isatty(sys.__stdin__.fileno())
    except (OSError, ValueError):
        return False


def _title(view: View, nth: int, column: Column, order: Order) -> str:
    """Return the title of a column, with an arrow if the view is sorted by it."""
    if nth != order.column or view.is_tree:
        return column.title
    largest_first = column.is_number is not order.is_reversed
    return f"{column.title} {'▼' if largest_first else '▲'}"
