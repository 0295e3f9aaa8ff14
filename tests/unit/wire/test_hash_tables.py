"""Keys that a peer has made to collide are refused at a bounded cost, and honest keys never are."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack
import pytest

from fleetlm.ids import Pid, Ref
from fleetlm.wire import hash_tables
from fleetlm.wire.codec import Codec, Unreadable
from fleetlm.wire.hash_tables import CollidingKeys, check_keys, make_set

MODULUS = (1 << 61) - 1
"""Integers that differ by a multiple of this have the same hash."""
UTC = dt.UTC


class Counted:
    """A key that counts how often it is compared."""

    compared = 0

    def __init__(self, number: int, where: int = 7) -> None:
        self.number, self.where = number, where

    def __hash__(self) -> int:
        return self.where

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return isinstance(other, Counted) and other.number == self.number


def walkers(count: int, size: int, run: int = 1, tried: int = 1, most: int = 400) -> list[int]:
    """Return integers that take ``count`` places of a table in the order in which it tries them, and then
    others that have to try most of these. Each integer has a hash of its own.

    Args:
        count: places that are taken.
        size: of the table.
        run: neighbouring places that are taken at a time.
        tried: neighbouring places that the table tries at a time: 1 for a dict, 10 for a set.
        most: integers of the second kind.
    """
    taken: dict[int, int] = {}
    place = 0
    while len(taken) < count:
        for each in range(place, min(place + run, size)):
            taken.setdefault(each, len(taken))
        place = (5 * place + 1) % size
    found: list[int] = []
    number = size
    while len(found) < most:
        number += 61
        place, perturb = number % size, number
        while perturb and all(each in taken for each in range(place, place + tried)):
            perturb >>= 5
            place = (5 * place + perturb + 1) % size
        if not perturb and taken.get(place, count) < count // 4:
            found.append(number)
    return [*taken, *found]


HONEST: dict[str, Callable[[int], Any]] = {
    "small numbers": lambda n: n,
    "negative numbers": lambda n: -n,
    "large numbers": lambda n: n * 0x9E3779B97F4A7C15 % (1 << 63),
    "times in ns": lambda n: 1_700_000_000_000_000_000 + n * 10**9,
    "days in µs": lambda n: n * 86_400_000_000,
    "shards": lambda n: (n % 16) << 56 | n // 16,
    "addresses": lambda n: n << 20,
    "high bits": lambda n: n << 40,
    "fractions": lambda n: n / 1024,
    "floats": lambda n: 1 / (n + 1),
    "powers of two": lambda n: 2.0 ** (n % 2000 - 1000) * (1 + n // 2000),
    "amounts": lambda n: Decimal(n) / 100,
    "points": lambda n: (n % 100 - 50, n // 100 - 50),
    "sets": lambda n: frozenset({n, n + 1}),
    "days": lambda n: dt.date.fromordinal(n + 1),
    "moments": lambda n: dt.datetime(2020, 1, 1, tzinfo=UTC) + dt.timedelta(minutes=n),
    "spans": lambda n: dt.timedelta(seconds=n),
    "ids": lambda n: UUID(int=n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)),
    "pids": lambda n: Pid("a@10.0.0.1", 1 << 60, n),
    "refs": lambda n: Ref("a@10.0.0.1", 1 << 60, n),
    "mixed": lambda n: (n, str(n), (n,), n / 3)[n % 4],
}
HOSTILE: dict[str, Callable[[int], Any]] = {
    "numbers": lambda n: n * MODULUS + 5,
    "ids": lambda n: UUID(int=(n + 1) * MODULUS + 5),
    "amounts": lambda n: Decimal(n * MODULUS + 5),
    "tuples": lambda n: ("a", n * MODULUS + 5),
    "sets": lambda n: frozenset({n * MODULUS + 5}),
    "spans of one hash": Counted,
}


@pytest.mark.parametrize("kind", HONEST)
@pytest.mark.parametrize("count", [17, 1_000, 5_000])
def test_honest_keys_are_never_refused(kind: str, count: int) -> None:
    keys = [HONEST[kind](n) for n in range(count)]
    check_keys(keys)
    assert make_set(keys) == set(keys)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("count", [60, 5_000])
def test_keys_with_one_hash_are_refused(kind: str, count: int) -> None:
    keys = [HOSTILE[kind](n) for n in range(count)]
    with pytest.raises(CollidingKeys, match=f"{count:,} keys"):
        check_keys(keys)
    with pytest.raises(CollidingKeys):
        make_set(keys)


def test_few_keys_are_taken_whatever_their_hashes_are() -> None:
    keys = [HOSTILE["ids"](n) for n in range(16)]
    check_keys(keys)
    assert len(make_set(keys)) == 16


def test_the_check_itself_compares_only_a_bounded_number_of_times() -> None:
    for count in (1_000, 5_000):
        Counted.compared = 0
        with pytest.raises(CollidingKeys):
            check_keys([Counted(n) for n in range(count)])
        assert Counted.compared <= 21 * count


def test_keys_that_walk_through_a_full_table_are_refused() -> None:
    keys = walkers(5_000, 8_192)
    assert len(set(map(hash, keys))) == len(keys) == 5_400
    with pytest.raises(CollidingKeys):
        check_keys(keys)
    with pytest.raises(CollidingKeys):
        make_set(keys)


def test_one_key_that_comes_again_and_again_is_refused_if_it_walks_each_time() -> None:
    keys = walkers(5_000, 8_192, most=1)
    check_keys(keys)
    with pytest.raises(CollidingKeys):
        check_keys(keys + keys[-1:] * 400)


def test_filling_the_larger_tables_again_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [n / 1024 for n in range(5_462)]  # The last one needs a table of twice the size.
    refused = []
    for limit in range(25):
        monkeypatch.setattr(hash_tables, "_STEPS_PER_KEY", limit)
        try:
            check_keys(keys)
        except CollidingKeys:
            refused.append(limit)
    assert refused == list(range(len(refused)))
    assert 8 < len(refused) < 25


def test_a_set_is_counted_in_its_own_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set also tries the nine places behind each; these numbers fill ten places in a row."""
    keys = [row * 16 + place for row in range(500) for place in range(10)]
    make_set(keys)
    monkeypatch.setattr(hash_tables, "check_keys", lambda _keys: None)
    monkeypatch.setattr(hash_tables, "_STEPS_PER_KEY", 0)
    make_set(keys)
    with pytest.raises(CollidingKeys):
        make_set([*keys, *(row * 16 + (1 << 40) for row in range(500))])


