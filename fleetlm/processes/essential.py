"""Processes that a node cannot do without: when one of them ends, the node stops.

A process is essential if it was spawned so (``essential=True``). In a program that `fleetlm start` or
`fleetlm.run` runs, each supervisor without a parent is essential too, unless it was spawned with
``essential=False``: one that gives up would leave an empty node behind, which looks healthy. Of such a
supervisor only a failure counts; a program may end it by an exit signal.

The end with the reason ``"normal"`` is no failure: the process has done its work, and the node stops in
order.

Source: OTP application:start/2, ``permanent``; differs: it is said of a process, and ``"normal"`` is success.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fleetlm.core.restarts import is_clean
from fleetlm.texts import text_of

if TYPE_CHECKING:
    from fleetlm.processes.running import RunningProcess

MAX_CHARS = 200
"""Longer texts of what has happened are cut: the log and the peers get them, `Node.failure` has all."""


class Essential:
    """Which processes of a node are essential.

    Args:
        stop: stops the node; called with why it failed, or with an empty text after a ``"normal"`` end, and
            with what has happened, in a few words.
    """

    def __init__(self, stop: Callable[[str, str], None]) -> None:
        self.guards_roots: bool = False
        """Whether supervisors without a parent are essential."""
        self._stop = stop
        self._said: dict[int, tuple[bool, str | None]] = {}
        """What was said of processes when they were spawned, and their names then, by number."""

    def say(self, number: int, is_essential: bool, name: str | None) -> None:
        """A process was spawned with this option."""
        self._said[number] = is_essential, name

    def exited(self, process: RunningProcess, reason: Any) -> None:
        """A process of this node has ended: stop the node if it was essential."""
        said, name = self._said.pop(process.pid.number, (None, None))
        if said is None and self.guards_roots and process._children is not None and process.parent is None:
            said = bool(process._gave_up) or not is_clean(reason)
        if said:
            what = f"essential process {name or process.pid} ({process.runs})"
            if process._gave_up:
                who, gave_up, _ = process._gave_up.partition(" gave up")
                self._stop(process._gave_up, who + gave_up)
            elif reason == "normal":
                self._stop("", f"{what} has done its work")
            else:
                self._stop(f"{what} ended: {text_of(reason)}", f"{what} ended: {text_of(reason)}"[:MAX_CHARS])
