"""A process that runs out of file descriptors keeps its connections, dials nobody, and burns no CPU."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetlm import Node, Settings
from fleetlm.transport import descriptors
from fleetlm.transport.descriptors import (
    FDS_KEPT,
    FDS_TO_ACCEPT,
    QUIET_S,
    SPARE_FDS,
    Accepting,
    Descriptors,
    count_free,
)
from fleetlm.transport.leftovers import EVERYBODY
from tests.support.transport_rig import PORT, free_ip

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="packet filters are Linux's")
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((free_ip(), PORT)) as sock:
        yield sock


def connects(address: tuple[str, int], source: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection(address, 0.3, (source, 0)).close()
    except TimeoutError:
        return False
    return True


def test_free_descriptors_are_those_below_the_limit() -> None:
    before = count_free()
    with socket.socket():
        assert count_free() == before - 1
    assert before < resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_dials_stop_while_some_descriptors_are_still_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "count_free", lambda: 10 + FDS_KEPT)
    monkeypatch.setattr(descriptors, "limit_of_descriptors", lambda: 64)
    known = Descriptors()
    assert known.count() == 10 + FDS_KEPT
    known.take(5)
    known.take(5)  # The first five may not be open yet, so they are still counted as free.
    with pytest.raises(OSError, match="fewer than 21 file descriptors are free") as caught:
        known.take(5)
    assert caught.value.errno == errno.EMFILE
    known.count()
    known.take(5)


def test_many_free_descriptors_are_not_counted_for_each_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def count() -> int:
        counts.append(1)
        return 10_000

    monkeypatch.setattr(descriptors, "count_free", count)
    known = Descriptors()
    known.count()
    for _ in range(1_000):
        known.take(5)
    assert len(counts) == 1


def test_a_look_finds_enough_descriptors_and_leaves_none_open() -> None:
    before = count_free()
    assert Descriptors().look() == FDS_KEPT + SPARE_FDS
    assert count_free() == before


@linux
def test_without_descriptors_waiting_connections_are_closed_and_no_more_come(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fleetlm.zmq")
    ip, port = listener.getsockname()
    accepting = Accepting([ip], port)
    other = Accepting(["127.99.99.99"], port)
    with socket.create_connection((ip, port)) as early, socket.create_connection((ip, port)) as waits:
        served, _ = listener.accept()
        other.look(0, 0.0)
        assert connects((ip, port))
        waits.settimeout(5.0)
        for _ in range(3):
            accepting.look(FDS_TO_ACCEPT - 1, 0.0)
        assert waits.recv(1) == b""
        assert not connects((ip, port))
        early.send(b"x")
        assert served.recv(1) == b"x"
        accepting.look(FDS_KEPT, 1.0)
        assert accepting.is_paused
        accepting.look(FDS_KEPT + SPARE_FDS, 1.0)
        assert connects((ip, port))
        for _ in range(3):
            accepting.look(0, 2.0)
            accepting.look(FDS_KEPT + SPARE_FDS, 2.0)
        assert connects((ip, port))
        served.close()
    said = [record.getMessage() for record in caplog.records if "of " in record.getMessage()]
    assert (
        sum("`ulimit -n`" in text and "accepts no connection" in text for text in said) == 2
    )  # Of two objects.
    accepting.close()
    accepting.close()
    other.close()


@linux
def test_connections_of_some_addresses_or_of_all_are_turned_away(listener: socket.socket) -> None:
    ip, port = address = listener.getsockname()
    accepting = Accepting([ip], port)
    here, there = "127.97.0.1", "127.97.0.2"
    accepting.turn_away(frozenset({here, "2001:db8::1"}))
    assert (connects(address, here), connects(address, there)) == (False, True)
    accepting.look(0, 0.0)
    assert not connects(address, there)
    accepting.look(FDS_KEPT + SPARE_FDS, 0.0)
    assert (connects(address, here), connects(address, there)) == (False, True)
    accepting.turn_away(EVERYBODY)
    assert not connects(address, there)
    accepting.look(0, 0.0)
    accepting.turn_away(frozenset())
    assert not connects(address, there)
    accepting.look(FDS_KEPT + SPARE_FDS, 0.0)
    assert connects(address, here)
    accepting.close()


def test_a_shortage_for_dials_is_said_once_for_all_of_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(descriptors, "count_free", lambda: 7)
    known = Descriptors()
    known.count()
    for number in range(100):
        known.tell(float(number), f"10.0.0.{number}:4370")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("only 7 of ")
    assert "does not dial 10.0.0.0:4370 now, and perhaps others" in said
    known.tell(QUIET_S, "10.0.0.1:4370")
    assert len(caplog.records) == 2


CROWDED = """
import asyncio, logging, resource, sys
from fleetlm import Call, Node, Settings
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
logging.basicConfig(level=logging.INFO, stream=sys.stderr)

