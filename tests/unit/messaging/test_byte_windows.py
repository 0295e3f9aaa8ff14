"""The window of a connection: how it follows the pace of the path, and whom it wakes."""

from __future__ import annotations

import asyncio

from fleetlm.messaging.byte_windows import ALONE_S, LEAST_WAITING_BYTES, ByteWindow
from fleetlm.messaging.pace import LEAST_BYTES
from fleetlm.settings import Settings
from fleetlm.wire.frames import CHUNK_HEAD, HEADER_BYTES
from tests.support.session_fakes import Pair, turns, virtual

KIB, MIB = 1024, 1024 * 1024


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def time_passes(seconds: float) -> None:
    """Let virtual time pass."""
    loop = asyncio.get_running_loop()
    passed = loop.create_future()
    loop.call_later(seconds, passed.set_result, None)
    await passed


def wide(clock: Clock) -> ByteWindow:
    """A window of a fast path that was used."""
    window = ByteWindow(8 * MIB, 2 * MIB, 64 * MIB, clock=clock)
    for _ in range(12):
        send_chunks(window)
        credit_all(window)
        clock.now += 0.001
    assert window.limit_bytes == window.full_bytes == 8 * MIB
    assert window.chunk_bytes == 256 * KIB
    return window


def send_chunks(window: ByteWindow) -> int:
    """Fill the window of chunks. Returns the bytes sent."""
    sent = 0
    while size := window.chunk_bytes:
        window.sent_chunk(size)
        window.sent(size)
        sent += size
    return sent


def credit_all(window: ByteWindow) -> None:
    mark = window.mark(at_once=True)
    assert mark is not None
    window.credited(mark)


def test_the_first_bytes_on_a_path_are_few_and_small_messages_have_room_beside_them() -> None:
    window = ByteWindow(8 * MIB, 2 * MIB)
    assert send_chunks(window) <= LEAST_BYTES + 16 * KIB
    assert window.in_flight_bytes < window.limit_bytes
    assert window.limit_bytes == 2 * LEAST_BYTES


def test_chunks_never_have_more_than_their_window_on_the_fastest_path() -> None:
    window = wide(Clock())
    assert 2 * MIB <= send_chunks(window) <= 2 * MIB + 256 * KIB


def roomy(clock: Clock) -> ByteWindow:
    """A window of a fast path that was used, and on which large messages are alone."""
    window = ByteWindow(8 * MIB, 2 * MIB, 64 * MIB, clock=clock, alone_chunk_bytes=MIB)
    for _ in range(12):
        send_chunks(window)
        credit_all(window)
        clock.now += 0.001
    return window


def test_a_message_that_is_alone_has_large_chunks_until_a_small_one_passes() -> None:
    clock = Clock()
    window = roomy(clock)
    assert window.chunk_bytes == MIB
    window.passed()
    assert window.chunk_bytes == 256 * KIB
    clock.now += ALONE_S - 0.001
    assert window.chunk_bytes == 256 * KIB
    clock.now += 0.002
    assert window.chunk_bytes == MIB


def test_small_messages_wait_behind_no_more_than_without_large_chunks() -> None:
    window = roomy(Clock())
    sizes = []
    while size := window.chunk_bytes:
        sizes.append(size)
        window.sent_chunk(size + HEADER_BYTES + CHUNK_HEAD.size)
        window.sent(size + HEADER_BYTES + CHUNK_HEAD.size)
    assert sizes == [MIB, MIB]
    credit_all(window)
    window.sent_chunk(MIB + 100 * KIB)
    assert window.chunk_bytes == 256 * KIB, "a large one has no room"


def test_a_slow_path_has_small_chunks_also_for_a_message_that_is_alone() -> None:
    clock = Clock()
    window = ByteWindow(8 * MIB, 2 * MIB, clock=clock, alone_chunk_bytes=MIB)
    for _ in range(100):  # 4 Mbit/s
        sent = send_chunks(window)
        mark = window.mark(at_once=True)
        assert mark is not None
        clock.now += sent / 500_000
        window.credited(mark)
        assert window.chunk_bytes <= 64 * KIB


