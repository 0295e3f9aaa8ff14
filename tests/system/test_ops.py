"""The ops listener on real sockets: hostile clients, a blocked loop, starts that fail, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from fleetlm import Node, SettingsError, StartFailed
from fleetlm.ops import listener, questions
from fleetlm.ops.application import OpsApp
from fleetlm.ops.listener import Listener, listen
from fleetlm.ops.service import OpsService
from tests.support.ops_fakes import FakeQuestions, overview_of
from tests.system.cluster_tools import ROOT, Fleet, clean_env, until

TOKEN = "nPq7-wJ2_rT9xYb4mLc8"


def get(port: int, path: str = "/health/live", **headers: str) -> tuple[int, str]:
    """Ask on a connection of its own, in the thread that calls."""
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=20.0)
    try:
        asking.request("GET", path, headers=headers)
        answer = asking.getresponse()
        return answer.status, answer.read().decode()
    finally:
        asking.close()


async def ask(port: int, path: str = "/health/live", **headers: str) -> tuple[int, str]:
    """Ask from another thread, so that this loop goes on."""
    found: list[tuple[int, str]] = []
    thread = threading.Thread(target=lambda: found.append(get(port, path, **headers)))
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.002)
    thread.join()
    return found[0]


def connect(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=10.0)
    made.settimeout(10.0)
    return made


def is_ended(client: socket.socket) -> bool:
    """Wait until the other side has ended a connection."""
    try:
        while client.recv(65_536):
            pass
    except ConnectionError:
        return True
    return True


def is_connected(client: socket.socket) -> bool:
    """Whether the kernel still has a connection. Source: Linux, tcp_states.h: TCP_ESTABLISHED is 1."""
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1


@contextlib.contextmanager
def serving(fake: FakeQuestions | None = None, token: str | None = None) -> Iterator[int]:
    """Serve the application about a fake; gives the port."""
    sockets = listen("127.0.0.1", range(1))
    port = sockets[0].getsockname()[1]
    served = Listener(OpsApp(fake or FakeQuestions(), token), sockets, "the ops listener of a test")
    served.start()
    try:
        yield port
    finally:
        served.stop()
        served.ended.result(10.0)
        served.thread.join()


@contextlib.asynccontextmanager
async def node_with(**env: str) -> AsyncIterator[tuple[Node, int]]:
    """A node with an ops listener, and its port."""
    async with Fleet(static=(2,)) as fleet:
        node = await fleet.node(2, fleet.settings(2, **{"FLEETLM_OPS": "127.0.0.1:0", **env}))
        (service,) = (each for each in node._services if isinstance(each, OpsService))
        assert service.port is not None
        yield node, service.port


# A real node.


async def test_a_node_serves_and_leaves_no_thread_and_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "GRACE_S", 60.0)  # Nothing may have to be aborted.
    async with node_with() as (node, port):
        assert await ask(port) == (200, "live\n")
        status, text = await ask(port, "/health/ready?min_nodes=0")
        assert (status, text) == (200, f"{node.name} is ready, connected to 0\n")
        assert (await ask(port, "/health/ready?min_nodes=1"))[0] == 503
        status, text = await ask(port, "/cluster.json")
        assert json.loads(text)["nodes"][node.name]["state"] == "up"
        assert "<title>fleetlm</title>" in (await ask(port, "/"))[1]
        stream = connect(port)
        stream.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: b"event: cluster" in stream.recv(65_536, socket.MSG_PEEK))
        await node.stop(drain_s=0)
        assert is_ended(stream), "an open page does not keep a node"
        stream.close()
        assert not [each.name for each in threading.enumerate() if "ops listener" in each.name]
        with pytest.raises(ConnectionRefusedError):
            connect(port)


async def test_metrics_are_those_of_the_node() -> None:
    pytest.importorskip("fleetlm.metrics")
    async with node_with() as (_, port):
        status, text = await ask(port, "/metrics")
        assert status == 200
        assert "\nfleetlm_build_info{" in text
        assert "fleetlm_scrape_stale 0.0" in text


async def test_a_node_that_drains_is_not_ready_and_still_served() -> None:
    async with node_with() as (node, port):
        await node.drain(0.0)
        status, text = await ask(port, "/health/ready")
        assert status == 503
        assert "drain" in text
        assert await ask(port) == (200, "live\n")


async def test_live_is_answered_while_the_loop_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "LIMIT_S", 0.3)
    monkeypatch.setattr(questions.Shared.get, "__defaults__", (0.3,))
    async with node_with() as (node, port):
        found: list[tuple[int, str]] = []

        def look() -> None:
            found.extend([get(port), get(port, "/health/ready"), get(port, "/cluster.json"), get(port)])
            done.set()

        done = threading.Event()
        thread = threading.Thread(target=look)
        thread.start()
        assert done.wait(20.0), "this blocks the node's loop"
        thread.join()
        why = f"the event loop of {node.name} has not answered for 0.3 s\n"
        assert found == [(200, "live\n"), (503, why), (503, why), (200, "live\n")]
        while (await ask(port, "/health/ready"))[0] != 200:
            assert node.failure == ""


async def test_a_token_is_asked_for_and_no_child_inherits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetlm.ops_token._taken", {})
    monkeypatch.setenv("FLEETLM_OPS_TOKEN", TOKEN)
    async with node_with(FLEETLM_OPS_TOKEN=TOKEN) as (_, port):
        assert "FLEETLM_OPS_TOKEN" not in os.environ
        assert (await ask(port, "/cluster.json"))[0] == 401
        assert (await ask(port, "/cluster.json", Authorization=f"Bearer {TOKEN}"))[0] == 200
        assert await ask(port, "/health/ready") == (200, "ready\n")
    monkeypatch.delenv("FLEETLM_OPS_TOKEN_TAKEN")


async def test_a_port_that_is_taken_is_said_and_of_a_range_the_next_one_is_used() -> None:
    async with Fleet(static=(2, 3)) as fleet:
        (taken,) = listen("127.0.0.1", range(1))
        port = taken.getsockname()[1]
        with pytest.raises(
            StartFailed, match=rf"127\.0\.0\.1:{port}: Address already in use.*range of ports"
        ):
            await fleet.node(2, fleet.settings(2, FLEETLM_OPS=f"127.0.0.1:{port}"))
        node = await fleet.node(2, fleet.settings(2, FLEETLM_OPS=f"127.0.0.1:{port}-{port + 9}"))
        (service,) = (each for each in node._services if isinstance(each, OpsService))
        assert service.port is not None
        assert port < service.port <= port + 9
        taken.close()
        settings = fleet.settings(3, FLEETLM_OPS="192.0.2.1:0", FLEETLM_OPS_TOKEN=TOKEN)
        with pytest.raises(StartFailed, match=r"192\.0\.2\.1"):
            await fleet.node(3, settings)


@pytest.mark.parametrize("missing", ["uvicorn", "starlette", "h11"])
def test_a_missing_library_is_said_with_what_to_install(missing: str) -> None:
    program = f"""