async def echo(process):
    async for message in process.mailbox:
        if isinstance(message, Call):
            message.reply(message.message)

async def main(ip, port, query):
    settings = Settings(node_ip=ip, node_ports=(port, port), dns_query=query, remote=False)
    async with Node.start(settings) as node:
        node.spawn(echo, name="echo")
        print("serves", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
"""


@pytest.mark.deadline(60)
async def test_a_node_with_128_descriptors_serves_its_peers_while_hundreds_connect_and_it_dials_many() -> (
    None
):
    """libzmq ends the whole process where some of its calls find no descriptor."""
    ip, mine = free_ip(), free_ip()
    dead = [f"127.97.0.{number}" for number in range(1, 120)]
    query = ",".join([ip, mine, *dead])
    command = [sys.executable, "-c", CROWDED, ip, str(PORT), query]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        held: list[socket.socket] = []
        try:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == "serves\n"
            settings = Settings(node_ip=mine, node_ports=(PORT, PORT), dns_query=f"{ip},{mine}", remote=False)
            async with Node.start(settings) as node:
                await node.ready(1, 30)
                for number in range(600):
                    sock = socket.socket()
                    sock.setblocking(False)
                    sock.bind((f"127.98.0.{1 + number % 200}", 0))
                    sock.connect_ex((ip, PORT))
                    held.append(sock)
                    if number % 50 == 0:
                        answer = await node.call(("echo", node.list()[0]), number, timeout=10)
                        assert answer == number
                await asyncio.sleep(2.0)
                assert await node.call(("echo", node.list()[0]), "still here", timeout=10) == "still here"
            _, log = await asyncio.to_thread(process.communicate, "\n", 30)
            assert process.returncode == 0, log
            assert log.count("file descriptors are free") <= 2
            assert log.count("too many connections that are not a node's") == 1
        finally:
            process.kill()
            for sock in held:
                sock.close()


LEAKS = """
import asyncio, os, resource, sys, time
from fleetlm.settings import Settings
from fleetlm.transport.zeromq import ZmqTransport
from tests.support.transport_rig import Recorder

async def main(ip, port):
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    seen = Recorder()
    transport = ZmqTransport(Settings())
    await transport.bind(ip, [port])
    await transport.start(seen)
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    print("full", flush=True)
    for channel in range(20):
        transport.dial(channel, ip, port)
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.5)  # Connections wait by now.
    before = time.process_time()
    await asyncio.sleep(1.0)
    burnt = time.process_time() - before
    for fd in held:
        os.close(fd)
    await asyncio.sleep(1.5)
    transport.dial(99, ip, port)
    await seen.until("opened")
    reasons = {why for kind, why in ((fact[0], fact[-1]) for fact in seen.facts) if kind == "lost"}
    print(burnt < 0.5, *reasons, flush=True)
    await transport.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def test_a_process_without_descriptors_lives_and_takes_connections_in_again() -> None:
    ip = free_ip()
    command = [sys.executable, "-c", LEAKS, ip, str(PORT)]
    clients = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "full\n"
            for _ in range(5):
                client = socket.socket()
                client.setblocking(False)
                client.connect_ex((ip, PORT))
                clients.append(client)
            said = process.stdout.readline()
            assert said.startswith("True")
            assert "file descriptors are free; raise the limit of open files" in said
            assert process.wait(30) == 0
        finally:
            process.kill()
            for client in clients:
                client.close()


TOO_FEW = """
import asyncio, resource, sys
from fleetlm import Node, Settings, StartFailed
resource.setrlimit(resource.RLIMIT_NOFILE, (18, 18))

async def main(port):
    try:
        await Node.start(Settings(node_ip="127.0.0.1", node_ports=(port, port), remote=False))
    except StartFailed as error:
        print(error)

asyncio.run(main(int(sys.argv[1])))
"""


def test_a_process_with_too_few_descriptors_cannot_start_and_is_told_so() -> None:
    command = [sys.executable, "-c", TOO_FEW, str(PORT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "too many open files: raise the limit" in done.stdout, done.stderr
    assert done.returncode == 0
