"""Finds the time zones that peers name, without a search of the file system for every name that they invent.

`zoneinfo.ZoneInfo` looks for each unknown name in several folders and among Python's modules, 100 to 200 µs
each time. Here each name is looked for once. After `_MAX_SEARCHES` names this machine's zones are listed, and
no other name is looked for any more: so what is kept is bounded by the zones that there are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fleetlm.wire.extensions import explained

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

_KEY = r"[A-Za-z][A-Za-z0-9_+-]{0,31}(/[A-Za-z0-9][A-Za-z0-9_+-]{0,31}){0,3}"
"""The shape of a zone key, such as ``America/Argentina/Buenos_Aires`` or ``Etc/GMT+1``."""
_MAX_SEARCHES = 64
"""Names that are looked for as they come. More zones are hardly met; listing all of them takes 50 ms."""


class Zones:
    """The time zones of this machine that were asked for."""

    __slots__ = ("_failures", "_found", "_listed", "_searches")

    def __init__(self) -> None:
        self._found: dict[str, ZoneInfo] = {}
        self._failures: dict[str, str] = {}
        """Why a zone could not be read, by its key."""
        self._searches = 0
        self._listed: frozenset[str] | None = None

    def find(self, key: str) -> ZoneInfo | str:
        """Return the zone with this key, or why there is none."""
        zone = self._found.get(key) or self._failures.get(key)
        if zone is not None:
            return zone
        if not re.fullmatch(_KEY, key, re.ASCII):
            return "this is not the key of a time zone"
        import zoneinfo  # noqa: PLC0415  # few programs send a time with a zone by name

        if self._searches >= _MAX_SEARCHES:
            if self._listed is None:
                self._listed = frozenset(zoneinfo.available_timezones())
            if key not in self._listed:
                return "this machine has no such time zone"
        self._searches += 1
        try:
            found = self._found[key] = zoneinfo.ZoneInfo(key)
        except Exception as error:  # noqa: BLE001  # the system's file may be missing or broken
            why = self._failures[key] = explained(error)
            return why
        return found


ZONES = Zones()
"""The zones of this process: they are the same for all nodes in it."""
