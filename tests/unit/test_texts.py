from __future__ import annotations

import datetime as dt
import itertools
import logging
import time
import traceback
import tracemalloc
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from ipaddress import IPv4Address
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import given, strategies as st

from fleetlm.call import Call
from fleetlm.errors import (
    AlreadyRegistered,
    CallTimeout,
    InitFailed,
    NoProcess,
    ProcessDown,
    ProcessExit,
)
from fleetlm.escapes import escape, escape_lines
from fleetlm.settings import Settings
from fleetlm.texts import (
    MAX_TEXT_CHARS,
    SHORT,
    format_error,
    is_short,
    loggable,
    text_of,
    traceback_of,
    type_name,
)

log = logging.getLogger("fleetlm")


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


class Exits(BaseException):
    pass


def raises(error: BaseException) -> Any:
    def method(_self: object) -> str:
        raise error

    return method


def recurses(self: object) -> str:
    return f"{self!r}"


def hostile(method: Any) -> Any:
    return type("Hostile", (), {"__repr__": method, "__str__": method})()


class Pair(NamedTuple):
    one: object
    other: object


class Level(IntEnum):
    LOW = 1


class Text(str):
    __slots__ = ()


def cycle() -> Any:
    found: Any = [1]
    found += [found, {"again": found}, (found,)]
    return found


LARGE = "x" * 5_000_000
MANY = dict.fromkeys(range(300_000))
HOSTILE: dict[str, Any] = {
    "raises": hostile(raises(ValueError())),
    "interrupts": hostile(raises(KeyboardInterrupt())),
    "exits": hostile(raises(SystemExit(3))),
    "ends with its own": hostile(raises(Exits())),
    "recurses": hostile(recurses),
    "returns no text": hostile(lambda _self: 7),
    "returns megabytes": hostile(lambda _self: LARGE),
    "no class": type("Classless", (), {"__class__": property(raises(Exits()))})(),
    "a cycle": cycle(),
    "a cycle in an error": ValueError(cycle()),
}
BIG: dict[str, Any] = {
    "number": 10**6_000,
    "fraction": Fraction(10**6_000, 7),
    "decimal": Decimal("7" * 2_000_000),
    "exponent": Decimal("1E+999999999"),
    "text": LARGE,
    "text of a class": Text(LARGE),
    "named tuple": Pair(LARGE, MANY),
    "dict": MANY,
    "keys": {(n, LARGE): n for n in range(10)},
    "ordered": OrderedDict(MANY),
    "default": defaultdict(list, MANY),
    "counter": Counter(MANY),
    "deque": deque(MANY),
    "set": set(MANY),
    "frozen set": frozenset(MANY),
    "list": [LARGE] * 100_000,
    "error": ValueError(LARGE, MANY),
    "key error": KeyError(LARGE),
    "key": KeyError(10**6_000),
    "nested": [[[[[[[LARGE] * 9] * 9] * 9] * 9] * 9] * 9],
    "zone": dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(0), "Z" * 100_000)),
}


@pytest.mark.parametrize("name", [*HOSTILE, *BIG])
def test_no_value_makes_a_long_text_or_raises_or_takes_long(name: str) -> None:
    value = (HOSTILE | BIG)[name]
    tracemalloc.start()
    try:
        for each in (value, [value], (value, value), Pair(value, 1), Line(value), ValueError(value)):
            began_s = time.thread_time()
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            assert 0 < len(SHORT.repr(each)) <= 300
            assert time.thread_time() - began_s < 0.5
            if name not in ("recurses", "zone"):
                assert tracemalloc.get_traced_memory()[1] - before < 500_000
            assert len(text_of(each)) <= MAX_TEXT_CHARS + 3
    finally:
        tracemalloc.stop()


