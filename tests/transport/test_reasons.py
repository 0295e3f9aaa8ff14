"""Why a dial failed: what a plain connection finds out, and how it is worded."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Iterator

import pytest

from fleetlm.transport.reasons import GREETING_BYTES, Found, ReasonProbe, explain_errno, explain_greeting
from tests.support.transport_rig import COOKIE, free_ip, raw_server, station

PORT = 14_371
GREETING = {
    mechanism: b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.encode().ljust(20, b"\0") + bytes(32)
    for mechanism in ("NULL", "CURVE", "PLAIN")
}


@pytest.mark.parametrize(
    ("found", "has_cookie", "words"),
    [
        (GREETING["NULL"], True, "authentication failed: it has no cookie"),
        (GREETING["CURVE"], False, "authentication failed: it requires a cookie"),
        (GREETING["CURVE"], True, "authentication failed: its cookie differs from ours"),
        (GREETING["NULL"], False, "perhaps it was just ending"),
        (GREETING["PLAIN"], False, "is it a fleetlm node?"),
        (b"HTTP/1.1 400 Bad Request", False, "it is not a fleetlm node: it answers b'HTTP/1.1 400"),
        (b"", False, "perhaps a proxy or a sidecar"),
        (b"", True, "perhaps a proxy or a sidecar"),
        (errno.ECONNREFUSED, False, "and now: connection refused"),
        (None, False, "or the host cannot be reached"),
    ],
)
def test_what_is_proved_is_stated_and_what_is_likely_is_a_guess(
    found: Found, has_cookie: bool, words: str
) -> None:
    assert words in explain_greeting(found, has_cookie)


def test_no_cookie_is_blamed_where_no_node_has_one() -> None:
    for found in (b"", GREETING["NULL"], GREETING["PLAIN"], b"SSH-2.0", errno.ECONNRESET, None):
        assert "cookie" not in explain_greeting(found, has_cookie=False)


def test_the_reason_of_a_failed_connect() -> None:
    assert explain_errno(errno.EHOSTUNREACH) == "no route to host"
    assert explain_errno(None) == "connection refused, or the host cannot be reached"
    assert "accepts connections now" in explain_errno(b"")


async def found_at(ip: str, port: int) -> Found:
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Found] = loop.create_future()
    ReasonProbe(loop, ip, port, None, found.set_result)
    return await found


@pytest.mark.parametrize(("cookie", "mechanism"), [(None, b"NULL"), (COOKIE, b"CURVE")])
async def test_a_nodes_greeting_names_its_mechanism(cookie: str | None, mechanism: bytes) -> None:
    async with station(cookie=cookie) as a:
        found = await found_at(a.ip, a.port)
        assert isinstance(found, bytes)
        assert len(found) == GREETING_BYTES
        assert mechanism in found


async def test_a_port_that_is_closed_gives_the_errno() -> None:
    assert await found_at(free_ip(), PORT) == errno.ECONNREFUSED


@contextlib.contextmanager
def answering(ip: str, reply: bytes) -> Iterator[None]:
    """A server that sends ``reply`` to one client and closes."""
    with raw_server(ip, PORT) as server:

        def serve() -> None:
            with server.accept()[0] as client:
                client.sendall(reply)
                client.shutdown(socket.SHUT_WR)
                client.recv(1024)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH_9.2\r\n"])
async def test_another_program_is_seen_as_what_it_is(reply: bytes) -> None:
    ip = free_ip()
    with answering(ip, reply):
        assert await found_at(ip, PORT) == reply


async def test_a_program_that_says_nothing_costs_a_bounded_time() -> None:
    ip = free_ip()
    with raw_server(ip, PORT):
        assert await found_at(ip, PORT) == b""


async def test_a_probe_that_is_closed_reports_nothing() -> None:
    ip = free_ip()
    with raw_server(ip, PORT):
        loop = asyncio.get_running_loop()
        found: list[Found] = []
        probe = ReasonProbe(loop, ip, PORT, None, found.append)
        probe.close()
        probe.close()
        await asyncio.sleep(0.3)
        assert found == []
