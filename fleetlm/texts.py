"""Values, types and errors as short texts for logs and error messages.

Showing a value must never fail, never take long and never make a long text, because it happens while
something else is reported, and the value often came from another node: a ``repr`` may raise, an int of more
than 4,300 digits cannot be written in decimal (``sys.set_int_max_str_digits``), and the text of a large value
costs more memory than the value. So every place that shows a value of a program or of a peer uses `SHORT` or
`text_of`, every place that logs its exception `loggable`, and every place that sends its traceback
`traceback_of`.
"""

from __future__ import annotations

import dataclasses
import reprlib
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from itertools import islice
from types import FunctionType
from typing import Any

from fleetlm.escapes import escape_lines

MAX_TEXT_CHARS = 65_536
"""Longer texts of a program's exceptions and exit reasons are cut: they stand in log lines and travel."""
_MAX_INT_BITS = 1_024
"""Integers beyond this size, about 300 digits, are described instead of written."""
_MAX_SHOWN_CHARS = 300
"""Longer texts of values are cut: containers that hold each other multiply."""
_MAX_SHOWN_VALUES = 100
"""Values inside others that `SHORT` looks at."""
_SHOWN_BYTES = 40
"""Longer bytes are cut before their text is made."""
_MAX_CAUSES = 8
"""Causes of an exception that are looked at before it is logged."""
_MAX_GROUP_LEVELS = 64
"""Exception groups inside each other that are written into a traceback. Python itself writes 10."""
_MADE_OF_ARGUMENTS = (BaseException.__str__, KeyError.__str__)
"""How Python's own exceptions make their texts."""
_MAX_WRITTEN_BYTES = 1_024
"""Decimals and arrays of numpy beyond this size are described instead of written."""


