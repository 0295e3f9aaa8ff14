from __future__ import annotations

import dataclasses

import msgpack
import pytest
from hypothesis import given, strategies as st

from fleetlm.wire import frames
from fleetlm.wire.frames import (
    HEADER_BYTES,
    MAX_HANDSHAKE_BYTES,
    MAX_LIST_ITEMS,
    MAX_TEXT_CHARS,
    BadFrame,
    Hello,
    IAm,
    Kind,
    Ready,
    Refusal,
    Refused,
)
from tests.support.kernel_fakes import hello_of, name

HELLO = hello_of(2, aliases=("10.9.0.2", "fd00::2"), cluster="blue")
FIELDS = msgpack.unpackb(frames.pack_hello(HELLO))
FIELD = {field.name: index for index, field in enumerate(dataclasses.fields(Hello))}


def packed(*items: object) -> bytes:
    body: bytes = msgpack.packb(list(items))
    return body


def changed(field: str, value: object) -> bytes:
    items = list(FIELDS)
    items[FIELD[field]] = value
    return packed(*items)


def test_numbers_on_the_wire_never_get_a_second_meaning() -> None:
    assert {name: kind for name, kind in vars(Kind).items() if name.isupper()} == {
        "HELLO": 1,
        "READY": 2,
        "BATCH": 3,
        "CHUNK": 4,
        "GOODBYE": 5,
        "PROBE": 6,
        "REFUSED": 7,
        "IAM": 8,
        "MOVED": 9,
    }
    assert [(int(refusal), refusal.word) for refusal in Refusal] == [
        (1, "wrong_cluster"),
        (2, "wrong_name"),
        (3, "self"),
        (4, "incompatible"),
        (6, "duplicate_name"),
        (7, "draining"),
        (8, "too_many"),
        (9, "other_base_port"),
        (10, "other_basename"),
        (11, "connected"),
        (12, "not_allowed"),
    ]


# ── header ───────────────────────────────────────────────────────────────────────────────────────


def test_a_header_is_17_bytes_in_network_order() -> None:
    head = frames.header(Kind.BATCH, 0x0102030405060708, 0x0A)
    assert head == bytes([3, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 10])
    assert len(head) == HEADER_BYTES == 17


@given(st.integers(0, 255), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=9))
def test_a_header_is_read_back_whatever_follows(kind: int, epoch: int, seq: int, body: bytes) -> None:
    assert frames.read_header(frames.header(kind, epoch, seq) + body) == (kind, epoch, seq)


@pytest.mark.parametrize("size", range(HEADER_BYTES))
def test_a_frame_is_at_least_a_header(size: int) -> None:
    with pytest.raises(BadFrame, match=f"{size} bytes are too few for a frame"):
        frames.read_header(b"\1" * size)


# ── hello ────────────────────────────────────────────────────────────────────────────────────────

texts = st.text(max_size=40)
hellos = st.builds(
    Hello,
    name=st.sampled_from([name(2), "a@fd00::7", "x.y-z_0@127.0.0.1"]),
    incarnation=st.integers(0, 2**64 - 1),
    dialled=st.sampled_from([name(1), "a@fd00::8"]),
    cluster=texts,
    port=st.integers(0, 65535),
    protocol_min=st.integers(0, 65535),
    protocol_max=st.integers(0, 65535),
    aliases=st.lists(st.sampled_from(["10.0.0.9", "fd00::9", "::1"]), max_size=MAX_LIST_ITEMS).map(tuple),
    window_bytes=st.integers(0, 2**48 - 1),
    max_message_bytes=st.integers(0, 2**48 - 1),
    is_check=st.booleans(),
    features=st.lists(texts, max_size=MAX_LIST_ITEMS).map(tuple),
)


@given(hellos)
def test_a_hello_arrives_as_it_was_sent(hello: Hello) -> None:
    assert frames.read_hello(frames.pack_hello(hello)) == hello


def test_a_later_version_may_add_fields_to_a_hello() -> None:
    assert frames.read_hello(packed(*FIELDS, "new", {"more": 1})) == HELLO


