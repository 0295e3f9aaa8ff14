"""The node for threads: what `Node` offers to coroutines, as methods that block.

    node.sync.call(("model", "fleetlm@10.0.0.7"), prompt, timeout=2)     # from any other thread

    with fleetlm.node_in_thread() as node:                               # a program without a loop
        node.call(("model", "fleetlm@10.0.0.7"), prompt, timeout=2)

For each thread that asks, one task on the node's loop acts in its place, one request after another.
So what a thread sends arrives in the order in which it sent it, large messages included.
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

from fleetlm.actor import Actor
from fleetlm.actors.handlers import name_of
from fleetlm.actors.ref import goal_of
from fleetlm.blocking import forks
from fleetlm.errors import CallTimeout, NodeStopped, WouldBlock
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.actors.ref import Goal
    from fleetlm.ids import Pid
    from fleetlm.messaging.outbound import Messenger
    from fleetlm.messaging.targets import Target
    from fleetlm.node import Node
    from fleetlm.processes.running import ProcessFunction

T = TypeVar("T")
A = TypeVar("A", bound=Actor)
A_co = TypeVar("A_co", bound=Actor, covariant=True)
P = ParamSpec("P")
R = TypeVar("R")
_END: Any = object()

MARGIN_S = 1.0
"""Beyond a deadline, for the loop to tell the outcome itself; then it is too busy to be waited for."""
LOOK_S = 0.5
"""Between two looks whether the loop still runs: one that was just dropped wakes nobody."""
END_S = 1.0
"""For the requests of threads to hear that the node has stopped."""


class SyncNode:
    """`Node.sync`: a node as any other thread of its program may use it.

    Each method returns and raises what the method of that name of `Node` does, and besides:

    * `NodeStopped` when the node's event loop has ended, or ends while the thread waits;
    * `WouldBlock` when the loop is too busy to begin before the deadline (within
      `Settings.call_timeout_s` for what has none): nothing was sent;
    * `RuntimeError` on the loop's own thread, which would wait for itself.

    So a thread waits without end only where it asked to (for a window that stays full, or in `ready`),
    and hears of the node's end there too. KeyboardInterrupt ends a wait as a cancellation ends a
    coroutine's: the callee is told that nobody waits.

    It costs two switches between threads, under 0.1 ms, where a call to another node takes some 0.2 ms
    without. For many requests at a time use `multicall`, many threads, or coroutines.
    """

    def __init__(self, node: Node, messenger: Messenger, loop: asyncio.AbstractEventLoop) -> None:
        self.name = node.name
        """The node's name."""
        self._node = node
        self._messenger = messenger
        self._loop = loop
        self._timeout_s = node.settings.call_timeout_s
        self._stopped = ""
        self._mine = threading.local()
        self._deputies: dict[asyncio.Task[None], _Deputy] = {}
        forks.guard(self)

    # Messages.

    def send(self, to: Target, message: Any, timeout: float | None = None) -> None:
        """See `Node.send`. Here a window that stays full for ``timeout`` seconds raises `WouldBlock`.

        A process of this node gets the very object: do not change it afterwards.
        """
        if timeout is None:
            self._run("send", to, functools.partial(self._node.send, to, message))
        else:
            act = functools.partial(self._messenger.send_within, to, message, timeout)
            self._run("send", to, act, timeout)

    def send_nowait(self, to: Target, message: Any) -> None:
        """See `Node.send_nowait`."""
        self._run_now("send_nowait", to, functools.partial(self._node.send_nowait, to, message))

    def call(self, to: Target, message: Any, timeout: float | None = None) -> Any:
        """See `Node.call`."""
        within_s = self._timeout_s if timeout is None else timeout
        return self._run("call", to, functools.partial(self._node.call, to, message, within_s), within_s)

    def stream(self, to: Target, message: Any, timeout: float | None = None) -> Iterator[Any]:
        """See `Node.stream`. Each item costs two switches between threads."""
        items = self._node.stream(to, message, timeout)
        try:
            while (item := self._run("stream", to, functools.partial(anext, items, _END))) is not _END:
                yield item
        finally:
            with contextlib.suppress(RuntimeError):  # The loop has been closed.
                self._loop.call_soon_threadsafe(self._take, self._deputy(), _Work(items.aclose))

    def ref(self, actor: type[A], target: Goal, at: str | None = None) -> SyncRef[A]:
        """See `Node.ref`; a reference for threads."""
        self._node.ref(actor, target, at)  # It refuses what cannot be one.
        return SyncRef(self, actor, goal_of(target, at))

    def multicall(
        self, targets: Sequence[Target], message: Any, timeout: float | None = None
    ) -> Sequence[Any]:
        """See `Node.multicall`."""
        within_s = self._timeout_s if timeout is None else timeout
        act = functools.partial(self._node.multicall, targets, message, within_s)
        try:
            return self._run("multicall", self.name, act, within_s)
        except WouldBlock as error:
            return [WouldBlock(to, error.why) for to in targets]
        except CallTimeout:
            return [CallTimeout(to, within_s) for to in targets]

    def broadcast(self, name: str, message: Any, nodes: Iterable[str] | None = None) -> int:
        """See `Node.broadcast`."""
        wanted = None if nodes is None else list(nodes)
        return self._run("broadcast", name, functools.partial(self._node.broadcast, name, message, wanted))

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
        act = functools.partial(self._node.whereis, name, at, timeout)
        return self._run("whereis", at or self.name, act, timeout)

    def register(self, name: str, pid: Pid, timeout: float = 5.0) -> None:
        """See `Node.register`."""
        self._run("register", pid.node, functools.partial(self._node.register, name, pid, timeout), timeout)

    # The cluster.

    def ready(self, min_nodes: int = 1, timeout: float | None = None) -> None:
        """See `Node.ready`."""
        self._run("ready", self.name, functools.partial(self._node.ready, min_nodes, timeout), timeout)

    def list(self, *selectors: str) -> builtins.list[str]:
        """See `Node.list`."""
        return self._run_now("list", self.name, functools.partial(self._node.list, *selectors))

    # In the thread.

    def _run_now(self, verb: str, to: Target, act: Callable[[], T]) -> T:
        async def acting() -> T:
            return act()

        return self._run(verb, to, acting, self._timeout_s)

    def _run(
        self, verb: str, to: Target, act: Callable[[], Awaitable[T]], timeout_s: float | None = None
    ) -> T:
        """Let this thread's deputy await ``act()``, and wait for its outcome.

        Raises:
            WouldBlock: it had not begun in time, and never will.
            CallTimeout: it had begun, and the loop did not end it in time.
        """
        self._check(verb)
        work = _Work(act)
        deputy = self._deputy()
        try:
            self._loop.call_soon_threadsafe(self._take, deputy, work)
        except RuntimeError:  # The loop has been closed just now.
            raise self._ended() from None
        try:
            self._wait(work, to, timeout_s)
        except BaseException:  # KeyboardInterrupt above all
            if not work.future.cancel():
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(deputy.abandon, work)
            raise
        result: T = work.future.result()
        return result

    def _wait(self, work: _Work, to: Target, timeout_s: float | None) -> None:
        """Return when the work has ended, however."""
        began_at = now = time.monotonic()
        begin_by = now + min(math.inf if timeout_s is None else timeout_s, self._timeout_s) + MARGIN_S
        end_by = math.inf if timeout_s is None else now + timeout_s + MARGIN_S
        while True:
            with contextlib.suppress(TimeoutError):
                work.future.exception(max(0.0, min(LOOK_S, begin_by - now, end_by - now)))
                return
            now = time.monotonic()
            if not self._loop.is_running():
                raise self._ended()
            if now >= begin_by:
                if work.future.cancel():
                    raise WouldBlock(to, f"the event loop of {self.name} was busy for {now - began_at:.1f} s")
                begin_by = math.inf
            if now >= end_by:
                raise CallTimeout(to, timeout_s or 0.0)

    def _check(self, verb: str) -> None:
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
            raise NodeStopped(self.name, self._stopped)
        if not self._loop.is_running():
            raise self._ended()

    def _ended(self) -> NodeStopped:
        return NodeStopped(self.name, self._stopped or "cannot be asked, since its event loop does not run")

    def _deputy(self) -> _Deputy:
        seat: _Seat | None = getattr(self._mine, "seat", None)
        if seat is None:
            seat = self._mine.seat = _Seat(self._loop)
        return seat.deputy

    # On the loop.

    def _take(self, deputy: _Deputy, work: _Work) -> None:
        if self._stopped:
            work.fail(NodeStopped(self.name, self._stopped))
            return
        if deputy.task is None or deputy.task.done():
            deputy.task = self._loop.create_task(
                deputy.serve(self.name),
                name=f"{self.name} for a thread",
                context=contextvars.Context(),  # Nothing of what its first request was part of.
            )
            self._deputies[deputy.task] = deputy
            deputy.task.add_done_callback(self._deputies.pop)
        deputy.inbox.put_nowait(work)

    async def close(self) -> None:
        """Let every thread that waits have its outcome within `END_S`, and take no more."""
        self._stopped = self._stopped or "has been stopped"
        for deputy in self._deputies.values():
            deputy.end()
        if self._deputies:
            await asyncio.wait(self._deputies, timeout=END_S)
        for task in self._deputies:
            task.cancel()

    def after_fork(self) -> None:
        """`forks.Guarded`: in a child no thread runs the loop."""
        self._stopped = forks.FORKED


