"""The checker of the kill test finds each thing that can be wrong, and nothing where nothing is."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.containers import kill_journal
from tests.containers.kill_journal import Fault, Journal, call_faults, calls_of

A, B = "n@10.0.0.1", "n@10.0.0.2"
NOTICE_S, SETTLE_S = {"kill": 10.0, "pause": 12.0}, 15.0


def life(node: str, incarnation: int, *rows: str, killed: bool = False, at: float = 0.0) -> Journal:
    """A journal with a record each second; ``"30: up ..."`` sets the clock first."""
    lines = []
    for row in ("start host", *rows):
        before, colon, rest = row.partition(": ")
        at, text = (float(before), rest) if colon else (at, row)
        kind, *fields = text.split()
        lines.append(kill_journal.line(at, kind, *fields))
        at += 1
    journal = kill_journal.read(kill_journal.file_name(node, incarnation), b"".join(lines).decode())
    journal.killed = killed
    return journal


def calls(*journals: Journal) -> list[str]:
    faults: list[str] = []
    found = calls_of(journals, faults)
    return faults + list(call_faults(found))


CALL = f"call 1.1 name {B} fast 0 0"
PID_CALL = f"call 1.1 pid {B} - 2 7"
RAN = "ran 1.1 fast 7 ab"


def ended(outcome: str, kind: str = "-", value: str = "-") -> str:
    return f"end 1.1 {B} {outcome} {kind} {value}"


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def test_what_is_written_is_read() -> None:
    journal = life(A, 0x1F, CALL, ended("ok", "-", "ab"), "quiet", "stop")
    assert (journal.node, journal.incarnation, journal.host) == (A, "1f", "host")
    assert [record.kind for record in journal.records] == ["start", "call", "end", "quiet", "stop"]
    assert journal.records[2].fields == ("1.1", B, "ok", "-", "ab")
    assert journal.has("quiet")
    assert not journal.has("up")


@pytest.mark.parametrize(
    "text",
    ["", "1.0 up a 1\n", "1.0 start h\n2.0 up a\n", "1.0 start h\n2.0 dance\n", "1.0 start h\n2.0 quiet"],
)
def test_a_journal_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="n@1"):
        kill_journal.read("n@1+1.journal", text)


# ── calls ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("outcome", "runs"),
    [
        (("ok", "-", "ab"), 1),
        (("raised", "RemoteError", "ab"), 1),
        (("not_delivered", "NoProcess"), 0),
        (("refused", "NodeStopped"), 0),
        (("unknown", "NodeLost"), 0),
        (("unknown", "NodeLost"), 1),
        (("unknown", "ProcessDown"), 1),
        (("cancelled",), 0),
        (("cancelled",), 1),
    ],
)
@pytest.mark.parametrize("call", [CALL, PID_CALL])
def test_outcomes_that_are_true(call: str, outcome: tuple[str, ...], runs: int) -> None:
    assert calls(life(A, 1, call, ended(*outcome)), life(B, 2, *[RAN] * runs)) == []


@pytest.mark.parametrize(
    ("outcome", "runs", "complaint"),
    [
        (("not_delivered", "NoConnection"), 1, "says that it never ran, but it ran"),
        (("refused", "NodeStopped"), 1, "says that it never ran, but it ran"),
        (("ok", "-", "ab"), 0, "ok, but it never ran"),
        (("raised", "RemoteError", "ab"), 0, "raised, but it never ran"),
        (("ok", "-", "xy"), 1, "got xy, but the server answered ab"),
        (("raised", "RemoteError", "xy"), 1, "got xy, but the server answered ab"),
        (("unknown", "ProcessDown"), 0, "it was taken, but it never ran"),
        (("ok", "-", "ab"), 2, "ran 2 times"),
        (("unknown", "CallTimeout"), 2, "ran 2 times"),
        (("cancelled",), 2, "ran 2 times"),
        (("other", "TypeError"), 0, "not an outcome of a call"),
    ],
)
def test_outcomes_that_are_not(outcome: tuple[str, ...], runs: int, complaint: str) -> None:
    (found,) = calls(life(A, 1, CALL, ended(*outcome)), life(B, 2, *[RAN] * runs))
    assert complaint in found


def test_running_once_in_each_of_two_incarnations_is_twice() -> None:
    caller = life(A, 1, CALL, ended("unknown", "NodeLost"))
    (found,) = calls(caller, life(B, 2, RAN, killed=True), life(B, 3, RAN))
    assert "ran 2 times" in found


def test_a_call_without_outcome_belongs_to_a_caller_that_was_killed() -> None:
    assert calls(life(A, 1, CALL, killed=True), life(B, 2, RAN)) == []
    (found,) = calls(life(A, 1, CALL), life(B, 2, RAN))
    assert "has no outcome" in found
    (found,) = calls(life(A, 1, CALL, killed=True), life(B, 2, RAN, RAN))
    assert "ran 2 times" in found


@pytest.mark.parametrize(
    ("call", "run", "right"),
    [
        (CALL, "ran 1.1 fast 8 ab", True),
        (CALL, "ran 1.1 slow 7 ab", False),
        (PID_CALL, "ran 1.1 slow 7 ab", True),
        (PID_CALL, "ran 1.1 fast 8 ab", False),
        (f"call 1.1 former {B} - 9 7", RAN, False),
    ],
)
def test_it_ran_in_the_process_that_was_called(call: str, run: str, right: bool) -> None:
    found = calls(life(A, 1, call, ended("ok", "-", "ab")), life(B, 2, run))
    assert [", but ran in" in complaint for complaint in found] == [True] * (not right)


def test_what_ran_was_sent_and_to_that_node() -> None:
    assert "which was never sent" in calls(life(B, 2, RAN))[0]
    other = life("n@10.0.0.3", 3, RAN)
    (found,) = calls(life(A, 1, CALL, ended("unknown", "NodeLost")), other)
    assert "not sent to this node" in found


def test_a_multicall_has_one_outcome_on_each_node() -> None:
    rows = [f"call 1.1 multi {node} fast 0 0" for node in (A, B)]
    ends = [f"end 1.1 {A} ok - cd", f"end 1.1 {B} not_delivered NoProcess -"]
    assert calls(life(A, 1, *rows, *ends, "ran 1.1 fast 3 cd")) == []
    (found,) = calls(life(A, 1, *rows, *ends, "ran 1.1 fast 3 cd"), life(B, 2, RAN))
    assert f"to {B}" in found


def test_calls_and_outcomes_are_pairs() -> None:
    end = ended("unknown", "NodeLost")
    assert "two calls" in calls(life(A, 1, CALL, CALL, end))[0]
    assert "ended twice" in calls(life(A, 1, CALL, end, ended("ok", "-", "ab")))[0]
    assert "did not call" in calls(life(A, 1, end))[0]
    assert "did not call" in calls(life(A, 1, CALL, end), life(B, 2, end))[0]


def test_the_table_counts() -> None:
    faults: list[str] = []
    journals = [
        life(A, 1, CALL, ended("unknown", "NodeLost"), f"call 1.2 name {B} fast 0 0", killed=True),
        life(B, 2, RAN),
    ]
    table = kill_journal.table_of(calls_of(journals, faults))
    assert table == {
        "name": Counter({"in all": 2, "unknown:NodeLost": 1, "(none)": 1, "of the unknown ran": 1})
    }
    rows = [row.split() for row in kill_journal.shown(table).splitlines()]
    assert ["unknown:NodeLost", "1", "1"] in rows
    assert rows[-2:] == [["in", "all", "2", "2"], ["of", "the", "unknown", "ran", "1", "1"]]


# ── one-way messages ─────────────────────────────────────────────────────────────────────────────


def streams(*journals: Journal) -> list[str]:
    return list(kill_journal.stream_faults(list(journals), Counter()))


def sends(*numbers: int) -> list[str]:
    return [f"send 1.5>2.7 {number} {B} 2" for number in numbers]


def gots(*numbers: int) -> list[str]:
    return [f"got 1.5>2.7 {number}" for number in numbers]


def test_gaps_that_the_sender_was_told_of_are_counted() -> None:
    counted: Counter[str] = Counter()
    journals = [life(A, 1, *sends(1, 2), f"down {B} 2", *sends(3)), life(B, 2, *gots(1, 3))]
    assert list(kill_journal.stream_faults(journals, counted)) == []
    assert counted == {"gaps after a nodedown": 1}


DOWN, UP = f"down {B} 2", f"up {B} 2"


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        (sends(1, 2, 3), gots(1, 2, 3)),
        (sends(1, 2, 3), gots(1, 2)),
        ([*sends(1), DOWN, *sends(2, 3)], gots(2, 3)),
        ([*sends(1, 2), DOWN, UP, *sends(3)], gots(1, 3)),
        ([*sends(1, 2), "unsent 1.5>2.7 2", *sends(3)], gots(1, 3)),
    ],
)
def test_order_without_gaps_but_for_a_nodedown(sent: list[str], got: list[str]) -> None:
    assert streams(life(A, 1, *sent), life(B, 2, *got)) == []


@pytest.mark.parametrize(
    ("sent", "got", "complaint"),
    [
        (sends(1, 2, 3), gots(1, 3), "lost before 3"),
        (sends(1, 2), gots(2), "lost before 2"),
        ([*sends(1), DOWN, *sends(2, 3)], gots(1, 3), "lost before 3"),
        ([*sends(1, 2, 3), DOWN], gots(1, 3), "lost before 3"),
        ([*sends(1, 2), f"down {B} 9", *sends(3)], gots(1, 3), "lost before 3"),
        ([*sends(1, 2), f"down {A} 2", *sends(3)], gots(1, 3), "lost before 3"),
        (sends(1, 2), gots(1, 2, 2), "got 2 of 1.5>2.7 after 2"),
        (sends(1, 2), gots(1, 2, 1), "got 1 of 1.5>2.7 after 2"),
        ([*sends(1, 2), "unsent 1.5>2.7 2"], gots(1, 2), "reported not delivered"),
        (sends(1), gots(1, 2), "which was never sent"),
        (sends(1, 3), [], "message 3 of"),
    ],
)
def test_what_is_wrong_with_a_stream(sent: list[str], got: list[str], complaint: str) -> None:
    (found,) = streams(life(A, 1, *sent), life(B, 2, *got))
    assert complaint in found


def test_a_message_reaches_the_incarnation_that_it_was_sent_to() -> None:
    (found,) = streams(life(A, 1, *sends(1)), life(B, 3, *gots(1)))
    assert "which was sent to" in found


def test_the_last_message_arrives_where_nothing_went_down() -> None:
    lost, here = [*sends(1, 2), "quiet"], [*gots(1), "quiet"]
    (found,) = streams(life(A, 1, *lost), life(B, 2, *here))
    assert "lost at its end" in found
    assert streams(life(A, 1, *sends(1, 2), DOWN, "quiet"), life(B, 2, *here)) == []
    assert streams(life(A, 1, *lost), life(B, 2, *gots(1), killed=True)) == []
    assert streams(life(A, 1, *lost), life(B, 2, *gots(1), "crash 2 7", "quiet")) == []
    assert streams(life(A, 1, *lost), life(B, 2, *gots(1), "crash 2 8", "quiet")) != []


# ── what nodes saw of each other ─────────────────────────────────────────────────────────────────


def views(*journals: Journal) -> list[str]:
    return list(kill_journal.view_faults(journals))


def test_views_that_add_up() -> None:
    a = life(A, 1, f"up {B} 2", f"down {B} 2", f"up {B} 3", "quiet", f"down {B} 3", "stop")
    assert views(a, life(B, 2, f"up {A} 1"), life(B, 3, f"up {A} 1", "quiet", "stop")) == []


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([f"up {B} 2", f"up {B} 2", "quiet"], "while it was up"),
        ([f"down {B} 2", f"up {B} 2", "quiet"], "which was not up"),
        ([f"up {B} 1", f"down {B} 2", f"up {B} 2", "quiet"], "which was not up"),
        (["quiet"], "at the end it saw"),
        ([f"up {B} 1", "quiet"], "at the end it saw"),
        ([f"up {B} 2", "up n@10.0.0.3 3", "quiet"], "at the end it saw"),
    ],
)
def test_views_that_do_not(rows: list[str], complaint: str) -> None:
    (found,) = views(life(A, 1, *rows), life(B, 2, f"up {A} 1", "quiet"))
    assert complaint in found


def test_who_was_not_killed_has_left_in_order() -> None:
    assert list(kill_journal.ending_faults([life(A, 1, "stop"), life(B, 2, killed=True)])) == []
    (found,) = kill_journal.ending_faults([life(A, 1)])
    assert "does not end with its stop" in found


KILL = Fault("kill", (B, "2"), 50.0, 51.0)


@pytest.mark.parametrize(
    ("rows", "seen"),
    [
        ([f"10: up {B} 2", f"52: down {B} 2", "90: stop"], 1),
        (["90: stop"], 0),  # was not connected
        ([f"55: up {B} 2", "90: stop"], 0),
        ([f"10: up {B} 2", f"20: down {B} 2", "90: stop"], 0),
        ([f"10: up {B} 2", "55: stop"], 0),  # did not live so long
        ([f"10: up {B} 2", "90: stop"], None),
        ([f"10: up {B} 2", f"65: down {B} 2", "90: stop"], None),
        ([f"10: up {B} 2", f"52: down {B} 3", "90: stop"], None),
    ],
)
def test_a_fault_is_noticed_by_whoever_was_connected(rows: list[str], seen: int | None) -> None:
    counted: Counter[str] = Counter()
    found = list(kill_journal.witness_faults([life(A, 1, *rows)], [KILL], NOTICE_S, counted))
    assert [("did not notice" in complaint) for complaint in found] == [True] * (seen is None)
    assert counted["kill"] == (seen or 0)


def test_who_was_frozen_meanwhile_is_no_witness() -> None:
    witness = life(A, 1, f"10: up {B} 2", "90: stop")
    frozen = Fault("pause", witness.key, 45.0, 51.0)
    assert list(kill_journal.witness_faults([witness], [KILL, frozen], NOTICE_S, Counter())) == []


def test_two_lives_left_in_peace_have_met() -> None:
    counted: Counter[str] = Counter()

    def meetings(*rows: str, faults: list[Fault] | None = None, at: float = 5.0) -> list[str]:
        lives = [life(A, 1, *rows), life(B, 2, f"{at + 1}: up {A} 1", f"{at + 40}: stop", at=at)]
        return list(kill_journal.meeting_faults(lives, faults or [], SETTLE_S, counted))

    assert meetings(f"7: up {B} 2", "50: stop") == []
    assert counted["met"] == 2
    (found,) = meetings("50: stop")
    assert "did not meet" in found
    (found,) = meetings(f"30: up {B} 2", "50: stop")
    assert "did not meet" in found
    assert meetings("15: stop") == []
    assert meetings("50: stop", faults=[Fault("pause", (B, "2"), 10.0, 16.0)]) == []


# ── all of it ────────────────────────────────────────────────────────────────────────────────────


def test_a_report_has_everything() -> None:
    a = life(A, 1, UP, CALL, ended("ok", "-", "ab"), *sends(1), "quiet", "40: stop")
    b = life(B, 2, f"up {A} 1", RAN, *gots(1), "quiet", "40: stop")
    report = kill_journal.check([a, b], [], NOTICE_S, SETTLE_S)
    assert report.violations == []
    assert report.total("ok") == 1
    assert report.total("ok", "unknown") == 1
    assert report.seen == Counter({"met": 2, "messages got": 1, "messages sent": 1})


def test_a_report_has_violations_of_every_kind() -> None:
    a = life(A, 1, f"0: up {B} 1", CALL, CALL, ended("ok", "-", "ab"), *sends(2), "quiet", "90: up n@x 1")
    b = life(B, 2, f"0: up {A} 1", f"up {A} 1", "90: stop")
    faults = [Fault("kill", (B, "1"), 50.0, 50.0)]
    found = "\n".join(kill_journal.check([a, b], faults, NOTICE_S, SETTLE_S).violations)
    for complaint in (
        "two calls",
        "it never ran",
        "message 2 of",
        "while it was up",
        "does not end with its stop",
        "did not notice",
        "did not meet",
    ):
        assert complaint in found
