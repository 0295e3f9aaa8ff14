from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from fleetlm.testing import loop as loop_module
from fleetlm.testing.loop import (
    Deadlock,
    LeftOver,
    LimitReached,
    NotSimulated,
    SimLoop,
    SimulationError,
    Unhandled,
    run,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

ROOT = Path(__file__).parents[2]


# Time.


def test_time_starts_at_zero_and_jumps() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        times = [loop.time()]
        await asyncio.sleep(86_400)
        times.append(loop.time())
        return times

    started_s = time.perf_counter()
    assert run(main()) == [0.0, 86_400.0]
    assert time.perf_counter() - started_s < 5


def test_no_time_passes_while_something_is_ready() -> None:
    async def main() -> float:
        for _ in range(1000):
            await asyncio.sleep(0)
        return SimLoop.current().time()

    assert run(main()) == 0.0


@given(st.lists(st.floats(min_value=0, max_value=3), max_size=30))
def test_timers_run_by_time_then_in_scheduling_order(delays: list[float]) -> None:
    async def main() -> list[int]:
        ran: list[int] = []
        loop = SimLoop.current()
        for number, delay_s in enumerate(delays):
            loop.call_later(round(delay_s), ran.append, number)
        await asyncio.sleep(10)
        return ran

    expected = sorted(range(len(delays)), key=lambda number: (round(delays[number]), number))
    assert run(main()) == expected


def test_equal_deadlines_stay_in_order_among_thousands() -> None:
    async def main() -> list[int]:
        ran: list[int] = []
        for number in range(5000):
            SimLoop.current().call_at(1.0, ran.append, number)
        await asyncio.sleep(2)
        return ran

    assert run(main()) == list(range(5000))


def test_a_timer_in_the_past_runs_without_turning_the_clock_back() -> None:
    async def main() -> tuple[float, float]:
        await asyncio.sleep(5)
        done = asyncio.get_running_loop().create_future()
        SimLoop.current().call_at(1.0, lambda: done.set_result(SimLoop.current().time()))
        return await done, SimLoop.current().time()

    assert run(main()) == (5.0, 5.0)


def test_a_timer_needs_a_number() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="nan"):
            SimLoop.current().call_at(float("nan"), print)

    run(main())


def test_cancelled_timers_neither_run_nor_pile_up() -> None:
    async def main() -> int:
        loop = SimLoop.current()
        ran: list[int] = []
        kept = [loop.call_later(50, ran.append, number) for number in range(10)]
        for _ in range(10_000):
            loop.call_later(100, ran.append, -1).cancel()
            if loop.turns % 7 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        size = len(loop._timers)
        kept[3].cancel()
        await asyncio.sleep(200)
        assert ran == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        return size

    assert run(main()) < 600


def test_timeouts_work_on_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.get_running_loop().create_future()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 12)
        return SimLoop.current().time()

    assert run(main()) == 42.0


# The end of a run.


def test_the_result_and_the_exception_come_through() -> None:
    async def good() -> str:
        await asyncio.sleep(1)
        return "done"

    async def bad() -> None:
        await asyncio.sleep(1)
        raise KeyError("mine")

    assert run(good()) == "done"
    with pytest.raises(KeyError, match="mine"):
        run(bad())


def test_a_deadlock_is_raised_at_once_and_names_the_waiting_tasks() -> None:
    async def patient() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        await asyncio.sleep(3)
        waiter = asyncio.create_task(patient(), name="the patient one")
        await waiter

    with pytest.raises(Deadlock) as caught:
        run(main())
    assert caught.value.at_s == 3.0
    assert len(caught.value.tasks) == 2
    text = str(caught.value)
    assert "Task-1 (" in text
    assert "the patient one (" in text
    assert "test_loop.py:" in text


def test_after_a_deadlock_the_program_is_cancelled_and_may_clean_up() -> None:
    ended: list[float] = []

    async def main() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(1)
            ended.append(SimLoop.current().time())

    with pytest.raises(Deadlock) as caught:
        run(main())
    assert ended == [1.0]
    assert not hasattr(caught.value, "__notes__")


def test_a_deadlock_names_only_some_of_thousands() -> None:
    async def main() -> None:
        never = asyncio.get_running_loop().create_future()
        await asyncio.gather(*(asyncio.wait([never]) for _ in range(2000)))

    with pytest.raises(Deadlock, match=r"2001 pending: .* and 1991 more") as caught:
        run(main())
    assert len(str(caught.value)) < 3000


def test_virtual_time_is_limited() -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(1)

    with pytest.raises(LimitReached, match="not done after 60 virtual seconds") as caught:
        run(main(), limit_s=60)
    assert caught.value.at_s == 60.0


