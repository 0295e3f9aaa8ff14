"""How much a local road reads in one turn of the loop, from a socket that a test feeds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest

from fleetlm.settings import Settings
from fleetlm.transport.local_frames import (
    HEAD,
    READ_BYTES,
    READ_BYTES_BEHIND_LONG,
    FrameReader,
    ReadingTime,
)

LONG = 300_000


class Loop:
    """An event loop of which the test is the turns."""

    def __init__(self) -> None:
        self.readable: Callable[[], None] = lambda: None
        self.soon: list[Callable[[], None]] = []

    def add_reader(self, _fd: int, callback: Callable[[], None]) -> None:
        self.readable = callback

    def remove_reader(self, _fd: int) -> None:
        self.readable = lambda: None

    def call_soon(self, callback: Callable[..., None], *args: object) -> None:
        self.soon.append(partial(callback, *args))


class Source:
    """A socket on which the peer has sent something; a call returns a piece at most."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = deque(pieces)
        self.calls = 0
        self.is_at_its_end = False

    def fileno(self) -> int:
        return 7

    def close(self) -> None:
        self.pieces.clear()

    def recv(self, size_bytes: int) -> bytes:
        self.calls += 1
        if not self.pieces:
            if self.is_at_its_end:
                return b""
            raise BlockingIOError
        piece = self.pieces.popleft()
        if len(piece) > size_bytes:
            self.pieces.appendleft(piece[size_bytes:])
        return piece[:size_bytes]

    def recv_into(self, room: memoryview) -> int:
        piece = self.recv(len(room))
        room[: len(piece)] = piece
        return len(piece)


class Reading:
    """A reader, and what it has passed on."""

    def __init__(self, *pieces: bytes) -> None:
        self.loop = cast("Any", Loop())
        self.source = cast("Any", Source(*pieces))
        self.sizes: list[int] = []
        self.after_each: Callable[[], None] = lambda: None
        self.ends: list[str] = []
        self.reader = FrameReader(
            self.loop,
            self.source,
            2 * LONG,
            ReadingTime(self.loop),
            self.arrived,
            lambda _start, _size_bytes: None,
            self.ends.append,
        )
        self.reader.start()

    def arrived(self, frame: bytes, tail: memoryview | None) -> None:
        assert tail is None
        self.sizes.append(len(frame))
        self.after_each()

    def turn(self) -> None:
        soon, self.loop.soon = self.loop.soon, []
        for callback in soon:  # On a busy machine the time of the last turn is used up.
            callback()
        self.loop.readable()


def framed(content: bytes) -> bytes:
    return HEAD.pack(len(content)) + content


@pytest.mark.parametrize("came", [READ_BYTES, READ_BYTES_BEHIND_LONG])
def test_what_stands_behind_a_full_read_is_read_in_the_same_turn(came: int) -> None:
    reading = Reading(framed(bytes(LONG)))
    reading.reader._read_bytes = came
    reading.turn()
    assert (reading.sizes, reading.source.calls) == ([LONG], 2)


def test_a_frame_that_did_not_fill_a_read_waits_until_the_loop_says_so() -> None:
    reading = Reading(framed(bytes(LONG))[: READ_BYTES - 1])
    reading.turn()
    assert (reading.sizes, reading.source.calls) == ([], 1)
    reading.source.pieces.append(framed(bytes(LONG))[READ_BYTES - 1 :])
    reading.turn()
    assert (reading.sizes, reading.source.calls) == ([LONG], 2)


def test_a_turn_reads_twice_at_most_however_much_there_is() -> None:
    reading = Reading(framed(bytes(LONG)) * 2)
    for calls in (2, 4):
        reading.turn()
        assert reading.source.calls == calls
    assert reading.sizes == [LONG] * 2


def test_a_batch_of_the_usual_size_takes_one_read() -> None:
    reading = Reading(framed(bytes(Settings().batch_bytes + 1_000)))
    reading.turn()
    assert (len(reading.sizes), reading.source.calls) == (1, 1)


def test_short_frames_take_one_read_a_turn() -> None:
    reading = Reading(framed(b"first") + framed(b"second"), framed(b"third"))
    reading.turn()
    assert (reading.sizes, reading.source.calls) == ([5, 6], 1)


@pytest.mark.parametrize("end", [FrameReader.mute, FrameReader.close])
def test_nothing_more_is_read_of_a_peer_that_a_frame_has_ended(end: Callable[[FrameReader], None]) -> None:
    reading = Reading(framed(b"last") + framed(bytes(LONG)))
    reading.after_each = lambda: end(reading.reader)
    reading.turn()
    assert (reading.sizes, reading.source.calls, reading.ends) == ([4], 1, [])


def test_the_end_of_the_stream_behind_a_full_read_is_reported_once() -> None:
    reading = Reading(framed(bytes(LONG))[:READ_BYTES])
    reading.source.is_at_its_end = True
    reading.turn()
    reading.turn()
    assert (reading.sizes, reading.ends) == ([], [""])
