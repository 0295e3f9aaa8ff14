"""The hosts file and nsswitch.conf, read as the C library reads them, and files that are watched.

Source: nss_files and nsswitch.conf(5) of glibc 2.36, to which tests/system/resolver_oracle.py holds this. A
name in the hosts file is not looked up further where ``files`` stands before ``dns``: the file's addresses
are the answer. All lines with the name count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from fleetlm.names import canonical_ip
from fleetlm.records import Row

T = TypeVar("T")

DEFAULT_SERVICES = ("files", "dns")
"""The order without an nsswitch.conf, or without its line for hosts. Source: glibc since 2.35, and musl."""
_HOSTS_LINE = re.compile(r"\s*hosts(?=[\s:])[\s:]*")
_SERVICE = re.compile(r"\s*(?P<name>[^\s\[]+)\s*")
_ACTION = re.compile(r"(!?)([a-z]+)\s*=\s*([a-z]+)")
_ACTIONS = re.compile(r"\s*(?:!?[a-z]+\s*=\s*[a-z]+\s*)+", re.IGNORECASE)
_STATUSES = ("success", "notfound", "unavail", "tryagain")
MAX_FILE_BYTES = 16 * 1024 * 1024
"""Longer files are read up to here. The largest hosts files in use block advertisements with 5 MB."""


class WatchedFile(Generic[T]):
    """A file that is read and parsed again when its stat shows that it has changed.

    A stat is cheap, so `get` may be called at each lookup. A file that cannot be read counts as empty.

    Args:
        path: the file.
        parse: makes the value of the file's text.
    """

    def __init__(self, path: str | os.PathLike[str], parse: Callable[[str], T]) -> None:
        self.path: str = os.fspath(path)
        self._parse = parse
        self._stamp: tuple[int, ...] | None = None
        self._value: T | None = None

    def get(self) -> T:
        """Return the value of the file as it is now."""
        stamp = self._read_stamp()
        if self._value is None or stamp != self._stamp:
            self._stamp = stamp
            self._value = self._parse(self._read())
        return self._value

    def _read_stamp(self) -> tuple[int, ...]:
        try:
            found = os.stat(self.path)  # noqa: PTH116  # the path may be of any kind
        except (OSError, ValueError):
            return ()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _read(self) -> str:
        try:
            with open(self.path, "rb") as file:  # noqa: PTH123  # the path may be of any kind
                return file.read(MAX_FILE_BYTES).decode("utf-8", "replace")
        except (OSError, ValueError):
            return ""


def parse_hosts(text: str, names: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """Return the addresses of the names that the text of a hosts file holds.

    Args:
        text: the file's text.
        names: the names to look for, in lower case.
    """
    found: dict[str, dict[str, None]] = {}
    for line in _find_lines(text.lower(), names):
        fields = line.partition("#")[0].split()
        if len(fields) < 2 or canonical_ip(fields[0].partition("%")[0]) is None:
            continue
        for name in names.intersection(fields[1:]):
            found.setdefault(name, {})[fields[0]] = None
    return {name: tuple(addresses) for name, addresses in found.items()}


def _find_lines(text: str, words: frozenset[str]) -> Iterator[str]:
    """Yield the lines that hold any of the words, in order; hosts files against advertisements are long."""
    starts = set()
    for word in words:
        at = text.find(word) if word else -1
        while at >= 0:
            starts.add(text.rfind("\n", 0, at) + 1)
            at = text.find(word, at + len(word))
    for start in sorted(starts):
        end = text.find("\n", start)
        yield text[start:] if end < 0 else text[start:end]


def parse_services(text: str) -> tuple[str, ...]:
    """Return the services that the C library asks for a host, by the text of an nsswitch.conf, in order.

    The last line for hosts counts. Left out is what never decides: services behind one that ends the search
    for a name that it does not have (``[NOTFOUND=return]``), and one whose addresses give way to those of the
    next (``[SUCCESS=continue]``). What services other than ``files`` and ``dns`` answer is not known here, so
    none of them is taken to end a search.

    Source: glibc nss_database.c and nss_action_parse.c; differs: with a line that cannot be read, or without
    a service, the C library finds no host at all. Here it counts as no line. ``MERGE``, which the C library
    knows for groups of users only, counts as ``CONTINUE``.
    """
    line = None
    for each in text.splitlines():
        found = _HOSTS_LINE.match(each)
        line = line if found is None else each[found.end() :]
    services = _parse_line(line or "")
    kept: list[str] = []
    for nth, service in enumerate(services, 1):
        is_known = service.name in DEFAULT_SERVICES
        if service.ends_found or not is_known or nth == len(services):
            kept.append(service.name)
        if is_known and service.ends_missing:
            break
    return tuple(kept) if services else DEFAULT_SERVICES


class _Service(Row):
    """A service of the line for hosts."""

    name: str
    ends_found: bool
    """Whether nothing further is asked when it has the name."""
    ends_missing: bool
    """Whether nothing further is asked when it does not have the name."""


def _parse_line(line: str) -> list[_Service]:
    """Return the services that a line names; none if it cannot be read. There are no comments in it."""
    services, at = [], 0
    while found := _SERVICE.match(line, at):
        at, text = found.end(), None
        if line.startswith("[", at):
            text, bracket, _ = line[at + 1 :].partition("]")
            if not bracket:
                return []
            at += len(text) + 2
        actions = _parse_actions(text)
        if actions is None:
            return []
        services.append(
            _Service(found["name"], actions["success"] == "return", actions["notfound"] == "return")
        )
    return services


def _parse_actions(text: str | None) -> dict[str, str] | None:
    """Return what follows each status, by the text between brackets, if there are any.

    Returns:
        None if it cannot be read.
    """
    actions = dict.fromkeys(_STATUSES, "continue") | {"success": "return"}
    if text is None:
        return actions
    if not _ACTIONS.fullmatch(text):
        return None
    for negated, status, action in _ACTION.findall(text.lower()):
        if status not in actions or action not in {"return", "continue", "merge"}:
            return None
        changed = [each for each in actions if (each != status) == bool(negated)]
        actions |= dict.fromkeys(changed, action)
    return actions


def asks_dns(services: tuple[str, ...]) -> bool:
    """Whether name servers are asked at all. ``resolve`` (systemd-resolved) asks them, too."""
    return "dns" in services or "resolve" in services


def reads_hosts_first(services: tuple[str, ...]) -> bool:
    """Whether the hosts file is asked before DNS.

    ``resolve`` (systemd-resolved) reads the hosts file itself before it asks DNS.
    """
    if "files" not in services:
        return "resolve" in services
    return "dns" not in services or services.index("files") < services.index("dns")


def knows_more_than_dns(services: tuple[str, ...]) -> bool:
    """Whether the C library may find a name that neither the hosts file nor DNS holds (mDNS, LDAP …)."""
    return not reads_hosts_first(services) or bool(set(services) - {"files", "dns"})
