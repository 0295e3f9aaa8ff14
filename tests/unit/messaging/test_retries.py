"""What is repeated, how often, how soon, and what the error says at last."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fleetlm import retry
from fleetlm.errors import (
    CallTimeout,
    Draining,
    Expired,
    FleetError,
    NoConnection,
    NodeLost,
    NodeStopped,
    NoProcess,
    NotSerializable,
    ProcessDown,
    RemoteError,
    WouldBlock,
)
from fleetlm.messaging.retries import Retries
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop

SAFE = [NoProcess("x"), NoConnection("a@10.0.0.1", "gone"), Draining("a@10.0.0.1"), WouldBlock("x", "full")]
UNKNOWN = [NodeLost("a@10.0.0.1", "reset"), ProcessDown("x", "killed"), CallTimeout("x", 1.0)]
NEVER = [
    Expired(),
    RemoteError("ValueError", "no", cause=NoProcess("y")),
    NotSerializable("message", "a lambda"),
    NodeStopped("a@10.0.0.1"),
    ValueError("a mistake"),
    TimeoutError("of the program's own"),
]


class Operation:
    """Fails with each of these errors in turn, then returns ``"done"``; keeps when each attempt began."""

    def __init__(self, *errors: Exception, takes_s: float = 0.0) -> None:
        self.errors = [*errors]
        self.takes_s = takes_s
        self.began: list[float] = []

    async def __call__(self) -> str:
        self.began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.takes_s)
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def on_loop(test: Callable[[], Awaitable[None]], **settings: Any) -> None:
    """Run a test on virtual time, with the retries of a node with these settings."""

    async def run() -> None:
        Retries(Settings(**settings), random.Random(1))
        await test()

    with asyncio.Runner(loop_factory=SimLoop) as runner:
        runner.run(run())


@pytest.mark.parametrize("error", SAFE, ids=lambda error: type(error).__name__)
def test_what_was_not_delivered_is_repeated(error: Exception) -> None:
    async def test() -> None:
        operation = Operation(error, error)
        assert await retry(operation, attempts=3) == "done"
        assert len(operation.began) == 3

    on_loop(test)


@pytest.mark.parametrize("error", UNKNOWN, ids=lambda error: type(error).__name__)
def test_what_may_have_run_is_repeated_only_if_it_may_run_twice(error: Exception) -> None:
    async def test() -> None:
        operation = Operation(error)
        with pytest.raises(type(error)) as caught:
            await retry(operation)
        assert caught.value is error
        assert len(operation.began) == 1
        assert await retry(Operation(error), idempotent=True) == "done"

    on_loop(test)


@pytest.mark.parametrize("error", NEVER, ids=lambda error: type(error).__name__)
def test_nothing_else_is_repeated(error: Exception) -> None:
    async def test() -> None:
        operation = Operation(error)
        with pytest.raises(type(error)) as caught:
            await retry(operation, idempotent=True, timeout=9.0)
        assert caught.value is error
        assert not hasattr(error, "__notes__")
        assert len(operation.began) == 1

    on_loop(test)


def test_the_last_error_is_raised_and_tells_what_was_tried() -> None:
    async def test() -> None:
        operation = Operation(NoProcess("one"), WouldBlock("two", "full"), NoProcess("three"))
        with pytest.raises(NoProcess) as caught:
            await retry(operation, attempts=3)
        assert caught.value.target == "three"
        (note,) = caught.value.__notes__
        assert note.startswith("Attempt 3 in 0.")
        assert "no attempt was left (attempts=3)" in note
        assert "NoProcess: no process 'one'" in note
        assert "WouldBlock: sending to 'two'" in note

    on_loop(test)


def test_of_many_errors_the_note_tells_the_last_ones() -> None:
    async def test() -> None:
        with pytest.raises(NoProcess) as caught:
            await retry(Operation(*[NoProcess(f"p{n}") for n in range(9)]), attempts=9)
        (note,) = caught.value.__notes__
        assert "3 more, " in note
        assert "'p2'" not in note
        assert all(f"'p{n}'" in note for n in range(3, 8))

    on_loop(test)


def test_a_first_error_that_is_final_has_no_note() -> None:
    async def test() -> None:
        error = NoProcess("x")
        with pytest.raises(NoProcess):
            await retry(Operation(error), attempts=1)
        assert not hasattr(error, "__notes__")

    on_loop(test)


def test_pauses_are_random_and_their_ceiling_doubles_up_to_its_limit() -> None:
    async def test() -> None:
        longest = [0.0] * 8
        for _ in range(60):
            operation = Operation(*[NoProcess("x")] * 8)
            await retry(operation, attempts=9)
            pauses = [
                after - before for before, after in zip(operation.began, operation.began[1:], strict=False)
            ]
            longest = [max(pair) for pair in zip(longest, pauses, strict=True)]
        for most, ceiling in zip(longest, (0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0), strict=True):
            assert 0.8 * ceiling < most <= ceiling

    on_loop(test, retry_pause_min_s=0.1, retry_pause_max_s=1.0, retry_ratio=1.0, retry_reserve=1_000,
            retry_saved=1_000)  # fmt: skip


def test_the_end_of_a_drain_is_not_waited_for() -> None:
    """It may come far sooner, and a name that was asked for may pass to another node."""

    async def test() -> None:
        operation = Operation(Draining("a@10.0.0.1", 4.0))
        await retry(operation)
        assert operation.began[1] - operation.began[0] <= 0.05

    on_loop(test)


def test_a_stream_that_a_drain_has_ended_is_repeated_only_if_it_is_idempotent() -> None:
    async def test() -> None:
        ended = Draining("a@10.0.0.1", 4.0, has_begun=True)
        with pytest.raises(Draining, match="has ended this stream"):
            await retry(Operation(ended))
        assert await retry(Operation(ended), idempotent=True) == "done"

    on_loop(test)


def test_no_pause_begins_that_would_end_after_the_deadline() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(NoProcess) as caught:
            await retry(Operation(*[NoProcess("x")] * 30), attempts=30, timeout=3.0)
        assert loop.time() - began < 3.0
        assert "after the deadline (3 s)" in caught.value.__notes__[0]

    on_loop(test)


def test_an_attempt_that_runs_at_the_deadline_is_cancelled_and_may_have_run() -> None:
    async def test() -> None:
        cancelled = []

        async def hang() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        with pytest.raises(CallTimeout, match=r"hang' within 2 s; the request may have run") as caught:
            await retry(hang, timeout=2.0)
        assert caught.value.timeout_s == 2.0
        assert cancelled == [True]
        assert not hasattr(caught.value, "__notes__")

        first = Operation(NoProcess("x"), takes_s=1.5)
        with pytest.raises(CallTimeout) as caught:
            await retry(first, timeout=2.0)
        assert "the 2 s for all attempts were over. Before it: NoProcess" in caught.value.__notes__[0]

    on_loop(test)


@pytest.mark.parametrize("when_s", [0.5, 1.001, 1.02])
def test_a_cancellation_ends_the_attempt_or_the_pause_at_once(when_s: float) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        operation = Operation(*[NoProcess("x")] * 9, takes_s=1.0)
        task = loop.create_task(retry(operation, attempts=9, timeout=100.0))
        await asyncio.sleep(when_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert loop.time() - began == pytest.approx(when_s)

    on_loop(test)


@pytest.mark.parametrize(
    ("attempts", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (2.0, TypeError)]
)
def test_a_number_of_attempts_that_cannot_be_is_refused_before_anything_runs(
    attempts: Any, error: type[Exception]
) -> None:
    async def test() -> None:
        operation = Operation()
        with pytest.raises(error, match="attempts"):
            await retry(operation, attempts=attempts)
        assert operation.began == []

    on_loop(test)


def test_in_a_storm_all_callers_together_repeat_a_tenth_and_the_reserve() -> None:
    async def test() -> None:
        attempts = 0

        async def refused() -> None:
            nonlocal attempts
            attempts += 1
            raise WouldBlock("x", "full")

        async def caller() -> FleetError:
            with pytest.raises(WouldBlock) as caught:
                await retry(refused, attempts=4)
            return caught.value

        errors = await asyncio.gather(*(caller() for _ in range(1_000)))
        assert 1_090 <= attempts <= 1_000 * 1.1 + 10 + 1  # The pauses take less than 10 s.
        told = [note for error in errors for note in getattr(error, "__notes__", [])]
        assert told
        assert all("budget of repetitions" in note or "no attempt was left" in note for note in told)

    on_loop(test)


def test_what_was_earned_in_quiet_times_is_there_when_a_node_goes() -> None:
    async def test() -> None:
        for _ in range(2_000):
            assert await retry(Operation()) == "done"
        outcomes = await asyncio.gather(
            *(retry(Operation(NoProcess("x"))) for _ in range(150)), return_exceptions=True
        )
        assert outcomes.count("done") == 100  # All 150 fail before any is repeated.

    on_loop(test)


def test_attempts_that_were_not_sent_cost_no_budget() -> None:
    """Callers may wait for a node that restarts, however many they are."""

    async def test() -> None:
        known = Draining("a@10.0.0.1", 1.0)
        known.was_sent = False
        for error in (NoConnection("a@10.0.0.1", "refused"), known):
            for _ in range(5):
                assert await retry(Operation(*[error] * 30), attempts=31) == "done"
        with pytest.raises(Draining):
            await retry(Operation(*[Draining("a@10.0.0.1", 1.0)] * 30), attempts=31)

    on_loop(test)


def test_without_a_node_on_the_loop_there_is_a_budget_all_the_same() -> None:
    async def test() -> None:
        assert await retry(Operation(NoProcess("x"))) == "done"
        assert Retries.of_this_loop() is Retries.of_this_loop()

    with asyncio.Runner(loop_factory=SimLoop) as runner:
        runner.run(test())


def test_a_loop_that_was_closed_is_not_kept() -> None:
    kept: list[weakref.ref[Any]] = []

    async def test() -> None:
        kept.append(weakref.ref(asyncio.get_running_loop()))
        await retry(Operation(NoProcess("x")))

    on_loop(test)
    gc.collect()
    assert kept[0]() is None
