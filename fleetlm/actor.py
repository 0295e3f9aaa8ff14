"""Actors: classes whose handlers can be called from any node.

    class Sessions(Actor):
        async def init(self) -> None:
            self.lines: dict[str, list[str]] = {}

        @handler
        async def append(self, session: str, line: str) -> int:
            self.lines.setdefault(session, []).append(line)
            return len(self.lines[session])

    node.spawn(Sessions, name="sessions")
    ref = node.ref(Sessions, "sessions", at="fleetlm@10.0.0.7")
    count = await ref.within(2).call(Sessions.append, "s1", "hello")

`actors.run` describes how an actor runs and how a handler is cancelled.

Source: OTP gen_server.erl; differs: handlers are methods, so a type checker knows what they take and
return; an exception in a call is raised at the caller (`RemoteError`) and the actor goes on, as in Pykka;
``terminate`` also runs after exit signals that are not trapped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

from fleetlm.actors.handlers import NO_HANDLERS, Handlers, check_unused, collect, name_of
from fleetlm.actors.run import ActorRun, describe
from fleetlm.call import Call
from fleetlm.messaging.windows import local_units
from fleetlm.stream import Stream
from fleetlm.texts import text_of
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.ids import Pid
    from fleetlm.node import Node
    from fleetlm.process import Process
    from fleetlm.process_pool import ProcessPool
    from fleetlm.processes.owned import Timer

P = ParamSpec("P")
R = TypeVar("R")

_CONVENIENCES = frozenset({"create_task", "send_after", "send_every", "cast_after", "cast_every"})
"""Methods that a handler may hide: nothing else calls them, and the `process` has the same."""


class Actor:
    """Base class of actors: put `handler` above the methods that others may call.

    Spawn the class, ``node.spawn(Sessions, *args)``, and the object is made inside the new process: a
    constructor that raises is a crash of that process, and a supervisor's ``Child("s", Sessions, args)``
    gets a fresh object at each start. An object, ``node.spawn(Sessions(3))``, runs once.

    An exception in a handler is raised as `RemoteError` at the caller, and the actor goes on. In a cast, in
    `handle_info` and in `init` there is no caller to be told, so it ends the actor. `ProcessExit` raised
    anywhere ends the actor with its reason.

    Whatever a handler raises counts as such an exception, SystemExit too; an exception group that holds
    nothing but `ProcessExit` is that exit. The actor's node logs the first failure of each kind.

    When the caller gives up (time-out, cancellation, loss of its node), the handler is cancelled, and the
    actor goes on; `handler` can be told otherwise. Each request runs in a copy of the context variables that
    `init` has set. Calls that a handler makes get no more time than its own caller still waits.
    """

    thread: ClassVar[bool]
    """Whether this actor has a thread of its own for `run_blocking`, instead of any of its node's.

    Then all its functions run in that one thread, one after the other, from `init` to `terminate`: for
    libraries whose objects belong to the thread that made them (sqlite3, many drivers, contexts of GPUs). The
    thread starts at the first use and ends with the actor; a restarted actor gets a new one. Not set: False.
    """

    __fleetlm_handlers__: ClassVar[Handlers] = NO_HANDLERS
    __run: ActorRun[Process] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__fleetlm_handlers__ = collect(cls, frozenset(vars(Actor)) - _CONVENIENCES)

    # For subclasses to override.

    async def init(self) -> None:
        """Prepare the actor; runs in the new process before the first message is taken.

        Requests wait in the mailbox meanwhile. If it raises, the actor ends without `terminate`.
        """

    async def terminate(self, reason: Any) -> None:
        """Clean up; runs at the end with the exit reason, whatever ends the actor, except for ``"kill"``.

        It has `Settings.terminate_s` seconds. Concurrent handlers have ended before it runs. Calls that are
        open or still wait are answered after it (`ProcessDown`, `NoProcess`). An exception that it raises
        is logged and does not change the reason.
        """

    async def handle_info(self, message: Any) -> None:
        """Take a message that is not a request for a handler.

        These are messages that were sent with `Node.send` or `ActorRef.send`, `Down` messages, `Exit`
        messages if this process traps exits, and a `Call` that was made with `Node.call`. By default the
        first message of each type is logged, and a call is refused (`NoHandler`).
        """
        run = self.__running()
        if isinstance(message, Call):
            run.refuse(message, f"{run.process.runs} takes calls for its handlers only: use an ActorRef")
        else:
            run.complain(f"type {type(message).__qualname__}", f"has no handle_info for {describe(message)}")

    async def on_drain(self, until: float) -> None:
        """Hand over what this actor holds, since its node is about to leave; runs between two handlers.

        ::

            async def on_drain(self, until: float) -> None:
                async with asyncio.timeout_at(until):
                    pid = await self.node.spawn_at(self.node.list()[0], "sessions", self.lines)

        It runs once for a drain, when other nodes know of it already. Calls of this actor to other nodes are
        served; new requests to this actor are, too, until the node begins to refuse them. The drain waits for
        it until its time is over. An exception that it raises is logged, and the actor goes on: the drain may
        be undone (`on_undrain`). By default nothing happens.

        Args:
            until: when the time of the drain is over, on the clock of the event loop.
        """

    async def on_undrain(self) -> None:
        """Take back what `on_drain` did, since the drain was undone; runs between two handlers."""

    # For subclasses to use.

    @property
    def process(self) -> Process:
        """The process in which this actor runs, for links, monitors and trapping exits.

        Raises:
            RuntimeError: the actor does not run yet; it does from `init` on.
        """
        return self.__running().process

    @property
    def node(self) -> Node:
        """The node on which this actor runs. Raises: RuntimeError before `init`."""
        return self.__running().process.node

    @property
    def pid(self) -> Pid:
        """The pid of this actor. Raises: RuntimeError before `init`."""
        return self.__running().process.pid

    def stop(self, reason: Any = "normal") -> None:
        """End this actor after the handler that runs now, with this exit reason. The first reason counts.

        Messages that wait are not taken any more. Concurrent handlers are cancelled.

        Raises:
            RuntimeError: the actor does not run yet; it does from `init` on.
        """
        self.__running().stop(reason)

    def create_task(self, coroutine: Coroutine[Any, Any, R], *, name: str | None = None) -> asyncio.Task[R]:
        """Run a coroutine beside this actor, as a part of it; see `Process.create_task`.

        It is cancelled when the actor ends, before `terminate` runs, and an exception in it ends the actor.
        """
        return self.process.create_task(coroutine, name=name)

    def send_after(self, delay_s: float, message: Any) -> Timer:
        """Give `handle_info` a message after ``delay_s`` seconds; see `Process.send_after`."""
        return self.process.send_after(delay_s, message)

    def send_every(self, interval_s: float, message: Any) -> Timer:
        """Give `handle_info` a message every ``interval_s`` seconds; see `Process.send_every`."""
        return self.process.send_every(interval_s, message)

    def cast_after(
        self, delay_s: float, method: Callable[Concatenate[Any, P], Any], *args: P.args, **kwargs: P.kwargs
    ) -> Timer:
        """Run one of this actor's own handlers after ``delay_s`` seconds, in its turn, as a cast would.

        ::

            self.cast_after(5.0, Poller.poll, "https://example.org")

        Raises what `Process.send_after` raises; TypeError if ``method`` is not a handler of this class that
        returns.
        """
        return self.process.send_after(delay_s, self.__request(method, args, kwargs))

    def cast_every(
        self, interval_s: float, method: Callable[Concatenate[Any, P], Any], *args: P.args, **kwargs: P.kwargs
    ) -> Timer:
        """Run one of this actor's own handlers every ``interval_s`` seconds; see `Process.send_every`.

        Raises what `cast_after` raises.
        """
        return self.process.send_every(interval_s, self.__request(method, args, kwargs))

    async def run_blocking(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a blocking function in a thread, the actor's own if it has one (`thread`).

        Raises:
            RuntimeError: the actor has ended, and its own thread with it.
            Exception: as `Node.run_blocking`.
        """
        if getattr(type(self), "thread", False) is not True:  # A handler may have that name.
            try:
                return await self.node.run_blocking(function, *args, **kwargs)
            except Exception as error:
                if "same thread" in text_of(error):  # sqlite3 says so, and others
                    error.add_note(
                        "Each run_blocking may have another thread. With `thread = True` on "
                        f"{type(self).__qualname__} all its functions run in one thread."
                    )
                raise
        process = self.process
        if process._is_gone:  # a base class of ours
            raise RuntimeError(f"the actor {process.pid} has ended, and its thread with it")
        blocking = process._services.blocking()
        return await blocking.in_own_thread(process.pid, function, *args, **kwargs)

    def stream_blocking(
        self, generator: Callable[P, Iterable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Stream[R]:
        """Stream what a blocking generator yields; see `Node.stream_blocking`.

        ::

            @handler
            async def complete(self, prompt: str) -> AsyncIterator[str]:
                async with self.stream_blocking(self.model.tokens, prompt) as tokens:
                    async for token in tokens:
                        yield token

        In an actor with a thread of its own (`thread`) it runs there, in turns with the actor's functions.
        """
        if getattr(type(self), "thread", False) is not True:  # A handler may have that name.
            return self.node.stream_blocking(generator, *args, **kwargs)
        process = self.process
        blocking = process._services.blocking()
        source = blocking.generate(generator, args, kwargs, local_units, process.pid)
        return Stream(source, asyncio.get_running_loop())

    async def run_in_process(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a blocking function in another operating-system process; see `Node.run_in_process`."""
        return await self.node.run_in_process(function, *args, **kwargs)

    def process_pool(
        self, initializer: Callable[..., object] | None = None, /, *args: Any, processes: int = 1
    ) -> ProcessPool:
        """Return worker processes that end with this actor; see `Node.process_pool`."""
        from fleetlm.process_pool import ProcessPool  # noqa: PLC0415  # most actors need none

        process = self.process
        return ProcessPool(process._services.blocking(), initializer, args, processes, process.pid)

    # For the runtime.

    async def __call__(self, process: Process, ready: asyncio.Future[bool] | None = None) -> None:
        """Run as this process until it ends.

        Args:
            process: its process.
            ready: set to True when `init` is done.

        Raises:
            RuntimeError: this object runs already, or has run.
        """
        check_unused(self)
        settings, services = process.node.settings, process._services
        cls = type(self)
        if cls.on_drain is not Actor.on_drain or cls.on_undrain is not Actor.on_undrain:
            services.drain_listeners.add_actor(process)
        run = ActorRun(self, self.__fleetlm_handlers__, process, settings, services.failures, services.taps)
        object.__setattr__(self, "_Actor__run", run)  # Works for a frozen dataclass too.
        await run.run(ready)

    def __request(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Invoke:
        name = name_of(type(self), self.__fleetlm_handlers__, method)
        if self.__fleetlm_handlers__.by_name[name].streams:
            raise TypeError(f"{name} yields, so it cannot be run by a timer")
        return Invoke(name, args, kwargs)

    def __running(self) -> ActorRun[Process]:
        if self.__run is None:
            raise RuntimeError(
                f"{type(self).__qualname__} has no process yet: process, node and pid are there from "
                "init() on, not in the constructor"
            )
        return self.__run
