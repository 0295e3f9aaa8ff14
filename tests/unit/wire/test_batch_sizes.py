"""The sizes of the messages of a batch."""

from __future__ import annotations

from typing import Any

import msgpack
from hypothesis import given, settings as effort, strategies as st

from fleetlm.wire.batch_sizes import message_sizes
from fleetlm.wire.codec import Codec

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=20,
)


def batch_of(packed: list[bytes]) -> bytes:
    return msgpack.Packer().pack_array_header(len(packed)) + b"".join(packed)


@effort(max_examples=20)
@given(st.lists(VALUES, max_size=40))
def test_the_sizes_are_those_of_the_packed_messages(values: list[Any]) -> None:
    codec = Codec()
    packed = [codec.pack(["box", value], value) for value in values]
    assert list(message_sizes(batch_of(packed))) == [len(each) for each in packed]


def test_an_empty_batch_has_no_sizes() -> None:
    assert list(message_sizes(batch_of([]))) == []


def test_a_batch_may_be_a_view_into_a_frame() -> None:
    frame = b"header" + batch_of([msgpack.packb(["box", b"x" * 70_000]), msgpack.packb([7, 1])])
    assert list(message_sizes(memoryview(frame)[6:])) == [70_010, 3]
