from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, strategies as st

from fleetlm.messaging import chunks as bulk
from fleetlm.messaging.chunks import Lanes, Reassembly
from fleetlm.wire.blobs import Packed, Parcel
from fleetlm.wire.frames import CHUNK_HEAD, HEADER_BYTES, BadFrame, Chunk, read_chunk

CHUNK = 4


def drain(lanes: Lanes) -> list[bytes | tuple[bytes, bytes]]:
    out: list[bytes | tuple[bytes, bytes]] = []
    while (item := lanes.next(CHUNK)) is not None:
        out.append(item if isinstance(item, bytes) else (item[0].pack(b""), bytes(item[1])))
    return out


def head(number: int, total: int, units: int = 1, sizes: tuple[int, ...] = ()) -> bytes:
    return Chunk(number, units, 0, total, sizes, memoryview(b"")).pack(b"")


def add(parts: Reassembly, head: bytes, piece: bytes | memoryview) -> bytes | None:
    whole = parts.add(read_chunk(memoryview(b"".join((head, piece)))))
    return None if whole is None else whole.envelope


def test_empty_lanes_have_nothing() -> None:
    lanes = Lanes(CHUNK)
    assert not lanes
    assert lanes.next(CHUNK) is None
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
    whole = None
    while (item := lanes.next(CHUNK)) is not None:
        assert not isinstance(item, bytes)
        whole = parts.add(*item)
    assert whole == (b"012345", (), 6, 7)
    assert add(parts, head(1, 6, 7), b"012") is None
    with pytest.raises(BadFrame, match="does not fit"):
        add(parts, head(1, 6, 8), b"012")


def test_lanes_take_turns() -> None:
    lanes = Lanes(CHUNK)
    lanes.add("a", b"aaaaaaaa")
    lanes.add("b", b"bbbbbbbb")
    numbers = [CHUNK_HEAD.unpack_from(item[0])[0] for item in drain(lanes)]  # type: ignore[arg-type]
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
    lanes.next(CHUNK)
    lanes.clear()
    assert (lanes.waiting_bytes, bool(lanes), lanes.next(CHUNK)) == (0, False, None)


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
            item = lanes.next(CHUNK)
            if item is None:
                return
            whole = item if isinstance(item, bytes) else add(parts, item[0].pack(b""), item[1])
            if whole is not None:
                arrived.setdefault(whole[0], []).append(whole)

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


# Blobs.

LARGE = 1_024


def sent(packed: Packed, chunk_bytes: int) -> list[tuple[Chunk, memoryview]]:
    lanes = Lanes(LARGE)
    lanes.add("a", packed, 3)
    out = []
    while (item := lanes.next(chunk_bytes)) is not None:
        assert not isinstance(item, bytes)
        out.append(item)
    assert (lanes.waiting_bytes, bool(lanes)) == (0, False)
    return out