def test_the_same_key_many_times_is_one_key() -> None:
    keys = [1, 2, 3] * 2_000
    check_keys(keys)
    assert make_set(keys) == {1, 2, 3}


def test_texts_are_not_looked_at() -> None:
    keys = [str(n) for n in range(10_000)]
    check_keys(keys)
    assert make_set(keys) == set(keys)


# In messages.


@pytest.fixture
def codec() -> Codec:
    return Codec()


@pytest.mark.parametrize("kind", [each for each in HOSTILE if each != "spans of one hash"])
def test_a_message_with_colliding_keys_is_unreadable_and_the_codec_goes_on(kind: str, codec: Codec) -> None:
    make = HOSTILE[kind]
    for value in ({make(n): None for n in range(60)}, {make(n) for n in range(60)}):
        for form in (value, [value], {"a": [value]}):
            packed = codec.pack_value(form)
            assert codec.failures == 0
            codec.unpack(packed)
            assert codec.failures == 1
            codec.failures = 0
    frozen = codec.unpack(codec.pack_value(frozenset(make(n) for n in range(60))))
    assert frozen == Unreadable("60 keys of a dict or items of a set whose hashes collide")
    assert codec.unpack(codec.pack_value({1: 2})) == {1: 2}


@pytest.mark.parametrize("kind", HONEST)
def test_honest_keys_arrive_as_they_were_sent(kind: str, codec: Codec) -> None:
    keys = [HONEST[kind](n) for n in range(300)]
    for value in (dict.fromkeys(keys, 1), set(keys), frozenset(keys), [{"deep": (dict.fromkeys(keys),)}]):
        data = codec.pack_value(value)
        assert codec.unpack(data) == value
        assert codec.unpack_batch(b"\x91" + data) == [value]
        if isinstance(value, dict):
            assert list(codec.unpack(data)) == list(value)
    assert codec.failures == 0


def test_messages_are_read_strictly_again_after_those_with_other_keys(codec: Codec) -> None:
    numbers, texts = codec.pack_value({1: {"a": 2}}), codec.pack_value({"a": {"b": 1}})
    for _ in range(3):
        assert codec.unpack(numbers) == {1: {"a": 2}}
        for _ in range(40):
            assert codec.unpack(texts) == {"a": {"b": 1}}


def test_what_a_first_reading_could_not_rebuild_is_counted_once(codec: Codec) -> None:
    unknown = msgpack.ExtType(99, b"")
    data = msgpack.packb([unknown, {1: 2}])
    assert codec.unpack(data)[1] == {1: 2}
    assert codec.failures == 1


def test_a_map_with_other_keys_inside_every_kind_of_value_is_read_twice_at_most(codec: Codec) -> None:
    """Each level that began anew would double the work: 2 ** 30 readings."""
    value: Any = {1: 1}
    for _ in range(30):
        value = ({2: value},)
    assert codec.unpack(codec.pack_value(value)) == value


def test_huge_integers_and_decimals_are_not_compared(codec: Codec) -> None:
    """Making a Decimal of an integer of 1 MB takes minutes, and their hashes can be made equal."""
    huge = 5 + MODULUS * (1 << 8_000_000)
    assert hash(huge) == hash(Decimal(5))
    pair = [(codec.pack_value(each), b"\xc0") for each in (Decimal(5), huge)]
    as_map = b"\x82" + b"".join(key + item for key, item in pair)
    assert isinstance(codec.unpack(as_map), Unreadable)
    as_list = b"\x92" + b"".join(key for key, _ in pair)
    for code in (2, 3):
        assert isinstance(codec.unpack(msgpack.packb(msgpack.ExtType(code, as_list))), Unreadable)
    inside = codec.pack_value([{huge: 1}, {Decimal(5): 1}, {huge, 7}, huge, Decimal(5)])
    codec.failures = 0
    codec.unpack(inside)
    assert codec.failures == 1  # {Decimal(5): 1} came after a huge integer and might hold one
    assert codec.unpack(codec.pack_value({huge: 1, (2,): 3})) == {huge: 1, (2,): 3}


def test_a_key_that_cannot_be_hashed_ends_nothing_but_the_message(codec: Codec) -> None:
    many = b"\xde" + (20).to_bytes(2, "big") + b"\x90\xc0" * 20
    for data in (b"\x81\x90\xc0", many):
        with pytest.raises(ValueError, match="unhashable"):
            codec.unpack(data)
    assert codec.unpack(codec.pack_value({1: 1})) == {1: 1}


def test_many_colliding_keys_are_refused_after_few_comparisons() -> None:
    seen = 0

    class Counted(int):
        __hash__ = int.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal seen
            seen += 1
            return int.__eq__(self, other)

    with pytest.raises(CollidingKeys):
        check_keys([Counted(7 + n * (2**61 - 1)) for n in range(20_000)])
    assert seen <= 130_000 + 1
