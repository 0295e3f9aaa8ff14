"""The requests and numbered messages of a soak run: what was sent, what ran, and how each ended."""

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
from tests.sim.soak_world import NodeRecord, World

CUT = ("the connection was ended meanwhile", "its answer could not leave", "its deadline had passed")
"""How a node says of a request that it took it and that its answer will not come."""


@dataclass
class Request:
    """A call, one part of a multicall, a stream, or a remote spawn."""

    number: int
    record: NodeRecord
    target: Any
    how: str
    began_s: float
    timeout_s: float
    losses: int
    connected: int | None
    expected: Any = None
    ran: dict[Pid, int] = field(default_factory=dict)
    """Process → how often it took the request."""
    servers: list[Pid] = field(default_factory=list)
    """The processes that served the request, in order."""
    pauses_s: float = 0.0
    """Virtual seconds that the consumer paused on its own."""
    outcome: Any = None
    ended: bool = False
    produced: int = 0
    """Items of a stream that the producer sent."""
    consumed: int = 0
    end: str = ""
    """How the producer ended the stream; empty if it did not."""

    def __repr__(self) -> str:
        return (
            f"<{self.how} {self.number} of {self.record.node.name} to {self.target} at {self.began_s:.4f} s>"
        )


class Ledger:
    """Every request and every numbered message of a run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.request: list[Request] = []
        self.serving: dict[int, Request] = {}
        """Requests that a server is working on or holds."""
        self.sent: dict[tuple[Pid, Pid], int] = {}
        """(sender, receiver) → messages sent."""
        self.is_doubtful: dict[tuple[Pid, Pid], set[int]] = {}
        """(sender, receiver) → numbers whose send was cut short, so that they may be missing."""
        self.received: dict[tuple[Pid, Pid], tuple[int, int | None]] = {}
        """(sender, receiver) → next number, and lost connections when the last one arrived, if known."""

    # Requests.

    def begin(self, record: NodeRecord, target: Any, how: str, timeout_s: float) -> Request:
        node = target.node if isinstance(target, Pid) else target[1]
        request = Request(
            len(self.request), record, target, how, self.world.now_s, timeout_s,
            record.losses[node], record.connected(node),
        )  # fmt: skip
        self.request.append(request)
        return request

    def part(self, request: Request, target: Pid) -> Request:
        """Make the request for one target of a multicall."""
        record, node = request.record, target.node
        return replace(request, target=target, losses=record.losses[node], connected=record.connected(node))

    def ran(self, process: Process, number: int) -> Request:
        """Record that a process took a request; it may take it once."""
        request = self.request[number]
        request.ran[process.pid] = request.ran.get(process.pid, 0) + 1
        request.servers.append(process.pid)
        if request.ran[process.pid] > 1 or (len(request.ran) > 1 and request.how != "many"):
            self.world.breach(f"{request} ran {request.ran}")
        return request

    def ended(self, request: Request, outcome: Any) -> None:
        """Record and check the outcome of a request, or that its caller was cancelled."""
        world = self.world
        if request.ended:
            world.breach(f"{request} ended twice: {request.outcome!r}, {outcome!r}")
        request.ended, request.outcome = True, outcome
        late_s = world.now_s - request.began_s - request.timeout_s - request.pauses_s
        if late_s > LATE_S:
            world.breach(f"{request} ended {late_s:.3f} s after its deadline: {outcome!r}")
        name = type(outcome).__name__ if isinstance(outcome, BaseException) else "reply"
        kind = request.how if request.how in ("stream", "spawn", "nested") else "call"
        world.counts[f"{kind}: {name}"] += 1
        self._check_outcome(request, outcome)
        self._check_outcome_type(request, outcome)

    def items(self, request: Request, item: Any) -> None:
        """Check that an item of a stream is the next one."""
        if item != (request.number, request.consumed):
            self.world.breach(f"{request}: item {item} came, and {request.consumed} is next")
        request.consumed += 1

    def check_settled(self) -> None:
        """Check at the end that every request has an outcome, and that the outcome is still true."""
        for request in self.request:
            if not request.ended:
                self.world.breach(f"{request} has no outcome")
            elif request.how != "many":
                self._check_outcome(request, request.outcome)

    def _check_outcome(self, request: Request, outcome: Any) -> None:
        """Check what an outcome says about running; checked again at the end, as it must stay true."""
        ran = request.ran.get(request.target, 0) if request.how == "many" else sum(request.ran.values())
        match outcome:
            case Draining(has_begun=True) if request.how == "stream":
                pass  # A drain has ended it; the items before that came.
            case NotDelivered() | NodeStopped():
                if ran or request.consumed:
                    self.world.breach(f"{request} ran, but its outcome is {outcome!r}")
            case OutcomeUnknown() | asyncio.CancelledError():
                pass
            case Pid() if outcome in self.world.ended:
                pass  # Spawned, and ended before its first line.
            case _:
                if ran != 1:
                    self.world.breach(f"{request} ran {ran} times, but its outcome is {outcome!r}")

    def _check_outcome_type(self, request: Request, outcome: Any) -> None:
        """Check that an outcome fits what has happened: lost connections, ended processes, time."""
        world, record, target = self.world, request.record, request.target
        node = target.node if isinstance(target, Pid) else target[1]
        lost = record.losses[node] != request.losses or request.connected is None
        local = node == record.node.name
        stopping = record.node._stopping
        match outcome:
            case WouldBlock(why=why) if "the caller itself" in why or "part of a circle" in why:
                is_right = request.how == "nested" and not request.ran
            case CallTimeout() | WouldBlock():
                is_right = world.now_s - request.began_s >= request.timeout_s - LATE_S
                is_right &= (
                    local
                    or not lost
                    or request.connected is None
                    or record.lost_at[node] >= request.began_s + request.timeout_s - LATE_S
                )
            case NodeLost(why=why) if why.startswith(CUT):
                is_right = not local and (lost or node not in record.node.list() or self._leaves(request))
            case NodeLost():
                is_right = stopping if local else lost
            case NoConnection():
                is_right = not local and (lost or node not in record.node.list())
            case Draining():
                is_right = request.how == "spawn" or self._leaves(request)
            case Expired():
                is_right = request.timeout_s <= 0
            case NoProcess():
                is_right = not isinstance(target, Pid) or target in world.ended or lost
                is_right |= isinstance(target, Pid) and request.connected != target.incarnation
            case ProcessDown():
                servers = request.servers or [pid for pid in world.actors if pid.node == node]
                is_right = any(pid in world.ended for pid in servers)
            case RemoteError():
                expected = {"stream": "raise", "raise": str(request.number)}.get(request.how)
                is_right = outcome.text == expected and (
                    request.how != "stream" or self._is_complete_stream(request, "raise")
                )
            case NodeStopped():
                is_right = stopping
            case asyncio.CancelledError():
                is_right = True
            case BaseException():
                is_right = False
            case Pid():
                is_right = request.how == "spawn" and outcome.node == node
                is_right &= all(pid == outcome for pid in request.ran)
            case _:
                is_right = outcome == request.expected
                if request.how == "stream":
                    is_right = self._is_complete_stream(request, "reply")
        if not is_right:
            world.breach(
                f"{request} has the wrong outcome {outcome!r}; {request.end} after {request.produced} items"
            )

    def _leaves(self, request: Request) -> bool:
        """Whether a node that ran under the name of the target's is leaving, or has left."""
        target = request.target
        name = target.node if isinstance(target, Pid) else target[1]
        records = self.world.by_incarnation.items()
        return any(at == name and (each.node.is_draining or each.node._stopping) for (at, _), each in records)

    def _is_complete_stream(self, request: Request, end: str) -> bool:
        return request.end == end and request.consumed == request.produced

    # Numbered messages.

    def number(self, sender: Pid, receiver: Pid) -> int:
        """Return the number of the next message."""
        return self.sent.get((sender, receiver), 0)

    def count_sent(self, sender: Pid, receiver: Pid, *, is_doubtful: bool = False) -> None:
        """Count a message that was sent; ``is_doubtful``: perhaps it was not."""
        pair = (sender, receiver)
        number = self.sent[pair] = self.sent.get(pair, 0) + 1
        if is_doubtful:
            self.is_doubtful.setdefault(pair, set()).add(number - 1)

    def take_number(self, process: Process, sender: Pid, number: int) -> None:
        """Check a numbered message: in order, once, and none missing unless a connection was lost."""
        world, pair = self.world, (sender, process.pid)
        losses = world.losses_on_arrival.pop((*pair, number), None)
        expected, before = self.received.get(pair, (0, 0))
        self.received[pair] = (number + 1, losses)
        world.counts["messages"] += 1
        if number < expected:
            world.breach(f"{process.pid} got {number} of {sender} after {expected - 1}")
        missing = set(range(expected, number)) - self.is_doubtful.get(pair, set())
        if missing and losses == before is not None:
            world.breach(f"{process.pid} got {number} of {sender}, and never {sorted(missing)}")

    def down(self, process: Process, sender: Pid, reason: Any) -> None:
        """A sender ended: without a lost connection, everything that it sent must have arrived before."""
        pair = (sender, process.pid)
        expected, losses = self.received.get(pair, (0, 0))
        if self.world.record_of(process.pid).losses[sender.node] != losses:
            return
        missing = set(range(expected, self.sent.get(pair, 0))) - self.is_doubtful.get(pair, set())
        if missing:
            self.world.breach(
                f"{process.pid} got the end of {sender} ({reason}), but never {sorted(missing)}"
            )
