"""A request for a handler of an actor, and how it travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fleetlm.messages import message


@message("fleetlm.do")
@dataclass(slots=True)
class Invoke:
    """A request for a handler. Only the handler's name travels, never code."""

    handler: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def parts(self) -> list[Any]:
        """As it travels, at a tenth of what a registered type costs. Raises: TypeError, if it is none."""
        if type(self.args) is not tuple or type(self.kwargs) is not dict:
            raise TypeError(f"{self!r} has no tuple of arguments, or no dict of keywords")
        return [self.handler, list(self.args), self.kwargs]

    @classmethod
    def of(cls, parts: Any) -> Invoke:
        """From what came. Raises: ValueError, TypeError, if it is none."""
        name, args, kwargs = parts
        if type(args) is not list or type(kwargs) is not dict:
            raise ValueError("a request for a handler without its arguments")
        return cls(name, tuple(args), kwargs)
