"""A request for a handler of an actor, and how it travels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fleetlm.errors import NotSerializable
from fleetlm.texts import SHORT

_ARGUMENT = re.compile(r"message(?:\[1\]|\[2\]|\.args|\.kwargs)\[(.*?)\](.*)$", re.DOTALL)
"""An argument in the path to a refused value, and the rest of the path inside it."""


class _Asked:
    """What a request knows beside what travels."""

    __slots__ = ("actor", "is_from_peer")
    actor: type
    """The class of the actor as its sender knows it, for errors."""
    is_from_peer: bool
    """Set, and True, where another node has sent it. It is no registered type, so `Invoke.of` is the only way
    by which a request comes from another node."""


@dataclass
class Invoke(_Asked):
    """A request for a handler. Only the handler's name travels, never code."""

    __slots__ = ("args", "handler", "kwargs")

    handler: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def parts(self) -> list[Any]:
        """Return the parts that travel. Packing them costs a tenth of packing a registered dataclass.

        Raises:
            TypeError: the arguments are not a tuple, or the keywords not a dict.
        """
        if type(self.args) is not tuple or type(self.kwargs) is not dict:
            raise TypeError(f"{SHORT.repr(self)} has no tuple of arguments, or no dict of keywords")
        return [self.handler, list(self.args), self.kwargs]

    def explain(self, error: NotSerializable) -> NotSerializable:
        """Return the error with the argument in its path: ``argument 1 of Sessions.put, field .when``."""
        found = _ARGUMENT.search(error.path)
        if found is None:
            return error
        which, rest = found.groups()
        shown = str(int(which) + 1) if which.isdecimal() else which
        actor = getattr(self, "actor", None)
        name = self.handler if actor is None else f"{actor.__qualname__}.{self.handler}"
        inside = f", {'field' if rest.startswith('.') else 'at'} {rest}" if rest else ""
        return NotSerializable(f"{error.path[: found.start()]}argument {shown} of {name}{inside}", error.what)

    @classmethod
    def of(cls, parts: Any) -> Invoke:
        """Rebuild the request from the parts that arrived.

        Raises:
            ValueError, TypeError: the parts are malformed.
        """
        name, args, kwargs = parts
        if type(args) is not list or type(kwargs) is not dict:
            raise ValueError("a request for a handler without its arguments")
        request = cls(name, tuple(args), kwargs)
        request.is_from_peer = True
        return request


def explained(error: NotSerializable, message: Any) -> NotSerializable:
    """Return the error about a message that was refused; for a request with the argument in its path."""
    return message.explain(error) if type(message) is Invoke else error
