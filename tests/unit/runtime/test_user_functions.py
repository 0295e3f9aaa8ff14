"""Functions of the program with a time limit, in real threads."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fleetlm.blocking.function_call import FunctionResult
from fleetlm.blocking.pool import FunctionThread, Job
from fleetlm.errors import NodeStopped
from fleetlm.runtime.user_functions import TookTooLong, UserFunctions, is_async
from fleetlm.settings import Settings


async def here() -> threading.Thread:
    return threading.current_thread()


async def test_coroutines_run_on_the_loop_and_plain_functions_in_a_thread() -> None:
    functions = UserFunctions("fleetlm@10.0.0.1", Settings(hook_threads=1))
    assert await functions.run(here, 5) is threading.current_thread()
    assert await functions.run(threading.current_thread, 5) is not threading.current_thread()
    assert await functions.run(lambda: here(), 5) is threading.current_thread()  # noqa: PLW0108
    functions.close()
    with pytest.raises(NodeStopped):
        await functions.run(threading.current_thread, 5)


async def test_a_function_that_blocks_is_left_in_its_thread_and_not_started_twice() -> None:
    functions = UserFunctions("fleetlm@10.0.0.1", Settings(hook_threads=2))
    go_on = threading.Event()

    def block() -> bool:
        return go_on.wait(20)

    with pytest.raises(TookTooLong, match=r"was not done within 0\.01 s"):
        await functions.run(block, 0.01)
    with pytest.raises(RuntimeError, match="an earlier run of it has not ended"):
        await functions.run(block, 5)
    assert await functions.run(lambda: "another", 5) == "another"
    go_on.set()
    while True:  # The thread ends a moment later.
        try:
            assert await functions.run(block, 5)
            break
        except RuntimeError:
            await asyncio.sleep(0)
    functions.close()


async def test_a_function_whose_time_was_over_before_its_thread_began_may_run_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine a thread may begin after the time limit. It then calls nothing."""
    go_on, runs, perform = threading.Event(), list[str](), FunctionThread.perform

    def begin_late(thread: FunctionThread, job: Job) -> FunctionResult:
        go_on.wait(20)
        return perform(thread, job)

    monkeypatch.setattr(FunctionThread, "perform", begin_late)
    functions = UserFunctions("fleetlm@10.0.0.1", Settings(hook_threads=1))

    def check() -> None:
        runs.append("ran")

    with pytest.raises(TookTooLong):
        await functions.run(check, 0.01)
    go_on.set()
    while functions.threads.pool.running:
        await asyncio.sleep(0)
    await functions.run(check, 20)
    assert runs == ["ran"]
    functions.close()


async def test_a_function_for_which_no_thread_could_start_may_run_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    functions = UserFunctions("fleetlm@10.0.0.1", Settings())

    def check() -> str:
        return "well"

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="start new thread"):
            await functions.run(check, 20)
    assert await functions.run(check, 20) == "well"
    functions.close()


async def test_a_function_that_found_no_free_thread_may_run_later() -> None:
    functions = UserFunctions("fleetlm@10.0.0.1", Settings(hook_threads=1))
    began, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def first() -> bool:
        loop.call_soon_threadsafe(began.set)
        return go_on.wait(20)

    running = asyncio.create_task(functions.run(first, 20))
    await began.wait()

    def second() -> str:
        return "second"

    with pytest.raises(TookTooLong):
        await functions.run(second, 0.01)
    go_on.set()
    assert await running
    assert await functions.run(second, 20) == "second"
    functions.close()


async def test_a_time_out_of_the_function_itself_is_its_own_error() -> None:
    functions = UserFunctions("fleetlm@10.0.0.1", Settings())

    async def give_up() -> None:
        raise TimeoutError("the database")

    with pytest.raises(TimeoutError, match="the database"):
        await functions.run(give_up, 5)
    functions.close()


def test_what_makes_a_coroutine_is_known_without_calling_it() -> None:
    assert is_async(here)
    assert not is_async(test_what_makes_a_coroutine_is_known_without_calling_it)
