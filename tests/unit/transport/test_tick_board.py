"""Ticks in shared memory: what is noted is read, and what is no board is not touched."""

from __future__ import annotations

import fcntl
import math
import os
import socket
import sys
from collections.abc import Callable

import pytest

from fleetlm.transport.tick_board import Board, OwnBoard, Tick, take

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has sealed memory")


def given(own: OwnBoard) -> Board:
    """The board of a neighbour that has given its descriptor."""
    board = take(os.dup(own.fd))
    assert board is not None
    return board


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_each_tick_is_read_once_and_the_last_one_counts() -> None:
    own = OwnBoard()
    board = given(own)
    assert board.read() is None, "nothing was noted"
    own.note(7.5, 3)
    assert board.read() == Tick(7.5, 3)
    assert board.read() is None
    own.note(8.5, 0)
    own.note(9.5, 2**40)
    assert board.read() == Tick(9.5, 2**32 - 1)
    own.close()
    board.close()


def test_a_closed_board_says_nothing() -> None:
    own = OwnBoard()
    board = given(own)
    own.note(1.0, 0)
    own.close()
    own.close()
    own.note(2.0, 0)
    assert board.read() == Tick(1.0, 0), "a neighbour reads the last one"
    board.close()
    board.close()
    assert board.read() is None


@pytest.mark.parametrize("at", [math.nan, 0.0])
def test_a_time_that_is_none_is_no_tick(at: float) -> None:
    own = OwnBoard()
    board = given(own)
    own.note(at, 1)
    assert board.read() is None
    own.close()
    board.close()


def unsealed() -> int:
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4_096)
    return fd


def may_shrink() -> int:
    fd = unsealed()
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return fd


def pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


@pytest.mark.parametrize(
    "make", [pipe, lambda: os.open("/dev/null", os.O_RDONLY), lambda: socket.socket().detach(), unsealed,
             may_shrink],
    ids=["a pipe", "a device", "a socket", "memory that is not sealed", "memory that may shrink"],
)  # fmt: skip
def test_what_is_no_board_is_closed(make: Callable[[], int]) -> None:
    fd = make()
    assert take(fd) is None
    assert not is_open(fd)


def test_a_board_of_another_size_is_read_as_far_as_it_makes_sense() -> None:
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 5)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    board = take(fd)
    assert board is not None
    assert board.read() is None
    board.close()
