"""Records and rows: frozen dataclasses and named tuples, whose methods are made at their first use.

`dataclasses.dataclass` compiles the methods of a class when the class is defined, which takes about a
millisecond; the modules of a node have more than sixty such classes, and a program that starts a node uses a
third of them. A class that inherits from `Record` is used in the same way and costs a fiftieth::

    class Dial(Record):
        channel: int
        ip: str
        port: int = 4370

Fields, defaults and `dataclasses.field` mean what they mean there. Two records are equal if they have the
same class and the same fields, and they can be hashed, copied, pickled and matched; `dataclasses.fields`,
`replace` and `is_dataclass` know them.

`_Late` stands for what is made late: ``__init__``, and ``__eq__`` with ``__hash__``, are compiled for one
class when they are first looked up there, and take its place in the class. So an object costs what an object
of a dataclass costs, or less: a field is set through its slot.

A `Row` is a named tuple in the same way: `typing.NamedTuple` takes seven times as long to define one. Type
checkers see a NamedTuple, whose methods it has.

Source: dataclasses and collections.namedtuple of Python; differs: made at the first use, and ``ClassVar``,
``InitVar`` and keyword-only fields are not known, and neither adds fields to those of another one.
"""

from __future__ import annotations

import inspect
import reprlib
from collections import namedtuple
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, FrozenInstanceError, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, dataclass_transform

if TYPE_CHECKING:
    from typing import NamedTuple as Row

__all__ = ["MAX_ROW_FIELDS", "Record", "Row"]


class _Late:
    """An attribute of all records that is made for one class when it is first looked up there.

    Args:
        make: sets the attribute, and perhaps others, in the class that it is given.
    """

    def __init__(self, make: Callable[[Any], None]) -> None:
        self._make = make

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    def __get__(self, record: object, cls: type) -> Any:
        self._make(cls)
        return getattr(cls if record is None else record, self._name)


def _make_init(cls: type[Record]) -> None:
    """Compile ``__init__``. Source: `dataclasses._init_fn`; differs: fields are set through their slots."""
    given: dict[str, Any] = {"_MISSING": MISSING}
    parameters, body = ["self"], []
    for name in cls.__match_args__:
        default = cls._defaults[name]
        given[f"_set_{name}"] = getattr(cls, name).__set__
        given[f"_make_{name}"] = default.default_factory
        given[f"_default_{name}"] = default.default
        if default.default_factory is not MISSING:
            parameters.append(f"{name}=_MISSING")
            body.append(f"_set_{name}(self, _make_{name}() if {name} is _MISSING else {name})")
        else:
            parameters.append(name if default.default is MISSING else f"{name}=_default_{name}")
            body.append(f"_set_{name}(self, {name})")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    _compile(cls, f"def __init__({', '.join(parameters)}):\n " + "\n ".join(body or ["pass"]), given)


def _make_comparison(cls: type[Record]) -> None:
    """Compile ``__eq__`` and ``__hash__``."""
    compared = [name for name in cls.__match_args__ if cls._defaults[name].compare]
    own, others = ("".join(f"{who}.{name}, " for name in compared) for who in ("self", "other"))
    source = (
        f"def __eq__(self, other):\n"
        f" return ({own}) == ({others}) if other.__class__ is self.__class__ else NotImplemented\n"
        f"def __hash__(self):\n return hash(({own}))"
    )
    _compile(cls, source, {})


def _compile(cls: type[Record], source: str, given: dict[str, Any]) -> None:
    """Put the functions of a source text into a class, but for those that it has itself."""
    made: dict[str, Any] = {}
    exec(source, given, made)  # noqa: S102  # nothing but names of fields, as in dataclasses
    for name, method in made.items():
        if name not in cls.__dict__:
            method.__qualname__ = f"{cls.__qualname__}.{name}"
            method.__module__ = cls.__module__
            setattr(cls, name, method)


def _make_fields(cls: type[Record]) -> None:
    """Make what the functions of `dataclasses` look at."""
    types = next(filter(None, map(inspect.get_annotations, cls.__mro__)), {})
    specified = [(name, types[name], cls._defaults[name]) for name in cls.__match_args__]
    twin = make_dataclass("Twin", specified, namespace={"__doc__": "-"}, init=False, repr=False, eq=False)
    type.__setattr__(cls, "__dataclass_fields__", {each.name: each for each in fields(twin)})


