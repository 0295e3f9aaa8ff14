"""Messages of the runtime itself, and the registry of message types that may be sent between nodes.

Nothing on the wire names code: a dataclass is sent under a tag that both sides have registered.
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
"""Characters of a tag. It is sent with every message of its type, so it should be short."""


@dataclass(frozen=True, slots=True)
class NodeUp:
    """The session with ``node`` is up. Delivered before any message of that session."""

    node: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class NodeDown:
    """The session with ``node`` has ended. Delivered after its last message.

    ``reason`` is for people and logs, such as ``connection closed`` or ``left: shutdown``.
    """

    node: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Down:
    """A monitored process has ended. Delivered exactly once for each monitor.

    ``ref`` is the monitor, ``target`` the process as it was given to the monitor. ``reason`` is the exit
    reason, or ``"noproc"`` (there was no such process), or ``"noconnection"`` (the session with its node
    ended; the process may still run).
    """

    ref: Ref
    target: Pid | Address
    reason: Any


@dataclass(frozen=True, slots=True)
class Exit:
    """An exit signal, as a message to a process that traps exits: the linked process ``pid`` has ended."""

    pid: Pid
    reason: Any


@dataclass(frozen=True, slots=True)
class Registered:
    """The process ``pid`` has been registered under a cluster-wide name, with ``meta``."""

    name: str
    pid: Pid
    meta: Any


@dataclass(frozen=True, slots=True)
class Unregistered:
    """The process ``pid`` no longer has a cluster-wide name.

    ``reason`` is ``"unregistered"``, ``"exited"`` (the process has ended), ``"noconnection"`` (the
    session with its node ended; the process may still run), ``"lost"`` (another process won the name),
    ``"changed"`` (a `Registered` with the new meta follows), or a sentence if the subscriber read its
    events too slowly.
    """

    name: str
    pid: Pid
    reason: str


@dataclass(frozen=True, slots=True)
class Joined:
    """A process has joined a group. A process may join a group more than once."""

    group: str
    pid: Pid


@dataclass(frozen=True, slots=True)
class Left:
    """A process has left a group. Each `Joined` is followed by one `Left`.

    ``reason`` is ``"left"``, ``"exited"`` (the process has ended) or ``"noconnection"`` (the session
    with its node ended; the process may still run).
    """

    group: str
    pid: Pid
    reason: str


class MessageTypes:
    """Tags and the dataclasses registered under them: one class for a tag, and one tag for a class."""

    def __init__(self) -> None:
        self.by_tag: dict[str, type] = {}
        self.tags: dict[type, str] = {}

    def register(self, tag: str, cls: type) -> None:
        """Register ``cls`` under ``tag``.

        Raises:
            TypeError: ``cls`` is not a dataclass, or has fields that ``__init__`` does not take.
            ValueError: the tag is empty, too long or registered for another class, or the class has
                another tag. Nothing was registered.
        """
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"{cls.__name__} is not a dataclass; put @dataclass below @message({tag!r})")
        if not all(field.init for field in dataclasses.fields(cls)):
            raise TypeError(f"{cls.__name__} has fields that its __init__ does not take (init=False)")
        if not 0 < len(tag) <= MAX_TAG_LENGTH:
            raise ValueError(f"a tag has 1 to {MAX_TAG_LENGTH} characters, not {len(tag)}")
        known = self.by_tag.get(tag)
        if known is not None and not _is_same_definition(known, cls):
            raise ValueError(
                f"the tag {tag!r} is already registered for {known.__module__}.{known.__qualname__}"
            )
        if self.tags.get(cls, tag) != tag:
            raise ValueError(f"{cls.__qualname__} already has the tag {self.tags[cls]!r}")
        self.by_tag[tag] = cls
        self.tags[cls] = tag


def _is_same_definition(known: type, cls: type) -> bool:
    """Whether both are one class of a module that was loaded twice (reload, or run as ``__main__``)."""
    modules = {known.__module__, cls.__module__}
    return known.__qualname__ == cls.__qualname__ and (len(modules) == 1 or "__main__" in modules)


TYPES = MessageTypes()
"""The registry that `message` fills. It is global to the program, as classes are."""


def message(tag: str) -> Callable[[T], T]:
    """Register a dataclass so that it may be sent between nodes.

    ::

        @fleetlm.message("session.append")
        @dataclass(frozen=True)
        class Append:
            session: str
            text: str

    Only the tag is sent, so the class may be moved and renamed freely. A receiver that does not know the
    tag refuses the message with `Undecodable` and goes on.

    Args:
        tag: 1 to 128 characters, the same on every node.

    Raises:
        TypeError: the class is not a dataclass, or has fields that ``__init__`` does not take.
        ValueError: the tag is registered for another class, or the class has another tag.
    """

    def register(cls: T) -> T:
        TYPES.register(tag, cls)
        return cls

    return register


@message("fleetlm.crash")
@dataclass(frozen=True, slots=True)
class Crash:
    """The exit reason of a process that raised an exception. Only the exception's text is sent."""

    type_name: str
    text: str
    traceback_text: str = ""

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


@message("fleetlm.name_lost")
@dataclass(frozen=True, slots=True)
class NameLost:
    """Two processes claimed one cluster-wide name, and the other one, ``winner``, keeps it.

    The exit reason of the process that lost, or a message to it if the name was registered with
    ``on_loss="message"``.
    """

    name: str
    winner: Pid

    def __str__(self) -> str:
        return f"it lost the name {self.name!r} to {self.winner}"
