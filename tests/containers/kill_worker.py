"""The worker of the kill test: servers, callers and senders that write a journal of what they do.

`kill_journal` describes and checks the records. Each record is one `os.write` to a file opened with
O_APPEND, so that a SIGKILL loses nothing that was written.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
import zlib
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kill_journal as journal  # in the same folder in the container

from fleetlm import (
    Call,
    Child,
    FleetError,
    NodeDown,
    NodeStopped,
    NodeUp,
    NotDelivered,
    OutcomeUnknown,
    Pid,
    ProcessExit,
    RemoteError,
    Supervisor,
)

if TYPE_CHECKING:
    import fleetlm

FOLDER = Path("/journal")
QUIET = FOLDER / "quiet"
"""Callers and senders end when this file exists."""
SERVERS = ("fast", "slow", "wide")
"""fast replies at once; slow sleeps before each reply, so that calls queue; wide replies from tasks."""
CALLERS = 24
SENDERS = 2
PAUSE_S = (0.03, 0.2)
"""Seconds between two calls of one caller, so that the load does not test the machine."""
CALL_S = 2.0
SHORT_S = (0.002, 0.03)
LARGE_BYTES = 300_000
"""More than `Settings.chunk_bytes`, so that the message is sent in chunks."""
LARGE_SHARE = 0.005
RAISE_SHARE = 0.03
CRASH_SHARE = 0.003
EXIT_SHARE = 0.002
"""Share of turns that send an exit signal to a server, which its supervisor restarts, instead of a call."""
STRANGER_SHARE = 0.03
"""Share of calls to any node ever seen, connected or not."""
PIDS_KEPT = 12
"""Pids kept of each server of a node; the newest are kept."""
KINDS = {"name": 50, "pid": 14, "former": 8, "nobody": 5, "short": 15, "multi": 8}


class JournalFile:
    """The journal of this run."""

    def __init__(self, node: fleetlm.Node) -> None:
        path = FOLDER / journal.file_name(node.name, node.incarnation)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o644)

    def write(self, kind: str, *fields: object) -> None:
        data = journal.line(time.time(), kind, *fields)
        if os.write(self._file, data) != len(data):
            raise OSError(f"the journal is torn at {data!r}")


class NodeState:
    """The state that the processes of one node share."""

    def __init__(self, node: fleetlm.Node) -> None:
        self.node = node
        self.book = JournalFile(node)
        self.quiet = False
        self.known = {node.name}
        self.pids: dict[str, dict[str, list[Pid]]] = defaultdict(lambda: defaultdict(list))
        """Node → server → its pids, the current one last."""
        self._calls = 0

    def next_id(self) -> str:
        self._calls += 1
        return f"{self.node.incarnation:x}.{self._calls}"

    def any_node(self) -> str:
        """Draw a connected node, this node, or sometimes a former one."""
        if random.random() < STRANGER_SHARE:
            return random.choice(sorted(self.known))
        return random.choice([self.node.name, *self.node.list()])

    def add_pid(self, server: str, pid: Pid) -> None:
        pids = self.pids[pid.node][server]
        if pid not in pids:
            pids.append(pid)
            del pids[:-PIDS_KEPT]

    def present(self) -> list[Pid]:
        """Return the known servers of connected nodes."""
        nodes = [self.node.name, *self.node.list()]
        return [pids[-1] for node in nodes for pids in self.pids[node].values() if pids]

    def former(self) -> list[Pid]:
        """Return servers that have crashed or whose node has crashed."""
        return [pid for servers in self.pids.values() for pids in servers.values() for pid in pids[:-1]]


# Servers.


class Server:
    """Serve calls ``("do", id, how, padding)`` and messages ``("take", stream, seq, padding)``."""

    def __init__(self, process: fleetlm.Process, state: NodeState, name: str) -> None:
        self.process, self.state, self.name = process, state, name
        self.taken = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        self.state.add_pid(self.name, self.process.pid)
        try:
            async for message in self.process.mailbox:
                match message:
                    case Call(message=("do", str(ref), str(how), _)):
                        await self.serve(message, ref, how)
                    case ("take", str(stream), int(seq), _):
                        self.state.book.write("got", stream, seq)
        finally:
            for task in self.tasks:
                task.cancel()

    async def serve(self, call: Call, ref: str, how: str) -> None:
        self.taken += 1
        pid = self.process.pid
        value = f"{zlib.crc32(f'{pid} {self.taken}'.encode()):08x}"
        self.state.book.write("ran", ref, self.name, pid.number, value)
        if how == "crash":
            self.state.book.write("crash", f"{pid.incarnation:x}", pid.number)
            raise ProcessExit("told to crash")
        if self.name == "slow":
            await asyncio.sleep(random.uniform(0.002, 0.025))
        if self.name == "wide":
            task = asyncio.get_running_loop().create_task(self.later(call, how, value))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            answer(call, how, value)

    async def later(self, call: Call, how: str, value: str) -> None:
        await asyncio.sleep(random.uniform(0.0, 0.2))
        answer(call, how, value)


def answer(call: Call, how: str, value: str) -> None:
    if how == "raise":
        call.fail(ValueError(value))
    else:
        call.reply(value)


async def server(process: fleetlm.Process, state: NodeState, name: str) -> None:
    await Server(process, state, name).run()


# Callers.


async def caller(process: fleetlm.Process, state: NodeState) -> None:
    """Make one call after another, of every kind."""
    kinds, weights = zip(*KINDS.items(), strict=True)
    while not state.quiet:
        (kind,) = random.choices(kinds, weights)
        if random.random() < EXIT_SHARE:
            end_one(state)
        elif kind == "multi":
            await call_many(state)
        else:
            await call_one(state, kind)
        await asyncio.sleep(random.uniform(*PAUSE_S))


def end_one(state: NodeState) -> None:
    """Crash a server: calls that it took end with `ProcessDown`, calls in its mailbox with `NoProcess`."""
    for pid in random.sample(present := state.present(), min(1, len(present))):
        state.book.write("crash", f"{pid.incarnation:x}", pid.number)
        state.node.exit(pid, random.choice(["kill", "shutdown"]))


def request(ref: str) -> tuple[str, str, str, bytes]:
    how = random.choices(
        ["raise", "crash", "reply"], [RAISE_SHARE, CRASH_SHARE, 1 - RAISE_SHARE - CRASH_SHARE]
    )[0]
    return "do", ref, how, bytes(LARGE_BYTES if random.random() < LARGE_SHARE else 0)


async def call_one(state: NodeState, kind: str) -> None:
    to: Pid | tuple[str, str]
    pids = {"pid": state.present, "former": state.former}.get(kind, list)()
    if pids:
        to = random.choice(pids)
        fields = (to.node, "-", f"{to.incarnation:x}", to.number)
    else:
        kind = "name" if kind in ("pid", "former") else kind
        to = ("nobody" if kind == "nobody" else random.choice(SERVERS), state.any_node())
        fields = (to[1], to[0], 0, 0)  # type: ignore[assignment]
    ref = state.next_id()
    timeout_s = random.uniform(*SHORT_S) if kind == "short" else CALL_S
    state.book.write("call", ref, kind, *fields)
    result: Any
    try:
        result = await state.node.call(to, request(ref), timeout=timeout_s)
    except FleetError as error:
        result = error
    except asyncio.CancelledError:
        state.book.write("end", ref, fields[0], journal.CANCELLED, "-", "-")
        raise
    state.book.write("end", ref, fields[0], *outcome(result))


async def call_many(state: NodeState) -> None:
    ref = state.next_id()
    name = random.choice(SERVERS)
    nodes = {state.any_node() for _ in range(4)}
    targets = [(name, node) for node in sorted(nodes)]
    for _, node in targets:
        state.book.write("call", ref, "multi", node, name, 0, 0)
    try:
        results = await state.node.multicall(targets, request(ref), timeout=CALL_S)
    except FleetError as error:
        results = [error] * len(targets)
    except asyncio.CancelledError:
        for _, node in targets:
            state.book.write("end", ref, node, journal.CANCELLED, "-", "-")
        raise
    for (_, node), result in zip(targets, results, strict=True):
        state.book.write("end", ref, node, *outcome(result))


def outcome(result: Any) -> tuple[str, str, str]:
    """Return the outcome, its type and its value, as the journal writes them."""
    kind = type(result).__name__
    match result:
        case NotDelivered():
            return journal.NOT_DELIVERED, kind, "-"
        case OutcomeUnknown():
            return journal.UNKNOWN, kind, "-"
        case RemoteError(type_name="ValueError", text=text):
            return journal.RAISED, kind, text
        case NodeStopped():
            return journal.REFUSED, kind, "-"
        case str():
            return journal.OK, "-", result
    return journal.OTHER, kind, "-"


# One-way messages.


async def sender(process: fleetlm.Process, state: NodeState) -> None:
    """Send numbered messages in bursts to servers on all nodes, sometimes a large one between small ones."""
    me = f"{state.node.incarnation:x}.{process.pid.number}"
    seqs: dict[Pid, int] = defaultdict(int)
    while not state.quiet:
        for pid in random.sample(present := state.present(), min(1, len(present))):
            stream = f"{me}>{pid.incarnation:x}.{pid.number}"
            for _ in range(random.randint(1, 8)):
                seqs[pid] += 1
                padding = bytes(LARGE_BYTES if random.random() < LARGE_SHARE else 0)
                state.book.write("send", stream, seqs[pid], pid.node, f"{pid.incarnation:x}")
                try:
                    await state.node.send(pid, ("take", stream, seqs[pid], padding))
                except NotDelivered:
                    state.book.write("unsent", stream, seqs[pid])
        await asyncio.sleep(random.uniform(*PAUSE_S))


# Other nodes.


async def historian(process: fleetlm.Process, state: NodeState) -> None:
    async for event in state.node.events():
        if not isinstance(event, NodeUp | NodeDown):
            continue
        kind = "up" if isinstance(event, NodeUp) else "down"
        state.book.write(kind, event.node, f"{event.incarnation:x}")
        if kind == "up":
            state.known.add(event.node)
            state.node.send_nowait("scout", event.node)


async def scout(process: fleetlm.Process, state: NodeState) -> None:
    """Ask for the pids of servers: of a node that came up, and sometimes of any node."""
    while True:
        try:
            node = await process.receive(timeout=0.15)
        except TimeoutError:
            node = state.any_node()
        for name in SERVERS:
            try:
                pid = await state.node.whereis(name, at=node, timeout=CALL_S)
            except (NotDelivered, OutcomeUnknown):
                break
            if pid is not None:
                state.add_pid(name, pid)


async def main(node: fleetlm.Node) -> None:
    state = NodeState(node)
    state.book.write("start", socket.gethostname())
    children = [Child(name, server, (state, name), register=name) for name in SERVERS]
    node.spawn(Supervisor(children, max_restarts=10_000, backoff_s=(0.05, 0.3)), name="servers")
    node.spawn(scout, state, name="scout")
    node.spawn(historian, state)
    load = [node.spawn(caller, state) for _ in range(CALLERS)]
    load += [node.spawn(sender, state) for _ in range(SENDERS)]
    try:
        while not QUIET.exists():
            await asyncio.sleep(0.1)
        state.quiet = True
        for pid in load:
            await node.join(pid)
        state.book.write("quiet")
        await node.wait_stopped()
    finally:
        state.book.write("stop")
