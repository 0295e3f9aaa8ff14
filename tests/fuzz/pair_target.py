"""A target with two kernels that are connected with each other, and an intruder who sends to both.

The intruder has connections of its own, from an address of its own. It knows both names and incarnations, as
every peer does, and says anything. Whatever it says, the two stay connected, and both tables stay bounded.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from fleetlm.core.effects import Dial, Down, Effect, HangUp, Reply, Send, Up
from fleetlm.core.kernel import Kernel
from fleetlm.wire import frames
from fleetlm.wire.frames import IAm, Refusal, Refused
from tests.fuzz.inputs import Inputs
from tests.support.kernel_fakes import (
    SETTINGS,
    T,
    addresses,
    goodbye_frame,
    hello_frame,
    hello_of,
    identity,
    ip,
    name,
    ready_frame,
)

FEW_PEERS = SETTINGS.replace(max_peers=8)
INTRUDER = 66
"""The number of the intruder's address."""
CALM_S = 30.0
"""Seconds without the intruder, after which nothing of what it began may be left over."""
MAX_STEPS = 60


class Network:
    """Delivers between the kernels of nodes 1 and 2, in order and at once. All other dials are refused."""

    def __init__(self, source: Inputs) -> None:
        self.source = source
        self.now = T
        self.up: set[tuple[int, str]] = set()
        self._waiting: deque[Callable[[], None]] = deque()
        self._dialled: dict[tuple[int, int], str] = {}
        self.nodes = {number: Kernel(identity(number), FEW_PEERS, random.Random(number)) for number in (1, 2)}
        self.to_intruder: list[tuple[int, int]] = []
        """Dials to the intruder's address that are open: who dialled, and the channel."""

    def perform(self, number: int, effects: list[Effect]) -> None:
        """Carry out what a kernel orders."""
        for effect in effects:
            match effect:
                case Dial(channel, to, _):
                    self._dialled[number, channel] = to
                    self._waiting.append(lambda key=(number, channel), to=to: self._connect(key, to))  # type: ignore[misc]
                case Send(channel, frame):
                    self._waiting.append(lambda key=(number, channel), frame=frame: self._send(key, frame))  # type: ignore[misc]
                case Reply(source, frame):
                    self._waiting.append(lambda source=source, frame=frame: self._reply(source, frame))  # type: ignore[misc]
                case HangUp(channel):
                    self._waiting.append(lambda key=(number, channel): self._hang_up(key))  # type: ignore[misc]
                case Up(peer, _):
                    self.up.add((number, peer))
                case Down(peer, _, reason):
                    assert peer not in (name(1), name(2)), f"node {number}: nodedown {peer}: {reason}"
                    self.up.discard((number, peer))

    def settle(self) -> None:
        """Deliver everything that is on its way."""
        while self._waiting:
            self._waiting.popleft()()
        for node in self.nodes.values():
            assert len(node.topology.peers) <= FEW_PEERS.max_peers + 1

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and wake the kernels when they want to be woken."""
        ends_at = self.now + seconds
        while True:
            due = [node.deadline() for node in self.nodes.values()]
            self.now = max(self.now, min([ends_at, *(at for at in due if at is not None)]))
            for number, node in self.nodes.items():
                self.perform(number, node.tick(self.now))
            self.settle()
            if self.now >= ends_at:
                return

    def _target(self, key: tuple[int, int]) -> int | None:
        """The number of the node that a channel leads to."""
        to = self._dialled.get(key)
        return next((number for number in self.nodes if ip(number) == to), None)

    def _connect(self, key: tuple[int, int], to: str) -> None:
        number, channel = key
        if key not in self._dialled:
            return
        target = self._target(key)
        if target is not None:
            self.nodes[target].source_met(_source(key), ip(number))
            self.perform(number, self.nodes[number].opened(self.now, channel))
        elif to == ip(INTRUDER):
            self.to_intruder.append(key)
            self.perform(number, self.nodes[number].opened(self.now, channel))
        else:
            del self._dialled[key]
            self.perform(number, self.nodes[number].channel_lost(self.now, channel, "connection refused"))

    def _send(self, key: tuple[int, int], frame: bytes) -> None:
        target = self._target(key)
        if target is not None:
            self.perform(target, self.nodes[target].control_frame(self.now, _source(key), frame))

    def _reply(self, source: bytes, frame: bytes) -> None:
        for key in self._dialled:
            if _source(key) == source:
                number, channel = key
                self.perform(number, self.nodes[number].answered(self.now, channel, frame))
                return

    def _hang_up(self, key: tuple[int, int]) -> None:
        target = self._target(key)
        self._dialled.pop(key, None)
        if key in self.to_intruder:
            self.to_intruder.remove(key)
        if target is not None:
            self.perform(target, self.nodes[target].source_lost(self.now, _source(key), "closed"))


def _source(key: tuple[int, int]) -> bytes:
    return b"%d.%d" % key


def fuzz_pair(data: bytes) -> None:
    """Whatever an intruder says to two connected nodes, they stay connected."""
    source = Inputs(data)
    net = Network(source)
    for number in net.nodes:
        net.perform(number, net.nodes[number].looked_up(net.now, addresses(1, 2)))
    net.settle()
    net.pass_time(1.0)
    assert net.up == {(1, name(2)), (2, name(1))}
    net.pass_time(60.0)
    steps = 0
    while source and steps < MAX_STEPS:
        steps += 1
        _intrude(net, source)
        net.settle()
    net.pass_time(CALM_S)
    assert {(1, name(2)), (2, name(1))} <= net.up


def _intrude(net: Network, source: Inputs) -> None:
    """Let the intruder do one thing."""
    to = source.choice((1, 1, 2))
    node, other, evil = net.nodes[to], 3 - to, b"evil %d" % source.number(3)
    match source.number(8):
        case 0 | 1 | 2 | 3:
            if source.number(3) == 0 or evil not in node._ips:
                net.perform(to, node.source_lost(net.now, evil, "closed"))
                node.source_met(evil, ip(INTRUDER))
            net.perform(to, node.control_frame(net.now, evil, _frame(source, to, other)))
        case 4 if net.to_intruder:
            number, channel = source.choice(net.to_intruder)
            answer = _answer(source, other)
            net.perform(number, net.nodes[number].answered(net.now, channel, answer))
        case 5:
            net.pass_time(source.choice((0.1, 1.0, 6.0, 20.0)))
        case 6:
            net.perform(to, node.heard_of(net.now, [name(source.choice((3, other, INTRUDER)))], name(9)))
        case _:
            net.perform(
                to, node.stranger_refused(net.now, ip(source.choice((other, INTRUDER))), "closed early")
            )


def _frame(source: Inputs, to: int, other: int) -> bytes:
    """A frame of the handshake in the name of the other node, or of the intruder's own."""
    epoch = 1 + source.number(3)
    who = source.choice((other, other, INTRUDER, to))
    match source.number(5):
        case 0 | 1 | 2:
            hello = hello_of(
                who,
                source.choice((0, 0, 7_777)),
                to=to,
                is_check=source.number(3) == 0,
                aliases=source.choice(((), (), (ip(other),), (ip(to),))),
            )
            return hello_frame(hello, epoch)
        case 3:
            return ready_frame(epoch, 1 + source.number(2), source.number(8), hello_of(who, to=to))
    return source.choice((goodbye_frame(epoch, 1, "bye"), frames.probe()))


def _answer(source: Inputs, other: int) -> bytes:
    """What the intruder answers to a dial of its address."""
    who = name(source.choice((other, INTRUDER, 3)))
    if source.number(2):
        return frames.iam(IAm(who, "", 0))
    return frames.refused(Refused(source.choice(list(Refusal)), "why", who))
