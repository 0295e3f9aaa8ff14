"""The carrier: it round-trips what fits, drops what does not, and never raises for what a peer sends."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import example, given, strategies as st

from fleetlm.wire.carriers import (
    EMPTY,
    FEATURE,
    MAX_CARRIER_BYTES,
    MAX_NAME_CHARS,
    MAX_VALUE_BYTES,
    MAX_VALUES,
    checked_carrier,
    is_known_to,
    may_travel,
    pack_carrier,
    size_of,
    unpack_carrier,
)

NAMES = st.text(st.characters(codec="ascii"), min_size=1, max_size=MAX_NAME_CHARS)
VALUES = st.one_of(
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.text(st.characters(codec="utf-8"), max_size=60),
    st.binary(max_size=200),
)
LONG = (st.text(max_size=3_000), st.binary(max_size=3_000))
ANYTHING = st.one_of(st.integers(), *LONG, st.none(), st.booleans())


@given(st.dictionaries(NAMES, VALUES, max_size=10))
def test_what_fits_arrives_as_it_was_sent(values: dict[str, Any]) -> None:
    packed = pack_carrier(values)
    assert unpack_carrier(packed) == values
    assert [*unpack_carrier(packed)] == [*values]
    assert checked_carrier(packed) is packed
    assert all(type(unpack_carrier(packed)[name]) is type(value) for name, value in values.items())


@given(st.dictionaries(st.text(max_size=80), ANYTHING, max_size=40))
def test_what_does_not_fit_is_left_out_and_the_rest_arrives(values: dict[str, Any]) -> None:
    packed = pack_carrier(values)
    assert len(packed) <= MAX_CARRIER_BYTES
    arrived = unpack_carrier(packed)
    assert arrived.items() <= values.items()
    assert len(arrived) <= MAX_VALUES
    assert all(may_travel(*pair) for pair in arrived.items())
    fitting = {name: value for name, value in values.items() if may_travel(name, value)}
    if len(fitting) <= MAX_VALUES and sum(len(msgpack.packb(pair)) for pair in fitting.items()) < 4_000:
        assert arrived == fitting


@given(st.binary(max_size=300))
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xde\x00\x01\xa1a")
@example(msgpack.packb({"a": {"b": 1}}))
@example(msgpack.packb({"a": [1]}))
@example(msgpack.packb({"a": True}))
@example(msgpack.packb({"a": 1.5}))
@example(msgpack.packb({"a": None}))
@example(msgpack.packb({1: 1}))
@example(msgpack.packb({b"a": 1}))
@example(msgpack.packb({"": 1}))
@example(msgpack.packb({"é": 1}))
@example(msgpack.packb({"a": msgpack.Timestamp(1)}))
@example(msgpack.packb({"a": msgpack.ExtType(5, b"x")}))
@example(b"\x81\xa1a\xa1\xff")
@example(b"\x81" * 3_000)
@example(msgpack.packb({"a": 1}) + b"\x00")
def test_whatever_a_peer_sends_is_unpacked_or_dropped(data: bytes) -> None:
    values = unpack_carrier(data)
    assert all(may_travel(*pair) for pair in values.items())
    if values:
        assert unpack_carrier(pack_carrier(values)) == values


@pytest.mark.parametrize(
    "values",
    [
        {str(number): 1 for number in range(MAX_VALUES + 1)},
        {"a" * (MAX_NAME_CHARS + 1): 1},
        {"a": "x" * (MAX_VALUE_BYTES + 1)},
        {"a": b"x" * (MAX_VALUE_BYTES + 1)},
        {"a": "é" * (MAX_VALUE_BYTES // 2 + 1)},
        dict.fromkeys("abc", b"x" * 1500),
    ],
    ids=["many", "name", "text", "bytes", "encoded", "whole"],
)
def test_a_carrier_beyond_a_limit_is_dropped_as_a_whole(values: dict[str, Any]) -> None:
    assert unpack_carrier(msgpack.packb(values)) == {}
    packed = pack_carrier(values)
    assert len(unpack_carrier(packed)) == min(len(values) - 1, MAX_VALUES)


@pytest.mark.parametrize("carrier", [None, 1, "x", [], {}, b"x" * (MAX_CARRIER_BYTES + 1), bytearray(b"x")])
def test_what_cannot_be_a_carrier_counts_as_an_empty_one(carrier: Any) -> None:
    assert checked_carrier(carrier) == EMPTY
    assert unpack_carrier(EMPTY) == {}


@pytest.mark.parametrize("value", [True, 1.5, None, [], 1 << 64, -(1 << 63) - 1, "\ud800", object()])
def test_only_texts_integers_and_bytes_travel(value: Any) -> None:
    assert not may_travel("name", value)
    assert pack_carrier({"name": value}) == EMPTY


def test_the_first_values_win_where_there_is_no_room_for_all() -> None:
    values: dict[str, Any] = {"a": b"x" * 2_000, "b": b"x" * 2_000, "c": b"x" * 500, "d": 1}
    assert [*unpack_carrier(pack_carrier(values))] == ["a", "b", "d"]


def test_a_node_says_that_it_takes_carriers() -> None:
    assert is_known_to(("denies spawn", FEATURE))
    assert not is_known_to(("denies spawn",))


def test_a_text_beyond_all_limits_is_not_encoded_to_be_measured() -> None:
    assert size_of("x" * (MAX_CARRIER_BYTES + 1)) == MAX_CARRIER_BYTES + 1
    assert size_of("é") == 2
