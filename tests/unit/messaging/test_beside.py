"""Large messages are unpacked beside the loop."""

from __future__ import annotations

import gc
import sys
from array import array
from typing import Any

import pytest

from fleetlm.messaging import beside
from fleetlm.messaging.chunks import Whole
from fleetlm.wire import large
from fleetlm.wire.blobs import Hold, Packed, Parcel
from fleetlm.wire.codec import BadData, Codec


def whole(packed: Packed) -> Whole:
    blobs = []
    for blob in packed.blobs if isinstance(packed, Parcel) else ():
        blobs.append(Hold(len(blob)))
        blobs[-1].fill(memoryview(blob))
    envelope = packed.envelope if isinstance(packed, Parcel) else packed
    return Whole(envelope, tuple(blobs), len(packed), 1)


@pytest.mark.parametrize("is_on", [True, False])
def test_the_collector_is_off_while_a_thread_unpacks_and_only_then(
    is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(beside, "_let_others_run", lambda: seen.append(gc.isenabled()))
    was_on = gc.isenabled()
    try:
        (gc.enable if is_on else gc.disable)()
        value = list(range(100_000))
        assert beside.unpack(Codec(), whole(Codec().pack_value(value)), 16) == ([value], 0)
        assert gc.isenabled() is is_on
        with pytest.raises(BadData):
            beside.unpack(Codec(), whole(b"\xc1"), 16)
        assert gc.isenabled() is is_on
    finally:
        (gc.enable if was_on else gc.disable)()
    assert seen
    assert not any(seen)


def batch(*messages: Any) -> memoryview:
    return memoryview(Codec().pack_value(list(messages)))


def test_a_batch_is_unpacked_as_on_the_loop() -> None:
    messages = [["box", [n, [], {"a": n}]] for n in range(50)]
    assert beside.unpack_batch(Codec(), batch(*messages), 16) == (messages, 0)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\xc1", "not a message"),
        (b"\x80", "a batch is an array"),
        (batch(*[["box", 1]] * 4_097), "4,097 messages"),
        (batch(["box", [[]] * 1_000]), "counts as 1"),
    ],
)
def test_nonsense_in_a_batch_beside_the_loop_is_bad_data(body: bytes, why: str) -> None:
    with pytest.raises(BadData, match=why):
        beside.unpack_batch(Codec(), memoryview(body), 16)


def test_a_batch_that_would_take_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "RESERVE_BYTES", 1 << 16)
    with pytest.raises(BadData, match="it would take more than"):
        beside.unpack_batch(Codec(), batch(["box", [[]] * 5_000]), 16)


def test_many_values_take_long_and_large_texts_do_not() -> None:
    for size, value, long in (
        (15, [[]] * 15_000, False),
        (17, [[]] * 17_000, True),
        (17, ([[]] * 17_000,), True),
        (300, [["text " * 100, 1]] * 300, False),
        (400, b"x" * 400_000, False),
        (1_200, b"x" * 1_200_000, True),
    ):
        assert beside.takes_long(whole(Codec().pack_value(value))) is long, size


@pytest.mark.parametrize(
    ("value", "long"),
    [
        (bytes(3 << 20), False),
        ([1, (memoryview(bytes(3 << 20)), bytes(3 << 20))], False),
        (bytearray(3 << 20), True),
        ({"a": [(array("d", bytes(3 << 20)),)]}, True),
        ([bytearray(600_000), bytes(3 << 20)], False),
        ([bytearray(600_000), (array("B", bytes(600_000)), "x")], True),
        ([bytes(3 << 20), "text" * 20_000], True),
        ([bytes(300_000), "text" * 20_000], False),
        ([bytes(300_000), [[]] * 70_000], True),
    ],
)
def test_much_that_must_be_copied_takes_long_and_what_is_lent_does_not(value: Any, long: bool) -> None:
    codec = Codec(large_bytes=128 * 1024)
    assert beside.takes_long(whole(codec.pack([1, value], value))) is long


def test_the_turns_of_threads_are_shorter_until_the_last_of_several_has_unpacked() -> None:
    before = sys.getswitchinterval()
    with beside.SHORT_TURNS:
        with beside.SHORT_TURNS:
            assert sys.getswitchinterval() == pytest.approx(beside.TURN_S)
        assert sys.getswitchinterval() == pytest.approx(beside.TURN_S)
    assert sys.getswitchinterval() == before


def test_turns_that_are_shorter_already_and_those_that_a_program_sets_meanwhile_are_left_alone() -> None:
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.00001)
        with beside.SHORT_TURNS:
            assert sys.getswitchinterval() == pytest.approx(0.00001)
        assert sys.getswitchinterval() == pytest.approx(0.00001)
        with beside.SHORT_TURNS:
            sys.setswitchinterval(0.003)
        assert sys.getswitchinterval() == pytest.approx(0.003)
    finally:
        sys.setswitchinterval(before)


def test_the_collector_is_on_again_after_the_last_of_several_threads() -> None:
    was_on = gc.isenabled()
    gc.enable()
    try:
        with beside.NO_COLLECTION:
            with beside.NO_COLLECTION:
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled()
    finally:
        (gc.enable if was_on else gc.disable)()
