"""The watch of an event loop names what blocks it: on a real loop, with a real thread."""

from __future__ import annotations

import asyncio
import json
import logging
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