class SyncRef(Generic[A_co]):
    """Made by `SyncNode.ref`; immutable, for any number of threads.

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
        """The same actor, with a deadline for each `call` and `stream` that is made through it."""
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
        """Let a handler run. Raises: as `ActorRef.cast` and `SyncNode`."""
        self._node.send(self._target(), self._request(method, args, kwargs))

    def stream(
        self, method: Callable[Concatenate[A_co, P], AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Iterator[R]:
        """The items that a handler yields. Raises: as `ActorRef.stream` and `SyncNode`."""
        return self._node.stream(self._target(), self._request(method, args, kwargs), self._timeout_s)

    def _target(self) -> Target:
        return self._goal() if callable(self._goal) else self._goal

    def _request(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Invoke:
        return Invoke(name_of(self._actor, self._actor.__fleetlm_handlers__, method), args, kwargs)


class _Work:
    """What a thread wants done, in the context variables of the thread."""

    def __init__(self, act: Callable[[], Awaitable[Any]]) -> None:
        self.act = act
        self.context = contextvars.copy_context()
        self.future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.abandoned = False
        """Its thread has gone on."""

    def fail(self, error: BaseException) -> None:
        """Tell the thread, unless it has gone on."""
        if self.future.running() or self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class _Seat:
    """What a thread holds: when the thread ends, so does its deputy."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.deputy = _Deputy()
        weakref.finalize(self, _thread_ended, loop, self.deputy).atexit = False


