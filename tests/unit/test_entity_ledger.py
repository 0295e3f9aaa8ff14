"""The checks of the tests with real entities notice each kind of fault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.system.entity_ledger import REFUSED, UNKNOWN, Account, line
from tests.system.run_records import RunRecords

if TYPE_CHECKING:
    from pathlib import Path

Records = list[tuple[str, str, str, Any]]
GOOD: Records = [
    ("begin", "s-1", "", 1),
    ("asked", "s-1", "r-1", None),
    ("run", "s-1", "r-1", 1),
    ("ok", "s-1", "r-1", 1),
    ("asked", "s-1", "r-2", None),
    ("run", "s-1", "r-2", 2),
    ("ok", "s-1", "r-2", 2),
    ("lines", "s-1", "", ["r-1", "r-2"]),
]


def account_of(records: Records) -> Account:
    account = Account()
    for number, record in enumerate(records):
        account.take("node", float(number), *record)
    return account


def changed(number: int, record: tuple[str, str, str, Any]) -> Records:
    return [*GOOD[:number], record, *GOOD[number + 1 :]]


def test_nothing_is_wrong_with_sessions_whose_numbers_are_their_lines() -> None:
    account = account_of(GOOD)
    assert account.complaints() == []
    assert account.took == {"r-1": 2.0, "r-2": 2.0}
    assert (account.pause_s(0.5), account.pause_s(1.0)) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([*GOOD, ("failed", "s-1", "r-3", "why")], "1 requests were failed: r-3: why"),
        ([*GOOD, ("run", "s-1", "r-2", 2)], "ran more than once: r-2"),
        (changed(7, ("lines", "s-1", "", ["r-1", "r-2", "r-9"])), "were not asked for: r-9"),
        (changed(7, ("lines", "s-1", "", ["r-1", "r-2", "r-2"])), "s-1 has a line twice"),
        (changed(7, ("lines", "s-1", "", ["r-2", "r-1"])), "lacks r-1 at 1, r-2 at 2"),
        (changed(7, ("lines", "s-1", "", ["r-1"])), "s-1 of 1 lines lacks r-2 at 2"),
        (changed(6, ("ok", "s-1", "r-2", 1)), "s-1 of 2 lines lacks r-2 at 1"),
        (GOOD[:7], "s-1 was not read"),
        ([*GOOD, ("run", "s-1", "r-1b", 1)], "under a former epoch again: s-1"),
    ],
)
@pytest.mark.parametrize("may_end", [(), (UNKNOWN, REFUSED)])
def test_each_fault_is_named_after_kills_too(records: Records, words: str, may_end: tuple[str, ...]) -> None:
    complaints = account_of(records).complaints(*may_end)
    assert any(words in complaint for complaint in complaints)


@pytest.mark.parametrize("is_there", [False, True])
def test_only_after_kills_may_a_request_be_in_doubt(is_there: bool) -> None:
    lines = ["r-3", "r-1", "r-2"] if is_there else ["r-1", "r-2"]
    first = len(lines) - 1
    records = [
        *changed(7, ("lines", "s-1", "", lines)),
        ("asked", "s-1", "r-3", None),
        ("unknown", "s-1", "r-3", "why"),
    ]
    records[3], records[6] = ("ok", "s-1", "r-1", first), ("ok", "s-1", "r-2", first + 1)
    account = account_of(records)
    assert account.complaints(UNKNOWN) == []
    assert "1 requests were unknown: r-3: why" in account.complaints()


def test_a_request_may_be_refused_where_that_was_to_be_expected_and_has_not_run() -> None:
    refused: Records = [*GOOD, ("asked", "s-1", "r-3", None), ("refused", "s-1", "r-3", "why")]
    assert account_of(refused).complaints(REFUSED) == []
    assert account_of(refused).complaints(UNKNOWN) == ["1 requests were refused: r-3: why"]


def test_only_after_kills_may_numbers_have_gaps_or_a_request_no_outcome() -> None:
    open_request: Records = [*GOOD, ("asked", "s-1", "r-3", None)]
    gap: Records = [
        *GOOD[:5], ("ok", "s-1", "r-2", 3), ("lines", "s-1", "", ["r-1", "r-3", "r-2"]),
        ("asked", "s-1", "r-3", None), ("unknown", "s-1", "r-3", ""),
    ]  # fmt: skip
    assert "1 requests have no outcome: r-3" in account_of(open_request).complaints()
    assert "1 sessions have gaps in their numbers: s-1" in account_of(gap).complaints()
    assert account_of(open_request).complaints(UNKNOWN) == []
    assert account_of(gap).complaints(UNKNOWN) == []


def test_the_records_of_all_runs_are_read_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a-1.jsonl").write_bytes(line("asked", "s-1", "r-1") + line("unknown", "s-1", "r-1", "why"))
    (tmp_path / "b-2.jsonl").write_bytes(line("run", "s-1", "r-1", 7) + line("run", "s-1", "r-1", 7)[:-5])
    account = Account().take_all(RunRecords(tmp_path).new())
    assert list(account.asked) == ["r-1"]
    assert [(run.node, run.epoch) for run in account.runs["s-1"]] == [("b-2", 7)]
    assert "why" in account.complaints()[0]
