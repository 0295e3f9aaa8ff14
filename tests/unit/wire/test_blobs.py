"""Large bytes beside a message: what goes there, what arrives, and what no codec writes."""

from __future__ import annotations

import gc
import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack
import pytest
from hypothesis import given, strategies as st

from fleetlm.errors import MessageTooLarge, NotSerializable
from fleetlm.messages import MessageTypes
from fleetlm.wire.blobs import MAX_BLOBS, MIN_UNSET_BYTES, Hold, Packed, Parcel, _unset_bytes, new_buffer
from fleetlm.wire.codec import BadData, Codec
from fleetlm.wire.extensions import Ext, Unreadable, unreadable_in
from fleetlm.wire.large import LargeDecoder, copied_bytes

LARGE = 1_024
BIG = bytes(range(256)) * 8


@dataclass(frozen=True)
class Picture:
    name: str
    pixels: Any


TYPES = MessageTypes()
TYPES.register("Picture", Picture)


@pytest.fixture
def codec() -> Codec:
    return Codec(TYPES, large_bytes=LARGE)


def holds(packed: Packed) -> list[Hold]:
    """The blobs of a message as a receiver has them."""
    found = []
    for blob in packed.blobs if isinstance(packed, Parcel) else ():
        hold = Hold(len(blob))
        hold.fill(memoryview(blob))
        found.append(hold)
    return found


def there_and_back(codec: Codec, value: Any) -> Any:
    packed = codec.pack([7, value, None], value)
    body = packed.envelope if isinstance(packed, Parcel) else packed
    seven, found, none = codec.unpack(body, holds(packed))
    assert (seven, none) == (7, None)
    again = LargeDecoder(TYPES, 64).unpack(body, holds(packed))
    assert form(again[1]) == form(found)
    return found


