"""Schedules of cron jobs: an expression with a time zone, or a number of seconds.

Expressions are read by `cronsim` (``pip install 'fleetlm[cron]'``), which does what Debian's cron does, also
where the clocks change: a job at a time that a day does not have runs at the next moment that it has, one at
a time that a day has twice runs at the first of the two, and one with ``*`` for its hours or its minutes runs
by the time that passes. An interval needs no library.
"""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fleetlm.core.cron_slots import MAX_SLOT_MS, Slots
from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_INTERVAL_S = 1.0
MAX_INTERVAL_S = 366 * 24 * 3600.0
"""Seconds of an interval, at least and at most."""
MAX_EXPRESSION_CHARS = 255
INSTALL = (
    "a cron expression needs the package cronsim: pip install 'fleetlm[cron]'. An interval in seconds, such "
    "as node.cron('clean', 300, clean), needs none"
)


def slots_of(schedule: str | float, tz: str | tzinfo | None) -> Slots:
    """Return the slots of a schedule; see `Node.cron`.

    Raises:
        ValueError: it is no expression, never runs, or is no interval; or there is no such time zone.
        TypeError: it is neither a text nor a number.
        ModuleNotFoundError: cronsim is not installed.
    """
    if isinstance(schedule, bool) or not isinstance(schedule, str | int | float):
        raise TypeError(f"a schedule is a cron expression or a number of seconds, not {SHORT.repr(schedule)}")
    if isinstance(schedule, str):
        return _expression(schedule, zone_of(tz))
    if tz is not None:
        raise ValueError("an interval in seconds has no time zone")
    if not MIN_INTERVAL_S <= schedule <= MAX_INTERVAL_S:
        raise ValueError(f"an interval has 1 second to 366 days, not {schedule!r} seconds")
    return _interval(round(schedule * 1000))


def _interval(step_ms: int) -> Slots:
    """Return the multiples of an interval since 1970, so that all nodes have the same."""

    def after(time_ms: int) -> int:
        return (time_ms // step_ms + 1) * step_ms

    def newest(_after_ms: int, until_ms: int) -> int:
        return until_ms // step_ms * step_ms

    return Slots(after, newest)


def zone_of(tz: str | tzinfo | None) -> tzinfo:
    """Return a time zone; None is UTC. Raises: ValueError: there is none of that name."""
    if tz is None or tz == "UTC":
        return UTC
    if isinstance(tz, tzinfo):
        return tz
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(
            f"there is no time zone {SHORT.repr(tz)} on this machine. Zones are named as in 'Europe/Berlin'; "
            "where the system has none, install the package tzdata"
        ) from error


def _expression(expression: str, zone: tzinfo) -> Slots:
    try:
        from cronsim import CronSim, CronSimError  # noqa: PLC0415  # most programs need none
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(INSTALL, name="cronsim") from error
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ValueError(f"a cron expression has at most {MAX_EXPRESSION_CHARS} characters")

    def times(from_ms: int, *, reverse: bool = False) -> Iterator[int]:
        """Yield the slots after a time, or those before it from the last one on."""
        began: Any = datetime.fromtimestamp(from_ms // 1000, zone)
        for each in CronSim(expression, began, reverse=reverse):
            yield int(each.timestamp()) * 1000

    def after(time_ms: int) -> int | None:
        # Where a day has an hour twice, the next slot may be in the first of the two, which has passed.
        later = (slot for slot in times(time_ms) if slot > time_ms)
        found = next(later, None)
        return found if found is None or found < MAX_SLOT_MS else None

    def newest(after_ms: int, until_ms: int) -> int:
        back = times(until_ms + 1000, reverse=True)
        next(back, None)
        start = max(after_ms, next(back, after_ms))  # One more: backwards, slots may differ.
        found = start
        for slot in times(start):
            if slot > until_ms:
                break
            found = max(found, slot)
        return found

    try:
        if after(0) is None:
            raise ValueError(f"the cron expression {expression!r} never comes true")
    except CronSimError as error:
        raise ValueError(f"{SHORT.repr(expression)} is no cron expression: {error}") from error
    return Slots(after, newest)
