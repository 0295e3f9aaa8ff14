"""A request for a handler of an actor, and how it travels."""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

from fleetlm.errors import NotSerializable
from fleetlm.texts import SHORT
from fleetlm.wire.carriers import checked_carrier

_ARGUMENT = r"message(?:\[1\]|\[2\]|\.args|\.kwargs)\[(.*?)\](.*)$"
"""An argument in the path to a refused value, and the rest of the path inside it."""


def is_for_entity(message: Any) -> bool:
    """Whether a message is for the host of a kind of entities: a request to one of them, or `to_host`."""
    return type(message) is Invoke and type(message.handler) is not str


def to_host(message: Any) -> Invoke:
    """Return what one host of a kind says to another one: no new work, so a node that drains takes it too."""
    handler: Any = []
    return Invoke(handler, (message,), {})


class Invoke:
    """A request for a handler. Only the handler's name travels, never code.

    It is no dataclass and no registered type, so that `of` is the only way by which a request comes from
    another node.

    Args:
        handler: the name of the handler; empty for a plain message to a process, which is the only argument;
            on the way to an entity a list that ends with it.
        args: its arguments.
        kwargs: its keywords.
        actor: the class of the actor as its sender knows it, for errors.
        is_from_peer: whether another node has sent it.
        carrier: what travels of its caller's context (`wire.carriers`), packed; None if nothing does.

    Attributes:
        came: only of one with a carrier: when it came to its node, on the loop's clock in seconds; -inf until
            that is noted.
    """

    __slots__ = ("actor", "args", "came", "carrier", "handler", "is_from_peer", "kwargs")
    came: float
    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # its arguments can be changed

    def __init__(
        self,
        handler: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        actor: type | None = None,
        is_from_peer: bool = False,
        carrier: bytes | None = None,
    ) -> None:
        self.handler: str = handler
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self.actor: type | None = actor
        self.is_from_peer: bool = is_from_peer
        self.carrier: bytes | None = carrier

    def __repr__(self) -> str:
        return f"Invoke(handler={self.handler!r}, args={self.args!r}, kwargs={self.kwargs!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Invoke):
            return NotImplemented
        return (self.handler, self.args, self.kwargs) == (other.handler, other.args, other.kwargs)

    @property
    def name(self) -> str:
        """The name of the handler alone, also on the way to an entity."""
        route: Any = self.handler
        return str(route[-1]) if isinstance(route, list) and route else self.handler

    def parts(self) -> list[Any]:
        """Return the parts that travel. Packing them costs a tenth of packing a registered dataclass.

        Raises:
            TypeError: the arguments are not a tuple, or the keywords not a dict.
        """
        if type(self.args) is not tuple or type(self.kwargs) is not dict:
            raise TypeError(f"{SHORT.repr(self)} has no tuple of arguments, or no dict of keywords")
        if self.carrier is None:
            return [self.handler, list(self.args), self.kwargs]
        return [self.handler, list(self.args), self.kwargs, self.carrier]

    @classmethod
    def carrying(cls, message: Any, carrier: bytes) -> Invoke:
        """Return a request, or a plain message, together with a carrier."""
        if type(message) is Invoke:
            found = cls(message.handler, message.args, message.kwargs, message.actor, False, carrier)
        else:
            found = cls("", (message,), {}, None, False, carrier)
        found.came = -math.inf
        return found

    def explain(self, error: NotSerializable) -> NotSerializable:
        """Return the error with the argument in its path: ``argument 1 of Sessions.put, field .when``."""
        found = re.search(_ARGUMENT, error.path, re.DOTALL)
        if found is None:
            return error
        which, rest = found.groups()
        if not self.handler:
            return NotSerializable(f"{error.path[: found.start()]}message{rest}", error.what)
        shown = str(int(which) + 1) if which.isdecimal() else which
        name = self.name if self.actor is None else f"{self.actor.__qualname__}.{self.name}"
        inside = f", {'field' if rest.startswith('.') else 'at'} {rest}" if rest else ""
        return NotSerializable(f"{error.path[: found.start()]}argument {shown} of {name}{inside}", error.what)

    @classmethod
    def of(cls, parts: Any) -> Invoke:
        """Rebuild the request from the parts that arrived.

        Raises:
            ValueError, TypeError: the parts are malformed.
        """
        try:
            name, args, kwargs = parts
        except ValueError:  # Nothing is looked at for it in a request without a carrier.
            return cls._of_four(parts)
        if type(args) is not list or type(kwargs) is not dict:
            raise ValueError("a request for a handler without its arguments")
        return cls(name, tuple(args), kwargs, None, True)

    @classmethod
    def _of_four(cls, parts: Any) -> Invoke:
        """Rebuild a request with a carrier. Raises: as `of`."""
        *request, carrier = parts
        if len(request) != 3:
            raise ValueError(f"a request of {len(request) + 1} parts")
        found = cls.of(request)
        if not found.handler and len(found.args) != 1:
            raise ValueError("a plain message with a carrier that is not one message")
        found.carrier = checked_carrier(carrier)
        found.came = -math.inf
        return found


def explained(error: NotSerializable, message: Any) -> NotSerializable:
    """Return the error about a message that was refused; for a request with the argument in its path."""
    return message.explain(error) if type(message) is Invoke else error
