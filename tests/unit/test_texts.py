from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

from fleetlm.texts import SHORT, text_of, type_name


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def test_types_have_the_name_under_which_they_are_imported() -> None:
    assert (type_name(int), type_name(IPv4Address)) == ("int", "ipaddress.IPv4Address")


def test_an_error_without_a_text_still_says_what_it_was() -> None:
    assert text_of(ValueError("boom")) == "boom"
    assert text_of(Mute()) == "<Mute, whose text cannot be made>"


def test_values_in_error_texts_are_short_whatever_they_are() -> None:
    values: list[Any] = ["x" * 1_000, list(range(1_000)), {n: n for n in range(1_000)}, b"x" * 1_000, Mute()]
    for value in values:
        assert 0 < len(SHORT.repr(value)) < 120
