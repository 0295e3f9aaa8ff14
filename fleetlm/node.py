"""The node: what a program starts, and everything it can ask of it."""

from __future__ import annotations

import asyncio
import builtins
import logging
import math
import random
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from fleetlm.actor import Actor, check_unused
from fleetlm.actors.handlers import ActorObject
from fleetlm.actors.ref import ActorRef, Goal, Sender, goal_of
from fleetlm.actors.starting import start
from fleetlm.blocking import forks
from fleetlm.blocking.pools import Blocking
from fleetlm.core.connection import Identity
from fleetlm.core.kernel import Kernel
from fleetlm.core.topology import PeerInfo
from fleetlm.directory.groups import Groups
from fleetlm.directory.registry import Registry
from fleetlm.directory.replication import Replication
from fleetlm.directory.subscriptions import Subscription
from fleetlm.discovery.own_address import OwnAddress, RecordWatch, can_bind
from fleetlm.discovery.poller import Poller
from fleetlm.errors import FleetError, NodeStopped
from fleetlm.ids import Pid, new_incarnation
from fleetlm.messaging.deadline import within_deadline
from fleetlm.messaging.inbound import Inbound
from fleetlm.messaging.outbound import Messenger
from fleetlm.messaging.streams import Streams
from fleetlm.names import canonical_node, endpoint
from fleetlm.process import Process, ProcessServices
from fleetlm.processes.context import NodeContext
from fleetlm.processes.local import LocalProcesses
from fleetlm.processes.remote_spawn import Factories, RemoteSpawn
from fleetlm.processes.signals import Signals
from fleetlm.runtime.bootstrap import Parts, warn_about
from fleetlm.runtime.driver import Driver
from fleetlm.runtime.events import Event, EventHub
from fleetlm.runtime.info import NodeInfo, node_info
from fleetlm.runtime.requests import PeerRequests
from fleetlm.runtime.starting import NodeStarting
from fleetlm.settings import Settings
from fleetlm.sync import SyncNode
from fleetlm.wire.codec import Codec

if TYPE_CHECKING:
    from fleetlm.core.dns_answers import Answer
    from fleetlm.discovery.dns import Discovery
    from fleetlm.messaging.targets import Target
    from fleetlm.processes.info import ChildInfo, ProcessInfo
    from fleetlm.processes.running import ProcessFunction, RunningProcess
    from fleetlm.transport.interface import Transport
    from fleetlm.wire.invocation import Invoke

log = logging.getLogger("fleetlm")

A = TypeVar("A", bound=ActorObject)


