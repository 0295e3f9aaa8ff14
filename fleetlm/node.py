"""The node: what a program starts, and everything that it can ask of it.

`Node` is a thin front. Its parts (`runtime.assembly` makes and connects them) do the work; a method here
checks its arguments and asks one of them. Two things are decided here: the order in which a node starts,
and the order in which it stops.

Start (`_begin`): the transport listens; then the clock of the driver ticks and the poller looks for peers;
then the remote shell opens. Nothing waits for a peer.

Stop (`stop`, `_leave`): the node *drains* first (`runtime.draining`): it tells its peers, then takes no new
work of theirs, and serves what has begun until there is nothing left or the drain time is over. `drain`
does the same without the rest, and `undrain` takes it back. Then processes end, trees first; then nothing
can be sent any more; then the driver says goodbye, which ends every session; then what is open is closed.
Stopping runs in a task of its own, so a caller of `stop` that is cancelled (as a process of this node is)
does not cancel it.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, TypeVarTuple, overload

from fleetlm.actors.handlers import ActorObject, check_actor, check_unused
from fleetlm.actors.ref import ActorRef, Goal, goal_of
from fleetlm.actors.refs import ActorRefs, goals_of
from fleetlm.actors.starting import start
from fleetlm.blocking import forks
from fleetlm.directory.tables import SharedTable
from fleetlm.errors import FleetError, NodeStopped, SettingsError
from fleetlm.ids import Pid
from fleetlm.leaders.offers import OffersLeaders
from fleetlm.messaging.carrying import CARRYING
from fleetlm.messaging.deadline import within_deadline
from fleetlm.messaging.telling import tell_of
from fleetlm.messaging.windows import local_units
from fleetlm.names import Address, canonical_node
from fleetlm.process import Process
from fleetlm.processes.functions import check_concrete
from fleetlm.processes.running import plain_class
from fleetlm.runtime.assembly import Assembly
from fleetlm.runtime.bootstrap import NodeStarting, Prepared, Service, load_service, warn_about
from fleetlm.runtime.draining import DrainSource
from fleetlm.runtime.info import DrainReport, NodeInfo
from fleetlm.runtime.readiness import Readiness
from fleetlm.runtime.thread_requests import ThreadRequests
from fleetlm.seconds import check_seconds, check_timeout
from fleetlm.stream import Stream

if TYPE_CHECKING:
    import random

    from fleetlm.core.topology import PeerInfo
    from fleetlm.directory.groups import Groups
    from fleetlm.directory.registry import Registry
    from fleetlm.directory.subscriptions import Subscription
    from fleetlm.discovery.interface import Discovery
    from fleetlm.discovery.own_address import OwnAddress
    from fleetlm.entities.kinds import Entities
    from fleetlm.messaging.targets import Target
    from fleetlm.process_pool import ProcessPool
    from fleetlm.processes.info import ChildInfo, ProcessInfo
    from fleetlm.processes.remote_spawn import Factories
    from fleetlm.processes.running import AnyFunction, ProcessFunction, ProcessObject
    from fleetlm.runtime.events import Event
    from fleetlm.runtime.hooks import Phase
    from fleetlm.settings import Settings
    from fleetlm.sync import SyncNode
    from fleetlm.telemetry import Telemetry
    from fleetlm.transport.interface import Transport

log: logging.Logger = logging.getLogger("fleetlm")

A = TypeVar("A", bound=ActorObject)
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[[], Any])


class Node(OffersLeaders):
    """One running node. Made by `Node.start`, never by the constructor.

    ::

        async with fleetlm.Node.start() as node:
            node.spawn(printer, name="printer")
            await node.send(("printer", "fleetlm@10.0.0.7"), {"any": "message"})

    A program whose only purpose is its node is run by `fleetlm.run`, which handles signals and exit codes.
    Everything runs on the event loop that started the node. Several nodes in one program work. Other threads
    use `sync`.

    Each time that a method takes is a number of seconds. A negative time-out counts as over, and ``math.inf``
    as a long one. Anything else (nan, a text, a timedelta, a bool) raises TypeError or ValueError with the
    name of the argument, before anything is done; `send` and `call` alone take a bool for 0 or 1, since they
    do not look at each message's time-out.

    Attributes:
        name: this node's name, ``basename@ip``, with a port if it is not the cluster's base port.
        incarnation: a number that is different at every start; part of every pid of this node.
        settings: the settings it was started with.
        own_address: this node's address, and why it was chosen.
        groups: process groups of the cluster.
        registry: cluster-wide names of processes.
        factories: the functions that other nodes may spawn here, by name; see `spawn_at`.
        sync: this node for other threads of the program.
        telemetry: observers of what happens on this node.
        failure: why this node has stopped by itself, because an essential process failed; else empty.
        drain_report: how the last drain has ended, that of `stop` included; None before the first one.
    """

    def __init__(self, prepared: Prepared) -> None:
        if not isinstance(prepared, Prepared):
            raise TypeError(f"a node is made by `async with {type(self).__name__}.start(settings)`")
        # A process holds the node, and the node spawns for its peers: both get the functions of this class.
        make_process = functools.partial(Process, self)
        parts = self._parts = Assembly(prepared, make_process, self.spawn, self._essential_ended)
        self.settings: Settings = prepared.settings
        self.own_address: OwnAddress = prepared.own_address
        self.name: str = parts.context.name
        self.incarnation: int = parts.context.incarnation
        self.groups: Groups = parts.groups
        self.registry: Registry = parts.registry
        self.factories: Factories = parts.factories
        self._local = parts.local
        self._outbound = parts.outbound
        self._driver = parts.driver
        self._taps = parts.context.taps
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadRequests(self.name, self.settings.call_timeout_s, self._loop)
        self._discovery = prepared.discovery
        self._listening = prepared.endpoints
        self._stopped = asyncio.Event()
        self._stopping = False
        self.failure: str = ""
        self.drain_report: DrainReport | None = None
        self._failing: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._services: builtins.list[Service] = []

    # Start and stop.

    @classmethod
    def start(
        cls,
        settings: Settings | None = None,
        *,
        discovery: Discovery | None = None,
        transport: Transport | None = None,
        rng: random.Random | None = None,
        wall_ms: int | None = None,
    ) -> NodeStarting[Self]:
        """Start a node: ``async with Node.start() as node`` or ``node = await Node.start()``.

        It waits only for its socket and, at most 2 s, for its address to be decided; never for a peer
        (`ready` waits for peers). The block of ``async with`` stops the node at its end. In the main thread
        SIGTERM cancels the block meanwhile, if the program has left it to its default action.

        Args:
            settings: default `Settings.from_env()`.
            discovery: where peers are found; default DNS, if `Settings.dns_query` is set.
            transport: the network; default ZeroMQ. `fleetlm.testing` has one in memory.
            rng: source of jitter, of incarnations and of epochs; default: one that nobody can guess. Give a
                seeded one for a repeatable run.
            wall_ms: wall-clock milliseconds for the incarnation; default now.

        Raises:
            SettingsError: a setting cannot be used.
            StartFailed: the address or the port cannot be used. Nothing is left behind.
        """
        return NodeStarting(cls._begin, settings, discovery, transport, rng, wall_ms)

    @classmethod
    async def _begin(cls, prepared: Prepared) -> Self:
        """Make the node and start its parts. Nothing is left running if this raises."""
        node = cls(prepared)
        await node._parts.transport.start(node._driver)
        if node._parts.log_guard is not None:
            node._parts.log_guard.start()
        log.info(
            "node %s listens on %s (incarnation %x); this node's address: %s",
            node.name, ", ".join(prepared.endpoints), node.incarnation, node.own_address.why,
        )  # fmt: skip
        warn_about(prepared)
        node._driver.start(
            looks_for_peers=node._parts.poller is not None, ticks_with_host=prepared.on_this_network
        )
        if node._parts.loop_watch is not None:
            node._parts.loop_watch.start()
        if node._parts.poller is not None:
            node._parts.poller.start(prepared.first_answer)
        try:
            for name in prepared.services:
                service = load_service(name)(node)
                node._services.append(service)
                await service.start()
        except BaseException:
            await node.stop("could not start", 0.0)
            raise
        return node

    @property
    def entities(self) -> Entities:
        """Keyed entities, each of which lives on one node at a time."""
        return self._parts.entities

    @property
    def is_draining(self) -> bool:
        """Whether this node is about to leave, by `drain` or by `stop`."""
        return self._parts.draining.own.step != 0

    async def drain(
        self, timeout: float | None = None, reason: str = "", *, source: DrainSource = "api"
    ) -> DrainReport:
        """Finish what this node has begun and take no new work of other nodes, so that it can leave.

        The node goes on running; `stop` ends it, and `undrain` takes the drain back. Hooks of the program
        run before and after it (`on_leaving`), and actors hear of it (`Actor.on_drain`). The steps:

        1. *Announced.* Each connected node knows of it from now on: it publishes `NodeDraining`, and picks
           and spawns pass this node over. Everything is still served.
        2. *Refusing*, as soon as each connected node has acknowledged, or has been silent for
           `Settings.drain_ack_s`. Calls, streams and spawns of other nodes get `Draining` (a `NotDelivered`)
           before they run. Calls made on behalf of work in flight are served, wherever that work began;
           so are calls between processes of this node, and messages and casts, which have no answer that
           could say that they were refused.
        3. What is open ends: calls, streams (both ends), blocking functions, large messages that are being
           sent, and what actors and other processes do for messages that they have taken.
        4. When the time is over, streams that go on end with `Draining`, after the items that came before;
           calls that no process has taken are refused.

        Cancelling a caller does not take the drain back. A second drain joins the first one, and gives it its
        own time. A process or handler that waits for its own node's drain is not waited for.

        Args:
            timeout: seconds for all of it; 0: nothing is waited for. Default `Settings.drain_s`.
            reason: for the log and the report.
            source: who asks; shown in `NodeDraining`.

        Returns:
            What was finished, refused and cut. It comes early, with ``was_undone``, if the drain is undone.

        Raises:
            NodeStopped: this node has been stopped.
            ValueError: ``timeout`` is negative, or ``source`` is unknown.
        """
        self._parts.context.check_loop("Node.drain")
        if self._outbound.stopped:
            raise NodeStopped(self.name, self._outbound.stopped)
        timeout_s = self.settings.drain_s if timeout is None else timeout
        check_seconds(timeout_s, least=0)
        self.drain_report = report = await self._parts.leaving.drain(timeout_s, reason, source)
        return report

    def undrain(self) -> bool:
        """Take a drain back: this node takes work as before, and each connected node knows.

        Streams that the end of the drain's time has ended stay ended.

        Returns:
            False if this node does not drain, or stops already.
        """
        self._parts.context.check_loop("Node.undrain")
        return self._parts.leaving.undrain()

    async def stop(
        self, reason: str = "shutdown", drain_s: float | None = None, *, source: DrainSource = "api"
    ) -> None:
        """Stop: finish calls in flight, end the processes, say goodbye to the peers, close.

        Idempotent: a second call waits until the first one ends. Cancelling a caller does not cancel the
        stop.

        Args:
            reason: told to the peers and shown in their `NodeDown`.
            drain_s: seconds for what has begun; see `drain`, which this does first. Supervision trees have
                what is left of that time to end in their order, or `Settings.terminate_s` if that is
                longer. Default `Settings.drain_s`.
            source: who asks; shown in `NodeDraining`.
        """
        if self._outbound.stopped == forks.FORKED:
            return  # The node belongs to the parent process, which stops it.
        self._parts.context.check_loop("Node.stop")
        check_timeout(drain_s, "drain_s", least=0)
        self._stopping = True
        if self._leaving is None:
            leave = self._leave(reason, drain_s, source, asyncio.current_task())
            self._leaving = self._loop.create_task(leave, name=f"{self.name} leaves")
        await asyncio.shield(self._leaving)

    @functools.cached_property
    def sync(self) -> SyncNode:
        """This node for other threads of the program."""
        from fleetlm.sync import SyncNode  # noqa: PLC0415  # a program of coroutines needs none

        return SyncNode(self, self._outbound, self._threads, self._parts.retries)

    @functools.cached_property
    def telemetry(self) -> Telemetry:
        """Observers of what happens on this node: calls, handlers, drops, restarts, sessions.

        ::

            node.telemetry.attach(print, kinds={ChildRestarted, SessionDown})
        """
        from fleetlm.runtime.observers import make_telemetry  # noqa: PLC0415  # most programs need none

        return make_telemetry(self._parts.context)

    async def _leave(
        self, reason: str, drain_s: float | None, source: DrainSource, asked_by: asyncio.Task[Any] | None
    ) -> None:
        """Do what `stop` promises, once, in the order that the module's docstring describes."""
        parts = self._parts
        drain_s = self.settings.drain_s if drain_s is None else drain_s
        until = self._loop.time() + drain_s
        leaving = parts.leaving.drain(drain_s, reason, source, asked_by=asked_by, is_last=True)
        self.drain_report = await leaving
        if parts.poller is not None:
            await parts.poller.stop()
        late_s = parts.leaving.late_s(drain_s, until)
        late_until = self._loop.time() + late_s
        await self._local.stop(late_s)
        await parts.leaving.before_stop(drain_s, until)
        self._outbound.close(reason)
        await parts.circles.stop()
        parts.signals.finish()
        self.drain_report = await parts.leaving.last_frames(late_until)
        parts.close_overview()
        self._driver.leave(reason)
        if parts.loop_watch is not None:
            parts.loop_watch.stop()
        for service in self._services:
            await service.stop(reason, asked_by)
        await parts.transport.close()
        parts.events.close()
        parts.replication.close()
        parts.remote_spawn.pace.close()
        parts.changes.announce()
        parts.user_functions.close()
        await asyncio.gather(self._threads.close(), parts.close_blocking())
        log.info("node %s stopped: %s", self.name, reason)
        if parts.log_guard is not None:
            parts.log_guard.stop()
        self._stopped.set()

    async def __aenter__(self) -> Self:
        """``async with node:`` stops a node that runs already at the end of the block; see `start`."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        in_order = error is None or isinstance(error, asyncio.CancelledError)
        await self.stop("shutdown" if in_order else f"crashed: {type(error).__name__}")

    async def wait_stopped(self) -> None:
        """Wait until the node has been stopped, by any caller of `stop`."""
        await self._stopped.wait()

    # The cluster.

    def list(self, *selectors: str) -> builtins.list[str]:
        """Return names of nodes, sorted; by default of the connected ones, without this one.

        Args:
            *selectors: any of ``visible``, ``hidden``, ``connected``, ``this``, ``known``, ``dns``,
                ``host``, ``busy``, ``draining``; several make a union. ``host`` are the connected nodes that
                share this node's IP address, or one of its further addresses.

        Raises:
            ValueError: an unknown selector.
        """
        return self._parts.kernel.topology.select(selectors or ("visible",))

    @overload
    def info(self) -> NodeInfo: ...
    @overload
    def info(self, name: None) -> NodeInfo: ...
    @overload
    def info(self, name: str) -> NodeInfo | PeerInfo | None: ...
    def info(self, name: str | None = None) -> NodeInfo | PeerInfo | None:
        """Return what is known of this node or of a peer.

        Args:
            name: a peer; None: this node, as a `NodeInfo`.

        Returns:
            None for a peer that is not known.

        Raises:
            InvalidName: ``name`` is not a node name.
        """
        if name is None or name == self.name:
            from fleetlm.runtime.own_info import own_info  # noqa: PLC0415  # few programs look

            return own_info(self._parts, self._listening)
        name = canonical_node(name, self.settings.base_port)
        return self._parts.kernel.topology.info_of(name, self._loop.time())

    async def overview(self, timeout: float = 1.0) -> dict[str, Any]:
        """Return what this node and each connected one know of themselves, for people and tools.

        Nothing in it is secret, and no message is in it. Each list is bounded: ``left_out`` of a node counts
        what is missing. A node makes its part at most twice a second, however many ask. Processes that are
        for their own node only (`spawn`) are in the part of this node, never in those of others.

        Args:
            timeout: seconds, at most 60, that the other nodes have to answer.

        Returns:
            ``{"asked": this node's name, "wall_ms": milliseconds since 1970, "nodes": {name: part}}``, in
            JSON types, with all nodes that this one knows. docs/top.md lists what a part has. For a node that
            is not connected, does not answer in time or is of an older version, it is ``{"name": ...,
            "error": why, "state": ...}``.

        Raises:
            NodeStopped: this node has been stopped.
            ValueError: ``timeout`` is not positive.
        """
        self._parts.context.check_loop("Node.overview")
        return await self._parts.overview.everywhere(timeout)

    async def ping(self, name: str, timeout: float = 5.0) -> str:
        """Connect to a node, if need be, and ask it for an answer.

        Args:
            name: of the node.
            timeout: seconds for connecting and answering together.

        Returns:
            ``"pong"`` if it answered in time, else ``"pang"``.

        Raises:
            InvalidName: not a node name.
            NodeStopped: this node has been stopped.
        """
        if canonical_node(name, self.settings.base_port) == self.name:
            return "pong"
        began = self._loop.time()
        if not await self.connect(name, timeout):
            return "pang"
        try:
            await self._outbound.ask(name, "ping", None, max(0.001, began + timeout - self._loop.time()))
        except FleetError:
            return "pang"
        return "pong"

    async def connect(self, name: str, timeout: float = 5.0) -> bool:
        """Connect to a node by name, whether DNS knows it or not.

        The node goes on trying after ``timeout``, until `disconnect`.

        Args:
            name: of the node.
            timeout: seconds to wait for the connection.

        Returns:
            Whether it was connected within ``timeout`` seconds; `info(name)` says why not.

        Raises:
            InvalidName: not a node name.
            NodeStopped: this node has been stopped, before this call or during it.
        """
        name = canonical_node(name, self.settings.base_port)
        check_seconds(timeout)
        self._check_running()
        if name == self.name:
            return True
        self._driver.asked_for(name)
        try:
            async with asyncio.timeout(timeout):
                while name not in self._driver.sessions:
                    self._check_running()
                    await self._parts.changes.wait()
        except TimeoutError:
            return False
        return True

    def disconnect(self, name: str) -> bool:
        """Disconnect a node, and keep it disconnected until `connect`, or until that node restarts.

        Its requests that no process here has taken are not delivered, and their callers get `NoConnection`.
        Those that run are cancelled, and the callers get `NodeLost`, as those of this node's requests do.

        Returns:
            Whether it was connected.

        Raises:
            InvalidName: not a node name.
        """
        self._parts.context.check_loop("Node.disconnect")
        name = canonical_node(name, self.settings.base_port)
        was_up = name in self._driver.sessions
        self._driver.disconnected(name, "disconnected on request")
        return was_up

    def events(self) -> Subscription[Event]:
        """Subscribe to nodes that come, drain and go: the present first, then every change.

        The present is a `NodeUp` for every connected node, and a `NodeDraining` for every one that drains,
        which may be this one. There is no gap in between. A `NodeDown` also ends the drain of its node. Close
        the subscription when it is not needed any more.
        """
        return self._parts.events.subscribe()

    def table(self, name: str) -> SharedTable:
        """Return a table of the whole cluster in which each node writes rows of its own; see `SharedTable`.

        Args:
            name: 1 to 255 printable characters. A table exists while it has a row.

        Raises:
            InvalidName: not such a text.
        """
        return SharedTable(self._parts.replicated_rows, name)

    def add_check(self, name: str, check: Callable[[], Any]) -> None:
        """Add a check of the program to what makes this node ready (`fleetlm health --ready`).

        ::

            node.add_check("model", lambda: model.is_loaded)

        Args:
            name: shown where the check fails. A check of this name is replaced.
            check: a coroutine function, or a plain function, which runs in a thread; without arguments. It
                passes if it returns a true value within `Settings.check_s` seconds.

        Raises:
            TypeError: ``check`` cannot be called.
            ValueError: there are `Settings.max_hooks` checks already.
        """
        self._parts.readiness.add(name, check)

    @overload
    def on_leaving(self, function: F, /, *, phase: Phase = ..., timeout: float | None = ...) -> F: ...
    @overload
    def on_leaving(
        self, function: None = None, /, *, phase: Phase = ..., timeout: float | None = ...
    ) -> Callable[[F], F]: ...
    def on_leaving(
        self, function: F | None = None, /, *, phase: Phase = "before_drain", timeout: float | None = None
    ) -> F | Callable[[F], F]:
        """Call a function of the program when this node leaves. A decorator, or a plain call.

        ::

            @node.on_leaving(phase="before_drain", timeout=5)
            async def leave_the_load_balancer() -> None: ...

            node.on_leaving(log_file.close, phase="before_stop")

        The phases: ``before_drain``, before the node announces that it leaves, while it takes work as ever;
        ``after_drain``, when what it has begun is done, or the time is over; ``before_stop``, when its
        processes have ended and it can still send and call; ``after_undrain``, when a drain is taken back.
        Hooks of one phase run at the same time. Those of ``before_drain`` use up the time of the drain
        (`Settings.drain_s`); later ones have what is left of it, or at least `Settings.terminate_s`.

        Args:
            function: a coroutine function, or a plain one, which runs in a thread and must use `sync` there;
                without arguments. What it raises is logged and stops nothing.
            phase: when it is called; once for a drain.
            timeout: seconds that it has; then the node goes on without it. Default `Settings.hook_s`.

        Returns:
            The function, or without one a decorator.

        Raises:
            TypeError: ``function`` cannot be called.
            ValueError: an unknown phase, a ``timeout`` that is not positive, or `Settings.max_hooks` hooks
                are there already.
        """
        self._parts.hooks.check(phase, timeout)
        if function is None:
            return functools.partial(self.on_leaving, phase=phase, timeout=timeout)
        self._parts.hooks.add(phase, function, timeout)
        return function

    def remove_check(self, name: str) -> bool:
        """Remove a check. Returns whether there was one of this name."""
        return self._parts.readiness.remove(name)

    async def readiness(self, min_nodes: int = 0) -> Readiness:
        """Return whether this node takes work: what `fleetlm health --ready` asks.

        It does if it neither drains nor stops, is connected to ``min_nodes`` others, and passes its checks
        (`add_check`), which run now.

        Args:
            min_nodes: number of nodes, without this one.
        """
        return await self._parts.readiness.look(min_nodes)

    async def ready(self, min_nodes: int = 1, timeout: float | None = None) -> None:
        """Wait until at least ``min_nodes`` other nodes are connected.

        Args:
            min_nodes: number of nodes, without this one.
            timeout: seconds; None waits without limit.

        Raises:
            SettingsError: clustering is off, and no other node is known, so that waiting would never end.
                A node has no peers to wait for without `Settings.dns_query` (DNS_CLUSTER_QUERY), without a
                ``discovery`` of `Node.start`, before any `connect`, and before a peer has connected to it.
            TimeoutError: they were not connected within ``timeout`` seconds.
            NodeStopped: the node was stopped meanwhile.
        """
        check_timeout(timeout)
        async with asyncio.timeout(timeout):
            while len(self._driver.sessions) < min_nodes:
                self._check_running()
                self._check_expects_peers(min_nodes)
                await self._parts.changes.wait()

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
        function: ProcessFunction,
        *args: Any,
        name: str | None = None,
        essential: bool | None = None,
        local: bool = False,
    ) -> Pid:
        """Run ``await function(process, *args)`` as a process of this node.

        The process ends when the function returns, raises (which is logged) or is cancelled, and its name
        is free again.

        Args:
            function: a coroutine function; its first argument is its `Process`. Or an `Actor`, or the
                class of one, which is made from ``args`` inside the new process.
            *args: its further arguments.
            name: registered at once, so that a message can be sent right after.
            essential: True: the node stops when this process ends. It has failed (`failure`) unless the
                process ended with ``"normal"``. None: a supervisor that is spawned in a program of
                `fleetlm start` or `fleetlm.run` is essential, in that the node fails when it gives up;
                nothing else is. False: the node goes on.
            local: no other node reaches the process, by its name or by its pid: for them there is none. A
                call of theirs is refused with `NotAllowed`. Replies to what it asks of other nodes do come.

        Returns:
            The pid of the process.

        Raises:
            AlreadyRegistered, InvalidName: nothing was started.
            NodeStopped: this node has been stopped; nothing was started.
            TypeError: ``function`` is none that a process can run: a plain function that returns nothing, a
                generator function, a coroutine (it was closed), an abstract class, a class whose objects
                cannot be called; nothing was started. Where only a call can show that the result cannot be
                awaited, the process ends with a TypeError.
            RuntimeError: it is an `Actor` object that has been run.
        """
        self._check_running()
        check_unused(function)
        pid = self._local.spawn(function, args, name, is_local=local)
        if essential is not None:
            self._parts.essential.say(pid.number, essential, name)
        return pid

    @overload
    async def start_actor(
        self,
        actor: Callable[[*Ts], A],
        *args: *Ts,
        name: str | None = None,
        timeout: float | None = None,
        local: bool = False,
    ) -> ActorRef[A]: ...
    @overload
    async def start_actor(
        self, actor: A, *, name: str | None = None, timeout: float | None = None, local: bool = False
    ) -> ActorRef[A]: ...
    async def start_actor(  # type: ignore[misc]
        self,
        actor: Any,
        *args: Any,
        name: str | None = None,
        timeout: float | None = None,
        local: bool = False,
    ) -> ActorRef[A]:
        """Spawn an actor, and return a reference when its ``init`` is done.

        Args:
            actor: its class, made from ``args``; or an object of it.
            *args: for the constructor.
            name: registered at once; messages that are sent to it wait for ``init``.
            timeout: seconds for ``init``; default `Settings.call_timeout_s`.
            local: no other node reaches it; see `spawn`.

        Raises:
            InitFailed: the constructor or ``init`` raised, ended the process, or took longer; the process
                is gone.
            AlreadyRegistered, InvalidName, NodeStopped, TypeError, RuntimeError: as `spawn`.
            Expired: the call being served has no time left; nothing was started.
        """
        self._check_running()
        actor = plain_class(actor)
        cls = actor if isinstance(actor, type) else type(actor)
        check_actor(cls)
        check_concrete(actor)
        check_unused(actor)
        check_timeout(timeout)
        timeout_s = within_deadline(self.settings.call_timeout_s if timeout is None else timeout)
        pid = await start(self._local, actor, args, name, timeout_s, is_local=local)
        return ActorRef(self._parts.sender, cls, pid)

    def ref(self, actor: Callable[..., A], target: Goal, at: str | None = None) -> ActorRef[A]:
        """Return a typed reference to an actor anywhere.

        Nothing is asked of the actor, so the reference may lead to a process that does not exist.

        Args:
            actor: its class, or a base class of it that has the handlers.
            target: a pid, a name on this node, ``(name, node)``, or a function that returns a pid and is
                called at each use.
            at: the node on which ``target`` is a name.

        Raises:
            TypeError: ``actor`` is not a subclass of `Actor`, or ``at`` is given and ``target``
                is not a name.
            InvalidName: ``at`` is not a node name.
        """
        check_actor(actor)
        return ActorRef(self._parts.sender, plain_class(actor), goal_of(target, at, self.settings.base_port))

    def refs(
        self,
        actor: Callable[..., A],
        targets: str | Iterable[Target | ActorRef[A]] | Callable[[], Iterable[Target]],
    ) -> ActorRefs[A]:
        """Return typed references to many actors, which get one request together.

        ::

            counts = await node.refs(Sessions, "sessions").multicall(Sessions.size)

        Args:
            actor: their class, or a base class of it that has the handlers.
            targets: a name: the actor of that name on this node and on each node that is connected at the
                moment of use. Or the actors, each as in `ref` or a reference; or a function that returns
                them and is called at each use. The members of a group: `Groups.refs`.

        Raises:
            TypeError: ``actor`` is not a subclass of `Actor`, or ``targets`` is a pid or an address.
        """
        check_actor(actor)
        goals = (
            functools.partial(self._everywhere, targets) if isinstance(targets, str) else goals_of(targets)
        )
        return ActorRefs(self._parts.sender, plain_class(actor), goals)

    async def spawn_at(
        self, at: str, factory: str, *args: Any, name: str | None = None, timeout: float = 5.0
    ) -> Pid:
        """Spawn a process on a node, by the name of a factory that is registered there.

        It is not linked, and lives on when this node is lost; `Process.spawn_link_at` and
        `Process.spawn_monitor_at` tie it to a process. See `Factories`.

        Args:
            at: the node, which may be this one.
            factory: its name there; see `Factories.register`.
            *args: message values, passed to the process function after its `Process`.
            name: registered at once, on ``at``.
            timeout: seconds. A process whose answer comes after that, or after this was cancelled, is
                killed.

        Returns:
            The pid of the process.

        Raises:
            NoFactory, Draining, NoConnection, Undecodable, WouldBlock: nothing was spawned.
            AlreadyRegistered: nothing was spawned; its ``owner`` is a text.
            NotSerializable, MessageTooLarge, InvalidName: nothing was sent.
            NodeLost: the connection ended first; a process may live there.
            CallTimeout: a process may have run for a while; it lives on only if the connection is lost
                before its answer comes.
        """
        return (await self._parts.remote_spawn.spawn(at, factory, args, name, timeout))[0]

    def exit(self, pid: Pid, reason: Any = "shutdown") -> None:
        """Send an exit signal to a process anywhere; its sender is this node itself, number 0.

        Does nothing if the process has ended or its node is not connected. See `Process.exit`.

        Raises:
            NotAllowed: its node lets no other node end its processes; nothing was sent.
        """
        self._parts.signals.ask_to_exit(self._parts.context.pid, pid, reason)

    async def join(self, pid: Pid, timeout: float | None = None) -> bool:
        """Wait until a process of this node has ended, its clean-up included.

        Args:
            pid: of a process of this node; any other counts as ended.
            timeout: seconds; None waits without limit.

        Returns:
            False if it has not ended within ``timeout`` seconds.
        """
        check_timeout(timeout)
        return await self._local.join(pid, timeout)

    def processes(self) -> builtins.list[ProcessInfo]:
        """Return a snapshot of each process of this node, in the order in which they were spawned."""
        return self._local.info()

    def process_info(self, pid: Pid) -> ProcessInfo | None:
        """Return a snapshot of a process of this node; None if it has ended or lives elsewhere."""
        process = self._local.process(pid)
        return None if process is None else process.info()

    def supervisors(self) -> dict[Pid, builtins.list[ChildInfo]]:
        """Return the supervisors of this node, each with its children in the order of their start."""
        return self._local.supervisors()

    def name_of(self, pid: Pid) -> str | None:
        """Return the name under which a process of this node is registered, or None."""
        return self._local.table.name_of(pid.number)

    def registered(self) -> dict[str, Pid]:
        """Return the names registered on this node, with their processes."""
        return self._local.table.registered()

    async def whereis(self, name: str, at: str | None = None, timeout: float = 5.0) -> Pid | None:
        """Return the process registered under ``name`` on this node, or on the node ``at``; or None.

        Args:
            name: of the process.
            at: a node; None: this one.
            timeout: seconds that ``at`` has to answer.

        Raises:
            NoConnection, NodeLost, CallTimeout: ``at`` could not be asked.
        """
        check_seconds(timeout)
        if at is None or canonical_node(at, self.settings.base_port) == self.name:
            return self._local.table.whereis(name)
        found = await self._outbound.ask(at, "whereis", name, within_deadline(timeout))
        return found if isinstance(found, Pid) else None

    async def register(self, name: str, pid: Pid, timeout: float = 5.0, *, local: bool = False) -> None:
        """Register a process under a name on its own node, wherever that is.

        Args:
            name: 1 to 255 printable characters. Names of the whole cluster are in `registry`.
            pid: of a living process.
            timeout: seconds that the node of the process has to answer.
            local: from now on no other node reaches the process, as with `spawn`; only for a process of this
                node. Taking the name away does not change that.

        Raises:
            AlreadyRegistered, NoProcess, NotAllowed: nothing changed.
            ValueError: ``local`` for a process of another node.
            InvalidName: nothing changed; from another node it comes as `RemoteError` with that type name.
            NoConnection, NodeLost, CallTimeout: its node could not be asked.
        """
        self._parts.context.check_loop("Node.register")
        check_seconds(timeout)
        if pid.node == self.name:
            self._local.register(name, pid, is_local=local)
        elif local:
            raise ValueError(f"{pid} is not a process of {self.name}, so that cannot keep it for itself")
        else:
            await self._outbound.ask(pid.node, "register", [name, pid], within_deadline(timeout))

    async def unregister(self, name: str, at: str | None = None, timeout: float = 5.0) -> bool:
        """Take a name away, on this node or on ``at``.

        Returns:
            False if no process had it.

        Raises:
            NoConnection, NodeLost, CallTimeout: ``at`` could not be asked.
        """
        self._parts.context.check_loop("Node.unregister")
        check_seconds(timeout)
        if at is None or canonical_node(at, self.settings.base_port) == self.name:
            return self._local.unregister(name)
        return bool(await self._outbound.ask(at, "unregister", name, within_deadline(timeout)))

    # Messages.

    def send(self, to: Target, message: Any, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Send one message: at most once, in order, never silently lost while the connection lives.

        Waits while a window is full (the connection's, or a local process's mailbox). A process that sends
        to itself does not wait, since it would wait for itself.

        Args:
            to: a pid, a name on this node, or ``(name, node)``.
            message: a value (README, "Embed"). It is packed before this returns.
            timeout: seconds to wait for room; default `Settings.send_timeout_s`.

        Raises:
            NotSerializable, MessageTooLarge: nothing was sent.
            WouldBlock: there was no room in time; nothing was sent. For a process that sends to itself: too
                many messages wait for it already.
            NoConnection, NoProcess: nothing was sent. A name that no process has on *another* node is
                not noticed: use `call` where that matters.
            NodeStopped: this node has been stopped.
        """
        return self._outbound.send(to, message, timeout)  # One coroutine for each message, not two.

    def send_nowait(self, to: Target, message: Any) -> None:
        """As `send`, but raises `WouldBlock` where that would wait."""
        self._outbound.send_nowait(to, message)

    def call(self, to: Target, message: Any, timeout: float | None = None) -> Coroutine[Any, Any, Any]:
        """Call a process and wait for its reply.

        Args:
            to: as `send`.
            message: arrives as ``Call(message)``; the process answers with `Call.reply`.
            timeout: seconds; default `Settings.call_timeout_s`. An expired request is not run. In a
                handler of an `Actor` it is at most what is left of the call being served. The caller
                hears of it at most 16 ms late, and never early.

        Returns:
            The reply.

        Raises:
            NotDelivered: it never ran (`NoProcess`, `NoConnection`, `NoHandler`, `Undecodable`,
                `WouldBlock`, `Expired`).
            OutcomeUnknown: it may have run (`NodeLost`, `ProcessDown`, `CallTimeout`).
            RemoteError: it ran and raised.
        """
        if CARRYING.is_active:
            call = self._outbound.context.ask("call", self._outbound.call, to, message, timeout)
        else:
            call = self._outbound.call(to, message, timeout)  # One coroutine for each call, not three.
        sampler = self._taps.calls
        if sampler is None:
            return call
        sampler.nth = nth = sampler.nth + 1  # `Sampler.pick` inline.
        if nth & sampler.mask:
            return call
        return tell_of(self._outbound.waits, call, to, message, sampler.weigh())

    def stream(
        self, to: Target, message: Any, timeout: float | None = None, idle: float | None = None
    ) -> Stream[Any]:
        """Call a process for a stream of items.

        ::

            async for token in node.stream(("model", "fleetlm@10.0.0.7"), "prompt"): ...

        The producer waits while `Settings.stream_window` items have not been consumed. Leaving the loop
        cancels it; where the moment matters, use ``async with``.

        Args:
            to: as `send`.
            message: arrives as ``Call(message)``, with `Call.put` for the items.
            timeout: seconds for the whole stream; None: as long as items come.
            idle: seconds that the stream may pause: the consumer waits no longer for an item, and the
                producer no longer for its consumer. ``math.inf``: without limit. None: without limit where
                ``timeout`` is given, else `Settings.stream_idle_s`.

        Returns:
            A `Stream`, which begins when its first item is waited for.

        Raises:
            NotDelivered, OutcomeUnknown, RemoteError: as `call`, when it is iterated, after the items
                that came before; `StreamIdle`, an OutcomeUnknown, at its idle limit.
        """
        return self._parts.sender.stream(to, message, timeout, idle)

    async def multicall(
        self, targets: Sequence[Target], message: Any, timeout: float | None = None
    ) -> Sequence[Any]:
        """Call many processes with one request, encoded once.

        Args:
            targets: each as in `send`.
            message: as `call`.
            timeout: as `call`, for all of them together.

        Returns:
            For each target, in the order of the targets, its reply or the `FleetError` that `call`
            would have raised.

        Raises:
            NotSerializable: nothing was sent.
        """
        check_timeout(timeout)
        within_s = within_deadline(self.settings.call_timeout_s if timeout is None else timeout)
        return await self._parts.multicall(targets, message, within_s)

    async def broadcast(self, name: str, message: Any, nodes: Iterable[str] | None = None) -> int:
        """Send to the process ``name`` on every connected node and this one, encoded once.

        Waits for nodes whose windows are full, after it has sent to all others.

        Args:
            name: of the process on each node.
            message: as `send`.
            nodes: only these; those that are not connected, or take only smaller messages, are passed over.

        Returns:
            The number of nodes to which it was sent.

        Raises:
            NotSerializable, MessageTooLarge, InvalidName: nothing was sent.
            NodeStopped: this node has been stopped.
        """
        return await self._parts.fan_out.broadcast(name, message, nodes)

    def retry(
        self,
        operation: Callable[[], Awaitable[R]],
        *,
        attempts: int = 4,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> Coroutine[Any, Any, R]:
        """Make a request, and make it again if it failed and that is safe; see `fleetlm.retry`.

        The same, with the budget and the pauses of this node, wherever it runs.
        """
        return self._parts.retries.run(operation, attempts, timeout, idempotent)

    # Blocking functions.

    def run_blocking(
        self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Run a blocking function in a thread while the node goes on: ``await node.run_blocking(f, x)``.

        For functions that wait: files, drivers, C code that releases the GIL. Pure Python code that
        computes blocks the event loop even from another thread; use `run_in_process` for it. The
        function runs with the caller's context variables, and reaches the node through ``node.sync``.

        `Settings.blocking_threads` functions run at a time; further callers wait in order.

        If the caller is cancelled while it waits for a thread, the function never runs. Once the
        function has begun, it runs to its end, since a thread cannot be stopped, and its result is
        dropped.

        Args:
            function: a plain function, not a coroutine function.
            *args: its positional arguments.
            **kwargs: its named arguments.

        Returns:
            The function's result.

        Raises:
            Exception: what the function raised, unchanged; RuntimeError in place of StopIteration and of
                what is
                no `Exception`, such as SystemExit: it ends the call, not the node.
            TypeError: ``function`` is not callable, or is a coroutine function. It has not run.
            NodeStopped: the node stopped. The function has not run, or, if it had begun, still runs.
        """
        return self._parts.blocking.in_thread(function, *args, **kwargs)

    def stream_blocking(
        self, generator: Callable[P, Iterable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Stream[R]:
        """Run a blocking generator in a thread, and stream what it yields.

        ::

            async with node.stream_blocking(model.tokens, prompt) as tokens:
                async for token in tokens: ...

        The generator runs in one thread from its first line to its last, with the caller's context variables.
        It waits at its ``yield`` while `Settings.stream_window` items have not been taken. When its consumer
        gives up (`Stream.aclose`, the end of ``async with``, a `Stream` that is dropped), it gets
        GeneratorExit in its thread at its next ``yield``; one that blocks for ever keeps its thread.

        `Settings.blocking_generators` are open at a time; further ones wait in order.

        Args:
            generator: a generator function, or a function that returns an iterable.
            *args: its positional arguments.
            **kwargs: its named arguments.

        Returns:
            A `Stream`, which begins when its first item is waited for.

        Raises:
            TypeError: ``generator`` cannot be called, or is async.
            Exception: what the generator raised, after the items that came before, unchanged.
            NodeStopped: the node stopped, when it is iterated.
        """
        return Stream(self._parts.blocking.generate(generator, args, kwargs, local_units), self._loop)

    def run_in_process(
        self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Run a function in another process of this machine: ``await node.run_in_process(f, x)``.

        For functions that compute: each process has an interpreter, and so a GIL, of its own. There is
        one process for each CPU that this program may use: its affinity and the quota of its container count
        (`Settings.blocking_processes` says otherwise). Processes are spawned, never forked,
        since ZeroMQ does not survive a fork. They are kept, and the first use of each takes as long as
        Python and the program's imports need to start.

        Function, arguments and result are pickled. So the function must stand at the top level of a
        module, and code that runs when the program starts must stand under
        ``if __name__ == "__main__":``. Cancellation works as with `run_blocking`. When the node
        stops, functions that have not ended within the drain time are killed.

        Args:
            function: a plain function.
            *args: its positional arguments; do not change them while this call waits.
            **kwargs: its named arguments.

        Returns:
            A copy of the function's result.

        Raises:
            Exception: what the function raised, with the worker's traceback as a note. An exception
                that cannot be pickled arrives as a RuntimeError with its text, and so does SystemExit.
            TypeError: the function is not callable, or the function, an argument or the result cannot
                be pickled. The function has run only if its result is the problem.
            WorkerDied: the process ended (killed, out of memory, ``os._exit``). Other calls are not
                affected, and the next call gets a new process.
            WorkerNotStarted: there was no process for it; the function has not run.
            NodeStopped: as with `run_blocking`, but a function that had begun is killed.
        """
        return self._parts.blocking.in_process(function, *args, **kwargs)

    def process_pool(
        self, initializer: Callable[..., object] | None = None, /, *args: Any, processes: int = 1
    ) -> ProcessPool:
        """Return a pool of worker processes of its own: ``pool = node.process_pool(load, "/models/llama")``.

        For functions that need something which takes long to load, or which fits only once into memory: the
        processes of `run_in_process` serve every caller, and which of them runs a function is chance. An
        actor makes its pool with `Actor.process_pool`, so that the pool ends with the actor.

        Args:
            initializer: a plain function at the top level of a module, run first in each process.
            *args: its arguments, which are pickled.
            processes: how many functions run at a time.

        Raises:
            TypeError: the initializer cannot be sent to another process.
            NodeStopped: this node has been stopped.
        """
        from fleetlm.process_pool import ProcessPool  # noqa: PLC0415  # most programs need none

        return ProcessPool(self._parts.blocking, initializer, args, processes)

    # Internals.

    def _everywhere(self, name: str) -> builtins.list[Target]:
        return [Address(name, node) for node in (self.name, *self.list())]

    def _check_running(self) -> None:
        if self._stopping or self._outbound.stopped:
            raise NodeStopped(self.name, self._outbound.stopped or "is stopping")
        self._parts.context.check_loop("A method of Node")

    def _check_expects_peers(self, min_nodes: int) -> None:
        """Raise SettingsError if no other node can ever connect, as far as this node knows."""
        peers = self._parts.kernel.topology.peers.values()
        if self._discovery is None and all(peer.is_blocked for peer in peers):
            raise SettingsError(
                "DNS_CLUSTER_QUERY",
                None,
                "a DNS name that resolves to the addresses of the cluster's nodes",
                f"Clustering is off, so ready(min_nodes={min_nodes}) would wait without end: set "
                "DNS_CLUSTER_QUERY, give Node.start a discovery, or call node.connect(name) first.",
            )

    def _essential_ended(self, failure: str, what: str) -> None:
        """Implement `Essential`: stop, since an essential process has ended."""
        if self._stopping:
            return
        self._stopping = True
        self.failure = failure
        log.log(logging.ERROR if failure else logging.INFO, "node %s stops: %s", self.name, what)
        leave = self.stop(f"failed: {what}" if failure else "shutdown")
        self._failing = self._loop.create_task(leave, name=f"{self.name} stops by itself")


def parts_of(node: Node) -> Assembly:
    """Return the machinery of a node, for `fleetlm.testing` and tests. It may change in every version."""
    return node._parts  # noqa: SLF001  # the one way in
