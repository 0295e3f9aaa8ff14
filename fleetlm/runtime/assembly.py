"""Makes the parts of one node and connects them: the one place that knows them all.

Theory of operation. The constructor of each part is given everything that the part uses; no attribute is
set from outside afterwards. So the order below is the order of dependence, and the parts that come first do
not know those that come later:

1. **values**: the codec, this node's identity and context. The context holds the dict of sessions, which
   is empty until the driver fills it; every part that sends reads it.
2. **decisions**: the kernel, which is pure. It decides who is connected; only the driver talks to it,
   apart from questions such as "is this node draining".
3. **processes**: tables that are replicated to other nodes, then local processes, then their signals.
   Processes come before messages because a message is put into a mailbox.
4. **messages**: outbound messages and streams, and what sends through them: references to actors, remote
   spawn, groups, the registry.
5. **the way in**: requests that peers make of this node, then `Inbound`, which takes frames apart.
6. **the driver**, last: it feeds all the others with facts from the transport, the poller and the clock.

Some calls run against that order: a process ends and its signals must leave, a peer's tick must reach the
kernel through the driver, a lost connection must make the poller ask again. Each of them is a method of
`Assembly`, below "Calls from earlier parts to later ones"; a part gets that method, or the assembly as the
implementation of a protocol that the part defines itself (`Follower`, `PeerFacts`). Two of these methods
keep an order that other modules rely on: the replicated tables forget a process, and a node, *before* any
process is told that it has ended, so that a process that gets a `Down` finds the tables without the one that
ended.

Two things from above this package are given to it: the class of processes, and the function that spawns a
process with the checks of the public API.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fleetlm.actors.sender import ActorSender
from fleetlm.blocking import forks
from fleetlm.core.connection import Identity
from fleetlm.core.dns_answers import Outcome
from fleetlm.core.kernel import Kernel
from fleetlm.directory.groups import Groups, ReplicatedGroups
from fleetlm.directory.registry import Registry, ReplicatedNames
from fleetlm.directory.replication import Replication
from fleetlm.directory.tables import ReplicatedRows
from fleetlm.discovery.address_watch import AddressProblem, AddressWatch, Verdict
from fleetlm.discovery.poller import Poller
from fleetlm.entities.replicated_shards import ReplicatedShards
from fleetlm.ids import new_incarnation
from fleetlm.messaging.fan_out import FanOut
from fleetlm.messaging.inbound import Inbound
from fleetlm.messaging.outbound import Outbound
from fleetlm.messaging.retries import Retries
from fleetlm.messaging.turns import CountedTurns, Turns
from fleetlm.messaging.waits import Wait, Waits
from fleetlm.process import ProcessServices
from fleetlm.processes.circles import Circles
from fleetlm.processes.context import NodeContext
from fleetlm.processes.essential import Essential
from fleetlm.processes.local import LocalProcesses
from fleetlm.processes.remote_spawn import Factories, RemoteSpawn
from fleetlm.processes.signals import Signals
from fleetlm.processes.slowness import FullMailboxes
from fleetlm.runtime.draining import Draining
from fleetlm.runtime.driver import Driver
from fleetlm.runtime.events import ChangeSignal, EventHub, RecentEvents
from fleetlm.runtime.hooks import LeavingHooks
from fleetlm.runtime.leaving import Leaving
from fleetlm.runtime.log_guard import GUARD, LogGuard
from fleetlm.runtime.loop_watch import LoopWatch
from fleetlm.runtime.readiness import ReadinessChecks
from fleetlm.runtime.requests import PeerRequests
from fleetlm.runtime.unfinished import Unfinished
from fleetlm.runtime.user_functions import UserFunctions
from fleetlm.setting_parsers import RIGHTS
from fleetlm.transport.interface import Transport
from fleetlm.wire.carriers import FEATURE as CARRIERS
from fleetlm.wire.codec import Codec
from fleetlm.wire.rights import features_of
from fleetlm.wire.table_topics import FEATURES as TABLES

if TYPE_CHECKING:
    from fleetlm.blocking.pools import Blocking
    from fleetlm.call import Call
    from fleetlm.core.dns_answers import Answer
    from fleetlm.entities.info import KindInfo
    from fleetlm.entities.kinds import Entities
    from fleetlm.ids import Pid
    from fleetlm.messaging.multicall import Multicall
    from fleetlm.messaging.session import Session
    from fleetlm.messaging.streams import Streams
    from fleetlm.processes.running import RunningProcess
    from fleetlm.runtime.bootstrap import Prepared
    from fleetlm.runtime.overview import Overview

log: logging.Logger = logging.getLogger("fleetlm")

DIALS_OF_A_START = 2
"""Failed dials of a node that was never connected, after which it is not waited for any more: the first one
may fail because that node has only just started."""

MakeProcess = Callable[["ProcessServices", "Pid", str], "RunningProcess"]
"""Makes a process from the services of its node, its pid and the name of its function."""


class Assembly:
    """The parts of one node, connected. Nothing has been opened or started yet.

    `Node` asks these parts; `fleetlm.testing` and tests look at them through `node.parts_of`. Must be made
    on the event loop that the node will run on.

    Args:
        prepared: what the node is made from.
        make_process: the constructor of `Process`, with the node already given.
        spawn: `Node.spawn`.
        essential_ended: stops the node, since an essential process has ended; see `Essential`.
    """

    def __init__(
        self,
        prepared: Prepared,
        make_process: MakeProcess,
        spawn: Callable[..., Pid],
        essential_ended: Callable[[str, str], None],
    ) -> None:
        settings, rng = prepared.settings, prepared.rng
        self._make_process = make_process
        self._loop = asyncio.get_running_loop()
        self.transport: Transport = prepared.transport
        self.started_at: float = self._loop.time()
        self._stop_by_itself = essential_ended
        self.may_restart: bool = False
        """Whether what runs this node starts another one when this one stops with `restart_because`."""
        self.restart_because: str = ""
        self._is_closed = False
        self.exposure_warning: str | None = prepared.exposure_warning
        self._make_values(prepared)
        me, codec, sessions = self.context, self.codec, self.context.sessions
        loop = self._loop
        self.turns: Turns = Turns.of(loop) if prepared.on_this_network else CountedTurns(loop)
        # Processes.
        self.replication: Replication = Replication(codec, sessions, self.turns)
        self.replicated_shards: ReplicatedShards = ReplicatedShards(  # First: see its module.
            me, self.replication, prepared.wall_ms, self
        )
        self._has_answer = False
        self.local: LocalProcesses = LocalProcesses(
            me, self._new_process, self._process_exited, self.send_exit
        )
        self.signals: Signals = Signals(me, codec, self.local)
        self.essential: Essential = Essential(essential_ended)
        # Messages.
        self.outbound: Outbound = Outbound(
            me.name, me.incarnation, settings, codec, self.local.boxes, sessions, self.kernel.topology,
            Waits(self.local.of_task, loop, self.turns, self._follow_waits, me.taps),
        )  # fmt: skip
        self.draining: Draining = self._make_draining()
        self.circles: Circles = Circles(self.local, self.outbound, settings.stalled_after_s)
        self.full_mailboxes: FullMailboxes = FullMailboxes(
            sessions, self.outbound.waits, settings.stalled_after_s
        )
        self._make_senders()
        self.factories: Factories = Factories(settings.max_factories)
        self.remote_spawn: RemoteSpawn = RemoteSpawn(
            me, self.factories, codec, self.local, self.signals, self.outbound, spawn
        )
        self.services: ProcessServices = ProcessServices(
            self.signals, self.remote_spawn, settings.mailbox_limit, lambda: self.blocking, self.turns,
            me.taps,
        )  # fmt: skip
        self._make_directory(prepared.wall_ms)
        self._make_user_functions()
        # The way in, and the driver.
        reachable = self.local.reachable if "call" in settings.peers_may else {}
        self.inbound: Inbound = Inbound(
            reachable, codec, self._make_requests(), loop.time, settings.max_peers,
            settings.max_open_calls, settings.inbound_turn_s if prepared.on_this_network else math.inf,
            me.taps,
        )  # fmt: skip
        self.poller: Poller | None = None
        if prepared.discovery is not None:
            self.poller = Poller(prepared.discovery, settings, rng, self._looked_up, self._has_met_a_peer)
        self.driver: Driver = Driver(
            me, codec, self.kernel, self.transport, self.inbound, self.events, rng, self
        )
        self.loop_watch: LoopWatch | None = None
        """None in a simulation, where no time passes while code runs."""
        if prepared.on_this_network:
            self.loop_watch = LoopWatch.of(loop, settings.blocked_after_s)
        self.log_guard: LogGuard | None = GUARD if prepared.on_this_network else None
        """None in a simulation, which has no strangers, and whose log shows all that happens."""
        forks.guard(self)

    def _make_values(self, prepared: Prepared) -> None:
        """Make the parts that need no others, such as kernel, context, codec and events for the program."""
        settings, own = prepared.settings, prepared.own_address
        self.own_address_why: str = own.why
        self.own_address_warning = own.warning
        self._own_address = (
            AddressWatch(own, settings.all_ports, refuse=prepared.refuse)
            if prepared.on_this_network
            else None
        )
        incarnation = new_incarnation(prepared.wall_ms, prepared.rng)
        identity = Identity(
            name=prepared.name,
            incarnation=incarnation,
            cluster=settings.cluster,
            port=prepared.port or settings.base_port,
            base_port=settings.base_port,
            aliases=own.aliases,
            window_bytes=settings.window_bytes,
            mailbox_limit=settings.mailbox_limit,
            max_message_bytes=settings.max_message_bytes,
            features=(CARRIERS, *TABLES, *features_of(settings.peers_may)),
            road=prepared.transport.road,
            max_frame_bytes=settings.max_frame_bytes,
        )
        self.kernel: Kernel = Kernel(identity, settings, prepared.rng)
        draw: Callable[[int], int] = random.SystemRandom().getrandbits
        if not prepared.on_this_network:  # Marks must not change any back-off either.
            draw = random.Random(f"{prepared.name} {incarnation} marks").getrandbits
        self.context: NodeContext = NodeContext(
            prepared.name, incarnation, settings, {}, self._drain_step, draw
        )
        self.codec: Codec = Codec(
            max_nesting=settings.max_nesting,
            max_message_bytes=settings.max_message_bytes,
            large_bytes=settings.large_bytes,
        )
        self._wall_ms, self._on_this_network = prepared.wall_ms, prepared.on_this_network
        self.recent: RecentEvents = RecentEvents(self.wall_ms)
        self.events: EventHub = EventHub(settings.events_limit, self.recent.note)
        self.changes: ChangeSignal = ChangeSignal()
        pauses = random.Random(f"{prepared.name} {incarnation} retries")  # Must not change any back-off.
        self.retries: Retries = Retries(settings, pauses)

    def _make_senders(self) -> None:
        """Make the parts that send to many processes, and on behalf of references."""
        me, outbound = self.context, self.outbound
        self.fan_out: FanOut = FanOut(me.name, me.sessions, outbound)
        self.sender: ActorSender = ActorSender(
            outbound, lambda: self.streams, self.fan_out, lambda: self.multicall, me.settings.call_timeout_s
        )

    def _make_user_functions(self) -> None:
        """Make the parts that call functions of the program, such as checks of readiness."""
        me = self.context
        self.user_functions: UserFunctions = UserFunctions(me.name, me.settings)
        self.readiness: ReadinessChecks = ReadinessChecks(me, self.user_functions, self._why_leaving)
        self.hooks: LeavingHooks = LeavingHooks(me.name, me.settings, self.user_functions)
        self.leaving: Leaving = Leaving(me, self.draining, self.hooks, self.services.drain_listeners, self)

    def _make_directory(self, wall_ms: int) -> None:
        """Make the parts that know what runs where in the cluster."""
        me, codec = self.context, self.codec
        picks = random.Random(f"{me.name} {me.incarnation} groups")  # Picks must not change any back-off.
        self.replicated_groups: ReplicatedGroups = ReplicatedGroups(
            me, codec, self.local, self.replication, picks
        )
        self.groups: Groups = Groups(me, self.replicated_groups, self.fan_out, self.sender, self.retries)
        self.replicated_names: ReplicatedNames = ReplicatedNames(
            me, codec, self.local, self.signals, self.replication, wall_ms
        )
        self.registry: Registry = Registry(me, self.replicated_names, self.outbound, self.sender)
        self.replicated_rows: ReplicatedRows = ReplicatedRows(me, codec, self.replication)

    def _make_requests(self) -> PeerRequests:
        parts = (
            self, self.local, self.signals, self.replication, self.replicated_names, self.remote_spawn,
            self.circles, self.draining,
        )  # fmt: skip
        peers_may = self.context.settings.peers_may
        if peers_may.issuperset(RIGHTS):
            return PeerRequests(*parts)
        from fleetlm.runtime.limited_requests import LimitedRequests  # noqa: PLC0415  # few nodes are limited

        return LimitedRequests(*parts, peers_may=peers_may)

    def _make_draining(self) -> Draining:
        unfinished = Unfinished(self.context, self.local, self._open_jobs, self.outbound)
        in_flight = self.outbound.in_flight
        return Draining(self.context, self.kernel.topology, self.events, in_flight, unfinished)

    # Parts that are made at their first use: a program without them starts without their code. What a node
    # needs to leave, or in trouble, is never among them: by then there may be no descriptor to read a module
    # with, or the module may be of another version, since an update has been installed meanwhile.

    @functools.cached_property
    def streams(self) -> Streams:
        """The consuming side of streams."""
        from fleetlm.messaging.streams import Streams  # noqa: PLC0415

        return Streams(self.outbound, self.context.settings, self.codec, self._loop)

    @functools.cached_property
    def multicall(self) -> Multicall:
        """Calls of many processes with one request."""
        from fleetlm.messaging.multicall import Multicall  # noqa: PLC0415

        return Multicall(self.codec, self.outbound)

    @functools.cached_property
    def blocking(self) -> Blocking:
        """The pools for functions that block."""
        from fleetlm.blocking.pools import Blocking  # noqa: PLC0415

        blocking = Blocking(self.context.name, self.context.settings)
        if self._is_closed:
            blocking.stop()
        return blocking

    def _open_jobs(self) -> list[tuple[asyncio.Future[Any], str]]:
        return self.blocking.open_jobs() if "blocking" in vars(self) else []

    async def close_blocking(self) -> None:
        """Refuse further functions that block, and wait a while until threads and processes have ended."""
        self._is_closed = True
        if "blocking" in vars(self):
            await self.blocking.close()

    @functools.cached_property
    def entities(self) -> Entities:
        """Keyed entities."""
        from fleetlm.entities.kinds import Entities  # noqa: PLC0415

        return Entities(self.replicated_shards, self.local, self.outbound, self.sender, self.codec)

    def entity_kinds(self, most: int | None = None) -> list[KindInfo]:
        """Return what `Entities.info` does; where no node of the cluster hosts any, without its code."""
        if "entities" in vars(self) or self.replicated_shards.table.kinds():
            return self.entities.info(most)
        return []

    async def evacuate(self, until: float) -> tuple[str, ...]:
        """Implement `leaving.Evacuee`: hand over the shards of this node."""
        if "entities" not in vars(self):
            return ()
        return await self.entities._evacuate(until, self.inbound.still_served)  # noqa: SLF001  # its runtime

    @functools.cached_property
    def overview(self) -> Overview:
        """What one node knows of the whole cluster."""
        from fleetlm.runtime.overview import Overview  # noqa: PLC0415

        return Overview(self)

    def close_overview(self) -> None:
        """End all looks, since the node stops."""
        if "overview" in vars(self):
            self.overview.close()

    # Calls from earlier parts to later ones.

    def node_up(self, session: Session) -> None:
        """`Follower`: say over a session that has come up whether this node drains; then send its tables."""
        self.draining.node_up(session)
        self.replicated_shards.settling.node_up(session.name)
        self.replication.node_up(session)

    def node_down(self, name: str) -> Iterator[None]:
        """`Follower`: forget a node, then tell the processes that were linked to it or monitored it."""
        self.draining.node_down(name)
        yield from self.replication.node_down(name)
        yield from self.signals.node_down(name)

    def changed(self) -> None:
        """`Follower`: wake what waits for a change of the connected nodes."""
        self.changes.announce()

    def _follow_waits(self, waits: list[Wait]) -> None:
        """Look for circles among processes that have waited for a while."""
        self.circles.look(waits)

    def pulsed(self) -> None:
        """`Follower`: tell nodes about names that they cannot know of; say which log lines were left out."""
        self.replicated_names.pulsed()
        self.full_mailboxes.look()
        self.context.taps.tick()
        if self.log_guard is not None:
            self.log_guard.flush()

    def connection_lost(self) -> None:
        """`Follower`: ask DNS where the peer is now."""
        if self.poller is not None:
            self.poller.kick()

    def ticked(self, name: str, lag_ms: int) -> None:
        """`PeerFacts`: a peer's loop is alive."""
        self.replicated_shards.settling.ticked(name)
        self.driver.ticked(name, lag_ms)

    def told_of(self, names: list[str], teller: str) -> None:
        """`PeerFacts`: a peer named the nodes that it knows."""
        self.driver.told_of(names, teller)

    def asked_for_overview(self, argument: Any, call: Call) -> None:
        """`PeerFacts`: a peer asks what this node knows of itself."""
        self.overview.answer(argument, call)

    def send_exit(self, pid: Pid, reason: Any) -> None:
        """Send an exit signal to a process anywhere, from this node itself (process number 0)."""
        self.signals.exit(self.context.pid, pid, reason)

    def _new_process(self, pid: Pid, runs: str) -> RunningProcess:
        return self._make_process(self.services, pid, runs)

    def _process_exited(self, process: RunningProcess, reason: Any) -> None:
        """Forget a process of this node that has ended, then tell linked and monitoring processes."""
        self.replication.exited(process.pid)
        if "blocking" in vars(self):
            self.blocking.process_ended(process.pid)
        self.signals.exited(process, reason)
        self.remote_spawn.exited(process.pid)
        self.essential.exited(process, reason)
        self.services.drain_listeners.exited(process)

    def _looked_up(self, answer: Answer) -> None:
        """Hand a DNS answer to the driver, and look again whether this node's address is right."""
        problem = None if self._own_address is None else self._own_address.look(answer.addresses)
        if problem is not None:
            self._deal_with_wrong_address(problem)
        self._has_answer = self._has_answer or answer.outcome is not Outcome.FAILED
        self.driver.looked_up(answer)

    def _deal_with_wrong_address(self, problem: AddressProblem) -> None:
        """Stop where the node is of no use under its address; else warn.

        A node that has lost its address can be reached by nobody. One that decided its address before DNS
        was there, and that no peer ever met, decides again, if what runs it can start a new node. Another
        port would not come of that. A public address without a cookie costs the connections to it alone: a
        cluster on private addresses must not end because a machine gets another one.
        """
        if problem.verdict is Verdict.EXPOSED:
            self.exposure_warning = problem.text
            log.error("%s", problem.text)
            return
        self.own_address_warning = problem.text
        if problem.verdict is Verdict.GONE:
            self._stop_by_itself(problem.text, problem.text)
        elif problem.verdict is Verdict.MOVED and self.may_restart and not self._has_met_a_peer():
            self.restart_because = problem.text
            self._stop_by_itself(
                "", f"{problem.text}. No peer was ever connected, so the address is decided again"
            )
        else:
            log.warning("%s", problem.text)

    # Questions of several parts.

    def awaited(self) -> str:
        """`Outlook`: what must come before this node can know its peers, for people; empty: nothing."""
        if self.poller is not None and not self._has_answer:
            return "discovery has not answered"
        return self.kernel.topology.unmet(DIALS_OF_A_START)

    def is_alone(self) -> bool:
        """`Outlook`: whether this node looks for no other, and knows of none."""
        return self.poller is None and not self.kernel.topology.peers

    def wall_ms(self) -> int:
        """Return the milliseconds of the wall clock; in a simulation they pass with virtual time."""
        if self._on_this_network:
            return int(time.time() * 1000)
        return self._wall_ms + int((self._loop.time() - self.started_at) * 1000)

    def _drain_step(self, name: str) -> int:
        """Implement `NodeContext.drain_step`."""
        if name == self.context.name:
            return self.draining.own.step
        session = self.context.sessions.get(name)
        return 0 if session is None else session.peer.drain_step

    def _why_leaving(self) -> str:
        """Return why this node takes no work, for its readiness; empty if it does."""
        if self.outbound.stopped:
            return "it has stopped"
        if self.draining.own.step:
            return "it is draining"
        return "it is about to drain" if self.leaving.is_active else ""

    def _has_met_a_peer(self) -> bool:
        return any(peer.connection.ups for peer in self.kernel.topology.peers.values())

    # After a fork.

    def after_fork(self) -> None:
        """Implement `forks.Guarded`: in a child process, every request raises `NodeStopped`."""
        forks.leave_loop(self._loop)
        self.turns.after_fork()
        self.local.forget_all()
        self.outbound.stopped = forks.FORKED
        self.context.sessions.clear()
