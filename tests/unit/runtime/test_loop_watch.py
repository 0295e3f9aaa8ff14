"""The watch of an event loop names what blocks it: on a real loop, with a real thread."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

import pytest

from fleetlm.runtime.loop_watch import MAX_LINES, LoopWatch, describe

LIMIT_S = 0.02


class Log(logging.Handler):
    """Collects lines; a blocking function waits for one, so that no test depends on the machine's speed."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def block(self, lines: int) -> None:
        """Block until there are so many lines."""
        until = time.monotonic() + 20
        while len(self.lines) < lines and time.monotonic() < until:
            pass  # The thread of the watch gets the interpreter now and then.


@pytest.fixture
def lines() -> Any:
    handler = Log()
    logger = logging.getLogger("fleetlm")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def watched(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        watch = LoopWatch.of(asyncio.get_running_loop(), LIMIT_S)
        watch.start()
        try:
            await asyncio.create_task(main(), name="gpu")
        finally:
            watch.stop()

    asyncio.run(run())


def test_a_blocked_loop_is_logged_while_it_is_blocked_with_its_task_and_function(lines: Log) -> None:
    async def infer() -> None:
        lines.block(1)

    watched(infer)
    assert "'gpu' is in " in lines.lines[0]
    assert "Log.block (test_loop_watch.py:" in lines.lines[0]
    assert "run_blocking" in lines.lines[0]


def test_one_blockage_is_one_line_and_one_place_a_few(lines: Log) -> None:
    async def infer() -> None:
        for number in range(MAX_LINES):
            lines.block(number + 1)
            await asyncio.sleep(LIMIT_S * 3)

    watched(infer)
    about = [line for line in lines.lines if "Log.block" in line]
    assert 1 <= len(about) <= 2 * MAX_LINES  # Two lines of the function may be seen.


def test_a_loop_that_waits_is_not_blocked(lines: Log) -> None:
    async def wait() -> None:
        await asyncio.sleep(LIMIT_S * 5)

    watched(wait)
    assert not any("'gpu'" in line for line in lines.lines)


def test_nodes_on_one_loop_share_one_thread() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        first, second = (LoopWatch.of(loop, 1.0) for _ in range(2))
        assert first is second
        first.start()
        second.start()
        first.stop()
        assert first._stop is not None
        assert not first._stop.is_set()
        second.stop()
        assert first._stop.is_set()

    asyncio.run(main())


def test_the_function_of_the_program_is_named_not_what_it_calls() -> None:
    found: list[str] = []

    def default(value: object) -> str:
        frame: FrameType | None = sys._getframe(1)
        assert frame is not None
        found.append(describe(frame))
        return "x"

    json.JSONEncoder(default=default, indent=1).encode([object()])
    [shown] = found
    assert "(test_loop_watch.py:" in shown
    assert ", which calls " in shown


class Clock:
    """A loop and a stop event whose time passes while the thread of a watch waits."""

    def __init__(self, watch: LoopWatch, blocked_at: float) -> None:
        self.now = 1_000.0
        self.pauses: list[float] = []
        self.due = 0.0
        self._watch = watch
        self._blocked_at = blocked_at

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, *_: object) -> None:
        self.due = when

    def is_closed(self) -> bool:
        return self.now > self._blocked_at + 5

    def is_running(self) -> bool:
        return True

    def wait(self, pause_s: float) -> bool:
        """Wait as an event that nobody sets; the loop beats on time until it is blocked."""
        self.pauses.append(pause_s)
        self.now += pause_s
        while self.due <= min(self.now, self._blocked_at):
            self._watch._beat_at = self.due
            self.due += 0.5
        return False


def test_the_thread_wakes_up_once_in_the_limit_and_a_blockage_is_told_when_it_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = LoopWatch(1.0)
    clock: Any = Clock(watch, blocked_at=1_060.1)
    told: list[tuple[float, bool]] = []
    monkeypatch.setattr("fleetlm.runtime.loop_watch.time.monotonic", clock.time)
    monkeypatch.setattr(
        watch, "_tell", lambda still_s, _frame, _loop, is_late: told.append((still_s, is_late))
    )
    watch._beat(clock)
    watch._run(clock, clock, 0)
    assert told == [(pytest.approx(1.25), False)], "the last beat was at second 60"
    assert len(clock.pauses) < 85
    assert min(clock.pauses) > 0.2


def test_the_loop_beats_at_moments_that_its_node_shares() -> None:
    watch = LoopWatch(1.0)
    clock: Any = Clock(watch, blocked_at=math.inf)
    for now, due in [(7.0, 7.5), (6.99, 7.5), (7.2, 7.5), (7.44, 7.5), (7.46, 8.0)]:
        clock.now = now
        watch._beat(clock)
        assert clock.due == due
