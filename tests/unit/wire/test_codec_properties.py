"""The codec by property: every value that can be sent comes back the same, and no input breaks it."""

from __future__ import annotations

import datetime as dt
import string
from array import array
from dataclasses import dataclass, fields
from decimal import Decimal
from enum import Enum, Flag
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import assume, example, given, settings, strategies as st

from fleetlm.errors import NotSerializable
from fleetlm.ids import Pid, Ref
from fleetlm.messages import MessageTypes
from fleetlm.names import Address
from fleetlm.wire.codec import BadData, Codec, Unreadable, unreadable_in


@dataclass(frozen=True)
class Note:
    head: Any
    body: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    x: float
    y: float = 0.0


class Light(Enum):
    RED = "red"
    GREEN = "green"


class Right(Flag):
    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    x: Any
    y: Any = ()


class Price:
    """Travels through two functions."""

    def __init__(self, amount: Any) -> None:
        self.amount = amount

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Price) and other.amount == self.amount

    def __hash__(self) -> int:
        return hash(self.amount)

    @classmethod
    def from_value(cls, value: Any) -> Price:
        (amount,) = value
        return cls(amount)


TYPES = MessageTypes()
TYPES.register("light", Light)
TYPES.register("right", Right)
TYPES.register("pair", Pair)
TYPES.register_converter("price", Price, lambda price: [price.amount], Price.from_value)
TYPES.register("note", Note)
TYPES.register("point", Point)
ZONES = [ZoneInfo(key) for key in ("UTC", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu")]

TEXTS = st.text(max_size=20)
INTS = st.integers() | st.integers(-(2**130), 2**130)
OFFSETS = st.timedeltas(
    min_value=dt.timedelta(hours=-23, minutes=-59), max_value=dt.timedelta(hours=23, minutes=59)
)
FIXED = st.builds(dt.timezone, OFFSETS) | st.builds(dt.timezone, OFFSETS, TEXTS)
DATETIMES = st.builds(
    lambda naive, zone, fold: naive.replace(tzinfo=zone, fold=fold),
    st.datetimes(),
    FIXED | st.sampled_from(ZONES),
    st.sampled_from([0, 1]),
)
NUMBERS = st.integers(0, 2**64 - 1)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    INTS,
    st.floats(allow_nan=False),
    TEXTS,
    st.binary(max_size=40),
    DATETIMES,
    st.uuids(),
    st.decimals(allow_nan=False),
    st.builds(Pid, TEXTS, NUMBERS, NUMBERS),
    st.builds(Ref, TEXTS, NUMBERS, NUMBERS),
    st.builds(Address, TEXTS, TEXTS),
    st.builds(Point, x=st.floats(allow_nan=False), y=st.floats(allow_nan=False)),
    st.dates(),
    st.times() | st.builds(dt.time, st.integers(0, 23), tzinfo=FIXED | st.sampled_from(ZONES)),
    st.timedeltas(),
    st.sampled_from([*Light, *Right, Right(0), Right.READ | Right.WRITE]),
)
HASHABLE = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.frozensets(inner, max_size=3)
        | st.builds(Note, inner, inner)
        | st.builds(Pair, inner, inner)
        | st.builds(Price, inner)
    ),
    max_leaves=6,
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.dictionaries(TEXTS, inner, max_size=4),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
        st.builds(Note, inner, inner),
        st.builds(Pair, inner, inner),
        st.builds(Price, inner),
        st.binary(max_size=9).map(bytearray),
        st.lists(st.integers(-9, 9), max_size=3).map(lambda items: array("b", items)),
    ),
    max_leaves=25,
)


