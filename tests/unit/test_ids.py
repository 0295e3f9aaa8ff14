"""Incarnations differ at every start; pids and refs carry them."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, strategies as st

from fleetlm.ids import Pid, Ref, new_incarnation


@given(st.integers(0, 2**60), st.integers())
def test_an_incarnation_fits_64_bits(wall_ms: int, seed: int) -> None:
    assert 0 <= new_incarnation(wall_ms, random.Random(seed)) < 2**64


@given(st.integers(0, 2**42 - 2), st.integers())
def test_incarnations_are_ordered_by_time(wall_ms: int, seed: int) -> None:
    rng = random.Random(seed)
    assert new_incarnation(wall_ms, rng) < new_incarnation(wall_ms + 1, rng)


def test_incarnations_of_one_millisecond_differ() -> None:
    rng = random.Random(1)
    assert len({new_incarnation(1_700_000_000_000, rng) for _ in range(100)}) == 100


def test_the_same_seed_gives_the_same_incarnation() -> None:
    first, second = (new_incarnation(5, random.Random(7)) for _ in range(2))
    assert first == second
    assert first >> 22 == 5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Pid("fleetlm@10.0.0.7", 255, 3), "<fleetlm@10.0.0.7 ff 3>"),
        (Ref("fleetlm@::1", 16, 0), "#Ref<fleetlm@::1 10 0>"),
    ],
)
def test_as_people_read_them(value: Pid | Ref, text: str) -> None:
    assert str(value) == text


def test_identities_are_values() -> None:
    assert Pid("n@::1", 1, 2) == Pid("n@::1", 1, 2)
    assert len({Pid("n@::1", 1, 2), Pid("n@::1", 1, 2), Pid("n@::1", 2, 2)}) == 2
    assert Pid("n@::1", 1, 2) != Ref("n@::1", 1, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pid("n@::1", 1, 2).number = 3  # type: ignore[misc]
