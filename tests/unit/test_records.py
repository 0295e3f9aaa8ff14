"""A record is a frozen dataclass with slots; its methods are made at their first use."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from dataclasses import dataclass, field
from typing import Any

import pytest

from fleetlm.records import Record


class Point(Record):
    x: int
    y: int = 0
    tags: list[str] = field(default_factory=list, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Twin:
    x: int
    y: int = 0
    tags: list[str] = field(default_factory=list, repr=False, compare=False)


Twin.__qualname__ = "Point"


class Even(Record):
    number: int
    half: int = -1

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError(self.number)
        object.__setattr__(self, "half", self.number // 2)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Even) and other.number == self.number

    def __hash__(self) -> int:
        return 7


class Named(Point):
    @property
    def name(self) -> str:
        return f"{self.x}/{self.y}"


class Empty(Record):
    pass


def test_methods_are_made_at_the_first_use_and_not_before() -> None:
    class Fresh(Record):
        x: int

    def made(name: str) -> bool:
        return name in Fresh.__dict__

    assert not any(map(made, ("__init__", "__eq__", "__hash__", "__dataclass_fields__")))
    assert Fresh(1).x == 1
    assert made("__init__")
    assert not any(map(made, ("__eq__", "__hash__", "__dataclass_fields__")))
    assert Fresh(1) == Fresh(1)
    assert made("__eq__")
    assert made("__hash__")
    assert not made("__dataclass_fields__")
    assert [each.name for each in dataclasses.fields(Fresh)] == ["x"]
    assert made("__dataclass_fields__")


@pytest.mark.parametrize("first", ["__eq__", "__hash__"])
def test_any_of_them_may_be_the_first(first: str) -> None:
    class Fresh(Record):
        x: int

    one, two = Fresh.__new__(Fresh), Fresh.__new__(Fresh)
    for each in (one, two):
        object.__setattr__(each, "x", 5)
    assert (one == two) if first == "__eq__" else hash(one) == hash(two)


def test_it_is_what_a_dataclass_is() -> None:
    assert repr(Point(1, 2, ["a"])) == repr(Twin(1, 2, ["a"])).replace("Twin", "Point") == "Point(x=1, y=2)"
    assert dataclasses.asdict(Point(1)) == dataclasses.asdict(Twin(1)) == {"x": 1, "y": 0, "tags": []}
    assert hash(Point(1, 2)) == hash(Twin(1, 2))
    assert Point.__match_args__ == Twin.__match_args__
    assert str(inspect.signature(Point)).startswith("(x, y=0, tags=")

    def described(cls: Any) -> list[tuple[Any, ...]]:
        return [
            (each.name, each.type, each.default, each.repr, each.init) for each in dataclasses.fields(cls)
        ]

    assert described(Point) == described(Twin)
    assert not hasattr(Point(1), "__dict__")
    assert dataclasses.is_dataclass(Point)


def test_records_are_equal_by_class_and_compared_fields() -> None:
    assert Point(1) == Point(1, 0, ["not compared"])
    assert Point(1) != Point(2)
    assert Point(1) != Twin(1)
    assert Point(1) != Named(1)
    assert Point(1) != (1, 0)
    assert len({Point(1), Point(1), Point(2)}) == 2
    assert Empty() == Empty()


def test_defaults_of_one_record_are_not_those_of_another() -> None:
    one, two = Point(1), Point(1)
    one.tags.append("a")
    assert two.tags == []
    given: list[str] = []
    assert Point(1, tags=given).tags is given


@pytest.mark.parametrize("arguments", [(), (1, 2, [], 4)])
def test_wrong_arguments_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match=r"__init__\(\)"):
        Point(*arguments)
    with pytest.raises(TypeError, match="unexpected keyword argument 'w'"):
        Point(1, w=1)  # type: ignore[call-arg]


def test_nothing_of_it_changes() -> None:
    point = Point(1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'x'"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign"):
        point.other = 2
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'x'"):
        del point.x
    assert point.x == 1


def test_copies() -> None:
    point = Point(1, 2, ["a"])
    assert copy.copy(point) == copy.deepcopy(point) == pickle.loads(pickle.dumps(point)) == point
    assert copy.copy(point).tags is point.tags
    assert copy.deepcopy(point).tags == ["a"]
    assert dataclasses.replace(point, y=5) == point.__replace__(y=5) == Point(1, 5)
    with pytest.raises(TypeError):
        dataclasses.replace(point, w=1)  # type: ignore[call-arg]


def test_it_can_be_matched() -> None:
    match Point(1, 2):
        case Point(1, y):
            assert y == 2
        case _:
            pytest.fail("it did not match")


def test_a_class_may_check_its_values_and_have_methods_of_its_own() -> None:
    assert Even(4).half == 2
    assert Even(4) == Even(4, half=9)
    assert hash(Even(4)) == 7
    with pytest.raises(ValueError, match="3"):
        Even(3)


def test_a_class_of_records_may_have_heirs_without_fields_of_their_own() -> None:
    assert repr(Named(1, 2)) == "Named(x=1, y=2)"
    assert Named(1).name == "1/0"
    assert [each.name for each in dataclasses.fields(Named)] == ["x", "y", "tags"]
    with pytest.raises(TypeError, match="Wide adds fields to those of Point; write one record"):

        class Wide(Point):
            z: int = 3


def test_a_record_that_holds_itself_can_be_shown() -> None:
    class Node(Record):
        parts: list[Any]

    node = Node([])
    node.parts.append(node)
    assert repr(node).endswith("Node(parts=[...])")
