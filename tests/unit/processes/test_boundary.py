"""What an exception means for its process: exits in groups, interrupts of the operator, crashes."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fleetlm import Crash, ProcessExit
from fleetlm.processes.boundary import Contained, crash_of, exit_in, is_from_signal, original


def caught(code: Callable[[], Any]) -> BaseException:
    try:
        code()
    except BaseException as error:  # noqa: BLE001  # the error is what is tested
        return error
    raise AssertionError("it raised nothing")


def interrupt_oneself() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def handlers() -> Iterator[Callable[[Any], None]]:
    """Install a handler of SIGINT until the test ends."""
    former = signal.getsignal(signal.SIGINT)

    def install(handler: Any) -> None:
        signal.signal(signal.SIGINT, handler)

    yield install
    signal.signal(signal.SIGINT, former)


# Exits.


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ProcessExit("done"), "done"),
        (ExceptionGroup("g", [ProcessExit("done")]), "done"),
        (ExceptionGroup("g", [ExceptionGroup("h", [ProcessExit("deep")])]), "deep"),
        (BaseExceptionGroup("g", [ProcessExit("first"), ProcessExit("second")]), "first"),
        (ExceptionGroup("g", [ProcessExit("normal"), ProcessExit("bad")]), "bad"),
        (ExceptionGroup("g", [ProcessExit("normal")]), "normal"),
    ],
)
def test_a_group_of_nothing_but_exits_is_an_exit(error: BaseException, reason: str) -> None:
    leaving = exit_in(error)
    assert leaving is not None
    assert leaving.reason == reason


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        SystemExit(3),
        asyncio.CancelledError(),
        ExceptionGroup("g", [ProcessExit("normal"), ValueError("x")]),
        BaseExceptionGroup("g", [ExceptionGroup("h", [ProcessExit()]), SystemExit(3)]),
    ],
)
def test_anything_else_is_no_exit_and_a_mixed_group_is_a_crash(error: BaseException) -> None:
    assert exit_in(error) is None


# Interrupts.


def nested(innermost: Exception, levels: int = 5_000) -> Exception:
    error = innermost
    for _ in range(levels):
        error = ExceptionGroup("g", [error])
    return error


def test_groups_that_are_nested_more_deeply_than_calls_may_be_are_looked_into() -> None:
    leaving = exit_in(nested(ProcessExit("done")))
    assert leaving is not None
    assert leaving.reason == "done"
    crash = crash_of(nested(ValueError("deep")))
    assert (crash.type_name, crash.text) == ("ExceptionGroup", "g (1 sub-exception)")
    assert "nested more than 64 levels deep" in crash.traceback_text


def test_code_that_raises_by_itself_is_no_signal() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    assert not is_from_signal(caught(stop))
    assert not is_from_signal(caught(lambda: sys.exit(3)))
    assert not is_from_signal(SystemExit(3))
    assert not is_from_signal(ValueError())


def test_ctrl_c_is_a_signal_wherever_it_hits(handlers: Callable[[Any], None]) -> None:
    handlers(signal.default_int_handler)
    error = caught(interrupt_oneself)
    assert isinstance(error, KeyboardInterrupt)
    assert is_from_signal(error)


def test_code_that_raises_keyboard_interrupt_is_no_ctrl_c(handlers: Callable[[Any], None]) -> None:
    handlers(signal.default_int_handler)

    def stop() -> None:
        raise KeyboardInterrupt

    assert not is_from_signal(caught(stop))


def test_a_signal_handler_of_the_program_that_exits_is_a_signal(handlers: Callable[[Any], None]) -> None:
    handlers(lambda *_: sys.exit(0))
    assert is_from_signal(caught(interrupt_oneself))


def test_the_handler_of_asyncio_is_found_through_its_partial(handlers: Callable[[Any], None]) -> None:
    seen: list[bool] = []

    async def main() -> None:
        for _ in range(2):  # The first cancels the main task, the second raises where it hits.
            try:
                interrupt_oneself()
            except KeyboardInterrupt as error:
                seen.append(is_from_signal(error))

    handlers(signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert seen == [True]


def test_a_method_as_signal_handler_is_found(handlers: Callable[[Any], None]) -> None:
    class Program:
        def leave(self, *_: Any) -> None:
            raise SystemExit(0)

    handlers(Program().leave)
    assert is_from_signal(caught(interrupt_oneself))


def test_in_another_thread_nothing_is_a_signal() -> None:
    seen: list[bool] = []
    error = caught(lambda: sys.exit(3))
    thread = threading.Thread(target=lambda: seen.append(is_from_signal(error)))
    thread.start()
    thread.join()
    assert seen == [False]


# Crashes.


def test_the_original_of_a_contained_exception_is_what_code_raised() -> None:
    exits = SystemExit(3)
    contained = Contained(exits)
    contained.__cause__ = exits
    assert original(contained) is exits
    assert str(contained) == "SystemExit: 3"
    assert crash_of(contained).type_name == "SystemExit"
    assert original(exits) is exits


def test_a_crash_has_the_type_the_text_and_the_end_of_the_traceback() -> None:
    def fail() -> None:
        raise ValueError("no")

    crash = crash_of(caught(fail))
    assert (crash.type_name, crash.text) == ("ValueError", "no")
    assert crash.traceback_text.endswith("ValueError: no\n")


def test_a_cancellation_as_a_crash_says_what_was_cancelled() -> None:
    async def main() -> list[Crash]:
        cancelled = asyncio.ensure_future(asyncio.Event().wait())
        cancelled.cancel()
        await asyncio.wait([cancelled])
        error = asyncio.CancelledError("because")
        return [crash_of(error), crash_of(error, cancelled), crash_of(asyncio.CancelledError())]

    texts = [crash.text for crash in asyncio.run(main())]
    assert texts == [
        "what it awaited was cancelled: because",
        "its task was cancelled by code that is not part of fleetlm: because",
        "what it awaited was cancelled",
    ]
