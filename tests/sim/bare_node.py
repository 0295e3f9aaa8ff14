"""A node without a transport: its processes, its shards and its entities, and nothing of the rest.

What decides is the library's own: `ReplicatedShards` with its table, `Settling`, `Hosting`, `Handoff`,
`Majority`, `EntityCalls`, `Offering`, and `LocalProcesses` with actors and mailboxes below them. What carries
their messages is `bare_network`. `Requests` stands in for `Outbound`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fleetlm import Process, Settings
from fleetlm.call import Call
from fleetlm.entities.kinds import Entities
from fleetlm.entities.replicated_shards import ReplicatedShards
from fleetlm.errors import CallTimeout, NoConnection, NodeLost, NodeStopped, NoProcess, WouldBlock
from fleetlm.ids import Pid
from fleetlm.leaders.singletons import Singletons
from fleetlm.messaging.deadline import SERVING, within_deadline
from fleetlm.messaging.turns import FREE
from fleetlm.process import ProcessServices
from fleetlm.processes.context import NodeContext
from fleetlm.processes.local import LocalProcesses
from fleetlm.processes.signals import Signals
from fleetlm.wire.codec import Codec
from fleetlm.wire.failures import FailureKind, error_of_failure
from tests.sim.bare_loops import NodeLoop
from tests.sim.bare_network import NoStreams

if TYPE_CHECKING:
    from tests.sim.bare_network import End, Network

SETTINGS = Settings(terminate_s=2.0)
CODEC = Codec()
DIALS_OF_A_START = 2
"""Failed dials after which a node that starts does not wait for another one."""
HEARD_S = 0.1
"""Seconds for all others to hear that a node drains, or has ended its processes."""
NO_SERVICE: Any = None


class Requests(NoStreams):
    """The requests of one node; stands in for `Outbound`, and for `ActorSender`."""

    def __init__(self, node: BareNode) -> None:
        self._node = node
        self._loop = node.loop
        self._last = 0
        self._here: dict[int, asyncio.Future[Any]] = {}
        self.stopped = ""

    async def call(self, to: Pid, message: Any, timeout_s: float | None = None) -> Any:
        """See `Node.call`."""
        if self.stopped:
            raise NodeStopped(self._node.name, self.stopped)
        timeout_s = SETTINGS.call_timeout_s if timeout_s is None else timeout_s
        if SERVING.get() is not None:
            timeout_s = within_deadline(timeout_s)
        self._last = ref = self._last + 1
        future: asyncio.Future[Any] = self._loop.create_future()
        call, end = None, None
        if to.node == self._node.name:
            call = self._put_here(to, message, ref, timeout_s)
            self._here[ref] = future
        else:
            end = self._end_of(to)
            end.asked[ref] = future
            self._node.network.send(end, "call", to.number, message, ref, timeout_s)
        timer = self._loop.call_later(timeout_s, self._give_up, future, to, timeout_s)
        try:
            return await future
        finally:
            timer.cancel()
            self._here.pop(ref, None)
            if call is not None:
                call.abandon()
            if end is not None:
                end.asked.pop(ref, None)
                if future.cancelled() or isinstance(future.exception(), CallTimeout):
                    self._node.network.send(end, "cancel", ref)

    def _put_here(self, to: Pid, message: Any, ref: int, timeout_s: float) -> Call:
        box = self._node.local.boxes.get(to.number)
        if box is None or to.incarnation != self._node.incarnation:
            raise NoProcess(to)
        if box.full:
            raise WouldBlock(to, "its mailbox is full")
        call = Call(message, self, ref, self._loop.time() + timeout_s, self._loop.time)
        box.put(call)
        return call

    def _end_of(self, to: Pid) -> End:
        end = self._node.sessions.get(to.node)
        if end is None:
            raise NoConnection(to.node, "it is not connected")
        if end.peer.incarnation != to.incarnation:
            raise NoProcess(to)
        return end

    @staticmethod
    def _give_up(future: asyncio.Future[Any], to: Pid, timeout_s: float) -> None:
        if not future.done():
            future.set_exception(CallTimeout(to, timeout_s))

    def close(self) -> None:
        """Make no further requests."""
        self.stopped = "has been stopped"
        for future in self._here.values():
            if not future.done():
                future.set_exception(NodeLost(self._node.name, self.stopped))

    # `Caller` for calls that stay on this node.

    def replied(self, ref: int, value: Any) -> None:
        """See `Caller`."""
        future = self._here.get(ref)
        if future is not None and not future.done():
            future.set_result(value)

    def failed(self, ref: int, kind: FailureKind, details: list[str]) -> None:
        """See `Caller`."""
        future = self._here.get(ref)
        if future is not None and not future.done():
            future.set_exception(error_of_failure(kind, list(details)))

    def forget(self, ref: int) -> None:
        """See `Caller`."""


class Facts:
    """What one node tells all others of its shards; stands in for `Replication`.

    A snapshot is sent at once, so there is nothing to do before a change.
    """

    def __init__(self, node: BareNode) -> None:
        self._node = node

    def add(self, table: object) -> None:
        """See `Replication`: there is one table."""

    def before_change(self, topic: str, key: object) -> None:
        """See `Replication`."""

    def tell(self, topic: str, fact: Any) -> None:
        """See `Replication`."""
        del topic
        for end in self._node.sessions.values():
            self._node.network.send(end, "fact", fact)


class BareNode:
    """One life of a node. Make it on its loop.

    Args:
        name: of the node.
        incarnation: of this start.
        loop: runs it, and nothing else.
        network: carries its messages.
        wall_ms: its wall clock now, which may be wrong.
        known: the names of the nodes that it knows of.

    Attributes:
        step: how far it is with draining.
        unmet: node that it has never met → failed attempts.
        is_leaving: whether it has ended its processes.
    """

    def __init__(
        self, name: str, incarnation: int, loop: NodeLoop, network: Network, wall_ms: int, known: list[str]
    ) -> None:
        self.name = name
        self.incarnation = incarnation
        self.loop = loop
        self.network = network
        self.settings = SETTINGS
        self.sessions: dict[str, End] = {}
        self.unmet = dict.fromkeys(known, 0)
        self.knows_others = bool(known)
        self.step = 0
        self.drains = 0
        self.is_leaving = False
        self.context = NodeContext(name, incarnation, SETTINGS, {}, self.drain_step, loop=loop)
        facts: Any = Facts(self)
        self.shards = ReplicatedShards(self.context, facts, wall_ms, self)
        self._started_at, self._wall_ms = loop.time(), wall_ms
        self.local = LocalProcesses(self.context, self._make_process, self._exited, self._exit)
        self.signals = Signals(self.context, CODEC, self.local)
        self.requests = Requests(self)
        requests: Any = self.requests
        self.entities = Entities(self.shards, self.local, requests, requests, CODEC)
        self.singletons = Singletons(self.entities, self.shards, self.local, requests, CODEC, self.wall_ms)
        self.services = ProcessServices(
            self.signals, NO_SERVICE, SETTINGS.mailbox_limit, NO_SERVICE, FREE, self.context.taps
        )

    def __repr__(self) -> str:
        return f"<{self.name} {self.incarnation}>"

    # What its parts ask of it.

    def _make_process(self, pid: Pid, runs: str) -> Process:
        node: Any = self
        return Process(node, self.services, pid, runs)

    def _exited(self, process: Any, reason: Any) -> None:
        self.signals.exited(process, reason)

    def _exit(self, pid: Pid, reason: Any) -> None:
        self.signals.exit(self.context.pid, pid, reason)

    def name_of(self, pid: Pid) -> str | None:
        """See `Node.name_of`."""
        return self.local.table.name_of(pid.number)

    def spawn(self, function: Any, *args: Any) -> Pid:
        """See `Node.spawn`."""
        return self.local.spawn(function, args, None)

    def exit(self, pid: Pid, reason: Any) -> None:
        """See `Node.exit`."""
        self._exit(pid, reason)

    def drain_step(self, name: str) -> int:
        """See `NodeContext`."""
        if name == self.name:
            return self.step
        end = self.sessions.get(name)
        return 0 if end is None else end.drain_step

    def awaited(self) -> str:
        """See `Outlook`."""
        return next((name for name, dials in self.unmet.items() if dials < DIALS_OF_A_START), "")

    def is_alone(self) -> bool:
        """See `Outlook`."""
        return not (self.knows_others or self.sessions)

    def wall_ms(self) -> int:
        """See `Assembly.wall_ms`."""
        return self._wall_ms + int((self.loop.time() - self._started_at) * 1000)

    # What a program does.

    @property
    def is_draining(self) -> bool:
        """See `Node.is_draining`."""
        return self.step > 0

    async def drain(self, timeout_s: float) -> tuple[str, ...]:
        """See `Node.drain`. Returns what could not be moved."""
        self.drains += 1
        self._announce(1)
        until = self.loop.time() + timeout_s
        evacuating = self.loop.create_task(self.entities._evacuate(until, set()))
        await asyncio.sleep(HEARD_S)
        if self.step:
            self._announce(2)
        return await evacuating

    def undrain(self) -> None:
        """See `Node.undrain`."""
        if self.step and not self.is_leaving:
            self._announce(0)

    def _announce(self, step: int) -> None:
        self.step = step
        for end in self.sessions.values():
            self.network.send(end, "drain", step)

    async def stop(self) -> None:
        """See `Node.stop`: end all processes, answer what comes, and say goodbye."""
        self.is_leaving = True
        self.requests.close()
        await self.local.stop()
        await asyncio.sleep(HEARD_S)
        self.network.leave(self)
        await asyncio.sleep(HEARD_S)
        self.shards.close()

    def processes(self) -> Iterator[Any]:
        """Return what runs."""
        return iter(self.local.every())
