"""What is left on an event loop after the node has stopped ends with it, or the loop ends without it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleetlm.runtime import leftovers
from fleetlm.runtime.leftovers import run_to_end


async def ignore_cancellation() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


async def wait_forever() -> None:
    await asyncio.Event().wait()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def run(main: Any) -> Any:
    with asyncio.Runner() as runner:
        return run_to_end(runner, main)


def test_a_task_that_ignores_its_cancellation_is_named_and_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leftovers, "LEFTOVERS_END_S", 0.0)

    async def main() -> str:
        _tasks = [asyncio.create_task(ignore_cancellation(), name="refiner")]
        await asyncio.sleep(0)
        return "done"

    assert run(main()) == "done"
    gc.collect()  # Else "Task was destroyed but it is pending" would come later.
    (said,) = warnings_of(caplog)
    assert said.startswith("1 task(s) ignored their cancellation")
    assert "refiner in ignore_cancellation" in said


def test_only_the_first_tasks_of_many_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leftovers, "LEFTOVERS_END_S", 0.0)

    async def main() -> None:
        _tasks = [asyncio.create_task(ignore_cancellation(), name=f"t{number}") for number in range(7)]
        await asyncio.sleep(0)

    run(main())
    (said,) = warnings_of(caplog)
    assert "t4 in" in said
    assert "t5 in" not in said
    assert said.endswith("and 2 more")


def test_tasks_that_end_are_not_mentioned_and_their_clean_up_runs(caplog: pytest.LogCaptureFixture) -> None:
    ended = []

    async def clean_up() -> None:
        try:
            await wait_forever()
        finally:
            await asyncio.sleep(0)
            ended.append("clean-up")

    async def main() -> None:
        _tasks = [asyncio.create_task(clean_up())]
        await asyncio.sleep(0)

    run(main())
    assert ended == ["clean-up"]
    assert not warnings_of(caplog)


def test_an_exception_of_a_clean_up_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def fail_at_the_end() -> None:
        try:
            await wait_forever()
        finally:
            raise OSError("the disk is full")

    async def main() -> None:
        _tasks = [asyncio.create_task(fail_at_the_end())]
        await asyncio.sleep(0)

    run(main())
    (said,) = warnings_of(caplog)
    assert "cancelled after the node had stopped" in said


def test_a_generator_whose_clean_up_never_ends_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leftovers, "LEFTOVERS_END_S", 0.0)
    kept = []

    async def rows() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await ignore_cancellation()

    async def main() -> None:
        kept.append(rows())
        await anext(kept[0])

    run(main())
    (said,) = warnings_of(caplog)
    assert "shutdown_asyncgens" in said


def test_a_function_in_the_default_executor_is_waited_for_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leftovers, "EXECUTOR_SILENCE_S", 0.0)
    said_so = threading.Event()
    ended = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "asyncio.to_thread" in record.getMessage():
                said_so.set()

    def save() -> None:
        ended.append(said_so.wait(30.0))

    async def main() -> None:
        _tasks = [asyncio.create_task(asyncio.to_thread(save))]
        await asyncio.sleep(0)

    listener = Listener()
    leftovers.log.addHandler(listener)
    try:
        run(main())
    finally:
        leftovers.log.removeHandler(listener)
    assert ended == [True]
    assert len(warnings_of(caplog)) == 1  # And no word of asyncio about a cancelled future.


def test_what_the_coroutine_raises_comes_through(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leftovers, "LEFTOVERS_END_S", 0.0)

    async def main() -> None:
        _tasks = [asyncio.create_task(ignore_cancellation())]
        await asyncio.sleep(0)
        raise LookupError("no such model")

    with pytest.raises(LookupError, match="no such model"):
        run(main())
    assert len(warnings_of(caplog)) == 1
