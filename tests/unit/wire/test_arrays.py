"""Buffers: bytearray, memoryview, array.array, and arrays of numpy where it is installed."""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from fleetlm.errors import NotSerializable
from fleetlm.messages import MessageTypes
from fleetlm.wire import arrays
from fleetlm.wire.codec import BadData, Codec, Unreadable
from fleetlm.wire.extensions import Refused

if TYPE_CHECKING:
    from types import ModuleType


@pytest.fixture
def codec() -> Codec:
    return Codec(MessageTypes())


@pytest.fixture
def np() -> ModuleType:
    return pytest.importorskip("numpy")


def arrived(codec: Codec, value: Any) -> Any:
    failures = codec.failures
    (found,) = codec.unpack(codec.pack_value([value]))
    assert codec.failures == failures
    return found


def numpy_value(dtype: Any, shape: Any, order: Any, items: bytes) -> bytes:
    head: bytes = msgpack.packb([dtype, shape, order])
    body = len(head).to_bytes(2, "big") + head + items
    return bytes(msgpack.packb([msgpack.ExtType(20, body)]))


def test_a_memoryview_arrives_as_a_memoryview_that_cannot_be_written(codec: Codec) -> None:
    source = bytearray(b"hello world")
    for view in (memoryview(source), memoryview(source)[::2], memoryview(b"")):
        found = arrived(codec, view)
        assert type(found) is memoryview
        assert found == view
        assert found.readonly


def test_buffers_that_arrive_are_buffers_of_their_own(codec: Codec) -> None:
    for value in (bytearray(b"abc" * 5_000), array("i", range(9_000))):
        found = arrived(codec, value)
        assert found == value
        found[0] += 1
        assert found != value


def test_arrays_of_another_machine(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    def there(value: array[Any]) -> Any:
        head: bytes = msgpack.packb([value.typecode, 5])
        body = len(head).to_bytes(2, "big") + head + value.tobytes()
        return codec.unpack(bytes(msgpack.packb(msgpack.ExtType(19, body))))

    found = there(array("l", [1]))
    assert isinstance(found, Unreadable)
    assert f"an item of array('l') has {array('l').itemsize} bytes here, not 5" in found.why
    packed = codec.pack_value(array("h", [1, 258]))
    monkeypatch.setattr(arrays, "_IS_BIG_ENDIAN", sys.byteorder == "little")
    swapped = array("h", [1, 258])
    swapped.byteswap()
    assert codec.unpack(packed) == swapped
    assert codec.pack_value(swapped) == packed


def test_every_array_that_holds_values_travels(codec: Codec, np: ModuleType) -> None:
    values = [
        np.ones(3, "f4"), np.arange(12).reshape(3, 4), np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1), np.arange(10)[::-2], np.array(7), np.zeros((0, 3)),
        np.array(["a", "bcd"]), np.array([b"x"]), np.array([True, False]), np.array([1 + 2j]),
        np.array(["2020-01-01", "NaT"], "M8[D]"), np.array([5], "m8[25s]"), np.array([1, 2], ">i4"),
        np.array([1.5], "f2"), np.ones(100_000, "f4"),
    ]  # fmt: skip
    for value in values:
        for sent in (value, np.array(value)):
            found = arrived(codec, sent)
            assert type(found) is np.ndarray
            assert (found.dtype, found.shape) == (sent.dtype, sent.shape)
            assert np.array_equal(found, sent) or "NaT" in str(sent)
            assert found.flags.writeable
            assert found.flags.f_contiguous or not sent.flags.fnc


def test_scalars_keep_their_type(codec: Codec, np: ModuleType) -> None:
    scalars = [
        np.float32(1.5), np.float64(2), np.int64(-5), np.uint8(3), np.bool_(True), np.str_("äx"),
        np.bytes_(b"x"), np.complex64(1j), np.datetime64("2020-01-01T10", "h"), np.timedelta64(3, "D"),
    ]  # fmt: skip
    for value in scalars:
        found = arrived(codec, {"k": value})["k"]
        assert type(found) is type(value)
        assert found == value
        assert found.dtype == value.dtype


def test_arrays_that_would_not_arrive_are_refused(codec: Codec, np: ModuleType) -> None:
    refused = [
        (np.array([object()]), "send numbers, times or texts of a fixed size"),
        (np.zeros(2, "i4,f4"), "send numbers"),
        (np.void(b"x"), "send numbers"),
        (np.zeros(2, np.longdouble), "which differs between machines; use float64"),
        (np.longdouble(1), "which differs between machines"),
        (np.zeros(2, "V8"), "send numbers"),
        (np.ma.array([1]), "would arrive as a plain numpy array; send numpy.asarray(...)"),
    ]
    for value, why in refused:
        with pytest.raises(NotSerializable) as caught:
            codec.pack_value({"weights": [value]})
        assert caught.value.path == "message['weights'][0]"
        assert why in caught.value.what


def test_an_array_is_copied_and_not_walked(codec: Codec, np: ModuleType) -> None:
    weights = np.ones(1_000_000, "f4")
    packed = codec.pack_value(weights)
    assert len(packed) < weights.nbytes + 100
    weights[:] = 2
    assert (codec.unpack(packed) == 1).all()


def test_malformed_arrays_are_bad_data(codec: Codec, np: ModuleType) -> None:
    heads: list[Any] = [
        ("<i4", [2], "C"), ("<i4", [2**63], "C"), ("<i4", [0, 2**63], "C"), ("<U0", [0], "C"),
        ("<i4", [[1]], "C"), ("<i4", [True], "C"), ("<i4", "a", "C"), ("<i4", [1], None), (5, [1], "C"),
        ("O", [1], "C"), ("|O8", [1], "C"), ("<i4,<i4", [1], "C"), ("i4", [1], "C"), ("V4", [1], "C"),
    ]  # fmt: skip
    for head in heads:
        with pytest.raises(BadData):
            codec.unpack(numpy_value(head[0], head[1], head[2], b"abcd"))
    (found,) = codec.unpack(numpy_value("<i3", [1], "C", b"abc"))
    assert isinstance(found, Unreadable)
    assert "an array of numpy could not be made: TypeError" in found.why


def test_texts_of_numpy_with_characters_that_are_none_are_bad_data(codec: Codec, np: ModuleType) -> None:
    for name, items in (("<U2", b"a\0\0\0\xff\xff\xff\xff"), (">U1", b"\0\x11\0\0")):
        for shape in (None, [1]):
            with pytest.raises(BadData, match="a character that is none"):
                codec.unpack(numpy_value(name, shape, "C", items))
    (found,) = codec.unpack(numpy_value(">U1", None, "C", b"\0\x10\xff\xff"))
    assert found == chr(sys.maxunicode)


def test_without_numpy_the_receiver_says_what_to_install(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)  # importing it fails
    (found,) = codec.unpack(numpy_value("<i4", [1], "C", b"abcd"))
    assert isinstance(found, Unreadable)
    assert "pip install 'fleetlm[numpy]' on this node" in found.why
    with pytest.raises(NotSerializable):
        codec.pack_value([object()])


def test_a_program_may_register_the_arrays_itself(np: ModuleType) -> None:
    types = MessageTypes()
    types.register_converter("half", np.ndarray, lambda a: a.astype("f2").tolist(), np.array)
    codec = Codec(types)
    assert codec.unpack(codec.pack_value(np.array([1.5]))).tolist() == [1.5]
    assert len(codec.pack_value(np.array([1.5]))) < 30


def test_items_without_bytes_are_refused(np: ModuleType) -> None:
    with pytest.raises(Refused, match="no bytes"):
        arrays._name_dtype(np.dtype("S0"))