class _RecordType(type):
    """Gives a record its slots: they must be known before the class is made."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
        is_root = not bases
        names = () if is_root else tuple(namespace.get("__annotations__", ()))
        inherited = () if is_root else getattr(bases[0], "__match_args__", ())
        if names and inherited:
            why = f"{name} adds fields to those of {bases[0].__name__}; write one record with all of them"
            raise TypeError(why)
        if not inherited:
            given = {each: namespace.pop(each, MISSING) for each in names}
            namespace["__match_args__"] = names
            namespace["_defaults"] = {
                each: value if isinstance(value, Field) else field(default=value)
                for each, value in given.items()
            }
        namespace["__slots__"] = names
        return super().__new__(mcs, name, bases, namespace)


@dataclass_transform(frozen_default=True, field_specifiers=(field, Field))
class Record(metaclass=_RecordType):
    """The base of classes that are nothing but their fields, which never change."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
        __match_args__: ClassVar[tuple[str, ...]]
        _defaults: ClassVar[dict[str, Field[Any]]]
    else:
        __init__ = _Late(_make_init)
        __eq__ = _Late(_make_comparison)
        __hash__ = _Late(_make_comparison)
        __dataclass_fields__ = _Late(_make_fields)

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        shown = [name for name in self.__match_args__ if self._defaults[name].repr]
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"{type(self).__qualname__}({values})"

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, name) for name in self.__match_args__)

    def __replace__(self, **changes: Any) -> Any:
        return type(self)(**{name: getattr(self, name) for name in self.__match_args__} | changes)


MAX_ROW_FIELDS = 12
"""Of one row."""
_Items = namedtuple("_Items", "a b c d e f g h i j k l")  # noqa: PYI024  # as many fields as a row may have
_GETTERS = tuple(vars(_Items)[name] for name in "abcdefghijkl")
"""Descriptors of the items of any tuple, by their index: one named tuple is defined for all rows."""


def _make_new(cls: Any) -> None:
    """Compile ``__new__``. Source: `collections.namedtuple`."""
    given: dict[str, Any] = {f"_default_{name}": value for name, value in cls._field_defaults.items()}
    parameters = [f"{name}=_default_{name}" if name in cls._field_defaults else name for name in cls._fields]
    items = "".join(f"{name}, " for name in cls._fields)
    source = f"def __new__(_cls, {', '.join(parameters)}):\n return _new(_cls, ({items}))"
    made: dict[str, Any] = {}
    exec(source, given | {"_new": tuple.__new__}, made)  # noqa: S102  # nothing but names of fields
    made["__new__"].__qualname__ = f"{cls.__qualname__}.__new__"
    cls.__new__ = staticmethod(made["__new__"])


class _RowType(type):
    """Gives a row the descriptors of its fields."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
        if bases != (tuple,):
            if bases != (Row,):
                raise TypeError(f"{name} adds to the fields of another row; write one with all of them")
            names = tuple(namespace.get("__annotations__", ()))
            namespace["_fields"] = namespace["__match_args__"] = names
            namespace["_field_defaults"] = {each: namespace[each] for each in names if each in namespace}
            namespace |= zip(names, _GETTERS[: len(names)], strict=True)
        namespace["__slots__"] = ()
        return super().__new__(mcs, name, bases, namespace)


if not TYPE_CHECKING:

    class Row(tuple, metaclass=_RowType):
        """The base of named tuples; see above."""

        __slots__ = ()
        __new__ = _Late(_make_new)

        @classmethod
        def _make(cls, values: Iterable[Any]) -> Self:
            return cls(*values)

        def _replace(self, **changes: Any) -> Self:
            return type(self)(**dict(zip(self._fields, self, strict=True)) | changes)

        def _asdict(self) -> dict[str, Any]:
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self) -> str:
            values = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
            return f"{type(self).__qualname__}({values})"

        def __getnewargs__(self) -> tuple[Any, ...]:
            return tuple(self)
