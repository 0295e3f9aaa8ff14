"""Names as the operating system resolves them: /etc/hosts, NSS, mDNS, off the event loop.

`getaddrinfo` blocks, cannot be cancelled and may take minutes, and an executor's threads are waited
for at exit. So each `SystemLookup` has one daemon thread at most, and gives up on it in time.
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
        resolve: the blocking lookup: a name in, addresses out, OSError for a name that has none.
    """

    def __init__(self, resolve: Callable[[str], list[str]] = _resolve_blocking) -> None:
        self._resolve = resolve
        self._thread: threading.Thread | None = None

    async def addresses(self, host: str, *, timeout_s: float) -> tuple[str, ...] | None:
        """The addresses of ``host``, as they come; empty where it has none or the lookup failed.

        None means that nothing is known: no answer within ``timeout_s`` seconds, or an earlier
        lookup is still stuck. Never raises.
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
            except (OSError, ValueError):  # ValueError: a name that IDNA cannot write
                found = ()
            with contextlib.suppress(RuntimeError):  # the loop was closed in the meantime
                loop.call_soon_threadsafe(deliver, found)

        self._thread = threading.Thread(target=look_up, name="fleetlm-getaddrinfo", daemon=True)
        try:
            self._thread.start()
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            return None
        except RuntimeError:  # the process may start no more threads
            self._thread = None
            return None