class _Repr(reprlib.Repr):
    """Shows one value, whatever its size and its class.

    `reprlib` cuts what it writes, but writes the whole text first for bytes, dataclasses, integers, named
    tuples, exceptions and subclasses of containers, and it sorts the whole of a set or dict.

    Args:
        items: shown of each list, set or tuple; two thirds of them of a dict.
        chars: of each text inside the value.
        values: inside others that are looked at, since containers that hold each other multiply.
        most_chars: of all texts together; what comes behind them is left out.
        levels: of containers inside each other.

    Attributes:
        is_cut: whether something was left out.
    """

    def __init__(self, items: int, chars: int, values: int, most_chars: int, levels: int = 6) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = items
        self.maxarray, self.maxdict = items - 1, items * 2 // 3
        self.maxstring = self.maxother = chars
        self.maxlevel = levels
        self.is_cut = False
        self._values, self._chars = values, most_chars

    def repr1(self, x: Any, level: int) -> str:
        """Return a text for a value inside others; a class may have the name of a built-in one."""
        kind = type(x)
        self._values -= 1
        if self._values < 0 or self._chars < 0:
            return self._cut_off("...")
        if issubclass(kind, int) and int.bit_length(x) > _MAX_INT_BITS:
            return self._cut_off(f"<{kind.__name__} of {int.bit_length(x):,} bits>")
        if kind is int:
            return self.repr_int(x, level)
        if issubclass(kind, bytes | bytearray | memoryview):
            return self._repr_buffer(x)
        if not _has_own_repr(kind):
            for base, show in self._containers:
                if issubclass(kind, base):
                    return show(self, x, level)
        return self.repr_instance(x, level)

    def _repr_text(self, x: str, _level: int) -> str:
        if len(x) > self.maxstring:
            self.is_cut = True
        text = self.repr_str(x, 0)
        self._chars -= len(text)
        return text

    def _repr_dict(self, x: dict[Any, Any], level: int) -> str:
        pairs = (
            f"{self.repr1(key, level - 1)}: {self.repr1(item, level - 1)}"
            for key, item in islice(x.items(), self.maxdict)
        )
        return self._repr_items(x, pairs, "{", "}", dict, self.maxdict, level)

    def _repr_list(self, x: list[Any], level: int) -> str:
        return self._repr_items(x, self._texts(x, self.maxlist, level), "[", "]", list, self.maxlist, level)

    def _repr_tuple(self, x: tuple[Any, ...], level: int) -> str:
        names = getattr(type(x), "_fields", None)
        if names:
            parts = (f"{name}={self.repr1(each, level - 1)}" for name, each in zip(names, x, strict=False))
            shown = islice(parts, self.maxtuple)
            return type(x).__name__ + self._repr_items(x, shown, "(", ")", type(x), self.maxtuple, level)
        end = ",)" if len(x) == 1 else ")"
        return self._repr_items(
            x, self._texts(x, self.maxtuple, level), "(", end, tuple, self.maxtuple, level
        )

    def _repr_set(self, x: set[Any], level: int) -> str:
        return self._repr_items(x, self._texts(x, self.maxset, level), "{", "}", set, self.maxset, level)

    def _repr_frozenset(self, x: frozenset[Any], level: int) -> str:
        shown = self._texts(x, self.maxset, level)
        return f"{type(x).__name__}({self._repr_items(x, shown, '{', '}', type(x), self.maxset, level)})"

    def _repr_deque(self, x: deque[Any], level: int) -> str:
        shown = self._texts(x, self.maxdeque, level)
        return f"{type(x).__name__}({self._repr_items(x, shown, '[', ']', type(x), self.maxdeque, level)})"

    def _repr_error(self, x: BaseException, level: int) -> str:
        shown = self._texts(x.args, self.maxtuple, level)
        return type(x).__name__ + self._repr_items(x.args, shown, "(", ")", tuple, self.maxtuple, level)

    def _repr_decimal(self, x: Decimal, level: int) -> str:
        if x.__sizeof__() > _MAX_WRITTEN_BYTES:
            return self._cut_off(f"<{type(x).__name__} of {x.__sizeof__():,} bytes>")
        return self.repr_instance(x, level)

    _containers: tuple[tuple[type, Callable[..., str]], ...] = (
        (str, _repr_text),
        (dict, _repr_dict),
        (list, _repr_list),
        (tuple, _repr_tuple),
        (set, _repr_set),
        (frozenset, _repr_frozenset),
        (deque, _repr_deque),
        (BaseException, _repr_error),
        (Decimal, _repr_decimal),
    )

    def _texts(self, x: Iterable[Any], most: int, level: int) -> Iterable[str]:
        return (self.repr1(each, level - 1) for each in islice(x, most))

    def _repr_items(
        self, x: Any, shown: Iterable[str], left: str, right: str, plain: type, most: int, level: int
    ) -> str:
        """Join the texts of what is inside a container; ``shown`` is used up to ``level`` only."""
        if not x:
            text = f"{left}{right}" if plain is not set else "set()"
        elif level <= 0:
            text = self._cut_off(f"{left}...{right}")
        else:
            more = self._cut_off(", ...") if len(x) > most else ""
            text = f"{left}{', '.join(shown)}{more}{right}"
        return text if type(x) is plain else f"{type(x).__name__}({text})"

    def repr_instance(self, x: Any, level: int) -> str:
        """Return a text for an object of any other class."""
        # A generated `__repr__` would write all fields in full. A class's own one is used as it is.
        if dataclasses.is_dataclass(x) and hasattr(type(x).__repr__, "__wrapped__"):
            return self._repr_fields(x, level)
        if type(x).__module__.partition(".")[0] == "numpy" and getattr(x, "nbytes", 0) > _MAX_WRITTEN_BYTES:
            return self._cut_off(f"<{type(x).__name__} of {x.nbytes:,} bytes>")
        try:
            text = repr(x)
        except BaseException:  # noqa: BLE001  # the program's own method may raise anything
            return self._cut_off(_without_repr(x))
        self._chars -= min(len(text), self.maxother)
        if len(text) <= self.maxother:
            return text
        self.is_cut = True
        head = (self.maxother - 3) // 2
        return f"{text[:head]}...{text[len(text) - (self.maxother - 3 - head) :]}"

    def _repr_fields(self, x: Any, level: int) -> str:
        name = type(x).__qualname__.rpartition(".")[2]
        if level <= 0:
            return self._cut_off(f"{name}(...)")
        fields = [field.name for field in dataclasses.fields(x) if field.repr]
        shown = [f"{each}={self.repr1(getattr(x, each, ...), level - 1)}" for each in fields[: self.maxdict]]
        more = self._cut_off(", ...") if len(fields) > len(shown) else ""
        return f"{name}({', '.join(shown)}{more})"

    def _repr_buffer(self, x: bytes | bytearray | memoryview) -> str:
        size = x.nbytes if isinstance(x, memoryview) else len(x)
        if isinstance(x, memoryview) or size > _SHOWN_BYTES:
            head = "" if isinstance(x, memoryview) else f" {bytes(x[:_SHOWN_BYTES])!r}..."
            return self._cut_off(f"<{type(x).__name__} of {size:,} bytes{head}>")
        return repr(x)

    def _cut_off(self, text: str) -> str:
        self.is_cut = True
        return text


