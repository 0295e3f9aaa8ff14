"""Local roads between transports of one host: the agreement, what a stranger can do, and how a road ends.

What both roads promise is tested on both of them in test_zeromq.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fleetlm import Node, Process, Settings
from fleetlm.transport import local_roads, tick_board
from fleetlm.transport.dealer import DealerChannel
from fleetlm.transport.descriptors import Descriptors
from fleetlm.transport.local_frames import HEAD, FrameReader
from fleetlm.transport.zeromq import RECHECK_S, RECHECKS_ON_ROADS
from tests.support.transport_rig import MOVED, Station, both_loops, descriptors, free_ip, station

TICKET = bytes(range(16))
LARGE = 300_000
"""More than the kernel keeps for one socket."""


def address_of(b: Station) -> str:
    return local_roads._address(b.transport.road)


@contextmanager
def caller(b: Station, ticket: bytes = b"") -> Iterator[socket.socket]:
    """Somebody of this host who connects to the listener of a station, and shows a ticket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address_of(b))
        sock.setblocking(False)
        if ticket:
            sock.send(ticket)
        yield sock


async def ended(sock: socket.socket, patience_s: float = 5.0) -> bool:
    """Whether the other end closes a socket, without a word."""
    loop = asyncio.get_running_loop()
    try:
        return await asyncio.wait_for(loop.sock_recv(sock, 1), patience_s) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


# ── the agreement ────────────────────────────────────────────────────────────────────────────────


@both_loops
async def test_no_frame_is_lost_doubled_or_reordered_by_the_change() -> None:
    async with station() as a, station() as b:
        channel = a.dial(b.ip, b.port)
        await a.seen.until("opened")
        await a.agree(channel, b)
        sent = [b"%d" % number + bytes(number % 7 * 20_000) for number in range(300)]
        for frame in sent[:150]:
            assert a.send(channel, frame)
        assert a.send(channel, MOVED)
        a.transport.take_road(channel)
        for frame in sent[150:]:
            assert a.send(channel, frame)
        await b.seen.until("frame", len(sent))
        assert b.seen.frames == sent
        assert {source for source, _ in b.seen.all("frame")} == {b.seen.all("met")[0][0]}


async def test_nothing_is_read_on_the_local_road_before_the_change_was_announced() -> None:
    async with station() as a, station() as b:
        channel = a.dial(b.ip, b.port)
        await a.seen.until("opened")
        source = await a.agree(channel, b)
        a.transport.take_road(channel)
        assert a.send(channel, b"too early")
        await asyncio.sleep(0.1)
        assert b.seen.frames == []
        assert b.transport.follow_road(source)
        await b.seen.until("frame")


async def test_large_frames_and_many_small_ones_pass_a_receiver_that_reads_late() -> None:
    async with station() as a, station() as b:
        channel = a.dial(b.ip, b.port)
        await a.seen.until("opened")
        source = await a.agree(channel, b)
        a.transport.take_road(channel)
        sent = [os.urandom(LARGE), b"", *(b"%d" % n for n in range(5_000)), os.urandom(LARGE), b"last"]
        for frame in sent:
            assert a.send(channel, frame)
        assert a.transport._roads.is_behind(channel)
        b.transport.follow_road(source)
        await b.seen.until("frame", len(sent), 10)
        assert b.seen.frames == sent
        assert not a.transport._roads.is_behind(channel)


async def test_a_frame_of_two_parts_arrives_as_one() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        await a.move(channel, b)
        tail = os.urandom(LARGE)
        for size in (0, 1, 1_000, LARGE):
            assert a.send(channel, b"head", memoryview(tail)[:size])
        await b.seen.until("frame", 4)
        assert b.seen.frames == [b"head" + tail[:size] for size in (0, 1, 1_000, LARGE)]


async def test_what_waits_at_the_sender_still_leaves_after_a_hang_up() -> None:
    async with station() as a, station() as b:
        channel = a.dial(b.ip, b.port)
        await a.seen.until("opened")
        await a.move(channel, b)
        sent = [os.urandom(LARGE) for _ in range(10)]
        for frame in sent:
            assert a.send(channel, frame)
        a.transport.hang_up(channel, 5.0)
        await b.seen.until("gone")
        assert b.seen.frames == sent
        assert a.seen.all("lost") == []
        assert a.transport._flushing == {}


