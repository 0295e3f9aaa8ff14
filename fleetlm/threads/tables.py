"""The tables of a node, for threads: process groups, cluster-wide names, factories."""

from __future__ import annotations

import builtins
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple, overload

from fleetlm.actors.handlers import ActorObject
from fleetlm.errors import NodeStopped
from fleetlm.processes.running import plain_class
from fleetlm.threads.arrivals import SyncStream, SyncSubscription
from fleetlm.threads.members import SyncMember
from fleetlm.threads.references import SyncGroupRef, SyncRef, SyncRefs, ThreadSender

if TYPE_CHECKING:
    from fleetlm.core.member_loads import MemberInfo
    from fleetlm.core.name_table import Claim, OnLoss
    from fleetlm.core.picking import By, Score
    from fleetlm.core.rings import Key
    from fleetlm.directory.groups import Change, Groups
    from fleetlm.directory.members import Member
    from fleetlm.directory.registry import Event as NameEvent, Registry, Resolve
    from fleetlm.ids import Pid
    from fleetlm.messaging.targets import Target
    from fleetlm.processes.remote_spawn import Factories
    from fleetlm.processes.running import ProcessFunction
    from fleetlm.runtime.thread_requests import ThreadRequests

A = TypeVar("A", bound=ActorObject)
R = TypeVar("R")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class ThreadNode(ThreadSender, Protocol):
    """The methods of `SyncNode` that its tables use."""

    def refs(self, actor: Callable[..., A], targets: Callable[[], Iterable[Target]], /) -> SyncRefs[A]:
        """See `SyncNode.refs`."""


class SyncGroups:
    """`SyncNode.groups`: `Groups` for threads."""

    def __init__(
        self, node: ThreadNode, groups: Groups, requests: ThreadRequests, call_timeout_s: float
    ) -> None:
        self._node = node
        self._groups = groups
        self._requests = requests
        self._timeout_s = call_timeout_s

    @overload
    def join(self, group: str, pid: Pid, /, *, meta: Any = None) -> SyncMember: ...
    @overload
    def join(self, group: str, /, *pids: Pid) -> None: ...
    def join(self, group: str, /, *pids: Pid, meta: Any = None) -> SyncMember | None:
        """See `Groups.join`; returns a member for threads."""
        join: Callable[..., Member | None] = self._groups.join
        member = self._run_now("join", group, functools.partial(join, group, *pids, meta=meta))
        return None if member is None else SyncMember(member, self._requests)

    def describe(self, group: str) -> builtins.list[MemberInfo]:
        """See `Groups.describe`."""
        return self._run_now("describe", group, functools.partial(self._groups.describe, group))

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

    def pick(
        self,
        group: str,
        by: By = "random",
        key: Key | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        score: Score | None = None,
    ) -> Pid:
        """See `Groups.pick`."""
        pick = functools.partial(self._groups.pick, group, by, key, where=where, score=score)
        return self._run_now("pick", group, pick)

    @contextlib.contextmanager
    def chosen(
        self,
        group: str,
        by: By = "least_loaded",
        key: Key | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        score: Score | None = None,
    ) -> Iterator[Pid]:
        """See `Groups.chosen`."""
        block = self._groups.chosen(group, by, key, where=where, score=score)
        pid = self._run_now("chosen", group, block.__enter__)
        try:
            yield pid
        finally:
            with contextlib.suppress(NodeStopped):  # It counts nothing any more.
                self._run_now("chosen", group, functools.partial(block.__exit__, None, None, None))

    @overload
    def call(
        self,
        group: str,
        handler: Callable[[A, *Ts], Awaitable[R]],
        /,
        *args: *Ts,
        by: By = "random",
        key: Key | None = None,
        attempts: int = 3,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> R: ...
    @overload
    def call(
        self,
        group: str,
        message: Any,
        /,
        *,
        by: By = "random",
        key: Key | None = None,
        attempts: int = 3,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> Any: ...
    def call(  # type: ignore[misc]
        self,
        group: str,
        message: Any,
        /,
        *args: Any,
        by: By = "random",
        key: Key | None = None,
        attempts: int = 3,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> Any:
        """See `Groups.call`."""
        within_s = self._timeout_s if timeout is None else timeout
        call = functools.partial(
            self._groups.call, group, message, *args, by=by, key=key, attempts=attempts, timeout=within_s,
            idempotent=idempotent,
        )  # fmt: skip
        return self._requests.run("groups.call", group, call, within_s)

    @overload
    def stream(
        self,
        group: str,
        handler: Callable[[A, *Ts], AsyncIterator[R]],
        /,
        *args: *Ts,
        by: By = "random",
        key: Key | None = None,
        attempts: int = 3,
        timeout: float | None = None,
        idle: float | None = None,
        idempotent: bool = False,
    ) -> SyncStream[R]: ...
    @overload
    def stream(
        self,
        group: str,
        message: Any,
        /,
        *,
        by: By = "random",
        key: Key | None = None,
        attempts: int = 3,
        timeout: float | None = None,
        idle: float | None = None,
        idempotent: bool = False,
    ) -> SyncStream[Any]: ...
    def stream(  # type: ignore[misc]
        self,
        group: str,
        message: Any,
        /,
        *args: Any,
        by: By = "random",
        key: Key | None = None,
        attempts: int = 3,
        timeout: float | None = None,
        idle: float | None = None,
        idempotent: bool = False,
    ) -> SyncStream[Any]:
        """See `Groups.stream`. Each item costs two switches between threads."""
        stream = functools.partial(
            self._groups.stream, group, message, *args, by=by, key=key, attempts=attempts, timeout=timeout,
            idle=idle, idempotent=idempotent,
        )  # fmt: skip
        return SyncStream(stream, group, self._requests)

    def ref(
        self,
        actor: Callable[..., A],
        group: str,
        by: By = "random",
        key: Key | None = None,
        *,
        attempts: int = 3,
        idempotent: bool = False,
        where: Mapping[str, Any] | None = None,
        score: Score | None = None,
    ) -> SyncGroupRef[A]:
        """See `Groups.ref`; returns a reference for threads."""
        ref = self._groups.ref(
            actor, group, by, key, attempts=attempts, idempotent=idempotent, where=where, score=score
        )
        return SyncGroupRef(ref, group, self._requests, self._timeout_s)

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

    def __init__(self, node: ThreadNode, registry: Registry, requests: ThreadRequests) -> None:
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

    def register(self, name: str, function: ProcessFunction, *, local: bool = False) -> None:
        """See `Factories.register`."""
        register = functools.partial(self._factories.register, name, function, local=local)
        self._requests.run_now("factories.register", name, register)

    def unregister(self, name: str) -> bool:
        """See `Factories.unregister`."""
        unregister = functools.partial(self._factories.unregister, name)
        return self._requests.run_now("factories.unregister", name, unregister)

    def list(self) -> builtins.list[str]:
        """See `Factories.list`."""
        return self._requests.run_now("factories.list", "factories", self._factories.list)
