"""What a program asks of a node about processes: spawn, name, look at, end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fleetlm.actor import Actor, check_unused
from fleetlm.actors.ref import ActorRef, Goal, Sender, goal_of
from fleetlm.actors.starting import start
from fleetlm.ids import Pid
from fleetlm.messaging.deadline import within_deadline
from fleetlm.names import canonical_node

if TYPE_CHECKING:
    from fleetlm.messaging.outbound import Messenger
    from fleetlm.process import ChildInfo, ProcessFunction, ProcessInfo
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.processes.remote_spawn import Factories
    from fleetlm.processes.signals import Signals
    from fleetlm.settings import Settings


A = TypeVar("A", bound=Actor)


class ProcessApi:
    """The part of `Node` that is about processes."""

    name: str
    incarnation: int
    settings: Settings
    factories: Factories
    """What other nodes may spawn here, by name."""
    _local: LocalProcesses
    _signals: Signals
    _messenger: Messenger

    def spawn(self, function: ProcessFunction, *args: Any, name: str | None = None) -> Pid:
        """Run ``await function(process, *args)`` as a process of this node.

        It ends when the function returns, raises (logged) or is cancelled; its name is free then.

        Args:
            function: a coroutine function; its first argument is its `Process`. Or an `Actor`, or the
                class of one, which is made from ``args`` inside the new process.
            *args: its further arguments.
            name: registered at once, so that a message can be sent right after.

        Raises:
            AlreadyRegistered, InvalidName: nothing was started.
            NodeStopped: likewise.
            TypeError: ``function`` cannot be called.
            RuntimeError: it is an `Actor` object that has been run.
        """
        self._check_running()
        if not callable(function):
            raise TypeError(f"spawn() takes a coroutine function, not {function!r}")
        check_unused(function)
        return self._local.spawn(function, args, name)

    async def start_actor(
        self, actor: type[A] | A, *args: Any, name: str | None = None, timeout: float | None = None
    ) -> ActorRef[A]:
        """Spawn an actor, and return a reference when its ``init`` is done.

        Args:
            actor: its class, made from ``args``; or an object of it.
            *args: for the constructor.
            name: registered at once; what is sent to it waits for ``init``.
            timeout: seconds for ``init``; default `Settings.call_timeout_s`.

        Raises:
            InitFailed: the constructor or ``init`` raised, ended the process, or took longer; the process
                is gone.
            AlreadyRegistered, InvalidName, NodeStopped, TypeError, RuntimeError: as `spawn`.
            Expired: the call being served has no time left; nothing was started.
        """
        self._check_running()
        cls = actor if isinstance(actor, type) else type(actor)
        _check_actor(cls)
        check_unused(actor)
        timeout_s = within_deadline(self.settings.call_timeout_s if timeout is None else timeout)
        pid = await start(self._local, actor, args, name, timeout_s)
        return ActorRef(cast("Sender", self), cls, pid)

    def ref(self, actor: type[A], target: Goal, at: str | None = None) -> ActorRef[A]:
        """A typed reference to an actor anywhere; asks nobody, so it may lead to none.

        Args:
            actor: its class, or a base of that with the handlers in question.
            target: a pid, a name on this node, ``(name, node)``, or a function that returns a pid and is
                asked anew at each use.
            at: the node on which ``target`` is a name.

        Raises:
            TypeError: ``actor`` is no class of actors, or ``at`` is given with something else than a name.
            InvalidName: ``at`` is not a node name.
        """
        _check_actor(actor)
        return ActorRef(cast("Sender", self), actor, goal_of(target, at))

    async def spawn_at(
        self, at: str, factory: str, *args: Any, name: str | None = None, timeout: float = 5.0
    ) -> Pid:
        """Spawn a process on a node, by the name of a factory that is registered there.

        It is linked to nobody and lives on when this node is lost; `Process.spawn_link_at` and
        `Process.spawn_monitor_at` tie it to a process. See `Factories`.

        Args:
            at: the node, which may be this one.
            factory: its name there; see `Factories.register`.
            *args: message values, passed to the process function after its `Process`.
            name: registered at once, on ``at``.
            timeout: seconds. Who stops waiting has spawned nothing: a process whose answer comes
                late is killed.

        Raises:
            NoFactory, Draining, NoConnection, Undecodable, WouldBlock: nothing was spawned.
            AlreadyRegistered: likewise; its ``owner`` is a text.
            NotSerializable, MessageTooLarge, InvalidName: likewise, nothing was sent.
            NodeLost: the connection ended first; a process may live there.
            CallTimeout: a process may have run for a while; it lives only where the connection is lost
                before its answer comes.
        """
        return (await self.factories.spawn(at, factory, args, name, timeout))[0]

    def exit(self, pid: Pid, reason: Any = "shutdown") -> None:
        """Send an exit signal to a process anywhere; its sender is this node itself, number 0.

        Does nothing if it has ended or its node is not connected. See `Process.exit`.
        """
        self._signals.exit(Pid(self.name, self.incarnation, 0), pid, reason)

    async def join(self, pid: Pid, timeout: float | None = None) -> bool:
        """Wait until a process of this node has ended, its clean-up included.

        Returns:
            False if it has not within ``timeout`` seconds (None: waits for ever).
        """
        task = self._local.task_of(pid)
        if task is None:
            return True
        done, _ = await asyncio.wait({task}, timeout=timeout)
        return bool(done)

    def processes(self) -> list[ProcessInfo]:
        """The processes of this node, in the order in which they were spawned."""
        return self._local.info()

    def process_info(self, pid: Pid) -> ProcessInfo | None:
        """One of them, or None if it has ended or lives elsewhere."""
        process = self._local.process(pid)
        return None if process is None else process.info()

    def supervisors(self) -> dict[Pid, list[ChildInfo]]:
        """The supervisors of this node, each with its children in the order of their start."""
        return self._local.supervisors()

    def name_of(self, pid: Pid) -> str | None:
        """The registered name of a process of this node."""
        return self._local.table.name_of(pid.number)

    def registered(self) -> dict[str, Pid]:
        """Names registered on this node."""
        return self._local.table.registered()

    async def whereis(self, name: str, at: str | None = None, timeout: float = 5.0) -> Pid | None:
        """The process registered under ``name`` on this node, or on the node ``at``.

        Raises:
            NoConnection, NodeLost, CallTimeout: ``at`` could not be asked.
        """
        if at is None or canonical_node(at) == self.name:
            return self._local.table.whereis(name)
        found = await self._messenger.ask(at, "whereis", name, within_deadline(timeout))
        return found if isinstance(found, Pid) else None

    async def register(self, name: str, pid: Pid, timeout: float = 5.0) -> None:
        """Name a process on its own node, wherever that is.

        Raises:
            AlreadyRegistered, NoProcess: nothing changed.
            InvalidName: likewise; from another node it comes as `RemoteError` with that type name.
            NoConnection, NodeLost, CallTimeout: its node could not be asked.
        """
        if pid.node == self.name:
            self._local.register(name, pid)
        else:
            await self._messenger.ask(pid.node, "register", [name, pid], within_deadline(timeout))

    async def unregister(self, name: str, at: str | None = None, timeout: float = 5.0) -> bool:
        """Take a name away, on this node or on ``at``. False if nobody had it. Raises: as `whereis`."""
        if at is None or canonical_node(at) == self.name:
            return self._local.unregister(name)
        return bool(await self._messenger.ask(at, "unregister", name, within_deadline(timeout)))

    def _check_running(self) -> None:
        raise NotImplementedError


def _check_actor(cls: object) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Actor)):
        raise TypeError(f"{cls!r} is not a class of actors")
