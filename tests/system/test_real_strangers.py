"""Strangers and nodes with another cookie are refused with a reason, and do not disturb the cluster."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from fleetlm import Node, PeerInfo
from tests.system.cluster_tools import PORT, Fleet, until

COOKIES = ("correct horse battery staple", "another secret of some length")
GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01NULL" + bytes(48)
"""The greeting of ZMTP 3.1 without security. Source: rfc.zeromq.org/spec/37."""
CURVE_GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01CURVE" + bytes(47)
READY = b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x00"


def last_error(node: Node, name: str) -> str:
    row = node.info(name)
    return row.last_error if isinstance(row, PeerInfo) else ""


async def kept_out(
    mine: str | None, other: str | None, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Run two nodes without a common cookie for a while: they do not connect, and both know why."""
    caplog.set_level("INFO")
    async with Fleet(static=(2, 3)) as fleet:
        settings = fleet.settings(2).replace(cookie=mine, backoff_max_s=0.5)
        a = await fleet.node(2, settings)
        b = await fleet.node(3, fleet.settings(3).replace(cookie=other, backoff_max_s=0.5))
        pairs = ((a, b), (b, a))
        await until(lambda: all("cookie" in last_error(here, there.name) for here, there in pairs))
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            await asyncio.sleep(0.05)
            assert (a.list(), b.list()) == ([], [])
        assert fleet.log == []
        for here, there in pairs:
            why = last_error(here, there.name)
            print(f"{here.name} on {there.name}: {why}")
            assert "cookie" in why
            assert await here.ping(there.name, 0.2) == "pang"
        attempts = [
            row.attempts for here, there in pairs if isinstance(row := here.info(there.name), PeerInfo)
        ]
        said = [text for text in caplog.messages if "its cookie" in text or "authentication" in text]
        print(f"{attempts} attempts, said: {said}")
        # Each node logs each reason once: why it was refused, and which address it refused and why.
        assert max(said.count(text) for text in said) <= 2
        assert sum(attempts) > 2


@contextlib.contextmanager
def harassing(ip: str, acts: list[Callable[[str], None]], count: list[int]) -> Iterator[None]:
    """Run these functions in turn in a thread until the block is left."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            for act in acts:
                with contextlib.suppress(OSError, zmq.ZMQError):
                    act(ip)
                count[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def saying(*said: bytes, wait_s: float = 0.01) -> Callable[[str], None]:
    """Connect, send these bytes, read a little, and close."""

    def act(ip: str) -> None:
        with socket.create_connection((ip, PORT), 1.0) as connection:
            connection.settimeout(wait_s)
            for each in said:
                connection.sendall(each)
                with contextlib.suppress(TimeoutError):
                    connection.recv(65_536)

    return act


def garbage(ip: str) -> None:
    saying(secrets.token_bytes(5_000))(ip)


def huge(ip: str) -> None:
    """Send the head of a frame of 2^62 bytes."""
    saying(GREETING, READY, b"\x02" + (1 << 62).to_bytes(8, "big") + b"x" * 1_000)(ip)


def reset(ip: str) -> None:
    with socket.create_connection((ip, PORT), 1.0) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def plain_zmq(ip: str) -> None:
    """Send, from a correct ZeroMQ socket, frames that no node sends."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.set(zmq.LINGER, 20)
        sock.connect(f"tcp://{ip}:{PORT}")
        for kind in range(12):
            sock.send(bytes([kind]) + secrets.token_bytes(40), zmq.NOBLOCK)
        sock.send_multipart([b"a", b"b", b"c", b"d"], zmq.NOBLOCK)
        sock.send(b"", zmq.NOBLOCK)
        time.sleep(0.02)


ACTS = [
    garbage,
    huge,
    reset,
    plain_zmq,
    saying(),
    saying(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    saying(GREETING[:20]),
    saying(GREETING),
    saying(CURVE_GREETING),
    saying(GREETING, READY),
    saying(CURVE_GREETING, b"\x04\xc8\x05HELLO" + bytes(194)),
]


async def harassed(cookie: str | None, seconds: float) -> None:
    """Let strangers of every kind connect while two nodes call each other: every call gets its reply."""
    async with Fleet(static=(2, 3), **({"FLEETLM_COOKIE": cookie} if cookie else {})) as fleet:  # type: ignore[arg-type]
        a = await fleet.node(2)
        await fleet.worker(3)
        there = fleet.name(3)
        await a.ready(1, 10.0)
        count, halves = [0], []
        for _ in range(30):  # connections that stay open and send nothing more
            halves.append(socket.create_connection((fleet.ip(2), PORT), 1.0))
            halves[-1].sendall(GREETING[:11])
        taken = []
        ends = time.monotonic() + seconds
        with harassing(fleet.ip(2), ACTS, count), harassing(fleet.ip(3), ACTS, count):
            while time.monotonic() < ends:
                began = time.perf_counter()
                assert await a.call(("echo", there), b"x" * 10_000) == b"x" * 10_000
                taken.append(time.perf_counter() - began)
                await asyncio.sleep(0.005)
        for half in halves:
            half.close()
        print(
            f"{count[0]} strangers in {seconds:g} s: {len(taken)} calls, at most {max(taken) * 1000:.0f} ms"
        )
        assert fleet.downs == []
        assert a.list() == [there]
        assert a.list("known") == [a.name, there]


@pytest.mark.parametrize(
    ("mine", "other"), [COOKIES, (COOKIES[0], None)], ids=["two_cookies", "one_has_none"]
)
async def test_nodes_without_the_same_cookie_do_not_connect_and_both_know_why(
    mine: str, other: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    await kept_out(mine, other, 2.0, caplog)


async def test_with_the_same_cookie_everything_works() -> None:
    async with Fleet(static=(2, 3), FLEETLM_COOKIE=COOKIES[0]) as fleet:
        a = await fleet.node(2)
        b = await fleet.worker(3)
        there = fleet.name(3)
        await a.ready(1, 10.0)
        assert await a.call(("echo", there), {"a": (1, b"2")}) == {"a": (1, b"2")}
        large = secrets.token_bytes(5_000_000)
        assert await a.call(("echo", there), large, 20.0) == large
        assert (await b.ask("call", to=a.name, name="echo", message="back"))["reply"] == "back"
        assert fleet.downs == []


@pytest.mark.parametrize("cookie", [None, COOKIES[0]], ids=["plain", "cookie"])
async def test_strangers_do_not_disturb_the_cluster(cookie: str | None) -> None:
    await harassed(cookie, 3.0)
