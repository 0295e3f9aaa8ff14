"""The checks of the rolling restarts notice each kind of fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.rolling_ledger import Account, line
from tests.system.run_records import RunRecords

if TYPE_CHECKING:
    from pathlib import Path

GOOD = [("asked", "name-1"), ("run", "name-1"), ("ok", "name-1"), ("ready", ""), ("quiet", "")]


def account_of(records: list[tuple[str, str]]) -> Account:
    account = Account()
    for what, request in records:
        account.take(0.0, what, request, "detail" if what == "failed" else "")
    return account


def test_nothing_is_wrong_with_a_request_that_was_asked_ran_once_and_ended_well() -> None:
    account = account_of(GOOD)
    assert account.complaints() == []
    assert (account.ready, account.quiet) == (1, 1)
    assert account.kinds() == {"name": 1}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([("asked", "a-1"), ("failed", "a-1")], "1 requests failed or ended with a wrong answer: a-1"),
        ([("asked", "a-1"), ("run", "a-1"), ("wrong", "a-1")], "failed or ended with a wrong answer"),
        ([("ok", "name-1")], "had more than one outcome"),
        ([("run", "name-1")], "ran more than once: name-1 (ran 2 times)"),
        ([("asked", "a-1"), ("ok", "a-1")], "had an answer and never ran"),
        ([("run", "a-1")], "ran and were not asked for"),
    ],
)
@pytest.mark.parametrize("after_kill", [False, True])
def test_each_fault_is_named_after_kills_too(
    more: list[tuple[str, str]], words: str, after_kill: bool
) -> None:
    complaints = account_of(GOOD + more).complaints(after_kill=after_kill)
    assert any(words in complaint for complaint in complaints)


@pytest.mark.parametrize(
    "more", [[("asked", "a-1"), ("run", "a-1")], [("asked", "a-1"), ("run", "a-1"), ("unknown", "a-1")]]
)
def test_only_after_kills_may_a_request_have_no_certain_outcome(more: list[tuple[str, str]]) -> None:
    account = account_of(GOOD + more)
    assert account.complaints(after_kill=True) == []
    assert len(account.complaints()) == 1


def test_the_records_of_all_runs_are_read_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a-1.jsonl").write_bytes(line("asked", "a-1") + line("failed", "a-1", "why"))
    (tmp_path / "b-2.jsonl").write_bytes(line("run", "a-1") + line("run", "a-1")[:-5])
    account = Account().take_all(RunRecords(tmp_path).new())
    assert account.asked == {"a-1"}
    assert account.ran == {"a-1": 1}
    assert "why" in account.complaints()[0]
