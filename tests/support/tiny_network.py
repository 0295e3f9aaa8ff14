"""Kernels connected by queues; every effect is checked when it is performed.

A channel delivers its frames in order and without a gap until it ends; then the rest is lost. As with
ZeroMQ a dialler may never learn that an open channel has ended, and a channel may fall silent.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from dataclasses import dataclass, field

import msgpack

from fleetlm.core.connection import Connection, Phase
from fleetlm.core.dns_answers import Answer as DnsAnswer, Outcome
from fleetlm.core.effects import Dial, Down, Effect, HangUp, Reply, Report, Send, Up
from fleetlm.core.halves import Incoming, Outgoing
from fleetlm.core.kernel import Kernel
from fleetlm.settings import Settings
from fleetlm.wire import frames
from fleetlm.wire.frames import BadFrame, Kind
from tests.support.kernel_fakes import TELLER, identity, ip, name

SILENCE_S = 8.0
"""Seconds of silence after which a listener gives up a source."""


@dataclass(eq=False)
class Channel:
    """One dial, to the node that listens at an address when the channel opens."""

    number: int
    dialler: Node
    to_ip: str
    source: bytes
    listener: Node | None = None
    out: deque[bytes] = field(default_factory=deque)
    back: deque[bytes] = field(default_factory=deque)
    met: bool = False
    hung_up: bool = False
    """The dialler has closed it: what is queued is still delivered, then the end."""
    cut_at: float | None = None
    """When the channel went silent; nothing is delivered from then on."""
    over: bool = False


@dataclass
class Session:
    """What the driver keeps of an `Up`."""

    connection: Connection
    incarnation: int
    outgoing: Outgoing
    incoming: Incoming
    sent: int = 0
    received: int = 0


class Node:
    """A kernel, and what its driver would keep."""

    def __init__(self, net: TinyNetwork, number: int, incarnation: int) -> None:
        self.net = net
        self.number = number
        self.kernel = Kernel(identity(number, incarnation), net.settings, random.Random(net.rng.random()))
        self.alive = True
        self.channels: dict[int, Channel] = {}
        self.sessions: dict[str, Session] = {}
        self.by_source: dict[bytes, Session] = {}
        self.reports: list[str] = []
        self.dials = 0
        self.ups = 0

    @property
    def incarnation(self) -> int:
        return self.kernel.me.incarnation

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Dial(number, to_ip, port):
                    assert number not in self.channels, "a channel number was used twice"
                    self.channels[number] = self.net.dial(
                        self, number, to_ip if port == 4370 else f"{to_ip}:{port}"
                    )
                    self.dials += 1
                case Send(number, frame):
                    channel = self.channels[number]
                    assert channel.listener is not None, "sent before the channel opened"
                    assert not channel.hung_up
                    channel.out.append(frame)
                case Reply(source, frame):
                    self.net.answer(self, source, frame)
                case HangUp(number):
                    channel_or_none = self.channels.pop(number, None)
                    if channel_or_none is not None:
                        channel_or_none.hung_up = True
                case Up(peer, incarnation, outgoing, incoming):
                    assert peer not in self.sessions, "up twice"
                    connection = self.kernel.topology.peers[peer].connection
                    session = Session(connection, incarnation, outgoing, incoming)
                    self.sessions[peer] = self.by_source[session.incoming.source] = session
                    self.ups += 1
                case Down(peer, incarnation, _):
                    session = self.sessions.pop(peer)  # KeyError: down without up
                    assert session.incarnation == incarnation
                    del self.by_source[session.incoming.source]
                case Report(_, text):
                    self.reports.append(text)
        self.check()

    def arrived(self, channel: Channel, frame: bytes) -> None:
        """Count a batch as the driver does, and give any other frame to the kernel."""
        now, session = self.net.now, self.by_source.get(channel.source)
        if session is not None and frame[0] == Kind.BATCH:
            try:
                session.incoming.accept(*frames.read_header(frame)[1:])
            except BadFrame as error:
                return self.perform(self.kernel.broken(now, channel.source, str(error)))
            sender, receiver, count = msgpack.unpackb(frame[frames.HEADER_BYTES :])
            assert session.connection.phase is Phase.UP
            assert sender == session.incarnation, "a message of another incarnation was delivered"
            assert receiver == self.incarnation, "a message for another incarnation was delivered"
            assert count == session.received, "a message is missing, or came twice"
            session.received += 1
            return None
        return self.perform(self.kernel.control_frame(now, channel.source, frame))

    def send_data(self, session: Session) -> None:
        head = session.outgoing.header(Kind.BATCH)
        body = msgpack.packb([self.incarnation, session.incarnation, session.sent])
        session.sent += 1
        self.channels[session.outgoing.channel].out.append(head + body)

    def check(self) -> None:
        """Check what must hold after every fact."""
        kernel, peers = self.kernel, self.kernel.topology.peers.values()
        dialled = {p.connection.outgoing.channel for p in peers if p.connection.outgoing is not None}
        dialled |= {p.connection.check.out.channel for p in peers if p.connection.check is not None}
        assert dialled == kernel._channels.keys(), "the kernel lost track of a channel"
        assert self.channels.keys() == dialled | kernel.ports.searches.keys(), "a channel leaks"
        assert self.sessions.keys() == {p.connection.name for p in peers if p.is_up}
        for session in self.sessions.values():
            now = (session.connection.outgoing, session.connection.incoming)
            assert now == (session.outgoing, session.incoming), (
                "up, but over other halves than it came up with"
            )
        for peer in peers:
            phase = peer.connection.phase
            assert (phase is Phase.IDLE) == (peer.connection.outgoing is None)
            assert (phase is Phase.UP) == (peer.connection.incoming is not None)
            assert phase is Phase.UP or (peer.connection.check, peer.connection.claim) == (None, None)
            if phase is not Phase.UP and not peer.is_blocked and not kernel.is_leaving:
                assert peer.due is not None, "a peer that nobody will look at again"
        due, deadline = kernel._due, kernel.deadline()
        assert len(due) <= 40 * (1 + len(peers)), "the schedule grows"
        assert not due or (deadline is not None and deadline <= due[0][0])


class TinyNetwork:
    """Nodes 1 to ``size`` and every channel between them."""

    def __init__(self, seed: int, size: int, settings: Settings | None = None) -> None:
        self.rng = random.Random(seed)
        self.settings = settings or Settings(node_ports=(4370, 4370))
        self.now = 100.0
        self.size = size
        self.tells = self.rng.random() < 0.5
        """Whether diallers are told when an open channel ends."""
        self.channels: list[Channel] = []
        self.sources: dict[bytes, Channel] = {}
        self._numbers = itertools.count(1)
        self.nodes = {number: Node(self, number, self.fresh(number)) for number in range(1, size + 1)}

    def fresh(self, number: int) -> int:
        return number * 1_000_000 + next(self._numbers)

    # What nodes do.

    def dial(self, node: Node, number: int, to_ip: str) -> Channel:
        source = b"source %d" % next(self._numbers)
        channel = Channel(number, node, to_ip, source)
        self.channels.append(channel)
        self.sources[source] = channel
        return channel

    def answer(self, node: Node, source: bytes, frame: bytes) -> None:
        channel = self.sources[source]
        assert channel.listener is node, "answered somebody else's dialler"
        channel.back.append(frame)

    # What the network does.

    def end(self, channel: Channel, *, tell_dialler: bool) -> None:
        """End a channel: its listener is told, if the channel has reached it."""
        channel.over = True
        self.channels.remove(channel)
        self.sources.pop(channel.source)
        dialler, listener = channel.dialler, channel.listener
        if listener is not None and listener.alive and channel.met:
            listener.perform(listener.kernel.source_lost(self.now, channel.source, "connection closed"))
        if dialler.alive and not channel.hung_up and (tell_dialler or listener is None):
            dialler.channels.pop(channel.number, None)
            dialler.perform(dialler.kernel.channel_lost(self.now, channel.number, "connection lost"))
        elif not channel.hung_up:
            channel.cut_at = self.now  # The dialler is not told; what it sends is lost.

    def step(self, channel: Channel) -> bool:
        """Let one thing happen on this channel. Returns False if nothing can."""
        if channel.listener is None:
            return self._connect(channel)
        if channel.cut_at is not None:
            if self.now >= channel.cut_at + SILENCE_S:
                self.end(channel, tell_dialler=False)
            return False
        if channel.back and (not channel.out or self.rng.random() < 0.5):
            frame = channel.back.popleft()
            if channel.dialler.alive and not channel.hung_up:
                channel.dialler.perform(channel.dialler.kernel.answered(self.now, channel.number, frame))
            return True
        if channel.out:
            frame, listener = channel.out.popleft(), channel.listener
            if not listener.alive:
                return True
            if not channel.met:
                channel.met = True
                listener.kernel.source_met(channel.source, ip(channel.dialler.number))
            listener.arrived(channel, frame)
            return True
        if channel.hung_up or not channel.dialler.alive:
            self.end(channel, tell_dialler=False)
            return True
        if not channel.listener.alive:
            self.end(channel, tell_dialler=self.tells)
            return True
        return False

    def _connect(self, channel: Channel) -> bool:
        if channel.hung_up or not channel.dialler.alive:
            self.end(channel, tell_dialler=False)
            return True
        listener = next((n for n in self.nodes.values() if ip(n.number) == channel.to_ip and n.alive), None)
        if listener is None:
            self.end(channel, tell_dialler=True)
            return True
        channel.listener = listener
        channel.dialler.perform(channel.dialler.kernel.opened(self.now, channel.number))
        return True

    def kill(self, number: int, *, politely: bool = False) -> None:
        node = self.nodes[number]
        if politely and node.alive:
            dials = node.dials
            node.perform(node.kernel.left(self.now, "SIGTERM"))
            assert not node.channels
            node.perform(node.kernel.tick(self.now + 60))
            node.perform(node.kernel.looked_up(self.now, self.dns()))
            assert node.dials == dials, "a node that left has dialled"
            assert not node.sessions
        elif node.alive:
            for channel in node.channels.values():
                del_from = self.rng.randrange(len(channel.out) + 1)
                while len(channel.out) > del_from:
                    channel.out.pop()  # What the ended node had not sent yet.
        node.alive = False

    def start(self, number: int) -> None:
        self.nodes[number] = Node(self, number, self.fresh(number))

    def dns(self, numbers: list[int] | None = None) -> DnsAnswer:
        told = tuple(ip(number) for number in (numbers or range(1, self.size + 1)))
        return DnsAnswer(Outcome.ADDRESSES, told, f"{len(told)} addresses")

    def tick(self) -> None:
        for node in list(self.nodes.values()):
            if node.alive:
                node.perform(node.kernel.tick(self.now))

    # Whole runs.

    def chaos(self, steps: int) -> None:
        """Do one thing chosen at random."""
        for _ in range(steps):
            self.anything()

    def anything(self) -> None:
        rng = self.rng
        dice = rng.random()
        number = rng.randint(1, self.size)
        node = self.nodes[number]
        if dice < 0.55:
            for _ in range(rng.choice((1, 2, 5, 40))):
                if self.channels:
                    self.step(rng.choice(self.channels))
        elif dice < 0.70:
            self.now += rng.choice((0.001, 0.05, 0.3, 1.0, 4.0))
            self.tick()
        elif dice < 0.85 and node.alive and node.sessions:
            node.send_data(rng.choice(list(node.sessions.values())))
        elif dice < 0.87 and self.channels:
            channel = rng.choice(self.channels)
            channel.cut_at = self.now if channel.cut_at is None else channel.cut_at
        elif dice < 0.89 and self.channels:
            self.end(rng.choice(self.channels), tell_dialler=self.tells)
        elif dice < 0.91 and node.alive:
            self.kill(number, politely=rng.random() < 0.3)
            if rng.random() < 0.7:
                self.start(number)
        elif dice < 0.94 and not node.alive:
            self.start(number)
        elif node.alive:
            self.hearsay(node)

    def hearsay(self, node: Node) -> None:
        rng, kernel, other = self.rng, node.kernel, self.rng.randint(1, self.size)
        match rng.randrange(6):
            case 0 | 1:
                node.perform(kernel.looked_up(self.now, self.dns([other])))
            case 2:
                node.perform(kernel.heard_of(self.now, [name(other), name(node.number)], TELLER))
            case 3:
                node.perform(kernel.asked_for(self.now, name(other)))
            case 4 if rng.random() < 0.3:
                node.perform(kernel.disconnected(self.now, name(other), "told to"))
            case _:
                node.perform(kernel.looked_up(self.now, DnsAnswer(Outcome.EMPTY, (), "NXDOMAIN")))

    def drain(self) -> None:
        """Deliver until nothing moves."""
        for _ in range(20_000):
            moved = [self.step(channel) for channel in list(self.channels) if not channel.over]
            if not any(moved):
                return
        raise AssertionError("the network never comes to rest")

    def heal(self) -> None:
        """All nodes run and dial each other."""
        for number, node in list(self.nodes.items()):
            if not node.alive:
                self.start(number)
        for node in self.nodes.values():
            node.perform(node.kernel.looked_up(self.now, self.dns()))
            for number in self.nodes:
                node.perform(node.kernel.asked_for(self.now, name(number)))

    def settled(self) -> bool:
        """Whether all pairs are up, and both ends have the same two halves."""
        for node in self.nodes.values():
            for other in self.nodes.values():
                if other is node:
                    continue
                here, there = node.sessions.get(name(other.number)), other.sessions.get(name(node.number))
                if here is None or there is None:
                    return False
                if (here.incarnation, there.incarnation) != (other.incarnation, node.incarnation):
                    return False
                if here.incoming.epoch != there.outgoing.epoch or here.outgoing.epoch != there.incoming.epoch:
                    return False
        return True

    def converse(self) -> None:
        """All nodes exchange data, and no connection ends."""
        links = [(node, session) for node in self.nodes.values() for session in node.sessions.values()]
        heard = [session.received for _, session in links]
        for node, session in links:
            node.send_data(session)
        self.drain()
        assert self.settled()
        assert [session.received for _, session in links] == [count + 1 for count in heard]

    def quiet(self, limit_s: float) -> float:
        """Let everything be delivered and every deadline pass. Returns how long it took to settle."""
        began = asked = self.now
        self.drain()
        while not self.settled() or any(channel.cut_at is not None for channel in self.channels):
            assert self.now - began <= limit_s, "no connection although everybody lives and wants one"
            deadlines = [node.kernel.deadline() for node in self.nodes.values()]
            times = [at for at in deadlines if at is not None]
            times += [c.cut_at + SILENCE_S for c in self.channels if c.cut_at is not None]
            self.now = max(self.now, min(times, default=self.now + 1.0))
            if self.now - asked > 5.0:
                asked = self.now
                for node in self.nodes.values():
                    node.perform(node.kernel.looked_up(self.now, self.dns()))
            self.tick()
            self.drain()
        return self.now - began
