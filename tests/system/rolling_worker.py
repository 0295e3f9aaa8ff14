"""The worker of the rolling restarts: serves, calls, and writes down what it asked and what it ran.

`fleetlm start rolling_worker:main`. Every node serves: one member of the group ``workers``, a process with
the local name ``work``, and one candidate for the cluster-wide name ``leader``. A node with ``ROLLING_CALLS``
(calls per second) and ``ROLLING_STREAMS`` (streams open at a time) also calls, until its node drains or the
file ``quiet`` exists in ``ROLLING_FOLDER``. `rolling_ledger` describes and checks the records.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import rolling_ledger as ledger  # in the same folder, also in a container

import fleetlm
from fleetlm import Actor, Call, Child, NameLost, Node, Process, Supervisor, handler

FOLDER = Path(os.environ["ROLLING_FOLDER"])
QUIET = FOLDER / ledger.QUIET
CALLS_PER_S = float(os.environ.get("ROLLING_CALLS", "0"))
STREAMS = int(os.environ.get("ROLLING_STREAMS", "0"))
FIXED = os.environ.get("ROLLING_FIXED", "").split()
"""Names of nodes whose process ``work`` is called, whether the node is there or not."""
NODES = int(os.environ.get("ROLLING_NODES", "5"))
HANDLE_S = 0.02
"""Seconds that a call runs, so that there are always some in flight."""
ITEMS = 20
ITEM_S = 0.05
PATIENCE_S = 20.0
"""Seconds within which a call, with its repetitions, must have its answer: a node restarts in that time."""
ATTEMPTS = 40
KINDS = ("group", "name", "group", "name", "fixed" if FIXED else "group")
"""In turn. A call to one fixed node waits for its restart, so there are fewer of these."""


class Ledger:
    """What this run of a node did. Each record is one write, so that a SIGKILL loses nothing."""

    def __init__(self, node: Node) -> None:
        path = FOLDER / f"{node.name.replace(':', '-')}-{node.incarnation}{ledger.SUFFIX}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o644)

    def write(self, what: str, request: str, detail: str = "") -> None:
        os.write(self._file, ledger.line(what, request, detail))


class Work(Actor):
    """A member of the group."""

    def __init__(self, book: Ledger) -> None:
        self.book = book

    @handler(concurrent=True)
    async def run(self, request: str) -> str:
        self.book.write("run", request)
        await asyncio.sleep(HANDLE_S)
        return request

    @handler(concurrent=True)
    async def count(self, request: str, items: int) -> AsyncIterator[int]:
        self.book.write("run", request)
        for number in range(items):
            await asyncio.sleep(ITEM_S)
            yield number


async def lead(process: Process, book: Ledger) -> None:
    """Take the name ``leader`` whenever it is free, and serve; hand it on before the node drains."""
    registry = process.node.registry
    leaving = asyncio.Event()

    async def hand_on() -> None:
        leaving.set()
        if registry.whereis("leader") == process.pid:
            await registry.unregister("leader")

    process.node.on_leaving(hand_on, phase="before_drain")
    standing = process.create_task(stand(process, leaving))
    async for message in process.mailbox:
        if isinstance(message, Call):
            process.create_task(_answer(message, book))
        elif isinstance(message, NameLost) and standing.done():
            standing = process.create_task(
                stand(process, leaving)
            )  # what it has taken, it answers all the same


async def stand(process: Process, leaving: asyncio.Event) -> None:
    """Register as the leader as soon as there is none."""
    registry = process.node.registry
    with contextlib.closing(registry.watch("leader")) as changes:
        while registry.whereis("leader") != process.pid and not leaving.is_set():
            try:
                await registry.register("leader", process.pid, on_loss="message")
            except fleetlm.AlreadyRegistered:
                await anext(changes)


async def serve(process: Process, book: Ledger) -> None:
    """Answer calls, several at a time."""
    async for message in process.mailbox:
        if isinstance(message, Call):
            process.create_task(_answer(message, book))


async def _answer(call: Call, book: Ledger) -> None:
    book.write("run", call.message)
    await asyncio.sleep(HANDLE_S)
    call.reply(call.message)


class Caller:
    """Makes requests, each with its own name, and writes down how each one ended."""

    def __init__(self, node: Node, book: Ledger) -> None:
        self.node = node
        self.book = book
        self.workers = node.groups.ref(Work, "workers", attempts=ATTEMPTS).within(PATIENCE_S)
        self.numbers = itertools.count(1)
        self.open: set[asyncio.Task[None]] = set()
        self.is_leaving = False

    def may_begin(self) -> bool:
        return not (self.is_leaving or QUIET.exists())

    async def call_all(self) -> None:
        """Begin calls at the given rate, whether former ones have ended or not."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while self.may_begin():
            number = next(self.numbers)
            kind = KINDS[number % len(KINDS)]
            self.begin(f"{kind}-{self.node.name}-{self.node.incarnation}-{number}", kind)
            due = max(due + 1 / CALLS_PER_S, loop.time())
            await asyncio.sleep(due - loop.time())

    async def stream_all(self) -> None:
        """Consume one stream after the other."""
        while self.may_begin():
            request = f"stream-{self.node.name}-{self.node.incarnation}-{next(self.numbers)}"
            await self.begin(request, "stream")

    def begin(self, request: str, kind: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self.ask(request, kind))
        self.open.add(task)
        task.add_done_callback(self.open.discard)
        return task

    async def ask(self, request: str, kind: str) -> None:
        self.book.write("asked", request)
        try:
            answer = await self._request(request, kind)
        except fleetlm.FleetError as error:
            unsure = isinstance(error, fleetlm.OutcomeUnknown)
            notes = " ".join(getattr(error, "__notes__", ()))
            self.book.write("unknown" if unsure else "failed", request, f"{error!r} {error} {notes}")
        else:
            wanted: Any = list(range(ITEMS)) if kind == "stream" else request
            self.book.write(
                "ok" if answer == wanted else "wrong", request, "" if answer == wanted else repr(answer)
            )

    async def _request(self, request: str, kind: str) -> Any:
        if kind == "group":
            return await self.workers.call(Work.run, request)
        if kind == "stream":
            return [number async for number in self.workers.stream(Work.count, request, ITEMS)]
        ask = self._ask_leader if kind == "name" else self._ask_fixed
        return await fleetlm.retry(lambda: ask(request), attempts=ATTEMPTS, timeout=PATIENCE_S)

    async def _ask_leader(self, request: str) -> Any:
        leader = self.node.registry.resolve_name("leader")
        return await self.node.call(leader, request, timeout=PATIENCE_S)

    async def _ask_fixed(self, request: str) -> Any:
        aim = FIXED[int(request.rpartition("-")[2]) // len(KINDS) % len(FIXED)]
        return await self.node.call(("work", aim), request, timeout=PATIENCE_S)

    async def leave(self) -> None:
        """Begin no more requests, and wait for the open ones."""
        self.is_leaving = True
        await self.finish()

    async def finish(self) -> None:
        while self.open:
            await asyncio.wait(self.open)


async def main(node: Node) -> None:
    book = Ledger(node)
    work = await node.start_actor(Work, book)
    node.groups.join("workers", work.pid)
    node.spawn(serve, book, name="work")
    await node.ready(NODES - 1, PATIENCE_S)
    # Not before: a node that is alone would take the name, and lose it when it meets the others.
    node.spawn(Supervisor([Child("leader", lead, (book,))]))
    book.write("ready", "")
    if CALLS_PER_S:
        await call(node, book)
    await asyncio.Event().wait()  # until the node is told to leave


async def call(node: Node, book: Ledger) -> None:
    """Make requests until the file ``quiet`` exists."""
    caller = Caller(node, book)
    node.on_leaving(caller.leave, phase="before_drain", timeout=PATIENCE_S)
    async with asyncio.TaskGroup() as group:
        group.create_task(caller.call_all())
        for _ in range(STREAMS):
            group.create_task(caller.stream_all())
    await caller.finish()
    if not caller.is_leaving:
        book.write("quiet", "")
