"""The audit log: what other nodes have made this node do to its processes, one line each.

The lines go to the logger ``fleetlm.audit``, so that a program can send them where they are kept. A line
names the node and the process that asked, what it asked for, and the process of this node. Texts of a peer
are shown by their ``repr`` in ASCII, cut to a few hundred characters, so that a line stays one line.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from fleetlm.ids import Pid
    from fleetlm.processes.remote_spawn import SpawnRequest
    from fleetlm.setting_parsers import Right

log: logging.Logger = logging.getLogger("fleetlm.audit")


def spawned(request: SpawnRequest, pid: Pid) -> None:
    """A peer has spawned a process here."""
    name = "" if request.name is None else f", named {_shown(request.name)}"
    log.info("spawn: %s spawned %s of factory %s%s", request.owner, pid, _shown(request.factory), name)


def sent_exit(sender: Pid, pid: Pid, name: str, reason: Any) -> None:
    """A peer has sent an exit signal to a process here, whose name may be empty; it may trap the signal."""
    called = f" ({_shown(name)})" if name else ""
    log.info("exit: %s sent an exit signal to %s%s: %s", sender, pid, called, _shown(reason))


def denied(node: str, right: Right, what: Any) -> None:
    """A peer asked for what Settings.peers_may does not contain."""
    log.warning("denied: %s may not %s here (Settings.peers_may): %s", node, right, _shown(what))


def _shown(value: Any) -> str:
    return SHORT.repr(value).encode("ascii", "backslashreplace").decode()
