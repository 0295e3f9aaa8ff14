"""Values that damaged or foreign bytes describe: what each reader of the decoder does with them."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import Flag
from typing import Any

import msgpack
import pytest

from fleetlm.messages import MessageTypes
from fleetlm.wire import decoder
from fleetlm.wire.codec import BadData, Codec, Ext, Unreadable
from fleetlm.wire.decoder import TooManySteps


class Right(Flag):
    READ = 1
    WRITE = 2


@dataclass
class Lenient:
    here: int = 0


class Amount:
    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.fixture
def codec() -> Codec:
    types = MessageTypes()
    types.register("right", Right)
    types.register("lenient", Lenient, extra="ignore")
    types.register_converter("amount", Amount, lambda amount: amount.value, Amount)
    return Codec(types)


def ext(code: Ext, value: Any) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb(value))


def read(codec: Codec, code: Ext, value: Any) -> Any:
    (found,) = codec.unpack(msgpack.packb([ext(code, value)]))
    return found


class Wide(Flag):
    BITS = 2**20 - 1
    FIRST, SECOND, THIRD, FOURTH = 1, 2, 4, 8


def test_a_peer_cannot_make_a_flag_keep_values_without_end(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "MAX_FLAG_VALUES", 8)
    codec._types.register("wide", Wide)
    found = [read(codec, Ext.ENUM, ["wide", number]) for number in range(16)]
    assert found[:5] == [Wide(number) for number in range(5)]
    refused = [value for value in found if isinstance(value, Unreadable)]
    assert refused
    assert "values on this node already" in refused[0].why
    assert len(Wide._value2member_map_) <= 9
    assert read(codec, Ext.ENUM, ["wide", 8]) == Wide.FOURTH  # Those that it has are read as ever.


def test_a_time_in_a_zone_that_is_not_here_is_unreadable(codec: Codec) -> None:
    found = read(codec, Ext.TIME, [1, 2, 3, 4, 0, "Nowhere/Town"])
    assert isinstance(found, Unreadable)
    assert "Nowhere/Town" in found.why
    assert read(codec, Ext.TIME, [1, 2, 3, 4, 0, None]) == dt.time(1, 2, 3, 4)


def test_a_time_with_fields_missing_is_bad_data(codec: Codec) -> None:
    with pytest.raises(BadData, match="wrong number of fields"):
        read(codec, Ext.TIME, [1, 2, 0, None])


def test_bits_that_a_flag_does_not_have_are_unreadable(codec: Codec) -> None:
    assert read(codec, Ext.ENUM, ["right", 3]) == Right.READ | Right.WRITE
    found = read(codec, Ext.ENUM, ["right", 64])
    assert isinstance(found, Unreadable)
    assert "'right'" in found.why


def test_a_leaf_reaches_the_programs_own_function(codec: Codec) -> None:
    assert read(codec, Ext.CONVERTED, ["amount", 7]).value == 7
    assert read(codec, Ext.CONVERTED, ["amount", [7]]).value == [7]


def test_an_unreadable_field_that_is_ignored_spoils_nothing_around_it(codec: Codec) -> None:
    """The value that could not be read is in a field that this version does not have."""
    unknown = msgpack.ExtType(99, b"?")
    lenient = ext(Ext.DATACLASS, ["lenient", {"here": 1, "later": unknown}])
    found = read(codec, Ext.CONVERTED, ["amount", [lenient]])
    assert found.value == [Lenient(1)]
    outer = read(codec, Ext.DATACLASS, ["lenient", {"here": lenient}])
    assert outer == Lenient(Lenient(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [Ext.PID, Ext.REF])
@pytest.mark.parametrize("numbers", [(1 << 63, -1), (-1, 1)])
def test_pids_and_refs_with_negative_numbers_are_refused(
    codec: Codec, code: Ext, numbers: tuple[int, int]
) -> None:
    with pytest.raises(BadData, match="64 bits"):
        read(codec, code, ["a@10.0.0.1", *numbers])


def test_pids_with_numbers_beyond_64_bits_are_refused(codec: Codec) -> None:
    """Their texts could not be made, and stand in every log line about them."""
    huge = msgpack.ExtType(Ext.BIG_INT, (10**5000).to_bytes(2100, "big"))
    with pytest.raises(BadData, match="64 bits"):
        read(codec, Ext.PID, ["a@10.0.0.1", 1, huge])


@pytest.mark.parametrize("value", [[()] * 30, dict.fromkeys(range(20), ())], ids=["list", "map"])
def test_a_batch_that_takes_too_long_is_given_up_and_leaves_nothing_behind(value: Any) -> None:
    codec, steps = Codec(), 120
    unreadable = b"\xd4\x7f\x00"  # An extension type that there is not.
    batch = b"\x92\x92\xa3box" + unreadable + codec.pack_value(["box", value])
    first, second = codec.unpack_batch(batch, 3 * steps)
    assert type(first[1]) is Unreadable
    assert second == ["box", value]
    assert codec.failures == 1
    for most in (0, 3, 4, steps // 2, steps + 3):
        for each in (codec, Codec()):  # The first one has met such a map before.
            with pytest.raises(TooManySteps):
                each.unpack_batch(batch, most)
            assert each.failures == (each is codec)
    assert codec.failures == 1
    assert codec.unpack_batch(batch)[1] == second
    assert codec.unpack(codec.pack_value(value)) == value


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_batch_that_is_broken_off_leaves_nothing_for_the_next_one(error: type[BaseException]) -> None:
    def break_off(*_: object) -> Any:
        raise error

    codec = Codec()
    batch = codec.pack_value([["box", dt.date(2026, 1, 1)], ["box", 2]])
    assert codec.unpack_batch(batch)[1] == ["box", 2]  # From now on it has an unpacker.
    codec._readers[Ext.DATE] = break_off
    with pytest.raises(BadData if error is ValueError else error):
        codec.unpack_batch(batch)
    assert codec.unpack_batch(codec.pack_value([["box", 3]])) == [["box", 3]]
