"""Messages of the runtime itself, and the registry of message types that may be sent between nodes.

Nothing on the wire names code: a class of the program is sent under a tag that both sides have registered.
`message` registers dataclasses, NamedTuples and enums, `register_type` any other class with two functions.

Two versions of one class. During a rolling update nodes know a tag under different versions of its class:

- A field with the value of its default is not sent, so a new field with a default reaches nodes of the old
  version as long as it has that default.
- A field that did not come gets the default of the receiver. Without a default the message is refused there
  (`Undecodable`). So a new field needs a default, and a default must never change: the two versions would
  read the same bytes as different values.
- A field that the receiver does not know makes the message refused there, or is dropped where the receiver
  has registered the class with ``extra="ignore"``.
- A member of an enum travels by its name, so its value may change; a `Flag` travels by its number.

A class may be defined again under its tag: a notebook cell that runs twice, ``importlib.reload``, a module
that also runs as ``__main__``. If module and qualified name are the same, the new class replaces the old
one: what arrives is an object of the new class. Objects of the old class can still be sent.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, TypeVar
from uuid import UUID

from fleetlm.ids import Pid, Ref
from fleetlm.names import Address
from fleetlm.records import Record
from fleetlm.texts import type_name

C = TypeVar("C")
T = TypeVar("T", bound=type)

VALUE_TYPES = frozenset(
    {
        *(type(None), bool, int, float, str, bytes, bytearray, memoryview, list, tuple, dict, set, frozenset),
        *(datetime, date, time, timedelta, UUID, Decimal, array, Pid, Ref, Address),
    }
)
"""Types whose objects can be sent without being registered. Their subclasses cannot."""
MAX_TAG_LENGTH = 128
"""Characters of a tag. It is sent with every message of its type, so it should be short."""


class NodeUp(Record):
    """The session with ``node`` is up. Delivered before any message of that session."""

    node: str
    incarnation: int


class NodeDown(Record):
    """The session with ``node`` has ended. Delivered after its last message.

    ``reason`` is for people and logs, such as ``connection closed`` or ``left: shutdown``.
    """

    node: str
    incarnation: int
    reason: str


class NodeDraining(Record):
    """The node ``name``, which may be this one, drains: it is about to leave, and takes no new work soon.

    ``until`` is when its time for finishing is over, on the clock of this node's event loop. ``source`` says
    who asked for it: ``"signal"``, ``"api"`` or ``"remote"`` (`fleetlm drain`). It comes again if that time
    changes. A `NodeUndrained` or the `NodeDown` of the node follows.
    """

    name: str
    until: float
    source: str

    @property
    def node(self) -> str:
        """The name of the node, as in `NodeUp` and `NodeDown`."""
        return self.name


class NodeUndrained(Record):
    """The node ``name``, which may be this one, has undone its drain and takes work as before."""

    name: str

    @property
    def node(self) -> str:
        """The name of the node, as in `NodeUp` and `NodeDown`."""
        return self.name


class Down(Record):
    """A monitored process has ended. Delivered exactly once for each monitor.

    ``ref`` is the monitor, ``target`` the process as it was given to the monitor. ``reason`` is the exit
    reason, or ``"noproc"`` (there was no such process), or ``"noconnection"`` (the session with its node
    ended; the process may still run).
    """

    ref: Ref
    target: Pid | Address
    reason: Any


class Exit(Record):
    """An exit signal, as a message to a process that traps exits: the linked process ``pid`` has ended."""

    pid: Pid
    reason: Any


class Registered(Record):
    """The process ``pid`` has been registered under a cluster-wide name, with ``meta``."""

    name: str
    pid: Pid
    meta: Any


class Unregistered(Record):
    """The process ``pid`` no longer has a cluster-wide name.

    ``reason`` is ``"unregistered"``, ``"exited"`` (the process has ended), ``"noconnection"`` (the
    session with its node ended; the process may still run), ``"lost"`` (another process won the name),
    ``"changed"`` (a `Registered` with the new meta follows), or a sentence if the subscriber read its
    events too slowly.
    """

    name: str
    pid: Pid
    reason: str


class Joined(Record):
    """A process has joined a group. A process may join a group more than once."""

    group: str
    pid: Pid


class Left(Record):
    """A process has left a group. Each `Joined` is followed by one `Left`.

    ``reason`` is ``"left"``, ``"exited"`` (the process has ended) or ``"noconnection"`` (the session
    with its node ended; the process may still run).
    """

    group: str
    pid: Pid
    reason: str


class RowPut(Record):
    """A node has written a row of a table (`Node.table`), for the first time or anew.

    ``value`` is None where this node does not know its type.
    """

    table: str
    node: str
    key: str
    value: Any


class RowDropped(Record):
    """A row of a table has gone.

    ``reason`` is ``"dropped"`` or ``"noconnection"`` (the session with its node ended).
    """

    table: str
    node: str
    key: str
    reason: str


class MessageTypes:
    """Tags and the classes registered under them: one class for a tag, and one tag for a class.

    Attributes:
        by_tag: the class that is made from what arrives under a tag.
        tags: the tag of each class, also of classes that were defined again.
        lenient: the classes for which unknown fields are dropped.
        converters: for the classes of `register_type`, the functions to a message value and back.
    """

    def __init__(self) -> None:
        self.by_tag: dict[str, type] = {}
        self.tags: dict[type, str] = {}
        self.lenient: set[type] = set()
        self.converters: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {}

    def register(self, tag: str, cls: type, extra: str = "refuse") -> None:
        """Register a dataclass, NamedTuple or enum under ``tag``; see `message`.

        Raises:
            TypeError: ``cls`` is none of them, or has fields that ``__init__`` does not take.
            ValueError: the tag is empty, too long or registered for another class, the class has another
                tag, or ``extra`` is unknown. Nothing was registered.
        """
        if extra not in ("ignore", "refuse"):
            raise ValueError(f"extra is {extra!r}; use 'ignore' or 'refuse'")
        if dataclasses.is_dataclass(cls) and not issubclass(cls, Enum):
            if not all(field.init for field in dataclasses.fields(cls)):
                raise TypeError(f"{cls.__name__} has fields that its __init__ does not take (init=False)")
        elif not (issubclass(cls, Enum) or is_named_tuple(cls)):
            raise TypeError(
                f"{cls.__name__} is not a dataclass; put @dataclass below @message({tag!r}). Enums and "
                "NamedTuples can be registered too, and other classes with fleetlm.register_type"
            )
        self._claim(tag, cls)
        if extra == "ignore":
            self.lenient.add(cls)

    def register_converter(self, tag: str, cls: Any, to_value: Any, from_value: Any) -> None:
        """Register any class with two functions; see `register_type`. Raises: TypeError, ValueError."""
        if not isinstance(cls, type):
            raise TypeError(f"register_type({tag!r}) takes a class, not an object")
        if not callable(to_value) or not callable(from_value):
            raise TypeError(f"register_type({tag!r}) takes two functions: to a message value, and back")
        if cls in VALUE_TYPES or cls.__module__ == "builtins":
            raise TypeError(f"{type_name(cls)} cannot get a tag: it is a message value, or built into Python")
        self._claim(tag, cls)
        self.converters[cls] = (to_value, from_value)

    def _claim(self, tag: str, cls: type) -> None:
        """Connect a tag and a class. Raises: ValueError; nothing was registered."""
        if not 0 < len(tag) <= MAX_TAG_LENGTH:
            raise ValueError(f"a tag has 1 to {MAX_TAG_LENGTH} characters, not {len(tag)}")
        known = self.by_tag.get(tag)
        if known is not None and not _is_same_definition(known, cls):
            raise ValueError(
                f"the tag {tag!r} is already registered for {type_name(known)}, so {type_name(cls)} needs "
                "another one. The same class may be defined again; then module and name stay the same"
            )
        if self.tags.get(cls, tag) != tag:
            raise ValueError(f"{cls.__qualname__} already has the tag {self.tags[cls]!r}")
        self.by_tag[tag] = cls
        self.tags[cls] = tag


def is_named_tuple(cls: type) -> bool:
    """Whether a class was made by `typing.NamedTuple` or `collections.namedtuple`."""
    return issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_field_defaults")


def _is_same_definition(known: type, cls: type) -> bool:
    """Whether both are one class of a module that was loaded twice (reload, or run as ``__main__``)."""
    modules = {known.__module__, cls.__module__}
    return known.__qualname__ == cls.__qualname__ and (len(modules) == 1 or "__main__" in modules)


TYPES = MessageTypes()
"""The registry that `message` fills. It is global to the program, as classes are."""


def message(tag: str, *, extra: Literal["ignore", "refuse"] = "refuse") -> Callable[[T], T]:
    """Register a dataclass, NamedTuple or enum so that it may be sent between nodes.

    ::

        @fleetlm.message("session.append")
        @dataclass(frozen=True)
        class Append:
            session: str
            text: str
            mood: Mood | None = None


        @fleetlm.message("session.mood")
        class Mood(Enum):
            CALM = "calm"

    Only the tag is sent, so the class may be moved and renamed freely. A receiver that does not know the
    tag refuses the message with `Undecodable` and goes on. A field that has its default is not sent, and a
    field that did not come gets its default: give each new field a default, and never change one.

    Args:
        tag: 1 to 128 characters, the same on every node.
        extra: what a receiver does with fields that its version of the class does not have: refuse the
            message, or ``"ignore"`` those fields. It says nothing to other nodes.

    Raises:
        TypeError: the class is none of them, or has fields that ``__init__`` does not take.
        ValueError: the tag is registered for another class, or the class has another tag.
    """

    def register(cls: T) -> T:
        TYPES.register(tag, cls, extra)
        return cls

    return register


def register_type(
    tag: str, cls: type[C], to_value: Callable[[C], Any], from_value: Callable[[Any], C]
) -> None:
    """Let objects of a class of any kind be sent between nodes, through two functions.

    ::

        fleetlm.register_type("net.ip", IPv4Address, str, IPv4Address)
        fleetlm.register_type("chat.prompt", Prompt, Prompt.model_dump, Prompt.model_validate)

    Every node that sends or receives such objects registers them. A subclass needs a tag of its own.

    Args:
        tag: 1 to 128 characters, the same on every node.
        cls: the class.
        to_value: makes a message value from an object, as small as it can be. If it raises, nothing is
            sent (`NotSerializable`).
        from_value: makes an equal object from that value. The value comes from another node, so the
            function must check it. If it raises, the message is refused there (`Undecodable`).

    Raises:
        TypeError: ``cls`` is not a class, or its objects can be sent anyway; or a function cannot be called.
        ValueError: the tag is registered for another class, or the class has another tag.
    """
    TYPES.register_converter(tag, cls, to_value, from_value)


@message("fleetlm.crash")
class Crash(Record):
    """The exit reason of a process that raised an exception. Only the exception's text is sent."""

    type_name: str
    text: str
    traceback_text: str = ""

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


@message("fleetlm.cron_slot")
class CronSlot(Record):
    """What the target of a cron job gets; see `Node.cron`.

    Attributes:
        name: of the job.
        at: the time of the slot, in the time zone of the job.
        epoch: of the run of the job: a fencing token, see `Process.epoch`.
        late_s: seconds by which the slot begins late.
    """

    name: str
    at: datetime
    epoch: int
    late_s: float


@message("fleetlm.name_lost")
class NameLost(Record):
    """Two processes claimed one cluster-wide name, and the other one, ``winner``, keeps it.

    The exit reason of the process that lost, or a message to it if the name was registered with
    ``on_loss="message"``.
    """

    name: str
    winner: Pid

    def __str__(self) -> str:
        return f"it lost the name {self.name!r} to {self.winner}"
