"""Flushes each session that has something to send once, at the end of a turn of the event loop.

There is no Nagle-like delay: `Flusher.flush` runs with the callbacks that are ready now, so a lone message
leaves in the turn in which it was sent, and everything that was sent in one turn shares a frame.

From the first message of a turn until its end it is known which thread runs the loop, also where the loop
does not show it (`own_loop`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fleetlm.messaging.own_loop import hidden_home_of

if TYPE_CHECKING:
    from fleetlm.messaging.session import Session


class Flusher:
    """The sessions of one node that wait for the end of the turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Session] = []
        self._is_scheduled = False
        self._home = hidden_home_of(loop)

    def flush_soon(self, session: Session) -> None:
        """Flush this session at the end of the turn of the loop."""
        self._waiting.append(session)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self.flush)
            if self._home is not None:
                self._home.note()

    def flush(self) -> None:
        """Flush every session that waits, now."""
        self._is_scheduled = False
        if self._home is not None:
            self._home.forget()
        waiting, self._waiting = self._waiting, []
        for session in waiting:
            session.flush()
