"""What is packed without a walk is packed as with one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from fleetlm.errors import NotSerializable, Undecodable
from fleetlm.messaging.packing import copy_of, pack_handle, pack_payload
from fleetlm.messaging.windows import LIGHT_BYTES
from fleetlm.wire import operations
from fleetlm.wire.blobs import Parcel
from fleetlm.wire.codec import Codec
from fleetlm.wire.invocation import Invoke

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
values = scalars | st.lists(scalars, max_size=3) | st.tuples(scalars, scalars)


@given(
    st.lists(values, max_size=12).map(tuple),
    st.dictionaries(st.text(min_size=1, max_size=5), values, max_size=2),
)
def test_a_request_is_packed_as_its_schema_says(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    codec, request = Codec(), Invoke("do", args, kwargs)
    packed = pack_handle(codec, LIGHT_BYTES, "worker", request, 7, 1_000, 0)
    parts = request.parts()
    assert packed == codec.pack(operations.handle("worker", parts, 7, 1_000, 0), parts)
    assert isinstance(packed, bytes)
    assert Invoke.of(codec.unpack(packed)[2]) == request


def test_a_request_that_is_not_light_has_been_weighed() -> None:
    for args in [(b"x" * LIGHT_BYTES,), tuple(range(9)), ([1, 2, 3],)]:
        codec, request = Codec(), Invoke("do", args, {})
        pack_handle(codec, LIGHT_BYTES, "worker", request, 7, 1_000, 0)
        weighed = codec.extra_bytes
        parts = request.parts()
        codec.pack(operations.handle("worker", parts, 7, 1_000, 0), parts)
        assert weighed == codec.extra_bytes > 0


class Sessions:
    """An actor, as far as errors name it."""


def test_what_cannot_travel_is_named_as_an_argument() -> None:
    for args in [(1, object()), (1, [object()]), (1, "a lone surrogate: \ud800")]:
        with pytest.raises(NotSerializable, match=r"argument 2 of Sessions\.put"):
            pack_handle(Codec(), LIGHT_BYTES, "worker", Invoke("put", args, {}, Sessions), 7, 1_000, 0)
        with pytest.raises(NotSerializable, match=r"argument 2 of Sessions\.put"):
            pack_payload(Codec(), Invoke("put", args, {}, Sessions))


def test_a_copy_equals_what_was_sent_and_is_another_object() -> None:
    message = {"a": [1, (2, 3)], "b": {4}}
    copy = copy_of(Codec(), "echo", message)
    assert copy == message
    assert copy["a"] is not message["a"]
    request = Invoke("do", ((1, 2), [3]), {"text": "x"})
    assert copy_of(Codec(), "echo", request) == request
    assert not copy_of(Codec(), "echo", request).is_from_peer


def test_a_copy_that_cannot_be_made_is_refused_as_on_another_node() -> None:
    with pytest.raises(NotSerializable):
        copy_of(Codec(), "echo", [object()])

    class Blind(Codec):
        def unpack(self, data: bytes | memoryview, blobs: Any = ()) -> Any:
            return [self._unreadable("no such type")]

    with pytest.raises(Undecodable, match="no such type"):
        copy_of(Blind(), "echo", [1])


def test_large_bytes_travel_beside_a_request() -> None:
    codec = Codec(large_bytes=32 * 1024)
    for args in [(b"x" * 40_000,), (1, "a", b"y" * 32 * 1024)]:
        packed = pack_handle(codec, LIGHT_BYTES, "worker", Invoke("do", args, {}), 7, 1_000, 0)
        assert isinstance(packed, Parcel)
