"""The requests of threads: how another thread than the loop's asks a node for something, and waits for it.

Theory of operation. A thread must not touch the node, whose parts live on the event loop. It hands a
`_Request` to the loop (`ThreadRequests.run`) and waits for the future in it. On the loop, one task for each
thread (`_ThreadTask`) awaits that thread's requests, one after another. It must always be the same task: the
order of messages is kept per sending task, so what a thread sends arrives in the order in which it sent it,
large messages included. Each request runs in the context variables of its thread.

The task lives as long as its thread: the thread's local storage holds a `_ThreadHandle`, and when that is
collected, the task is told to end.

No wait is endless unless the program asked for it. The outcomes, and where each is decided:

* The loop awaits the request to its end: its result or exception is the thread's (`_ThreadTask._perform`).
* The loop is too busy to begin in time: the thread cancels the future before it runs, and raises
  `WouldBlock`; nothing was sent (`ThreadRequests._wait`).
* The loop began and does not end in time, beyond the deadline that the request itself has: `CallTimeout`.
* The loop has ended, or ends: it wakes no thread, so a waiting thread checks every `LOOK_S` seconds, and
  raises `NodeStopped`.
* The thread is interrupted (KeyboardInterrupt): it abandons the request, which is cancelled on the loop if it
  runs. Only the request is cancelled; the thread's task goes on with the next one.
* The node stops: `close` ends every task; requests that come later fail at once.

A future is resolved by exactly one side: `Future.cancel` succeeds only before the loop has called
`set_running_or_notify_cancel`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import math
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from fleetlm.blocking import forks
from fleetlm.errors import CallTimeout, NodeStopped, WouldBlock
from fleetlm.seconds import check_timeout

if TYPE_CHECKING:
    from fleetlm.messaging.targets import Target

T = TypeVar("T")

MARGIN_S = 1.0
"""Seconds that a thread waits beyond a deadline, so that the loop can raise the exact error itself. A loop
that needs longer is too busy to be waited for."""
LOOK_S = 0.5
"""Seconds between two checks of a waiting thread whether the loop still runs, since a loop that has ended
wakes no thread."""
END_S = 1.0
"""Seconds that the requests of threads have to end when the node stops; then they are cancelled."""


class ThreadRequests:
    """Runs the requests of threads on the loop of one node.

    Args:
        name: of the node, for errors.
        begin_within_s: seconds in which the loop must begin a request that has no deadline.
        loop: the node's.
    """

    def __init__(self, name: str, begin_within_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._name = name
        self._begin_within_s = begin_within_s
        self._loop = loop
        self._stopped = ""
        """Why no request is taken any more; empty while requests are."""
        self._of_thread = threading.local()
        self._tasks: dict[asyncio.Task[None], _ThreadTask] = {}
        self._apart: set[asyncio.Task[None]] = set()
        """Tasks of `run_apart`, referenced until they end."""
        forks.guard(self)

    # In the thread.

    def run(
        self, verb: str, to: Target, function: Callable[[], Awaitable[T]], timeout_s: float | None = None
    ) -> T:
        """Await ``function()`` on the loop, and return or raise its outcome in this thread.

        Args:
            verb: name of the method of the node, for errors.
            to: target of the request, for errors.
            function: called on the loop.
            timeout_s: seconds that the request has; None: without limit.

        Raises:
            WouldBlock: the loop had not begun in time; the request never runs.
            CallTimeout: the loop had begun, and did not end the request in time.
            NodeStopped: the node or its loop has ended.
            RuntimeError: this is the loop's own thread.
        """
        self._check(verb)
        check_timeout(timeout_s)
        request = _Request(function)
        thread_task = self._thread_task()
        try:
            self._loop.call_soon_threadsafe(self._take, thread_task, request)
        except RuntimeError:  # The loop has been closed just now.
            raise self.ended() from None
        try:
            self._wait(request, to, timeout_s)
        except BaseException:  # KeyboardInterrupt above all
            if not request.future.cancel():
                with contextlib.suppress(RuntimeError):  # The loop has been closed.
                    self._loop.call_soon_threadsafe(thread_task.abandon, request)
            raise
        result: T = request.future.result()
        return result

    def run_now(self, verb: str, to: Target, function: Callable[[], T]) -> T:
        """Call a function that does not wait on the loop, and return what it returns. Raises: as `run`."""

        async def run() -> T:
            return function()

        return self.run(verb, to, run, self._begin_within_s)

    def run_apart(
        self, verb: str, to: Target, function: Callable[[], Awaitable[T]], timeout_s: float | None = None
    ) -> T:
        """As `run`, in a task of its own, which goes on while `close` ends those of all threads."""
        self._check(verb)
        check_timeout(timeout_s)
        request = _Request(function)
        try:
            self._loop.call_soon_threadsafe(self._begin_apart, request)
        except RuntimeError:  # The loop has been closed just now.
            raise self.ended() from None
        self._wait(request, to, timeout_s)
        result: T = request.future.result()
        return result

    @staticmethod
    async def within(timeout_s: float | None, function: Callable[[], Awaitable[T]]) -> T:
        """Await ``function()`` for at most ``timeout_s`` seconds. Raises: TimeoutError."""
        async with asyncio.timeout(timeout_s):
            return await function()

    def check_running(self) -> None:
        """Raise NodeStopped if the node has been stopped or its loop has ended."""
        if self._stopped or not self._loop.is_running():
            raise self.ended()

    def run_soon(self, function: Callable[[], Awaitable[object]]) -> None:
        """Await ``function()`` on the loop after this thread's other requests, without waiting for it."""
        with contextlib.suppress(RuntimeError):  # The loop has been closed.
            self._loop.call_soon_threadsafe(self._take, self._thread_task(), _Request(function))

    def ended(self) -> NodeStopped:
        """Return the error of a thread that finds the node or its loop ended."""
        return NodeStopped(self._name, self._stopped or "cannot be asked, since its event loop does not run")

    def _wait(self, request: _Request, to: Target, timeout_s: float | None) -> None:
        """Return when the request has an outcome. Raises: as `run`."""
        began_at = now = time.monotonic()
        begin_by = now + min(math.inf if timeout_s is None else timeout_s, self._begin_within_s) + MARGIN_S
        end_by = math.inf if timeout_s is None else now + timeout_s + MARGIN_S
        while True:
            with contextlib.suppress(TimeoutError):
                request.future.exception(max(0.0, min(LOOK_S, begin_by - now, end_by - now)))
                return
            now = time.monotonic()
            if not self._loop.is_running():
                raise self.ended()
            if now >= begin_by:
                if request.future.cancel():
                    raise WouldBlock(
                        to, f"the event loop of {self._name} was busy for {now - began_at:.1f} s"
                    )
                begin_by = math.inf
            if now >= end_by:
                raise CallTimeout(to, timeout_s or 0.0)

    def _check(self, verb: str) -> None:
        """Raise unless this thread may wait for the loop. Raises: RuntimeError, NodeStopped."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            raise RuntimeError(
                f"node.sync.{verb}() is for other threads. On this one the node's event loop runs, and it "
                f"would wait for itself: use node.{verb}(...), with await where that is a coroutine"
            )
        self.check_running()

    def _thread_task(self) -> _ThreadTask:
        """Return the task of this thread, made at its first request."""
        handle: _ThreadHandle | None = getattr(self._of_thread, "handle", None)
        if handle is None:
            handle = self._of_thread.handle = _ThreadHandle(self._loop)
        return handle.thread_task

    # On the loop.

    def _take(self, thread_task: _ThreadTask, request: _Request) -> None:
        """Queue a request for its thread's task, and start that task if it does not run."""
        if self._stopped:
            request.fail(NodeStopped(self._name, self._stopped))
            return
        if thread_task.task is None or thread_task.task.done():
            thread_task.task = self._loop.create_task(
                thread_task.serve(self._name),
                name=f"{self._name} for a thread",
                context=contextvars.Context(),  # Not the context of its first request.
            )
            self._tasks[thread_task.task] = thread_task
            thread_task.task.add_done_callback(self._tasks.pop)
        thread_task.inbox.put_nowait(request)

    def _begin_apart(self, request: _Request) -> None:
        """Await a request in a task of its own."""

        async def perform() -> None:
            try:
                request.future.set_result(await request.function())
            except asyncio.CancelledError:
                request.fail(NodeStopped(self._name, "has been stopped, or its event loop has ended"))
                raise
            except Exception as error:  # noqa: BLE001  # it is raised in the thread
                request.fail(error)

        if request.future.set_running_or_notify_cancel():
            task = self._loop.create_task(perform(), name=f"{self._name} for a thread, apart")
            self._apart.add(task)
            task.add_done_callback(self._apart.discard)

    async def close(self) -> None:
        """Give every waiting thread its outcome within `END_S` seconds, and take no further requests."""
        self._stopped = self._stopped or "has been stopped"
        for thread_task in self._tasks.values():
            thread_task.end()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=END_S)
        for task in self._tasks:
            task.cancel()

    def after_fork(self) -> None:
        """Implement `forks.Guarded`: in a child process, no thread runs the loop."""
        self._stopped = forks.FORKED


