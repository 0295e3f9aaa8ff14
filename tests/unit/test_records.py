"""A record is a frozen dataclass with slots; its methods are made at their first use."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest

from fleetlm.messages import is_named_tuple
from fleetlm.records import MAX_ROW_FIELDS, Record, Row


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


class Place(Row):
    """Where something is."""

    x: int
    y: int = 0
    name: str = ""

    @property
    def shown(self) -> str:
        return f"{self.name} {self.x}/{self.y}"


class TwinPlace(NamedTuple):
    x: int
    y: int = 0
    name: str = ""


def test_a_row_is_a_tuple_with_names() -> None:
    place = Place(1, name="here")
    assert place == (1, 0, "here") == TwinPlace(1, name="here")
    assert (place.x, place.y, place.name, place.shown) == (1, 0, "here", "here 1/0")
    x, *rest = place
    assert (x, rest, place[-1], len(place)) == (1, [0, "here"], "here", 3)
    assert hash(place) == hash((1, 0, "here"))
    assert Place(1) < Place(1, 1) < Place(2)
    assert repr(place) == "Place(x=1, y=0, name='here')"
    match place:
        case Place(1, y, name=name):
            assert (y, name) == (0, "here")
        case _:
            pytest.fail("a row can be matched")
    with pytest.raises(AttributeError):
        place.x = 2  # type: ignore[misc]
    assert not hasattr(place, "__dict__")


def test_a_row_has_the_methods_of_a_named_tuple() -> None:
    place = Place(1, 2)
    assert Place._fields == TwinPlace._fields == Place.__match_args__
    assert Place._field_defaults == TwinPlace._field_defaults
    assert is_named_tuple(Place)
    assert type(place._replace(y=3)) is Place
    assert place._replace(y=3) == (1, 3, "")
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        place._replace(z=3)  # type: ignore[call-arg]
    assert place._asdict() == TwinPlace(1, 2)._asdict()
    assert Place._make([1, 2]) == place
    for again in (copy.copy(place), copy.deepcopy(place), pickle.loads(pickle.dumps(place))):
        assert type(again) is Place
        assert again == place


@pytest.mark.parametrize("given", [(), (1, 2, "a", 4)])
def test_a_row_is_made_of_its_fields(given: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match=r"Place\.__new__\(\) (missing 1 required|takes from 2 to 4)"):
        Place(*given)
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        Place(1, z=3)  # type: ignore[call-arg]


def test_a_row_has_a_bound_and_adds_nothing_to_another_one() -> None:
    make: Any = type(Place)
    with pytest.raises(TypeError, match="write one with all of them"):
        make("More", (Place,), {"__annotations__": {"z": int}})
    many = {f"field_{at}": int for at in range(MAX_ROW_FIELDS + 1)}
    with pytest.raises(ValueError, match="zip"):
        make("Wide", (Row,), {"__annotations__": many})


def test_the_constructor_of_a_row_is_made_at_its_first_use() -> None:
    class Fresh(Row):
        x: int

    assert "__new__" not in vars(Fresh)
    assert Fresh(1) == (1,)
    assert "__new__" in vars(Fresh)
