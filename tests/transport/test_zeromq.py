"""`ZmqTransport` on real sockets of the loopback network."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import zmq

from fleetlm import Node, Process
from fleetlm.errors import NodeStopped, NoProcess, StartFailed
from fleetlm.settings import Settings
from fleetlm.transport import dealer as dealer_module, listening, zeromq
from fleetlm.transport.listening import Listening
from fleetlm.transport.router import MAX_FRAMES_PER_READ, MORE_PARTS, UNKNOWN_IP
from fleetlm.transport.sockets import explain_bind_error, may_dial_from, raise_descriptor_limit
from fleetlm.transport.zeromq import ZmqTransport
from tests.support.patience import allowed_s
from tests.support.transport_rig import (
    PORT,
    Station,
    both_loops,
    both_roads,
    descriptors,
    free_ip,
    raw_server,
    station,
    threads,
)

ROOT = Path(__file__).resolve().parent.parent.parent
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + bytes(32)

# A peer in a process of its own: it dials, sends the given number of frames, and waits.
PEER = """
import asyncio, sys
from tests.support.transport_rig import Recorder, Station
from fleetlm.settings import Settings
from fleetlm.transport.zeromq import ZmqTransport

async def main(own_ip, ip, port, frames):
    seen = Recorder()
    transport = ZmqTransport(Settings(node_timeout_s=1.0))
    await transport.bind(own_ip, [port])
    await transport.start(seen)
    peer = Station(transport, seen, own_ip, port)
    channel = peer.dial(ip, port)
    await seen.until("opened")
    for number in range(frames):
        assert peer.send(channel, b"%d" % number)
    print("sent", flush=True)
    await asyncio.sleep(60)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


@asynccontextmanager
async def peer_process(own_ip: str, ip: str, frames: int) -> AsyncIterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PEER, own_ip, ip, str(PORT), str(frames)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == "sent\n"
            yield process
        finally:
            process.kill()


