"""Sessions are flushed once at the end of a turn, and until then the thread of the loop is known."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from fleetlm.messaging.flusher import Flusher
from fleetlm.messaging.own_loop import hidden_home_of, home_of


class Hidden:
    """A loop that shows nothing of its thread, as uvloop's; the test lets it go round."""

    def __init__(self) -> None:
        self.ready: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.ready.append(callback)

    def go_round(self) -> None:
        ready, self.ready = self.ready, []
        for callback in ready:
            callback()


class Flushed:
    """Stands for a session."""

    def __init__(self) -> None:
        self.flushes = 0

    def flush(self) -> None:
        self.flushes += 1


def in_loop(loop: Any, code: Callable[[], None]) -> None:
    asyncio._set_running_loop(loop)
    try:
        code()
    finally:
        asyncio._set_running_loop(None)


def test_each_session_is_flushed_at_the_end_of_the_turn() -> None:
    loop: Any = Hidden()
    flusher = Flusher(loop)
    first: Any = Flushed()
    second: Any = Flushed()
    flusher.flush_soon(first)
    flusher.flush_soon(second)
    assert len(loop.ready) == 1
    loop.go_round()
    assert (first.flushes, second.flushes, loop.ready) == (1, 1, [])


def test_the_thread_of_a_loop_that_does_not_show_it_is_known_until_the_end_of_the_turn() -> None:
    loop: Any = Hidden()
    session: Any = Flushed()
    home, flusher = home_of(loop), Flusher(loop)
    assert home is home_of(loop)
    in_loop(loop, lambda: flusher.flush_soon(session))
    assert home._thread_id == threading.get_ident()
    in_loop(loop, loop.go_round)
    assert home._thread_id is None


def test_it_is_not_known_before_the_loop_runs() -> None:
    loop: Any = Hidden()
    session: Any = Flushed()
    home, flusher = home_of(loop), Flusher(loop)
    flusher.flush_soon(session)  # A program prepares something, and may run the loop on another thread.
    assert home._thread_id is None


def test_a_loop_that_shows_its_thread_is_left_alone() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        flusher = Flusher(loop)
        session: Any = Flushed()
        flusher.flush_soon(session)
        await asyncio.sleep(0)
        assert session.flushes == 1
        assert hidden_home_of(loop) is None
        assert home_of(loop)._thread_id == threading.get_ident()

    asyncio.run(main())
