"""A node whose loop stands still, while strangers and peers go on sending."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from fleetlm.transport.standstill import GRACE_S
from tests.support.patience import allowed_s
from tests.support.raw_zmtp import GREETING, READY, zmtp
from tests.support.transport_rig import COOKIE, PORT, Station, station

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="TCP_INFO is Linux's")
MIB = 2**20
PAUSE_S = 0.001


def connect(ip: str) -> socket.socket:
    """Shake hands by ZMTP."""
    sock = socket.create_connection((ip, PORT), 5.0)
    sock.sendall(GREETING + READY)
    came = b""
    while b"READY" not in came:
        came += sock.recv(4_096)
    return sock


def fill(sock: socket.socket, data: bytes, most: int) -> int:
    """Send again and again, for seconds. Returns how much the network took before the connection ended."""
    sent = 0
    sock.settimeout(1.0)
    with contextlib.suppress(OSError):
        while sent < most:
            sent += sock.send(data)
            time.sleep(PAUSE_S)
    return sent


def is_ended(sock: socket.socket) -> bool:
    sock.settimeout(0.0)
    try:
        while sock.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Run something in a thread while the loop stands still, and wait for its end without the loop."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


async def carries(a: Station, channel: int, b: Station, text: bytes) -> None:
    """Send a frame, and wait until it has come, among those of strangers that came before."""
    assert a.send(channel, text)
    while text not in b.seen.frames:
        await b.seen.until("frame", len(b.seen.frames) + 1)


async def says_why(a: Station) -> None:
    """Wait until the node has reported the one that was ended: for its own reason if it saw that first."""
    async with asyncio.timeout(allowed_s(5.0)):
        while not any(fact[0] in ("refused", "broke") for fact in a.seen.facts):
            await asyncio.sleep(0.01)


async def test_a_stranger_that_floods_while_the_loop_stands_still_is_ended_then_and_a_peer_is_not() -> None:
    async with station() as a, station() as b:
        channel = await b.reach(a)
        await carries(b, channel, a, b"before")
        sent = []
        with contextlib.closing(await asyncio.to_thread(connect, a.ip)) as stranger:
            most = 400 * MIB
            with meanwhile(lambda: sent.append(fill(stranger, zmtp(bytes(MIB // 8)), most))):
                pass  # The loop waits here for the end of the thread.
            assert sent[0] < most, "it was ended before the loop went on"
            await says_why(a)
        await carries(b, channel, a, b"after")


async def test_who_comes_while_the_loop_stands_still_is_bounded_and_others_wait_until_it_goes_on() -> None:
    async with station() as a, station() as b:
        await carries(b, await b.reach(a), a, b"its loop has gone round")
        facts: list[object] = []

        def attack() -> None:
            with contextlib.closing(connect(a.ip)) as first:
                facts.append(fill(first, zmtp(b"x") * 5_000, 30 * MIB))
            late = socket.socket()
            late.setblocking(False)
            late.connect_ex((a.ip, PORT))
            facts.append(late)
            facts.append(select.select([], [late], [], 3 * GRACE_S)[1])

        with meanwhile(attack):
            pass
        sent, late, accepted = facts
        assert isinstance(late, socket.socket)
        assert isinstance(sent, int)
        with contextlib.closing(late):
            assert sent < 30 * MIB
            assert accepted == [], "no connection is accepted meanwhile"
            assert (await asyncio.to_thread(select.select, [], [late], [], allowed_s(5.0)))[1] == [late]
        await says_why(a)


async def test_a_connection_of_the_program_itself_and_few_bytes_of_a_newcomer_are_let_be() -> None:
    async with station(cookie=COOKIE) as a:
        with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:
            client = stack.enter_context(socket.create_connection(server.getsockname()[:2]))
            other = stack.enter_context(contextlib.closing(server.accept()[0]))
            other.sendall(bytes(128 * 1_024))
            newcomer = stack.enter_context(contextlib.closing(socket.create_connection((a.ip, PORT))))
            newcomer.sendall(GREETING[:10])
            time.sleep(4 * GRACE_S)  # the loop stands still
            assert not is_ended(client)
            assert not is_ended(newcomer)


async def test_a_stopped_node_leaves_no_thread() -> None:
    def names() -> list[str]:
        return [each.name for each in threading.enumerate() if each.name == "fleetlm standstill"]

    async with station():
        assert len(names()) == 1
    assert names() == []


class LateFrame:
    """A frame of a connection that has ended, as pyzmq gives it out: with the descriptor that it had."""

    def __init__(self, fd: int, ip: str) -> None:
        self._facts = {zmq.SRCFD: fd, "Peer-Address": ip}

    def get(self, name: object) -> object:
        return self._facts[name]


async def test_a_late_frame_of_a_forgotten_source_does_not_take_over_the_connection_of_another_address() -> (
    None
):
    async with station() as a, station() as b:
        channel = await b.reach(a)
        await carries(b, channel, a, b"before")
        router: Any = a.transport._router
        (honest,) = router.sources()
        fd = router._sources[honest].fd
        assert router._meet(b"forgotten", LateFrame(fd, "10.9.9.9")) is not None
        assert router._sources[honest].source == honest
        await carries(b, channel, a, b"after")
        assert [fact for fact in a.seen.all("gone") if fact[0] == honest] == []
