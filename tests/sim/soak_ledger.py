"""What was asked and sent in a society, what ran, and how it ended: calls, streams, numbered messages."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

from fleetlm import (
    CallTimeout,
    Draining,
    Expired,
    NoConnection,
    NodeLost,
    NodeStopped,
    NoProcess,
    NotDelivered,
    OutcomeUnknown,
    Pid,
    Process,
    ProcessDown,
    RemoteError,
    WouldBlock,
)
from tests.sim.invariants import LATE_S
from tests.sim.soak_world import Home, World


@dataclass
class Asked:
    """A request: a call, one of a multicall, or a stream."""

    number: int
    home: Home
    target: Any
    how: str
    began_s: float
    timeout_s: float
    losses: int
    connected: int | None
    expected: Any = None
    ran: dict[Pid, int] = field(default_factory=dict)
    """Process → how often it ran it."""
    takers: list[Pid] = field(default_factory=list)
    """Who answered for it, one after the other."""
    pauses_s: float = 0.0
    """What its consumer waited of its own accord."""
    outcome: Any = None
    ended: bool = False
    produced: int = 0
    """Items of a stream that were sent."""
    consumed: int = 0
    end: str = ""
    """How the producer ended it, if it did."""

    def __repr__(self) -> str:
        return f"<{self.how} {self.number} of {self.home.node.name} to {self.target} at {self.began_s:.4f} s>"


class Ledger:
    """Every request and every numbered message of a story."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.asked: list[Asked] = []
        self.serving: dict[int, Asked] = {}
        """Requests whose server is in the middle of them, or of waiting with them."""
        self.sent: dict[tuple[Pid, Pid], int] = {}
        """(sender, receiver) → messages sent."""
        self.doubtful: dict[tuple[Pid, Pid], set[int]] = {}
        """Of these, those whose sending was cut short."""
        self.received: dict[tuple[Pid, Pid], tuple[int, int | None]] = {}
        """(sender, receiver) → what comes next, and the lost connections when the last one came, if known."""

    # Requests.

    def asks(self, home: Home, target: Any, how: str, timeout_s: float) -> Asked:
        node = target.node if isinstance(target, Pid) else target[1]
        asked = Asked(
            len(self.asked), home, target, how, self.world.now_s, timeout_s,
            home.losses[node], home.connected(node),
        )  # fmt: skip
        self.asked.append(asked)
        return asked

    def part(self, asked: Asked, target: Pid) -> Asked:
        """One of those that a multicall asks."""
        home, node = asked.home, target.node
        return replace(asked, target=target, losses=home.losses[node], connected=home.connected(node))

    def ran(self, process: Process, number: int) -> Asked:
        """A process took a request."""
        asked = self.asked[number]
        asked.ran[process.pid] = asked.ran.get(process.pid, 0) + 1
        asked.takers.append(process.pid)
        if asked.ran[process.pid] > 1 or (len(asked.ran) > 1 and asked.how != "many"):
            self.world.breach(f"{asked} ran {asked.ran}")
        return asked

    def ended(self, asked: Asked, outcome: Any) -> None:
        """A request has an outcome, or its caller was cancelled."""
        world = self.world
        if asked.ended:
            world.breach(f"{asked} ended twice: {asked.outcome!r}, {outcome!r}")
        asked.ended, asked.outcome = True, outcome
        late_s = world.now_s - asked.began_s - asked.timeout_s - asked.pauses_s
        if late_s > LATE_S:
            world.breach(f"{asked} ended {late_s:.3f} s after its deadline: {outcome!r}")
        name = type(outcome).__name__ if isinstance(outcome, BaseException) else "reply"
        kind = asked.how if asked.how in ("stream", "spawn", "nested") else "call"
        world.counts[f"{kind}: {name}"] += 1
        self._judge(asked, outcome)
        self._judge_type(asked, outcome)

    def items(self, asked: Asked, item: Any) -> None:
        """An item of a stream has come."""
        if item != (asked.number, asked.consumed):
            self.world.breach(f"{asked}: item {item} came, and {asked.consumed} is next")
        asked.consumed += 1

    def settled(self) -> None:
        """Nothing is under way any more: every request has its outcome, and it still holds."""
        for asked in self.asked:
            if not asked.ended:
                self.world.breach(f"{asked} has no outcome")
            elif asked.how != "many":
                self._judge(asked, asked.outcome)

    def _judge(self, asked: Asked, outcome: Any) -> None:
        """What is said of the running is true; checked again at the end, since it must stay true."""
        ran = asked.ran.get(asked.target, 0) if asked.how == "many" else sum(asked.ran.values())
        match outcome:
            case NotDelivered() | NodeStopped():
                if ran or asked.consumed:
                    self.world.breach(f"{asked} ran, and was told {outcome!r}")
            case OutcomeUnknown() | asyncio.CancelledError():
                pass
            case Pid() if outcome in self.world.ended:
                pass  # Spawned, and ended before its first line.
            case _:
                if ran != 1:
                    self.world.breach(f"{asked} ran {ran} times, and was told {outcome!r}")

    def _judge_type(self, asked: Asked, outcome: Any) -> None:
        """The outcome is what has happened."""
        world, home, target = self.world, asked.home, asked.target
        node = target.node if isinstance(target, Pid) else target[1]
        lost = home.losses[node] != asked.losses or asked.connected is None
        local = node == home.node.name
        stopping = home.node._stopping
        match outcome:
            case CallTimeout() | WouldBlock():
                right = world.now_s - asked.began_s >= asked.timeout_s - LATE_S
                right &= local or not lost or asked.connected is None
            case NodeLost():
                right = stopping if local else lost
            case NoConnection():
                right = lost and not local
            case Draining():
                right = asked.how == "spawn"
            case Expired():
                right = asked.timeout_s <= 0
            case NoProcess():
                right = not isinstance(target, Pid) or target in world.ended or lost
                right |= isinstance(target, Pid) and asked.connected != target.incarnation
            case ProcessDown():
                takers = asked.takers or [pid for pid in world.citizens if pid.node == node]
                right = any(pid in world.ended for pid in takers)
            case RemoteError():
                expected = {"stream": "raise", "raise": str(asked.number)}.get(asked.how)
                right = outcome.text == expected and (asked.how != "stream" or self._whole(asked, "raise"))
            case NodeStopped():
                right = stopping
            case asyncio.CancelledError():
                right = True
            case BaseException():
                right = False
            case Pid():
                right = asked.how == "spawn" and outcome.node == node
                right &= all(pid == outcome for pid in asked.ran)
            case _:
                right = outcome == asked.expected
                if asked.how == "stream":
                    right = self._whole(asked, "reply")
        if not right:
            world.breach(f"{asked} was told {outcome!r}; {asked.end} after {asked.produced} items")

    def _whole(self, asked: Asked, end: str) -> bool:
        return asked.end == end and asked.consumed == asked.produced

    # Numbered messages.

    def number(self, sender: Pid, receiver: Pid) -> int:
        """Of the next message."""
        return self.sent.get((sender, receiver), 0)

    def sending(self, sender: Pid, receiver: Pid, *, doubtful: bool = False) -> None:
        """The next message was sent, or perhaps."""
        pair = (sender, receiver)
        number = self.sent[pair] = self.sent.get(pair, 0) + 1
        if doubtful:
            self.doubtful.setdefault(pair, set()).add(number - 1)

    def got(self, process: Process, sender: Pid, number: int) -> None:
        """A numbered message was taken: in order, once, and nothing is missing but by a lost connection."""
        world, pair = self.world, (sender, process.pid)
        losses = world.came.pop((*pair, number), None)
        expected, before = self.received.get(pair, (0, 0))
        self.received[pair] = (number + 1, losses)
        world.counts["messages"] += 1
        if number < expected:
            world.breach(f"{process.pid} got {number} of {sender} after {expected - 1}")
        missing = set(range(expected, number)) - self.doubtful.get(pair, set())
        if missing and losses == before is not None:
            world.breach(f"{process.pid} got {number} of {sender}, and never {sorted(missing)}")

    def down(self, process: Process, sender: Pid, reason: Any) -> None:
        """A sender has ended, and no connection was lost: what it sent has come before."""
        pair = (sender, process.pid)
        expected, losses = self.received.get(pair, (0, 0))
        if self.world.home_of(process.pid).losses[sender.node] != losses:
            return
        missing = set(range(expected, self.sent.get(pair, 0))) - self.doubtful.get(pair, set())
        if missing:
            self.world.breach(
                f"{process.pid} heard that {sender} ended ({reason}), and never {sorted(missing)}"
            )
