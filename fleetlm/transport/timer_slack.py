"""Lets timers of libzmq's threads be late, so that those that are due at nearly one moment fire together.

Each connection has a heartbeat timer at each end, and each of them wakes libzmq's thread alone: in a cluster
of idle nodes that is most of its work. The kernel may delay the end of a thread's waits by its *timer slack*,
50 us by default, to end several with one interrupt. libzmq sets a timer anew when it has fired, so timers
that have fired together stay together. What comes over a connection is not delayed at all: only waits that
end by themselves are.

A thread inherits the slack of the thread that starts it, so this module changes that of the caller for the
time in which libzmq starts its threads.

Source: prctl(2), PR_SET_TIMERSLACK; proc(5), /proc/pid/timerslack_ns. Both exist on Linux alone. Where it
cannot be set nothing changes.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def timer_slack(slack_s: float) -> Iterator[None]:
    """Let the waits of threads that are started in this block be up to ``slack_s`` seconds late.

    The thread that runs the block has its former slack again behind it, and must not wait in between.
    """
    former = _change_slack(str(max(1, round(slack_s * 1e9))))
    try:
        yield
    finally:
        if former:
            _change_slack(former)


def _change_slack(nanoseconds: str) -> str:
    """Set the slack of the calling thread. Returns the former one; empty if that is not possible."""
    if not sys.platform.startswith("linux"):
        return ""
    path = f"/proc/{threading.get_native_id()}/timerslack_ns"
    try:
        with open(path, "r+", encoding="ascii") as file:  # noqa: PTH123  # a start does not import pathlib
            former = file.read().strip()
            file.seek(0)
            file.write(nanoseconds)
    except OSError:
        return ""
    return former
