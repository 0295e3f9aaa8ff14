"""Resolves names as the operating system does (/etc/hosts, NSS, mDNS), off the event loop.

``getaddrinfo`` blocks, cannot be cancelled and may take minutes. An executor's threads are joined when
the program ends, so one stuck lookup would keep the program alive. Each `SystemLookup` therefore has at
most one daemon thread. A lookup that takes too long leaves the thread behind, and further lookups return
None (nothing is known) until the thread has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable


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
        self._thread: threading.Thread | None = None

    async def addresses(self, host: str, *, timeout_s: float) -> tuple[str, ...] | None:
        """Look up the addresses of ``host``. Never raises.

        Returns:
            The addresses in the system's order; empty if there are none or the lookup failed. None if
            nothing is known: there was no answer within ``timeout_s`` seconds, an earlier lookup is
            still stuck, or no thread could be started.
        """
        if self._thread is not None and self._thread.is_alive():
            return None
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[str, ...]] = loop.create_future()

        def deliver(found: tuple[str, ...]) -> None:
            if not answer.done():
                answer.set_result(found)

        def look_up() -> None:
            try:
                found = tuple(self._resolve(host))
            except (OSError, ValueError):  # ValueError: the name cannot be encoded in IDNA
                found = ()
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(deliver, found)

        self._thread = threading.Thread(target=look_up, name="fleetlm-getaddrinfo", daemon=True)
        try:
            self._thread.start()
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            return None
        except RuntimeError:  # no further thread can be started
            self._thread = None
            return None
