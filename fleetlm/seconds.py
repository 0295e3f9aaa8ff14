"""Looks at the times that a program gives: one wording for all that is not a number of seconds.

A time that is no number comes to light late and elsewhere: as a TypeError of an addition, or never, since no
timer of asyncio fires at nan, and one that is set for nan spoils the order of the others. So whatever takes a
time calls `check_seconds` before it does anything. The requests that are made most often call it only once
something has raised (`messaging.outbound`).
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from fleetlm.texts import SHORT


def check_seconds(
    value: Any,
    argument: str = "timeout",
    *,
    least: float = -math.inf,
    above: float | None = None,
    finite: bool = False,
) -> None:
    """Raise unless an argument is a number of seconds.

    Without further limits ``math.inf`` is one, and so is a negative number, which counts as a time that is
    over: a program may compute what is left of its own time.

    Args:
        value: what the program gave.
        argument: its name.
        least: the smallest number that it may be.
        above: a number that it must be greater than.
        finite: whether it must be less than ``math.inf``.

    Raises:
        TypeError: it is no number at all: a text, a timedelta, a bool.
        ValueError: it is nan, or beyond the limits.
    """
    if type(value) is not float and type(value) is not int and not _is_number(value):
        hint = "; use its total_seconds()" if hasattr(value, "total_seconds") else ""
        raise TypeError(f"{argument} is {SHORT.repr(value)}, not {_describe(least, above, finite)}{hint}")
    is_in_range = value >= least if above is None else value > above
    if not is_in_range or (finite and value == math.inf):  # nan is in no range
        raise ValueError(f"{argument} is {SHORT.repr(value)}, not {_describe(least, above, finite)}")


def check_timeout(
    value: object,
    argument: str = "timeout",
    *,
    least: float = -math.inf,
    above: float | None = None,
    finite: bool = False,
) -> None:
    """Do as `check_seconds`, and let None pass, which means a default or no limit."""
    if value is not None:
        check_seconds(value, argument, least=least, above=above, finite=finite)


def check_pauses(value: object, argument: str) -> None:
    """Raise unless an argument is a pair of finite seconds, a shortest pause and a longest one.

    Raises:
        TypeError, ValueError: as `check_seconds`, for one of the two; or it is no pair, or not in that order.
    """
    wanted = "not a pair of seconds, the shortest and the longest pause"
    if not isinstance(value, tuple | list):
        raise TypeError(f"{argument} is {SHORT.repr(value)}, {wanted}")
    if len(value) != 2:
        raise ValueError(f"{argument} is {SHORT.repr(value)}, {wanted}")
    for nth, pause_s in enumerate(value):
        check_seconds(pause_s, f"{argument}[{nth}]", least=0, finite=True)
    if value[0] > value[1]:
        raise ValueError(f"{argument} is {SHORT.repr(value)}, {wanted}")


def _is_number(value: object) -> bool:
    """Whether this is a number of another type, such as numpy's, and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _describe(least: float, above: float | None, finite: bool) -> str:
    what = "a finite number of seconds" if finite else "a number of seconds"
    if above is not None:
        return f"{what} above {above:g}"
    return what if least == -math.inf else f"{what}, {least:g} or more"
