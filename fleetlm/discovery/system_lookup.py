"""Resolves names as the operating system does (/etc/hosts, NSS, mDNS), off the event loop.

``getaddrinfo`` blocks, cannot be cancelled and may take minutes. An executor's threads are joined when
the program ends, so one stuck lookup would keep the program alive. Each `SystemLookup` therefore has at
most one daemon thread. A lookup that takes too long leaves the thread behind. The next one waits for the
same thread, whose late answer serves it; until then nothing is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable

LATE_ANSWER_S = 30.0
"""Seconds after its begin in which a lookup that took too long may serve a later one. With three name servers
that are silent, the C library's defaults take 30 s."""


def _resolve_blocking(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for _, _, _, _, sockaddr in found]


class _Thread:
    """One lookup in a thread of its own."""

    def __init__(self, host: str, resolve: Callable[[str], list[str]]) -> None:
        self.host = host
        self.found: tuple[str, ...] | None = None
        self.began_at = time.monotonic()
        self._resolve = resolve
        self._lock = threading.Lock()
        self._on_end: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name="fleetlm-getaddrinfo", daemon=True)

    def start(self) -> None:
        """Begin. Raises: RuntimeError if no further thread can be started."""
        self._thread.start()

    def is_late(self) -> bool:
        """Whether its answer is too old for a lookup that begins now."""
        return time.monotonic() - self.began_at > LATE_ANSWER_S

    async def wait(self, timeout_s: float) -> tuple[str, ...] | None:
        """Wait for the addresses. Returns None if they have not come within ``timeout_s`` seconds."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(ended.set)

        with self._lock:
            self._on_end = tell
            if self.found is not None:
                return self.found
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await ended.wait()
        return self.found

    def _run(self) -> None:
        try:
            found = tuple(self._resolve(self.host))
        except (OSError, ValueError):  # ValueError: the name cannot be encoded in IDNA
            found = ()
        with self._lock:
            self.found = found
            if self._on_end is not None:
                self._on_end()


class SystemLookup:
    """Looks host names up as every other program on the machine does.

    Args:
        resolve: the blocking lookup. It takes a name and returns addresses, or raises OSError for a
            name without addresses.
    """

    def __init__(self, resolve: Callable[[str], list[str]] = _resolve_blocking) -> None:
        self._resolve = resolve
        self._thread: _Thread | None = None

    async def addresses(self, host: str, *, timeout_s: float) -> tuple[str, ...] | None:
        """Look up the addresses of ``host``. Never raises.

        If an earlier lookup of the same host took too long, this one takes its answer.

        Returns:
            The addresses in the system's order; empty if there are none or the lookup failed. None if
            nothing is known: there was no answer within ``timeout_s`` seconds, a lookup of another host is
            still stuck, or no thread could be started.
        """
        thread = self._thread
        if thread is not None and thread.found is not None and (thread.is_late() or thread.host != host):
            thread = None
        if thread is None:
            thread = _Thread(host, self._resolve)
            try:
                thread.start()
            except RuntimeError:  # no further thread can be started
                return None
            self._thread = thread
        elif thread.host != host:
            return None
        found = await thread.wait(timeout_s)
        if found is not None and self._thread is thread:
            self._thread = None
        return found
