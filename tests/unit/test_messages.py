"""Only registered dataclasses can be sent: one class for a tag, and one tag for a class."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from fleetlm import messages
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
