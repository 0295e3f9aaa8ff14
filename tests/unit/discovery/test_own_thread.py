"""Blocking calls of discovery in threads of their own, and the waits for them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fleetlm.discovery.own_thread import OwnThread
from tests.support.threads import full_default_executor, refuse_threads


async def test_a_call_returns_what_it_found_from_a_daemon_thread_with_a_name() -> None:
    thread = OwnThread(threading.current_thread, name="fleetlm-test")
    assert not thread.is_done
    thread.start()
    assert await thread.wait(30.0)
    assert thread.is_done
    ran_in = thread.result()
    assert ran_in is not threading.current_thread()
    assert (ran_in.name, ran_in.daemon) == ("fleetlm-test", True)
    assert await thread.wait(0.0)  # A call that is done needs no time.


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("slow disk"), SystemExit(3)])
async def test_what_a_call_raises_is_its_result(error: BaseException) -> None:
    def fail() -> None:
        raise error

    thread = OwnThread(fail, name="fleetlm-test")
    thread.start()
    assert await thread.wait(30.0)
    with pytest.raises(type(error)) as raised:
        thread.result()
    assert raised.value is error


async def test_a_wait_has_its_limit_and_the_call_goes_on() -> None:
    may_end = threading.Event()
    thread = OwnThread(lambda: may_end.wait(30), name="fleetlm-test")
    thread.start()
    for _ in range(3):
        assert not await thread.wait(0.01)
    assert thread._waiting == set()  # Waits that have ended leave nothing behind.
    may_end.set()
    assert await thread.wait()
    assert thread.result()


async def test_all_who_wait_are_told_but_those_that_were_cancelled() -> None:
    may_end = threading.Event()
    thread = OwnThread(lambda: may_end.wait(30), name="fleetlm-test")
    thread.start()
    waits = [asyncio.ensure_future(thread.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waits[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits[0]
    assert len(thread._waiting) == 2
    may_end.set()
    assert await asyncio.gather(*waits[1:]) == [True, True]


def test_a_loop_that_was_closed_before_the_call_ended_is_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    died: list[object] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    may_end = threading.Event()
    thread = OwnThread(lambda: may_end.wait(30), name="fleetlm-test")
    thread.start()
    loop = asyncio.new_event_loop()
    wait = thread.wait()
    task = loop.create_task(wait)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()  # While the wait is under way, as in a program that gives its loop up.
    may_end.set()
    thread._thread.join(30)
    assert not thread._thread.is_alive()
    assert (thread.is_done, died) == (True, [])
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    wait.close()
    assert asyncio.run(thread.wait(30.0))  # Another loop finds the result.


async def test_it_needs_no_thread_of_the_default_executor() -> None:
    async with full_default_executor() as executor:
        thread = OwnThread(lambda: 42, name="fleetlm-test")
        thread.start()
        assert await thread.wait(30.0)
        assert thread.result() == 42
        assert executor._work_queue.empty()


async def test_a_thread_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_threads(monkeypatch)
    thread = OwnThread(lambda: 42, name="fleetlm-test")
    with pytest.raises(RuntimeError, match="can't start new thread"):
        thread.start()
    assert not await thread.wait(0.0)
