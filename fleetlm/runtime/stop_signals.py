"""What a further SIGTERM or SIGINT means for a node that leaves already.

The first signal asks the node to leave. A second signal of the *same* kind is impatience: somebody has
pressed Ctrl-C twice, or has said `kill` again; the process ends at once. A second signal of the *other* kind
is not: platforms send two kinds by themselves. Fly.io sends SIGINT and, five seconds later by default,
SIGTERM; a drain must not be cut by that. The third signal ends the process, whatever it is.
"""

from __future__ import annotations

import enum
import signal


class Verdict(enum.Enum):
    """What to do about a signal."""

    LEAVE = "leave"
    GO_ON = "go on"
    END = "end"


class StopSignals:
    """The signals that one run has got."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def take(self, number: int) -> Verdict:
        """Note a signal, and return what to do about it."""
        is_impatient = number in self.taken or len(self.taken) > 1
        self.taken.append(number)
        if len(self.taken) == 1:
            return Verdict.LEAVE
        return Verdict.END if is_impatient else Verdict.GO_ON

    @property
    def names(self) -> list[str]:
        """The names of the signals, in their order."""
        return [signal.Signals(number).name for number in self.taken]


FIRST = "received %s; shutting down (the same signal once more ends the process at once)"
"""The log line for the first signal."""
OTHER = (
    "received %s as well; the node goes on leaving, since a platform may send both by itself (any further "
    "signal ends the process at once)"
)
"""The log line for a signal of the other kind."""
