"""The processes of the laboratory: a victim and an honest peer, which the laboratory asks what they see.

Each prints one line of JSON when it is ready, and answers each line of its standard input with another one.
It ends when that is closed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import selectors
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fleetlm import Actor, Call, FleetError, Node, NodeUp, Process, Settings, handler
from fleetlm.messages import NodeDown

PAUSE_S = 0.002
"""Seconds between two calls of the honest peer."""
CALL_S = 10.0
"""Seconds after which it gives up a call."""
BEAT_S = 0.02
"""Seconds between two looks of the victim at how late its loop is."""


class Watched:
    """Measures the processor time of the turns of a loop, and of passes of the garbage collector."""

    def __init__(self) -> None:
        self._turn_s = self._collection_s = self._began_s = 0.0
        gc.callbacks.append(self._collected)

    def loop(self) -> asyncio.AbstractEventLoop:
        """Make a loop that is measured. A turn lasts from the end of one look at its sockets to the next."""
        return asyncio.SelectorEventLoop(_TimedSelector(self._take_turn))

    def take(self) -> dict[str, float]:
        """Return the longest ones since the last call."""
        taken = {"turn_s": self._turn_s, "collection_s": self._collection_s}
        self._turn_s = self._collection_s = 0.0
        return taken

    def _take_turn(self, turn_s: float) -> None:
        self._turn_s = max(self._turn_s, turn_s)

    def _collected(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._began_s = time.thread_time()
        else:
            self._collection_s = max(self._collection_s, time.thread_time() - self._began_s)


class _TimedSelector(selectors.DefaultSelector):
    """Tells how much processor time passed between two looks."""

    def __init__(self, take: Callable[[float], None]) -> None:
        super().__init__()
        self._take = take
        self._began_s = time.thread_time()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `selectors.BaseSelector`."""
        self._take(time.thread_time() - self._began_s)
        ready = super().select(timeout)
        self._began_s = time.thread_time()
        return ready


class Echo(Actor):
    """An actor that returns what it gets."""

    @handler
    async def echo(self, value: Any) -> Any:
        return value


async def plain(process: Process) -> None:
    """Reply to calls with their message."""
    async for message in process.mailbox:
        if isinstance(message, Call):
            message.reply(message.message)


async def stuck(process: Process) -> None:
    """Take nothing."""
    await asyncio.get_running_loop().create_future()


async def idle(process: Process) -> None:
    """Take messages, and do nothing."""
    async for _ in process.mailbox:
        pass


async def leader(process: Process) -> None:
    """Have a cluster-wide name."""
    await process.node.registry.register("leader", process.pid)
    await idle(process)


def report(**facts: Any) -> None:
    """Print facts for the laboratory."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def obey(orders: Callable[[], dict[str, Any]]) -> None:
    """Answer each line of the standard input, until it is closed."""
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[bool]()

    def read() -> None:
        for _ in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, True)
        loop.call_soon_threadsafe(lines.put_nowait, False)

    threading.Thread(target=read, daemon=True).start()
    while await lines.get():
        report(**orders())


async def victim(watched: Watched) -> None:
    """The node that is attacked. Answers with the worst that its loop has seen since the last question."""
    async with Node.start(Settings.from_env()) as node:
        node.spawn(Echo, name="actor")
        node.spawn(plain, name="plain")
        node.spawn(plain, name="busy")
        node.spawn(stuck, name="stuck")
        node.spawn(leader, name="leader")
        node.factories.register("idle", idle)
        loop, worst = asyncio.get_running_loop(), 0.0

        async def beat() -> None:
            nonlocal worst
            while True:
                due = loop.time() + BEAT_S
                await asyncio.sleep(BEAT_S)
                worst = max(worst, loop.time() - due)

        def take() -> dict[str, Any]:
            nonlocal worst
            facts, worst = {"lag_s": worst, **watched.take()}, 0.0
            return facts

        beating = asyncio.create_task(beat())
        report(name=node.name)
        await obey(take)
        beating.cancel()


async def honest(_watched: Watched) -> None:
    """A peer that calls the victim all the time. Answers with the times of its calls since it was asked."""
    to = os.environ["ATTACKED"]
    async with Node.start(Settings.from_env()) as node:
        times: list[float] = []
        failed: list[str] = []
        downs: list[str] = []
        began = 0.0

        async def call() -> None:
            nonlocal began
            while True:
                began = time.perf_counter()
                try:
                    await node.call(("plain", to), "hello", CALL_S)
                    times.append(time.perf_counter() - began)
                except FleetError as error:
                    failed.append(type(error).__name__)
                began = 0.0
                await asyncio.sleep(PAUSE_S)

        async def watch() -> None:
            async for event in node.events():
                match event:
                    case NodeDown(node=down, reason=reason) if down == to:
                        downs.append(reason)
                    case NodeUp():
                        pass

        def take() -> dict[str, Any]:
            waiting = time.perf_counter() - began if began else 0.0
            facts = {"times": times[:], "failed": failed[:], "downs": downs[:], "waiting_s": waiting}
            times.clear()
            failed.clear()
            downs.clear()
            return facts

        await node.ready(1, 20.0)
        tasks = [asyncio.create_task(each()) for each in (call, watch)]
        report(name=node.name)
        await obey(take)
        for task in tasks:
            task.cancel()


MEMBERS: dict[str, Callable[[Watched], Coroutine[Any, Any, None]]] = {"victim": victim, "honest": honest}
