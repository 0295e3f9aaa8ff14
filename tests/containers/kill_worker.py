"""The worker of the kill test: servers, callers and senders that write down all that they do.

What is written and what it must add up to: `kill_journal`. Everything is one `os.write` to a file
opened with O_APPEND, so that a SIGKILL loses nothing that was written.
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

import kill_journal as journal  # beside this file, in the container

from fleetlm import (
    Call,
    Child,
    FleetError,
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
"""When this file appears, callers and senders end."""
SERVERS = ("fast", "slow", "wide")
"""Answers at once; sleeps before each answer, so that calls wait in its mailbox; answers from tasks."""
CALLERS = 24
SENDERS = 2
PAUSE_S = (0.03, 0.2)
"""Between two calls of one caller: the machine must not be what is tested."""
CALL_S = 2.0
SHORT_S = (0.002, 0.03)
LARGE_BYTES = 300_000
"""More than `Settings.chunk_bytes`: it travels in pieces."""
LARGE_SHARE = 0.005
RAISE_SHARE = 0.03
CRASH_SHARE = 0.003
EXIT_SHARE = 0.002
"""Instead of a call: an exit signal to a server, which its supervisor starts again."""
STRANGER_SHARE = 0.03
"""Of the calls: to any node ever seen, connected or not."""
PIDS_KEPT = 12
"""Of each node, the newest of each server among them."""
KINDS = {"name": 50, "pid": 14, "former": 8, "nobody": 5, "short": 15, "multi": 8}


class Book:
    """The journal of this life."""

    def __init__(self, node: fleetlm.Node) -> None:
        path = FOLDER / journal.file_name(node.name, node.incarnation)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o644)

    def write(self, kind: str, *fields: object) -> None:
        data = journal.line(time.time(), kind, *fields)
        if os.write(self._file, data) != len(data):
            raise OSError(f"the journal is torn at {data!r}")


class Life:
    """What the processes of one node share."""

    def __init__(self, node: fleetlm.Node) -> None:
        self.node = node
        self.book = Book(node)
        self.quiet = False
        self.known = {node.name}
        self.pids: dict[str, dict[str, list[Pid]]] = defaultdict(lambda: defaultdict(list))
        """Node → server → its pids so far, the last one is the present one."""
        self._calls = 0

    def next_id(self) -> str:
        self._calls += 1
        return f"{self.node.incarnation:x}.{self._calls}"

    def any_node(self) -> str:
        """One that is connected, this one, or now and then one that was."""
        if random.random() < STRANGER_SHARE:
            return random.choice(sorted(self.known))
        return random.choice([self.node.name, *self.node.list()])

    def met(self, server: str, pid: Pid) -> None:
        pids = self.pids[pid.node][server]
        if pid not in pids:
            pids.append(pid)
            del pids[:-PIDS_KEPT]

    def present(self) -> list[Pid]:
        """The servers of connected nodes, as far as known."""
        nodes = [self.node.name, *self.node.list()]
        return [pids[-1] for node in nodes for pids in self.pids[node].values() if pids]

    def former(self) -> list[Pid]:
        """Servers that have crashed, or whose node has."""
        return [pid for servers in self.pids.values() for pids in servers.values() for pid in pids[:-1]]


# ── servers ──────────────────────────────────────────────────────────────────────────────────────


class Server:
    """Takes calls ``("do", id, how, padding)`` and one-way messages ``("take", stream, seq, padding)``."""

    def __init__(self, process: fleetlm.Process, life: Life, name: str) -> None:
        self.process, self.life, self.name = process, life, name
        self.taken = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        self.life.met(self.name, self.process.pid)
        try:
            async for message in self.process.mailbox:
                match message:
                    case Call(message=("do", str(ref), str(how), _)):
                        await self.serve(message, ref, how)
                    case ("take", str(stream), int(seq), _):
                        self.life.book.write("got", stream, seq)
        finally:
            for task in self.tasks:
                task.cancel()

    async def serve(self, call: Call, ref: str, how: str) -> None:
        self.taken += 1
        pid = self.process.pid
        value = f"{zlib.crc32(f'{pid} {self.taken}'.encode()):08x}"
        self.life.book.write("ran", ref, self.name, pid.number, value)
        if how == "crash":
            self.life.book.write("crash", f"{pid.incarnation:x}", pid.number)
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


async def server(process: fleetlm.Process, life: Life, name: str) -> None:
    await Server(process, life, name).run()


# ── callers ──────────────────────────────────────────────────────────────────────────────────────


async def caller(process: fleetlm.Process, life: Life) -> None:
    """One call after another, of every kind."""
    kinds, weights = zip(*KINDS.items(), strict=True)
    while not life.quiet:
        (kind,) = random.choices(kinds, weights)
        if random.random() < EXIT_SHARE:
            end_one(life)
        elif kind == "multi":
            await call_many(life)
        else:
            await call_one(life, kind)
        await asyncio.sleep(random.uniform(*PAUSE_S))


def end_one(life: Life) -> None:
    """What has been taken is then `ProcessDown`, what waits in the mailbox `NoProcess`."""
    for pid in random.sample(present := life.present(), min(1, len(present))):
        life.book.write("crash", f"{pid.incarnation:x}", pid.number)
        life.node.exit(pid, random.choice(["kill", "shutdown"]))


def request(ref: str) -> tuple[str, str, str, bytes]:
    how = random.choices(
        ["raise", "crash", "reply"], [RAISE_SHARE, CRASH_SHARE, 1 - RAISE_SHARE - CRASH_SHARE]
    )[0]
    return "do", ref, how, bytes(LARGE_BYTES if random.random() < LARGE_SHARE else 0)


async def call_one(life: Life, kind: str) -> None:
    to: Pid | tuple[str, str]
    pids = {"pid": life.present, "former": life.former}.get(kind, list)()
    if pids:
        to = random.choice(pids)
        fields = (to.node, "-", f"{to.incarnation:x}", to.number)
    else:
        kind = "name" if kind in ("pid", "former") else kind
        to = ("nobody" if kind == "nobody" else random.choice(SERVERS), life.any_node())
        fields = (to[1], to[0], 0, 0)  # type: ignore[assignment]
    ref = life.next_id()
    timeout_s = random.uniform(*SHORT_S) if kind == "short" else CALL_S
    life.book.write("call", ref, kind, *fields)
    result: Any
    try:
        result = await life.node.call(to, request(ref), timeout=timeout_s)
    except FleetError as error:
        result = error
    except asyncio.CancelledError:
        life.book.write("end", ref, fields[0], journal.CANCELLED, "-", "-")
        raise
    life.book.write("end", ref, fields[0], *outcome(result))


async def call_many(life: Life) -> None:
    ref = life.next_id()
    name = random.choice(SERVERS)
    nodes = {life.any_node() for _ in range(4)}
    targets = [(name, node) for node in sorted(nodes)]
    for _, node in targets:
        life.book.write("call", ref, "multi", node, name, 0, 0)
    try:
        results = await life.node.multicall(targets, request(ref), timeout=CALL_S)
    except FleetError as error:
        results = [error] * len(targets)
    except asyncio.CancelledError:
        for _, node in targets:
            life.book.write("end", ref, node, journal.CANCELLED, "-", "-")
        raise
    for (_, node), result in zip(targets, results, strict=True):
        life.book.write("end", ref, node, *outcome(result))


def outcome(result: Any) -> tuple[str, str, str]:
    """Which, of which type, with which value."""
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


# ── one-way messages ─────────────────────────────────────────────────────────────────────────────


async def sender(process: fleetlm.Process, life: Life) -> None:
    """Numbered messages in bursts, to servers on all nodes; now and then a large one between small ones."""
    me = f"{life.node.incarnation:x}.{process.pid.number}"
    seqs: dict[Pid, int] = defaultdict(int)
    while not life.quiet:
        for pid in random.sample(present := life.present(), min(1, len(present))):
            stream = f"{me}>{pid.incarnation:x}.{pid.number}"
            for _ in range(random.randint(1, 8)):
                seqs[pid] += 1
                padding = bytes(LARGE_BYTES if random.random() < LARGE_SHARE else 0)
                life.book.write("send", stream, seqs[pid], pid.node, f"{pid.incarnation:x}")
                try:
                    await life.node.send(pid, ("take", stream, seqs[pid], padding))
                except NotDelivered:
                    life.book.write("unsent", stream, seqs[pid])
        await asyncio.sleep(random.uniform(*PAUSE_S))


# ── what is seen of other nodes ──────────────────────────────────────────────────────────────────


async def historian(process: fleetlm.Process, life: Life) -> None:
    async for event in life.node.events():
        kind = "up" if isinstance(event, NodeUp) else "down"
        life.book.write(kind, event.node, f"{event.incarnation:x}")
        if kind == "up":
            life.known.add(event.node)
            life.node.send_nowait("scout", event.node)


async def scout(process: fleetlm.Process, life: Life) -> None:
    """Learn the pids of servers: of a node that has come up, and now and then of any."""
    while True:
        try:
            node = await process.receive(timeout=0.15)
        except TimeoutError:
            node = life.any_node()
        for name in SERVERS:
            try:
                pid = await life.node.whereis(name, at=node, timeout=CALL_S)
            except (NotDelivered, OutcomeUnknown):
                break
            if pid is not None:
                life.met(name, pid)


async def main(node: fleetlm.Node) -> None:
    life = Life(node)
    life.book.write("start", socket.gethostname())
    children = [Child(name, server, (life, name), register=name) for name in SERVERS]
    node.spawn(Supervisor(children, max_restarts=10_000, backoff_s=(0.05, 0.3)), name="servers")
    node.spawn(scout, life, name="scout")
    node.spawn(historian, life)
    load = [node.spawn(caller, life) for _ in range(CALLERS)]
    load += [node.spawn(sender, life) for _ in range(SENDERS)]
    try:
        while not QUIET.exists():
            await asyncio.sleep(0.1)
        life.quiet = True
        for pid in load:
            await node.join(pid)
        life.book.write("quiet")
        await node.wait_stopped()
    finally:
        life.book.write("stop")
