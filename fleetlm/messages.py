"""What the runtime itself says, and the register of message types that may travel.

Nothing on the wire names code: a dataclass travels under a tag that both sides registered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fleetlm.ids import Pid, Ref
from fleetlm.names import Address

T = TypeVar("T", bound=type)

MAX_TAG_LENGTH = 128
"""Characters of a tag: it is sent with every message of its type."""


@dataclass(frozen=True, slots=True)
class NodeUp:
    """The connection to ``node`` became usable. Comes before any message of that connection."""

    node: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class NodeDown:
    """The connection to ``node`` ended. Comes after the last message of that connection.

    ``reason`` is for people and logs, such as ``connection closed`` or ``left: shutdown``.
    """

    node: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Down:
    """A monitored process has ended. Comes exactly once for each monitor.

    ``target`` is what was monitored. ``reason`` is its exit reason, or ``"noproc"`` (there was none),
    or ``"noconnection"`` (its node was lost; it may live on).
    """

    ref: Ref
    target: Pid | Address
    reason: Any


@dataclass(frozen=True, slots=True)
class Exit:
    """An exit signal, as a process that traps exits gets it."""

    pid: Pid
    reason: Any


@dataclass(frozen=True, slots=True)
class Registered:
    """A cluster-wide name has a holder now: ``pid``, registered with ``meta``."""

    name: str
    pid: Pid
    meta: Any


@dataclass(frozen=True, slots=True)
class Unregistered:
    """``pid`` holds a cluster-wide name no more.

    ``reason`` is ``"unregistered"``, ``"exited"`` (the process has ended), ``"noconnection"`` (its
    node is lost; it may live on), ``"lost"`` (another process won the name), ``"changed"`` (the
    `Registered` with its new meta follows) or a sentence for a subscriber that read too slowly.
    """

    name: str
    pid: Pid
    reason: str


@dataclass(frozen=True, slots=True)
class Joined:
    """A process has joined a group, once more if it was a member already."""

    group: str
    pid: Pid


@dataclass(frozen=True, slots=True)
class Left:
    """A process is a member once less: each `Joined` has its `Left`.

    ``reason`` is ``"left"``, ``"exited"`` (the process has ended) or ``"noconnection"`` (its node was
    lost; it may live on).
    """

    group: str
    pid: Pid
    reason: str


class MessageTypes:
    """Tags and the dataclasses registered under them. Both directions are one to one."""

    def __init__(self) -> None:
        self.by_tag: dict[str, type] = {}
        self.tags: dict[type, str] = {}

    def register(self, tag: str, cls: type) -> None:
        """Let ``cls`` travel under ``tag``.

        Raises:
            TypeError: not a dataclass, or one with fields that ``__init__`` does not take.
            ValueError: the tag is empty, too long, or another class's, or the class has another
                tag; nothing was registered.
        """
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"{cls.__name__} is not a dataclass; put @dataclass below @message({tag!r})")
        if not all(field.init for field in dataclasses.fields(cls)):
            raise TypeError(f"{cls.__name__} has fields that its __init__ does not take (init=False)")
        if not 0 < len(tag) <= MAX_TAG_LENGTH:
            raise ValueError(f"a tag has 1 to {MAX_TAG_LENGTH} characters, not {len(tag)}")
        known = self.by_tag.get(tag)
        if known is not None and not _same_definition(known, cls):
            raise ValueError(f"the tag {tag!r} belongs to {known.__module__}.{known.__qualname__}")
        if self.tags.get(cls, tag) != tag:
            raise ValueError(f"{cls.__qualname__} has the tag {self.tags[cls]!r} already")
        self.by_tag[tag] = cls
        self.tags[cls] = tag


def _same_definition(known: type, cls: type) -> bool:
    """A module that was loaded twice (reload, ``__main__``) registers its types again."""
    modules = {known.__module__, cls.__module__}
    return known.__qualname__ == cls.__qualname__ and (len(modules) == 1 or "__main__" in modules)


TYPES = MessageTypes()
"""The register that `message` fills: types are global to the program, as classes are."""


def message(tag: str) -> Callable[[T], T]:
    """Register a dataclass so that it may be sent between nodes.

    ::

        @fleetlm.message("session.append")
        @dataclass(frozen=True)
        class Append:
            session: str
            text: str

    The tag is what travels, so the class may be moved and renamed freely. A receiver that does not
    know the tag refuses the message (`Undecodable`) and goes on.
    """

    def register(cls: T) -> T:
        TYPES.register(tag, cls)
        return cls

    return register


@message("fleetlm.crash")
@dataclass(frozen=True, slots=True)
class Crash:
    """The exit reason of a process that raised: the exception as text, since it does not travel."""

    type_name: str
    text: str
    traceback_text: str = ""

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


@message("fleetlm.name_lost")
@dataclass(frozen=True, slots=True)
class NameLost:
    """Two processes claimed one cluster-wide name, and ``winner`` keeps it.

    An exit reason, or a message where the name was registered with ``on_loss="message"``.
    """

    name: str
    winner: Pid

    def __str__(self) -> str:
        return f"it lost the name {self.name!r} to {self.winner}"