import asyncio, sys
sys.modules[{missing!r}] = None
import fleetlm
from fleetlm import ops
async def main():
    try:
        await fleetlm.Node.start()
    except fleetlm.SettingsError as error:
        print(error)
    try:
        ops.app(None)
    except ImportError as error:
        print(error)
asyncio.run(main())
"""
    env = {
        **clean_env(),
        "FLEETLM_NODE_IP": "127.0.0.1",
        "FLEETLM_OPS": "127.0.0.1:0",
        "FLEETLM_NODE_PORT": "14369",
    }
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "only where fleetlm[ops] is installed. Install it: pip install 'fleetlm[ops]'" in run.stdout, (
        run.stderr
    )


def test_settings_that_are_open_to_a_network_need_a_token() -> None:
    fleet = Fleet(static=(2,))
    for place in (":4380", "*:4380", "0.0.0.0:4380", "[::]:4380", "10.0.0.1:4380-4390"):
        with pytest.raises(SettingsError, match=r"FLEETLM_OPS .*token"):
            fleet.settings(2, FLEETLM_OPS=place)
        assert fleet.settings(2, FLEETLM_OPS=place, FLEETLM_OPS_TOKEN=TOKEN).ops_token == TOKEN


def test_all_addresses_are_those_of_both_families() -> None:
    sockets = listen("*", range(1))
    port = sockets[0].getsockname()[1]
    served = Listener(OpsApp(FakeQuestions(), TOKEN), sockets, "both families")
    served.start()
    assert get(port) == (200, "live\n")
    if socket.has_ipv6 and sockets[0].family == socket.AF_INET6:
        with urllib.request.urlopen(f"http://[::1]:{port}/health/live", timeout=10.0) as answer:
            assert answer.read() == b"live\n"
    served.stop()
    served.thread.join()


# Hostile clients.


def trickle(client: socket.socket, text: bytes, stopped: threading.Event) -> None:
    with contextlib.suppress(OSError):
        for byte in text * 1_000:
            client.sendall(bytes([byte]))
            if stopped.wait(0.02):
                return


def test_a_head_that_trickles_in_ends_in_time_and_hinders_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEAD_S", 0.5)
    with serving() as port:
        stopped = threading.Event()
        clients = [connect(port) for _ in range(20)]
        threads = []
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
            threads.append(threading.Thread(target=trickle, args=(client, b"X-Slow: 1\r\n", stopped)))
            threads[-1].start()
        began = time.monotonic()
        assert get(port) == (200, "live\n")
        assert time.monotonic() - began < 2.0
        assert all(map(is_ended, clients))
        stopped.set()
        for each in [*threads]:
            each.join()
        for client in clients:
            client.close()


def test_between_requests_bytes_prolong_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "IDLE_S", 0.5)
    with serving() as port:
        stopped = threading.Event()
        client = connect(port)
        client.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 200")
        thread = threading.Thread(target=trickle, args=(client, b"GET / HTTP/1.1\r\n", stopped))
        thread.start()
        assert is_ended(client)
        stopped.set()
        thread.join()
        client.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000,
        b"GET /" + b"a" * 200_000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 4,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"\r\n" * 50_000,
        b"\x00" * 1_000,
    ],
    ids=["header", "target", "headers", "tls", "length", "smuggling", "bytes", "version", "blank", "zeros"],
)
def test_a_head_that_is_too_large_or_none_ends_its_connection(
    request_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HEAD_S", 1.0)
    monkeypatch.setattr(listener, "IDLE_S", 1.0)
    with serving() as port:
        client = connect(port)
        with contextlib.suppress(OSError):
            client.sendall(request_bytes)
        assert is_ended(client)
        client.close()
        assert get(port) == (200, "live\n")


def test_200_idle_connections_keep_nobody_out() -> None:
    with serving() as port:
        idle = [connect(port) for _ in range(200)]
        began = time.monotonic()
        assert get(port) == (200, "live\n")
        assert time.monotonic() - began < 5.0
        left = [client for client in idle if not was_ended(client)]
        assert len(left) <= listener.MAX_CONNECTIONS // 2, "those of one address are half of all"
        for client in idle:
            client.close()


def was_ended(client: socket.socket) -> bool:
    """Whether the other side has ended a connection by now."""
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_request_in_the_name_of_another_site_is_refused() -> None:
    with serving() as port:
        for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "0.0.0.0"):
            status, text = get(port, "/cluster.json", Host=host)
            assert status == 421
            assert "10.0.0.1" not in text
        client = connect(port)
        client.sendall(b"GET /cluster.json HTTP/1.0\r\n\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 421")
        client.close()
        assert get(port, "/cluster.json", Host=f"localhost:{port}")[0] == 200


def test_a_reader_that_takes_nothing_is_ended_and_others_get_the_latest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "STUCK_S", 1.0)
    monkeypatch.setattr("fleetlm.ops.watching.PERIOD_S", 0.05)
    fake = FakeQuestions()

    async def overview() -> Any:  # Each one has other texts of half a megabyte, so that no buffer holds many.
        fake.asked += 1
        found = overview_of(2, fake.asked)
        for part in found["nodes"].values():
            part["names"] = {f"name-{each}": f"{fake.asked}" * 50 for each in range(2_000)}
        return found

    monkeypatch.setattr(fake, "overview", overview)
    with serving(fake) as port:
        stuck, reader = connect(port), connect(port)
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        for client in (stuck, reader):
            client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        numbers: list[int] = []
        data, until_s = b"", time.monotonic() + 20.0
        while (len(numbers) < 15 or is_connected(stuck)) and time.monotonic() < until_s:
            data += reader.recv(1 << 20)
            *lines, data = data.split(b"\n")
            numbers += [
                int(line[16:].split(b",")[0]) for line in lines if line.startswith(b'data: {"number":')
            ]
        assert not is_connected(stuck)
        assert len(numbers) >= 15
        assert numbers == sorted(numbers)
        assert get(port) == (200, "live\n")
        stuck.close()
        reader.close()


def test_a_body_that_never_ends_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "RESPONSE_S", 0.5)
    monkeypatch.setattr(listener, "IDLE_S", 0.5)
    with serving(token=TOKEN) as port:
        for head in (b"GET /health/live", b"POST /login"):
            client = connect(port)
            client.sendall(head + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\ntoken=")
            with contextlib.suppress(OSError):
                for _ in range(1_000):
                    client.sendall(b"a" * 65_536)
            assert is_ended(client)
            client.close()


def test_pipelined_requests_are_answered_one_after_the_other() -> None:
    with serving() as port:
        client = connect(port)
        client.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        text = b""
        while text.count(b"live\n") < 20:
            text += client.recv(65_536)
        client.close()


def test_a_flood_of_requests_is_slowed_down_then_refused_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "MAX_WAIT_S", 0.2)
    monkeypatch.setattr(listener, "REQUESTS_PER_S", 5)
    fake = FakeQuestions()
    with serving(fake) as port:
        clients = [connect(port) for _ in range(40)]
        for client in clients:
            client.sendall(b"GET /cluster.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        text, left = b"", clients
        while b"HTTP/1.1 429" not in text or b"HTTP/1.1 200" not in text:
            readable, _, _ = select.select(left, [], [], 10.0)
            for client in readable:
                try:
                    more = client.recv(65_536)
                except ConnectionError:  # It is refused while the rest of its requests is on its way.
                    more = b""
                text += more
                left = left if more else [each for each in left if each is not client]
        for client in clients:
            client.close()
    assert "Exception" not in caplog.text


def test_the_connection_that_has_been_idle_for_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle:
        is_idle, is_aborted = True, False

        def __init__(self, address: str) -> None:
            self.address = address

        def abort(self) -> None:
            self.is_aborted = True

    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 2)
    connections = listener._Connections(OpsApp(FakeQuestions()))
    scraper, forgotten, newcomer = (Idle(f"10.0.0.{number}") for number in range(3))
    connections.add(scraper)  # type: ignore[arg-type]
    connections.add(forgotten)  # type: ignore[arg-type]
    connections.note_end_of_response(scraper)  # type: ignore[arg-type]
    connections.add(newcomer)  # type: ignore[arg-type]
    assert [each.is_aborted for each in (scraper, forgotten, newcomer)] == [False, True, False]


def test_loggers_that_a_program_uses_for_uvicorn_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    access, errors = logging.getLogger("uvicorn.access"), logging.getLogger("uvicorn.error")
    handler = logging.NullHandler()
    access.addHandler(handler)
    before = (access.handlers[:], access.propagate, access.level, errors.handlers[:], errors.level)
    with serving() as port:
        assert get(port) == (200, "live\n")
    assert (access.handlers[:], access.propagate, access.level, errors.handlers[:], errors.level) == before
    access.removeHandler(handler)
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_a_forked_child_does_not_keep_the_port() -> None:
    sockets = listen("127.0.0.1", range(1))
    service = OpsService(None)  # type: ignore[arg-type]
    service._listener = Listener(OpsApp(FakeQuestions()), sockets, "copied")
    service.after_fork()
    assert sockets[0].fileno() == -1


def test_a_thread_that_cannot_start_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = listen("127.0.0.1", range(1))
    served = Listener(OpsApp(FakeQuestions()), sockets, "none")

    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        served.start()
    assert sockets[0].fileno() == -1
    served.stop()
