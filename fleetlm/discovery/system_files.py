"""The hosts file and nsswitch.conf, read as the C library reads them, and files that are watched.

Source: nss_files and nsswitch.conf(5) of glibc 2.36. A name in the hosts file is not looked up further
where ``files`` stands before ``dns``: the file's addresses are the answer. All lines with the name count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from fleetlm.names import canonical_ip

T = TypeVar("T")

DEFAULT_SERVICES = ("files", "dns")
"""The order without an nsswitch.conf, or without its line for hosts. Source: glibc since 2.35, and musl."""
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
    """Return the services of the line ``hosts:`` of an nsswitch.conf, in order and without their actions."""
    for line in text.splitlines():
        database, colon, services = line.partition("#")[0].partition(":")
        if colon and database.strip() == "hosts":
            words = services.replace("[", " [").replace("]", "] ").split()
            return tuple(_drop_actions(words)) or DEFAULT_SERVICES
    return DEFAULT_SERVICES


def _drop_actions(words: list[str]) -> list[str]:
    """Leave out what stands in brackets, such as ``[NOTFOUND=return]`` or ``[ !UNAVAIL = return ]``."""
    kept, inside = [], False
    for word in words:
        inside = inside or word.startswith("[")
        if not inside:
            kept.append(word)
        inside = inside and not word.endswith("]")
    return kept


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
