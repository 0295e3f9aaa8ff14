"""A batch that is unpacked in slices holds what it holds otherwise, and no slice takes long."""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

import msgpack
import pytest
from hypothesis import given, strategies as st

from fleetlm.wire import sliced_batch
from fleetlm.wire.codec import BadData, Codec
from fleetlm.wire.decoder import TooManySteps
from fleetlm.wire.extensions import Ext, Unreadable
from fleetlm.wire.sliced_batch import SLICE_BYTES, WHOLE_BYTES, SlicedBatch, array_head

CODEC = Codec()


def batch_of(*messages: Any) -> bytes:
    return array_head(len(messages)) + b"".join(map(CODEC.pack_value, messages))


def unpack(batch: SlicedBatch) -> list[Any]:
    return [message for messages, _ in batch.slices() for message in messages]


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5_000) | st.binary(max_size=5_000) | st.dates(),
    lambda inside: st.lists(inside) | st.tuples(inside) | st.dictionaries(st.integers(), inside),
    max_leaves=20,
)


@given(st.lists(VALUES, max_size=40))
def test_it_holds_the_same_messages(messages: list[Any]) -> None:
    batch = CODEC.sliced_batch(memoryview(batch_of(*messages)))
    assert unpack(batch) == messages
    assert (batch.count, batch.failures) == (len(messages), 0)
    assert batch.rest == array_head(0)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 70_000])
def test_all_heads_of_an_array_are_read(count: int) -> None:
    assert unpack(CODEC.sliced_batch(memoryview(msgpack.packb([7] * count)))) == [7] * count


def test_each_slice_is_small_and_comes_with_its_bytes() -> None:
    messages = [["box", "x" * (number % 300), (number,)] for number in range(2_000)]
    packed = batch_of(*messages)
    batch, found, joined = CODEC.sliced_batch(memoryview(packed)), [], b""
    for part, its_bytes in batch.slices():
        assert len(its_bytes) < SLICE_BYTES + 400
        assert CODEC.unpack_batch(array_head(len(part)) + its_bytes) == part
        assert CODEC.unpack_batch(batch.rest) == messages[len(found) + len(part) :]
        found += part
        joined += its_bytes
    assert found == messages
    assert array_head(len(messages)) + joined == packed


