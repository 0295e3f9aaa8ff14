"""How much was exchanged over sessions: sums that only grow, though sessions end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetlm.messaging.session import Session


class Traffic:
    """Messages and bytes of frames, sent and received. Frames of the handshake are not counted."""

    __slots__ = ("bytes_received", "bytes_sent", "messages_received", "messages_sent")

    def __init__(self) -> None:
        self.messages_sent: int = 0
        self.messages_received: int = 0
        self.bytes_sent: int = 0
        self.bytes_received: int = 0

    @classmethod
    def of(cls, *sessions: Session) -> Traffic:
        """Return what these sessions have exchanged until now."""
        found = cls()
        for session in sessions:
            found.add(session)
        return found

    def plus(self, sessions: Iterable[Session]) -> Traffic:
        """Return the sum of this and what these sessions have exchanged until now."""
        found = Traffic.of(*sessions)
        for each in Traffic.__slots__:
            setattr(found, each, getattr(found, each) + getattr(self, each))
        return found

    def add_growth(self, now: Traffic, before: Traffic) -> None:
        """Add by how much one sum has grown."""
        for each in Traffic.__slots__:
            setattr(self, each, getattr(self, each) + getattr(now, each) - getattr(before, each))

    def add(self, session: Session) -> None:
        """Add what a session has exchanged."""
        self.messages_sent += session.messages_sent
        self.messages_received += session.messages_received
        self.bytes_sent += session.byte_window.sent_bytes
        self.bytes_received += session.byte_credit.taken_bytes