@given(
    st.integers(1, 10_000),
    st.lists(st.integers(LARGE, 5_000), max_size=4),
    st.integers(1, 9_000),
    st.integers(0, 2**32),
)
def test_blobs_arrive_whole_wherever_the_content_is_cut(
    envelope_bytes: int, sizes: list[int], chunk_bytes: int, seed: int
) -> None:
    rng = random.Random(seed)  # Drawn by hypothesis, each byte would be an example's choice.
    envelope, blobs = rng.randbytes(envelope_bytes), [rng.randbytes(size) for size in sizes]
    packed = Parcel(envelope, blobs) if blobs else envelope * (1 + LARGE // len(envelope))
    chunk_bytes = max(chunk_bytes, len(packed) // 300)  # Thousands of chunks would only take longer.
    parts, whole = Reassembly(100_000), None
    for chunk, tail in sent(packed, chunk_bytes):
        assert whole is None
        assert 0 < len(chunk.piece) + len(tail) <= chunk_bytes
        head = chunk.pack(b"")
        assert len(head) + HEADER_BYTES == chunk.overhead_bytes + len(chunk.piece)
        content = head + bytes(tail)
        # A transport may cut a frame at any point behind its head, or not at all.
        cut = rng.randint(len(head) - len(chunk.piece), len(content))
        whole = parts.add(read_chunk(memoryview(content[:cut])), memoryview(content[cut:]))
    assert whole is not None
    assert (whole.units, whole.total_bytes) == (3, len(packed))
    assert whole.envelope == (packed.envelope if isinstance(packed, Parcel) else packed)
    assert [hold.to_bytes() for hold in whole.blobs] == blobs
    assert parts._claimed_bytes == 0


@given(
    st.integers(1, 3_000),
    st.lists(st.integers(LARGE, 5_000), max_size=3),
    st.integers(50, 4_000),
    st.integers(0, 999),
)
def test_chunks_that_are_received_in_their_place_become_the_same_message(
    envelope_bytes: int, sizes: list[int], chunk_bytes: int, seed: int
) -> None:
    rng = random.Random(seed)
    envelope, blobs = rng.randbytes(envelope_bytes), [rng.randbytes(size) for size in sizes]
    packed = Parcel(envelope, blobs) if blobs else envelope * (1 + LARGE // len(envelope))
    parts, whole = Reassembly(100_000), None
    for chunk, tail in sent(packed, chunk_bytes):
        piece = memoryview(bytes(chunk.piece) + bytes(tail))
        # A transport asks for room when it has the head of a frame, and some of what follows.
        came = chunk._replace(piece=piece[: rng.randint(0, len(piece))])
        room = None
        if rng.random() < 0.7:
            room = (
                parts.first_room(came, len(piece))
                if chunk.blob_sizes
                else parts.room(chunk.number, len(piece))
            )
        lead_bytes = len(piece) if room is None else len(piece) - len(room)
        if room is not None:
            room[:] = piece[lead_bytes:]
        head = chunk._replace(piece=piece[:lead_bytes])
        whole = parts.add(head, memoryview(b"") if room is None else room)
    assert whole is not None
    assert whole.envelope == (packed.envelope if isinstance(packed, Parcel) else packed)
    assert [hold.to_bytes() for hold in whole.blobs] == blobs
    assert (parts._claimed_bytes, parts._unfinished) == (0, {})


def test_there_is_room_only_for_what_lies_in_one_buffer_of_a_message_that_has_begun() -> None:
    parts = Reassembly(10_000)
    assert parts.room(1, 10) is None
    first = Chunk(1, 1, 0, 2_010, (2_000,), memoryview(b"abcd"))
    assert parts.add(first) is None
    assert parts.room(2, 1) is None
    assert parts.room(1, 0) is None
    assert parts.room(1, 7) is None  # Six bytes of the envelope are left, and then a blob comes.
    room = parts.room(1, 6)
    assert room is not None
    assert len(room) == 6


def test_the_first_blob_has_room_before_the_first_chunk_of_its_message_is_whole() -> None:
    parts = Reassembly(10_000)
    first = Chunk(1, 1, 0, 5_008, (3_000, 2_000), memoryview(b"envelope"))
    assert parts.first_room(first._replace(piece=memoryview(b"envelop")), 508) is None
    assert parts.first_room(first, 8) is None  # Nothing of the blob is in it.
    assert parts.first_room(first, 3_009) is None  # The next blob begins in it.
    assert parts.first_room(first._replace(blob_sizes=(5_008,)), 508) is None  # There is no envelope.
    room = parts.first_room(first._replace(piece=memoryview(b"envelope and more")), 508)
    assert room is not None
    assert len(room) == 500
    assert parts._claimed_bytes == 0, "a message counts when its first chunk has come"
    room[:] = b"x" * 500
    assert parts.add(first, room) is None
    assert parts._claimed_bytes == 5_008
    last = parts.add(Chunk(1, 1, 0, 5_008, (), memoryview(b"x" * 2_500)), memoryview(b"y" * 2_000))
    assert last is not None
    assert last.envelope == b"envelope"
    assert [hold.to_bytes() for hold in last.blobs] == [b"x" * 3_000, b"y" * 2_000]


def test_what_a_peer_may_not_begin_has_no_room() -> None:
    parts = Reassembly(10_000)
    add(parts, head(1, 6_000), b"a")
    envelope = memoryview(b"envelope")
    assert parts.first_room(Chunk(2, 1, 0, 4_008, (4_000,), envelope), 508) is None
    assert parts.first_room(Chunk(2, 1, 0, 1_031, (1_023,), envelope), 508) is None
    assert parts.first_room(Chunk(2, 1, 0, 4_000, (3_992,), envelope), 508) is not None


def test_room_of_a_chunk_that_never_came_whole_is_not_that_of_another_message() -> None:
    parts = Reassembly(10_000)
    for number in range(1_000):
        chunk = Chunk(number, 1, 0, 9_008, (9_000,), memoryview(b"envelope"))
        assert parts.first_room(chunk, 508) is not None
    other = Chunk(5, 1, 0, 9_007, (9_000,), memoryview(b"another"))
    whole = parts.add(other, memoryview(b"z" * 9_000))
    assert whole is not None
    assert (whole.envelope, whole.blobs[0].to_bytes()) == (b"another", b"z" * 9_000)


def test_a_first_chunk_in_the_place_of_one_that_is_being_received_is_refused() -> None:
    """Its blob would be whole then, with memory in it that nothing was written to."""
    parts = Reassembly(10_000)
    chunk = Chunk(1, 1, 0, 4_008, (4_000,), memoryview(b"envelope"))
    assert parts.first_room(chunk, 508) is not None
    with pytest.raises(BadFrame, match="beside one that is being received"):
        parts.add(chunk, memoryview(b"x" * 500))


def test_a_chunk_beside_one_that_is_being_received_is_refused() -> None:
    parts = Reassembly(10_000)
    add(parts, head(1, 10), b"0123")
    assert parts.room(1, 3) is not None
    with pytest.raises(BadFrame, match="beside one that is being received"):
        add(parts, head(1, 10), b"456")


def test_slices_of_blobs_are_lent_and_a_small_envelope_shares_their_first_frame() -> None:
    blob = bytes(10_000)
    chunks = sent(Parcel(b"envelope", [blob]), 4_096)
    assert [(bytes(chunk.piece), len(tail)) for chunk, tail in chunks] == [
        (b"envelope", 4_088), (b"", 4_096), (b"", 1_816),
    ]  # fmt: skip
    assert all(tail.obj is blob for _, tail in chunks)


@pytest.mark.parametrize(
    ("total", "sizes", "why"),
    [
        (5_000, (5_000,), "blobs that no node sends"),
        (5_000, (1_023,), "blobs that no node sends"),
        (500_000, (LARGE,) * 65, "blobs that no node sends"),
        (5_000, (1 << 63, 1 << 63), "blobs that no node sends"),
        (1 << 40, (1 << 39,), "at a time"),
    ],
)
def test_blobs_that_no_node_sends_are_refused(total: int, sizes: tuple[int, ...], why: str) -> None:
    parts = Reassembly(1_000_000)
    with pytest.raises(BadFrame, match=why):
        add(parts, head(1, total, sizes=sizes), b"a")
    assert not parts._unfinished


def test_only_the_first_chunk_tells_the_sizes_of_blobs() -> None:
    parts = Reassembly(1_000_000)
    assert add(parts, head(1, 5_000, sizes=(2_000,)), b"a") is None
    with pytest.raises(BadFrame, match="not the first"):
        add(parts, head(1, 5_000, sizes=(2_000,)), b"a")
    for cut in (b"", b"\0" * 10, head(1, 5_000, sizes=(2_000, 2_000))[:-1]):
        with pytest.raises(BadFrame, match="without"):
            read_chunk(memoryview(cut))


def test_a_message_that_was_announced_takes_little_memory_before_it_comes() -> None:
    tracemalloc.start()
    try:
        parts = Reassembly(1 << 40)
        for number in range(100):
            assert add(parts, head(number, 60_000 + 64 * 4_096, sizes=(4_096,) * 64), b"a") is None
        assert tracemalloc.get_traced_memory()[0] < 100 * 70_000, "only the envelopes"
    finally:
        tracemalloc.stop()
