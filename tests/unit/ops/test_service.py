"""The end of the ops listener as a service, with a listener that takes its time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from fleetlm.ops import service
from fleetlm.ops.service import OpsService


class Slow:
    """Stands for a listener whose thread ends when the test says so."""

    def __init__(self) -> None:
        self.ended: Future[None] = Future()
        self.thread = threading.Thread(target=lambda: None)
        self.thread.start()
        self.is_told = False

    def stop(self) -> None:
        self.is_told = True


def stopping(listener: Slow) -> OpsService:
    node: Any = SimpleNamespace(name="fleetlm@10.0.0.1")
    made = OpsService(node)
    made._listener = listener  # type: ignore[assignment]
    return made


async def test_a_thread_that_ends_late_ends_without_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "STOP_S", 0.0)
    slow = Slow()
    await stopping(slow).stop()
    assert slow.is_told
    assert "has not ended" in caplog.text
    slow.ended.set_result(None)
    slow.thread.join()


async def test_a_stop_that_is_cancelled_leaves_the_thread_alone() -> None:
    slow = Slow()
    stop = asyncio.ensure_future(stopping(slow).stop())
    while not slow.is_told:
        await asyncio.sleep(0)
    stop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stop
    slow.ended.set_result(None)
    slow.thread.join()


async def test_a_stop_waits_for_the_thread() -> None:
    slow = Slow()
    stop = asyncio.ensure_future(stopping(slow).stop())
    while not slow.is_told:
        await asyncio.sleep(0)
    slow.ended.set_result(None)
    await stop
    assert not slow.thread.is_alive()
