"""fleetlm and Erlang/OTP play the same scenarios, and their processes see the same.

otp.json is the record of what Erlang/OTP does. Where ``erl`` is installed the record is held against
a real Erlang; everywhere, fleetlm is held against the record and the table of deliberate differences.
"""

from __future__ import annotations

import logging

import pytest

from tests.conformance import pg_scenarios
from tests.conformance.differences import DIFFERENCES, OURS
from tests.conformance.otp import Outcomes, erlang, judge, recorded
from tests.conformance.ours import LOSSES, ScriptError, outcome, read, said
from tests.conformance.script import FOLDER, Step, commands, flat, parse, scenarios

DOCUMENT = FOLDER.parent.parent / "docs" / "differences-from-otp.md"
ALL = scenarios()
OTP = recorded()
FAMILIES = sorted({name.partition("/")[0] for name in ALL})


def played(name: str) -> list[tuple[str, list[str]]]:
    """The ways to play a scenario, each with its outcome."""
    extra = pg_scenarios.GROUPS if name.startswith(pg_scenarios.PREFIX) else None
    losses = LOSSES if ["lose"] in ALL[name] else LOSSES[:1]
    return [(loss, outcome(ALL[name], loss=loss, extra=extra)) for loss in losses]


@pytest.mark.parametrize("name", ALL)
def test_fleetlm_does_what_erlang_does(name: str) -> None:
    logging.disable(logging.CRITICAL)
    expected = OURS.get(name, OTP.outcomes[name])
    for loss, seen in played(name):
        assert seen == expected, f"connection lost by {loss}"


@pytest.mark.skipif(erlang() is None, reason="there is no erl on PATH")
@pytest.mark.deadline(45)
def test_erlang_does_what_is_recorded() -> None:
    """Every difference in one run: a new OTP, or a new scenario, is recorded by tests.conformance.otp."""
    verdict = judge(ALL)
    changed = changes(verdict.outcomes)
    if changed:  # In real time: a second look, at those alone, tells a busy machine from a change.
        verdict = judge({name: ALL[name] for name in changed})
        changed = changes(verdict.outcomes)
    assert changed == {}, f"OTP {verdict.otp}; recorded with OTP {OTP.otp}"


def changes(outcomes: Outcomes) -> dict[str, tuple[list[str], list[str] | None]]:
    """Scenario → what it is now, and what is recorded."""
    return {
        name: (seen, OTP.outcomes.get(name))
        for name, seen in outcomes.items()
        if seen != OTP.outcomes.get(name)
    }


def test_the_record_has_every_scenario_and_no_other() -> None:
    assert list(OTP.outcomes) == list(ALL)


def test_a_difference_is_one() -> None:
    """An entry for something that became the same would hide the next change."""
    assert OURS.keys() <= OTP.outcomes.keys()
    assert [name for name, ours in OURS.items() if ours == OTP.outcomes[name]] == []
    assert len(OURS) == sum(len(difference.outcomes) for difference in DIFFERENCES), "none is listed twice"


def test_the_document_lists_exactly_the_differences_that_are_played() -> None:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|") and line.endswith("` |")]
    assert rows == [difference.row for difference in DIFFERENCES]


# The language itself.


def test_alternatives_are_expanded_into_names_and_steps() -> None:
    header = "== x/y {where:here,there} {how:normal=return,other=raise boom,none=}"
    found = dict(parse(f"# about\n\n{header}\n# why\nb {{where}} ; {{how}}\n"))
    assert list(found) == [f"x/y/{w}/{h}" for w in ("here", "there") for h in ("normal", "other", "none")]
    assert found["x/y/there/other"] == [["b", "there", ";", "raise", "boom"]]
    assert found["x/y/here/none"] == [["b", "here", ";"]]
    assert flat({"x": [["a", "b"], ["c"]]}) == "== x\na b\nc\n"
    assert commands(["a", "b", ";", "c"]) == [["a", "b"], ["c"]]


@pytest.mark.parametrize("word", ["boom", "shutdown", "shutdown:why"])
def test_reasons_are_read_as_they_are_said(word: str) -> None:
    assert said(read(word)) == word


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        ([["spawn", "a", "here"], ["a", "return"], ["settle"], ["a", "return"]], "a has ended"),
        ([["spawn", "a", "here"], ["members", "g", "here"]], "members"),
    ],
)
def test_a_scenario_that_cannot_be_played_is_an_error(steps: list[Step], complaint: str) -> None:
    with pytest.raises(ScriptError, match=complaint):
        outcome(steps)


def test_every_family_is_played() -> None:
    assert FAMILIES == [
        "call", "exit", "link", "monitor", "pg", "send", "spawn_link", "spawn_monitor", "supervisor",
    ]  # fmt: skip
    assert len(ALL) > 250
