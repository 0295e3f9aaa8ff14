"""Large messages are unpacked in slices, to the same values, and within a budget of memory."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack
import pytest

from fleetlm.messages import MessageTypes
from fleetlm.wire import large
from fleetlm.wire.codec import BadData, Codec, Unreadable
from fleetlm.wire.large import LargeDecoder, has_few_values


@dataclass(frozen=True)
class Page:
    title: str
    rows: list[Any] = field(default_factory=list)


@pytest.fixture
def types() -> MessageTypes:
    types = MessageTypes()
    types.register("page", Page)
    return types


@pytest.fixture
def codec(types: MessageTypes) -> Codec:
    return Codec(types)


class Pauses:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


ROWS = [{"id": n, "name": f"row {n}", "tags": ["a", None, 1.5]} for n in range(5_000)]
VALUES: dict[str, Any] = {
    "numbers": list(range(100_000)),
    "records": ROWS,
    "a dict": {f"key {n}": n for n in range(20_000)},
    "other keys": {n: str(n) for n in range(20_000)},
    "a tuple": tuple((n, "a") for n in range(20_000)),
    "a set": {f"{n}" for n in range(20_000)},
    "an object": Page("p" * 100_000, ROWS),
    "objects in objects": Page("a", [Page("b", [Page("c", [ROWS])]), (ROWS, {1: (ROWS,)})]),
    "bytes": b"x" * 500_000,
    "text": "ä" * 500_000,
    "an array": array("d", [1.5] * 50_000),
    "many arrays": [array("d", [1.5] * 50) for _ in range(2_000)],
    "ids": [UUID(int=n) for n in range(10_000)],
    "amounts": [Decimal(n) / 7 for n in range(5_000)],
    "small": [1],
    "a number": 7,
}


@pytest.mark.parametrize("name", VALUES)
def test_a_message_is_the_same_as_if_it_had_been_unpacked_at_once(name: str, codec: Codec) -> None:
    value, pauses = VALUES[name], Pauses()
    data = codec.pack_whole([5, value, 7], value)
    decoder = codec.large_decoder(pauses)
    for _ in range(2):
        assert decoder.unpack(memoryview(data)) == [5, value, 7]
    assert decoder.failures == 0
    if name in ("numbers", "records", "a dict", "other keys", "a tuple", "a set", "objects in objects"):
        assert pauses.count >= 2 * (len(data) // large.SLICE_BYTES - 1)
    if name in ("bytes", "text", "an array", "small"):
        assert pauses.count == 0


def test_values_that_cannot_be_rebuilt_are_counted(types: MessageTypes, codec: Codec) -> None:
    data = codec.pack_value([[Page("a", [n])] for n in range(10_000)])
    stranger = LargeDecoder(MessageTypes(), 64)
    found = stranger.unpack(data)
    assert stranger.failures == 10_000
    assert isinstance(found[0][0], Unreadable)


@pytest.mark.parametrize(
    ("what", "items"),
    [
        ("lists", b"\x90"),
        ("maps", b"\x80"),
        ("tuples", b"\xc7\x01\x01\x90"),
        ("unknown extensions", b"\xd4\x63\x00"),
        ("bytes in bytes", b""),
    ],
)
def test_a_message_that_would_take_too_much_memory_comes_without_its_payload(
    what: str, items: bytes, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "RESERVE_BYTES", 1 << 20)
    payload = b"\xdd" + (200_000).to_bytes(4, "big") + items * 200_000
    if what == "bytes in bytes":
        payload = b"\xc6" + (400_000).to_bytes(4, "big") + b"x" * 400_000
        for _ in range(30):
            payload = b"\x91" + payload
            payload = b"\xc9" + len(payload).to_bytes(4, "big") + b"\x01" + payload
    data = b"\x96\x01\xa4echo" + payload + b"\x07\xcd\x03\xe8\x00"
    decoder = codec.large_decoder(lambda: None)
    found = decoder.unpack(data)
    assert [*found[:2], *found[3:]] == [1, "echo", 7, 1000, 0]
    assert isinstance(found[2], Unreadable)
    assert "it would take more than 8 times its size and 1 MiB of memory" in found[2].why
    assert decoder.failures >= 1
    assert decoder.unpack(codec.pack_value([1, [2]])) == [1, [2]]


def test_what_is_within_the_reserve_always_fits(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty lists in a list take the most memory for their bytes; honest graphs with few edges have them."""
    monkeypatch.setattr(large, "RESERVE_BYTES", 1 << 20)
    assert codec.large_decoder(lambda: None).unpack(codec.pack_value([[]] * 11_000)) == [[]] * 11_000


