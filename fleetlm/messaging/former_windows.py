"""What a node that connects again and again may leave in the mailboxes of processes that take nothing.

A window ends with its connection, and the next connection begins with an empty one (`messaging.windows`).
The messages of the former one stay in the mailboxes. So without a bound a peer could fill the memory of a
node, with 64 MiB for one process on each connection, several times a second.

When a connection ends, the messages that its node left in one mailbox over all former connections may count
as much as two windows, which one connection alone does not reach. Of more the newest are dropped, as if the
connection had ended before they came: nobody was promised that they arrive.

Exit signals are not dropped. They go on counting for the next connection instead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetlm.messaging.session import Session
    from fleetlm.messaging.windows import ReceiveWindows, UntakenExits

log: logging.Logger = logging.getLogger("fleetlm")

MOST_WINDOWS = 2
"""Windows that former connections of a node may have left in a mailbox. The last message that fits into a
window may be as large as a whole one, so that one window is not enough for a single connection."""


class FormerWindows:
    """The windows of connections that have ended, for messages that have not been taken."""

    __slots__ = ("_exits", "_windows")

    def __init__(self) -> None:
        self._windows: dict[str, list[ReceiveWindows]] = {}
        """Node → its former windows that still hold something."""
        self._exits: dict[str, UntakenExits] = {}
        """Node → its untaken exit signals."""

    def __len__(self) -> int:
        """How many former windows are kept."""
        return sum(map(len, self._windows.values())) + len(self._exits)

    def began(self, session: Session) -> None:
        """A connection has begun: exit signals of former ones count in its window."""
        self._forget_empty()
        exits = self._exits.pop(session.name, None)
        if exits is not None:
            session.arrivals.exits = exits

    def ended(self, session: Session) -> Iterator[None]:
        """A connection has ended: drop what is too much in steps, one for each mailbox."""
        self._forget_empty()
        name, arrivals = session.name, session.arrivals
        if arrivals.exits:
            self._exits[name] = arrivals.exits
        if arrivals.is_empty:
            return
        windows = self._windows.setdefault(name, [])
        windows.append(arrivals)
        dropped = 0
        for box in arrivals.boxes():
            dropped += box.trim(windows, MOST_WINDOWS * arrivals.limit)
            yield
        if dropped:
            log.warning(
                "dropped %d messages of former connections of %s, which processes of this node did not take",
                dropped,
                name,
            )

    def _forget_empty(self) -> None:
        for name, windows in list(self._windows.items()):
            windows[:] = [each for each in windows if not each.is_empty]
            if not windows:
                del self._windows[name]
        for name, exits in list(self._exits.items()):
            if not exits:
                del self._exits[name]
