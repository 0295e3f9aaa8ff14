"""What a stranger, or a hostile peer, can make a node hold: bytes that it has not read, and connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from fleetlm.transport.bounds import ENDLESS, STRANGER_FRAMES
from fleetlm.transport.dealer import MOST_HEARD_BYTES, ZERO_COPY_BYTES
from fleetlm.transport.heartbeats import HEARTBEAT_BYTES
from fleetlm.transport.router import MORE_PARTS
from fleetlm.transport.tcp import Copies, copy_of, count_received, count_waiting
from fleetlm.wire.frames import Kind
from tests.support.patience import allowed_s
from tests.support.transport_rig import COOKIE, PORT, Station, descriptors, free_ip, station

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="TCP_INFO and SO_COOKIE are Linux's")
MIB = 2**20
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
CURVE_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(47)
READY = b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x00"


def zmtp(body: bytes, *, more: bool = False) -> bytes:
    """A frame as it is on the wire."""
    if len(body) < 256:
        return bytes((int(more), len(body))) + body
    return bytes((2 + int(more),)) + len(body).to_bytes(8, "big") + body


@contextlib.contextmanager
def raw_client(ip: str) -> Iterator[socket.socket]:
    """A stranger that has shaken hands by ZMTP."""
    with socket.create_connection((ip, PORT), 10) as sock:
        sock.sendall(GREETING + READY)
        came = b""
        while b"READY" not in came:  # libzmq takes no frame before it has sent its own.
            came += sock.recv(4_096)
        yield sock


async def carries(a: Station, channel: int, b: Station, text: bytes) -> None:
    count = len(b.seen.frames) + 1
    assert a.send(channel, text)
    await b.seen.until("frame", count)
    assert b.seen.frames[-1] == text


async def sends_until_it_is_ended(sock: socket.socket, data: bytes, most: int) -> int:
    """Send again and again; return how much the network took before the connection ended.

    An end of which the sender is not told counts too: the node takes nothing any more.
    """

    def send() -> int:
        sent = 0
        sock.settimeout(2.0)
        with contextlib.suppress(OSError):
            while sent < most:
                sock.sendall(data)
                sent += len(data)
        return sent

    return await asyncio.to_thread(send)


async def ends(sock: socket.socket, patience_s: float = 5.0) -> None:
    """Check that the node ends this connection."""

    def read() -> None:
        sock.settimeout(patience_s)
        with contextlib.suppress(ConnectionError):
            while sock.recv(4096):
                pass

    await asyncio.to_thread(read)


async def settles(most: int, patience_s: float = 5.0) -> None:
    """Wait until no more descriptors are open."""
    deadline = time.monotonic() + patience_s
    while descriptors() > most:
        assert time.monotonic() < deadline, (descriptors(), most)
        await asyncio.sleep(0.02)


def router_of(a: Station) -> Any:
    return a.transport._router


# ── unread bytes ─────────────────────────────────────────────────────────────────────────────────


@linux
async def test_a_message_without_end_ends_its_sender_alone() -> None:
    async with station() as a, station() as b:
        channel = await b.reach(a)
        await carries(b, channel, a, b"before")
        with raw_client(a.ip) as stranger:
            sent = await sends_until_it_is_ended(stranger, zmtp(bytes(MIB), more=True), 4_000 * MIB)
            assert sent < 4_000 * MIB
        ip, why = await a.seen.until("refused")
        assert (ip, why.endswith("before it was heard, and no node begins so")) == ("127.0.0.1", True)
        assert len(a.seen.all("met")) == 1
        await carries(b, channel, a, b"after")


@linux
@pytest.mark.parametrize("is_peer", [False, True], ids=["stranger", "peer"])
async def test_parts_of_one_byte_without_end_are_noticed_long_before_the_bound_of_unread_bytes(
    is_peer: bool,
) -> None:
    """libzmq keeps 64 bytes for each of them."""
    async with station() as a:
        with raw_client(a.ip) as sock:
            if is_peer:
                sock.sendall(zmtp(b"hello"))
                await a.seen.until("met")
            most = 30 * MIB
            sent = await sends_until_it_is_ended(sock, zmtp(b"x", more=True) * 5_000, most)
            assert sent < most
        _, why = await a.seen.until("broke" if is_peer else "refused")
        assert ("without end" if is_peer else "before it was heard") in why


@linux
async def test_what_comes_in_bursts_that_libzmq_takes_at_once_is_noticed_too() -> None:
    """epoll names what is ready at the moment of the question, and by then nothing waits in the kernel."""
    async with station() as a:
        with raw_client(a.ip) as sock:
            sock.sendall(zmtp(b"hello"))  # It is a peer's.
            await a.seen.until("met")
            data, sent = zmtp(bytes(256 * 1_024), more=True), 0
            with contextlib.suppress(OSError):
                while sent < 64:
                    await asyncio.to_thread(sock.sendall, data)
                    sent += 1
                    await asyncio.sleep(0.02)
            assert sent < 64
        _, why = await a.seen.until("broke")
        assert why.startswith(ENDLESS)


@linux
async def test_a_new_connection_is_looked_at_sooner_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetlm.transport.sweeps.SWEEP_S", 60.0)
    async with station() as a, station() as b:
        channel = await b.reach(a)
        await carries(b, channel, a, b"before")
        with socket.create_connection((a.ip, PORT), 10) as stranger:
            stranger.sendall(GREETING + READY + zmtp(bytes(MIB))[: 128 * 1024])
            _, why = await a.seen.until("refused")
            assert why.endswith("before it was heard, and no node begins so")


@linux
async def test_a_large_frame_whose_end_is_late_ends_nothing() -> None:
    async with station() as a, station() as b:
        channel = await b.reach(a)
        await carries(b, channel, a, b"before")
        with raw_client(a.ip) as sock:
            sock.sendall(zmtp(b"hello"))
            await a.seen.until("frame", 2)
            frame = zmtp(bytes(2 * MIB - 100))
            await asyncio.to_thread(sock.sendall, frame[:-1])
            for number in range(20):
                await carries(b, channel, a, str(number).encode())
                await asyncio.sleep(0.01)
            sock.sendall(frame[-1:])
            await a.seen.until("frame", 23)
        assert a.seen.all("broke") == []


@linux
async def test_a_connection_to_an_address_that_is_refused_ends_before_it_is_heard() -> None:
    refused_ip = free_ip()

    def refuse(ip: str) -> str | None:
        return f"it came to {ip}" if ip == refused_ip else None

    async with station() as a, station(refused_ip, refuse=refuse) as b:
        channel = a.dial(b.ip, b.port)
        _, why = await b.seen.until("refused")
        assert why == f"it came to {refused_ip}"
        lost, _ = await a.seen.until("lost")
        assert lost == channel
        assert b.seen.frames == []
        back = await b.reach(a)
        await carries(b, back, a, b"what it dials itself goes on")


@linux
async def test_a_peer_whose_message_has_no_end_is_reported_by_its_source() -> None:
    async with station(unread_bytes=MIB, window_bytes=64 * 1024) as a:
        with raw_client(a.ip) as peer:
            peer.sendall(zmtp(b"hello"))
            source, _ = await a.seen.until("met")
            await sends_until_it_is_ended(peer, zmtp(bytes(1_000), more=True), 4_000 * MIB)
        said, why = await a.seen.until("broke")
        assert (said, "unread" in why) == (source, True)
        assert await a.seen.until("gone") == (source,)
        assert a.seen.frames == [b"hello"]


@linux
@pytest.mark.parametrize("cookie", [None, COOKIE])
async def test_what_was_read_is_counted_to_the_byte(cookie: str | None) -> None:
    async with station(cookie=cookie, node_timeout_s=60.0) as a, station(cookie=cookie) as b:
        channel = await a.reach(b)
        sizes = [0, 1, 221, 222, 223, 254, 255, 256, 257, 70_000]

        async def uncounted() -> int:
            await asyncio.sleep(0.05)
            (known,) = router_of(b)._sources.values()
            received = count_received(known.fd)
            assert received is not None
            assert count_waiting(known.fd) == 0
            return received - int(known.read_bytes)

        await carries(a, channel, b, b"first")
        handshake = await uncounted()
        for size in sizes:
            await carries(a, channel, b, bytes(size))
        assert await uncounted() == handshake < 1_000


@linux
async def test_a_loop_that_stands_still_ends_nobody_who_keeps_to_the_windows() -> None:
    async with station(stranger_s=1.5) as a, station() as b:
        channel = await b.reach(a)
        await carries(b, channel, a, b"before")
        with raw_client(a.ip) as slow:
            await asyncio.sleep(0.1)
            for _ in range(64):
                b.send(channel, bytes(256 * 1024))
            time.sleep(2.0)  # both loops stand still, and libzmq's threads go on
            slow.sendall(zmtp(b"late through no fault of mine"))
            await a.seen.until("frame", 66)
        assert a.seen.all("broke") == []
        await carries(b, channel, a, b"after")


ROUTER_READY = b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06ROUTER\x08Identity\0\0\0\x00"


@contextlib.contextmanager
def raw_listener(ip: str) -> Iterator[socket.socket]:
    """Something that a node dials, and that answers as a ROUTER does."""
    with socket.create_server((ip, PORT)) as server:
        server.settimeout(10)
        yield server


async def shakes_hands(server: socket.socket) -> socket.socket:
    def accept() -> socket.socket:
        sock, _ = server.accept()
        sock.settimeout(10)
        sock.sendall(GREETING + ROUTER_READY)
        came = b""
        while b"READY" not in came:
            came += sock.recv(4_096)
        return sock

    return await asyncio.to_thread(accept)


@linux
@pytest.mark.parametrize("more", [False, True])
async def test_what_a_dialled_node_sends_back_is_bounded(more: bool) -> None:
    """It may be hostile too: DNS or a peer has named it."""
    ip = free_ip()
    with raw_listener(ip) as server:
        async with station() as a, station() as b:
            good = await a.reach(b)
            bad = a.dial(ip, PORT)
            with await shakes_hands(server) as hostile:
                await a.seen.until("opened", 2)
                part = zmtp(bytes(1_000), more=True) if more else b"\x04\x07\x04PING\0\0" * 100
                sent = await sends_until_it_is_ended(hostile, part, 1_000 * MIB)
                assert sent < 1_000 * MIB
            lost, reason = await a.seen.until("lost")
            assert lost == bad
            assert "it sends back more than answers and heartbeats" in reason
            assert bad in a.seen.foreign
            await carries(a, good, b, b"after")


@linux
async def test_heartbeats_of_a_dialled_node_are_not_too_much() -> None:
    async with station(node_timeout_s=2.0) as a, station(node_timeout_s=2.0) as b:
        channel = await a.reach(b)
        dealer = a.transport._channels[channel]
        await carries(a, channel, b, b"before")
        await asyncio.sleep(1.5)
        assert a.seen.all("lost") == []
        await carries(a, channel, b, b"after some heartbeats")
        assert dealer._heartbeats.allowed_bytes > MOST_HEARD_BYTES - HEARTBEAT_BYTES


# ── time and counts ──────────────────────────────────────────────────────────────────────────────


@linux
async def test_peers_alone_are_looked_at_less_often_until_a_stranger_comes() -> None:
    async with station(stranger_s=30.0) as a, station() as b:
        channel = await b.reach(a)
        await carries(b, channel, a, b"a peer")
        sweeps = a.transport.watcher
        assert sweeps is not None
        async with asyncio.timeout(allowed_s(5)):
            while not sweeps.is_quiet:
                await asyncio.sleep(0.01)
            with socket.create_connection((a.ip, PORT), 10):
                while sweeps.is_quiet:
                    await asyncio.sleep(0.01)
            while not sweeps.is_quiet:
                await asyncio.sleep(0.01)


@linux
async def test_a_quiet_peer_that_floods_is_looked_at_after_one_pause() -> None:
    """Nothing is due while it is quiet, and its first bytes make a sweep due."""
    async with station() as a:
        with raw_client(a.ip) as peer:
            peer.sendall(zmtp(b"hello"))
            await a.seen.until("frame")
            sweeps = a.transport.watcher
            assert sweeps is not None
            async with asyncio.timeout(allowed_s(5)):
                while not sweeps.is_quiet:
                    await asyncio.sleep(0.01)
            peer.sendall(zmtp(b"x", more=True))
            async with asyncio.timeout(allowed_s(5)):
                while sweeps.is_quiet:
                    await asyncio.sleep(0)
                while not sweeps.is_quiet:
                    await asyncio.sleep(0.01)
            assert [known.unread_bytes for known in router_of(a)._sources.values()] == [
                count - known.read_bytes
                for known in router_of(a)._sources.values()
                if (count := count_received(known.fd)) is not None
            ]


@pytest.mark.parametrize("said", [b"", GREETING[:20], GREETING + READY, GREETING + READY + zmtp(b"hello")])
async def test_a_connection_that_becomes_no_peers_is_ended(said: bytes) -> None:
    async with station(stranger_s=0.3, connect_timeout_s=30.0) as a, station() as b:
        a.seen.admit = lambda source: None
        channel = await b.reach(a)
        await carries(b, channel, a, b"a peer")
        (source, _) = a.seen.all("met")[0]
        a.transport.admit(source)
        with socket.create_connection((a.ip, PORT), 10) as stranger:
            begun = time.monotonic()
            stranger.sendall(said[: len(GREETING + READY)])
            await asyncio.sleep(0.1)  # ZeroMQ takes no frame before it has sent its own READY.
            stranger.sendall(said[len(GREETING + READY) :])
            await ends(stranger)
            assert 0.2 < time.monotonic() - begun < allowed_s(1.5)
        _, why = await a.seen.until("broke" if b"hello" in said else "refused")
        assert "did not become a node's connection within 0.3 s" in why
        await carries(b, channel, a, b"still a peer")


async def test_silent_connections_leave_room_for_a_newcomer(caplog: pytest.LogCaptureFixture) -> None:
    async with station(max_strangers=64, stranger_s=30.0) as a, station() as b:
        before = descriptors()
        held = []
        for number in range(300):
            sock = socket.socket()
            sock.bind((f"127.99.0.{1 + number % 100}", 0))
            sock.connect((a.ip, PORT))
            held.append(sock)
            if number % 10 == 9:
                await asyncio.sleep(0.01)
        await settles(before + 300 + 64)
        channel = await b.reach(a)
        await carries(b, channel, a, b"a newcomer")
        for sock in held:
            sock.close()
    said = [record.getMessage() for record in caplog.records if "too many connections" in record.getMessage()]
    assert len(said) == 1
    assert "at most 64 at a time, and 16 from one address (Settings.max_strangers)" in said[0]


async def test_one_address_has_a_quarter_of_the_places() -> None:
    async with station(max_strangers=16) as a:
        held = [socket.create_connection((a.ip, PORT)) for _ in range(4)]
        await asyncio.sleep(0.1)
        with socket.create_connection((a.ip, PORT)) as fifth:
            await ends(fifth, allowed_s(1.0))  # ZeroMQ itself ends it after 3 s.
        for sock in held:
            sock.setblocking(False)
            sock.send(GREETING)
            await asyncio.sleep(0.05)
            assert sock.recv(64)
            sock.close()


@pytest.mark.parametrize("cookie", [None, COOKIE])
@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\r\n\r\n", GREETING[:30], GREETING + READY, CURVE_GREETING]
)
async def test_connections_that_close_early_leave_no_descriptor(cookie: str | None, said: bytes) -> None:
    await close_early(cookie, said, count=60)


async def close_early(cookie: str | None, said: bytes, count: int) -> None:
    """Connect and close so many times; nothing of it may be left."""
    async with station(cookie=cookie) as a:
        await asyncio.sleep(0.05)
        before = descriptors()

        def knock() -> None:
            for number in range(count):
                with socket.socket() as sock:
                    if number % 3 == 0:  # Closing sends a reset.
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.bind((f"127.96.{number // 250 % 250}.{1 + number % 250}", 0))
                    sock.connect((a.ip, PORT))
                    with contextlib.suppress(ConnectionError):
                        sock.sendall(said)

        await asyncio.to_thread(knock)
        deadline = time.monotonic() + 10
        while router_of(a)._accepted and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert router_of(a)._accepted == {}
        assert router_of(a)._bounds.strangers == 0
        await settles(before)


# ── ending a source ──────────────────────────────────────────────────────────────────────────────


async def test_a_source_that_is_disconnected_is_gone_and_says_nothing_more() -> None:
    async with station() as a, station() as b, station() as c:
        bad, good = await b.reach(a), await c.reach(a)
        await carries(b, bad, a, b"hello")
        await carries(c, good, a, b"hello")
        source = a.seen.all("met")[0][0]
        a.transport.disconnect(source)
        for _ in range(100):
            b.send(bad, b"more")
        assert (await b.seen.until("lost"))[0] == bad
        assert await a.seen.until("gone") == (source,)
        await carries(c, good, a, b"still here")
        assert b"more" not in a.seen.frames
        a.transport.disconnect(source)
        a.transport.disconnect(b"nobody")
        a.transport.admit(b"nobody")
        assert a.seen.all("broke") == []


async def test_a_source_has_time_to_hang_up_and_is_not_heard_meanwhile() -> None:
    async with station() as a, station() as b, station() as c:
        stays, leaves = await b.reach(a), await c.reach(a)
        await carries(b, stays, a, b"hello")
        await carries(c, leaves, a, b"hello")
        sources = [source for source, _ in a.seen.all("met")]
        for source in sources:
            a.transport.disconnect(source, 0.4)
        begun = time.monotonic()
        b.send(stays, b"more")
        c.transport.hang_up(leaves)
        assert await a.seen.until("gone") == (sources[1],)
        assert (await b.seen.until("lost"))[0] == stays
        assert time.monotonic() - begun > 0.3
        assert c.seen.all("lost") == []
        assert a.seen.frames == [b"hello", b"hello"]


async def test_a_stranger_that_floods_is_ended() -> None:
    async with station() as a, station() as b:
        channel = await b.reach(a)
        await carries(b, channel, a, b"before")
        a.seen.admit = lambda source: None
        with raw_client(a.ip) as stranger:
            await sends_until_it_is_ended(stranger, zmtp(b"tiny") * 1_000, 4_000 * MIB)
        _, why = await a.seen.until("broke")
        assert why == "it sent more than 32 frames, and is not connected as a node"
        assert len(a.seen.frames) <= 1 + STRANGER_FRAMES
        await carries(b, channel, a, b"after")


@linux
async def test_who_sends_faster_than_it_is_read_waits_until_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """libzmq keeps what an ended connection has sent, so another one would add to it."""
    monkeypatch.setattr("fleetlm.transport.leftovers.MOST_LEFT_BYTES", 2_000)
    monkeypatch.setattr("fleetlm.transport.leftovers.FEW_LEFT_BYTES", 500)
    async with station() as a, station() as b:
        channel = await b.reach(a)
        await carries(b, channel, a, b"before")
        a.seen.admit = lambda source: None
        turned_away: list[frozenset[str]] = []
        router_of(a).turn_away_with(turned_away.append)
        with raw_client(a.ip) as stranger:
            stranger.sendall(zmtp(b"") * 10_000)
            await a.seen.until("broke")
        await carries(b, channel, a, b"after")
        async with asyncio.timeout(allowed_s(5)):
            while turned_away != [{"127.0.0.1"}, set()]:
                await asyncio.sleep(0.01)


@linux
async def test_half_a_frame_that_is_never_read_turns_its_sender_away_only_until_the_next_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fleetlm.transport.leftovers.MOST_LEFT_BYTES", 2_000)
    async with station() as a, station() as b:
        channel = await b.reach(a)
        await carries(b, channel, a, b"before")
        a.seen.admit = lambda source: None
        turned_away: list[frozenset[str]] = []
        router_of(a).turn_away_with(turned_away.append)
        with raw_client(a.ip) as stranger:
            stranger.sendall(zmtp(b"hello"))
            source, _ = (await a.seen.until("met", 2))[:2]
            stranger.sendall(zmtp(bytes(50_000))[:30_000])
            (known,) = [each for each in router_of(a)._accepted.values() if not each.is_peer]
            async with asyncio.timeout(allowed_s(5)):
                while (count_received(known.fd) or 0) < 30_000 or count_waiting(known.fd):
                    await asyncio.sleep(0.01)
            a.transport.disconnect(source)
            assert turned_away == [{"127.0.0.1"}]
            await carries(b, channel, a, b"after")
        async with asyncio.timeout(allowed_s(5)):
            while turned_away != [{"127.0.0.1"}, set()]:
                await asyncio.sleep(0.01)


@linux
async def test_what_a_peer_leaves_turns_nobody_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetlm.transport.leftovers.MOST_LEFT_BYTES", 0)
    async with station() as a:
        turned_away: list[frozenset[str]] = []
        router_of(a).turn_away_with(turned_away.append)
        with raw_client(a.ip) as peer:
            peer.sendall(zmtp(b"hello"))
            source, _ = await a.seen.until("met")
            peer.sendall(zmtp(b"x") * 10_000)
            await a.seen.until("frame", 2)
            a.transport.disconnect(source)
            await a.seen.until("gone")
        assert turned_away == []


async def test_a_second_part_ends_the_connection() -> None:
    async with station() as a:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with context.socket(zmq.DEALER) as dealer:
            dealer.linger, dealer.reconnect_ivl = 0, -1
            dealer.connect(f"tcp://{a.ip}:{PORT}")
            dealer.send(b"one")
            source, _ = await a.seen.until("met")
            dealer.send_multipart([b"two", b"parts"])
            assert await a.seen.until("broke") == (source, MORE_PARTS)
            assert await a.seen.until("gone") == (source,)
        context.term()


CHUNK = bytes((Kind.CHUNK,))


async def test_a_chunk_of_a_peer_may_have_a_tail_and_all_of_it_is_counted() -> None:
    async with station() as a, station() as b:
        channel = await b.reach(a)
        await b.introduce(channel, a)
        sizes = (1, 300, ZERO_COPY_BYTES, 10 * ZERO_COPY_BYTES)
        for size in sizes:
            assert b.send(channel, CHUNK + b"head", memoryview(bytes(size)))
        await a.seen.until("frame", 4)
        frames = [b"".join(parts) for _, *parts in a.seen.all("frame")]
        assert frames == [CHUNK + b"head" + bytes(size) for size in sizes]
        assert [len(fact) for fact in a.seen.all("frame")] == [2, 2, 3, 3], "what is large is lent"
        router = a.transport._router
        assert router is not None
        (known,) = [each for each in router._accepted.values() if each.source is not None]
        received = count_received(known.fd)
        assert received is not None
        assert 0 <= received - known.read_bytes < 1_000, "only the handshake is not counted"


@pytest.mark.parametrize("parts", [[b"\x03", b"two"], [CHUNK, b"two", b"three"], [CHUNK, b"", b"", b"four"]])
async def test_other_parts_of_a_peer_end_its_connection(parts: list[bytes]) -> None:
    async with station() as a:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with context.socket(zmq.DEALER) as dealer:
            dealer.linger, dealer.reconnect_ivl = 0, -1
            dealer.connect(f"tcp://{a.ip}:{PORT}")
            dealer.send(b"one")
            source, _ = await a.seen.until("met")
            dealer.send_multipart(parts)
            assert await a.seen.until("broke") == (source, MORE_PARTS)
            assert await a.seen.until("gone") == (source,)
            assert len(a.seen.all("frame")) == 1
        context.term()


# ── descriptors that are not what they were ──────────────────────────────────────────────────────


def test_another_connection_with_the_same_descriptor_is_not_ended() -> None:
    copies = Copies()
    with socket.create_server((free_ip(), 0)) as server:
        first = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        fd = accepted.fileno()
        identity = copies.identify(fd)
        assert identity is not None
        assert (identity.ip, identity.port) == ("127.0.0.1", first.getsockname()[1])
        second = socket.create_connection(server.getsockname())
        other, _ = server.accept()
        os.dup2(other.fileno(), fd)
        assert copies.shut_down(fd, identity) is None
        other.send(b"alive")
        assert second.recv(5) == b"alive"
        now = copies.identify(fd)
        assert now is not None
        assert copies.shut_down(fd, now) == 0
        assert second.recv(5) == b""
        for sock in (first, accepted, second, other):
            sock.close()
        assert copies.shut_down(fd, now) is None
    copies.close()
    copies.close()


@linux
def test_what_nobody_has_read_is_thrown_away_when_a_connection_is_ended() -> None:
    copies = Copies()
    with (
        socket.create_server((free_ip(), 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0] as accepted,
    ):
        client.sendall(bytes(50_000))
        assert len(accepted.recv(10_000, socket.MSG_WAITALL)) == 10_000
        while count_waiting(accepted.fileno()) != 40_000:
            time.sleep(0.001)
        identity = copies.identify(accepted.fileno())
        assert identity is not None
        assert copies.shut_down(accepted.fileno(), identity) == 10_000
        assert accepted.recv(1) == b""
    copies.close()


@linux
def test_a_socket_of_another_family_is_not_identified() -> None:
    """A descriptor that libzmq has closed may be that of the socket which lists the interfaces by now."""
    copies = Copies()
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink, ours, theirs:
        netlink.bind((0, 0))
        assert copies.identify(netlink.fileno()) is None
        assert copies.identify(ours.fileno()) is None
    copies.close()


def test_what_is_no_connection_is_not_identified_and_leaves_no_descriptor() -> None:
    copies = Copies()
    reader, writer = os.pipe()
    before = descriptors()
    with socket.create_server((free_ip(), 0)) as server:
        for fd in (reader, writer, server.fileno(), 999_999, -1):
            assert copies.identify(fd) is None
            assert count_received(fd) in (None, 0)
        copy = copy_of(server.fileno())
        assert copy is not None
        copy.close()
    assert copy_of(reader) is None
    assert copy_of(999_999) is None
    assert count_waiting(999_999) is None
    assert descriptors() == before
    copies.close()
    assert descriptors() == before - 2
    os.close(reader)
    os.close(writer)