class Shown:
    """Makes texts of values; see `SHORT`."""

    def __init__(self, items: int, chars: int, values: int, most_chars: int) -> None:
        self._limits = (items, chars, values, most_chars)
        self._most_chars = most_chars

    def repr(self, value: object) -> str:
        """Return a text for any value. Never raises."""
        try:
            text = _repr(value, *self._limits)
        except BaseException:  # noqa: BLE001  # the program's own class, such as one that is named ``list``
            return _without_repr(value)
        return text if len(text) <= self._most_chars else f"{text[: self._most_chars - 3]}..."


def _repr(value: object, items: int, chars: int, values: int, most_chars: int) -> str:
    shown = _Repr(items, chars, values, most_chars)
    return shown.repr1(value, shown.maxlevel)


def is_short(value: object, chars: int) -> bool:
    """Whether the whole text of a value has about ``chars`` characters at most. Never raises."""
    shown = _Repr(chars, chars, chars // 4, chars, levels=64)
    try:
        return len(shown.repr1(value, shown.maxlevel)) <= chars and not shown.is_cut
    except BaseException:  # noqa: BLE001  # the program's own class
        return False


def _has_own_repr(kind: type) -> bool:
    """Whether a program has written the ``__repr__`` of a class. That of a named tuple is generated."""
    method = kind.__repr__
    return isinstance(method, FunctionType) and method.__module__ != "collections"


def _without_repr(value: object) -> str:
    return f"<{type(value).__name__} object, whose repr() raises>"


SHORT = Shown(6, 60, _MAX_SHOWN_VALUES, _MAX_SHOWN_CHARS)
"""Shortens values inside error texts: they may be large, or have a ``repr`` that raises."""
LONG = Shown(60, 4_096, 2_000, MAX_TEXT_CHARS)
"""Shows more of an error's arguments, which often are what explains it."""


def type_name(kind: type) -> str:
    """Return the name under which a type is imported: ``int``, ``ipaddress.IPv4Address``."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def name_of(function: object) -> str:
    """Return the qualified name of a function, for people."""
    return getattr(function, "__qualname__", None) or repr(function)


def utf8_bytes(text: str) -> int:
    """Return how many bytes a text takes when packed, without its head."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def text_of(value: object) -> str:
    """Return the text of an exception or an exit reason, or a placeholder if its ``__str__`` raises.

    The class is part of the placeholder, so that a failing ``__str__`` does not hide which error it was.
    A value that is neither a text nor an exception is shown as `SHORT` does.
    """
    try:
        if isinstance(value, int | bytes | bytearray | list | tuple | dict | set | frozenset):
            return SHORT.repr(value)
        text = _text_of_error(value) if isinstance(value, BaseException) else _text_of_object(value)
    except BaseException:  # noqa: BLE001  # the program's own method may raise anything
        return f"<{type(value).__name__}, whose text cannot be made>"
    return text if len(text) <= MAX_TEXT_CHARS else f"{text[:MAX_TEXT_CHARS]}..."


def _text_of_object(value: object) -> str:
    if type(value).__str__ is object.__str__ or isinstance(value, Decimal):
        return LONG.repr(value)
    return str(value)


def _text_of_error(error: BaseException) -> str:
    """Return the text of an exception. That of Python's own classes is made of the arguments."""
    make, args = type(error).__str__, error.args
    if make not in _MADE_OF_ARGUMENTS:
        return str(error)
    if not args:
        return ""
    if len(args) > 1:
        return LONG.repr(args)
    if make is KeyError.__str__:
        return LONG.repr(args[0])
    return args[0] if type(args[0]) is str else text_of(args[0])


def loggable(error: BaseException, causes: int = _MAX_CAUSES) -> BaseException:
    """Return the exception to log with its traceback, or to make a text of it.

    Python writes the whole text of an exception into a traceback. For one with a long text, such as a
    KeyError with a large key from another node, this is another exception of the same name with a short text.

    Args:
        error: the exception.
        causes: how many exceptions behind it are looked at.
    """
    if _is_nested_deeply(error):
        text = f"{text_of(error)}, in groups nested more than {_MAX_GROUP_LEVELS} levels deep"
        return _stand_in(error, text, None, None)
    cause, context = error.__cause__, error.__context__
    if causes > 0 and cause is not None:
        cause = loggable(cause, causes - 1)
    if causes > 0 and context is not None:
        context = cause if context is error.__cause__ else loggable(context, causes - 1)
    if cause is error.__cause__ and context is error.__context__ and _has_short_text(error):
        return error
    return _stand_in(error, text_of(error), cause, context)


def _stand_in(
    error: BaseException, text: str, cause: BaseException | None, context: BaseException | None
) -> BaseException:
    """Return an exception of the same name and traceback with another text."""
    kind = type(error)
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    stands_in: BaseException = type(kind.__name__, (Exception,), names)(text)
    stands_in.__cause__, stands_in.__context__ = cause, context
    stands_in.__suppress_context__ = error.__suppress_context__
    return stands_in.with_traceback(error.__traceback__)


def _is_nested_deeply(error: BaseException) -> bool:
    """Whether Python could not write the traceback of an exception group, which it does by recursion."""
    level: list[BaseException] = [error]
    for _ in range(_MAX_GROUP_LEVELS):
        level = [part for each in level if isinstance(each, BaseExceptionGroup) for part in each.exceptions]
        if not level:
            return False
    return True


def _has_short_text(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup) or type(error).__str__ not in _MADE_OF_ARGUMENTS:
        return True
    return is_short(error.args, MAX_TEXT_CHARS)


def format_span(seconds: float) -> str:
    """Return a span of time in one unit, in seconds below two minutes, in minutes below two hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.0f} h"


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an exception as text, with its causes and the parts of a group. Never raises.

    Python makes the texts of groups inside each other by recursion, and asks the class of the exception for
    its text, so either may fail. What can be said of the exception itself is said then.
    """
    try:
        return "".join(traceback.format_exception(loggable(error)))
    except BaseException as failed:  # noqa: BLE001  # the program's own class, or groups nested too deeply
        why = f"no traceback: {type(failed).__name__} in making it"
        return f"{type(error).__name__}: {text_of(error)}\n({why})\n"


def format_error(error: BaseException) -> str:
    """Return an error with its traceback, without a line end at the end.

    The text of an error may come from a peer. It is escaped, and its second and further lines are indented,
    so that none of them looks like another line of a log.
    """
    lines: list[str] = []
    for chunk in traceback.format_exception(error):
        first, *others = escape_lines(chunk.removesuffix("\n")).split("\n")
        lines.append(first)  # Empty between two errors, where Python's own words follow.
        lines += [each if not first or each[:1] in ("", " ") else f"    {each}" for each in others]
    return "\n".join(lines)
