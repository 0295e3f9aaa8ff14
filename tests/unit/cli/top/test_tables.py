"""Plain tables."""

from __future__ import annotations

from fleetlm.cli.top.history import History
from fleetlm.cli.top.tables import ROWS, render
from tests.unit.cli.top.overviews import A, B, branch, gone, overview, part, pid, process


def rendered(*parts: dict[str, object]) -> str:
    history = History()
    history.add(overview(*parts))
    return render(history)


def test_each_view_with_rows_is_a_table() -> None:
    shown = rendered(
        part(
            trees=[branch("app", branch("a"))],
            names={"leader": pid(3)},
            processes={"count": 1, "shown": [process(1)]},
        ),
        gone(B, "it is not connected: refused"),
    )
    lines = shown.splitlines()
    assert lines[0] == f"{A}: 2 nodes, 1 up, 1 down · 1 processes · DNS addresses: 3"
    assert [line for line in lines if line.isupper()] == ["NODES", "PROCESSES", "TREES", "NAMES"]
    head = next(line for line in lines if line.startswith("node "))
    own = next(line for line in lines if line.startswith(f"{A}  "))
    assert head.index("lag ms") + len("lag ms") == own.index("1  5 min") + 1, "numbers stand to the right"
    assert "└─ a" in shown
    assert "it is not connected: refused" in shown
    assert not any(line != line.rstrip() for line in lines)


def test_long_tables_are_cut_and_say_so() -> None:
    several = [process(number, mailbox=number) for number in range(1, ROWS + 6)]
    shown = rendered(part(processes={"count": 99, "shown": several}, left_out={"processes": 74}))
    assert "PROCESSES (5 more rows) (74 more are not shown)" in shown
    assert f"p{ROWS + 5} " in shown, "the longest mailbox comes first"
    assert "p5 " not in shown


def test_nothing_in_it_is_obeyed_by_a_terminal() -> None:
    shown = rendered(part(processes={"count": 1, "shown": [process(1, name="\x1b[2J\u202e", runs="a\nb")]}))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert r"a\nb" in shown


def test_long_cells_are_cut_but_for_the_last() -> None:
    shown = rendered(part(processes={"count": 1, "shown": [process(1, runs="r" * 99, waits_for="w" * 99)]}))
    assert "r" * 59 + "…" in shown
    assert "w" * 99 in shown
