"""Nodes, frames and random numbers for tests of the core; nothing in them is random."""

from __future__ import annotations

import random
from typing import Any

from fleetlm.core.connection import Connection, Identity
from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.core.effects import Dial, Effect, Report
from fleetlm.core.kernel import Kernel
from fleetlm.settings import Settings
from fleetlm.wire import frames
from fleetlm.wire.frames import Hello, Kind, Ready

SETTINGS = Settings(node_ports=(4370, 4370))
"""One port: tests of nodes that share a host have settings of their own."""
T = 1000.0
"""The time at which tests begin; any number would do."""


TELLER = "fleetlm@10.0.0.99"
"""The peer that tells of others."""


class Dice(random.Random):
    """Draws the epochs 1, 2, 3, … and the longest possible pause."""

    def __init__(self) -> None:
        super().__init__(0)
        self.epoch = 0

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        self.epoch += 1
        return self.epoch

    def uniform(self, a: float, b: float) -> float:
        return b


def ip(number: int) -> str:
    return f"10.0.0.{number}"


def name(number: int) -> str:
    return f"fleetlm@{ip(number)}"


def identity(number: int = 1, incarnation: int = 0, **changes: Any) -> Identity:
    """The identity of node ``number``; by default its incarnation is 100 times the number."""
    values: dict[str, Any] = {
        "name": name(number),
        "incarnation": incarnation or number * 100,
        "cluster": "",
        "port": 4370,
        "aliases": (),
        "window_bytes": 1 << 20,
        "max_message_bytes": 1 << 20,
    }
    return Identity(**values | changes)


def hello_of(
    number: int, incarnation: int = 0, *, to: int = 1, is_check: bool = False, **changes: Any
) -> Hello:
    """The HELLO of node ``number`` to node ``to``."""
    return identity(number, incarnation, **changes).hello(name(to), is_check=is_check)


def hello_frame(hello: Hello, epoch: int, seq: int = 0) -> bytes:
    return frames.header(Kind.HELLO, epoch, seq) + frames.pack_hello(hello)


def ready_frame(epoch: int, seq: int, named: int, hello: Hello) -> bytes:
    """A READY frame with number ``seq`` of the half ``epoch``; it names the other half."""
    return frames.header(Kind.READY, epoch, seq) + frames.pack_ready(Ready(named, hello))


def goodbye_frame(epoch: int, seq: int, reason: str) -> bytes:
    return frames.header(Kind.GOODBYE, epoch, seq) + frames.pack_goodbye(reason)


def addresses(*numbers: int) -> Answer:
    return Answer(Outcome.ADDRESSES, tuple(ip(number) for number in numbers), f"{len(numbers)} addresses")


def outcome(kind: Outcome, detail: str = "", *numbers: int) -> Answer:
    return Answer(kind, tuple(ip(number) for number in numbers), detail or kind.value)


def connection(number: int = 2, settings: Settings = SETTINGS) -> Connection:
    """Node 1's side of its connection to node ``number``."""
    return Connection(name(number), ip(number), identity(), settings, Dice(), T)


def kernel(number: int = 1, settings: Settings = SETTINGS, **changes: Any) -> Kernel:
    return Kernel(identity(number, **changes), settings, Dice())


def dials(effects: list[Effect]) -> list[str]:
    """The addresses that these effects dial."""
    return [effect.ip for effect in effects if isinstance(effect, Dial)]


def said(effects: list[Effect]) -> list[tuple[str, str]]:
    """Level and text of the log lines among these effects."""
    return [(effect.level, effect.text) for effect in effects if isinstance(effect, Report)]


def quiet(effects: list[Effect]) -> list[Effect]:
    """The effects without the log lines."""
    return [effect for effect in effects if not isinstance(effect, Report)]


def source(number: int, attempt: int = 1) -> bytes:
    """The source of a half of node ``number``."""
    return f"{number}.{attempt}".encode()


class Meeting:
    """The kernel of node 1, and methods for what its peers do."""

    def __init__(self, settings: Settings = SETTINGS, **changes: Any) -> None:
        self.kernel = kernel(1, settings, **changes)
        self.now = T
        self.attempts: dict[int, int] = {}

    def met(self, number: int, from_ip: str = "") -> bytes:
        """Node ``number`` connects to node 1. Returns its source."""
        self.attempts[number] = self.attempts.get(number, 0) + 1
        half = source(number, self.attempts[number])
        self.kernel.source_met(half, from_ip or ip(number))
        return half

    def hello(
        self, number: int, epoch: int, incarnation: int = 0, **changes: Any
    ) -> tuple[bytes, list[Effect]]:
        """Node ``number`` connects and sends HELLO. Returns its source, and the effects."""
        half = self.met(number)
        frame = hello_frame(hello_of(number, incarnation, **changes), epoch)
        return half, self.kernel.control_frame(self.now, half, frame)

    def channel(self, number: int) -> int:
        """The channel of node 1 to node ``number``."""
        out = self.kernel.topology.peers[name(number)].connection.outgoing
        assert out is not None
        return out.channel

    def epoch(self, number: int) -> int:
        """The epoch of node 1's half to node ``number``."""
        out = self.kernel.topology.peers[name(number)].connection.outgoing
        assert out is not None
        return out.epoch

    def up(self, number: int, epoch: int = 77, incarnation: int = 0, **changes: Any) -> bytes:
        """Complete the handshake with node ``number``. Returns its source."""
        self.kernel.asked_for(self.now, name(number))
        self.kernel.topology.peers[name(number)].is_pinned = False
        self.kernel.opened(self.now, self.channel(number))
        half, _ = self.hello(number, epoch, incarnation, **changes)
        hello = hello_of(number, incarnation, **changes)
        self.kernel.control_frame(self.now, half, ready_frame(epoch, 1, self.epoch(number), hello))
        assert self.kernel.topology.peers[name(number)].is_up
        return half

    def status(self, number: int) -> str:
        return self.kernel.topology.peers[name(number)].status