def form(value: Any) -> Any:
    """A value with the types of everything in it."""
    if isinstance(value, memoryview):
        return "memoryview", value.readonly, bytes(value)
    if isinstance(value, dict):
        return "dict", [(form(key), form(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value).__name__, [form(item) for item in value]
    if isinstance(value, Picture):
        return "Picture", form(value.name), form(value.pixels)
    return type(value).__name__, value.tolist() if type(value).__name__ == "ndarray" else value


BLOCKS = st.sampled_from([b"", b"x", bytes(LARGE - 1), bytes(LARGE), BIG])
LEAVES = st.one_of(
    st.integers(),
    st.text(max_size=5),
    BLOCKS,
    BLOCKS.map(bytearray),
    BLOCKS.map(lambda block: memoryview(block)),  # noqa: PLW0108  # mypy does not know the class
    BLOCKS.map(lambda block: array("H", block[: len(block) // 2 * 2])),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=4),
        st.builds(Picture, st.text(max_size=3), inner),
    ),
    max_leaves=8,
)


@given(VALUES)
def test_any_mix_of_large_and_small_values_arrives_equal_and_of_the_same_types(value: Any) -> None:
    assert form(there_and_back(Codec(TYPES, large_bytes=LARGE), value)) == form(value)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, lambda data: array("B", data)])
def test_large_bytes_are_beside_the_message_and_small_ones_in_it(codec: Codec, make: Any) -> None:
    value, small = make(BIG), make(BIG[:1_000])
    large = codec.pack([value], value)
    assert isinstance(large, Parcel)
    assert large.blobs == [BIG]
    assert len(large.envelope) < 30
    assert len(large) == len(large.envelope) + len(BIG)
    assert isinstance(codec.pack([small], small), bytes)


def test_bytes_are_lent_and_not_copied(codec: Codec) -> None:
    for value in (BIG, [BIG], {"key": BIG}, (1, BIG), Picture("a", BIG)):
        packed = codec.pack([value], value)
        assert isinstance(packed, Parcel)
        assert packed.blobs[0] is BIG


def test_what_changes_after_it_was_packed_is_not_seen(codec: Codec) -> None:
    below = bytearray(BIG)
    for value in (below, memoryview(below), array("B", BIG)):
        packed = codec.pack([value], value)
        assert isinstance(packed, Parcel)
        value[0] = 99
        assert packed.blobs == [BIG]
        below[0] = BIG[0]


def test_a_buffer_that_arrives_can_be_written_to_unless_it_is_a_memoryview(codec: Codec) -> None:
    for value in (bytearray(BIG), array("B", BIG)):
        found = there_and_back(codec, value)
        found[0] = 7
        assert found[0] == 7
    assert there_and_back(codec, memoryview(BIG)).readonly


def test_blobs_beyond_the_limit_stay_in_the_message(codec: Codec) -> None:
    value = [BIG] * (MAX_BLOBS + 3) + [bytearray(BIG), array("B", BIG)]
    packed = codec.pack([value], value)
    assert isinstance(packed, Parcel)
    assert len(packed.blobs) == MAX_BLOBS
    assert there_and_back(codec, value) == value


def test_items_of_sets_and_what_is_packed_once_for_many_stay_in_the_message(codec: Codec) -> None:
    items = {BIG}
    assert isinstance(codec.pack([items], items), bytes)
    assert codec.unpack(codec.pack_value(BIG)) == BIG
    assert codec.unpack(codec.pack_whole([1, BIG], BIG)) == [1, BIG]
    assert isinstance(codec.pack([BIG], BIG), Parcel), "and then others go beside it again"


def test_a_message_that_is_refused_leaves_nothing_for_the_next_one(codec: Codec) -> None:
    bad = [BIG, object()]
    with pytest.raises(NotSerializable, match=r"message\[1\]"):
        codec.pack([bad], bad)
    assert isinstance(codec.pack([1], 1), bytes)
    small = Codec(TYPES, large_bytes=LARGE, max_message_bytes=2 * len(BIG))
    for large in ([BIG, BIG], [BIG, "x" * 3 * len(BIG)]):
        with pytest.raises(MessageTooLarge):
            small.pack([large], large)
    assert isinstance(small.pack([1], 1), bytes)
    with pytest.raises(NotSerializable):
        small.pack_value(object())
    assert isinstance(small.pack([BIG], BIG), Parcel)


class Odd:
    """A value of a registered type, whose function does what it likes."""

    def __init__(self, to_value: Callable[[], Any]) -> None:
        self.to_value = to_value


TYPES.register_converter("Odd", Odd, lambda odd: odd.to_value(), lambda value: value)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, SystemExit])
def test_a_message_that_is_broken_off_leaves_nothing_for_the_next_one(
    error: type[BaseException], codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(*_: object) -> Any:
        raise error

    monkeypatch.setattr("fleetlm.wire.arrays.check_memoryview", break_off)
    value = [BIG, memoryview(b"")]
    with pytest.raises(error):
        codec.pack([value], value)
    assert isinstance(codec.pack([1], 1), bytes)
    assert isinstance(codec.pack_whole([1], 1), bytes)
    with pytest.raises(error):
        codec.pack_value(value)
    assert codec.pack([[BIG]], [BIG]).blobs == [BIG]  # type: ignore[union-attr]


def grow(items: dict[Any, Any] | set[Any]) -> Any:
    """Return a function that adds to a container each time."""

    def to_value() -> int:
        items.update({f"new {len(items)}": 1})
        return 1

    return to_value


@pytest.mark.parametrize("kind", ["dict", "dict of other keys", "set", "list"])
def test_a_message_that_changes_while_it_is_packed_is_refused_and_leaves_nothing(
    kind: str, codec: Codec
) -> None:
    items: Any = {"dict": {}, "dict of other keys": {(1,): 1}, "set": set(), "list": []}[kind]
    odd = Odd(items.clear if kind == "list" else grow(items))
    if kind == "list":
        items.extend([odd, 1])
    else:
        items.update({odd: 1, "last": 2} if kind == "set" else {"first": odd, "last": 2})
    value = [BIG, items]
    with pytest.raises(
        NotSerializable, match=r"message cannot be sent: \w+Error: .*changed it while"
    ) as found:
        codec.pack([value], value)
    assert found.value.path == "message"
    if kind != "list":
        with pytest.raises(NotSerializable, match="changed it while it was packed: send a copy"):
            codec.pack_value(items)
    assert isinstance(codec.pack([1], 1), bytes)


def test_a_message_that_changes_while_its_culprit_is_looked_for_is_refused(codec: Codec) -> None:
    items: dict[str, Any] = {}
    calls: list[int] = []

    def to_value() -> int:
        calls.append(1)
        if len(calls) == 3:  # Once for the message, once more for the reason; now for the path.
            items["new"] = 1
        return 1

    items |= {"odd": Odd(to_value), "bad": object()}
    with pytest.raises(NotSerializable, match="dictionary changed size"):
        codec.pack([items], items)


def test_a_function_of_a_type_may_send_a_message_itself(codec: Codec) -> None:
    inner: list[Packed] = []

    def send(pack: Callable[[list[Any], Any], Packed], value: Any) -> Odd:
        def to_value() -> int:
            inner.append(pack([value], value))
            return 1

        return Odd(to_value)

    def plain() -> int:
        return 1

    other = BIG[::-1]
    for pack, value, blobs in (
        (codec.pack, "x", []), (codec.pack, [{1: [2] * 50}], []), (codec.pack, other, [other]),
        (codec.pack_whole, other, []), (lambda _envelope, value: codec.pack_value(value), other, []),
    ):  # fmt: skip
        outer = [BIG, send(pack, value), BIG]
        packed = codec.pack([1, outer], outer)
        extra_bytes = codec.extra_bytes
        assert isinstance(packed, Parcel)
        assert packed.blobs == [BIG, BIG]
        assert codec.unpack(packed.envelope, holds(packed)) == [1, [BIG, 1, BIG]]
        assert getattr(inner[-1], "blobs", []) == blobs
        quiet = [BIG, Odd(plain), BIG]
        codec.pack([1, quiet], quiet)
        assert extra_bytes == codec.extra_bytes, "it weighs the same"
        assert codec.unpack(codec.pack_whole([1, outer], outer)) == [1, [BIG, 1, BIG]]
        assert getattr(inner[-1], "blobs", []) == blobs
    bad = [BIG, Odd(lambda: codec.pack([object()], object()))]
    with pytest.raises(NotSerializable, match=r"message\[1\] cannot be sent: a .*Odd of which no value"):
        codec.pack([bad], bad)
    assert isinstance(codec.pack([1], 1), bytes)


def blob(data: bytes) -> bytes:
    packed: bytes = msgpack.packb([1, msgpack.ExtType(int(Ext.BLOB), data)])
    return packed


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\1\0", bytes((0, int(Ext.ARRAY))), bytes((0, int(Ext.NUMPY))) + b"\x93"]
)
def test_blobs_that_no_codec_writes_end_the_connection(codec: Codec, data: bytes) -> None:
    for decoder in (codec, LargeDecoder(TYPES, 64)):
        with pytest.raises(BadData):
            decoder.unpack(blob(data), holds(Parcel(b"", [BIG])))


