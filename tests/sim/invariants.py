"""What must hold in a cluster at every moment, whatever happens to it.

The processes of a scenario tell the `World` what they sent, received, asked and ran; the cluster
tells it after each fact. A breach is noted with its time, and ends the scenario at its next step.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fleetlm import (
    NodeDown,
    NodeDraining,
    NodeStopped,
    NodeUp,
    NotDelivered,
    OutcomeUnknown,
    RemoteError,
)
from fleetlm.call import Call
from fleetlm.ids import Pid
from fleetlm.messaging.session import Session
from fleetlm.messaging.wheel import SLOTS_PER_S
from fleetlm.node import Node
from fleetlm.process import Process
from fleetlm.testing.cluster import SimCluster

LATE_S = 0.001 + 1 / SLOTS_PER_S
"""Seconds after its deadline within which a call must end: a slot of the wheel, and some turns."""
SHOWN = 12


class Breach(AssertionError):
    """An invariant did not hold."""


@dataclass
class Asked:
    """One call, with its outcome and how often it ran."""

    number: int
    server: str
    caller: str
    target: str
    timeout_s: float
    began_s: float
    expected: Any = None
    outcome: Any = None
    ended: bool = False
    ran: int = 0


@dataclass
class Received:
    """What one sink received from one sender."""

    connection: int = -1
    next: int = 0
    last_broadcast: int = -1


@dataclass
class View:
    """What the invariants know of one incarnation of a node."""

    node: Node
    sessions: dict[str, Session] = field(default_factory=dict)
    ups: dict[str, int] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    """Epoch of a connection on this node → its number, in the order of nodeup."""
    ended_at: dict[int, float] = field(default_factory=dict)
    """Epoch of a connection on this node → when it ended."""
    stable: dict[str, Pid] = field(default_factory=dict)
    """Name → pid of the sinks that live as long as their node."""


class World:
    """The model of a run."""

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict
        """False if frames are corrupted, so that what arrives proves nothing."""
        self.cluster: SimCluster
        self.breaches: list[str] = []
        self.views: dict[str, View] = {}
        self.started: dict[str, list[int]] = {}
        """Node → its incarnations, oldest first."""
        self.asked: dict[int, Asked] = {}
        self.received: dict[Pid, dict[tuple[Any, ...], Received]] = {}
        self.sent: dict[tuple[Any, ...], int] = {}
        self.former: list[Pid] = []
        """Sinks of former incarnations: no message to them may be delivered."""
        self.nodedowns = 0
        self.messages = 0

    def breach(self, what: str) -> None:
        """Record a breach."""
        if len(self.breaches) < SHOWN:
            self.breaches.append(f"at {self.cluster.loop.time():.4f} s: {what}")

    def check(self) -> None:
        """Raise the breaches so far."""
        if self.breaches:
            raise Breach("; ".join(self.breaches))

    # Nodes and connections.

    def node_started(self, node: Node) -> View:
        ip = self.cluster.address_of(node)
        if ip in self.views:
            self.former += self.views[ip].stable.values()
        self.started.setdefault(node.name, []).append(node.incarnation)
        view = self.views[ip] = View(node)
        return view

    def on_fact(self, ip: str) -> None:
        """Check a node after each fact that was reported to it."""
        view = self.views.get(ip)
        if view is None:
            return
        sessions, known = view.node._driver.sessions, view.sessions
        if len(sessions) != len(known) or any(
            known.get(name) is not session for name, session in sessions.items()
        ):
            self._changed(view)

    def _changed(self, view: View) -> None:
        node = view.node
        sessions = dict(node._driver.sessions)
        hub = {up.node: up.incarnation for up in node._parts.events.present if isinstance(up, NodeUp)}
        if hub != {name: session.incarnation for name, session in sessions.items()}:
            self.breach(f"{node.name}: nodeup says {hub}, sessions are {sorted(sessions)}")
        if sorted(sessions) != sorted(node.list()):
            self.breach(f"{node.name}: Node.list() is {node.list()}, sessions are {sorted(sessions)}")
        for name, session in view.sessions.items():
            if sessions.get(name) is not session:
                view.ended_at[session.outgoing.epoch] = self.cluster.loop.time()
                if not session.closed:
                    self.breach(f"{node.name}: the session to {name} went without being closed")
        for name, session in sessions.items():
            if view.sessions.get(name) is not session:
                self._up(view, name, session)
        view.sessions = sessions

    def _up(self, view: View, name: str, session: Session) -> None:
        known = self.started.get(name, [])
        if session.closed:
            self.breach(f"{view.node.name}: {name} is up on a dead session")
        if session.incarnation not in known:
            if self.strict:
                self.breach(f"{view.node.name}: {name} is up as {session.incarnation:x}, which never was")
            return
        age = known.index(session.incarnation)
        if age < view.ups.get(name, 0):
            self.breach(f"{view.node.name}: a former incarnation of {name} came up again")
        view.ups[name] = age
        view.numbers[session.outgoing.epoch] = len(view.numbers)

    async def watch(self, node: Node, dawdles: random.Random | None = None) -> None:
        """Check a subscriber: first the snapshot, then alternating events. A slow one counts no nodedowns."""
        present = dict.fromkeys(node.list())
        up: dict[str, int] = {}
        async for event in node.events():
            # It follows the nodeup of its node; the node itself has none.
            drains = isinstance(event, NodeDraining) and (event.name in up or event.name == node.name)
            if present and not drains and (not isinstance(event, NodeUp) or present.pop(event.node, 1) == 1):
                self.breach(f"{node.name}: {event} came inside the snapshot {present}")
            if dawdles is not None and dawdles.random() < 0.2:
                await asyncio.sleep(dawdles.expovariate(0.5))
                present.clear()  # It may have missed events and received the difference instead.
            if isinstance(event, NodeUp):
                if event.node in up:
                    self.breach(f"{node.name}: {event}, but it is up already")
                up[event.node] = event.incarnation
            elif isinstance(event, NodeDown):
                self.nodedowns += dawdles is None
                if up.pop(event.node, None) != event.incarnation:
                    self.breach(f"{node.name}: {event} without its nodeup")

    # Messages.

    def tap(self, process: Process) -> None:
        """Observe each message when it is delivered."""
        process.mailbox.queue = _Tap(self, process.node, process.mailbox.queue)

    def delivered(self, node: Node, message: Any) -> None:
        match message:
            case ("m", (str(source), int(incarnation), _), _, int(epoch), *_) if source != node.name:
                session = node._driver.sessions.get(source)
                if session is None or session.closed or session.incarnation != incarnation:
                    self.breach(f"{node.name}: a message of {source} {incarnation:x}, which is not up")
                elif session.incoming.epoch != epoch:
                    self.breach(f"{node.name}: a message of a former connection to {source}")

    def got(self, process: Process, message: Any, *, stable: bool) -> None:
        """Check a message that a sink received."""
        node = process.node
        self.messages += 1
        if not self.strict:
            return
        senders = self.received.setdefault(process.pid, {})
        match message:
            case ("m", sender, _, _, incarnation, number, size, filler):
                if incarnation != node.incarnation:
                    self.breach(f"{node.name}: a message for incarnation {incarnation:x} of it")
                if filler != bytes([number & 255]) * size:
                    self.breach(f"{node.name}: message {number} of {sender} has another content")
                self._count(senders.setdefault(sender, Received()), node, message, stable)
            case ("b", sender, number):
                known = senders.setdefault(sender, Received())
                if number <= known.last_broadcast:
                    self.breach(f"{node.name}: broadcast {number} came after {known.last_broadcast}")
                known.last_broadcast = number
            case _:
                self.breach(f"{node.name}: {message!r} was never sent")

    def _count(self, known: Received, node: Node, message: Any, stable: bool) -> None:
        _, sender, connection, _, _, number, *_ = message
        if connection < known.connection:
            self.breach(f"{node.name}: of {sender}, connection {connection} after {known.connection}")
        if connection != known.connection:
            if number != 0 and stable:
                self.breach(f"{node.name}: of {sender}, the first of a connection is {number}")
        elif number != known.next:
            self.breach(f"{node.name}: of {sender}, expected {known.next} and got {number}")
        known.connection, known.next = connection, number + 1

    def not_arrived(self) -> list[str]:
        """Describe messages that did not arrive over connections that are still up; empty without traffic."""
        late = []
        for (sender, target, sink, connection), count in self.sent.items():
            view = self.views.get(self.cluster.address_of(target))
            source = self.views.get(self.cluster.address_of(sender[0]))
            if view is None or source is None or source.node.incarnation != sender[1]:
                continue
            if target == sender[0]:
                continue
            session = source.sessions.get(target)
            if session is None or source.numbers[session.outgoing.epoch] != connection:
                continue
            if sink not in view.stable:
                continue
            known = self.received.get(view.stable[sink], {}).get(sender, Received())
            if known.connection != connection or known.next != count:
                late.append(
                    f"{target}: {sink} has {known.next} of connection {known.connection} from {sender}, "
                    f"{count} of {connection} were sent"
                )
        return late

    # Calls.

    def asks(self, node: Node, server: str, target: str, timeout_s: float, expected: Any) -> Asked:
        asked = Asked(
            len(self.asked), server, node.name, target, timeout_s, self.cluster.loop.time(), expected
        )
        self.asked[asked.number] = asked
        return asked

    def ran(self, call: Call) -> int:
        """Record that a server took a call, and return its number."""
        number = call.message[1]
        assert isinstance(number, int)
        self.asked[number].ran += 1
        return number

    def ended(self, asked: Asked, outcome: Any) -> None:
        if asked.ended:
            self.breach(f"{asked} ended twice")
        asked.ended, asked.outcome = True, outcome
        late_s = self.cluster.loop.time() - asked.began_s - asked.timeout_s
        if late_s > LATE_S:
            self.breach(f"{asked} ended {late_s:.3f} s after its deadline")
        if not self.strict:
            return
        match outcome:
            case RemoteError():
                if asked.server != "raises" or outcome.text != str(asked.number):
                    self.breach(f"{asked} raised {outcome!r}")
            case NotDelivered() | OutcomeUnknown() | NodeStopped() | asyncio.CancelledError():
                pass
            case BaseException():
                self.breach(f"{asked}: {outcome!r} is not an outcome of a call")
            case _:
                if outcome != asked.expected:
                    self.breach(f"{asked}: the reply is another")
        self._judge(asked)

    def _judge(self, asked: Asked) -> None:
        outcome, ran = asked.outcome, asked.ran
        if ran > 1:
            self.breach(f"{asked} ran {ran} times")
        if isinstance(outcome, NotDelivered | NodeStopped):
            if ran:
                self.breach(f"{asked} ran, though it says that it never did")
        elif not isinstance(outcome, OutcomeUnknown | asyncio.CancelledError) and ran != 1:
            self.breach(f"{asked} has a result, but did not run")

    def all_ended(self) -> None:
        """Check at the end that every call has an outcome, and that it is still true."""
        for asked in self.asked.values():
            if not asked.ended:
                self.breach(f"{asked} has no outcome")
            elif self.strict:
                self._judge(asked)


class _Tap(deque[Any]):
    """The queue of a mailbox; shows each message to the model before it is appended."""

    def __init__(self, world: World, node: Node, items: Iterable[Any]) -> None:
        super().__init__(items)
        self._world = world
        self._node = node

    def append(self, message: Any, /) -> None:
        if self._world.strict:
            self._world.delivered(self._node, message)
        super().append(message)


IDLE_BYTES = 2_048
"""The most bytes in flight on a connection that only ticks: two ticks with credit, or some names."""


def held(cluster: SimCluster, node: Node, *, strict: bool = True) -> list[str]:
    """Describe what a node without traffic holds without need, as it would grow for ever.

    Args:
        cluster: where it runs.
        node: one whose peers are silent but for ticks.
        strict: False where frames were falsified: pieces of messages that never were are held
            until the connection ends, within the limits of one message.
    """
    kernel, driver, sessions = node._parts.kernel, node._driver, node._driver.sessions
    found = []
    for session in sessions.values():
        kept = {
            "calls": session.calls,
            "requests": session.requests,
            "windows": session.held if strict else {},  # a corrupted name is credited under another one
            "senders that wait for a process": session.windows._waiters,
            "arrivals": session.arrivals.held,
            "open calls": session.open_calls,
            "waiting senders": session.byte_window._waiters,
            "unfinished messages": session.reassembly._unfinished if strict else {},
        }
        found += [f"{len(some)} {what} with {session.name}" for what, some in kept.items() if some]  # type: ignore[arg-type]
        if session.in_flight > IDLE_BYTES:
            found.append(f"{session.in_flight} bytes in flight to {session.name}")
    channels = {session.outgoing.channel for session in sessions.values()}
    sources = {session.incoming.source for session in sessions.values()}
    dialling = [peer for peer in kernel.topology.peers.values() if not peer.is_up]
    if not channels <= kernel._channels.keys() or len(kernel._channels) > len(sessions) + len(dialling):
        found.append(f"channels {sorted(kernel._channels)} for {sorted(channels)}")
    checks = [peer for peer in kernel.topology.peers.values() if peer.connection.check is not None]
    if driver._by_source.keys() != sources or checks:
        found.append(f"sources that are no session's, or {len(checks)} checks")
    endpoint = cluster.network.host(cluster.ip_of(node)).endpoints[kernel.me.port]
    open_sources = endpoint.sources.keys() | endpoint.strangers.keys()
    for what, some in (("sources", kernel._sources), ("addresses", kernel._ips)):
        if gone := len(some.keys() - open_sources):
            found.append(f"{what} of {gone} connections that have ended")
    if len(kernel._due) > 8 * len(kernel.topology.peers):
        found.append(f"{len(kernel._due)} times to wake")
    return [f"{node.name} holds {what}" for what in found]


def left_timers(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Describe timers that the library (not its test kit) set and did not cancel."""
    timers: list[Any] = loop._timers  # type: ignore[attr-defined]
    callbacks = [timer._callback for _, _, timer in timers if not timer.cancelled()]
    return [
        callback.__qualname__
        for callback in callbacks
        if callback.__module__.startswith("fleetlm.")
        and not callback.__module__.startswith("fleetlm.testing")
    ]