def _thread_ended(loop: asyncio.AbstractEventLoop, deputy: _Deputy) -> None:
    with contextlib.suppress(RuntimeError):  # The loop has been closed.
        loop.call_soon_threadsafe(deputy.end)


class _Deputy:
    """Acts on the loop in the place of one thread, always as the same task: messages of a task keep order."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[_Work | None] = asyncio.Queue()
        """One request at a time: its thread waits meanwhile."""
        self.task: asyncio.Task[None] | None = None
        self._current: _Work | None = None

    async def serve(self, node: str) -> None:
        """Do what comes, until `end`."""
        while (work := await self.inbox.get()) is not None:
            if work.future.set_running_or_notify_cancel():
                await self._do(work, node)
            del work  # What it returned must not live until the next one.

    def end(self) -> None:
        """Finish what came before."""
        self.inbox.put_nowait(None)

    def abandon(self, work: _Work) -> None:
        """Cancel a request that nobody waits for any more."""
        work.abandoned = True
        if self._current is work and self.task is not None:
            self.task.cancel()

    async def _do(self, work: _Work, node: str) -> None:
        self._current = work
        tokens = [(variable, variable.set(value)) for variable, value in work.context.items()]
        try:
            work.future.set_result(await work.act())
        except asyncio.CancelledError:
            work.fail(NodeStopped(node, "has been stopped, or its event loop has ended"))
            if not work.abandoned:
                raise
        except Exception as error:  # noqa: BLE001  # it is the thread's
            work.fail(error)
        except BaseException as error:
            work.fail(error)
            raise
        finally:
            self._current = None
            for variable, token in reversed(tokens):
                variable.reset(token)
            if work.abandoned and self.task is not None:
                self.task.uncancel()  # It was the request that was cancelled, and the next one must not be.