def throw(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("name", [*HOSTILE, *BIG])
def test_an_exception_with_any_value_can_be_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    value = (HOSTILE | BIG)[name]
    error = RuntimeError(value, value)
    error.__cause__ = KeyError(value)
    try:
        throw(error)
    except RuntimeError as caught:
        log.error("seen", exc_info=loggable(caught))  # noqa: TRY400
        shown = "".join(traceback.format_exception(loggable(caught)))
    assert "RuntimeError" in shown
    assert "KeyError" in shown
    assert "test_texts.py" in shown
    assert len(shown) < 3 * MAX_TEXT_CHARS
    assert len(caplog.text) < 3 * MAX_TEXT_CHARS


def test_an_exception_with_a_short_text_is_logged_as_it_is() -> None:
    inner, outer = KeyError("a"), ValueError("b", 1)
    outer.__cause__ = inner
    outer.__context__ = OSError(2, "no such file")
    for error in (outer, inner, ExceptionGroup("several", [outer]), NoProcess(10**6_000), ValueError()):
        assert loggable(error) is error
    outer.__context__ = KeyError("x" * 100_000)
    shown = loggable(outer)
    assert (type(shown).__name__, str(shown)) == ("ValueError", "('b', 1)")
    assert shown.__cause__ is inner
    assert len(str(shown.__context__)) < 5_000


def test_causes_without_end_are_not_followed() -> None:
    errors = [KeyError("x" * 100_000) for _ in range(50)]
    for one, other in itertools.pairwise(errors):
        one.__cause__ = one.__context__ = other
    shown: BaseException | None = loggable(errors[0])
    lengths = []
    while shown is not None:
        lengths.append(len(str(shown)))
        shown = shown.__cause__
    assert max(lengths[:9]) < 5_000


def test_the_texts_of_errors_say_what_their_arguments_are() -> None:
    assert text_of(ValueError()) == ""
    assert text_of(ValueError(7)) == "7"
    assert text_of(KeyError("a")) == "'a'"
    assert text_of(ValueError("a", [1])) == "('a', [1])"
    assert text_of(ValueError(10**6_000)) == "<int of 19,932 bits>"
    assert text_of(OSError(2, "no such file")) == "[Errno 2] no such file"
    assert text_of(Line("a" * 1_000)) == f"Line(text={'a' * 1_000!r}, more=None)"
    assert text_of(Decimal("1.5")) == "Decimal('1.5')"


def test_subclasses_of_containers_are_shown_with_their_names() -> None:
    assert SHORT.repr(Pair(1, "a")) == "Pair(one=1, other='a')"
    assert SHORT.repr(OrderedDict(a=1)) == "OrderedDict({'a': 1})"
    assert SHORT.repr(deque([1, 2])) == "deque([1, 2])"
    assert SHORT.repr(deque()) == "deque([])"
    assert SHORT.repr(frozenset({1})) == "frozenset({1})"
    assert SHORT.repr(set()) == "set()"
    assert SHORT.repr(frozenset()) == "frozenset({})"
    assert SHORT.repr(()) == "()"
    assert SHORT.repr((1,)) == "(1,)"
    assert SHORT.repr({1: [2]}) == "{1: [2]}"
    assert SHORT.repr(Level.LOW) == "<Level.LOW: 1>"
    assert SHORT.repr(True) == "True"
    assert SHORT.repr(ValueError("a", 1)) == "ValueError('a', 1)"
    assert SHORT.repr(range(3)) == "range(0, 3)"


def test_a_value_is_short_if_its_whole_text_is() -> None:
    for value in (1, "a", [1, 2], {"a": (1, None)}, Pair(1, 2), b"ab"):
        assert is_short(value, 100)
    for value in ("a" * 101, [1] * 100, 10**1_000, cycle(), *HOSTILE.values()):
        assert not is_short(value, 100)


CONTROLS = "".join(
    map(chr, [*range(32), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), 0x2066, 0x2069])
)


def test_nothing_that_a_terminal_obeys_is_left() -> None:
    assert escape(CONTROLS).isprintable()
    assert escape("\x1b[31m\u202e\n") == "\\x1b[31m\\u202e\\n"
    assert escape("ünï 漢字 ✓") == "ünï 漢字 ✓"
    kept = set(escape_lines(CONTROLS)) - set(escape(CONTROLS))
    assert kept == {"\n", "\t"}


@given(st.text())
def test_escaping_twice_changes_nothing_more_and_leaves_one_line(text: str) -> None:
    once = escape(text)
    assert escape(once) == once
    assert len(once.splitlines()) <= 1


def test_an_error_is_written_as_python_does_but_for_what_it_says() -> None:
    try:
        try:
            {"a": 1}["first"]
        except KeyError as error:
            raise ValueError("second\nTraceback (forged)\x1b[2J\x85x") from error
    except ValueError as error:
        ordinary = "".join(traceback.format_exception(error)).rstrip("\n")
        written = format_error(error)
    lines, expected = written.split("\n"), ordinary.split("\n")
    assert lines[:-2] == expected[:-2]
    assert lines[-2:] == ["ValueError: second", "    Traceback (forged)\\x1b[2J\\x85x"]
    assert "The above exception was the direct cause of the following exception:" in lines


def test_a_group_of_errors_is_written_too() -> None:
    written = format_error(ExceptionGroup("several", [ValueError("a\nb"), OSError("c\x07")]))
    assert "ValueError: a" in written
    assert "    | b" in written
    assert "\\x07" in written
    assert "\x07" not in written


class Unprintable(Exception):
    """Its traceback cannot be made, since its class asks for something that is not there."""

    def __getattribute__(self, name: str) -> object:
        if name in ("__cause__", "__context__"):
            raise RuntimeError("no cause")
        return super().__getattribute__(name)


def test_the_text_of_a_traceback_is_made_of_any_exception() -> None:
    assert traceback_of(Unprintable("x")).startswith("Unprintable: x\n(no traceback: RuntimeError")
    error: Exception = ValueError("innermost")
    for _ in range(5_000):
        error = ExceptionGroup("g", [error])
    shown = loggable(error)
    assert type(shown).__name__ == "ExceptionGroup"
    assert "nested more than 64 levels deep" in traceback_of(error)
    assert "innermost" in traceback_of(ExceptionGroup("g", [ExceptionGroup("g", [ValueError("innermost")])]))
