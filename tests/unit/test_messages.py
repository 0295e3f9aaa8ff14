"""Only registered dataclasses can be sent: one class for a tag, and one tag for a class."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from ipaddress import IPv4Address
from typing import NamedTuple
from uuid import UUID

import pytest

import fleetlm
from fleetlm import messages
from fleetlm.ids import Pid
from fleetlm.messages import MAX_TAG_LENGTH, MessageTypes, NodeDown, NodeUp, message


@dataclass
class Append:
    text: str


@dataclass
class Other:
    text: str


@dataclass
class Derived:
    text: str
    length: int = field(init=False)


def test_both_directions() -> None:
    types = MessageTypes()
    types.register("append", Append)
    assert types.by_tag == {"append": Append}
    assert types.tags == {Append: "append"}


def test_a_tag_belongs_to_one_class() -> None:
    types = MessageTypes()
    types.register("append", Append)
    with pytest.raises(ValueError, match=r"the tag 'append' is already registered for .*Append"):
        types.register("append", Other)
    assert types.by_tag == {"append": Append}
    assert Other not in types.tags


def test_a_module_that_was_loaded_again_registers_again() -> None:
    types = MessageTypes()

    def load() -> type:
        @dataclass
        class Again:
            text: str

        types.register("again", Again)
        return Again

    first, second = load(), load()
    assert first is not second
    assert types.by_tag["again"] is second
    assert types.tags[first] == types.tags[second] == "again"


def test_the_program_itself_may_be_loaded_twice() -> None:
    types = MessageTypes()
    twin = type("Append", (Append,), {"__module__": "__main__", "__qualname__": "Append"})
    types.register("append", twin)
    types.register("append", Append)
    assert types.by_tag["append"] is Append


def test_classes_of_one_name_in_two_modules_are_two() -> None:
    types = MessageTypes()
    types.register("append", Append)
    namesake = type("Append", (Append,), {"__module__": "elsewhere", "__qualname__": "Append"})
    with pytest.raises(ValueError, match="the tag 'append' is already registered for"):
        types.register("append", namesake)


def test_a_class_has_one_tag() -> None:
    types = MessageTypes()
    types.register("append", Append)
    types.register("append", Append)
    with pytest.raises(ValueError, match="Append already has the tag 'append'"):
        types.register("extend", Append)
    assert types.tags == {Append: "append"}
    assert types.by_tag == {"append": Append}


@pytest.mark.parametrize("tag", ["", "x" * (MAX_TAG_LENGTH + 1)])
def test_the_length_of_a_tag(tag: str) -> None:
    types = MessageTypes()
    with pytest.raises(ValueError, match="a tag has 1 to 128 characters"):
        types.register(tag, Append)
    types.register("x" * MAX_TAG_LENGTH, Append)


def test_only_dataclasses() -> None:
    types = MessageTypes()
    with pytest.raises(TypeError, match="int is not a dataclass; put @dataclass below"):
        types.register("int", int)
    assert types.by_tag == {}


def test_fields_that_no_receiver_could_set() -> None:
    with pytest.raises(TypeError, match="fields that its __init__ does not take"):
        MessageTypes().register("derived", Derived)


def test_the_decorator_returns_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    types = MessageTypes()
    monkeypatch.setattr(messages, "TYPES", types)

    @message("decorated")
    @dataclass(frozen=True)
    class Decorated:
        n: int

    assert Decorated(1).n == 1
    assert types.by_tag["decorated"] is Decorated


def test_system_messages_are_values() -> None:
    assert NodeUp("n@::1", 1) == NodeUp("n@::1", 1)
    assert NodeDown("n@::1", 1, "connection closed") != NodeDown("n@::1", 1, "left: shutdown")
    match NodeDown("n@::1", 7, "x"):
        case NodeDown(node=node, incarnation=incarnation):
            assert (node, incarnation) == ("n@::1", 7)


class Mood(Enum):
    CALM = 1


class Pair(NamedTuple):
    x: int
    y: int = 2


class Price:
    pass


def test_enums_and_named_tuples_are_registered_as_dataclasses_are() -> None:
    types = MessageTypes()
    types.register("mood", Mood)
    types.register("pair", Pair, "ignore")
    types.register("plain", namedtuple("Plain", "x"))  # noqa: PYI024
    assert types.by_tag["mood"] is Mood
    assert types.lenient == {Pair}


def test_extra_is_one_of_two_words() -> None:
    with pytest.raises(ValueError, match="extra is 'drop'; use 'ignore' or 'refuse'"):
        MessageTypes().register("append", Append, "drop")


def test_the_error_about_a_taken_tag_names_both_classes() -> None:
    types = MessageTypes()
    types.register("append", Append)
    with pytest.raises(ValueError, match=r"_messages\.Append, so .*_messages\.Other needs another one"):
        types.register("append", Other)


def test_a_type_of_its_own_is_registered_with_two_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    types = MessageTypes()
    monkeypatch.setattr(messages, "TYPES", types)
    fleetlm.register_type("price", Price, vars, lambda value: Price())
    assert types.by_tag == {"price": Price}
    assert types.converters[Price][0] is vars
    with pytest.raises(ValueError, match="the tag 'price' is already registered for"):
        fleetlm.register_type("price", IPv4Address, str, IPv4Address)
    with pytest.raises(ValueError, match="Price already has the tag 'price'"):
        fleetlm.register_type("cost", Price, vars, lambda value: Price())
    for cls in (int, list, date, UUID, Pid, object, ValueError):
        with pytest.raises(TypeError, match="cannot get a tag"):
            fleetlm.register_type("x", cls, str, str)
    with pytest.raises(TypeError, match="takes a class, not an object"):
        fleetlm.register_type("x", Price(), str, str)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes two functions"):
        fleetlm.register_type("x", IPv4Address, str, None)  # type: ignore[arg-type]
    assert types.by_tag == {"price": Price}