def test_small_messages_keep_room_when_the_window_shrinks_below_what_chunks_have() -> None:
    clock = Clock()
    window = wide(clock)
    window.sent_chunk(256 * KIB)
    window.sent(256 * KIB)
    late = window.mark(at_once=True)
    assert late is not None
    send_chunks(window)
    clock.now += 30.0
    window.credited(late)
    assert window.in_flight_bytes > MIB
    assert window.chunk_bytes == 0
    assert window.in_flight_bytes < window.limit_bytes <= window.in_flight_bytes + LEAST_BYTES
    assert window.is_mark_due, "or nothing would ever open it again"


@virtual
async def test_a_credit_that_shrinks_the_window_is_followed_by_a_mark() -> None:
    pair = Pair(Settings(window_bytes=8 * MIB))
    pair.there.box("echo")
    for _ in range(6):
        pair.here.send("echo", bytes(2 * MIB), "a")
        pair.settle()
        await time_passes(0.001)
    session = pair.here.session
    window = session.byte_window
    assert window.limit_bytes == 8 * MIB
    while not window._marks or window._sent_bytes - window._marked_bytes < 2 * LEAST_BYTES:
        pair.here.send("echo", bytes(200 * KIB), "a")
        pair.here.flush()
    mark, *_ = window._marks[-1]
    await time_passes(30.0)
    session.credited(mark)
    assert window.chunk_bytes == 0
    assert len(window._marks) == 1, (
        "for what was sent behind the first mark, or nothing would open the window"
    )
    assert not window.is_mark_due


def test_a_frame_says_when_the_window_is_full_or_a_mark_is_due() -> None:
    window = ByteWindow(64 * KIB, 64 * KIB)
    seen = []
    for _ in range(64):
        seen.append(window.sent(KIB))
        assert seen[-1] == (window.is_mark_due or window.in_flight_bytes >= window.limit_bytes)
        if window.is_mark_due:
            window.mark(at_once=True)
    assert 2 < sum(seen) < 60
    for _ in range(3):  # Full, whether a mark is due or not.
        assert window.sent(1)


@virtual
async def test_only_as_many_wake_as_there_is_room_for_and_the_first_come_first() -> None:
    window = ByteWindow(MIB, MIB, clock=asyncio.get_running_loop().time)
    room = window.limit_bytes
    woken: list[int] = []

    async def wait(number: int) -> None:
        await window.wait_for_room(0)
        woken.append(number)
        window.sent(LEAST_WAITING_BYTES)

    window.sent(room)
    tasks = [asyncio.create_task(wait(number)) for number in range(300)]
    await asyncio.sleep(0)
    credit_all(window)
    window.sent(room - 10 * LEAST_WAITING_BYTES)
    window.wake()
    await turns(50)
    assert woken == list(range(10))
    window.close()
    await asyncio.gather(*tasks)
    assert woken == list(range(300))


@virtual
async def test_those_that_wake_and_send_nothing_do_not_leave_the_others_asleep() -> None:
    window = ByteWindow(MIB, MIB, clock=asyncio.get_running_loop().time)
    tasks = [asyncio.create_task(window.wait_for_room(400 * KIB)) for _ in range(30)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    window.wake()
    window.wake()
    await turns(50)
    assert sum(task.done() for task in tasks) == 30
    assert not window._waiting
    assert not window._is_waking


@virtual
async def test_nobody_is_woken_while_the_window_is_full() -> None:
    window = ByteWindow(MIB, MIB, clock=asyncio.get_running_loop().time)
    window.sent(window.limit_bytes)
    task = asyncio.create_task(window.wait_for_room(0))
    await asyncio.sleep(0)
    window.wake()
    await turns(50)
    assert not task.done()
    assert not window._is_waking
    task.cancel()
