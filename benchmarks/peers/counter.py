"""What a peer's actor does with messages that nobody answers: it counts them."""

from __future__ import annotations


class Counter:
    """Counts messages until all of a run have come."""

    def __init__(self) -> None:
        self._count = 0

    def add(self) -> None:
        """Count a message."""
        self._count += 1

    def counted(self, expected: int) -> int:
        """Return the count, and start anew when all have come."""
        count = self._count
        if count >= expected:
            self._count = 0
        return count