def test_a_blob_is_used_once(codec: Codec) -> None:
    twice = msgpack.packb([msgpack.ExtType(int(Ext.BLOB), b"\0\0")] * 2)
    with pytest.raises(BadData):
        codec.unpack(twice, holds(Parcel(b"", [BIG])))
    with pytest.raises(BadData):
        codec.unpack(blob(b"\0\0"))
    with pytest.raises(BadData):
        codec.unpack_batch(blob(b"\0\0"))


def test_a_blob_of_a_later_version_costs_its_message_only(codec: Codec) -> None:
    found = codec.unpack(blob(b"\0\x63"), holds(Parcel(b"", [BIG])))
    assert isinstance(unreadable_in(found), Unreadable)


def test_a_careful_reader_stays_careful(codec: Codec) -> None:
    assert codec.unpack(msgpack.packb({1: 2}), ()) == {1: 2}
    left = codec._careful_reads
    assert there_and_back(codec, {2: BIG}) == {2: BIG}
    assert codec._careful_reads > 0
    assert left > 0


def test_a_hold_becomes_bytes_or_a_buffer_whatever_the_pieces_are() -> None:
    hold = Hold(10)
    for piece in (b"012", b"", b"3456", b"789"):
        hold.fill(memoryview(piece))
    assert (hold.left_bytes, hold.size_bytes, hold.to_bytes()) == (0, 10, b"0123456789")
    other = Hold(3)
    other.fill(memoryview(b"abc"))
    view = other.to_buffer()
    view[0] = 65
    assert bytes(view) == b"Abc"


def test_a_piece_may_be_received_in_its_place() -> None:
    hold = Hold(10)
    hold.fill(memoryview(b"01"))
    room = hold.room(5)
    room[:] = b"23456"
    hold.fill(room)
    assert hold.left_bytes == 3
    last = hold.room(3)
    last[:] = b"789"
    hold.fill(last)
    assert (hold.left_bytes, hold.to_bytes()) == (0, b"0123456789")
    with pytest.raises(ValueError, match="released"):
        last[0] = 1  # Nobody can write into bytes.


