"""The live view, driven by textual's own pilot. No look happens by itself: a test hands them over."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.unit.cli.top.overviews import A, B, branch, gone, overview, part, pid, process

pytest.importorskip("textual")
from textual.pilot import Pilot
from textual.widgets import Static

from fleetlm.cli.top.app import TopApp
from fleetlm.cli.top.source import Look
from fleetlm.cli.top.views import VIEWS

CLUSTER = overview(
    part(
        A,
        processes={"count": 3, "shown": [process(number, mailbox=number) for number in (1, 2, 3)]},
        trees=[branch("app", branch("worker", restarts=3))],
        names={"leader": pid(3)},
        left_out={"processes": 7},
    ),
    gone(B, "it is not connected: refused"),
)


class Quiet:
    """A source that never sees anything."""

    def __init__(self) -> None:
        self._closed = threading.Event()
        self.node = A

    def look(self) -> Look:
        self._closed.wait()
        return Look(None, "closed")

    def close(self) -> None:
        self._closed.set()


Screen = tuple[TopApp, Pilot[None]]


@contextlib.asynccontextmanager
async def running(*looks: Any) -> AsyncIterator[Screen]:
    app = TopApp(Quiet(), 1.0)
    async with app.run_test(size=(90, 12)) as pilot:
        for each in looks:
            await shown(app, pilot, each)
        yield app, pilot


async def shown(app: TopApp, pilot: Pilot[None], look: Any) -> None:
    app.show_look(look if isinstance(look, Look) else Look(look))
    await pilot.pause()


def state(app: TopApp) -> str:
    return str(app.screen_stack[0].query_one("#state", Static).render())


def note(app: TopApp) -> str:
    return str(app.screen_stack[0].query_one("#note", Static).render())


def table(app: TopApp) -> list[list[str]]:
    found = app._table
    return [[str(cell) for cell in found.get_row_at(nth)] for nth in range(found.row_count)]


def column(app: TopApp, nth: int) -> list[str]:
    return [row[nth] for row in table(app)]


def titles(app: TopApp) -> list[str]:
    return [str(each.label) for each in app._table.ordered_columns]


async def test_the_nodes_are_shown_first_and_each_key_shows_a_view() -> None:
    async with running(CLUSTER) as (app, pilot):
        assert state(app) == f"{A}: 2 nodes, 1 up, 1 down · 3 processes · DNS addresses: 3"
        assert column(app, 0) == [A, B]
        for nth, view in enumerate(VIEWS, 1):
            await pilot.press(str(nth))
            await pilot.pause()
            assert [title.rstrip(" ▼▲") for title in titles(app)] == [each.title for each in view.columns]
        await pilot.press("3")
        await pilot.pause()
        assert column(app, 1) == ["app", "└─ worker"]
        await pilot.press("shift+tab")
        await pilot.pause()
        assert column(app, 2) == ["p3", "p2", "p1"], "the longest mailbox first"
        assert note(app) == "7 more are not shown"
        await pilot.press(*["tab"] * (len(VIEWS) - 1))
        await pilot.pause()
        assert column(app, 0) == [A, B], "round to the first one"


async def test_before_the_first_look_the_screen_says_whom_it_asks() -> None:
    async with running() as (app, _):
        assert state(app) == f"asking {A} …"
        assert table(app) == []


async def test_rows_are_sorted_turned_and_filtered_by_keys() -> None:
    async with running(CLUSTER) as (app, pilot):
        await pilot.press("2", "r")
        await pilot.pause()
        assert column(app, 2) == ["p1", "p2", "p3"]
        assert "mailbox ▲" in titles(app)
        await pilot.press("s")
        await pilot.pause()
        assert "taken/s ▼" in titles(app)
        await pilot.press("S", "S", "S")
        await pilot.pause()
        assert "name ▲" in titles(app)
        await pilot.press("slash", *"p2")
        await pilot.pause()
        assert column(app, 2) == ["p2"]
        assert note(app) == "filter: p2 (1 of 3 rows) · 7 more are not shown"
        await pilot.press("enter", "1")
        await pilot.pause()
        assert column(app, 0) == [A, B], "each view has a filter of its own"
        await pilot.press("2", "escape")
        await pilot.pause()
        assert column(app, 2) == ["p1", "p2", "p3"]


async def test_the_cursor_stays_on_its_row_when_rows_move() -> None:
    def with_mailboxes(*lengths: int) -> dict[str, Any]:
        rows = [process(number, mailbox=length) for number, length in enumerate(lengths, 1)]
        return overview(part(A, processes={"count": len(rows), "shown": rows}))

    async with running(with_mailboxes(3, 2, 1)) as (app, pilot):
        await pilot.press("2", "down")
        await pilot.pause()
        assert app._table.cursor_row == 1
        await shown(app, pilot, with_mailboxes(3, 20, 1))
        assert column(app, 2) == ["p2", "p1", "p3"]
        assert app._table.cursor_row == 0, "p2 is the first one now"
        await shown(app, pilot, with_mailboxes(3, 21, 1))
        assert column(app, 4) == ["21", "3", "1"], "only a cell has changed"
        await shown(app, pilot, with_mailboxes())
        assert table(app) == []


async def test_columns_are_as_wide_as_what_they_hold_and_never_narrower_again() -> None:
    def named(name: str) -> dict[str, Any]:
        return overview(part(A, processes={"count": 1, "shown": [process(1, name=name)]}))

    async with running(named("short")) as (app, pilot):
        await pilot.press("2")

        def width() -> int:
            return app._table.ordered_columns[2].width

        assert width() == len("short")
        await shown(app, pilot, named("a longer name"))
        assert width() == len("a longer name")
        await shown(app, pilot, named("short"))
        assert width() == len("a longer name")
        await shown(app, pilot, named("x" * 200))
        assert width() == 80
        assert column(app, 2) == ["x" * 200]


async def test_a_lost_node_is_shown_above_what_was_seen_last() -> None:
    async with running(CLUSTER) as (app, pilot):
        await shown(app, pilot, Look(None, f"{A} is gone (it died)", 3))
        assert state(app).startswith(f"{A} is gone (it died); trying again; what is shown is ")
        assert app._state.has_class("failed")
        assert column(app, 0) == [A, B]
        await shown(app, pilot, CLUSTER)
        assert state(app).startswith(f"{A}: 2 nodes")
        assert not app._state.has_class("failed")


async def test_a_node_that_hangs_is_noticed_without_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(CLUSTER) as (app, _):
        assert app._looked_at is not None
        monkeypatch.setattr(app, "_looked_at", app._looked_at - 60)
        app._show_state()
        assert re.match(r"no answer for 6\d s  ", state(app))


async def test_a_paused_view_stands_still() -> None:
    async with running(CLUSTER) as (app, pilot):
        await pilot.press("space")
        await shown(app, pilot, overview(part(A)))
        assert state(app).startswith("PAUSED  ")
        assert column(app, 0) == [A, B]
        await shown(app, pilot, Look(None, "gone", 3))
        assert state(app).startswith("gone; trying again"), "a failure is shown nevertheless"
        await pilot.press("space")
        await shown(app, pilot, overview(part(A)))
        assert column(app, 0) == [A]


async def test_a_view_that_goes_on_shows_the_last_look_at_once() -> None:
    async with running(CLUSTER) as (app, pilot):
        await pilot.press("space")
        await shown(app, pilot, overview(part(A)))
        app._looked_at = time.monotonic() - 60
        await pilot.press("space")
        await pilot.pause()
        assert column(app, 0) == [A]
        assert state(app).startswith(f"{A}: "), "it is not late"


async def test_the_filter_of_a_view_is_closed_when_another_one_is_shown() -> None:
    async with running(CLUSTER) as (app, pilot):
        await pilot.press("2", "slash", *"p2", "tab", "r")
        await pilot.pause()
        assert [view.name for view in VIEWS if app._orders[view.name].wanted] == ["processes"]
        assert not app._filter.has_class("open")
        assert app.focused is app._table


async def test_a_page_shows_the_whole_row_or_the_keys_while_looks_go_on() -> None:
    async with running(CLUSTER) as (app, pilot):
        await pilot.press("down", "enter")
        await pilot.pause()
        assert len(app.screen_stack) == 2
        text = str(app.screen.query_one("#page Static", Static).render())
        assert f"node: {B}" in text
        assert "notes: it is not connected: refused" in text
        await shown(app, pilot, overview(part(A)))
        assert column(app, 0) == [A], "behind the page"
        await pilot.press("down", "x")
        await pilot.pause()
        assert len(app.screen_stack) == 1
        await pilot.press("question_mark")
        await pilot.pause()
        assert "dark, light" in str(app.screen.query_one("#page Static", Static).render())


async def test_colours_are_those_of_the_theme_in_dark_and_light() -> None:
    async with running(CLUSTER) as (app, pilot):
        dark = [str(app._table.get_row_at(nth)[0].style) for nth in range(2)]
        assert dark == [app.theme_variables["text-success"], app.theme_variables["text-error"]]
        await pilot.press("d")
        await pilot.pause()
        assert not app.current_theme.dark
        light = [str(app._table.get_row_at(nth)[0].style) for nth in range(2)]
        assert light == [app.theme_variables["text-success"], app.theme_variables["text-error"]]
        assert set(light).isdisjoint(dark)


async def test_looks_come_from_a_thread_until_the_view_is_left() -> None:
    looked = threading.Event()

    class Source(Quiet):
        def __init__(self) -> None:
            super().__init__()
            self.looks = 0

        def look(self) -> Look:
            self.looks += 1
            if self.looks > 2:
                looked.set()
                return super().look()
            return Look(CLUSTER)

    app = TopApp(Source(), 0.001)
    async with app.run_test(size=(120, 20)) as pilot:
        while not looked.is_set() or not table(app):
            await pilot.pause(0.01)
        assert column(app, 0) == [A, B]
        await pilot.press("q")
    assert not app._thread.is_alive()
