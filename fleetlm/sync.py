"""The node for threads: what `Node` offers to coroutines, as methods that block.

    node.sync.call(("model", "fleetlm@10.0.0.7"), prompt, timeout=2)     # from any other thread

    with fleetlm.node_in_thread() as node:                               # a program without a loop
        node.call(("model", "fleetlm@10.0.0.7"), prompt, timeout=2)

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
import builtins
import concurrent.futures
import contextlib
import contextvars
import functools
import math
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from fleetlm.actors.handlers import HasHandlers, name_of
from fleetlm.actors.ref import goal_of
from fleetlm.blocking import forks
from fleetlm.errors import CallTimeout, NodeStopped, WouldBlock
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.actor import Actor
    from fleetlm.actors.ref import Goal
    from fleetlm.ids import Pid
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.messaging.targets import Target
    from fleetlm.node import Node
    from fleetlm.processes.running import ProcessFunction

T = TypeVar("T")
A = TypeVar("A", bound="Actor")
A_co = TypeVar("A_co", bound=HasHandlers, covariant=True)
P = ParamSpec("P")
R = TypeVar("R")
_END: Any = object()

MARGIN_S = 1.0
"""Seconds that a thread waits beyond a deadline, so that the loop can raise the exact error itself. A loop
that needs longer is too busy to be waited for."""
LOOK_S = 0.5
"""Seconds between two checks of a waiting thread whether the loop still runs, since a loop that has ended
wakes no thread."""
END_S = 1.0
"""Seconds that the requests of threads have to end when the node stops; then they are cancelled."""


class SyncNode:
    """`Node.sync`: a node as any other thread of its program may use it.

    Each method returns and raises what the method of that name of `Node` does, and in addition:

    * `NodeStopped` when the node's event loop has ended, or ends while the thread waits;
    * `WouldBlock` when the loop is too busy to begin before the deadline (within
      `Settings.call_timeout_s` for requests without one): nothing was sent;
    * `RuntimeError` on the loop's own thread, which would wait for itself.

    So a thread waits without limit only where it asked to (for a window that stays full, or in `ready`),
    and the end of the node ends that wait too. KeyboardInterrupt ends a wait as a cancellation ends a
    coroutine's: the process that was called is told that its caller has given up.

    A request costs two switches between threads, under 0.1 ms, where a call to another node takes some
    0.2 ms without. For many requests at a time use `multicall`, many threads, or coroutines.

    Attributes:
        name: the node's name.
    """

    def __init__(self, node: Node, outbound: Outbound, requests: ThreadRequests) -> None:
        self.name: str = node.name
        self._node = node
        self._outbound = outbound
        self._requests = requests
        self._timeout_s = node.settings.call_timeout_s

    # Messages.

    def send(self, to: Target, message: Any, timeout: float | None = None) -> None:
        """See `Node.send`. A window that stays full for ``timeout`` seconds raises `WouldBlock`.

        A process of this node gets the object itself: do not change it afterwards.
        """
        if timeout is None:
            self._requests.run("send", to, functools.partial(self._node.send, to, message))
        else:
            send = functools.partial(self._outbound.send_within, to, message, timeout)
            self._requests.run("send", to, send, timeout)

    def send_nowait(self, to: Target, message: Any) -> None:
        """See `Node.send_nowait`."""
        self._run_now("send_nowait", to, functools.partial(self._node.send_nowait, to, message))

    def call(self, to: Target, message: Any, timeout: float | None = None) -> Any:
        """See `Node.call`."""
        within_s = self._timeout_s if timeout is None else timeout
        call = functools.partial(self._node.call, to, message, within_s)
        return self._requests.run("call", to, call, within_s)

    def stream(self, to: Target, message: Any, timeout: float | None = None) -> Iterator[Any]:
        """See `Node.stream`. Each item costs two switches between threads."""
        items = self._node.stream(to, message, timeout)
        requests = self._requests
        try:
            while (item := requests.run("stream", to, functools.partial(anext, items, _END))) is not _END:
                yield item
        finally:
            requests.run_soon(items.aclose)

    def ref(self, actor: type[A], target: Goal, at: str | None = None) -> SyncRef[A]:
        """See `Node.ref`; returns a reference for threads."""
        self._node.ref(actor, target, at)  # For its checks of the arguments.
        return SyncRef(self, actor, goal_of(target, at))

    def multicall(
        self, targets: Sequence[Target], message: Any, timeout: float | None = None
    ) -> Sequence[Any]:
        """See `Node.multicall`."""
        within_s = self._timeout_s if timeout is None else timeout
        multicall = functools.partial(self._node.multicall, targets, message, within_s)
        try:
            return self._requests.run("multicall", self.name, multicall, within_s)
        except WouldBlock as error:
            return [WouldBlock(to, error.why) for to in targets]
        except CallTimeout:
            return [CallTimeout(to, within_s) for to in targets]

    def broadcast(self, name: str, message: Any, nodes: Iterable[str] | None = None) -> int:
        """See `Node.broadcast`."""
        wanted = None if nodes is None else list(nodes)
        broadcast = functools.partial(self._node.broadcast, name, message, wanted)
        return self._requests.run("broadcast", name, broadcast)

    # Processes.

    def spawn(self, function: ProcessFunction, *args: Any, name: str | None = None) -> Pid:
        """See `Node.spawn`: the process runs on the node's loop, not in this thread."""
        return self._run_now(
            "spawn", self.name, functools.partial(self._node.spawn, function, *args, name=name)
        )

    def exit(self, pid: Pid, reason: Any = "shutdown") -> None:
        """See `Node.exit`."""
        self._run_now("exit", pid, functools.partial(self._node.exit, pid, reason))

    def whereis(self, name: str, at: str | None = None, timeout: float = 5.0) -> Pid | None:
        """See `Node.whereis`."""
        whereis = functools.partial(self._node.whereis, name, at, timeout)
        return self._requests.run("whereis", at or self.name, whereis, timeout)

    def register(self, name: str, pid: Pid, timeout: float = 5.0) -> None:
        """See `Node.register`."""
        register = functools.partial(self._node.register, name, pid, timeout)
        self._requests.run("register", pid.node, register, timeout)

    # The cluster.

    def ready(self, min_nodes: int = 1, timeout: float | None = None) -> None:
        """See `Node.ready`."""
        ready = functools.partial(self._node.ready, min_nodes, timeout)
        self._requests.run("ready", self.name, ready, timeout)

    def list(self, *selectors: str) -> builtins.list[str]:
        """See `Node.list`."""
        return self._run_now("list", self.name, functools.partial(self._node.list, *selectors))

    # Internals.

    def _run_now(self, verb: str, to: Target, function: Callable[[], T]) -> T:
        """Call a function that does not wait on the loop, and return what it returns."""

        async def run() -> T:
            return function()

        return self._requests.run(verb, to, run, self._timeout_s)


