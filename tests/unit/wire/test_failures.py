"""Failures: the error that a caller gets for what came over the wire."""

from __future__ import annotations

import asyncio

import pytest

from fleetlm.errors import (
    AlreadyRegistered,
    CallTimeout,
    Draining,
    Expired,
    FleetError,
    NoConnection,
    NodeLost,
    NoFactory,
    NoHandler,
    NoMember,
    NoProcess,
    NotAllowed,
    NotDelivered,
    NotLoaded,
    NotOwner,
    NotStored,
    NotSerializable,
    OutcomeUnknown,
    ProcessDown,
    RemoteError,
    StreamIdle,
    Undecodable,
    WorkerDied,
    WouldBlock,
)
from fleetlm.ids import Pid
from fleetlm.wire.failures import (
    MAX_HOPS,
    FailureKind,
    error_of_failure,
    may_have_run,
    outcome_of,
    texts_of_outcome,
)


@pytest.mark.parametrize(
    ("kind", "details", "expected", "base"),
    [
        (FailureKind.NO_PROCESS, ["x"], NoProcess, NotDelivered),
        (FailureKind.PROCESS_DOWN, ["x", "normal"], ProcessDown, OutcomeUnknown),
        (FailureKind.RAISED, ["ValueError", "no", "Traceback"], RemoteError, FleetError),
        (FailureKind.UNDECODABLE, ["x", "no such tag"], Undecodable, NotDelivered),
        (FailureKind.TOO_MANY, ["x", "its mailbox is full"], WouldBlock, NotDelivered),
        (FailureKind.NO_HANDLER, ["x", "no handler"], NoHandler, NotDelivered),
        (FailureKind.NO_FACTORY, ["x", "f"], NoFactory, NotDelivered),
        (FailureKind.NOT_ALLOWED, ["n", "why"], NotAllowed, NotDelivered),
        (FailureKind.NOT_OWNER, ["s/a", "n", "7"], NotOwner, NotDelivered),
        (FailureKind.NOT_LOADED, ["s/a", "why"], NotLoaded, NotDelivered),
        (FailureKind.NOT_STORED, ["s/a", "why"], NotStored, OutcomeUnknown),
        (FailureKind.DRAINING, ["x"], Draining, NotDelivered),
        (FailureKind.NAME_TAKEN, ["x", "<pid>"], AlreadyRegistered, FleetError),
        (1, [], NoProcess, NotDelivered),
    ],
)
def test_failures_become_exceptions(kind: int, details: list[str], expected: type, base: type) -> None:
    error = error_of_failure(kind, details)
    assert type(error) is expected
    assert isinstance(error, base)
    assert all(detail in map(str, error.args) for detail in details)
    assert may_have_run(FailureKind(kind), details) is not isinstance(error, NotDelivered)


def test_a_stream_that_a_drain_cut_has_run_and_one_that_was_refused_has_not() -> None:
    for begun in (True, False):
        details = ["x", "5.000", str(begun)]
        error = error_of_failure(FailureKind.DRAINING, details)
        assert isinstance(error, Draining)
        assert may_have_run(FailureKind.DRAINING, details) is error.has_begun is begun


@pytest.mark.parametrize(
    ("kind", "details"), [(0, []), (99, []), ("1", []), (None, []), (1, None), (1, [1]), (1, "text")]
)
def test_malformed_failures_are_refused(kind: object, details: object) -> None:
    with pytest.raises(ValueError, match="failure"):
        error_of_failure(kind, details)


# Outcomes over several hops.


def sent(error: BaseException) -> FleetError | None:
    """What `RemoteError.cause` is at a caller whose handler raised this."""
    received = error_of_failure(FailureKind.RAISED, ["X", "x", "tb", *texts_of_outcome(error)])
    assert isinstance(received, RemoteError)
    assert received.__cause__ is received.cause
    return received.cause


