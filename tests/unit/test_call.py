from __future__ import annotations

from typing import Any

import pytest

from fleetlm.call import Call
from fleetlm.errors import (
    AlreadyRegistered,
    Draining,
    FleetError,
    MessageTooLarge,
    NoFactory,
    NoProcess,
    NotSerializable,
)
from fleetlm.wire.failures import FailureKind, error_of_failure


class Caller:
    def __init__(self, refuses: FleetError | None = None) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.refuses = refuses

    def replied(self, ref: int, value: Any) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.told.append(("replied", ref, value))

    def failed(self, ref: int, kind: FailureKind, details: list[str]) -> None:
        self.told.append(("failed", ref, kind, details))

    def forget(self, ref: int) -> None:
        self.told.append(("forget", ref))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def call(caller: Caller, clock: Clock | None = None) -> Call:
    return Call(("add", 1, 2), caller, 9, 5.0, clock or Clock())  # type: ignore[arg-type]


def test_it_matches_as_a_pattern_and_shows_its_message() -> None:
    match call(Caller()):
        case Call(message=("add", a, b)):
            assert (a, b) == (1, 2)
        case _:
            pytest.fail("no match")
    match call(Caller()):
        case Call(("add", *rest)):
            assert rest == [1, 2]
    assert repr(call(Caller())) == "Call(('add', 1, 2))"


def test_it_is_answered_once() -> None:
    caller = Caller()
    it = call(caller)
    it.reply(3)
    it.reply(4)
    it.fail(ValueError("late"))
    it.abandon()
    it.no_process("x")
    it.process_down("x", "normal")
    assert caller.told == [("replied", 9, 3)]
    assert not it.wanted


def test_without_a_value_it_replies_none() -> None:
    caller = Caller()
    call(caller).reply()
    assert caller.told == [("replied", 9, None)]


def test_an_exception_goes_as_type_text_and_traceback() -> None:
    caller = Caller()
    it = call(caller)
    with pytest.raises(LookupError) as caught:
        {}["no such session"]  # type: ignore[index]
    it.fail(caught.value)
    ((_, ref, kind, (name, text, trace)),) = caller.told
    assert (ref, kind, name, text) == (9, FailureKind.RAISED, "KeyError", "'no such session'")
    assert "test_call.py" in trace
    assert trace.endswith("KeyError: 'no such session'\n")


@pytest.mark.parametrize("error", [NotSerializable("message", "a lock"), MessageTooLarge(9, 8)])
def test_a_reply_that_cannot_travel_is_told_to_both(error: FleetError) -> None:
    caller = Caller(refuses=error)
    it = call(caller)
    with pytest.raises(type(error)):
        it.reply(object())
    assert caller.told[0][:3] == ("failed", 9, FailureKind.RAISED)
    assert caller.told[0][3][0] == type(error).__name__


def test_it_is_wanted_until_its_deadline() -> None:
    clock = Clock()
    it = call(Caller(), clock)
    assert it.wanted
    assert it.remaining_s == 5.0
    clock.now = 3.0
    assert it.remaining_s == 2.0
    clock.now = 5.0
    assert not it.wanted
    assert it.remaining_s == 0.0
    clock.now = 6.0
    assert it.remaining_s == 0.0


def test_abandoned_it_is_wanted_no_more_and_the_caller_forgets() -> None:
    caller = Caller()
    it = call(caller)
    it.abandon()
    it.reply(1)
    assert not it.wanted
    assert caller.told == [("forget", 9)]


def test_ends_of_a_process_have_their_own_kinds() -> None:
    caller = Caller()
    call(caller).no_process("<pid>")
    call(caller).process_down("<pid>", "normal")
    assert caller.told == [
        ("failed", 9, FailureKind.NO_PROCESS, ["<pid>"]),
        ("failed", 9, FailureKind.PROCESS_DOWN, ["<pid>", "normal"]),
    ]


def test_it_is_open_until_it_is_answered_or_given_up_whatever_the_time() -> None:
    caller, clock = Caller(), Clock()
    answered, abandoned = call(caller, clock), call(caller, clock)
    clock.now = 6.0
    assert (answered.open, answered.wanted, answered.streaming) == (True, False, False)
    answered.no_handler("<pid>", "no handler 'x'")
    abandoned.abandon()
    answered.no_handler("<pid>", "again")
    assert not answered.open
    assert not abandoned.open
    assert caller.told == [("failed", 9, FailureKind.NO_HANDLER, ["<pid>", "no handler 'x'"]), ("forget", 9)]


@pytest.mark.parametrize(
    "error",
    [
        AlreadyRegistered("a", "<pid>"),
        Draining("n@127.0.0.1"),
        NoFactory("n@127.0.0.1", "f"),
        NoProcess("<pid>"),
    ],
)
def test_a_refusal_arrives_as_the_error_that_it_was(error: Any) -> None:
    caller = Caller()
    it = call(caller)
    it.refuse(error)
    it.refuse(Draining("late"))
    ((_, ref, kind, details),) = caller.told
    again = error_of_failure(kind, details)
    assert (ref, type(again), str(again), vars(again)) == (9, type(error), str(error), vars(error))


def test_a_watcher_is_told_of_the_end_and_of_another_watcher() -> None:
    told: list[str] = []
    it = call(Caller())
    it.watch(lambda _: told.append("first"))
    it.watch(lambda _: told.append("second"))
    assert told == ["first"]
    it.reply(1)
    it.reply(2)
    assert told == ["first", "second"]
