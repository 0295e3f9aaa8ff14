"""Resolves names as the operating system does (/etc/hosts, NSS, mDNS), off the event loop.

``getaddrinfo`` blocks, cannot be cancelled and may take minutes. Each `SystemLookup` has at most one thread
(`own_thread`). A lookup that takes too long leaves the thread behind. The next one waits for the same thread,
whose late answer serves it; until then nothing is known.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from fleetlm.discovery.own_thread import OwnThread

LATE_ANSWER_S = 30.0
"""Seconds after its begin in which a lookup that took too long may serve a later one. With three name servers
that are silent, the C library's defaults take 30 s."""


def _resolve_blocking(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for _, _, _, _, sockaddr in found]


class SystemLookup:
    """Looks host names up as every other program on the machine does.

    Args:
        resolve: the blocking lookup. It takes a name and returns addresses, or raises OSError for a
            name without addresses.
    """

    def __init__(self, resolve: Callable[[str], list[str]] = _resolve_blocking) -> None:
        self._resolve = resolve
        self._thread: OwnThread[tuple[str, ...]] | None = None
        self._host = ""
        self._began_at = 0.0

    async def addresses(self, host: str, *, timeout_s: float) -> tuple[str, ...] | None:
        """Look up the addresses of ``host``. Never raises.

        If an earlier lookup of the same host took too long, this one takes its answer.

        Returns:
            The addresses in the system's order; empty if there are none or the lookup failed. None if
            nothing is known: there was no answer within ``timeout_s`` seconds, a lookup of another host is
            still stuck, or no thread could be started.
        """
        thread = self._thread
        if thread is not None and thread.is_done and (self._host != host or self._is_late()):
            thread = None
        if thread is None:
            thread = OwnThread(lambda: self._find(host), name="fleetlm-getaddrinfo")
            try:
                thread.start()
            except RuntimeError:  # No further thread can be started.
                return None
            self._thread, self._host, self._began_at = thread, host, time.monotonic()
        elif self._host != host:
            return None
        if not await thread.wait(timeout_s):
            return None
        if self._thread is thread:
            self._thread = None
        return thread.result()

    def _find(self, host: str) -> tuple[str, ...]:
        """Find the addresses, in the thread. Never raises."""
        try:
            return tuple(self._resolve(host))
        except Exception:  # noqa: BLE001  # such as a name that cannot be encoded in IDNA
            return ()

    def _is_late(self) -> bool:
        """Whether the thread's answer is too old for a lookup that begins now."""
        return time.monotonic() - self._began_at > LATE_ANSWER_S
