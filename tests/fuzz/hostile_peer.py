"""A hostile peer: an honest node whose frames are changed on their way out.

`talk` makes a node use everything that one node can ask of another. `Mutator` changes some of the frames that
it sends: single values inside a batch (which reaches further than changed bytes, since the frame can still be
read), bytes, whole frames that are left out, repeated or delayed, frames of other kinds, and chunks of no
message. What must hold is that only the connection of that node suffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack

from fleetlm import Actor, Call, Entity, FleetError, Node, Pid, Process, handler
from fleetlm.node import parts_of
from fleetlm.wire import frames
from fleetlm.wire.frames import CHUNK_HEAD, HEADER_BYTES, Kind

PAUSE_S = 0.002
"""Seconds between two requests of `talk`."""
REQUEST_S = 0.3
"""Seconds for which one of its requests may wait: most are never answered."""
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 5, -1, 64, 255, 4_096, 65_537, 1 << 31, (1 << 64) - 1, -(1 << 63), 0.5),
    *(float("nan"), float("inf"), "", "a", "plain", "stuck", "\x1b[2J\n\u202e", "x" * 300, b"", b"\xc0", []),
    *([[]], {}, {"a": [1]}, [1, 2, 3], ["join", {"g": [1]}], ["has", [["n", 1, b"\xc0", 5]]], b"y" * 70_000),
    msgpack.ExtType(1, b"\x91\x01"),  # a tuple
    msgpack.ExtType(4, b"\x01" + bytes(2_000)),  # an integer of 16,001 bits
    msgpack.ExtType(5, b"\x99\x00"),  # no datetime
    msgpack.ExtType(99, b"?"),
)


class Echo(Actor):
    """An actor that returns what it gets. It survives exit signals, which a peer may send."""

    async def init(self) -> None:
        self.process.trap_exit = True

    @handler
    async def echo(self, value: Any) -> Any:
        return value

    @handler
    async def count(self, to: int) -> Any:
        for number in range(to):
            yield number


class Box(Entity):
    """An entity that keeps what it was given last."""

    async def load(self, state: Any) -> None:
        self.kept: Any = state

    async def save(self) -> Any:
        return self.kept

    async def merge(self, other: Any) -> None:
        self.kept = other

    @handler
    async def keep(self, value: Any) -> Any:
        self.kept = value
        return value


async def plain(process: Process) -> None:
    """Reply to calls with their message, and survive exit signals."""
    process.trap_exit = True
    async for message in process.mailbox:
        if isinstance(message, Call):
            message.reply(message.message)


async def stuck(process: Process) -> None:
    """Take nothing."""
    await asyncio.get_running_loop().create_future()


def furnish(node: Node) -> None:
    """Start on a node what `talk` asks of it, and ``honest``, which `talk` does not know."""
    node.spawn(Echo, name="actor")
    node.spawn(plain, name="plain")
    node.spawn(plain, name="honest")
    node.spawn(stuck, name="stuck")
    node.factories.register("stuck", stuck)


async def host(node: Node) -> None:
    """Let a node host a kind of entities, of which some move whenever a host comes."""
    await node.entities.host(Box, "boxes", shards=8, settle_s=0.05, rebalance_s=0.2, handoff_s=0.5)


class Mutator:
    """Changes frames that a node sends.

    Args:
        node: the node.
        rng: decides what is changed.
        share: the share of frames that are changed, 0 to 1.

    Attributes:
        changed: how many frames were changed.
    """

    def __init__(self, node: Node, rng: random.Random, share: float) -> None:
        self.changed = 0
        self._rng = rng
        self._share = share
        self._kept: bytes | None = None
        transport: Any = parts_of(node).transport
        self._send: Callable[..., bool] = transport.send
        transport.send = self.send

    def send(self, channel: int, frame: bytes, tail: memoryview | None = None) -> bool:
        """Stand for `Transport.send`."""
        if self._rng.random() >= self._share:
            return self._send(channel, frame, tail)
        self.changed += 1
        accepted = [self._send(channel, each, tail) for each in self.change(bytes(frame))]
        return all(accepted)

    def change(self, frame: bytes) -> list[bytes]:
        """Return what is sent in place of a frame."""
        rng, head, body = self._rng, frame[:HEADER_BYTES], frame[HEADER_BYTES:]
        match rng.randrange(20):
            case 0:
                return []
            case 1:
                return [frame, frame]
            case 2:
                kept, self._kept = self._kept, frame
                return [] if kept is None else [frame, kept]
            case 3:
                return [bytes((rng.randrange(12),)) + frame[1:]]
            case 4:
                return [rng.randbytes(rng.randrange(60))]
            case 5:
                chunk = CHUNK_HEAD.pack(
                    rng.randrange(3),
                    rng.randrange(3),
                    rng.choice((0, 7)),
                    rng.choice((0, 10, 100, 1 << 29)),
                    rng.choice((0, 0, 0, 2)),
                )
                return [frame, bytes((Kind.CHUNK,)) + head[1:] + chunk + bytes(rng.randrange(50))]
            case 6:
                return [self.change_bytes(frame)]
            case 7:
                return [head + self.change_bytes(body)]
            case 8:
                return [frame, frames.probe(), head + b"", frames.header(Kind.HELLO, 5, 0) + body]
        return [head + self.change_values(body)]

    def change_bytes(self, data: bytes) -> bytes:
        """Return the data with one to three bytes changed."""
        made = bytearray(data)
        for _ in range(self._rng.randint(1, 3)):
            if made:
                odd = (0, 0x80, 0xC0, 0xC1, 0xC9, 0xDD, 0xDF, 0xFF, self._rng.randrange(256))
                made[self._rng.randrange(len(made))] = self._rng.choice(odd)
        return bytes(made)

    def change_values(self, body: bytes) -> bytes:
        """Return the body of a frame with one value inside it replaced, left out or repeated."""
        try:
            value = msgpack.unpackb(body, strict_map_key=False)
        except ValueError:
            return self.change_bytes(body)
        with contextlib.suppress(TypeError):  # a list as a key
            data: bytes = msgpack.packb(self._replaced(value))
            return data
        return body

    def _replaced(self, value: Any) -> Any:
        rng = self._rng
        if isinstance(value, list) and value and rng.random() < 0.9:
            at, made = rng.randrange(len(value)), list(value)
            match rng.randrange(12):
                case 0:
                    del made[at]
                case 1:
                    made.insert(at, made[at])
                case _:
                    made[at] = self._replaced(made[at])
            return made
        if isinstance(value, dict) and value and rng.random() < 0.8:
            key = rng.choice(list(value))
            return {**value, key: self._replaced(value[key])}
        if isinstance(value, int) and rng.random() < 0.3:
            return value + rng.choice((-1, 1, 2, 1_000))
        return rng.choice(ODD_VALUES)


async def talk(node: Node, to: str, rng: random.Random, is_over: Callable[[], bool]) -> None:
    """Ask node ``to`` for everything that a node can ask of another, until ``is_over`` returns True."""

    async def life(process: Process) -> None:
        process.trap_exit = True
        while not is_over():
            with contextlib.suppress(FleetError, TimeoutError):
                async with asyncio.timeout(REQUEST_S):
                    await rng.choice(REQUESTS)(process, to, rng)
            await asyncio.sleep(PAUSE_S)

    lives = [node.spawn(life) for _ in range(3)]
    for pid in lives:
        await node.join(pid)


# ── what `talk` asks for ─────────────────────────────────────────────────────────────────────────


async def _call(process: Process, to: str, rng: random.Random) -> None:
    await process.node.call(("plain", to), {"n": rng.randrange(9), "t": (1, b"2")}, REQUEST_S)


async def _send(process: Process, to: str, rng: random.Random) -> None:
    await process.node.send((rng.choice(("plain", "stuck", "nobody")), to), ["hi", 5], REQUEST_S)


async def _large(process: Process, to: str, rng: random.Random) -> None:
    await process.node.call(("plain", to), bytes(rng.choice((70_000, 600_000))), REQUEST_S)


async def _actor(process: Process, to: str, rng: random.Random) -> None:
    await process.node.ref(Echo, "actor", to).call(Echo.echo, [1, {"a": 2}])


async def _stream(process: Process, to: str, rng: random.Random) -> None:
    async for _ in process.node.ref(Echo, "actor", to).stream(Echo.count, rng.choice((3, 500))):
        pass


async def _spawn(process: Process, to: str, rng: random.Random) -> None:
    pid = await process.spawn_link_at(to, "stuck")
    process.unlink(pid)
    process.exit(pid, "shutdown")


async def _ties(process: Process, to: str, rng: random.Random) -> None:
    pid: Pid | None = await process.node.whereis("plain", to, REQUEST_S)
    process.demonitor(process.monitor(("plain", to)))
    if pid is not None:
        process.demonitor(process.monitor(pid))
        process.link(pid)
        process.unlink(pid)


async def _tables(process: Process, to: str, rng: random.Random) -> None:
    groups, group = process.node.groups, f"g{rng.randrange(5)}"
    groups.join(group, process.pid)
    await process.node.registry.register(
        f"n{rng.randrange(5)}", process.pid, on_loss="message", timeout=REQUEST_S
    )
    groups.leave(group, process.pid)


async def _names(process: Process, to: str, rng: random.Random) -> None:
    await process.node.ping(to, REQUEST_S)
    await process.node.whereis("plain", to, REQUEST_S)


async def _entities(process: Process, to: str, rng: random.Random) -> None:
    boxes = process.node.entities.ref(Box, "boxes")
    await boxes[f"k{rng.randrange(20)}"].within(REQUEST_S).call(Box.keep, {"n": rng.randrange(9)})
    if rng.random() < 0.2:
        await boxes.move(rng.randrange(8), to)


async def _rows(process: Process, to: str, rng: random.Random) -> None:
    table = process.node.table(f"t{rng.randrange(2)}")
    table.put(f"k{rng.randrange(5)}", [rng.randrange(9), "x"])
    table.drop(f"k{rng.randrange(5)}")


async def _members(process: Process, to: str, rng: random.Random) -> None:
    member = process.node.groups.join("models", process.pid, meta={"zone": rng.randrange(3)})
    member.report(free=rng.random(), busy=2.0)
    member.describe({"zone": "b"})
    process.node.groups.leave("models", process.pid)


Request = Callable[[Process, str, random.Random], Awaitable[None]]
REQUESTS: tuple[Request, ...] = (
    *(_call, _send, _large, _actor, _stream, _spawn, _ties, _tables, _names),
    *(_entities, _rows, _members),
)
