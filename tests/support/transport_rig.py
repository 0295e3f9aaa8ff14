"""Shared by the transport's tests: a recording listener, transports on 127.0.0.N, both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

from fleetlm.settings import Settings
from fleetlm.transport.zeromq import ZmqTransport
from tests.conftest import within

COOKIE = "a cookie that the tests share"
OTHER_COOKIE = "a cookie of somebody else"
PATIENCE_S = 5.0
KNOCK = b"which source is this?"
MOVED = b"what follows comes over the local road"
"""Frames of the rig itself, which stand for those of the core: no recorder notes them."""
_road: contextvars.ContextVar[str] = contextvars.ContextVar("road", default="zeromq")
"""The road that `Station.reach` opens."""
_channels = itertools.count(1)
_hosts = itertools.count(1)


class Recorder:
    """A `fleetlm.transport.interface.Listener` that records facts and wakes a test that waits for one."""

    def __init__(self) -> None:
        self.facts: list[tuple[Any, ...]] = []
        self.times: list[float] = []
        self.foreign: set[int] = set()
        """Channels that were lost because another program listens there."""
        self.on_fact: Callable[[tuple[Any, ...]], None] | None = None
        self.admit: Callable[[bytes], None] = lambda source: None
        """Called for each source that is met, as if it were a peer's half at once."""
        self.follow: Callable[[bytes], object] = lambda source: None
        """Called for each source that says that it changes over to a local road."""
        self.rooms: Callable[[bytes, int], memoryview | None] | None = None
        """Called for a long frame of which a part has come."""
        self.knocked: asyncio.Queue[bytes] = asyncio.Queue()
        self._changed = asyncio.Event()

    def _note(self, *fact: Any) -> None:
        self.facts.append(fact)
        self.times.append(time.monotonic())
        self._changed.set()
        if self.on_fact is not None:
            self.on_fact(fact)

    def channel_opened(self, channel: int) -> None:
        self._note("opened", channel)

    def channel_lost(
        self, channel: int, reason: str, *, is_foreign: bool = False, is_logged: bool = False
    ) -> None:
        self.foreign |= {channel} if is_foreign else set()
        self._note("lost", channel, reason)

    def channel_answered(self, channel: int, frame: bytes) -> None:
        self._note("answered", channel, frame)

    def frame_arrived(self, source: bytes, frame: bytes, tail: memoryview | None = None) -> None:
        if frame == KNOCK:
            self.knocked.put_nowait(source)
        elif frame == MOVED:
            self.follow(source)
        elif tail is None:
            self._note("frame", source, frame)
        else:
            self._note("frame", source, frame, bytes(tail))

    def room(self, source: bytes, start: bytes, size_bytes: int) -> memoryview | None:
        del source
        return None if self.rooms is None else self.rooms(start, size_bytes)

    def source_broke(self, source: bytes, why: str) -> None:
        self._note("broke", source, why)

    def road_opened(self, channel: int) -> None:
        self._note("road", channel)

    def source_met(self, source: bytes, ip: str) -> None:
        self._note("met", source, ip)
        self.admit(source)

    def source_lost(self, source: bytes) -> None:
        self._note("gone", source)

    def stranger_refused(self, ip: str, reason: str) -> None:
        self._note("refused", ip, reason)

    def all(self, kind: str) -> list[tuple[Any, ...]]:
        return [fact[1:] for fact in self.facts if fact[0] == kind]

    @property
    def frames(self) -> list[bytes]:
        return [frame for _, frame in self.all("frame")]

    def when(self, kind: str) -> float:
        """The monotonic time of the last fact of a kind."""
        return max(at for fact, at in zip(self.facts, self.times, strict=True) if fact[0] == kind)

    async def until(self, kind: str, count: int = 1, patience_s: float = PATIENCE_S) -> Any:
        """Wait for the ``count``-th fact of a kind; fail with what happened instead."""

        async def wait() -> Any:
            while len(found := self.all(kind)) < count:
                self._changed.clear()
                await self._changed.wait()
            return found[count - 1]

        try:
            return await asyncio.wait_for(wait(), patience_s)
        except TimeoutError:
            facts = [str(fact)[:200] for fact in self.facts[-20:]]
            pytest.fail(f"no {kind} number {count} in {patience_s} s, but {facts}")


class Station:
    """A transport with its recorder and its address."""

    def __init__(self, transport: ZmqTransport, seen: Recorder, ip: str, port: int) -> None:
        self.transport, self.seen, self.ip, self.port = transport, seen, ip, port

    def dial(self, ip: str, port: int) -> int:
        channel = next(_channels)
        self.transport.dial(channel, ip, port)
        return channel

    async def reach(self, other: Station) -> int:
        """Open a channel to another station, on the road that the test is about."""
        count = len(self.seen.all("opened")) + 1
        channel = self.dial(other.ip, other.port)
        assert await self.seen.until("opened", count) == (channel,)
        if _road.get() == "local":
            await self.move(channel, other)
        return channel

    async def introduce(self, channel: int, other: Station) -> bytes:
        """Let the other station know of a channel. Returns its source there."""
        assert self.send(channel, KNOCK)
        return await asyncio.wait_for(other.seen.knocked.get(), PATIENCE_S)

    async def agree(self, channel: int, other: Station) -> bytes:
        """Have a channel let in at the local road of the other station. Returns its source there."""
        count = len(self.seen.all("road")) + 1
        source, ticket = await self.introduce(channel, other), os.urandom(16)
        other.transport.expect_road(source, ticket)
        self.transport.open_road(channel, other.transport.road, ticket)
        assert await self.seen.until("road", count) == (channel,)
        return source

    async def move(self, channel: int, other: Station) -> bytes:
        """Change a channel over to the local road. Returns its source at the other station."""
        source = await self.agree(channel, other)
        assert self.send(channel, MOVED)
        self.transport.take_road(channel)
        return source

    def send(self, channel: int, frame: bytes, tail: memoryview | None = None) -> bool:
        return self.transport.send(channel, frame, tail)


def free_ip() -> str:
    """An address of the loopback network that no other test of this process uses."""
    number = os.getpid() % 200 * 1000 + next(_hosts)
    return f"127.{20 + number // 62_500}.{number // 250 % 250}.{number % 250 + 2}"


PORT = 14_370


@contextlib.asynccontextmanager
async def station(
    ip: str | None = None,
    port: int = PORT,
    *,
    aliases: Sequence[str] = (),
    refuse: Callable[[str], str | None] | None = None,
    **settings: Any,
) -> AsyncIterator[Station]:
    ip = ip or free_ip()
    seen = Recorder()
    transport = ZmqTransport(Settings(**settings), aliases=aliases, refuse=refuse)
    await transport.bind(ip, [port])
    seen.admit, seen.follow = transport.admit, transport.follow_road
    await transport.start(seen)
    try:
        yield Station(transport, seen, ip, port)
    finally:
        await transport.close()


def both_loops(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on asyncio's loop and on uvloop."""

    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(within(25, test()))

    run.__name__ = test.__name__
    return pytest.mark.parametrize(
        "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
    )(run)


def both_roads(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on both event loops, over ZeroMQ and over local roads."""

    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], road: str) -> None:
        token = _road.set(road)
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(within(25, test()))
        finally:
            _road.reset(token)

    run.__name__ = test.__name__
    loops = pytest.mark.parametrize(
        "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
    )
    return loops(pytest.mark.parametrize("road", ["zeromq", "local"])(run))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@contextlib.contextmanager
def raw_server(ip: str, port: int, backlog: int = 16) -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((ip, port))
        server.listen(backlog)
        yield server
