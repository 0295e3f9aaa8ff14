"""Sessions between nodes, as far as tables, votes and requests notice them; no frames, no heartbeats.

Two nodes that can reach each other both ways have a session after a moment; each of its two ends comes up at
a moment of its own. What one end sends reaches the other one in its order, after a delay of its own. While a
direction is cut, what is sent waits. A node that hears nothing for the time-out takes its end down: since it
is cut off, or the other node is frozen or dead. It says so to the other end, if that can hear it.

A request whose session ends has an unknown outcome, as on a whole node. The other node may have told before
that it never came: that is what a node does which leaves in order.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from fleetlm.call import Call
from fleetlm.errors import NoConnection, NodeLost
from fleetlm.ids import Pid
from fleetlm.wire.failures import FailureKind, error_of_failure
from fleetlm.wire.invocation import Invoke
from tests.sim.bare_loops import TrueTime

if TYPE_CHECKING:
    from tests.sim.bare_node import BareNode

TIMEOUT_S = (3.0, 5.0)
"""True seconds after which a node takes a session down that it hears nothing of, at least and at most."""
DIAL_S = (0.02, 1.0)
"""True seconds between two attempts to connect."""


class NoStreams:
    """What a `Caller` does for streams, of which there are none here."""

    is_behind = False

    async def caught_up(self) -> None:
        """See `Caller`."""

    def packed_item(self, ref: int, value: Any, window: int, /) -> tuple[Any, int]:
        """See `Caller`."""
        raise NotImplementedError

    async def item(self, ref: int, packed: Any, timeout_s: float, /) -> None:
        """See `Caller`."""
        raise NotImplementedError


class End(NoStreams):
    """One end of a session; also the `Caller` of the requests that come over it.

    Args:
        network: carries what is sent.
        node: whose end it is.
        peer: the other node.
        rank: number of the queue of what comes to this end.
    """

    def __init__(self, network: Network, node: BareNode, peer: BareNode, rank: int) -> None:
        self.network = network
        self.node = node
        self.peer = peer
        self.rank = rank
        self.origin = peer.name, peer.incarnation
        self.other: End
        self.is_up = False
        self.was_up = False
        self.drain_step = 0
        """How far the peer is with draining, as it has told."""
        self.due = 0.0
        """When the last thing that was sent arrives."""
        self.held: list[tuple[Any, ...]] = []
        """What was sent while the direction was cut."""
        self.asked: dict[int, Any] = {}
        """Number → future of the requests that were sent over it."""
        self.serving: dict[int, Call] = {}
        self.came = 0
        """Number of the last request that has come."""

    # `Caller`.

    def replied(self, ref: int, value: Any) -> None:
        """See `Caller`."""
        self._answer("reply", ref, value)

    def failed(self, ref: int, kind: FailureKind, details: list[str]) -> None:
        """See `Caller`."""
        self._answer("failed", ref, error_of_failure(kind, list(details)))

    def forget(self, ref: int) -> None:
        """See `Caller`."""
        self.serving.pop(ref, None)

    def _answer(self, what: str, ref: int, outcome: Any) -> None:
        if self.serving.pop(ref, None) is not None:
            self.network.send(self, what, ref, outcome)

    # What comes.

    def arrived(self, what: str, *rest: Any) -> None:
        """Take what the other end has sent, unless this end is down."""
        if not self.is_up:
            return
        if what == "call":
            self._called(*rest)
        elif what == "cancel":
            call = self.serving.get(rest[0])
            if call is not None:
                call.abandon()
        elif what in {"reply", "failed"}:
            future = self.asked.get(rest[0])
            if future is not None and not future.done():
                if what == "reply":
                    future.set_result(rest[1])
                else:
                    future.set_exception(rest[1])
        elif what == "fact":
            self.node.shards.told(self.peer.name, self.peer.incarnation, rest[0])
        elif what == "tick":
            self.node.shards.settling.ticked(self.peer.name)
        elif what == "drain":
            (self.drain_step,) = rest
        else:
            self.down("the other end has said so", *rest)

    def _called(self, number: int, message: Any, ref: int, timeout_s: float) -> None:
        self.came = ref
        if type(message) is Invoke:
            message.is_from_peer = True
        call = self.serving[ref] = Call(
            message, self, ref, self.node.loop.time() + timeout_s, self.node.loop.time
        )
        box = self.node.local.reachable.get(number)
        if box is None:
            call.no_process(str(Pid(self.node.name, self.node.incarnation, number)))
        else:
            box.put(call)

    # Its life.

    def up(self) -> None:
        """The session has come up at this end."""
        node, network = self.node, self.network
        self.was_up = True
        if node.is_leaving:
            network.ended(self)
            return
        former = node.sessions.get(self.peer.name)
        if former is not None:  # Of a former life of the peer.
            former.down("the node has started anew")
        self.is_up = True
        node.sessions[self.peer.name] = self
        node.unmet.pop(self.peer.name, None)
        if self.peer.loop.is_dead:
            network._silence(self, must_be_silent=True)
        if node.step:
            network.send(self, "drain", node.step)
        node.shards.settling.node_up(self.peer.name)
        for fact in node.shards.own_facts(list(node.shards.own_keys())):
            network.send(self, "fact", fact)
        network.times.at(
            network.times.now + network.rng.uniform(0, 0.5), node.loop, network.send, self, "tick"
        )

    def down(self, why: str, came: int | None = None) -> None:
        """The session has ended at this end.

        Args:
            why: for the errors.
            came: the number of the last request that has come to the other end, if it has told.
        """
        if not self.is_up:
            return
        self.is_up = False
        self.held.clear()
        del self.node.sessions[self.peer.name]
        for ref, future in self.asked.items():
            if not future.done():
                never_came = came is not None and ref > came
                future.set_exception((NoConnection if never_came else NodeLost)(self.peer.name, why))
        for call in list(self.serving.values()):
            call.abandon()
        for _ in self.node.shards.node_down(self.peer.name):
            pass
        self.network.ended(self)


class Network:
    """All nodes, and what is between them.

    Args:
        times: the true time.
        rng: decides the delays.
        latency_s: of a message, at least and at most.
    """

    def __init__(self, times: TrueTime, rng: random.Random, latency_s: tuple[float, float]) -> None:
        self.times = times
        self.rng = rng
        self.latency_s = latency_s
        self.nodes: dict[str, BareNode] = {}
        """Those that run."""
        self.cuts: set[tuple[str, str]] = set()
        """Node and another one that does not hear it."""
        self.members = 0
        """How many members the quorum of the nodes has; 0: they have none."""
        self._ranks = 0

    def hears(self, node: BareNode, peer: BareNode) -> bool:
        """Whether something that ``peer`` sends now reaches ``node``."""
        return (peer.name, node.name) not in self.cuts and not peer.loop.is_dead and not peer.loop.is_frozen

    # Nodes.

    def add(self, node: BareNode) -> None:
        """Let a node connect with all others."""
        for other in self.nodes.values():
            self._dial_soon(node, other)
        self.nodes[node.name] = node

    def remove(self, node: BareNode) -> None:
        """A node is not there any more; those that it had a session with notice by themselves."""
        self.nodes.pop(node.name, None)

    # Sessions.

    def _dial_soon(self, node: BareNode, other: BareNode) -> None:
        self.times.at(self.times.now + self.rng.uniform(*DIAL_S), None, self._dial, node, other)

    def _dial(self, node: BareNode, other: BareNode) -> None:
        if self.nodes.get(node.name) is not node or self.nodes.get(other.name) is not other:
            return  # One of them has ended.
        if not (self.hears(node, other) and self.hears(other, node)) or (node.is_leaving or other.is_leaving):
            for each, peer in ((node, other), (other, node)):
                if peer.name in each.unmet:
                    each.unmet[peer.name] += 1
            self._dial_soon(node, other)
            return
        self._ranks += 2
        one, two = End(self, node, other, self._ranks), End(self, other, node, self._ranks + 1)
        one.other, two.other = two, one
        if self.rng.random() < 0.5:
            one, two = two, one
        now = self.times.now
        one.due = now + self.rng.uniform(*self.latency_s)
        self.times.at(now, one.node.loop, one.up, rank=one.rank)
        self.times.at(one.due, two.node.loop, two.up, rank=two.rank)

    def send(self, end: End, *what: Any) -> None:
        """Send something over a session."""
        if not end.is_up:
            return
        if (end.node.name, end.peer.name) in self.cuts:
            end.held.append(what)
        else:
            self._carry(end, what)

    def _carry(self, end: End, what: tuple[Any, ...]) -> None:
        end.due = max(end.due, self.times.now + self.rng.uniform(*self.latency_s))
        other = end.other
        self.times.at(end.due, other.node.loop, other.arrived, *what, rank=other.rank)

    def ended(self, end: End) -> None:
        """An end is down: the other one hears so, or hears nothing any more."""
        other = end.other
        if other.is_up or not other.was_up:
            if self.hears(other.node, end.node):
                end.due = max(end.due, self.times.now + self.rng.uniform(*self.latency_s))
                self.times.at(end.due, other.node.loop, self._hang_up, other, rank=other.rank)
            else:
                self._silence(other, must_be_silent=False)
        else:
            self._dial_soon(end.node, other.node)

    def _hang_up(self, end: End) -> None:
        if end.is_up:
            end.down("the connection has ended")
        else:  # It never came up.
            end.was_up = True
            self._dial_soon(end.node, end.peer)

    def leave(self, node: BareNode) -> None:
        """A node leaves in order: it says goodbye to all."""
        for end in list(node.sessions.values()):
            self.send(end, "goodbye", end.came)

    # Faults.

    def cut(self, node: str, other: str) -> None:
        """Let the other node hear nothing of a node."""
        if (node, other) in self.cuts:
            return
        self.cuts.add((node, other))
        if node in self.nodes and other in self.nodes:
            end = self.nodes[other].sessions.get(node)
            if end is not None:
                self._silence(end, must_be_silent=True)

    def quiet(self, node: BareNode) -> None:
        """A node sends nothing from now on, since it is frozen or dead."""
        for end in list(node.sessions.values()):
            self._silence(end.other, must_be_silent=True)
        for other in self.nodes.values():
            half = other.sessions.get(node.name)
            if half is not None and half.peer is node and not half.other.was_up:
                self._silence(half, must_be_silent=True)

    def _silence(self, end: End, *, must_be_silent: bool) -> None:
        """Take an end down after the time-out, unless it has heard something by then."""
        when = self.times.now + self.rng.uniform(*TIMEOUT_S)
        self.times.at(when, end.node.loop, self._timed_out, end, must_be_silent, rank=end.rank)

    def _timed_out(self, end: End, must_be_silent: bool) -> None:
        if not (must_be_silent and self.hears(end.node, end.peer)):
            end.down("it was silent")

    def heal(self) -> None:
        """Let everybody hear everybody, and carry what has waited."""
        self.cuts.clear()
        for node in self.nodes.values():
            for end in node.sessions.values():
                held, end.held = end.held, []
                for what in held:
                    self._carry(end, what)
