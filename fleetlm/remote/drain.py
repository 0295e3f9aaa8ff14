"""`fleetlm drain` and `fleetlm undrain`: ask a node of this machine to drain, and show how it goes.

Both commands evaluate an expression in the node, as `fleetlm remote` does (`namespace.NodeNoun.drain`), so
the node needs its remote shell. The drain belongs to the node: a command that is interrupted does not take
it back.
"""

from __future__ import annotations

import os
import sys

from fleetlm.remote import client
from fleetlm.remote.finder import NO_NODE, OK, RAISED, RemoteFailure, choose, discover

CUT = 75
"""Exit code: something that the node had begun was cut. The same as that of `fleetlm start`."""
LONGEST_DRAIN_S = 86_400.0
"""Seconds that a drain can take by its settings, which this command does not know."""
SLACK_S = 30.0
"""Seconds for the answer beyond the time of the drain: hooks after it have a little more."""


def drain(*, node: str | None, timeout_s: float | None, reason: str, wait: bool) -> int:
    """Let a node drain. Prints how it goes.

    Args:
        node: its name; None for the only node of this machine.
        timeout_s: seconds for what it has begun; None: as its settings say.
        reason: for its log.
        wait: whether to wait until it has drained, rather than until it has begun to.

    Returns:
        The exit code: 0 if it has begun, or, with ``wait``, if it is done and nothing was cut; 75 if
        something was cut; 1 if the drain was undone, or the node stops already; 2 to 5 as those of `fleetlm
        remote`.
    """
    arguments = f"{timeout_s!r}, {reason!r}, wait={wait!r}"
    limit_s = (LONGEST_DRAIN_S if timeout_s is None else timeout_s) + SLACK_S
    code, value = _evaluate(f"Node.drain({arguments})", node, limit_s, "drain")
    if code == OK and isinstance(value, dict):
        return CUT if value.get("cut") else RAISED if value.get("was_undone") else OK
    return code


def undrain(*, node: str | None) -> int:
    """Take the drain of a node back. Returns the exit code: 0 if it takes work, 1 if it stops already."""
    code, value = _evaluate("Node.undrain()", node, SLACK_S, "undrain")
    return RAISED if code == OK and value is False else code


def _evaluate(source: str, node: str | None, limit_s: float, command: str) -> tuple[int, object]:
    """Evaluate in a node and show what is printed there. Returns the exit code and the value."""

    def show(stream: str, text: str) -> None:
        client.put(text, sys.stderr if stream == "stderr" else sys.stdout)

    try:
        connection = client.connect(choose(discover(os.environ, os.getuid()), node))
        try:
            outcome = client.evaluate(connection, source, limit_s, 0, show)
        finally:
            connection.close()
    except RemoteFailure as failure:
        client.put(f"fleetlm {command}: {failure.text}\n", sys.stderr)
        return failure.code, None
    except client.NodeGone as gone:
        client.put(f"fleetlm {command}: {gone}\n", sys.stderr)
        return NO_NODE, None
    if outcome.error:
        text = str(outcome.done.get("text") or outcome.error)
        client.put(f"fleetlm {command}: {text}\n", sys.stderr)
    return outcome.code, outcome.done.get("value")
