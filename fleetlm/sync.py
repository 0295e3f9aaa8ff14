"""The node for threads: what `Node` offers to coroutines, as methods that block.

    node.sync.call(("model", "fleetlm@10.0.0.7"), prompt, timeout=2)     # from any other thread

    with fleetlm.node_in_thread() as node:                               # a program without a loop
        node.call(("model", "fleetlm@10.0.0.7"), prompt, timeout=2)

Everything here is a front: `runtime.thread_requests` hands each request to the event loop and waits for it,
and the class of the same name without ``Sync`` (`Node`, `Groups`, `Registry`, ...) does the work there. Each
method of those classes has a counterpart here, or a reason why not in ``tests/unit/test_sync.py``.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, TypeVarTuple, overload

from fleetlm.actors.handlers import HasHandlers
from fleetlm.actors.ref import goal_of
from fleetlm.actors.refs import find, goals_of, in_order, reachable, request_for
from fleetlm.errors import CallTimeout, FleetError, NodeStopped, WouldBlock
from fleetlm.ids import Pid
from fleetlm.names import Address
from fleetlm.processes.running import plain_class
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.actor import Actor
    from fleetlm.actors.ref import Goal
    from fleetlm.actors.refs import ActorRefs, Goals
    from fleetlm.core.name_table import Claim, OnLoss
    from fleetlm.core.picking import By, Key
    from fleetlm.core.topology import PeerInfo
    from fleetlm.directory.groups import Change, Groups
    from fleetlm.directory.registry import Event as NameEvent, Registry, Resolve
    from fleetlm.directory.subscriptions import Subscription
    from fleetlm.discovery.own_address import OwnAddress
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.messaging.targets import Target
    from fleetlm.node import Node
    from fleetlm.process import Process
    from fleetlm.processes.info import ChildInfo, ProcessInfo
    from fleetlm.processes.remote_spawn import Factories
    from fleetlm.processes.running import AnyFunction, ProcessFunction, ProcessObject
    from fleetlm.runtime.events import Event
    from fleetlm.runtime.info import NodeInfo
    from fleetlm.runtime.thread_requests import ThreadRequests
    from fleetlm.settings import Settings
    from fleetlm.stream import Stream

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
A = TypeVar("A", bound="Actor")
A_co = TypeVar("A_co", bound=HasHandlers, covariant=True)
E = TypeVar("E")
P = ParamSpec("P")
R = TypeVar("R")
_END: Any = object()

STOP_SLACK_S = 10.0
"""Seconds that a node has to stop, beyond draining. It needs two; a loop that needs more is blocked."""


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

    As a context manager it stops the node at the end of the block; `node_in_thread` uses that.

    Attributes:
        name: the node's name.
        incarnation: see `Node`.
        settings: the settings it was started with.
        own_address: this node's address, and why it was chosen.
        groups: process groups of the cluster, for threads.
        registry: cluster-wide names of processes, for threads.
        factories: the functions that other nodes may spawn here, for threads.
    """

    def __init__(self, node: Node, outbound: Outbound, requests: ThreadRequests) -> None:
        self.name: str = node.name
        self.incarnation: int = node.incarnation
        self.settings: Settings = node.settings
        self.own_address: OwnAddress = node.own_address
        self.groups: SyncGroups = SyncGroups(self, node.groups, requests)
        self.registry: SyncRegistry = SyncRegistry(self, node.registry, requests)
        self.factories: SyncFactories = SyncFactories(node.factories, requests)
        self._node = node
        self._outbound = outbound
        self._requests = requests
        self._timeout_s = node.settings.call_timeout_s
        self._end_thread: Callable[[str, float | None], None] | None = None
        """Set by `node_in_thread`: stops the node and ends the thread of its event loop."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.stop()
            return
        in_order = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        try:
            self.stop("shutdown" if in_order else f"crashed: {type(error).__name__}")
        except Exception as besides:  # noqa: BLE001  # the block's own error counts
            error.add_note(f"Besides, stopping the node failed: {besides!r}")

    # The node.

    @property
    def failure(self) -> str:
        """Why the node has stopped by itself, because an essential process failed; else empty."""
        return self._node.failure

    def stop(self, reason: str = "shutdown", drain_s: float | None = None) -> None:
        """See `Node.stop`. A node of `node_in_thread` also ends its thread. Idempotent.

        Raises:
            TimeoutError: something blocks the node's event loop.
        """
        if self._end_thread is not None:
            self._end_thread(reason, drain_s)
            return
        drain = self.settings.drain_s if drain_s is None else drain_s
        stop = functools.partial(self._node.stop, reason, drain_s)
        try:
            self._requests.run_apart("stop", self.name, stop, 2 * drain + STOP_SLACK_S)
        except NodeStopped:
            return  # It has been stopped already, or its loop has ended just now.

    def wait_stopped(self, timeout: float | None = None) -> bool:
        """Wait until the node has been stopped; return False if it was not within ``timeout`` seconds."""
        wait = functools.partial(self._requests.within, timeout, self._node.wait_stopped)
        try:
            self._requests.run_apart("wait_stopped", self.name, wait, timeout)
        except TimeoutError:
            return False
        except NodeStopped:
            return True
        return True

    def info(self, name: str | None = None) -> NodeInfo | PeerInfo | None:
        """See `Node.info`."""
        return self._run_now("info", functools.partial(self._node.info, name))

    # Messages.

    def send(self, to: Target, message: Any, timeout: float | None = None) -> None:
        """See `Node.send`. A window that stays full for ``timeout`` seconds raises `WouldBlock`.

        A process of this node gets the object itself: do not change it afterwards.
        """
        if timeout is None:
            self._requests.run("send", to, functools.partial(self._node.send, to, message))
        else:
            send = functools.partial(self._outbound.send, to, message, timeout)
            self._requests.run("send", to, send, timeout)

    def send_nowait(self, to: Target, message: Any) -> None:
        """See `Node.send_nowait`."""
        send = functools.partial(self._node.send_nowait, to, message)
        self._requests.run_now("send_nowait", to, send)

    def call(self, to: Target, message: Any, timeout: float | None = None) -> Any:
        """See `Node.call`."""
        within_s = self._timeout_s if timeout is None else timeout
        call = functools.partial(self._node.call, to, message, within_s)
        return self._requests.run("call", to, call, within_s)

    def stream(
        self, to: Target, message: Any, timeout: float | None = None, idle: float | None = None
    ) -> SyncStream[Any]:
        """See `Node.stream`. Each item costs two switches between threads."""
        stream = functools.partial(self._node.stream, to, message, timeout, idle)
        return SyncStream(stream, to, self._requests)

    def ref(self, actor: Callable[..., A], target: Goal, at: str | None = None) -> SyncRef[A]:
        """See `Node.ref`; returns a reference for threads."""
        self._node.ref(actor, target, at)  # For its checks of the arguments.
        return SyncRef(self, plain_class(actor), goal_of(target, at))

    def refs(
        self,
        actor: Callable[..., A],
        targets: str | Iterable[Target | SyncRef[A]] | Callable[[], Iterable[Target]],
    ) -> SyncRefs[A]:
        """See `Node.refs`; returns references for threads. A function is called in the thread."""
        make = functools.partial(self._node.refs, actor)
        make([])  # For its check of the actor.
        goals = (
            functools.partial(self._everywhere, targets) if isinstance(targets, str) else goals_of(targets)
        )
        return SyncRefs(self, self._requests, plain_class(actor), goals, make)

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

    @overload
    def spawn(
        self,
        function: Callable[[*Ts], ProcessObject],
        *args: *Ts,
        name: str | None = None,
        essential: bool | None = None,
    ) -> Pid: ...
    @overload
    def spawn(
        self,
        function: Callable[[Process, *Ts], Awaitable[object]],
        *args: *Ts,
        name: str | None = None,
        essential: bool | None = None,
    ) -> Pid: ...
    @overload
    def spawn(
        self, function: AnyFunction, *args: Any, name: str | None = None, essential: bool | None = None
    ) -> Pid: ...
    def spawn(  # type: ignore[misc]
        self, function: Any, *args: Any, name: str | None = None, essential: bool | None = None
    ) -> Pid:
        """See `Node.spawn`: the process runs on the node's loop, not in this thread."""
        spawn = functools.partial(self._node.spawn, function, *args, name=name, essential=essential)
        return self._run_now("spawn", spawn)

    @overload
    def start_actor(
        self,
        actor: Callable[[*Ts], A],
        *args: *Ts,
        name: str | None = None,
        timeout: float | None = None,
    ) -> SyncRef[A]: ...
    @overload
    def start_actor(
        self, actor: A, *, name: str | None = None, timeout: float | None = None
    ) -> SyncRef[A]: ...
    def start_actor(  # type: ignore[misc]
        self, actor: Any, *args: Any, name: str | None = None, timeout: float | None = None
    ) -> SyncRef[A]:
        """See `Node.start_actor`; returns a reference for threads."""
        within_s = self._timeout_s if timeout is None else timeout
        begin = functools.partial(self._node.start_actor, actor, *args, name=name, timeout=within_s)
        started = self._requests.run("start_actor", self.name, begin, within_s)
        cls = plain_class(actor)
        return SyncRef(self, cls if isinstance(cls, type) else type(cls), started.pid)

    def spawn_at(
        self, at: str, factory: str, *args: Any, name: str | None = None, timeout: float = 5.0
    ) -> Pid:
        """See `Node.spawn_at`."""
        spawn = functools.partial(self._node.spawn_at, at, factory, *args, name=name, timeout=timeout)
        return self._requests.run("spawn_at", at, spawn, timeout)

    def exit(self, pid: Pid, reason: Any = "shutdown") -> None:
        """See `Node.exit`."""
        self._run_now("exit", functools.partial(self._node.exit, pid, reason))

    def join(self, pid: Pid, timeout: float | None = None) -> bool:
        """See `Node.join`."""
        return self._requests.run("join", pid, functools.partial(self._node.join, pid, timeout), timeout)

    def processes(self) -> builtins.list[ProcessInfo]:
        """See `Node.processes`."""
        return self._run_now("processes", self._node.processes)

    def process_info(self, pid: Pid) -> ProcessInfo | None:
        """See `Node.process_info`."""
        return self._run_now("process_info", functools.partial(self._node.process_info, pid))

    def supervisors(self) -> dict[Pid, builtins.list[ChildInfo]]:
        """See `Node.supervisors`."""
        return self._run_now("supervisors", self._node.supervisors)

    def name_of(self, pid: Pid) -> str | None:
        """See `Node.name_of`."""
        return self._run_now("name_of", functools.partial(self._node.name_of, pid))

    def registered(self) -> dict[str, Pid]:
        """See `Node.registered`."""
        return self._run_now("registered", self._node.registered)

    def whereis(self, name: str, at: str | None = None, timeout: float = 5.0) -> Pid | None:
        """See `Node.whereis`."""
        whereis = functools.partial(self._node.whereis, name, at, timeout)
        return self._requests.run("whereis", at or self.name, whereis, timeout)

    def register(self, name: str, pid: Pid, timeout: float = 5.0) -> None:
        """See `Node.register`."""
        register = functools.partial(self._node.register, name, pid, timeout)
        self._requests.run("register", pid.node, register, timeout)

    def unregister(self, name: str, at: str | None = None, timeout: float = 5.0) -> bool:
        """See `Node.unregister`."""
        unregister = functools.partial(self._node.unregister, name, at, timeout)
        return self._requests.run("unregister", at or self.name, unregister, timeout)

    # The cluster.

    def ready(self, min_nodes: int = 1, timeout: float | None = None) -> None:
        """See `Node.ready`."""
        ready = functools.partial(self._node.ready, min_nodes, timeout)
        self._requests.run("ready", self.name, ready, timeout)

    def list(self, *selectors: str) -> builtins.list[str]:
        """See `Node.list`."""
        return self._run_now("list", functools.partial(self._node.list, *selectors))

    def events(self) -> SyncSubscription[Event]:
        """See `Node.events`; returns a subscription for threads."""
        return SyncSubscription(self._run_now("events", self._node.events), self.name, self._requests)

    def ping(self, name: str, timeout: float = 5.0) -> str:
        """See `Node.ping`."""
        return self._requests.run("ping", name, functools.partial(self._node.ping, name, timeout), timeout)

    def connect(self, name: str, timeout: float = 5.0) -> bool:
        """See `Node.connect`."""
        connect = functools.partial(self._node.connect, name, timeout)
        return self._requests.run("connect", name, connect, timeout)

    def disconnect(self, name: str) -> bool:
        """See `Node.disconnect`."""
        return self._run_now("disconnect", functools.partial(self._node.disconnect, name))

    # Blocking functions.

    def run_in_process(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `Node.run_in_process`. It waits without limit for the function."""
        run = functools.partial(self._node.run_in_process, function, *args, **kwargs)
        return self._requests.run("run_in_process", self.name, run)

    # Internals.

    def _everywhere(self, name: str) -> builtins.list[Target]:
        return [Address(name, node) for node in (self.name, *self.list())]

    def _run_now(self, verb: str, function: Callable[[], T]) -> T:
        return self._requests.run_now(verb, self.name, function)


class SyncSubscription(Generic[E]):
    """`Subscription` for threads: an iterator of events; it ends when the node stops, or after `close`.

    ::

        with node.sync.events() as events:
            for event in events: ...                # waits without limit for each event
            event = events.get(timeout=1)           # or for a second

    One thread reads a subscription at a time. A wait that ends early, for whatever reason, loses no event.
    """

    def __init__(self, events: Subscription[E], node: str, requests: ThreadRequests) -> None:
        self._events = events
        self._node = node
        self._requests = requests
        self._arrived: deque[Any] = deque()
        """An event that the loop has taken and that no thread has got yet."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> E:
        try:
            event: E = self._next(None)
        except NodeStopped:
            raise StopIteration from None
        if event is _END:
            raise StopIteration
        return event

    def get(self, timeout: float | None = None) -> E:
        """Return the next event.

        Args:
            timeout: seconds to wait for it; None waits without limit.

        Raises:
            TimeoutError: there was none in time.
            NodeStopped: the node has been stopped.
            ValueError: this subscription has been closed.
        """
        event: E = self._next(timeout)
        if event is _END:
            raise ValueError("this subscription has been closed: subscribe again")
        return event

    def close(self) -> None:
        """Take no more events; the iteration ends, in this thread or another one. Idempotent."""
        try:
            self._requests.run_now("close", self._node, self._events.close)
        except NodeStopped:
            return  # The node closes its subscriptions itself.

    def _next(self, timeout_s: float | None) -> Any:
        """Return the next event, or `_END` after `close`. Raises: TimeoutError, NodeStopped."""
        self._requests.run("get", self._node, functools.partial(self._take, timeout_s), timeout_s)
        event = self._arrived.popleft()
        if event is _END:
            self._requests.check_running()
        return event

    async def _take(self, timeout_s: float | None) -> None:
        """Move the next event to where the thread finds it, also a thread that has given up meanwhile."""
        if not self._arrived:
            async with asyncio.timeout(timeout_s):
                event = await anext(self._events, _END)
            self._arrived.append(event)


class SyncGroups:
    """`SyncNode.groups`: `Groups` for threads."""

    def __init__(self, node: SyncNode, groups: Groups, requests: ThreadRequests) -> None:
        self._node = node
        self._groups = groups
        self._requests = requests

    def join(self, group: str, *pids: Pid) -> None:
        """See `Groups.join`."""
        self._run_now("join", group, functools.partial(self._groups.join, group, *pids))

    def leave(self, group: str, *pids: Pid) -> bool:
        """See `Groups.leave`."""
        return self._run_now("leave", group, functools.partial(self._groups.leave, group, *pids))

    def members(self, group: str) -> builtins.list[Pid]:
        """See `Groups.members`."""
        return self._run_now("members", group, functools.partial(self._groups.members, group))

    def local_members(self, group: str) -> builtins.list[Pid]:
        """See `Groups.local_members`."""
        return self._run_now("local_members", group, functools.partial(self._groups.local_members, group))

    def list(self) -> builtins.list[str]:
        """See `Groups.list`."""
        return self._run_now("list", "groups", self._groups.list)

    def watch(self, group: str | None = None) -> SyncSubscription[Change]:
        """See `Groups.watch`; returns a subscription for threads."""
        name = group or "groups"
        changes = self._run_now("watch", name, functools.partial(self._groups.watch, group))
        return SyncSubscription(changes, name, self._requests)

    def pick(self, group: str, by: By = "random", key: Key | None = None) -> Pid:
        """See `Groups.pick`."""
        return self._run_now("pick", group, functools.partial(self._groups.pick, group, by, key))

    def refs(self, actor: Callable[..., A], group: str) -> SyncRefs[A]:
        """See `Groups.refs`; returns references for threads."""
        return self._node.refs(actor, lambda: dict.fromkeys(self.members(group)))

    def broadcast(self, group: str, message: Any, *, local_only: bool = False) -> int:
        """See `Groups.broadcast`."""
        send = functools.partial(self._groups.broadcast, group, message, local_only=local_only)
        return self._requests.run("groups.broadcast", group, send)

    def _run_now(self, verb: str, to: str, function: Callable[[], T]) -> T:
        return self._requests.run_now(f"groups.{verb}", to, function)


class SyncRegistry:
    """`SyncNode.registry`: `Registry` for threads."""

    def __init__(self, node: SyncNode, registry: Registry, requests: ThreadRequests) -> None:
        self._node = node
        self._registry = registry
        self._requests = requests

    def register(
        self, name: str, pid: Pid, meta: Any = None, *, on_loss: OnLoss = "exit", timeout: float = 5.0
    ) -> None:
        """See `Registry.register`."""
        register = functools.partial(
            self._registry.register, name, pid, meta, on_loss=on_loss, timeout=timeout
        )
        self._requests.run("registry.register", pid.node, register, timeout)

    def unregister(self, name: str, timeout: float = 5.0) -> bool:
        """See `Registry.unregister`."""
        unregister = functools.partial(self._registry.unregister, name, timeout)
        return self._requests.run("registry.unregister", name, unregister, timeout)

    @property
    def resolve(self) -> Resolve | None:
        """See `Registry.resolve`. The function is called on the node's event loop."""
        return self._run_now("resolve", "registry", lambda: self._registry.resolve)

    @resolve.setter
    def resolve(self, resolve: Resolve | None) -> None:
        self._run_now("resolve", "registry", functools.partial(setattr, self._registry, "resolve", resolve))

    def whereis(self, name: str) -> Pid | None:
        """See `Registry.whereis`."""
        return self._run_now("whereis", name, functools.partial(self._registry.whereis, name))

    def lookup(self, name: str) -> Claim | None:
        """See `Registry.lookup`."""
        return self._run_now("lookup", name, functools.partial(self._registry.lookup, name))

    def resolve_name(self, name: str) -> Pid:
        """See `Registry.resolve_name`."""
        return self._run_now("resolve_name", name, functools.partial(self._registry.resolve_name, name))

    def ref(self, actor: Callable[..., A], name: str) -> SyncRef[A]:
        """See `Registry.ref`; returns a reference for threads."""
        self._registry.ref(actor, name)  # For its checks of the arguments.
        return SyncRef(self._node, plain_class(actor), functools.partial(self.resolve_name, name))

    def list(self) -> dict[str, Pid]:
        """See `Registry.list`."""
        return self._run_now("list", "registry", self._registry.list)

    def wait_for(self, name: str, timeout: float | None = None) -> Pid:
        """See `Registry.wait_for`."""
        wait_for = functools.partial(self._registry.wait_for, name, timeout)
        return self._requests.run("registry.wait_for", name, wait_for, timeout)

    def watch(self, name: str | None = None) -> SyncSubscription[NameEvent]:
        """See `Registry.watch`; returns a subscription for threads."""
        about = name or "registry"
        events = self._run_now("watch", about, functools.partial(self._registry.watch, name))
        return SyncSubscription(events, about, self._requests)

    def _run_now(self, verb: str, to: str, function: Callable[[], T]) -> T:
        return self._requests.run_now(f"registry.{verb}", to, function)


class SyncFactories:
    """`SyncNode.factories`: `Factories` for threads."""

    def __init__(self, factories: Factories, requests: ThreadRequests) -> None:
        self._factories = factories
        self._requests = requests

    def register(self, name: str, function: ProcessFunction) -> None:
        """See `Factories.register`."""
        register = functools.partial(self._factories.register, name, function)
        self._requests.run_now("factories.register", name, register)

    def unregister(self, name: str) -> bool:
        """See `Factories.unregister`."""
        unregister = functools.partial(self._factories.unregister, name)
        return self._requests.run_now("factories.unregister", name, unregister)

    def list(self) -> builtins.list[str]:
        """See `Factories.list`."""
        return self._requests.run_now("factories.list", "factories", self._factories.list)


class SyncStream(Generic[R]):
    """`Stream` for threads. Made by `SyncNode.stream` and `SyncRef.stream`; for one thread at a time.

    ::

        for token in ref.stream(Model.complete, prompt): ...

        with ref.stream(Model.complete, prompt) as tokens:
            first = tokens.get(timeout=1)

    A wait that ends early, for whatever reason, loses no item: the next one gets it. The stream is given up
    by `close`, by the end of ``with``, or when the program drops it.
    """

    def __init__(self, stream: Callable[[], Stream[R]], to: Target, requests: ThreadRequests) -> None:
        self._make = stream
        self._stream: Stream[R] | None = None
        """Made on the loop, where the first item is waited for."""
        self._is_closed = False
        self._to = to
        self._requests = requests
        self._arrived: deque[Any] = deque()
        """An item that the loop has taken and that no thread has got yet."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        return self.get()

    def get(self, timeout: float | None = None) -> R:
        """Return the next item.

        Args:
            timeout: seconds to wait for it; None waits as long as the stream's own limits allow.

        Raises:
            StopIteration: the stream has ended regularly, or was closed.
            TimeoutError: there was none in time.
            FleetError: as `Node.stream` and `SyncNode`, after the items that came before.
        """
        self._requests.run("stream", self._to, functools.partial(self._take, timeout), timeout)
        item = self._arrived.popleft()
        if item is _END:
            raise StopIteration
        result: R = item
        return result

    def close(self) -> None:
        """Give the stream up; its producer is cancelled. Idempotent."""
        self._requests.run_soon(self._close)

    async def _take(self, timeout_s: float | None) -> None:
        """Move the next item to where the thread finds it, also a thread that has given up meanwhile."""
        if self._arrived:
            return
        if self._stream is None:
            self._stream = self._make()
        async with asyncio.timeout(timeout_s):
            item = _END if self._is_closed else await anext(self._stream, _END)
        self._arrived.append(item)

    async def _close(self) -> None:
        self._is_closed = True
        self._arrived.clear()
        if self._stream is not None:
            await self._stream.aclose()


class SyncRef(Generic[A_co]):
    """A typed reference to an actor for threads: `ActorRef` with methods that block.

    Made by `SyncNode.ref`; immutable, for any number of threads.

    ::

        ref = node.sync.ref(Sessions, "sessions", at="fleetlm@10.0.0.7")
        count = ref.within(2).call(Sessions.append, "s1", "hello")
        for token in ref.stream(Model.complete, prompt): ...
    """

    __slots__ = ("_actor", "_goal", "_idle_s", "_node", "_timeout_s")

    def __init__(
        self,
        node: SyncNode,
        actor: type[A_co],
        goal: Goal,
        timeout_s: float | None = None,
        idle_s: float | None = None,
    ) -> None:
        self._node = node
        self._actor = actor
        self._goal = goal
        self._timeout_s = timeout_s
        self._idle_s = idle_s

    def __repr__(self) -> str:
        return f"<SyncRef {self._actor.__qualname__} {self._goal}>"

    @property
    def target(self) -> Target:
        """See `ActorRef.target`."""
        return self._goal() if callable(self._goal) else self._goal

    @property
    def pid(self) -> Pid:
        """See `ActorRef.pid`."""
        target = self.target
        if not isinstance(target, Pid):
            raise TypeError(f"{self!r} has a name, not a pid: ask `node.whereis(name, at=node)`")
        return target

    def within(self, seconds: float | None = None, *, idle: float | None = None) -> SyncRef[A_co]:
        """Return a reference to the same actor with limits of its own; see `ActorRef.within`."""
        return SyncRef(self._node, self._actor, self._goal, seconds, idle)

    def call(
        self, method: Callable[Concatenate[A_co, P], Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a handler and return its result. Raises: as `ActorRef.call` and `SyncNode`."""
        result: R = self._node.call(self.target, self._request(method, args, kwargs), self._timeout_s)
        return result

    def cast(
        self, method: Callable[Concatenate[A_co, P], Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Let a handler run, without waiting for it. Raises: as `ActorRef.cast` and `SyncNode`."""
        self._node.send(self.target, self._request(method, args, kwargs), self._timeout_s)

    def cast_nowait(
        self, method: Callable[Concatenate[A_co, P], Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """As `cast`, but raise `WouldBlock` where that would wait for room."""
        self._node.send_nowait(self.target, self._request(method, args, kwargs))

    def stream(
        self, method: Callable[Concatenate[A_co, P], AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> SyncStream[R]:
        """Iterate over the items that a handler yields. Raises: as `ActorRef.stream` and `SyncNode`."""
        request = self._request(method, args, kwargs)
        return self._node.stream(self.target, request, self._timeout_s, self._idle_s)

    def send(self, message: Any) -> None:
        """See `ActorRef.send`."""
        self._node.send(self.target, message, self._timeout_s)

    def _request(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Invoke:
        return request_for(self._actor, method, args, kwargs)


class SyncRefs(Generic[A_co]):
    """Typed references to many actors for threads: `ActorRefs` with methods that block.

    Made by `SyncNode.refs` and `SyncGroups.refs`; immutable, for any number of threads.

    ::

        counts = node.sync.refs(Sessions, "sessions").within(2).multicall(Sessions.size)
    """

    __slots__ = ("_actor", "_goals", "_make", "_node", "_requests", "_timeout_s")

    def __init__(
        self,
        node: SyncNode,
        requests: ThreadRequests,
        actor: type[A_co],
        goals: Goals,
        make: Callable[[Iterable[Target]], ActorRefs[A_co]],
        timeout_s: float | None = None,
    ) -> None:
        self._node = node
        self._requests = requests
        self._actor = actor
        self._goals = goals
        self._make = make
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"<SyncRefs {self._actor.__qualname__}>"

    @property
    def targets(self) -> list[Target]:
        """See `ActorRefs.targets`."""
        return reachable(find(self._goals))

    def within(self, seconds: float | None = None) -> SyncRefs[A_co]:
        """Return references to the same actors with a limit of their own; see `ActorRefs.within`."""
        return SyncRefs(self._node, self._requests, self._actor, self._goals, self._make, seconds)

    def multicall(
        self, method: Callable[Concatenate[A_co, P], Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[R | FleetError]:
        """Run a handler in each of the actors. Returns, raises: as `ActorRefs.multicall` and `SyncNode`."""
        request = request_for(self._actor, method, args, kwargs)
        found = find(self._goals)
        return in_order(found, self._node.multicall(reachable(found), request, self._timeout_s))

    def broadcast(
        self, method: Callable[Concatenate[A_co, P], Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> int:
        """Run a handler in each, without waiting for it. As `ActorRefs.broadcast` and `SyncNode`."""
        refs = self._make(self.targets).within(self._timeout_s)
        send = functools.partial(refs.broadcast, method, *args, **kwargs)
        return self._requests.run("refs.broadcast", self._node.name, send, self._timeout_s)