class _Request:
    """A function that a thread wants awaited, and the context variables of the thread."""

    def __init__(self, function: Callable[[], Awaitable[Any]]) -> None:
        self.function = function
        self.context = contextvars.copy_context()
        self.future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.abandoned = False
        """Whether its thread does not wait any more."""

    def fail(self, error: BaseException) -> None:
        """Give the thread an error, unless it does not wait any more."""
        if self.future.running() or self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class _ThreadHandle:
    """Stands in the local storage of a thread, so that the thread's task ends when the thread does."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.thread_task = _ThreadTask()
        weakref.finalize(self, _thread_ended, loop, self.thread_task).atexit = False


def _thread_ended(loop: asyncio.AbstractEventLoop, thread_task: _ThreadTask) -> None:
    with contextlib.suppress(RuntimeError):  # The loop has been closed.
        loop.call_soon_threadsafe(thread_task.end)


class _ThreadTask:
    """Awaits the requests of one thread on the loop, all in one task, which keeps their order."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[_Request | None] = asyncio.Queue()
        """Requests that wait; None: end after those before it."""
        self.task: asyncio.Task[None] | None = None
        self._current: _Request | None = None

    async def serve(self, node: str) -> None:
        """Perform requests as they come, until `end`."""
        while (request := await self.inbox.get()) is not None:
            if request.future.set_running_or_notify_cancel():
                await self._perform(request, node)
            del request  # Its result must not live until the next request.

    def end(self) -> None:
        """End after the requests that are queued."""
        self.inbox.put_nowait(None)

    def abandon(self, request: _Request) -> None:
        """Cancel a request whose thread does not wait any more."""
        request.abandoned = True
        if self._current is request and self.task is not None:
            self.task.cancel()

    async def _perform(self, request: _Request, node: str) -> None:
        """Await one request in the context variables of its thread, and resolve its future."""
        self._current = request
        tokens = [(variable, variable.set(value)) for variable, value in request.context.items()]
        try:
            request.future.set_result(await request.function())
        except asyncio.CancelledError:
            request.fail(NodeStopped(node, "has been stopped, or its event loop has ended"))
            if not request.abandoned:
                raise
        except Exception as error:  # noqa: BLE001  # it is raised in the thread
            request.fail(error)
        except BaseException as error:
            request.fail(error)
            raise
        finally:
            self._current = None
            for variable, token in reversed(tokens):
                variable.reset(token)
            if request.abandoned and self.task is not None:
                self.task.uncancel()  # Only the request was cancelled; the next one must not be.
