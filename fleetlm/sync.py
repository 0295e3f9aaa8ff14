"""The node for threads: what `Node` offers to coroutines, as methods that block.

    node.sync.call(("model", "fleetlm@10.0.0.7"), prompt, timeout=2)     # from any other thread

    with fleetlm.node_in_thread() as node:                               # a program without a loop
        node.call(("model", "fleetlm@10.0.0.7"), prompt, timeout=2)

Everything here is a front: `runtime.thread_requests` hands each request to the event loop and waits for it,
and the class of the same name without ``Sync`` (`Node`, `Groups`, `Registry`, ...) does the work there. Each
method of those classes has a counterpart here, or a reason why not in ``tests/unit/test_sync.py``.
"""

from __future__ import annotations

import builtins
import functools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, TypeVarTuple, overload

from fleetlm.actors.handlers import ActorObject
from fleetlm.actors.ref import goal_of
from fleetlm.actors.refs import goals_of
from fleetlm.errors import CallTimeout, NodeStopped, NotDelivered, OutcomeUnknown, WouldBlock
from fleetlm.ids import Pid
from fleetlm.messaging.retries import name_of_operation
from fleetlm.names import Address
from fleetlm.processes.running import plain_class
from fleetlm.seconds import check_seconds, check_timeout
from fleetlm.threads.arrivals import SyncStream, SyncSubscription
from fleetlm.threads.members import SyncTable
from fleetlm.threads.references import SyncRef, SyncRefs
from fleetlm.threads.tables import SyncFactories, SyncGroups, SyncRegistry

if TYPE_CHECKING:
    from fleetlm.actors.ref import Goal
    from fleetlm.core.topology import PeerInfo
    from fleetlm.discovery.own_address import OwnAddress
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.messaging.retries import Retries
    from fleetlm.messaging.targets import Target
    from fleetlm.node import Node
    from fleetlm.process import Process
    from fleetlm.processes.info import ChildInfo, ProcessInfo
    from fleetlm.processes.running import AnyFunction, ProcessObject
    from fleetlm.runtime.draining import DrainSource
    from fleetlm.runtime.events import Event
    from fleetlm.runtime.hooks import Phase
    from fleetlm.runtime.info import DrainReport, NodeInfo
    from fleetlm.runtime.readiness import Readiness
    from fleetlm.runtime.thread_requests import ThreadRequests
    from fleetlm.settings import Settings