def test_a_message_that_is_longer_than_a_slice_gives_way_in_between() -> None:
    batch = CODEC.sliced_batch(memoryview(batch_of(["box", [()] * 3_000])))
    assert [len(messages) for messages, _ in batch.slices()] == [0] * (3_000 * 3 // SLICE_BYTES) + [1]
    assert batch.values > 3_000


@pytest.mark.parametrize(
    "long",
    [
        [[]] * WHOLE_BYTES * 2,
        tuple([0] * WHOLE_BYTES * 2),
        {number: [] for number in range(WHOLE_BYTES)},
        ["text"] * WHOLE_BYTES,
    ],
    ids=["lists", "tuple", "dict", "texts"],
)
@pytest.mark.parametrize("before", [0, 1, 500])
def test_a_long_message_of_many_values_is_left_with_all_that_follows(long: Any, before: int) -> None:
    messages = [*[["box", "a message"]] * before, ["box", long], ["box", 2]]
    batch, found = CODEC.sliced_batch(memoryview(batch_of(*messages))), []
    with pytest.raises(TooManySteps):
        found.extend(message for part, _ in batch.slices() for message in part)
    assert len(found) <= before
    assert found + CODEC.unpack_batch(batch.rest) == messages


@pytest.mark.parametrize(
    "long", ["x" * 200_000, bytes(200_000), (bytes(200_000),), {"a": ["x" * 100_000] * 3}], ids=type
)
def test_a_long_message_of_few_values_is_unpacked(long: Any) -> None:
    messages = [["box", 1], ["box", long], ["box", 2]]
    assert unpack(CODEC.sliced_batch(memoryview(batch_of(*messages)))) == messages


def test_what_cannot_be_rebuilt_is_replaced_and_counted() -> None:
    unknown = b"\xd4\x7f\x00"
    packed = array_head(900) + (b"\x92\xa3box" + unknown) * 900
    batch = CODEC.sliced_batch(memoryview(packed))
    failures = [batch.failures for _ in batch.slices()]
    assert failures == sorted(set(failures))
    assert batch.failures == 900
    assert {type(message[1]) for message in unpack(CODEC.sliced_batch(memoryview(packed)))} == {Unreadable}


def test_colliding_keys_are_found() -> None:
    prime = (1 << 61) - 1
    keys = b"".join(msgpack.packb(number * prime + 5) + b"\xc0" for number in range(8))
    huge = [msgpack.ExtType(Ext.UUID, (number * prime + 5).to_bytes(16, "big")) for number in range(1_000)]
    pairs = b"".join(msgpack.packb(key) + b"\xc0" for key in huge)
    packed = array_head(2) + b"\x92\x01\x88" + keys + b"\x92\x01\xde" + (1_000).to_bytes(2, "big") + pairs
    batch = CODEC.sliced_batch(memoryview(packed))
    with pytest.raises(TooManySteps):
        unpack(batch)
    short = array_head(1) + b"\x92\x01\xde" + (400).to_bytes(2, "big") + pairs[: 400 * 19]
    batch = CODEC.sliced_batch(memoryview(short))
    assert type(unpack(batch)[0][1]) is Unreadable
    assert batch.failures == 1


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "empty"),
        (b"\x80", "an array of messages"),
        (b"\xc1", "an array of messages"),
        (b"\xdd\0\0", "OutOfData"),
        (array_head(2) + b"\x01", "not whole"),
        (array_head(1) + b"\x01\x02", "behind the batch"),
        (array_head(1) + b"\x01" + bytes(5_000), "behind the batch"),
        (array_head(2) + b"\x01\xc1", "not a message"),
        (array_head(1) + msgpack.packb(nested(400)), "nest"),
        (array_head(1) + msgpack.packb(msgpack.ExtType(Ext.TUPLE, b"\xc1")), "not a message"),
        (array_head(1) + msgpack.packb(msgpack.ExtType(Ext.TUPLE, b"\x90\x90")), "behind the value"),
    ],
)
def test_nonsense_is_refused_as_elsewhere(body: bytes, why: str) -> None:
    with pytest.raises(BadData):
        CODEC.unpack_batch(body)
    with pytest.raises(BadData, match=why):
        unpack(CODEC.sliced_batch(memoryview(body)))


def test_a_value_that_is_cut_short_is_not_taken_for_the_end_of_a_slice() -> None:
    tuple_that_is_cut = msgpack.packb(msgpack.ExtType(Ext.TUPLE, b"\x92\x01"))
    message = b"\x93" + tuple_that_is_cut + msgpack.packb("x" * 3 * SLICE_BYTES) + b"\x01"
    body = array_head(1) + message
    for unpack_it in (CODEC.unpack_batch, lambda body: unpack(CODEC.sliced_batch(memoryview(body)))):
        with pytest.raises(BadData, match="No more data"):
            unpack_it(body)


def test_a_batch_that_is_cut_anywhere_is_refused_and_what_came_before_is_fine() -> None:
    messages = [["box", dt.date(2026, 1, 1 + number % 28), "x" * 40] for number in range(200)]
    packed, rng = batch_of(*messages), random.Random(7)
    for _ in range(50):
        cut, found = rng.randrange(1, len(packed)), []
        batch = CODEC.sliced_batch(memoryview(packed[:cut]))
        with pytest.raises(BadData):
            found.extend(message for part, _ in batch.slices() for message in part)
        assert found == messages[: len(found)]


def test_two_batches_are_unpacked_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced_batch, "SLICE_BYTES", 64)
    messages = [["box", (number, {1: "x"})] for number in range(200)]
    packed = batch_of(*messages)
    one, other = (CODEC.sliced_batch(memoryview(packed)).slices() for _ in range(2))
    found: list[Any] = []
    for (part, _), (same, _) in zip(one, other, strict=True):
        assert part == same
        assert CODEC.unpack_batch(array_head(1) + CODEC.pack_value(["box", 3])) == [["box", 3]]
        found += part
    assert found == messages