@pytest.mark.parametrize("size", [10, 50_000])
def test_bytes_that_no_codec_writes_are_refused(size: int, codec: Codec) -> None:
    decoder = codec.large_decoder(lambda: None)
    data = codec.pack_value(list(range(size)))
    for bad in (data + b"\x01", data[:-1], b"\xc1" * size, b"\x91" * size):
        with pytest.raises(BadData):
            decoder.unpack(bad)
    inside = codec.pack_value(list(range(size))) + b"\x01"
    with pytest.raises(BadData):
        decoder.unpack(b"\xc9" + len(inside).to_bytes(4, "big") + b"\x01" + inside)
    assert decoder.unpack(data) == list(range(size))


def test_nesting_is_limited_as_in_small_messages(codec: Codec) -> None:
    value: Any = "x" * 40_000
    for _ in range(64):
        value = (value,)
    decoder = codec.large_decoder(lambda: None)
    assert decoder.unpack(codec.pack_value(value)) == value
    data = codec.pack_value(value)
    for _ in range(2):
        data = b"\x91" + data
        data = b"\xc9" + len(data).to_bytes(4, "big") + b"\x01" + data
    with pytest.raises(BadData, match="64 levels"):
        decoder.unpack(data)
    flat: Any = [1] * 70_000
    for _ in range(66):
        flat = [flat]
    with pytest.raises(BadData, match="64 levels"):
        decoder.unpack(msgpack.packb(flat))


@pytest.mark.parametrize(
    "value",
    [None, True, 1, 200, -100, 70_000, -70_000, 1 << 40, -(1 << 40), 1.5,
     *(kind * size for kind in ("a", b"a") for size in (1, 20, 40, 300, 70_000)),
     [], {}, [1] * 20, {n: n for n in range(20)}, [1, [2, {"a": [3]}]],
     *(msgpack.ExtType(5, b"a" * size) for size in (1, 2, 4, 8, 16, 3, 300, 70_000))],
    ids=repr,
)  # fmt: skip
def test_the_number_of_values_is_seen_from_their_first_bytes(
    value: Any,
) -> None:
    def count(value: Any) -> int:
        if isinstance(value, dict):
            return 1 + sum(count(key) + count(item) for key, item in value.items())
        return 1 + sum(map(count, value)) if isinstance(value, list) else 1

    data = memoryview(msgpack.packb([value, value]))
    assert has_few_values(data, 1 + 2 * count(value))
    assert not has_few_values(data, 2 * count(value))


def test_values_inside_extension_values_count_where_that_is_asked_for(codec: Codec) -> None:
    many: list[Any] = [1] * 300
    pairs = [(n, n) for n in range(60)]
    value: Any
    for value in (
        tuple(many),
        frozenset(range(300)),
        ((((tuple(many),),),),),
        Page("a", many),
        pairs,
        [(n,) for n in range(99)],
    ):
        data = memoryview(codec.pack_value([value]))
        assert has_few_values(data)
        assert not has_few_values(data, 180, inside=True)
        assert has_few_values(data, 1_000, inside=True)
    for value in (
        bytearray(5_000), memoryview(bytes(5_000)), array("B", bytes(5_000)), Decimal("1" * 5_000),
        1 << 9_000, UUID(int=1), bytearray(1), bytearray(3), "x" * 5_000,
    ):  # fmt: skip
        assert has_few_values(memoryview(codec.pack_value([value, value])), 3, inside=True), (
            "bytes of one value"
        )
    for cut in (b"\xd4", b"\xc7", b"\xc7\x05", b"\xc9\0\0"):
        assert has_few_values(memoryview(cut), 3, inside=True)


def test_a_batch_is_read_as_on_the_loop_within_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Codec()
    batch = [["box", [n, {1: [2]}]] for n in range(300)]
    data = codec.pack_value(batch)
    decoder = codec.large_decoder(lambda: None)
    assert decoder.unpack_batch(data) == codec.unpack_batch(data) == batch
    with pytest.raises(BadData, match="a batch is an array"):
        decoder.unpack_batch(b"\x80")
    monkeypatch.setattr(large, "RESERVE_BYTES", 1_000)
    with pytest.raises(BadData, match="more than 8 times"):
        decoder.unpack_batch(data)