def test_another_piece_than_the_one_that_is_received_is_refused_and_changes_nothing() -> None:
    hold = Hold(4)
    room = hold.room(2)
    with pytest.raises(ValueError, match="beside one that is being received"):
        hold.fill(memoryview(b"xy"))
    assert hold.left_bytes == 4
    room[:] = b"ab"
    hold.fill(room)
    hold.fill(memoryview(b"cd"))
    assert hold.to_bytes() == b"abcd"


def test_filling_a_hold_does_not_copy_it() -> None:
    """It relies on `BytesIO`, which keeps the bytes that it was made of if nobody else has them."""
    hold = Hold(1_000_000)
    before = hold._buffer.__sizeof__()
    for _ in range(10):
        hold.fill(memoryview(bytes(100_000)))
    assert hold._buffer.__sizeof__() == before
    data = hold.to_bytes()
    assert hold._buffer.getvalue() is data
    assert sys.getsizeof(data) < 1_000_100


def test_a_large_buffer_is_not_zeroed_before_it_is_filled() -> None:
    assert _unset_bytes() is not bytes
    for size_bytes in (0, 1, MIN_UNSET_BYTES - 1, MIN_UNSET_BYTES, 1_000_000):
        buffer = new_buffer(size_bytes)
        content = bytes(range(256)) * (size_bytes // 256 + 1)
        buffer.write(memoryview(content)[:size_bytes])
        data = buffer.getvalue()
        assert data == content[:size_bytes]
        assert sys.getsizeof(data) == sys.getsizeof(bytes(size_bytes))
    with pytest.raises(MemoryError):
        new_buffer(sys.maxsize - 1_000)


class NoExecutableMemory:
    """`ctypes` on a system that lets no program make code."""

    py_object = c_void_p = c_ssize_t = pythonapi = None

    @staticmethod
    def PYFUNCTYPE(*_types: object) -> None:  # noqa: N802  # as in `ctypes`
        raise MemoryError


@pytest.mark.parametrize("ctypes", [None, object(), NoExecutableMemory()])
def test_a_python_that_cannot_make_unset_bytes_zeroes_them(
    monkeypatch: pytest.MonkeyPatch, ctypes: object
) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", ctypes)
    _unset_bytes.cache_clear()
    try:
        assert new_buffer(MIN_UNSET_BYTES).getvalue() == bytes(MIN_UNSET_BYTES)
    finally:
        _unset_bytes.cache_clear()


def test_arrays_of_numpy_become_the_buffer_that_was_received(codec: Codec) -> None:
    np = pytest.importorskip("numpy")
    grid = np.arange(4_000, dtype="<f8").reshape(40, 100)
    for value in (grid, np.asfortranarray(grid), grid[:, ::2], grid.astype(">i4")):
        packed = codec.pack([value], value)
        assert isinstance(packed, Parcel)
        found = there_and_back(codec, value)
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert found.flags.f_contiguous == value.flags.f_contiguous
        assert (found == value).all()
        found[0, 0] = 5
    packed = codec.pack([grid], grid)
    assert isinstance(packed, Parcel)
    grid[0, 0] = 99.0
    assert bytes(packed.blobs[0][:8]) == bytes(8), "what changes after it was packed is not seen"
    lies = msgpack.packb([msgpack.ExtType(int(Ext.BLOB), bytes((0, 20)) + msgpack.packb(["<f8", [3], "C"]))])
    with pytest.raises(BadData, match="shape"):
        codec.unpack(lies, holds(Parcel(b"", [BIG])))


def test_an_item_before_a_key_that_is_no_scalar_is_packed_once(codec: Codec) -> None:
    value = {1: [BIG], 2: "x", (3,): bytearray(BIG), 4: [[]]}
    packed = codec.pack([value], value)
    assert isinstance(packed, Parcel)
    assert packed.blobs == [BIG, BIG]
    extra_bytes = codec.extra_bytes
    decoder = LargeDecoder(TYPES, 64)
    assert decoder.unpack(packed.envelope, holds(packed)) == [value]
    assert decoder.extra_bytes == extra_bytes


@pytest.mark.parametrize(
    ("value", "copied"),
    [
        (BIG, 0),
        (memoryview(BIG), 0),
        (bytearray(BIG), 2_048),
        (array("d", BIG), 2_048),
        ([BIG, {"a": (bytearray(BIG), [BIG])}], 2_048),
        (Picture("a", [(memoryview(BIG), {(BIG,)}), array("B", BIG)]), 2_048),
        ({1: (Picture("b", bytearray(BIG)),), (2,): [Odd(lambda: [bytearray(BIG), BIG])]}, 4_096),
    ],
    ids=["bytes", "memoryview", "bytearray", "array", "in containers", "in a record", "in a value of a type"],
)
def test_what_a_receiver_copies_is_seen_from_the_envelope(value: Any, copied: int, codec: Codec) -> None:
    packed = codec.pack([7, value], value)
    assert isinstance(packed, Parcel)
    assert copied_bytes(packed.envelope, [len(blob) for blob in packed.blobs]) == copied


def test_arrays_of_numpy_are_not_copied_and_those_of_texts_are_looked_through() -> None:
    for dtype, copied in (("<f8", 0), ("|u1", 0), ("<U5", 9), (">U5", 9)):
        head = msgpack.packb([dtype, [85, 85, 85], "C"])
        assert copied_bytes(blob(bytes((0, int(Ext.NUMPY))) + head), [9]) == copied


def test_what_is_not_found_in_the_envelope_counts_as_copied() -> None:
    lent = blob(b"\0\0")
    hidden: bytes = msgpack.packb([1, msgpack.ExtType(int(Ext.DATE), lent)])
    deep: bytes = lent
    for _ in range(200):
        deep = msgpack.packb(msgpack.ExtType(int(Ext.TUPLE), deep))
    assert copied_bytes(lent, [5_000]) == 0
    for envelope, sizes in ((lent, [0, 5_000]), (hidden, [5_000]), (deep, [5_000]), (blob(b"\0"), [5_000])):
        assert copied_bytes(envelope, sizes) == 5_000
    assert copied_bytes(b"\xc1", [3, 4]) == 7


@pytest.mark.parametrize("make", [bytearray, lambda data: array("Q", data)])
def test_a_thread_copies_what_is_large_in_pieces_between_which_the_loop_runs(codec: Codec, make: Any) -> None:
    value = make(bytes(range(256)) * 8 * 1_280)  # 2.5 MiB.
    packed = codec.pack([value], value)
    assert isinstance(packed, Parcel)
    pauses: list[int] = []
    decoder = codec.large_decoder(lambda: pauses.append(1))
    found = decoder.unpack(packed.envelope, holds(packed))
    assert form(found) == form([value])
    assert len(pauses) == 2
    assert codec.unpack(packed.envelope, holds(packed)) == [value]
    whole = codec.pack_whole([value], value)
    assert decoder.unpack(whole) == [value]


def test_a_buffer_is_collected_together_with_a_view_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.13 reports what `close` raises in the collector."""
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    hold = Hold(10)
    cycle: list[Any] = [hold.to_buffer()]
    cycle.append(cycle)
    del hold, cycle
    gc.collect()
    assert seen == []


def test_a_part_of_many_messages_lends_its_large_bytes_and_is_itself_otherwise(codec: Codec) -> None:
    for value in (BIG, [1, BIG]):
        part = codec.pack_part(value)
        assert isinstance(part, Parcel)
        assert part.blobs[0] is BIG
    assert codec.pack_part([1, "x"]) == codec.pack_value([1, "x"])
    assert codec.pack_part(b"few") == codec.pack_value(b"few")
    with pytest.raises(NotSerializable):
        codec.pack_part([BIG, object()])
    assert codec.pack_part([1]) == codec.pack_value([1])


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_part_that_fails_for_another_reason_leaves_nothing_for_the_next_message(
    codec: Codec, error: type[BaseException]
) -> None:
    def refuse(_value: object) -> Any:
        raise error

    class Moody:
        pass

    types = MessageTypes()
    types.register_converter("Moody", Moody, refuse, refuse)
    broken = Codec(types, large_bytes=LARGE)
    with pytest.raises(error):
        broken.pack_part([BIG, Moody()])
    assert broken.pack_part([1]) == codec.pack_part([1])


def test_a_part_beyond_the_limit_is_refused() -> None:
    small = Codec(TYPES, large_bytes=LARGE, max_message_bytes=4_096)
    with pytest.raises(MessageTooLarge):
        small.pack_part("x" * 5_000)
    assert small.pack_part("x") == msgpack.packb("x")
