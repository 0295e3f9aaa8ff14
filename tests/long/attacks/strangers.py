"""What can be done by who reaches the port: whoever connects, and whoever says HELLO without being a node.

An attack is a generator. It prepares, and yields once; then it goes on until `Target.is_over`, and returns
what it has done in a few words.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final

import zmq

from fleetlm.transport.curve import CurveKeys
from fleetlm.wire import frames
from fleetlm.wire.frames import Hello, Kind
from tests.support.raw_zmtp import (
    CURVE_GREETING,
    GREETING,
    PING,
    PONG,
    READY,
    Raw,
    RawCurve,
    command,
    zmtp,
)

MIB: Final = 2**20
SILENT: Final = 5_000
"""Connections that say nothing."""
CROWD: Final = 64
"""Connections at once of an attack that has several."""
SENT_S: Final = 0.02
"""Seconds between two attempts of an attack that has no reason to be faster."""


@dataclass
class Target:
    """Whom to attack.

    Attributes:
        ip: where the victim listens.
        port: likewise.
        victim: its name.
        honest: the name of its honest peer.
        keys: of the cookie; None without one.
        until: when the attack is over, in `time.monotonic`.
    """

    ip: str
    port: int
    victim: str
    honest: str
    keys: CurveKeys | None
    until: float = field(default=float("inf"))

    @property
    def is_over(self) -> bool:
        """Whether the attack must end."""
        return time.monotonic() > self.until

    def raw(self, source: str = "") -> Raw:
        """Connect and shake hands by ZMTP. Raises: OSError."""
        if self.keys is None:
            return Raw(self.ip, self.port, source)
        return RawCurve(self.ip, self.port, self.keys, source)

    def hello(self, name: str, **other: object) -> Hello:
        """Build a HELLO in any name."""
        fields: dict[str, object] = {
            "name": name, "incarnation": secrets.randbits(63), "dialled": self.victim, "cluster": "",
            "port": self.port, "protocol_min": frames.PROTOCOL_MIN, "protocol_max": frames.PROTOCOL_MAX,
            "aliases": (), "window_bytes": 8 * MIB, "max_message_bytes": 64 * MIB, "is_check": False,
            "base_port": self.port,
        }  # fmt: skip
        return Hello(**(fields | other))  # type: ignore[arg-type]


Attack = Generator[None, None, str]
Begin = Callable[[Target], Attack]


def hello_frame(hello: Hello) -> bytes:
    """Build a whole HELLO with an epoch of its own."""
    return frames.header(Kind.HELLO, secrets.randbits(63) + 1, 0) + frames.pack_hello(hello)


class Dialler:
    """Sends frames to the victim, each one over a connection of its own. They end with the process."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []

    def say(self, frame: bytes, *, keep: int = 50) -> None:
        """Connect, send a frame, and close the connection that was opened ``keep`` calls before."""
        sock = self._context.socket(zmq.DEALER)
        keys = self._target.keys
        if keys is not None:
            sock.set(zmq.CURVE_SERVERKEY, keys.public)
            sock.set(zmq.CURVE_PUBLICKEY, keys.public)
            sock.set(zmq.CURVE_SECRETKEY, keys.secret)
        sock.set(zmq.LINGER, 0)
        sock.set(zmq.RECONNECT_IVL, -1)
        sock.set(zmq.ROUTING_ID, b"E" + secrets.token_bytes(15))
        sock.connect(f"tcp://{self._target.ip}:{self._target.port}")
        sock.send(frame)
        self._sockets.append(sock)
        if len(self._sockets) > keep:
            self._sockets.pop(0).close(0)


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────


def flood(target: Target, make: Callable[[Raw], bytes]) -> Attack:
    """Send the same bytes again and again, over a new connection whenever the last one was ended.

    Args:
        target: whom to attack.
        make: makes the bytes for a connection; with a cookie they are used once, since each part is numbered.
    """
    first = target.raw()
    prepared: list[tuple[Raw, bytes]] = [(first, make(first))]
    yield
    connections = sent = 0
    while not target.is_over:
        with contextlib.suppress(OSError):
            raw, data = prepared.pop() if prepared else (target.raw(), b"")
            connections += 1
            raw.sock.settimeout(max(0.1, target.until - time.monotonic()))
            try:
                while not target.is_over:
                    data = data or make(raw)
                    raw.send(data)
                    sent += len(data)
                    data = b"" if target.keys else data
            finally:
                raw.close()
        time.sleep(SENT_S)
    return f"{sent / MIB:,.0f} MiB over {connections:,} connections"


