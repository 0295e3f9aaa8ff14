"""A request for a handler of an actor, and how it travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fleetlm.messages import message
from fleetlm.texts import SHORT


@message("fleetlm.do")
@dataclass(slots=True)
class Invoke:
    """A request for a handler. Only the handler's name travels, never code."""

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

    @classmethod
    def of(cls, parts: Any) -> Invoke:
        """Rebuild the request from the parts that arrived.

        Raises:
            ValueError, TypeError: the parts are malformed.
        """
        name, args, kwargs = parts
        if type(args) is not list or type(kwargs) is not dict:
            raise ValueError("a request for a handler without its arguments")
        return cls(name, tuple(args), kwargs)
