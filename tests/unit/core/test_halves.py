from __future__ import annotations

import msgpack
import pytest

from fleetlm.core.halves import Incoming, Outgoing
from fleetlm.wire import frames
from fleetlm.wire.frames import BadFrame, Kind
from tests.support.kernel_fakes import (
    hello_of,
    ip,
)


def test_frames_are_numbered_from_the_hello_on() -> None:
    out = Outgoing(5, 9)
    assert [out.header(Kind.BATCH) for _ in range(3)] == [frames.header(Kind.BATCH, 9, n) for n in range(3)]


def test_the_frame_after_the_hello_is_number_one() -> None:
    half = Incoming(b"x", 9, hello_of(2), ip(2))
    for seq in (1, 2, 3):
        half.accept(9, seq)
    assert half.seq == 4


@pytest.mark.parametrize(("epoch", "seq"), [(9, 0), (9, 1), (9, 3), (8, 2), (10, 2), (9, 2**64 - 1)])
def test_a_gap_a_copy_and_another_dial_are_seen(epoch: int, seq: int) -> None:
    half = Incoming(b"x", 9, hello_of(2), ip(2))
    half.accept(9, 1)
    with pytest.raises(BadFrame, match=f"expected frame 2 of epoch 9, got {seq} of {epoch:x}"):
        half.accept(epoch, seq)
    half.accept(9, 2)


def test_the_header_of_a_batch_is_counted_as_any_other_and_holds_that_of_its_array() -> None:
    outgoing, other = Outgoing(1, 9), Outgoing(1, 9)
    for seq, count in enumerate((0, 1, 65_536, (1 << 32) - 1)):
        frame = outgoing.batch_header(count)
        assert frame == other.header(Kind.BATCH) + b"\xdd" + count.to_bytes(4, "big")
        assert frames.read_header(frame) == (Kind.BATCH, 9, seq)
    assert msgpack.unpackb(outgoing.batch_header(2)[frames.HEADER_BYTES :] + b"\x01\x02") == [1, 2]
