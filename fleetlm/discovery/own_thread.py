"""A blocking call in a daemon thread of its own, for coroutines that wait for it with a limit.

The threads of the loop's default executor belong to the program, which may need all of them for calls that
never end, such as the polling of a queue. A call that is queued behind those would never begin. An executor's
threads are also joined when the program ends, so one stuck call would keep the program alive. Discovery
therefore starts a daemon thread for each blocking call, which may outlive the wait and even the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class OwnThread(Generic[T]):
    """One call in a thread of its own. The owner bounds how many there are at a time.

    Args:
        call: the blocking function.
        name: the name of the thread.
    """

    def __init__(self, call: Callable[[], T], *, name: str) -> None:
        self._future: Future[T] = Future()
        self._lock = threading.Lock()
        self._waiting: set[Callable[[], None]] = set()
        self._thread = threading.Thread(target=self._run, args=(call,), name=name, daemon=True)

    def start(self) -> None:
        """Begin the call. Raises: RuntimeError if no further thread can be started; then it never begins."""
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether the call has returned or raised."""
        return self._future.done()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the call, which goes on if this wait ends before.

        Args:
            timeout_s: seconds to wait at most. None: no limit.

        Returns:
            Whether the call is done.
        """
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # The loop has been closed meanwhile.
                loop.call_soon_threadsafe(ended.set)

        with self._lock:
            if self.is_done:
                return True
            self._waiting.add(tell)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await ended.wait()
        finally:
            with self._lock:
                self._waiting.discard(tell)
        return self.is_done

    def result(self) -> T:
        """Return what a call that is done has returned, or raise what it has raised."""
        return self._future.result(timeout=0)

    def _run(self, call: Callable[[], T]) -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001  # as with any executor: `result` raises it
            self._future.set_exception(error)
        else:
            self._future.set_result(result)
        with self._lock:
            waiting = list(self._waiting)
        for tell in waiting:
            tell()