T = TypeVar("T")
F = TypeVar("F", bound="Callable[[], Any]")
Ts = TypeVarTuple("Ts")
A = TypeVar("A", bound=ActorObject)
P = ParamSpec("P")
R = TypeVar("R")

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

    def __init__(self, node: Node, outbound: Outbound, requests: ThreadRequests, retries: Retries) -> None:
        self.name: str = node.name
        self.incarnation: int = node.incarnation
        self.settings: Settings = node.settings
        self.own_address: OwnAddress = node.own_address
        self.groups: SyncGroups = SyncGroups(self, node.groups, requests, node.settings.call_timeout_s)
        self.registry: SyncRegistry = SyncRegistry(self, node.registry, requests)
        self.factories: SyncFactories = SyncFactories(node.factories, requests)
        self._node = node
        self._outbound = outbound
        self._requests = requests
        self._retries = retries
        self._timeout_s = node.settings.call_timeout_s
        self._end_thread: Callable[[str, float | None, DrainSource], None] | None = None
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

    @property
    def is_draining(self) -> bool:
        """See `Node.is_draining`."""
        return self._node.is_draining

    def drain(
        self, timeout: float | None = None, reason: str = "", *, source: DrainSource = "api"
    ) -> DrainReport:
        """See `Node.drain`."""
        drain_s = self.settings.drain_s if timeout is None else timeout
        check_seconds(drain_s, least=0)
        drain = functools.partial(self._node.drain, timeout, reason, source=source)
        return self._requests.run("drain", self.name, drain, drain_s + STOP_SLACK_S)

    def undrain(self) -> bool:
        """See `Node.undrain`."""
        return self._run_now("undrain", self._node.undrain)

    @property
    def drain_report(self) -> DrainReport | None:
        """How the last drain has ended, that of `stop` included; None before the first one."""
        return self._node.drain_report

    def stop(
        self, reason: str = "shutdown", drain_s: float | None = None, *, source: DrainSource = "api"
    ) -> None:
        """See `Node.stop`. A node of `node_in_thread` also ends its thread. Idempotent.

        Raises:
            TimeoutError: something blocks the node's event loop.
        """
        check_timeout(drain_s, "drain_s", least=0)
        if self._end_thread is not None:
            self._end_thread(reason, drain_s, source)
            return
        drain = self.settings.drain_s if drain_s is None else drain_s
        stop = functools.partial(self._node.stop, reason, drain_s, source=source)
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
        return SyncRef(self, plain_class(actor), goal_of(target, at, self.settings.base_port))

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

    def retry(
        self,
        operation: Callable[[], T],
        *,
        attempts: int = 4,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> T:
        """Make a request of this thread, and make it again if it failed and that is safe: `fleetlm.retry`.

        ::

            answer = node.sync.retry(lambda: ref.within(2).call(Model.answer, prompt), timeout=5)

        The operation runs in this thread. So ``timeout`` does not end an attempt that runs, which has its own
        limits, but none begins after it.
        """
        name = name_of_operation(operation)
        begin = functools.partial(self._retries.begin, name, attempts, timeout, idempotent)
        course = self._run_now("retry", begin)
        while True:
            try:
                return operation()
            except (NotDelivered, OutcomeUnknown) as error:
                pause = functools.partial(course.goes_on, error)
                if not self._requests.run("retry", name, pause):
                    raise

    # Processes.

    @overload
    def spawn(
        self,
        function: Callable[[*Ts], ProcessObject],
        *args: *Ts,
        name: str | None = None,
        essential: bool | None = None,
        local: bool = False,
    ) -> Pid: ...
    @overload
    def spawn(
        self,
        function: Callable[[Process, *Ts], Awaitable[object]],
        *args: *Ts,
        name: str | None = None,
        essential: bool | None = None,
        local: bool = False,
    ) -> Pid: ...
    @overload
    def spawn(
        self,
        function: AnyFunction,
        *args: Any,
        name: str | None = None,
        essential: bool | None = None,
        local: bool = False,
    ) -> Pid: ...
    def spawn(  # type: ignore[misc]
        self,
        function: Any,
        *args: Any,
        name: str | None = None,
        essential: bool | None = None,
        local: bool = False,
    ) -> Pid:
        """See `Node.spawn`: the process runs on the node's loop, not in this thread."""
        options = {"name": name, "essential": essential, "local": local}
        return self._run_now("spawn", functools.partial(self._node.spawn, function, *args, **options))

    @overload
    def start_actor(
        self,
        actor: Callable[[*Ts], A],
        *args: *Ts,
        name: str | None = None,
        timeout: float | None = None,
        local: bool = False,
    ) -> SyncRef[A]: ...
    @overload
    def start_actor(
        self, actor: A, *, name: str | None = None, timeout: float | None = None, local: bool = False
    ) -> SyncRef[A]: ...
    def start_actor(  # type: ignore[misc]
        self,
        actor: Any,
        *args: Any,
        name: str | None = None,
        timeout: float | None = None,
        local: bool = False,
    ) -> SyncRef[A]:
        """See `Node.start_actor`; returns a reference for threads."""
        within_s = self._timeout_s if timeout is None else timeout
        begin = functools.partial(
            self._node.start_actor, actor, *args, name=name, timeout=within_s, local=local
        )
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

    def register(self, name: str, pid: Pid, timeout: float = 5.0, *, local: bool = False) -> None:
        """See `Node.register`."""
        register = functools.partial(self._node.register, name, pid, timeout, local=local)
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

    def table(self, name: str) -> SyncTable:
        """See `Node.table`; returns a table for threads."""
        return SyncTable(self._node.table(name), self._requests)

    def add_check(self, name: str, check: Callable[[], Any]) -> None:
        """See `Node.add_check`."""
        self._run_now("add_check", functools.partial(self._node.add_check, name, check))

    @overload
    def on_leaving(self, function: F, /, *, phase: Phase = ..., timeout: float | None = ...) -> F: ...
    @overload
    def on_leaving(
        self, function: None = None, /, *, phase: Phase = ..., timeout: float | None = ...
    ) -> Callable[[F], F]: ...
    def on_leaving(
        self, function: F | None = None, /, *, phase: Phase = "before_drain", timeout: float | None = None
    ) -> F | Callable[[F], F]:
        """See `Node.on_leaving`."""
        register = functools.partial(self._node.on_leaving, phase=phase, timeout=timeout)
        if function is None:
            self._run_now("on_leaving", register)  # For its checks of the arguments.
            return functools.partial(self.on_leaving, phase=phase, timeout=timeout)
        self._run_now("on_leaving", functools.partial(register, function))
        return function

    def remove_check(self, name: str) -> bool:
        """See `Node.remove_check`."""
        return self._run_now("remove_check", functools.partial(self._node.remove_check, name))

    def readiness(self, min_nodes: int = 0) -> Readiness:
        """See `Node.readiness`."""
        look = functools.partial(self._node.readiness, min_nodes)
        return self._requests.run("readiness", self.name, look, self.settings.check_s + STOP_SLACK_S)

    def list(self, *selectors: str) -> builtins.list[str]:
        """See `Node.list`."""
        return self._run_now("list", functools.partial(self._node.list, *selectors))

    def events(self) -> SyncSubscription[Event]:
        """See `Node.events`; returns a subscription for threads."""
        return SyncSubscription(self._run_now("events", self._node.events), self.name, self._requests)

    def overview(self, timeout: float = 1.0) -> dict[str, Any]:
        """See `Node.overview`."""
        overview = functools.partial(self._node.overview, timeout)
        return self._requests.run("overview", self.name, overview, timeout)

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