class Node:
    """One running node. Made by `Node.start`, never by the constructor.

    ::

        async with fleetlm.Node.start() as node:
            node.spawn(printer, name="printer")
            await node.send(("printer", "fleetlm@10.0.0.7"), {"any": "message"})

    Everything runs on the event loop that started the node; two nodes in one program work.
    """

    def __init__(self, parts: Parts) -> None:
        settings = parts.settings
        loop = asyncio.get_running_loop()
        self.settings = settings
        self.own_address: OwnAddress = parts.own_address
        self.own_address_warning = parts.own_address.warning
        self._records = RecordWatch(parts.own_address, can_bind)
        self.name = f"{settings.node_basename}@{parts.own_address.ip}"
        self.incarnation = new_incarnation(parts.wall_ms, parts.rng)
        self.started_at = loop.time()
        self._loop = loop
        self._transport = parts.transport
        codec = Codec(max_nesting=settings.max_nesting)
        me = Identity(
            name=self.name,
            incarnation=self.incarnation,
            cluster=settings.cluster,
            port=settings.node_port,
            aliases=parts.own_address.aliases,
            window_bytes=settings.window_bytes,
            mailbox_limit=settings.mailbox_limit,
            max_message_bytes=settings.max_message_bytes,
        )
        self.kernel = Kernel(me, settings, parts.rng)
        self._events = EventHub(settings.events_limit)
        self._driver = Driver(self.kernel, parts.transport, codec, self._events, settings, parts.rng, loop)
        context = NodeContext(self.name, self.incarnation, settings, self._driver.sessions, self._is_draining)
        self.tables = tables = Replication(codec, self._driver.sessions)
        self._local = LocalProcesses(context, self._make_process, self._process_exited, self.exit)
        self._signals = signals = Signals(context, codec, self._local)
        self._driver.on_up = tables.node_up
        self._driver.on_down = self._node_down
        office = PeerRequests(self._driver, self._local, signals, tables)
        self.inbound = Inbound(
            self._local.boxes, codec, office, loop.time, settings.max_peers, settings.max_open_calls
        )
        self._driver.inbound = self.inbound
        self._driver.on_change = self._changed
        self._messenger = Messenger(
            self.name, self.incarnation, settings, codec, self._local.boxes, self._driver.sessions,
            self.kernel.topology, loop,
        )  # fmt: skip
        self._streams = Streams(self._messenger, settings, codec, loop)
        self.factories = Factories(settings.max_factories)
        self._remote_spawn = office.remote_spawn = RemoteSpawn(
            context, self.factories, codec, self._local, signals, self._messenger, self.spawn
        )
        self._services = ProcessServices(signals, self._remote_spawn, settings.mailbox_limit)
        chance = random.Random(f"{self.name} {self.incarnation} groups")  # Picks change no back-off.
        self.groups = Groups(self, tables, self._messenger, codec, chance)
        self.registry = Registry(self, tables, codec, self._local, self._messenger, parts.wall_ms)
        office.registry = self.registry
        tables.add(self.groups)
        tables.add(self.registry)
        self.sync = SyncNode(self, self._messenger, loop)
        self._blocking = Blocking(self.name, settings)
        self.run_blocking, self.run_in_process = self._blocking.in_thread, self._blocking.in_process
        self.poller: Poller | None = None
        if parts.discovery is not None:
            self.poller = Poller(parts.discovery, settings, parts.rng, self._looked_up, self._met_anybody)
            self._driver.on_loss = self.poller.kick
        self.discovery = parts.discovery
        self._change = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stopping = False
        self._leaving: asyncio.Task[None] | None = None
        self._console: Any = None

    # Life.

    @classmethod
    def start(
        cls,
        settings: Settings | None = None,
        *,
        discovery: Discovery | None = None,
        transport: Transport | None = None,
        rng: random.Random | None = None,
        wall_ms: int | None = None,
    ) -> NodeStarting:
        """Start a node: ``async with Node.start() as node`` or ``node = await Node.start()``.

        Waits for nothing but its own socket and, at most 2 s, for its own address; never for a peer
        (that is what `ready` is for).

        Args:
            settings: default `Settings.from_env()`.
            discovery: where peers are found; default DNS, if `Settings.dns_query` is set.
            transport: the network; default ZeroMQ. `fleetlm.testing` has one in memory.
            rng: source of jitter and of incarnations; give a seeded one for a repeatable run.
            wall_ms: wall-clock milliseconds for the incarnation; default now.

        Raises:
            SettingsError: a setting cannot be used.
            StartFailed: the address or the port is not to be had. Nothing is left behind.
        """
        return NodeStarting(cls, settings, discovery, transport, rng, wall_ms)

    async def _begin(self, parts: Parts) -> Self:
        forks.guard(self)
        await self._transport.start(self.own_address.ip, self.settings.node_port, self._driver)
        log.info(
            "node %s listens on %s (incarnation %x); own address: %s",
            self.name, endpoint(self.own_address.ip, self.settings.node_port), self.incarnation,
            self.own_address.why,
        )  # fmt: skip
        if parts.on_this_network:
            warn_about(self)
        self._driver.start()
        if self.poller is not None:
            self.poller.start(parts.first_answer)
        if parts.console is not None:
            self._console = parts.console(self)
            try:
                await self._console.start()
            except BaseException:
                await self.stop("could not start", 0.0)
                raise
        return self

    async def stop(self, reason: str = "shutdown", drain_s: float | None = None) -> None:
        """Leave: finish calls in flight, end the processes, say goodbye, close. Idempotent.

        Args:
            reason: told to the peers and shown in their `NodeDown`.
            drain_s: seconds for calls that processes have taken or that wait in mailboxes, and as long
                again for supervision trees to end in their order; default `Settings.drain_s`.
        """
        if self._messenger.stopped == forks.FORKED:
            return  # It is the parent's to stop.
        self._stopping = True
        if self._leaving is None:
            self.kernel.draining = True
            # A task of its own: whoever asks may be cancelled, being a process of this node, say.
            leave = self._leave(reason, drain_s, asyncio.current_task())
            self._leaving = self._loop.create_task(leave, name=f"{self.name} leaves")
        await asyncio.shield(self._leaving)

    async def _leave(self, reason: str, drain_s: float | None, asked_by: asyncio.Task[Any] | None) -> None:
        self._driver.tick_sessions()
        if self.poller is not None:
            await self.poller.stop()
        drain_s = self.settings.drain_s if drain_s is None else drain_s
        await self._drain(drain_s)
        await self._local.stop(drain_s)
        self._messenger.close(reason)
        self._driver.leave(reason)
        if self._console is not None:
            await self._console.stop(reason, asked_by)
        await self._transport.close()
        self._events.close()
        self.tables.close()
        self._changed()
        await asyncio.gather(self.sync.close(), self._blocking.close())
        log.info("node %s stopped: %s", self.name, reason)
        self._stopped.set()

    async def wait_stopped(self) -> None:
        """Return when the node has been stopped, by whomever."""
        await self._stopped.wait()

    # The cluster.

    def list(self, *selectors: str) -> builtins.list[str]:
        """Names of nodes, sorted; by default of those that are connected, without this one.

        Args:
            selectors: any of ``visible hidden connected this known dns busy draining``; their union.

        Raises:
            ValueError: an unknown selector.
        """
        return self.kernel.topology.select(selectors or ("visible",))

    def info(self, name: str | None = None) -> NodeInfo | PeerInfo | None:
        """What is known of this node (None) or of a peer; None for a peer that is not known."""
        if name is None or name == self.name:
            return node_info(self)
        name = canonical_node(name)
        rows = self.kernel.topology.info(self._loop.time())
        return next((row for row in rows if row.name == name), None)

    async def ping(self, name: str, timeout: float = 5.0) -> str:
        """``"pong"`` if that node answers within ``timeout`` seconds, connecting first; else ``"pang"``."""
        if canonical_node(name) == self.name:
            return "pong"
        deadline = self._loop.time() + timeout
        if not await self.connect(name, timeout):
            return "pang"
        try:
            await self._messenger.ask(name, "ping", None, max(0.001, deadline - self._loop.time()))
        except FleetError:
            return "pang"
        return "pong"

    async def connect(self, name: str, timeout: float = 5.0) -> bool:
        """Connect to a node by name, whether DNS knows it or not, and keep trying after ``timeout``.

        Returns:
            Whether it was connected within ``timeout`` seconds; `info(name)` says why not.

        Raises:
            InvalidName: not ``basename@ip``.
            NodeStopped: this node has been stopped, perhaps meanwhile.
        """
        name = canonical_node(name)
        self._check_running()
        if name == self.name:
            return True
        self._driver.asked_for(name)
        try:
            async with asyncio.timeout(timeout):
                while name not in self._driver.sessions:
                    self._check_running()
                    await self._next_change()
        except TimeoutError:
            return False
        return True

    def disconnect(self, name: str) -> bool:
        """Disconnect a node and keep it so until `connect`, or until that node restarts.

        Returns:
            Whether it was connected.
        """
        name = canonical_node(name)
        was_up = name in self._driver.sessions
        self._driver.disconnected(name, "disconnected on request")
        return was_up

    def events(self) -> Subscription[Event]:
        """Every nodeup and nodedown: the nodes that are connected now, then every change, with no gap."""
        return self._events.subscribe()

    async def ready(self, min_nodes: int = 1, timeout: float | None = None) -> None:
        """Wait until so many other nodes are connected.

        Raises:
            TimeoutError: not within ``timeout`` seconds (None: waits for ever).
            NodeStopped: the node was stopped meanwhile.
        """
        async with asyncio.timeout(timeout):
            while len(self._driver.sessions) < min_nodes:
                self._check_running()
                await self._next_change()

    # Processes.

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
        return (await self._remote_spawn.spawn(at, factory, args, name, timeout))[0]

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

    def processes(self) -> builtins.list[ProcessInfo]:
        """The processes of this node, in the order in which they were spawned."""
        return self._local.info()

    def process_info(self, pid: Pid) -> ProcessInfo | None:
        """One of them, or None if it has ended or lives elsewhere."""
        process = self._local.process(pid)
        return None if process is None else process.info()

    def supervisors(self) -> dict[Pid, builtins.list[ChildInfo]]:
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

    # Messages.

    def send(self, to: Target, message: Any) -> Coroutine[Any, Any, None]:
        """Send one message: at most once, in order, never silently lost while the connection lives.

        Waits while a window is full (the connection's, or a local process's mailbox).

        Args:
            to: a pid, a name on this node, or ``(name, node)``.
            message: a value (README, "Embed"). It is packed before this returns.

        Raises:
            NotSerializable, MessageTooLarge: nothing was sent.
            NoConnection, NoProcess: nothing was sent. A name that nobody has on *another* node is
                not noticed: use `call` where that matters.
        """
        return self._messenger.send(to, message)  # One coroutine for each message, not two.

    def cast(self, to: Target, request: Invoke) -> Coroutine[Any, Any, None]:
        """As `send`, for a request to an actor; what `ActorRef.cast` uses."""
        return self._messenger.cast(to, request)

    def send_nowait(self, to: Target, message: Any) -> None:
        """As `send`, but raises `WouldBlock` where that would wait."""
        self._messenger.send_nowait(to, message)

    async def call(self, to: Target, message: Any, timeout: float | None = None) -> Any:
        """Ask a process and wait for its reply.

        Args:
            to: as `send`.
            message: arrives as ``Call(message)``; the process answers with `Call.reply`.
            timeout: seconds; default `Settings.call_timeout_s`. An expired request is not run. In a
                handler of an `Actor` it is at most what is left of the call being served.

        Raises:
            NotDelivered: it never ran (`NoProcess`, `NoConnection`, `NoHandler`, `Undecodable`,
                `WouldBlock`, `Expired`).
            OutcomeUnknown: it may have run (`NodeLost`, `ProcessDown`, `CallTimeout`).
            RemoteError: it ran and raised.
        """
        return await self._messenger.call(to, message, self._deadline_s(timeout))

    def stream(self, to: Target, message: Any, timeout: float | None = None) -> AsyncGenerator[Any, None]:
        """Ask a process for a stream of items.

        ::

            async for token in node.stream(("model", "fleetlm@10.0.0.7"), "prompt"): ...

        The producer waits while `Settings.stream_window` items have not been consumed. Leaving the loop
        cancels it; where the moment matters, use ``contextlib.aclosing``.

        Args:
            to: as `send`.
            message: arrives as ``Call(message)``, with `Call.put` for the items.
            timeout: seconds for the whole stream; default: as long as items come, with pauses of at most
                `Settings.stream_idle_s`.

        Raises:
            NotDelivered, OutcomeUnknown, RemoteError: as `call`, when it is iterated, after the items
                that came before.
        """
        within_s = within_deadline(math.inf if timeout is None else timeout)
        return self._streams.open(to, message, None if within_s == math.inf else within_s)

    async def multicall(
        self, targets: Sequence[Target], message: Any, timeout: float | None = None
    ) -> Sequence[Any]:
        """One request to many, encoded once.

        Returns:
            For each target, in the order of the targets, its reply or the `FleetError` that `call`
            would have raised.
        """
        return await self._messenger.multicall(targets, message, self._deadline_s(timeout))

    async def broadcast(self, name: str, message: Any, nodes: Iterable[str] | None = None) -> int:
        """Send to the process ``name`` on every connected node and this one, encoded once.

        Waits for nodes whose windows are full, after it has sent to all others.

        Args:
            name: of the process on each node.
            message: as `send`.
            nodes: only these; those that are not connected are passed over.

        Returns:
            To how many nodes it was sent.
        """
        return await self._messenger.broadcast(name, message, nodes)

    # Internals.

    @property
    def sessions(self) -> dict[str, Any]:
        """The live connections by name, for counters and tests."""
        return self._driver.sessions

    @property
    def lag_ms(self) -> int:
        """How late the last tick of this loop was, in milliseconds."""
        return self._driver.lag_ms

    def after_fork(self) -> None:
        """`forks.Guarded`: in a child every request raises `NodeStopped`."""
        self._messenger.stopped = forks.FORKED
        self._stopping = True
        self._driver.sessions.clear()

    def _looked_up(self, answer: Answer) -> None:
        contradiction = self._records.contradiction(answer.addresses)
        if contradiction is not None:
            self.own_address_warning = contradiction
            log.warning("%s", contradiction)
        self._driver.looked_up(answer)

    def _is_draining(self, name: str) -> bool:
        if name == self.name:
            return self.kernel.draining
        session = self._driver.sessions.get(name)
        return session is not None and session.peer.draining

    def _make_process(self, pid: Pid, runs: str) -> Process:
        return Process(self, self._services, pid, runs)

    def _process_exited(self, process: RunningProcess, reason: Any) -> None:
        self.tables.exited(process.pid)  # First: a process that is told of the death finds no trace of it.
        self._signals.exited(process, reason)

    def _node_down(self, name: str) -> None:
        self.tables.node_down(name)  # First: whoever hears of a death finds the tables without it.
        self._signals.node_down(name)

    def _met_anybody(self) -> bool:
        return any(peer.connection.ups for peer in self.kernel.topology.peers.values())

    def _changed(self) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()

    async def _next_change(self) -> None:
        await self._change.wait()

    def _check_running(self) -> None:
        if self._stopping:
            raise NodeStopped(self.name, self._messenger.stopped or "is stopping")

    async def _drain(self, drain_s: float) -> None:
        until = self._loop.time() + drain_s
        while self._busy() and self._loop.time() < until:  # noqa: ASYNC110  # many facts end it
            await asyncio.sleep(min(0.01, drain_s))

    def _busy(self) -> bool:
        """Whether there are calls to answer, functions to end, or large messages on their way out."""
        links = self._driver.sessions.values()
        return bool(self._local.open_calls or self._blocking.running) or any(link.lanes for link in links)

    def _deadline_s(self, timeout: float | None) -> float:
        return within_deadline(self.settings.call_timeout_s if timeout is None else timeout)


def _check_actor(cls: object) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Actor)):
        raise TypeError(f"{cls!r} is not a class of actors")
