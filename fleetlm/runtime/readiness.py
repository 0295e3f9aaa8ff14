"""Whether a node takes work: the answer to `fleetlm health --ready`, and to `Node.readiness`.

A node is ready if it has started, neither drains nor stops, is connected to enough others, and passes the
program's own checks. The checks run at the same time, each within `Settings.check_s`; one that raises, takes
longer or returns a false value says that the node is not ready, and the reason names it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from fleetlm.records import Record
from fleetlm.runtime.user_functions import Function, TookTooLong, UserFunctions
from fleetlm.texts import text_of

if TYPE_CHECKING:
    from fleetlm.processes.context import NodeContext


class Readiness(Record):
    """Whether a node is ready.

    Attributes:
        node: its name.
        is_ready: whether it takes work.
        connected: the number of nodes that it is connected to.
        reasons: why it is not ready, one sentence each; empty if it is.
    """

    node: str
    is_ready: bool
    connected: int
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        if self.is_ready:
            return f"{self.node} is ready, connected to {self.connected}"
        return f"{self.node} is not ready: {'; '.join(self.reasons)}"


class ReadinessChecks:
    """The checks of one node.

    Args:
        context: of the node.
        functions: runs the program's checks.
        why_leaving: returns why the node takes no work, such as "it is draining"; empty if it does.
    """

    def __init__(
        self, context: NodeContext, functions: UserFunctions, why_leaving: Callable[[], str]
    ) -> None:
        self._name = context.name
        self._sessions = context.sessions
        self._limit_s = context.settings.check_s
        self._max_checks = context.settings.max_hooks
        self._functions = functions
        self._why_leaving = why_leaving
        self._checks: dict[str, Function] = {}

    def add(self, name: str, check: Function) -> None:
        """See `Node.add_check`."""
        if not callable(check):
            raise TypeError(f"the check {name!r} must be a function without arguments, not {check!r}")
        if name not in self._checks and len(self._checks) >= self._max_checks:
            raise ValueError(f"{len(self._checks)} checks are there already (Settings.max_hooks)")
        self._functions.prepare(check)
        self._checks[name] = check

    def remove(self, name: str) -> bool:
        """See `Node.remove_check`."""
        return self._checks.pop(name, None) is not None

    async def look(self, min_nodes: int = 0) -> Readiness:
        """See `Node.readiness`."""
        reasons = [reason for reason in (self._why_leaving(),) if reason]
        results = await asyncio.gather(*(self._run(name, check) for name, check in [*self._checks.items()]))
        connected = len(self._sessions)
        if connected < min_nodes:
            reasons.append(f"it is connected to {connected} node(s), and {min_nodes} are needed")
        reasons += [reason for reason in results if reason]
        return Readiness(self._name, not reasons, connected, tuple(reasons))

    async def _run(self, name: str, check: Function) -> str:
        """Run one check. Returns why it fails; empty if it passes."""
        try:
            result = await self._functions.run(check, self._limit_s)
        except TookTooLong as error:
            return f"the check {name} {error} (Settings.check_s)"
        except Exception as error:  # noqa: BLE001  # the program's own function
            return f"the check {name} raised {type(error).__name__}: {text_of(error)}"
        return "" if result else f"the check {name} says no"