class SyncRef(Generic[A_co]):
    """A typed reference to an actor for threads: `ActorRef` with methods that block.

    Made by `SyncNode.ref`; immutable, for any number of threads.

    ::

        ref = node.sync.ref(Sessions, "sessions", at="fleetlm@10.0.0.7")
        count = ref.within(2).call(Sessions.append, "s1", "hello")
        for token in ref.stream(Model.complete, prompt): ...
    """

    __slots__ = ("_actor", "_goal", "_node", "_timeout_s")

    def __init__(self, node: SyncNode, actor: type[A_co], goal: Goal, timeout_s: float | None = None) -> None:
        self._node = node
        self._actor = actor
        self._goal = goal
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"<SyncRef {self._actor.__qualname__} {self._goal}>"

    def within(self, seconds: float) -> SyncRef[A_co]:
        """Return a reference to the same actor with a deadline, in seconds, for each `call` and `stream`."""
        return SyncRef(self._node, self._actor, self._goal, seconds)

    def call(
        self, method: Callable[Concatenate[A_co, P], Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a handler and return its result. Raises: as `ActorRef.call` and `SyncNode`."""
        result: R = self._node.call(self._target(), self._request(method, args, kwargs), self._timeout_s)
        return result

    def cast(
        self, method: Callable[Concatenate[A_co, P], Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Let a handler run, without waiting for it. Raises: as `ActorRef.cast` and `SyncNode`."""
        self._node.send(self._target(), self._request(method, args, kwargs))

    def stream(
        self, method: Callable[Concatenate[A_co, P], AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Iterator[R]:
        """Iterate over the items that a handler yields. Raises: as `ActorRef.stream` and `SyncNode`."""
        return self._node.stream(self._target(), self._request(method, args, kwargs), self._timeout_s)

    def _target(self) -> Target:
        return self._goal() if callable(self._goal) else self._goal

    def _request(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Invoke:
        return Invoke(name_of(self._actor, self._actor.__fleetlm_handlers__, method), args, kwargs)


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
        if self._stopped:
            raise NodeStopped(self._name, self._stopped)
        if not self._loop.is_running():
            raise self.ended()

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
