"""What stands between fleetlm's loggers and the program's handlers while a node runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from fleetlm.core.log_lines import BURST_LINES, SUMMARY_S
from fleetlm.runtime.log_guard import KIND, LogGuard

NAME = "fleetlm.guarded"


class Rig:
    """A guard on a logger of its own, with a clock of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.log = logging.getLogger(NAME)
        self.guard = LogGuard(lambda: self.now)
        self.guard.start()

    def say(self, text: str, *args: object, kind: str | None = None) -> None:
        self.log.warning(text, *args, extra={KIND: kind})

    def fail(self, error: Exception) -> None:
        self.log.error("it failed", exc_info=error)


@pytest.fixture
def rig(caplog: pytest.LogCaptureFixture) -> Iterator[Rig]:
    caplog.set_level(logging.DEBUG)
    made = Rig()
    yield made
    while made.guard._users:
        made.guard.stop()


def test_a_flood_becomes_a_burst_and_one_line_that_counts_the_others(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(28_500):
        rig.say("refused %s: %d", "stranger", number)
        rig.now += 10 / 28_500
        if number % 1_000 == 0:
            rig.guard.flush()
    assert len(caplog.records) < BURST_LINES + 12
    rig.now += SUMMARY_S
    caplog.clear()
    rig.guard.flush()
    (said,) = caplog.records
    assert (said.name, said.levelname) == (NAME, "WARNING")
    count = said.getMessage().partition(" more lines like this in the last ")[0]
    assert 28_000 < int(count.replace(",", "")) < 28_500
    assert said.getMessage().endswith("s: refused stranger: 100")
    rig.guard.flush()
    assert len(caplog.records) == 1


def test_a_logger_that_is_made_later_is_guarded_from_the_next_tick_on(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    late = logging.getLogger(f"{NAME}.made{id(rig)}")
    rig.guard.flush()
    for _ in range(2 * BURST_LINES):
        late.warning("a flood")
    assert caplog.messages.count("a flood") == BURST_LINES
    rig.guard.stop()
    assert not late.filters


def test_a_part_that_is_imported_late_has_its_logger_guarded_at_once(rig: Rig) -> None:
    late = logging.getLogger(f"{NAME}.late{id(rig)}")
    assert not late.filters
    rig.guard.cover_new()
    assert late.filters
    rig.guard.stop()
    later = logging.getLogger(f"{NAME}.later{id(rig)}")
    rig.guard.cover_new()
    assert not later.filters, "no node runs"
    rig.guard.start()


def test_one_place_may_log_several_kinds(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2 * BURST_LINES):
        rig.say("%s", "a flood", kind="flood")
    rig.say("%s", "something else", kind="other")
    assert caplog.messages.count("a flood") == BURST_LINES
    assert "something else" in caplog.messages


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain, with umlauts: äöü", "plain, with umlauts: äöü"),
        ("one\n2026-01-01 INFO forged", "one\\n2026-01-01 INFO forged"),
        ("\x1b]0;title\x07\x1b[2J", "\\x1b]0;title\\x07\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202edef\u2028\r", "abc\\u202edef\\u2028\\r"),
        ("\ud800", "\\ud800"),
    ],
)
def test_a_text_of_a_peer_cannot_forge_a_line_nor_move_a_cursor(
    rig: Rig, caplog: pytest.LogCaptureFixture, text: str, written: str
) -> None:
    rig.say("%s", text)
    rig.say("100 %%: %s", text)
    assert caplog.messages == [written, f"100 %: {written}"]


def test_the_errors_of_a_traceback_are_escaped_and_indented(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.fail(ValueError("no\n2026-01-01 CRITICAL forged\x1b[2J"))
    (record,) = caplog.records
    lines = logging.Formatter("%(message)s").format(record).split("\n")
    assert lines[0] == "it failed"
    assert lines[-2:] == ["ValueError: no", "    2026-01-01 CRITICAL forged\\x1b[2J"]


def test_a_record_that_cannot_be_formatted_is_left_to_the_handler(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    record = logging.LogRecord(NAME, logging.INFO, __file__, 1, "%d", ("no number",), None)
    assert rig.guard.filter(record)


def test_the_guard_leaves_with_the_last_node_and_says_what_is_left(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.guard.start()
    rig.guard.stop()
    for _ in range(BURST_LINES + 3):
        rig.say("a flood")
    assert len(caplog.records) == BURST_LINES
    rig.guard.stop()
    assert caplog.messages[-1] == "3 more lines like this in the last 0 s: a flood"
    rig.say("two\nlines")
    assert caplog.messages[-1] == "two\nlines", "not guarded any more"
    rig.guard.start()
    rig.say("a flood")
    assert caplog.messages[-1] == "a flood", "it begins anew"


def test_other_loggers_are_not_touched(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("fleetlmx").warning("two\nlines")
    logging.getLogger("program").warning("two\nlines")
    assert caplog.messages == ["two\nlines"] * 2
