"""The codec by example: what can be sent, what is refused and with which text, and malformed bytes."""

from __future__ import annotations

import datetime as dt
import struct
import subprocess
import sys
import threading
from array import array
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest

from fleetlm.errors import MessageTooLarge, NotSerializable
from fleetlm.ids import Pid, Ref
from fleetlm.messages import MessageTypes
from fleetlm.names import Address
from fleetlm.wire.codec import BadData, Codec, Ext, Unreadable, unreadable_in

UTC = dt.UTC
NOON = dt.datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


@dataclass(frozen=True)
class Append:
    session: str
    line: Any
    tags: list[str] = field(default_factory=list)


@dataclass
class Stranger:
    x: int


@dataclass
class Picky:
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError(f"n is {self.n}, below 0")


@dataclass(slots=True)
class Slotted:
    here: int
    gone: int = 0


class Light(Enum):
    RED = object()  # a member travels by its name, so its value may be anything
    GREEN = (1,)


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Role(StrEnum):
    USER = "user"


class Right(Flag):
    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    x: Any
    y: Any = None


class Price:
    """A class that is no dataclass."""

    def __init__(self, amount: Any) -> None:
        self.amount = amount

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Price) and other.amount == self.amount

    def __hash__(self) -> int:
        return hash(self.amount)

    def __repr__(self) -> str:
        return f"Price({self.amount!r})"

    def to_value(self) -> Any:
        if isinstance(self.amount, complex):
            raise TypeError("it has no amount")
        return [self.amount]

    @classmethod
    def from_value(cls, value: Any) -> Price:
        (amount,) = value
        if isinstance(amount, str):
            raise ValueError(f"the amount is {amount}")  # noqa: TRY004
        return cls(amount)


@pytest.fixture
def types() -> MessageTypes:
    types = MessageTypes()
    for tag, enum in {"light": Light, "level": Level, "role": Role, "right": Right}.items():
        types.register(tag, enum)
    types.register("pair", Pair)
    types.register_converter("price", Price, Price.to_value, Price.from_value)
    types.register("append", Append)
    types.register("picky", Picky)
    types.register("slotted", Slotted)
    return types


@pytest.fixture
def codec(types: MessageTypes) -> Codec:
    return Codec(types)


def there_and_back(codec: Codec, value: Any) -> Any:
    envelope = codec.unpack(codec.pack_whole([1, "to", value, None], value))
    assert envelope[:2] == [1, "to"]
    assert envelope[3] is None
    (alone,) = codec.unpack_batch(msgpack.Packer().pack_array_header(1) + codec.pack_value([value]))
    assert repr(alone) == repr([envelope[2]])
    assert codec.failures == 0
    return envelope[2]


def deep(levels: int, wrap: Any = lambda inner: [inner], core: Any = 0) -> Any:
    value = core
    for _ in range(levels):
        value = wrap(value)
    return value


# ── what travels ─────────────────────────────────────────────────────────────────────────────────

VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        2**63,
        2**64 - 1,
        -(2**63),
        2**64,
        -(2**63) - 1,
        2**1000,
        -(2**999),
    ),
    *(0.0, -0.0, 1.5, float("inf"), float("-inf"), 5e-324),
    *("", "a", "ä", "🦊", "\x00", b"", b"\xff\x00", b"x" * 70_000, "y" * 70_000),
    *([], [1, [2, [3]]], (), (1,), ((), ((),)), [(1, 2), [3, (4,)]], ([1], {"a": (2,)})),
    *({}, {"a": 1}, {"b": 1, "a": 2}, {1: "x", 2.5: "y", None: "z", b"k": 0, False: 1}),
    *({(1, 2): "t", ("a", (b"b",)): (1,)}, {frozenset({1}): 1, NOON: 2, UUID(int=5): 3}),
    *(set(), {1, 2, 3}, {"a", b"a", None, (1, 2)}, frozenset(), frozenset({1, frozenset({2})})),
    *({1.0}, {True}, {1}, {2**70, -(2**70)}, [2**70], {2**80: 2**81}),
    *(NOON, NOON.astimezone(BERLIN), dt.datetime.min.replace(tzinfo=UTC)),
    dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))),
    dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.timezone(-dt.timedelta(hours=23))),
    dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(seconds=1, microseconds=7))),
    dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "MEZ")),
    *(UUID(int=0), UUID(int=2**128 - 1)),
    *(Decimal("1.10"), Decimal("-0"), Decimal("1E+1000"), Decimal("Infinity"), Decimal("-0E-7")),
    *(Pid("fleetlm@10.0.0.7", 2**64 - 1, 12), Ref("fleetlm@fdaa::2", 1, 2**40)),
    *(Address("printer", "fleetlm@10.0.0.7"), [Address("a", "b"), ("a", "b")]),
    *(Append("s", "hello"), Append("s", (1, {2}), ["t"]), [Append("s", Append("t", None))]),
    *(dt.date(1, 1, 1), dt.date(9999, 12, 31), dt.timedelta(0), dt.timedelta.min, dt.timedelta.max),
    *(dt.time(0), dt.time(23, 59, 59, 999_999, fold=1), dt.time(9, tzinfo=UTC), dt.time(9, tzinfo=BERLIN)),
    *(
        Light.RED,
        {Light.RED: Light.GREEN},
        {Level.LOW},
        Level.HIGH,
        Role.USER,
        Right.READ | Right.WRITE,
        Right(0),
    ),
    *(Pair(1), Pair(1, "y"), [Pair((1, 2), Pair(3))], {Pair(1, 2): 3}, Append("s", Pair(1))),
    *(Price(Decimal("1.10")), {Price(1): [Price(2)]}, Append("s", Price(3))),
    *(
        bytearray(),
        bytearray(b"x\x00"),
        array("d", [1.5, -2]),
        array("b"),
        array("Q", [2**63]),
    ),
]


