"""Machines that have no thread left, and programs that have taken all those of the default executor."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest


def refuse_threads(patch: pytest.MonkeyPatch) -> None:
    """Let no thread be started until ``patch`` is undone."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    patch.setattr(threading.Thread, "start", refuse)


@contextlib.asynccontextmanager
async def full_default_executor() -> AsyncIterator[ThreadPoolExecutor]:
    """Give the running loop a default executor whose only thread is taken until the block ends."""
    release = threading.Event()
    executor = ThreadPoolExecutor(max_workers=1)
    asyncio.get_running_loop().set_default_executor(executor)
    endless = asyncio.ensure_future(asyncio.to_thread(release.wait))
    try:
        yield executor
    finally:
        release.set()
        await endless