def test_turns_are_limited() -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(0.001)

    with pytest.raises(LimitReached, match="5,000 turns"):
        run(main(), limit_turns=5000)


def test_stopped_time_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetlm.testing.loop.STUCK_TURNS", 5000)

    async def main() -> None:
        for _ in range(10_000):  # with time passing between: no reason to complain
            await asyncio.sleep(0.001)
        while True:
            await asyncio.sleep(0)

    with pytest.raises(LimitReached, match="without time passing"):
        run(main())


def test_stopped_time_is_found_past_a_collection_of_rubbish(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fleetlm.testing.loop.STUCK_TURNS", 5000)
    monkeypatch.setattr("fleetlm.testing.loop.COLLECT_EVERY_TURNS", 700)

    async def main() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(LimitReached) as caught:
        run(main())
    assert caught.value.at_s == 0.0


# Errors that other loops do not raise.


def test_an_exception_in_a_callback_fails_the_run() -> None:
    async def main() -> None:
        SimLoop.current().call_later(1, lambda: 1 // 0)
        await asyncio.sleep(100)
        pytest.fail("it went on")

    with pytest.raises(Unhandled, match="ZeroDivisionError") as caught:
        run(main())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_exception_in_a_forgotten_task_fails_the_run() -> None:
    async def bad() -> None:
        raise KeyError("forgotten")

    async def main() -> None:
        task = asyncio.create_task(bad())
        await asyncio.sleep(1)
        del task
        await asyncio.sleep(1)

    with pytest.raises(Unhandled, match="forgotten"):
        run(main())


def test_a_handler_of_the_programs_own_is_respected() -> None:
    seen: list[str] = []

    async def main() -> None:
        loop = SimLoop.current()
        loop.set_exception_handler(lambda _loop, context: seen.append(repr(context["exception"])))
        loop.call_soon([].pop)
        await asyncio.sleep(1)

    run(main())
    assert seen == ["IndexError('pop from empty list')"]


def test_a_task_left_over_is_cancelled_and_fails_the_run() -> None:
    ended: list[str] = []

    async def straggler() -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            ended.append("cancelled")

    async def main() -> str:
        main.task = asyncio.create_task(straggler(), name="straggler")  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        return "done"

    with pytest.raises(LeftOver, match=r"left over 1: straggler \("):
        run(main())
    assert ended == ["cancelled"]


def test_a_task_that_ignores_its_cancellation_does_not_hang_the_run() -> None:
    async def stubborn() -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(stubborn(), name="stubborn")
        await asyncio.sleep(0)
        return task

    with pytest.raises(LeftOver, match=r"stubborn .* ignored its cancellation"):
        _ = run(main())


def test_a_task_that_raises_when_it_is_cancelled_is_reported() -> None:
    async def sore() -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            raise KeyError("sore")

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(sore())
        await asyncio.sleep(0)
        return task

    with pytest.raises(Unhandled, match="raised when it was cancelled: KeyError"):
        _ = run(main())


def test_a_task_that_is_just_ending_is_not_left_over() -> None:
    async def main() -> None:
        asyncio.create_task(asyncio.sleep(1e6)).cancel()

    run(main())


def test_an_async_generator_left_over_is_closed_and_fails_the_run() -> None:
    closed: list[bool] = []
    kept: list[AsyncIterator[int]] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            closed.append(True)

    async def main() -> None:
        kept.append(numbers())
        await anext(kept[0])

    with pytest.raises(LeftOver, match=r"async generator .*numbers"):
        run(main())
    assert closed == [True]


def test_an_async_generator_that_was_broken_off_is_closed() -> None:
    closed: list[bool] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    async def main() -> None:
        async for _ in numbers():
            break

    run(main())
    assert closed == [True]


def test_what_the_program_raises_comes_first_and_the_rest_is_noted() -> None:
    async def sore() -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            raise ValueError("sore")

    async def main() -> None:
        main.task = asyncio.create_task(sore())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        raise KeyError("first")

    with pytest.raises(KeyError) as caught:
        run(main())
    assert "sore" in caught.value.__notes__[0]


# The outside world.


def test_functions_for_an_executor_run_here() -> None:
    def work(a: int, b: int) -> int:
        return a // b

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, work, 7, 2) == 3
        assert await asyncio.to_thread(work, 9, 3) == 3
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(work, 1, 0)
        future = loop.run_in_executor(None, pytest.fail, "it ran all the same")
        future.cancel()
        await asyncio.sleep(0)

    run(main())


def test_call_soon_threadsafe_works() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        loop.call_soon_threadsafe(done.set_result, None)
        await done

    run(main())


@pytest.mark.parametrize(
    "use",
    [
        lambda loop: loop.create_connection(asyncio.Protocol, "127.0.0.1", 9),
        lambda loop: loop.create_datagram_endpoint(asyncio.DatagramProtocol),
        lambda loop: loop.add_reader(0, print),
        lambda loop: loop.getaddrinfo("localhost", 80),
        lambda loop: loop.add_signal_handler(15, print),
        lambda loop: loop.subprocess_exec(asyncio.SubprocessProtocol, "true"),
    ],
)
def test_there_is_no_outside_world(use: Callable[[SimLoop], object]) -> None:
    async def main() -> None:
        with pytest.raises(NotSimulated, match="SimTransport"):
            use(SimLoop.current())
        with pytest.raises(NotImplementedError):  # what callers of add_signal_handler expect
            use(SimLoop.current())

    run(main())


def test_current_wants_a_virtual_loop() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="not a SimLoop"):
            SimLoop.current()

    asyncio.run(main())
    with pytest.raises(RuntimeError):
        SimLoop.current()