def form(value: Any) -> Any:
    """A value with its types spelt out, so that 1, 1.0 and True differ, and so do tuple and list."""
    kind = type(value)
    if kind is dict:
        return (kind, [(form(key), form(item)) for key, item in value.items()])
    if kind in (set, frozenset):
        return (kind, sorted((form(item) for item in value), key=repr))
    if kind in (list, tuple, Address, Pair):
        return (kind, [form(item) for item in value])
    if kind is Price:
        return (kind, form(value.amount))
    if kind in (Note, Point):
        return (kind, [form(getattr(value, field.name)) for field in fields(value)])
    if kind is dt.datetime:
        zone = value.tzinfo
        name = zone.key if isinstance(zone, ZoneInfo) else (zone.utcoffset(None), zone.tzname(None))
        return (kind, value.replace(tzinfo=None), value.fold, type(zone), name)
    return (kind, repr(value))


CODEC = Codec(TYPES)


@given(VALUES)
@settings(max_examples=120)
def test_what_arrives_is_what_was_sent(value: Any) -> None:
    failures = CODEC.failures
    _, arrived, _ = CODEC.unpack(CODEC.pack_whole([7, value, None], value))
    assert form(arrived) == form(value)
    assert arrived == value
    assert CODEC.failures == failures
    assert unreadable_in(arrived) is None


@given(st.lists(VALUES, max_size=5))
def test_a_batch_is_its_messages_one_after_the_other(values: list[Any]) -> None:
    data = msgpack.Packer().pack_array_header(len(values))
    data += b"".join(CODEC.pack_whole([number, value], value) for number, value in enumerate(values))
    for view in (data, memoryview(data), memoryview(b"x" + data)[1:]):
        batch = CODEC.unpack_batch(view)
        assert form(batch) == form([[number, value] for number, value in enumerate(values)])


@given(VALUES)
def test_equal_bytes_for_equal_sends(value: Any) -> None:
    data = CODEC.pack_value(value)
    assert data == Codec(TYPES).pack_value(value)
    assert CODEC.pack_value(CODEC.unpack(data)) == data


@given(st.floats(allow_nan=True, allow_infinity=True) | st.floats(width=32))
def test_floats_to_the_bit(value: float) -> None:
    arrived = CODEC.unpack(CODEC.pack_value(value))
    assert arrived.hex() == value.hex()


@given(st.text(st.characters(categories=["Cs", "Lu"]), min_size=1))
def test_text_that_utf8_cannot_carry(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        for value in (text, [text], {text: 1}, (1, {"k": text}), Note(text), {1, text}):
            with pytest.raises(NotSerializable, match="lone surrogate"):
                CODEC.pack_value(value)
    else:
        assert CODEC.unpack(CODEC.pack_value(text)) == text


STRANGE = st.one_of(
    st.builds(object),
    st.complex_numbers(),
    st.builds(range, st.integers(0, 3)),
    st.datetimes(),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=3)),
    st.just("\ud800"),
)


@given(VALUES, STRANGE, st.lists(st.integers(0, 5), max_size=6))
def test_one_strange_value_is_found_wherever_it_hides(value: Any, strange: Any, ways: list[int]) -> None:
    message: Any = strange
    path = ""
    for way in ways:
        message, step = [
            lambda inner: ([value, inner], "[1]"),
            lambda inner: ((inner, value), "[0]"),
            lambda inner: ({"k": inner}, "['k']"),
            lambda inner: ({(1,): value, "k": inner}, "['k']"),
            lambda inner: (Note(value, inner), ".body"),
            lambda inner: ({"a": value, 5: inner}, "[5]"),
        ][way](message)
        path = step + path
    with pytest.raises(NotSerializable) as refused:
        CODEC.pack_whole([7, message], message)
    assert refused.value.path == "message" + path


def allowed(value: Any) -> bool:
    """Whether a decoded value holds nothing but what may be sent, and `Unreadable`."""
    kind = type(value)
    if kind is dict:
        return all(allowed(key) and allowed(item) for key, item in value.items())
    if kind in (list, tuple, set, frozenset, Address, Pair):
        return all(allowed(item) for item in value)
    if kind is Price:
        return allowed(value.amount)
    if type(kind).__module__ == "numpy" or kind.__module__ == "numpy":
        return True
    if kind in (Note, Point):
        return all(allowed(getattr(value, field.name)) for field in fields(value))
    if kind is dt.datetime:
        return value.tzinfo is not None
    known = (type(None), bool, int, float, str, bytes, UUID, Decimal, Pid, Ref, Unreadable)
    more = (dt.date, dt.time, dt.timedelta, Light, Right, bytearray, memoryview, array)
    return kind in known or kind in more


