from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from fleetlm.messaging import chunks as bulk
from fleetlm.messaging.chunks import Lanes, Reassembly
from fleetlm.wire.frames import CHUNK_HEAD, BadFrame

CHUNK = 4


def drain(lanes: Lanes) -> list[bytes | tuple[bytes, bytes]]:
    out: list[bytes | tuple[bytes, bytes]] = []
    while (item := lanes.next()) is not None:
        out.append(item if isinstance(item, bytes) else (item[0], bytes(item[1])))
    return out


def head(number: int, total: int, units: int = 1) -> bytes:
    return CHUNK_HEAD.pack(number, units, total)


def add(parts: Reassembly, head: bytes, piece: bytes | memoryview) -> memoryview | None:
    large = parts.add(memoryview(b"".join((head, piece))))
    return None if large is None else large[0]


def test_empty_lanes_have_nothing() -> None:
    lanes = Lanes(CHUNK)
    assert not lanes
    assert lanes.next() is None
    assert lanes.waiting_bytes == 0


def test_a_large_message_leaves_in_pieces_with_its_number_and_size() -> None:
    lanes = Lanes(CHUNK)
    lanes.add("a", b"0123456789")
    assert lanes
    assert lanes.has("a")
    assert not lanes.has("b")
    assert lanes.waiting_bytes == 10
    assert drain(lanes) == [(head(0, 10), b"0123"), (head(0, 10), b"4567"), (head(0, 10), b"89")]
    assert (lanes.waiting_bytes, bool(lanes), lanes.has("a")) == (0, False, False)


def test_the_chunks_of_a_large_message_say_what_it_counts() -> None:
    lanes, parts = Lanes(CHUNK), Reassembly(100)
    lanes.add("a", b"012345", 7)
    first, last = drain(lanes)
    assert parts.add(memoryview(b"".join(first))) is None  # type: ignore[arg-type]
    assert parts.add(memoryview(b"".join(last))) == (b"012345", 7)  # type: ignore[arg-type]


def test_lanes_take_turns() -> None:
    lanes = Lanes(CHUNK)
    lanes.add("a", b"aaaaaaaa")
    lanes.add("b", b"bbbbbbbb")
    numbers = [CHUNK_HEAD.unpack(item[0])[0] for item in drain(lanes)]  # type: ignore[arg-type]
    assert numbers == [0, 1, 0, 1]


def test_what_a_sender_sends_behind_its_large_message_stays_behind() -> None:
    lanes = Lanes(CHUNK)
    lanes.add("a", b"large")
    lanes.add("a", b"s")
    assert drain(lanes) == [(head(0, 5), b"larg"), (head(0, 5), b"e"), b"s"]


def test_a_process_that_has_ended_is_known_until_what_it_sent_has_left() -> None:
    lanes = Lanes(CHUNK)
    lanes.ended("a", 7)
    assert lanes.of_ended(7) is None
    lanes.add("a", b"large")
    lanes.ended("a", 7)
    lanes.add(lanes.of_ended(7), b"s")
    assert drain(lanes)[-1] == b"s"
    assert lanes.of_ended(7) is None
    lanes.add("a", b"large")
    lanes.ended("a", 7)
    lanes.clear()
    assert lanes.of_ended(7) is None


def test_clearing_forgets_everything() -> None:
    lanes = Lanes(CHUNK)
    lanes.add("a", b"large")
    lanes.next()
    lanes.clear()
    assert (lanes.waiting_bytes, bool(lanes), lanes.next()) == (0, False, None)


def test_pieces_become_the_message_again() -> None:
    parts = Reassembly(100)
    assert add(parts, head(1, 6), b"abc") is None
    assert add(parts, head(2, 2), b"x") is None
    assert add(parts, head(1, 6), b"def") == b"abcdef"
    assert add(parts, head(2, 2), b"y") == b"xy"


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ([(b"short", b"abc")], "without its head"),
        ([(head(1, 3), b"")], "without bytes"),
        ([(head(1, 3), b"abcd")], "does not fit"),
        ([(head(1, 0), b"a")], "does not fit"),
        ([(head(1, 3), b"a"), (head(1, 4), b"b")], "does not fit"),
        ([(head(1, 3), b"ab"), (head(1, 3), b"cd")], "does not fit"),
        ([(head(1, 3), b"a"), (head(1, 3, units=2), b"b")], "does not fit"),
        ([(head(1, 101), b"a")], "at a time"),
        ([(head(1, 60), b"a"), (head(2, 60), b"a")], "at a time"),
        ([(head(1, 1 << 63), b"a")], "at a time"),
    ],
)
def test_pieces_that_fit_nothing_are_refused(pieces: list[tuple[bytes, bytes]], why: str) -> None:
    parts = Reassembly(100)
    *good, bad = pieces
    for each in good:
        assert add(parts, *each) is None
    with pytest.raises(BadFrame, match=why):
        add(parts, *bad)


def test_room_comes_back_with_the_end_of_a_message() -> None:
    parts = Reassembly(10)
    for number in range(100):
        assert add(parts, head(number, 10), b"01234") is None
        assert add(parts, head(number, 10), b"56789") == b"0123456789"


def test_unfinished_messages_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MAX_TRANSFERS", 3)
    parts = Reassembly(1 << 30)
    for number in range(3):
        assert add(parts, head(number, 2), b"a") is None
    with pytest.raises(BadFrame, match="more than 3 large messages"):
        add(parts, head(3, 2), b"a")


messages = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 3 * CHUNK + 1), st.integers(0, 4)), max_size=30
)


@given(messages)
def test_whatever_is_sent_arrives_whole_and_in_each_senders_order(
    steps: list[tuple[int, int, int]],
) -> None:
    """(sender, size, how many items leave before the next message is added)"""
    lanes, parts = Lanes(CHUNK), Reassembly(10_000)
    sent: dict[int, list[bytes]] = {}
    arrived: dict[int, list[bytes]] = {}

    def move(most: int) -> None:
        for _ in range(most):
            item = lanes.next()
            if item is None:
                return
            whole = item if isinstance(item, bytes) else add(parts, item[0], bytes(item[1]))
            if whole is not None:
                arrived.setdefault(whole[0], []).append(whole)  # type: ignore[arg-type]

    for serial, (sender, size, moves) in enumerate(steps):
        message = bytes([sender, *([serial] * (size - 1))])
        sent.setdefault(sender, []).append(message)
        lanes.add(sender, message)
        assert lanes.waiting_bytes >= 0
        move(moves)
    move(10_000)
    assert arrived == sent
    assert lanes.waiting_bytes == 0
    assert not lanes
    assert parts._claimed_bytes == 0
    assert not parts._unfinished