def test_a_closed_loop_takes_no_timer() -> None:
    loop = SimLoop()
    loop.close()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_later(1, print)


def test_run_inside_a_run_is_refused_and_leaves_nothing_behind() -> None:
    async def inner() -> None:
        pytest.fail("it ran")

    async def main() -> None:
        with pytest.raises(RuntimeError, match="one is running already"):
            run(inner())

    run(main())


# Determinism.


def test_random_is_seeded_and_put_back() -> None:
    async def main() -> tuple[float, float]:
        return random.random(), SimLoop.current().rng.random()

    random.seed(99)
    state = random.getstate()
    first = run(main(), seed=5)
    assert random.getstate() == state
    assert run(main(), seed=5) == first
    assert run(main(), seed=6) != first


def test_task_names_are_numbered_for_each_loop() -> None:
    async def main() -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(1)) for _ in range(2)]
            named = group.create_task(asyncio.sleep(1), name="mine")
        return [task.get_name() for task in (*tasks, named)]

    assert run(main()) == run(main()) == ["Task-2", "Task-3", "mine"]


SCENARIO = """
import asyncio
from fleetlm.testing.loop import SimLoop, run

async def node(name, trace):
    loop = SimLoop.current()
    while loop.time() < 50:
        await asyncio.sleep(loop.rng.choice([0.5, 1, 1, 2]))
        trace.append((loop.time(), name))

async def main():
    trace = []
    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(node(f"n{number}", trace))
    return trace

print(hash("x"))
print(run(main(), seed=3))
"""


def test_the_trace_is_the_same_under_every_hash_seed() -> None:
    said = []
    for hash_seed in ("1", "2"):
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        out = subprocess.run(
            [sys.executable, "-c", SCENARIO],
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        said.append(out.stdout.splitlines())
    assert said[0][0] != said[1][0]  # the hash seed did something
    assert said[0][1] == said[1][1]
    assert len(said[0][1]) > 5000


def test_errors_are_one_tree() -> None:
    for kind in (Deadlock, LimitReached, Unhandled, LeftOver, NotSimulated):
        assert issubclass(kind, SimulationError)


@pytest.fixture
def nothing_is_frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a program that does not call `gc.freeze`; these tests have frozen all that was imported."""
    monkeypatch.setattr(loop_module, "_FORMER_RUNS", loop_module._FormerRuns())
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.usefixtures("nothing_is_frozen")
def test_a_run_freezes_older_objects_and_gives_back_only_what_it_froze() -> None:
    async def frozen() -> int:
        return gc.get_freeze_count()

    before = gc.get_freeze_count()
    for _ in range(2):
        assert run(frozen()) > before
        assert gc.get_freeze_count() <= before, "the run has unfrozen what it froze"
    gc.freeze()
    own = gc.get_freeze_count()
    kept = [[] for _ in range(1_000)]
    assert run(frozen()) >= own + len(kept), "objects made since are not scanned either"
    assert gc.get_freeze_count() >= own, "what the program has frozen stays frozen"


@pytest.mark.usefixtures("nothing_is_frozen")
def test_a_run_inside_another_one_leaves_frozen_what_the_outer_one_froze() -> None:
    async def nothing() -> None: ...

    before = gc.get_freeze_count()
    for _ in range(2):
        with loop_module.isolated(0):
            outer = gc.get_freeze_count()
            run(nothing())
            assert gc.get_freeze_count() >= outer
        assert gc.get_freeze_count() <= before


class Cycle:
    """Lives until garbage is collected."""

    def __init__(self) -> None:
        self.own = self


def test_what_a_run_has_left_is_collected_where_the_program_has_frozen_its_objects() -> None:
    async def nothing() -> None: ...

    left = weakref.ref(Cycle())
    run(nothing())
    assert left() is None, "the run would have frozen it for good"