def survives(data: bytes) -> None:
    codec = Codec(TYPES)
    for read in (codec.unpack, codec.unpack_batch):
        before = codec.failures
        try:
            value = read(data)
        except BadData as error:
            assert len(str(error)) < 300  # noqa: PT017  # a value is right as well
        else:
            assert allowed(value)
            if unreadable_in(value) is not None:
                assert codec.failures > before
        assert codec.unpack(b"\x92\x01\xc7\x01\x01\x90") == [1, ()]


@given(st.binary(max_size=200))
@settings(max_examples=120)
@example(b"\xdd\xff\xff\xff\xff" * 40)
@example(b"\xc7\x05\x01\xdd\xff\xff\xff\xff")
def test_random_bytes_do_no_harm(data: bytes) -> None:
    survives(data)


WORDS = ["note", "point", "x", "head", "UTC", "light", "RED", "right", "pair", "price"]
TOKENS = st.one_of(
    st.sampled_from([bytes([n]) for n in range(256)]),
    st.builds(
        lambda code, body: bytes(msgpack.packb(msgpack.ExtType(code, body))),
        st.integers(0, 21),
        st.binary(max_size=12) | st.lists(st.integers(-9, 9), max_size=9).map(msgpack.packb),
    ),
    st.sampled_from([msgpack.packb(text) for text in WORDS]),
)


@given(st.lists(TOKENS, max_size=40))
@settings(max_examples=120)
def test_random_tokens_do_no_harm(tokens: list[bytes]) -> None:
    survives(b"".join(tokens))


@given(VALUES, st.data())
@settings(max_examples=120)
def test_a_damaged_message_does_no_harm(value: Any, data: st.DataObject) -> None:
    packed = bytearray(CODEC.pack_whole([7, value], value))
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(packed) - 1))
        match data.draw(st.sampled_from(["change", "drop", "insert", "cut", "double"])):
            case "change":
                packed[where] = data.draw(st.integers(0, 255))
            case "drop":
                del packed[where]
            case "insert":
                packed.insert(where, data.draw(st.integers(0, 255)))
            case "cut":
                del packed[where:]
            case _:
                packed[where:where] = packed[: where + 1]
        if not packed:
            break
    survives(bytes(packed))


BODIES = st.recursive(
    st.none()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(string.ascii_letters, max_size=5)
    | st.floats()
    | st.binary(max_size=20)
    | st.sampled_from(WORDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=9),
        st.dictionaries(st.text(max_size=3) | st.integers(-9, 9), inner, max_size=3),
        st.builds(lambda code, body: msgpack.ExtType(code, msgpack.packb(body)), st.integers(0, 21), inner),
    ),
    max_leaves=20,
)


@given(BODIES)
@settings(max_examples=120)
def test_well_formed_nonsense_does_no_harm(body: Any) -> None:
    try:
        data = msgpack.packb(body)
    except (OverflowError, UnicodeEncodeError):
        assume(False)
        return
    survives(data)


@given(st.integers(1, 300), st.lists(st.sampled_from("ltdfn"), min_size=1, max_size=4))
@settings(max_examples=60)
def test_both_sides_agree_on_depth(levels: int, ways: list[str]) -> None:
    wraps: dict[str, Any] = {
        "l": lambda inner: [inner],
        "t": lambda inner: (inner,),
        "d": lambda inner: {"k": inner},
        "f": Note,
        "n": Pair,
    }
    value: Any = 0
    for level in range(levels):
        value = wraps[ways[level % len(ways)]](value)
    if levels > 64:
        with pytest.raises(NotSerializable, match="64 levels"):
            CODEC.pack_whole([7, value], value)
    else:
        data = CODEC.pack_whole([7, value], value)
        assert CODEC.unpack(data) == [7, value]
        assert CODEC.unpack_batch(b"\x91" + data) == [[7, value]]
