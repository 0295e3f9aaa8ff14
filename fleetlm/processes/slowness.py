"""Says in the log of a node why requests are slow: mailboxes that stay full, and calls that wait in them.

A handler that blocks the loop is named by `runtime.loop_watch`, a sender that waits for room by
`processes.circles`, on its own node. Here is the other end: the node of the process that does not keep up.

* A mailbox that stays full for `Settings.stalled_after_s`. Each tick looks at mailboxes that may be full:
  those to which a peer has sent what its window allows (`ReceiveWindows.full`), and those for which senders
  of this node wait. Nothing is counted for a message. A mailbox leaves the list when it has drained to half.
* A call that had spent half of its caller's time in the mailbox when it was taken, or all of it: then it is
  passed over, and the process never sees it.

For each kind, which is the function that a process runs, `BURST_LINES` may come at once, and then one in ten
seconds, with the number of those that were left out.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fleetlm.core.log_lines import LogLines
from fleetlm.messaging.waits import show_process
from fleetlm.processes.running import RunningProcess
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.call import Call
    from fleetlm.messaging.mailbox import Mailbox
    from fleetlm.messaging.session import Session
    from fleetlm.messaging.waits import Waits

log: logging.Logger = logging.getLogger("fleetlm")

BURST_LINES: Final = 3
"""Lines of one kind at once: enough to see that it is no single case."""
LINES_PER_S: Final = 0.1
MAX_LOCAL_WAITS: Final = 1_000
"""Waits of this node that are looked at in one tick."""
MAX_SENDERS: Final = 5
"""Nodes that a line names as senders."""


class SlowCalls:
    """Logs calls that have spent most of their time in a mailbox."""

    def __init__(self) -> None:
        self._lines = LogLines(LINES_PER_S, BURST_LINES)

    def note(self, process: RunningProcess, call: Call, now: float) -> None:
        """Log a call that a process takes now, or passes over, if when it came is known."""
        allowed_s = call.deadline - call.began
        if not math.isfinite(allowed_s):
            return
        left_out = self._lines.admit_with_rest(process.runs, now)
        if left_out is None:
            return
        handler = f" of {call.message.handler}" if type(call.message) is Invoke else ""
        is_over = now >= call.deadline
        what = "and it is not run" if is_over else f"{len(process.mailbox):,} more message(s) wait"
        log.warning(
            "a call%s: of the %.3g s of the caller's deadline, %.3g s were spent in the mailbox of %s (%s); "
            "%s%s",
            handler, allowed_s, min(allowed_s, now - call.began), show_process(process), process.runs, what,
            describe_rest(left_out, "calls"),
        )  # fmt: skip


class _Full:
    """A mailbox that is full."""

    __slots__ = ("is_logged", "since", "taken")

    def __init__(self, since: float, taken: int) -> None:
        self.since = since
        self.taken = taken
        self.is_logged = False


class FullMailboxes:
    """Logs mailboxes that stay full.

    Args:
        sessions: of this node, by name.
        waits: who waits for whom on this node.
        after_s: seconds after which a full mailbox is logged.
    """

    def __init__(self, sessions: dict[str, Session], waits: Waits, after_s: float) -> None:
        self._sessions = sessions
        self._waits = waits
        self._after_s = after_s
        self._clock: Callable[[], float] = waits.loop.time
        self._full: dict[Mailbox, _Full] = {}
        self._lines = LogLines(LINES_PER_S, BURST_LINES)

    def look(self) -> None:
        """Look at the mailboxes that may be full; called in every tick, after the sessions were swept."""
        now = self._clock()
        found = self._find()
        self._full = {
            box: self._full.get(box) or _Full(now, box.taken)
            for box in {**self._full, **found}
            if box in found or len(box) * 2 > box.limit
        }
        for box, full in self._full.items():
            if not full.is_logged and now - full.since >= self._after_s:
                full.is_logged = True
                self._log(box, full, now)

    def _find(self) -> dict[Mailbox, None]:
        waited_for = self._waits.mailboxes_waited_for(MAX_LOCAL_WAITS)
        found = dict.fromkeys(waited_for)
        for session in self._sessions.values():
            found |= dict.fromkeys(session.arrivals.full)
        return found

    def _log(self, box: Mailbox, full: _Full, now: float) -> None:
        process = box.owner
        assert isinstance(process, RunningProcess), "the owners of a node's mailboxes are its processes"
        if not len(box):
            return  # It has ended.
        left_out = self._lines.admit_with_rest(process.runs, now)
        if left_out is None:
            return
        wait = process._waits_for
        does = "is busy" if wait is None else f"waits for {wait.describe(now)}"
        log.warning(
            "the mailbox of %s (%s) has been full for %.3g s: %s messages wait there, %s; its process took "
            "%s meanwhile, and %s%s",
            show_process(process), process.runs, now - full.since, f"{len(box):,}",
            self._describe_senders(box), f"{box.taken - full.taken:,}", does,
            describe_rest(left_out, "mailboxes"),
        )  # fmt: skip

    def _describe_senders(self, box: Mailbox) -> str:
        """Say from which nodes the messages came that wait in a mailbox."""
        names = {session.arrivals: name for name, session in self._sessions.items()}
        counts: Counter[str] = Counter()
        for window, count in box.senders():
            counts[names.get(window, "nodes that are gone")] += count  # type: ignore[call-overload]
        own = len(box) - counts.total()
        if own > 0:
            counts["this node"] = own
        shown = [f"{count:,} of them from {name}" for name, count in counts.most_common(MAX_SENDERS)]
        return ", ".join(shown)


def describe_rest(left_out: int, what: str) -> str:
    """Say how many lines of this kind were left out since the last one; nothing for none."""
    return f"; {left_out:,} more such {what} since the last line" if left_out else ""