@pytest.mark.parametrize(
    "value", VALUES, ids=[f"{i}-{type(value).__name__}" for i, value in enumerate(VALUES)]
)
def test_a_value_arrives_as_it_was_sent(codec: Codec, value: Any) -> None:
    arrived = there_and_back(codec, value)
    assert arrived == value
    assert repr(arrived) == repr(value) or isinstance(value, set | frozenset | dict)
    assert type(arrived) is type(value)


def test_numbers_keep_their_type_and_sign(codec: Codec) -> None:
    arrived = there_and_back(codec, [1, 1.0, True, -0.0, float("nan")])
    assert [type(item) for item in arrived] == [int, float, bool, float, float]
    assert str(arrived[3]) == "-0.0"
    assert arrived[4] != arrived[4]


def test_decimals_that_are_not_numbers(codec: Codec) -> None:
    for text in ("NaN", "-NaN123", "sNaN", "sNaN7"):
        assert str(there_and_back(codec, Decimal(text))) == text


def test_dicts_keep_their_order(codec: Codec) -> None:
    value = {"z": 1, (1,): 2, "a": 3, 2**70: (4,), None: 5}
    assert list(there_and_back(codec, value).items()) == list(value.items())


def test_nan_keys_stay_apart(codec: Codec) -> None:
    nans = {float("nan"): 1, float("nan"): 2}
    assert sorted(there_and_back(codec, nans).values()) == [1, 2]


def test_both_sides_of_a_clock_change(codec: Codec) -> None:
    for fold in (0, 1):
        value = dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=fold)
        arrived = there_and_back(codec, value)
        assert arrived.fold == fold
        assert arrived.tzinfo is BERLIN
        assert arrived.utcoffset() == value.utcoffset()


def test_a_zone_keeps_its_name(codec: Codec) -> None:
    named = dt.timezone(dt.timedelta(hours=1), "MEZ")
    assert there_and_back(codec, NOON.astimezone(named)).tzname() == "MEZ"
    assert there_and_back(codec, NOON).tzinfo is UTC


def test_an_address_stays_an_address_and_a_tuple_a_tuple(codec: Codec) -> None:
    arrived = there_and_back(codec, [Address("a", "b"), ("a", "b")])
    assert [type(item) for item in arrived] == [Address, tuple]


def test_the_msgpack_timestamp_of_a_foreign_sender_is_an_aware_datetime(codec: Codec) -> None:
    data = msgpack.packb(msgpack.Timestamp(0, 1000))
    assert codec.unpack(data) == dt.datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC)


def test_later_changes_do_not_show(codec: Codec) -> None:
    value = {"list": [1, (2, [3])], "set": {1}}
    data = codec.pack_whole([value], value)
    value["list"].append(4)  # type: ignore[attr-defined]
    value["list"][1][1].append(5)  # type: ignore[index]
    value["set"].add(2)  # type: ignore[attr-defined]
    assert codec.unpack(data) == [{"list": [1, (2, [3])], "set": {1}}]


def test_packing_changes_nothing_at_the_sender(codec: Codec) -> None:
    inner = [1, (2, {3})]
    value = {"a": inner, "b": [(1,)], (1,): {"c": {2}}}
    before = repr(value)
    envelope = [7, value]
    codec.pack_whole(envelope, value)
    assert repr(value) == before
    assert value["a"] is inner
    assert envelope[1] is value


def test_the_payload_may_be_the_very_object_of_another_item(codec: Codec) -> None:
    assert codec.unpack(codec.pack_whole([7, 7, None], 7)) == [7, 7, None]


def test_a_value_packed_alone_joins_an_envelope(codec: Codec) -> None:
    payload = ("all", {1, 2})
    joined = msgpack.Packer().pack_array_header(2) + codec.pack_value("to") + codec.pack_value(payload)
    assert joined == codec.pack_whole(["to", payload], payload)
    assert codec.unpack(joined) == ["to", payload]


def test_the_bytes_of_sets_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "from fleetlm.wire.codec import Codec\n"
        "v = {'a', 'b', 'c', ('d', 1), frozenset({'x', 'y', 'z'}), None, 7}\n"
        "print(Codec().pack_value(v).hex())"
    )
    root = Path(__file__).parents[3]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1


def test_numbers_on_the_wire_are_fixed() -> None:
    assert {member.name: member.value for member in Ext} == {
        "TUPLE": 1,
        "SET": 2,
        "FROZENSET": 3,
        "BIG_INT": 4,
        "DATETIME": 5,
        "UUID": 6,
        "DECIMAL": 7,
        "PID": 8,
        "REF": 9,
        "ADDRESS": 10,
        "DATACLASS": 11,
        "DATE": 12,
        "TIME": 13,
        "TIMEDELTA": 14,
        "ENUM": 15,
        "CONVERTED": 16,
        "BYTEARRAY": 17,
        "MEMORYVIEW": 18,
        "ARRAY": 19,
        "NUMPY": 20,
        "BLOB": 21,
    }