def parts(target: Target) -> Attack:
    """A message of large parts without end."""
    return flood(target, lambda raw: raw.packed(bytes(MIB), more=True))


def small_parts(target: Target) -> Attack:
    """A message of parts without end, each of one byte: in memory a part takes 64."""
    count = 50_000 if target.keys else 200_000
    return flood(target, lambda raw: b"".join(raw.packed(b"x", more=True) for _ in range(count)))


def empty_parts(target: Target) -> Attack:
    """The same with parts of no byte."""
    count = 50_000 if target.keys else 200_000
    return flood(target, lambda raw: b"".join(raw.packed(b"", more=True) for _ in range(count)))


def tiny(target: Target) -> Attack:
    """Small frames that mean nothing."""
    return flood(target, lambda raw: b"".join(raw.packed(b"x" * 14) for _ in range(4_000)))


def empty(target: Target) -> Attack:
    """Frames without a byte."""
    return flood(target, lambda raw: b"".join(raw.packed(b"") for _ in range(4_000)))


def probes(target: Target) -> Attack:
    """Questions who the victim is, without end."""
    return flood(target, lambda raw: b"".join(raw.packed(frames.probe()) for _ in range(2_000)))


def crowd(target: Target, data: bytes) -> Attack:
    """Send the same bytes over many connections at once, and over a new one whenever one was ended.

    With a cookie each connection would have to encrypt them anew, so that they are sent behind a greeting
    there, and nothing of them is taken.
    """
    greeting = (GREETING if target.keys is None else CURVE_GREETING) + READY
    opened, sent = 0, 0
    left: dict[int, tuple[socket.socket, memoryview]] = {}
    yield
    with select.epoll() as ready:
        while not target.is_over:
            while len(left) < CROWD:
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex((target.ip, target.port))
                left[sock.fileno()] = sock, memoryview(greeting)
                ready.register(sock, select.EPOLLOUT)
                opened += 1
            for fd, _ in ready.poll(SENT_S):
                sock, rest = left[fd]
                try:
                    count = sock.send(rest)
                except BlockingIOError:
                    continue
                except OSError:
                    del left[fd]
                    sock.close()
                else:
                    sent += count
                    left[fd] = sock, rest[count:] or memoryview(data)
    for sock, _ in left.values():
        sock.close()
    return f"{sent / MIB:,.0f} MiB over {opened:,} connections"


def empty_crowd(target: Target) -> Attack:
    """Frames without a byte, over many connections at once: in memory each takes 64 until it is read."""
    return crowd(target, zmtp(b"") * 30_000)


def probe_crowd(target: Target) -> Attack:
    """Questions who the victim is, likewise."""
    return crowd(target, zmtp(frames.probe()) * 4_000)


def large(target: Target) -> Attack:
    """Frames of the largest size, without end."""
    return flood(target, lambda raw: raw.packed(bytes(2 * MIB - 4_096)))


def heartbeats(target: Target) -> Attack:
    """Heartbeats of ZMTP, without end, each of which is answered."""
    if target.keys is not None:
        return tiny(target)  # They would have to be encrypted too.
    return flood(target, lambda raw: PING * 10_000)


# ── connections ──────────────────────────────────────────────────────────────────────────────────


def silent(target: Target) -> Attack:
    """Connections that shake hands by ZMTP and say no more, from many addresses."""
    hands = GREETING + READY if target.keys is None else CURVE_GREETING[:10]
    held: list[socket.socket] = []
    yield
    opened = refused = 0
    while not target.is_over:
        if opened < SILENT:
            sock = socket.socket()
            sock.settimeout(0.5)
            try:
                sock.bind((f"127.0.1.{1 + opened % 200}", 0))
                sock.connect((target.ip, target.port))
                sock.setblocking(False)
                sock.send(hands)
                held.append(sock)
            except OSError:
                refused += 1
                sock.close()
            opened += 1
            continue
        for sock in held:
            with contextlib.suppress(OSError):
                sock.send(PONG)
        time.sleep(0.5)
    for sock in held:
        sock.close()
    return f"{opened:,} connections, {refused:,} refused"


def knocks(target: Target) -> Attack:
    """Connections that are reset at once, from many addresses."""
    yield
    count = 0
    while not target.is_over:
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.bind((f"127.0.4.{1 + count % 250}", 0))
            sock.settimeout(1.0)
            sock.connect((target.ip, target.port))
        count += 1
    return f"{count:,} connections"