async def test_a_peer_that_does_not_read_gets_no_more_than_the_flush_time() -> None:
    async with station() as a, station() as b:
        channel = a.dial(b.ip, b.port)
        await a.seen.until("opened")
        await a.agree(channel, b)
        a.transport.take_road(channel)
        for _ in range(10):
            a.send(channel, bytes(LARGE))
        a.transport.hang_up(channel, 0.2)
        await b.seen.until("gone")
        assert b.seen.frames == []
        assert a.transport._flushing == {}


async def test_a_ticket_may_come_before_it_is_expected() -> None:
    """One of the two nodes is up before the other one."""
    async with station() as a, station() as b:
        channel = await a.reach(b)
        a.transport.open_road(channel, b.transport.road, TICKET)
        source = await a.introduce(channel, b)
        while not any(each.ticket for each in b.transport._roads._arrivals):
            await asyncio.sleep(0.001)
        b.transport.expect_road(source, TICKET)
        await a.seen.until("road")


# ── where there is none ──────────────────────────────────────────────────────────────────────────


async def test_a_number_of_another_host_leads_nowhere_and_nothing_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with station() as a, station() as b:
        channel = await a.reach(b)
        source = await a.introduce(channel, b)
        b.transport.expect_road(source, TICKET)
        a.transport.open_road(channel, 12345, TICKET)
        assert a.transport._roads._requests == {}
        assert a.send(channel, b"as before")
        await b.seen.until("frame")
        assert a.seen.all("road") == []
        assert "local road" not in caplog.text


async def test_a_node_that_is_told_so_has_no_local_road() -> None:
    async with station(local_road=False) as a, station() as b:
        assert a.transport.road == 0
        channel = await a.reach(b)
        a.transport.open_road(channel, b.transport.road, TICKET)
        assert a.transport._roads._requests == {}
        source = await a.introduce(channel, b)
        assert not b.transport.follow_road(source)


async def test_a_listener_of_another_user_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        monkeypatch.setattr(os, "geteuid", lambda: 4_711)
        a.transport.open_road(channel, b.transport.road, TICKET)
        assert a.transport._roads._requests == {}


async def test_a_machine_without_unix_sockets_has_no_local_road(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_number: int) -> str:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(local_roads, "_address", refuse)
    before = descriptors()
    roads = local_roads.LocalRoads(Settings(), Descriptors())
    roads.bind()
    assert (roads.number, descriptors()) == (0, before)


async def test_without_spare_descriptors_both_nodes_keep_to_zeromq(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_count: int) -> None:
        raise OSError(errno.EMFILE, "fewer are free")

    async with station() as a, station() as b:
        channel = await a.reach(b)
        monkeypatch.setattr(a.transport._descriptors, "take", none)
        a.transport.open_road(channel, b.transport.road, TICKET)
        assert a.transport._roads._requests == {}
        with caller(a, TICKET) as sock:
            assert await ended(sock)


async def test_accepting_pauses_when_no_descriptor_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted:
        def __init__(self, sock: socket.socket) -> None:
            self.sock, self.asked = sock, 0

        def accept(self) -> None:
            self.asked += 1
            raise OSError(errno.EMFILE, "Too many open files")

        def fileno(self) -> int:
            return self.sock.fileno()

        def close(self) -> None:
            self.sock.close()

    async with station() as a:
        roads = a.transport._roads
        assert roads._listening is not None
        exhausted = Exhausted(roads._listening)
        monkeypatch.setattr(roads, "_listening", exhausted)
        with caller(a, TICKET):
            await asyncio.sleep(0.1)
            assert exhausted.asked == 1, "it does not ask again and again"
            roads.recheck(asyncio.get_running_loop().time())
            await asyncio.sleep(0.05)
            assert exhausted.asked == 2