def test_names_and_aliases_are_read_in_canonical_form() -> None:
    read = frames.read_hello(changed("name", "fleetlm@FD00:0::07"))
    assert read.name == "fleetlm@fd00::7"
    read = frames.read_hello(changed("dialled", "fleetlm@::ffff:10.0.0.1"))
    assert read.dialled == name(1)
    read = frames.read_hello(changed("aliases", ["FD00:0::07", "::ffff:10.0.0.1"]))
    assert read.aliases == ("fd00::7", "10.0.0.1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "fleetlm"),
        ("name", "fleetlm@worker-1"),
        ("name", "fleetlm@fe80::1%eth0"),
        ("name", "a b@10.0.0.1"),
        ("name", "x" * 65 + "@10.0.0.1"),
        ("name", b"fleetlm@10.0.0.1"),
        ("name", None),
        ("dialled", 7),
        ("cluster", None),
        ("cluster", "x" * (MAX_TEXT_CHARS + 1)),
        ("incarnation", -1),
        ("incarnation", True),
        ("incarnation", 1.0),
        ("incarnation", "1"),
        ("port", 65536),
        ("port", -1),
        ("protocol_min", 65536),
        ("protocol_max", None),
        ("window_bytes", 2**48),
        ("max_message_bytes", [1]),
        ("max_frame_bytes", -1),
        ("max_frame_bytes", 2**48),
        ("max_frame_bytes", None),
        ("is_check", -1),
        ("is_check", True),
        ("aliases", "10.0.0.1"),
        ("aliases", ["worker-1"]),
        ("aliases", [1]),
        ("aliases", ["10.0.0.1"] * (MAX_LIST_ITEMS + 1)),
        ("features", {}),
        ("features", [None]),
        ("features", ["x"] * (MAX_LIST_ITEMS + 1)),
    ],
)
def test_every_field_of_a_hello_is_checked(field: str, value: object) -> None:
    with pytest.raises(BadFrame):
        frames.read_hello(changed(field, value))


def test_a_hello_with_a_field_missing_is_refused() -> None:
    with pytest.raises(BadFrame, match="not the fields"):
        frames.read_hello(packed(*FIELDS[:14]))


def test_a_node_of_an_older_version_does_not_say_which_frames_it_takes() -> None:
    hello = dataclasses.replace(HELLO, max_frame_bytes=1_000_000)
    assert frames.read_hello(frames.pack_hello(hello)) == hello
    assert frames.read_hello(packed(*FIELDS[:15])) == HELLO
    assert HELLO.max_frame_bytes == 0
    assert frames.read_ready(packed(1, FIELDS[:15])).hello == HELLO


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\xdc\xff\xff", packed() + b"x", b"\xc0", b"\x80"])
def test_a_hello_is_a_list_of_fields(body: bytes) -> None:
    with pytest.raises(BadFrame):
        frames.read_hello(body)


def test_a_body_is_not_even_read_when_it_is_too_long() -> None:
    with pytest.raises(BadFrame, match="too many for a handshake"):
        frames.read_hello(packed(*FIELDS, "x" * MAX_HANDSHAKE_BYTES))


def test_deep_nesting_does_not_reach_the_stack() -> None:
    with pytest.raises(BadFrame):
        frames.read_hello(b"\x91" * (MAX_HANDSHAKE_BYTES - 1) + b"\xc0")


# ── the other bodies ─────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 2**64 - 1), hellos)
def test_a_ready_arrives_as_it_was_sent(epoch: int, hello: Hello) -> None:
    ready = Ready(epoch, hello)
    assert frames.read_ready(frames.pack_ready(ready)) == ready


@pytest.mark.parametrize(
    "items",
    [(), (1,), (1, None), (1, FIELDS[:14]), (1.0, FIELDS), (-1, FIELDS), (True, FIELDS), (1, [None] * 14)],
)
def test_a_malformed_ready_is_refused(items: tuple[object, ...]) -> None:
    with pytest.raises(BadFrame):
        frames.read_ready(packed(*items))


def test_the_reason_of_a_goodbye_is_cut_at_the_sender() -> None:
    assert frames.read_goodbye(frames.pack_goodbye("SIGTERM")) == "SIGTERM"
    assert frames.read_goodbye(frames.pack_goodbye("x" * 10_000)) == "x" * MAX_TEXT_CHARS


@pytest.mark.parametrize("items", [(), (None,), (b"bye",), ("x" * (MAX_TEXT_CHARS + 1),)])
def test_a_malformed_goodbye_is_refused(items: tuple[object, ...]) -> None:
    with pytest.raises(BadFrame):
        frames.read_goodbye(packed(*items))


@pytest.mark.parametrize("refusal", list(Refusal))
def test_a_refusal_arrives_as_it_was_sent(refusal: Refusal) -> None:
    answer = Refused(refusal, "why", name(3))
    assert frames.read_answer(frames.refused(answer)) == answer


def test_the_detail_of_a_refusal_is_cut_at_the_sender() -> None:
    read = frames.read_answer(frames.refused(Refused(Refusal.SELF, "x" * 10_000, name(3))))
    assert isinstance(read, Refused)
    assert read.detail == "x" * MAX_TEXT_CHARS