@pytest.mark.parametrize(
    ("value", "hexadecimal"),
    [
        ((1, "a"), "d601 9201a161"),
        ({2, 1}, "c703029201 02"),
        (2**64, "c70904010000000000000000"),
        (-(2**63) - 1, "c70904ff7fffffffffffffff"),
        (UUID(int=1), "d80600000000000000000000000000000001"),
        (Decimal("1.5"), "c70307312e35"),
        (NOON, "c70e0599cd07e8021d0c00000100 9200c0"),
        (Pid("n@::1", 5, 6), "c7090893a56e403a3a310506"),
        (Ref("n@::1", 5, 6), "c7090993a56e403a3a310506"),
        (Address("p", "n"), "c7050a92a170a16e"),
        (Picky(3), "c70b0b92a57069636b7981a16e03"),
        (dt.date(2024, 2, 29), "c7060c93cd07e8021d"),
        (dt.time(9, 30), "c7070d9609 1e000000c0"),
        (dt.timedelta(1, 2, 3), "d60e93010203"),
        (Level.LOW, "c70b0f92a56c6576656ca34c4f57"),
        (Right.READ, "d70f92a5726967687401"),
        (Pair(1), "c70a0b92a47061697281a17801"),
        (Price(1), "c7091092a570726963659101"),
        (bytearray(b"x"), "d41178"),
        (memoryview(b"xy"), "d51278 79"),
        (array("h", [1]), "d713000492a168020100"),
    ],
    ids=lambda value: "a memoryview" if isinstance(value, memoryview) else repr(value),
)
def test_the_wire_format_stays(codec: Codec, value: Any, hexadecimal: str) -> None:
    assert codec.pack_value(value).hex() == hexadecimal.replace(" ", "")


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


class Colour(IntEnum):
    RED = 1


class Mood(Enum):
    GOOD = "good"


class Text(str):
    __slots__ = ()