async def test_a_dealer_whose_frames_travel_on_a_road_is_looked_at_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with station() as a, station() as b:
        on_zmq, on_road = [await a.reach(b) for _ in range(2)]
        await a.move(on_road, b)
        looks: list[int] = []
        monkeypatch.setattr(DealerChannel, "recheck", lambda channel, _now: looks.append(channel.number))
        for moment in range(RECHECKS_ON_ROADS):
            a.transport._recheck_channels(100.0 + moment * RECHECK_S)
        assert looks.count(on_zmq) == RECHECKS_ON_ROADS
        assert looks.count(on_road) == 1


@contextmanager
def sweeps_of(a: Station, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """When the sweeps of a station took place."""
    watcher = a.transport.watcher
    assert watcher is not None
    swept: list[float] = []
    sweep = watcher._sweep

    def note() -> None:
        swept.append(asyncio.get_running_loop().time())
        sweep()

    monkeypatch.setattr(watcher, "_sweep", note)
    yield swept
    monkeypatch.setattr(watcher, "_sweep", sweep)


async def until_quiet(a: Station) -> None:
    async with asyncio.timeout(5):
        while a.transport.watcher is None or not a.transport.watcher.is_quiet:
            await asyncio.sleep(0.01)


async def test_heartbeats_beside_a_local_road_wake_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both halves of the connection have moved; on the network the heartbeats make sweeps due."""
    async with station(node_timeout_s=0.8) as a, station(node_timeout_s=0.8) as b:
        there, back = await a.reach(b), await b.reach(a)
        await b.introduce(back, a)  # It is no stranger any more.
        counts = []
        for is_moved in (False, True):
            if is_moved:
                await a.move(there, b)
                await b.move(back, a)
            await until_quiet(a)
            await asyncio.sleep(0.1)
            await until_quiet(a)
            with sweeps_of(a, monkeypatch) as swept:
                await asyncio.sleep(0.7)
            counts.append(len(swept))
        assert counts[0] >= 2
        assert counts[1] == 0
        assert a.send(there, b"still there")
        await b.seen.until("frame")


async def test_a_peer_that_sends_beside_its_local_road_is_ended_with_the_next_recheck() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        source = await a.move(channel, b)
        await until_quiet(b)
        dealer = a.transport._channels[channel]
        assert dealer.send(bytes(40_000))
        await b.seen.until("frame")
        assert b.transport._router is not None
        b.transport._router.recheck()
        assert b.seen.all("broke") == []
        assert dealer.send(bytes(40_000))
        gone, why = await b.seen.until("broke")
        assert gone == source
        assert why == "it sends more than heartbeats beside its local road, as no fleetlm node does"


async def test_what_a_dialled_node_sends_back_beside_the_local_road_is_bounded_too() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        source = await a.move(channel, b)
        await until_quiet(a)
        assert b.transport._router is not None
        b.transport._router._sock.send_multipart([source, bytes(20_000_000)])  # type: ignore[union-attr]
        lost, why = await a.seen.until("lost")
        assert lost == channel
        assert "sends back more than answers and heartbeats" in why or "the connection ended" in why


# ── ticks without frames ─────────────────────────────────────────────────────────────────────────


async def test_neighbours_see_each_others_ticks_once_the_road_is_used() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        source = await a.agree(channel, b)
        a.transport.note_tick(5.0, 1)
        assert not a.transport.shows_ticks(channel), "its frames do not travel there yet"
        assert b.transport.read_tick(source) is None, "nor are they read"
        assert a.send(channel, MOVED)
        a.transport.take_road(channel)
        await followed(b, source)
        assert a.transport.shows_ticks(channel)
        assert b.transport.read_tick(source) == (5.0, 1)
        assert b.transport.read_tick(source) is None
        a.transport.note_tick(6.0, 0)
        assert b.transport.read_tick(source) == (6.0, 0)
        a.transport.hang_up(channel)
        assert not a.transport.shows_ticks(channel)
        await b.seen.until("gone")
        assert b.transport.read_tick(source) is None
        assert b.transport._roads._boards == {}


@pytest.mark.parametrize("older", ["the dialler", "the listener"])
async def test_a_node_that_has_no_board_or_knows_none_gets_frames(
    older: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with station() as a, station() as b:
        if older == "the dialler":
            monkeypatch.setattr(a.transport._roads, "_own_board", None)
        else:
            monkeypatch.setattr(tick_board, "take", os.close)
        channel = await a.reach(b)
        source = await a.move(channel, b)
        await followed(b, source)
        a.transport.note_tick(5.0, 1)
        assert not a.transport.shows_ticks(channel)
        assert b.transport.read_tick(source) is None
        assert a.send(channel, b"a tick")
        await b.seen.until("frame")


async def test_a_machine_without_such_memory_has_local_roads_without_boards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", missing)
    async with station() as a, station() as b:
        channel = await a.reach(b)
        await a.move(channel, b)
        a.transport.note_tick(5.0, 1)
        assert not a.transport.shows_ticks(channel)


async def test_boards_of_those_who_are_not_let_in_are_closed() -> None:
    async with station() as b:
        before = descriptors()
        pipe = os.pipe()
        board = tick_board.OwnBoard()
        for fd, shown in ((pipe[0], TICKET), (board.fd, TICKET), (board.fd, b"short")):
            with caller(b) as sock:
                socket.send_fds(sock, [shown], [fd, fd])
                if shown == TICKET:
                    socket.send_fds(sock, [b"more"], [fd])
                assert await ended(sock)
        board.close()
        for fd in pipe:
            os.close(fd)
        async with asyncio.timeout(5):
            while descriptors() > before:
                await asyncio.sleep(0.01)


async def test_without_spare_descriptors_a_board_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    async with station() as a, station() as b:
        take = b.transport._descriptors.take
        free = [1]

        def take_one(count: int) -> None:
            if not free:
                raise OSError(errno.EMFILE, "")
            free.pop()
            take(count)

        channel = await a.reach(b)
        source, ticket = await a.introduce(channel, b), os.urandom(16)
        monkeypatch.setattr(b.transport._descriptors, "take", take_one)
        b.transport.expect_road(source, ticket)
        a.transport.open_road(channel, b.transport.road, ticket)
        assert await a.seen.until("road") == (channel,)
        assert b.transport._roads._boards == {}
        assert not a.transport._roads._seen


# ── strangers of this host ───────────────────────────────────────────────────────────────────────


async def test_another_user_is_disconnected_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with station() as b:
        monkeypatch.setattr(os, "geteuid", lambda: 4_711)
        with caller(b) as sock:
            assert await ended(sock)


@pytest.mark.parametrize("shown", [b"x", TICKET + b"x", bytes(1_000)])
async def test_what_is_no_ticket_ends_the_connection(shown: bytes) -> None:
    async with station() as b:
        with caller(b, shown) as sock:
            assert await ended(sock)


async def test_a_wrong_ticket_and_none_at_all_end_after_a_time() -> None:
    async with station(stranger_s=0.1) as b:
        with caller(b, TICKET) as wrong, caller(b) as silent:
            assert await ended(wrong)
            assert await ended(silent)
        assert b.transport._roads._arrivals == {}


async def test_a_ticket_that_nobody_awaits_goes_when_its_connection_has_ended() -> None:
    async with station(stranger_s=60.0) as b:
        with caller(b, TICKET):
            while not any(each.ticket for each in b.transport._roads._arrivals):
                await asyncio.sleep(0.005)
        while b.transport._roads._arrivals:
            await asyncio.sleep(0.005)


async def test_a_request_without_an_answer_is_given_up() -> None:
    async with station(stranger_s=0.1) as a, station() as b:
        channel = await a.reach(b)
        a.transport.open_road(channel, b.transport.road, TICKET)
        roads = a.transport._roads
        assert list(roads._requests) == [channel]
        roads.recheck(asyncio.get_running_loop().time() + 1)
        assert roads._requests == {}


async def test_roads_beyond_the_first_ones_are_opened_one_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local_roads, "OPENED_AT_ONCE", 2)
    monkeypatch.setattr(local_roads, "OPENED_A_SECOND", 1_000)
    loop = asyncio.get_running_loop()
    async with station() as a, station() as b:
        channels = [await a.reach(b) for _ in range(4)]
        roads = a.transport._roads
        with monkeypatch.context() as still:
            now = loop.time()
            still.setattr(loop, "time", lambda: now)
            for channel in channels:
                a.transport.open_road(channel, b.transport.road, TICKET)
            assert (list(roads._requests), list(roads._waiting)) == (channels[:2], channels[2:])
            roads.hang_up(channels[2])
            assert list(roads._waiting) == channels[3:]
        async with asyncio.timeout(5):
            while list(roads._requests) != [*channels[:2], channels[3]]:
                await asyncio.sleep(0.005)
        assert roads._waiting == {}


async def test_a_transport_may_close_while_roads_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_roads, "OPENED_AT_ONCE", 1)
    monkeypatch.setattr(local_roads, "OPENED_A_SECOND", 0.001)
    async with station() as a, station() as b:
        for channel in [await a.reach(b), await a.reach(b)]:
            a.transport.open_road(channel, b.transport.road, TICKET)
        roads = a.transport._roads
        assert len(roads._waiting) == 1
    assert roads._waiting == {}
    assert roads._next_turn is not None
    assert roads._next_turn.cancelled()


async def test_a_ticket_is_good_for_one_connection() -> None:
    async with station() as a, station(stranger_s=0.1) as b:
        channel = await a.reach(b)
        source = await a.introduce(channel, b)
        b.transport.expect_road(source, TICKET)
        with caller(b, TICKET) as first, caller(b, TICKET) as second:
            loop = asyncio.get_running_loop()
            assert await asyncio.wait_for(loop.sock_recv(first, 2), 5) == b"\x01"
            assert await ended(second)


async def test_of_many_strangers_only_some_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_roads, "MAX_WAITING", 3)
    async with station() as b:
        socks = []
        for _ in range(20):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(address_of(b))
            socks.append(sock)
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert len(b.transport._roads._arrivals) == 3
        for sock in socks:
            sock.close()


# ── a peer that breaks the rules ─────────────────────────────────────────────────────────────────


@contextmanager
def half(b: Station, source: bytes) -> Iterator[socket.socket]:
    """A peer that was let in, in the place of its source."""
    b.transport.expect_road(source, TICKET)
    with caller(b, TICKET) as sock:
        yield sock


async def followed(b: Station, source: bytes) -> None:
    while not b.transport.follow_road(source):
        await asyncio.sleep(0.01)


async def test_a_frame_beyond_the_limit_ends_the_connection_before_it_has_come() -> None:
    async with station() as a, station(max_frame_bytes=10_000) as b:
        channel = await a.reach(b)
        source = await a.introduce(channel, b)
        with half(b, source) as sock:
            await followed(b, source)
            sock.send(HEAD.pack(10_000) + bytes(10_000) + HEAD.pack(2**32 - 1))
            why = "it announced a frame of 4,294,967,295 bytes, and 10,000 are the most"
            assert (await b.seen.until("broke")) == (source, why)
            await b.seen.until("gone")
            assert [len(frame) for frame in b.seen.frames] == [10_000]
        assert (await a.seen.until("lost"))[0] == channel


async def test_a_peer_whose_frame_was_too_long_has_the_time_to_read_why() -> None:
    """The reason is sent to it on the other half, and with an end at once it would be lost."""
    async with station() as a, station(max_frame_bytes=10_000, goodbye_flush_s=0.3) as b:
        channel = await a.reach(b)
        source = await a.move(channel, b)
        assert a.send(channel, bytes(10_001))
        assert a.send(channel, bytes(100_000))
        await b.seen.until("broke")
        assert a.seen.all("lost") == []
        await b.seen.until("gone")
        assert b.seen.when("gone") - b.seen.when("broke") > 0.25
        assert b.seen.all("gone") == [(source,)]
        assert len(b.seen.all("broke")) == 1, "it is said once, though there is more to read"
        assert source not in b.transport._roads._readers
        await a.seen.until("lost")


@pytest.mark.parametrize("bytes_sent", [0, 1, 3, 4, 5, 1_000])
async def test_a_road_that_ends_in_a_frame_ends_the_connection_without_it(bytes_sent: int) -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        source = await a.introduce(channel, b)
        with half(b, source) as sock:
            await followed(b, source)
            sock.send(HEAD.pack(5) + b"whole" + (HEAD.pack(2_000) + bytes(2_000))[:bytes_sent])
        assert await b.seen.until("gone") == (source,)
        assert b.seen.frames == [b"whole"]
        assert b.seen.all("broke") == []
        assert (await a.seen.until("lost"))[0] == channel


async def test_a_frame_in_many_pieces_arrives_whole() -> None:
    async with station() as a, station() as b:
        source = await a.introduce(await a.reach(b), b)
        with half(b, source) as sock:
            await followed(b, source)
            for byte in HEAD.pack(6) + b"pieces" + HEAD.pack(0) + HEAD.pack(4) + b"last":
                sock.send(bytes([byte]))
                await asyncio.sleep(0.001)
            await b.seen.until("frame", 3)
            assert b.seen.frames == [b"pieces", b"", b"last"]


async def test_frames_that_a_read_has_cut_do_not_slow_down_those_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[int] = []
    receive = FrameReader._receive

    def count(reader: FrameReader) -> int:
        reads.append(receive(reader))
        return reads[-1]

    monkeypatch.setattr(FrameReader, "_receive", count)
    async with station() as a, station() as b:
        source = await a.introduce(await a.reach(b), b)
        with half(b, source) as sock:
            await followed(b, source)
            frames = (HEAD.pack(2_000) + bytes(2_000)) * 1_000
            await asyncio.get_running_loop().sock_sendall(sock, frames)
            await b.seen.until("frame", 1_000)
    assert len(reads) < 500, "most frames were read one by one"


async def test_the_end_of_a_long_frame_is_received_in_its_place() -> None:
    place = bytearray(LARGE)
    asked: list[tuple[bytes, int]] = []

    def room(start: bytes, size_bytes: int) -> memoryview:
        asked.append((start[:4], size_bytes))
        return memoryview(place)

    async with station() as a, station() as b:
        b.seen.rooms = room
        source = await a.introduce(await a.reach(b), b)
        with half(b, source) as sock:
            await followed(b, source)
            content = os.urandom(LARGE)
            whole = (
                HEAD.pack(5) + b"small" + HEAD.pack(4 + LARGE) + b"head" + content + HEAD.pack(4) + b"next"
            )
            await asyncio.get_running_loop().sock_sendall(sock, whole)
            await b.seen.until("frame", 3)
        first, long, last = b.seen.all("frame")
        assert (first[1:], last[1:]) == ((b"small",), (b"next",))
        assert long[1:] == (b"head", content)
        assert place == content
        assert asked == [(b"head", 4 + LARGE)]


@pytest.mark.parametrize("came", [0, 1, 3, 10])
async def test_a_long_frame_without_a_place_arrives_in_one_part(came: int) -> None:
    asked: list[bytes] = []

    def room(start: bytes, _size_bytes: int) -> None:
        asked.append(start)

    async with station() as a, station() as b:
        b.seen.rooms = room
        source = await a.introduce(await a.reach(b), b)
        with half(b, source) as sock:
            await followed(b, source)
            content = os.urandom(1_000)
            sock.send(HEAD.pack(1_000) + content[:came])
            await asyncio.sleep(0.05)
            sock.send(content[came:])
            await b.seen.until("frame")
        assert b.seen.frames == [content]
        assert asked == ([content[:came]] if came else [])


async def test_many_frames_at_once_leave_the_loop_time_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetlm.transport.local_frames.MAX_READ_S", -1.0)
    async with station() as a, station() as b:
        source = await a.introduce(await a.reach(b), b)
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            asyncio.get_running_loop().call_soon(turn)

        with half(b, source) as sock:
            await followed(b, source)
            asyncio.get_running_loop().call_soon(turn)
            sock.send(b"".join(HEAD.pack(1) + bytes([number]) for number in range(100)))
            await b.seen.until("frame", 100)
            assert b.seen.frames == [bytes([number]) for number in range(100)]
            assert turns >= 99


async def test_all_roads_of_a_node_share_the_time_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetlm.transport.local_frames.MAX_READ_S", -1.0)
    served: list[tuple[int, bytes]] = []
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    async with station() as b, contextlib.AsyncExitStack() as stack:
        b.seen.on_fact = lambda fact: served.append((turns, fact[1])) if fact[0] == "frame" else None
        socks = []
        for _ in range(3):
            a = await stack.enter_async_context(station())
            source = await a.introduce(await a.reach(b), b)
            socks.append(stack.enter_context(half(b, source)))
            await followed(b, source)
        served.clear()
        asyncio.get_running_loop().call_soon(turn)
        for sock in socks:
            sock.send((HEAD.pack(1) + b"x") * 20)
        while len(served) < 60:
            await asyncio.sleep(0)
    assert len({number for number, _ in served}) == 60, "frames of two roads arrived in one turn"
    assert len({source for _, source in served}) == 3


async def test_what_a_source_had_sent_comes_before_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeroMQ may report the end before the frames on the local road were read."""
    monkeypatch.setattr("fleetlm.transport.local_frames.MAX_READ_S", -1.0)
    async with station() as a, station() as b:
        channel = await a.reach(b)
        source = await a.introduce(channel, b)
        with half(b, source) as sock:
            await followed(b, source)
            sock.send(b"".join(HEAD.pack(4) + struct.pack(">I", number) for number in range(5_000)))
            a.transport.hang_up(channel)
            await b.seen.until("gone")
            assert b.seen.frames == [struct.pack(">I", number) for number in range(5_000)]
            assert b.seen.facts[-1] == ("gone", source)


async def test_what_a_source_has_sent_without_an_announcement_goes_with_it() -> None:
    """MOVED may have been lost on the other road: what comes behind it would come with a gap."""
    before = descriptors()
    async with station() as a, station() as b:
        channel = await a.reach(b)
        source = await a.agree(channel, b)
        a.transport.take_road(channel)
        assert a.send(channel, b"not announced")
        a.transport.hang_up(channel)
        assert await b.seen.until("gone") == (source,)
        assert not b.transport.follow_road(source)
        assert b.transport._roads._let_in == {}
        await asyncio.sleep(0.05)
        assert b.seen.frames == []
    assert descriptors() <= before


async def test_a_road_may_be_followed_again_and_again() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        source = await a.move(channel, b)
        for number in range(1, 4):
            assert a.send(channel, b"%d" % number)
            await b.seen.until("frame", number)
            assert b.transport.follow_road(source)
        a.transport.hang_up(channel)
        await b.seen.until("gone")
        assert b.seen.frames == [b"1", b"2", b"3"]


async def test_a_disconnected_source_is_not_heard_any_more() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        source = await a.move(channel, b)
        b.transport.disconnect(source, 0.2)
        a.send(channel, b"late")
        await b.seen.until("gone")
        assert b.seen.frames == []


# ── the end of a road ────────────────────────────────────────────────────────────────────────────


@both_loops
async def test_a_road_that_fails_at_the_receiver_ends_the_connection_for_both() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        source = await a.move(channel, b)
        assert a.send(channel, b"before")
        await b.seen.until("frame")
        b.transport._roads._readers[source].close()
        lost, reason = await a.seen.until("lost")
        assert lost == channel
        assert reason == f"{b.ip}:{b.port}: the local road ended, while the connection was alive"
        assert not a.send(channel, b"after")
        assert await b.seen.until("gone") == (source,)
        assert b.seen.frames == [b"before"]


@both_loops
async def test_a_road_that_fails_at_the_sender_ends_the_connection_for_both() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        source = await a.move(channel, b)
        assert a.send(channel, b"before")
        a.transport._roads._writers[channel].sock.shutdown(socket.SHUT_RDWR)
        assert not a.send(channel, b"after")
        assert await b.seen.until("gone") == (source,)
        assert (await a.seen.until("lost"))[0] == channel
        assert b.seen.frames == [b"before"]


async def test_a_road_that_ends_before_it_is_taken_changes_nothing() -> None:
    async with station() as a, station() as b:
        channel = await a.reach(b)
        source = await a.agree(channel, b)
        b.transport._roads.forget(source)
        await asyncio.sleep(0.05)
        assert a.send(channel, b"over zeromq")
        await b.seen.until("frame")
        assert a.transport._roads._writers == {}
        a.transport.take_road(channel)
        assert not a.send(channel, b"it is too late to take it")


async def test_a_broken_road_is_an_error_and_no_signal() -> None:
    """A program that has restored SIGPIPE would end."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        async with station() as a, station() as b:
            for number, frame in enumerate((b"x", bytes(LARGE)), 1):
                channel = await a.reach(b)
                source = await a.move(channel, b)
                assert a.send(channel, b"before")
                await b.seen.until("frame", number)
                b.transport._roads._readers[source].close()
                assert not a.send(channel, frame)
    finally:
        signal.signal(signal.SIGPIPE, before)


async def test_a_forked_child_keeps_no_local_road_of_its_parent_open() -> None:
    async with station() as b, station() as a:
        channel = await a.reach(b)
        source = await a.move(channel, b)
        assert a.send(channel, b"before")
        await b.seen.until("frame")
        address = address_of(a)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover
            os.close(writer)
            os.read(reader, 1)  # Lives until the parent says so.
            os._exit(0)
        os.close(reader)
        try:
            a.transport._roads.hang_up(channel)
            assert await b.seen.until("gone") == (source,)
            await a.transport.close()
            with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ConnectionRefusedError):
                sock.connect(address)
        finally:
            os.close(writer)
            os.waitpid(child, 0)


async def test_a_closed_transport_leaves_nothing_of_its_roads() -> None:
    before = descriptors()
    async with station() as a, station() as b:
        await a.move(await a.reach(b), b)
        await b.agree(await b.reach(a), a)
        waits = await a.reach(b)
        a.transport.open_road(waits, b.transport.road, TICKET)
        source = await a.introduce(waits, b)
        b.transport.expect_road(source, bytes(16))
        with caller(b):
            await asyncio.sleep(0.05)
        address = address_of(b)
    deadline = asyncio.get_running_loop().time() + 5
    while descriptors() > before and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)
    assert descriptors() <= before
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(address)


# ── whole nodes ──────────────────────────────────────────────────────────────────────────────────


async def road_between(own: Settings, other: Settings) -> tuple[str, str, object]:
    """Start two nodes and call one. Returns the road of each, and the reply."""

    async def echo(me: Process) -> None:
        async for call in me.mailbox:
            call.reply(call.message)

    ips = free_ip(), free_ip()
    query = ",".join(ips)
    common = {"dns_query": query, "node_ports": (14_371, 14_371), "remote": False}
    async with (
        Node.start(own.replace(node_ip=ips[0], **common)) as one,
        Node.start(other.replace(node_ip=ips[1], **common)) as two,
    ):
        two.spawn(echo, name="echo")
        await one.ready(1, timeout=20)
        await two.ready(1, timeout=20)
        expected = own.local_road and other.local_road
        for _ in range(500):
            reply = await one.call(("echo", two.name), "hello")
            roads = [node.info().peers[0].road for node in (one, two)]
            if not expected or roads == ["local", "local"]:
                break
            await asyncio.sleep(0.01)
        return roads[0], roads[1], reply


@both_loops
async def test_nodes_of_one_host_show_that_their_messages_take_the_local_road() -> None:
    cookie = "a cookie that both nodes know"
    assert await road_between(Settings(cookie=cookie), Settings(cookie=cookie)) == ("local", "local", "hello")


@pytest.mark.parametrize(("own", "other"), [(False, True), (True, False)])
async def test_one_node_that_is_told_so_keeps_both_on_the_network(own: bool, other: bool) -> None:
    shown = await road_between(Settings(local_road=own), Settings(local_road=other))
    assert shown == ("zeromq", "zeromq", "hello")