def false_keys(target: Target) -> Attack:
    """HELLOs of CURVE in a false key: each makes the victim calculate."""
    yield
    count = 0
    while not target.is_over:
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.bind((f"127.0.4.{1 + count % 250}", 0))
            sock.settimeout(1.0)
            sock.connect((target.ip, target.port))
            sock.sendall(CURVE_GREETING)
            sock.recv(64)
            sock.sendall(
                command(b"\x05HELLO\x01\x00" + bytes(72) + os.urandom(32) + bytes(8) + os.urandom(80))
            )
            sock.recv(64)
        count += 1
    return f"{count:,} connections"


def garbage(target: Target) -> Attack:
    """Connections that say parts of ZMTP in a wrong order, with changed bytes."""
    rng = random.Random(1)
    pieces = (
        GREETING, READY, CURVE_GREETING, PING, PONG, zmtp(hello_frame(target.hello("x@127.0.0.66"))),
        zmtp(frames.probe()), zmtp(b"a", more=True) * 3, command(b"\x05HELLO\x01\x00" + bytes(192)),
        command(b"\x05ERROR\x13" + b"x" * 19), b"\x01\x00", b"\xff" + bytes(7) + b"\x01\x7f\x01\x05",
        b"\x06" + (1 << 63).to_bytes(8, "big"), b"\x02" + (1 << 40).to_bytes(8, "big"), b"\x04\x00",
    )  # fmt: skip
    yield
    count = 0
    while not target.is_over:
        data = bytearray(b"".join(rng.choice(pieces) for _ in range(rng.randint(1, 6))))
        if rng.random() < 0.6:
            data[:0] = CURVE_GREETING if target.keys else GREETING + READY
        for _ in range(rng.choice((0, 0, 1, 2, 5))):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 255, rng.randrange(256)))
        with (
            contextlib.suppress(OSError),
            socket.create_connection(
                (target.ip, target.port), 2.0, (f"127.0.5.{1 + count % 250}", 0)
            ) as sock,
        ):
            sock.settimeout(0.003)
            sock.sendall(data)
            sock.recv(4_096)
        count += 1
    return f"{count:,} connections"


# ── introductions ────────────────────────────────────────────────────────────────────────────────


def introductions(target: Target, make: Callable[[int], Hello], pause_s: float = 0.0) -> Attack:
    """Send HELLOs, each one from a connection of its own."""
    dialler = Dialler(target)
    yield
    count = 0
    while not target.is_over:
        try:
            dialler.say(hello_frame(make(count)))
        except zmq.ZMQError:  # Too many open files: those of closed sockets are not closed yet.
            time.sleep(SENT_S)
        count += 1
        if pause_s:
            time.sleep(pause_s)
    return f"{count:,} HELLOs"


def forged(target: Target) -> Attack:
    """HELLOs in the name of the honest peer."""
    return introductions(target, lambda _: target.hello(target.honest), SENT_S)


def names(target: Target) -> Attack:
    """HELLOs in names that nobody has."""
    return introductions(target, lambda number: target.hello(f"fleetlm@127.0.2.{1 + number % 250}"))


def many_names(target: Target) -> Attack:
    """HELLOs in ever new names."""

    def make(number: int) -> Hello:
        return target.hello(f"fleetlm@127.{100 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}")

    return introductions(target, make)


def clusters(target: Target) -> Attack:
    """HELLOs of another cluster, each of which is refused with a log line."""
    return introductions(
        target, lambda number: target.hello(f"fleetlm@127.0.2.{1 + number % 250}", cluster="other")
    )


def busy(target: Target) -> Attack:
    """No attack: use up one core, as an attacker may. Shows what the machine adds to the times of others."""
    yield
    rounds = 0
    while not target.is_over:
        sum(range(10_000))
        rounds += 1
    return f"no attack: {rounds:,} rounds of a loop"


CONTROLS: Final[tuple[Begin, ...]] = (busy,)
"""What says nothing to the victim, and is measured like an attack."""
STRANGERS: Final[tuple[Begin, ...]] = (
    *(parts, small_parts, empty_parts, tiny, empty, probes, empty_crowd, probe_crowd, large, heartbeats),
    *(silent, knocks, false_keys, garbage, forged, names, many_names, clusters),
)
