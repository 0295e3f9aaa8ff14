"""The node's side of `fleetlm health --ready`, on real sockets of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fleetlm import Readiness
from fleetlm.remote import health_server, health_socket
from fleetlm.remote.health_server import HealthServer

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux has abstract sockets"
)
PORT = os.getpid() % 60_000 + 1


class Node:
    """What the server asks of a node."""

    name = "a@10.0.0.1"
    settings = SimpleNamespace(base_port=PORT)
    own_address = SimpleNamespace(ip="10.0.0.1")
    reasons: tuple[str, ...] = ()

    async def readiness(self, min_nodes: int) -> Readiness:
        reasons = self.reasons if min_nodes < 9 else ("x" * 10_000,)
        return Readiness(self.name, not reasons, 2, reasons)


async def ask(request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, health_socket.address_of("a", "10.0.0.1", PORT))
        await loop.sock_sendall(client, request)
        received = b""
        while more := await loop.sock_recv(client, 10_000):
            received += more
        return received


async def test_one_line_is_asked_and_one_is_answered() -> None:
    node: Any = Node()
    server = HealthServer(node)
    await server.start()
    assert await ask(b"ready 1\n") == b"1 a@10.0.0.1 is ready, connected to 2\n"
    node.reasons = ("it is draining", "two\nlines")
    assert await ask(b"ready 1\n") == b"0 a@10.0.0.1 is not ready: it is draining; two lines\n"
    assert len(await ask(b"ready 9\n")) == health_socket.MAX_REPLY_BYTES
    await server.stop()
    await server.stop()
    with pytest.raises(ConnectionRefusedError):
        await ask(b"ready 1\n")


@pytest.mark.parametrize("request_", [b"\n", b"ready\n", b"ready x\n", b"stop 1\n", b"\xff\n", b"r" * 65])
async def test_what_is_no_question_gets_no_answer_and_harms_nothing(request_: bytes) -> None:
    node: Any = Node()
    server = HealthServer(node)
    await server.start()
    with contextlib.suppress(ConnectionResetError):  # It was closed before all was read.
        assert await ask(request_) == b""
    assert (await ask(b"ready 1\n")).startswith(b"1 ")
    await server.stop()


async def test_a_client_that_says_nothing_does_not_hold_up_the_others_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health_server, "REQUEST_S", 0.05)
    node: Any = Node()
    server = HealthServer(node)
    await server.start()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(health_socket.address_of("a", "10.0.0.1", PORT))
        assert (await ask(b"ready 1\n")).startswith(b"1 ")
    await server.stop()


async def test_a_name_in_use_is_a_warning_and_the_node_runs(caplog: pytest.LogCaptureFixture) -> None:
    node: Any = Node()
    first, second = HealthServer(node), HealthServer(node)
    await first.start()
    with caplog.at_level(logging.WARNING):
        await second.start()
    assert "`fleetlm health --ready` cannot be used with this node" in caplog.text
    await second.stop()
    await first.stop()


async def test_other_users_are_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_server, "peer_credentials", lambda _: (1, os.getuid() + 1))
    node: Any = Node()
    server = HealthServer(node)
    await server.start()
    with contextlib.suppress(ConnectionResetError):  # It was closed before all was read.
        assert await ask(b"ready 1\n") == b""
    await server.stop()