def test_a_refusal_of_a_later_version_is_said_to_be_unknown() -> None:
    frame = frames.header(Kind.REFUSED, 0, 0) + packed(99, "why", name(3))
    with pytest.raises(BadFrame, match="refusal 99 is not known"):
        frames.read_answer(frame)


def test_answers_tell_strangers_no_incarnation() -> None:
    fields = {field.name for answer in (Refused, IAm) for field in dataclasses.fields(answer)}
    assert fields == {"refusal", "detail", "name", "cluster", "connected", "base_port"}


def test_a_hello_of_the_former_version_is_read_so_that_it_can_be_refused_with_a_reason() -> None:
    assert not frames.read_hello(changed("is_check", 0xDEADBEEF)).is_check


def test_an_iam_arrives_as_it_was_sent() -> None:
    answer = IAm(name(3), "blue", 17)
    assert frames.read_answer(frames.iam(answer)) == answer


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.READY, Kind.BATCH, Kind.GOODBYE, Kind.PROBE, 0, 255])
def test_nothing_else_is_an_answer(kind: int) -> None:
    with pytest.raises(BadFrame, match=f"kind {int(kind)} is not an answer"):
        frames.read_answer(frames.header(kind, 0, 0) + packed(1, "a", name(3), 1))


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        (Kind.REFUSED, (1, "a")),
        (Kind.REFUSED, (None, "a", name(3))),
        (Kind.REFUSED, (1, None, name(3))),
        (Kind.REFUSED, (1, "a", "nobody")),
        (Kind.IAM, (name(3), "", 0)),
        (Kind.IAM, ("", "", 0, 4370)),
        (Kind.IAM, (name(3), "", 2**32, 4370)),
        (Kind.IAM, (name(3), 5, 0, 4370)),
        (Kind.IAM, (name(3), "", 0, 2**16)),
    ],
)
def test_every_field_of_an_answer_is_checked(kind: int, items: tuple[object, ...]) -> None:
    with pytest.raises(BadFrame):
        frames.read_answer(frames.header(kind, 0, 0) + packed(*items))


def test_a_probe_is_a_whole_frame_that_needs_no_handshake() -> None:
    frame = frames.probe()
    assert frames.read_header(frame) == (Kind.PROBE, 0, 0)
    assert msgpack.unpackb(frame[HEADER_BYTES:]) == [frames.PROTOCOL_MIN, frames.PROTOCOL_MAX]


# ── garbage ──────────────────────────────────────────────────────────────────────────────────────

scraps = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=14) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)
READERS = (frames.read_hello, frames.read_ready, frames.read_goodbye, frames.read_answer)


@given(st.binary(max_size=200) | scraps.map(msgpack.packb))
def test_readers_raise_nothing_but_bad_frame(body: bytes) -> None:
    for read in READERS:
        for data in (body, frames.header(Kind.REFUSED, 0, 0) + body, frames.header(Kind.IAM, 0, 0) + body):
            try:
                read(data)
            except BadFrame:
                continue


@given(st.integers(0, len(FIELDS) - 1), scraps)
def test_a_hello_with_one_foreign_field_is_read_or_bad(index: int, scrap: object) -> None:
    items = list(FIELDS)
    items[index] = scrap
    try:
        hello = frames.read_hello(packed(*items))
    except BadFrame:
        return
    assert frames.read_hello(frames.pack_hello(hello)) == hello


def test_what_a_peer_wrote_stays_on_one_line_of_a_log() -> None:
    assert frames.read_goodbye(frames.pack_goodbye("bye\n\x1b[31mERROR")) == "bye??[31mERROR"


# Chunks.


@pytest.mark.parametrize("sizes", [(), (1_024,), (2_000, 1 << 40)])
@pytest.mark.parametrize("piece", [b"", b"piece"])
def test_a_chunk_is_read_as_it_was_packed(sizes: tuple[int, ...], piece: bytes) -> None:
    chunk = frames.Chunk(7, 3, 1 << 63, 9_000, sizes, memoryview(piece))
    packed = chunk.pack(frames.header(Kind.CHUNK, 5, 6))
    assert frames.read_header(packed) == (Kind.CHUNK, 5, 6)
    assert len(packed) == chunk.overhead_bytes + len(piece)
    assert frames.read_chunk(memoryview(packed)[frames.HEADER_BYTES :]) == chunk


def test_a_chunk_that_ends_in_its_head_is_refused() -> None:
    packed = frames.Chunk(7, 3, 0, 9_000, (1_024, 2_000), memoryview(b"")).pack(b"")
    for size in range(len(packed)):
        with pytest.raises(BadFrame, match="without"):
            frames.read_chunk(memoryview(packed)[:size])