class Zone(dt.tzinfo):
    def utcoffset(self, when: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(0)


class Day(dt.date):
    pass


class Model:
    """Looks as a model of pydantic does."""

    def model_dump(self) -> dict[str, Any]:
        return {}

    @classmethod
    def model_validate(cls, value: Any) -> Model:
        return cls()


Point = namedtuple("Point", "x y")  # noqa: PYI024
CHARACTERS: Any = "w" if sys.version_info >= (3, 13) else "u"
HERE = "tests.unit.wire.test_codec"

REFUSED: list[tuple[Any, str, str]] = [
    (object(), "message", "object is not a message type"),
    (len, "message", "builtin_function_or_method is not a message type"),
    (int, "message", "type is not a message type"),
    (1j, "message", "complex is not a message type"),
    (Mood.GOOD, "message", "Mood is not registered; put @fleetlm.message(tag) above it"),
    (Colour.RED, "message", "Colour is not registered; put @fleetlm.message(tag) above it"),
    (Text("x"), "message", "Text is a kind of str"),
    (OrderedDict(a=1), "message", "OrderedDict is a kind of dict"),
    (Point(1, 2), "message", "Point is not registered; register it with fleetlm.message(tag)"),
    (memoryview(b"abcd").cast("I"), "message", "a memoryview of format 'I'; send view.cast('B')"),
    (array(CHARACTERS, "x"), "message", "an array of characters; send a str"),
    (msgpack.ExtType(1, b""), "message", "ExtType is a kind of tuple"),
    (msgpack.Timestamp(0), "message", "Timestamp is not a message type"),
    (dt.time(1, tzinfo=Zone()), "message", "a time in a zone of type"),  # type: ignore[abstract]
    (Day(2024, 1, 1), "message", "Day is a kind of datetime.date and would arrive as a plain one"),
    (Model(), "message", "Model is a pydantic model; send model_dump() and rebuild it with model_validate()"),
    (dt.datetime(2024, 1, 1), "message", "without a time zone; make it aware"),  # noqa: DTZ001
    (dt.datetime(2024, 1, 1, tzinfo=Zone()), "message", "Zone; use zoneinfo.ZoneInfo or"),  # type: ignore[abstract]
    (Stranger(1), "message", "Stranger is not registered; put @fleetlm.message(tag)"),
    (ValueError("x"), "message", "ValueError is not a message type"),
    ("a\ud800", "message", "lone surrogate U+D800 at 1"),
    ([1, b"", {"a": "\udfff"}], "message[2]['a']", "lone surrogate U+DFFF"),
    ({"user": [1, 2, 3, object()]}, "message['user'][3]", "object is not"),
    ({"user": [0, Append("s", [1j])]}, "message['user'][1].line[0]", "complex"),
    ((1, (2, 1j)), "message[1][1]", "complex"),
    ([Pair(1, 1j)], "message[0].y", "complex"),
    ([Price(1j)], "message[0]", "no value could be made: TypeError: it has no amount"),
    ([Price(object())], "message[0]", "object is not a message type"),
    ([{(1, Colour.RED): 1}], "the key (1, <Colour.RED: 1>) of message[0][1]", "Colour"),
    ({"{x}": [object()]}, "message['{x}'][0]", "object"),
    ([{1, Point(1, 2)}], "an item of message[0]", "Point"),
    ({"a": {frozenset({Mood.GOOD}): 1}}, "", "Mood"),
    (Pid(bytearray(b"x"), 1, 2), "message", "Pid with a field of the wrong type"),  # type: ignore[arg-type]
    (Ref("n", True, 2), "message", "Ref with a field of the wrong type"),
    ([Address("a", None)], "message[0]", "Address that is not two strings"),  # type: ignore[arg-type]
    (dict.fromkeys([(float("nan"),), (float("nan"),)]), "message", "two keys that no receiver can tell"),
    ([Append("s", "\ud800")], "message[0].line", "lone surrogate"),
]


@pytest.mark.parametrize(("value", "path", "what"), REFUSED, ids=range(len(REFUSED)))
def test_a_value_that_would_not_arrive_is_refused(codec: Codec, value: Any, path: str, what: str) -> None:
    for attempt in (lambda: codec.pack_whole([1, value], value), lambda: codec.pack_value(value)):
        with pytest.raises(NotSerializable) as caught:
            attempt()
        assert what in caught.value.what
        if path and not path.startswith("the key"):
            assert caught.value.path == path
        assert caught.value.path in str(caught.value)
    assert there_and_back(codec, ["still", ("usable",)]) == ["still", ("usable",)]


def test_the_path_to_a_key(codec: Codec) -> None:
    with pytest.raises(NotSerializable) as caught:
        codec.pack_value([{Colour.RED: 1}])
    assert caught.value.path == "the key <Colour.RED: 1> of message[0]"


def test_a_dataclass_with_an_unset_field_is_refused(codec: Codec) -> None:
    value = Slotted(1)
    del value.gone
    with pytest.raises(NotSerializable, match="Slotted whose field 'gone' is not set"):
        codec.pack_value([value])


def test_a_bad_name_in_the_envelope_is_not_blamed_on_the_message(codec: Codec) -> None:
    with pytest.raises(NotSerializable) as caught:
        codec.pack_whole(["na\ud800me", 1], 1)
    assert caught.value.path == "the address of the message"


def test_a_name_that_is_not_quite_a_string_is_refused(codec: Codec) -> None:
    class Name(str):
        __slots__ = ()

    with pytest.raises(NotSerializable, match="Name") as caught:
        codec.pack_whole([1, Name("x"), "hello"], "hello")
    assert caught.value.path == "the address of the message"


def test_a_small_tuple_within_a_large_one_within_a_large_message(types: MessageTypes) -> None:
    value = [("x" * 100_000, (1, (2,)))]
    assert Codec(types).unpack(Codec(types).pack_whole([1, value], value)) == [1, value]


def test_what_holds_nothing_is_not_searched_for_depth(types: MessageTypes) -> None:
    data = Codec(types).pack_value([[[Append("s", 1)]], Address("a", "n")])
    types.tags.pop(Append)  # as another table of types would have it
    assert Codec(types).unpack(data) == [[[Append("s", 1)]], Address("a", "n")]


WRAPS = {
    "list": lambda inner: [inner],
    "tuple": lambda inner: (inner,),
    "dict": lambda inner: {"k": inner},
    "frozenset": lambda inner: frozenset({inner}),
    "dataclass": Slotted,
    "key": lambda inner: (frozenset({inner}),),
}


@pytest.mark.parametrize("wrap", [*WRAPS.values()], ids=[*WRAPS])
def test_depth_is_bounded_at_the_sender(types: MessageTypes, wrap: Any) -> None:
    codec = Codec(types, max_nesting=8)
    per_wrap = 2 if wrap is WRAPS["key"] else 1
    fits = deep(8 // per_wrap, wrap)
    data = codec.pack_whole([7, fits], fits)
    assert codec.unpack(data) == [7, fits]
    assert codec.unpack_batch(b"\x91" + data) == [[7, fits]]
    with pytest.raises(NotSerializable, match="nested more than 8 levels deep, or inside itself"):
        codec.pack_value(deep(8 // per_wrap + 1, wrap))


@pytest.mark.parametrize("wrap", [*WRAPS.values()][:4], ids=[*WRAPS][:4])
def test_depth_is_bounded_at_the_receiver(types: MessageTypes, wrap: Any) -> None:
    generous, strict = Codec(types, max_nesting=64), Codec(types, max_nesting=8)
    for levels in (11, 30, 64):
        data = generous.pack_value(deep(levels, wrap, core=(b"x",)[0]))
        with pytest.raises(BadData):
            strict.unpack(data)
        with pytest.raises(BadData):
            strict.unpack_batch(b"\x91" + data)
        with pytest.raises(BadData):  # beside an instance the batch is walked another way
            strict.unpack_batch(b"\x92" + strict.pack_value(UUID(int=1)) + data)
    assert strict.unpack(strict.pack_value((1,))) == (1,)


def test_cycles_are_refused(codec: Codec) -> None:
    ring: list[Any] = [1]
    ring.append({"again": ring})
    with pytest.raises(NotSerializable, match="inside itself") as caught:
        codec.pack_value(ring)
    assert caught.value.path.startswith("message[1]['again'][1]")
    assert len(caught.value.path) < 300


@pytest.mark.parametrize("nesting", [0, -1, 129])
def test_a_nesting_limit_that_would_overflow_a_stack_is_refused(nesting: int) -> None:
    with pytest.raises(ValueError, match="max_nesting is 1 to 128"):
        Codec(max_nesting=nesting)


def test_the_deepest_nesting_fits_a_small_stack() -> None:
    codec = Codec(max_nesting=128)
    seen: list[bool] = []

    def run() -> None:
        for wrap in (WRAPS["tuple"], lambda inner: (inner, b"p" * 5000)):
            value = deep(128, wrap)
            seen.append(codec.unpack(codec.pack_whole([value], value)) == [value])

    before = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=run)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert seen == [True, True]


def test_large_messages_are_refused_with_their_size() -> None:
    codec = Codec(max_message_bytes=1000)
    assert len(codec.pack_whole([b"x" * 900], b"x" * 900)) == 904
    for attempt in (
        lambda: codec.pack_whole([b"x" * 1000], b"x" * 1000),
        lambda: codec.pack_value("x" * 1000),
    ):
        with pytest.raises(MessageTooLarge) as caught:
            attempt()
        assert caught.value.limit_bytes == 1000
        assert caught.value.size_bytes > 1000


def test_a_large_message_does_not_keep_its_buffer(codec: Codec) -> None:
    before = codec._packer
    codec.pack_value(b"x" * 1_000)
    assert codec._packer is before
    codec.pack_value(b"x" * 2_000_000)
    assert codec._packer is not before


# ── what a receiver meets ────────────────────────────────────────────────────────────────────────

BAD = {
    "nothing": b"",
    "cut short": b"\x92\x01",
    "bytes behind": b"\x01\x01",
    "never used": b"\xc1",
    "not utf-8": b"\xa1\xff",
    "an array of 4 G": b"\xdd\xff\xff\xff\xff",
    "a map of 4 G": b"\xdf\xff\xff\xff\xff",
    "4 G of bytes": b"\xc6\xff\xff\xff\xff",
    "4 G of text": b"\xdb\xff\xff\xff\xff",
    "4 G of extension": b"\xc9\xff\xff\xff\xff\x01",
    "a list as key": b"\x81\x90\x01",
    "arrays in arrays": b"\x91" * 900 + b"\xc0",
    "more arrays": b"\x91" * 5000 + b"\xc0",
    "maps in maps": b"\x81\x01" * 200 + b"\xc0",
}


def ext(code: int, body: bytes) -> bytes:
    return bytes(msgpack.packb(msgpack.ExtType(code, body)))


def packed(*values: Any) -> bytes:
    return b"".join(msgpack.packb(value) for value in values)


BAD_EXT = {
    "tuple of a map": ext(1, packed({})),
    "tuple of nothing": ext(1, b""),
    "tuple and more": ext(1, packed([], 1)),
    "tuple that claims 4 G": ext(1, b"\xdd\xff\xff\xff\xff"),
    "set of lists": ext(2, packed([[]])),
    "frozenset of an int": ext(3, packed(1)),
    "datetime too short": ext(5, packed([2024])),
    "datetime of text": ext(5, packed([*["a"] * 8, [0, None]])),
    "datetime in month 13": ext(5, packed([2024, 13, 1, 0, 0, 0, 0, 0, [0, None]])),
    "datetime of a huge int": ext(5, packed([2**63, 1, 1, 0, 0, 0, 0, 0, [0, None]])),
    "datetime, offset of a week": ext(5, packed([2024, 1, 1, 0, 0, 0, 0, 0, [10**12, None]])),
    "datetime, huge offset": ext(5, packed([2024, 1, 1, 0, 0, 0, 0, 0, [2**63, None]])),
    "datetime, zone of ints": ext(5, packed([2024, 1, 1, 0, 0, 0, 0, 0, [1, 2]])),
    "datetime with eight numbers": ext(5, packed([2024, 1, 1, 0, 0, 0, 0, 1, 0, [0, None]])),
    "uuid of 15 bytes": ext(6, b"x" * 15),
    "decimal of words": ext(7, b"twelve"),
    "decimal not ascii": ext(7, b"\xff"),
    "pid of two": ext(8, packed(["n", 1])),
    "pid of texts": ext(8, packed(["n", "1", "2"])),
    "ref of bools": ext(9, packed(["n", True, 2])),
    "address of ints": ext(10, packed([1, 2])),
    "dataclass without fields": ext(11, packed(["append"])),
    "dataclass with a list": ext(11, packed(["append", []])),
    "dataclass with a numeric tag": ext(11, packed([1, {}])),
    "date of two numbers": ext(12, packed([2024, 1])),
    "date in month 13": ext(12, packed([2024, 13, 1])),
    "date of texts": ext(12, packed(["a", 1, 1])),
    "time with two numbers": ext(13, packed([1, 1])),
    "time at hour 24": ext(13, packed([24, 0, 0, 0, 0, None])),
    "time in a zone of ints": ext(13, packed([1, 0, 0, 0, 0, [1, 2]])),
    "timedelta of floats": ext(14, packed([1.5, 0, 0])),
    "timedelta beyond": ext(14, packed([2**40, 0, 0])),
    "enum without a member": ext(15, packed(["light"])),
    "enum with a list": ext(15, packed(["light", []])),
    "enum with a bool": ext(15, packed(["right", True])),
    "converted without a value": ext(16, packed(["price"])),
    "converted with a numeric tag": ext(16, packed([1, 1])),
    "converted, deep": ext(16, packed(["price", deep(100)])),
    "array of no bytes": ext(19, b""),
    "array shorter than its head": ext(19, b"\x00\x09\x90"),
    "array of objects": ext(19, b"\x00\x04" + packed(["O", 8])),
    "array of texts": ext(19, b"\x00\x04" + packed(["u", 4])),
    "array without a code": ext(19, b"\x00\x03" + packed([1, 8])),
    "array that is no list": ext(19, b"\x00\x01" + packed(1)),
    "numpy of objects": ext(20, b"\x00\x0a" + packed(["|O8", [1], "C"]) + b"x" * 8),
    "numpy of a record": ext(20, b"\x00\x0c" + packed(["i4,i4", [1], "C"]) + b"x" * 8),
    "numpy without a shape": ext(20, b"\x00\x08" + packed(["<i4", 1, "C"]) + b"x" * 4),
    "numpy of a negative size": ext(20, b"\x00\x09" + packed(["<i4", [-1], "C"]) + b"x" * 4),
    "numpy of 33 dimensions": ext(20, b"\x00\x2b" + packed(["<i4", [1] * 33, "C"]) + b"x" * 4),
    "numpy in no order": ext(20, b"\x00\x09" + packed(["<i4", [1], "K"]) + b"x" * 4),
    "timestamp of 3 bytes": b"\xc7\x03\xff\x00\x00\x00",
    "timestamp in year 10^10": b"\xc7\x0c\xff" + struct.pack(">Iq", 0, 2**62),
}


@pytest.mark.parametrize("data", [*BAD.values(), *BAD_EXT.values()], ids=[*BAD, *BAD_EXT])
def test_malformed_bytes_are_bad_data_and_nothing_else(codec: Codec, data: bytes) -> None:
    for hostile in (data, b"\x91" + data, ext(1, b"\x91" + data), data + b"\xc0" * 5000):
        for form in (hostile, memoryview(hostile)):
            with pytest.raises(BadData):
                codec.unpack(form)
            with pytest.raises(BadData):
                codec.unpack_batch(form)
    assert there_and_back(codec, ("still", {"usable"})) == ("still", {"usable"})


def test_extensions_in_extensions_end_in_bad_data(codec: Codec) -> None:
    data = b"\x90"
    for _ in range(1000):
        data = ext(1, b"\x91" + data if data != b"\x90" else data)
    with pytest.raises(BadData, match="nested more than 64 levels"):
        codec.unpack(data)
    assert codec.unpack(b"\x01") == 1


def test_a_batch_is_an_array(codec: Codec) -> None:
    assert codec.unpack_batch(b"\x90") == []
    assert codec.unpack_batch(memoryview(b"\x92\x91\x01\x91\x02")) == [[1], [2]]
    for other in (b"\x01", b"\x80", codec.pack_value((1,))):
        with pytest.raises(BadData, match="a batch is an array of messages, not"):
            codec.unpack_batch(other)


def test_a_large_batch(codec: Codec) -> None:
    messages = [[n, {"n": n, "t": (n,)}] for n in range(1000)]
    data = msgpack.Packer().pack_array_header(1000)
    data += b"".join(codec.pack_whole(message, message[1]) for message in messages)
    assert codec.unpack_batch(data) == messages


# ── what one side knows and the other does not ───────────────────────────────────────────────────


def peers(mine: type, theirs: type | None) -> tuple[Codec, Codec]:
    here, there = MessageTypes(), MessageTypes()
    here.register("job", mine)
    if theirs is not None:
        there.register("job", theirs)
    return Codec(here), Codec(there)


@dataclass
class JobV1:
    id: int


@dataclass
class JobV2:
    id: int
    priority: int = 5
    labels: list[str] = field(default_factory=list)


@dataclass
class JobV3:
    id: int
    owner: str


@dataclass(kw_only=True)
class JobByName:
    priority: int = 1
    id: int


def test_a_newer_receiver_fills_in_defaults() -> None:
    old, new = peers(JobV1, JobV2)
    assert new.unpack(old.pack_value(JobV1(7))) == JobV2(7, 5, [])
    assert new.failures == 0


def test_fields_go_by_name() -> None:
    here, there = peers(JobV2, JobByName)
    here_v1, _ = peers(JobV1, None)
    assert there.unpack(here_v1.pack_value(JobV1(7))) == JobByName(id=7, priority=1)
    assert there.unpack(here.pack_value(JobV2(7, 1))) == JobByName(id=7, priority=1)
    assert there.failures == 0
    assert unreadable_in(there.unpack(here.pack_value(JobV2(1, labels=["x"])))) is not None


@pytest.mark.parametrize(
    ("mine", "theirs", "value", "words"),
    [
        (JobV2, JobV1, JobV2(1, 6), ("'job'", "no field 'priority'")),
        (JobV2, JobV1, JobV2(1, labels=["x"]), ("'job'", "no field 'labels'")),
        (Light, Level, Light.RED, ("'job'", "no member 'RED'")),
        (Light, JobV1, Light.RED, ("'job' came as an enum, but is", "JobV1 on this node")),
        (JobV1, Light, JobV1(1), ("'job' came as a dataclass, but is", "Light on this node")),
        (Pair, None, Pair(1), ("no message type is registered under 'job'",)),
        (Light, None, Light.RED, ("no message type is registered under 'job'",)),
        (Right, Light, Right.READ, ("'job'", "no member 1")),
        (Light, Right, Light.RED, ("'job'", "no member 'RED'")),
        (JobV1, JobV3, JobV1(1), ("'job'", "without the field 'owner'", "no default")),
        (JobV1, None, JobV1(1), ("no message type is registered under 'job'",)),
        (Picky, Picky, Picky(1), ()),
    ],
)
def test_what_cannot_be_rebuilt_is_named(
    mine: type, theirs: type | None, value: Any, words: tuple[str, ...]
) -> None:
    here, there = peers(mine, theirs)
    for wrapped in (value, [value], {"a": (value,)}, [1, {2: [value]}]):
        before = there.failures
        arrived = there.unpack(here.pack_value(wrapped))
        found = unreadable_in(arrived)
        if not words:
            assert found is None
            assert there.failures == before
            continue
        assert found is not None
        assert there.failures == before + 1
        assert all(word in found.why for word in words), found.why


def test_a_constructor_that_raises(codec: Codec) -> None:
    value = Picky(1)
    value.n = -1
    arrived = codec.unpack(codec.pack_value([value]))
    assert arrived == [Unreadable("'picky' could not be made: ValueError: n is -1, below 0")]
    assert codec.failures == 1


def test_the_other_messages_of_a_batch_are_not_lost() -> None:
    here, there = peers(JobV1, None)
    batch = [[1, (1,)], [2, JobV1(1)], [3, "x"]]
    data = b"\x93" + b"".join(here.pack_whole(message, message[1]) for message in batch)
    first, second, third = there.unpack_batch(data)
    assert (first, third) == ([1, (1,)], [3, "x"])
    assert second[0] == 2
    assert isinstance(second[1], Unreadable)
    assert there.failures == 1


def test_no_constructor_sees_what_is_unreadable(types: MessageTypes) -> None:
    types.register("stranger", Stranger)
    more = Codec(types)
    fewer = MessageTypes()
    fewer.register("append", Append)
    codec = Codec(fewer)
    arrived = codec.unpack(more.pack_value(Append("s", [Stranger(1)])))
    assert isinstance(arrived, Unreadable)
    assert "'stranger'" in arrived.why
    assert codec.failures == 1


def test_a_time_zone_that_this_machine_does_not_have(codec: Codec) -> None:
    body = [2024, 1, 1, 0, 0, 0, 0, 0]
    for key in ("Mars/Olympus", "../../etc/passwd", "", "Europe", "a\x00b", "x" * 9999):
        arrived = codec.unpack(ext(5, packed([*body, key])))
        assert isinstance(arrived, Unreadable)
        assert "install tzdata" in arrived.why
        assert len(arrived.why) < 400


def test_an_extension_of_a_later_version(codec: Codec) -> None:
    arrived = codec.unpack(b"\x92\x01" + ext(99, b"whatever"))
    assert arrived[0] == 1
    assert "extension type 99 is not known" in arrived[1].why


def test_a_hostile_tag_does_not_fill_the_log(codec: Codec) -> None:
    arrived = codec.unpack(ext(11, packed(["t" * 1_000_000, {}])))
    assert len(arrived.why) < 300
    arrived = codec.unpack(ext(11, packed(["append", {"f" * 1_000_000: 1}])))
    assert len(arrived.why) < 300
    arrived = codec.unpack(ext(11, packed(["append", {1: 1, "session": "s", "line": 1}])))
    assert "has no field 1" in arrived.why


def test_the_first_unreadable_is_found_depth_first() -> None:
    a, b = Unreadable("a"), Unreadable("b")
    assert unreadable_in(a) is a
    assert unreadable_in([1, {"k": (a,)}, b]) is a
    assert unreadable_in({a: b}) is a
    assert unreadable_in({"k": b}) is b
    assert unreadable_in((frozenset({b}), a)) is b
    assert unreadable_in({1: [2, "x", {3}]}) is None


def test_what_a_function_makes_counts_as_a_level(types: MessageTypes) -> None:
    codec = Codec(types, max_nesting=8)
    fits = deep(4, Price)  # an object and the list that its function makes
    assert codec.unpack(codec.pack_value(fits)) == fits
    with pytest.raises(NotSerializable, match="nested more than 8 levels"):
        codec.pack_value(deep(5, Price))
    with pytest.raises(BadData, match="nested more than 8 levels"):
        codec.unpack(ext(16, packed(["price", deep(9)])))


def test_a_leaf_of_the_program_fits_at_the_deepest_level(types: MessageTypes) -> None:
    codec = Codec(types, max_nesting=8)
    for leaf in (Light.RED, Right.READ, bytearray(b"x"), array("b", [1]), dt.date(2024, 1, 1)):
        value = deep(8, core=leaf)
        assert codec.unpack(codec.pack_whole([7, value], value)) == [7, value]
        assert codec.unpack_batch(b"\x91" + codec.pack_whole([7, value], value)) == [[7, value]]


# ── versions ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class AskV1:
    prompt: str


@dataclass
class AskV2:
    prompt: str
    temperature: float = 0.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    style: Light = Light.RED


class PairV1(NamedTuple):
    x: Any


def versions(mine: type, theirs: type, extra: str = "refuse") -> tuple[Codec, Codec]:
    here, there = MessageTypes(), MessageTypes()
    for each in (here, there):
        each.register("light", Light)
    here.register("ask", mine)
    there.register("ask", theirs, extra)
    return Codec(here), Codec(there)


def test_a_field_at_its_default_is_not_sent(codec: Codec) -> None:
    new, old = versions(AskV2, AskV1)
    assert old.unpack(new.pack_value(AskV2("hi"))) == AskV1("hi")
    assert old.unpack(new.pack_value(AskV2("hi", float("0"), None, [], Light.RED))) == AskV1("hi")
    assert old.failures == 0
    for changed in (
        AskV2("hi", -0.0), AskV2("hi", 0), AskV2("hi", False), AskV2("hi", seed=0), AskV2("hi", stop=["x"]),
        AskV2("hi", stop=()), AskV2("hi", style=Light.GREEN),  # type: ignore[arg-type]
    ):  # fmt: skip
        found = old.unpack(new.pack_value(changed))
        assert isinstance(found, Unreadable)
        assert "'ask' has no field" in found.why
        arrived = new.unpack(new.pack_value(changed))
        assert repr(arrived) == repr(changed)


def test_a_default_that_could_change_is_always_sent() -> None:
    @dataclass(eq=False)
    class Mutable:
        count: int = 0

    shared = Mutable()

    @dataclass
    class Holder:
        first: Any = shared
        second: Any = (1, shared)
        third: list[int] = field(default_factory=lambda: [1])

    types = MessageTypes()
    types.register("mutable", Mutable)
    types.register("holder", Holder)
    codec = Codec(types)
    value = Holder()
    shared.count = 5
    arrived = codec.unpack(codec.pack_value(value))
    assert (arrived.first.count, arrived.second[1].count, arrived.third) == (5, 5, [1])
    assert arrived.first is not shared


def test_named_tuples_have_versions_too() -> None:
    new, old = versions(Pair, PairV1)
    assert old.unpack(new.pack_value(Pair(1))) == PairV1(1)
    assert new.unpack(old.pack_value(PairV1(1))) == Pair(1, None)
    assert isinstance(old.unpack(new.pack_value(Pair(1, 2))), Unreadable)


def test_a_receiver_may_drop_fields_that_it_does_not_know() -> None:
    new, old = versions(AskV2, AskV1, "ignore")
    assert old.unpack(new.pack_value([AskV2("hi", 0.5, 7, ["x"])])) == [AskV1("hi")]
    assert old.failures == 0
    stranger = codec_with_one_more_type()
    data = stranger.pack_value([AskV3("hi", JobV1(1))])
    assert old.unpack(data) == [AskV1("hi")]  # even one that could not be rebuilt here
    assert new.unpack(data) != [AskV1("hi")]
    assert unreadable_in(new.unpack(data)) is not None


@dataclass
class AskV3:
    prompt: Any
    job: JobV1 | None = None


def codec_with_one_more_type() -> Codec:
    types = MessageTypes()
    types.register("ask", AskV3)
    types.register("unheard of", JobV1)
    return Codec(types)


def test_a_known_field_that_cannot_be_rebuilt_is_not_dropped() -> None:
    _, old = versions(AskV2, AskV1, "ignore")
    found = old.unpack(codec_with_one_more_type().pack_value(AskV3(JobV1(1))))
    assert isinstance(found, Unreadable)
    assert "'unheard of'" in found.why


def test_an_object_of_a_class_that_was_defined_again_can_still_be_sent() -> None:
    types = MessageTypes()

    def load(**defaults: Any) -> type:
        @dataclass
        class Cell:
            x: int = 1

        types.register("cell", Cell)
        return Cell

    old, new = load(), load()
    codec = Codec(types)
    arrived = codec.unpack(codec.pack_value([old(5), new(6)]))
    assert [type(each) for each in arrived] == [new, new]
    assert [each.x for each in arrived] == [5, 6]


def test_a_function_of_the_program_that_raises_costs_one_message(codec: Codec) -> None:
    found = codec.unpack(codec.pack_value([Price("a")]))[0]
    assert isinstance(found, Unreadable)
    assert found.why == "'price' could not be made: ValueError: the amount is a"
    for body, why in (
        (["price", [ext_type(99)]], "extension type 99"),
        (["light", 1], "'light' came as a type of `register_type`, but is"),
        (["nobody", 1], "no message type is registered under 'nobody'"),
    ):
        found = codec.unpack(ext(16, packed(body)))
        assert isinstance(found, Unreadable)
        assert why in found.why


def ext_type(code: int) -> msgpack.ExtType:
    return msgpack.ExtType(code, b"")