@contextmanager
def plain_dealer(ip: str, port: int = PORT) -> Iterator[zmq.Socket[bytes]]:
    """A client that speaks ZeroMQ but not fleetlm's protocol."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.reconnect_ivl = -1
    dealer.connect(f"tcp://{ip}:{port}")
    try:
        yield dealer
    finally:
        dealer.close()
        context.term()


async def carries(a: Station, channel: int, b: Station, text: bytes) -> None:
    """Check that a channel still works: the frame arrives, as the last one."""
    count = len(b.seen.frames) + 1
    assert a.send(channel, text)
    await b.seen.until("frame", count)
    assert b.seen.frames[-1] == text


# ── frames ───────────────────────────────────────────────────────────────────────────────────────


@both_roads
async def test_frames_arrive_whole_and_in_order() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        total = 3 * MAX_FRAMES_PER_READ + 7
        for number in range(total):
            assert a.send(channel, b"%d" % number)
        await b.seen.until("frame", total)
        assert b.seen.frames == [b"%d" % number for number in range(total)]
        (source, ip), *others = b.seen.all("met")
        assert (ip, others) == (a.ip, [])
        assert len(source) == 16
        assert source[0] != 0
        assert {who for who, _ in b.seen.all("frame")} == {source}
        assert b.seen.facts.index(("met", source, a.ip)) < b.seen.facts.index(("frame", source, b"0"))


@both_roads
async def test_frames_of_all_sizes_arrive_as_they_were_sent() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        sent = [b"", b"small", os.urandom(1_000), os.urandom(1_000_000), b"last"]
        for frame in sent:
            assert a.send(channel, frame)
        await b.seen.until("frame", len(sent))
        assert b.seen.frames == sent


@both_roads
async def test_two_transports_dial_each_other() -> None:
    async with station() as a, station() as b:
        there, back = await a.reach(b), await b.reach(a)
        a.send(there, b"ping")
        b.send(back, b"pong")
        await b.seen.until("frame")
        await a.seen.until("frame")
        assert (b.seen.frames, a.seen.frames) == ([b"ping"], [b"pong"])


@both_roads
async def test_answers_come_back_on_the_channel() -> None:
    async with station() as a, station() as b:
        one, two = await a.reach(b), await a.reach(b)
        a.send(one, b"first")
        a.send(two, b"second")
        await b.seen.until("frame", 2)
        for source, frame in b.seen.all("frame"):
            b.transport.answer(source, b"re: " + frame)
        await a.seen.until("answered", 2)
        assert sorted(a.seen.all("answered")) == [(one, b"re: first"), (two, b"re: second")]
        b.transport.answer(b"nobody of this name", b"ignored")
        await carries(a, one, b, b"still here")


async def test_an_answer_is_received_while_sending_goes_on() -> None:
    """A send may make ZeroMQ handle its events, and so consume the wake-up for the answer."""
    async with station() as a, station() as b:
        channel = await a.reach(b)
        a.send(channel, b"hello")
        await b.seen.until("frame")
        b.transport.answer(b.seen.all("met")[0][0], b"no")
        deadline = time.monotonic() + 0.005
        while time.monotonic() < deadline:
            a.send(channel, b"more")
        assert await a.seen.until("answered", patience_s=0.3) == (channel, b"no")


async def test_a_peer_that_keeps_answering_is_disconnected() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        a.send(channel, b"hello")
        await b.seen.until("frame")
        for _ in range(9):
            b.transport.answer(b.seen.all("met")[0][0], b"no")
        lost, reason = await a.seen.until("lost")
        assert lost == channel
        assert "answers" in reason
        assert len(a.seen.all("answered")) == 4


# ── dials that fail ──────────────────────────────────────────────────────────────────────────────


@both_loops
async def test_connection_refused_is_reported_at_once() -> None:
    async with station() as a:
        ip = free_ip()
        begun = time.monotonic()
        channel = a.dial(ip, PORT)
        assert not a.send(channel, b"too early")
        assert await a.seen.until("lost") == (channel, f"{ip}:{PORT}: connection refused")
        assert time.monotonic() - begun < allowed_s(0.3)
        assert not a.send(channel, b"too late")


async def test_facts_never_come_from_inside_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    async with station() as a:
        a.dial(free_ip(), PORT)
        monkeypatch.setattr(dealer_module, "make_dealer", no_socket)
        channel = a.dial(free_ip(), PORT)
        assert a.seen.facts == []
        lost = await a.seen.until("lost")
        assert lost[0] == channel
        assert "Too many open files; raise the limit" in lost[1]
        await a.seen.until("lost", 2)


def no_socket(*_: object) -> None:
    raise zmq.ZMQError(errno.EMFILE)


async def test_no_answer_to_a_connect_is_a_timeout() -> None:
    ip = free_ip()
    with raw_server(ip, PORT, backlog=0):
        fillers = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex((ip, PORT))
        async with station(connect_timeout_s=0.4) as a:
            begun = time.monotonic()
            channel = a.dial(ip, PORT)
            lost, reason = await a.seen.until("lost")
            assert lost == channel
            assert reason == f"{ip}:{PORT}: connect timeout, no answer within 0.4 s"
            assert 0.35 < time.monotonic() - begun < allowed_s(1.0)
        for filler in fillers:
            filler.close()


async def test_a_port_that_sends_nothing_is_not_a_node() -> None:
    ip = free_ip()
    with raw_server(ip, PORT):
        async with station(connect_timeout_s=0.3) as a:
            a.dial(ip, PORT)
            _, reason = await a.seen.until("lost")
            assert "no ZeroMQ handshake within 0.3 s" in reason


async def test_a_port_that_speaks_another_protocol_is_not_a_node() -> None:
    ip = free_ip()
    with raw_server(ip, PORT) as server:
        server.settimeout(5)
        async with station(connect_timeout_s=0.5, cookie="sixteen characters") as a:
            channel = a.dial(ip, PORT)
            connection, _ = await asyncio.to_thread(server.accept)
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
                assert (await a.seen.until("lost"))[0] == channel


async def test_a_node_is_reached_and_dials_at_its_address_of_the_other_family() -> None:
    async with station("::1") as six, station(aliases=("::1",), port=PORT + 1) as both:
        to = six.dial("::1", PORT + 1)
        await six.seen.until("opened")
        await carries(six, to, both, b"to the alias")
        back = both.dial("::1", PORT)
        await both.seen.until("opened")
        await carries(both, back, six, b"from the alias")
        assert six.seen.all("met")[0][1] == both.seen.all("met")[0][1] == "::1"


async def test_an_alias_that_cannot_be_used_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with station() as a, station(aliases=("2001:db8::1",)) as b:
        await carries(a, await a.reach(b), b, b"still there")
    (said,) = (record for record in caplog.records if "2001:db8::1" in record.getMessage())
    assert said.levelname == "WARNING"
    assert f"nodes that can only reach [2001:db8::1]:{PORT} cannot connect" in said.getMessage()


async def test_a_missing_route_is_explained() -> None:
    async with station(connect_timeout_s=0.5) as a:
        # An address reserved for documentation (RFC 3849), to which there is no route.
        a.transport._own_ips = ()
        a.dial("2001:db8::1", PORT)
        _, reason = await a.seen.until("lost")
        assert reason.startswith(f"[2001:db8::1]:{PORT}: ")
        assert "unreachable" in reason or "timeout" in reason or "cannot be reached" in reason


@both_roads
async def test_a_channel_reports_its_end_once() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        await b.transport.close()
        lost, reason = await a.seen.until("lost")
        assert lost == channel
        assert f"{b.ip}:{b.port}: the connection ended" in reason
        assert not a.send(channel, b"anybody?")
        a.transport.hang_up(channel)
        a.transport.hang_up(channel)
        await asyncio.sleep(0.05)
        assert len(a.seen.all("lost")) == 1


async def test_a_send_into_a_dead_channel_returns_false_and_its_loss_is_reported() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        assert b.transport._router is not None
        b.transport._router.close()
        deadline = time.monotonic() + 2
        while a.send(channel, b"x") and time.monotonic() < deadline:
            pass  # the loop does not run meanwhile: only the send itself can notice
        assert not a.send(channel, b"y")
        assert a.seen.all("lost") == []
        assert (await a.seen.until("lost"))[0] == channel


@both_roads
async def test_after_hanging_up_no_fact_follows() -> None:
    async with station() as a, station() as b:
        a.transport.hang_up(a.dial(b.ip, b.port))
        opened = await a.reach(b)
        a.send(opened, b"last words")
        a.transport.hang_up(opened, 0.5)
        assert not a.send(opened, b"after the last")
        await b.seen.until("frame")
        await b.seen.until("gone")
        assert b.seen.frames == [b"last words"]
        assert [fact for fact in a.seen.facts if fact[0] == "lost"] == []


# ── sources that end ─────────────────────────────────────────────────────────────────────────────


@both_roads
async def test_a_source_is_lost_after_its_last_frame() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        total = 2 * MAX_FRAMES_PER_READ + 5
        for number in range(total):
            a.send(channel, b"%d" % number)
        a.transport.hang_up(channel, 1.0)
        (source,) = await b.seen.until("gone")
        assert len(b.seen.frames) == total
        assert b.seen.facts[-1] == ("gone", source)
        assert b.seen.all("met") == [(source, a.ip)]


@both_roads
async def test_a_source_is_lost_though_others_flood() -> None:
    async with AsyncExitStack() as stack:
        listener = await stack.enter_async_context(station())
        peers = [await stack.enter_async_context(station()) for _ in range(3)]
        channels = [await peer.reach(listener) for peer in peers]
        flooding = True

        async def flood(peer: Station, channel: int) -> None:
            while flooding:
                for _ in range(300):
                    peer.send(channel, b"flood")
                await asyncio.sleep(0)

        peers[0].send(channels[0], b"mortal")
        await listener.seen.until("frame")
        mortal = listener.seen.all("met")[0][0]
        floods = [asyncio.create_task(flood(*pair)) for pair in zip(peers[1:], channels[1:], strict=True)]
        await asyncio.sleep(0.1)
        begun = time.monotonic()
        peers[0].send(channels[0], b"last")
        peers[0].transport.hang_up(channels[0], 1.0)
        assert await listener.seen.until("gone") == (mortal,)
        took = time.monotonic() - begun
        flooding = False
        await asyncio.gather(*floods)
        theirs = [fact for fact in listener.seen.facts if mortal in fact]
        assert [fact[0] for fact in theirs] == ["met", "frame", "frame", "gone"]
        assert took < allowed_s(1.5)


async def test_a_killed_peer_is_seen_within_50_ms() -> None:
    async with station() as a, peer_process(free_ip(), a.ip, 100) as process:
        await a.seen.until("frame", 100)
        killed = time.monotonic()
        process.kill()
        await a.seen.until("gone")
        assert a.seen.when("gone") - killed < allowed_s(0.05)
        assert len(a.seen.frames) == 100


async def test_a_frozen_peer_is_lost_within_the_node_timeout() -> None:
    async with station(node_timeout_s=1.0) as a:
        peer_ip = free_ip()
        async with peer_process(peer_ip, a.ip, 1) as process:
            await a.seen.until("frame")
            channel = a.dial(peer_ip, PORT)
            await a.seen.until("opened")
            await asyncio.sleep(1.5)  # longer than the time-out: heartbeats keep the connection
            assert a.seen.all("gone") == []
            process.send_signal(signal.SIGSTOP)
            frozen = time.monotonic()
            try:
                await a.seen.until("gone")
                assert 0.99 < a.seen.when("gone") - frozen < allowed_s(1.5)
                assert (await a.seen.until("lost"))[0] == channel
                assert 0.99 < a.seen.when("lost") - frozen < allowed_s(1.5)
            finally:
                process.send_signal(signal.SIGCONT)


@both_roads
async def test_descriptors_are_reused_and_sources_kept_apart() -> None:
    async with station() as a, station() as b:
        seen_before = 0
        for number in range(60):
            channel = await a.reach(b)
            a.send(channel, b"%d" % number)
            a.transport.hang_up(channel, 1.0)
            if number % 3 == 0:  # otherwise the next channel opens while this one closes
                await b.seen.until("gone", number + 1)
                seen_before = len(b.seen.all("gone"))
        await b.seen.until("gone", 60)
        assert seen_before <= 60
        assert [int(frame) for frame in b.seen.frames] == list(range(60))
        sources = [source for source, _ in b.seen.all("met")]
        assert len(set(sources)) == 60
        for source in sources:
            kinds = [fact[0] for fact in b.seen.facts if source in fact]
            assert kinds == ["met", "frame", "gone"]
        assert b.transport._router is not None
        assert not b.transport._router._accepted
        assert not b.transport._router._sources


# ── other programs on the port ───────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells how many bytes have come")
async def test_a_program_that_waits_for_a_request_is_left_alone_after_a_moment() -> None:
    async with station() as a:
        held: list[float] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            began = time.monotonic()
            while await reader.read(1024):
                pass
            held.append(time.monotonic() - began)
            writer.close()

        ip = free_ip()
        async with await asyncio.start_server(serve, ip, PORT):
            channel = a.dial(ip, PORT)
            lost, reason = await a.seen.until("lost")
            assert lost == channel
            assert "another program has this port" in reason
            assert a.seen.foreign == {channel}
            while not held:
                await asyncio.sleep(0.01)
        assert held[0] < allowed_s(2.0), "not for the 3 s that a dial may take"


# ── strangers ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cookie", [None, "sixteen characters"])
@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x00",
        b"GET / HTTP/1.1\r\nHost: fleetlm\r\n\r\n" * 50,
        b"\xff" * 4_000,
        GREETING[:11],
        GREETING,
        GREETING + b"\x04\xff\xff\xff" * 100,
        GREETING + b"\x04\x26\x05READY" + bytes(32) + b"\xff" * 500,
        os.urandom(20_000),
    ],
)
async def test_a_strangers_bytes_do_not_disturb_other_connections(garbage: bytes, cookie: str | None) -> None:
    async with (
        station(connect_timeout_s=0.5, cookie=cookie) as a,
        station(cookie=cookie) as b,
    ):
        channel = await b.reach(a)
        await carries(b, channel, a, b"before")
        strangers = [socket.create_connection((a.ip, a.port)) for _ in range(5)]
        for stranger in strangers:
            stranger.sendall(garbage)
        await carries(b, channel, a, b"meanwhile")
        for stranger in strangers:
            stranger.close()
        await asyncio.sleep(0.05)
        await carries(b, channel, a, b"after")
        assert a.seen.frames == [b"before", b"meanwhile", b"after"]
        assert len(a.seen.all("met")) == 1
        assert a.seen.all("gone") == []
        assert len(a.seen.all("refused")) <= 2


async def test_a_port_check_is_reported_once_with_its_address() -> None:
    async with station() as a:
        for _ in range(20):
            socket.create_connection((a.ip, a.port), source_address=("127.0.0.77", 0)).close()
        ip, reason = await a.seen.until("refused")
        assert ip in ("127.0.0.77", UNKNOWN_IP)
        assert "perhaps a health check" in reason
        await asyncio.sleep(0.2)
        assert len(a.seen.all("refused")) <= 2


async def test_half_a_handshake_ends_after_its_time() -> None:
    async with station(connect_timeout_s=0.3) as a:
        with socket.create_connection((a.ip, a.port), source_address=("127.0.0.78", 0)) as half:
            half.sendall(GREETING[:20])
            half.settimeout(2)
            ip, reason = await a.seen.until("refused")
            assert ip == "127.0.0.78"
            assert "ZeroMQ handshake" in reason
            while half.recv(1_000):
                pass


@pytest.mark.parametrize("parts", [2, 3, 2_000])
async def test_a_message_of_several_parts_is_an_offence_of_its_sender_alone(parts: int) -> None:
    async with station() as a, station() as b:
        channel = await b.reach(a)
        await carries(b, channel, a, b"before")
        with plain_dealer(a.ip) as dealer:
            dealer.send(b"0")
            dealer.send_multipart([b"%d" % number for number in range(parts)])
            stranger, why = await a.seen.until("broke")
            assert why == MORE_PARTS
            assert [fact for fact in a.seen.all("frame") if fact[0] == stranger] == [(stranger, b"0")]
            await carries(b, channel, a, b"meanwhile")
        assert await a.seen.until("gone") == (stranger,)
        await carries(b, channel, a, b"after")


async def test_an_empty_message_is_a_frame_of_nothing() -> None:
    async with station() as a:
        with plain_dealer(a.ip) as dealer:
            dealer.send(b"")
            _, frame = await a.seen.until("frame")
            assert frame == b""


@both_roads
async def test_an_oversize_frame_ends_its_sender_alone() -> None:
    async with station(max_frame_bytes=10_000) as a, station() as b, station() as c:
        good, bad = await b.reach(a), await c.reach(a)
        await carries(b, good, a, b"before")
        await carries(c, bad, a, b"x" * 10_000)
        assert c.send(bad, b"x" * 10_001)
        lost, _ = await c.seen.until("lost")
        assert lost == bad
        await a.seen.until("gone")
        await carries(b, good, a, b"after")
        assert [len(frame) for frame in a.seen.frames] == [6, 10_000, 5]


# ── start, close, limits ─────────────────────────────────────────────────────────────────────────


async def test_ipv6() -> None:
    async with station("::1") as a, station("::1", PORT + 1) as b:
        channel = await a.reach(b)
        a.send(channel, b"six")
        await b.seen.until("frame")
        assert b.seen.all("met")[0][1] == "::1"
        refused = a.dial("::1", PORT + 2)
        assert await a.seen.until("lost") == (refused, f"[::1]:{PORT + 2}: connection refused")


async def test_a_node_listens_on_all_addresses_where_it_is_told_to() -> None:
    port = 24_690  # No other test listens there, on any address.
    async with station("*", port) as a, station() as b:
        channel = b.dial("127.0.0.1", port)
        assert await b.seen.until("opened") == (channel,)
        await carries(b, channel, a, b"through the wall")
        assert a.seen.all("met")[0][1] == b.ip
        back = a.dial(b.ip, b.port)
        assert await a.seen.until("opened") == (back,)


async def test_an_address_of_another_machine_is_waited_for_and_then_an_error_that_names_it() -> None:
    transport = ZmqTransport(Settings(own_address_budget_s=0.3))
    began = time.monotonic()
    with pytest.raises(StartFailed) as caught:
        await transport.bind("203.0.113.7", range(PORT, PORT + 3))
    assert time.monotonic() - began >= 0.2
    assert caught.value.endpoint == f"203.0.113.7:{PORT}-{PORT + 2}"
    assert "this machine does not have that address" in str(caught.value)
    assert "FLEETLM_BIND" in str(caught.value)
    await transport.close()


async def test_an_address_that_comes_a_moment_later_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    ip, tries = free_ip(), []

    def take_port(wanted: str, ports: Sequence[int]) -> Listening:
        tries.append(wanted)
        if len(tries) < 3:
            raise OSError(errno.EADDRNOTAVAIL, "tentative")
        return listening.take_port(wanted, ports)

    monkeypatch.setattr(zeromq, "take_port", take_port)
    transport = ZmqTransport(Settings())
    assert await transport.bind(ip, [PORT]) == PORT
    assert tries == [ip] * 3
    await transport.close()


async def test_a_port_in_use_is_an_error_and_leaves_nothing_open() -> None:
    ip = free_ip()
    async with station() as warm:
        await warm.reach(warm)
    gc.collect()
    before = descriptors()
    with raw_server(ip, PORT):
        transport = ZmqTransport(Settings(cookie="sixteen characters"))
        with pytest.raises(StartFailed) as caught:
            await transport.bind(ip, [PORT])
        assert caught.value.endpoint == f"{ip}:{PORT}"
        assert f"port {PORT} (FLEETLM_NODE_PORT) is in use" in str(caught.value)
        assert f"this process ({os.getpid()}), which does not answer as a node" in str(caught.value)
        await transport.close()
    gc.collect()
    assert descriptors() == before


def test_a_bind_error_is_explained() -> None:
    assert "below 1024" in explain_bind_error(PermissionError(13, "Permission denied"), [80])
    assert "ulimit" in explain_bind_error(OSError(24, "Too many open files"), [80])
    assert "Network is down" in explain_bind_error(OSError(100, "Network is down"), [80])


@pytest.mark.parametrize(
    ("own", "other", "may"),
    [
        ("10.0.0.1", "10.0.0.2", True),
        ("127.0.0.2", "127.0.0.3", True),
        ("127.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "127.0.0.1", False),
        ("10.0.0.1", "fdaa::1", False),
        ("fdaa::2", "fdaa::1", True),
    ],
)
def test_which_source_addresses_can_dial(own: str, other: str, may: bool) -> None:
    assert may_dial_from(own, other) is may


def test_the_descriptor_limit_allows_for_some_peers() -> None:
    assert raise_descriptor_limit() == raise_descriptor_limit() > 100


@both_loops
async def test_closing_is_quick_with_peers_that_are_stopped() -> None:
    async with station() as a:
        peer_ip = free_ip()
        async with peer_process(peer_ip, a.ip, 1) as process:
            channel = a.dial(peer_ip, PORT)
            await a.seen.until("opened")
            process.send_signal(signal.SIGSTOP)
            for _ in range(200):
                a.send(channel, b"x" * 200_000)
            begun = time.monotonic()
            a.transport.hang_up(channel, 0.5)
            await a.transport.close()
            assert 0.3 < time.monotonic() - begun < allowed_s(2)
            await a.transport.close()
            process.send_signal(signal.SIGCONT)
        assert not a.send(channel, b"x")


async def test_nothing_is_left_of_200_reconnects() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        a.transport.hang_up(channel)
        await asyncio.sleep(0.05)
        gc.collect()
        before = descriptors()
        for number in range(200):
            channel = await a.reach(b)
            a.send(channel, b"hello")
            await b.seen.until("gone" if number % 2 else "frame", number // 2 + 1)
            a.transport.hang_up(channel, 0.1)
        await b.seen.until("gone", 200)
        failed = [a.dial(free_ip(), PORT) for _ in range(50)]
        await a.seen.until("lost", len(failed))
        deadline = time.monotonic() + 2
        while descriptors() > before and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert descriptors() <= before
        assert a.transport._channels == {}


@both_roads
async def test_a_transport_leaves_neither_descriptors_nor_threads() -> None:
    async def live() -> None:
        cookie = "sixteen characters"
        async with station(cookie=cookie) as a, station(cookie=cookie) as b:
            channel = await a.reach(b)
            await a.introduce(channel, b)  # A stranger whose first frame is so long would be refused.
            a.send(channel, b"x" * 100_000)
            await b.seen.until("frame")

    await live()  # pyzmq starts one thread for lent buffers, at the first of them
    gc.collect()
    before = descriptors(), threads()
    for _ in range(3):
        await live()
    gc.collect()
    deadline = time.monotonic() + 2
    while (now := (descriptors(), threads())) > before:
        assert time.monotonic() < deadline, (before, now)
        await asyncio.sleep(0.02)


async def test_closing_first_and_starting_twice() -> None:
    await ZmqTransport(Settings()).close()
    async with station() as a:
        with pytest.raises(RuntimeError, match="once"):
            await a.transport.bind(a.ip, [a.port])
        await a.transport.close()
        with pytest.raises(RuntimeError, match="not running"):
            a.dial(a.ip, a.port)
        a.transport.answer(b"nobody", b"")
        assert a.seen.facts == []


@both_roads
async def test_a_forked_child_cannot_use_the_transport() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover
            said = []
            for use in (
                lambda: a.send(channel, b"x"),
                lambda: a.dial(b.ip, b.port),
                lambda: a.transport.answer(b"x", b"y"),
                lambda: a.transport.hang_up(channel),
                lambda: a.transport.close().send(None),
            ):
                try:
                    use()
                    said.append("nothing")
                except RuntimeError as error:
                    said.append("forked" if "forked" in str(error) else str(error))
            os.write(writer, ",".join(said).encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        assert os.read(reader, 1_000) == b"forked,forked,forked,forked,forked"
        os.close(reader)
        await carries(a, channel, b, b"the parent is well")


@both_roads
async def test_a_forked_child_keeps_no_connection_of_its_parent_open() -> None:
    """Peers see the end of the parent at once, and its port is free, however long a child lives."""
    async with station() as b, station() as a:
        channel = await b.reach(a)
        await a.reach(b)
        with socket.socket() as foreign, socket.socket() as listener:
            listener.bind((free_ip(), 0))
            listener.listen()
            foreign.connect(listener.getsockname())  # The program's own: the child keeps it.
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:  # pragma: no cover
                os.close(writer)
                os.write(foreign.fileno(), b"mine")
                os.read(reader, 1)  # Lives until the parent says so.
                os._exit(0)
            os.close(reader)
            try:
                accepted, _ = listener.accept()
                with accepted:
                    assert accepted.recv(16) == b"mine"
                await a.transport.close()
                assert (await b.seen.until("lost"))[0] == channel
                with socket.socket() as successor:
                    successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    successor.bind((a.ip, a.port))
                    successor.listen()
            finally:
                os.close(writer)
                os.waitpid(child, 0)


@pytest.mark.deadline(40)
async def test_twenty_transports_form_a_full_mesh_quickly() -> None:
    async with AsyncExitStack() as stack:
        stations = [await stack.enter_async_context(station()) for _ in range(20)]
        begun = time.monotonic()
        for one in stations:
            for other in stations:
                if one is not other:
                    one.dial(other.ip, other.port)
        for one in stations:
            await one.seen.until("opened", 19, patience_s=10)
        assert time.monotonic() - begun < allowed_s(3)


@pytest.mark.parametrize("road", [True, False])
async def test_a_node_that_takes_smaller_frames_than_others_send_by_themselves_keeps_its_peer(
    road: bool,
) -> None:
    async def echo(process: Process) -> None:
        async for call in process.mailbox:
            call.reply(call.message)

    base = Settings(dns_query="127.77.0.2,127.77.0.3", remote=False, local_road=road)
    small = base.replace(node_ip="127.77.0.2", max_frame_bytes=100_000)
    async with Node.start(small) as a, Node.start(base.replace(node_ip="127.77.0.3")) as b:
        await a.ready(1, 10)
        await b.ready(1, 10)
        for node in (a, b):
            node.spawn(echo, name="echo")
        events = b.events()
        for value in (bytes(4_000_000), "x" * 4_000_000):
            assert await b.call(("echo", a.name), value, 10) == value
            assert await a.call(("echo", b.name), value, 10) == value
        many = [b.call(("echo", a.name), "y" * 20_000, 10) for _ in range(50)]
        assert len(await asyncio.gather(*many)) == 50
        assert b.list() == [a.name]
        events.close()
        assert [type(event).__name__ async for event in events] == ["NodeUp"]


async def test_a_node_in_a_forked_child_refuses_to_work() -> None:
    settings = Settings(dns_query="127.77.0.2", node_ip="127.77.0.2", remote=False)
    async with Node.start(settings) as node:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover
            said = []
            for use in (
                lambda: node.send("echo", 1).send(None),
                lambda: node.call("echo", 1).send(None),
                lambda: node.spawn(print),  # type: ignore[call-arg, arg-type]
                lambda: node.connect("fleetlm@127.77.0.3").send(None),
            ):
                try:
                    use()
                    said.append("nothing")
                except NodeStopped as error:
                    said.append("forked" if "forked from" in str(error) else str(error))
            os.write(writer, ",".join(said).encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        assert os.read(reader, 1_000) == b"forked,forked,forked,forked"
        os.close(reader)
        with pytest.raises(NoProcess):
            await node.send("echo", 1)
        with pytest.raises(TypeError, match="coroutine function"):
            node.spawn(5)  # type: ignore[call-overload]