@pytest.mark.parametrize(
    "outcome",
    [
        NoProcess("x"), NoMember("g"), NoHandler("x", "why"), Expired(), NoFactory("n", "f"),
        NotAllowed("n", "why"), NotOwner("s/a", "n", 7), NotLoaded("s/a", "why"),
        NoConnection("n", "why"), Draining("n", 2.5), Draining("n", 2.5, has_begun=True),
        Undecodable("x", "why"), WouldBlock("x", "full"),
        NodeLost("n", "cut"), ProcessDown("x", "shutdown"), WorkerDied("f", "oom"), NotStored("s/a", "why"), CallTimeout("x", 2.5),
        StreamIdle("x", 60.0, is_unread=True), StreamIdle("x", 60.0), RemoteError("ValueError", "no"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_outcome_keeps_its_class_and_its_facts(outcome: FleetError) -> None:
    found = sent(outcome)
    assert type(found) is type(outcome)
    assert found.args == outcome.args
    assert str(found) == str(outcome)


def test_targets_travel_as_people_name_them() -> None:
    found = sent(NoProcess(("echo", "fleetlm@10.0.0.7")))
    assert "echo on fleetlm@10.0.0.7" in str(found)
    assert "<fleetlm@10.0.0.7 ff 3>" in str(sent(CallTimeout(Pid("fleetlm@10.0.0.7", 255, 3), 5)))


def test_other_errors_have_no_outcome() -> None:
    for error in (
        ValueError("x"),
        NotSerializable("message", "object"),
        KeyError(),
        asyncio.CancelledError(),
    ):
        assert sent(error) is None


def test_an_explicit_cause_counts_and_an_accidental_context_does_not() -> None:
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = KeyError()
    wrapped.__cause__.__cause__ = NoConnection("n", "why")
    assert isinstance(sent(wrapped), NoConnection)
    beside = ValueError("beside")
    beside.__context__ = NoConnection("n", "why")
    assert sent(beside) is None


def test_of_a_group_the_outcome_that_allows_the_least_counts() -> None:
    never, maybe, ran = NoProcess("x"), NodeLost("n", "cut"), RemoteError("ValueError", "no")
    assert isinstance(sent(ExceptionGroup("g", [never])), NoProcess)
    assert isinstance(sent(ExceptionGroup("g", [never, ran])), RemoteError)
    assert isinstance(sent(ExceptionGroup("g", [never, ExceptionGroup("h", [ran, maybe])])), NodeLost)
    assert sent(ExceptionGroup("g", [never, ValueError()])) is None, "something else failed too"


def test_causes_go_on_over_hops_up_to_a_limit() -> None:
    error: FleetError = NoProcess("x")
    for hop in range(3):
        error = RemoteError("RemoteError", f"hop {hop}", "a traceback stays where it was", error)
    found, seen = sent(error), []
    while isinstance(found, RemoteError):
        seen.append(found.text)
        found = found.cause
    assert seen == ["hop 2", "hop 1", "hop 0"]
    assert isinstance(found, NoProcess)
    for _ in range(50):
        error = RemoteError("RemoteError", "x" * 100_000, "", error)
    assert len("".join(texts_of_outcome(error))) < 50_000


class Busy(NotDelivered):
    """A program's own refusal."""


class Odd(NodeLost):
    def __str__(self) -> str:
        raise ValueError


def test_a_class_of_the_program_travels_as_the_one_that_it_derives_from() -> None:
    found = sent(Busy("the queue is full"))
    assert type(found) is NotDelivered
    assert str(found) == "the queue is full"
    assert isinstance(sent(Odd("n", "why")), OutcomeUnknown)


@pytest.mark.parametrize(
    "texts",
    [
        ["NoProcess"],
        ["NoProcess", "x"],
        ["int", "1", "5"],
        ["FleetError", "0"],
        ["NoProcess", "12", "x"],
        ["", ""],
    ],
)
def test_malformed_causes_are_passed_over(texts: list[str]) -> None:
    error = error_of_failure(FailureKind.RAISED, ["X", "x", "tb", *texts])
    assert isinstance(error, RemoteError)
    assert error.cause is None


@pytest.mark.parametrize(
    "texts", [["NoProcess", "0"], ["NoProcess", "2", "a", "b"], ["CallTimeout", "2", "x", "y"]]
)
def test_facts_that_do_not_fit_still_tell_the_kind(texts: list[str]) -> None:
    error = error_of_failure(FailureKind.RAISED, ["X", "x", "tb", *texts])
    assert isinstance(error, RemoteError)
    assert isinstance(error.cause, NotDelivered | OutcomeUnknown)


def test_the_producers_word_that_its_consumer_does_not_read() -> None:
    error = error_of_failure(FailureKind.UNREAD, [])
    assert isinstance(error, StreamIdle)
    assert error.is_unread


def test_a_chain_of_causes_is_followed_only_so_far() -> None:
    error: BaseException = NoConnection("fleetlm@10.0.0.2", "lost")
    for number in range(MAX_HOPS - 1):
        outer = RuntimeError(number)
        outer.__cause__ = error
        error = outer
    assert isinstance(outcome_of(error), NoConnection)
    beyond = RuntimeError("one more")
    beyond.__cause__ = error
    assert outcome_of(beyond) is None


@pytest.mark.parametrize("seconds", ["soon", "-1", "inf", "nan"])
def test_a_node_that_drains_says_after_how_many_seconds_to_ask_again(seconds: str) -> None:
    error = error_of_failure(FailureKind.DRAINING, ["n", "2.5"])
    assert isinstance(error, Draining)
    assert (error.node, error.retry_after, error.has_begun) == ("n", 2.5, False)
    with pytest.raises(ValueError, match=r"float|seconds"):
        error_of_failure(FailureKind.DRAINING, ["n", seconds])


def test_outcomes_in_groups_nested_too_deeply_are_not_looked_for() -> None:
    error: Exception = NoProcess("inner")
    for level in range(5_000):
        assert level > 20 or (outcome_of(error) is None) == (level > MAX_HOPS)
        error = ExceptionGroup("g", [error])
    assert outcome_of(error) is None
