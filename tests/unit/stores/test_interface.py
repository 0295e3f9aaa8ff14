"""What no store takes, and how its errors name a key."""

from __future__ import annotations

import pytest

from fleetlm import Fence, Fenced, InvalidName, MessageTooLarge, VersionConflict
from fleetlm.stores.interface import (
    MAX_NUMBER,
    MAX_STATE_BYTES,
    check_fence,
    check_place,
    check_state,
    check_version,
)


@pytest.mark.parametrize("name", ["a", "x" * 255, "日本", "🚲", "a/b", " "])
def test_what_is_text_is_a_name(name: str) -> None:
    assert check_place(name, name) == f"{name}/{name}"


@pytest.mark.parametrize("name", ["", "x" * 256, "a\0", "\ud800"])
def test_what_no_database_takes_is_no_name(name: str) -> None:
    for kind, key in ((name, "a"), ("a", name)):
        with pytest.raises(InvalidName, match="1 to 255 characters of Unicode without NUL"):
            check_place(kind, key)


def test_a_lower_epoch_is_fenced_and_an_equal_one_is_not() -> None:
    check_fence("k/a", Fence(1, 7), 7)
    with pytest.raises(Fenced) as refused:
        check_fence("k/a", Fence(1, 6), 7)
    assert (refused.value.target, refused.value.epoch, refused.value.highest) == ("k/a", 6, 7)


@pytest.mark.parametrize("epoch", [0, -1, MAX_NUMBER + 1])
def test_what_is_no_epoch_is_refused(epoch: int) -> None:
    with pytest.raises(ValueError, match="an epoch is from 1"):
        check_fence("k/a", Fence(1, epoch), 0)


def test_versions_are_equal_or_in_conflict() -> None:
    check_version("k/a", 3, 3)
    for found in (2, 4):
        with pytest.raises(VersionConflict) as refused:
            check_version("k/a", 3, found)
        assert (refused.value.expected, refused.value.found) == (3, found)


def test_a_state_has_a_limit() -> None:
    check_state(b"x")

    class Huge(bytes):
        def __len__(self) -> int:
            return MAX_STATE_BYTES + 1

    with pytest.raises(MessageTooLarge, match="the limit of a store"):
        check_state(Huge())
