"""The thread of a `SQLiteStore`: takes operations from event loops, and does them in batches.

Theory of operation. One thread owns the file, and nothing else touches it. Operations wait in one queue, in
the order in which they were asked for. The thread takes what waits, up to a batch, does it in one transaction
and tells the loops. What comes meanwhile waits for the next batch: the slower the disk, the larger the
batches, and a thousand entities that write at the same time wait for a few commits, not for a thousand. The
thread begins when the turn of the loop is over in which the first one came, so that it takes all that was
asked for in that turn. Both threads share Python's lock, and would else hinder each other at each step.

The order is what makes a load safe after a write that was given up: the write comes first, or never.

* An operation whose caller has gone before its batch began is left out.
* A batch that fails closes the file; the next one opens it anew. So after an error of the disk nothing is
  trusted that was in memory.
* At the end (`close`) everything that waits is done first; from then on everything is refused.
* The worker does not refer to the store, so a store that a program forgets is closed when it is collected, or
  when Python ends.

A forked child has no such thread, so everything is refused there, without touching the lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from typing import Any

from fleetlm.errors import StoreFailed
from fleetlm.stores.interface import Stored
from fleetlm.stores.sqlite_file import Operation, Outcome, SQLiteFile
from fleetlm.texts import text_of

log: logging.Logger = logging.getLogger("fleetlm")

BATCH_OPERATIONS = 512
"""Operations in one transaction: enough to share a wait for the disk, and done within some milliseconds."""
BATCH_BYTES = 8 * 1024 * 1024
"""Bytes of states in one transaction, unless a single one is larger."""
_TURN_S = 0.02
"""Seconds that the thread waits for the end of a turn of a loop, which may block, or stop."""
_END_S = 10.0
"""Seconds that the end of Python waits for what is still to be written."""


class _Asked:
    """An operation that waits, and who waits for it."""

    __slots__ = ("future", "is_given_up", "loop", "operation")

    def __init__(self, operation: Operation, loop: asyncio.AbstractEventLoop) -> None:
        self.operation = operation
        self.loop = loop
        self.future: asyncio.Future[Stored] = loop.create_future()
        self.is_given_up = False


class SQLiteWorker:
    """Runs the thread.

    Args:
        path: of the file.
        synchronous: as in `SQLiteFile`.
        busy_s: as in `SQLiteFile`.
        most_waiting: operations that may wait.
        waiting_bytes: bytes of states that may wait.
    """

    def __init__(
        self, path: str, synchronous: str, busy_s: float, most_waiting: int, waiting_bytes: int
    ) -> None:
        self._path = path
        self._synchronous = synchronous
        self._busy_s = busy_s
        self._most_waiting = most_waiting
        self._waiting_bytes = waiting_bytes
        self._changed = threading.Condition()
        """Guards everything below."""
        self._queue: deque[_Asked] = deque()
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._closers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._is_closed = False
        self._is_woken = False
        """Whether a loop is about to wake the thread."""
        self._pid = os.getpid()

    async def ask(self, operation: Operation | None) -> Stored:
        """Have an operation done; None: have the file opened. Raises: as `Store.save`."""
        self._check_process()
        asked = _Asked(operation or _NOTHING, asyncio.get_running_loop())
        size = len(asked.operation.state or b"")
        with self._changed:
            if self._is_closed:
                raise StoreFailed(self._path, "it has been closed")
            waiting = len(self._queue)
            if waiting >= self._most_waiting or (waiting and self._bytes + size > self._waiting_bytes):
                why = f"{waiting:,} operations with {self._bytes:,} bytes wait for it already, as many as may"
                raise StoreFailed(self._path, why)
            self._queue.append(asked)
            self._bytes += size
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fleetlm store", daemon=True)
                self._thread.start()
            wakes, self._is_woken = not self._is_woken, True
            if wakes:
                self._changed.notify()
        if wakes:
            asked.loop.call_soon(self._wake)
        try:
            return await asked.future
        except asyncio.CancelledError:
            asked.is_given_up = True
            raise

    async def close(self) -> None:
        """Do what waits, close the file, and end the thread."""
        self._check_process()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        with self._changed:
            self._is_closed = True
            thread = self._thread
            if thread is None:
                return
            self._closers.append((loop, ended))
            self._changed.notify()
        await ended
        thread.join()  # It has nothing left to do.

    def close_now(self) -> None:
        """Do the same from any thread, and wait for it: the store was collected, or Python ends."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._is_closed = True
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_END_S)

    def _wake(self) -> None:
        with self._changed:
            self._is_woken = False
            self._changed.notify()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            why = "it belongs to the process from which this one was forked; open a store of its own here"
            raise StoreFailed(self._path, why)

    # In the thread.

    def _run(self) -> None:
        file: SQLiteFile | None = None
        while batch := self._take_batch():
            outcomes: list[Outcome] = []
            try:
                if file is None:
                    file = SQLiteFile(self._path, self._synchronous, self._busy_s)
                wanted = [each for each in batch if not each.is_given_up]
                operations = [each.operation for each in wanted if each.operation is not _NOTHING]
                outcomes = file.run(operations) if operations else []
            except Exception as error:  # whatever it is, those who wait must hear of it
                if not isinstance(error, StoreFailed):
                    log.exception("the store %s met an error that it does not know", self._path)
                why = (
                    error.why
                    if isinstance(error, StoreFailed)
                    else f"{type(error).__name__}: {text_of(error)}"
                )
                wanted = batch
                outcomes = [StoreFailed(self._path, why) for _ in batch]
                if file is not None:
                    file.close()
                    file = None
                _tell(wanted, outcomes)
                continue
            done = iter(outcomes)
            _tell(wanted, [_OPENED if each.operation is _NOTHING else next(done) for each in wanted])
        if file is not None:
            file.close()
        with self._changed:
            closers, self._closers = self._closers, []
            self._thread = None
        for loop, ended in closers:
            _call(loop, _end, ended)

    def _take_batch(self) -> list[_Asked]:
        """Wait for operations. Returns some that are done together; none: the store is closed."""
        batch: list[_Asked] = []
        size = 0
        with self._changed:
            while not ((self._queue and not self._is_woken) or self._is_closed):
                if not self._changed.wait(_TURN_S if self._queue else None):
                    self._is_woken = False  # The loop has stopped, or its turn is a long one.
            while self._queue and len(batch) < BATCH_OPERATIONS and size < BATCH_BYTES:
                each = self._queue.popleft()
                batch.append(each)
                size += len(each.operation.state or b"")
            self._bytes -= size
        return batch


def _tell(batch: list[_Asked], outcomes: list[Outcome]) -> None:
    """Give each operation its outcome, with one call to each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Asked, Outcome]]] = {}
    for asked, outcome in zip(batch, outcomes, strict=True):
        by_loop.setdefault(asked.loop, []).append((asked, outcome))
    for loop, pairs in by_loop.items():
        _call(loop, _settle, pairs)


def _call(loop: asyncio.AbstractEventLoop, function: Any, argument: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, argument)
    except RuntimeError:
        return  # The loop has been closed, and with it whoever waited.


def _settle(pairs: list[tuple[_Asked, Outcome]]) -> None:
    for asked, outcome in pairs:
        if asked.future.done():
            continue
        if isinstance(outcome, Stored):
            asked.future.set_result(outcome)
        else:
            asked.future.set_exception(outcome)


def _end(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


_OPENED = Stored(0, None, 0)
_NOTHING = Operation("load", "", "", "", None)  # type: ignore[arg-type]  # only the file is to be opened
