"""A service manager for tests: a Unix datagram socket that keeps what programs send to `$NOTIFY_SOCKET`."""

from __future__ import annotations

import select
import socket
import time
from pathlib import Path
from typing import Self


class FakeManager:
    """Receives notifications, as systemd does.

    Args:
        address: the value for `$NOTIFY_SOCKET`: a path, or ``@`` and a name.
    """

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{self.address[1:]}" if self.address.startswith("@") else self.address)
        self._socket.setblocking(False)
        self.received: list[dict[str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def read(self) -> list[dict[str, str]]:
        """Return the fields of every datagram so far, in order."""
        while True:
            try:
                datagram = self._socket.recv(65_536)
            except BlockingIOError:
                return self.received
            lines = datagram.decode().splitlines()
            self.received.append(dict(line.split("=", 1) for line in lines))

    def names(self) -> list[str]:
        """Return the names of the states that were told so far: READY and STOPPING."""
        return [name for fields in self.read() for name in fields if name in ("READY", "STOPPING")]

    def wait_for(self, name: str, within_s: float) -> dict[str, str]:
        """Return the first datagram with a field of this name. For tests with real processes."""
        until = time.monotonic() + within_s
        seen = 0
        while (left_s := until - time.monotonic()) > 0:
            for fields in self.read()[seen:]:
                seen += 1
                if name in fields:
                    return fields
            select.select([self._socket], [], [], left_s)
        raise AssertionError(f"no {name} within {within_s:g} s: {self.received}")
