from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, cast

import pytest

from fleetlm.call import Call
from fleetlm.errors import (
    AlreadyRegistered,
    CallTimeout,
    InitFailed,
    NoProcess,
    ProcessDown,
    ProcessExit,
)
from fleetlm.settings import Settings
from fleetlm.texts import MAX_TEXT_CHARS, SHORT, text_of, type_name


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
    values: list[Any] = ["x" * 1_000, [*range(1_000)], {n: n for n in range(1_000)}, b"x" * 1_000, Mute()]
    for value in values:
        assert 0 < len(SHORT.repr(value)) < 120


HUGE = 10**5_000  # has no decimal text: `sys.set_int_max_str_digits`


@dataclass
class Line:
    text: object
    more: object = None


class Loud:
    def __repr__(self) -> str:
        return "x" * 10_000_000


class Own(Line):
    def __repr__(self) -> str:
        return "own"


def failing_repr(_self: object) -> str:
    raise RuntimeError


Namesake = type("list", (tuple,), {"__repr__": failing_repr})  # `reprlib` goes by the name of a class

ODD: list[Any] = [
    *(HUGE, -HUGE, [HUGE], {HUGE: HUGE}, {HUGE}, (1, [HUGE]), Line(HUGE), Line(Line(Line(HUGE)))),
    *(Mute(), [Mute()], Line(Mute()), Loud(), [Loud()] * 3, Line(Loud()), Namesake(), Line(Namesake())),
    *(b"x" * 10_000_000, bytearray(10_000_000), memoryview(b"x"), Line(b"x" * 10_000_000)),
    *(Line("x" * 1_000_000, [0] * 1_000_000), ValueError(HUGE), KeyError(Mute()), type("int", (), {})()),
]


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_showing_a_value_never_raises_and_is_short(value: Any) -> None:
    assert 0 < len(SHORT.repr(value)) < 400
    assert 0 < len(text_of(value)) <= MAX_TEXT_CHARS + 3
    for error in (
        ProcessDown("p", value), ProcessExit(value), InitFailed("A", value), AlreadyRegistered("n", value),
        NoProcess(value), NoProcess((value, "n")), CallTimeout(value, 1.0),
    ):  # fmt: skip
        assert 0 < len(str(error)) < 70_000
    assert "Call" in repr(Call(value, cast("Any", None), 1, 0.0, float))


def test_what_is_shown_says_what_it_is() -> None:
    assert SHORT.repr(HUGE) == "<int of 16,610 bits>"
    assert SHORT.repr([1, HUGE, "x"]) == "[1, <int of 16,610 bits>, 'x']"
    assert SHORT.repr(2**1_000) == f"{str(2**1_000)[:18]}...{str(2**1_000)[-19:]}"
    assert SHORT.repr(b"ab") == "b'ab'"
    assert SHORT.repr(b"a" * 50) == f"<bytes of 50 bytes {b'a' * 40!r}...>"
    assert SHORT.repr(memoryview(b"ab")) == "<memoryview of 2 bytes>"
    assert SHORT.repr(Line("a", [1])) == "Line(text='a', more=[1])"
    assert SHORT.repr(Own("a")) == "own"
    assert SHORT.repr(Mute()) == "<Mute object, whose repr() raises>"
    deep: Any = "leaf"
    for _ in range(5):
        deep = [deep] * 6
    assert len(SHORT.repr(deep)) == 300
    assert "repr() raises" not in SHORT.repr(Settings(cookie="x good cookie 7f3a91c"))
    assert "7f3a91c" not in SHORT.repr(
        Settings(cookie="x good cookie 7f3a91c")
    )  # `repr=False` keeps a field out
