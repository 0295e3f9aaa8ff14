"""How many lines of each kind are written, and what is said about the others."""

from __future__ import annotations

from fleetlm.core.log_lines import BURST_LINES, LINES_PER_S, MAX_KINDS, SUMMARY_S, LeftOut, LogLines


def test_a_burst_is_written_whole_and_a_flood_is_not() -> None:
    lines = LogLines()
    written = sum(lines.admit("refused", second / 1000) for second in range(10_000))
    assert BURST_LINES + 9 * LINES_PER_S <= written <= BURST_LINES + 10 * LINES_PER_S + 1
    (left_out,) = lines.take_left_out(10.2)
    assert left_out.kind == "refused"
    assert left_out.lines == 10_000 - written
    assert 10.0 < left_out.seconds < 10.2


def test_kinds_do_not_hide_each_other() -> None:
    lines = LogLines()
    for _ in range(10 * BURST_LINES):
        lines.admit("refused", 0.0)
    assert lines.admit("nodedown", 0.0)


def test_a_bucket_fills_again_and_never_beyond_a_burst() -> None:
    lines = LogLines()
    assert [lines.admit("a", 0.0) for _ in range(BURST_LINES + 1)] == [*[True] * BURST_LINES, False]
    assert not lines.admit("a", 0.9 / LINES_PER_S)
    assert lines.admit("a", 1.1 / LINES_PER_S)
    later = 1e6
    assert sum(lines.admit("a", later) for _ in range(3 * BURST_LINES)) == BURST_LINES


def test_what_was_left_out_is_told_after_a_while_and_once() -> None:
    lines = LogLines()
    for _ in range(BURST_LINES + 7):
        lines.admit("a", 1.0)
    assert lines.take_left_out(1.0 + SUMMARY_S / 2) == []
    assert lines.take_left_out(1.0 + SUMMARY_S) == [LeftOut("a", 7, SUMMARY_S)]
    assert lines.take_left_out(1.0 + 2 * SUMMARY_S) == []
    lines.admit("b", 50.0)
    assert lines.take_left_out(100.0, 0.0) == [], "all of it was written"


def test_the_kinds_that_are_remembered_are_bounded_and_the_oldest_goes_first() -> None:
    lines = LogLines()
    for _ in range(BURST_LINES):
        lines.admit("old", 0.0)
    lines.admit("used", 0.0)
    for number in range(MAX_KINDS - 2):
        lines.admit(number, 0.0)
    assert not lines.admit("old", 0.0)
    lines.admit("one more", 0.0)
    assert not lines.admit("old", 0.0), "it was used, so another kind was forgotten"
    for number in range(MAX_KINDS):
        lines.admit(-number, 0.0)
    assert lines.admit("old", 0.0), "forgotten"
    assert len(lines._kinds) == MAX_KINDS


def test_a_line_may_say_itself_how_many_were_left_out_before_it() -> None:
    lines = LogLines(lines_per_s=0.1, burst_lines=2)
    assert [lines.admit_with_rest("kind", 0.0) for _ in range(5)] == [0, 0, None, None, None]
    assert lines.admit_with_rest("another", 0.0) == 0
    assert lines.admit_with_rest("kind", 9.0) is None
    assert lines.admit_with_rest("kind", 10.0) == 4
    assert lines.admit_with_rest("kind", 20.0) == 0
