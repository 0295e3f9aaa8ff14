"""A node is used on its own loop: on the thread that runs it, while it runs."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from fleetlm.messaging.own_loop import check_loop, home_of


class Plain:
    """A loop that shows nothing of its thread, as uvloop's."""

    def __init__(self, *, runs: bool) -> None:
        self._runs = runs

    def is_running(self) -> bool:
        return self._runs


def in_thread(code: Any) -> BaseException | None:
    """Run code in another thread, and return what it raised."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            code()
        except BaseException as error:  # noqa: BLE001  # it is what is tested
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_the_home_of_a_loop_of_asyncio_is_the_thread_that_runs_it() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert home_of(loop)._thread_id == threading.get_ident()
        check_loop(loop, "it")
        error = in_thread(lambda: check_loop(loop, "it"))
        assert isinstance(error, RuntimeError)
        assert str(error).startswith("it was called from the thread")

    asyncio.run(main())


def test_a_loop_that_stands_still_has_no_home_and_nothing_is_refused() -> None:
    loop = asyncio.new_event_loop()
    assert home_of(loop)._thread_id is None
    check_loop(loop, "it")
    loop.close()


def test_another_loop_on_the_same_thread_is_told_apart() -> None:
    former = asyncio.new_event_loop()
    former.run_until_complete(asyncio.sleep(0))

    async def main() -> None:
        assert home_of(former)._thread_id != threading.get_ident()
        with pytest.raises(RuntimeError, match="it was called on another event loop"):
            check_loop(former, "it")

    asyncio.run(main())
    former.close()


def test_a_loop_that_does_not_show_its_thread_is_found_by_asyncio() -> None:
    loop: Any = Plain(runs=True)
    assert home_of(loop)._thread_id is None
    with pytest.raises(RuntimeError, match="which runs no event loop"):
        check_loop(loop, "it")
    standing: Any = Plain(runs=False)
    check_loop(standing, "it")
    asyncio._set_running_loop(loop)
    try:
        check_loop(loop, "it")
    finally:
        asyncio._set_running_loop(None)
