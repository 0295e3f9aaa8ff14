"""Snapshots of processes and of a supervisor's children, for people."""

from __future__ import annotations

from typing import Literal

from fleetlm.ids import Pid
from fleetlm.records import Record


class ProcessInfo(Record):
    """A snapshot of one process, as `Node.processes` returns it."""

    pid: Pid
    name: str | None
    runs: str
    """Qualified name of the function."""
    mailbox: int
    """Messages that wait in the mailbox."""
    taken: int
    """Messages taken so far."""
    open_calls: int
    """Calls taken and not answered yet."""
    state: Literal["starting", "waiting", "running", "ending"]
    """``starting``: an actor in its init; ``waiting`` for a message; ``running``: doing anything else; or
    ``ending``: the process has got an exit signal and has not ended yet."""
    waits_for: str = ""
    """What a ``running`` process waits for, if it is a reply of another process, or room for a message:
    ``reply from 'b' on fleetlm@10.0.0.7 for 3.2 s``."""


class ChildInfo(Record):
    """A snapshot of one child of a supervisor, as `Node.supervisors` returns it."""

    id: str
    """Its name among the children of its supervisor."""
    pid: Pid | None
    """None while it is not running."""
    runs: str
    """Qualified name of the function."""
    restart: str
    """``permanent``, ``transient`` or ``temporary``."""
    state: Literal["starting", "waiting", "running", "ending", "restarting", "queued", "not running"]
    """As `ProcessInfo.state`; or ``restarting``: it has ended and will be started after a pause; or
    ``queued``: it starts when the init of the child before it is done."""
    restarts: int = 0
    """How often its supervisor has restarted it."""
