"""The node: what a program starts, and everything it can ask of it."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any, Self

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
from fleetlm.ids import new_incarnation
from fleetlm.messaging.inbound import Inbound
from fleetlm.messaging.outbound import Messenger
from fleetlm.messaging.streams import Streams
from fleetlm.names import canonical_node, endpoint
from fleetlm.node_messages import MessageApi
from fleetlm.node_processes import ProcessApi
from fleetlm.processes.local import LocalProcesses
from fleetlm.processes.remote_spawn import Factories
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
    from fleetlm.discovery.interface import Discovery
    from fleetlm.transport.interface import Transport

log = logging.getLogger("fleetlm")

Names = list[str]
"""`Node.list` hides the built-in name inside the class."""


class Node(ProcessApi, MessageApi):
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
        self._local = LocalProcesses(self, self.name, self.incarnation, settings.mailbox_limit)
        signals = Signals(self.name, self.incarnation, codec, self._local, self._driver.sessions)
        self._local.signals = self._signals = signals
        self.tables = tables = Replication(codec, self._driver.sessions)
        self._local.on_exited = tables.exited
        self._driver.on_up = tables.node_up
        self._driver.on_down = self._node_down
        office = PeerRequests(self._driver, self._local, signals, tables)
        self.inbound = Inbound(
            self._local.boxes, codec, office, loop.time, settings.max_peers, settings.max_open_calls
        )
        self._driver.inbound = self.inbound
        self._driver.on_change = self._changed
        self._messenger = Messenger(
            self.name, self.incarnation, settings, codec, self._local, self._driver.sessions,
            self.kernel.topology, loop,
        )  # fmt: skip
        self._streams = Streams(self._messenger, settings, codec, loop)
        self.factories = office.factories = Factories(self, codec, self._local, signals, self._messenger)
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

    def list(self, *selectors: str) -> Names:
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

    # How.

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
