"""What messages weigh: the same at both ends, and about as much as they take in memory."""

from __future__ import annotations

import array
import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import msgpack
import pytest
from hypothesis import given, settings as effort, strategies as st

from fleetlm.ids import Pid, Ref
from fleetlm.messages import MessageTypes
from fleetlm.names import Address
from fleetlm.wire.codec import Codec
from fleetlm.wire.weights import CONTAINER_BYTES, EXTENSION_BYTES, PAIR_BYTES, VALUE_BYTES, Scale

TYPES = MessageTypes()


@dataclass(frozen=True)
class Order:
    number: int = 0
    lines: list[Any] = field(default_factory=list)


class Point(NamedTuple):
    x: Any
    y: Any


class Box:
    def __init__(self, inside: Any) -> None:
        self.inside = inside


TYPES.register("order", Order)
TYPES.register("point", Point)
TYPES.register_converter("box", Box, lambda box: box.inside, Box)

HASHABLE = st.none() | st.integers(-(2**80), 2**80) | st.text(max_size=3) | st.binary(max_size=3)
VALUES = st.recursive(
    HASHABLE | st.floats() | st.decimals(allow_nan=False) | st.uuids() | st.just(datetime.now(UTC)),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(HASHABLE, inner)
        | st.sets(HASHABLE)
        | st.frozensets(HASHABLE)
        | st.builds(Order, st.integers(0, 3), st.lists(inner))
        | st.builds(Point, inner, inner)
        | st.builds(Box, inner)
    ),
    max_leaves=20,
)


def batch_of(packed: list[bytes]) -> bytes:
    return msgpack.Packer().pack_array_header(len(packed)) + b"".join(packed)


def packed(codec: Codec, value: Any) -> tuple[bytes, int]:
    """The message, and its weight as the sender counts it."""
    data = codec.pack_whole(["box", value], value)
    return data, len(data) + codec.extra_bytes


@effort(max_examples=15)
@given(st.lists(VALUES, max_size=20))
def test_both_ends_find_the_same_weights(values: list[Any]) -> None:
    codec = Codec(TYPES)
    messages = [packed(codec, value) for value in values]
    found = list(Scale().weights(batch_of([data for data, _ in messages]), 0))
    for value, weight, (data, at_sender) in zip(values, found, messages, strict=True):
        decoder = codec.large_decoder(lambda: None)
        decoder.unpack(data)
        assert weight == len(data) + decoder.extra_bytes
        assert weight == at_sender, value


def test_values_before_a_key_that_is_no_scalar_count_once() -> None:
    data, at_sender = packed(Codec(), {"a": [], (1,): []})
    assert Scale().weight(data) == at_sender


def test_containers_and_values_count() -> None:
    codec = Codec()
    for value, extra in (
        (5, 0),
        (b"x" * 500, 0),
        ([], CONTAINER_BYTES),
        ([1, 2.5, "x"], CONTAINER_BYTES + 3 * VALUE_BYTES),
        ({"a": []}, 2 * CONTAINER_BYTES + PAIR_BYTES),
        (Decimal(1), EXTENSION_BYTES),
        ((1, 2), EXTENSION_BYTES + CONTAINER_BYTES + 2 * VALUE_BYTES),
        ({7}, EXTENSION_BYTES + CONTAINER_BYTES + VALUE_BYTES),
        (2**100, 0),
    ):
        data, weight = packed(codec, value)
        assert weight == len(data) + extra
        codec.pack_value(value)
        assert codec.extra_bytes == extra


def test_a_message_does_not_weigh_what_the_one_before_it_did() -> None:
    codec = Codec()
    codec.pack(["box", [[]]], [[]])
    codec.pack(["box", "text"], "text")
    assert codec.extra_bytes == 0


def test_short_messages_of_a_batch_are_not_looked_at() -> None:
    codec = Codec()
    small, large = packed(codec, [[]])[0], packed(codec, [[]] * 300)[0]
    weights = list(Scale().weights(memoryview(b"head" + batch_of([small, large, small]))[4:], 272))
    assert weights == [0, len(large) + 301 * CONTAINER_BYTES + 300 * VALUE_BYTES, 0]


def test_what_is_no_list_of_fields_weighs_nothing() -> None:
    for message in ({"x" * 300: 1}, "x" * 300, 5):
        assert list(Scale().weights(batch_of([msgpack.packb(message)]), 0)) == [0]


def zone(minutes: int) -> timezone:
    return timezone(timedelta(minutes=minutes), "a")


WORST: dict[str, Callable[[int], Any]] = {
    "empty list": lambda _: [],
    "empty dict": lambda _: {},
    "empty set": lambda _: set(),
    "list of one": lambda _: [None],
    "dict of one": lambda _: {1: None},
    "set of one": lambda _: {1},
    "tuple of one": lambda _: (None,),
    "frozenset of one": lambda _: frozenset((1,)),
    "lists in lists": lambda _: [[[[[]]]]],
    "float": lambda n: n / 7,
    "int": lambda n: n + 1_000,
    "large int": lambda n: 2**70 + n,
    "short text": lambda n: f"{n % 90:02}",
    "short text that is not ASCII": lambda n: "日" + chr(0x4E00 + n % 90),
    "short bytes": lambda n: b"%02d" % (n % 90),
    "bytearray": lambda _: bytearray(),
    "memoryview": lambda _: memoryview(b""),
    "array": lambda _: array.array("b"),
    "Decimal": lambda n: Decimal(n % 10),
    "UUID": lambda n: UUID(int=n),
    "date": lambda n: date.fromordinal(1_000 + n),
    "time": lambda n: time(1, 2, 3, n),
    "timedelta": timedelta,
    "datetime": lambda n: datetime(2020, 1, 1, 1, 1, 1, n, UTC),
    "datetime in a zone of its own": lambda n: datetime(2020, 1, 1, tzinfo=zone(n % 600 - 300)),
    "Pid": lambda n: Pid("a", 300 + n, 300 + n),
    "Ref": lambda n: Ref("a", 300 + n, 300 + n),
    "Address": lambda _: Address("ab", "bc"),
    "record at its defaults": lambda _: Order(),
    "record": lambda n: Order(1_000 + n, [n]),
    "NamedTuple": lambda n: Point(n / 7, n / 7),
}


@pytest.mark.parametrize("kind", WORST)
def test_no_kind_of_value_takes_more_than_two_and_a_half_times_what_it_weighs(kind: str) -> None:
    count = 500
    data, weight = packed(Codec(TYPES), [WORST[kind](n) for n in range(count)])
    receiver = Codec(TYPES)
    receiver.unpack(data)  # It makes its tables now.
    gc.collect()
    tracemalloc.start()
    try:
        message = receiver.unpack(data)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(message[1]) == count
    assert taken < 2.5 * weight, f"{taken / weight:.2f} ({taken / count:.0f} of {weight / count:.0f} bytes)"
